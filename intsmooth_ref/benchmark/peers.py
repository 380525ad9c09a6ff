"""Peers: the same network in PyTorch, ONNX Runtime and OpenVINO.

An `IntegerModel` says of every integer which real number it stands for, and so describes a float network too:

    (1)   weight = scale[channel] * q,   scale[channel] = ratio[channel] * output scale / input scale
    (2)   bias = input scale * scale[channel] * q

with `ratio` the multiplier and shift of the requantization; a bare accumulator's own scale is that of (2). Where the
output is clamped at its zero point stands a ReLU, where it is clamped below its dtype's maximum an upper bound, and
nowhere is anything rounded: that is the float32 peer. The 8-bit peer is the same graph with the integers of (1), and
`QuantizeLinear`, `DequantizeLinear` (QDQ) around every operator, which ONNX Runtime and OpenVINO compile to 8-bit
kernels; each rounds in its own way, so its scores are near ours, not equal.

A framework is imported by the function that needs it. Each runs at its own full optimization, in float32 where it is
called so, on as many threads as asked for; its input is a float32 batch `(N, C, H, W)`, made before the clock starts.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Callable, Sequence

import numpy as np

from ..errors import ParameterError
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
    MaxPool,
    Pad,
    Quantization,
    Requantize,
)

INSTALL = "pip install 'intsmooth_ref[bench]'"

#: A network made ready for one batch: each call computes its scores `(N, classes)`, real numbers.
Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """Another way to compute a network.

    Attributes:
        name: framework and kind, as in `onnxruntime int8`.
        kind: `fp32` or `int8`.
        packages: that must be installed, the framework first.
        prepare: makes a model ready for a batch, int32 `(N, H, W, C)`, on a number of threads.
    """

    name: str
    kind: str
    packages: tuple[str, ...]
    prepare: Callable[[IntegerModel, int, np.ndarray], Run]

    @property
    def framework(self) -> str:
        return self.packages[0]

    @property
    def version(self) -> str:
        return version(self.framework)


def reason_to_skip(peer: Peer) -> str | None:
    """Why a peer cannot be measured here, or None."""
    for package in peer.packages:
        try:
            import_module(package)
            version(package)
        except (ModuleNotFoundError, PackageNotFoundError):
            return f"{package} is not installed: {INSTALL}"
        except Exception as problem:  # a broken installation fails in any way it likes
            return f"{package} cannot be imported: {' '.join(str(problem).split())}"
    return None


# --- integers as reals ------------------------------------------------------------------------------------------------


def real_input(model: IntegerModel, images: np.ndarray) -> np.ndarray:
    """The reals that an int32 batch `(N, H, W, C)` stands for, clamped as the model does: float32 `(N, C, H, W)`."""
    grid, requantization = model.input.output, model.input.requantization
    grey_level = requantization.multiplier * np.exp2(-requantization.shift.astype(np.float64)) * float(grid.scale)
    low, high = (float(grid.scale * (end - grid.zero_point)) for end in (grid.minimum, grid.maximum))
    reals = np.clip(images * grey_level, low, high)
    return np.ascontiguousarray(reals.astype(np.float32).transpose(0, 3, 1, 2))


@dataclass(frozen=True, eq=False)
class _Parameters:
    """Weights and biases of a `Conv2D` `(O, I, KH, KW)` or `Linear` `(O, I)`: integers, and equations (1) and (2)."""

    weights: np.ndarray
    bias: np.ndarray
    weight_scales: np.ndarray
    bias_scales: np.ndarray

    @property
    def real_weights(self) -> np.ndarray:
        scales = self.weight_scales.reshape(-1, *[1] * (self.weights.ndim - 1))
        return (self.weights * scales.astype(np.float64)).astype(np.float32)

    @property
    def real_bias(self) -> np.ndarray:
        return (self.bias * self.bias_scales.astype(np.float64)).astype(np.float32)


def _parameters(model: IntegerModel, layer: Conv2D | Linear) -> _Parameters:
    source = model.proofs[layer.inputs[0]]
    if layer.requantization is None:
        products = np.array([float(layer.output.scale)])
    else:
        shift = layer.requantization.shift.astype(np.float64)
        products = layer.requantization.multiplier * np.exp2(-shift) * float(layer.output.scale)
    products = np.broadcast_to(products, len(layer.weights))
    if layer.weights.ndim == 4:
        weights = layer.weights.transpose(0, 3, 1, 2)
    else:
        weights = _for_flattened_channels_first(model, layer)
    scales = (products / float(source.scale)).astype(np.float32)
    return _Parameters(np.ascontiguousarray(weights), layer.bias, scales, products.astype(np.float32))


def _for_flattened_channels_first(model: IntegerModel, layer: Conv2D | Linear) -> np.ndarray:
    """The columns of a `Linear` after a `Flatten`, in the order in which `(C, H, W)` is flattened."""
    before = next(each for each in model.layers if each.name == layer.inputs[0])
    shape = model.proofs[before.inputs[0]].shape if isinstance(before, Flatten) else ()
    if len(shape) != 3:
        return layer.weights
    return layer.weights.reshape(-1, *shape).transpose(0, 3, 1, 2).reshape(len(layer.weights), -1)


def _real_bounds(dtype: str, scale: float, zero_point: int, low: int, high: int) -> tuple[float | None, float | None]:
    """Where a float network clamps: at zero for a ReLU, and wherever the dtype's own ends are not the bounds."""
    lowest, highest = INTEGER_RANGES[dtype]
    bound_below = low > lowest or low == zero_point
    return (
        scale * (low - zero_point) if bound_below else None,
        scale * (high - zero_point) if high < highest else None,
    )


