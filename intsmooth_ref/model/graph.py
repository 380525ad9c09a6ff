"""`IntegerModel`: layers in one validated, acyclic graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Mapping

import numpy as np

from .layers import ArgMax, Conv2D, InputQuantization, Layer, Linear, flat_fields
from .proof import TensorProof, prove


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A network of integers, proven when it is made.

    Each layer reads only layers before it, so the graph has no cycle. The first is the model's `InputQuantization`, the
    only one; the last is its output: an `ArgMax`, or scores `(classes,)` of which the largest decides, the lowest
    index winning a tie.

    Raises:
        ModelFormatError: which layer breaks which rule, what was found and what was expected.
    """

    layers: tuple[Layer, ...]
    class_names: tuple[str, ...] = ()
    provenance: str = ""
    proofs: Mapping[str, TensorProof] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "proofs", prove(self.layers, self.class_names))

    @property
    def input(self) -> InputQuantization:
        first = self.layers[0]
        assert isinstance(first, InputQuantization)  # proven
        return first

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @cached_property
    def multiply_adds(self) -> Mapping[str, int]:
        """How many products of a weight and an input each layer adds up for one sample, those with padding included."""
        return {
            layer.name: layer.weights[0].size * prod(self.proofs[layer.name].shape)
            if isinstance(layer, (Conv2D, Linear)) else 0
            for layer in self.layers
        }  # fmt: skip

    @cached_property
    def parameter_bytes(self) -> int:
        """What all arrays take: weights and biases, multipliers and shifts, tables."""
        values = (value for layer in self.layers for _, value in flat_fields(layer))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        scores = self.output.inputs[0] if isinstance(self.output, ArgMax) else self.output.name
        return self.proofs[scores].shape[0]
