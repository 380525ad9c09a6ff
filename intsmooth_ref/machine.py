"""The machine that a measurement or a certificate was made on, described for people: nothing here decides a result."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Iterable

from . import __version__


@lru_cache(maxsize=None)
def cpu_model() -> str:
    """The processor's name, as far as the system tells it, in printable ASCII."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            fields = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        fields = []
    models = [value.strip() for name, value in fields if name.strip() == "model name"]
    name = models[0] if models else platform.processor() or platform.machine()
    return "".join(character if " " <= character <= "~" else "?" for character in name)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this package, and of those of the others that are installed."""
    found = {name: _version(name) for name in packages}
    return {"intsmooth_ref": __version__, **{name: value for name, value in found.items() if value is not None}}


@lru_cache(maxsize=None)
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
