"""Where rounding modes differ is counted exactly: as many as looking at every accumulator finds."""

import itertools
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsmooth_ref import fixedpoint
from intsmooth_ref.audit import rounding
from intsmooth_ref.audit.rounding import STANDARD, rounding_of, tied_sums
from intsmooth_ref.fixedpoint import INT32_MAX, INT32_MIN, MULTIPLIER_MAX, MULTIPLIER_MIN, ROUNDING_MODES
from intsmooth_ref.model.layers import Add, Quantization, Requantization

MANY = settings(max_examples=150, deadline=None)


@st.composite
def channels(draw):
    """A multiplier, often with many factors of two, a shift, and a short interval anywhere in int32."""
    multiplier = draw(st.one_of(
        st.sampled_from([MULTIPLIER_MIN, MULTIPLIER_MAX, 3 << 29, 5 << 28]),
        st.integers(MULTIPLIER_MIN, MULTIPLIER_MAX),
        st.builds(lambda odd, zeros: (1 << 30) + (odd << zeros), st.integers(0, 7), st.integers(5, 27)),
    ))  # fmt: skip
    shift = draw(st.one_of(st.integers(28, 42), st.integers(1, 62)))
    low = draw(st.one_of(st.integers(-900, 100), st.sampled_from([INT32_MIN, INT32_MAX]), st.integers(-(10**6), 10**6)))
    low = min(low, INT32_MAX - 700)
    return multiplier, shift, low, low + draw(st.integers(0, 700))


@st.composite
def outputs(draw):
    minimum = draw(st.integers(0, 255))
    return Quantization("uint8", Fraction(1), draw(st.integers(0, 255)), minimum, draw(st.integers(minimum, 255)))


def one_by_one(mode, multiplier, shift):
    """The mode as a function of one accumulator: by the oracle, where it knows the mode."""
    if mode in oracle.ROUNDING:
        return lambda accumulator: oracle.ROUNDING[mode](accumulator, multiplier, shift)
    constants = np.int64(multiplier), np.int64(shift)
    return lambda accumulator: int(rounding.requantize(np.array([accumulator], np.int64), *constants, mode)[0])


def compared(mode, multiplier, shift, low, high, output):
    """Of every accumulator that the mode rounds differently: itself, and both results after the clamp."""
    standard, other = one_by_one(STANDARD, multiplier, shift), one_by_one(mode, multiplier, shift)
    found = []
    for accumulator in range(low, high + 1):
        results = standard(accumulator), other(accumulator)
        if results[0] != results[1]:
            clamped = [min(max(output.zero_point + each, output.minimum), output.maximum) for each in results]
            found.append((accumulator, *clamped))
    return found


@MANY
@given(st.lists(channels(), min_size=1, max_size=3), outputs())
def test_differences_are_as_many_as_comparing_every_accumulator_finds(drawn, output):
    multipliers, shifts, lows, highs = zip(*drawn)
    found = rounding_of(Requantization.of(*zip(multipliers, shifts)), output, lows, highs)
    assert [each.mode for each in found.differences] == [mode for mode in ROUNDING_MODES if mode != STANDARD]
    assert found.accumulators == sum(high - low + 1 for low, high in zip(lows, highs))
    for each in found.differences:
        takes = [fixedpoint.accumulator_range(shift, each.mode) for shift in shifts]
        refused = any(low < a or high > b for low, high, (a, b) in zip(lows, highs, takes))
        assert (each.refused is not None) == refused
        if refused:
            assert each.before is each.after is each.example is None
            continue
        expected = [compared(each.mode, *channel, output) for channel in drawn]
        after = [[item for item in channel if item[1] != item[2]] for channel in expected]
        assert each.before == sum(map(len, expected))
        assert (each.after, each.channels) == (sum(map(len, after)), sum(map(bool, after)))
        first = next(((index, *channel[0]) for index, channel in enumerate(after) if channel), None)
        assert each.example == first


@MANY
@given(channels())
def test_ties_are_as_many_as_dividing_every_accumulator_finds(channel):
    multiplier, shift, low, high = channel
    output = Quantization.full_range("uint8", Fraction(1), 0)
    found = rounding_of(Requantization.of((multiplier, shift)), output, [low], [high])
    half = Fraction(1, 2)
    assert found.ties == sum(Fraction(a * multiplier, 2**shift) % 1 == half for a in range(low, high + 1))


