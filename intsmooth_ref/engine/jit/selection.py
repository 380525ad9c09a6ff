"""Which instruction set to compile a model for: what is asked for, or the best that runs here and answers rightly.

Before a tile is used for the first time in a process, it computes a small model, whose answers the reference engine
knows: an LLVM or a processor that gets a bit wrong is passed over.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import lru_cache

import numpy as np
from llvmlite.binding import llvm_version_info
from numba.core.errors import NumbaError

from ...compilation import jit_disabled
from ...errors import ParameterError
from ...fixedpoint import quantize_multiplier
from ...model.graph import IntegerModel
from ...model.layers import Add, Conv2D, Flatten, InputQuantization, Layer, Quantization, Requantization
from ..reference import ReferenceModel
from . import CompiledModel, simd
from .lowering import PORTABLE
from .program import Tile

#: What stands for the plain loops among the tiles.
PLAIN = (Tile(simd.DENSE, 1, 1), Tile(simd.LANES, 1, 1))


@lru_cache(maxsize=None)
def available_isas() -> tuple[str, ...]:
    """The instruction sets that run here, best first; the plain loops come last."""
    if jit_disabled():
        return (PORTABLE,)
    found = []
    for name, isa in simd.INSTRUCTION_SETS.items():
        if simd.has_features(isa):
            if simd.is_known(isa):
                found.append(name)
            else:
                warnings.warn(f"isa {name!r} is unknown to LLVM {_llvm_version()} and is passed over", stacklevel=2)
    return (*found, PORTABLE)


def _llvm_version() -> str:
    return ".".join(map(str, llvm_version_info))


def compile_model(model: IntegerModel, isa: str = "auto") -> CompiledModel:
    """Compile a model for an instruction set; `auto` is the best that answers rightly.

    Raises:
        ParameterError: if there is none of that name, it does not run here, cannot be compiled or answers wrongly.
    """
    names = ("auto", *simd.INSTRUCTION_SETS, PORTABLE)
    if isa not in names:
        raise ParameterError(f"isa {isa!r}: expected one of {', '.join(names)}")
    available = available_isas()
    if isa != "auto" and isa not in available:
        raise ParameterError(f"isa {isa!r} does not run here; expected one of {', '.join(('auto', *available))}")
    for name in available if isa == "auto" else (isa,):
        try:
            compiled = CompiledModel(model, name)
            tiles = PLAIN if name == PORTABLE else compiled.program.tiles
            if all(answers_rightly(name, tile) for tile in tiles):
                return compiled
            what = "gives wrong answers here"
        except (RuntimeError, NumbaError) as error:  # of LLVM, of Numba
            what = f"cannot be compiled here ({' '.join(str(error).split())[:200]})"
        if isa == "auto":
            warnings.warn(f"isa {name!r} {what} and is passed over", stacklevel=2)
    raise ParameterError(f"isa {isa!r} {what}: expected one that computes what the reference engine does")


@lru_cache(maxsize=None)
def answers_rightly(isa: str, tile: Tile) -> bool:
    """Whether a tile computes its small model as the reference engine does, on every way it stores its results."""
    lanes = 1 if isa == PORTABLE else simd.INSTRUCTION_SETS[isa].lanes
    model = _question(lanes * tile.vectors + 4, tile.kind)
    shape = (5, *model.input.shape)
    images = (np.arange(np.prod(shape)) * 7919 % 511 - 128).astype(np.int32).reshape(shape)
    compiled = CompiledModel(model, isa, tile)
    return (isa == PORTABLE or tile in compiled.program.tiles) and np.array_equal(
        compiled.output(images), ReferenceModel(model).output(images)
    )


@lru_cache(maxsize=None)
def _question(channels: int, kind: str) -> IntegerModel:
    """Three convolutions: one is stored as bytes, one is added to it, one gives bare accumulators."""
    depthwise = kind != simd.DENSE
    height, width, step = (3, 3, 1)
    if kind == simd.QUADS:
        height = simd.MOST_ROWS + 1
    elif kind.startswith(simd.ROWS):
        height, width, step = simd.window_of(kind)
    window = (channels, height, width, 1 if depthwise else channels)
    output = Quantization("uint8", Fraction(1), 77, 3, 250)
    ratio = Requantization.of(quantize_multiplier(Fraction(1, 2)))
    layers: list[Layer] = [
        InputQuantization(
            name="input", shape=(6, 7 * step, channels if depthwise else 5), requantization=ratio, output=output
        ),
        _products("first", "input", (*window[:3], 1 if depthwise else 5), depthwise, (1, step)),
        _products("second", "first", window, depthwise, (1, 1)),
        Add(
            name="sum", inputs=("second", "first"), multiplier=np.array([715827883, 1431655765], np.int32), shift=31,
            output=output,
        ),
        _products("scores", "sum", window, depthwise, (2, 1), bare=True),
        Flatten(name="flat", inputs=("scores",)),
    ]  # fmt: skip
    return IntegerModel(tuple(layers))


def _products(
    name: str, source: str, shape: tuple[int, ...], depthwise: bool, strides: tuple[int, int], bare: bool = False
) -> Conv2D:
    """A convolution of weights of this shape that keeps the extent of what it reads, but for the strides."""
    taps = int(np.prod(shape[1:]))
    numbers = np.arange(shape[0] * taps, dtype=np.int64) * 2654435761 >> 7  # a multiplicative hash: any will do
    ratios = [quantize_multiplier(Fraction(1, 40 * taps + o)) for o in range(shape[0])]
    vertical, horizontal = shape[1] - 1, shape[2] - 1
    return Conv2D(
        name=name, inputs=(source,), weights=(numbers % 256 - 128).astype(np.int8).reshape(shape),
        bias=(numbers[: shape[0]] % 9973 - 5000).astype(np.int32),
        requantization=None if bare else Requantization.of(*ratios),
        output=Quantization.full_range("int32", Fraction(1), 0) if bare
        else Quantization("uint8", Fraction(1), 77, 3, 250),
        strides=strides, groups=shape[0] if depthwise else 1,
        padding=(vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2),
    )  # fmt: skip
