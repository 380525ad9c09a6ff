"""What each channel of each layer can hold: exact intervals from the actual weights, propagated through the graph.

`model/proof.py` proves that nothing overflows, with one interval a tensor. Here every channel has its own: of 8 bits,
the very set of values; of an accumulator, the smallest and the largest

    (1)   bias_o + sum over the taps k inside the image of  w_ok * x_k,    x_k = q_k - zero_point,

where each `q_k` runs through the values of its own channel, over every way in which a window can stand at the border.
All of it is sound: nothing outside can occur. Where each element of the tensor that is read hangs on a pixel of its
own, the bounds are attained as well, and `extreme_image` is an image that does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import singledispatch
from math import gcd, prod
from typing import Any, Mapping, Union

import numpy as np

from ..engine.reference import operate
from ..fixedpoint import requantize
from ..model.graph import IntegerModel
from ..model.layers import (
    INTEGER_RANGES,
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
from ..model.proof import NOISY_PIXEL_LIMIT, TensorProof

#: Every grey level that an engine accepts.
ALL_PIXELS = (-NOISY_PIXEL_LIMIT, NOISY_PIXEL_LIMIT)

Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Values:
    """What the elements of a tensor can be: element e of an image's tensor, flattened, follows row `e % rows`.

    A tensor of C channels has C rows or a divisor of C; flattening or reshaping it changes nothing here.

    Attributes:
        low, high: int64 `(rows,)`.
        sets: of a tensor of 8 bits, bool `(rows, 256)`: column c tells whether `c + lowest value of the dtype` can
            occur; else None.
        pixels: int32 `(rows, 256)`, where each element hangs on the pixel of the same flattened index and on no other:
            a grey level that gives that value. Then every combination of values occurs in some image. Else None.
    """

    low: np.ndarray
    high: np.ndarray
    sets: np.ndarray | None = None
    pixels: np.ndarray | None = None

    @classmethod
    def of_sets(cls, sets: np.ndarray, dtype: str, pixels: np.ndarray | None = None) -> Values:
        lowest = INTEGER_RANGES[dtype][0]
        low = sets.argmax(axis=1) + lowest
        high = sets.shape[1] - 1 - sets[:, ::-1].argmax(axis=1) + lowest
        return cls(low.astype(np.int64), high.astype(np.int64), sets, pixels)

    @classmethod
    def between(cls, low: np.ndarray, high: np.ndarray, dtype: str) -> Values:
        """Every value from `low` to `high`."""
        if dtype == "int32":
            return cls(low, high)
        columns = np.arange(256) + INTEGER_RANGES[dtype][0]
        return cls.of_sets((columns >= low[:, np.newaxis]) & (columns <= high[:, np.newaxis]), dtype)

    @property
    def bytes_(self) -> np.ndarray:
        """The sets of a tensor that is known to be of 8 bits."""
        assert self.sets is not None
        return self.sets

    def per_channel(self, channels: int, dtype: str) -> Values:
        """With exactly `channels` rows, for a tensor whose last extent that is."""
        rows = len(self.bytes_)
        common = gcd(rows, channels)
        sets = self.bytes_.reshape(rows // common, common, 256).any(axis=0)
        repeat = (channels // common, 1)
        pixels = None if self.pixels is None or common < rows else np.tile(self.pixels, repeat)
        return Values.of_sets(np.tile(sets, repeat), dtype, pixels)


@dataclass(frozen=True, eq=False)
class Accumulators:
    """Of each channel, int64 `(C,)`.

    Attributes:
        low, high: equation (1), the smallest and the largest final value.
        partial_low, partial_high: the smallest and the largest sum of any of the bias and the products, so of every
            partial sum in any order of addition.
        attained: whether images exist that attain `low` and `high`; False where that is not shown.
    """

    low: np.ndarray
    high: np.ndarray
    partial_low: np.ndarray
    partial_high: np.ndarray
    attained: bool

    @property
    def interval(self) -> tuple[int, int]:
        """Over all channels."""
        return int(self.low.min()), int(self.high.max())

    @property
    def partial_interval(self) -> tuple[int, int]:
        return int(self.partial_low.min()), int(self.partial_high.max())


@dataclass(frozen=True, eq=False)
class LayerRange:
    """What a layer can hold.

    Attributes:
        values: of its output.
        accumulators: where it adds.
        unclamped: what goes into the clamp of its output, its smallest and largest int64 `(C,)`; None without a clamp.
    """

    values: Values
    accumulators: Accumulators | None = None
    unclamped: Bounds | None = None


def bits(low: int, high: int) -> int:
    """How many bits hold both in two's complement."""
    return max((~each if each < 0 else each).bit_length() for each in (low, high)) + 1


