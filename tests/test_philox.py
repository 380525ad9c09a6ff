"""Philox4x32-10 in Python integers, NumPy and Numba: the published answers, and one another."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from intsmooth_ref.noise.philox import key_of_seed, philox4x32, philox4x32_array

WORD_MAX = 2**32 - 1


def known_answers() -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    lines = (Path(__file__).parent / "philox_kat.txt").read_text(encoding="ascii").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert [row[:2] for row in rows] == [["philox4x32", "10"]] * 3
    numbers = [tuple(int(word, 16) for word in row[2:]) for row in rows]
    return [(row[:4], row[4:6], row[6:]) for row in numbers]


def random_counters(count: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """Counters and seeds, a third of the words at their extremes."""
    generator = random.Random(20)

    def word(largest: int) -> int:
        return generator.choice([0, largest] + 4 * [generator.randint(0, largest)])

    return [
        ((word(WORD_MAX), word(WORD_MAX), word(WORD_MAX), word(WORD_MAX)), word(2**64 - 1)) for _ in range(count)
    ]


def kernel_words(counter: tuple[int, ...], seed: int) -> tuple[int, ...]:
    kernels = pytest.importorskip("intsmooth_ref.noise.kernels", reason="needs Numba")
    block, sample, image, purpose = counter
    address = tuple(np.uint64(number) for number in (*key_of_seed(seed), sample, image, purpose // 256))
    words = np.zeros((4, 1), np.uint32)
    kernels.philox_blocks(np.array([block], np.uint32), np.uint64(purpose % 256), address, words)
    return tuple(words[:, 0].tolist())


@pytest.mark.parametrize("counter, key, expected", known_answers())
def test_scalar_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == expected


@pytest.mark.parametrize("counter, key, expected", known_answers())
def test_numpy_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32_array(*counter, seed=key[0] + (key[1] << 32))
    assert words.dtype == np.uint32
    assert tuple(words.tolist()) == expected


@pytest.mark.parametrize("counter, key, expected", known_answers())
def test_kernel_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    pytest.importorskip("numba")
    assert kernel_words(counter, key[0] + (key[1] << 32)) == expected


def test_numpy_equals_scalar_at_random_and_extreme_counters() -> None:
    for counter, seed in random_counters(300):
        assert tuple(philox4x32_array(*counter, seed=seed).tolist()) == philox4x32(counter, key_of_seed(seed))


def test_kernel_equals_scalar_at_random_and_extreme_counters() -> None:
    pytest.importorskip("numba")
    for counter, seed in random_counters(300):
        assert kernel_words(counter, seed) == philox4x32(counter, key_of_seed(seed))


def test_numpy_broadcasts_every_counter_word() -> None:
    block, sample = np.arange(5, dtype=np.uint32), np.array([[3], [WORD_MAX]], dtype=np.uint32)
    words = philox4x32_array(block, sample, 7, 8, seed=9)
    assert words.shape == (2, 5, 4)
    for row in range(2):
        for column in range(5):
            counter = (column, int(sample[row, 0]), 7, 8)
            assert tuple(words[row, column].tolist()) == philox4x32(counter, (9, 0))


def test_kernel_fills_many_blocks_as_one_by_one() -> None:
    pytest.importorskip("numba")
    from intsmooth_ref.noise.kernels import philox_blocks

    blocks = np.array([0, 1, 5, WORD_MAX, 2, 3, 77, 8, 9, 10, 11], np.uint32)
    words = np.zeros((4, 16), np.uint32)
    philox_blocks(blocks, np.uint64(2), tuple(np.uint64(number) for number in (1, 2, 3, 4, 5)), words)
    for column, block in enumerate(blocks.tolist()):
        assert tuple(words[:, column].tolist()) == philox4x32((block, 3, 4, 5 * 256 + 2), (1, 2))
    assert not words[:, len(blocks) :].any()
