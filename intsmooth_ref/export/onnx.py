"""A model as ONNX, of integer operators alone: ONNX Runtime and the reference evaluator compute the same bits.

The graph takes `image`, int32 `(N, H, W, C)`, and gives what the model's last layer gives: `scores` `(N, classes)`,
or `class`, int32 `(N,)`, where the model ends in an `ArgMax`. Each layer's output is a tensor of the layer's name, laid
out as in this package, `(N, H, W, C)`; transpositions stand around convolutions only. Three things that ONNX
does not have are built from what it has:

* The arithmetic right shift of an int64. `BitShift` is for unsigned integers, and `Div` rounds towards zero. A product
  x of an accumulator and a multiplier lies in -2**62 .. 2**62, so x + 2**62 is not negative, and

      (1)   (x + 2**(s-1)) >> s = ((((x + 2**62) >> (s-1)) + 1) >> 1) - 2**(62-s),   1 <= s <= 62,

  where both shifts are of integers that are not negative, and nothing leaves int64.
* gemmlowp's second rounding, ties away from zero, of an int32 x by e > 0 bits:

      (2)   (x + 2**(e-1) - (x < 0)) >> e,

  for that takes a negative tie down, and no other negative number across the half. As (1) adds 2**(e-1) itself, only
  (x < 0) is subtracted before it.
* Sums over the windows of an average pool: `ConvInteger` with weights of 1. They are taken of q less the lowest value
  of its dtype, and so are divided as integers that are not negative.

`MaxPool` is for floats in the reference evaluator, which pads with NaN: here it is a `Max` of slices, axis by axis.

`ConvInteger` and `MatMulInteger` are given both sides as uint8: int8 is moved up by 128 together with its zero point.
For uint8 by int8, on x86 processors without VNNI, ONNX Runtime adds products in pairs that saturate at 16 bits
("Quantize ONNX Models" in its documentation, on VPMADDUBSW); for uint8 by uint8 it has no such kernel.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod
from typing import Any, Sequence

import numpy as np

from ..errors import ParameterError
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..model.layers import (
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
)
from ..model.proof import TensorProof

INSTALL = "pip install 'intsmooth_ref[onnx]'"

#: The set of operators: the oldest in which all that is used here takes the integers that are used here.
OPSET, IR_VERSION = 18, 8

#: Equation (1).
OFFSET_BITS = 62

#: int8 weights are uint8 weights of this zero point.
WEIGHT_ZERO_POINT = 128

CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def onnx_file(model: IntegerModel) -> bytes:
    """The bytes of the ONNX file; the same model gives the same bytes with the same version of `onnx`.

    Raises:
        ParameterError: if `onnx` is not installed, or a layer rounds by a mode that has no graph here.
    """
    try:
        import onnx
    except ImportError:
        raise ParameterError(f"export to ONNX needs the package onnx, which is not installed: {INSTALL}") from None
    graph = _Graph(model)
    for layer in model.layers:
        graph.rename(_write(layer, graph), layer.name)
    output = model.proofs[model.output.name]
    value, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    result = "class" if isinstance(model.output, ArgMax) else "scores"
    graph.node("Identity", [tensor_name(model.output.name)], name=result)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "model",
            [value("image", types.INT32, ("N", *model.input.shape))],
            [value(result, getattr(types, output.dtype.upper()), ("N", *output.shape))],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="intsmooth_ref",
        doc_string=f"integer operators only; fingerprint of the model: {fingerprint(model)}",
    )  # fmt: skip
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def tensor_name(layer: str) -> str:
    """The name of the tensor that holds a layer's output."""
    return f"layer/{layer}"


