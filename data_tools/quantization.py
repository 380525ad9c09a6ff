"""From float layers to integer layers, offline.

What is chosen here, in floats, is a grid for every tensor: how wide its range is, hence its scale. Once a scale is
chosen it is an exact rational, and everything that follows from it is exact too:

    (1)   real = scale * (q - zero_point)                                 activations, uint8
    (2)   weight ~ scale[channel] * q,   q = round(weight / scale)        int8 in -127 .. 127, symmetric
    (3)   bias ~ source_scale * scale[channel] * q                        int32
    (4)   ratio = source_scale * scale[channel] / output_scale            becomes (multiplier, shift)

`round` is to nearest, ties to even; `fixedpoint.quantize_multiplier` makes the pair of (4). See Jacob et al. 2018,
sections 2.1 to 2.4. A weight's scale is what takes the channel's largest weight to 127, but at least so much that bias
and accumulator stay inside int32 and the ratio (4) can be written:

    (5)   scale[channel] >= (|bias| / source_scale + 255 * sum |weight|) / (2**31 - 1 - 255 * taps / 2 - 1)
    (6)   scale[channel] >= 2**-31 * output_scale / source_scale

Where these two bind, the weights are so small beside the bias, or the output's step, that it does not matter how few
values are left for them: channels that batch normalization has switched off look like this. `taps / 2` is for the
rounding of (2), the last 1 for that of (3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Callable, Sequence

import numpy as np

from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.fixedpoint import INT32_MAX, SHIFT_MAX, quantize_multiplier
from intsmooth_ref.model.layers import (
    Add,
    Conv2D,
    GlobalAveragePool,
    InputQuantization,
    Linear,
    LookupTable,
    Quantization,
    Requantization,
    Requantize,
)

#: The largest quantized weight; -128 is left out so that the range is symmetric.
WEIGHT_MAX = 127

#: Significant bits of a scale. A scale is a choice, not a measurement, so few will do; then the product of two, which
#: is the scale of a bias, still fits the 24 bits of float32, and backends that store scales as floats hold the same.
SCALE_BITS = 12

#: The smallest range that `least_squares` tries, and the step to the next, as fractions of the extreme values.
SMALLEST_RANGE, RANGE_STEP = Fraction(1, 2), Fraction(1, 40)

#: The largest distance of a uint8 from its zero point.
REACH = 255

#: Of an accumulator's scale to its output's: twice the smallest that `quantize_multiplier` can express.
SMALLEST_RATIO = 2.0 ** (31 - SHIFT_MAX)


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


def widened(grid: Quantization, *reals: float) -> Quantization:
    """The grid, if each of these is within half a step of one of its points; else one over its range and theirs."""
    each = list(map(Fraction, reals))
    ends = [(end - grid.zero_point) * grid.scale for end in (grid.minimum, grid.maximum)]
    if all(ends[0] - grid.scale / 2 <= real <= ends[1] + grid.scale / 2 for real in each):
        return grid
    return activation_quantization(float(min(*each, *ends)), float(max(*each, *ends)))


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
    weights: np.ndarray, bias: np.ndarray, source_scale: Fraction, per_channel: bool,
    output_scale: Fraction | None = None,
) -> QuantizedWeights:  # fmt: skip
    """Equations (2) and (3), with the scales of `weight_scales`.

    Args:
        weights: float `(O, ...)`.
        bias: float `(O,)`.
        source_scale: scale of the tensor that the weights multiply.
        output_scale: what the accumulator is requantized to, if it is.

    Raises:
        ArithmeticRangeError: if a weight or a bias is not finite, or there are more weights in a channel than int32 can
            add up.
    """
    scales = weight_scales(weights, bias, source_scale, output_scale)
    if not per_channel:
        scales = (max(scales),)
    each = scales if per_channel else scales * len(weights)
    integers = np.array([_rounded(row, scale) for row, scale in zip(weights.reshape(len(weights), -1), each)])
    biases = [_rounded([value], source_scale * scale)[0] for value, scale in zip(bias, each)]
    return QuantizedWeights(
        integers.reshape(weights.shape).astype(np.int8), np.array(biases, dtype=np.int32), scales
    )


def weight_scales(
    weights: np.ndarray, bias: np.ndarray, source_scale: Fraction, output_scale: Fraction | None
) -> tuple[Fraction, ...]:
    """For each output channel the smallest scale, 127 steps for its largest weight, that (5) and (6) allow."""
    rows = np.abs(weights.reshape(len(weights), -1).astype(np.float64))
    room = INT32_MAX - REACH * rows.shape[1] / 2 - 1
    if room <= 0:
        expected = f"at most {2 * (INT32_MAX - 1) // REACH}"
        raise ArithmeticRangeError(f"{rows.shape[1]} weights in a channel: expected {expected}")
    accumulators = np.abs(bias.astype(np.float64)) / float(source_scale) + REACH * rows.sum(axis=1)
    scales = np.maximum(rows.max(axis=1) / WEIGHT_MAX, accumulators / room)
    if output_scale is not None:
        scales = np.maximum(scales, SMALLEST_RATIO * float(output_scale / source_scale))
    scales[scales == 0] = 1.0  # nothing to hold: any scale holds it
    return tuple(map(scale_at_least, scales.tolist()))


def _rounded(values: Sequence[float] | np.ndarray, scale: Fraction) -> list[int]:
    """`round(value / scale)` for each value, exactly: in floats, and in rationals where a float could miss a tie."""
    exact = np.array(values, dtype=np.float64)
    quotients = exact / float(scale)  # off by two units in the last place at most
    rounded = np.rint(quotients).tolist()
    to_tie = np.abs(np.abs(quotients - np.trunc(quotients)) - 0.5)
    for index in np.flatnonzero(~(to_tie > np.abs(quotients) * 2.0**-50)).tolist():
        rounded[index] = round(Fraction(float(exact[index])) / scale)
    return [int(value) for value in rounded]


# --- layers -----------------------------------------------------------------------------------------------------------


def input_quantization(
    name: str, shape: tuple[int, int, int], grey_level: Fraction, output: Quantization
) -> InputQuantization:
    """The layer that takes int32 grey levels, each worth `grey_level` in the network's own unit, to `output`."""
    requantization = _requantization(grey_level, output)
    return InputQuantization(name=name, shape=shape, requantization=requantization, output=output)


