"""A float model becomes an integer model, its weights as they are: post-training quantization.

Three decisions are made here; `folding`, `calibration` and `quantization` do the rest:

- *Fusion.* A `Clamp` that alone reads a layer with a grid of its own is that layer's clamp. A ReLU's grid begins at
  zero, so to clamp to 0 .. 255 is the ReLU; the maximum of a ReLU6 is what 6 is on the grid.
- *Grids.* Maximum, average, padding and flattening keep the grid of what they read. What a `Concat` joins must stand
  on one grid: tensors that it reads alone are made on it, the others are requantized to it. Every other layer has a
  grid of its own, chosen by the values that calibration images give.
- *Scores.* A linear layer at the end gives its bare accumulators; whatever else stands there gives 8 bits, on a grid
  that covers every value that the scores take.

Whatever range is chosen, a grid reaches to the ends of the clamps that stand on it, as far as they change zero: a clamp
to 1 .. infinity needs the 1 even where its input stays below. The clamps that are not fused have no grid of their own,
so without this they would end where their input does.

An input that keeps its mean (`folding`, second case) is quantized as grey levels, then read through a table that
changes no integer, but gives them another zero point: the point of the grid that is nearest to the mean, which the grid
has to reach, too. Padding, which is the zero point, is then what the float network pads with, to within half a step of
the grid; and since the weights are folded for the mean of that very point, nothing else is approximated.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial, singledispatch
from math import isfinite, prod
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from intsmooth_ref.data_tools import float_engine, float_model, quantization
from intsmooth_ref.data_tools.calibration import (
    SAMPLE,
    RangeChooser,
    Values,
    chosen_grid,
    mean_square,
    min_max,
    values_of,
)
from intsmooth_ref.data_tools.float_model import FloatLayer, FloatModel, free_name
from intsmooth_ref.data_tools.folding import folded
from intsmooth_ref.data_tools.quantization import widened
from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.model import layers as integer
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import Quantization

#: The unit of grey levels: a fraction of full scale.
GREY_LEVEL = Fraction(1, 255)

#: Images computed at once in floats.
BATCH = 32

#: Layers into which a clamp is fused.
FUSING = (float_model.Conv2D, float_model.Linear, float_model.Add, float_model.GlobalAveragePool, float_model.Function)

#: Layers whose output stands on the grid of what they read.
KEEPING = (
    float_model.Clamp, float_model.MaxPool, float_model.AveragePool, float_model.Pad, float_model.Flatten,
)  # fmt: skip


def quantized(
    model: FloatModel, images: np.ndarray, choose: RangeChooser = mean_square, *, seed: int = 0, provenance: str = "",
    done: Callable[[int], None] = lambda count: None,
) -> IntegerModel:  # fmt: skip
    """The integer model that is nearest to a float model.

    Layers that both have keep their names; a fused layer has the name of the one that the clamp was fused into.

    Args:
        images: int32 noisy images `(N, H, W, C)`, over which ranges are chosen.
        choose: from a tensor's values to its grid.
        seed: of the sample of values.
        done: is told how many images are done.

    Raises:
        ModelFormatError: if a value is not finite, or the integer model breaks a rule.
        ArithmeticRangeError: the layer whose ratio of scales no multiplier can express.
    """
    exact = folded(model)
    pixels = pixel_grid(exact, images, choose, seed)
    plain = folded(model, float(nearest_mean(exact, pixels)))
    batch = float_engine.images_at_once(plain, BATCH)
    values = values_of(partial(float_engine.trace, plain), images, seed, batch, done)
    layers = _integer_layers(plain, pixels, values, choose)
    return IntegerModel(tuple(layers), model.class_names, provenance)


def pixel_grid(model: FloatModel, images: np.ndarray, choose: RangeChooser, seed: int) -> Quantization:
    """The grid of noisy pixels, as fractions of full scale; it reaches to the mean that the folded `model` keeps."""
    unit, values = float(GREY_LEVEL), Values.of(images, SAMPLE, np.random.default_rng(seed))
    pixels = Values(values.low * unit, values.high * unit, values.sample * unit)
    graph = _Graph.of(model)
    grid = _shared_grid(graph, _groups(graph.layers)[model.input.name], pixels, choose)
    return widened(grid, float(model.input.mean[0]))


def nearest_mean(model: FloatModel, pixels: Quantization) -> Fraction:
    """The point of the grid of pixels that is nearest to the mean that the folded `model` keeps."""
    steps = round(Fraction(float(model.input.mean[0])) / pixels.scale)
    return min(max(steps, -pixels.zero_point), 255 - pixels.zero_point) * pixels.scale


def kept_mean(integers: IntegerModel) -> Fraction:
    """The mean that the input of the integer model keeps: how far its table, if it has one, moves the zero point."""
    first, second = integers.layers[:2]
    grid = integers.input.output
    if isinstance(second, integer.LookupTable) and second.inputs == (first.name,) and second.output.scale == grid.scale:
        if np.array_equal(second.table, np.arange(256)):
            return (second.output.zero_point - grid.zero_point) * grid.scale
    return Fraction(0)


# --- fusion -----------------------------------------------------------------------------------------------------------


def fused_clamps(model: FloatModel) -> Mapping[str, float_model.Clamp]:
    """By the name of a layer, the clamp that is fused into it."""
    readers: dict[str, list[FloatLayer]] = {}
    for layer in model.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    fused = {}
    for layer in model.layers:
        first, *others = readers.get(layer.name, [layer])
        if isinstance(layer, FUSING) and isinstance(first, float_model.Clamp) and not others:
            fused[layer.name] = first
    return fused


@dataclass(frozen=True, eq=False)
class _Graph:
    """A float model without the clamps that are fused.

    Attributes:
        layers: each reads only earlier ones.
        clamps: by the name of a layer, the clamp that is fused into it.
        shapes: by the name of a layer.
    """

    layers: Sequence[FloatLayer]
    clamps: Mapping[str, float_model.Clamp]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: FloatModel) -> _Graph:
        clamps = fused_clamps(model)
        stands_for = {clamp.name: name for name, clamp in clamps.items()}
        layers = [
            replace(layer, inputs=tuple(stands_for.get(name, name) for name in layer.inputs))
            for layer in model.layers if layer.name not in stands_for
        ]  # fmt: skip
        return cls(layers, clamps, model.shapes)

    def output_name(self, layer: FloatLayer) -> str:
        """The name, in the float model, of what this layer gives once its clamp is fused."""
        return self.clamps[layer.name].name if layer.name in self.clamps else layer.name


# --- grids ------------------------------------------------------------------------------------------------------------


def _grids(graph: _Graph, values: Mapping[str, Values], choose: RangeChooser) -> dict[str, Quantization]:
    """The grid of each layer that does not stand on the input's; a clamp that is fused cuts it short."""
    grids = {}
    for leader, group in _groups(graph.layers).items():
        if leader != graph.layers[0].name:
            taken = (values[graph.output_name(layer)] for layer in group if not isinstance(layer, KEEPING))
            grid = _shared_grid(graph, group, Values.joined(taken), choose)
            for layer in group:
                clamp = graph.clamps.get(layer.name)
                grids[layer.name] = grid if clamp is None else _clamped(grid, clamp)
    return grids