class _Graph:
    """Collects nodes and constants. A node's output is named by number, a layer's by the layer."""

    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known_constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, kind: str, inputs: Sequence[str], name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        import onnx

        name = name or f"{len(self.nodes)}/{kind}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def rename(self, tensor: str, layer: str) -> None:
        """Give a layer's output its name."""
        self.node("Identity", [tensor], name=tensor_name(layer))

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """The name of a constant; equal constants are one."""
        import onnx

        array = np.ascontiguousarray(np.array(values, dtype=dtype))
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known_constants:
            name = f"constant/{len(self.constants)}"
            self._known_constants[key] = name
            self.constants.append(onnx.numpy_helper.from_array(array, name))
        return self._known_constants[key]

    def cast(self, tensor: str, dtype: str) -> str:
        import onnx

        return self.node("Cast", [tensor], to=getattr(onnx.TensorProto, dtype.upper()))

    def plus(self, tensor: str, values: Any, dtype: str = "int64") -> str:
        """Add constants, or nothing if they are all zero."""
        return self.node("Add", [tensor, self.constant(values, dtype)]) if np.any(values) else tensor

    def times(self, tensor: str, values: Any) -> str:
        return self.node("Mul", [tensor, self.constant(values)])

    def transposed(self, tensor: str, order: Sequence[int]) -> str:
        return self.node("Transpose", [tensor], perm=order)

    def source(self, layer: Layer, number: int = 0) -> tuple[str, TensorProof]:
        """A tensor that a layer reads, and its proof."""
        name = layer.inputs[number]
        return tensor_name(name), self.model.proofs[name]

    def above_zero_point(self, layer: Layer, number: int = 0) -> str:
        """A tensor that a layer reads, less its zero point, in int64."""
        tensor, proof = self.source(layer, number)
        return self.plus(self.cast(tensor, "int64"), -proof.zero_point)

    def unsigned(self, layer: Layer) -> tuple[str, int]:
        """A tensor of 8 bits that a layer reads, less the lowest value of its dtype: uint8, and its zero point."""
        tensor, proof = self.source(layer)
        lowest = INTEGER_RANGES[proof.dtype][0]
        if lowest == 0:
            return tensor, proof.zero_point
        raised = self.plus(self.cast(tensor, "int32"), -lowest, "int32")
        return self.cast(raised, "uint8"), proof.zero_point - lowest

    def weights(self, weights: np.ndarray) -> str:
        """Weights as uint8, of zero point `WEIGHT_ZERO_POINT`."""
        return self.constant(weights.astype(np.int64) + WEIGHT_ZERO_POINT, "uint8")

    def shifted(self, tensor: str, shift: np.ndarray | int) -> str:
        """Equation (1): rounded to nearest, ties towards plus infinity. `shift` is from 1 to 62."""
        shifts = np.array(shift, dtype=np.int64)
        raised = self.cast(self.plus(tensor, 1 << OFFSET_BITS), "uint64")
        shifted = self._shifted_right(raised, shifts - 1)
        halved = self._shifted_right(self.cast(self.plus(self.cast(shifted, "int64"), 1), "uint64"), np.array(1))
        return self.plus(self.cast(halved, "int64"), -(np.int64(1) << (OFFSET_BITS - shifts)))

    def _shifted_right(self, tensor: str, shifts: np.ndarray) -> str:
        return self.node("BitShift", [tensor, self.constant(shifts, "uint64")], direction="RIGHT")

    def requantized(
        self, accumulator: str, requantization: Requantization | None, output: Quantization, where: str
    ) -> str:
        """Equations (2) to (4) of `fixedpoint`, zero point and clamp; the accumulator is int64, channels last."""
        if requantization is None:
            return self.cast(accumulator, output.dtype)
        multiplier, shift = requantization.multiplier.astype(np.int64), requantization.shift.astype(np.int64)
        if requantization.rounding == "single_rounding":
            rounded = self.shifted(self.times(accumulator, multiplier), shift)
        elif requantization.rounding in ("gemmlowp", "srdhm_half_up"):
            rounded = self._rounded_twice(accumulator, multiplier, shift, requantization.rounding)
        else:
            raise ParameterError(
                f"layer {where!r}: rounding {requantization.rounding!r} has no ONNX graph; expected"
                " single_rounding, gemmlowp or srdhm_half_up"
            )
        return self.finished(rounded, output)

    def _rounded_twice(self, accumulator: str, multiplier: np.ndarray, shift: np.ndarray, mode: str) -> str:
        left, right = np.maximum(31 - shift, 0), np.maximum(shift - 31, 0)
        high = self.shifted(self.times(self.times(accumulator, np.int64(1) << left), multiplier), 31)
        if not right.any():
            return high
        nearly = high
        if mode == "gemmlowp":
            negative = self.cast(self.node("Less", [high, self.constant(0)]), "int64")
            nearly = self.node("Sub", [high, negative])
        rounded = self.shifted(nearly, np.maximum(right, 1))
        return self.node("Where", [self.constant(right > 0, "bool"), rounded, high])

    def finished(self, rounded: str, output: Quantization) -> str:
        """Zero point, clamp, and the output's dtype."""
        return self.clipped(self.plus(rounded, output.zero_point), output.minimum, output.maximum, output.dtype)

    def clipped(self, tensor: str, low: int, high: int, dtype: str) -> str:
        return self.cast(self.node("Clip", [tensor, self.constant(low), self.constant(high)]), dtype)

    def padded(self, tensor: str, padding: Sequence[int], value: int, dtype: str) -> str:
        """Pad height and width of `(N, H, W, C)` with a value."""
        if not any(padding):
            return tensor
        top, bottom, left, right = padding
        sides = self.constant([0, top, left, 0, 0, bottom, right, 0])
        return self.node("Pad", [tensor, sides, self.constant(value, dtype)])


