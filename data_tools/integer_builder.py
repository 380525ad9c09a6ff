"""Quantized networks of other formats, rebuilt operation by operation as integer models, exactly.

A scale in a file is a float32, and that is a rational; so every ratio of scales is one too, and a multiplier and a
shift are made of it by `fixedpoint.quantize_multiplier`. With `s` and `w` the scales of a source and of weights, `t`
and `z` scale and zero point of the output's grid:

    (1)  q = clamp(z + round(ratio * accumulator)),   ratio = s * w / t     convolutions, linear layers
                                                      ratio = s / (n * t)   means of n pixels; n = 1: another grid
    (2)  ratio < 2**-32: |ratio * accumulator| < 1/2, q = clamp(z): weights and bias may as well be 0
    (3)  means of windows of n pixels each, onto another grid: a depthwise convolution with weights 1, rounded once
    (4)  clip(x, low, high), then to a grid = to the grid, then clamp(z + round(low / t), z + round(high / t))
    (5)  f(x), and x * f(x), onto a grid: a table of 256 entries
    (6)  the same integers read on another grid: a table that changes none of them
    (7)  order[h, w, c] = place of (c, h, w) in a flattened image that had its channels first

`round` in (4) and (5) is to nearest, ties to even, of the exact quotient; in (1) it is the model's rounding mode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from intsmooth_ref.data_tools import float_engine, float_model, quantization
from intsmooth_ref.data_tools.channels_first import expect
from intsmooth_ref.data_tools.converter import printable
from intsmooth_ref.data_tools.float_model import free_name
from intsmooth_ref.dataset import FULL_SCALE
from intsmooth_ref.errors import ArithmeticRangeError, ModelFormatError
from intsmooth_ref.fixedpoint import MULTIPLIER_MIN, SHIFT_MAX, quantize_multiplier
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    INTEGER_RANGES,
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
)
from intsmooth_ref.model.proof import MAX_ELEMENTS, MAX_EXTENT


#: Equation (2).
SMALLEST_RATIO = Fraction(MULTIPLIER_MIN, 2**SHIFT_MAX)

#: The scale of a bias is the product of two, rounded to float32 once or twice.
SCALE_TOLERANCE = Fraction(1, 2**22)

#: Bytes of the list of tensors in a provenance; an attribute of a file holds 64000.
LISTED_BYTES = 40000

#: A function of reals, exact or as a float64 is.
RealFunction = Callable[[Fraction], Fraction]


@dataclass(frozen=True)
class Normalization:
    """The network reads `(grey / 255 - mean) / deviation`.

    Attributes:
        nearest: a mean between two steps of the input's grid may be moved to the nearer one.
    """

    mean: Fraction = Fraction(0)
    deviation: Fraction = Fraction(1)
    nearest: bool = False


@dataclass(frozen=True, eq=False)
class IntegerTensor:
    """What a layer of the model gives.

    Attributes:
        shape: `(H, W, C)` or `(C,)`; means over the whole image may be `(1, 1, C)` though their layer gives `(C,)`.
        grid: what its integers stand for; minimum and maximum are those of its dtype, whatever the layer clamps to.
        order: equation (7), element `k` of the layer is element `order[k]` of the source; None if all are in place.
    """

    layer: str
    shape: tuple[int, ...]
    grid: Quantization
    order: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """int8 `(O, KH, KW, I / groups)` or `(O, I)`, and their scales: one an output channel, or a single one."""

    integers: np.ndarray
    scales: tuple[Fraction, ...]


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model, and where to find what it was made of.

    Attributes:
        tensors: by the name of an 8-bit tensor of the source, the same tensor of the model.
    """

    model: IntegerModel
    tensors: Mapping[str, IntegerTensor]


def exact(scale: float) -> Fraction:
    """A scale as the rational that it is."""
    expect(bool(np.isfinite(scale)) and scale > 0, f"scale {scale}", "a finite number above zero")
    return Fraction(float(scale))


def same_grid(left: Quantization, right: Quantization) -> bool:
    return (left.dtype, left.scale, left.zero_point) == (right.dtype, right.scale, right.zero_point)


