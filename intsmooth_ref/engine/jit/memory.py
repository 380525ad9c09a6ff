"""The memory of a compiled model, and how one of its steps reaches it.

A model is compiled to a list of steps: an operator and the place of its parameters. All operators read and write five
flat memories, three of which hold constants and are shared by all threads, two of which each thread has of its own:

    code          int64   parameters of the steps, 64-bit constants
    tables        int32   places of pixels, biases, constants of vectors
    octets        int8    packed weights
    activations   uint8   tensors of 8 bits
    accumulators  int32   tensors of 32 bits

An operator is a C function `(base, start, samples)`: `base` is the address of the five addresses, `start` the place of
its parameters in `code`, `samples` how many samples to compute. With the JIT off `base` is the `Memory` itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...compilation import jit_disabled, kernel


class Memory(NamedTuple):
    """The five memories, each a flat array."""

    code: np.ndarray
    tables: np.ndarray
    octets: np.ndarray
    activations: np.ndarray
    accumulators: np.ndarray


def base_of(memory: Memory) -> Any:
    """What operators take as `base`: int64 (5,) addresses. The memory must outlive it."""
    return memory if jit_disabled() else np.array([array.ctypes.data for array in memory], np.int64)


if jit_disabled():

    def arrays(base: Memory) -> Memory:
        return base

    def execute(calls: Any, base: Memory, samples: int) -> None:
        for operator, start in calls:
            operator.function(base, start, samples)

else:
    from llvmlite import ir
    from numba import carray, types
    from numba.extending import intrinsic

    #: The extent of a memory as its array sees it: it is not known, and nothing asks for it.
    _EXTENT = int(np.iinfo(np.intp).max) // 2

    @intrinsic
    def _pointer(typing: Any, address: Any, dtype: Any) -> Any:
        """The integer `address` as a pointer to `dtype`."""
        signature = types.CPointer(dtype.dtype)(address, dtype)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    @intrinsic
    def _call(typing: Any, address: Any, base: Any, start: Any, samples: Any) -> Any:
        """Call the operator at `address`."""
        signature = types.void(types.int64, types.int64, types.int64, types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            int64 = ir.IntType(64)
            operator = ir.FunctionType(ir.VoidType(), [int64, int64, int64]).as_pointer()
            builder.call(builder.inttoptr(arguments[0], operator), arguments[1:])
            return context.get_dummy_value()

        return signature, generate

    @kernel
    def arrays(base: int) -> Memory:
        """The five memories as arrays."""
        addresses = carray(_pointer(base, np.int64), 5)
        return Memory(
            carray(_pointer(addresses[0], np.int64), _EXTENT),
            carray(_pointer(addresses[1], np.int32), _EXTENT),
            carray(_pointer(addresses[2], np.int8), _EXTENT),
            carray(_pointer(addresses[3], np.uint8), _EXTENT),
            carray(_pointer(addresses[4], np.int32), _EXTENT),
        )

    @kernel
    def execute(calls: np.ndarray, base: np.ndarray, samples: int) -> None:
        """Run the steps, int64 (steps, 2) of operator address and start, on `samples` samples."""
        for step in range(calls.shape[0]):
            _call(calls[step, 0], base.ctypes.data, calls[step, 1], samples)


@kernel
def classify(
    calls: Any, base: Any, block: int, images: np.ndarray, noisy: np.ndarray, found: np.ndarray, classes: np.ndarray
) -> None:
    """Classify images, int32 `(N, elements)`, block by block, into `classes`.

    `noisy`, int32 `(block, elements)`, and `found` are where a program looks for its images and leaves its classes.
    """
    for begin in range(0, images.shape[0], block):
        samples = min(block, images.shape[0] - begin)
        for n in range(samples):
            for i in range(images.shape[1]):
                noisy[n, i] = images[begin + n, i]
        execute(calls, base, samples)
        for n in range(samples):
            classes[begin + n] = found[n]
