"""From float layers to integer layers, offline.

What is chosen here, in floats, is a grid for every tensor: how wide its range is, hence its scale. Once a scale is
chosen it is an exact rational, and everything that follows from it is exact too:

    (1)   real = scale * (q - zero_point)                                 activations, uint8
    (2)   weight ~ scale[channel] * q,   q = round(weight / scale)        int8 in -127 .. 127, symmetric
    (3)   bias ~ source_scale * scale[channel] * q                        int32
    (4)   ratio = source_scale * scale[channel] / output_scale            becomes (multiplier, shift)

`round` is to nearest, ties to even; `fixedpoint.quantize_multiplier` makes the pair of (4). See Jacob et al. 2018,
sections 2.1 to 2.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Iterable

import numpy as np

from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.fixedpoint import INT32_MAX, INT32_MIN, quantize_multiplier
from intsmooth_ref.model.layers import Conv2D, InputQuantization, Linear, Quantization, Requantization

#: The largest quantized weight; -128 is left out so that the range is symmetric.
WEIGHT_MAX = 127

#: Significant bits of a scale. A scale is a choice, not a measurement, so few will do; then the product of two, which
#: is the scale of a bias, still fits the 24 bits of float32, and backends that store scales as floats hold the same.
SCALE_BITS = 12

#: The smallest range that `least_squares` tries, and the step to the next, as fractions of the extreme values.
SMALLEST_RANGE, RANGE_STEP = Fraction(1, 2), Fraction(1, 40)


def scale_at_least(value: float) -> Fraction:
    """The smallest rational of `SCALE_BITS` significant bits that is not below `value`.

    >>> scale_at_least(0.1)
    Fraction(3277, 32768)

    Raises:
        ArithmeticRangeError: if `value` is not a finite number above zero.
    """
    if not (math.isfinite(value) and value > 0):
        raise ArithmeticRangeError(f"scale of {value}: expected a finite number above zero")
    mantissa, exponent = math.frexp(value)  # value = mantissa * 2**exponent, 1/2 <= mantissa < 1
    return math.ceil(mantissa * 2**SCALE_BITS) * Fraction(2) ** (exponent - SCALE_BITS)


# --- activations ------------------------------------------------------------------------------------------------------


def activation_quantization(low: float, high: float) -> Quantization:
    """The uint8 grid over `low .. high`, widened to contain zero, which is then exact: padding and ReLU need it.

    With `low` zero the zero point is zero, and the clamp to 0 .. 255 is a ReLU.

    Raises:
        ArithmeticRangeError: if the range is empty or not finite.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = scale_at_least((high - low) / 255)
    return Quantization.full_range("uint8", scale, min(round(-Fraction(low) / scale), 255))


def least_squares(values: np.ndarray) -> Quantization:
    """The uint8 grid with the least mean squared error over `values`, a sample of the tensor.

    Both ends of the range are tried at every fortieth from half the extreme value to the whole of it: to clip the few
    largest values buys all others a finer step.
    """
    candidates = (
        activation_quantization(low, high)
        for low in _candidate_ends(float(values.min(initial=0.0)))
        for high in _candidate_ends(float(values.max(initial=0.0)))
    )
    return min(candidates, key=lambda candidate: mean_squared_error(values, candidate))


def _candidate_ends(extreme: float) -> list[float]:
    steps = int((1 - SMALLEST_RANGE) / RANGE_STEP)
    return sorted({extreme * float(1 - step * RANGE_STEP) for step in range(steps + 1)})


def mean_squared_error(values: np.ndarray, quantization: Quantization) -> float:
    """The mean of `(value - real)**2`, with `real` the value's nearest point on the grid, equation (1)."""
    scale = float(quantization.scale)
    steps = np.rint(values / scale)
    low, high = quantization.minimum - quantization.zero_point, quantization.maximum - quantization.zero_point
    return float(np.mean((values - scale * np.clip(steps, low, high)) ** 2))


# --- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """int8 weights, int32 biases `(O,)`, and the weights' scales: one an output channel, or a single one."""

    weights: np.ndarray
    bias: np.ndarray
    scales: tuple[Fraction, ...]


def quantize_weights(
    weights: np.ndarray, bias: np.ndarray, source_scale: Fraction, per_channel: bool
) -> QuantizedWeights:
    """Equations (2) and (3): the largest magnitude, of each output channel or of all, becomes about 127.

    Args:
        weights: float `(O, ...)`.
        bias: float `(O,)`.
        source_scale: scale of the tensor that the weights multiply.

    Raises:
        ArithmeticRangeError: if a weight is not finite, or a bias leaves int32.
    """
    rows = weights.reshape(len(weights), -1)
    magnitudes = np.abs(rows).max(axis=1) if per_channel else np.abs(rows).max(keepdims=True)[0]
    scales = tuple(scale_at_least(float(magnitude) / WEIGHT_MAX or 1.0) for magnitude in magnitudes)  # 1: all zero
    each = scales if per_channel else scales * len(rows)
    integers = [_rounded(row, scale) for row, scale in zip(rows, each)]
    biases = [_rounded([value], source_scale * scale)[0] for value, scale in zip(bias, each)]
    for channel, value in enumerate(biases):
        if not INT32_MIN <= value <= INT32_MAX:
            raise ArithmeticRangeError(f"bias of channel {channel}: found {value}, expected {INT32_MIN} .. {INT32_MAX}")
    shaped = np.array(integers, dtype=np.int8).reshape(weights.shape)
    return QuantizedWeights(shaped, np.array(biases, dtype=np.int32), scales)


def _rounded(values: Iterable[float], scale: Fraction) -> list[int]:
    """`round(value / scale)` for each value, exactly."""
    return [round(Fraction(float(value)) / scale) for value in values]


# --- layers -----------------------------------------------------------------------------------------------------------


def input_quantization(
    name: str, shape: tuple[int, int, int], grey_level: Fraction, output: Quantization
) -> InputQuantization:
    """The layer that takes int32 grey levels, each worth `grey_level` in the network's own unit, to `output`."""
    requantization = Requantization.of(quantize_multiplier(grey_level / output.scale))
    return InputQuantization(name=name, shape=shape, requantization=requantization, output=output)


def conv2d(
    name: str, source_name: str, source: Quantization, weights: np.ndarray, bias: np.ndarray, output: Quantization, *,
    strides: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Conv2D:  # fmt: skip
    """A convolution with float weights `(O, KH, KW, I)`, quantized per output channel, equations (2) to (4)."""
    quantized = quantize_weights(weights, bias, source.scale, per_channel=True)
    ratios = (source.scale * scale / output.scale for scale in quantized.scales)
    return Conv2D(
        name=name, inputs=(source_name,), weights=quantized.weights, bias=quantized.bias, output=output,
        requantization=Requantization.of(*map(quantize_multiplier, ratios)), strides=strides, padding=padding,
    )  # fmt: skip


def scores(name: str, source_name: str, source: Quantization, weights: np.ndarray, bias: np.ndarray) -> Linear:
    """The last layer, float weights `(O, I)`: its output is the accumulator, as it stands.

    The weights share one scale, for scores of different scales could not be compared.
    """
    quantized = quantize_weights(weights, bias, source.scale, per_channel=False)
    output = Quantization.full_range("int32", source.scale * quantized.scales[0], 0)
    return Linear(name=name, inputs=(source_name,), weights=quantized.weights, bias=quantized.bias, output=output)
