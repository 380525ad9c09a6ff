"""The audit's intervals contain all that an engine computes, and where it says so, something computes their ends."""

from fractions import Fraction
from itertools import combinations, product
from math import prod

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intsmooth_ref.audit.arithmetic import ALL_PIXELS, Values, bare, bits, can_win, extreme_image, layer_ranges
from intsmooth_ref.engine.reference import ReferenceModel, operate
from intsmooth_ref.fixedpoint import quantize_multiplier
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    INTEGER_RANGES,
    AveragePool,
    Clamp,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    InputQuantization,
    Linear,
    LookupTable,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Reshape,
)
from random_models import images_for, models

SLOW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
BARE = Quantization.full_range("int32", Fraction(1), 0)


def ratio(value):
    return Requantization.of(quantize_multiplier(Fraction(value)))


def input_layer(shape, zero_point=0, minimum=0, maximum=255, value=1):
    """Grey levels times `value`, plus the zero point, as uint8."""
    output = Quantization("uint8", Fraction(1), zero_point, minimum, maximum)
    return InputQuantization(name="input", shape=shape, requantization=ratio(value), output=output)


def every_image(shape, levels):
    """All images of these grey levels."""
    return np.array(list(product(levels, repeat=prod(shape))), np.int32).reshape(-1, *shape)


def accumulators_of(model, layer, images):
    """By the oracle, from what the reference engine gives the layer to read: `(N, ..., C)` of Python integers."""
    source = layer.inputs[0]
    tensor = dict(ReferenceModel(model).trace(images))[source]
    return oracle.compute(bare(layer), [model.proofs[source]], tensor)


@SLOW
@given(models(), st.integers(0, 2**32))
def test_no_engine_ever_leaves_the_sets_and_intervals(model, seed):
    images = images_for(model, np.random.default_rng(seed), 4)
    ranges = layer_ranges(model)
    tensors = {}
    for layer in model.layers:
        found, proof = ranges[layer.name], model.proofs[layer.name]
        source = [model.proofs[name] for name in layer.inputs]
        tensors[layer.name] = operate(layer, source, *([tensors[name] for name in layer.inputs] or [images]))
        flat = tensors[layer.name].reshape(len(images), -1).astype(np.int64)
        rows = np.arange(flat.shape[1]) % len(found.values.low)
        assert (found.values.low[rows] <= flat).all() and (flat <= found.values.high[rows]).all()
        assert found.values.low.min() >= proof.minimum and found.values.high.max() <= proof.maximum
        if found.values.sets is not None:
            assert found.values.sets[rows, flat - INTEGER_RANGES[proof.dtype][0]].all()
        if isinstance(layer, (Conv2D, Linear)):
            sums = operate(bare(layer), source, tensors[layer.inputs[0]])
            assert (found.accumulators.low <= sums).all() and (sums <= found.accumulators.high).all()
            low, high = found.accumulators.partial_interval
            assert low <= found.accumulators.interval[0] and found.accumulators.interval[1] <= high
            assert proof.accumulator[0] <= found.accumulators.interval[0]
            assert found.accumulators.interval[1] <= proof.accumulator[1]


