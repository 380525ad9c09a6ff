"""Layers as frozen dataclasses: what a model is made of.

A tensor holds integers `q` that stand for reals, equation (1) of Jacob et al. 2018:

    real = scale * (q - zero_point)

Tensors are laid out `(N, H, W, C)` or `(N, C)`; the shapes below leave the batch dimension `N` out. What each operator
computes is specified, in one short function each, by `engine/reference.py`; which integers a layer may hold is
decided by `model/proof.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, ClassVar, Mapping, Union

import numpy as np

INTEGER_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1)}


def _array(dtype: str, rank: int) -> Any:
    """A field that holds a read-only array of this dtype and rank."""
    return field(metadata={"dtype": dtype, "rank": rank})


@dataclass(frozen=True)
class Quantization:
    """How the integers of a layer's output stand for reals, and the range to which they are clamped.

    `minimum` and `maximum` express a fused activation (ReLU: `minimum = zero_point`).
    """

    dtype: str
    scale: Fraction
    zero_point: int
    minimum: int
    maximum: int

    @classmethod
    def full_range(cls, dtype: str, scale: Fraction, zero_point: int) -> Quantization:
        return cls(dtype, scale, zero_point, *INTEGER_RANGES[dtype])


@dataclass(frozen=True, eq=False)
class Requantization:
    """Multipliers and shifts, one each per output channel or a single one, and the name of the rounding mode.

    See `fixedpoint`. Both arrays are int32 of shape `(C,)` or `(1,)`.
    """

    multiplier: np.ndarray = _array("int32", 1)
    shift: np.ndarray = _array("int32", 1)
    rounding: str = "single_rounding"

    @classmethod
    def of(cls, *pairs: tuple[int, int], rounding: str = "single_rounding") -> Requantization:
        """From `(multiplier, shift)` pairs as `quantize_multiplier` makes them."""
        multiplier, shift = np.array(pairs, dtype=np.int32).T
        return cls(multiplier.copy(), shift.copy(), rounding)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """What every layer has: a name, unique in its model, and the names of the layers that it reads."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    name: str
    inputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, eq=False, kw_only=True)
class InputQuantization(Layer):
    """The noisy image, int32 grey levels of shape `(H, W, C)`, to 8 bits: `q = clamp(zero_point + round(x * ratio))`.

    Part of the classifier, so that a model may keep noise that leaves 0..255. The largest grey level it must accept
    in either direction is `2**20`, far beyond any noise of this package.
    """

    arity: ClassVar[tuple[int, int]] = (0, 0)
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...]
    requantization: Requantization
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2D(Layer):
    """Convolution: weights `(O, KH, KW, I / groups)`, bias `(O,)`; depthwise where `groups` equals the input channels.

    The input is padded `(top, bottom, left, right)` with its zero point. Without a requantization the int32
    accumulator itself is the output.
    """

    weights: np.ndarray = _array("int8", 4)
    bias: np.ndarray = _array("int32", 1)
    requantization: Requantization | None = None
    output: Quantization
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Layer):
    """Fully connected: weights `(O, I)`, bias `(O,)`. Without a requantization the accumulator is the output."""

    weights: np.ndarray = _array("int8", 2)
    bias: np.ndarray = _array("int32", 1)
    requantization: Requantization | None = None
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Layer):
    """Sum of two tensors of one shape, each with its own scale and zero point, rounded once.

    `q = clamp(zero_point + ((sum_i (x_i - z_i) * multiplier_i + 2**(shift-1)) >> shift))` in int64:
    the ratio of input to output scale is `multiplier_i * 2**-shift`, with `1 <= multiplier_i < 2**31`.
    """

    arity: ClassVar[tuple[int, int]] = (2, 2)
    multiplier: np.ndarray = _array("int32", 1)
    shift: int
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Layer):
    """Concatenation along the channels; all inputs have one dtype, scale and zero point (else `Requantize` first)."""

    arity: ClassVar[tuple[int, int]] = (2, 64)


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Layer):
    """Largest value of each window; padding `(top, bottom, left, right)` never wins."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Layer):
    """Mean of each window, rounded to nearest with ties towards plus infinity, in the input's scale and zero point.

    `q = floor((2 * sum + count) / (2 * count))`. Padding is the input's zero point; `count_include_pad` tells whether
    it is counted.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    count_include_pad: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAveragePool(Layer):
    """Mean over height and width, `(H, W, C)` to `(C,)`: the sum of `q - zero_point`, requantized.

    The division by `H * W` is part of the requantization's ratio.
    """

    requantization: Requantization
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(Layer):
    """`min(max(q, minimum), maximum)`: ReLU with `minimum = zero_point`, ReLU6 with a `maximum` besides."""

    minimum: int
    maximum: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Layer):
    """Padding `(top, bottom, left, right)` with the input's zero point."""

    padding: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Layer):
    """`(H, W, C)` to `(H * W * C,)`, channels fastest."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Layer):
    """Another shape of the same number of elements, in the same order."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantize(Layer):
    """Another scale and zero point: `q - zero_point`, requantized."""

    requantization: Requantization
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class LookupTable(Layer):
    """Any unary function by table: entry `q - minimum of the input's dtype` of 256."""

    table: np.ndarray = _array("int16", 1)
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Layer):
    """Softmax over the channels by a table: entry `max - q` of 256 stands for `exp(-(max - q) * scale)`.

    With `t` the entries and `s` their sum, `q = clamp(zero_point + (512 * t + s) // (2 * s))`: the output's scale
    is 1/256 and its zero point the minimum of its dtype.
    """

    table: np.ndarray = _array("int32", 1)
    output: Quantization


@dataclass(frozen=True, eq=False, kw_only=True)
class ArgMax(Layer):
    """The index of the largest value; the lowest index wins a tie."""


LAYER_KINDS: Mapping[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        InputQuantization, Conv2D, Linear, Add, Concat, MaxPool, AveragePool, GlobalAveragePool, Clamp, Pad, Flatten,
        Reshape, Requantize, LookupTable, Softmax, ArgMax,
    )
}  # fmt: skip

FieldValue = Union[int, str, Fraction, "tuple[int, ...]", "tuple[str, ...]", np.ndarray]


def flat_fields(item: Any, prefix: str = "") -> list[tuple[str, FieldValue]]:
    """The fields of a layer in order of declaration, those of its nested dataclasses under dotted names.

    A nested dataclass that is None is left out; a bool is an integer.
    """
    flat: list[tuple[str, FieldValue]] = []
    for each in fields(item):
        value = getattr(item, each.name)
        if isinstance(value, (Quantization, Requantization)):
            flat += flat_fields(value, f"{each.name}.")
        elif value is not None:
            flat.append((prefix + each.name, int(value) if isinstance(value, bool) else value))
    return flat
