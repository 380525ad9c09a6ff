"""Kernels hold no floating-point type or instruction, and call no kernel of another file."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

# Compiles every kernel afresh (code from the disk cache shows no LLVM IR), by running random models of every layer kind
# and noise through every level, and prints the IR of all signatures that came up.
COMPILE_EVERYTHING = """
import json, sys
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import intsmooth_ref.engine.jit.operators
import intsmooth_ref.noise.kernels as kernels
from intsmooth_ref.compilation import KERNELS
from intsmooth_ref.engine import Engine
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table
from random_models import images_for, models

@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(models())
def run(model):
    Engine(model, "jit").output(images_for(model, np.random.default_rng(0), 1))

run()
kernels.add_noise(noise_table(discrete_gaussian(64)), np.zeros(1000, np.uint8), 1, 2, 0, 3, 4)
ir = {f"{k.py_func.__module__}.{k.__name__}": [str(ir) for ir in k.inspect_llvm().values()] for k in KERNELS}
json.dump(ir, sys.stdout)
"""

FLOATING_POINT = re.compile(
    r"\b(half|bfloat|float|double|x86_fp80|fp128|ppc_fp128)\b"
    r"|\b(fadd|fsub|fmul|fdiv|frem|fneg|fcmp|fpext|fptrunc|sitofp|uitofp|fptosi|fptoui)\b"
)


def instructions(ir):
    """The IR without names, strings, comments, metadata and attributes, in which words may stand that mean nothing."""
    for line in ir.splitlines():
        if not line.startswith((";", "!", "attributes", "source_filename", "target")):
            yield re.sub(r'"[^"]*"|[@%$][-\w.$]+|;.*$|![-\w.]+', "", line)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("numba")), "NUMBA_DISABLE_JIT": "0",
                   "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    run = subprocess.run([sys.executable, "-c", COMPILE_EVERYTHING], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_no_kernel_contains_a_floating_point_type_or_instruction(compiled):
    for name, versions in compiled.items():
        assert versions, f"{name} was never compiled"
        for ir in versions:
            lines = list(instructions(ir))
            assert any(line.startswith("define") for line in lines), name
            found = [line for line in lines if FLOATING_POINT.search(line)]
            assert not found, (name, found[:3])


@pytest.mark.slow
def test_the_search_finds_floating_point_where_there_is_some():
    import numba

    @numba.njit
    def quotient(a, b):
        return a / b

    if numba.config.DISABLE_JIT:
        pytest.skip("nothing is compiled with the JIT off")
    quotient(1, 2)
    (ir,) = quotient.inspect_llvm().values()
    assert any(FLOATING_POINT.search(line) for line in instructions(str(ir)))


def kernel_files():
    package = Path(__import__("intsmooth_ref").__file__).parent
    return [path for path in package.rglob("*.py") if "@kernel" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", kernel_files(), ids=lambda path: path.parent.name + "/" + path.name)
def test_kernels_call_only_kernels_of_their_own_file(path):
    """Numba's cache looks at one file's date: a kernel of another file could change unnoticed."""
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }  # fmt: skip
    kernels = [
        node for node in tree.body
        if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "kernel" for d in node.decorator_list)
    ]  # fmt: skip
    assert kernels
    allowed = {"np"} | {name for name in imported if name.isupper()}
    for function in kernels:
        names = {node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        assert names & imported <= allowed, function.name


WITHOUT_A_CACHE_FOLDER = """
from numba.core import caching

def refuse(self):
    raise OSError("read-only file system")

caching._CacheLocator.ensure_cache_path = refuse
import numpy as np
from intsmooth_ref.engine.jit import operators
out = np.empty(2, np.int32)
operators.arg_max(np.array([[1, 3, 3], [2, 1, 0]], np.int32), out)
print(out.tolist())
"""


def test_kernels_run_where_no_cache_folder_can_be_written():
    run = subprocess.run([sys.executable, "-c", WITHOUT_A_CACHE_FOLDER], capture_output=True, text=True)
    assert run.stdout == "[1, 0]\n", run.stderr