@singledispatch
def _write(layer: Layer, graph: _Graph) -> str:
    """Add the nodes of one layer; returns the tensor that holds its output."""
    raise ParameterError(f"layer {layer.name!r} is a {layer.kind}, which has no ONNX graph here")


@_write.register
def _(layer: InputQuantization, graph: _Graph) -> str:
    return graph.requantized(graph.cast("image", "int64"), layer.requantization, layer.output, layer.name)


@_write.register
def _(layer: Conv2D, graph: _Graph) -> str:
    tensor, zero_point = graph.unsigned(layer)
    padded = graph.padded(tensor, layer.padding, zero_point, "uint8")
    product = graph.transposed(graph.node(
        "ConvInteger", [
            graph.transposed(padded, CHANNELS_FIRST),
            graph.weights(layer.weights.transpose(0, 3, 1, 2)),
            graph.constant(zero_point, "uint8"),
            graph.constant(WEIGHT_ZERO_POINT, "uint8"),
        ],
        kernel_shape=layer.weights.shape[1:3], strides=layer.strides, dilations=layer.dilation, group=layer.groups,
    ), CHANNELS_LAST)  # fmt: skip
    accumulator = graph.plus(graph.cast(product, "int64"), layer.bias)
    return graph.requantized(accumulator, layer.requantization, layer.output, layer.name)


@_write.register
def _(layer: Linear, graph: _Graph) -> str:
    tensor, zero_point = graph.unsigned(layer)
    zero_points = [graph.constant(zero_point, "uint8"), graph.constant(WEIGHT_ZERO_POINT, "uint8")]
    product = graph.node("MatMulInteger", [tensor, graph.weights(layer.weights.T), *zero_points])
    accumulator = graph.plus(graph.cast(product, "int64"), layer.bias)
    return graph.requantized(accumulator, layer.requantization, layer.output, layer.name)


@_write.register
def _(layer: Add, graph: _Graph) -> str:
    terms = [
        graph.times(graph.above_zero_point(layer, number), int(multiplier))
        for number, multiplier in enumerate(layer.multiplier)
    ]
    return graph.finished(graph.shifted(graph.node("Add", terms), layer.shift), layer.output)


@_write.register
def _(layer: Concat, graph: _Graph) -> str:
    return graph.node("Concat", [tensor_name(name) for name in layer.inputs], axis=-1)


@_write.register
def _(layer: MaxPool, graph: _Graph) -> str:
    tensor, proof = graph.source(layer)
    padded = graph.padded(tensor, layer.padding, INTEGER_RANGES[proof.dtype][0], proof.dtype)
    result, extents = graph.cast(padded, "int32"), graph.model.proofs[layer.name].shape
    for axis in (1, 2):
        window = layer.kernel[axis - 1], layer.strides[axis - 1], extents[axis - 1]
        result = _sliding_maximum(graph, result, axis, *window)
    return graph.cast(result, proof.dtype)


def _sliding_maximum(graph: _Graph, tensor: str, axis: int, kernel: int, stride: int, extent: int) -> str:
    """The largest of `kernel` neighbours along an axis, at every `stride`: `extent` of them."""
    taps = [
        graph.node("Slice", [tensor, *(graph.constant([each]) for each in (
            tap, tap + (extent - 1) * stride + 1, axis, stride,
        ))])
        for tap in range(kernel)
    ]  # fmt: skip
    return graph.node("Max", taps)


