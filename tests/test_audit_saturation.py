"""Pairs that saturate: what is called proven never happens, and every witness does what it says, in plain integers."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intsmooth_ref.audit.arithmetic import layer_ranges
from intsmooth_ref.audit.saturation import pair_audits
from intsmooth_ref.engine.reference import ReferenceModel
from intsmooth_ref.fixedpoint import accumulator_range, quantize_multiplier
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import Conv2D, Flatten, InputQuantization, Linear, Quantization, Requantization
from random_models import images_for, models

BARE = Quantization.full_range("int32", Fraction(1), 0)
UINT8 = Quantization.full_range("uint8", Fraction(1), 0)
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def pmaddubsw(unsigned, signed):
    """The instruction, as Intel describes it: products of neighbours added, saturated to signed 16 bits."""
    sums = [a * w + b * v for a, b, w, v in zip(unsigned[::2], unsigned[1::2], signed[::2], signed[1::2])]
    return [min(max(each, -32768), 32767) for each in sums]


def window(model, layer, tensor, place):
    """Bytes and weights of one window, tap by tap from the definition of the layer, an even number of them."""
    source = model.proofs[layer.inputs[0]]
    offset = 128 if source.dtype == "int8" else 0
    if isinstance(layer, Linear):
        unsigned, signed = tensor.tolist(), layer.weights[place[-1]].tolist()
    else:
        unsigned, signed = [], []
        _, kernel_height, kernel_width, depth = layer.weights.shape
        first = place[2] // (len(layer.weights) // layer.groups) * depth
        for kh in range(kernel_height):
            for kw in range(kernel_width):
                h = place[0] * layer.strides[0] + kh * layer.dilation[0] - layer.padding[0]
                w = place[1] * layer.strides[1] + kw * layer.dilation[1] - layer.padding[2]
                inside = 0 <= h < tensor.shape[0] and 0 <= w < tensor.shape[1]
                for i in range(depth):
                    unsigned.append(int(tensor[h, w, first + i]) if inside else source.zero_point)
                    signed.append(int(layer.weights[place[2], kh, kw, i]))
    odd = len(signed) % 2
    return [each + offset for each in unsigned] + [0] * odd, signed + [0] * odd


def by_hand(model, layer, tensor, place):
    """Sums of the pairs; exact and saturated accumulator; the outputs that follow, by the oracle."""
    source = model.proofs[layer.inputs[0]]
    zero_byte = source.zero_point + (128 if source.dtype == "int8" else 0)
    unsigned, signed = window(model, layer, tensor, place)
    sums = [unsigned[k] * signed[k] + unsigned[k + 1] * signed[k + 1] for k in range(0, len(signed), 2)]
    constant = int(layer.bias[place[-1]]) - zero_byte * sum(signed)
    accumulators = constant + sum(sums), constant + sum(pmaddubsw(unsigned, signed))
    return sums, accumulators, tuple(output_of(layer, each, place[-1]) for each in accumulators)


def output_of(layer, accumulator, channel):
    """By the oracle; a wrong accumulator beyond what the mode takes counts as the nearest that it does."""
    if layer.requantization is not None:
        shifts = layer.requantization.shift.tolist()
        low, high = accumulator_range(shifts[channel % len(shifts)], layer.requantization.rounding)
        accumulator = min(max(accumulator, low), high)
    return oracle._finished(layer, accumulator, channel)


def read_under(model, layer, image):
    return dict(ReferenceModel(model).trace(image[np.newaxis]))[layer.inputs[0]][0]


def places(model, layer):
    return np.ndindex(*model.proofs[layer.name].shape)


def products_of(model):
    return [layer for layer in model.layers if isinstance(layer, (Conv2D, Linear))]


def check_witness(model, layer, witness):
    """All that a witness says, from its image alone."""
    image = np.array(witness.image, np.int32).reshape(model.input.shape)
    tensor = read_under(model, layer, image)
    sums, accumulators, outputs = by_hand(model, layer, tensor, witness.place)
    unsigned, signed = window(model, layer, tensor, witness.place)
    pair = slice(witness.pair, witness.pair + 2)
    assert (list(witness.bytes_), list(witness.weights)) == (unsigned[pair], signed[pair])
    assert witness.pair_sum == sums[witness.pair // 2] and not -32768 <= witness.pair_sum <= 32767
    assert (witness.exact, witness.saturated) == accumulators
    assert (witness.output, witness.wrong_output) == outputs
    assert witness.output == dict(ReferenceModel(model).trace(image[np.newaxis]))[layer.name][(0, *witness.place)]


@SLOW
@given(models(), st.integers(0, 2**32))
def test_a_pair_saturates_only_where_that_is_possible_and_all_that_is_counted_is_so(model, seed):
    images = images_for(model, np.random.default_rng(seed), 2)
    found = pair_audits(model, layer_ranges(model), [(f"image {i}", each) for i, each in enumerate(images)], 0)
    assert list(found) == [layer.name for layer in products_of(model)]
    for layer in products_of(model):
        result, wrong, saturated = found[layer.name], 0, 0
        for image in images:
            tensor = read_under(model, layer, image)
            for place in places(model, layer):
                sums, _, outputs = by_hand(model, layer, tensor, place)
                assert result.low <= min(sums) and max(sums) <= result.high
                saturated += any(not -32768 <= each <= 32767 for each in sums)
                wrong += outputs[0] != outputs[1]
        assert result.possible or not saturated
        assert result.witness or not saturated
        assert result.wrong >= wrong and (result.images > len(images) or result.wrong == wrong)
        if result.witness:
            check_witness(model, layer, result.witness)
            changes = result.witness.output != result.witness.wrong_output
            assert changes == (result.wrong > 0)


def convolution(name, source, weights, bias=0, requantization=None, **more):
    output = BARE if requantization is None else UINT8
    return Conv2D(name=name, inputs=(source,), weights=weights, bias=np.full(len(weights), bias, np.int32),
                  requantization=requantization, output=output, **more)  # fmt: skip


def model_of(shape, *layers, output=UINT8):
    first = InputQuantization(name="input", shape=shape, requantization=Requantization.of((2**30, 30)), output=output)
    return IntegerModel((first, *layers, Flatten(name="flat", inputs=(layers[-1].name,))))


def audited(model, images=(), climb=0, **more):
    named = [(f"image {i}", np.asarray(each, np.int32)) for i, each in enumerate(images)]
    return pair_audits(model, layer_ranges(model, **more), named, climb)


@pytest.mark.parametrize(
    ("weights", "possible"),
    [((64, 64), 0), ((64, 65), 1), ((-64, -64), 0), ((-64, -65), 1), ((127, -128), 0), ((127, 2), 1), ((127, 1), 0)],
)
def test_the_border_of_sixteen_bits_is_exact(weights, possible):
    """255 * 128 = 32640 and 255 * -128 = -32640 fit, 255 * 129 = 32895 and 255 * -129 = -32895 do not."""
    model = model_of((1, 1, 2), convolution("conv", "input", np.array([[[weights]]], np.int8)))
    found = audited(model)["conv"]
    assert (found.pairs, found.possible) == (1, possible)
    assert (found.low, found.high) == tuple(255 * sum(end(w, 0) for w in weights) for end in (min, max))
    assert (found.witness is not None) == bool(possible)


def test_weights_of_seven_bits_are_proven_right_for_every_image():
    generator = np.random.default_rng(0)
    weights = generator.choice(np.array([-63, 63], np.int8), (4, 3, 3, 3))
    found = audited(model_of((4, 4, 3), convolution("conv", "input", weights, padding=(1, 1, 1, 1))))["conv"]
    assert (found.pairs, found.possible, found.witness) == (4 * 14, 0, None)


def test_an_odd_number_of_channels_makes_pairs_reach_into_the_next_pixel_and_leaves_one_alone():
    """Taps 127 0 0 | 127 0 0 | 0 0 127: the first two meet nobody, for 3 is odd; 0 0 0 127 | 127 are neighbours."""
    apart = np.array([[[[127, 0, 0], [127, 0, 0], [0, 0, 127]]]], np.int8)
    beside = np.array([[[[0, 0, 127], [127, 0, 0], [0, 0, 127]]]], np.int8)
    for weights, possible in ((apart, 0), (beside, 1)):
        found = audited(model_of((1, 3, 3), convolution("conv", "input", weights)))["conv"]
        assert (found.pairs, found.possible) == (5, possible)
    assert found.witness.pair == 2 and found.witness.pair_sum == 2 * 255 * 127


def test_the_padding_counts_with_the_byte_of_the_zero_point():
    """Pixels of -8 .. 7 have bytes 120 .. 135, but padding has 255: only beside it 127 and 110 leave 16 bits."""
    output = Quantization("int8", Fraction(1), 127, -8, 7)
    weights = np.array([[[[127], [127]]]], np.int8)
    inner, padded = (
        audited(model_of((1, 2, 1), convolution("conv", "input", weights, padding=(0, 0, side, 0)), output=output))
        for side in (0, 1)
    )
    assert (inner["conv"].possible, inner["conv"].high) == (1, 127 * 2 * 135)
    assert (padded["conv"].possible, padded["conv"].high) == (1, 127 * (255 + 135))
    tight = np.array([[[[127], [110]]]], np.int8)
    for side, possible in ((0, 0), (1, 1)):
        layer = convolution("conv", "input", tight, padding=(0, 0, side, 0))
        assert audited(model_of((1, 2, 1), layer, output=output))["conv"].possible == possible


def test_only_the_grey_levels_that_are_asked_about_count():
    weights = np.array([[[[127, 127]]]], np.int8)
    model = model_of((1, 1, 2), convolution("conv", "input", weights))
    assert audited(model, pixels=(0, 129))["conv"].possible == 0
    found = audited(model, pixels=(0, 130))["conv"]
    assert found.possible == 1 and found.witness.pair_sum == 2 * 127 * 130
    assert max(found.witness.image) <= 130


@pytest.mark.parametrize("highest", [False, True])
def test_of_a_first_layer_a_witness_is_built_without_any_image(highest):
    weights = np.zeros((2, 2, 2, 2), np.int8)
    weights[1, 1, 0] = (100, 100) if highest else (-100, -100)
    model = model_of((2, 2, 2), convolution("conv", "input", weights, padding=(1, 0, 1, 0), dilation=(1, 1)))
    found = audited(model)["conv"]
    assert found.witness.origin == "constructed" and found.witness.place[2] == 1
    assert found.witness.pair_sum == (51000 if highest else -51000)
    check_witness(model, model.layers[1], found.witness)


def test_climbing_finds_in_a_second_layer_what_no_image_shows():
    """The second layer saturates where two neighbouring 4x4 patches are nearly white; grey images show nothing."""
    weights = np.full((2, 4, 4, 1), 4, np.int8)
    weights[1] = 5
    ratio = Requantization.of(quantize_multiplier(Fraction(1, 64)))
    second = np.array([[[[127, 127]]]], np.int8)
    model = model_of((8, 8, 1), convolution("first", "input", weights, requantization=ratio, strides=(4, 4)),
                     convolution("second", "first", second))  # fmt: skip
    grey = [np.full((8, 8, 1), 90)]
    assert audited(model, grey)["second"].witness is None
    found = audited(model, grey, climb=800)["second"]
    assert found.witness.origin == "found by climbing"
    check_witness(model, model.layers[2], found.witness)
    assert audited(model, grey, climb=800) == audited(model, grey, climb=800)


def test_saturations_of_opposite_sign_nearly_cancel():
    """White everywhere: 64770 becomes 32767, -64770 becomes -32768, and the sum of both is wrong by 1 only."""
    weights = np.array([[[[127, 127, -127, -127]]]], np.int8)
    model = model_of((1, 1, 4), convolution("conv", "input", weights, bias=5))
    found = audited(model, [np.full((1, 1, 4), 255)])["conv"]
    assert found.witness.origin == "image 0" and (found.witness.exact, found.witness.saturated) == (5, 4)
    check_witness(model, model.layers[1], found.witness)


def test_a_witness_that_changes_an_output_is_preferred():
    """Accumulators beyond the clamp hide the saturation of the first image; the second shows it."""
    weights = np.array([[[[127, 127, 127, 127]]]], np.int8)
    ratio = Requantization.of(quantize_multiplier(Fraction(1, 200)))
    model = model_of((1, 1, 4), convolution("conv", "input", weights, requantization=ratio))
    found = audited(model, [np.full((1, 1, 4), 255), np.array([[[140, 140, 0, 0]]])])["conv"]
    assert (found.witness.origin, found.witness.output, found.witness.wrong_output) == ("image 1", 178, 164)
    hidden = audited(model, [np.full((1, 1, 4), 255)])["conv"]
    assert hidden.witness is not None and hidden.witness.exact != hidden.witness.saturated
