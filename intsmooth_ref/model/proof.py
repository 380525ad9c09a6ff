"""The proof that a model's integers stay in range, layer by layer, from the actual weights.

For every layer `prove` derives the output's shape, quantization and interval of values, and the interval of its
accumulator, as exact Python integers. A rule that does not hold raises `ModelFormatError`, so an engine can compute
with int32 accumulators and int64 products and never overflow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import singledispatch
from math import prod
from typing import Any, Sequence

import numpy as np

from ..class_names import CLASS_NAME_RULE, is_class_name
from ..errors import ModelFormatError
from ..fixedpoint import (
    INT32_MAX,
    INT32_MIN,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ROUNDING_MODES,
    SHIFT_MAX,
    SHIFT_MIN,
    accumulator_range,
)
from .layers import (
    INTEGER_RANGES,
    Add,
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    InputQuantization,
    Layer,
    Linear,
    LookupTable,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Reshape,
    Softmax,
    flat_fields,
)

#: Bounds on what a file may ask for, checked before anything of that size is allocated.
MAX_LAYERS = 4096
MAX_EXTENT = 1 << 16
MAX_ELEMENTS = 1 << 26

#: The largest grey level, in either direction, that an `InputQuantization` has to accept.
NOISY_PIXEL_LIMIT = 1 << 20

LAYER_NAME = re.compile("[A-Za-z0-9_.-]{1,100}")
EIGHT_BITS = ("uint8", "int8")


@dataclass(frozen=True)
class TensorProof:
    """What is proven about one layer's output.

    Attributes:
        shape: without the batch dimension.
        dtype, scale, zero_point: `real = scale * (q - zero_point)`.
        minimum, maximum: an interval that contains every value.
        accumulator: an interval that contains the accumulator and its partial sums from the bias on, None where there
            is none.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: Fraction
    zero_point: int
    minimum: int
    maximum: int
    accumulator: tuple[int, int] | None = None


def prove(
    layers: Sequence[Layer], class_names: Sequence[str] = (), *, complete: bool = True
) -> dict[str, TensorProof]:
    """Prove every layer; return what is known of each output, by layer name.

    Args:
        layers: each reads only earlier ones.
        class_names: one a class, or none.
        complete: False for the beginning of a model, whose output is yet to come.

    Raises:
        ModelFormatError: the first rule that does not hold.
    """
    _expect(1 <= len(layers) <= MAX_LAYERS, "model", f"has {len(layers)} layers", f"1 to {MAX_LAYERS}")
    proofs: dict[str, TensorProof] = {}
    for index, layer in enumerate(layers):
        where = f"layer {layer.name!r}"
        _expect(LAYER_NAME.fullmatch(layer.name) is not None, where, "is no name", f"{LAYER_NAME.pattern}")
        _expect(layer.name not in proofs, where, "stands twice", "names that differ")
        _expect(
            isinstance(layer, InputQuantization) == (index == 0), where, f"is a {layer.kind}",
            "an InputQuantization as the first layer and nowhere else",
        )  # fmt: skip
        fewest, most = layer.arity
        _expect(
            fewest <= len(layer.inputs) <= most, where, f"reads {len(layer.inputs)} of the layers before it",
            count_range(fewest, most),
        )  # fmt: skip
        for name in layer.inputs:
            _expect(name in proofs, where, f"reads {name!r}", "the name of an earlier layer")
        _check_fields(layer, where)
        proofs[layer.name] = _prove(layer, *(proofs[name] for name in layer.inputs))
    if not complete:
        return proofs
    used = {name for layer in layers for name in layer.inputs} | {layers[-1].name}
    for name in proofs:
        _expect(name in used, f"layer {name!r}", "is read by no layer", "a graph in which every layer counts")
    _prove_output(layers[-1], proofs, class_names)
    return proofs


def _prove_output(last: Layer, proofs: dict[str, TensorProof], class_names: Sequence[str]) -> None:
    scores = proofs[last.inputs[0]] if isinstance(last, ArgMax) else proofs[last.name]
    where = f"layer {last.name!r}"
    _expect(len(scores.shape) == 1, where, f"gives shape {scores.shape}", "scores of shape (classes,)")
    _expect(scores.shape[0] <= 1 << 16, where, f"gives {scores.shape[0]} classes", f"at most {1 << 16}")
    check_class_names(class_names, scores.shape[0])


