"""Batch and input normalization folded into the layers beside them: what is left are layers that integers have too.

A batch normalization behind a convolution or a linear layer and that layer are one layer (`x` is their input):

    (1)   norm(w * x + b) = (gain * w) * x + (gain * (b - mean) + shift),   gain = scale / sqrt(variance + epsilon)

One that stands anywhere else (behind an addition, a concatenation, a pool, a ReLU, or a layer that others read too)
becomes a convolution of one tap in which each channel sees itself alone; of vectors, a linear layer of diagonal
weights.

The normalization of the input goes into the first layers, too, as far as their padding lets it. They pad with zeros,
which are the mean, and integers pad with the one value that stands for zero. So there are three cases:

- Nothing pads the input: deviation and mean go into the first layers, equation (2) with `m` zero.
- It is padded, and all channels have one mean: so do the deviations, but that mean stays as `m`. Integers move the
  zero point to it. Their zero point is a point of a grid, so they may ask for an `m` that is not quite the mean: then
  padding, and it alone, is off by the difference.
- It is padded and means differ, or it is read by anything but these layers, padding or flattening: a convolution of
  one tap of its own normalizes it.

    (2)   sum_c w_c * (x_c - mean_c) / deviation_c = sum_c w'_c * (x_c - m) + sum_c w'_c * (m - mean_c),
          w'_c = w_c / deviation_c

All of it is computed in float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import isqrt
from typing import Union

import numpy as np

from intsmooth_ref.data_tools.float_engine import gain_and_offset
from intsmooth_ref.data_tools.float_model import (
    BatchNorm,
    Conv2D,
    Flatten,
    FloatLayer,
    FloatModel,
    Input,
    Linear,
    Pad,
    free_name,
)
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.proof import MAX_ELEMENTS

Product = Union[Conv2D, Linear]


def folded(model: FloatModel, input_mean: float | None = None) -> FloatModel:
    """The same function without batch normalization, its input less one mean `m` for all channels and no more.

    Layers that stay keep their names.

    Args:
        input_mean: `m`, where the input keeps a mean; by default its own, and only then is the function the very same.

    Raises:
        ModelFormatError: if a folded weight leaves float32, or a diagonal is too large for a layer.
    """
    without_norms = replace(model, layers=tuple(_without_batch_norms(model)))
    return replace(without_norms, layers=tuple(_with_plain_input(without_norms, input_mean)))


def _float32(layer: FloatLayer, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        found = "found a folded weight or bias beyond float32"
        raise ModelFormatError(f"layer {layer.name!r}: {found}; expected numbers that it holds")
    return rounded


def _products(layer: Product) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias, float64."""
    bias = np.zeros(len(layer.weights)) if layer.bias is None else layer.bias.astype(np.float64)
    return layer.weights.astype(np.float64), bias


def _with_products(layer: Product, weights: np.ndarray, bias: np.ndarray) -> Product:
    return replace(layer, weights=_float32(layer, weights), bias=_float32(layer, bias))


# --- batch normalization ----------------------------------------------------------------------------------------------


def _without_batch_norms(model: FloatModel) -> list[FloatLayer]:
    readers = Counter(name for layer in model.layers for name in layer.inputs)
    kept: dict[str, FloatLayer] = {}
    stands_for: dict[str, str] = {}  # by the name of a layer, who gives its output now
    for layer in model.layers:
        inputs = tuple(stands_for[name] for name in layer.inputs)
        if isinstance(layer, BatchNorm):
            source = kept[inputs[0]]
            if isinstance(source, (Conv2D, Linear)) and readers[layer.inputs[0]] == 1:
                kept[source.name] = _normalized(source, layer)
                stands_for[layer.name] = source.name
                continue
            layer = _by_itself(layer, model.shapes[layer.name])
        kept[layer.name] = replace(layer, inputs=inputs)
        stands_for[layer.name] = layer.name
    return list(kept.values())


def _normalized(layer: Product, norm: BatchNorm) -> Product:
    """Equation (1)."""
    weights, bias = _products(layer)
    gain, offset = gain_and_offset(norm)
    return _with_products(layer, weights * gain.reshape(-1, *[1] * (weights.ndim - 1)), bias * gain + offset)


