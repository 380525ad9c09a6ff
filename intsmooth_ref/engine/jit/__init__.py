"""The compiled engine: what `reference.py` specifies, as steps over flat memories.

    memory.py      the five memories, and how operators are called
    simd.py        vector instructions
    operators.py   what a step does
    layout.py      where tensors lie
    packing.py     weights and constants as operators read them
    program.py     what a model is lowered to
    lowering.py    from a model to a program
    selection.py   for which instruction set
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Any, Iterator

import numpy as np

from ...model.graph import IntegerModel
from .layout import byte_offset
from .lowering import lower
from .memory import Memory, base_of, classify, execute, jit_disabled
from .program import Program, Tile


class WorkSpace:
    """What one thread at a time works in: the memory of a program, and where images go in and classes come out.

    Attributes:
        noisy: int32 `(samples of a block, elements)`.
        classes: int32 `(samples of a block,)`.
    """

    def __init__(self, program: Program, elements: int) -> None:
        self.memory: Memory = program.memory()
        self.base = base_of(self.memory)
        words, samples = self.memory.accumulators, program.samples
        self.noisy = words[program.image : program.image + samples * elements].reshape(samples, elements)
        self.classes = words[program.classes : program.classes + samples]


@dataclass(frozen=True)
class StepTime:
    """What a step took.

    Attributes:
        layers: that it computes.
        kernel: name of its operator, the slowest if there are several.
        multiply_adds: a sample.
        seconds: a sample.
    """

    layers: tuple[str, ...]
    kernel: str
    multiply_adds: int
    seconds: float


class CompiledModel:
    """A model made ready for the compiled engine; several threads may use it at once.

    Attributes:
        isa: the instruction set.
    """

    def __init__(self, model: IntegerModel, isa: str, tile: Tile | None = None) -> None:
        self.model, self.isa = model, isa
        self.program = lower(model, isa, tile)
        self._elements = prod(model.input.shape)
        self.calls = callable_form(self.program)

    def work_space(self) -> WorkSpace:
        """What one thread at a time works in."""
        return WorkSpace(self.program, self._elements)

    def trace(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each layer's name and output; layers that are computed at one go otherwise are computed one by one."""
        program = lower(self.model, self.isa, keep_all=True)
        tensors = _run(self.model, program, images, [layer.name for layer in self.model.layers])
        yield from tensors.items()

    def output(self, images: np.ndarray) -> np.ndarray:
        """The last layer's output."""
        name = self.model.output.name
        return _run(self.model, self.program, images, [name])[name]

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, `(N,)`."""
        classes = np.empty(len(images), np.int32)
        space = self.work_space()
        flat = np.ascontiguousarray(images).reshape(len(images), self._elements)
        writable = flat if flat.flags.writeable else flat.copy()  # one compiled version serves every caller
        classify(self.calls, space.base, self.program.samples, writable, space.noisy, space.classes, classes)
        return classes

    def profile(self, images: np.ndarray, repeats: int) -> list[StepTime]:
        """The median time of each step over `repeats` runs on the first images."""
        count = min(len(images), self.program.samples)
        space = self.work_space()
        flat = images[:count].reshape(count, self._elements)
        seconds = np.empty((repeats, len(self.program.steps)))
        calls = [callable_form(self.program, step) for step in range(len(self.program.steps))]
        for turn in range(repeats):
            space.noisy[:count] = flat
            for index, call in enumerate(calls):
                begin = time.perf_counter()
                execute(call, space.base, count)
                seconds[turn, index] = time.perf_counter() - begin
        medians = np.median(seconds, axis=0) / count
        return [
            StepTime(step.layers, step.calls[0][0].__name__, step.multiply_adds, float(median))
            for step, median in zip(self.program.steps, medians)
        ]


def callable_form(program: Program, step: int | None = None) -> Any:
    """The calls of a program, or of one of its steps, as `execute` takes them."""
    steps = program.steps if step is None else program.steps[step : step + 1]
    calls = [call for each in steps for call in each.calls]
    if jit_disabled():
        return calls
    return np.array([(operator.address, start) for operator, start in calls], np.int64).reshape(-1, 2)


def _run(model: IntegerModel, program: Program, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Run a program on images, block by block, and copy the named layers' outputs."""
    elements = prod(model.input.shape)
    space, calls = WorkSpace(program, elements), callable_form(program)
    proofs = [model.proofs[name] for name in names]
    outputs = {name: np.empty((len(images), *proof.shape), proof.dtype) for name, proof in zip(names, proofs)}
    for begin in range(0, len(images), program.samples):
        block = images[begin : begin + program.samples]
        space.noisy[: len(block)] = block.reshape(len(block), elements)
        execute(calls, space.base, len(block))
        for name, proof in zip(names, proofs):
            outputs[name][begin : begin + len(block)] = _tensor(program, space, name, proof.dtype, len(block)).reshape(
                len(block), *proof.shape
            )
    return outputs


def _tensor(program: Program, space: WorkSpace, name: str, dtype: str, samples: int) -> np.ndarray:
    tensor = program.tensors.get(name)
    if tensor is None:  # of an ArgMax
        return space.classes[:samples]
    if tensor.wide:
        return tensor.view(space.memory.accumulators, samples)
    return (tensor.view(space.memory.activations, samples) - np.uint8(byte_offset(dtype))).view(dtype)
