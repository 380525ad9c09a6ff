"""The float model: a trained network before it becomes integers, whatever framework trained it.

Layers are named and laid out as those of `intsmooth_ref.model.layers`: tensors `(N, H, W, C)` or `(N, C)`, weights
`(O, KH, KW, I)` or `(O, I)`, padding `(top, bottom, left, right)`. What each computes is specified by `float_engine`.
Whoever imports this module says `float_model.Conv2D`, for the integer layer has the same name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import singledispatch
from math import inf, isfinite, isnan, prod
from typing import Any, ClassVar, Collection, Mapping, Sequence

import numpy as np

from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.proof import (
    LAYER_NAME, MAX_ELEMENTS, MAX_EXTENT, MAX_LAYERS, check_class_names, count_range,
)  # fmt: skip

#: Unary functions that a `Function` may name; an integer model holds each as a table.
FUNCTIONS = ("elu", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "sigmoid", "silu", "tanh")


def _array(rank: int) -> Any:
    """A field that holds a float32 array of this rank."""
    return field(metadata={"dtype": "float32", "rank": rank})


def _optional_array(rank: int) -> Any:
    return field(default=None, metadata={"dtype": "float32", "rank": rank, "optional": True})


# --- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class FloatLayer:
    """What every layer has: a name, unique in its model, and the names of the layers that it reads."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    name: str
    inputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(FloatLayer):
    """The image `(H, W, C)`, grey levels 0 .. 255 and what noise makes of them: `(grey / 255 - mean) / deviation`."""

    arity: ClassVar[tuple[int, int]] = (0, 0)
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...]
    mean: np.ndarray = _array(1)
    deviation: np.ndarray = _array(1)

    @classmethod
    def fractions_of_full_scale(cls, name: str, shape: tuple[int, ...]) -> Input:
        """Without normalization: mean 0, deviation 1."""
        return cls(
            name=name, shape=shape, mean=np.zeros(shape[2], np.float32), deviation=np.ones(shape[2], np.float32)
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2D(FloatLayer):
    """Convolution, zeros as padding: weights `(O, KH, KW, I / groups)`, bias `(O,)` or None."""

    weights: np.ndarray = _array(4)
    bias: np.ndarray | None = _optional_array(1)
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(FloatLayer):
    """Fully connected: weights `(O, I)`, bias `(O,)` or None."""

    weights: np.ndarray = _array(2)
    bias: np.ndarray | None = _optional_array(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm(FloatLayer):
    """`scale * (x - mean) / sqrt(variance + epsilon) + shift`, one of each per channel."""

    scale: np.ndarray = _array(1)
    shift: np.ndarray = _array(1)
    mean: np.ndarray = _array(1)
    variance: np.ndarray = _array(1)
    epsilon: float = 1e-5


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(FloatLayer):
    """`min(max(x, minimum), maximum)`: ReLU is 0 .. infinity, ReLU6 is 0 .. 6."""

    minimum: float = 0.0
    maximum: float = inf


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(FloatLayer):
    """One of `FUNCTIONS`, element by element; `slope` is that of `leaky_relu` below zero, and of no other."""

    function: str
    slope: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(FloatLayer):
    """Sum of two tensors of one shape."""

    arity: ClassVar[tuple[int, int]] = (2, 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(FloatLayer):
    """Concatenation along the channels."""

    arity: ClassVar[tuple[int, int]] = (2, 64)


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(FloatLayer):
    """Largest value of each window; padding never wins."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(FloatLayer):
    """Mean of each window, zeros as padding; `count_include_pad` tells whether they are counted."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    count_include_pad: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAveragePool(FloatLayer):
    """Mean over height and width, `(H, W, C)` to `(C,)`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(FloatLayer):
    """Zeros around the image: `(top, bottom, left, right)`."""

    padding: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(FloatLayer):
    """`(H, W, C)` to `(H * W * C,)`, channels fastest."""


FLOAT_LAYER_KINDS: Mapping[str, type[FloatLayer]] = {
    kind.__name__: kind
    for kind in (
        Input, Conv2D, Linear, BatchNorm, Clamp, Function, Add, Concat, MaxPool, AveragePool, GlobalAveragePool, Pad,
        Flatten,
    )
}  # fmt: skip


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FloatModel:
    """Layers in one validated, acyclic graph: each reads only layers before it.

    The first is the `Input`, the only one; the last gives the scores, `(classes,)`.

    Raises:
        ModelFormatError: which layer breaks which rule, what was found and what was expected.
    """

    layers: tuple[FloatLayer, ...]
    class_names: tuple[str, ...] = ()
    provenance: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", _shapes(self.layers, self.class_names))

    @property
    def input(self) -> Input:
        first = self.layers[0]
        assert isinstance(first, Input)  # checked
        return first

    @property
    def classes(self) -> int:
        return self.shapes[self.layers[-1].name][0]

    @property
    def parameters(self) -> int:
        """How many floats are learned: weights, biases, scales and shifts."""
        return sum(
            array.size for layer in self.layers if not isinstance(layer, Input)
            for name, array in arrays(layer).items() if name not in ("mean", "variance")
        )  # fmt: skip


def arrays(layer: FloatLayer) -> dict[str, np.ndarray]:
    """The arrays of a layer by the name of their field, without those that are None."""
    each = {item.name: getattr(layer, item.name) for item in fields(layer) if item.metadata}
    return {name: value for name, value in each.items() if value is not None}


def free_name(wanted: str, taken: Collection[str]) -> str:
    """A legal name of a layer that is not taken, as near to the wanted one as may be."""
    name = stem = re.sub("[^A-Za-z0-9_.-]+", "_", wanted)[-90:].strip("_") or "layer"
    count = 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def _shapes(layers: Sequence[FloatLayer], class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's output, without the batch dimension."""
    _expect(2 <= len(layers) <= MAX_LAYERS, "model", f"has {len(layers)} layers", f"2 to {MAX_LAYERS}")
    shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(layers):
        where = f"layer {layer.name[:100]!r}"
        _expect(LAYER_NAME.fullmatch(layer.name) is not None, where, "is no name", LAYER_NAME.pattern)
        _expect(layer.name not in shapes, where, "stands twice", "names that differ")
        _expect(isinstance(layer, Input) == (index == 0), where, f"is of kind {layer.kind}",
                "an Input as the first layer and nowhere else")  # fmt: skip
        shapes[layer.name] = output_shape(layer, shapes)
    used = {name for layer in layers for name in layer.inputs} | {layers[-1].name}
    for name in shapes:
        _expect(name in used, f"layer {name!r}", "is read by no layer", "a graph in which every layer counts")
    scores = shapes[layers[-1].name]
    _expect(len(scores) == 1, f"layer {layers[-1].name!r}", f"gives shape {scores}", "scores of shape (classes,)")
    check_class_names(class_names, scores[0])
    return shapes


def output_shape(layer: FloatLayer, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's output from those of the layers before it, by name, all without the batch dimension.

    Raises:
        ModelFormatError: which rule the layer breaks.
    """
    where = f"layer {layer.name[:100]!r}"
    fewest, most = layer.arity
    found = f"reads {len(layer.inputs)} of the layers before it"
    _expect(fewest <= len(layer.inputs) <= most, where, found, count_range(fewest, most))
    for name in layer.inputs:
        _expect(name in shapes, where, f"reads {name[:100]!r}", "the name of an earlier layer")
    _check_fields(layer, where)
    shape = _shape(layer, where, *(shapes[name] for name in layer.inputs))
    _expect(prod(shape) <= MAX_ELEMENTS, where, f"gives shape {shape}", f"at most {MAX_ELEMENTS} elements")
    return shape


def _expect(holds: bool, where: str, found: str, expected: str) -> None:
    if not holds:
        raise ModelFormatError(f"{where} {found}; expected {expected}")


def _check_fields(layer: FloatLayer, where: str) -> None:
    """Arrays are float32 of their rank and finite, integers are small, numbers are numbers."""
    for each in fields(layer):
        value, what = getattr(layer, each.name), f"{where}: {each.name}"
        if each.metadata:
            if value is None and each.metadata.get("optional"):
                continue
            dtype, rank = each.metadata["dtype"], each.metadata["rank"]
            good = isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == rank
            found = f"is {getattr(value, 'dtype', type(value).__name__)} of rank {np.ndim(value)}"
            _expect(good, what, found, f"{dtype} of rank {rank}")
            _expect(0 < value.size <= MAX_ELEMENTS, what, f"has {value.size} elements", f"1 to {MAX_ELEMENTS}")
            _expect(bool(np.isfinite(value).all()), what, "holds a value that is not finite", "finite numbers")
        elif isinstance(value, tuple) and each.name != "inputs":
            small = all(isinstance(item, int) and 0 <= item <= MAX_EXTENT for item in value)
            _expect(small, what, f"is {value}", f"integers from 0 to {MAX_EXTENT}")
        elif isinstance(value, float):
            _expect(not isnan(value), what, "is not a number", "a number")


# --- shapes, a rule a layer -------------------------------------------------------------------------------------------


@singledispatch
def _shape(layer: FloatLayer, where: str, *sources: tuple[int, ...]) -> tuple[int, ...]:
    raise TypeError(f"no shape of {layer.kind}")


def _expect_image(where: str, shape: tuple[int, ...]) -> None:
    _expect(len(shape) == 3, where, f"reads shape {shape}", "(H, W, C)")


def _expect_channels(where: str, name: str, array: np.ndarray | None, channels: int) -> None:
    if array is not None:
        _expect(len(array) == channels, f"{where}: {name}", f"has {len(array)} values", f"{channels}, one a channel")


def _slid(
    where: str, source: tuple[int, ...], kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:  # fmt: skip
    """Height and width of what a window gives that slides over an image."""
    _expect_image(where, source)
    for name, values, count in (("kernel", kernel, 2), ("strides", strides, 2), ("padding", padding, 4),
                                ("dilation", dilation, 2)):  # fmt: skip
        good = len(values) == count and (name == "padding" or min(values) >= 1)
        _expect(good, f"{where}: {name}", f"is {tuple(values)}", f"{count} integers, from {0 + (name != 'padding')} on")
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    padded = [source[0] + padding[0] + padding[1], source[1] + padding[2] + padding[3]]
    for size, extent in zip(padded, extents):
        _expect(extent <= size, where, f"has a window of {extents} over {padded} pixels", "one that fits inside")
    height, width = ((size - extent) // step + 1 for size, extent, step in zip(padded, extents, strides))
    return height, width


@_shape.register
def _(layer: Input, where: str) -> tuple[int, ...]:
    good = len(layer.shape) == 3 and min(layer.shape) >= 1
    _expect(good, f"{where}: shape", f"is {layer.shape}", "(H, W, C), each at least 1")
    _expect_channels(where, "mean", layer.mean, layer.shape[2])
    _expect_channels(where, "deviation", layer.deviation, layer.shape[2])
    _expect(bool((layer.deviation > 0).all()), f"{where}: deviation", "holds a value of 0 or less", "above zero")
    return layer.shape


@_shape.register
def _(layer: Conv2D, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    outputs, rows, columns, depth = layer.weights.shape
    height, width = _slid(where, source, (rows, columns), layer.strides, layer.padding, layer.dilation)
    _expect(layer.groups >= 1 and outputs % layer.groups == 0, where, f"has {outputs} outputs in {layer.groups} groups",
            "groups of equal size")  # fmt: skip
    found = f"has weights for {depth} channels in {layer.groups} groups"
    _expect(depth * layer.groups == source[2], where, found, f"{source[2]} channels in all")
    _expect_channels(where, "bias", layer.bias, outputs)
    return height, width, outputs


@_shape.register
def _(layer: Linear, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect(len(source) == 1, where, f"reads shape {source}", "(C,)")
    _expect(layer.weights.shape[1] == source[0], where, f"has weights for {layer.weights.shape[1]} inputs",
            f"{source[0]}")  # fmt: skip
    _expect_channels(where, "bias", layer.bias, len(layer.weights))
    return (len(layer.weights),)


@_shape.register
def _(layer: BatchNorm, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    for name, array in arrays(layer).items():
        _expect_channels(where, name, array, source[-1])
    _expect(bool((layer.variance.astype(np.float64) + layer.epsilon > 0).all()), f"{where}: variance",
            "is not above zero with epsilon added", "a variance")  # fmt: skip
    return source


@_shape.register
def _(layer: Clamp, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect(layer.minimum < layer.maximum, where, f"clamps to {layer.minimum} .. {layer.maximum}", "minimum < maximum")
    return source


@_shape.register
def _(layer: Function, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect(layer.function in FUNCTIONS, where, f"names the function {layer.function[:100]!r}",
            f"one of {', '.join(FUNCTIONS)}")  # fmt: skip
    _expect(isfinite(layer.slope), f"{where}: slope", f"is {layer.slope}", "a finite number")
    good = layer.slope == 0 or layer.function == "leaky_relu"
    _expect(good, f"{where}: slope", f"is {layer.slope:g}", f"0, as {layer.function} has none")
    return source


@_shape.register
def _(layer: Add, where: str, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    _expect(first == second, where, f"adds shapes {first} and {second}", "two of one shape")
    return first


@_shape.register
def _(layer: Concat, where: str, *sources: tuple[int, ...]) -> tuple[int, ...]:
    good = all(each[:-1] == sources[0][:-1] for each in sources)
    _expect(good, where, f"joins shapes {', '.join(map(str, sources))}", "shapes that differ in the channels only")
    return (*sources[0][:-1], sum(each[-1] for each in sources))


@_shape.register(MaxPool)
@_shape.register(AveragePool)
def _(layer: MaxPool | AveragePool, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    height, width = _slid(where, source, layer.kernel, layer.strides, layer.padding)
    for first, second, size in zip(layer.padding[::2], layer.padding[1::2], layer.kernel):
        _expect(max(first, second) < size, where, f"has padding {layer.padding} around windows of {layer.kernel}",
                "windows that hold a pixel each")  # fmt: skip
    return height, width, source[2]


@_shape.register
def _(layer: GlobalAveragePool, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect_image(where, source)
    return (source[2],)


@_shape.register
def _(layer: Pad, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect_image(where, source)
    _expect(len(layer.padding) == 4, f"{where}: padding", f"is {layer.padding}", "(top, bottom, left, right)")
    top, bottom, left, right = layer.padding
    return source[0] + top + bottom, source[1] + left + right, source[2]


@_shape.register
def _(layer: Flatten, where: str, source: tuple[int, ...]) -> tuple[int, ...]:
    _expect_image(where, source)
    return (prod(source),)
