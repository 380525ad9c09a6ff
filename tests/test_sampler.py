"""The sampler draws exactly the law of its table, in NumPy and in Numba: bit strings enumerated and compared with exact
rationals, forced walks through every level of digits, addresses replayed in Python integers, and statistics."""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections import Counter
from fractions import Fraction
from types import ModuleType
from typing import Callable, Iterable

import numpy as np
import pytest
from campaign_noise import compiled_histogram, histogram_of, statistics

from intsmooth_ref.errors import ArithmeticRangeError, ParameterError
from intsmooth_ref.noise import sampler
from intsmooth_ref.noise.distributions import (
    IntegerDistribution,
    discrete_gaussian,
    discrete_laplace,
    discrete_uniform,
    rounded_normal,
)
from intsmooth_ref.noise.philox import key_of_seed, philox4x32
from intsmooth_ref.noise.sampler import NoiseTable, check_addresses, noise_table, sample

FULL = 2**256
SEED, IMAGE, STAGE = 0x0123456789ABCDEF, 77, 3
#: Kernels then run as plain Python, a hundred times slower, and the tests draw less.
JIT_DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
SIGMAS = [Fraction(1, 4), Fraction(1), Fraction(255, 4), Fraction(1024)]


def kernels() -> ModuleType:
    pytest.importorskip("numba")
    from intsmooth_ref.noise import kernels

    return kernels


