"""Votes: how often a network gives each class for noisy copies of an image.

With the compiled engine, noise, network and count run in one call that holds no lock and allocates nothing: the samples
pass through it block by block, so that what one step leaves in a core's cache the next finds there.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any, Callable

import numpy as np

from ..engine import Engine
from ..noise import philox, sampler
from ..noise.sampler import NoiseTable

#: `Count(pixels, seed, image index, stage, first sample, samples)`: votes of each class, int64 `(classes,)`.
Count = Callable[[np.ndarray, int, int, int, int, int], np.ndarray]

#: About how many multiply-adds a call should have, and how many samples at most: with the compiled engine, so many that
#: calling costs nothing beside them, and so few that a run can be interrupted and shared among threads.
COMPILED_BATCH, REFERENCE_BATCH = (1 << 30, 1000), (1 << 27, 100)


def usual_batch(engine: Engine) -> int:
    """How many samples to count at a time."""
    products = sum(engine.model.multiply_adds.values())
    limit, most = COMPILED_BATCH if engine.compiled else REFERENCE_BATCH
    return max(1, min(most, limit // max(products, 1)))


def vote_counter(engine: Engine, table: NoiseTable) -> Count:
    """The function that counts votes; several threads may call it at once."""
    return _compiled(engine, table) if engine.compiled else _by_reference(engine, table)


def _by_reference(engine: Engine, table: NoiseTable) -> Count:
    def count(pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, samples: int) -> np.ndarray:
        noisy = sampler.add_noise(table, pixels, seed, image, stage, first_sample, samples)
        classes = engine.classify(noisy.reshape(samples, *engine.model.input.shape))
        return np.bincount(classes, minlength=engine.model.classes)

    return count


def _compiled(engine: Engine, table: NoiseTable) -> Count:
    from ..noise.kernels import work_space
    from .vote_kernel import count_votes

    compiled = engine.compiled
    assert compiled is not None
    noise = table.first, table.starts, table.digits, np.int64(table.minimum)
    spaces: SimpleQueue[Any] = SimpleQueue()

    def count(pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, samples: int) -> np.ndarray:
        sampler.check_pixels(pixels)
        sampler.check_addresses(seed, image, stage, first_sample, samples, len(pixels))
        try:
            space, scratch = spaces.get_nowait()
        except Empty:
            space, scratch = compiled.work_space(), work_space()
        votes = np.zeros(engine.model.classes, np.int64)
        numbers = [np.uint64(number) for number in (*philox.key_of_seed(seed), image, stage)]
        flat = np.array(pixels)  # a copy is contiguous and writable: one compiled version serves every caller
        count_votes(
            flat, *numbers, np.int64(first_sample), np.int64(samples), *noise, scratch,
            compiled.calls, space.base, np.int64(compiled.program.samples), space.noisy, space.classes, votes,
        )  # fmt: skip
        spaces.put((space, scratch))
        return votes

    return count
