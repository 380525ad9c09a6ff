"""What a rule is told: scales as the runtime stores them, zero points and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The quantization of a tensor of 8 bits: `real = scale * (q - zero_point)`, minimum <= q <= maximum.

    Attributes:
        scale: float32, as every one of the runtimes stores it.
        zero_point: between minimum and maximum.
        minimum, maximum: of the values that an output may have.
    """

    scale: np.float32
    zero_point: int
    minimum: int
    maximum: int

    def clamped(self, q: np.ndarray) -> np.ndarray:
        """Values of any numeric dtype that are integers or infinite, clamped to the range: int64."""
        return np.clip(q, self.minimum, self.maximum).astype(np.int64)


@dataclass(frozen=True)
class Product:
    """A convolution or a matrix product, `C` output channels.

    Attributes:
        input_scale: float32.
        weight_scale: float32 `(C,)`, or `(1,)` for one scale of the whole tensor.
        output: the quantization of the output.
        bias: float32 `(C,)`, in the unit of the output, for runtimes that add it as a float: then the accumulator comes
            without it. Zero `(1,)` for all others.
    """

    input_scale: np.float32
    weight_scale: np.ndarray
    output: Grid
    bias: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))

    @property
    def product_scale(self) -> np.ndarray:
        """Float32 `(C,)` or `(1,)`: what an accumulator of 1 is worth."""
        return self.input_scale * self.weight_scale


@dataclass(frozen=True)
class Sum:
    """The addition of two tensors."""

    first: Grid
    second: Grid
    output: Grid


@dataclass(frozen=True)
class Average:
    """An average of the values of a window."""

    input: Grid
    output: Grid
