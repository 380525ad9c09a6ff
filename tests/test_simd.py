"""Every register tile of every instruction set computes to the bit what its layers mean, and only where it runs."""

import os
import subprocess
import sys
import warnings
from dataclasses import astuple, replace
from fractions import Fraction
from math import gcd, isqrt
from pathlib import Path

import numpy as np
import pytest

import oracle
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.fixedpoint import (
    INT32_MAX,
    INT32_MIN,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ROUNDING_MODES,
    accumulator_range,
)
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    INTEGER_RANGES,
    Add,
    Clamp,
    Conv2D,
    Flatten,
    InputQuantization,
    Linear,
    Quantization,
    Requantization,
)
from random_models import images_for
from threshold_model import threshold_model

pytest.importorskip("numba")

from intsmooth_ref.engine import Engine  # noqa: E402
from intsmooth_ref.engine.jit import CompiledModel, operators, selection, simd  # noqa: E402
from intsmooth_ref.engine.jit.lowering import PORTABLE  # noqa: E402
from intsmooth_ref.engine.jit.packing import rounds_in_vectors  # noqa: E402
from tiles import VECTOR_ISAS, WINDOWS, tiles_of  # noqa: E402

TILES = [(isa, tile) for isa in VECTOR_ISAS for tile in tiles_of(isa)]


def by_rows(tile):
    return tile.kind.startswith(simd.ROWS)


def over_tiles(*kinds):
    """The quick part of the suite has tiles by rows for two windows, which are the first."""
    chosen = []
    for isa, tile in TILES:
        if tile.kind.split("_")[0] in kinds:
            marks = [] if tile in tiles_of(isa, WINDOWS[:2]) else [pytest.mark.slow]
            chosen.append(pytest.param(isa, tile, marks=marks, id="-".join(map(str, (isa, *astuple(tile))))))
    return pytest.mark.parametrize(("isa", "tile"), chosen)


each_tile = over_tiles(simd.DENSE, simd.LANES, simd.QUADS, simd.ROWS)
#: What is not stored as bytes at once has a channel a lane.
each_tile_of_a_channel_a_lane = over_tiles(simd.DENSE, simd.LANES)


def block_of(isa, tile):
    """How many output channels a tile computes."""
    return simd.INSTRUCTION_SETS[isa].lanes * tile.vectors


def compiled_with(model, isa, tile):
    """The model compiled for a tile, which its program does call."""
    compiled = CompiledModel(model, isa, tile)
    assert operators.convolution(isa, *astuple(tile)).__name__ in operators_of(compiled.program)
    return compiled


def operators_of(program):
    return [operator.__name__ for step in program.steps for operator, _ in step.calls]


def stored_as(dtype, byte):
    """The integer of this dtype that is `byte` above the smallest."""
    return INTEGER_RANGES[dtype][0] + byte


def exact_input(shape, output):
    """An input layer that adds its zero point to the grey levels and changes nothing else within its range."""
    return InputQuantization(name="input", shape=shape, requantization=Requantization.of((2**30, 30)), output=output)


def smallest_window(tile):
    """Kernel, and strides and dilation, of a convolution that the tile is made for; others would have other tiles."""
    if by_rows(tile):
        height, width, step = simd.window_of(tile.kind)
        return (height, width), {"strides": (1, step)}
    return (1, 1), {"dilation": (1, 2)} if tile.kind == simd.QUADS else {}


def convolution(generator, tile, channels, depth=1, **fields):
    """Random weights for `channels` outputs: each reads one channel where the tile wants that, or else `depth`."""
    dense, (kernel, window) = tile.kind == simd.DENSE, smallest_window(tile)
    shape = (channels, *kernel, depth if dense else 1)
    weights = generator.integers(-128, 128, shape).astype(np.int8)
    return Conv2D(**{"inputs": ("input",), "weights": weights, "groups": 1 if dense else channels, **window, **fields})


def flattened(*layers):
    return IntegerModel((*layers, Flatten(name="flat", inputs=(layers[-1].name,))))


# --- rounding ---------------------------------------------------------------------------------------------------------


def telling_accumulators(generator, pairs, reach):
    """For each multiplier and shift an accumulator at, or next to, a border between two results, or at an end."""
    found = []
    for multiplier, shift in pairs:
        border = Fraction((2 * int(generator.integers(-260, 260)) + 1) << (shift - 1), multiplier)
        tie = border.numerator // border.denominator
        ends = [-reach, reach, 1 - reach, reach - 1, 0, 1, -1, int(generator.integers(-reach, reach + 1))]
        pick = generator.choice(np.array([tie - 1, tie, tie + 1, tie, tie + 1, *ends], dtype=object))
        found.append(min(max(int(pick), -reach, INT32_MIN), reach, INT32_MAX))
    return found


def random_pairs(generator, count, low, high):
    """Multipliers, many of which have many factors 2 and so make ties, and shifts within `low` .. `high`."""
    kinds = [MULTIPLIER_MIN, 3 << 29, 5 << 28, 7 << 28, (1 << 31) - (1 << 12), MULTIPLIER_MAX, MULTIPLIER_MIN + 1]
    kinds += generator.integers(MULTIPLIER_MIN, MULTIPLIER_MAX + 1, len(kinds)).tolist()
    shifts = generator.integers(low, high + 1, count)
    shifts[generator.integers(count)] = high
    return [(int(generator.choice(kinds)), int(shift)) for shift in shifts]


