"""The compiled path holds no floating-point type or instruction: a search of its LLVM IR, from votes down to products.

Code that was compiled earlier and kept on disk shows no IR. So a process of its own compiles a model afresh, with an
empty cache, counts the votes of one noisy image, and searches everything that came up: noise, the loops over samples,
and each operator that this model's layers are lowered to.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from ..compilation import KERNELS, jit_disabled
from ..engine import ISA_VARIABLE, resolve_engine
from ..errors import ParameterError
from ..model.graph import IntegerModel
from ..model.hdf5 import load_model, save_model

FLOATING_POINT = re.compile(
    r"\b(half|bfloat|float|double|x86_fp80|fp128|ppc_fp128)\b"
    r"|\b(fadd|fsub|fmul|fdiv|frem|fneg|fcmp|fpext|fptrunc|sitofp|uitofp|fptosi|fptoui)\b"
)

#: What the other process runs.
_SEARCH = "import sys; from intsmooth_ref.audit.floating_point import search; search(*sys.argv[1:])"


@dataclass(frozen=True)
class CompiledPath:
    """What was searched.

    Attributes:
        engine: `jit` or `reference`.
        isa: the instruction set of the vector variant that runs here, `portable` for plain loops, `numpy` for the
            reference engine.
        kernels: names of the compiled functions, in order.
        lines: of their LLVM IR.
        found: lines with floating point, each after the name of its function: none in a right build.
    """

    engine: str
    isa: str
    kernels: tuple[str, ...] = ()
    lines: int = 0
    found: tuple[str, ...] = ()


def instructions(ir: str) -> Iterator[str]:
    """The IR without names, strings, comments, metadata and attributes, in which words may stand that mean nothing."""
    for line in ir.splitlines():
        if not line.startswith((";", "!", "attributes", "source_filename", "target")):
            yield re.sub(r'"[^"]*"|[@%$][-\w.$]+|;.*$|![-\w.]+', "", line)


def floating_point_in(ir: str) -> list[str]:
    """The lines of a module that name a floating-point type or instruction."""
    return [line.strip() for line in instructions(ir) if FLOATING_POINT.search(line)]


def compiled_versions() -> list[tuple[str, list[str]]]:
    """Of each kernel that this process knows, its full name and the IR of each version that it has compiled."""
    found = []
    for kernel in KERNELS:
        ir: Any = kernel.inspect_llvm()
        versions = [ir] if isinstance(ir, str) else [str(each) for each in ir.values()]
        found.append((f"{kernel.__wrapped__.__module__}.{kernel.__name__}", versions))
    return found


class PathSearch:
    """The search in the other process, which goes on while something else is done.

    A context manager; leaving it ends the process.
    """

    def __init__(self, model: IntegerModel, engine: str = "auto", isa: str | None = None) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._engine = resolve_engine(engine)
        if self._engine == "reference" or jit_disabled():
            return
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        save_model(folder / "model.h5", model)
        name = isa or os.environ.get(ISA_VARIABLE) or "auto"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SEARCH, str(folder / "model.h5"), name], cwd=folder, text=True,
            env=_environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> PathSearch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._folder.cleanup()

    def result(self) -> CompiledPath:
        """What was found; waits for it.

        Raises:
            ParameterError: if the model cannot be compiled here.
        """
        if self._process is None:
            return CompiledPath(self._engine, "numpy" if self._engine == "reference" else "portable")
        out, error = self._process.communicate()
        if self._process.returncode:
            reason = (error.strip().splitlines() or [f"exit status {self._process.returncode}"])[-1]
            reason = reason.removeprefix(f"{ParameterError.__module__}.{ParameterError.__name__}: ")
            raise ParameterError(f"compiling the model to search its code: {reason}")
        record = json.loads(out)
        return CompiledPath(
            "jit", record["isa"], tuple(record["kernels"]), record["lines"], tuple(record["found"])
        )


def _environment(folder: Path) -> dict[str, str]:
    """Of the other process: the same packages, and an empty cache."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
    return {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def search(path: str, isa: str) -> None:
    """In the other process: compile the model of this file, vote once, search; print what was found as JSON."""
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier

    model = load_model(path).model
    classifier = SmoothedClassifier(model, sigma="0.25", seed=0, engine="jit", isa=isa, threads=1)
    classifier.votes(np.zeros(model.input.shape, np.uint8), 1, stage=0, index=0)
    kernels, lines, found = [], 0, []
    for name, versions in compiled_versions():
        for ir in versions:
            kernels.append(name)
            lines += sum(1 for _ in instructions(ir))
            found += [f"{name}: {line}" for line in floating_point_in(ir)]
    json.dump({"isa": classifier.engine.isa, "kernels": kernels, "lines": lines, "found": found}, sys.stdout)
