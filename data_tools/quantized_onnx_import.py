"""From a quantized ONNX file to an integer model file: QDQ and QOperator, exactly.

QDQ files hold `DequantizeLinear -> operation -> QuantizeLinear`, with a `Relu` or `Clip` between at most; QOperator
files hold `QLinearConv` and its like. Both may be mixed. The image is `(N, C, H, W)`, N 1 or symbolic, and is quantized
first of all, or is uint8 or int8 itself. Activations have one scale a tensor, weights one a tensor or an output
channel; weights less their zero point must fit into int8. Softmax, LogSoftmax, ArgMax and DequantizeLinear at the end
are left out: they change no largest score.

A layer is named after the operation that it is made of, and the provenance lists which 8-bit tensor of the file each
layer gives. A float bias is quantized as ONNX Runtime does it: `rint(bias / (input scale * weight scale))` in float32.
What would need rounding that the file does not ask for is refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import inf, isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence, Union

import numpy as np

from intsmooth_ref.data_tools.channels_first import expect, located, padding_rounded_up
from intsmooth_ref.data_tools.converter import printable
from intsmooth_ref.data_tools.import_program import import_parser, run_import
from intsmooth_ref.data_tools.integer_builder import (
    ImportedModel,
    IntegerModelBuilder,
    IntegerTensor,
    Normalization,
    RealFunction,
    Weights,
    clipped,
    exact,
    expect_bias_scales,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    narrow_weights,
    smooth,
)
from intsmooth_ref.data_tools.onnx_file import (
    FLOAT_TYPES,
    ConstantArithmetic,
    applied,
    axes_of_image,
    check,
    constant,
    constant_of,
    expect_flattening,
    expect_over_classes,
    image_of,
    inputs_of,
    name_of,
    number,
    opened,
    operation,
    pad_amounts,
    where,
    window_padding,
)
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.layers import Quantization

if TYPE_CHECKING:
    import onnx

#: The first operator set with QuantizeLinear.
FIRST_OPSET = 10

#: Float parameters, shapes, biases and accumulators, 8-bit weights. No int16, no 4 bits.
TYPES = {**FLOAT_TYPES, 2: "UINT8", 3: "INT8"}
KIND = "a network quantized to 8 bits"
IMAGE_TYPES = {1: "float32", 2: "uint8", 3: "int8"}

AT_THE_END = ("Softmax", "LogSoftmax", "ArgMax", "com.microsoft.QLinearSoftmax")

#: The domain of ONNX Runtime's own operations, and the types of their attributes where they are not INT, 2: FLOAT,
#: STRING, INTS.
MICROSOFT = "com.microsoft"
CONTRIBUTED_ATTRIBUTES = {"alpha": 1, "auto_pad": 3, "dilations": 7, "kernel_shape": 7, "pads": 7, "strides": 7}

INT32 = np.iinfo(np.int32)


# --- what a node may read and give ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Image:
    """The input: float32, or integers of a dtype."""

    shape: tuple[int, int, int]
    dtype: str


@dataclass(frozen=True, eq=False)
class Stored:
    """An 8-bit tensor. Which reals its integers stand for, each node that reads it says anew."""

    tensor: IntegerTensor


@dataclass(frozen=True, eq=False)
class Reals:
    """An 8-bit tensor, dequantized."""

    tensor: IntegerTensor


@dataclass(frozen=True, eq=False)
class Parameters:
    """A constant, dequantized.

    Attributes:
        integers: less their zero points, int64.
        axis: along which there are several scales.
    """

    integers: np.ndarray
    scales: tuple[Fraction, ...]
    axis: int


@dataclass(frozen=True, eq=False)
class Pending:
    """The float result of an operation that is yet to be quantized.

    Attributes:
        onto: its integers on a grid.
        bare: its integers before any requantization, if there are such.
    """

    onto: Callable[[Quantization], IntegerTensor]
    bare: Callable[[], IntegerTensor] | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """What an operation that changes no largest score gives: its input."""

    tensor: IntegerTensor


Value = Union[Image, Stored, Reals, Parameters, Pending, Scores, np.ndarray]
ON_GRID = (Stored, Reals)


@dataclass(eq=False)
class Walk:
    """Along the graph."""

    file: onnx.ModelProto
    arithmetic: ConstantArithmetic
    builder: IntegerModelBuilder
    normalization: Normalization
    image: Image
    input: IntegerTensor | None = None
    tensors: dict[str, IntegerTensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def quantized_image(self, name: str, grid: Quantization) -> IntegerTensor:
        """The input's integers on this grid; there is one input only."""
        if self.input is None:
            self.input = self.builder.image(name, self.image.shape, grid, self.normalization)
        if self.image.dtype == "float32":
            same = (self.input.grid.dtype, self.input.grid.scale, self.input.grid.zero_point)
            expect(same == (grid.dtype, grid.scale, grid.zero_point), "an image quantized in two ways", "one")
        return self.builder.reread(self.input, grid.scale, grid.zero_point)