@st.composite
def small_convolutions(draw):
    """A convolution of images of four pixels, of all forms of window, groups and padding."""
    shape = draw(st.sampled_from([(2, 2, 1), (1, 2, 2), (4, 1, 1), (1, 1, 4)]))
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if shape[2] % g == 0]))
    kernel, dilation = ([draw(st.integers(1, most)) for _ in range(2)] for most in (3, 2))
    strides = tuple(draw(st.integers(1, 2)) for _ in range(2))
    padding = []
    for size, extent, step in zip(shape, kernel, dilation):
        reach = (extent - 1) * step + 1
        before = draw(st.integers(0, reach))
        padding += [before, max(reach - size - before, 0) + draw(st.integers(0, 1))]
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = numbers.integers(-128, 128, (2 * groups, *kernel, shape[2] // groups)).astype(np.int8)
    first = input_layer(shape, draw(st.integers(0, 5)), draw(st.integers(0, 1)), draw(st.integers(2, 6)))
    layer = Conv2D(
        name="conv", inputs=("input",), weights=weights, bias=numbers.integers(-99, 99, 2 * groups).astype(np.int32),
        output=BARE, strides=strides, padding=tuple(padding), dilation=tuple(dilation), groups=groups,
    )  # fmt: skip
    return IntegerModel((first, layer, Flatten(name="flat", inputs=("conv",))))


@SLOW
@given(small_convolutions())
def test_the_interval_of_a_first_convolution_is_what_all_images_together_attain(model):
    """Grey levels -7 .. 7 take each pixel to every value that it has."""
    images = every_image(model.input.shape, (-7, 1, 7))
    sums = accumulators_of(model, model.layers[1], images).reshape(-1, len(model.layers[1].weights))
    for pixels in (ALL_PIXELS, (-7, 7)):
        found = layer_ranges(model, pixels)["conv"].accumulators
        assert found.attained
        assert found.low.tolist() == list(sums.min(axis=0)) and found.high.tolist() == list(sums.max(axis=0))


@settings(SLOW, max_examples=15)
@given(small_convolutions())
def test_an_image_is_built_that_attains_each_end(model):
    ranges, layer = layer_ranges(model), model.layers[1]
    for channel in range(len(layer.weights)):
        for highest, end in ((False, "low"), (True, "high")):
            image, place = extreme_image(model, ranges, layer, channel, highest)
            found = accumulators_of(model, layer, image[np.newaxis])[(0, *place)]
            assert place[-1] == channel and found == getattr(ranges["conv"].accumulators, end)[channel]


@SLOW
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=4), st.integers(-500, 500), st.integers(0, 3))
def test_partial_sums_are_bounded_by_the_extreme_of_all_subsets_of_terms(weights, bias, zero_point):
    model = IntegerModel((
        input_layer((1, 1, len(weights)), zero_point, 1, 5), Flatten(name="flat", inputs=("input",)),
        Linear(name="scores", inputs=("flat",), weights=np.array([weights], np.int8), bias=np.array([bias], np.int32),
               output=BARE),
    ))  # fmt: skip
    sums = {
        sum(subset)
        for values in product((1 - zero_point, 5 - zero_point), repeat=len(weights))
        for size in range(len(weights) + 2)
        for subset in combinations([bias, *(w * x for w, x in zip(weights, values))], size)
    }
    assert layer_ranges(model)["scores"].accumulators.partial_interval == (min(sums), max(sums))


def test_values_pass_exactly_through_whatever_looks_at_one_element_alone():
    """Each pixel of its own channel takes the values that enumerating all grey levels gives, holes included."""
    table = (np.arange(256) * 37 % 251).astype(np.int16)
    full = Quantization.full_range("uint8", Fraction(1), 10)
    model = IntegerModel((
        input_layer((1, 1, 2), 7, 5, 99, value=3),
        Requantize(name="wide", inputs=("input",), requantization=Requantization.of((2**30, 29), (2**30, 31)),
                   output=full),
        LookupTable(name="table", inputs=("wide",), table=table,
                    output=Quantization.full_range("uint8", Fraction(1), 0)),
        Clamp(name="clamp", inputs=("table",), minimum=20, maximum=200),
        Flatten(name="flat", inputs=("clamp",)),
    ))  # fmt: skip
    levels = np.arange(-60, 61, dtype=np.int32)
    images = np.broadcast_to(levels[:, np.newaxis, np.newaxis, np.newaxis], (len(levels), 1, 1, 2))
    ranges = layer_ranges(model, (-60, 60))
    for name, tensor in ReferenceModel(model).trace(images):
        values = ranges[name].values
        for channel in range(2):
            row = channel % len(values.sets)
            assert set(np.flatnonzero(values.sets[row])) == set(tensor.reshape(-1, 2)[:, channel].tolist()), name
            for value in np.flatnonzero(values.sets[row]):
                image = np.full((1, 1, 1, 2), values.pixels[row, value], np.int32)
                assert dict(ReferenceModel(model).trace(image))[name].reshape(2)[channel] == value


