"""How kernels are compiled: one decorator over Numba's `njit`, and the question whether Numba is there at all.

A kernel calls only kernels of its own file: Numba's disk cache looks at the date of that one file, so a change in
another would leave stale machine code behind. A test holds every kernel to that, and reads the LLVM IR of each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable

#: Every kernel of the package that has been imported, in the order of import.
KERNELS: list[Any] = []


@lru_cache(maxsize=None)
def numba_available() -> bool:
    """Whether Numba can be imported (tried once)."""
    try:
        import numba  # noqa: F401
    except Exception:  # a Numba that does not fit this NumPy raises ImportError, SystemError or AttributeError
        return False
    return True


def jit_disabled() -> bool:
    """Whether kernels would run as plain Python (`NUMBA_DISABLE_JIT=1`): right to the bit, and very slow."""
    from numba.core import config

    return bool(getattr(config, "DISABLE_JIT"))


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` without Python objects and without the GIL; cache the machine code where a folder allows."""
    import numba

    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        compiled = numba.njit(nogil=True)(function)
    KERNELS.append(compiled)
    return compiled