def _output_bounds(output: Quantization) -> tuple[float | None, float | None]:
    if output.dtype == "int32":
        return None, None
    return _real_bounds(output.dtype, float(output.scale), output.zero_point, output.minimum, output.maximum)


def _clamp_bounds(model: IntegerModel, layer: Clamp) -> tuple[float | None, float | None]:
    proof = model.proofs[layer.name]
    return _real_bounds(proof.dtype, float(proof.scale), proof.zero_point, layer.minimum, layer.maximum)


def _refuse(layer: Layer) -> ParameterError:
    return ParameterError(f"layer {layer.name!r} is a {layer.kind}, which peers do not compute here")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_graph(model: IntegerModel, quantized: bool, batch: int) -> bytes:
    """The network as a serialized ONNX model for one batch size: float32, or QDQ where `quantized`.

    Raises:
        ParameterError: if a layer has no counterpart here.
    """
    import onnx

    writer = _OnnxWriter(model, quantized)
    for layer in model.layers:
        writer.tensors[layer.name] = writer.layer(layer)
    height, width, channels = model.input.shape
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes, "network",
        [value("images", onnx.TensorProto.FLOAT, (batch, channels, height, width))],
        [value(writer.tensors[model.output.name], onnx.TensorProto.FLOAT, (batch, model.classes))],
        writer.constants,
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


