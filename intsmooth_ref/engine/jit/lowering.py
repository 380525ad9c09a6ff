"""From a model to the steps that compute it: layers fused, weights packed, tensors placed.

Tensors of 8 bits are computed as uint8: an int8 tensor is stored plus 128, and its zero point and limits with it.
Every operator takes only differences, order, or means of its input, so the offset changes nothing else.

A convolution sums w * q over the bytes q themselves; the zero point z of its input enters the bias once:
bias + sum w (q - z) = (bias - z sum w) + sum w q, modulo 2**32, and the left side is proven to fit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import singledispatch
from typing import Any, Iterable

import numpy as np

from ...compilation import Operator
from ...fixedpoint import ROUNDING_MODES
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
from .packing import (
    Sum,
    Window,
    in_quads,
    in_rows,
    pack_lanes,
    pack_quads,
    pack_rows,
    pack_weights,
    rounding_constants,
    rounds_in_vectors,
    vector_constants,
    wrapped,
)
from .program import Program, Step, Tile

PORTABLE = "portable"
#: Tiles may ask for the places of so many pixels beyond the last.
MOST_PIXELS = 16
#: Samples are computed together as long as the largest layer's input and output stay within these bytes, but no more
#: than `MOST_SAMPLES`.
BLOCK_BYTES, MOST_SAMPLES = 1 << 17, 16


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


@_lower.register(Conv2D)
@_lower.register(Linear)
def _(layer: Conv2D | Linear, assembly: _Assembly, group: tuple[Layer, ...]) -> None:
    window, x = Window.of(layer), assembly.tensors[layer.inputs[0]]
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
    assembly: _Assembly, isa: simd.InstructionSet, window: Window, x: Tensor, target: Tensor, zero_point: int | None,
    store: tuple[int, ...],
) -> None:  # fmt: skip
    """One call, or for a depthwise convolution two: as many channels as possible go by rows or four a lane, the rest
    one a lane.

    `store` are the last parameters of `VectorConvolution` but for the places of the output; a residual is added one a
    lane only, from channel 0 on.
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
            _vector_call(assembly, isa, kind, part, source, out, zero_point, store)


def _vector_call(
    assembly: _Assembly, isa: simd.InstructionSet, kind: str, window: Window, x: Tensor, target: Tensor,
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


def _portable_products(assembly: _Assembly, window: Window, x: Tensor, target: Tensor) -> None:
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