def integer_model(
    path: str | Path, normalization: Normalization = Normalization(), class_names: Sequence[str] = ()
) -> ImportedModel:
    """The integer model that a quantized ONNX file amounts to.

    Args:
        normalization: of the images that the file reads.

    Raises:
        ParameterError: if the package `onnx` is missing.
        DatasetError: if there is no such file, or it is too large.
        ModelFormatError: what is wrong with it or not supported, and where.
    """
    path = Path(path)
    file, sha256 = opened(path)
    with located(str(path)):
        graph = file.graph
        check(file, OPERATIONS, AT_THE_END, FIRST_OPSET)
        values: dict[str, Value] = {each.name: constant(each, TYPES, KIND) for each in graph.initializer}
        _check_contributed(graph)
        name, shape, dtype = image_of(graph, values, IMAGE_TYPES)
        values[name] = image = Image(shape, dtype)
        expect(len(graph.output) == 1, f"{len(graph.output)} outputs", "one, the scores")
        walk = Walk(file, ConstantArithmetic(file), IntegerModelBuilder(), normalization, image)
        for node in graph.node:
            with located(where(node)):
                values[node.output[0]] = result = _result(walk, node, values)
                if isinstance(result, Stored):
                    walk.tensors[node.output[0]] = result.tensor
        with located(f"output {printable(graph.output[0].name[:100])!r}"):
            scores = _scores(values[graph.output[0].name])
        if walk.input is not None and dtype != "float32":
            walk.tensors[name] = walk.input
        history = [f"imported from {printable(path.name)}, SHA-256 {sha256}"]
        history += [f"{each} at the end left out" for each in walk.dropped]
        return walk.builder.imported(scores, walk.tensors, class_names, history)


def _check_contributed(graph: onnx.GraphProto) -> None:
    """Types of attributes of operations that ONNX does not know, and so does not check."""
    for node in graph.node:
        if node.domain == MICROSOFT:
            with located(where(node)):
                for each in node.attribute:
                    wanted = CONTRIBUTED_ATTRIBUTES.get(each.name, 2)
                    expect(each.type == wanted, f"attribute {printable(each.name[:100])!r} of type {each.type}",
                           f"{wanted}")  # fmt: skip


def _result(walk: Walk, node: onnx.NodeProto, values: Mapping[str, Value]) -> Value:
    """What a node gives."""
    inputs, name = inputs_of(node, values), operation(node)
    if name == "Constant":
        return constant_of(node, TYPES, KIND)
    if name == "Shape":
        inputs = [_like(each) for each in inputs]
    if name not in CHANGING_NO_ORDER and all(each is None or isinstance(each, np.ndarray) for each in inputs):
        return walk.arithmetic.result(node, [each for each in inputs if each is not None])
    expect(bool(inputs) and inputs[0] is not None, "no first input", "one")
    if name in AT_THE_END:
        return _at_the_end(walk, node, inputs[0])
    if isinstance(inputs[0], Scores):
        return inputs[0] if name in CHANGING_NO_ORDER else _refused(inputs[0])
    operator = OPERATIONS.get(name)
    if operator is None:
        raise ModelFormatError("found a tensor that depends on the image; expected constants only")
    constants = all(each is None or isinstance(each, np.ndarray) for each in inputs[1:])
    expect(constants or name not in WITH_CONSTANTS, "parameters that depend on the image", "constants")
    result: Value = applied(operator, node, walk, name_of(node), *inputs)
    return result


def _like(value: Value) -> Value:
    """For `Shape`: an array of the shape that the file has, of a tensor whose shape is known."""
    shape = value.shape if isinstance(value, Image) else value.tensor.shape if isinstance(value, ON_GRID) else ()
    return np.empty((1, shape[-1], *shape[:-1])) if shape else value


def _at_the_end(walk: Walk, node: onnx.NodeProto, value: Value) -> Scores:
    scores = _scores(value)
    expect_over_classes(node, walk.file, len(scores.shape) + 1)
    walk.dropped.append(node.op_type)
    return Scores(scores)