class _OnnxWriter:
    """Collects nodes and constants; `tensors` names the ONNX tensor that holds a layer's output."""

    def __init__(self, model: IntegerModel, quantized: bool) -> None:
        self.model, self.quantized = model, quantized
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.tensors: dict[str, str] = {}

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def layer(self, layer: Layer) -> str:
        """Write one layer; returns the tensor that holds its output."""
        name = layer.name
        inputs = [self.tensors[each] for each in layer.inputs]
        if isinstance(layer, InputQuantization):
            return self.requantized(name, "images", layer.output)
        if isinstance(layer, Conv2D):
            return self.finished(name, self.node(
                "Conv", f"{name}/conv", [*inputs, *self.parameters(layer)], strides=layer.strides, group=layer.groups,
                pads=_onnx_padding(layer.padding), dilations=layer.dilation,
            ), layer.output)  # fmt: skip
        if isinstance(layer, Linear):
            product = self.node("Gemm", f"{name}/gemm", [*inputs, *self.parameters(layer)], transB=1)
            return self.finished(name, product, layer.output)
        if isinstance(layer, Add):
            return self.finished(name, self.node("Add", f"{name}/add", inputs), layer.output)
        if isinstance(layer, GlobalAveragePool):
            pooled = self.finished(name, self.node("GlobalAveragePool", f"{name}/pool", inputs), layer.output)
            return self.flattened(name, pooled, layer.output)
        if isinstance(layer, MaxPool):
            pooled = self.node("MaxPool", f"{name}/pool", inputs, **_onnx_window(layer))
            return self.requantized(name, pooled, self.grid(name))
        if isinstance(layer, AveragePool):
            padded = int(layer.count_include_pad)
            pooled = self.node("AveragePool", f"{name}/pool", inputs, count_include_pad=padded, **_onnx_window(layer))
            return self.requantized(name, pooled, self.grid(name))
        if isinstance(layer, Requantize):
            return self.finished(name, inputs[0], layer.output)
        if isinstance(layer, Clamp):
            clamped = self.clamped(name, inputs[0], _clamp_bounds(self.model, layer))
            return self.requantized(name, clamped, self.grid(name))
        if isinstance(layer, Concat):
            return self.requantized(name, self.node("Concat", f"{name}/concat", inputs, axis=1), self.grid(name))
        if isinstance(layer, Pad):
            top, bottom, left, right = layer.padding
            sides = self.constant(f"{name}/sides", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
            return self.requantized(name, self.node("Pad", f"{name}/pad", [*inputs, sides]), self.grid(name))
        if isinstance(layer, Flatten):
            return self.flattened(name, inputs[0], self.grid(name))
        if isinstance(layer, ArgMax):
            return inputs[0]
        raise _refuse(layer)

    def grid(self, name: str) -> Quantization:
        """Of a tensor that keeps the grid of another."""
        proof = self.model.proofs[name]
        return Quantization.full_range(proof.dtype, proof.scale, proof.zero_point)

    def flattened(self, name: str, tensor: str, grid: Quantization) -> str:
        return self.requantized(f"{name}/flat", self.node("Flatten", f"{name}/flat", [tensor]), grid)

    def parameters(self, layer: Conv2D | Linear) -> list[str]:
        """Weights and bias: float32, or integers and the `DequantizeLinear` that makes reals of them."""
        parameters = _parameters(self.model, layer)
        if not self.quantized:
            weights = self.constant(f"{layer.name}/weights", parameters.real_weights)
            return [weights, self.constant(f"{layer.name}/bias", parameters.real_bias)]
        return [
            self.node("DequantizeLinear", f"{layer.name}/{what}", [
                self.constant(f"{layer.name}/{what}/q", integers),
                self.constant(f"{layer.name}/{what}/scale", scales),
                self.constant(f"{layer.name}/{what}/zero_point", np.zeros(len(scales), integers.dtype)),
            ], axis=0)
            for what, integers, scales in (
                ("weights", parameters.weights, parameters.weight_scales),
                ("bias", parameters.bias, parameters.bias_scales),
            )
        ]  # fmt: skip

    def finished(self, name: str, tensor: str, output: Quantization) -> str:
        """A layer's own clamp and grid; an 8-bit grid that begins at its zero point is a ReLU by itself."""
        low, high = _output_bounds(output)
        if self.quantized and output.minimum == INTEGER_RANGES[output.dtype][0]:
            low = None
        return self.requantized(name, self.clamped(name, tensor, (low, high)), output)

    def clamped(self, name: str, tensor: str, bounds: tuple[float | None, float | None]) -> str:
        low, high = bounds
        if bounds == (None, None):
            return tensor
        if bounds == (0.0, None):
            return self.node("Relu", f"{name}/relu", [tensor])
        ends = [
            "" if end is None else self.constant(f"{name}/{what}", np.array(end, np.float32))
            for what, end in (("low", low), ("high", high))
        ]
        return self.node("Clip", f"{name}/clip", [tensor, *ends])

    def requantized(self, name: str, tensor: str, grid: Quantization) -> str:
        if not self.quantized or grid.dtype == "int32":
            return tensor
        scale = self.constant(f"{name}/scale", np.array(float(grid.scale), np.float32))
        zero_point = self.constant(f"{name}/zero_point", np.array(grid.zero_point, grid.dtype))
        integers = self.node("QuantizeLinear", f"{name}/q", [tensor, scale, zero_point])
        return self.node("DequantizeLinear", f"{name}/real", [integers, scale, zero_point])


def _onnx_padding(padding: Sequence[int]) -> list[int]:
    top, bottom, left, right = padding
    return [top, left, bottom, right]


def _onnx_window(layer: MaxPool | AveragePool) -> dict[str, Any]:
    return {"kernel_shape": layer.kernel, "strides": layer.strides, "pads": _onnx_padding(layer.padding)}


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def _prepare_onnxruntime(kind: str, model: IntegerModel, threads: int, images: np.ndarray) -> Run:
    session = onnxruntime_session(onnx_graph(model, kind == "int8", len(images)), threads)
    inputs = {"images": real_input(model, images)}

    def run() -> np.ndarray:
        scores: np.ndarray = session.run(None, inputs)[0]
        return scores

    return run


def onnxruntime_session(graph: bytes, threads: int, optimized: str | os.PathLike[str] | None = None) -> Any:
    """A session at full optimization; `optimized` is a file for the graph that it has made of this one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads take the next one's time
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def _prepare_openvino(kind: str, model: IntegerModel, threads: int, images: np.ndarray) -> Run:
    import openvino

    request = openvino_network(onnx_graph(model, kind == "int8", len(images)), threads).create_infer_request()
    request.set_input_tensor(openvino.Tensor(real_input(model, images)))

    def run() -> np.ndarray:
        request.infer()
        scores: np.ndarray = request.get_output_tensor().data
        return scores

    return run


def openvino_network(graph: bytes, threads: int) -> Any:
    """A compiled network for the CPU; what is not 8-bit in it is float32, never bfloat16."""
    import openvino

    core = openvino.Core()
    return core.compile_model(core.read_model(graph), "CPU", {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    })  # fmt: skip


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def _prepare_torch(model: IntegerModel, threads: int, images: np.ndarray) -> Run:
    """Traced, frozen and optimized for inference, channels last: as fast as `torch.compile`, without a C++ compiler."""
    import torch

    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    function = _torch_function(model)
    batch = torch.from_numpy(real_input(model, images)).contiguous(memory_format=torch.channels_last)

    def run() -> np.ndarray:
        if torch.get_num_threads() != threads:  # a setting of the calling thread
            torch.set_num_threads(threads)
        with torch.inference_mode():
            scores: np.ndarray = compiled(batch).numpy()
        return scores

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit calls itself old
        compiled = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(Network().eval(), batch)))
    return run


def _torch_function(model: IntegerModel) -> Callable[[Any], Any]:
    """From a float32 batch `(N, C, H, W)` to scores."""
    import torch

    steps: list[tuple[Layer, Callable[..., Any], tuple[float | None, float | None]]] = []
    for layer in model.layers:
        bounds = _clamp_bounds(model, layer) if isinstance(layer, Clamp) else (None, None)
        if isinstance(layer, (Conv2D, Linear, Add, Requantize)):
            bounds = _output_bounds(layer.output)
        steps.append((layer, _torch_operator(model, layer), bounds))

    def scores(images: Any) -> Any:
        tensors: dict[str, Any] = {}
        for layer, operator, (low, high) in steps:
            y = operator(*(tensors[name] for name in layer.inputs)) if layer.inputs else images
            if (low, high) == (0.0, None):
                y = torch.relu(y)
            elif (low, high) != (None, None):
                y = torch.clamp(y, low, high)
            tensors[layer.name] = y
        return tensors[model.output.name]

    return scores


def _torch_operator(model: IntegerModel, layer: Layer) -> Callable[..., Any]:
    """One layer, its clamp left out."""
    import torch
    from torch.nn import functional

    if isinstance(layer, (Conv2D, Linear)):
        parameters = _parameters(model, layer)
        weights, bias = torch.from_numpy(parameters.real_weights), torch.from_numpy(parameters.real_bias)
    if isinstance(layer, Conv2D):
        weights = weights.contiguous(memory_format=torch.channels_last)
        settings: dict[str, Any] = {"stride": layer.strides, "dilation": layer.dilation, "groups": layer.groups}
        top, bottom, left, right = layer.padding
        if (top, left) == (bottom, right):
            return lambda x: functional.conv2d(x, weights, bias, padding=(top, left), **settings)
        return lambda x: functional.conv2d(functional.pad(x, (left, right, top, bottom)), weights, bias, **settings)
    if isinstance(layer, Linear):
        return lambda x: functional.linear(x, weights, bias)
    if isinstance(layer, Add):
        return lambda a, b: a + b
    if isinstance(layer, GlobalAveragePool):
        return lambda x: x.mean((2, 3))
    if isinstance(layer, (MaxPool, AveragePool)) and layer.padding[::2] == layer.padding[1::2]:
        window = layer.kernel, layer.strides, layer.padding[::2]
        if isinstance(layer, MaxPool):
            return lambda x: functional.max_pool2d(x, *window)
        return lambda x: functional.avg_pool2d(x, *window, count_include_pad=layer.count_include_pad)
    if isinstance(layer, Concat):
        return lambda *tensors: torch.cat(tensors, 1)
    if isinstance(layer, Pad):
        top, bottom, left, right = layer.padding
        return lambda x: functional.pad(x, (left, right, top, bottom))
    if isinstance(layer, Flatten):
        return lambda x: x.flatten(1)
    if isinstance(layer, (InputQuantization, Requantize, Clamp, ArgMax)):
        return lambda x: x
    raise _refuse(layer)


PEERS = (
    Peer("torch fp32", "fp32", ("torch",), _prepare_torch),
    Peer("onnxruntime fp32", "fp32", ("onnxruntime", "onnx"), partial(_prepare_onnxruntime, "fp32")),
    Peer("openvino fp32", "fp32", ("openvino", "onnx"), partial(_prepare_openvino, "fp32")),
    Peer("onnxruntime int8", "int8", ("onnxruntime", "onnx"), partial(_prepare_onnxruntime, "int8")),
    Peer("openvino int8", "int8", ("openvino", "onnx"), partial(_prepare_openvino, "int8")),
)
FRAMEWORKS = tuple(dict.fromkeys(peer.framework for peer in PEERS))
