"""Noise, network and classes in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import kernel
from ..engine.jit.memory import execute
from ..noise.kernels import Scratch, fill_noisy


@kernel
def cast_votes(
    pixels: np.ndarray, key0: np.uint64, key1: np.uint64, image: np.uint64, stage: np.uint64, first_sample: int,
    first: np.ndarray, starts: np.ndarray, digits: np.ndarray, minimum: int, scratch: Scratch,
    calls: Any, base: Any, block: int, noisy: np.ndarray, classes: np.ndarray, votes: np.ndarray,
) -> None:  # fmt: skip
    """Write the classes of samples `first_sample` onwards to `votes`, int32 `(samples,)`.

    Args:
        pixels .. scratch: as `noise.kernels.fill_noisy` takes them.
        calls, base: of a program, as `execute` takes them; `block` samples at a time.
        noisy, classes: where the program looks for its images, int32 `(block, elements)`, and leaves its classes.
    """
    for begin in range(0, votes.shape[0], block):
        samples = min(block, votes.shape[0] - begin)
        sample = np.uint64(first_sample + begin)
        fill_noisy(pixels, noisy[:samples], key0, key1, image, stage, sample, first, starts, digits, minimum, scratch)
        execute(calls, base, samples)
        for n in range(samples):
            votes[begin + n] = classes[n]
