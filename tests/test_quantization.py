"""Quantization: scales are exact rationals, and what follows from them is what exact arithmetic says."""

from __future__ import annotations

import struct
from fractions import Fraction
from math import floor, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsmooth_ref.data_tools.quantization import (
    SCALE_BITS,
    activation_quantization,
    add,
    conv2d,
    global_average_pool,
    input_quantization,
    least_squares,
    linear,
    lookup_table,
    mean_squared_error,
    quantize_weights,
    requantize,
    scale_at_least,
    scores,
    widened,
)
from intsmooth_ref.engine import Engine, reference
from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import Conv2D, Flatten, Layer, Linear, Quantization, Requantization
from intsmooth_ref.model.proof import TensorProof

positive = st.floats(min_value=2.0**-40, max_value=2.0**40)
reals = st.floats(min_value=-1000, max_value=1000)


def random_layer(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Float weights of this shape whose rows differ in size, and biases."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    return generator.normal(size=shape) * sizes, generator.normal(size=shape[0])


@given(positive)
def test_a_scale_is_the_smallest_of_its_bits_that_is_not_below(value: float) -> None:
    scale = scale_at_least(value)
    unit = Fraction(2) ** (floor(log2(value)) + 1 - SCALE_BITS)  # the last of the value's first SCALE_BITS bits
    assert scale - unit < Fraction(value) <= scale
    assert (scale / unit).denominator == 1 and scale / unit <= 2**SCALE_BITS


@given(positive, positive)
def test_the_product_of_two_scales_is_exact_in_float32(a: float, b: float) -> None:
    product = scale_at_least(a) * scale_at_least(b)
    (stored,) = struct.unpack("<f", struct.pack("<f", float(product)))
    assert Fraction(stored) == product


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_must_be_a_finite_number_above_zero(value: float) -> None:
    with pytest.raises(ArithmeticRangeError, match="expected a finite number above zero"):
        scale_at_least(value)


@given(reals, reals, st.floats(min_value=0, max_value=1))
def test_the_error_of_an_activation_inside_the_grid_is_half_a_step_at_most(a: float, b: float, where: float) -> None:
    if max(abs(a), abs(b)) < 1e-6:
        return
    grid = activation_quantization(min(a, b), max(a, b))
    ends = [grid.scale * (end - grid.zero_point) for end in (0, 255)]
    value = ends[0] + Fraction(where) * (ends[1] - ends[0])
    q = min(max(round(value / grid.scale) + grid.zero_point, 0), 255)
    assert abs(grid.scale * (q - grid.zero_point) - value) <= grid.scale / 2


@given(reals, reals)
def test_the_activation_grid_covers_its_range_to_within_a_step_and_holds_zero(a: float, b: float) -> None:
    if max(abs(a), abs(b)) < 1e-6:
        return
    low, high = min(a, b), max(a, b)
    grid = activation_quantization(low, high)
    assert 0 <= grid.zero_point <= 255
    assert grid.scale * -grid.zero_point <= Fraction(low) + grid.scale
    assert grid.scale * (255 - grid.zero_point) >= Fraction(high) - grid.scale


@given(reals, reals, st.lists(reals, min_size=1, max_size=3))
def test_a_widened_grid_has_a_point_within_half_a_step_of_each_real_and_of_each_end(
    a: float, b: float, wanted: list[float]
) -> None:
    if max(abs(a), abs(b)) < 1e-6:
        return
    grid = activation_quantization(min(a, b), max(a, b))
    wide = widened(grid, *wanted)
    ends = [grid.scale * (end - grid.zero_point) for end in (0, 255)]
    for real in (*map(Fraction, wanted), *ends):
        q = min(max(round(real / wide.scale) + wide.zero_point, 0), 255)
        assert abs(wide.scale * (q - wide.zero_point) - real) <= wide.scale / 2
    assert wide == grid or any(not ends[0] <= Fraction(real) <= ends[1] for real in wanted)


def test_a_grid_that_reaches_far_enough_stays_as_it_is() -> None:
    grid = activation_quantization(-55.0, 200.0)
    assert widened(grid) == widened(grid, -55.5, 200.5, 3.25) == grid
    assert widened(grid, 200.75).scale > 1 and widened(grid, -55.75).scale > 1


def test_a_range_that_begins_at_zero_makes_the_clamp_a_relu() -> None:
    assert activation_quantization(0.0, 255.0) == Quantization("uint8", Fraction(1), 0, 0, 255)


def test_the_least_squares_grid_is_the_best_of_those_it_tries() -> None:
    values = np.random.default_rng(0).normal(size=4000) * 60 + 100
    chosen = mean_squared_error(values, least_squares(values))
    for low in (0.5, 0.75, 0.9, 1.0):
        for high in (0.5, 0.75, 0.9, 1.0):
            tried = activation_quantization(low * float(values.min()), high * float(values.max()))
            assert chosen <= mean_squared_error(values, tried)


def test_the_least_squares_grid_gives_up_a_lonely_outlier() -> None:
    values = np.append(np.linspace(0.0, 1.0, 1_000_000), 2.0)
    assert 255 * least_squares(values).scale < Fraction(3, 2)


def test_the_mean_squared_error_is_the_one_of_exact_arithmetic() -> None:
    grid = activation_quantization(-1.0, 2.0)
    values = np.random.default_rng(1).uniform(-2.0, 3.0, 200)
    exact = Fraction(0)
    for value in map(Fraction, values.tolist()):
        q = min(max(round(value / grid.scale) + grid.zero_point, 0), 255)
        exact += (value - grid.scale * (q - grid.zero_point)) ** 2
    assert mean_squared_error(values, grid) == pytest.approx(float(exact / len(values)), rel=1e-12)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_dequantized_layer_is_within_half_a_step(seed: int, per_channel: bool) -> None:
    weights, bias = random_layer(seed, 6, 3, 3, 4)
    source_scale = Fraction(3, 256)
    quantized = quantize_weights(weights, bias, source_scale, per_channel)
    assert len(quantized.scales) == (6 if per_channel else 1)
    scales = quantized.scales if per_channel else quantized.scales * 6
    for channel, scale in enumerate(scales):
        integers = quantized.weights[channel].ravel().tolist()
        for real, q in zip(weights[channel].ravel().tolist(), integers):
            assert abs(Fraction(real) - scale * q) <= scale / 2
        error = abs(Fraction(float(bias[channel])) - source_scale * scale * int(quantized.bias[channel]))
        assert error <= source_scale * scale / 2
    assert int(np.abs(quantized.weights.astype(int)).max()) == 127  # the grid is used to its end
    assert quantized.weights.min() >= -127


def test_a_channel_without_weights_keeps_its_bias() -> None:
    quantized = quantize_weights(np.zeros((1, 4)), np.array([0.3]), Fraction(1, 8), per_channel=True)
    assert quantized.weights.tolist() == [[0, 0, 0, 0]]
    kept = int(quantized.bias[0]) * Fraction(1, 8) * quantized.scales[0]
    assert abs(kept - Fraction(0.3)) < Fraction(1, 10**9)


def test_a_layer_of_zeros_stays_one() -> None:
    quantized = quantize_weights(np.zeros((2, 4)), np.zeros(2), Fraction(1, 8), per_channel=False)
    assert not quantized.weights.any() and not quantized.bias.any() and quantized.scales[0] > 0


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weight", [1e-3, 1e-6, 1e-9, 1e-30, 0.0])
@pytest.mark.parametrize("bias", [1000.0, -1000.0])
def test_weights_give_way_to_a_bias_that_would_leave_int32(weight: float, bias: float, per_channel: bool) -> None:
    source = Quantization.full_range("uint8", Fraction(1, 256), 255)
    weights, biases = np.array([[1.0, -1.0, 0.5], [weight, -weight, weight / 3]]), np.array([0.0, bias])
    output = activation_quantization(-10.0, 10.0)
    layer = (
        linear("last", "flat", source, weights, biases, output) if per_channel
        else scores("last", "flat", source, weights, biases)
    )  # fmt: skip
    image = input_quantization("input", (1, 1, 3), Fraction(1, 255), source)
    IntegerModel((image, Flatten(name="flat", inputs=("input",)), layer))  # proves the accumulator for every input
    quantized = quantize_weights(weights, biases, source.scale, per_channel, output.scale if per_channel else None)
    assert layer.weights.tolist() == quantized.weights.tolist() and layer.bias.tolist() == quantized.bias.tolist()
    scale = quantized.scales[-1]
    kept = int(quantized.bias[1]) * source.scale * scale
    assert abs(kept - Fraction(bias)) <= source.scale * scale / 2 < Fraction(1, 10**3)
    assert abs(int(quantized.weights[1, 0]) * scale - Fraction(weight)) <= scale / 2


def test_weights_leave_room_for_a_bias_at_the_very_end_of_int32() -> None:
    source = Quantization.full_range("uint8", Fraction(1, 256), 0)
    weights, biases = np.full((1, 3), 100 / 1024), np.array([(2**31 - 1000) / 1024 / 256])
    layer = scores("last", "flat", source, weights, biases)  # at a scale of 1/1024 the sum would be beyond
    image = input_quantization("input", (1, 1, 3), Fraction(1, 255), source)
    model = IntegerModel((image, Flatten(name="flat", inputs=("input",)), layer))
    low, high = model.proofs["last"].accumulator or (0, 0)
    assert 2**30 < low < high < 2**31


def test_only_channels_that_need_it_give_way() -> None:
    weights, biases = np.array([[1.0, 0.5], [1e-6, 1e-7]]), np.array([0.0, 1000.0])
    scales = quantize_weights(weights, biases, Fraction(1, 256), per_channel=True).scales
    assert scales[0] == scale_at_least(1 / 127)
    assert scales[1] >= Fraction(1000) * 256 / (2**31 - 1) > scale_at_least(1e-6 / 127)


def test_a_channel_too_weak_for_any_multiplier_is_rounded_to_nothing() -> None:
    output = activation_quantization(0.0, 255.0)
    weights = np.array([[1.0], [1e-20]]).reshape(2, 1, 1, 1)
    layer = conv2d("conv", "input", activation_quantization(0.0, 1.0), weights, np.array([0.0, 1e-20]), output)
    assert layer.weights[1].item() == 0 and layer.bias[1] == 0 and layer.weights[0].item() == 127


def test_more_weights_than_int32_can_add_up_are_refused() -> None:
    weights = np.broadcast_to(np.float32(1.0), (1, 1 << 25))
    with pytest.raises(ArithmeticRangeError, match="33554432 weights in a channel: expected at most 16843008"):
        quantize_weights(weights, np.zeros(1), Fraction(1), per_channel=True)


@given(st.integers(-127, 126), st.floats(2.0**-20, 2.0**20), st.integers(-3, 3))
def test_weights_at_or_beside_a_tie_are_rounded_exactly(q: int, largest: float, ulps: int) -> None:
    scale = scale_at_least(largest / 127)
    tie = float((q + Fraction(1, 2)) * scale)
    weights = np.array([[float(127 * scale), tie + ulps * float(np.spacing(tie))]])
    quantized = quantize_weights(weights, np.zeros(1), Fraction(1), per_channel=True)
    assert quantized.weights.tolist() == [[round(Fraction(each) / quantized.scales[0]) for each in weights[0].tolist()]]


grids = st.builds(activation_quantization, st.floats(-9.0, 0.0), st.floats(0.1, 9.0))


def real(grid: Quantization, q: int) -> Fraction:
    return grid.scale * (q - grid.zero_point)


def is_nearest(q: int, wanted: Fraction, grid: Quantization) -> bool:
    """Is `q` the integer nearest to a real, or the end of the grid; a hair is left to the multiplier's 31 bits."""
    steps = wanted / grid.scale + grid.zero_point
    clamped = min(max(steps, Fraction(grid.minimum)), Fraction(grid.maximum))
    return abs(q - clamped) <= Fraction(1, 2) + Fraction(1, 10**6)


def computed(layer: Layer, *inputs: tuple[Quantization, int]) -> int:
    """The layer's output, by the reference engine, for one integer on each of these grids."""
    proofs = [TensorProof((1, 1, 1), "uint8", grid.scale, grid.zero_point, 0, 255) for grid, _ in inputs]
    return int(reference.operate(layer, proofs, *(np.full((1, 1, 1, 1), q, np.uint8) for _, q in inputs)).item())


@settings(deadline=None, max_examples=50)
@given(grids, grids, grids, st.integers(0, 255), st.integers(0, 255))
def test_a_sum_is_the_nearest_point_of_its_grid(
    a: Quantization, b: Quantization, out: Quantization, x: int, y: int
) -> None:
    q = computed(add("add", ("a", "b"), (a, b), out), (a, x), (b, y))
    assert is_nearest(q, real(a, x) + real(b, y), out)


def test_a_summand_too_small_for_its_multiplier_adds_next_to_nothing() -> None:
    large, tiny = activation_quantization(0.0, 1.0), activation_quantization(0.0, 1e-12)
    layer = add("add", ("a", "b"), (large, tiny), large)
    assert computed(layer, (large, 7), (tiny, 255)) == 7 and layer.multiplier.min() >= 1


@settings(deadline=None, max_examples=50)
@given(grids, grids, st.integers(0, 255))
def test_requantizing_gives_the_nearest_point_of_the_other_grid(a: Quantization, out: Quantization, x: int) -> None:
    assert is_nearest(computed(requantize("other", "a", a, out), (a, x)), real(a, x), out)


@settings(deadline=None, max_examples=50)
@given(grids, grids, st.lists(st.integers(0, 255), min_size=6, max_size=6))
def test_a_global_average_is_the_nearest_point_of_its_grid(
    a: Quantization, out: Quantization, pixels: list[int]
) -> None:
    layer = global_average_pool("mean", "a", a, 6, out)
    proof = TensorProof((2, 3, 1), "uint8", a.scale, a.zero_point, 0, 255)
    q = int(reference.operate(layer, [proof], np.array(pixels, np.uint8).reshape(1, 2, 3, 1)).item())
    assert is_nearest(q, sum(real(a, x) for x in pixels) / Fraction(6), out)


def test_a_table_holds_the_function_of_each_point() -> None:
    source, output = activation_quantization(-4.0, 4.0), activation_quantization(-1.0, 9.0)
    layer = lookup_table("square", "a", source, np.square, output)
    for x, q in enumerate(layer.table.tolist()):
        assert is_nearest(q, real(source, x) ** 2, output)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ArithmeticRangeError):
        quantize_weights(np.array([[1.0, bad]]), np.array([0.0]), Fraction(1, 256), per_channel=True)


