"""What values a tensor takes, and which grid should hold them.

Images are chosen and put under noise as certifying does it, by the package's own sampler, in a stage of its own: no
random word that is used here is ever used by a certification. Of every tensor are kept its extreme values, and a random
sample of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Callable, Iterable, Mapping

import numpy as np

from intsmooth_ref.data_tools.augmentation import noisy_copies
from intsmooth_ref.data_tools.quantization import activation_quantization, least_squares
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.layers import Quantization
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table

#: Stages of the sampler: numbers that certification and training leave free.
CALIBRATION, KNOWN_ANSWERS = 20, 21

#: Of the images that become known answers, which a file holds as int32: so many at most, and one at least.
KNOWN_ANSWER_IMAGES, KNOWN_ANSWER_BYTES = 16, 1 << 14

#: Values that are kept of a tensor: the search for the grid of least squares reads them hundreds of times.
SAMPLE = 1 << 16


def noisy_images(images: np.ndarray, count: int, sigma: Fraction, seed: int, stage: int) -> np.ndarray:
    """`count` of the images, or all if there are fewer, chosen at random, under noise: int32 `(count, H, W, C)`.

    Args:
        sigma: grey levels.
        stage: `CALIBRATION` or `KNOWN_ANSWERS`.
    """
    order = np.random.default_rng((seed, stage)).permutation(len(images))
    chosen = images[np.sort(order[:count])]
    return noisy_copies(chosen, noise_table(discrete_gaussian(sigma)), seed, stage, 0, 1, 0)[0]


def known_answer_images(images: np.ndarray, sigma: Fraction, seed: int) -> np.ndarray:
    """Some of the images under noise, int32 `(count, H, W, C)`, for the known answers of a model file."""
    count = max(KNOWN_ANSWER_BYTES // (4 * images[0].size), 1)
    return noisy_images(images, min(count, KNOWN_ANSWER_IMAGES), sigma, seed, KNOWN_ANSWERS)


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Values:
    """What is known of a tensor's values: the extremes, and a sample `(n,)`."""

    low: float
    high: float
    sample: np.ndarray

    @classmethod
    def of(cls, tensor: np.ndarray, count: int, generator: np.random.Generator) -> Values:
        """All values if there are no more than `count`, else so many of them, drawn with replacement."""
        flat = tensor.reshape(-1)
        sample = flat if flat.size <= count else flat[generator.integers(0, flat.size, count)]
        return cls(float(flat.min()), float(flat.max()), sample.astype(np.float64))

    @classmethod
    def joined(cls, parts: Iterable[Values]) -> Values:
        each = list(parts)
        sample = np.concatenate([part.sample for part in each])
        return cls(min(part.low for part in each), max(part.high for part in each), sample)


def values_of(
    traced: Callable[[np.ndarray], Iterable[tuple[str, np.ndarray]]], images: np.ndarray, seed: int, batch: int,
    done: Callable[[int], None] = lambda count: None,
) -> Mapping[str, Values]:  # fmt: skip
    """The values of every tensor by the name of its layer.

    Args:
        traced: names and tensors for some of the images.
        batch: images computed at once.
        done: is told how many images are done.

    Raises:
        ModelFormatError: if a value is not finite.
    """
    parts: dict[str, list[Values]] = {}
    generator = np.random.default_rng((seed, CALIBRATION, 1))
    for start in range(0, len(images), batch):
        done(start)
        some = images[start : start + batch]
        count = -(-SAMPLE * len(some) // len(images))
        for name, tensor in traced(some):
            part = Values.of(tensor, count, generator)
            if not np.isfinite([part.low, part.high]).all():
                raise ModelFormatError(f"layer {name!r}: found values that are not finite; expected numbers")
            parts.setdefault(name, []).append(part)
    return {name: Values.joined(each) for name, each in parts.items()}


# --- ranges -----------------------------------------------------------------------------------------------------------

#: From the values of a tensor, not all of them zero, to the grid that holds them.
RangeChooser = Callable[[Values], Quantization]


def min_max(values: Values) -> Quantization:
    """Nothing is clipped."""
    return activation_quantization(values.low, values.high)


def mean_square(values: Values) -> Quantization:
    """`quantization.least_squares` over the sample."""
    return least_squares(values.sample)


def percentile(values: Values, percent: float) -> Quantization:
    """Clipped is what lies beyond the percentile, and beyond that of the other end; nothing, if that leaves zeros."""
    low, high = np.percentile(values.sample, [100 - percent, percent]).tolist()
    return activation_quantization(low, high) if low < 0 or high > 0 else min_max(values)


def range_chooser(name: str, percent: float) -> RangeChooser:
    """By its name on the command line."""
    choosers: Mapping[str, RangeChooser] = {
        "mse": mean_square, "min-max": min_max, "percentile": partial(percentile, percent=percent),
    }  # fmt: skip
    return choosers[name]


def chosen_grid(values: Values, choose: RangeChooser) -> Quantization:
    """The grid of a tensor, even if it is always zero, or its sample is: a dead layer has to stand on some grid."""
    if values.low == values.high == 0:
        return activation_quantization(0.0, 1.0)
    return choose(values) if values.sample.any() else min_max(values)