def test_one_interval_or_one_pair_of_constants_may_serve_all_channels():
    output = Quantization.full_range("uint8", Fraction(1), 0)
    shared = rounding_of(Requantization.of((2**30, 33), (2**30, 34)), output, [0], [99])
    assert shared.accumulators == 200
    assert shared.ties == sum(a % 8 == 4 for a in range(100)) + sum(a % 16 == 8 for a in range(100))
    assert rounding_of(Requantization.of((2**30, 33)), output, [0, 50], [99, 99]).accumulators == 150


#: Modes that do not exist, near the standard and far from it, each as a function of exact quotients.
INVENTED = {
    "towards zero": int,
    "half even": round,
    "floor of the double": lambda x: (2 * x).__floor__(),
    "two above": lambda x: (x + Fraction(5, 2)).__floor__(),
    "coarse": lambda x: 7 * (x / 7).__floor__(),
}


def invented(accumulators, multiplier, shift, mode):
    if mode not in INVENTED:
        return fixedpoint.requantize(accumulators, multiplier, shift, mode)
    results = [INVENTED[mode](Fraction(int(a) * int(multiplier), 2 ** int(shift))) for a in np.ravel(accumulators)]
    return np.array(results, np.int64).reshape(np.shape(accumulators))


@pytest.mark.parametrize("mode", INVENTED)
@settings(max_examples=15, deadline=None)
@given(drawn=st.tuples(st.integers(MULTIPLIER_MIN, MULTIPLIER_MAX), st.integers(29, 36)), output=outputs(),
       low=st.integers(-200, 20), chunk=st.sampled_from([1, 7, 1 << 18]))  # fmt: skip
def test_any_mode_that_keeps_the_order_of_accumulators_is_counted(mode, drawn, output, low, chunk):
    """Ratios from 2 to 1/128: where steps are more than accumulators these are looked at one by one."""
    multiplier, shift = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "ROUNDING_MODES", (STANDARD, mode))
        patch.setattr(rounding, "requantize", invented)
        patch.setattr(rounding, "CHUNK", chunk)
        found, = rounding_of(Requantization.of(drawn), output, [low], [low + 150]).differences
        expected = compared(mode, multiplier, shift, low, low + 150, output)
    after = [item for item in expected if item[1] != item[2]]
    assert (found.before, found.after) == (len(expected), len(after))
    assert found.example == ((0, *after[0]) if after else None)


@MANY
@given(channels(), st.sampled_from(ROUNDING_MODES))
def test_every_mode_keeps_the_order_of_accumulators(channel, mode):
    """What the count by thresholds rests on."""
    multiplier, shift, low, high = channel
    lowest, highest = fixedpoint.accumulator_range(shift, mode)
    accumulators = np.arange(max(low, lowest), min(high, highest) + 1, dtype=np.int64)
    assert (np.diff(fixedpoint.requantize(accumulators, np.int64(multiplier), np.int64(shift), mode)) >= 0).all()


def test_what_is_too_much_to_count_is_said_not_guessed(monkeypatch):
    """After the clamp there is nothing to give up: at most 255 steps are left of a channel."""
    output = Quantization.full_range("uint8", Fraction(1), 0)
    arguments = Requantization.of((1518500250, 31)), output, [-3000], [3000]
    counted = rounding_of(*arguments).differences[0]
    monkeypatch.setattr(rounding, "MOST_STEPS", 100)
    given_up = rounding_of(*arguments).differences[0]
    assert given_up.before is None and counted.before is not None
    assert (given_up.after, given_up.example) == (counted.after, counted.example)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.sampled_from([1, 2**29, 2**30, 3 * 2**28, 5, 2**31 - 1])] * 2), st.integers(1, 40))
def test_ties_of_sums_are_as_many_as_adding_every_pair_finds(multipliers, shift):
    output = Quantization.full_range("uint8", Fraction(1), 0)
    layer = Add(name="a", inputs=("x", "y"), multiplier=np.array(multipliers, np.int32), shift=shift, output=output)
    values = np.array([0, 3, 4, 128, 255]), np.arange(-5, 12)
    expected = [
        Fraction((a - 4) * multipliers[0] + (b + 7) * multipliers[1], 2**shift) % 1 == Fraction(1, 2)
        for a, b in itertools.product(*(each.tolist() for each in values))
    ]
    assert tied_sums(layer, [4, -7], values) == (sum(expected), len(expected))
