"""The float model: shapes follow from its layers, and a graph that breaks a rule is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any, Callable

import numpy as np
import pytest

from intsmooth_ref.data_tools.float_model import (
    Add,
    AveragePool,
    BatchNorm,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    FloatLayer,
    FloatModel,
    Function,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Pad,
)
from intsmooth_ref.errors import ModelFormatError


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


IMAGE = Input.fractions_of_full_scale("image", (9, 8, 4))
FLAT = Flatten(name="flat", inputs=("image",))


def at(kind: Callable[..., FloatLayer], *inputs: str, **options: Any) -> FloatLayer:
    return kind(name="it", inputs=inputs or ("image",), **options)


def conv(**options: Any) -> FloatLayer:
    return at(Conv2D, **{"weights": zeros(6, 3, 2, 4), **options})


def norm(channels: int, *inputs: str, **options: Any) -> FloatLayer:
    arrays = {name: zeros(channels) for name in ("scale", "shift", "mean", "variance")}
    return at(BatchNorm, *inputs, **{**arrays, **options})


def model(*layers: FloatLayer) -> FloatModel:
    """A model of these layers, and of some that turn the last one's output into scores."""
    ends = layers[-1].name
    return FloatModel((IMAGE, *layers, GlobalAveragePool(name="scores", inputs=(ends,))))


#: By the rule `(size + padding - (kernel - 1) * dilation - 1) // stride + 1` of every framework.
SHAPES = [
    (conv(), (7, 7, 6)),
    (conv(strides=(2, 3), padding=(1, 0, 2, 1)), (4, 4, 6)),
    (conv(dilation=(3, 5)), (3, 3, 6)),
    (conv(weights=zeros(6, 3, 2, 2), groups=2, bias=zeros(6)), (7, 7, 6)),
    (norm(4), (9, 8, 4)),
    (at(Clamp, maximum=6.0), (9, 8, 4)),
    (at(Function, function="gelu"), (9, 8, 4)),
    (at(Add, "image", "image"), (9, 8, 4)),
    (at(Concat, "image", "image", "image"), (9, 8, 12)),
    (at(MaxPool, kernel=(3, 2), strides=(2, 2), padding=(1, 2, 0, 1)), (5, 4, 4)),
    (at(AveragePool, kernel=(9, 8)), (1, 1, 4)),
    (at(Pad, padding=(1, 2, 3, 4)), (12, 15, 4)),
]


@pytest.mark.parametrize("case", range(len(SHAPES)), ids=lambda index: f"{index}_{SHAPES[index][0].kind}")
def test_shapes_follow_from_the_layers(case: int) -> None:
    layer, shape = SHAPES[case]
    assert model(layer).shapes == {"image": (9, 8, 4), "it": shape, "scores": (shape[2],)}


def test_vectors_and_classes() -> None:
    last = Linear(name="scores", inputs=("flat",), weights=zeros(10, 288), bias=zeros(10))
    whole = FloatModel((IMAGE, FLAT, last), tuple("0123456789"))
    assert whole.shapes["flat"] == (288,) and whole.classes == 10 and whole.input is IMAGE


def test_parameters_are_what_is_learned() -> None:
    whole = model(replace(conv(bias=zeros(6)), name="conv"), norm(6, "conv"))
    assert whole.parameters == 6 * 3 * 2 * 4 + 6 + 2 * 6  # neither running statistics nor the input's normalization


