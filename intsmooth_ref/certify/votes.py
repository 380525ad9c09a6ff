"""Votes: the classes that a network gives for noisy copies of an image.

With the compiled engine, noise and network run in one call that holds no lock and allocates nothing: the samples pass
through it block by block, so that what one step leaves in a core's cache the next finds there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any, Callable, Generator, Iterator

import numpy as np

from ..engine import Engine
from ..errors import ParameterError
from ..machine import usable_cores
from ..noise import philox, sampler
from ..noise.sampler import NoiseTable
from .chunks import Chunks
from .transcript import Stage

#: `Vote(pixels, seed, image index, stage, first sample, samples)`: the class of each sample, int32 `(samples,)`.
Vote = Callable[[np.ndarray, int, int, int, int, int], np.ndarray]

#: About how many multiply-adds a call should have, and how many samples at most: with the compiled engine, so many that
#: calling costs nothing beside them, and so few that a run can be interrupted and shared among threads.
COMPILED_BATCH, REFERENCE_BATCH = (1 << 30, 1000), (1 << 27, 100)


class NoisyClassifier:
    """A network that sees images through noise: it votes, and each vote depends on its address alone.

    Args:
        engine: computes the network.
        table: the noise.
        threads: how many batches of samples run at once, by default one a processor; changes no vote.
        batch: samples per batch, by default what suits the network's size; changes no vote.

    Raises:
        ParameterError: if threads or batch is out of range.
    """

    def __init__(
        self, engine: Engine, table: NoiseTable, threads: int | None = None, batch: int | None = None
    ) -> None:
        self.engine, self.table, self.batch = engine, table, batch
        self.threads = usable_cores() if threads is None else threads
        for what, value in (("threads", self.threads), ("batch", batch)):
            if value is not None and not 1 <= value <= 1 << 16:
                raise ParameterError(f"{what} {value}: expected 1 to {1 << 16}")
        self._vote = vote_function(engine, table)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def votes(
        self, image: np.ndarray, seed: int, index: int, stage: int, samples: range,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """The class of each sample in turn: int32 arrays, batch by batch.

        Args:
            image: uint8 `(H, W, C)`.
            seed, index, stage, samples: the addresses of the noise (`noise/sampler.py`).
            progress: called with the number of samples done, batch by batch.
        """
        pixels = np.ascontiguousarray(image).reshape(-1)
        batch = self.batch or min(usual_batch(self.engine), max(1, -(-len(samples) // self.threads)))

        def votes_of_batch(first: int) -> np.ndarray:
            return self._vote(pixels, seed, index, stage, first, min(batch, samples.stop - first))

        starts = range(samples.start, samples.stop, batch)
        with closing(self._map(votes_of_batch, starts)) as batches:  # an interruption cancels the batches not begun
            for votes in batches:
                yield votes
                if progress:
                    progress(len(votes))

    def _map(self, function: Callable[[int], np.ndarray], starts: range) -> Generator[np.ndarray, None, None]:
        yield from self._pool.map(function, starts) if self._pool else map(function, starts)


class Tally:
    """The votes of one stage of one image: counted by class, and hashed chunk by chunk in the order of the samples."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros(classes, np.int64)
        self._chunks = Chunks()

    def add(self, votes: np.ndarray) -> None:
        """Take the votes of the samples that come next."""
        self.counts += np.bincount(votes, minlength=len(self.counts))
        self._chunks.update(votes)

    @property
    def samples(self) -> int:
        """How many have voted."""
        return int(self.counts.sum())

    @property
    def stage(self) -> Stage:
        """What a certificate says of them."""
        return Stage.of(self.counts.tolist(), self._chunks)


def usual_batch(engine: Engine) -> int:
    """How many samples to compute at a time."""
    products = sum(engine.model.multiply_adds.values())
    limit, most = COMPILED_BATCH if engine.compiled else REFERENCE_BATCH
    return max(1, min(most, limit // max(products, 1)))


def vote_function(engine: Engine, table: NoiseTable) -> Vote:
    """The function that computes votes; several threads may call it at once."""
    return _compiled(engine, table) if engine.compiled else _by_reference(engine, table)


def _by_reference(engine: Engine, table: NoiseTable) -> Vote:
    def vote(pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, samples: int) -> np.ndarray:
        noisy = sampler.add_noise(table, pixels, seed, image, stage, first_sample, samples)
        return engine.classify(noisy.reshape(samples, *engine.model.input.shape))

    return vote


def _compiled(engine: Engine, table: NoiseTable) -> Vote:
    from ..noise.kernels import work_space
    from .vote_kernel import cast_votes

    compiled = engine.compiled
    assert compiled is not None
    noise = table.first, table.starts, table.digits, np.int64(table.minimum)
    spaces: SimpleQueue[Any] = SimpleQueue()

    def vote(pixels: np.ndarray, seed: int, image: int, stage: int, first_sample: int, samples: int) -> np.ndarray:
        sampler.check_pixels(pixels)
        sampler.check_addresses(seed, image, stage, first_sample, samples, len(pixels))
        try:
            space, scratch = spaces.get_nowait()
        except Empty:
            space, scratch = compiled.work_space(), work_space()
        votes = np.empty(samples, np.int32)
        numbers = [np.uint64(number) for number in (*philox.key_of_seed(seed), image, stage)]
        flat = np.array(pixels)  # a copy is contiguous and writable: one compiled version serves every caller
        cast_votes(
            flat, *numbers, np.int64(first_sample), *noise, scratch,
            compiled.calls, space.base, np.int64(compiled.program.samples), space.noisy, space.classes, votes,
        )  # fmt: skip
        spaces.put((space, scratch))
        return votes

    return vote
