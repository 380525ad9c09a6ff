"""The sampler in compiled code: `add_noise` gives the bits of `sampler.add_noise`.

The work goes in chunks that stay in the first-level cache: Philox blocks side by side, so that the compiler can use
vector instructions; then one look-up a value; then the further digits of the elements that it leaves undecided. Words
are held in uint64, in which the product of two 32-bit words is exact, and no expression mixes uint64 with a signed
type, for Numba would make that a float.
"""

from __future__ import annotations

import numpy as np

from ..compilation import kernel
from . import philox
from .sampler import (
    DIGIT_VALUES,
    DIGITS_PER_BLOCK,
    LEVEL_DIGITS,
    LEVELS_PER_STAGE,
    UNDECIDED,
    NoiseTable,
    check_addresses,
    check_pixels,
)

#: Elements per chunk, a multiple of `DIGITS_PER_BLOCK`.
CHUNK = 2048

_MULTIPLIER0, _MULTIPLIER1 = np.uint64(philox.MULTIPLIERS[0]), np.uint64(philox.MULTIPLIERS[1])
_INCREMENT0, _INCREMENT1 = np.uint64(philox.WEYL_INCREMENTS[0]), np.uint64(philox.WEYL_INCREMENTS[1])
_WORD_MASK, _WORD_BITS = np.uint64(philox.WORD_MASK), np.uint64(32)
_DIGIT_MASK = np.uint64(DIGIT_VALUES - 1)
_LEVELS_PER_STAGE = np.uint64(LEVELS_PER_STAGE)
_ROUNDS = philox.ROUNDS
# Typed, for each literal passed to a kernel would compile it once more.
_LEVEL0, _LEVEL1, _LEVEL2 = np.uint64(0), np.uint64(1), np.uint64(2)
_BEGIN1, _END1 = np.int64(LEVEL_DIGITS[1].start), np.int64(LEVEL_DIGITS[1].stop)
_BEGIN2, _END2 = np.int64(LEVEL_DIGITS[2].start), np.int64(LEVEL_DIGITS[2].stop)
_COLUMN0 = np.int64(0)

#: Work space: no kernel allocates memory.
Scratch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]

#: Of one sample, as uint64: key word 0, key word 1, sample index, image index, stage.
Address = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]


def add_noise(
    table: NoiseTable, pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, count: int
) -> np.ndarray:
    """The pixels, uint8 (size,), plus noise: int32 array (count, size). As `sampler.add_noise`, to the bit."""
    check_pixels(pixels)
    check_addresses(seed, image, stage, first_sample, count, len(pixels))
    out = np.empty((count, len(pixels)), dtype=np.int32)
    key0, key1 = philox.key_of_seed(seed)
    numbers = [np.uint64(number) for number in (key0, key1, image, stage, first_sample)]
    flat = np.array(pixels)  # a copy is contiguous and writable: one compiled version serves every caller
    fill_noisy(flat, out, *numbers, table.first, table.starts, table.digits, np.int64(table.minimum), work_space())
    return out


