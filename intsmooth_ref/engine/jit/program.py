"""What a model is lowered to: steps, constants, and where everything lies in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...compilation import Operator
from .layout import SLACK, Tensor
from .memory import Memory


@dataclass(frozen=True)
class Tile:
    """The register tile of a convolution of a kind (`simd.DENSE`, ...): pixels by vectors of output channels."""

    kind: str
    pixels: int
    vectors: int


@dataclass(frozen=True)
class Step:
    """What is computed at one go: these layers, by these calls, with so many multiply-adds a sample."""

    layers: tuple[str, ...]
    calls: tuple[tuple[Operator, int], ...]
    multiply_adds: int


@dataclass(frozen=True)
class Program:
    """A model made ready to run.

    Attributes:
        samples: how many samples one execution computes at most.
        code, tables, octets: the constant memories.
        bytes_, words: extent of the other two.
        borders: (begin, end, byte) of what must be filled in `activations` beforehand.
        image: place in `accumulators` of the noisy images, dense int32.
        classes: place in `accumulators` of the classes found.
        tensors: where layers' outputs are found afterwards.
        tiles: of its convolutions.
    """

    steps: tuple[Step, ...]
    samples: int
    code: np.ndarray
    tables: np.ndarray
    octets: np.ndarray
    bytes_: int
    words: int
    borders: tuple[tuple[int, int, int], ...]
    image: int
    classes: int
    tensors: dict[str, Tensor]
    tiles: frozenset[Tile]

    def memory(self) -> Memory:
        """The memory of one thread: the constants are shared."""
        activations = np.zeros(self.bytes_ + SLACK, np.uint8)
        for begin, end, value in self.borders:
            activations[begin:end] = value
        return Memory(self.code, self.tables, self.octets, activations, np.zeros(self.words + SLACK, np.int32))
