"""Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as easy
as 1, 2, 3".

A block of four 32-bit words is a keyed bijection of a counter of four 32-bit words: randomness has an address and no
state. Here

    key     = (low half of the 64-bit seed, high half of the seed)
    counter = (block, sample index, image index, purpose)

`philox4x32` is the specification, `philox4x32_array` the same for arrays of counters.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
#: What is added to the key after each round: the golden ratio and sqrt(3) - 1, in units of 2**-32.
WEYL_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
WORD_MASK = 0xFFFFFFFF

Words = tuple[int, int, int, int]


def key_of_seed(seed: int) -> tuple[int, int]:
    """The two key words of a 64-bit seed, low half first."""
    return seed & WORD_MASK, seed >> 32


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """The four words at one counter, in Python integers."""
    (word0, word1, word2, word3), (key0, key1) = counter, key
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * word0, MULTIPLIERS[1] * word2
        word0, word1 = (product1 >> 32) ^ word1 ^ key0, product1 & WORD_MASK
        word2, word3 = (product0 >> 32) ^ word3 ^ key1, product0 & WORD_MASK
        key0, key1 = (key0 + WEYL_INCREMENTS[0]) & WORD_MASK, (key1 + WEYL_INCREMENTS[1]) & WORD_MASK
    return word0, word1, word2, word3


def philox4x32_array(
    block: np.ndarray | int, sample: np.ndarray | int, image: np.ndarray | int, purpose: np.ndarray | int, seed: int
) -> np.ndarray:
    """The four words at every counter of the broadcast arguments.

    Args:
        block, sample, image, purpose: integers or integer arrays of values in 0 .. 2**32-1.
        seed: 0 .. 2**64-1.

    Returns:
        uint32 array (..., 4), the leading axes those of the broadcast arguments.
    """
    words = [np.asarray(word, dtype=np.uint64) for word in np.broadcast_arrays(block, sample, image, purpose)]
    word0, word1, word2, word3 = words
    key0, key1 = key_of_seed(seed)
    multiplier0, multiplier1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
    mask, half = np.uint64(WORD_MASK), np.uint64(32)
    for _ in range(ROUNDS):
        product0, product1 = word0 * multiplier0, word2 * multiplier1  # below 2**64: both factors are below 2**32
        word0, word1 = (product1 >> half) ^ word1 ^ np.uint64(key0), product1 & mask
        word2, word3 = (product0 >> half) ^ word3 ^ np.uint64(key1), product0 & mask
        key0, key1 = (key0 + WEYL_INCREMENTS[0]) & WORD_MASK, (key1 + WEYL_INCREMENTS[1]) & WORD_MASK
    return np.stack([word0, word1, word2, word3], axis=-1).astype(np.uint32)