def small_network() -> IntegerModel:
    pixels = activation_quantization(-0.75, 1.75)
    hidden = activation_quantization(0.0, 3.0)
    return IntegerModel(
        (
            input_quantization("input", (4, 5, 2), Fraction(1, 255), pixels),
            conv2d("conv", "input", pixels, *random_layer(7, 3, 2, 2, 2), hidden, strides=(2, 1), padding=(1, 1, 1, 0)),
            Flatten(name="flatten", inputs=("conv",)),
            scores("scores", "flatten", hidden, *random_layer(8, 4, 3 * 5 * 3)),
        )
    )


def requantized(accumulator: int, requantization: Requantization, channel: int, output: Quantization) -> int:
    """To the nearest integer, ties upwards, in exact rationals."""
    ratio = Fraction(int(requantization.multiplier[channel]), 2 ** int(requantization.shift[channel]))
    return min(max(output.zero_point + floor(accumulator * ratio + Fraction(1, 2)), output.minimum), output.maximum)


def exact_scores(model: IntegerModel, image: np.ndarray) -> list[int]:
    """What the integers of `small_network` give for one image, position by position, in Python integers."""
    _, conv, _, last = model.layers
    assert isinstance(conv, Conv2D) and isinstance(last, Linear) and conv.requantization is not None
    source = model.input.output
    quantized = {
        (row, column, channel): requantized(int(image[row, column, channel]), model.input.requantization, 0, source)
        for row, column, channel in np.ndindex(*image.shape)
    }
    hidden = []
    for row, column, out in np.ndindex(3, 5, 3):
        accumulator = int(conv.bias[out])
        for y, x, channel in np.ndindex(2, 2, 2):
            q = quantized.get((2 * row + y - 1, column + x - 1, channel), source.zero_point)
            accumulator += (q - source.zero_point) * int(conv.weights[out, y, x, channel])
        hidden.append(requantized(accumulator, conv.requantization, out, conv.output))
    return [int(b) + sum(int(w) * q for w, q in zip(weights, hidden)) for weights, b in zip(last.weights, last.bias)]