def _by_itself(norm: BatchNorm, shape: tuple[int, ...]) -> Product:
    """A batch normalization of images or vectors as a layer of its own."""
    gain, offset = gain_and_offset(norm)
    bias = _float32(norm, offset)
    if len(shape) == 3:
        weights = _float32(norm, gain.reshape(-1, 1, 1, 1))
        return Conv2D(name=norm.name, inputs=norm.inputs, weights=weights, bias=bias, groups=len(gain))
    if len(gain) ** 2 > MAX_ELEMENTS:
        raise ModelFormatError(
            f"layer {norm.name!r}: found a batch normalization of {len(gain)} values that no linear layer precedes; "
            f"expected at most {isqrt(MAX_ELEMENTS)}"
        )
    return Linear(name=norm.name, inputs=norm.inputs, weights=np.diag(_float32(norm, gain)), bias=bias)


# --- normalization of the input ---------------------------------------------------------------------------------------


def _with_plain_input(model: FloatModel, input_mean: float | None) -> list[FloatLayer]:
    """The three cases above; `model` has no batch normalization."""
    source, shape = model.input, model.input.shape
    if not source.mean.any() and (source.deviation == 1).all():
        return list(model.layers)
    carriers = {source.name}  # the input, and what only pads or flattens it
    first: list[str] = []
    for layer in model.layers[1:]:
        if carriers.intersection(layer.inputs):
            if isinstance(layer, (Pad, Flatten)):
                carriers.add(layer.name)
            elif isinstance(layer, (Conv2D, Linear)):
                first.append(layer.name)
            else:
                return _normalized_apart(model)
    padded = any(any(getattr(layer, "padding", ())) for layer in model.layers if layer.name in (*carriers, *first))
    if padded and np.ptp(source.mean) > 0:
        return _normalized_apart(model)
    mean = 0.0
    if padded:
        mean = float(source.mean[0] if input_mean is None else np.float32(input_mean))
    plain = replace(Input.fractions_of_full_scale(source.name, shape), mean=np.full(shape[2], mean, np.float32))
    return [
        _taking_over(layer, source, mean) if layer.name in first else plain if layer is source else layer
        for layer in model.layers
    ]


def _taking_over(layer: FloatLayer, source: Input, mean: float) -> FloatLayer:
    """A first layer with the deviations and what is left of the means."""
    assert isinstance(layer, (Conv2D, Linear))
    weights, bias = _products(layer)
    channels = _channels_met(layer, source.shape[2])
    weights = weights / source.deviation.astype(np.float64)[channels]
    left = weights * (mean - source.mean.astype(np.float64))[channels]
    return _with_products(layer, weights, bias + left.reshape(len(left), -1).sum(axis=1))


def _channels_met(layer: Product, channels: int) -> np.ndarray:
    """Which channel of the input each weight multiplies: integers that broadcast against the weights."""
    if isinstance(layer, Linear):  # channels are fastest in what is flattened
        return np.arange(layer.weights.shape[1]) % channels
    outputs, depth = len(layer.weights), layer.weights.shape[3]
    group = np.arange(outputs) // (outputs // layer.groups)
    return (group[:, np.newaxis] * depth + np.arange(depth)).reshape(outputs, 1, 1, depth)


def _normalized_apart(model: FloatModel) -> list[FloatLayer]:
    """The input as fractions of full scale, and its normalization as a layer that all its readers read."""
    source = model.input
    names = [layer.name for layer in model.layers]
    ones = np.ones((source.shape[2], 1, 1, 1), np.float32)
    norm = Conv2D(
        name=free_name("normalized", names), inputs=(source.name,), weights=ones, groups=source.shape[2],
    )  # fmt: skip
    readers = [
        replace(layer, inputs=tuple(norm.name if name == source.name else name for name in layer.inputs))
        for layer in model.layers[1:]
    ]
    plain = Input.fractions_of_full_scale(source.name, source.shape)
    return [plain, _taking_over(norm, source, 0.0), *readers]
