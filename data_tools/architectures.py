"""Networks for small images as float models, with their first weights: what `train` trains.

    resnet8 .. resnet110      He, Zhang, Ren, Sun 2015, "Deep Residual Learning", section 4.2
    vgg11, vgg13, vgg16       Simonyan, Zisserman 2014, table 1, columns A, B and D, with batch norm
    mobilenetv2               Sandler, Howard, Zhu, Zhmoginov, Chen 2018, table 2

All end in a global average and one linear layer, so they take images of any size. In none of them does a convolution
that a batch norm follows have a bias, and each batch norm stands right behind a convolution, into which it folds.

**ResNet.** A convolution, three stages of `(depth - 2) / 6` blocks, 16, 32 and 64 wide. A block that keeps the shape
of its input, and one that changes it, are

    (1)   y = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + x)
    (2)   y = relu(norm(conv3x3(relu(norm(conv3x3(x, stride 2))))) + norm(conv1x1(x, stride 2)))

which is the paper's option B: the shortcut of its option A drops every other pixel and pads with channels of zeros, and
a model of integers has no layer for that, while a convolution of one tap costs next to nothing. A branch begins as
zero, its second batch norm having scale 0, so that a deep network learns like a shallow one (Goyal et al. 2017,
section 5.1). The first convolution halves images that are more than 32 pixels high or wide, for which the paper has
other networks.

**VGG.** The three large linear layers of the paper, made for 1000 classes, give way to the global average. A stage ends
in a pooling only while height and width are more than 2, so an image of 32x32 is pooled four times.

**MobileNetV2.** The first convolution and the second stage halve only images that are more than 32 pixels high or wide
when they get there: 32x32 is halved by neither, 64x64 by the first, 224x224 by both as in the paper. The last
convolution never gets fewer than 1280 channels (section 4.1 of the paper).

All widths are multiplied by `width` and rounded to multiples of 8, as MobileNet's reference code rounds them:

    (3)   rounded(c) = max(8, 8 * floor((c + 4) / 8)),   and 8 more if that is less than 0.9 * c

First weights are normal with mean 0 and the deviation of He et al. 2015, "Delving Deep into Rectifiers", section 2.2,
in its backward form; those of the last layer, which no ReLU follows, have variance 1 / inputs:

    (4)   deviation = sqrt(2 / (KH * KW * O / groups))

They come from NumPy's default generator, layer by layer, so they are the same wherever its version is.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from math import inf, prod, sqrt
from typing import Callable, Mapping, Sequence

import numpy as np

from intsmooth_ref.data_tools.float_model import (
    Add,
    BatchNorm,
    Clamp,
    Conv2D,
    FloatLayer,
    FloatModel,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
)
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.proof import MAX_ELEMENTS, MAX_EXTENT

RESNET_WIDTHS = (16, 32, 64)

#: A stage a row, a convolution a number: its width.
VGG_STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
#: Height and width from which on a stage's end pools.
VGG_POOLED = 3

#: A stage a row: expansion, width, blocks, and the stride of the first block.
MOBILENET_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
MOBILENET_FIRST, MOBILENET_LAST = 32, 1280

#: Up to this height and width no first convolution halves an image, nor does the second stage of MobileNetV2.
SMALL = 32

Shape = tuple[int, int, int]


def architecture(
    name: str, shape: Sequence[int], classes: int, width: Fraction = Fraction(1), seed: int = 0
) -> FloatModel:
    """A network of `ARCHITECTURES` with its first weights, for images `(H, W, C)`, fractions of full scale.

    Nothing is normalized: zero, the value that a convolution pads with, is black.

    Raises:
        ParameterError: if there is none of this name, or a width, a size or a number of classes is impossible.
    """
    if name not in ARCHITECTURES:
        raise ParameterError(f"architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    if width <= 0:
        raise ParameterError(f"width {width}: expected a number above zero")
    height, columns, channels = shape
    builder = _Builder((height, columns, channels), Fraction(width), seed)
    ARCHITECTURES[name](builder)
    builder.average_and_scores(classes)
    return FloatModel(tuple(builder.layers), provenance=f"{name}, width {width}, first weights of seed {seed}")


def rounded_width(channels: int, width: Fraction) -> int:
    """Equation (3), of `channels * width`."""
    wanted = channels * width
    multiple = max(8, (wanted + 4) // 8 * 8)
    return int(multiple if multiple >= Fraction(9, 10) * wanted else multiple + 8)


class _Builder:
    """Grows a network at its end: `last` is the layer that the next one reads, if it is told nothing else."""

    def __init__(self, shape: Shape, width: Fraction, seed: int) -> None:
        self.width = width
        self.layers: list[FloatLayer] = [Input.fractions_of_full_scale("input", shape)]
        self._shapes: dict[str, Shape] = {"input": shape}
        self._generator = np.random.default_rng(seed)

    @property
    def last(self) -> str:
        return self.layers[-1].name

    @property
    def shape(self) -> Shape:
        """Of the last layer's output."""
        return self._shapes[self.last]

    @property
    def stride_of_large_images(self) -> int:
        """Of a convolution that halves large images alone."""
        return 2 if max(self.shape[:2]) > SMALL else 1

    def _append(self, layer: FloatLayer, shape: Shape) -> str:
        self.layers.append(layer)
        self._shapes[layer.name] = shape
        return layer.name

    def _weights(self, name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
        if min(shape) < 1 or max(shape) > MAX_EXTENT or prod(shape) > MAX_ELEMENTS:
            expected = f"1 to {MAX_EXTENT} channels or classes, and at most {MAX_ELEMENTS} weights"
            raise ParameterError(f"layer {name!r}: found weights of shape {shape}; expected {expected}")
        return (deviation * self._generator.standard_normal(shape)).astype(np.float32)

    def convolution(
        self, name: str, channels: int, kernel: int, stride: int = 1, *, source: str | None = None,
        depthwise: bool = False, first_scale: float = 1.0,
    ) -> str:  # fmt: skip
        """A convolution that pads so as to keep the image's size, but for its stride, and its batch norm."""
        source = self.last if source is None else source
        height, width, inputs = self._shapes[source]
        groups = inputs if depthwise else 1
        shape = (channels, kernel, kernel, inputs // groups)
        weights = self._weights(name, shape, sqrt(2 / (kernel * kernel * channels / groups)))
        output = (-(-height // stride), -(-width // stride), channels)
        convolution = Conv2D(
            name=name, inputs=(source,), weights=weights, strides=(stride, stride), padding=(kernel // 2,) * 4,
            groups=groups,
        )  # fmt: skip
        zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        scale = np.full(channels, first_scale, np.float32)
        self._append(convolution, output)
        norm = BatchNorm(name=f"{name}_norm", inputs=(name,), scale=scale, shift=zeros, mean=zeros, variance=ones)
        return self._append(norm, output)

    def relu(self, name: str, maximum: float = inf) -> str:
        return self._append(Clamp(name=name, inputs=(self.last,), maximum=maximum), self.shape)

    def add(self, name: str, skip: str) -> str:
        return self._append(Add(name=name, inputs=(self.last, skip)), self.shape)

    def halve_by_maximum(self, name: str) -> str:
        height, width, channels = self.shape
        pool = MaxPool(name=name, inputs=(self.last,), kernel=(2, 2), strides=(2, 2))
        return self._append(pool, (height // 2, width // 2, channels))

    def average_and_scores(self, classes: int) -> None:
        inputs = self.shape[2]
        self.layers.append(GlobalAveragePool(name="average", inputs=(self.last,)))
        weights = self._weights("scores", (classes, inputs), sqrt(1 / inputs))
        bias = np.zeros(classes, np.float32)
        self.layers.append(Linear(name="scores", inputs=("average",), weights=weights, bias=bias))


# --- the networks -----------------------------------------------------------------------------------------------------


def _resnet(builder: _Builder, depth: int) -> None:
    widths = [rounded_width(channels, builder.width) for channels in RESNET_WIDTHS]
    builder.convolution("stem", widths[0], 3, builder.stride_of_large_images)
    builder.relu("stem_relu")
    for stage, channels in enumerate(widths, start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            _residual_block(builder, f"stage{stage}_{block}", channels, 2 if stage > 1 and block == 1 else 1)


def _residual_block(builder: _Builder, name: str, channels: int, stride: int) -> None:
    """Equation (1), or (2) with a stride; the number of channels changes there only."""
    skip = source = builder.last
    if stride > 1:
        skip = builder.convolution(f"{name}_shortcut", channels, 1, stride)
    builder.convolution(f"{name}_conv1", channels, 3, stride, source=source)
    builder.relu(f"{name}_conv1_relu")
    builder.convolution(f"{name}_conv2", channels, 3, first_scale=0.0)
    builder.add(f"{name}_add", skip)
    builder.relu(f"{name}_relu")


def _vgg(builder: _Builder, depth: int) -> None:
    for stage, widths in enumerate(VGG_STAGES[depth], start=1):
        for number, channels in enumerate(widths, start=1):
            builder.convolution(f"stage{stage}_{number}", rounded_width(channels, builder.width), 3)
            builder.relu(f"stage{stage}_{number}_relu")
        if min(builder.shape[:2]) >= VGG_POOLED:
            builder.halve_by_maximum(f"stage{stage}_pool")


def _mobilenet_v2(builder: _Builder) -> None:
    builder.convolution("stem", rounded_width(MOBILENET_FIRST, builder.width), 3, builder.stride_of_large_images)
    builder.relu("stem_relu6", 6.0)
    for stage, (expansion, channels, blocks, first_stride) in enumerate(MOBILENET_STAGES, start=1):
        if stage == 2:
            first_stride = builder.stride_of_large_images
        for block in range(1, blocks + 1):
            stride = first_stride if block == 1 else 1
            _inverted_residual(
                builder, f"stage{stage}_{block}", expansion, rounded_width(channels, builder.width), stride
            )
    builder.convolution("head", rounded_width(MOBILENET_LAST, max(builder.width, Fraction(1))), 1)
    builder.relu("head_relu6", 6.0)


def _inverted_residual(builder: _Builder, name: str, expansion: int, channels: int, stride: int) -> None:
    """Wide inside, narrow and without an activation at its end, where the input is added if the shape is the same."""
    source, source_channels = builder.last, builder.shape[2]
    inside = expansion * source_channels
    if expansion > 1:
        builder.convolution(f"{name}_expand", inside, 1)
        builder.relu(f"{name}_expand_relu6", 6.0)
    builder.convolution(f"{name}_depthwise", inside, 3, stride, depthwise=True)
    builder.relu(f"{name}_depthwise_relu6", 6.0)
    builder.convolution(f"{name}_project", channels, 1)
    if stride == 1 and channels == source_channels:
        builder.add(f"{name}_add", source)


ARCHITECTURES: Mapping[str, Callable[[_Builder], None]] = {
    **{f"resnet{depth}": partial(_resnet, depth=depth) for depth in (8, 20, 32, 56, 110)},
    **{f"vgg{depth}": partial(_vgg, depth=depth) for depth in VGG_STAGES},
    "mobilenetv2": _mobilenet_v2,
}