@pytest.fixture(params=["numpy", "numba"])
def add_noise(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    return sampler.add_noise if request.param == "numpy" else kernels().add_noise


def table_of(thresholds: Iterable[int], minimum: int = -3) -> NoiseTable:
    return noise_table(IntegerDistribution("by hand", Fraction(0), minimum, tuple(thresholds), Fraction(0)))


def drawn_integer(seed: int, image: int, stage: int, sample_index: int, element: int) -> int:
    """U at an address, as the table in `sampler` lays it down, in Python integers."""

    def halfword(block: int, level: int, number: int) -> int:
        words = philox4x32((block, sample_index, image, stage * 256 + level), key_of_seed(seed))
        return (words[number // 2] >> (16 * (number % 2))) & 0xFFFF

    digits = [halfword(element // 8, 0, element % 8)]
    digits += [halfword(element, 1, number) for number in range(8)]
    digits += [halfword(element, 2, number) for number in range(7)]
    assert len(digits) == 16
    return sum(digit << (16 * (15 - position)) for position, digit in enumerate(digits))


def digits_of(number: int) -> list[int]:
    return [(number >> (16 * (15 - position))) & 0xFFFF for position in range(16)]


# The law, by enumeration


def exact_law(thresholds: tuple[int, ...]) -> list[int]:
    """2**256 * P(#{j : T_j <= U} = c) for c = 0 .. N."""
    return [above - below for below, above in zip((0,) + thresholds, thresholds + (FULL,))]


def enumerated_law(
    table: NoiseTable, narrow_all: Callable[[np.ndarray, int, int, int], tuple[np.ndarray, np.ndarray]]
) -> list[int]:
    """The same by following every bit string: all 65536 digits after every prefix that leaves the value undecided."""
    strings: Counter[int] = Counter()
    undecided = []
    for digit in range(65536):
        if table.first[digit] == sampler.UNDECIDED:
            undecided.append((1, int(table.starts[digit]), int(table.starts[digit + 1])))
        else:
            strings[int(table.first[digit]) - table.minimum] += 1 << 240
    while undecided:
        position, low, high = undecided.pop()
        if position == 16:
            strings[high] += 1
            continue
        lows, highs = narrow_all(table.digits, position, low, high)
        counts = np.bincount(lows[lows == highs])
        for count, number in enumerate(counts.tolist()):
            strings[count] += number << (16 * (15 - position))
        open_ranges = np.flatnonzero(lows != highs)
        undecided += [(position + 1, int(lows[digit]), int(highs[digit])) for digit in open_ranges]
    return [strings[count] for count in range(len(table.digits) + 1)]


def tables_by_hand() -> dict[str, tuple[int, ...]]:
    generator = random.Random(4)
    anywhere = generator.getrandbits(256)
    forks = [anywhere ^ (1 << bit) for bit in (0, 15, 16, 111, 112, 127, 128, 200, 239, 255)]
    return {
        "one threshold": (anywhere,),
        "forks at every level": tuple(sorted([anywhere, anywhere, *forks])),
        "the ends": (0, 0, 1, FULL // 2 - 1, FULL // 2, FULL - 2, FULL - 1, FULL - 1),
        "digits of zeros and ones": tuple(sorted([1 << 240, 1 << 128, (1 << 240) - 1, FULL - (1 << 112)])),
        "discrete_gaussian(1/4)": discrete_gaussian(Fraction(1, 4)).thresholds,
    }


#: The tables to enumerate: one in the quick part, all where kernels are compiled.
ENUMERATED = [
    pytest.param(name, marks=[] if name == "one threshold" else pytest.mark.slow) for name in tables_by_hand()
]


def narrow_by_numpy(digits: np.ndarray, position: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    every_digit = np.arange(65536)
    return sampler.narrow(digits[:, position], np.full(65536, low), np.full(65536, high), every_digit)


@pytest.mark.parametrize("name", ENUMERATED)
def test_every_bit_string_is_counted_exactly_by_numpy(name: str) -> None:
    thresholds = tables_by_hand()[name]
    assert enumerated_law(table_of(thresholds), narrow_by_numpy) == exact_law(thresholds)


@pytest.mark.parametrize("name", ENUMERATED[:1] if JIT_DISABLED else ENUMERATED)
def test_every_bit_string_is_counted_exactly_by_numba(name: str) -> None:
    narrow = kernels().narrow
    import numba

    @numba.njit
    def narrow_all(digits: np.ndarray, position: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        lows, highs = np.empty(65536, np.int64), np.empty(65536, np.int64)
        for digit in range(65536):
            lows[digit], highs[digit] = narrow(digits, position, low, high, digit)
        return lows, highs

    thresholds = tables_by_hand()[name]
    assert enumerated_law(table_of(thresholds), narrow_all) == exact_law(thresholds)


def neighbours(threshold: int) -> set[int]:
    """Strings that part from the threshold at each digit, to either side, the rest all zeros or all ones."""
    strings = {threshold}
    for position in range(16):
        unit = 1 << (16 * (15 - position))
        prefix = threshold - threshold % (unit << 16)
        digit = digits_of(threshold)[position]
        for other in {0, digit - 1, digit + 1, 0xFFFF} & set(range(65536)):
            strings |= {prefix + other * unit, prefix + (other + 1) * unit - 1}
    return strings


ALL_TABLES = {**tables_by_hand(), "discrete_laplace(1)": discrete_laplace(1).thresholds[::30]}
QUICK_TABLES = ("one threshold", "digits of zeros and ones")
WALKED = [pytest.param(name, marks=[] if name in QUICK_TABLES else pytest.mark.slow) for name in ALL_TABLES]


@pytest.mark.parametrize("name", WALKED)
def test_numpy_resolves_every_neighbour_of_every_threshold(name: str) -> None:
    thresholds = ALL_TABLES[name]
    strings = sorted(set().union(*map(neighbours, thresholds)))
    digits = np.array([digits_of(string) for string in strings], np.uint16)

    def draw(level: int, which: np.ndarray) -> np.ndarray:
        positions = sampler.LEVEL_DIGITS[level]
        return digits[which, positions.start : positions.stop]

    counts = sampler.resolve(table_of(thresholds), digits[:, 0], draw)
    assert counts.tolist() == [bisect_right(thresholds, string) for string in strings]


@pytest.mark.parametrize("name", WALKED)
def test_numba_resolves_every_neighbour_of_every_threshold(name: str) -> None:
    narrow_by_level = kernels().narrow_by_level
    thresholds = ALL_TABLES[name]
    if JIT_DISABLED:
        thresholds = thresholds[:3]
    table = table_of(thresholds)
    for string in sorted(set().union(*map(neighbours, thresholds))):
        digits = digits_of(string)
        low, high = int(table.starts[digits[0]]), int(table.starts[digits[0] + 1])
        for begin, end in ((1, 9), (9, 16)):
            halves = digits[begin:end] + [0] * (8 - (end - begin))
            words = np.array([[halves[2 * i] + (halves[2 * i + 1] << 16)] for i in range(4)], np.uint32)
            low, high = narrow_by_level(table.digits, begin, end, words, 0, low, high)
        assert high == bisect_right(thresholds, string)


# The addresses


@pytest.mark.parametrize("agreeing_digits", range(17))
def test_forced_walk_through_every_digit(add_noise: Callable[..., np.ndarray], agreeing_digits: int) -> None:
    """Thresholds that agree with the U drawn at one address in so many digits and no more, or in all 256 bits."""
    element, sample_index, size = 2061, 5, 2070  # in the second chunk of the kernel
    if agreeing_digits not in (0, 1, 8, 9, 15, 16) and JIT_DISABLED:
        element, size = 13, 19
    drawn = drawn_integer(SEED, IMAGE, STAGE, sample_index, element)
    unit = 1 << (16 * (15 - agreeing_digits)) if agreeing_digits < 16 else 0
    parting = {drawn - unit, drawn + unit}
    if agreeing_digits < 16:  # drop the side on which the digit would leave its range and carry
        parting = {t for t in parting if 0 <= t < FULL and (t ^ drawn) >> (16 * (16 - agreeing_digits)) == 0}
        assert parting and drawn not in parting
    thresholds = sorted(parting | ({drawn + 1, drawn - 1} if agreeing_digits == 16 else set()))
    noisy = add_noise(table_of(thresholds), np.zeros(size, np.uint8), SEED, IMAGE, STAGE, sample_index, 1)
    assert noisy[0, element] == -3 + bisect_right(thresholds, drawn)


@pytest.mark.parametrize(
    "distribution",
    [
        discrete_gaussian(Fraction(1, 4)),
        discrete_gaussian(Fraction(255, 4)),
        discrete_gaussian(1024),
        discrete_laplace(45),
        discrete_uniform(30000),
        rounded_normal(2),
    ],
    ids=lambda d: f"{d.name}-{d.parameter}",
)
def test_values_are_those_of_python_integers(
    add_noise: Callable[..., np.ndarray], distribution: IntegerDistribution
) -> None:
    pixels = np.array([0, 255, 1, 254, 128] * 9, np.uint8)
    noisy = add_noise(noise_table(distribution), pixels, SEED, IMAGE, STAGE, 10, 3)
    assert noisy.dtype == np.int32 and noisy.shape == (3, 45)
    for row in range(3):
        drawn = [drawn_integer(SEED, IMAGE, STAGE, 10 + row, element) for element in range(45)]
        values = [distribution.minimum + bisect_right(distribution.thresholds, number) for number in drawn]
        assert noisy[row].tolist() == [value + int(pixel) for value, pixel in zip(values, pixels)]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("size, count", [(1, 1), (7, 3), (8, 2), (3072, 2), (4099, 2), (5, 0), (0, 2)])
def test_numpy_and_numba_give_the_same_bits(sigma: Fraction, size: int, count: int) -> None:
    if JIT_DISABLED:
        size = min(size, 2060)
    table = noise_table(discrete_gaussian(sigma))
    pixels = np.arange(size).astype(np.uint8)
    for first_sample in (0, 12345, 2**32 - max(count, 1)):
        for seed, image, stage in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**24 - 1), (SEED, IMAGE, sampler.ESTIMATION)):
            if JIT_DISABLED and first_sample != 12345:
                continue
            arguments = (table, pixels, seed, image, stage, first_sample, count)
            by_numpy, by_numba = sampler.add_noise(*arguments), kernels().add_noise(*arguments)
            assert by_numpy.shape == by_numba.shape == (count, size)
            assert by_numpy.dtype == by_numba.dtype == np.int32
            assert np.array_equal(by_numpy, by_numba)


def test_any_split_into_batches_gives_the_same_bits(add_noise: Callable[..., np.ndarray]) -> None:
    table, pixels = noise_table(discrete_gaussian(1024)), np.arange(203).astype(np.uint8)

    def draw(first_sample: int, count: int) -> np.ndarray:
        return add_noise(table, pixels, SEED, IMAGE, STAGE, first_sample, count)

    whole = draw(100, 12)
    for cuts in ([0, 12], [0, 1, 12], [0, 5, 5, 9, 12], list(range(13))):
        parts = [draw(100 + begin, end - begin) for begin, end in zip(cuts, cuts[1:])]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_larger_image_begins_with_the_same_bits(add_noise: Callable[..., np.ndarray]) -> None:
    table, pixels = noise_table(discrete_gaussian(Fraction(255, 4))), np.zeros(2100, np.uint8)
    whole = add_noise(table, pixels, SEED, IMAGE, STAGE, 0, 2)
    for size in (1, 8, 13, 2048, 2049):
        assert np.array_equal(add_noise(table, pixels[:size], SEED, IMAGE, STAGE, 0, 2), whole[:, :size])


def test_strided_pixels_are_read_in_order(add_noise: Callable[..., np.ndarray]) -> None:
    table, pixels = noise_table(discrete_gaussian(1)), np.arange(60).astype(np.uint8)
    strided = add_noise(table, pixels[::-2], SEED, IMAGE, STAGE, 0, 2)
    assert np.array_equal(strided, add_noise(table, pixels[::-2].copy(), SEED, IMAGE, STAGE, 0, 2))


def test_every_part_of_the_address_matters() -> None:
    table, address = noise_table(discrete_gaussian(Fraction(255, 4))), [SEED, IMAGE, STAGE, 9]
    reference = sample(table, *address, count=1, size=64)
    for part in range(4):
        other = address[:part] + [address[part] + 1] + address[part + 1 :]
        assert not np.array_equal(sample(table, *other, count=1, size=64), reference)


# What is refused


GOOD_ADDRESS = {"seed": 0, "image": 0, "stage": 0, "first_sample": 0, "count": 1, "size": 1}
BAD_NUMBERS = [
    ("seed", -1),
    ("seed", 2**64),
    ("image", 2**32),
    ("stage", 2**24),
    ("first_sample", -1),
    ("first_sample", 2**32),
    ("count", -1),
    ("count", 2**32 + 1),
    ("size", -1),
    ("size", 2**32 + 1),
    ("seed", 1.0),
    ("image", np.int64(1)),
]


@pytest.mark.parametrize("what, number", BAD_NUMBERS)
def test_addresses_outside_the_counter_are_refused(what: str, number: int) -> None:
    with pytest.raises(ParameterError, match="expected an int"):
        check_addresses(**{**GOOD_ADDRESS, what: number})


def test_the_last_address_is_accepted_and_the_next_refused(add_noise: Callable[..., np.ndarray]) -> None:
    table, pixels = noise_table(discrete_gaussian(1)), np.zeros(4, np.uint8)
    assert add_noise(table, pixels, 2**64 - 1, 2**32 - 1, 2**24 - 1, 2**32 - 2, 2).shape == (2, 4)
    with pytest.raises(ParameterError, match="sample count"):
        add_noise(table, pixels, 0, 0, 0, 2**32 - 2, 3)


@pytest.mark.parametrize("pixels", [np.zeros(4, np.int32), np.zeros((2, 2), np.uint8)])
def test_anything_but_flat_uint8_pixels_is_refused(add_noise: Callable[..., np.ndarray], pixels: np.ndarray) -> None:
    with pytest.raises(ParameterError, match="expected uint8"):
        add_noise(noise_table(discrete_gaussian(1)), pixels, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("thresholds", [(2, 1), (-1, 1), (1, FULL)])
def test_thresholds_that_are_no_cdf_are_refused(thresholds: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="ascending"):
        table_of(thresholds)


@pytest.mark.parametrize("minimum", [-32768, 32766])
def test_values_beyond_int16_are_refused(minimum: int) -> None:
    with pytest.raises(ArithmeticRangeError, match="expected -32767 to 32767"):
        table_of((1, 2), minimum)
    assert table_of((1, 2), minimum + (1 if minimum < 0 else -1)).first[-1] != sampler.UNDECIDED


def test_a_table_is_built_once_and_cannot_be_changed() -> None:
    table = noise_table(discrete_gaussian(1))
    assert noise_table(discrete_gaussian(1)) is table
    for array in (table.first, table.starts, table.digits):
        assert not array.flags.writeable


# Statistics: seeded; each statistic fails a right sampler with probability 1e-9


STATISTICAL = [
    discrete_gaussian(Fraction(255, 4)),
    discrete_uniform(110),
    *(
        pytest.param(distribution, marks=pytest.mark.slow)
        for distribution in (discrete_gaussian(1), discrete_laplace(45), rounded_normal(5))
    ),
]


@pytest.mark.parametrize("distribution", STATISTICAL, ids=lambda d: f"{d.name}-{d.parameter}")
def test_a_million_draws_of_numpy_fit(distribution: IntegerDistribution) -> None:
    drawn = sample(noise_table(distribution), 2026, 1, sampler.ESTIMATION, 0, 100, 10000)
    for statistic in statistics(distribution, histogram_of(distribution, drawn)):
        assert statistic.passed, statistic


@pytest.mark.parametrize("distribution", STATISTICAL, ids=lambda d: f"{d.name}-{d.parameter}")
def test_a_million_draws_of_numba_fit(distribution: IntegerDistribution) -> None:
    draws = 10**4 if JIT_DISABLED else 10**6
    for statistic in statistics(distribution, compiled_histogram(distribution, draws, seed=2027, image=1)):
        assert statistic.passed, statistic


def test_the_statistics_find_a_biased_sampler() -> None:
    """One zero in a hundred turned into a one: chi-square sees what mean and symmetry leave within their bounds."""
    distribution = discrete_gaussian(1)
    drawn = sample(noise_table(distribution), 2026, 1, sampler.ESTIMATION, 0, 100, 10000).ravel()
    drawn[np.flatnonzero(drawn == 0)[::100]] = 1
    failed = [entry.name for entry in statistics(distribution, histogram_of(distribution, drawn)) if not entry.passed]
    assert any(name.startswith("chi-square") for name in failed)