def clipped(grid: Quantization, low: Fraction | None, high: Fraction | None) -> Quantization:
    """The grid cut short where a clip ends, equation (4); None is no end."""

    def nearest(end: Fraction | None, otherwise: int) -> int:
        wanted = otherwise if end is None else grid.zero_point + round(end / grid.scale)
        return min(max(wanted, grid.minimum), grid.maximum)

    expect(low is None or high is None or low <= high, f"a clip to {low} .. {high}", "its ends in order")
    return replace(grid, minimum=nearest(low, grid.minimum), maximum=nearest(high, grid.maximum))


def narrow_weights(integers: np.ndarray) -> np.ndarray:
    """Weights less their zero points as int8."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    expect(-128 <= low and high <= 127, f"weights less their zero point of {low} .. {high} (asymmetric weights)",
           "-128 .. 127: symmetric weights")  # fmt: skip
    return integers.astype(np.int8)


def expect_bias_scales(scales: Sequence[Fraction], source: Fraction, weights: Sequence[Fraction]) -> None:
    """That a bias is in steps of the source's scale times that of the weights, but for the product's rounding."""
    count = max(len(scales), len(weights))
    good = len(scales) in (1, count) and len(weights) in (1, count)
    units = [source * weight for weight in weights] * (count // len(weights))
    given = list(scales) * (count // len(scales))
    good = good and all(abs(each - unit) <= unit * SCALE_TOLERANCE for each, unit in zip(given, units))
    expect(good, "a bias of another scale", "the input's scale times that of the weights")


# --- functions --------------------------------------------------------------------------------------------------------


def leaky_relu(slope: Fraction) -> RealFunction:
    return lambda x: x if x >= 0 else slope * x


def hard_sigmoid(slope: Fraction = Fraction(1, 6), offset: Fraction = Fraction(1, 2)) -> RealFunction:
    return lambda x: min(max(slope * x + offset, Fraction(0)), Fraction(1))


def hard_swish(x: Fraction) -> Fraction:
    return x * hard_sigmoid()(x)


def smooth(function: str) -> RealFunction:
    """A function that `float_engine` knows, computed in float64: within a few units in the last place."""
    layer = float_model.Function(name=function, inputs=("x",), function=function)
    return lambda x: Fraction(float(float_engine.function_values(layer, np.array([float(x)]))[0]))


# --- the builder ------------------------------------------------------------------------------------------------------


class IntegerModelBuilder:
    """An integer model in the making: each method adds what one operation of the source amounts to.

    An operation's name, made legal and unique, is that of its layer. A layer that an operation needs besides has a name
    that begins with that one. `output` is the grid of what an operation gives, cut short by the clip fused into it. All
    methods raise `ModelFormatError`, without saying where, if the integer model has nothing that does the same.
    """

    def __init__(self, rounding: str = "single_rounding") -> None:
        """
        Args:
            rounding: mode of all requantizations but the input's.
        """
        self._layers: dict[str, Layer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._origins: dict[str, str] = {}
        self._reread: dict[tuple[str, Fraction, int], str] = {}
        self._rounding = rounding

    # --- the image ----------------------------------------------------------------------------------------------------

    def image(
        self, name: str, shape: tuple[int, int, int], output: Quantization, normalization: Normalization
    ) -> IntegerTensor:
        """Grey levels to the grid of the source's input.

        A mean of `m` steps is a zero point that is `m` lower while grey levels are rounded; equation (6) raises it.
        """
        step = normalization.deviation * output.scale
        steps = normalization.mean / step
        if steps.denominator != 1:
            nearest = round(steps) * step
            found = f"a mean of {float(normalization.mean):.8g}, {float(steps):.8g} steps of the input's grid"
            expect(normalization.nearest, found, f"a whole number of them: the nearest mean, {float(nearest):.8g}")
        grid = replace(output, zero_point=output.zero_point - round(steps))
        lowest, highest = INTEGER_RANGES[output.dtype]
        found = f"a mean at which black, 0, would be {grid.zero_point} on the input's grid"
        expect(lowest <= grid.zero_point <= highest, found, f"{lowest} to {highest}: this network's mean and deviation")
        requantization = Requantization.of(_in_range(quantize_multiplier, 1 / (FULL_SCALE * step)))
        image = self._add(InputQuantization, name, (), shape, grid, shape=shape, requantization=requantization,
                          output=grid)  # fmt: skip
        return self.reread(image, output.scale, output.zero_point)

    # --- weights ------------------------------------------------------------------------------------------------------

    def conv2d(
        self, name: str, source: IntegerTensor, weights: Weights, bias: np.ndarray, output: Quantization | None, *,
        strides: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0, 0, 0), dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> IntegerTensor:  # fmt: skip
        """Without an output its bare accumulators. The bias is int32, in steps of source scale times weights' scale."""
        source = self._image(source)
        outputs, *kernel, depth = weights.integers.shape
        expect(groups >= 1 and depth * groups == source.shape[2] and outputs % groups == 0,
               f"{groups} groups of depth {depth} for {source.shape[2]} channels", "as many channels")  # fmt: skip
        height, width = _windows(source, kernel, strides, padding, dilation)
        return self._products(Conv2D, name, source, (height, width, outputs), weights, bias, output, strides=strides,
                              padding=padding, dilation=dilation, groups=groups)  # fmt: skip

    def linear(
        self, name: str, source: IntegerTensor, weights: Weights, bias: np.ndarray, output: Quantization | None
    ) -> IntegerTensor:
        """As `conv2d`."""
        outputs, depth = weights.integers.shape
        expect(source.shape == (depth,), f"input of shape {source.shape}", f"({depth},)")
        if source.order is not None:
            weights = replace(weights, integers=weights.integers[:, source.order])
        return self._products(Linear, name, source, (outputs,), weights, bias, output)

    def _products(
        self, kind: type[Layer], name: str, source: IntegerTensor, shape: tuple[int, ...], weights: Weights,
        bias: np.ndarray, output: Quantization | None, **values: Any,
    ) -> IntegerTensor:  # fmt: skip
        """Equations (1) and (2)."""
        integers, scales, channels = weights.integers, weights.scales, len(weights.integers)
        expect(len(scales) in (1, channels), f"{len(scales)} scales", f"1, or {channels}: one an output channel")
        expect(bias.shape == (channels,), f"bias of shape {bias.shape}", f"({channels},)")
        requantization = None
        if output is None:
            expect(len(set(scales)) == 1, "scores of different scales", "weights of one scale, or a quantized output")
            output = Quantization.full_range("int32", source.grid.scale * scales[0], 0)
        else:
            ratios = [source.grid.scale * scale / output.scale for scale in scales]
            requantization = _requantization(ratios, self._rounding)
            counts = np.resize([ratio >= SMALLEST_RATIO for ratio in ratios], channels)
            integers, bias = integers * counts.reshape(-1, *[1] * (integers.ndim - 1)), bias * counts
        return self._add(kind, name, (source,), shape, output, weights=np.ascontiguousarray(integers, np.int8),
                         bias=bias.astype(np.int32), requantization=requantization, output=output,
                         **values)  # fmt: skip

    # --- element by element -------------------------------------------------------------------------------------------

    def add(self, name: str, left: IntegerTensor, right: IntegerTensor, output: Quantization) -> IntegerTensor:
        expect(left.shape == right.shape, f"a sum of shapes {left.shape} and {right.shape}", "two of one shape")
        expect(np.array_equal(_whole_order(left), _whole_order(right)),
               "a sum of two flattened images of different height and width", "one height and width")  # fmt: skip
        left, right = (self._of_layers_shape(each) for each in (left, right))
        with_pair = _in_range(quantization.add, "", ("", ""), (left.grid, right.grid), output)
        return self._add(type(with_pair), name, (left, right), left.shape, output, left.order,
                         multiplier=with_pair.multiplier, shift=with_pair.shift, output=output)  # fmt: skip

    def clamp(
        self, name: str, source: IntegerTensor, low: Fraction | None, high: Fraction | None, output: Quantization
    ) -> IntegerTensor:
        """Equation (4)."""
        return self.requantized(name, source, clipped(output, low, high))

    def clamp_integers(self, name: str, source: IntegerTensor, low: int, high: int) -> IntegerTensor:
        """Whatever they stand for."""
        expect(low <= high, f"a clip to {low} .. {high}", "its ends in order")
        lowest, highest = INTEGER_RANGES[source.grid.dtype]
        low, high = (min(max(end, lowest), highest) for end in (low, high))
        return self._add(Clamp, name, (source,), source.shape, source.grid, source.order, minimum=low, maximum=high)

    def function(
        self, name: str, source: IntegerTensor, function: RealFunction, output: Quantization
    ) -> IntegerTensor:
        """Equation (5)."""
        return self._table(name, source, [function(real) for real in _reals(source.grid)], output)

    def multiply(self, name: str, left: IntegerTensor, right: IntegerTensor, output: Quantization) -> IntegerTensor:
        """Equation (5): the product of a tensor and what a table made of it."""
        for source, factor in ((left, right), (right, left)):
            layer = self._layers[factor.layer]
            if isinstance(layer, LookupTable) and layer.inputs == (source.layer,):
                zero, scale = factor.grid.zero_point, factor.grid.scale
                products = [
                    real * (int(entry) - zero) * scale for real, entry in zip(_reals(source.grid), layer.table)
                ]
                return self._table(name, source, products, output)
        raise ModelFormatError("found a product of two tensors; expected one of x with a function of x")

    def requantized(self, name: str, source: IntegerTensor, output: Quantization) -> IntegerTensor:
        """The same reals on another grid; nothing where it is none."""
        if not same_grid(source.grid, output):
            requantization = _requantization([source.grid.scale / output.scale], self._rounding)
            return self._add(Requantize, name, (source,), source.shape, output, source.order, output=output,
                             requantization=requantization)  # fmt: skip
        if (output.minimum, output.maximum) == INTEGER_RANGES[output.dtype]:
            return source
        return self.clamp_integers(name, source, output.minimum, output.maximum)

    def reread(self, source: IntegerTensor, scale: Fraction, zero_point: int) -> IntegerTensor:
        """The same integers on another grid, equation (6)."""
        grid = Quantization.full_range(source.grid.dtype, scale, zero_point)
        if same_grid(grid, source.grid):
            return source
        key = source.layer, scale, zero_point
        if key not in self._reread:
            table = np.arange(grid.minimum, grid.maximum + 1, dtype=np.int16)
            table_of = self._add(LookupTable, f"{source.layer}_reread", (source,), source.shape, grid, source.order,
                                 table=table, output=grid)  # fmt: skip
            self._reread[key] = table_of.layer
        return replace(source, layer=self._reread[key], grid=grid)

    def _table(
        self, name: str, source: IntegerTensor, reals: Sequence[Fraction], output: Quantization
    ) -> IntegerTensor:
        wanted = [output.zero_point + round(real / output.scale) for real in reals]
        table = np.array([min(max(each, output.minimum), output.maximum) for each in wanted], np.int16)
        return self._add(LookupTable, name, (source,), source.shape, output, source.order, table=table, output=output)

    # --- windows ------------------------------------------------------------------------------------------------------

    def max_pool(
        self, name: str, source: IntegerTensor, kernel: tuple[int, ...], strides: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> IntegerTensor:  # fmt: skip
        """On the grid of its source."""
        source = self._image(source)
        shape = (*_windows(source, kernel, strides, padding), source.shape[2])
        return self._add(MaxPool, name, (source,), shape, source.grid, kernel=kernel, strides=strides, padding=padding)

    def average_pool(
        self, name: str, source: IntegerTensor, kernel: tuple[int, ...], strides: tuple[int, ...],
        padding: tuple[int, ...], count_include_pad: bool, output: Quantization,
    ) -> IntegerTensor:  # fmt: skip
        source = self._image(source)
        height, width = _windows(source, kernel, strides, padding)
        if kernel == source.shape[:2] and not any(padding):
            return self.global_average_pool(name, source, output, keeps_extents=True)
        if same_grid(source.grid, output):
            pool = self._add(
                AveragePool, name, (source,), (height, width, source.shape[2]), source.grid, kernel=kernel,
                strides=strides, padding=padding, count_include_pad=count_include_pad,
            )  # fmt: skip
            return self.requantized(f"{name}_clamp", pool, output)
        expect(count_include_pad or not any(padding), "means onto another grid, of windows that count no padding",
               "input and output on one grid, or no padding")  # fmt: skip
        area, channels = prod(kernel), source.shape[2]
        expect(area * channels <= MAX_ELEMENTS, f"windows of {kernel}", f"{MAX_ELEMENTS} elements at most")
        ones = Weights(np.ones((channels, *kernel, 1), np.int8), (Fraction(1, area),))
        return self.conv2d(name, source, ones, np.zeros(channels, np.int32), output, strides=strides, padding=padding,
                           groups=channels)  # fmt: skip

    def global_average_pool(
        self, name: str, source: IntegerTensor, output: Quantization, keeps_extents: bool
    ) -> IntegerTensor:
        source = self._image(source)
        height, width, channels = source.shape
        ratio = source.grid.scale / (height * width * output.scale)
        pool = self._add(GlobalAveragePool, name, (source,), (channels,), output, output=output,
                         requantization=_requantization([ratio], self._rounding))  # fmt: skip
        return replace(pool, shape=(1, 1, channels)) if keeps_extents else pool

    def pad(
        self, name: str, source: IntegerTensor, padding: tuple[int, ...], value: int | None = None
    ) -> IntegerTensor:
        """With zeros, or with an integer whatever it stands for: then the source is read as if that were zero."""
        source, grid = self._image(source), source.grid
        if not any(padding):
            return source
        good = all(0 <= each <= MAX_EXTENT for each in padding)
        expect(good, f"padding {padding}", f"integers from 0 to {MAX_EXTENT}")
        if value is not None:
            source = self.reread(source, grid.scale, value)
        height, width, channels = source.shape
        top, bottom, left, right = padding
        shape = (height + top + bottom, width + left + right, channels)
        padded = self._add(Pad, name, (source,), shape, source.grid, padding=padding)
        return self.reread(padded, grid.scale, grid.zero_point)

    # --- shapes -------------------------------------------------------------------------------------------------------

    def concat(self, name: str, sources: Sequence[IntegerTensor], output: Quantization) -> IntegerTensor:
        """Joined along the channels, each requantized first where it stands on another grid."""
        alike = all(each.shape[:-1] == sources[0].shape[:-1] for each in sources)
        shapes = ", ".join(str(each.shape) for each in sources[:8])
        expect(alike, f"shapes {shapes} joined along the channels", "one height and width")
        whole = [self._of_layers_shape(each) for each in sources]
        moved = [self.requantized(f"{name}_input{index}", each, output) for index, each in enumerate(whole)]
        if len(moved) == 1:
            return moved[0]
        order = None
        if any(each.order is not None for each in moved):
            begins = np.cumsum([0] + [each.shape[-1] for each in moved])
            order = np.concatenate([begin + _whole_order(each) for begin, each in zip(begins, moved)])
        shape = (*moved[0].shape[:-1], sum(each.shape[-1] for each in moved))
        return self._add(Concat, name, moved, shape, output, order)

    def flatten(self, name: str, source: IntegerTensor, channels_first: bool) -> IntegerTensor:
        """`(H, W, C)` to `(H * W * C,)`; `channels_first` tells that the source put them into the order `(C, H, W)`."""
        if len(source.shape) == 1 or len(self._shapes[source.layer]) == 1:
            return replace(source, shape=(prod(source.shape),))
        height, width, channels = source.shape
        order = None
        if channels_first and height * width > 1:
            order = np.arange(prod(source.shape)).reshape(channels, height, width).transpose(1, 2, 0).ravel()
        return self._add(Flatten, name, (source,), (prod(source.shape),), source.grid, order)

    def reshape(self, name: str, source: IntegerTensor, shape: tuple[int, ...]) -> IntegerTensor:
        """The same elements in the same order, to one or three extents."""
        good = len(shape) in (1, 3) and all(1 <= each <= MAX_EXTENT for each in shape)
        expect(good and prod(shape) == prod(source.shape), f"shape {source.shape} turned into {shape}",
               "(H, W, C) or (C,), and as many elements")  # fmt: skip
        if len(shape) == 1:
            return self.flatten(name, source, channels_first=False)
        if shape == source.shape:
            return source
        return self._add(Reshape, name, (source,), shape, source.grid, shape=shape)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def imported(
        self, output: IntegerTensor, tensors: Mapping[str, IntegerTensor], class_names: Sequence[str] = (),
        history: Sequence[str] = (),
    ) -> ImportedModel:  # fmt: skip
        """The model with these scores; layers that they do not depend on are left out.

        Args:
            tensors: by the name of an 8-bit tensor of the source.
            history: what the provenance says before it lists these.
        """
        if output.shape[:-1] == (1, 1):
            output = self.flatten(output.layer, output, channels_first=False)
        expect(output.order is None, "a flattened image as the scores", "a linear layer")
        read = {output.layer}
        for layer in reversed(self._layers.values()):
            if layer.name in read:
                read.update(layer.inputs)
        kept = {name: tensor for name, tensor in tensors.items() if tensor.layer in read}
        layers = tuple(layer for layer in self._layers.values() if layer.name in read)
        provenance = "; ".join([*filter(None, history), self._listed(kept, read)])
        return ImportedModel(IntegerModel(layers, tuple(class_names), provenance), kept)

    def _listed(self, tensors: Mapping[str, IntegerTensor], kept: set[str]) -> str:
        """Each layer, the operation that it is made of, and the tensors of the source that it gives."""
        given: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            given.setdefault(tensor.layer, []).append(printable(repr(name)))
        lines = [
            f"{layer} of {printable(repr(self._origins[layer]))}: {', '.join(given.get(layer, ['none']))}"
            for layer in self._layers if layer in kept
        ]  # fmt: skip
        whole = "layers, what they are made of, and the 8-bit tensors that they give: " + ", ".join(lines)
        return whole if len(whole.encode()) <= LISTED_BYTES else f"{len(lines)} layers, too many to list their tensors"

    def _image(self, source: IntegerTensor) -> IntegerTensor:
        """As `(H, W, C)`, also where it is a mean over the whole image."""
        expect(len(source.shape) == 3, f"a tensor of shape {source.shape}", "an image")
        if len(self._shapes[source.layer]) == 3:
            return source
        return self._add(Reshape, f"{source.layer}_image", (source,), source.shape, source.grid, shape=source.shape)

    def _of_layers_shape(self, source: IntegerTensor) -> IntegerTensor:
        return source if len(source.shape) == len(self._shapes[source.layer]) else self._image(source)

    def _add(
        self, kind: type[Layer], name: str, sources: Sequence[IntegerTensor], shape_there: tuple[int, ...],
        grid: Quantization, order: np.ndarray | None = None, **values: Any,
    ) -> IntegerTensor:  # fmt: skip
        good = all(1 <= extent <= MAX_EXTENT for extent in shape_there) and prod(shape_there) <= MAX_ELEMENTS
        expect(good, f"a tensor of shape {shape_there}", f"extents to {MAX_EXTENT} and {MAX_ELEMENTS} elements at most")
        layer_name = free_name(name, self._layers)
        fields: dict[str, Any] = {"name": layer_name, "inputs": tuple(each.layer for each in sources), **values}
        self._layers[layer_name] = kind(**fields)
        alike = kind is not Reshape and bool(sources) and sources[0].shape == shape_there
        self._shapes[layer_name] = self._shapes[sources[0].layer] if alike else shape_there
        self._origins[layer_name] = name
        whole = Quantization.full_range(grid.dtype, grid.scale, grid.zero_point)
        return IntegerTensor(layer_name, shape_there, whole, order)


def _requantization(ratios: Sequence[Fraction], rounding: str) -> Requantization:
    pairs = [
        _in_range(quantize_multiplier, ratio) if ratio >= SMALLEST_RATIO else (MULTIPLIER_MIN, SHIFT_MAX)
        for ratio in ratios
    ]  # fmt: skip
    return Requantization.of(*pairs, rounding=rounding)


def _in_range(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ArithmeticRangeError as problem:
        raise ModelFormatError(f"found a {problem}") from None


def _windows(
    source: IntegerTensor, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:  # fmt: skip
    """Height and width of what a sliding window gives."""
    sizes = (source.shape[0] + padding[0] + padding[1], source.shape[1] + padding[2] + padding[3])
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    good = min(*kernel, *strides, *dilation) >= 1 and all(0 <= each <= MAX_EXTENT for each in padding)
    good = good and extents[0] <= sizes[0] and extents[1] <= sizes[1]
    expect(good, f"windows of {tuple(kernel)} every {tuple(strides)}, padding {tuple(padding)}, dilation "
           f"{tuple(dilation)}, over {source.shape[:2]}", "windows inside the padded image")  # fmt: skip
    return (sizes[0] - extents[0]) // strides[0] + 1, (sizes[1] - extents[1]) // strides[1] + 1


def _reals(grid: Quantization) -> list[Fraction]:
    """What the 256 integers of a grid stand for."""
    lowest, highest = INTEGER_RANGES[grid.dtype]
    return [grid.scale * (q - grid.zero_point) for q in range(lowest, highest + 1)]


def _whole_order(tensor: IntegerTensor) -> np.ndarray:
    return np.arange(tensor.shape[-1]) if tensor.order is None else tensor.order