def check_class_names(class_names: Sequence[str], classes: int) -> None:
    """One a class, or none.

    Raises:
        ModelFormatError: if there are fewer or more, or one is no name.
    """
    if class_names:
        _expect(len(class_names) == classes, "model", f"has {len(class_names)} class names", f"{classes}, one a class")
    for index, name in enumerate(class_names):
        _expect(is_class_name(name), f"class {index}", f"is called {name!r:.100}", CLASS_NAME_RULE)


def count_range(fewest: int, most: int) -> str:
    return f"{fewest} to {most}" if fewest < most else str(fewest)


def _expect(holds: bool, where: str, found: str, expected: str) -> None:
    if not holds:
        raise ModelFormatError(f"{where} {found}; expected {expected}")


# --- rules of single fields -------------------------------------------------------------------------------------------


def _check_fields(layer: Layer, where: str) -> None:
    """Dtypes and ranks of arrays, types and signs of everything else, quantizations and requantizations."""
    for name, value in flat_fields(layer):
        what = f"{where}: {name}"
        if isinstance(value, np.ndarray):
            _expect(0 < value.size <= MAX_ELEMENTS, what, f"has {value.size} elements", f"1 to {MAX_ELEMENTS}")
        elif isinstance(value, tuple) and name != "inputs":
            small = all(isinstance(each, int) and 0 <= each <= MAX_EXTENT for each in value)
            _expect(small, what, f"is {value}", f"integers from 0 to {MAX_EXTENT}")
    for item in (layer, getattr(layer, "requantization", None)):
        for each in getattr(item, "__dataclass_fields__", {}).values():
            if each.metadata:
                value, dtype, rank = getattr(item, each.name), each.metadata["dtype"], each.metadata["rank"]
                found = f"is {getattr(value, 'dtype', type(value).__name__)} of rank {np.ndim(value)}"
                good = isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == rank
                _expect(good, f"{where}: {each.name}", found, f"{dtype} of rank {rank}")
    output = getattr(layer, "output", None)
    if output is not None:
        _check_quantization(output, f"{where}: output")


def _check_quantization(output: Quantization, where: str) -> None:
    _expect(output.dtype in INTEGER_RANGES, where, f"has dtype {output.dtype!r}", "uint8, int8 or int32")
    lowest, highest = INTEGER_RANGES[output.dtype]
    _expect(output.scale > 0, where, f"has scale {output.scale}", "a rational above zero")
    in_range = lowest <= output.minimum <= output.maximum <= highest
    found = f"has minimum {output.minimum} and maximum {output.maximum}"
    _expect(in_range, where, found, f"{lowest} <= minimum <= maximum <= {highest}")
    zero_points = (0, 0) if output.dtype == "int32" else (lowest, highest)
    in_range = zero_points[0] <= output.zero_point <= zero_points[1]
    _expect(in_range, where, f"has zero point {output.zero_point}", f"{zero_points[0]} to {zero_points[1]}")


def _check_requantization(
    requantization: Requantization, channels: int, accumulators: Sequence[tuple[int, int]], where: str
) -> None:
    """Multipliers, shifts and mode; each channel's accumulator interval inside what the mode can take."""
    multiplier, shift = requantization.multiplier, requantization.shift
    _expect(requantization.rounding in ROUNDING_MODES, where, f"has rounding {requantization.rounding!r}",
            f"one of {', '.join(ROUNDING_MODES)}")  # fmt: skip
    for name, array, low, high in (
        ("multiplier", multiplier, MULTIPLIER_MIN, MULTIPLIER_MAX),
        ("shift", shift, SHIFT_MIN, SHIFT_MAX),
    ):
        _expect(len(array) in (1, channels), where, f"has {len(array)} values of {name}", f"1 or {channels}")
        out = np.flatnonzero((array < low) | (array > high))
        if out.size:
            _expect(False, where, f"has {name}[{out[0]}] = {array[out[0]]}", f"{low} to {high}")
    _expect(len(multiplier) == len(shift), where, f"has {len(multiplier)} multipliers and {len(shift)} shifts",
            "as many of both")  # fmt: skip
    for channel in range(max(len(shift), len(accumulators))):
        low, high = accumulators[channel % len(accumulators)]
        lowest, highest = accumulator_range(int(shift[channel % len(shift)]), requantization.rounding)
        found = f"has an accumulator of {low} .. {high} in channel {channel}"
        expected = f"{lowest} .. {highest}, which {requantization.rounding} takes at that shift"
        _expect(lowest <= low and high <= highest, where, found, expected)