def limits(generator, dtype):
    """A minimum and a maximum: of the dtype, of one side of it, of a part, of a single value."""
    low, high = INTEGER_RANGES[dtype]
    a, b = sorted(generator.integers(low, high + 1, 2).tolist())
    return [(low, high), (low, b), (a, high), (a, b), (a, a)][generator.integers(5)]


def model_of_biases(generator, isa, tile, biases, requantization, output):
    """A convolution whose accumulators are its biases: the input is its zero point wherever one looks."""
    zero_point = int(generator.integers(0, 256))
    source = Quantization("uint8", Fraction(1), zero_point, zero_point, zero_point)
    channels = len(biases)
    depth = channels if tile.kind != simd.DENSE else int(generator.integers(1, 6))
    (height, width), window = smallest_window(tile)
    wide = tile.pixels * window["strides"][1] if by_rows(tile) else 0
    shape = (height + int(generator.integers(0, 3)), width + wide + int(generator.integers(0, 5)), depth)
    layer = convolution(
        generator, tile, channels, depth=depth, name="conv", bias=np.array(biases, np.int32),
        requantization=requantization, output=output,
    )  # fmt: skip
    return flattened(exact_input(shape, source), layer)


def assert_rounds_rightly(generator, isa, tile, pairs, accumulators, dtype, zero_byte, mode, in_vectors):
    low, high = limits(generator, dtype)
    zero_point = stored_as(dtype, zero_byte)
    output = Quantization(dtype, Fraction(1), zero_point, low, high)
    model = model_of_biases(generator, isa, tile, accumulators, Requantization.of(*pairs, rounding=mode), output)
    compiled = compiled_with(model, isa, tile) if in_vectors else CompiledModel(model, isa, tile)
    assert rounds_in_vectors(model, model.layers[1]) == in_vectors
    assert ("store" in operators_of(compiled.program)) != in_vectors
    rounded = [oracle.ROUNDING[mode](acc, *pair) for acc, pair in zip(accumulators, pairs)]
    expected = [min(max(zero_point + q, low), high) for q in rounded]
    found = compiled.output(np.zeros((2, *model.input.shape), np.int32)).reshape(-1, len(accumulators))
    assert found.dtype == dtype
    for row in found.tolist():
        assert row == expected


