"""Networks of random weights in the shape of well-known ones, the same to the bit on every machine.

A speed depends on a network's shape, and hardly on its weights; but a network whose activations are all zero or all
clamped is a poor witness. So the weights follow the law that they are usually drawn from, the normal, and a batch
normalization is folded into each convolution:

    (1)   weights: discrete Gaussian of parameter 40, clamped to -127 .. 127; for the largest of a channel's few
          hundred weights, which quantization takes to 127, is about three standard deviations
    (2)   real output of a channel: gain * ((accumulator - mean) / deviation + shift)

with the mean and the deviation of the channel's accumulators over a few noisy pictures. `shift` is Gaussian of
deviation 1/4, about 1/2 where a ReLU follows and about 0 elsewhere; `gain` is 1, and 1/4 at the end of a residual
branch. Without these two a random network of a hundred layers is chaotic: where two programs round differently, the
difference grows until they disagree about the class, and nobody sees any more that they compute the same network.
All of it is integer or rational arithmetic on words of Philox, so no float can make two machines differ.

The networks, for 32x32x3 pictures and ten classes:

    resnet20, resnet110   He, Zhang, Ren, Sun 2015, section 4.2: widths 16, 32, 64; shortcuts of other widths are 1x1
                          convolutions (the paper's option B), since the model format has no strided copy (option A)
    mobilenetv2           Sandler et al. 2018, table 2, with stride 1 in the stem and in the second stage, as is usual
                          for pictures of this size
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from math import isqrt, lcm, prod
from typing import Callable, Mapping

import numpy as np

from ..engine import reference
from ..fixedpoint import quantize_multiplier
from ..model.graph import IntegerModel
from ..model.layers import (
    Add,
    Conv2D,
    GlobalAveragePool,
    InputQuantization,
    Layer,
    Linear,
    Quantization,
    Requantization,
)
from ..model.proof import TensorProof
from ..noise.distributions import discrete_gaussian
from ..noise.philox import philox4x32_array
from ..noise.sampler import noise_table, sample

SEED = 1
#: Stages of the sampler, and a purpose of Philox, that nothing else uses.
WEIGHTS, SHIFTS, PICTURE_NOISE, PICTURES = (1 << 20) + 0, (1 << 20) + 1, (1 << 20) + 2, (1 << 31) + 3

WEIGHT_SIGMA, WEIGHT_MAX = 40, 127
#: Shifts are counted in this part of a deviation, so that a draw of parameter `WEIGHT_SIGMA` is one of deviation 1/4.
SHIFT_UNITS = 4 * WEIGHT_SIGMA
BRANCH_GAIN = Fraction(1, 4)
#: Of the pictures, in grey levels: a quarter of full scale.
NOISE_SIGMA = Fraction(255, 4)

#: Pictures over which means, deviations and ranges are taken.
CALIBRATION_PICTURES = 8
CLASSES = 10

#: Grey levels 0 .. 255 are reals 0 .. 1; the grid of the input reaches noise of 2.6 deviations beyond.
INPUT = Quantization.full_range("uint8", Fraction(1, 120), 80)
#: The grids of convolutions with a ReLU and without, at a gain of 1: 4.5 deviations.
RECTIFIED = Quantization.full_range("uint8", Fraction(1, 56), 0)
SIGNED = Quantization.full_range("uint8", Fraction(1, 28), 128)
#: Significant bits, or one more, of a scale that is chosen by an extreme value.
SCALE_BITS = 6


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, ...], count: int, first: int = 0) -> np.ndarray:
    """Pictures `first` .. `first + count - 1`, of about 4x4 random patches: uint8 `(count, H, W, C)`."""
    height, width, channels = shape
    tall, wide = max(height // 4, 1), max(width // 4, 1)
    rows, columns = -(-height // tall), -(-width // wide)
    number = np.arange(first, first + count).reshape(count, 1)
    words = philox4x32_array(np.arange(rows * columns * channels), number, 0, PICTURES, SEED)[..., 0]
    patches = (words >> 24).astype(np.uint8).reshape(count, rows, columns, channels)
    return patches.repeat(tall, axis=1).repeat(wide, axis=2)[:, :height, :width]


def noisy_pictures(shape: tuple[int, ...], count: int, first: int = 0) -> np.ndarray:
    """`pictures` under noise of a quarter of full scale, as certifying makes them: int32 `(count, H, W, C)`."""
    noise = sample(noise_table(discrete_gaussian(NOISE_SIGMA)), SEED, 0, PICTURE_NOISE, first, count, prod(shape))
    return pictures(shape, count, first).astype(np.int32) + noise.reshape(count, *shape)


# --- layers, calibrated as they are added -----------------------------------------------------------------------------


class _Builder:
    """Grows a network; `outputs` and `values` are the grid and the calibration pictures of each layer."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.layers: list[Layer] = []
        self.outputs: dict[str, Quantization] = {}
        self.values: dict[str, np.ndarray] = {}
        requantization = Requantization.of(quantize_multiplier(Fraction(1, 255) / INPUT.scale))
        first = InputQuantization(name="input", shape=shape, requantization=requantization, output=INPUT)
        self._append(first, INPUT, reference.operate(first, (), noisy_pictures(shape, CALIBRATION_PICTURES)))

    def _append(self, layer: Layer, output: Quantization, values: np.ndarray) -> str:
        self.layers.append(layer)
        self.outputs[layer.name], self.values[layer.name] = output, values
        return layer.name

    def _compute(self, layer: Layer) -> np.ndarray:
        sources = [_as_proof(self.outputs[name], self.values[name]) for name in layer.inputs]
        return reference.operate(layer, sources, *(self.values[name] for name in layer.inputs))

    def _weights(self, outputs: int, taps: int) -> np.ndarray:
        table = noise_table(discrete_gaussian(WEIGHT_SIGMA))
        drawn = sample(table, SEED, len(self.layers), WEIGHTS, 0, outputs, taps)
        return np.clip(drawn, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)

    def _shifts(self, outputs: int, rectified: bool) -> np.ndarray:
        table = noise_table(discrete_gaussian(WEIGHT_SIGMA))
        drawn = sample(table, SEED, len(self.layers), SHIFTS, 0, 1, outputs)[0].astype(np.int64)
        return drawn + SHIFT_UNITS // 2 if rectified else drawn

    def convolution(
        self, name: str, source: str, channels: int, kernel: int, stride: int = 1, depthwise: bool = False,
        gain: Fraction = Fraction(1), rectified: bool = True,
    ) -> str:  # fmt: skip
        """Convolution and batch normalization, equations (1) and (2); returns the layer's name."""
        inputs = self.values[source].shape[3]
        taps = 1 if depthwise else inputs
        weights = self._weights(channels, kernel * kernel * taps).reshape(channels, kernel, kernel, taps)
        grid = RECTIFIED if rectified else SIGNED
        output = replace(grid, scale=gain * grid.scale)

        def layer(bias: np.ndarray, output: Quantization, requantization: Requantization | None) -> Conv2D:
            return Conv2D(
                name=name, inputs=(source,), weights=weights, bias=bias, requantization=requantization, output=output,
                strides=(stride, stride), padding=(kernel // 2,) * 4, groups=inputs if depthwise else 1,
            )  # fmt: skip

        accumulators = self._compute(layer(np.zeros(channels, np.int32), _bare(Fraction(1)), None))
        means, deviations = _means_and_deviations(accumulators.reshape(-1, channels))
        bias = self._shifts(channels, rectified) * deviations // SHIFT_UNITS - means
        ratios = (gain / (int(deviation) * output.scale) for deviation in deviations)
        requantization = Requantization.of(*map(quantize_multiplier, ratios))
        normalized = layer(bias.astype(np.int32), output, requantization)
        return self._append(normalized, output, self._compute(normalized))

    def add(self, name: str, branch: str, skip: str, rectified: bool) -> str:
        """The sum of two tensors, on a grid that just holds it; returns the layer's name."""
        grids, values = [self.outputs[branch], self.outputs[skip]], [self.values[branch], self.values[skip]]
        unit = Fraction(1, lcm(*(grid.scale.denominator for grid in grids)))
        terms = [(x.astype(np.int64) - grid.zero_point) * int(grid.scale / unit) for x, grid in zip(values, grids)]
        total = terms[0] + terms[1]
        output = _grid_of_extreme(int((total if rectified else np.abs(total)).max()) * unit, rectified)
        ratios = [grid.scale / output.scale for grid in grids]
        _, shift = quantize_multiplier(max(ratios))
        multiplier = np.array([round(ratio * 2**shift) for ratio in ratios], np.int32)
        layer = Add(name=name, inputs=(branch, skip), multiplier=multiplier, shift=shift, output=output)
        return self._append(layer, output, self._compute(layer))

    def finish(self, source: str) -> IntegerModel:
        """Global average, and scores that are bare accumulators; a class is as likely as any other."""
        grid, values = self.outputs[source], self.values[source]
        area = prod(values.shape[1:3])
        largest = int((values.astype(np.int64) - grid.zero_point).sum(axis=(1, 2)).max())
        output = _grid_of_extreme(largest * grid.scale / area, rectified=True)
        pool = GlobalAveragePool(
            name="pool", inputs=(source,), output=output,
            requantization=Requantization.of(quantize_multiplier(grid.scale / area / output.scale)),
        )  # fmt: skip
        self._append(pool, output, self._compute(pool))
        weights, bias = self._weights(CLASSES, values.shape[3]), np.zeros(CLASSES, np.int32)
        trial = Linear(name="scores", inputs=("pool",), weights=weights, bias=bias, output=_bare(Fraction(1)))
        means, deviations = _means_and_deviations(self._compute(trial))
        scale = Fraction(1, int(deviations.max()))
        scores = Linear(
            name="scores", inputs=("pool",), weights=weights, bias=(-means).astype(np.int32), output=_bare(scale)
        )
        return IntegerModel((*self.layers, scores), provenance="random weights, intsmooth_ref.benchmark.networks")


def _as_proof(grid: Quantization, values: np.ndarray) -> TensorProof:
    return TensorProof(values.shape[1:], grid.dtype, grid.scale, grid.zero_point, grid.minimum, grid.maximum)


def _bare(scale: Fraction) -> Quantization:
    """Of an accumulator that is an output as it stands."""
    return Quantization.full_range("int32", scale, 0)


def _means_and_deviations(accumulators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of `(N, C)`, rounded down; a deviation is at least 1. int64 `(C,)` each."""
    wide = accumulators.astype(np.int64)
    means = wide.sum(axis=0) // len(wide)
    variances = ((wide - means) ** 2).sum(axis=0) // len(wide)
    return means, np.array([max(isqrt(int(variance)), 1) for variance in variances], np.int64)


def _grid_of_extreme(extreme: Fraction, rectified: bool) -> Quantization:
    """The uint8 grid up to `extreme`, or from `-extreme` to it, its scale rounded up to `SCALE_BITS` bits."""
    step = max(extreme, RECTIFIED.scale) / (255 if rectified else 127)
    exponent = step.numerator.bit_length() - step.denominator.bit_length() - SCALE_BITS
    unit = Fraction(2) ** exponent
    scale = -(-step // unit) * unit
    return Quantization.full_range("uint8", scale, 0 if rectified else 128)


# --- the networks -----------------------------------------------------------------------------------------------------


def _resnet(blocks: int) -> IntegerModel:
    """Three stages of `blocks` residual blocks: `6 * blocks + 2` layers, shortcuts not counted."""
    builder = _Builder((32, 32, 3))
    x = builder.convolution("stem", "input", 16, 3)
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}.{block}"
            y = builder.convolution(f"{name}.conv1", x, channels, 3, stride)
            y = builder.convolution(f"{name}.conv2", y, channels, 3, gain=BRANCH_GAIN, rectified=False)
            if stride == 2:
                x = builder.convolution(f"{name}.shortcut", x, channels, 1, stride, rectified=False)
            x = builder.add(f"{name}.add", y, x, rectified=True)
    return builder.finish(x)


def _mobilenet_v2() -> IntegerModel:
    """Inverted residual blocks; each stage is an expansion, its output's width, its blocks and its stride."""
    builder = _Builder((32, 32, 3))
    x, width = builder.convolution("stem", "input", 32, 3), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expansion, channels, blocks, first_stride) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            stride = first_stride if block == 1 else 1
            name, y = f"stage{stage}.{block}", x
            if expansion > 1:
                y = builder.convolution(f"{name}.expand", y, expansion * width, 1)
            y = builder.convolution(f"{name}.depthwise", y, expansion * width, 3, stride, depthwise=True)
            gain = BRANCH_GAIN if block > 1 else Fraction(1)
            y = builder.convolution(f"{name}.project", y, channels, 1, gain=gain, rectified=False)
            x = builder.add(f"{name}.add", y, x, rectified=False) if block > 1 else y
            width = channels
    return builder.finish(builder.convolution("head", x, 1280, 1))


_BUILDERS: Mapping[str, Callable[[], IntegerModel]] = {
    "resnet20": lambda: _resnet(3),
    "resnet110": lambda: _resnet(18),
    "mobilenetv2": _mobilenet_v2,
}
RANDOM_NETWORKS = tuple(_BUILDERS)


@lru_cache(maxsize=None)
def random_network(name: str) -> IntegerModel:
    """One of `RANDOM_NETWORKS`; takes seconds."""
    return _BUILDERS[name]()
