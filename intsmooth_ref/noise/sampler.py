"""Integer noise by inversion of an exact CDF, with random digits drawn lazily, each from an address of its own.

U, uniform on 0 .. 2**256-1, consists of sixteen 16-bit digits, digit 0 first:

    (1)   U = sum over j of digit_j * 2**(16 * (15 - j)).

A value is minimum + #{j : T_j <= U}. The digits of element e of the flattened image stand in three levels of Philox
blocks, of which the later ones are drawn only where the earlier digits do not decide:

    | level | digits | block  | halfwords of the block | purpose         |
    | ----- | ------ | ------ | ---------------------- | --------------- |
    | 0     | 0      | e // 8 | e % 8                  | 256 * stage     |
    | 1     | 1..8   | e      | 0..7, in order         | 256 * stage + 1 |
    | 2     | 9..15  | e      | 0..6, in order         | 256 * stage + 2 |

Halfword h of a block is word h // 2, bits 16 * (h % 2) upwards. The other counter words are the sample index and the
image index, the key is the seed (`philox`). Stages, each with words of its own:

    | stage      | number | what the noise is for                               |
    | ---------- | ------ | --------------------------------------------------- |
    | SELECTION  | 0      | the votes that choose the class to be certified     |
    | ESTIMATION | 1      | the votes that bound that class's probability       |
    | PREDICTION | 2      | the votes of a prediction without a radius          |

`PROOF.md` proves that lazy digits give exactly the value that all 256 bits give. `kernels` computes the same, faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Callable

import numpy as np

from ..errors import ArithmeticRangeError, ParameterError
from .distributions import RESOLUTION_BITS, IntegerDistribution
from .philox import philox4x32_array

SELECTION, ESTIMATION, PREDICTION = 0, 1, 2

DIGITS = RESOLUTION_BITS // 16
DIGIT_VALUES = 1 << 16
DIGITS_PER_BLOCK = 8
#: Purposes reserved for each stage.
LEVELS_PER_STAGE = 256
#: The digits that each level after level 0 draws.
LEVEL_DIGITS = {1: range(1, 9), 2: range(9, DIGITS)}
#: Entry of `NoiseTable.first` where digit 0 does not decide.
UNDECIDED = -(1 << 15)

SEEDS, INDICES, STAGES = 1 << 64, 1 << 32, (1 << 32) // LEVELS_PER_STAGE

#: `draw(level, which)` draws the 8 digits of a level for the numbered elements: integer array (len(which), 8).
Draw = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """An `IntegerDistribution` laid out for look-up by digits.

    Attributes:
        minimum: the smallest value.
        first: int16 (65536,), the value that digit 0 decides on, or `UNDECIDED`.
        starts: int32 (65537,), `starts[d]` thresholds have a digit 0 below d: those with digit 0 equal to d, which U
            must be compared with, are numbered `starts[d]` to `starts[d + 1] - 1`.
        digits: uint16 (N, 16), the digits of the thresholds by equation (1).
        total_variation: of the distribution.
    """

    minimum: int
    first: np.ndarray
    starts: np.ndarray
    digits: np.ndarray
    total_variation: Fraction


@lru_cache(maxsize=64)
def noise_table(distribution: IntegerDistribution) -> NoiseTable:
    """Lay out a distribution for look-up; the same object for the same distribution.

    Raises:
        ParameterError: if the thresholds are not ascending integers in 0 .. 2**256-1.
        ArithmeticRangeError: if a value leaves -32767 .. 32767.
    """
    minimum, thresholds = distribution.minimum, distribution.thresholds
    if list(thresholds) != sorted(thresholds) or any(not 0 <= t < 1 << RESOLUTION_BITS for t in thresholds):
        raise ParameterError(f"thresholds of {distribution.name}: expected ascending integers in 0 .. 2**256-1")
    if minimum <= UNDECIDED or distribution.maximum >= -UNDECIDED:
        raise ArithmeticRangeError(
            f"{distribution.name} has values {minimum} to {distribution.maximum}: expected -32767 to 32767"
        )
    big_endian = b"".join(threshold.to_bytes(2 * DIGITS, "big") for threshold in thresholds)
    digits = np.frombuffer(big_endian, dtype=">u2").reshape(-1, DIGITS).astype(np.uint16)
    starts = np.searchsorted(digits[:, 0], np.arange(DIGIT_VALUES + 1)).astype(np.int32)
    first = np.where(starts[:-1] == starts[1:], minimum + starts[:-1], UNDECIDED).astype(np.int16)
    for array in (digits, starts, first):
        array.setflags(write=False)
    return NoiseTable(minimum, first, starts, digits, distribution.total_variation)


def sample(
    table: NoiseTable, seed: int, image: int, stage: int, first_sample: int, count: int, size: int
) -> np.ndarray:
    """Draw the noise of samples `first_sample` .. `first_sample + count - 1` of an image of `size` elements.

    Every value depends on the table and its address alone: any division of the samples into calls gives the same bits.

    Args:
        table: the distribution, laid out by `noise_table`.
        seed: 0 .. 2**64-1.
        image: index of the image, below 2**32.
        stage: SELECTION, ESTIMATION, PREDICTION, or a number below 2**24 that nothing else uses.

    Returns:
        int32 array (count, size), grey levels.

    Raises:
        ParameterError: if an address lies outside the counter (`check_addresses`).
    """
    check_addresses(seed, image, stage, first_sample, count, size)
    samples = np.arange(first_sample, first_sample + count, dtype=np.uint64)
    blocks = np.arange(-(-size // DIGITS_PER_BLOCK), dtype=np.uint64)

    def digits_of_level(level: int, block: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
        return halfwords(philox4x32_array(block, of_sample, image, LEVELS_PER_STAGE * stage + level, seed))

    digits = digits_of_level(0, blocks[np.newaxis, :], samples[:, np.newaxis])
    digits = digits.reshape(count, len(blocks) * DIGITS_PER_BLOCK)[:, :size]
    values = table.first[digits].astype(np.int32)
    row, element = np.nonzero(values == UNDECIDED)
    thresholds_passed = resolve(
        table, digits[row, element], lambda level, which: digits_of_level(level, element[which], samples[row[which]])
    )
    values[row, element] = table.minimum + thresholds_passed
    return values


def add_noise(
    table: NoiseTable, pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, count: int
) -> np.ndarray:
    """The pixels, uint8 (size,), plus noise: int32 array (count, size). Arguments and errors as for `sample`."""
    check_pixels(pixels)
    return pixels.astype(np.int32) + sample(table, seed, image, stage, first_sample, count, len(pixels))


def resolve(table: NoiseTable, digit0: np.ndarray, draw: Draw) -> np.ndarray:
    """#{j : T_j <= U} for values of U that begin with `digit0` (M,) and go on as `draw` says: int32 array (M,).

    Thresholds `low` to `high - 1` are those that begin with the digits of U drawn so far. All 256 bits being equal, a
    threshold counts as passed, which is why the result is `high`.
    """
    low, high = table.starts[digit0], table.starts[digit0.astype(np.int64) + 1]
    pending = np.flatnonzero(low < high)
    for level, positions in LEVEL_DIGITS.items():
        if len(pending) == 0:
            break
        drawn = draw(level, pending)
        for position, digit in zip(positions, drawn.T):
            low[pending], high[pending] = narrow(table.digits[:, position], low[pending], high[pending], digit)
        pending = pending[low[pending] < high[pending]]
    return high


def narrow(
    column: np.ndarray, low: np.ndarray, high: np.ndarray, digit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the thresholds `low` to `high - 1`, the range of those whose next digit, in `column`, equals `digit`.

    The thresholds of the range agree in all digits before, so the column ascends within it. Those below the new range
    are less than U, those above it are greater.
    """
    digit = digit.astype(np.int32)
    return _bisect(column, low, high, digit), _bisect(column, low, high, digit + 1)


