"""A float model as ONNX, for runtimes that compute floats fast: operators of opset 17, float32, batches of any size.

The graph is called with float32 grey levels `(N, H, W, C)` and does its own scaling, as the PyTorch module of
`torch_network` does; it gives the scores `(N, classes)`. Inside, images are `(N, C, H, W)`. What each layer computes
is specified by `float_engine`.

Needs ONNX, which is imported here and nowhere above: whoever needs this module imports it in the function that does.
"""

from __future__ import annotations

from functools import singledispatch
from math import inf, sqrt
from typing import Any, Sequence

import numpy as np
import onnx

from intsmooth_ref.data_tools.float_model import (
    Add,
    AveragePool,
    BatchNorm,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    FloatLayer,
    FloatModel,
    Function,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Pad,
)
from intsmooth_ref.dataset import FULL_SCALE

OPSET, IR_VERSION = 17, 8
#: The tensor of the images. Layers have no slashes in their names, so it is none of theirs.
IMAGES = "grey/levels"


class Writer:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The name of the tensor that a new node gives, which is its own."""
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name


def onnx_bytes(model: FloatModel) -> bytes:
    """The model as a serialized ONNX file."""
    writer = Writer()
    for layer in model.layers:
        write(layer, writer, *(layer.inputs or [IMAGES]))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes, "network",
        [value(IMAGES, onnx.TensorProto.FLOAT, ("N", *model.input.shape))],
        [value(model.layers[-1].name, onnx.TensorProto.FLOAT, ("N", model.classes))],
        writer.constants,
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


# --- layers: each writes the tensor of its name -----------------------------------------------------------------------


@singledispatch
def write(layer: FloatLayer, writer: Writer, *sources: str) -> None:
    raise TypeError(f"no operator for {layer.kind}")


@write.register
def _(layer: Input, writer: Writer, images: str) -> None:
    """`grey * factor - shift`, channel by channel."""
    name, deviation = layer.name, layer.deviation.astype(np.float64)
    factor = writer.constant(f"{name}/factor", 1 / (FULL_SCALE * deviation))
    shift = writer.constant(f"{name}/shift", layer.mean / deviation)
    scaled = writer.node("Mul", f"{name}/scaled", [images, factor])
    normalized = writer.node("Sub", f"{name}/normalized", [scaled, shift])
    writer.node("Transpose", name, [normalized], perm=[0, 3, 1, 2])


@write.register
def _(layer: Conv2D, writer: Writer, x: str) -> None:
    weights = writer.constant(f"{layer.name}/weights", layer.weights.transpose(0, 3, 1, 2))
    writer.node(
        "Conv", layer.name, [x, weights, *_bias(layer, writer)], strides=layer.strides, pads=_pads(layer.padding),
        dilations=layer.dilation, group=layer.groups,
    )  # fmt: skip


@write.register
def _(layer: Linear, writer: Writer, x: str) -> None:
    weights = writer.constant(f"{layer.name}/weights", layer.weights)
    writer.node("Gemm", layer.name, [x, weights, *_bias(layer, writer)], transB=1)


def _bias(layer: Conv2D | Linear, writer: Writer) -> list[str]:
    return [] if layer.bias is None else [writer.constant(f"{layer.name}/bias", layer.bias)]


@write.register
def _(layer: BatchNorm, writer: Writer, x: str) -> None:
    names = ("scale", "shift", "mean", "variance")
    constants = [writer.constant(f"{layer.name}/{each}", getattr(layer, each)) for each in names]
    writer.node("BatchNormalization", layer.name, [x, *constants], epsilon=layer.epsilon)


@write.register
def _(layer: Clamp, writer: Writer, x: str) -> None:
    if (layer.minimum, layer.maximum) == (0, inf):
        writer.node("Relu", layer.name, [x])
        return
    ends = (("minimum", layer.minimum), ("maximum", layer.maximum))
    writer.node("Clip", layer.name, [x, *(writer.constant(f"{layer.name}/{what}", end) for what, end in ends)])


@write.register
def _(layer: Function, writer: Writer, x: str) -> None:
    name, kind = layer.name, layer.function
    if kind == "leaky_relu":
        writer.node("LeakyRelu", name, [x], alpha=layer.slope)
    elif kind == "hard_sigmoid":
        writer.node("HardSigmoid", name, [x], alpha=1 / 6)
    elif kind == "silu":
        writer.node("Mul", name, [x, writer.node("Sigmoid", f"{name}/sigmoid", [x])])
    elif kind == "gelu":  # x * (1 + erf(x / sqrt(2))) / 2
        scaled = writer.node("Mul", f"{name}/scaled", [x, writer.constant(f"{name}/factor", sqrt(0.5))])
        erf = writer.node("Erf", f"{name}/erf", [scaled])
        raised = writer.node("Add", f"{name}/raised", [erf, writer.constant(f"{name}/one", 1.0)])
        product = writer.node("Mul", f"{name}/product", [x, raised])
        writer.node("Mul", name, [product, writer.constant(f"{name}/half", 0.5)])
    else:
        operators = {"elu": "Elu", "hard_swish": "HardSwish", "sigmoid": "Sigmoid", "tanh": "Tanh"}
        writer.node(operators[kind], name, [x])


@write.register
def _(layer: Add, writer: Writer, first: str, second: str) -> None:
    writer.node("Add", layer.name, [first, second])


@write.register
def _(layer: Concat, writer: Writer, *sources: str) -> None:
    writer.node("Concat", layer.name, sources, axis=1)


@write.register
def _(layer: MaxPool, writer: Writer, x: str) -> None:
    writer.node("MaxPool", layer.name, [x], **_window(layer))


@write.register
def _(layer: AveragePool, writer: Writer, x: str) -> None:
    writer.node("AveragePool", layer.name, [x], count_include_pad=int(layer.count_include_pad), **_window(layer))


@write.register
def _(layer: GlobalAveragePool, writer: Writer, x: str) -> None:
    writer.node("ReduceMean", layer.name, [x], axes=[2, 3], keepdims=0)


@write.register
def _(layer: Pad, writer: Writer, x: str) -> None:
    top, bottom, left, right = layer.padding
    sides = writer.constant(f"{layer.name}/sides", [0, 0, top, left, 0, 0, bottom, right], np.int64)
    writer.node("Pad", layer.name, [x, sides])


@write.register
def _(layer: Flatten, writer: Writer, x: str) -> None:
    """Channels fastest."""
    writer.node("Flatten", layer.name, [writer.node("Transpose", f"{layer.name}/last", [x], perm=[0, 2, 3, 1])])


def _window(layer: MaxPool | AveragePool) -> dict[str, Any]:
    return {"kernel_shape": layer.kernel, "strides": layer.strides, "pads": _pads(layer.padding)}


def _pads(padding: Sequence[int]) -> list[int]:
    top, bottom, left, right = padding
    return [top, left, bottom, right]
