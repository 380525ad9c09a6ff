"""The engines: two ways to compute a model, equal to the bit.

`reference` is the specification in plain NumPy; `jit` is compiled by Numba. Each offers `bind(layer, sources)`, the
function that computes one layer; walking the graph is the same for both and stands here.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib import import_module
from typing import Callable, Iterator

import numpy as np

from ..compilation import jit_disabled, numba_available
from ..errors import DatasetError, ParameterError
from ..model.graph import IntegerModel

ENGINES = ("auto", "jit", "reference")


class Engine:
    """A model made ready to run. May be used by several threads at once: nothing in it changes after it is made."""

    def __init__(self, model: IntegerModel, name: str = "auto") -> None:
        """Prepare `model` for the named engine; `auto` is `jit` where Numba can compile.

        Raises:
            ParameterError: if there is no engine of that name, or it needs Numba and there is none.
        """
        self.model = model
        self.name = resolve_engine(name)
        bind = import_module(f"{__name__}.{self.name}").bind
        self._steps: list[tuple[str, tuple[str, ...], Callable[..., np.ndarray]]] = [
            (layer.name, layer.inputs, bind(layer, [model.proofs[name] for name in layer.inputs]))
            for layer in model.layers
        ]
        self._last_use = {name: layer.name for layer in model.layers for name in layer.inputs}

    def trace(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Compute layer by layer: yields each layer's name and output `(N, ...)`.

        Args:
            images: int32 `(N, H, W, C)`, noisy images in grey levels, within `-2**20 .. 2**20`, for which the model is
                proven.

        Raises:
            DatasetError: if they have another dtype or shape.
        """
        shape = self.model.input.shape
        if images.dtype != np.int32 or images.shape[1:] != shape:
            raise DatasetError(f"images: found {images.dtype} {images.shape}, expected int32 (N, *{shape})")
        tensors: dict[str, np.ndarray] = {}
        for name, inputs, compute in self._steps:
            tensors[name] = compute(*(tensors[each] for each in inputs)) if inputs else compute(images)
            yield name, tensors[name]
            for each in inputs:
                if self._last_use[each] == name:
                    tensors.pop(each, None)

    def output(self, images: np.ndarray) -> np.ndarray:
        """The last layer's output: scores `(N, classes)`, or `(N,)` where the model ends in an `ArgMax`."""
        result = images
        for _, result in self.trace(images):
            pass
        return result

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, `(N,)`: the index of the largest score, the lowest one in a tie."""
        result = self.output(images)
        return result if result.ndim == 1 else result.argmax(axis=-1)


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