@each_tile
def test_rounding_in_vectors_is_that_of_python_integers(isa, tile):
    """Each channel has an accumulator, a multiplier and a shift of its own; `reach` is all that 64 bits hold."""
    generator, channels, seen = np.random.default_rng(1), 2 * block_of(isa, tile) + 5, set()
    for zero_byte in (0, 1, 77, 128, 254, 255):
        for dtype in ("uint8", "int8"):
            for largest in (32, 35, 40, 47, 54, 55, 61, 62):
                pairs = random_pairs(generator, channels, 32, largest)
                constants = [(m, (1 << (s - 1)) + (zero_byte << s)) for m, s in pairs]
                reach = min(min(((1 << 63) - 1 - constant) // m for m, constant in constants), 1 << 31)
                if reach >= 1:
                    accumulators = telling_accumulators(generator, pairs, reach)
                    accumulators[0] = min(reach, INT32_MAX)  # so that the layer's bounds are no narrower
                    assert_rounds_rightly(
                        generator, isa, tile, pairs, accumulators, dtype, zero_byte, "single_rounding", True
                    )
                    seen |= {(zero_byte, largest)}
    assert {(0, 62), (1, 61), (77, 55), (255, 54)} <= seen


@each_tile
@pytest.mark.parametrize("why", ["short shifts", "gemmlowp", "srdhm_half_up", "more than 64 bits"])
def test_rounding_that_vectors_cannot_do_is_that_of_python_integers(isa, tile, why):
    generator, channels = np.random.default_rng(2), 2 * block_of(isa, tile) + 5
    mode = why if why in ROUNDING_MODES else "single_rounding"
    for zero_byte in (0, 77, 255) if why != "more than 64 bits" else (1, 128, 255):
        for dtype in ("uint8", "int8"):
            for smallest, largest in ((1, 31), (31, 31), (20, 62), (32, 62)):
                pairs = random_pairs(generator, channels, smallest, largest)
                pairs[-1] = MULTIPLIER_MAX, 62 if why == "more than 64 bits" else 31
                reaches = [min(-accumulator_range(shift, mode)[0], -INT32_MIN) for _, shift in pairs]
                accumulators = [
                    telling_accumulators(generator, [pair], reach)[0] for pair, reach in zip(pairs, reaches)
                ]
                accumulators = [min(acc, reach - 1) for acc, reach in zip(accumulators, reaches)]
                accumulators[-1] = INT32_MAX
                assert_rounds_rightly(generator, isa, tile, pairs, accumulators, dtype, zero_byte, mode, False)


# --- residual addition ------------------------------------------------------------------------------------------------

#: Multipliers of the convolution's output and of the tensor that it is added to, shift, zero points of both and of the
#: result, as they are stored: at the ends of what 32 bits hold, and where the low half of a multiplier changes sign.
SUMS = [
    (1, 1, 16, 0, 0, 0),
    (1, 1, 47, 0, 255, 0),
    (0x7FFF, 0x8000, 16, 255, 255, 255),
    (0xFFFF, 0x18000, 17, 0, 255, 128),
    (0x7FFEFFFF, 0x7FFF7FFF, 31, 0, 0, 0),
    (0x7FFF7FFF, 0x7FFF7FFF, 30, 255, 255, 255),
    (0x7FFF7FFF, 0x7FFEFFFF, 39, 128, 127, 77),
    (0x7FFF7FFF, 1, 32, 3, 200, 128),
    (1, 0x7FFF7FFF, 31, 200, 3, 0),
    (0x10000, 0x10000, 17, 100, 155, 1),
    (0x8000, 0x7FFF, 16, 0, 0, 0),
    (8000 << 16, 8000 << 16, 39, 0, 0, 254),
    (715827883, 1431655765, 31, 10, 20, 77),
    (0x40000000, 0x40000000, 47, 0, 0, 0),
]
#: Likewise, just beyond: a multiplier whose high half is no 16-bit integer, shifts, sums that leave 32 bits.
SUMS_THAT_DO_NOT_FIT = [
    (0x7FFF8000, 1, 31, 0, 0, 0),
    (1, 0x7FFFFFFF, 31, 0, 0, 0),
    (1, 1, 15, 0, 0, 0),
    (1, 0x4000, 1, 0, 255, 255),
    (0x40000000, 0x40000000, 48, 0, 0, 0),
    (0x40000000, 0x40000000, 62, 0, 0, 255),
    (1 << 16, 1 << 16, 40, 0, 0, 255),
    (0x7FFE0000, 0x7FFE0000, 39, 0, 0, 255),
    (1, 1, 47, 0, 0, 1),
]


def random_sum(generator):
    multipliers = [int(generator.integers(1 << bits, 2 << bits)) for bits in generator.integers(0, 31, 2)]
    usual = max(multipliers).bit_length() + int(generator.integers(-3, 4))
    shift = min(max(usual, 16), 47) if generator.integers(4) else int(generator.integers(1, 63))
    zero_bytes = generator.choice([0, 1, 77, 128, 254, 255, *generator.integers(0, 256, 2)], 3)
    return (*multipliers, shift, *zero_bytes.tolist())


def sum_model(generator, tile, channels, numbers, dtypes, swapped, clamp):
    """Byte b of a pixel and byte a of the next one, as a convolution brings it, added: the image holds all pairs."""
    first, second, shift, zero_a, zero_b, zero_out = numbers
    dtype_a, dtype_b, dtype_out = dtypes
    source = Quantization.full_range(dtype_b, Fraction(1), stored_as(dtype_b, zero_b))
    weights = np.zeros((channels, 1, 2, channels if tile.kind == simd.DENSE else 1), np.int8)
    for o in range(channels):
        weights[o, 0, 1, o if tile.kind == simd.DENSE else 0] = 4
    conv = convolution(
        generator, tile, channels, name="conv", weights=weights, padding=(0, 0, 0, 1),
        bias=np.full(channels, 4 * (zero_b - zero_a), np.int32), requantization=Requantization.of((2**30, 32)),
        output=Quantization(dtype_a, Fraction(1), stored_as(dtype_a, zero_a), *limits(generator, dtype_a)),
    )  # fmt: skip
    order = -1 if swapped else 1
    output = Quantization(dtype_out, Fraction(1), stored_as(dtype_out, zero_out), *limits(generator, dtype_out))
    add = Add(
        name="sum", inputs=("conv", "input")[::order], multiplier=np.array([first, second][::order], np.int32),
        shift=shift, output=output,
    )  # fmt: skip
    layers = [exact_input((8, 16, channels), source), conv, add]
    if clamp:
        low, high = limits(generator, dtype_out)
        layers.append(Clamp(name="clamp", inputs=("sum",), minimum=low, maximum=high))
    return flattened(*layers)


def all_pairs_of_bytes(channels):
    """Bytes `(N, 8, 16, channels)` in which each value stands beside each."""
    a, b = np.divmod(np.resize(np.arange(1 << 16), (-(-(1 << 16) // (64 * channels)), 8, 8, channels)), 256)
    return np.stack([b, a], axis=3).reshape(len(a), 8, 16, channels)


def sum_by_hand(model, bytes_, numbers):
    """What `sum_model` computes, from its description, in int64."""
    first, second, shift, zero_a, zero_b, zero_out = numbers
    _, conv, add, *rest = model.layers
    following = np.concatenate([bytes_[:, :, 1:], np.full_like(bytes_[:, :, :1], zero_b)], axis=2)
    offset = INTEGER_RANGES[conv.output.dtype][0]
    a = np.clip(following + offset, conv.output.minimum, conv.output.maximum) - offset
    total = (a - zero_a) * first + (bytes_ - zero_b) * second
    q = add.output.zero_point + ((total + (1 << (shift - 1))) >> shift)
    q = np.clip(q, add.output.minimum, add.output.maximum)
    for layer in rest[:-1]:
        q = np.clip(q, layer.minimum, layer.maximum)
    return q.reshape(len(q), -1)


def assert_adds_rightly(generator, isa, tile, numbers):
    """Returns whether convolution, addition and clamp were one step."""
    channels = block_of(isa, tile) + 4
    dtypes = [str(each) for each in generator.choice(["uint8", "int8"], 3)]
    swapped, clamp = bool(generator.integers(2)), bool(generator.integers(2))
    model = sum_model(generator, tile, channels, numbers, dtypes, swapped, clamp)
    compiled = compiled_with(model, isa, tile)
    bytes_ = all_pairs_of_bytes(channels)
    found = compiled.output((bytes_ - numbers[4]).astype(np.int32))
    assert found.dtype == dtypes[2]
    assert np.array_equal(found, sum_by_hand(model, bytes_, numbers)), (numbers, dtypes, swapped, clamp)
    layers = [step.layers for step in compiled.program.steps]
    return ("conv", "sum", "clamp") in layers if clamp else ("conv", "sum") in layers


@each_tile_of_a_channel_a_lane
def test_an_addition_in_a_tile_is_that_of_integers_for_every_pair_of_bytes(isa, tile):
    generator = np.random.default_rng(3)
    assert len(np.unique(all_pairs_of_bytes(36)[:, :, ::2] * 256 + all_pairs_of_bytes(36)[:, :, 1::2])) == 1 << 16
    for numbers in SUMS:
        assert assert_adds_rightly(generator, isa, tile, numbers), numbers


@each_tile_of_a_channel_a_lane
def test_an_addition_that_32_bits_do_not_hold_is_that_of_integers_for_every_pair_of_bytes(isa, tile):
    generator = np.random.default_rng(13)
    for numbers in SUMS_THAT_DO_NOT_FIT:
        assert not assert_adds_rightly(generator, isa, tile, numbers), numbers


@pytest.mark.slow
@each_tile_of_a_channel_a_lane
def test_additions_of_random_scales_are_those_of_integers_for_every_pair_of_bytes(isa, tile):
    generator = np.random.default_rng(4)
    together = [assert_adds_rightly(generator, isa, tile, random_sum(generator)) for _ in range(60)]
    assert 10 < sum(together) < 60  # the rest would need more than 32 bits


# --- accumulators -----------------------------------------------------------------------------------------------------


def extreme_weights(generator, shape):
    """Rows of -128 and 127 alone: of one, of the other, by turns, at random."""
    rows = generator.choice(np.array([-128, 127], np.int8), shape)
    rows[0], rows[1], rows[2].flat[::2], rows[2].flat[1::2] = 127, -128, 127, -128
    return rows


def accumulators_at_the_ends(weights, low, high):
    """Biases for which the largest, by turns the smallest, accumulator is the end of int32."""
    rows = weights.reshape(len(weights), -1).astype(np.int64)
    largest = np.maximum(rows * low, rows * high).sum(axis=1)
    smallest = np.minimum(rows * low, rows * high).sum(axis=1)
    return np.where(np.arange(len(rows)) % 2, INT32_MIN - smallest, INT32_MAX - largest).astype(np.int32)


@each_tile_of_a_channel_a_lane
@pytest.mark.parametrize("zero_byte", [0, 128, 255])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_nothing_saturates_at_the_ends_of_int32(isa, tile, zero_byte, dtype):
    """Images that are 0 where a row of weights has one sign and 255 where it has the other reach its ends."""
    generator, dense = np.random.default_rng(5), tile.kind == simd.DENSE
    channels = 2 * block_of(isa, tile) + 5
    depth = 150 if dense else channels
    weights = extreme_weights(generator, (channels, 3, 4, depth if dense else 1))
    layer = convolution(
        generator, tile, channels, name="conv", weights=weights,
        bias=accumulators_at_the_ends(weights, -zero_byte, 255 - zero_byte),
        output=Quantization.full_range("int32", Fraction(1), 0),
    )  # fmt: skip
    source = Quantization.full_range(dtype, Fraction(1), stored_as(dtype, zero_byte))
    model = flattened(exact_input((3, 4, depth), source), layer)
    positive = weights[:12] > 0 if dense else weights.transpose(3, 1, 2, 0) > 0
    bytes_ = np.where(np.concatenate([positive, ~positive]), 255, 0)
    real = bytes_ - zero_byte
    patches = real.reshape(len(real), -1) if dense else real.transpose(0, 3, 1, 2).reshape(len(real), channels, -1)
    rows = weights.reshape(channels, -1).astype(np.int64)
    expected = patches @ rows.T if dense else (patches * rows).sum(axis=2)
    expected = expected + layer.bias
    assert expected.min() == INT32_MIN and expected.max() == INT32_MAX
    found = compiled_with(model, isa, tile).output(real.astype(np.int32))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("isa", VECTOR_ISAS)
@pytest.mark.parametrize("zero_byte", [0, 255])
def test_a_sum_of_65536_products_is_exact(isa, zero_byte):
    """With no bias at all such a sum comes within two hundredths of the end of int32."""
    weights = extreme_weights(np.random.default_rng(6), (5, 1 << 16))
    linear = Linear(
        name="scores", inputs=("flat",), weights=weights, bias=np.zeros(5, np.int32),
        output=Quantization.full_range("int32", Fraction(1), 0),
    )  # fmt: skip
    source = Quantization.full_range("uint8", Fraction(1), zero_byte)
    model = IntegerModel((exact_input((256, 256, 1), source), Flatten(name="flat", inputs=("input",)), linear))
    real = np.where(np.concatenate([weights > 0, weights < 0]), 255, 0) - zero_byte
    expected = real @ weights.astype(np.int64).T
    assert np.abs(expected).max() == 128 * 255 << 16
    for tile in tiles_of(isa):
        if tile.kind == simd.DENSE:
            compiled = compiled_with(model, isa, tile)
            assert np.array_equal(compiled.output(real.reshape(-1, 256, 256, 1).astype(np.int32)), expected)


# --- shapes -----------------------------------------------------------------------------------------------------------


def random_output(generator, weights, bias):
    """Fields that bring a product near 8 bits: mostly rounded in vectors, at times otherwise, or not at all."""
    if generator.integers(6) == 0:
        return {"output": Quantization.full_range("int32", Fraction(1), 0)}
    reach = int(np.abs(weights.reshape(len(weights), -1).astype(np.int64)).sum(axis=1).max()) * 255
    reach = max(reach + int(np.abs(bias).max()), 1)
    rounding = str(generator.choice(["single_rounding"] * 5 + ["gemmlowp", "srdhm_half_up"]))
    shift = max(30 + reach.bit_length() - 9, 31 if generator.integers(6) == 0 else 32)
    count = len(weights) if generator.integers(2) else 1
    multiplier = generator.integers(MULTIPLIER_MIN, MULTIPLIER_MAX + 1, count).astype(np.int32)
    shifts = (shift + generator.integers(0, 3, count)).astype(np.int32)
    dtype = str(generator.choice(["uint8", "int8"]))
    zero_point = stored_as(dtype, int(generator.integers(0, 256)))
    output = Quantization(dtype, Fraction(1), zero_point, *limits(generator, dtype))
    return {"requantization": Requantization(multiplier, shifts, rounding), "output": output}


def random_window(generator, tile, channels):
    """Kernel, strides, dilation, padding and an image that leave at least one window, and no more than a model may
    hold; most often such that the tile is used, if the channels are enough."""
    kernel = (1, 1) if generator.integers(3) == 0 else tuple(generator.integers(1, 6, 2).tolist())
    strides, dilation = (tuple(generator.integers(1, 4, 2).tolist()) for _ in range(2))
    if generator.integers(2):
        strides = dilation = (1, 1)
    if by_rows(tile) and generator.integers(8):
        height, width, step = simd.window_of(tile.kind)
        kernel, strides, dilation = (height, width), (strides[0], step), (1, 1)
    elif tile.kind == simd.QUADS and generator.integers(4):
        dilation = (2, dilation[1])
    padding = generator.integers(0, 4, 4).tolist() if generator.integers(3) else [0, 0, 0, 0]
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    if by_rows(tile) and generator.integers(8):  # there are as many windows in a row as the tile has pixels
        extents[1] += (tile.pixels - 1) * strides[1]
    least = [max(extent - padding[2 * i] - padding[2 * i + 1], 1) for i, extent in enumerate(extents)]
    most = isqrt((1 << 16) // channels) - 7  # the output may be larger by the padding
    shape = tuple(max(size, min(size + int(generator.choice([0, 0, 1, 2, 5, 20, 200])), most)) for size in least)
    return kernel, shape, {"strides": strides, "dilation": dilation, "padding": tuple(padding)}


def random_convolution(generator, tile, outputs, inputs):
    """A model of one convolution that reads the input; the last two numbers are of channels."""
    if tile.kind == simd.DENSE:
        divisors = [g for g in range(1, inputs + 1) if gcd(inputs, outputs) % g == 0]
        groups = int(generator.choice(divisors)) if generator.integers(2) else 1
        if inputs == groups == outputs:
            groups = 1  # else it were depthwise
    else:
        groups = outputs = inputs
    kernel, shape, fields = random_window(generator, tile, max(inputs, outputs))
    weights = generator.integers(-128, 128, (outputs, *kernel, inputs // groups)).astype(np.int8)
    bias = generator.integers(-20000, 20000, outputs).astype(np.int32)
    dtype = str(generator.choice(["uint8", "int8"]))
    zero_point = stored_as(dtype, int(generator.integers(0, 256)))
    return flattened(
        exact_input((*shape, inputs), Quantization.full_range(dtype, Fraction(1), zero_point)),
        Conv2D(name="conv", inputs=("input",), weights=weights, bias=bias, groups=groups, **fields,
               **random_output(generator, weights, bias)),
    )  # fmt: skip


def assert_equals_the_reference(generator, model, isa, tile):
    """The output of a few images, in one block or several, and every layer."""
    images = images_for(model, generator, int(generator.choice([1, 2, 3, 16, 17, 20])))
    expected = list(Engine(model, "reference").trace(images))
    compiled = CompiledModel(model, isa, tile)
    assert np.array_equal(compiled.output(images), expected[-1][1]), (model, len(images))
    for (name, tensor), (_, right) in zip(compiled.trace(images), expected):
        assert np.array_equal(tensor, right), (model, name, len(images))
    return compiled.program


def channel_counts(isa, tile, step=1):
    """Every number of output channels up to two blocks and a bit; of tiles that take many, those at their ends."""
    block = block_of(isa, tile)
    if tile.kind not in (simd.DENSE, simd.LANES):
        return [block - 1, *range(block, block + 8, step), 2 * block - 3, *range(2 * block, 2 * block + 9, step)]
    return range(1 if tile.kind == simd.DENSE else 2, 2 * block + 6, step)


def assert_all_shapes_equal_the_reference(generator, isa, tile, outputs):
    inputs = [*range(1, 10), 12, 16, 31, 64, 130]
    programs = []
    for number, count in enumerate(outputs):
        depth = count if generator.integers(4) == 0 else inputs[number % len(inputs)]
        model = random_convolution(generator, tile, count, count if tile.kind != simd.DENSE else depth)
        programs.append(assert_equals_the_reference(generator, model, isa, tile))
    name = operators.convolution(isa, *astuple(tile)).__name__
    assert sum(name in operators_of(program) for program in programs) > len(programs) // 4


@each_tile
def test_shapes_equal_the_reference_engine(isa, tile):
    generator = np.random.default_rng(7)
    assert_all_shapes_equal_the_reference(generator, isa, tile, channel_counts(isa, tile, 4))


@pytest.mark.slow
@each_tile
def test_many_shapes_equal_the_reference_engine(isa, tile):
    generator = np.random.default_rng(8)
    for _ in range(3):
        assert_all_shapes_equal_the_reference(generator, isa, tile, channel_counts(isa, tile))


@over_tiles(simd.DENSE)
def test_every_grouping_equals_the_reference_engine(isa, tile):
    """Of 24 channels by every divisor, with one, two or three outputs a group; the last is a channel multiplier."""
    generator = np.random.default_rng(9)
    for groups in (1, 2, 3, 4, 6, 8, 12, 24):
        for share in (1, 2, 3):
            weights = generator.integers(-128, 128, (groups * share, 3, 2, 24 // groups)).astype(np.int8)
            bias = generator.integers(-9999, 9999, groups * share).astype(np.int32)
            model = flattened(
                exact_input((4, 5, 24), Quantization.full_range("uint8", Fraction(1), 100)),
                Conv2D(name="conv", inputs=("input",), weights=weights, bias=bias, groups=groups,
                       padding=(0, 2, 1, 0), **random_output(generator, weights, bias)),
            )  # fmt: skip
            assert_equals_the_reference(generator, model, isa, tile)


@over_tiles(simd.DENSE)
def test_linear_layers_equal_the_reference_engine(isa, tile):
    generator = np.random.default_rng(10)
    for inputs in (1, 2, 3, 4, 5, 63, 64, 1000, 4099):
        for outputs in (1, 10, 2 * block_of(isa, tile) + 5):
            weights = generator.integers(-128, 128, (outputs, inputs)).astype(np.int8)
            bias = generator.integers(-9999, 9999, outputs).astype(np.int32)
            layer = Linear(name="scores", inputs=("flat",), weights=weights, bias=bias,
                           **random_output(generator, weights, bias))  # fmt: skip
            source = exact_input((1, inputs, 1), Quantization.full_range("int8", Fraction(1), -3))
            model = IntegerModel((source, Flatten(name="flat", inputs=("input",)), layer))
            assert_equals_the_reference(generator, model, isa, tile)


def residual_network(generator, tile, channels, size):
    """Twice a convolution and one of its output, added to it; at the end a clamp. All tensors have one shape."""
    output, dense = Quantization("uint8", Fraction(1), 90, 5, 250), tile.kind == simd.DENSE
    kernel, dilation = (3, 3), 2 if tile.kind == simd.QUADS else 1
    if by_rows(tile) and simd.window_of(tile.kind)[2] == 1:
        kernel = smallest_window(tile)[0]
    rows, columns = ((size - 1) * dilation for size in kernel)

    def products(name, source):
        weights = generator.integers(-128, 128, (channels, *kernel, channels if dense else 1)).astype(np.int8)
        bias = generator.integers(-9999, 9999, channels).astype(np.int32)
        reach = weights[0].size * 128 * 255
        ratios = Requantization.of(*random_pairs(generator, channels, *(reach.bit_length() + 21 + i for i in (0, 2))))
        return Conv2D(name=name, inputs=(source,), weights=weights, bias=bias, groups=1 if dense else channels,
                      padding=(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2),
                      dilation=(dilation, dilation),
                      requantization=ratios, output=output)  # fmt: skip

    ratio = np.array([900000001, 1000000007], np.int32)
    layers = [exact_input((size, size, channels), Quantization.full_range("uint8", Fraction(1), 3))]
    for name, source in (("first", "input"), ("second", "sum_of_first")):
        layers += [
            products(name, source), products(f"{name}_again", name),
            Add(name=f"sum_of_{name}", inputs=(f"{name}_again", name), multiplier=ratio, shift=31, output=output),
        ]  # fmt: skip
    layers.append(Clamp(name="clamped", inputs=("sum_of_second",), minimum=20, maximum=200))
    return flattened(*layers)


@each_tile
def test_fused_layers_equal_the_reference_engine_in_small_and_large_images(isa, tile):
    generator = np.random.default_rng(11)
    channels = block_of(isa, tile) + 4
    for size, samples in ((4, 16), (isqrt((1 << 16) // channels), 1)):
        model = residual_network(generator, tile, channels, size)
        program = assert_equals_the_reference(generator, model, isa, tile)
        assert ("second_again", "sum_of_second", "clamped") in [step.layers for step in program.steps]
        assert program.samples == samples
        assert tile in program.tiles or by_rows(tile) and simd.window_of(tile.kind)[2] > 1


# --- memory -----------------------------------------------------------------------------------------------------------

# Each of the five memories ends where a page begins that nobody may touch, or begins where one ends.
BETWEEN_FORBIDDEN_PAGES = """
import ctypes, mmap, sys
import numpy as np
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.jit import callable_form
from intsmooth_ref.engine.jit.lowering import lower
from intsmooth_ref.engine.jit.memory import Memory, base_of, execute
from hypothesis import HealthCheck, given, settings
from random_models import images_for, models
from test_simd import PORTABLE, VECTOR_ISAS, WINDOWS, block_of, random_convolution, residual_network, simd, tiles_of

page, kept = mmap.PAGESIZE, []
libc = ctypes.CDLL(None, use_errno=True)

def fenced(array, at_the_end):
    inner = max(-(-array.nbytes // page), 1) * page
    region = mmap.mmap(-1, inner + 2 * page)
    kept.append(region)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    begin = page + (inner - array.nbytes if at_the_end else 0)
    copy = np.frombuffer(region, array.dtype, array.size, begin)
    copy[:] = array
    for forbidden in (address, address + page + inner):
        assert libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0
    return copy

def check(model, isa, tile):
    program = lower(model, isa, tile)
    images = images_for(model, generator, program.samples)
    expected = Engine(model, "reference").classify(images)
    for at_the_end in (False, True):
        memory = Memory(*(fenced(array, at_the_end) for array in program.memory()))
        memory.accumulators[program.image : program.image + images.size] = images.reshape(-1)
        execute(callable_form(program), base_of(memory), len(images))
        found = memory.accumulators[program.classes : program.classes + len(images)]
        assert np.array_equal(found, expected)

generator, count = np.random.default_rng(12), 0
for isa in VECTOR_ISAS:
    for tile in tiles_of(isa, WINDOWS[:2]):
        block = block_of(isa, tile)
        for outputs in (2, 4, block - 1, block, block + 1, 2 * block + 5):
            inputs = int(generator.integers(1, 9)) if tile.kind == simd.DENSE else outputs
            check(random_convolution(generator, tile, outputs, inputs), isa, tile)
            count += 1
        check(residual_network(generator, tile, block + 4, 4), isa, tile)

@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(models())
def check_random_model(model):
    for isa in (*VECTOR_ISAS, PORTABLE):
        check(model, isa, None)

check_random_model()
print(count)
"""


def run_python(script, **environment):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    return run.stdout


@pytest.mark.skipif(not VECTOR_ISAS or os.name != "posix", reason="needs vector instructions and mprotect")
def test_no_step_reads_or_writes_beyond_its_memories():
    """If one does, the processor ends the program."""
    assert run_python(BETWEEN_FORBIDDEN_PAGES) == f"{6 * sum(len(tiles_of(isa, WINDOWS[:2])) for isa in VECTOR_ISAS)}\n"


# --- selection --------------------------------------------------------------------------------------------------------


def test_an_unknown_instruction_set_is_refused():
    names = ", ".join(["auto", *simd.INSTRUCTION_SETS, PORTABLE])
    with pytest.raises(ParameterError, match=f"isa 'avx9': expected one of {names}"):
        Engine(threshold_model(), "jit", "avx9")


def test_an_instruction_set_that_does_not_run_here_is_refused():
    here = selection.available_isas()
    foreign = [name for name in simd.INSTRUCTION_SETS if name not in here]
    assert foreign  # no machine has those of two architectures
    for name in foreign:
        expected = f"isa '{name}' does not run here; expected one of {', '.join(['auto', *here])}"
        with pytest.raises(ParameterError, match=expected):
            Engine(threshold_model(), "jit", name)


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [(None, None, 0), (None, "", 0), (None, PORTABLE, -1), ("auto", PORTABLE, 0), (PORTABLE, "auto", -1),
     (PORTABLE, "avx9", -1)],
)  # fmt: skip
def test_an_argument_comes_before_the_environment_variable_and_that_before_the_best(
    monkeypatch, argument, variable, expected
):
    monkeypatch.delenv("INTSMOOTH_ISA", raising=False)
    if variable is not None:
        monkeypatch.setenv("INTSMOOTH_ISA", variable)
    assert Engine(threshold_model(), "jit", argument).isa == selection.available_isas()[expected]


def test_the_environment_variable_is_held_to_the_same_names(monkeypatch):
    monkeypatch.setenv("INTSMOOTH_ISA", "avx9")
    with pytest.raises(ParameterError, match="isa 'avx9': expected one of auto, "):
        Engine(threshold_model(), "jit")
    assert Engine(threshold_model(), "reference").isa == "numpy"


@pytest.mark.skipif(not VECTOR_ISAS, reason="needs vector instructions")
def test_an_instruction_set_that_answers_wrongly_is_passed_over_with_a_warning_or_refused(monkeypatch):
    best, *others = selection.available_isas()
    monkeypatch.setattr(selection, "answers_rightly", lambda isa, tile: isa != best)
    with pytest.warns(UserWarning, match=f"isa '{best}' gives wrong answers here and is passed over"):
        assert Engine(threshold_model(), "jit").isa == others[0]
    with pytest.raises(ParameterError, match=f"isa '{best}' gives wrong answers here: expected one that computes"):
        Engine(threshold_model(), "jit", best)
    assert Engine(threshold_model(), "jit", others[0]).isa == others[0]


@pytest.mark.skipif(not VECTOR_ISAS, reason="needs vector instructions")
def test_the_plain_loops_are_left_where_all_tiles_answer_wrongly(monkeypatch):
    monkeypatch.setattr(selection, "answers_rightly", lambda isa, tile: isa == PORTABLE)
    with pytest.warns(UserWarning) as warned:
        assert Engine(threshold_model(), "jit").isa == PORTABLE
    assert len(warned) == len(VECTOR_ISAS)


@pytest.mark.skipif(not VECTOR_ISAS, reason="needs vector instructions")
def test_an_instruction_set_that_cannot_be_compiled_is_passed_over_with_a_warning_or_refused(monkeypatch):
    best, *others = selection.available_isas()

    def compiled(model, isa, tile=None):
        if isa == best:
            raise RuntimeError("LLVM does not\n like it")
        return CompiledModel(model, isa, tile)

    monkeypatch.setattr(selection, "CompiledModel", compiled)
    with pytest.warns(UserWarning, match=rf"isa '{best}' cannot be compiled here \(LLVM does not like it\) and"):
        assert Engine(threshold_model(), "jit").isa == others[0]
    with pytest.raises(ParameterError, match=f"isa '{best}' cannot be compiled here"):
        Engine(threshold_model(), "jit", best)


def test_plain_loops_that_answer_wrongly_are_refused(monkeypatch):
    """Nothing is left to compute with; what an operator shared by all gets wrong shows itself here."""
    monkeypatch.setattr(selection, "answers_rightly", lambda isa, tile: False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for isa in (None, PORTABLE):
            with pytest.raises(ParameterError, match="gives wrong answers here: expected one that computes"):
                Engine(threshold_model(), "jit", isa)


@each_tile
def test_the_question_put_to_a_tile_finds_one_wrong_bit(monkeypatch, isa, tile):
    selection.answers_rightly.cache_clear()
    output = CompiledModel.output

    def with_a_wrong_bit(self, images):
        found = output(self, images).copy()
        found[-1, -1] ^= 1
        return found

    assert selection.answers_rightly(isa, tile)
    selection.answers_rightly.cache_clear()
    monkeypatch.setattr(CompiledModel, "output", with_a_wrong_bit)
    assert not selection.answers_rightly(isa, tile)
    selection.answers_rightly.cache_clear()


KNOWN = [isa for isa in simd.INSTRUCTION_SETS.values() if isa.intrinsic]
by_name = pytest.mark.parametrize("isa", KNOWN, ids=lambda isa: isa.name)


def vector_type(bits, lanes):
    return f"<{lanes} x i{bits}>"


@by_name
def test_the_signature_of_an_intrinsic_is_one_that_this_llvm_can_call(isa):
    import llvmlite.binding as llvm

    found = simd.signature(isa)
    assert found in isa.signatures
    result, *operands = (vector_type(*each) for each in found)
    arguments = ", ".join(f"{kind} %x{i}" for i, kind in enumerate(operands))
    module = llvm.parse_assembly(
        f"declare {result} @{isa.intrinsic}({', '.join(operands)})\n"
        f"define {result} @f({arguments}) {{\n %r = call {result} @{isa.intrinsic}({arguments})\n ret {result} %r\n}}"
    )
    module.verify()


@by_name
def test_the_signature_of_an_intrinsic_is_found_among_wrong_ones(isa):
    right = simd.signature(isa)
    (bits, lanes), *operands = right
    wrong = (
        ((bits, 2 * lanes), *operands), ((64, lanes), *operands), ((bits, lanes), *operands[:-1], (8, 3)),
        (*right, operands[-1]),
    )  # fmt: skip
    assert simd.signature(replace(isa, signatures=(*wrong, right))) == right
    assert simd.signature(replace(isa, signatures=wrong)) is None


@by_name
def test_an_intrinsic_that_this_llvm_does_not_know_has_no_signature(isa):
    unknown = replace(isa, name="unknown", intrinsic=".".join([*isa.intrinsic.split(".")[:3], "nothing"]))
    assert simd.signature(unknown) is None
    assert not simd.is_known(unknown)


@pytest.mark.skipif(not VECTOR_ISAS, reason="needs vector instructions")
def test_an_instruction_set_that_this_llvm_does_not_know_is_passed_over_with_a_warning(monkeypatch):
    monkeypatch.setattr(simd, "is_known", lambda isa: isa.name != VECTOR_ISAS[0])
    selection.available_isas.cache_clear()
    with pytest.warns(UserWarning, match=f"isa '{VECTOR_ISAS[0]}' is unknown to LLVM [0-9.]+ and is passed over"):
        assert selection.available_isas() == (*VECTOR_ISAS[1:], PORTABLE)
    selection.available_isas.cache_clear()


WHAT_RUNS = """
import numpy as np
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.jit.selection import available_isas
from threshold_model import threshold_model
images = np.array([127, 128, 129], np.int32)[:, None, None, None].repeat(3, 1).repeat(3, 2)
engine = Engine(threshold_model(), "jit")
print(*available_isas(), engine.isa, engine.classify(images).tolist())
"""


@pytest.mark.skipif("avx2" not in VECTOR_ISAS, reason="needs AVX2")
@pytest.mark.parametrize(
    "environment",
    [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+sse2,-avx2"},
     {"NUMBA_ENABLE_AVX": "0"}],
    ids=["generic", "without avx2", "AVX off"],
)  # fmt: skip
def test_only_the_plain_loops_run_where_numba_may_not_use_vector_instructions(environment):
    assert run_python(WHAT_RUNS, **environment) == f"{PORTABLE} {PORTABLE} [0, 0, 1]\n"


@pytest.mark.skipif("avx2" not in VECTOR_ISAS, reason="needs AVX2")
def test_an_instruction_set_runs_where_numba_may_use_its_features_alone():
    environment = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2"}
    assert run_python(WHAT_RUNS, **environment) == f"avx2 {PORTABLE} avx2 [0, 0, 1]\n"
