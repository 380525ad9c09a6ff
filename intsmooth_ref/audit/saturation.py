"""What a kernel gets wrong that multiplies u8 by s8 and adds products in pairs, saturating to 16 bits.

So works `pmaddubsw` of x86 processors without VNNI. With the taps of a window in the order of the weights, which is
`(KH, KW, I)` of one group, channels fastest, such a kernel adds

    (1)   sum over j of sat16(w_2j * b_2j + w_2j+1 * b_2j+1),

a last tap without a partner standing alone. `b` is the byte of an activation: `q` itself of uint8, `q + 128` of int8,
and the zero point's byte in the padding; zero point and bias enter afterwards, in 32 bits. With an even number of
channels a pair are neighbouring channels of one pixel; with an odd number, or in a depthwise convolution, pairs reach
from one pixel into the next. Kernels that order their taps otherwise saturate elsewhere.

From the values that each channel can hold follows which pairs can leave 16 bits. Where none can, every such kernel is
right on every image. Else a witness is looked for, an image under which a pair does saturate: among given images, by
construction where the layer hangs on pixels directly, and by hill climbing in the first layers. A witness is computed
again in Python's integers and held against the reference engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Mapping

import numpy as np

from ..engine.reference import ReferenceModel, operate
from ..fixedpoint import accumulator_range, requantize
from ..model.graph import IntegerModel
from ..model.layers import INTEGER_RANGES, Conv2D, Linear
from ..noise.philox import philox4x32_array
from .arithmetic import LayerRange, Products, Values, bare, element_read, image_of, product_form

SAT16_MIN, SAT16_MAX = -(1 << 15), (1 << 15) - 1

#: Of the layers in which no image shows a saturation, the first so many are climbed, so many candidates a step.
CLIMBED_LAYERS, CANDIDATES = 4, 8
#: A purpose and a seed of Philox for the candidates.
CLIMBING, SEED = (1 << 31) + 4, 1

#: An image, int32 `(H, W, C)`, and where it comes from.
Image = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Witness:
    """An image under which a pair saturates, and what becomes of it at one place of a layer.

    Attributes:
        origin: where the image comes from.
        image: its grey levels, flattened.
        place: of the output element, `(h, w, c)` or `(c,)`.
        pair: of the taps of equation (1), the first of the two.
        bytes_, weights: of both taps; a missing partner is 0.
        exact, saturated: the accumulator, and what the pair-saturating kernel has instead.
        output, wrong_output: the layer's output, and what follows from the saturated accumulator.
    """

    origin: str
    image: tuple[int, ...]
    place: tuple[int, ...]
    pair: int
    bytes_: tuple[int, int]
    weights: tuple[int, int]
    exact: int
    saturated: int
    output: int
    wrong_output: int

    @property
    def pair_sum(self) -> int:
        return self.bytes_[0] * self.weights[0] + self.bytes_[1] * self.weights[1]


@dataclass(frozen=True)
class PairAudit:
    """What is known of the pairs of one layer.

    Attributes:
        pairs: how many there are, over all output channels.
        possible: how many of them can leave 16 bits, by interval; 0 is a proof that none does.
        low, high: the smallest and the largest sum of any pair, by interval.
        images: how many were searched.
        outputs: how many output elements these have in all.
        wrong: how many of them a pair-saturating kernel gets wrong, its input being right.
        witness: one that changes an output, if there is one, else one that changes an accumulator, or saturates a pair.
    """

    pairs: int
    possible: int
    low: int
    high: int
    images: int = 0
    outputs: int = 0
    wrong: int = 0
    witness: Witness | None = None


class PairLayer:
    """The pairs of one layer, those that can leave 16 bits, and what is found of them image by image."""

    def __init__(self, model: IntegerModel, layer: Products, values: Values) -> None:
        self.layer, self._model = layer, model
        self.source, self.proof = model.proofs[layer.inputs[0]], model.proofs[layer.name]
        self.form = product_form(layer, self.source, self.proof)
        self._lowest = INTEGER_RANGES[self.source.dtype][0]
        self.suspects: list[tuple[int, np.ndarray]] = []
        low, high = 0, 0
        bounds = self._byte_bounds(values)
        for o, weights in enumerate(_paired(self.form.weights.reshape(len(layer.weights), -1))):
            ends = [weights * _paired(end[self._group(o)]) for end in bounds]
            smallest, largest = (end(*ends).reshape(-1, 2).sum(axis=1) for end in (np.minimum, np.maximum))
            low, high = min(low, int(smallest.min())), max(high, int(largest.max()))
            leaving = np.flatnonzero((smallest < SAT16_MIN) | (largest > SAT16_MAX))
            if leaving.size:
                self.suspects.append((o, leaving))
        self.pairs = len(layer.weights) * -(-layer.weights[0].size // 2)
        self.possible = sum(len(leaving) for _, leaving in self.suspects)
        self.low, self.high = low, high
        self.images = self.outputs = self.wrong = 0
        self._best: tuple[tuple[bool, bool], str, np.ndarray, int] | None = None
        self.nearest: tuple[int, np.ndarray] | None = None

    def _group(self, output: int) -> int:
        return output // (len(self.layer.weights) // self.form.groups)

    def _byte_bounds(self, values: Values) -> list[np.ndarray]:
        """The smallest and the largest byte that each tap can meet, padding included: int64 `(groups, taps)` each."""
        channels = values.per_channel(self.source.shape[-1], self.source.dtype)
        _, height, width, depth = self.form.weights.shape
        inside = np.zeros((height, width), int)
        for way in self.form.ways:
            inside[slice(*way.rows), slice(*way.columns)] += 1
        outside = (inside < len(self.form.ways))[np.newaxis, :, :, np.newaxis]
        bounds = []
        for q, end in ((channels.low, np.minimum), (channels.high, np.maximum)):
            taps = np.broadcast_to(q.reshape(-1, 1, 1, depth), (self.form.groups, height, width, depth))
            taps = np.where(outside, end(taps, self.source.zero_point), taps) - self._lowest
            bounds.append(taps.reshape(self.form.groups, -1))
        return bounds

    def patches(self, tensor: np.ndarray) -> np.ndarray:
        """The bytes of each window, int64 `(N * windows, groups, taps, a missing partner as one more)`."""
        bytes_ = tensor.astype(np.int64) - self._lowest
        if isinstance(self.layer, Linear):
            return _paired(bytes_[:, np.newaxis, :])
        top, bottom, left, right = self.layer.padding
        padded = np.pad(
            bytes_, ((0, 0), (top, bottom), (left, right), (0, 0)),
            constant_values=self.source.zero_point - self._lowest,
        )  # fmt: skip
        kernel, (down, across) = self.form.weights.shape[1:3], self.layer.dilation
        extent = ((kernel[0] - 1) * down + 1, (kernel[1] - 1) * across + 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(1, 2))
        windows = windows[:, :: self.layer.strides[0], :: self.layer.strides[1], :, ::down, ::across]
        groups, depth = self.form.groups, self.form.weights.shape[3]
        by_group = windows.reshape(-1, groups, depth, *kernel).transpose(0, 1, 3, 4, 2)
        return _paired(by_group.reshape(len(by_group), groups, -1))

    def _sums(self, patches: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Of each output channel with suspects, their sums `(windows, suspects)`."""
        for o, leaving in self.suspects:
            weights = _paired(self.form.weights[o].reshape(-1))
            bytes_ = patches[:, self._group(o)]
            first, second = 2 * leaving, 2 * leaving + 1
            yield o, bytes_[:, first] * weights[first] + bytes_[:, second] * weights[second]

    def overshoot(self, tensor: np.ndarray) -> np.ndarray:
        """Of each image, how far the furthest pair goes beyond 16 bits; below 0, how much is missing: `(N,)`."""
        patches = self.patches(tensor)
        furthest = [np.maximum(sums - SAT16_MAX, SAT16_MIN - sums).max(axis=1) for _, sums in self._sums(patches)]
        return np.max(furthest, axis=0).reshape(len(tensor), -1).max(axis=1)

    def examine(self, image: Image, tensor: np.ndarray) -> None:
        """Note what one image does: `tensor` `(1, ...)` is what the layer reads under it."""
        patches = self.patches(tensor)
        lost = np.zeros((len(patches), len(self.layer.weights)), np.int64)
        saturates = np.zeros(lost.shape, bool)
        furthest = None
        for o, sums in self._sums(patches):
            excess = np.clip(sums, SAT16_MIN, SAT16_MAX) - sums
            lost[:, o], saturates[:, o] = excess.sum(axis=1), excess.any(axis=1)
            reach = int(np.maximum(sums - SAT16_MAX, SAT16_MIN - sums).max())
            furthest = reach if furthest is None else max(furthest, reach)
        assert furthest is not None
        if self.nearest is None or furthest > self.nearest[0]:
            self.nearest = furthest, image[1]
        self.images, self.outputs = self.images + 1, self.outputs + lost.size
        if not saturates.any():
            return
        exact = operate(bare(self.layer), [self.source], tensor).astype(np.int64).reshape(lost.shape)
        differs = self._output(exact) != self._output(exact + lost)
        self.wrong += int(differs.sum())
        rank = (bool(differs.any()), bool(lost.any()))
        if self._best is None or rank > self._best[0]:
            shown = differs if rank[0] else lost != 0 if rank[1] else saturates
            self._best = rank, *image, int(np.flatnonzero(shown)[0])

    def _output(self, accumulators: np.ndarray) -> np.ndarray:
        """What the layer makes of accumulators `(..., channels)`; of wrong ones that its mode does not take, of the
        nearest that it does."""
        requantization, output = self.layer.requantization, self.layer.output
        if requantization is None:
            return accumulators
        multiplier, shift = requantization.multiplier.astype(np.int64), requantization.shift.astype(np.int64)
        taken = np.array([accumulator_range(each, requantization.rounding) for each in shift.tolist()], np.int64)
        rounded = requantize(np.clip(accumulators, *taken.T), multiplier, shift, requantization.rounding)
        return np.clip(output.zero_point + rounded, output.minimum, output.maximum)

    @property
    def has_witness(self) -> bool:
        return self._best is not None

    def result(self) -> PairAudit:
        witness = None if self._best is None else self._replayed(*self._best[1:])
        return PairAudit(
            self.pairs, self.possible, self.low, self.high, self.images, self.outputs, self.wrong, witness
        )

    def _replayed(self, origin: str, image: np.ndarray, index: int) -> Witness:
        """The witness, computed again from the image alone, in Python's integers; the reference engine must agree."""
        tensors = dict(_traced(self._model, image[np.newaxis], {*self.layer.inputs, self.layer.name}))
        shape = self.proof.shape
        place = tuple(int(each) for each in np.unravel_index(index, shape))
        channel, tensor = place[-1], tensors[self.layer.inputs[0]]
        taps = self.patches(tensor)[index // shape[-1], self._group(channel)].tolist()
        weights = _paired(self.form.weights[channel].reshape(-1)).tolist()
        sums = [taps[k] * weights[k] + taps[k + 1] * weights[k + 1] for k in range(0, len(taps), 2)]
        constant = int(self.layer.bias[channel]) - (self.source.zero_point - self._lowest) * sum(weights)
        exact, saturated = (
            constant + sum(each) for each in (sums, [min(max(s, SAT16_MIN), SAT16_MAX) for s in sums])
        )
        outputs = [int(self._output(np.full(shape[-1], each, np.int64))[channel]) for each in (exact, saturated)]
        if outputs[0] != int(tensors[self.layer.name][0][place]):
            raise AssertionError(f"layer {self.layer.name!r} at {place}: the reference engine gives another output")
        furthest = max(range(len(sums)), key=lambda j: max(sums[j] - SAT16_MAX, SAT16_MIN - sums[j]))
        first = 2 * furthest
        return Witness(
            origin, tuple(image.reshape(-1).tolist()), place, first, (taps[first], taps[first + 1]),
            (weights[first], weights[first + 1]), exact, saturated, *outputs,
        )  # fmt: skip

    def constructed(self, values: Values, background: np.ndarray | None) -> Iterator[Image]:
        """Images that drive the lowest and the highest of the pairs that can leave 16 bits, to the end of its interval.

        Of a layer whose elements hang on pixels directly, else none.
        """
        channels = values.per_channel(self.source.shape[-1], self.source.dtype)
        if channels.pixels is None:
            return
        for highest in (False, True):
            found = [
                option for o, leaving in self.suspects for j in leaving.tolist()
                if (option := self._driven(o, j, channels, highest)) is not None
            ]  # fmt: skip
            if found:
                _, wanted = max(found, key=lambda each: each[0] if highest else -each[0])
                yield "constructed", image_of(self._model, self.source, values, wanted, background)

    def _driven(self, output: int, pair: int, channels: Values, highest: bool) -> tuple[int, dict[int, int]] | None:
        """The furthest sum of a pair somewhere inside the image, and the values of the elements that give it."""
        _, height, width, depth = self.form.weights.shape
        weights, read = self.form.weights[output].reshape(-1), self.form.channels_read(output)
        taps = [tap for tap in (2 * pair, 2 * pair + 1) if tap < len(weights)]
        spots = [np.unravel_index(tap, (height, width, depth)) for tap in taps]
        for way in self.form.ways:
            if all(way.rows[0] <= kh < way.rows[1] and way.columns[0] <= kw < way.columns[1] for kh, kw, _ in spots):
                break
        else:
            return None
        total, wanted = 0, {}
        for tap, (kh, kw, d) in zip(taps, spots):
            channel, weight = read.start + int(d), int(weights[tap])
            value = int((channels.high if (weight > 0) == highest else channels.low)[channel])
            element = element_read(self.layer, self.source, way.top, way.left, int(kh), int(kw)) + channel
            wanted[element] = value
            total += weight * (value - self._lowest)
        return total, wanted


def _paired(taps: np.ndarray) -> np.ndarray:
    """Wide, along the last axis an even number, a missing partner being 0."""
    missing = taps.shape[-1] % 2
    return np.pad(taps.astype(np.int64), [(0, 0)] * (taps.ndim - 1) + [(0, missing)])


def _traced(model: IntegerModel, images: np.ndarray, names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The named layers' outputs, by the reference engine, which goes no further than the last of them."""
    missing = set(names)
    for name, tensor in ReferenceModel(model).trace(images):
        if name in missing:
            yield name, tensor
            missing.discard(name)
        if not missing:
            return


def pair_audits(
    model: IntegerModel, ranges: Mapping[str, LayerRange], images: Iterable[Image], climb: int,
    done: Callable[[], None] = lambda: None,
) -> dict[str, PairAudit]:  # fmt: skip
    """What is known of each `Conv2D` and `Linear`, by name.

    Args:
        ranges: of the layers, from `layer_ranges`.
        images: to search for witnesses.
        climb: how many images hill climbing may try in a layer.
        done: called after each image.
    """
    layers = [
        PairLayer(model, layer, ranges[layer.inputs[0]].values)
        for layer in model.layers if isinstance(layer, (Conv2D, Linear))
    ]  # fmt: skip
    suspected = [each for each in layers if each.suspects]
    background = None
    if suspected:
        for image in images:
            background = image[1] if background is None else background
            _examine(model, suspected, image)
            done()
    for each in suspected:
        for image in each.constructed(ranges[each.layer.inputs[0]].values, background):
            _examine(model, [each], image)
            done()
    if background is not None:
        extremes = _extreme_levels(model, ranges)
        for each in [each for each in suspected if not each.has_witness][:CLIMBED_LAYERS]:
            _climb(model, each, extremes, climb, done)
    return {each.layer.name: each.result() for each in layers}


def _examine(model: IntegerModel, layers: list[PairLayer], image: Image) -> None:
    for name, tensor in _traced(model, image[1][np.newaxis], {each.layer.inputs[0] for each in layers}):
        for each in layers:
            if each.layer.inputs[0] == name:
                each.examine(image, tensor)


def _extreme_levels(model: IntegerModel, ranges: Mapping[str, LayerRange]) -> np.ndarray:
    """Two grey levels that take the model's input to its ends."""
    values = ranges[model.input.name].values
    assert values.pixels is not None
    columns = np.flatnonzero(values.bytes_[0])
    return values.pixels[0, columns[[0, -1]]]


def _climb(
    model: IntegerModel, layer: PairLayer, extremes: np.ndarray, budget: int, done: Callable[[], None]
) -> None:
    """From the image that came nearest, paint rectangles black or white in each channel, and keep what comes nearer."""
    assert layer.nearest is not None
    height, width, channels = model.input.shape
    for step in range(budget // CANDIDATES):
        reach, best = layer.nearest
        words = philox4x32_array(np.arange(2), np.arange(CANDIDATES)[:, np.newaxis], step, CLIMBING, SEED)
        candidates = np.repeat(best[np.newaxis], CANDIDATES, axis=0)
        for candidate, numbers in zip(candidates, words.reshape(CANDIDATES, 8).tolist()):
            top, left = numbers[0] % height, numbers[1] % width
            bottom, right = top + 1 + numbers[2] % min(height, 8), left + 1 + numbers[3] % min(width, 8)
            white = [numbers[4] >> (c % 32) & 1 for c in range(channels)]
            candidate[top:bottom, left:right] = extremes[white]
        (_, tensor), = _traced(model, candidates, {layer.layer.inputs[0]})
        reaches = layer.overshoot(tensor)
        winner = int(reaches.argmax())
        for _ in range(CANDIDATES):
            done()
        if reaches[winner] > 0:
            layer.examine(("found by climbing", candidates[winner]), tensor[winner : winner + 1])
            return
        if reaches[winner] >= reach:
            layer.nearest = int(reaches[winner]), candidates[winner]
