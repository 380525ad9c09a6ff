"""The compiled engine: what `reference.py` specifies, with the loops of `operators.py`.

`bind` lays a layer's constants out once, as its kernel reads them, and returns the function that computes the layer.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Callable, Sequence

import numpy as np

from ...fixedpoint import ROUNDING_MODES
from ...model.layers import (
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
from ...model.proof import TensorProof
from .. import reference
from . import operators

Compute = Callable[..., np.ndarray]
Sources = Sequence[TensorProof]


@singledispatch
def bind(layer: Layer, sources: Sources) -> Compute:
    raise TypeError(f"no kernel for {layer.kind}")


def _clamped(output: Quantization) -> tuple[np.int64, np.int64, np.int64]:
    return np.int64(output.zero_point), np.int64(output.minimum), np.int64(output.maximum)


def _rounding(requantization: Requantization | None, channels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Multiplier, shift and code, one entry per channel."""
    if requantization is None:
        return np.ones(channels, np.int64), np.ones(channels, np.int64), operators.BARE_ACCUMULATOR
    multiplier = np.broadcast_to(requantization.multiplier, channels).astype(np.int64)
    shift = np.broadcast_to(requantization.shift, channels).astype(np.int64)
    return multiplier, shift, ROUNDING_MODES.index(requantization.rounding)


def _window_shape(x: np.ndarray, kernel: Sequence[int], layer: Conv2D | MaxPool | AveragePool) -> tuple[int, ...]:
    top, bottom, left, right = layer.padding
    height = (x.shape[1] + top + bottom - kernel[0]) // layer.strides[0] + 1
    width = (x.shape[2] + left + right - kernel[1]) // layer.strides[1] + 1
    return len(x), height, width


@bind.register
def _(layer: InputQuantization, sources: Sources) -> Compute:
    rounding, output = _rounding(layer.requantization, 1), _clamped(layer.output)

    def compute(images: np.ndarray) -> np.ndarray:
        out = np.empty(images.shape, layer.output.dtype)
        flat = np.ascontiguousarray(images, np.int32).reshape(len(images), int(np.prod(layer.shape)))
        operators.input_quantization(flat, *rounding, output, out.reshape(flat.shape))
        return out

    return compute


@bind.register
def _(layer: Conv2D, sources: Sources) -> Compute:
    outputs, kernel_height, kernel_width, _ = layer.weights.shape
    weights = layer.weights.reshape(outputs, -1).astype(np.int16)
    window = ((kernel_height - 1) * layer.dilation[0] + 1, (kernel_width - 1) * layer.dilation[1] + 1)
    constants = (
        np.int32(sources[0].zero_point), weights, layer.bias.copy(), *_rounding(layer.requantization, outputs),
        _clamped(layer.output),
    )  # fmt: skip
    geometry = ((kernel_height, kernel_width), layer.strides, (layer.padding[0], layer.padding[2]), layer.dilation)

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty((*_window_shape(x, window, layer), outputs), layer.output.dtype)
        patches = np.empty((out.shape[2], layer.groups, weights.shape[1]), np.int16)
        scratch = patches, np.empty((out.shape[2], outputs), np.int32)
        operators.conv2d(x, *constants, *geometry, *scratch, out)
        return out

    return compute


@bind.register
def _(layer: Linear, sources: Sources) -> Compute:
    outputs = len(layer.weights)
    weights = layer.weights.astype(np.int16)
    constants = (
        np.int32(sources[0].zero_point), weights, layer.bias.copy(), *_rounding(layer.requantization, outputs),
        _clamped(layer.output),
    )  # fmt: skip

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), outputs), layer.output.dtype)
        scratch = np.empty((len(x), 1, weights.shape[1]), np.int16), np.empty((len(x), outputs), np.int32)
        operators.linear(x, *constants, *scratch, out)
        return out

    return compute