def test_the_integer_layers_give_what_exact_rationals_give() -> None:
    model = small_network()
    images = np.random.default_rng(2).integers(-200, 456, (3, 4, 5, 2)).astype(np.int32)
    assert Engine(model, "reference").output(images).tolist() == [exact_scores(model, image) for image in images]


def test_multipliers_are_the_exact_ratios_of_scales_to_31_bits() -> None:
    source, output = activation_quantization(-1.0, 2.0), activation_quantization(0.0, 5.0)
    weights, bias = random_layer(3, 8, 3, 3, 2)
    layer = conv2d("conv", "input", source, weights, bias, output)
    scales = quantize_weights(weights, bias, source.scale, per_channel=True).scales
    assert layer.requantization is not None
    for channel, scale in enumerate(scales):
        ratio = source.scale * scale / output.scale
        shift = int(layer.requantization.shift[channel])
        assert abs(int(layer.requantization.multiplier[channel]) - ratio * 2**shift) <= Fraction(1, 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_scores_order_like_the_float_layer_when_it_is_clear(seed: int) -> None:
    source = activation_quantization(0.0, 1.0)
    weights, bias = random_layer(seed, 5, 12)
    layer = scores("scores", "input", source, weights, bias)
    q = np.random.default_rng(seed + 1).integers(0, 256, 12)
    exact = [
        sum((Fraction(w) * source.scale * int(x) for w, x in zip(row, q)), Fraction(b))
        for row, b in zip(weights.tolist(), bias.tolist())
    ]
    integers = layer.weights.astype(np.int64) @ q + layer.bias
    # each weight is off by half a step at most, so the sum by half a step times the inputs, the bias by half of its own
    bound = (int(q.sum()) + 1) * layer.output.scale / 2
    for real, score in zip(exact, integers.tolist()):
        assert abs(layer.output.scale * score - real) <= bound
