"""Averages of 8-bit values.

Each rule takes the values of every window in the order of the runtime, int64 `(..., n, C)`, and an `Average`, and
returns int64 `(..., C)`, zero point and clamp applied. Notation: x the values, xs, ys, zx, zy scales and zero points of
input and output; every operation on floats rounds to float32, RNE is rounding to an integer, ties to even.
"""

from __future__ import annotations

import numpy as np

from ..fixedpoint import requantize
from .floating_point import float32
from .parameters import Average
from .requantization import quantized_multiplier, shifted_left

ONE = np.float32(1)


def cdiv_half_away(x: np.ndarray, p: Average) -> np.ndarray:
    """sum(x) / n, ties away from zero, by C's division: LiteRT 2.3.0, AVERAGE_POOL_2D, which keeps the quantization.

    (TensorFlow Lite, `kernels/internal/reference/integer_ops/pooling.h`, `AveragePool`.)
    """
    total, count = x.sum(axis=-2), x.shape[-2]
    return p.output.clamped(np.sign(total) * ((np.abs(total) + count // 2) // count))


def mean_or_sum(x: np.ndarray, p: Average) -> np.ndarray:
    """D(sum(x - zx), (m << k) / n * 2**-(s+k)) + zy, (m, s) = QM(xs/ys): LiteRT 2.3.0, MEAN, reference kernel.

    k = floor(log2(n)), at most 32 and at most 62 - s; the quotient is cut to an integer, D is `gemmlowp`. (TensorFlow
    Lite, `kernels/internal/reference/reduce.h`, `QuantizedMeanOrSum`.)
    """
    count = x.shape[-2]
    multiplier, shift = quantized_multiplier(np.array([float(p.input.scale) / float(p.output.scale)]))
    k = int(np.minimum(min(count.bit_length() - 1, 32), 62 - shift)[0])
    total = (x - p.input.zero_point).sum(axis=-2)
    total, shift = shifted_left(total, shift + k)
    scaled = requantize(total, (multiplier << k) // count, shift, "gemmlowp")
    return p.output.clamped(scaled + p.output.zero_point)


def mean_opt(x: np.ndarray, p: Average, lanes: int = 16) -> np.ndarray:
    """U(sum(x), QM(xs / (n*ys))) + zy - round(zx*xs/ys): LiteRT 2.3.0, MEAN over height and width, optimized kernel.

    The channels that do not fill a vector of so many lanes are rounded by D; U is `srdhm_half_up`, D `gemmlowp`. The
    ratio is float32, `round` is half away from zero. With several threads each has channels of its own, and its own
    remainder. (TensorFlow Lite, `kernels/internal/optimized/integer_ops/mean.h`.)
    """
    count, channels = x.shape[-2:]
    ratio = p.input.scale / (np.float32(count) * p.output.scale)
    shifted = np.float32(p.input.zero_point) * p.input.scale / p.output.scale
    bias = p.output.zero_point - int(np.trunc(shifted + np.copysign(np.float32(0.5), shifted)))
    multiplier, shift = quantized_multiplier(np.array([ratio]))
    total, shift = shifted_left(x.sum(axis=-2), shift)
    up, away = (requantize(total, multiplier, shift, mode) for mode in ("srdhm_half_up", "gemmlowp"))
    in_vectors = np.arange(channels) < channels // lanes * lanes
    return p.output.clamped(np.where(in_vectors, up, away) + bias)


def ort_gap(x: np.ndarray, p: Average) -> np.ndarray:
    """RNE(f(sum(x - zx)) * (xs / (ys*n))) + zy: ONNX Runtime 1.32.0, QLinearGlobalAveragePool."""
    scale = p.input.scale / (p.output.scale * np.float32(x.shape[-2]))
    total = float32((x - p.input.zero_point).sum(axis=-2))
    return p.output.clamped(np.rint(total * scale) + np.float32(p.output.zero_point))


def ort_avg(x: np.ndarray, p: Average) -> np.ndarray:
    """RNE(sum(xs * (x - zx)) / n / ys + zy), the sum in the order of the window: ONNX Runtime 1.32.0,
    QLinearAveragePool; where the window is the whole image, `ort_gap`.
    """
    real = p.input.scale * float32(x - p.input.zero_point)
    total = np.zeros_like(real[..., 0, :])
    for value in np.moveaxis(real, -2, 0):
        total = total + value
    average = total / np.float32(x.shape[-2])
    return p.output.clamped(np.rint(average / p.output.scale + np.float32(p.output.zero_point)))


def xnn_mean(x: np.ndarray, p: Average) -> np.ndarray:
    """RNE(f(sum(x)) * s + (zy - n*zx*s)), s = (xs/ys) * (1/n): XNNPACK in LiteRT 2.3.0, MEAN over height and width."""
    count = x.shape[-2]
    scale = p.input.scale / p.output.scale * (ONE / np.float32(count))
    bias = np.float32(p.output.zero_point) - np.float32(count * p.input.zero_point) * scale
    return p.output.clamped(np.rint(float32(x.sum(axis=-2)) * scale + bias))


def aten_pool(x: np.ndarray, p: Average, lanes: int | None = None) -> np.ndarray:
    """RNE(f(sum(x - zx)) * s + zy), s = xs/ys/n: PyTorch 2.13.0, `avg_pool2d`, channels first.

    Channels last, with `lanes`, the channels that fill vectors of so many lanes are RNE(f(sum) * s) + zy.
    """
    count, channels = x.shape[-2:]
    scale = p.input.scale / p.output.scale / np.float32(count)
    scaled = float32((x - p.input.zero_point).sum(axis=-2)) * scale
    zero = np.float32(p.output.zero_point)
    in_vectors = np.arange(channels) < (channels // lanes * lanes if lanes else 0)
    return p.output.clamped(np.where(in_vectors, np.rint(scaled) + zero, np.rint(scaled + zero)))