def _shared_grid(graph: _Graph, group: Sequence[FloatLayer], values: Values, choose: RangeChooser) -> Quantization:
    """The grid of layers that share one: scores are not clipped, and what clamps make of zero is on it."""
    clamps = [layer for layer in group if isinstance(layer, float_model.Clamp)]
    clamps += [graph.clamps[layer.name] for layer in group if layer.name in graph.clamps]
    grid = chosen_grid(values, min_max if graph.layers[-1] in group else choose)
    return widened(grid, *(min(max(0.0, clamp.minimum), clamp.maximum) for clamp in clamps))


def _groups(layers: Sequence[FloatLayer]) -> Mapping[str, list[FloatLayer]]:
    """The layers that share a grid, by the name of the one that leads them."""
    leaders = _leaders(layers)
    groups: dict[str, list[FloatLayer]] = {}
    for layer in layers:
        groups.setdefault(leaders[layer.name], []).append(layer)
    return groups


def _leaders(layers: Sequence[FloatLayer]) -> dict[str, str]:
    """For each layer the one whose grid its output stands on."""
    leaders: dict[str, str] = {}
    for layer in layers:
        leaders[layer.name] = leaders[layer.inputs[0]] if isinstance(layer, KEEPING) else layer.name
    for concat in reversed([layer for layer in layers if isinstance(layer, float_model.Concat)]):
        for leader in {leaders[name] for name in concat.inputs} - {layers[0].name}:
            group = {name for name, each in leaders.items() if each == leader}
            readers = {layer.name for layer in layers if group.intersection(layer.inputs)}
            if readers <= group | {concat.name}:
                leaders.update(dict.fromkeys(group, leaders[concat.name]))
    return leaders


