"""Damaged files, and reading them where a crash or a hang of a library is noticed and goes no further."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any, Callable

SEED = 20261122
SECONDS = 120


def damaged(content: bytes, corruptions: int) -> list[bytes]:
    """Cut off at every 50th byte, and with single bytes changed."""
    pick = random.Random(SEED)
    variants = [content[:length] for length in range(0, len(content), 50)]
    for _ in range(corruptions):
        position, flip = pick.randrange(len(content)), pick.randrange(1, 256)
        variants.append(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
    return variants


def unsealed(path: Path) -> Path:
    """Without its seal a file may be edited; with it, an edit is damage."""
    path.write_bytes(path.read_bytes()[:-86])
    return path


def run_elsewhere(function: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """In a process of its own: a library that crashes or hangs on a damaged file fails one test, not the run."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments, kwargs=options)
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
