"""From a model to the steps that compute it: layers fused, weights packed, tensors placed.

Tensors of 8 bits are computed as uint8: an int8 tensor is stored plus 128, and its zero point and limits with it.
Every operator takes only differences, order, or means of its input, so the offset changes nothing else.

A convolution sums w * q over the bytes q themselves; the zero point z of its input enters the bias once:
bias + sum w (q - z) = (bias - z sum w) + sum w q, modulo 2**32, and the left side is proven to fit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import singledispatch
from typing import Any, Iterable, Sequence

import numpy as np

from ...compilation import Operator
from ...fixedpoint import INT32_MAX, INT32_MIN, ROUNDING_MODES
from ...model.graph import IntegerModel
from ...model.layers import (
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
from . import operators, simd
from .layout import NO_BORDER, SLACK, Border, Layout, Tensor, byte_offset, image_shape, padded_channels, positions
from .memory import Memory

PORTABLE = "portable"
#: Tiles may ask for the places of so many pixels beyond the last.
MOST_PIXELS = 16
#: Samples are computed together as long as the largest layer's input and output stay within these bytes, but no more
#: than `MOST_SAMPLES`.
BLOCK_BYTES, MOST_SAMPLES = 1 << 17, 16


@dataclass(frozen=True)
class Tile:
    """The register tile of a convolution of a kind (`simd.DENSE`, ...): pixels by vectors of output channels."""

    kind: str
    pixels: int
    vectors: int


@dataclass(frozen=True)
class Step:
    """What is computed at one go: these layers, by these calls, with so many multiply-adds a sample."""

    layers: tuple[str, ...]
    calls: tuple[tuple[Operator, int], ...]
    multiply_adds: int


@dataclass(frozen=True)
class Program:
    """A model made ready to run.

    Attributes:
        samples: how many samples one execution computes at most.
        code, tables, octets: the constant memories.
        bytes_, words: extent of the other two.
        borders: (begin, end, byte) of what must be filled in `activations` beforehand.
        image: place in `accumulators` of the noisy images, dense int32.
        classes: place in `accumulators` of the classes found.
        tensors: where layers' outputs are found afterwards.
        tiles: of its convolutions.
    """

    steps: tuple[Step, ...]
    samples: int
    code: np.ndarray
    tables: np.ndarray
    octets: np.ndarray
    bytes_: int
    words: int
    borders: tuple[tuple[int, int, int], ...]
    image: int
    classes: int
    tensors: dict[str, Tensor]
    tiles: frozenset[Tile]

    def memory(self) -> Memory:
        """The memory of one thread: the constants are shared."""
        activations = np.zeros(self.bytes_ + SLACK, np.uint8)
        for begin, end, value in self.borders:
            activations[begin:end] = value
        return Memory(self.code, self.tables, self.octets, activations, np.zeros(self.words + SLACK, np.int32))


def lower(model: IntegerModel, isa: str, tile: Tile | None = None, keep_all: bool = False) -> Program:
    """Make a program of a model.

    Args:
        isa: an instruction set of `simd`, or `portable`.
        tile: for all convolutions; by default the best for each.
        keep_all: every layer on its own, its output kept.
    """
    assembly = _Assembly(model, isa, tile)
    groups = [(layer,) for layer in model.layers] if keep_all else fuse(model, isa)
    last_use = {name: index for index, group in enumerate(groups) for layer in group for name in layer.inputs}
    for index, group in enumerate(groups):
        assembly.compute(group)
        if not keep_all:
            assembly.give_back(name for name, last in last_use.items() if last == index)
    return assembly.program()


def samples_of_a_block(model: IntegerModel) -> int:
    def extent(name: str) -> int:
        return int(np.prod(model.proofs[name].shape))

    largest = max(extent(layer.name) + sum(map(extent, layer.inputs)) for layer in model.layers)
    return max(1, min(MOST_SAMPLES, BLOCK_BYTES // largest))


# --- which layers are computed together -------------------------------------------------------------------------------


def fuse(model: IntegerModel, isa: str) -> list[tuple[Layer, ...]]:
    """Groups of layers that are computed at one go: a product, an addition to it, clamps.

    A layer joins the one before it if it alone reads that one's output. The group stands where its last layer stood.
    """
    readers: dict[str, int] = {}
    for layer in model.layers:
        for name in layer.inputs:
            readers[name] = readers.get(name, 0) + 1
    groups: dict[str, tuple[Layer, ...]] = {}
    for layer in model.layers:
        names = [name for name in layer.inputs if readers[name] == 1 and _joins(model, isa, groups[name], layer)]
        group = groups.pop(names[-1]) if names else ()
        groups[layer.name] = (*group, layer)
    return list(groups.values())


def _joins(model: IntegerModel, isa: str, group: tuple[Layer, ...], layer: Layer) -> bool:
    head = group[0]
    if isinstance(layer, Clamp):
        return isinstance(head, Add) or isinstance(head, (Conv2D, Linear)) and head.requantization is not None
    alone = not any(isinstance(each, Add) for each in group)
    if not (isinstance(layer, Add) and isinstance(head, (Conv2D, Linear)) and alone and isa != PORTABLE):
        return False
    return rounds_in_vectors(model, head) and Sum.of(model, layer, group[-1].name).in_halves() is not None


def _clamped(output: Quantization, clamps: Iterable[Layer]) -> tuple[int, int, int]:
    """Zero point, minimum and maximum of a quantization and the clamps after it, as bytes."""
    low, high = output.minimum, output.maximum
    for clamp in clamps:
        assert isinstance(clamp, Clamp)
        low, high = (min(max(each, clamp.minimum), clamp.maximum) for each in (low, high))
    offset = byte_offset(output.dtype)
    return output.zero_point + offset, low + offset, high + offset


# --- constants of additions and roundings -----------------------------------------------------------------------------


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


# --- packing ----------------------------------------------------------------------------------------------------------


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


# --- assembling -------------------------------------------------------------------------------------------------------


class _Assembly:
    """Collects steps, constants and places, layer by layer."""

    def __init__(self, model: IntegerModel, isa: str, tile: Tile | None) -> None:
        self.model, self.samples, self._tile = model, samples_of_a_block(model), tile
        self.tiles: set[Tile] = set()
        self.isa = None if isa == PORTABLE else simd.INSTRUCTION_SETS[isa]
        self.layout = Layout(self.samples)
        self.tensors: dict[str, Tensor] = {}
        self.borders = {layer.name: _border(model, layer.name) for layer in model.layers}
        self.image = self.layout.scratch(self.samples * int(np.prod(model.input.shape)), True)
        self.classes = self.layout.scratch(self.samples, True)
        self._steps: list[Step] = []
        self._calls: list[tuple[Operator, int]] = []
        self._code: list[int] = []
        self._tables: list[np.ndarray] = []
        self._octets: list[np.ndarray] = []
        self._known: dict[tuple[str, bytes], int] = {}

    def code(self, values: Iterable[int]) -> int:
        """The place of 64-bit constants."""
        begin = len(self._code)
        self._code += map(int, values)
        return begin

    def _pool(self, pool: list[np.ndarray], array: np.ndarray) -> int:
        flat = np.ascontiguousarray(array).reshape(-1)
        key = (str(flat.dtype), flat.tobytes())
        if key not in self._known:
            self._known[key] = sum(map(len, pool))
            pool.append(flat)
        return self._known[key]

    def table(self, values: np.ndarray) -> int:
        """The place of 32-bit constants; equal ones share it."""
        return self._pool(self._tables, np.asarray(values).astype(np.int32))

    def places(self, values: np.ndarray) -> int:
        """The place of the offsets of pixels, of which the last stands in for those that a tile asks for beyond it."""
        return self.table(np.concatenate([values, np.repeat(values[-1:], MOST_PIXELS)]))

    def octets(self, values: np.ndarray) -> int:
        """The place of weights."""
        return self._pool(self._octets, values.astype(np.int8))

    def call(self, operator: Operator, *parameters: int) -> None:
        self._calls.append((operator, self.code(parameters)))

    def tile(self, isa: simd.InstructionSet, kind: str, positions: int, channels: int) -> Tile:
        """The tile for a convolution of a kind with so many output pixels and channels."""
        tile = self._tile
        if tile is None or tile.kind != kind:
            tile = Tile(kind, *_best_tile(isa, kind, positions, channels))
        self.tiles.add(tile)
        return tile

    def output(self, name: str) -> Tensor:
        """A place for the output of the layer of this name."""
        self.tensors[name] = self.layout.tensor(self.model.proofs[name], self.borders[name])
        return self.tensors[name]

    def proof(self, name: str) -> Any:
        return self.model.proofs[name]

    def zero_point(self, name: str) -> int:
        """As it is stored."""
        return self.tensors[name].zero_point

    def rounding(self, requantization: Requantization, output: tuple[int, int, int], channels: int) -> list[int]:
        """The seven parameters of a rounding."""
        multiplier, _, shift = rounding_constants(requantization, 0, channels)
        same = len(set(zip(multiplier, shift))) == 1
        count = 1 if same else channels
        places = self.code(multiplier[:count]), self.code(shift[:count])
        return [*places, int(not same), ROUNDING_MODES.index(requantization.rounding), *output]

    def compute(self, group: tuple[Layer, ...]) -> None:
        """Append the step that computes a group."""
        _lower(group[0], self, group)
        names = tuple(layer.name for layer in group)
        self._steps.append(Step(names, tuple(self._calls), self.model.multiply_adds[names[0]]))
        self._calls = []

    def give_back(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.tensors:
                self.layout.give_back(self.tensors.pop(name), self.borders[name])

    def program(self) -> Program:
        last = self.model.layers[-1]
        if not isinstance(last, ArgMax):
            _arg_max(self, last.name)
            self._steps.append(Step((), tuple(self._calls), 0))
        return Program(
            tuple(self._steps), self.samples, np.array(self._code, np.int64),
            np.concatenate([*self._tables, np.zeros(SLACK, np.int32)]),
            np.concatenate([*self._octets, np.zeros(SLACK, np.int8)]),
            self.layout.bytes_, self.layout.words, tuple(self.layout.borders), self.image, self.classes, self.tensors,
            frozenset(self.tiles),
        )  # fmt: skip


def _border(model: IntegerModel, name: str) -> Border:
    """What the layers that read this tensor need around it."""
    sides = [NO_BORDER]
    for layer in model.layers:
        if name in layer.inputs and isinstance(layer, (Conv2D, Pad)):
            top, bottom, left, right = layer.padding
            sides.append((top, bottom, left, right))
    top, bottom, left, right = (max(side) for side in zip(*sides))
    return top, bottom, left, right


# --- one rule a layer kind --------------------------------------------------------------------------------------------


@singledispatch
def _lower(layer: Layer, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    raise TypeError(f"no operator for {layer.kind}")


@_lower.register
def _(layer: InputQuantization, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    rounding = assembly.rounding(layer.requantization, _clamped(layer.output, ()), 1)
    out = assembly.output(layer.name)
    assembly.call(operators.quantize_input, assembly.image, *out.parameters, *rounding)


@dataclass(frozen=True)
class VectorConvolution:
    """The parameters of `operators.convolution`, in its order.

    Attributes:
        x: place of the first window, at channel 0.
        places: of the offsets of the windows; runs: of the offsets of the runs of bytes in a window.
        run_count, steps: how many runs a window has, and how many times four bytes a run.
        pixels: of a sample's output.
        weights, weight_bytes, constants, constant_words: place of those of the first block, and size of a block's.
        blocks, block_channels, channels: of output channels.
        first_channels: place of the first input channel of each block.
        mode, out, out_places, low, high: how to store.
        other, other_places, addition: the residual.
    """

    x: int
    places: int
    runs: int
    run_count: int
    steps: int
    pixels: int
    weights: int
    weight_bytes: int
    constants: int
    constant_words: int
    blocks: int
    first_channels: int
    block_channels: int
    channels: int
    mode: int
    out: int
    out_places: int
    low: int
    high: int
    other: int
    other_places: int
    addition: int


@dataclass(frozen=True)
class _Window:
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
    def of(cls, layer: Conv2D | Linear) -> _Window:
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

    def channels(self, first: int, last: int) -> _Window:
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


@_lower.register(Conv2D)
@_lower.register(Linear)
def _(layer: Conv2D | Linear, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    window, x = _Window.of(layer), assembly.tensors[layer.inputs[0]]
    height, width, channels = image_shape(assembly.proof(layer.name).shape)
    addition = next((index for index, each in enumerate(group) if isinstance(each, Add)), len(group))
    in_vectors = assembly.isa is not None and rounds_in_vectors(assembly.model, layer)
    clamped = _clamped(layer.output, group[1:addition])
    out = assembly.output(group[-1].name)
    bare = out if out.wide else assembly.layout.accumulators(height, width, channels)
    target = out if in_vectors else bare
    if assembly.isa is None:
        _portable_products(assembly, window, x, target)
    else:
        mode = simd.STORE_BYTES if in_vectors else simd.STORE_ACCUMULATORS
        other, other_places, constants = 0, 0, 0
        if addition < len(group):
            layer_added = group[addition]
            assert isinstance(layer_added, Add)
            total = Sum.of(assembly.model, layer_added, group[addition - 1].name)
            residual, halves = assembly.tensors[total.operands[1]], total.in_halves()
            assert halves is not None
            limits = _clamped(layer_added.output, group[addition + 1 :])[1:]
            mode, other, constants = simd.STORE_SUM, residual.place, assembly.table(np.array([*halves, *limits]))
            other_places = assembly.places(residual.places_of_pixels(positions(assembly.samples, height, width)))
        store = (mode, clamped[1], clamped[2], other, other_places, constants)
        _vector_products(assembly, assembly.isa, window, x, target, clamped[0] if in_vectors else None, store)
    if not out.wide and not in_vectors:
        assert layer.requantization is not None
        rounding = assembly.rounding(layer.requantization, clamped, channels)
        places = assembly.places(out.places_of_pixels(positions(assembly.samples, height, width)))
        assembly.call(operators.store, bare.place, bare.pixel, out.place, places, bare.pixels, channels, *rounding)
        assembly.layout.give_back(bare, NO_BORDER)


def _vector_products(
    assembly: _Assembly, isa: simd.InstructionSet, window: _Window, x: Tensor, target: Tensor, zero_point: int | None,
    store: tuple[int, ...],
) -> None:  # fmt: skip
    """One call, or for a depthwise convolution two: as many channels as possible go by rows or four a lane, the rest
    one a lane.

    `store` are the last parameters of `VectorConvolution` but for the places of the output.
    """
    outputs = len(window.weights)
    if not window.depthwise:
        _vector_call(assembly, isa, simd.DENSE, window, x, target, zero_point, store)
        return
    whole = simd.TAPS * isa.lanes
    by_four = outputs // whole * whole if isa.quads_tile and store[0] == simd.STORE_BYTES else 0
    height, width = window.weights.shape[1:3]
    rows = window.dilation == (1, 1) and height <= simd.MOST_ROWS and width <= simd.MOST_COLUMNS
    rows = rows and 0 < isa.rows_pixels <= target.width
    kind_by_four = simd.rows_of(height, width, window.strides[1]) if rows else simd.QUADS
    for kind, first, last in ((kind_by_four, 0, by_four), (simd.LANES, by_four, outputs)):
        if first < last:
            part, source, out = window.channels(first, last), x.channels_from(first), target.channels_from(first)
            residual = store[0], store[1], store[2], store[3] + first, *store[4:]
            _vector_call(assembly, isa, kind, part, source, out, zero_point, residual)


def _vector_call(
    assembly: _Assembly, isa: simd.InstructionSet, kind: str, window: _Window, x: Tensor, target: Tensor,
    zero_point: int | None, store: tuple[int, ...],
) -> None:  # fmt: skip
    outputs, _, kernel_width, _ = window.weights.shape
    tile = assembly.tile(isa, kind, assembly.samples * target.pixels, outputs)
    block = tile.vectors * isa.lanes
    blocks = -(-outputs // block)
    begins, width, joined, flip = np.arange(blocks) * block, simd.TAPS, False, isa.flip
    filled = np.zeros((blocks * block, window.weights[0].size), np.int8)
    filled[:outputs] = window.weights.reshape(outputs, -1)
    if kind == simd.DENSE:
        begins, width = window.channel_ranges(x, block)
        joined = width == x.pixel and window.dilation[1] == 1
        packed = pack_weights(isa, window.dense(x, block), tile.vectors)
    elif kind == simd.QUADS:
        packed = pack_quads(isa, filled.reshape(blocks, block, -1))
    elif kind.startswith(simd.ROWS):
        packed = pack_rows(isa, filled.reshape(blocks, block, -1), window.weights.shape[1])
    else:
        packed, flip = pack_lanes(isa, filled.reshape(blocks, block, -1), tile.vectors), 0
    runs = window.runs(x, width, joined)
    bias = wrapped(window.bias - (x.zero_point - flip) * filled[:outputs].sum(axis=1, dtype=np.int64))
    channels = [bias]
    if zero_point is not None:
        assert window.requantization is not None
        channels += [np.array(each) for each in rounding_constants(window.requantization, zero_point, outputs)]
    if kind == simd.QUADS:
        channels = [in_quads(isa, each) for each in channels]
    elif kind.startswith(simd.ROWS):
        channels = [in_rows(isa, each) for each in channels]
    constants = vector_constants(isa, channels, blocks, tile.vectors)
    mode, low, high, other, other_places, addition = store
    together = tile.pixels if kind.startswith(simd.ROWS) else 1
    pixels = positions(assembly.samples, target.height, target.width, together)
    steps = x.pixel if kind.startswith(simd.ROWS) else (kernel_width if joined else 1) * width // simd.TAPS
    parameters = VectorConvolution(
        x.place - window.corner[0] * x.row - window.corner[1] * x.pixel,
        assembly.places(x.places_of_pixels(pixels, window.strides)), assembly.table(runs), len(runs), steps,
        len(pixels[0]) // assembly.samples,
        assembly.octets(packed), packed.shape[1], assembly.table(constants), constants.shape[1],
        blocks, assembly.table(begins), block, padded_channels(outputs), mode, target.place,
        assembly.places(target.places_of_pixels(pixels)), low, high,
        other, other_places, addition,
    )  # fmt: skip
    assembly.call(operators.convolution(isa.name, kind, tile.pixels, tile.vectors), *astuple(parameters))


def _best_tile(isa: simd.InstructionSet, kind: str, positions: int, channels: int) -> tuple[int, int]:
    """The tile that wastes least: products, and what each pixel and each vector costs to load."""

    def cost(tile: tuple[int, int]) -> float:
        pixels, vectors = tile
        tiles = -(-positions // pixels) * -(-channels // (vectors * isa.lanes))
        return tiles * (pixels * vectors + (pixels + vectors) / 2)

    if kind.startswith(simd.ROWS):
        return isa.rows_pixels, simd.TAPS
    if kind == simd.QUADS:
        assert isa.quads_tile is not None
        return isa.quads_tile
    return min(isa.tiles, key=cost) if kind == simd.DENSE else isa.lanes_tile


def _portable_products(assembly: _Assembly, window: _Window, x: Tensor, target: Tensor) -> None:
    outputs, _, kernel_width, depth = window.weights.shape
    sums = window.weights.reshape(outputs, -1).sum(axis=1, dtype=np.int64)
    bias = assembly.table(wrapped(window.bias - x.zero_point * sums))
    first = x.place - window.corner[0] * x.row - window.corner[1] * x.pixel
    pixels = positions(assembly.samples, target.height, target.width)
    places = assembly.places(x.places_of_pixels(pixels, window.strides))
    if window.depthwise:
        taps = window.runs(x, 1, False)
        by_tap = assembly.octets(window.weights.reshape(outputs, -1).T)
        assembly.call(
            operators.accumulate_depthwise, first, places, assembly.table(taps), len(taps), outputs, target.pixels,
            by_tap, bias, target.place, target.pixel,
        )  # fmt: skip
        return
    dense = window.groups == 1
    joined = dense and window.dilation[1] == 1
    width = x.pixel if dense else depth
    weights = np.zeros((*window.weights.shape[:3], width), np.int8)
    weights[..., :depth] = window.weights
    runs = window.runs(x, width, joined)
    assembly.call(
        operators.accumulate, first, places, assembly.table(runs), len(runs), (kernel_width if joined else 1) * width,
        target.pixels, assembly.octets(weights), bias, window.groups, depth, outputs // window.groups, target.place,
        target.pixel, assembly.layout.scratch(operators.GATHERED_PIXELS * window.groups * weights[0].size, False),
    )  # fmt: skip


@_lower.register
def _(layer: Add, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    total = Sum.of(assembly.model, layer, layer.inputs[0])
    a, b = (assembly.tensors[name].parameters for name in total.operands)
    out, clamped = assembly.output(group[-1].name), _clamped(layer.output, group[1:])
    sums = *total.multipliers, total.constant, total.shift
    assembly.call(operators.add, *a, *b, *out.parameters, *sums, *clamped)


def _pooled(assembly: _Assembly, layer: MaxPool | AveragePool) -> list[int]:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    return [*x.parameters, *out.parameters, *layer.kernel, *layer.strides, layer.padding[0], layer.padding[2]]


@_lower.register
def _(layer: MaxPool, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    assembly.call(operators.max_pool, *_pooled(assembly, layer), 0)


@_lower.register
def _(layer: AveragePool, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x = assembly.tensors[layer.inputs[0]]
    padding = x.zero_point if layer.count_include_pad else -1
    scratch = assembly.layout.scratch(x.channels, True)
    assembly.call(operators.average_pool, *_pooled(assembly, layer), padding, scratch)


@_lower.register
def _(layer: GlobalAveragePool, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x = assembly.tensors[layer.inputs[0]]
    rounding = assembly.rounding(layer.requantization, _clamped(layer.output, ()), x.channels)
    out, scratch = assembly.output(layer.name), assembly.layout.scratch(x.channels, True)
    zero = x.zero_point * x.pixels
    assembly.call(operators.global_average_pool, *x.parameters, *out.parameters, *rounding, zero, scratch)


@_lower.register
def _(layer: Clamp, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    offset = byte_offset(assembly.proof(layer.name).dtype)
    limits = layer.minimum + offset, layer.maximum + offset
    assembly.call(operators.clamp, *x.parameters, *out.parameters, *limits)


@_lower.register
def _(layer: Requantize, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    rounding = assembly.rounding(layer.requantization, _clamped(layer.output, ()), x.channels)
    assembly.call(operators.requantize, *x.parameters, *out.parameters, *rounding, x.zero_point)


@_lower.register
def _(layer: LookupTable, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    table = assembly.code(layer.table.astype(np.int64) + byte_offset(layer.output.dtype))
    assembly.call(operators.lookup_table, *x.parameters, *out.parameters, table)


@_lower.register
def _(layer: Softmax, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    assembly.call(operators.softmax, *x.parameters, *out.parameters, assembly.code(layer.table))


@_lower.register
def _(layer: ArgMax, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    _arg_max(assembly, layer.inputs[0])


def _arg_max(assembly: _Assembly, name: str) -> None:
    x = assembly.tensors[name]
    operator = operators.arg_max_accumulators if x.wide else operators.arg_max
    assembly.call(operator, *x.parameters, assembly.classes)


def _move(assembly: _Assembly, x: Tensor, from_: np.ndarray, out: Tensor, to: np.ndarray) -> None:
    operator = operators.move_accumulators if x.wide else operators.move
    places = assembly.table(from_), assembly.table(to)
    assembly.call(operator, x.place, x.sample, out.place, out.sample, *places, len(to))


@_lower.register(Flatten)
@_lower.register(Reshape)
def _(layer: Layer, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    _move(assembly, x, x.places_of_elements(), out, out.places_of_elements())


@_lower.register
def _(layer: Pad, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    """What lies outside the image is in the border of the input already."""
    x, out = assembly.tensors[layer.inputs[0]], assembly.output(layer.name)
    top, bottom, left, right = layer.padding
    _move(assembly, x, x.places_of_elements(border=(top, bottom, left, right)), out, out.places_of_elements())


@_lower.register
def _(layer: Concat, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    out, first = assembly.output(layer.name), 0
    for name in layer.inputs:
        x = assembly.tensors[name]
        _move(assembly, x, x.places_of_elements(), out, out.places_of_elements(x.channels) + first)
        first += x.channels