@_write.register
def _(layer: AveragePool, graph: _Graph) -> str:
    tensor, zero_point = graph.unsigned(layer)
    _, proof = graph.source(layer)
    padded = graph.padded(tensor, layer.padding, zero_point if layer.count_include_pad else 0, "uint8")
    channels = proof.shape[2]
    ones = graph.constant(np.ones((channels, 1, *layer.kernel)), "uint8")
    first = graph.transposed(padded, CHANNELS_FIRST)
    sums = graph.node("ConvInteger", [first, ones], kernel_shape=layer.kernel, strides=layer.strides, group=channels)
    total = graph.cast(graph.transposed(sums, CHANNELS_LAST), "int64")
    counts = _window_counts(layer, proof)
    mean = graph.node("Div", [graph.plus(graph.times(total, 2), counts), graph.constant(2 * counts)])
    return graph.cast(graph.plus(mean, INTEGER_RANGES[proof.dtype][0]), proof.dtype)


def _window_counts(layer: AveragePool, proof: TensorProof) -> np.ndarray:
    """How many elements each window counts: int64 `(OH, OW, 1)`."""
    top, bottom, left, right = layer.padding

    def along(size: int, kernel: int, stride: int, before: int, after: int) -> np.ndarray:
        starts = np.arange(0, size + before + after - kernel + 1, stride) - before
        return np.minimum(starts + kernel, size) - np.maximum(starts, 0)

    rows = along(proof.shape[0], layer.kernel[0], layer.strides[0], top, bottom)
    columns = along(proof.shape[1], layer.kernel[1], layer.strides[1], left, right)
    inside: np.ndarray = np.multiply.outer(rows, columns)[:, :, np.newaxis]
    return np.full_like(inside, prod(layer.kernel)) if layer.count_include_pad else inside


@_write.register
def _(layer: GlobalAveragePool, graph: _Graph) -> str:
    axes = graph.constant([1, 2])
    accumulator = graph.node("ReduceSum", [graph.above_zero_point(layer), axes], keepdims=0)
    return graph.requantized(accumulator, layer.requantization, layer.output, layer.name)


@_write.register
def _(layer: Clamp, graph: _Graph) -> str:
    tensor, proof = graph.source(layer)
    return graph.clipped(graph.cast(tensor, "int64"), layer.minimum, layer.maximum, proof.dtype)


@_write.register
def _(layer: Pad, graph: _Graph) -> str:
    tensor, proof = graph.source(layer)
    return graph.padded(tensor, layer.padding, proof.zero_point, proof.dtype)


def _reshaped(layer: Layer, graph: _Graph) -> str:
    tensor, _ = graph.source(layer)  # an extent of 0: that of the input, the batch
    return graph.node("Reshape", [tensor, graph.constant([0, *graph.model.proofs[layer.name].shape])])


@_write.register
def _(layer: Flatten, graph: _Graph) -> str:
    return _reshaped(layer, graph)


@_write.register
def _(layer: Reshape, graph: _Graph) -> str:
    return _reshaped(layer, graph)


@_write.register
def _(layer: Requantize, graph: _Graph) -> str:
    return graph.requantized(graph.above_zero_point(layer), layer.requantization, layer.output, layer.name)


@_write.register
def _(layer: LookupTable, graph: _Graph) -> str:
    tensor, proof = graph.source(layer)
    entry = graph.plus(graph.cast(tensor, "int64"), -INTEGER_RANGES[proof.dtype][0])
    return graph.node("Gather", [graph.constant(layer.table, layer.output.dtype), entry])


@_write.register
def _(layer: Softmax, graph: _Graph) -> str:
    wide = graph.cast(graph.source(layer)[0], "int64")
    axis = graph.constant([-1])
    below = graph.node("Sub", [graph.node("ReduceMax", [wide, axis]), wide])
    terms = graph.node("Gather", [graph.constant(layer.table), below])
    total = graph.node("ReduceSum", [terms, axis])
    numerator = graph.node("Add", [graph.times(terms, 512), total])
    return graph.finished(graph.node("Div", [numerator, graph.times(total, 2)]), layer.output)


@_write.register
def _(layer: ArgMax, graph: _Graph) -> str:
    wide = graph.cast(graph.source(layer)[0], "int32")
    return graph.cast(graph.node("ArgMax", [wide], axis=-1, keepdims=0), "int32")
