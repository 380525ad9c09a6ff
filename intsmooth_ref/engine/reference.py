"""The reference engine, which is the specification: one short function an operator, in plain NumPy and int64.

Tensors are `(N, H, W, C)` or `(N, C)` arrays of the dtype that the model names; every sum and product is formed in
int64. Each operator takes its layer, the proofs of the tensors it reads, and those tensors.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Iterator, Sequence

import numpy as np

from ..fixedpoint import requantize
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

Sources = Sequence[TensorProof]


class ReferenceModel:
    """A model computed layer by layer, all images at once."""

    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self._last_use = {name: layer.name for layer in model.layers for name in layer.inputs}

    def trace(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each layer's name and output; what no layer reads any more is let go."""
        tensors: dict[str, np.ndarray] = {}
        for layer in self.model.layers:
            sources = [self.model.proofs[name] for name in layer.inputs]
            tensors[layer.name] = operate(layer, sources, *([tensors[name] for name in layer.inputs] or [images]))
            yield layer.name, tensors[layer.name]
            for name in layer.inputs:
                if self._last_use[name] == layer.name:
                    tensors.pop(name, None)

    def output(self, images: np.ndarray) -> np.ndarray:
        """The last layer's output."""
        result = images
        for _, result in self.trace(images):
            pass
        return result

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, `(N,)`."""
        result = self.output(images)
        return result if result.ndim == 1 else result.argmax(axis=-1).astype(np.int32)


@singledispatch
def operate(layer: Layer, sources: Sources, *tensors: np.ndarray) -> np.ndarray:
    raise TypeError(f"no operator for {layer.kind}")


def _quantized(accumulator: np.ndarray, requantization: Requantization | None, output: Quantization) -> np.ndarray:
    """Equations (2) and (3) of `fixedpoint`, then zero point and clamp."""
    if requantization is None:
        return accumulator.astype(output.dtype)
    multiplier, shift = requantization.multiplier.astype(np.int64), requantization.shift.astype(np.int64)
    q = output.zero_point + requantize(accumulator, multiplier, shift, requantization.rounding)
    return np.clip(q, output.minimum, output.maximum).astype(output.dtype)


def _padded(tensor: np.ndarray, padding: Sequence[int], value: int) -> np.ndarray:
    top, bottom, left, right = padding
    return np.pad(tensor, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _windows(tensor: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """All windows of a padded tensor: `(N, OH, OW, C, KH, KW)`."""
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    windows = np.lib.stride_tricks.sliding_window_view(tensor, extents, axis=(1, 2))
    return windows[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]


@operate.register
def _(layer: InputQuantization, sources: Sources, image: np.ndarray) -> np.ndarray:
    return _quantized(image.astype(np.int64), layer.requantization, layer.output)


@operate.register
def _(layer: Conv2D, sources: Sources, x: np.ndarray) -> np.ndarray:
    real = _padded(x.astype(np.int64) - sources[0].zero_point, layer.padding, 0)
    windows = _windows(real, layer.weights.shape[1:3], layer.strides, layer.dilation)
    samples, height, width = windows.shape[:3]
    outputs, taps = len(layer.weights), layer.weights[0].size
    # one matrix product a group: (G, N*OH*OW, C/G * KH * KW) @ (G, C/G * KH * KW, O/G)
    rows = windows.reshape(samples * height * width, layer.groups, taps).transpose(1, 0, 2)
    weights = layer.weights.astype(np.int64).transpose(0, 3, 1, 2).reshape(layer.groups, outputs // layer.groups, taps)
    product = np.matmul(rows, weights.transpose(0, 2, 1))
    accumulator = product.transpose(1, 0, 2).reshape(samples, height, width, outputs) + layer.bias
    return _quantized(accumulator, layer.requantization, layer.output)


@operate.register
def _(layer: Linear, sources: Sources, x: np.ndarray) -> np.ndarray:
    accumulator = (x.astype(np.int64) - sources[0].zero_point) @ layer.weights.astype(np.int64).T + layer.bias
    return _quantized(accumulator, layer.requantization, layer.output)


@operate.register
def _(layer: Add, sources: Sources, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    terms = zip((a, b), sources, layer.multiplier.astype(np.int64))
    total = sum((x.astype(np.int64) - source.zero_point) * multiplier for x, source, multiplier in terms)
    q = layer.output.zero_point + ((total + (np.int64(1) << (layer.shift - 1))) >> layer.shift)
    return np.clip(q, layer.output.minimum, layer.output.maximum).astype(layer.output.dtype)


@operate.register
def _(layer: Concat, sources: Sources, *tensors: np.ndarray) -> np.ndarray:
    return np.concatenate(tensors, axis=-1)


@operate.register
def _(layer: MaxPool, sources: Sources, x: np.ndarray) -> np.ndarray:
    padded = _padded(x, layer.padding, INTEGER_RANGES[str(x.dtype)][0])
    return _windows(padded, layer.kernel, layer.strides, (1, 1)).max(axis=(4, 5))


@operate.register
def _(layer: AveragePool, sources: Sources, x: np.ndarray) -> np.ndarray:
    value = sources[0].zero_point if layer.count_include_pad else 0
    total = _pool_sums(_padded(x.astype(np.int64), layer.padding, value), layer)
    ones = np.ones((1, *x.shape[1:3], 1), dtype=np.int64)
    count = _pool_sums(_padded(ones, layer.padding, int(layer.count_include_pad)), layer)
    return ((2 * total + count) // (2 * count)).astype(x.dtype)


def _pool_sums(padded: np.ndarray, layer: AveragePool) -> np.ndarray:
    return _windows(padded, layer.kernel, layer.strides, (1, 1)).sum(axis=(4, 5))


@operate.register
def _(layer: GlobalAveragePool, sources: Sources, x: np.ndarray) -> np.ndarray:
    accumulator = (x.astype(np.int64) - sources[0].zero_point).sum(axis=(1, 2))
    return _quantized(accumulator, layer.requantization, layer.output)


@operate.register
def _(layer: Clamp, sources: Sources, x: np.ndarray) -> np.ndarray:
    return np.clip(x.astype(np.int64), layer.minimum, layer.maximum).astype(x.dtype)


@operate.register
def _(layer: Pad, sources: Sources, x: np.ndarray) -> np.ndarray:
    return _padded(x, layer.padding, sources[0].zero_point)


@operate.register
def _(layer: Flatten, sources: Sources, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


@operate.register
def _(layer: Reshape, sources: Sources, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), *layer.shape)


@operate.register
def _(layer: Requantize, sources: Sources, x: np.ndarray) -> np.ndarray:
    return _quantized(x.astype(np.int64) - sources[0].zero_point, layer.requantization, layer.output)


@operate.register
def _(layer: LookupTable, sources: Sources, x: np.ndarray) -> np.ndarray:
    return layer.table[x.astype(np.int64) - INTEGER_RANGES[str(x.dtype)][0]].astype(layer.output.dtype)


@operate.register
def _(layer: Softmax, sources: Sources, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.int64)
    terms = layer.table.astype(np.int64)[wide.max(axis=-1, keepdims=True) - wide]
    total = terms.sum(axis=-1, keepdims=True)
    q = layer.output.zero_point + (512 * terms + total) // (2 * total)
    return np.minimum(q, layer.output.maximum).astype(layer.output.dtype)


@operate.register
def _(layer: ArgMax, sources: Sources, x: np.ndarray) -> np.ndarray:
    return x.argmax(axis=-1).astype(np.int32)  # the lowest index wins a tie
