"""Weights and constants as operators read them, and when 32 and 64 bits are enough for a tile.

What a tile is given beforehand is computed here in Python's integers, and refused (None, False) where the arithmetic of
a tile would not hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from ...fixedpoint import INT32_MAX, INT32_MIN
from ...model.graph import IntegerModel
from ...model.layers import Add, Conv2D, Linear, Quantization, Requantization
from . import simd
from .layout import Tensor, byte_offset, padded_channels


@dataclass(frozen=True)
class Sum:
    """zero_point + ((a * multipliers[0] + b * multipliers[1] + constant) >> shift) over the bytes of two tensors.

    constant = 2**(shift-1) - sum of multiplier * zero point of the operands, whose names are `operands`.
    """

    operands: tuple[str, str]
    multipliers: tuple[int, int]
    constant: int
    shift: int
    zero_point: int

    @classmethod
    def of(cls, model: IntegerModel, layer: Add, first: str) -> Sum:
        """As a layer computes it, the operand `first` first."""
        order = (0, 1) if layer.inputs[0] == first else (1, 0)
        constant = 1 << (layer.shift - 1)
        for name, multiplier in zip(layer.inputs, layer.multiplier.tolist()):
            proof = model.proofs[name]
            constant -= multiplier * (proof.zero_point + byte_offset(proof.dtype))
        a, b = order
        multipliers = int(layer.multiplier[a]), int(layer.multiplier[b])
        zero_point = layer.output.zero_point + byte_offset(layer.output.dtype)
        return cls((layer.inputs[a], layer.inputs[b]), multipliers, constant, layer.shift, zero_point)

    def in_halves(self) -> list[int] | None:
        """As a tile takes it: low and high parts of the multipliers, low and high constant, shift less 16.

        The zero point, times 2**shift, joins the constant. Each number is 2**16 * high + low, the low part of a
        multiplier within -2**15 .. 2**15 - 1. None if 32 bits do not hold the sums.
        """
        constant = self.constant + (self.zero_point << self.shift)
        high = [(multiplier + (1 << 15)) >> 16 for multiplier in self.multipliers]
        low = [multiplier - (part << 16) for multiplier, part in zip(self.multipliers, high)]
        most_of_low = 255 * 2 * (1 << 15) + (1 << 16) >> 16
        least, most = (constant >> 16) - most_of_low, (constant >> 16) + 255 * sum(high) + most_of_low
        fits = 16 <= self.shift <= 47 and max(high) < 1 << 15 and INT32_MIN <= least and most <= INT32_MAX
        return [*low, *high, constant & 0xFFFF, constant >> 16, self.shift - 16] if fits else None


def rounding_constants(requantization: Requantization, zero_point: int, channels: int) -> tuple[list[int], ...]:
    """Per channel: multiplier, 2**(shift-1) + zero_point * 2**shift, shift."""
    multiplier = np.broadcast_to(requantization.multiplier, channels).tolist()
    shift = np.broadcast_to(requantization.shift, channels).tolist()
    return multiplier, [(1 << (each - 1)) + (zero_point << each) for each in shift], shift


def rounds_in_vectors(model: IntegerModel, layer: Conv2D | Linear) -> bool:
    """Whether a tile's rounding holds for every accumulator of the layer: shifts from 32, all sums within 64 bits."""
    bounds = model.proofs[layer.name].accumulator
    requantization = layer.requantization
    if requantization is None or requantization.rounding != "single_rounding" or bounds is None:
        return False
    zero_point = layer.output.zero_point + byte_offset(layer.output.dtype)
    reach = max(abs(bounds[0]), abs(bounds[1]))
    constants = zip(*rounding_constants(requantization, zero_point, len(layer.weights)))
    return all(shift >= 32 and reach * multiplier + constant < 1 << 63 for multiplier, constant, shift in constants)