def work_space() -> Scratch:
    """What one call of `fill_noisy` at a time works in; its contents are of no consequence."""
    blocks = np.empty(CHUNK // DIGITS_PER_BLOCK, np.uint32)
    words = np.empty((4, CHUNK // DIGITS_PER_BLOCK), np.uint32)
    values = np.empty(CHUNK, np.int16)
    pending = np.empty(CHUNK, np.uint32)
    pending_words = np.empty((4, CHUNK), np.uint32)
    last_words = np.empty((4, 1), np.uint32)
    return blocks, words, values, pending, pending_words, last_words


@kernel
def fill_noisy(
    pixels: np.ndarray,
    out: np.ndarray,
    key0: np.uint64,
    key1: np.uint64,
    image: np.uint64,
    stage: np.uint64,
    first_sample: np.uint64,
    first: np.ndarray,
    starts: np.ndarray,
    digits: np.ndarray,
    minimum: np.int64,
    scratch: Scratch,
) -> None:
    """Write the pixels plus the noise of samples `first_sample` onwards.

    Args:
        pixels: uint8 (size,).
        out: int32 (count, size), written.
        key0, key1, image, stage, first_sample: in the ranges that `sampler.check_addresses` checks, here unchecked.
        first, starts, digits, minimum: of the `NoiseTable`.
        scratch: a `work_space`.
    """
    blocks, words, values, pending, pending_words, last_words = scratch
    for row in range(out.shape[0]):
        address = (key0, key1, first_sample + np.uint64(row), image, stage)
        for start in range(0, pixels.shape[0], CHUNK):
            # Slices, not offsets: an index that is known not to be negative lets the loops over it use vectors.
            chunk, noisy = pixels[start : start + CHUNK], out[row, start : start + CHUNK]
            block_count = (chunk.shape[0] + DIGITS_PER_BLOCK - 1) // DIGITS_PER_BLOCK
            number_blocks(blocks, start // DIGITS_PER_BLOCK)
            philox_blocks(blocks[:block_count], _LEVEL0, address, words)
            look_up(words, block_count, first, values)
            add(chunk, values, noisy)
            undecided = list_undecided(values, chunk.shape[0], pending)
            if undecided > 0:
                elements, further_words = pending[:undecided], (pending_words, last_words)
                resolve(chunk, noisy, start, elements, words, further_words, address, starts, digits, minimum)


@kernel
def number_blocks(blocks: np.ndarray, first_block: int) -> None:
    """Number the blocks of a chunk."""
    for index in range(blocks.shape[0]):
        blocks[index] = first_block + index


@kernel
def philox_blocks(blocks: np.ndarray, level: np.uint64, address: Address, words: np.ndarray) -> None:
    """Write the words of some blocks, uint32 (M,), of one level to the columns of `words`, uint32 (4, M or more)."""
    key0, key1, sample, image, stage = address
    purpose = stage * _LEVELS_PER_STAGE + level
    for index in range(blocks.shape[0]):
        word0, word1, word2, word3 = np.uint64(blocks[index]), sample, image, purpose
        round_key0, round_key1 = key0, key1
        for _ in range(_ROUNDS):
            product0, product1 = word0 * _MULTIPLIER0, word2 * _MULTIPLIER1
            word0, word1 = (product1 >> _WORD_BITS) ^ word1 ^ round_key0, product1 & _WORD_MASK
            word2, word3 = (product0 >> _WORD_BITS) ^ word3 ^ round_key1, product0 & _WORD_MASK
            round_key0 = (round_key0 + _INCREMENT0) & _WORD_MASK
            round_key1 = (round_key1 + _INCREMENT1) & _WORD_MASK
        words[0, index] = word0
        words[1, index] = word1
        words[2, index] = word2
        words[3, index] = word3


@kernel
def look_up(words: np.ndarray, block_count: int, first: np.ndarray, values: np.ndarray) -> None:
    """Write what digit 0 says of each element, a value or `UNDECIDED`: int16, 8 elements a block."""
    for block in range(block_count):
        for number in range(DIGITS_PER_BLOCK):
            values[DIGITS_PER_BLOCK * block + number] = first[halfword(words, block, number)]


@kernel
def add(pixels: np.ndarray, values: np.ndarray, noisy: np.ndarray) -> None:
    """Add the values to the pixels."""
    for offset in range(pixels.shape[0]):
        noisy[offset] = np.int32(pixels[offset]) + np.int32(values[offset])


@kernel
def list_undecided(values: np.ndarray, size: int, pending: np.ndarray) -> int:
    """List the offsets of the elements that digit 0 does not decide, and return how many they are."""
    undecided = 0
    for offset in range(size):
        if values[offset] == UNDECIDED:
            pending[undecided] = offset
            undecided += 1
    return undecided


@kernel
def resolve(
    pixels: np.ndarray,
    noisy: np.ndarray,
    start: int,
    pending: np.ndarray,
    words: np.ndarray,
    further_words: tuple[np.ndarray, np.ndarray],
    address: Address,
    starts: np.ndarray,
    digits: np.ndarray,
    minimum: np.int64,
) -> None:
    """Write the elements of the chunk at `start` that `pending`, uint32 (M,), lists by their offset.

    `pending` and `further_words`, uint32 (4, M or more) and (4, 1), are scratch.

    As `sampler.resolve`: thresholds `low` to `high - 1` are those that begin with the digits of U drawn so far.
    """
    pending_words, last_words = further_words
    for index in range(pending.shape[0]):
        pending[index] += np.uint32(start)
    philox_blocks(pending, _LEVEL1, address, pending_words)
    for index in range(pending.shape[0]):
        offset = np.int64(pending[index]) - start
        digit0 = halfword(words, offset >> 3, offset & 7)
        low, high = np.int64(starts[digit0]), np.int64(starts[digit0 + 1])
        low, high = narrow_by_level(digits, _BEGIN1, _END1, pending_words, index, low, high)
        if low < high:
            philox_blocks(pending[index : index + 1], _LEVEL2, address, last_words)
            low, high = narrow_by_level(digits, _BEGIN2, _END2, last_words, _COLUMN0, low, high)
        noisy[offset] = np.int64(pixels[offset]) + minimum + high


@kernel
def narrow_by_level(
    digits: np.ndarray, begin: int, end: int, words: np.ndarray, column: int, low: int, high: int
) -> tuple[int, int]:
    """Narrow `low` to `high - 1` by digits `begin` to `end - 1` of U, the halfwords in a column of `words`."""
    position = begin
    while low < high and position < end:
        low, high = narrow(digits, position, low, high, halfword(words, column, position - begin))
        position += 1
    return low, high


@kernel
def narrow(digits: np.ndarray, position: int, low: int, high: int, digit: int) -> tuple[int, int]:
    """As `sampler.narrow`, for one value."""
    return bisect(digits, position, low, high, digit), bisect(digits, position, low, high, digit + 1)


@kernel
def bisect(digits: np.ndarray, position: int, low: int, high: int, bound: int) -> int:
    """The first number from `low` on whose digit is not below `bound`, or else `high`."""
    while low < high:
        middle = (low + high) >> 1
        if np.int64(digits[middle, position]) < bound:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def halfword(words: np.ndarray, column: int, number: int) -> int:
    """Halfword `number` of the block in a column of `words`, low half of word 0 first."""
    word = np.uint64(words[number >> 1, column])
    return np.int64((word >> np.uint64((number & 1) << 4)) & _DIGIT_MASK)