@bind.register
def _(layer: Add, sources: Sources) -> Compute:
    zero_points = (np.int64(sources[0].zero_point), np.int64(sources[1].zero_point))
    constants = (zero_points, layer.multiplier.astype(np.int64), np.int64(layer.shift), _clamped(layer.output))

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.empty(a.shape, layer.output.dtype)
        operators.add(a.reshape(-1), b.reshape(-1), *constants, out.reshape(-1))
        return out

    return compute


@bind.register
def _(layer: MaxPool, sources: Sources) -> Compute:
    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty((*_window_shape(x, layer.kernel, layer), x.shape[3]), x.dtype)
        operators.max_pool(x, layer.kernel, layer.strides, (layer.padding[0], layer.padding[2]), out)
        return out

    return compute


@bind.register
def _(layer: AveragePool, sources: Sources) -> Compute:
    corner = (layer.padding[0], layer.padding[2])

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty((*_window_shape(x, layer.kernel, layer), x.shape[3]), x.dtype)
        total = np.empty(x.shape[3], np.int32)
        operators.average_pool(
            x, sources[0].zero_point, layer.kernel, layer.strides, corner, layer.count_include_pad, total, out
        )
        return out

    return compute


@bind.register
def _(layer: GlobalAveragePool, sources: Sources) -> Compute:
    channels = sources[0].shape[2]
    constants = (np.int32(sources[0].zero_point), *_rounding(layer.requantization, channels), _clamped(layer.output))

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), channels), layer.output.dtype)
        rows, accumulator = x.reshape(len(x), x.shape[1] * x.shape[2], channels), np.empty((len(x), channels), np.int32)
        operators.global_average_pool(rows, *constants, accumulator, out)
        return out

    return compute


@bind.register
def _(layer: Clamp, sources: Sources) -> Compute:
    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        operators.clamp(x.reshape(-1), np.int64(layer.minimum), np.int64(layer.maximum), out.reshape(-1))
        return out

    return compute


@bind.register
def _(layer: Pad, sources: Sources) -> Compute:
    top, bottom, left, right = layer.padding

    def compute(x: np.ndarray) -> np.ndarray:
        samples, height, width, channels = x.shape
        out = np.empty((samples, height + top + bottom, width + left + right, channels), x.dtype)
        operators.pad(x, x.dtype.type(sources[0].zero_point), (top, left), out)
        return out

    return compute


@bind.register
def _(layer: Requantize, sources: Sources) -> Compute:
    channels = sources[0].shape[-1]
    constants = (np.int64(sources[0].zero_point), *_rounding(layer.requantization, channels), _clamped(layer.output))

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty(x.shape, layer.output.dtype)
        operators.requantize(x.reshape(-1, channels), *constants, out.reshape(-1, channels))
        return out

    return compute


@bind.register
def _(layer: LookupTable, sources: Sources) -> Compute:
    offset, table = np.int64(INTEGER_RANGES[sources[0].dtype][0]), layer.table.astype(layer.output.dtype)

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty(x.shape, layer.output.dtype)
        operators.lookup_table(x.reshape(-1), offset, table, out.reshape(-1))
        return out

    return compute


@bind.register
def _(layer: Softmax, sources: Sources) -> Compute:
    channels, table = sources[0].shape[-1], layer.table.astype(np.int64)
    zero_point, maximum = np.int64(layer.output.zero_point), np.int64(layer.output.maximum)

    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty(x.shape, layer.output.dtype)
        operators.softmax(x.reshape(-1, channels), table, zero_point, maximum, out.reshape(-1, channels))
        return out

    return compute


@bind.register
def _(layer: ArgMax, sources: Sources) -> Compute:
    def compute(x: np.ndarray) -> np.ndarray:
        out = np.empty(len(x), np.int32)
        operators.arg_max(x, out)
        return out

    return compute


@bind.register(Concat)
@bind.register(Flatten)
@bind.register(Reshape)
def _(layer: Layer, sources: Sources) -> Compute:
    """Pure movement of data, which NumPy does as it stands."""
    return reference.bind(layer, sources)