def layer_ranges(model: IntegerModel, pixels: tuple[int, int] = ALL_PIXELS) -> dict[str, LayerRange]:
    """What each layer can hold, by name, for every int32 image whose grey levels lie in `pixels`, both ends included.

    `pixels` must lie within `ALL_PIXELS`, for which the model is proven.
    """
    ranges: dict[str, LayerRange] = {}
    for layer in model.layers:
        sources = [(model.proofs[name], ranges[name].values) for name in layer.inputs]
        if isinstance(layer, InputQuantization):
            ranges[layer.name] = _input_range(layer, pixels)
        else:
            ranges[layer.name] = _range(layer, model.proofs[layer.name], *sources)
    return ranges


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A way in which a window can stand: which taps are inside the image, and the first place where it stands so.

    Attributes:
        rows, columns: taps from the first to before the second.
        top, left: of the output pixel.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    top: int
    left: int

    @property
    def taps(self) -> int:
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


WindowLayer = Union[Conv2D, AveragePool]


def windows(layer: WindowLayer, source: TensorProof, proof: TensorProof) -> list[Window]:
    """Every way in which the window of a convolution or pool can stand."""
    kernel = layer.weights.shape[1:3] if isinstance(layer, Conv2D) else layer.kernel
    dilation = layer.dilation if isinstance(layer, Conv2D) else (1, 1)
    rows, columns = (
        _reaches(source.shape[axis], proof.shape[axis], kernel[axis], layer.strides[axis], dilation[axis],
                 layer.padding[2 * axis])
        for axis in (0, 1)
    )  # fmt: skip
    return [Window(r, c, top, left) for r, top in rows.items() for c, left in columns.items()]


