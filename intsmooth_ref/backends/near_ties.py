"""Operands that tell the rules apart.

Rules differ in so few of the random accumulators of a network that two runtimes seem to agree. They differ near ties,
where a rounding of the last bit of a float32 decides, and at the ends of ranges; so these are asked for on purpose.
"""

from __future__ import annotations

import numpy as np

from ..fixedpoint import INT32_MAX, INT32_MIN
from .parameters import Grid, Product, Sum

#: How many accumulators on either side of each tie.
REACH = 256


def tie_centres(p: Product, channel: int) -> np.ndarray:
    """Float64: where the exact scaled accumulator plus bias is halfway between integers, one beyond each clamp too."""
    channel_of = [array[channel % len(array)] for array in (p.weight_scale, p.bias)]
    unit = float(p.input_scale) * float(channel_of[0])
    halves = np.arange(p.output.minimum - 1, p.output.maximum + 1) + 0.5 - p.output.zero_point
    return (halves * float(p.output.scale) - float(channel_of[1])) / unit


def accumulators(
    p: Product, count: int, generator: np.random.Generator, low: int = INT32_MIN, high: int = INT32_MAX
) -> np.ndarray:
    """Accumulators of a product, each channel's own: int64 `(count, C)`, from `low` to `high`.

    A quarter of them lies within 2 of a tie, a half within `REACH` of one, some are extremes: the ends of the range,
    zero, where float32 begins to skip integers, and the powers of two beside the ends; the rest are random ones that
    are not clamped.
    """
    channels = max(len(p.weight_scale), len(p.bias))
    columns = []
    for channel in range(channels):
        centres = tie_centres(p, channel)
        near = np.rint(generator.choice(centres, count))
        kind = generator.integers(0, 8, count)
        near += np.where(kind < 2, generator.integers(-2, 3, count), generator.integers(-REACH, REACH + 1, count))
        anywhere = np.rint(generator.uniform(centres.min(), centres.max(), count))
        extreme = generator.choice(np.array(extremes(low, high)), count)
        columns.append(np.where(kind == 7, extreme, np.where(kind == 6, anywhere, near)))
    return np.clip(np.stack(columns, axis=1), low, high).astype(np.int64)


def extremes(low: int, high: int) -> list[int]:
    """The ends of a range, zero, and powers of two, each with its neighbours."""
    centres = [low, high, 0, *(sign << bit for sign in (1, -1) for bit in (15, 23, 24, 25, 30))]
    return [centre + step for centre in centres for step in (-1, 0, 1) if low <= centre + step <= high]


def pairs(p: Sum) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of values that an addition can meet: two arrays `(n,)`."""
    first, second = (np.arange(grid.minimum, grid.maximum + 1, dtype=np.int64) for grid in (p.first, p.second))
    return np.repeat(first, len(second)), np.tile(second, len(first))


def windows(grid: Grid, count: int, channels: int, generator: np.random.Generator) -> np.ndarray:
    """Windows of `count` values, of every sum that there is, each in some order: int64 `(n, count, channels)`."""
    sums = np.arange(count * grid.minimum, count * grid.maximum + 1, dtype=np.int64)
    sums = generator.permutation(np.concatenate([sums, sums[: -len(sums) % channels]]))
    each, rest = np.divmod(sums, count)
    values = each + (np.arange(count)[:, np.newaxis] < rest)
    if count > 1:  # one value gives to another what leaves the sum as it is
        room = np.minimum(values[0] - grid.minimum, grid.maximum - values[-1])
        moved = generator.integers(0, np.maximum(room, 0) + 1)
        values[0] -= moved
        values[-1] += moved
    values = generator.permuted(values, axis=0)
    return values.reshape(count, -1, channels).transpose(1, 0, 2)