def _clamped(grid: Quantization, clamp: float_model.Clamp) -> Quantization:
    """The grid, cut short where the clamp ends."""
    minimum, maximum = _clamp_ends(grid, clamp)
    return replace(grid, minimum=minimum, maximum=maximum)


def _clamp_ends(grid: Quantization, clamp: float_model.Clamp) -> tuple[int, int]:
    """The grid's points nearest to the ends of a clamp."""

    def nearest(end: float, beyond: int) -> int:
        if not isfinite(end):
            return beyond
        return min(max(grid.zero_point + round(Fraction(end) / grid.scale), grid.minimum), grid.maximum)

    return nearest(clamp.minimum, grid.minimum), nearest(clamp.maximum, grid.maximum)


# --- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What a layer reads: the name of an integer layer, its grid and its shape."""

    name: str
    grid: Quantization
    shape: tuple[int, ...]


def _integer_layers(
    model: FloatModel, pixels: Quantization, values: Mapping[str, Values], choose: RangeChooser
) -> list[integer.Layer]:
    """`model` is folded, its input's mean a point of the grid of pixels."""
    graph = _Graph.of(model)
    grids = _grids(graph, values, choose)
    names = [layer.name for layer in model.layers]
    with _named(model.input):
        made, sources = _input_layers(model.input, pixels, names)
    for layer in graph.layers[1:]:
        read = [sources[name] for name in layer.inputs]
        grid = grids.get(layer.name, read[0].grid)
        with _named(layer):
            if isinstance(layer, float_model.Concat):
                requantized, read = _on_one_grid(read, grid, layer.name, names)
                made += requantized
            if layer is graph.layers[-1] and isinstance(layer, float_model.Linear) and layer.name not in graph.clamps:
                made.append(quantization.scores(layer.name, read[0].name, read[0].grid, layer.weights, _bias(layer)))
            else:
                made.append(_integer_layer(layer, grid, *read))
        sources[layer.name] = _Source(layer.name, grid, graph.shapes[layer.name])
    return made


@contextmanager
def _named(layer: FloatLayer) -> Iterator[None]:
    """What goes wrong here goes wrong in this layer."""
    try:
        yield
    except ArithmeticRangeError as problem:
        raise ArithmeticRangeError(f"layer {layer.name!r}: {problem}") from None


def _input_layers(
    layer: float_model.Input, pixels: Quantization, names: list[str]
) -> tuple[list[integer.Layer], dict[str, _Source]]:
    """The input, and the table that moves its zero point to the mean, if there is one."""
    height, width, channels = layer.shape
    first = quantization.input_quantization(layer.name, (height, width, channels), GREY_LEVEL, pixels)
    steps = round(Fraction(float(layer.mean[0])) / pixels.scale)
    if not steps:
        return [first], {layer.name: _Source(layer.name, pixels, layer.shape)}
    centred = replace(pixels, zero_point=pixels.zero_point + steps)
    name = free_name(f"{layer.name}_centred", names)
    table = integer.LookupTable(name=name, inputs=(layer.name,), table=np.arange(256, dtype=np.int16), output=centred)
    names.append(name)
    return [first, table], {layer.name: _Source(name, centred, layer.shape)}