def pack_weights(isa: simd.InstructionSet, weights: np.ndarray, vectors: int) -> np.ndarray:
    """Weights int8 `(blocks, vectors * lanes, taps)` as the tile reads them: bytes `(blocks, ...)`.

    See the table in `simd`; steps, each of four taps, come first, then vectors.
    """
    blocks, _, taps = weights.shape
    split = weights.reshape(blocks, vectors, isa.lanes, taps // simd.TAPS, simd.TAPS).transpose(0, 3, 1, 2, 4)
    if isa.name == "avx2":  # (..., lane, tap) to (..., tap % 2, lane, tap // 2)
        split = split.reshape(*split.shape[:-1], 2, 2).transpose(0, 1, 2, 5, 3, 4)
    elif isa.name == "neon":
        split = split.transpose(0, 1, 2, 4, 3)
    return np.ascontiguousarray(split.astype(isa.weight_dtype)).reshape(blocks, -1).view(np.int8)


def pack_lanes(isa: simd.InstructionSet, weights: np.ndarray, vectors: int) -> np.ndarray:
    """Weights int8 `(blocks, vectors * lanes, taps)`, one channel a lane, as the tile reads them: words by tap.

    Only the part of the word that is multiplied with the input's byte holds the weight.
    """
    words = weights.transpose(0, 2, 1).astype(np.int32)
    if isa.name == "avx2":
        words = words & 0xFFFF
    elif isa.machines[0] == "x86_64":
        words = words & 0xFF
    return np.ascontiguousarray(words).reshape(len(weights), -1).view(np.int8)


def pack_quads(isa: simd.InstructionSet, weights: np.ndarray) -> np.ndarray:
    """Weights int8 `(blocks, 4 * lanes, taps)`, four channels a lane, as the tile reads them: words by tap and number.

    The word of number j holds the weight of channel 4 * lane + j where that channel's byte, or half, is multiplied.
    """
    blocks, _, taps = weights.shape
    by_number = weights.reshape(blocks, isa.lanes, simd.TAPS, taps).transpose(0, 3, 2, 1)
    number = np.arange(simd.TAPS)
    if isa.name == "avx2":  # bytes 0 and 2 are the halves of one factor, bytes 1 and 3 those of another
        halves = np.zeros((*by_number.shape, 2), np.int16)
        halves[:, :, number, :, number // 2] = by_number.transpose(2, 0, 1, 3)
        return halves.reshape(blocks, -1).view(np.int8)
    bytes_ = np.zeros((*by_number.shape, simd.TAPS), np.int8)
    bytes_[:, :, number, :, number] = by_number.transpose(2, 0, 1, 3)
    return bytes_.reshape(blocks, -1)


def pack_rows(isa: simd.InstructionSet, weights: np.ndarray, height: int) -> np.ndarray:
    """Weights int8 `(blocks, 4 * lanes, taps)` of windows so high as a tile by rows reads them: by column and number.

    The four bytes of a lane are the weights of its channel in the rows of the window, then 0.
    """
    blocks = len(weights)
    window = weights.reshape(blocks, isa.lanes // 4, 4, 4, height, -1)  # of 16 channels: number, lane, row, column
    lanes = np.zeros((blocks, window.shape[-1], 4, isa.lanes // 4, 4, simd.MOST_ROWS), np.int8)
    lanes[..., :height] = window.transpose(0, 5, 2, 1, 3, 4)
    return lanes.reshape(blocks, -1)


def in_rows(isa: simd.InstructionSet, values: np.ndarray) -> np.ndarray:
    """Channels in the order in which a tile by rows holds them."""
    return values.reshape(-1, isa.lanes // 4, 4, 4).transpose(0, 2, 1, 3).reshape(-1)


def in_quads(isa: simd.InstructionSet, values: np.ndarray) -> np.ndarray:
    """Channels in the order in which a tile of four channels a lane holds them: number by number."""
    return values.reshape(-1, isa.lanes, simd.TAPS).transpose(0, 2, 1).reshape(-1)


def vector_constants(
    isa: simd.InstructionSet, channels: Sequence[np.ndarray], blocks: int, vectors: int
) -> np.ndarray:
    """What a tile needs of its channels: int32 `(blocks, words)`.

    `channels` are the biases and, unless accumulators are stored, multipliers, constants and shifts. Of each vector:
    biases; multipliers of the even, of the odd lanes, int64; constants likewise; shifts less 32.
    """
    bias, multiplier, constant, shift = (
        np.concatenate([each, np.zeros(blocks * vectors * isa.lanes - len(each), np.int64)]).reshape(-1, isa.lanes)
        for each in (*channels, *[np.zeros(0, np.int64)] * (4 - len(channels)))
    )
    parts = [bias]
    for each in (multiplier, constant):
        parts += [np.ascontiguousarray(each[:, lane::2]).view(np.int32) for lane in (0, 1)]
    parts.append(np.maximum(shift - 32, 0))
    return np.concatenate(parts, axis=1).astype(np.int32).reshape(blocks, -1)


def wrapped(values: np.ndarray) -> np.ndarray:
    """Int64 modulo 2**32, as int32."""
    return values.astype(np.uint64).astype(np.uint32).view(np.int32)


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input: `Conv2D`, or a `Linear` layer seen as one of a single pixel."""

    weights: np.ndarray
    bias: np.ndarray
    strides: tuple[int, int]
    dilation: tuple[int, int]
    corner: tuple[int, int]
    groups: int
    requantization: Requantization | None
    output: Quantization

    @classmethod
    def of(cls, layer: Conv2D | Linear) -> Window:
        if isinstance(layer, Linear):
            weights = layer.weights[:, None, None, :]
            return cls(weights, layer.bias, (1, 1), (1, 1), (0, 0), 1, layer.requantization, layer.output)
        (step_h, step_w), (dilation_h, dilation_w) = layer.strides, layer.dilation
        corner = layer.padding[0], layer.padding[2]
        return cls(
            layer.weights, layer.bias, (step_h, step_w), (dilation_h, dilation_w), corner, layer.groups,
            layer.requantization, layer.output,
        )  # fmt: skip

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel, its own."""
        return self.weights.shape[3] == 1 and self.groups == len(self.weights) and self.groups > 1

    def channels(self, first: int, last: int) -> Window:
        """Some of the channels of a depthwise convolution."""
        requantization = self.requantization
        if requantization is not None and len(requantization.multiplier) > 1:
            requantization = replace(
                requantization, multiplier=requantization.multiplier[first:last], shift=requantization.shift[first:last]
            )
        return replace(
            self, weights=self.weights[first:last], bias=self.bias[first:last], groups=last - first,
            requantization=requantization,
        )  # fmt: skip

    def runs(self, x: Tensor, width: int, joined: bool) -> np.ndarray:
        """Offsets of the runs: of `width` channels each, or of whole rows of the window where these are joined."""
        _, kernel_height, kernel_width, _ = self.weights.shape
        rows = np.arange(kernel_height) * (self.dilation[0] * x.row)
        columns = np.arange(1 if joined else kernel_width) * (self.dilation[1] * x.pixel)
        return (rows[:, None] + columns).reshape(-1)

    def channel_ranges(self, x: Tensor, block: int) -> tuple[np.ndarray, int]:
        """The first input channel that each block of output channels reads, and how many: multiples of four."""
        share, depth = len(self.weights) // self.groups, self.weights.shape[3]
        begins, ends = [], []
        for first in range(0, len(self.weights), block):
            last = min(first + block, len(self.weights)) - 1
            begins.append(first // share * depth // 4 * 4)
            ends.append(padded_channels((last // share + 1) * depth))
        width = max(end - begin for begin, end in zip(begins, ends))
        return np.minimum(begins, x.pixel - width), width

    def dense(self, x: Tensor, block: int) -> np.ndarray:
        """Weights int8 `(blocks, block, taps)` over the channel ranges, 0 where an output does not look."""
        outputs, kernel_height, kernel_width, depth = self.weights.shape
        begins, width = self.channel_ranges(x, block)
        filled = np.zeros((len(begins) * block, kernel_height, kernel_width, width), np.int8)
        for o in range(outputs):
            first = o // (outputs // self.groups) * depth - begins[o // block]
            filled[o, :, :, first : first + depth] = self.weights[o]
        return filled.reshape(len(begins), block, -1)
