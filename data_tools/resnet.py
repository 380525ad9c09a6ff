"""Residual networks for small images, in floats: what `train` trains and what quantization takes apart.

The networks of He, Zhang, Ren, Sun 2015, section 4.2: a convolution, three stages of `(depth - 2) / 6` blocks of width
16, 32 and 64, a global average, a linear layer. A block of equal shapes, and one that changes the shape, are

    (1)   y = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + x)
    (2)   y = relu(norm(conv3x3(relu(norm(conv3x3(x, stride 2))))) + norm(conv1x1(x, stride 2)))

which is the paper's option B: the shortcut of its option A drops every other pixel and pads with channels of zeros, and
a model of integers has no layer for that, while a convolution of one tap costs next to nothing. Every tensor that a
model of integers holds is thus an output of batch norm, or of a ReLU, whose batch norm stands right after a convolution
without bias, and folds into it:

    (3)   norm(conv(x, w)) = conv(x, w * gain) + (shift - mean * gain),   gain = scale / sqrt(variance + epsilon)

Inputs are fractions of full scale, `(N, C, H, W)`, not normalized: zero, the value that a convolution pads with, is
black, so that the integers' padding with a zero point means the same; the first batch norm takes the mean away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator

import numpy as np

if TYPE_CHECKING:
    import torch

DEPTHS = (8, 20, 32, 56, 110)
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Block:
    """A residual block: equation (1) if its shape stays, else (2)."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def keeps_shape(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs


def blocks(depth: int) -> Iterator[Block]:
    """The blocks of a network in order; `stage2_1` is the first of the second stage."""
    inputs = WIDTHS[0]
    for stage, outputs in enumerate(WIDTHS, start=1):
        for number in range(1, (depth - 2) // 6 + 1):
            yield Block(f"stage{stage}_{number}", inputs, outputs, 2 if stage > 1 and number == 1 else 1)
            inputs = outputs


def residual_network(depth: int, channels: int, classes: int) -> torch.nn.ModuleDict:
    """The layers by name, freshly initialized from PyTorch's generator; `logits` computes them.

    A branch begins as zero, its second batch norm having scale 0, so that a deep network learns like a shallow one
    (Goyal et al. 2017, section 5.1).
    """
    from torch.nn import Linear, ModuleDict

    layers: dict[str, torch.nn.Module] = {"stem": _convolution(channels, WIDTHS[0], 3, 1)}
    for block in blocks(depth):
        layers[f"{block.name}_conv1"] = _convolution(block.inputs, block.outputs, 3, block.stride)
        layers[f"{block.name}_conv2"] = _convolution(block.outputs, block.outputs, 3, 1, first_scale=0.0)
        if not block.keeps_shape:
            layers[f"{block.name}_shortcut"] = _convolution(block.inputs, block.outputs, 1, block.stride)
    layers["scores"] = Linear(WIDTHS[-1], classes)
    return ModuleDict(layers)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, first_scale: float = 1.0
) -> torch.nn.Sequential:
    """A convolution with its batch norm; the weights' deviation is that of He et al. 2015, "Delving deep"."""
    from torch.nn import BatchNorm2d, Conv2d, Sequential, init

    convolution = Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = BatchNorm2d(outputs)
    init.constant_(norm.weight, first_scale)
    return Sequential(convolution, norm)


def logits(layers: torch.nn.ModuleDict, depth: int, images: torch.Tensor) -> torch.Tensor:
    """Scores `(N, CLASSES)` of images `(N, C, H, W)`, fractions of full scale."""
    from torch.nn.functional import relu

    x = relu(layers["stem"](images))
    for block in blocks(depth):
        y = relu(layers[f"{block.name}_conv1"](x))
        y = layers[f"{block.name}_conv2"](y)
        skip = x if block.keeps_shape else layers[f"{block.name}_shortcut"](x)
        x = relu(y + skip)
    return layers["scores"](x.mean(dim=(2, 3)))


def folded(layer: torch.nn.Sequential) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(O, KH, KW, I)` and bias `(O,)` of a convolution with its batch norm, equation (3), float64."""
    from torch.nn import BatchNorm2d, Conv2d

    convolution, norm = layer
    assert isinstance(convolution, Conv2d) and isinstance(norm, BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None  # for mypy: they are kept
    weights = _as_array(convolution.weight).transpose(0, 2, 3, 1)
    gain = _as_array(norm.weight) / np.sqrt(_as_array(norm.running_var) + norm.eps)
    return weights * gain.reshape(-1, 1, 1, 1), _as_array(norm.bias) - _as_array(norm.running_mean) * gain


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())
