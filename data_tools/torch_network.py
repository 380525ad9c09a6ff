"""Any float model as a PyTorch module: to be trained, or to compute in floats what integers are compared with.

The module is called with grey levels `(N, H, W, C)`, the int32 tensor of the noisy images; it does its own scaling, and
gives the scores `(N, classes)`. Inside, images are `(N, C, H, W)`, channels last in memory. What each layer computes is
specified by `float_engine`.

What is learned are parameters, the means and variances of batch norms are buffers, each under the name `LAYER/FIELD`,
such as "stem/weights". PyTorch has no dots in such names, so a dot in a layer's name becomes a slash too. Like every
module of PyTorch it begins in training mode, in which a batch norm normalizes by the mean and the variance of the batch
and moves its own a tenth of the way to them: `network.eval()` computes the model.

This module imports PyTorch, the extra `train`: whoever needs it imports it in the function that does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from math import inf
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
    arrays,
)
from intsmooth_ref.dataset import FULL_SCALE
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.layers import Layer

#: How far a batch norm's statistics move to those of a batch: PyTorch's own choice.
MOMENTUM = 0.1

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "hard_sigmoid": functional.hardsigmoid,
    "hard_swish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class TorchNetwork(torch.nn.Module):
    """A float model, with copies of its weights."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        self.model = model
        for layer in model.layers:
            for field, array in _state(layer).items():
                tensor = as_tensor(array)
                if isinstance(layer, BatchNorm) and field in ("mean", "variance"):
                    self.register_buffer(state_name(layer, field), tensor)
                else:
                    self.register_parameter(state_name(layer, field), torch.nn.Parameter(tensor))
        last_reader = {name: layer.name for layer in model.layers for name in layer.inputs}
        self._read_last_by = {
            layer.name: [name for name, reader in last_reader.items() if reader == layer.name]
            for layer in model.layers
        }

    def forward(self, images: Tensor) -> Tensor:
        """Scores `(N, classes)` of grey levels `(N, H, W, C)`; what no layer reads any more is let go."""
        tensors: dict[str, Tensor] = {}
        result = images
        for layer in self.model.layers:
            result = operate(layer, self, *([tensors[name] for name in layer.inputs] or [images]))
            tensors[layer.name] = result
            for name in self._read_last_by[layer.name]:
                del tensors[name]
        return result

    def state_of(self, layer: FloatLayer, field: str) -> Tensor:
        """An array of a layer, laid out as PyTorch has it."""
        return getattr(self, state_name(layer, field))

    def bias_of(self, layer: Conv2D | Linear) -> Tensor | None:
        return None if layer.bias is None else self.state_of(layer, "bias")


def to_float_model(network: torch.nn.Module, model: FloatModel) -> FloatModel:
    """The model with the weights and statistics that its network has now, copied, in float32.

    Raises:
        ModelFormatError: if one is not finite.
    """
    state = network.state_dict()

    def with_present_state(layer: FloatLayer) -> FloatLayer:
        present: dict[str, Any] = {field: as_array(state[state_name(layer, field)]) for field in _state(layer)}
        return replace(layer, **present)

    return replace(model, layers=tuple(map(with_present_state, model.layers)))


def _state(layer: FloatLayer) -> dict[str, np.ndarray]:
    """The arrays of a layer that training changes."""
    return {} if isinstance(layer, Input) else arrays(layer)


def state_name(layer: FloatLayer | Layer, field: str) -> str:
    return f"{layer.name}/{field}".replace(".", "/")


def as_tensor(array: np.ndarray) -> Tensor:
    """A copy; weights `(O, KH, KW, I)` become `(O, I, KH, KW)`, channels last in memory."""
    tensor = torch.from_numpy(array.copy())
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """The inverse of `as_tensor`."""
    tensor = tensor.detach().to("cpu", torch.float32)
    return np.array((tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy(), order="C")


# --- layers -----------------------------------------------------------------------------------------------------------


@singledispatch
def operate(layer: FloatLayer, network: TorchNetwork, *sources: Tensor) -> Tensor:
    """The output of a layer; the sources of an `Input` are the images."""
    raise TypeError(f"no layer of kind {layer.kind}")


@operate.register
def _(layer: Input, network: TorchNetwork, images: Tensor) -> Tensor:
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last) / FULL_SCALE
    if layer.mean.any() or (layer.deviation != 1).any():
        mean, deviation = (torch.tensor(each, device=x.device).view(-1, 1, 1) for each in (layer.mean, layer.deviation))
        x = (x - mean) / deviation
    return x


@operate.register
def _(layer: Conv2D, network: TorchNetwork, x: Tensor) -> Tensor:
    padding = _symmetric(layer.padding)
    if padding is None:
        x, padding = padded(x, layer.padding), (0, 0)
    weights, bias = network.state_of(layer, "weights"), network.bias_of(layer)
    return functional.conv2d(x, weights, bias, layer.strides, padding, layer.dilation, layer.groups)


@operate.register
def _(layer: Linear, network: TorchNetwork, x: Tensor) -> Tensor:
    return functional.linear(x, network.state_of(layer, "weights"), network.bias_of(layer))


@operate.register
def _(layer: BatchNorm, network: TorchNetwork, x: Tensor) -> Tensor:
    if network.training and x.numel() == x.shape[1]:
        raise ParameterError(f"layer {layer.name!r}: found one value a channel to normalize; expected a larger batch")
    mean, variance, scale, shift = (network.state_of(layer, each) for each in ("mean", "variance", "scale", "shift"))
    return functional.batch_norm(x, mean, variance, scale, shift, network.training, MOMENTUM, layer.epsilon)


@operate.register
def _(layer: Clamp, network: TorchNetwork, x: Tensor) -> Tensor:
    if (layer.minimum, layer.maximum) == (0, inf):
        return functional.relu(x)
    return functional.hardtanh(x, layer.minimum, layer.maximum)


@operate.register
def _(layer: Function, network: TorchNetwork, x: Tensor) -> Tensor:
    if layer.function == "leaky_relu":
        return functional.leaky_relu(x, layer.slope)
    return FUNCTIONS[layer.function](x)


@operate.register
def _(layer: Add, network: TorchNetwork, first: Tensor, second: Tensor) -> Tensor:
    return first + second


@operate.register
def _(layer: Concat, network: TorchNetwork, *sources: Tensor) -> Tensor:
    return torch.cat(sources, dim=1)


@operate.register
def _(layer: MaxPool, network: TorchNetwork, x: Tensor) -> Tensor:
    return functional.max_pool2d(padded(x, layer.padding, -inf), layer.kernel, layer.strides)


@operate.register
def _(layer: AveragePool, network: TorchNetwork, x: Tensor) -> Tensor:
    means = functional.avg_pool2d(padded(x, layer.padding), layer.kernel, layer.strides)
    if layer.count_include_pad:
        return means
    pixels = padded(torch.ones_like(x[:1, :1]), layer.padding)
    return means / functional.avg_pool2d(pixels, layer.kernel, layer.strides)


@operate.register
def _(layer: GlobalAveragePool, network: TorchNetwork, x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


@operate.register
def _(layer: Pad, network: TorchNetwork, x: Tensor) -> Tensor:
    return padded(x, layer.padding)


@operate.register
def _(layer: Flatten, network: TorchNetwork, x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


def _symmetric(padding: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of padding, if there are as many at one end as at the other."""
    top, bottom, left, right = padding
    return (top, left) if (top, left) == (bottom, right) else None


def padded(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    top, bottom, left, right = padding
    return functional.pad(x, (left, right, top, bottom), value=value) if any(padding) else x