def _requantization(unit: Fraction, output: Quantization) -> Requantization:
    """From integers worth `unit` each to those of `output`."""
    return Requantization.of(quantize_multiplier(unit / output.scale))


def conv2d(
    name: str, source_name: str, source: Quantization, weights: np.ndarray, bias: np.ndarray, output: Quantization, *,
    strides: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0, 0, 0), dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Conv2D:  # fmt: skip
    """A convolution with float weights `(O, KH, KW, I / groups)`, per output channel, equations (2) to (6)."""
    quantized, requantization = quantized_products(weights, bias, source.scale, output.scale)
    return Conv2D(
        name=name, inputs=(source_name,), weights=quantized.weights, bias=quantized.bias, output=output,
        requantization=requantization, strides=strides, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip


def linear(
    name: str, source_name: str, source: Quantization, weights: np.ndarray, bias: np.ndarray, output: Quantization
) -> Linear:
    """A fully connected layer that is not the last, float weights `(O, I)`: as `conv2d`."""
    quantized, requantization = quantized_products(weights, bias, source.scale, output.scale)
    return Linear(
        name=name, inputs=(source_name,), weights=quantized.weights, bias=quantized.bias, output=output,
        requantization=requantization,
    )  # fmt: skip


def quantized_products(
    weights: np.ndarray, bias: np.ndarray, source_scale: Fraction, output_scale: Fraction
) -> tuple[QuantizedWeights, Requantization]:
    """What `conv2d` and `linear` share, equations (2) to (4)."""
    quantized = quantize_weights(weights, bias, source_scale, per_channel=True, output_scale=output_scale)
    ratios = (source_scale * scale / output_scale for scale in quantized.scales)
    return quantized, Requantization.of(*map(quantize_multiplier, ratios))


def scores(name: str, source_name: str, source: Quantization, weights: np.ndarray, bias: np.ndarray) -> Linear:
    """The last layer, float weights `(O, I)`: its output is the accumulator, as it stands.

    The weights share one scale, for scores of different scales could not be compared.
    """
    quantized = quantize_weights(weights, bias, source.scale, per_channel=False)
    output = Quantization.full_range("int32", source.scale * quantized.scales[0], 0)
    return Linear(name=name, inputs=(source_name,), weights=quantized.weights, bias=quantized.bias, output=output)


def add(
    name: str, source_names: tuple[str, str], sources: tuple[Quantization, Quantization], output: Quantization
) -> Add:
    """The sum of two tensors: the larger ratio of scales gets 31 bits, the other what is left of them at that shift."""
    ratios = [source.scale / output.scale for source in sources]
    _, shift = quantize_multiplier(max(ratios))
    multiplier = np.array([max(round(ratio * 2**shift), 1) for ratio in ratios], np.int32)
    return Add(name=name, inputs=source_names, multiplier=multiplier, shift=shift, output=output)


def global_average_pool(
    name: str, source_name: str, source: Quantization, pixels: int, output: Quantization
) -> GlobalAveragePool:
    """The mean over height and width, of so many `pixels`."""
    requantization = _requantization(source.scale / pixels, output)
    return GlobalAveragePool(name=name, inputs=(source_name,), requantization=requantization, output=output)


def requantize(name: str, source_name: str, source: Quantization, output: Quantization) -> Requantize:
    """The same reals on another grid."""
    requantization = _requantization(source.scale, output)
    return Requantize(name=name, inputs=(source_name,), requantization=requantization, output=output)


def lookup_table(
    name: str, source_name: str, source: Quantization, function: Callable[[np.ndarray], np.ndarray],
    output: Quantization,
) -> LookupTable:  # fmt: skip
    """A function of reals, float64 to float64, for each of the 256 points of the source's grid."""
    reals = float(source.scale) * (np.arange(256) - source.zero_point)
    table = np.rint(function(reals) / float(output.scale)) + output.zero_point
    clamped = np.clip(table, output.minimum, output.maximum).astype(np.int16)
    return LookupTable(name=name, inputs=(source_name,), table=clamped, output=output)
