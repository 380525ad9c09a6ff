"""A model that breaks a rule is refused, with the layer, what was found and what was expected."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    Add,
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    InputQuantization,
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

UINT8 = Quantization.full_range("uint8", Fraction(1), 0)
BARE = Quantization.full_range("int32", Fraction(1), 0)
HALF = Requantization.of((2**30, 31))

INPUT = InputQuantization(name="input", inputs=(), shape=(4, 4, 2), requantization=HALF, output=UINT8)
CONV = Conv2D(
    name="conv", inputs=("input",), weights=np.ones((3, 2, 2, 2), np.int8), bias=np.zeros(3, np.int32),
    requantization=HALF, output=UINT8,
)  # fmt: skip
FLAT = Flatten(name="flat", inputs=("conv",))
LINEAR = Linear(name="linear", inputs=("flat",), weights=np.ones((5, 27), np.int8), bias=np.zeros(5, np.int32),
                output=BARE)  # fmt: skip


def after_input(layer, *more):
    """A model in which `layer` reads the input and everything else follows."""
    last = (layer, *more)[-1]
    shape_free = Flatten(name="end", inputs=(last.name,))
    return INPUT, layer, *more, shape_free


def requantization(multiplier, shift, rounding="single_rounding"):
    return Requantization(np.array(multiplier, np.int32), np.array(shift, np.int32), rounding)


def test_a_sound_model_is_proven_with_its_exact_accumulators():
    model = IntegerModel((INPUT, CONV, FLAT, LINEAR))
    assert model.proofs["conv"].shape == (3, 3, 3)
    assert model.proofs["conv"].accumulator == (0, 255 * 8)
    assert model.proofs["linear"].accumulator == (0, 255 * 27)
    assert (model.classes, model.input.shape) == (5, (4, 4, 2))


def test_the_accumulator_interval_is_reached_by_an_actual_input():
    """Weights of both signs and a zero point inside the range: each end is the sum for some input."""
    weights = np.array([[-7, 5, 3, -128]], np.int8)
    source = replace(INPUT, shape=(1, 1, 4), output=Quantization("uint8", Fraction(1), 100, 20, 200))
    layer = Linear(name="linear", inputs=("flat",), weights=weights, bias=np.array([11], np.int32), output=BARE)
    proof = IntegerModel((source, Flatten(name="flat", inputs=("input",)), layer)).proofs["linear"]
    sums = [11 + sum(int(w) * x for w, x in zip(weights[0], xs)) for xs in np.ndindex(2, 2, 2, 2)
            for xs in [[(-80, 100)[bit] for bit in xs]]]  # fmt: skip
    assert proof.accumulator == (min(sums), max(sums))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "model has 0 layers; expected 1 to"),
        ((CONV,), "layer 'conv' is a Conv2D; expected an InputQuantization as the first layer"),
        ((INPUT, INPUT), "layer 'input' stands twice"),
        ((INPUT, replace(INPUT, name="again")), "layer 'again' is a InputQuantization"),
        ((replace(INPUT, name="a b"),), "layer 'a b' is no name"),
        ((INPUT, FLAT, CONV), "layer 'flat' reads 'conv'; expected the name of an earlier layer"),
        ((INPUT, replace(CONV, inputs=("conv",))), "layer 'conv' reads 'conv'"),
        ((INPUT, replace(CONV, inputs=("input", "input"))), "'conv' reads 2 of the layers before it; expected 1$"),
        ((INPUT, CONV, Flatten(name="flat", inputs=("input",))), "layer 'conv' is read by no layer"),
        ((INPUT, CONV), r"layer 'conv' gives shape \(3, 3, 3\); expected scores"),
        ((replace(INPUT, shape=(4, 4)),), r"layer 'input' has shape \(4, 4\)"),
        ((replace(INPUT, shape=(4, 4, 0)),), "extents from 1"),
        ((replace(INPUT, shape=(60000, 60000, 3)),), "at most"),
        ((replace(INPUT, output=BARE),), "layer 'input' gives int32; expected uint8 or int8"),
        ((replace(INPUT, output=replace(UINT8, zero_point=256)),), "output has zero point 256; expected 0 to 255"),
        ((replace(INPUT, output=replace(UINT8, minimum=9, maximum=8)),), "has minimum 9 and maximum 8"),
        ((replace(INPUT, output=replace(UINT8, maximum=256)),), "maximum 256"),
        ((replace(INPUT, output=replace(UINT8, scale=Fraction(0))),), "has scale 0"),
        ((replace(INPUT, output=replace(UINT8, dtype="float32")),), "has dtype 'float32'"),
        ((replace(INPUT, requantization=requantization([2**30 - 1], [31])),), r"multiplier\[0\] = 1073741823"),
        ((replace(INPUT, requantization=requantization([2**30], [0])),), r"shift\[0\] = 0; expected 1 to 62"),
        ((replace(INPUT, requantization=requantization([2**30], [63])),), r"shift\[0\] = 63"),
        ((replace(INPUT, requantization=requantization([2**30] * 2, [31] * 2)),), "has 2 values of multiplier"),
        ((replace(INPUT, requantization=requantization([2**30], [31], "nearest")),), "has rounding 'nearest'"),
        ((replace(INPUT, requantization=requantization([2**30], [19], "gemmlowp")),), "which gemmlowp takes"),
        (after_input(replace(CONV, weights=CONV.weights.astype(np.int16))), "weights is int16 of rank 4; expected"),
        (after_input(replace(CONV, weights=CONV.weights[0])), "weights is int8 of rank 3; expected int8 of rank 4"),
        (after_input(replace(CONV, weights=np.ones((3, 0, 2, 2), np.int8))), "has 0 elements"),
        (after_input(replace(CONV, bias=np.zeros(2, np.int32))), "has 2 biases; expected 3"),
        (after_input(replace(CONV, bias=np.full(3, 2**31 - 2000, np.int32))),
         r"worst-case accumulator of 2147481648 .. 2147483688 in channel 0; expected -2147483648 .. 2147483647"),
        (after_input(replace(CONV, groups=2)), "has 2 groups for 2 input and 3 output channels"),
        (after_input(replace(CONV, groups=0)), "has 0 groups"),
        (after_input(replace(CONV, weights=np.ones((3, 2, 2, 1), np.int8))), "has weights of depth 1; expected 2"),
        (after_input(replace(CONV, weights=np.ones((3, 5, 2, 2), np.int8))), "window no larger than the padded"),
        (after_input(replace(CONV, strides=(0, 1))), r"has strides \(0, 1\); expected two integers from 1"),
        (after_input(replace(CONV, strides=(1,))), "has strides"),
        (after_input(replace(CONV, dilation=(4, 1))), "slides a window"),
        (after_input(replace(CONV, padding=(1, 1))), "has padding"),
        (after_input(replace(CONV, padding=(-1, 0, 0, 0))), "integers from 0"),
        (after_input(replace(CONV, requantization=None)), "without a requantization gives"),
        (after_input(replace(CONV, output=BARE)), "layer 'conv' gives int32; expected uint8 or int8"),
        ((INPUT, CONV, FLAT, replace(LINEAR, weights=np.ones((5, 26), np.int8))), r"reads shape \(27,\); expected"),
        (after_input(Add(name="add", inputs=("input", "input"), multiplier=np.array([0, 1], np.int32), shift=1,
                         output=UINT8)), r"has multipliers \[0, 1\]"),
        (after_input(Add(name="add", inputs=("input", "input"), multiplier=np.array([1, 1], np.int32), shift=63,
                         output=UINT8)), "has shift 63"),
        (after_input(CONV, Add(name="add", inputs=("input", "conv"), multiplier=np.array([1, 1], np.int32), shift=1,
                               output=UINT8)), r"reads shapes \(4, 4, 2\) and \(3, 3, 3\)"),
        (after_input(CONV, Concat(name="cat", inputs=("input", "conv"))), "shapes that differ in the channels only"),
        (after_input(Requantize(name="re", inputs=("input",), requantization=HALF, output=replace(UINT8, zero_point=1)),
                     Concat(name="cat", inputs=("input", "re"))), "tensors of different quantization"),
        (after_input(MaxPool(name="pool", inputs=("input",), kernel=(2, 2), padding=(2, 0, 0, 0))),
         "no window of padding alone"),
        (after_input(MaxPool(name="pool", inputs=("input",), kernel=(5, 5))), "slides a window"),
        (after_input(AveragePool(name="pool", inputs=("input",), kernel=(0, 1))), "has kernel"),
        (after_input(Clamp(name="clamp", inputs=("input",), minimum=3, maximum=300)), "has minimum 3 and maximum 300"),
        (after_input(Pad(name="pad", inputs=("input",), padding=(70000, 0, 0, 0))), "integers from 0 to 65536"),
        (after_input(Reshape(name="shape", inputs=("input",), shape=(5, 7))), "as many elements"),
        (after_input(Requantize(name="re", inputs=("input",), requantization=HALF, output=BARE)), "gives int32"),
        (after_input(LookupTable(name="table", inputs=("input",), table=np.zeros(255, np.int16), output=UINT8)),
         "has a table of 255; expected 256"),
        (after_input(LookupTable(name="table", inputs=("input",), table=np.full(256, -1, np.int16), output=UINT8)),
         r"has table\[0\] = -1; expected 0 to 255"),
        (after_input(Softmax(name="soft", inputs=("input",), table=np.ones(256, np.int32), output=UINT8)),
         "gives Quantization"),
        (after_input(Softmax(name="soft", inputs=("input",), table=np.zeros(256, np.int32),
                             output=replace(UINT8, scale=Fraction(1, 256)))), r"has table\[0\] = 0"),
        ((INPUT, ArgMax(name="argmax", inputs=("input",))), r"reads shape \(4, 4, 2\)"),
        ((INPUT, CONV, FLAT, LINEAR, GlobalAveragePool(name="gap", inputs=("linear",), requantization=HALF,
                                                       output=UINT8)), r"reads shape \(5,\)"),
        ((INPUT, CONV, FLAT, LINEAR, Linear(name="l2", inputs=("linear",), weights=np.ones((2, 5), np.int8),
                                            bias=np.zeros(2, np.int32), output=BARE)), "reads int32; expected uint8"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_refused(layers, message):
    with pytest.raises(ModelFormatError, match=message):
        IntegerModel(tuple(layers))


def test_class_names_must_fit_the_classes():
    with pytest.raises(ModelFormatError, match="model has 2 class names; expected 5"):
        IntegerModel((INPUT, CONV, FLAT, LINEAR), class_names=("a", "b"))


@pytest.mark.parametrize("name", ["", "a\n", "\x1b[31m", 7])
def test_a_class_name_is_printable_text(name):
    with pytest.raises(ModelFormatError, match="class 2 is called .*; expected printable text") as caught:
        IntegerModel((INPUT, CONV, FLAT, LINEAR), class_names=("a", "a", name, "two words", "\u00e9"))
    assert "\n" not in str(caught.value)