def _bisect(column: np.ndarray, low: np.ndarray, high: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """The first number from `low` on whose entry is not below `bound`, or else `high`, for each range at once."""
    while np.any(low < high):
        middle = (low + high) >> 1
        open_range = low < high
        below = open_range & (column[np.where(open_range, middle, 0)] < bound)
        low, high = np.where(below, middle + 1, low), np.where(open_range & ~below, middle, high)
    return low


def halfwords(words: np.ndarray) -> np.ndarray:
    """Split uint32 words (..., 4) into their 16-bit halves, low half first: uint16 array (..., 8)."""
    halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=-1)
    return halves.reshape(*words.shape[:-1], DIGITS_PER_BLOCK).astype(np.uint16)


def check_pixels(pixels: np.ndarray) -> None:
    """Refuse anything but a flat uint8 image.

    Raises:
        ParameterError: if `pixels` has another type or another number of axes.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 1:
        raise ParameterError(f"pixels of type {pixels.dtype} and shape {pixels.shape}: expected uint8 and (size,)")


def check_addresses(seed: int, image: int, stage: int, first_sample: int, count: int, size: int) -> None:
    """Refuse what the key and the four 32-bit counter words cannot hold.

    Raises:
        ParameterError: naming the first argument that is no Python int or out of range.
    """
    limits = [("seed", seed, SEEDS), ("image index", image, INDICES), ("stage", stage, STAGES)]
    limits += [("first sample", first_sample, INDICES), ("sample count", count, INDICES - first_sample + 1)]
    limits += [("image size", size, INDICES + 1)]
    for what, number, limit in limits:
        if not isinstance(number, int) or not 0 <= number < limit:
            raise ParameterError(f"{what} {number}: expected an int from 0 to {limit - 1}")
