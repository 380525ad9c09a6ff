"""The float model computed, which is the specification of its layers: one short function an operator, in NumPy.

Tensors are float32 `(N, H, W, C)` or `(N, C)`. In what order a sum is formed is left open, so its last digits are, too:
floats decide nothing here, they only lead to the integers that do.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

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

#: Images computed at once by `scores`, and by a convolution, whose windows take many times what the images do.
BATCH, WINDOWED = 64, 8

#: How many floats the tensors of the images that are computed at once may be, all layers together.
FLOATS = 1 << 26


def trace(model: FloatModel, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each layer's name and output for int32 grey levels `(N, H, W, C)`; what no layer reads any more is let go.

    What leaves float32 is infinite, without a warning.
    """
    last_use = {name: layer.name for layer in model.layers for name in layer.inputs}
    tensors: dict[str, np.ndarray] = {}
    for layer in model.layers:
        with np.errstate(all="ignore"):
            tensors[layer.name] = operate(layer, *([tensors[name] for name in layer.inputs] or [images]))
        yield layer.name, tensors[layer.name]
        for name in layer.inputs:
            if last_use[name] == layer.name:
                tensors.pop(name, None)


def images_at_once(model: FloatModel, most: int) -> int:
    """How many images to compute at once: `most`, or as few as keep to `FLOATS`, at least one."""
    return max(min(most, FLOATS // sum(map(prod, model.shapes.values()))), 1)


def scores(model: FloatModel, images: np.ndarray) -> np.ndarray:
    """The scores of int32 grey levels `(N, H, W, C)`: float32 `(N, classes)`."""
    result, batch = np.empty((len(images), model.classes), np.float32), images_at_once(model, BATCH)
    for start in range(0, len(images), batch):
        for _, tensor in trace(model, images[start : start + batch]):
            pass
        result[start : start + batch] = tensor
    return result


@singledispatch
def operate(layer: FloatLayer, *tensors: np.ndarray) -> np.ndarray:
    """The output of one layer."""
    raise TypeError(f"no operator for {layer.kind}")


def _padded(tensor: np.ndarray, padding: Sequence[int], value: float = 0.0) -> np.ndarray:
    if not any(padding):
        return tensor
    top, bottom, left, right = padding
    return np.pad(tensor, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _taps(
    tensor: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> Iterator[tuple[int, int, np.ndarray]]:
    """For each row and column of a kernel, what it meets in a padded tensor: `(N, OH, OW, C)`, a view."""
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    height, width = ((size - extent) // step + 1 for size, extent, step in zip(tensor.shape[1:3], extents, strides))
    for row, column in np.ndindex(kernel[0], kernel[1]):
        top, left = row * dilation[0], column * dilation[1]
        rows = slice(top, top + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(left, left + (width - 1) * strides[1] + 1, strides[1])
        yield row, column, tensor[:, rows, columns]


@operate.register
def _(layer: Input, images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / np.float32(255) - layer.mean) / layer.deviation


@operate.register
def _(layer: Conv2D, x: np.ndarray) -> np.ndarray:
    convolved = _depthwise if layer.groups == len(layer.weights) == x.shape[3] else _grouped
    parts = [convolved(layer, _padded(part, layer.padding)) for part in _split(x, WINDOWED)]
    result = np.concatenate(parts)
    return result if layer.bias is None else result + layer.bias


def _split(x: np.ndarray, count: int) -> Iterator[np.ndarray]:
    for start in range(0, max(len(x), 1), count):
        yield x[start : start + count]


def _depthwise(layer: Conv2D, padded: np.ndarray) -> np.ndarray:
    """A product of numbers, not of matrices, for each tap."""
    taps = _taps(padded, layer.weights.shape[1:3], layer.strides, layer.dilation)
    return sum((part * layer.weights[:, row, column, 0] for row, column, part in taps), start=np.float32(0))


def _grouped(layer: Conv2D, padded: np.ndarray) -> np.ndarray:
    """One matrix product a group, of all windows with its weights."""
    outputs, rows, columns, depth = layer.weights.shape
    taps = [part for _, _, part in _taps(padded, (rows, columns), layer.strides, layer.dilation)]
    each, results = outputs // layer.groups, []
    for group in range(layer.groups):
        windows = np.concatenate([part[..., group * depth : (group + 1) * depth] for part in taps], axis=-1)
        weights = layer.weights[group * each : (group + 1) * each].reshape(each, -1)
        results.append(windows.reshape(-1, rows * columns * depth) @ weights.T)
    return np.concatenate(results, axis=-1).reshape(*taps[0].shape[:3], outputs)


@operate.register
def _(layer: Linear, x: np.ndarray) -> np.ndarray:
    result = x @ layer.weights.T
    return result if layer.bias is None else result + layer.bias


@operate.register
def _(layer: BatchNorm, x: np.ndarray) -> np.ndarray:
    gain, offset = gain_and_offset(layer)
    return x * gain.astype(np.float32) + offset.astype(np.float32)


def gain_and_offset(layer: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """A batch normalization as `gain * x + offset`, float64 `(C,)` each."""
    gain = layer.scale.astype(np.float64) / np.sqrt(layer.variance.astype(np.float64) + layer.epsilon)
    return gain, layer.shift - layer.mean * gain


@operate.register
def _(layer: Clamp, x: np.ndarray) -> np.ndarray:
    return np.clip(x, np.float32(layer.minimum), np.float32(layer.maximum))


@operate.register
def _(layer: Function, x: np.ndarray) -> np.ndarray:
    return function_values(layer, x)


def function_values(layer: Function, x: np.ndarray) -> np.ndarray:
    """The function of a `Function` for an array of any float dtype."""
    if layer.function == "leaky_relu":
        return np.where(x < 0, x * x.dtype.type(layer.slope), x)
    return _FUNCTIONS[layer.function](x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(x))


def _gelu(x: np.ndarray) -> np.ndarray:
    """`x` times the probability that a standard normal is below it."""
    from scipy.special import ndtr

    return np.asarray(x * ndtr(x))


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6 + x.dtype.type(0.5), 0, 1)


_FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "gelu": _gelu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}


@operate.register
def _(layer: Add, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


@operate.register
def _(layer: Concat, *tensors: np.ndarray) -> np.ndarray:
    return np.concatenate(tensors, axis=-1)


@operate.register
def _(layer: MaxPool, x: np.ndarray) -> np.ndarray:
    taps = _taps(_padded(x, layer.padding, -np.inf), layer.kernel, layer.strides)
    return np.maximum.reduce([part for _, _, part in taps])


@operate.register
def _(layer: AveragePool, x: np.ndarray) -> np.ndarray:
    ones = _padded(np.ones((1, *x.shape[1:3], 1), np.float32), layer.padding, float(layer.count_include_pad))
    return _pool_sums(_padded(x, layer.padding), layer) / _pool_sums(ones, layer)


def _pool_sums(padded: np.ndarray, layer: AveragePool) -> np.ndarray:
    return sum((part for _, _, part in _taps(padded, layer.kernel, layer.strides)), start=np.float32(0))


@operate.register
def _(layer: GlobalAveragePool, x: np.ndarray) -> np.ndarray:
    return x.mean(axis=(1, 2))


@operate.register
def _(layer: Pad, x: np.ndarray) -> np.ndarray:
    return _padded(x, layer.padding)


@operate.register
def _(layer: Flatten, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
