"""How kernels are compiled: decorators over Numba's `njit` and `cfunc`, and the question whether Numba is there at all.

Compiled code is kept on disk. Numba asks only whether the file of a kernel has changed; here a kernel's code is thrown
away as soon as any file of the package that kernels stand in has changed, since kernels call each other across files.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Callable

#: Every kernel and operator of the package that has been compiled or is ready to be, in order.
KERNELS: list[Any] = []

#: The C signature of an operator: addresses of the memory, place of the parameters, number of samples.
OPERATOR_SIGNATURE = "void(int64, int64, int64)"

#: The rooms whose files hold kernels.
_KERNEL_ROOMS = (".", "noise", "engine/jit", "certify")


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


@lru_cache(maxsize=None)
def _stamp() -> str:
    """Changes with any file that holds kernels."""
    package = Path(__file__).parent
    files = sorted(path for room in _KERNEL_ROOMS for path in (package / room).glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _keep_on_disk(compiled: Any) -> None:
    """Keep the machine code where a folder allows; without the package's stamp it would not be safe to."""
    try:
        compiled.enable_caching()
        compiled._cache._cache_file._source_stamp = _stamp()
    except (RuntimeError, AttributeError):  # no folder can be written, or this Numba keeps its code another way
        from numba.core.caching import NullCache

        compiled._cache = NullCache()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` without Python objects and without the GIL, when it is first called."""
    import numba

    compiled = numba.njit(nogil=True)(function)
    if not jit_disabled():
        _keep_on_disk(compiled)
        KERNELS.append(compiled)
    return compiled


class Operator:
    """A function `(base, start, samples)` that compiled code calls by its address; compiled when that is asked for."""

    def __init__(self, function: Callable[[Any, int, int], None]) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__

    @cached_property
    def address(self) -> int:
        """The address of the compiled function."""
        from numba.core import sigutils
        from numba.core.ccallback import CFunc

        signature = sigutils.normalize_signature(OPERATOR_SIGNATURE)
        self.compiled = CFunc(self.function, signature, locals={}, options={})
        _keep_on_disk(self.compiled)
        self.compiled.compile()
        KERNELS.append(self.compiled)
        address = self.compiled.address
        assert address is not None
        return address
