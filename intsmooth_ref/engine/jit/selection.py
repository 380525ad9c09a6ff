"""Which instruction set to compile a model for: what is asked for, or the best that runs here and answers rightly.

Before a tile is used for the first time in a process, it computes two small models, whose answers the reference engine
knows: an LLVM or a processor that gets a bit wrong is passed over.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ...compilation import jit_disabled
from ...errors import ParameterError
from ...fixedpoint import quantize_multiplier
from ...model.graph import IntegerModel
from ...model.layers import Add, Conv2D, Flatten, InputQuantization, Layer, Quantization, Requantization
from ..reference import ReferenceModel
from . import CompiledModel, simd
from .lowering import PORTABLE, Tile


def available_isas() -> tuple[str, ...]:
    """The instruction sets that run here, best first; the plain loops come last."""
    if jit_disabled():
        return (PORTABLE,)
    return (*(name for name, isa in simd.INSTRUCTION_SETS.items() if simd.runs_here(isa)), PORTABLE)


def compile_model(model: IntegerModel, isa: str = "auto") -> CompiledModel:
    """Compile a model for an instruction set; `auto` is the best that answers rightly.

    Raises:
        ParameterError: if there is none of that name, it does not run here, or it answers wrongly.
    """
    names = ("auto", *simd.INSTRUCTION_SETS, PORTABLE)
    if isa not in names:
        raise ParameterError(f"isa {isa!r}: expected one of {', '.join(names)}")
    available = available_isas()
    if isa != "auto" and isa not in available:
        raise ParameterError(f"isa {isa!r} does not run here; expected one of {', '.join(('auto', *available))}")
    for name in available if isa == "auto" else (isa,):
        compiled = CompiledModel(model, name)
        if all(answers_rightly(name, tile) for tile in compiled.program.tiles):
            return compiled
        if isa == "auto":
            warnings.warn(f"isa {name!r} gives wrong answers here and is passed over", stacklevel=2)
    raise ParameterError(f"isa {isa!r} gives wrong answers here: expected those of the reference engine")


@lru_cache(maxsize=None)
def answers_rightly(isa: str, tile: Tile) -> bool:
    """Whether a tile computes its small model as the reference engine does, on every way it stores its results."""
    model = _question(simd.INSTRUCTION_SETS[isa].lanes * tile.vectors + 4, tile.kind != simd.DENSE)
    shape = (5, *model.input.shape)
    images = (np.arange(np.prod(shape)) * 7919 % 511 - 128).astype(np.int32).reshape(shape)
    expected = ReferenceModel(model).output(images)
    return np.array_equal(CompiledModel(model, isa, tile).output(images), expected)


@lru_cache(maxsize=None)
def _question(channels: int, depthwise: bool) -> IntegerModel:
    """Three convolutions: one is stored as bytes, one is added to it, one gives bare accumulators."""
    shape = (6, 7, channels if depthwise else 5)
    output = Quantization("uint8", Fraction(1), 77, 3, 250)
    ratio = Requantization.of(quantize_multiplier(Fraction(1, 2)))
    layers: list[Layer] = [
        InputQuantization(name="input", shape=shape, requantization=ratio, output=output),
        _products("first", "input", (channels, 3, 3, 1 if depthwise else 5), depthwise),
        _products("second", "first", (channels, 3, 3, 1 if depthwise else channels), depthwise),
        Add(
            name="sum", inputs=("second", "first"), multiplier=np.array([715827883, 1431655765], np.int32), shift=31,
            output=output,
        ),
        _products("scores", "sum", (channels, 3, 3, 1 if depthwise else channels), depthwise, bare=True),
        Flatten(name="flat", inputs=("scores",)),
    ]  # fmt: skip
    return IntegerModel(tuple(layers))


def _products(name: str, source: str, shape: tuple[int, ...], depthwise: bool, bare: bool = False) -> Conv2D:
    taps = int(np.prod(shape[1:]))
    numbers = np.arange(shape[0] * taps, dtype=np.int64) * 2654435761 >> 7  # a multiplicative hash: any will do
    ratios = [quantize_multiplier(Fraction(1, 40 * taps + o)) for o in range(shape[0])]
    return Conv2D(
        name=name, inputs=(source,), weights=(numbers % 256 - 128).astype(np.int8).reshape(shape),
        bias=(numbers[: shape[0]] % 9973 - 5000).astype(np.int32),
        requantization=None if bare else Requantization.of(*ratios),
        output=Quantization.full_range("int32", Fraction(1), 0) if bare
        else Quantization("uint8", Fraction(1), 77, 3, 250),
        strides=(2, 1) if bare else (1, 1), padding=(1, 1, 1, 1), groups=shape[0] if depthwise else 1,
    )  # fmt: skip