def _scores(value: Value) -> IntegerTensor:
    """The tensor that decides, of what the graph gives or an operation at its end reads."""
    if isinstance(value, Pending):
        expect(value.bare is not None, "a result that is not quantized", "8 bits, or a linear layer at the end")
        assert value.bare is not None
        return value.bare()
    found = "scores that do not depend on the image, or are the image"
    expect(isinstance(value, (Stored, Reals, Scores)), found, "a classifier of images")
    assert isinstance(value, (Stored, Reals, Scores))
    return value.tensor


def _refused(value: Any) -> Any:
    """Say what a value is, where it cannot be taken."""
    kinds = {
        Image: "the image as it is", Stored: "an 8-bit tensor, not dequantized", Reals: "a dequantized tensor",
        Parameters: "a dequantized constant", Pending: "a result that is not quantized", np.ndarray: "a constant",
        Scores: "what follows a Softmax, LogSoftmax or ArgMax", type(None): "nothing",
    }  # fmt: skip
    raise ModelFormatError(f"found {kinds[type(value)]} as an input; expected a tensor of 8 bits and its scale")


def _reals(value: Value | None) -> IntegerTensor:
    if not isinstance(value, Reals):
        _refused(value)
    assert isinstance(value, Reals)
    return value.tensor


def _on_grid(value: Value | None) -> IntegerTensor:
    if not isinstance(value, ON_GRID):
        _refused(value)
    assert isinstance(value, ON_GRID)
    return value.tensor


# --- scales and constants ---------------------------------------------------------------------------------------------


def _scalar_scale(scale: Any) -> Fraction:
    good = isinstance(scale, np.ndarray) and scale.dtype == np.float32 and scale.size == 1 and scale.ndim <= 1
    found = f"scales of shape {scale.shape}, {scale.dtype}" if isinstance(scale, np.ndarray) else "scales computed"
    expect(good, found, "one float32 for a tensor that depends on the image")
    return exact(scale.reshape(-1)[0])


def _grid(scale: Any, zero_point: Any, dtype: str = "uint8") -> Quantization:
    """From a node's inputs; without a zero point it is 0, of `dtype`."""
    zero = np.zeros((), dtype) if zero_point is None else zero_point
    good = isinstance(zero, np.ndarray) and zero.dtype in (np.uint8, np.int8) and zero.size == 1
    expect(good, f"zero point {_of_type(zero)}", "one uint8 or int8")
    return Quantization.full_range(zero.dtype.name, _scalar_scale(scale), int(zero.reshape(-1)[0]))


def _of_type(array: Any) -> str:
    return f"of shape {array.shape}, {array.dtype}" if isinstance(array, np.ndarray) else "computed"


def _read(walk: Walk, value: Value | None, scale: Any, zero_point: Any) -> IntegerTensor:
    """An 8-bit tensor as a node reads it."""
    if isinstance(value, Image):
        expect(value.dtype != "float32", "the image as it is", "a QuantizeLinear first of all")
        grid = _grid(scale, zero_point, value.dtype)
        expect(grid.dtype == value.dtype, f"a zero point of {grid.dtype}", value.dtype)
        return walk.quantized_image("image", grid)
    if not isinstance(value, Stored):
        _refused(value)
    assert isinstance(value, Stored)
    grid = _grid(scale, zero_point, value.tensor.grid.dtype)
    expect(grid.dtype == value.tensor.grid.dtype, f"a zero point of {grid.dtype}", value.tensor.grid.dtype)
    return walk.builder.reread(value.tensor, grid.scale, grid.zero_point)


def _parameters(integers: Any, scale: Any, zero_point: Any, axis: int) -> Parameters:
    """A constant less its zero points."""
    if not isinstance(integers, np.ndarray):
        _refused(integers)
    good = integers.dtype in (np.uint8, np.int8, np.int32) and isinstance(scale, np.ndarray)
    expect(good and scale.dtype == np.float32, f"constants {_of_type(integers)}, scales {_of_type(scale)}",
           "uint8, int8 or int32 with scales in float32")  # fmt: skip
    zeros = np.zeros(1, integers.dtype) if zero_point is None else zero_point
    good = isinstance(zeros, np.ndarray) and zeros.dtype == integers.dtype and zeros.size in (1, scale.size)
    expect(good and scale.size >= 1, f"zero points {_of_type(zeros)}", f"{integers.dtype}, one or {scale.size}")
    along = _along(integers.shape, scale, axis)
    less = integers.astype(np.int64) - zeros.astype(np.int64).reshape(along if zeros.size > 1 else ())
    return Parameters(less, tuple(map(exact, scale.reshape(-1).tolist())), axis % max(integers.ndim, 1))