def _accumulator_interval(bounds: Sequence[tuple[int, int]], where: str) -> tuple[int, int]:
    """The union of the channels' intervals, which must lie inside int32."""
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    fits = INT32_MIN <= low and high <= INT32_MAX
    channel = next((c for c, (a, b) in enumerate(bounds) if a < INT32_MIN or b > INT32_MAX), 0)
    found = f"has a worst-case accumulator of {bounds[channel][0]} .. {bounds[channel][1]} in channel {channel}"
    _expect(fits, where, found, f"{INT32_MIN} .. {INT32_MAX}")
    return low, high


def _image(proof: TensorProof, where: str) -> tuple[int, int, int]:
    _expect(len(proof.shape) == 3, where, f"reads shape {proof.shape}", "(height, width, channels)")
    height, width, channels = proof.shape
    return height, width, channels


def _eight_bits(proof: TensorProof, where: str) -> None:
    _expect(proof.dtype in EIGHT_BITS, where, f"reads {proof.dtype}", "uint8 or int8")


def _quantized(output: Quantization, shape: tuple[int, ...], accumulator: tuple[int, int] | None) -> TensorProof:
    return TensorProof(
        shape, output.dtype, output.scale, output.zero_point, output.minimum, output.maximum, accumulator
    )


def _shaped(shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    fits = all(1 <= extent <= MAX_EXTENT for extent in shape) and prod(shape) <= MAX_ELEMENTS
    _expect(fits, where, f"gives shape {shape}", f"extents from 1 to {MAX_EXTENT}, at most {MAX_ELEMENTS} elements")
    return shape


def _pair(values: tuple[int, ...], what: str, where: str) -> tuple[int, int]:
    _expect(len(values) == 2 and min(values) >= 1, where, f"has {what} {values}", "two integers from 1")
    return values[0], values[1]


def _sides(padding: tuple[int, ...], where: str) -> tuple[int, int, int, int]:
    _expect(len(padding) == 4, where, f"has padding {padding}", "four integers (top, bottom, left, right)")
    return padding[0], padding[1], padding[2], padding[3]


def _window_shape(
    height: int, width: int, kernel: tuple[int, int], strides: tuple[int, int], sides: tuple[int, int, int, int],
    where: str,
) -> tuple[int, int]:  # fmt: skip
    """Output height and width of a sliding window; `kernel` counts its dilation."""
    top, bottom, left, right = sides
    padded = (height + top + bottom, width + left + right)
    fits = kernel[0] <= padded[0] and kernel[1] <= padded[1]
    _expect(fits, where, f"slides a window of {kernel} over {padded}", "a window no larger than the padded input")
    return (padded[0] - kernel[0]) // strides[0] + 1, (padded[1] - kernel[1]) // strides[1] + 1


# --- one rule a layer kind --------------------------------------------------------------------------------------------


@singledispatch
def _prove(layer: Layer, *inputs: TensorProof) -> TensorProof:
    raise ModelFormatError(f"layer {layer.name!r} is of kind {layer.kind}; expected a kind of this package")


@_prove.register
def _(layer: InputQuantization) -> TensorProof:
    where = f"layer {layer.name!r}"
    _expect(len(layer.shape) == 3, where, f"has shape {layer.shape}", "(height, width, channels)")
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    limits = (-NOISY_PIXEL_LIMIT, NOISY_PIXEL_LIMIT)
    _check_requantization(layer.requantization, 1, [limits], where)
    return _quantized(layer.output, _shaped(layer.shape, where), limits)


def _matrix_bounds(weights: np.ndarray, bias: np.ndarray, source: TensorProof) -> list[tuple[int, int]]:
    """Per row of `weights` `(O, K)`: the interval of `bias + sum_k w_k x_k`, and of every partial sum from the bias on.

    Each `x = q - zero_point` lies in an interval that is widened to contain 0, so leaving terms out stays inside.
    """
    low = min(source.minimum - source.zero_point, 0)
    high = max(source.maximum - source.zero_point, 0)
    positive = np.where(weights > 0, weights, 0).sum(axis=1, dtype=np.int64).tolist()
    negative = np.where(weights < 0, weights, 0).sum(axis=1, dtype=np.int64).tolist()
    return [
        (b + p * low + n * high, b + p * high + n * low)
        for b, p, n in zip(bias.tolist(), positive, negative)
    ]


def _prove_products(layer: Any, source: TensorProof, shape: tuple[int, ...]) -> TensorProof:
    """What `Conv2D` and `Linear` share: accumulator, requantization, output."""
    where = f"layer {layer.name!r}"
    channels = len(layer.weights)
    _eight_bits(source, where)
    _expect(len(layer.bias) == channels, where, f"has {len(layer.bias)} biases", f"{channels}, one an output channel")
    bounds = _matrix_bounds(layer.weights.reshape(channels, -1), layer.bias, source)
    accumulator = _accumulator_interval(bounds, where)
    output = _quantized(layer.output, _shaped(shape, where), accumulator)
    if layer.requantization is None:
        _expect(layer.output == Quantization.full_range("int32", layer.output.scale, 0), where,
                f"without a requantization gives {layer.output}", "int32 in its full range")  # fmt: skip
        return replace(output, minimum=accumulator[0], maximum=accumulator[1])
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    _check_requantization(layer.requantization, channels, bounds, where)
    return output


@_prove.register
def _(layer: Conv2D, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    height, width, channels = _image(source, where)
    outputs, kernel_height, kernel_width, depth = layer.weights.shape
    divides = layer.groups >= 1 and channels % layer.groups == 0 and outputs % layer.groups == 0
    found = f"has {layer.groups} groups for {channels} input and {outputs} output channels"
    _expect(divides, where, found, "a divisor of both")
    _expect(depth * layer.groups == channels, where, f"has weights of depth {depth}", f"{channels // layer.groups}")
    strides, dilation = _pair(layer.strides, "strides", where), _pair(layer.dilation, "dilation", where)
    window = ((kernel_height - 1) * dilation[0] + 1, (kernel_width - 1) * dilation[1] + 1)
    extent = _window_shape(height, width, window, strides, _sides(layer.padding, where), where)
    return _prove_products(layer, source, (*extent, outputs))


@_prove.register
def _(layer: Linear, source: TensorProof) -> TensorProof:
    outputs, depth = layer.weights.shape
    _expect(source.shape == (depth,), f"layer {layer.name!r}", f"reads shape {source.shape}", f"({depth},)")
    return _prove_products(layer, source, (outputs,))


@_prove.register
def _(layer: Add, first: TensorProof, second: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _eight_bits(first, where)
    _eight_bits(second, where)
    _expect(first.shape == second.shape, where, f"reads shapes {first.shape} and {second.shape}", "one shape")
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    _expect(len(layer.multiplier) == 2, where, f"has {len(layer.multiplier)} multipliers", "2, one an input")
    positive = bool((layer.multiplier >= 1).all())
    _expect(positive, where, f"has multipliers {layer.multiplier.tolist()}", f"1 to {MULTIPLIER_MAX}")
    _expect(SHIFT_MIN <= layer.shift <= SHIFT_MAX, where, f"has shift {layer.shift}", f"{SHIFT_MIN} to {SHIFT_MAX}")
    return _quantized(layer.output, first.shape, None)


@_prove.register
def _(layer: Concat, *sources: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    head = sources[0]
    for source in sources:
        _eight_bits(source, where)
        alike = (source.dtype, source.scale, source.zero_point) == (head.dtype, head.scale, head.zero_point)
        _expect(alike, where, "reads tensors of different quantization", "one dtype, scale and zero point")
        found = f"reads shapes {head.shape} and {source.shape}"
        _expect(source.shape[:-1] == head.shape[:-1], where, found, "shapes that differ in the channels only")
    shape = (*head.shape[:-1], sum(source.shape[-1] for source in sources))
    low, high = min(source.minimum for source in sources), max(source.maximum for source in sources)
    return replace(head, shape=_shaped(shape, where), minimum=low, maximum=high, accumulator=None)


def _prove_pool(layer: MaxPool | AveragePool, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    height, width, channels = _image(source, where)
    _eight_bits(source, where)
    kernel, strides = _pair(layer.kernel, "kernel", where), _pair(layer.strides, "strides", where)
    sides = _sides(layer.padding, where)
    inside = max(sides[:2]) < kernel[0] and max(sides[2:]) < kernel[1]
    _expect(inside, where, f"has padding {layer.padding}", f"less than the kernel {kernel}: no window of padding alone")
    extent = _window_shape(height, width, kernel, strides, sides, where)
    return replace(source, shape=_shaped((*extent, channels), where), accumulator=None)


@_prove.register
def _(layer: MaxPool, source: TensorProof) -> TensorProof:
    return _prove_pool(layer, source)


@_prove.register
def _(layer: AveragePool, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    proof = _prove_pool(layer, source)
    area = layer.kernel[0] * layer.kernel[1]
    _expect(area <= 1 << 22, where, f"has a kernel of {area}", f"at most {1 << 22}")
    padded = layer.count_include_pad and any(layer.padding)
    low = min(source.minimum, source.zero_point) if padded else source.minimum
    high = max(source.maximum, source.zero_point) if padded else source.maximum
    bounds = (min(0, low) * area, max(0, high) * area)
    return replace(proof, minimum=low, maximum=high, accumulator=_accumulator_interval([bounds], where))


@_prove.register
def _(layer: GlobalAveragePool, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    height, width, channels = _image(source, where)
    _eight_bits(source, where)
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    low, high = min(source.minimum - source.zero_point, 0), max(source.maximum - source.zero_point, 0)
    bounds = (low * height * width, high * height * width)
    accumulator = _accumulator_interval([bounds], where)
    _check_requantization(layer.requantization, 1, [bounds], where)
    return _quantized(layer.output, (channels,), accumulator)


@_prove.register
def _(layer: Clamp, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _eight_bits(source, where)
    lowest, highest = INTEGER_RANGES[source.dtype]
    ordered = lowest <= layer.minimum <= layer.maximum <= highest
    found = f"has minimum {layer.minimum} and maximum {layer.maximum}"
    _expect(ordered, where, found, f"{lowest} <= minimum <= maximum <= {highest}")
    low = min(max(source.minimum, layer.minimum), layer.maximum)
    high = min(max(source.maximum, layer.minimum), layer.maximum)
    return replace(source, minimum=low, maximum=high, accumulator=None)


@_prove.register
def _(layer: Pad, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    height, width, channels = _image(source, where)
    _eight_bits(source, where)
    top, bottom, left, right = _sides(layer.padding, where)
    shape = _shaped((height + top + bottom, width + left + right, channels), where)
    low, high = min(source.minimum, source.zero_point), max(source.maximum, source.zero_point)
    return replace(source, shape=shape, minimum=low, maximum=high, accumulator=None)


@_prove.register
def _(layer: Flatten, source: TensorProof) -> TensorProof:
    return replace(source, shape=_shaped((prod(source.shape),), f"layer {layer.name!r}"), accumulator=None)


@_prove.register
def _(layer: Reshape, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    found = f"turns shape {source.shape} into {layer.shape}"
    _expect(1 <= len(layer.shape) <= 3 and prod(layer.shape) == prod(source.shape), where, found,
            "one to three extents and as many elements")  # fmt: skip
    return replace(source, shape=_shaped(layer.shape, where), accumulator=None)


@_prove.register
def _(layer: Requantize, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _eight_bits(source, where)
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    bounds = (min(source.minimum - source.zero_point, 0), max(source.maximum - source.zero_point, 0))
    _check_requantization(layer.requantization, source.shape[-1], [bounds], where)
    return _quantized(layer.output, source.shape, bounds)


def _check_table(table: np.ndarray, low: int, high: int, where: str) -> None:
    _expect(len(table) == 256, where, f"has a table of {len(table)}", "256 entries")
    out = np.flatnonzero((table < low) | (table > high))
    if out.size:
        _expect(False, where, f"has table[{out[0]}] = {table[out[0]]}", f"{low} to {high}")


@_prove.register
def _(layer: LookupTable, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _eight_bits(source, where)
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    _check_table(layer.table, layer.output.minimum, layer.output.maximum, where)
    offset = INTEGER_RANGES[source.dtype][0]
    reached = layer.table[source.minimum - offset : source.maximum - offset + 1]
    proof = _quantized(layer.output, source.shape, None)
    return replace(proof, minimum=int(reached.min()), maximum=int(reached.max()))


@_prove.register
def _(layer: Softmax, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _eight_bits(source, where)
    _expect(layer.output.dtype in EIGHT_BITS, where, f"gives {layer.output.dtype}", "uint8 or int8")
    expected = Quantization.full_range(layer.output.dtype, Fraction(1, 256), INTEGER_RANGES[layer.output.dtype][0])
    _expect(layer.output == expected, where, f"gives {layer.output}", f"{expected}")
    _check_table(layer.table, 0, INT32_MAX, where)
    _expect(int(layer.table[0]) >= 1, where, f"has table[0] = {layer.table[0]}", f"1 to {INT32_MAX}")
    return _quantized(layer.output, source.shape, None)


@_prove.register
def _(layer: ArgMax, source: TensorProof) -> TensorProof:
    where = f"layer {layer.name!r}"
    _expect(len(source.shape) == 1, where, f"reads shape {source.shape}", "scores of shape (classes,)")
    return TensorProof((), "int32", Fraction(1), 0, 0, source.shape[0] - 1)
