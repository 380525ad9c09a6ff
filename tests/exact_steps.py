"""What an operator's output is before it is rounded, as exact rationals: the steps from the output's zero point.

The oracle of the importers of quantized models. It is written from the definitions and the parameters in the files, in
Python integers and fractions; `disagreements` holds integers against it. Tensors are `(H, W, C)`, less zero points.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any, Sequence

import numpy as np

HALF = Fraction(1, 2)

#: What a multiplier of 31 bits may be off its ratio, relatively.
MULTIPLIER_ERROR = Fraction(1, 2**31)

#: What four roundings to float32, and a few more of the second order, may be off.
FLOAT32_ERROR = Fraction(1, 2**22) * Fraction(9, 8)


def rational(value: Any) -> Fraction:
    """A float32 as the rational that it is."""
    return Fraction(float(np.float32(value)))


def products(
    x: np.ndarray, weights: np.ndarray, bias: Sequence[int], strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1,
) -> np.ndarray:  # fmt: skip
    """Accumulators of a convolution with weights `(O, KH, KW, I / groups)`."""
    top, bottom, left, right = padding
    padded = np.pad(x.astype(np.int64), ((top, bottom), (left, right), (0, 0)))
    outputs, kernel_height, kernel_width, depth = weights.shape
    rows = (padded.shape[0] - (kernel_height - 1) * dilation[0] - 1) // strides[0] + 1
    columns = (padded.shape[1] - (kernel_width - 1) * dilation[1] - 1) // strides[1] + 1
    sums = np.zeros((rows, columns, outputs), np.int64)
    for o in range(outputs):
        first = o // (outputs // groups) * depth
        for row in range(rows):
            for column in range(columns):
                window = padded[row * strides[0] :, column * strides[1] :, first : first + depth]
                window = window[:: dilation[0], :: dilation[1]][:kernel_height, :kernel_width]
                sums[row, column, o] = (window * weights[o].astype(np.int64)).sum() + bias[o]
    return sums


def windows(
    x: np.ndarray, kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int, int, int]
) -> list[list[np.ndarray]]:
    """The pixels `(n, C)` of each window, without the padding."""
    top, bottom, left, right = padding
    rows = (x.shape[0] + top + bottom - kernel[0]) // strides[0] + 1
    columns = (x.shape[1] + left + right - kernel[1]) // strides[1] + 1

    def window(row: int, column: int) -> np.ndarray:
        y, z = row * strides[0] - top, column * strides[1] - left
        inside = x[max(y, 0) : y + kernel[0], max(z, 0) : z + kernel[1]]
        return inside.reshape(-1, x.shape[2]).astype(np.int64)

    return [[window(row, column) for column in range(columns)] for row in range(rows)]


def scaled(integers: np.ndarray, ratios: Sequence[Fraction]) -> np.ndarray:
    """Integers `(..., C)` times one ratio, or one a channel."""
    every = np.array([int(each) for each in integers.ravel()], object).reshape(integers.shape)
    return every * np.array(list(ratios), object)


def disagreements(
    found: np.ndarray, steps: np.ndarray, zero: int, low: int, high: int, error: Fraction,
    magnitude: np.ndarray | None = None, ties_up: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """How many integers no rounding to nearest can give, and how many only one that is off by a little.

    Args:
        steps: exact, from the zero point.
        error: relative to `magnitude`, by default that of the steps.
        ties_up: that a tie must have gone up, else it may go either way.
    """
    assert found.shape == steps.shape, (found.shape, steps.shape)
    magnitudes = abs(steps) if magnitude is None else magnitude
    wrong = near = 0
    for q, step, size in zip(found.ravel().tolist(), steps.ravel(), magnitudes.ravel()):
        slack = size * error
        least = floor(step - slack + HALF) if ties_up else ceil(step - slack - HALF)
        nearest, most = floor(step + HALF), floor(step + slack + HALF)
        least, nearest, most = (min(max(zero + each, low), high) for each in (least, nearest, most))
        wrong += not least <= q <= most
        near += q != nearest and least <= q <= most
    return wrong, near