def _along(shape: tuple[int, ...], scale: np.ndarray, axis: int) -> list[int]:
    """The shape in which scales are broadcast: there is one, or one for each slice along an axis."""
    along = [1] * len(shape)
    if scale.size != 1:
        good = -len(shape) <= axis < len(shape) and shape[axis] == scale.size == max(scale.shape, default=0)
        expect(good, f"{scale.size} scales along axis {axis} of {shape}", "one for each of its slices")
        along[axis] = scale.size
    return along


def _weights(value: Value | None, output_axis: int, order: Sequence[int]) -> Weights:
    """int8 weights, their axes put into `order`, of which the first is `output_axis`."""
    if not isinstance(value, Parameters):
        _refused(value)
    assert isinstance(value, Parameters)
    integers = value.integers
    expect(integers.ndim == len(order), f"weights of shape {integers.shape}", f"rank {len(order)}")
    expect(len(value.scales) == 1 or value.axis == output_axis, f"scales along axis {value.axis} of the weights",
           f"along axis {output_axis}, the output channels")  # fmt: skip
    return Weights(narrow_weights(integers.transpose(order)), value.scales)


def _bias(value: Value | None, source: IntegerTensor, weights: Weights) -> np.ndarray:
    """Integers in steps of source scale times weights' scale; of floats, what ONNX Runtime makes of them."""
    channels = len(weights.integers)
    if value is None:
        return np.zeros(channels, np.int64)
    if isinstance(value, Parameters):
        expect_bias_scales(value.scales, source.grid.scale, weights.scales)
        return _one_a_channel(value.integers, channels)
    if not isinstance(value, np.ndarray):
        _refused(value)
    assert isinstance(value, np.ndarray)
    if value.dtype == np.int32:
        return _one_a_channel(value, channels)
    expect(value.dtype == np.float32, f"a bias {_of_type(value)}", "int32 or float32")
    source_scale = np.float32(source.grid.scale)
    with np.errstate(all="ignore"):
        units32 = source_scale * np.array([np.float32(scale) for scale in weights.scales])
        integers = np.rint(_one_a_channel(value, channels) / units32)
    expect(bool((abs(integers) <= INT32.max).all()), "a bias beyond int32", "one inside")
    return integers.astype(np.int64)


def _one_a_channel(array: np.ndarray, channels: int) -> np.ndarray:
    good = array.size == channels and max(array.shape, default=1) == channels or array.size == 1
    expect(good, f"bias of shape {array.shape}", f"({channels},)")
    return np.resize(array.reshape(-1), channels)


# --- QuantizeLinear, DequantizeLinear ---------------------------------------------------------------------------------


def _quantize_linear(
    walk: Walk, name: str, x: Value, scale: Any, zero_point: Any = None, *, axis: int = 1, saturate: int = 1,
    block_size: int = 0, output_dtype: int = 0, precision: int = 0,
) -> Value:  # fmt: skip
    expect(output_dtype in (0, 2, 3) and not block_size, f"output_dtype {output_dtype}, block_size {block_size}",
           "uint8 or int8, and no blocks")  # fmt: skip
    if zero_point is None:
        zero_point = np.zeros(np.shape(scale), np.int8 if output_dtype == 3 else np.uint8)
    if isinstance(x, np.ndarray):
        return _quantized_constant(x, scale, zero_point, axis)
    grid = _grid(scale, zero_point)
    if isinstance(x, Image):
        expect(x.dtype == "float32", "an image of integers that is quantized", "a float32 image")
        return Stored(walk.quantized_image(name, grid))
    if isinstance(x, Pending):
        return Stored(x.onto(grid))
    return Stored(walk.builder.requantized(name, _reals(x), grid))


def _quantized_constant(x: np.ndarray, scale: Any, zero_point: Any, axis: int) -> np.ndarray:
    """In float32, as ONNX specifies it."""
    good = x.dtype == np.float32 and isinstance(scale, np.ndarray) and isinstance(zero_point, np.ndarray)
    expect(good and zero_point.dtype in (np.uint8, np.int8), f"a constant {_of_type(x)}, zero point "
           f"{_of_type(zero_point)}", "float32 to uint8 or int8")  # fmt: skip
    along = _along(x.shape, scale, axis)
    limits = np.iinfo(zero_point.dtype)
    zeros = zero_point.astype(np.float64).reshape(along if zero_point.size == scale.size else ())
    with np.errstate(all="ignore"):
        steps = np.rint(x / scale.reshape(along)) + zeros
    expect(bool(np.isfinite(steps).all()), "constants that are not finite", "finite ones")
    return np.asarray(steps.clip(limits.min, limits.max)).astype(zero_point.dtype)