def test_channels_that_a_reshape_mixes_share_their_values_and_claim_no_attainment():
    """Channels of 0 .. 20 and 0 .. 5 become two pixels of one channel: a window of both cannot hold 20 twice."""
    full = Quantization.full_range("uint8", Fraction(1), 0)
    model = IntegerModel((
        input_layer((1, 1, 2), 0, 0, 10),
        Requantize(name="two", inputs=("input",), requantization=Requantization.of((2**30, 29), (2**30, 31)),
                   output=full),
        Reshape(name="mixed", inputs=("two",), shape=(2, 1, 1)),
        Conv2D(name="conv", inputs=("mixed",), weights=np.ones((1, 2, 1, 1), np.int8), bias=np.zeros(1, np.int32),
               output=BARE),
        Flatten(name="flat", inputs=("conv",)),
    ))  # fmt: skip
    ranges = layer_ranges(model)
    assert ranges["mixed"].values.high.tolist() == [20, 5]
    assert ranges["conv"].accumulators.interval == (0, 40) and not ranges["conv"].accumulators.attained
    assert accumulators_of(model, model.layers[3], every_image((1, 1, 2), (0, 5, 10))).max() == 25


def test_of_the_grey_levels_that_give_a_value_one_near_to_those_of_images_is_kept():
    model = IntegerModel((input_layer((1, 1, 1)), Flatten(name="flat", inputs=("input",))))
    values = layer_ranges(model)["flat"].values
    assert values.pixels[0].tolist() == list(range(256))


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_a_pool_is_bounded_window_by_window(count_include_pad):
    """2x2 pixels of 3 .. 5, zero point 9: windows hold one, two or four of them, and padding where it counts."""
    model = IntegerModel((
        input_layer((2, 2, 1), 9, 3, 5),
        AveragePool(name="pool", inputs=("input",), kernel=(2, 2), padding=(1, 1, 1, 1),
                    count_include_pad=count_include_pad),
        Flatten(name="flat", inputs=("pool",)),
    ))  # fmt: skip
    images = every_image((2, 2, 1), (-6, -5, -4))
    means = dict(ReferenceModel(model).trace(images))["pool"]
    found = layer_ranges(model)["pool"]
    assert (found.values.low[0], found.values.high[0]) == (means.min(), means.max())
    assert found.accumulators.interval == ((4 * 3, 5 + 3 * 9) if count_include_pad else (3, 4 * 5))


def test_a_padded_tensor_holds_its_zero_point_and_claims_no_attainment():
    model = IntegerModel((
        input_layer((1, 1, 1), 9, 3, 5), Pad(name="pad", inputs=("input",), padding=(1, 0, 0, 0)),
        GlobalAveragePool(name="pool", inputs=("pad",), requantization=ratio("1/2"),
                          output=Quantization.full_range("uint8", Fraction(1), 100)),
    ))  # fmt: skip
    ranges = layer_ranges(model)
    assert np.flatnonzero(ranges["pad"].values.sets[0]).tolist() == [3, 4, 5, 9]
    assert ranges["pool"].accumulators.interval == (-12, 0) and not ranges["pool"].accumulators.attained


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_bits_are_the_fewest_that_hold_both_in_twos_complement(a, b):
    low, high = min(a, b), max(a, b)
    width = bits(low, high)
    assert -(2 ** (width - 1)) <= low and high < 2 ** (width - 1)
    assert width == 1 or low < -(2 ** (width - 2)) or high >= 2 ** (width - 2)


@SLOW
@given(st.integers(1, 5).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted), min_size=n, max_size=n)
))  # fmt: skip
def test_a_class_can_win_exactly_if_some_scores_make_it_win(intervals):
    low, high = np.array(intervals, np.int64).T
    model = IntegerModel((input_layer((1, 1, len(low))), Flatten(name="flat", inputs=("input",))))
    winners = {int(np.argmax(scores)) for scores in product(*(range(a, b + 1) for a, b in intervals))}
    possible = can_win(model.proofs["flat"], Values(low, high))
    assert set(np.flatnonzero(possible).tolist()) == winners
