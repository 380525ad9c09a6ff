"""Noisy training images, integers to the end: shifted and mirrored, then under noise of the package's own sampler.

An epoch takes the images in an order of its own. What happens to the image at a position of that order has addresses,
so that neither batches, nor threads, nor an interruption can change a bit:

    (1)   order, shifts and mirrors of epoch e:  NumPy's default generator, seeded with (seed, stage, e)
    (2)   noise of copy c at position p:         `noise.sampler`, this stage, image index e * copies + c, sample p

The stage is the program's own: integer training meets no order and no noise again that training had, under one seed.
Noise comes last, for it must fall on the pixels as it does when certifying: on the padding, too.

Which images are held out depends on the images alone, not on seed or program; fewer are among more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from intsmooth_ref.compilation import jit_disabled, numba_available
from intsmooth_ref.noise import sampler
from intsmooth_ref.noise.sampler import NoiseTable

#: Stages of the sampler, numbers that certification, `digits` and `calibration` leave free: by the name of a program,
#: that of the images it trains on; and that of the images held out, on which all are judged under the same noise.
TRAINING: Mapping[str, int] = {"train": 22, "integer_training": 23}
HELD_OUT = 24

#: Images are shifted by up to this part of their height each way, 4 pixels of 32; black moves in.
SHIFTED_PART = 8


@dataclass(frozen=True, eq=False)
class Epoch:
    """The order of an epoch, and what becomes of the image at each position.

    Attributes:
        order: int64 `(N,)`, indices of images.
        padding: rows and columns of black around an image.
        shifts: int64 `(N, 2)`, how many of them, 0 .. 2 * padding, are cut away above and on the left.
        mirrored: bool `(N,)`.
    """

    number: int
    order: np.ndarray
    padding: int
    shifts: np.ndarray
    mirrored: np.ndarray


def epoch(number: int, images: int, height: int, seed: int, stage: int, mirror: bool) -> Epoch:
    """Equation (1), for so many images of this height; each is mirrored or not, or none is."""
    generator, padding = np.random.default_rng((seed, stage, number)), height // SHIFTED_PART
    order = generator.permutation(images)
    shifts = generator.integers(0, 2 * padding + 1, (images, 2))
    return Epoch(number, order, padding, shifts, (generator.random(images) < 0.5) & mirror)


def split_off(sha256: str, images: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on and of those held out, drawn at random, each in ascending order.

    Args:
        sha256: of the images, the only seed.
    """
    order = np.random.default_rng(int(sha256, 16)).permutation(images)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def augmented(images: np.ndarray, plan: Epoch, first: int, count: int) -> np.ndarray:
    """The images at positions `first` .. `first + count - 1` of the order, shifted and mirrored: uint8."""
    positions = slice(first, first + count)
    chosen = images[plan.order[positions]]
    height, width = chosen.shape[1:3]
    around = (plan.padding, plan.padding)
    padded = np.pad(chosen, ((0, 0), around, around, (0, 0)))
    shifts, mirrored = plan.shifts[positions], plan.mirrored[positions, np.newaxis]
    across = np.where(mirrored, np.arange(width)[::-1], np.arange(width))
    rows, columns = shifts[:, :1] + np.arange(height), shifts[:, 1:] + across
    return padded[np.arange(len(chosen))[:, np.newaxis, np.newaxis], rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


def noisy_copies(
    images: np.ndarray, table: NoiseTable, seed: int, stage: int, first_draw: int, copies: int, first: int
) -> np.ndarray:
    """Copies of images `(N, H, W, C)`, each under noise of its own: int32 `(copies, N, H, W, C)`.

    Args:
        first_draw: the sampler's image index of the first copy; equation (2) for training.
        first: the position of the first image.
    """
    count, size = len(images), images[0].size
    draws = range(first_draw, first_draw + copies)
    noise = np.stack([_noise(table, seed, draw, stage, first, count, size) for draw in draws])
    noise = noise.reshape(copies, *images.shape)
    noise += images
    return noise


def _noise(table: NoiseTable, seed: int, draw: int, stage: int, first: int, count: int, size: int) -> np.ndarray:
    """As `sampler.sample`, compiled where that is possible: noise upon black, int32 `(count, size)`."""
    if not numba_available() or jit_disabled():
        return sampler.sample(table, seed, draw, stage, first, count, size)
    from intsmooth_ref.noise import kernels

    return kernels.add_noise(table, np.zeros(size, np.uint8), seed, draw, stage, first, count)