def _dequantize_linear(
    walk: Walk, name: str, x: Value, scale: Any, zero_point: Any = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Value:  # fmt: skip
    expect(output_dtype in (0, 1) and not block_size, f"output_dtype {output_dtype}, block_size {block_size}",
           "float32, and no blocks")  # fmt: skip
    if isinstance(x, np.ndarray):
        return _parameters(x, scale, zero_point, axis)
    return Reals(_read(walk, x, scale, zero_point))


# --- operations between them, under ONNX's own names of attributes ----------------------------------------------------


def _products(onto: Callable[[Quantization | None], IntegerTensor]) -> Pending:
    return Pending(onto, lambda: onto(None))


def _conv(
    walk: Walk, name: str, x: Value, w: Value, b: Value | None = None, *, auto_pad: bytes = b"NOTSET",
    dilations: Sequence[int] = (1, 1), group: int = 1, kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] = (0, 0, 0, 0), strides: Sequence[int] = (1, 1),
) -> Pending:  # fmt: skip
    source, weights = _reals(x), _weights(w, 0, (0, 2, 3, 1))
    kernel = weights.integers.shape[1:3]
    expect(kernel_shape in (None, list(kernel)) and len(source.shape) == 3, f"kernel_shape {kernel_shape} for weights "
           f"of {kernel} and an input of {source.shape}", "a 2-D convolution")  # fmt: skip
    padding = window_padding(source.shape[:2], kernel, auto_pad, pads, strides, dilations)
    bias = _bias(b, source, weights)
    return _products(partial(
        walk.builder.conv2d, name, source, weights, bias, strides=tuple(strides), padding=padding,
        dilation=tuple(dilations), groups=group,
    ))  # fmt: skip


