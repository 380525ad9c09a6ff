"""The engines: two ways to compute a model, equal to the bit.

`reference` is the specification in plain NumPy; `jit` is compiled by Numba, for the best of the instruction sets that
this machine runs (`jit/simd.py`), or for the one that is asked for.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Iterator

import numpy as np

from ..compilation import jit_disabled, numba_available
from ..errors import DatasetError, ParameterError
from ..model.graph import IntegerModel
from .reference import ReferenceModel

if TYPE_CHECKING:
    from .jit import CompiledModel

ENGINES = ("auto", "jit", "reference")

#: Environment variable: the instruction set, where no argument names one.
ISA_VARIABLE = "INTSMOOTH_ISA"


class Engine:
    """A model made ready to run. May be used by several threads at once.

    Attributes:
        name: `jit` or `reference`.
        isa: the instruction set that the compiled engine uses, `portable` for its plain loops; of the reference
            engine, `numpy`.
        compiled: what the compiled engine made of the model, else None.
    """

    def __init__(self, model: IntegerModel, name: str = "auto", isa: str | None = None) -> None:
        """Prepare `model` for the named engine; `auto` is `jit` where Numba can compile.

        Args:
            isa: the instruction set; by default what the environment variable INTSMOOTH_ISA names, or the best.

        Raises:
            ParameterError: if there is no engine or instruction set of that name, or it does not run here.
        """
        self.model = model
        self.name = resolve_engine(name)
        self.compiled: CompiledModel | None = None
        self.isa = "numpy"
        if self.name == "jit":
            from .jit.selection import compile_model

            self.compiled = compile_model(model, isa or os.environ.get(ISA_VARIABLE) or "auto")
            self.isa = self.compiled.isa
        self._ready = self.compiled or ReferenceModel(model)

    def trace(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Compute layer by layer: yields each layer's name and output `(N, ...)`.

        Args:
            images: int32 `(N, H, W, C)`, noisy images in grey levels, within `-2**20 .. 2**20`, for which the model is
                proven.

        Raises:
            DatasetError: if they have another dtype or shape.
        """
        self._check(images)
        yield from self._ready.trace(images)

    def output(self, images: np.ndarray) -> np.ndarray:
        """The last layer's output: scores `(N, classes)`, or `(N,)` where the model ends in an `ArgMax`."""
        self._check(images)
        return self._ready.output(images)

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, int32 `(N,)`: the index of the largest score, the lowest one in a tie."""
        self._check(images)
        return self._ready.classify(images)

    def _check(self, images: np.ndarray) -> None:
        shape = self.model.input.shape
        if images.dtype != np.int32 or images.shape[1:] != shape:
            raise DatasetError(f"images: found {images.dtype} {images.shape}, expected int32 (N, *{shape})")


def resolve_engine(name: str) -> str:
    """`jit` or `reference`; says once, as a warning, when `auto` has to do without Numba."""
    if name not in ENGINES:
        raise ParameterError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    if name == "jit" and not numba_available():
        raise ParameterError("engine 'jit' needs Numba, which cannot be imported here; expected engine 'reference'")
    if name != "auto":
        return name
    if not numba_available():
        return _without_numba()
    return "reference" if jit_disabled() else "jit"


@lru_cache(maxsize=None)
def _without_numba() -> str:
    warnings.warn("Numba cannot be imported: using the reference engine, which is slower", stacklevel=3)
    return "reference"