def _on_one_grid(
    sources: Iterable[_Source], grid: Quantization, concat: str, names: list[str]
) -> tuple[list[integer.Layer], list[_Source]]:
    """What a `Concat` reads, requantized to its grid where it stands on another."""
    made: list[integer.Layer] = []
    moved = []
    for index, source in enumerate(sources):
        if (source.grid.scale, source.grid.zero_point) != (grid.scale, grid.zero_point):
            names.append(free_name(f"{concat}_input{index}", names))
            made.append(quantization.requantize(names[-1], source.name, source.grid, grid))
            source = _Source(names[-1], grid, source.shape)
        moved.append(source)
    return made, moved


def _bias(layer: float_model.Conv2D | float_model.Linear) -> np.ndarray:
    return np.zeros(len(layer.weights), np.float32) if layer.bias is None else layer.bias


@singledispatch
def _integer_layer(layer: FloatLayer, grid: Quantization, *sources: _Source) -> integer.Layer:
    """The integer layer whose output stands on `grid`."""
    raise TypeError(f"no integer layer for {layer.kind}")


@_integer_layer.register
def _(layer: float_model.Conv2D, grid: Quantization, source: _Source) -> integer.Layer:
    return quantization.conv2d(
        layer.name, source.name, source.grid, layer.weights, _bias(layer), grid, strides=layer.strides,
        padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
    )  # fmt: skip


@_integer_layer.register
def _(layer: float_model.Linear, grid: Quantization, source: _Source) -> integer.Layer:
    return quantization.linear(layer.name, source.name, source.grid, layer.weights, _bias(layer), grid)


@_integer_layer.register
def _(layer: float_model.Clamp, grid: Quantization, source: _Source) -> integer.Layer:
    minimum, maximum = _clamp_ends(grid, layer)
    return integer.Clamp(name=layer.name, inputs=(source.name,), minimum=minimum, maximum=maximum)


@_integer_layer.register
def _(layer: float_model.Function, grid: Quantization, source: _Source) -> integer.Layer:
    function = partial(float_engine.function_values, layer)
    return quantization.lookup_table(layer.name, source.name, source.grid, function, grid)


@_integer_layer.register
def _(layer: float_model.Add, grid: Quantization, first: _Source, second: _Source) -> integer.Layer:
    return quantization.add(layer.name, (first.name, second.name), (first.grid, second.grid), grid)


@_integer_layer.register
def _(layer: float_model.Concat, grid: Quantization, *sources: _Source) -> integer.Layer:
    return integer.Concat(name=layer.name, inputs=tuple(source.name for source in sources))


@_integer_layer.register
def _(layer: float_model.MaxPool, grid: Quantization, source: _Source) -> integer.Layer:
    return integer.MaxPool(
        name=layer.name, inputs=(source.name,), kernel=layer.kernel, strides=layer.strides, padding=layer.padding
    )


@_integer_layer.register
def _(layer: float_model.AveragePool, grid: Quantization, source: _Source) -> integer.Layer:
    return integer.AveragePool(
        name=layer.name, inputs=(source.name,), kernel=layer.kernel, strides=layer.strides, padding=layer.padding,
        count_include_pad=layer.count_include_pad,
    )  # fmt: skip


@_integer_layer.register
def _(layer: float_model.GlobalAveragePool, grid: Quantization, source: _Source) -> integer.Layer:
    return quantization.global_average_pool(layer.name, source.name, source.grid, prod(source.shape[:2]), grid)


@_integer_layer.register
def _(layer: float_model.Pad, grid: Quantization, source: _Source) -> integer.Layer:
    return integer.Pad(name=layer.name, inputs=(source.name,), padding=layer.padding)


@_integer_layer.register
def _(layer: float_model.Flatten, grid: Quantization, source: _Source) -> integer.Layer:
    return integer.Flatten(name=layer.name, inputs=(source.name,))
