"""Multipliers are the nearest ones; each rounding mode rounds as its definition says, in ties and at the extremes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.fixedpoint import (
    INT32_MAX,
    INT32_MIN,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ROUNDING_MODES,
    accumulator_range,
    quantize_multiplier,
    requantize,
)
from oracle import ROUNDING

ratios = st.fractions(min_value=Fraction(1, 2**31), max_value=2**29)


@given(ratios.filter(lambda ratio: ratio > 0))
def test_no_representable_multiplier_is_nearer(ratio):
    multiplier, shift = quantize_multiplier(ratio)
    assert MULTIPLIER_MIN <= multiplier <= MULTIPLIER_MAX and 1 <= shift <= 62
    error = abs(Fraction(multiplier, 2**shift) - ratio)
    assert error <= Fraction(1, 2 ** (shift + 1))
    if multiplier == MULTIPLIER_MIN:  # below it the grid is twice as fine
        assert Fraction(MULTIPLIER_MIN, 2**shift) - ratio <= Fraction(1, 2 ** (shift + 2))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Fraction(1), (2**30, 30)),
        (Fraction(1, 2), (2**30, 31)),
        (Fraction(2**31 - 1, 2), (2**31 - 1, 1)),
        (Fraction(1, 2**32), (2**30, 62)),
        (Fraction(2**31 - 1, 2**31), (2**31 - 1, 31)),
        (Fraction(2**32 - 1, 2**32), (2**30, 30)),  # a tie between 2**31 - 1 and 2**31 at shift 31: to the even one
        (Fraction(2**31 + 1, 2**31), (2**30, 30)),  # a tie between 2**30 and 2**30 + 1: to the even one
        (Fraction(2**31 + 3, 2**31), (2**30 + 2, 30)),  # a tie, to the even one above
    ],
)
def test_multipliers_worked_by_hand(ratio, expected):
    assert quantize_multiplier(ratio) == expected


@pytest.mark.parametrize("ratio", [0, -1, Fraction(1, 2**33), 2**30, Fraction(2**31 - 1, 2) + Fraction(1, 4)])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ArithmeticRangeError, match="expected"):
        quantize_multiplier(ratio)


def requantized(accumulator, multiplier, shift, mode):
    arrays = (np.array([value], dtype=np.int64) for value in (accumulator, multiplier, shift))
    return int(requantize(*arrays, mode)[0])


def accumulators_near_ties(multiplier, shift):
    """Accumulators whose product comes as near as can be to half a unit, on both sides of zero, and the extremes."""
    near = {0, 1, -1, INT32_MAX, INT32_MAX - 1, INT32_MIN, INT32_MIN + 1}
    for halves in (1, 3, 5, 101, 255, 256, 511):
        centre = halves * 2 ** (shift - 1) // multiplier
        near |= {sign * (centre + step) for sign in (1, -1) for step in (-2, -1, 0, 1, 2)}
    return sorted(near)


MULTIPLIERS = (MULTIPLIER_MIN, MULTIPLIER_MIN + 1, 3 * 2**29, 1518500249, MULTIPLIER_MAX - 1, MULTIPLIER_MAX)


@pytest.mark.parametrize("mode", ROUNDING_MODES)
@pytest.mark.parametrize("shift", range(1, 63))
def test_each_mode_equals_its_definition_at_near_ties_and_extremes(mode, shift):
    low, high = accumulator_range(shift, mode)
    checked = 0
    for multiplier in MULTIPLIERS:
        for accumulator in accumulators_near_ties(multiplier, shift):
            if low <= accumulator <= high:
                found = requantized(accumulator, multiplier, shift, mode)
                assert found == ROUNDING[mode](accumulator, multiplier, shift)
                checked += 1
    assert checked > 0


@pytest.mark.parametrize("mode", ROUNDING_MODES)
@given(st.data())
def test_each_mode_equals_its_definition_anywhere(mode, data):
    shift = data.draw(st.integers(1, 62))
    accumulator = data.draw(st.integers(*accumulator_range(shift, mode)))
    multiplier = data.draw(st.integers(MULTIPLIER_MIN, MULTIPLIER_MAX))
    assert requantized(accumulator, multiplier, shift, mode) == ROUNDING[mode](accumulator, multiplier, shift)


@pytest.mark.parametrize(
    ("accumulator", "single_rounding", "gemmlowp", "srdhm_half_up"),
    [(2, 1, 1, 1), (-2, 0, -1, 0), (6, 2, 2, 2), (-6, -1, -2, -1), (3, 1, 1, 1), (-3, -1, -1, 0), (-7, -2, -2, -1)],
)
def test_ties_go_up_or_away_from_zero_as_the_mode_says(accumulator, single_rounding, gemmlowp, srdhm_half_up):
    """A quarter: multiplier 2**31 / 2 at shift 32. Halves are exact, so only the rule for ties decides."""
    assert requantized(accumulator, 2**30, 32, "single_rounding") == single_rounding
    assert requantized(accumulator, 2**30, 32, "gemmlowp") == gemmlowp
    assert requantized(accumulator, 2**30, 32, "srdhm_half_up") == srdhm_half_up


def test_two_roundings_up_can_pass_a_half_that_one_stops_short_of():
    """1 * (2**31 - 1) / 2**32 is a little less than a half; its first rounding makes it 1, half of the rest."""
    assert requantized(1, MULTIPLIER_MAX, 32, "single_rounding") == 0
    assert requantized(1, MULTIPLIER_MAX, 32, "srdhm_half_up") == requantized(1, MULTIPLIER_MAX, 32, "gemmlowp") == 1
    assert requantized(-1, MULTIPLIER_MAX, 32, "srdhm_half_up") == 0
    assert requantized(-1, MULTIPLIER_MAX, 32, "gemmlowp") == -1


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(ArithmeticRangeError, match="'float'.*single_rounding, gemmlowp, srdhm_half_up"):
        requantized(1, 2**30, 31, "float")