def _gemm(
    walk: Walk, name: str, x: Value, w: Value, b: Value | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Pending:  # fmt: skip
    found = f"alpha {alpha:.7g}, beta {beta:.7g}, transA {transA}"
    expect(alpha == 1 and beta == 1 and not transA, found, "1, 1 and 0")
    source, weights = _reals(x), _weights(w, 0, (0, 1)) if transB else _weights(w, 1, (1, 0))
    return _products(partial(walk.builder.linear, name, source, weights, _bias(b, source, weights)))


def _matmul(walk: Walk, name: str, x: Value, w: Value) -> Pending:
    return _gemm(walk, name, x, w)


def _add(walk: Walk, name: str, left: Value, right: Value) -> Pending:
    return Pending(partial(walk.builder.add, name, _reals(left), _reals(right)))


def _mul(walk: Walk, name: str, left: Value, right: Value) -> Pending:
    return Pending(partial(walk.builder.multiply, name, _reals(left), _reals(right)))


def _concat(walk: Walk, name: str, *values: Value, axis: int) -> Value:
    """8-bit tensors are joined as they are; dequantized ones are put on one grid first."""
    tensors = [_on_grid(each) for each in values]
    expect(axis in (1, -len(tensors[0].shape)), f"axis {axis}", "1, the channels")
    if not all(isinstance(each, Stored) for each in values):
        return Pending(partial(walk.builder.concat, name, [_reals(each) for each in values]))
    grid = tensors[0].grid
    expect(all(each.grid.dtype == grid.dtype for each in tensors), "8-bit tensors of two types", "one type")
    alike = [walk.builder.reread(each, grid.scale, grid.zero_point) for each in tensors]
    return Stored(walk.builder.concat(name, alike, grid))


def _relu(walk: Walk, name: str, x: Value) -> Value:
    if isinstance(x, Stored):
        return Stored(walk.builder.clamp_integers(name, x.tensor, 0, x.tensor.grid.maximum))
    return _clipped(walk, name, x, Fraction(0), None)


def _clip(
    walk: Walk, name: str, x: Value, lowest: Any = None, highest: Any = None, *, min: float = -inf, max: float = inf
) -> Value:
    """The limits were attributes before operator set 11. Of an 8-bit tensor they are integers."""
    low, high = (number(default if end is None else end) for end, default in ((lowest, min), (highest, max)))
    expect(not isnan(low) and not isnan(high), "a clip to no number", "numbers")
    if isinstance(x, Stored):
        limits = np.iinfo(x.tensor.grid.dtype)
        within = [int(np.clip(end, limits.min, limits.max)) for end in (low, high)]
        return Stored(walk.builder.clamp_integers(name, x.tensor, *within))
    return _clipped(walk, name, x, *(Fraction(end) if isfinite(end) else None for end in (low, high)))


def _clipped(walk: Walk, name: str, x: Value, low: Fraction | None, high: Fraction | None) -> Pending:
    """Fused into the operation before it; of a tensor that has its integers already, a layer of its own."""
    if isinstance(x, Pending):
        onto = x.onto
        return Pending(lambda grid: onto(clipped(grid, low, high)))
    tensor = _reals(x)
    return Pending(lambda grid: walk.builder.clamp(name, tensor, low, high, grid))


def _function(function: RealFunction) -> Callable[..., Pending]:
    def operator(walk: Walk, name: str, x: Value) -> Pending:
        return _of_function(walk, name, x, function)

    return operator


def _of_function(walk: Walk, name: str, x: Value, function: RealFunction) -> Pending:
    return Pending(partial(walk.builder.function, name, _reals(x), function))


def _hard_sigmoid(walk: Walk, name: str, x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Pending:
    return _of_function(walk, name, x, hard_sigmoid(_float32(alpha), _float32(beta)))


def _leaky_relu(walk: Walk, name: str, x: Value, *, alpha: float = 0.01) -> Pending:
    return _of_function(walk, name, x, leaky_relu(_float32(alpha)))


def _float32(attribute: float) -> Fraction:
    """Attributes are float32, and so is what stands for those that are left out."""
    expect(isfinite(attribute), f"attribute {attribute}", "a finite one")
    return Fraction(float(np.float32(attribute)))


def _elu(walk: Walk, name: str, x: Value, *, alpha: float = 1.0) -> Pending:
    expect(alpha == 1, f"alpha {alpha:.7g}", "1")
    return _of_function(walk, name, x, smooth("elu"))


def _gelu(walk: Walk, name: str, x: Value, *, approximate: bytes = b"none") -> Pending:
    expect(approximate == b"none", f"the approximation {approximate[:20]!r}", "none")
    return _of_function(walk, name, x, smooth("gelu"))


# --- windows ----------------------------------------------------------------------------------------------------------


def _max_pool(
    walk: Walk, name: str, x: Value, *, kernel_shape: Sequence[int], auto_pad: bytes = b"NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0), storage_order: int = 0,
    strides: Sequence[int] = (1, 1),
) -> Value:  # fmt: skip
    """The largest of the integers is the largest of the reals."""
    expect(list(dilations) == [1, 1], f"dilations {list(dilations)[:4]}", "[1, 1]")

    def pooled(tensor: IntegerTensor) -> IntegerTensor:
        padding = window_padding(tensor.shape[:2], kernel_shape, auto_pad, pads, strides, dilations)
        if ceil_mode:
            padding = padding_rounded_up(tensor.shape[:2], kernel_shape, strides, padding)
        return walk.builder.max_pool(name, tensor, tuple(kernel_shape), tuple(strides), padding)

    return _keeping_grid(x, pooled)


def _keeping_grid(x: Value, operator: Callable[[IntegerTensor], IntegerTensor]) -> Value:
    """What moves or chooses integers; before a tensor is quantized or after, that is one."""
    if isinstance(x, Pending):
        onto, bare = x.onto, x.bare
        return Pending(lambda grid: operator(onto(grid)), None if bare is None else lambda: operator(bare()))
    tensor = operator(_on_grid(x))
    return Stored(tensor) if isinstance(x, Stored) else Reals(tensor)


def _average_pool(
    walk: Walk, name: str, x: Value, *, kernel_shape: Sequence[int], auto_pad: bytes = b"NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Pending:  # fmt: skip
    expect(list(dilations) == [1, 1], f"dilations {list(dilations)[:4]}", "[1, 1]")
    tensor = _reals(x)
    padding = window_padding(tensor.shape[:2], kernel_shape, auto_pad, pads, strides, dilations)
    if ceil_mode:
        wider = padding_rounded_up(tensor.shape[:2], kernel_shape, strides, padding)
        counted = count_include_pad and wider != padding
        expect(not counted, "windows that reach over a padding that counts", "ceil_mode or count_include_pad false")
        padding = wider
    return Pending(partial(walk.builder.average_pool, name, tensor, tuple(kernel_shape), tuple(strides), padding,
                           bool(count_include_pad)))  # fmt: skip


def _global_average_pool(walk: Walk, name: str, x: Value) -> Pending:
    return _mean(walk, name, x, keeps_extents=True)


def _mean(walk: Walk, name: str, x: Value, keeps_extents: bool) -> Pending:
    return Pending(partial(walk.builder.global_average_pool, name, _reals(x), keeps_extents=keeps_extents))


def _reduce_mean(
    walk: Walk, name: str, x: Value, over: Any = None, *, axes: Sequence[int] | None = None, keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Pending:  # fmt: skip
    """The axes were an attribute before operator set 18."""
    given = axes_of_image(axes, over)
    expect(given == [2, 3], f"a mean over {given}", "one over height and width, [2, 3]")
    return _mean(walk, name, x, bool(keepdims))


def _pad(
    walk: Walk, name: str, x: Value, amounts: Any = None, constant_value: Any = None, axes: Any = None, *,
    mode: bytes = b"constant", pads: Sequence[int] = (), value: float = 0.0,
) -> Value:  # fmt: skip
    """With zeros; an 8-bit tensor with an integer, whatever it stands for."""
    filled = number(value if constant_value is None else constant_value)
    expect(mode == b"constant", f"mode {mode[:20]!r}", "constant")
    tensor = _on_grid(x)
    padding = pad_amounts(len(tensor.shape), amounts, axes, pads, tensor.shape)
    if isinstance(x, Stored):
        return Stored(walk.builder.pad(name, tensor, padding, int(filled)))
    expect(filled == 0, f"value {filled}", "zeros")
    return Reals(walk.builder.pad(name, tensor, padding))


# --- shapes -----------------------------------------------------------------------------------------------------------


def _flattened(walk: Walk, name: str, x: Value, checked: Callable[[tuple[int, ...]], None]) -> Value:
    """Every other shape than `(N, C * H * W)` is refused by `checked`, which takes the file's `(C, H, W)`."""

    def flat(tensor: IntegerTensor) -> IntegerTensor:
        checked((tensor.shape[-1], *tensor.shape[:-1]))
        return walk.builder.flatten(name, tensor, channels_first=True)

    return _keeping_grid(x, flat)


def _flatten(walk: Walk, name: str, x: Value, *, axis: int = 1) -> Value:
    return _flattened(walk, name, x, lambda shape: expect(axis in (1, -len(shape)), f"axis {axis}", "1"))


def _reshape(walk: Walk, name: str, x: Value, shape: Any, *, allowzero: int = 0) -> Value:
    expect(isinstance(shape, np.ndarray), "a shape that is no constant", "a constant")
    return _flattened(walk, name, x, lambda source: expect_flattening(shape, source, allowzero))


def _squeeze(walk: Walk, name: str, x: Value, over: Any = None, *, axes: Sequence[int] | None = None) -> Value:
    given = axes_of_image(axes, over)

    def checked(shape: tuple[int, ...]) -> None:
        good = shape[1:] == (1, 1) and given == [2, 3]
        expect(good, f"axes {given} of a tensor of shape {shape}", "a height and width of 1, [2, 3]")

    return _flattened(walk, name, x, checked)


def _identity(walk: Walk, name: str, x: Value) -> Value:
    return x


def _dropout(
    walk: Walk, name: str, x: Value, probability: Any = None, training: Any = None, *, ratio: float = 0.5,
    seed: int = 0,
) -> Value:  # fmt: skip
    expect(training is None or not np.any(training), "dropout that goes on after training", "training_mode false")
    return x


# --- operations on 8 bits, which say themselves how they read and give them -------------------------------------------


def _expect_int32(bias: Any) -> None:
    good = bias is None or isinstance(bias, np.ndarray) and bias.dtype == np.int32
    expect(good, f"a bias {_of_type(bias)}", "int32")


def _qlinear_conv(
    walk: Walk, name: str, x: Value, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any,
    y_zero: Any, b: Any = None, **attributes: Any,
) -> Value:  # fmt: skip
    source, weights = Reals(_read(walk, x, x_scale, x_zero)), _parameters(w, w_scale, w_zero, 0)
    expect(attributes.pop("channels_last", 0) == 0, "channels last", "channels first")
    _expect_int32(b)
    return Stored(_conv(walk, name, source, weights, b, **attributes).onto(_grid(y_scale, y_zero)))


def _qlinear_matmul(
    walk: Walk, name: str, x: Value, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any,
    y_zero: Any,
) -> Value:  # fmt: skip
    source, weights = Reals(_read(walk, x, x_scale, x_zero)), _parameters(w, w_scale, w_zero, 1)
    return Stored(_gemm(walk, name, source, weights).onto(_grid(y_scale, y_zero)))


def _qgemm(
    walk: Walk, name: str, x: Value, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, b: Any = None,
    y_scale: Any = None, y_zero: Any = None, *, alpha: float = 1.0, transA: int = 0, transB: int = 0,
) -> Value:  # fmt: skip
    """Without a scale of the output its result is float."""
    source, weights = Reals(_read(walk, x, x_scale, x_zero)), _parameters(w, w_scale, w_zero, 0 if transB else 1)
    weights = replace(weights, scales=tuple(scale * exact(alpha) for scale in weights.scales))
    _expect_int32(b)
    product = _gemm(walk, name, source, weights, b, transA=transA, transB=transB)
    return product if y_scale is None else Stored(product.onto(_grid(y_scale, y_zero)))


def _qlinear_of_two(operator: Callable[..., Pending]) -> Callable[..., Value]:
    def both(
        walk: Walk, name: str, a: Value, a_scale: Any, a_zero: Any, b: Value, b_scale: Any, b_zero: Any, y_scale: Any,
        y_zero: Any = None,
    ) -> Value:  # fmt: skip
        left, right = _read(walk, a, a_scale, a_zero), _read(walk, b, b_scale, b_zero)
        return Stored(operator(walk, name, Reals(left), Reals(right)).onto(_grid(y_scale, y_zero)))

    return both


def _qlinear_of_one(operator: Callable[..., Pending]) -> Callable[..., Value]:
    def one(
        walk: Walk, name: str, x: Value, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any = None,
        **attributes: Any,
    ) -> Value:  # fmt: skip
        expect(attributes.pop("channels_last", 0) == 0, "channels last", "channels first")
        source = Reals(_read(walk, x, x_scale, x_zero))
        return Stored(operator(walk, name, source, **attributes).onto(_grid(y_scale, y_zero)))

    return one


def _qlinear_concat(walk: Walk, name: str, y_scale: Any, y_zero: Any, *values: Any, axis: int) -> Value:
    expect(len(values) % 3 == 0 and len(values) >= 3, f"{len(values)} inputs", "three a tensor")
    sources = [Reals(_read(walk, *values[index : index + 3])) for index in range(0, len(values), 3)]
    joined = _concat(walk, name, *sources, axis=axis)
    assert isinstance(joined, Pending)  # none of them is `Stored`
    return Stored(joined.onto(_grid(y_scale, y_zero)))


def _of_microsoft(operators: Mapping[str, Callable[..., Value]]) -> dict[str, Callable[..., Value]]:
    return {f"{MICROSOFT}.{name}": operator for name, operator in operators.items()}


OPERATIONS: Mapping[str, Callable[..., Value]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize_linear,
    "Dropout": _dropout,
    "Elu": _elu,
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _function(hard_swish),
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": _function(smooth("sigmoid")),
    "Squeeze": _squeeze,
    "Tanh": _function(smooth("tanh")),
    **_of_microsoft({
        "DequantizeLinear": _dequantize_linear,
        "QGemm": _qgemm,
        "QLinearAdd": _qlinear_of_two(_add),
        "QLinearAveragePool": _qlinear_of_one(_average_pool),
        "QLinearConcat": _qlinear_concat,
        "QLinearConv": _qlinear_conv,
        "QLinearGlobalAveragePool": _qlinear_of_one(_global_average_pool),
        "QLinearLeakyRelu": _qlinear_of_one(_leaky_relu),
        "QLinearMul": _qlinear_of_two(_mul),
        "QLinearSigmoid": _qlinear_of_one(_function(smooth("sigmoid"))),
        "QuantizeLinear": _quantize_linear,
    }),
}  # fmt: skip

#: Those that read one tensor, and else constants as they are.
WITH_CONSTANTS = ("Clip", "Dropout", "Pad", "ReduceMean", "Reshape", "Squeeze")

#: What may follow those at the end, and what may read constants alone and yet is no arithmetic of shapes.
CHANGING_NO_ORDER = ("DequantizeLinear", "Identity", "QuantizeLinear", *_of_microsoft({
    "DequantizeLinear": _dequantize_linear, "QuantizeLinear": _quantize_linear}))  # fmt: skip


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = import_parser("quantized_onnx_import", __doc__, "MODEL.onnx", "the quantized ONNX file to read")
    return run_import(
        parser.parse_args(arguments),
        lambda options, normalization, names: integer_model(options.file, normalization, names),
    )


if __name__ == "__main__":
    sys.exit(main())