def _reaches(extent: int, outputs: int, kernel: int, stride: int, step: int, before: int) -> dict[tuple[int, int], int]:
    """Along one axis: which taps are inside, first and end, and the first output position where it is so."""
    found: dict[tuple[int, int], int] = {}
    for position in range(outputs):
        start = position * stride - before
        first = min(max(-(start // step), 0), kernel)
        end = max(min((extent - 1 - start) // step + 1, kernel), first)
        found.setdefault((first, end), position)
    return found


def _window_sums(taps: np.ndarray, ways: list[Window]) -> np.ndarray:
    """The sum of `taps` `(KH, KW)` over the taps inside, one for each window: int64 `(windows,)`."""
    total = np.zeros((taps.shape[0] + 1, taps.shape[1] + 1), np.int64)
    total[1:, 1:] = taps.cumsum(axis=0).cumsum(axis=1)
    (top, bottom), (left, right) = (np.array(ends).T for ends in zip(*((way.rows, way.columns) for way in ways)))
    return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]


# --- products ---------------------------------------------------------------------------------------------------------

Products = Union[Conv2D, Linear]


@dataclass(frozen=True, eq=False)
class ProductForm:
    """A `Conv2D` or a `Linear` as one thing: weights `(O, KH, KW, D)` in groups, and the ways its window can stand."""

    weights: np.ndarray
    groups: int
    ways: list[Window]

    def channels_read(self, output: int) -> slice:
        """The input channels that an output channel reads."""
        depth = self.weights.shape[3]
        first = output // (len(self.weights) // self.groups) * depth
        return slice(first, first + depth)


def product_form(layer: Products, source: TensorProof, proof: TensorProof) -> ProductForm:
    if isinstance(layer, Conv2D):
        return ProductForm(layer.weights, layer.groups, windows(layer, source, proof))
    weights = layer.weights[:, np.newaxis, np.newaxis, :]
    return ProductForm(weights, 1, [Window((0, 1), (0, 1), 0, 0)])


def bare(layer: Products) -> Products:
    """The layer without its requantization, whose output are the accumulators themselves."""
    return replace(layer, requantization=None, output=Quantization.full_range("int32", Fraction(1), 0))


def _product_accumulators(layer: Products, proof: TensorProof, source: TensorProof, values: Values) -> Accumulators:
    form, channels = product_form(layer, source, proof), values.per_channel(source.shape[-1], source.dtype)
    low, high = channels.low - source.zero_point, channels.high - source.zero_point
    ends = np.empty((4, len(layer.weights)), np.int64)
    for o, (weights, bias) in enumerate(zip(form.weights, layer.bias.tolist())):
        read = form.channels_read(o)
        wide = weights.astype(np.int64)
        one, other = wide * low[read], wide * high[read]
        smallest, largest = np.minimum(one, other), np.maximum(one, other)
        for row, terms, constant in (
            (0, smallest, bias), (1, largest, bias),
            (2, np.minimum(smallest, 0), min(bias, 0)), (3, np.maximum(largest, 0), max(bias, 0)),
        ):  # fmt: skip
            sums = _window_sums(terms.sum(axis=2), form.ways) + constant
            ends[row, o] = sums.max() if row % 2 else sums.min()
    return Accumulators(ends[0], ends[1], ends[2], ends[3], attained=channels.pixels is not None)


def extreme_image(
    model: IntegerModel, ranges: Mapping[str, LayerRange], layer: Products, channel: int, highest: bool
) -> tuple[np.ndarray, tuple[int, ...]]:
    """An image that takes an accumulator to the end of its interval, and the index `(h, w, c)` or `(c,)` of that one.

    Of a layer whose accumulators are `attained`. int32 `(H, W, C)`.
    """
    source, values = model.proofs[layer.inputs[0]], ranges[layer.inputs[0]].values
    form = product_form(layer, source, model.proofs[layer.name])
    channels, read = values.per_channel(source.shape[-1], source.dtype), form.channels_read(channel)
    weights = form.weights[channel].astype(np.int64)
    end = np.where((weights > 0) == highest, channels.high[read], channels.low[read])
    sums = _window_sums((weights * (end - source.zero_point)).sum(axis=2), form.ways)
    way = form.ways[int(sums.argmax() if highest else sums.argmin())]
    wanted = {}
    for kh in range(*way.rows):
        for kw in range(*way.columns):
            first = element_read(layer, source, way.top, way.left, kh, kw) + read.start
            wanted.update({first + d: int(end[kh, kw, d]) for d in range(weights.shape[2])})
    image = image_of(model, source, values, wanted)
    return image, ((way.top, way.left, channel) if isinstance(layer, Conv2D) else (channel,))


def element_read(layer: Products, source: TensorProof, top: int, left: int, kh: int, kw: int) -> int:
    """The flattened index of channel 0 of the input pixel that a tap inside the image reads."""
    if isinstance(layer, Linear):
        return 0
    row = top * layer.strides[0] - layer.padding[0] + kh * layer.dilation[0]
    column = left * layer.strides[1] - layer.padding[2] + kw * layer.dilation[1]
    return (row * source.shape[1] + column) * source.shape[2]


def image_of(
    model: IntegerModel, source: TensorProof, values: Values, wanted: Mapping[int, int], image: np.ndarray | None = None
) -> np.ndarray:
    """An image under which a tensor's elements, by flattened index, take the values that are wanted.

    Args:
        source, values: of the tensor, whose values have `pixels`.
        image: int32 `(H, W, C)`, what the other pixels are; by default what gives each element its smallest value.
    """
    assert values.pixels is not None
    lowest, rows = INTEGER_RANGES[source.dtype][0], len(values.pixels)
    shape = model.input.shape
    if image is None:
        smallest = values.pixels[np.arange(rows), values.low - lowest]
        image = np.resize(smallest, prod(shape))
    flat = image.reshape(-1).copy()
    for element, value in wanted.items():
        flat[element] = values.pixels[element % rows, value - lowest]
    return flat.reshape(shape)


# --- one rule a layer kind --------------------------------------------------------------------------------------------

Source = tuple[TensorProof, Values]


def _channels_of(source: Source) -> Values:
    proof, values = source
    return values.per_channel(proof.shape[-1], proof.dtype)


def _input_range(layer: InputQuantization, pixels: tuple[int, int]) -> LayerRange:
    """Every grey level is tried; of those that give a value, the one nearest to 0 .. 255 is kept."""
    levels = np.arange(pixels[0], pixels[1] + 1, dtype=np.int32)
    levels = levels[np.argsort(-np.abs(levels - np.clip(levels, 0, 255)), kind="stable")]
    columns = operate(layer, (), levels).astype(np.int64) - INTEGER_RANGES[layer.output.dtype][0]
    sets, found = np.zeros((1, 256), bool), np.zeros((1, 256), np.int32)
    sets[0, columns] = True
    found[0, columns] = levels  # of equal columns the last one counts
    ends = np.array([pixels], np.int64).T
    low, high = ends
    return LayerRange(
        Values.of_sets(sets, layer.output.dtype, found),
        Accumulators(low, high, np.minimum(low, 0), np.maximum(high, 0), attained=True),
        _unclamped((low, high), layer.requantization, layer.output),
    )


def _unclamped(accumulators: Bounds, requantization: Requantization, output: Quantization) -> Bounds:
    """Rounded and offset; every mode keeps the order of accumulators, so ends go to ends."""
    multiplier, shift = requantization.multiplier.astype(np.int64), requantization.shift.astype(np.int64)
    low, high = (requantize(each, multiplier, shift, requantization.rounding) for each in accumulators)
    return low + output.zero_point, high + output.zero_point


def _clamped(bounds: Bounds, output: Quantization) -> Values:
    low, high = (np.clip(each, output.minimum, output.maximum) for each in bounds)
    return Values.between(low, high, output.dtype)


def _requantized(layer: Any, accumulators: Accumulators) -> LayerRange:
    bounds = _unclamped((accumulators.low, accumulators.high), layer.requantization, layer.output)
    return LayerRange(_clamped(bounds, layer.output), accumulators, bounds)


@singledispatch
def _range(layer: Layer, proof: TensorProof, *sources: Source) -> LayerRange:
    raise TypeError(f"no range for {layer.kind}")


@_range.register(Conv2D)
@_range.register(Linear)
def _(layer: Products, proof: TensorProof, source: Source) -> LayerRange:
    accumulators = _product_accumulators(layer, proof, *source)
    if layer.requantization is None:
        return LayerRange(Values(accumulators.low, accumulators.high), accumulators)
    return _requantized(layer, accumulators)


@_range.register
def _(layer: GlobalAveragePool, proof: TensorProof, source: Source) -> LayerRange:
    before, values = source[0], _channels_of(source)
    area = before.shape[0] * before.shape[1]
    low, high = (area * (each - before.zero_point) for each in (values.low, values.high))
    attained = values.pixels is not None
    return _requantized(layer, Accumulators(low, high, np.minimum(low, 0), np.maximum(high, 0), attained))


@_range.register
def _(layer: Add, proof: TensorProof, first: Source, second: Source) -> LayerRange:
    one, other = _channels_of(first), _channels_of(second)
    zero_points, (of_one, of_other) = (first[0].zero_point, second[0].zero_point), layer.multiplier.tolist()

    def end(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = (a - zero_points[0]) * of_one + (b - zero_points[1]) * of_other
        return layer.output.zero_point + ((total + (1 << (layer.shift - 1))) >> layer.shift)

    bounds = end(one.low, other.low), end(one.high, other.high)
    return LayerRange(_clamped(bounds, layer.output), unclamped=bounds)


@_range.register(Clamp)
@_range.register(Requantize)
@_range.register(LookupTable)
def _(layer: Any, proof: TensorProof, source: Source) -> LayerRange:
    """An element's value decides its new value: the reference engine is asked for all of the 256."""
    before, values = source
    if isinstance(layer, Requantize):
        values = _channels_of(source)
    lowest = INTEGER_RANGES[before.dtype][0]
    every_value = (np.arange(256) + lowest).astype(before.dtype)[:, np.newaxis]
    answers = operate(layer, [before], every_value).astype(np.int64).T - INTEGER_RANGES[proof.dtype][0]
    rows, columns = np.nonzero(values.bytes_)
    new_columns = np.broadcast_to(answers, values.bytes_.shape)[rows, columns]
    sets, pixels = np.zeros_like(values.bytes_), None
    sets[rows, new_columns] = True
    if values.pixels is not None:
        pixels = np.zeros_like(values.pixels)
        pixels[rows, new_columns] = values.pixels[rows, columns]
    after = Values.of_sets(sets, proof.dtype, pixels)
    if isinstance(layer, Clamp):
        return LayerRange(after, unclamped=(values.low, values.high))
    if isinstance(layer, LookupTable):
        return LayerRange(after)
    low, high = values.low - before.zero_point, values.high - before.zero_point
    accumulators = Accumulators(low, high, np.minimum(low, 0), np.maximum(high, 0), pixels is not None)
    return LayerRange(after, accumulators, _unclamped((low, high), layer.requantization, layer.output))


@_range.register
def _(layer: Concat, proof: TensorProof, *sources: Source) -> LayerRange:
    parts = [_channels_of(source).bytes_ for source in sources]
    return LayerRange(Values.of_sets(np.concatenate(parts), proof.dtype))


@_range.register
def _(layer: MaxPool, proof: TensorProof, source: Source) -> LayerRange:
    """The largest of some elements is one of them."""
    return LayerRange(Values.of_sets(_channels_of(source).bytes_, proof.dtype))


@_range.register
def _(layer: AveragePool, proof: TensorProof, source: Source) -> LayerRange:
    """Sums of `q` itself; where padding counts, it is the zero point."""
    before, values = source[0], _channels_of(source)
    area = layer.kernel[0] * layer.kernel[1]
    inside = np.unique([way.taps for way in windows(layer, before, proof)])[:, np.newaxis]
    padding = (area - inside) * int(layer.count_include_pad)
    count = inside + padding
    low, high = (inside * each + padding * before.zero_point for each in (values.low, values.high))
    partial = [
        inside * end(each, 0) + padding * end(before.zero_point, 0)
        for end, each in ((np.minimum, values.low), (np.maximum, values.high))
    ]
    accumulators = Accumulators(
        low.min(axis=0), high.max(axis=0), partial[0].min(axis=0), partial[1].max(axis=0), values.pixels is not None
    )
    means = [(2 * total + count) // (2 * count) for total in (low, high)]
    return LayerRange(Values.between(means[0].min(axis=0), means[1].max(axis=0), proof.dtype), accumulators)


@_range.register
def _(layer: Pad, proof: TensorProof, source: Source) -> LayerRange:
    sets = _channels_of(source).bytes_.copy()
    if any(layer.padding):
        sets[:, proof.zero_point - INTEGER_RANGES[proof.dtype][0]] = True
    return LayerRange(Values.of_sets(sets, proof.dtype))


@_range.register(Flatten)
@_range.register(Reshape)
def _(layer: Layer, proof: TensorProof, source: Source) -> LayerRange:
    return LayerRange(source[1])


@_range.register
def _(layer: Softmax, proof: TensorProof, source: Source) -> LayerRange:
    return LayerRange(Values.between(np.array([proof.minimum]), np.array([proof.maximum]), proof.dtype))


@_range.register
def _(layer: ArgMax, proof: TensorProof, source: Source) -> LayerRange:
    possible = np.flatnonzero(can_win(*source))
    return LayerRange(Values(possible[:1].astype(np.int64), possible[-1:].astype(np.int64)))


def can_win(proof: TensorProof, values: Values) -> np.ndarray:
    """Which classes can have the largest score, the lowest index winning a tie: bool `(classes,)`."""
    classes = proof.shape[0]
    low, high = np.resize(values.low, classes), np.resize(values.high, classes)
    best_before = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], low[:-1]]))
    best = low.max()
    return (high > best_before) & (high >= best)
