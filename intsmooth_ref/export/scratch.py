"""Where each tensor lies in scratch memory: tensors that are never needed at the same time share it.

A tensor lives from the layer that writes it to the last that reads it. `Flatten` and `Reshape` change no element, so
their output lies where their input does. Tensors are placed by size, the largest first, each at the lowest offset where
it meets no tensor that lives while it does ("greedy by size"; Pisarchyk and Lee 2020, "Efficient Memory Management for
Deep Neural Net Inference", section 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Mapping, Sequence

from ..model.graph import IntegerModel
from ..model.layers import Flatten, Layer, Reshape


@dataclass(frozen=True)
class Tensor:
    """One layer's output in scratch memory.

    Attributes:
        words: it lies among int32 elements, not among those of 8 bits.
        offset, size: in elements.
    """

    words: bool
    offset: int
    size: int


@dataclass(frozen=True)
class ScratchPlan:
    """Where each tensor lies, and how many elements of 8 bits and of 32 bits that takes."""

    tensors: Mapping[str, Tensor]
    bytes: int
    words: int


@dataclass
class _Buffer:
    """Memory that one layer writes first, and its views besides, alive from `first` to `last`."""

    words: bool
    size: int
    first: int
    last: int
    offset: int = 0


def is_view(layer: Layer) -> bool:
    """Whether a layer's output holds the elements of its input in the same order."""
    return isinstance(layer, (Flatten, Reshape))


def plan_scratch(model: IntegerModel, layers: Sequence[Layer]) -> ScratchPlan:
    """Plan the memory of `layers`, the model's or its first ones, the last of which gives the result."""
    buffers: dict[str, _Buffer] = {}
    for number, layer in enumerate(layers):
        for name in layer.inputs:
            buffers[name].last = number
        if is_view(layer):
            buffers[layer.name] = buffers[layer.inputs[0]]
        else:
            proof = model.proofs[layer.name]
            buffers[layer.name] = _Buffer(proof.dtype == "int32", prod(proof.shape), number, number)
    distinct = list({id(buffer): buffer for buffer in buffers.values()}.values())
    extents = [_place([buffer for buffer in distinct if buffer.words == words]) for words in (False, True)]
    tensors = {name: Tensor(buffer.words, buffer.offset, buffer.size) for name, buffer in buffers.items()}
    return ScratchPlan(tensors, *extents)


def _place(buffers: Sequence[_Buffer]) -> int:
    """Give each buffer its offset; returns the number of elements that all of them take."""
    placed: list[_Buffer] = []
    for buffer in sorted(buffers, key=lambda each: (-each.size, each.first)):
        for other in placed:  # by offset: the first gap that is large enough
            if other.first <= buffer.last and buffer.first <= other.last:
                if buffer.offset + buffer.size <= other.offset:
                    break
                buffer.offset = max(buffer.offset, other.offset + other.size)
        placed.append(buffer)
        placed.sort(key=lambda each: each.offset)
    return max((buffer.offset + buffer.size for buffer in buffers), default=0)