BROKEN: dict[str, tuple[FloatLayer, str]] = {
    "name": (replace(conv(), name="a/b"), "layer 'a/b' is no name"),
    "twice": (replace(conv(), name="image"), "layer 'image' stands twice"),
    "second input": (replace(IMAGE, name="other"), "layer 'other' is of kind Input"),
    "reads what comes later": (at(Clamp, "scores"), "layer 'it' reads 'scores'; expected the name of an earlier layer"),
    "too few inputs": (at(Add, "image"), "reads 1 of the layers before it; expected 2"),
    "too many inputs": (at(Clamp, "image", "image"), "reads 2 of the layers before it; expected 1"),
    "float64": (conv(weights=np.zeros((6, 3, 2, 4))), "weights is float64 of rank 4; expected float32 of rank 4"),
    "rank": (conv(weights=zeros(6, 4)), "weights is float32 of rank 2"),
    "no array": (conv(weights=None), "weights is NoneType of rank 0"),
    "empty": (conv(weights=zeros(0, 3, 2, 4)), "weights has 0 elements"),
    "not finite": (conv(bias=np.float32([0, 0, 0, 0, 0, np.nan])), "bias holds a value that is not finite"),
    "bias": (conv(bias=zeros(5)), "bias has 5 values; expected 6"),
    "channels": (conv(weights=zeros(6, 3, 2, 3)), "has weights for 3 channels in 1 groups; expected 4"),
    "groups": (conv(weights=zeros(5, 3, 2, 2), groups=2), "has 5 outputs in 2 groups"),
    "no groups": (conv(groups=0), "in 0 groups"),
    "window": (conv(dilation=(5, 1)), "has a window of [11, 2] over [9, 8] pixels; expected one that fits inside"),
    "no stride": (conv(strides=(0, 1)), "strides is (0, 1); expected 2 integers, from 1 on"),
    "three sides": (conv(padding=(1, 1, 1)), "padding is (1, 1, 1); expected 4 integers, from 0 on"),
    "negative padding": (conv(padding=(-1, 0, 0, 0)), "padding is (-1, 0, 0, 0); expected integers from 0"),
    "norm": (norm(3), "scale has 3 values; expected 4"),
    "variance": (norm(4, variance=np.float32([1, 1, 1, -1])), "variance is not above zero with epsilon added"),
    "clamp": (at(Clamp, minimum=6.0, maximum=6.0), "clamps to 6.0 .. 6.0; expected minimum < maximum"),
    "not a number": (at(Clamp, maximum=nan), "maximum is not a number"),
    "function": (at(Function, function="sine"), "names the function 'sine'; expected one of elu, gelu"),
    "slope": (at(Function, function="leaky_relu", slope=inf), "slope is inf; expected a finite number"),
    "slope of another function": (at(Function, function="silu", slope=0.3), "slope is 0.3; expected 0, as silu"),
    "sum": (at(Add, "image", "flat"), "adds shapes (9, 8, 4) and (288,)"),
    "join": (at(Concat, "image", "flat"), "joins shapes (9, 8, 4), (288,)"),
    "image for a linear layer": (at(Linear, weights=zeros(3, 4)), "reads shape (9, 8, 4); expected (C,)"),
    "inputs of a linear layer": (at(Linear, "flat", weights=zeros(3, 4)), "has weights for 4 inputs; expected 288"),
    "vector for a pool": (at(MaxPool, "flat", kernel=(1, 1)), "reads shape (288,); expected (H, W, C)"),
    "window of padding": (at(MaxPool, kernel=(2, 2), padding=(2, 0, 0, 0)), "expected windows that hold a pixel each"),
    "huge": (at(Pad, padding=(65536, 65536, 65536, 65536)), "gives shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named_with_its_layer(case: str) -> None:
    layer, found = BROKEN[case]
    with pytest.raises(ModelFormatError) as caught:
        FloatModel((IMAGE, FLAT, layer, GlobalAveragePool(name="scores", inputs=(layer.name,))))
    assert found in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options, found", [
    ({"shape": (0, 8, 4)}, "shape is (0, 8, 4)"),
    ({"mean": zeros(3)}, "mean has 3 values; expected 4"),
    ({"deviation": np.float32([1, 1, 0, 1])}, "deviation holds a value of 0 or less"),
])  # fmt: skip
def test_a_broken_input_is_named(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        FloatModel((replace(IMAGE, **options), GlobalAveragePool(name="scores", inputs=("image",))))
    assert found in str(caught.value)


def test_every_layer_counts_and_scores_are_vectors() -> None:
    with pytest.raises(ModelFormatError, match=r"layer 'flat' is read by no layer"):
        FloatModel((IMAGE, FLAT, GlobalAveragePool(name="scores", inputs=("image",))))
    with pytest.raises(ModelFormatError, match=r"gives shape \(9, 8, 4\); expected scores of shape \(classes,\)"):
        FloatModel((IMAGE, at(Clamp)))
    with pytest.raises(ModelFormatError, match="model has 1 layers"):
        FloatModel((IMAGE,))
    with pytest.raises(ModelFormatError, match="layer 'it' is of kind Clamp; expected an Input as the first"):
        FloatModel((at(Clamp), FLAT))


@pytest.mark.parametrize("names, found", [
    (("a", "b"), "model has 2 class names; expected 4"),
    (("a", "b", "", "d"), "class 2 is called ''; expected printable text"),
    (("a", "b", "c", "d\n"), r"class 3 is called 'd\n'; expected printable text"),
    ((1, 2, 3, 4), "class 0 is called 1; expected printable text"),
])  # fmt: skip
def test_class_names_are_one_a_class_and_printable(names: tuple[str, ...], found: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        FloatModel((IMAGE, GlobalAveragePool(name="scores", inputs=("image",))), names)
    assert found in str(caught.value)


def test_two_classes_may_have_one_name() -> None:
    crane = FloatModel((IMAGE, GlobalAveragePool(name="scores", inputs=("image",))), ("crane", "crane", "b", "c d"))
    assert crane.class_names == ("crane", "crane", "b", "c d")
