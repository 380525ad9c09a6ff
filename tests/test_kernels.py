"""Kernels hold no floating-point type or instruction, and compiled code is kept exactly as long as it is right."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import astuple
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from intsmooth_ref.audit.floating_point import floating_point_in, instructions
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import ESTIMATION, noise_table, sample
from threshold_model import classes_by_hand, flat_image

pytest.importorskip("numba")

TESTS, PACKAGE = Path(__file__).parent, Path(__import__("intsmooth_ref").__file__).parent


def run_python(script, folder, **environment):
    """The standard output of a script that runs in `folder`, whose packages come first."""
    path = os.pathsep.join([str(folder), str(TESTS), *filter(None, sys.path)])
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", "PYTHONPATH": path, **environment}
    run = subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


# --- no floating point ------------------------------------------------------------------------------------------------

# Compiles every kernel afresh (code from the disk cache shows no LLVM IR): the plain loops by running random models
# until all have come up, every tile of every instruction set, the loops around them, noise through every level. Prints
# the IR of all that came up: of a kernel one a signature, of an operator one.
COMPILE_EVERYTHING = """
import json, sys
from dataclasses import astuple
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.audit.floating_point import compiled_versions
from intsmooth_ref.compilation import Operator
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.jit import operators, simd
from intsmooth_ref.noise import kernels
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table
from random_models import images_for, models
from threshold_model import flat_image, threshold_model
from tiles import VECTOR_ISAS, WINDOWS, tiles_of

@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(models())
def run(model):
    images = images_for(model, np.random.default_rng(0), 1)
    engine = Engine(model, "jit", "portable")
    engine.output(images), engine.classify(images)

plain_loops = [each for each in vars(operators).values() if isinstance(each, Operator)]
for number in range(20):
    if not all(hasattr(each, "compiled") for each in plain_loops):
        seed(number)(run)()
for isa in VECTOR_ISAS:
    for tile in tiles_of(isa, WINDOWS[:2]):
        operators.convolution(isa, *astuple(tile)).address
    simd._peak_loop(isa)(1, np.ones(256, np.uint8))
    Engine(threshold_model(), "jit", isa).classify(np.zeros((1, 3, 3, 1), np.int32))
SmoothedClassifier(threshold_model(), "0.25", seed=1, engine="jit").votes(flat_image(128), 9, stage=0, index=0)
kernels.add_noise(noise_table(discrete_gaussian(64)), np.zeros(1000, np.uint8), 1, 2, 0, 3, 4)
json.dump(compiled_versions(), sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numba")
    return json.loads(run_python(COMPILE_EVERYTHING, folder, NUMBA_CACHE_DIR=str(folder)))


def functions_of(decorator):
    """Names of the functions at the top of the package's modules that bear this decorator, with their modules."""
    return {
        f"{'.'.join(['intsmooth_ref', *path.relative_to(PACKAGE).with_suffix('').parts])}.{node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
        if any(getattr(each, "id", "") == decorator for each in node.decorator_list)
    }  # fmt: skip


@pytest.mark.slow
def test_no_kernel_contains_a_floating_point_type_or_instruction(compiled):
    for name, versions in compiled:
        assert versions, f"{name} was never compiled"
        for ir in versions:
            assert any(line.startswith("define") for line in instructions(ir)), name
            found = floating_point_in(ir)
            assert not found, (name, found[:3])


@pytest.mark.slow
def test_every_kernel_operator_and_tile_was_searched(compiled):
    from intsmooth_ref.engine.jit import operators
    from tiles import VECTOR_ISAS, WINDOWS, tiles_of

    names = [name for name, _ in compiled]
    assert functions_of("kernel") | functions_of("Operator") <= set(names)
    for isa in VECTOR_ISAS:
        for tile in tiles_of(isa, WINDOWS[:2]):
            name = operators.convolution(isa, *astuple(tile)).__name__
            assert f"{operators.__name__}.{name}" in names
    assert names.count("intsmooth_ref.engine.jit.simd.loop") >= len(VECTOR_ISAS)


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
    assert floating_point_in(str(ir))


# --- code on disk -----------------------------------------------------------------------------------------------------

VOTES = """
import json
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.compilation import KERNELS
from threshold_model import flat_image, threshold_model

classifier = SmoothedClassifier(threshold_model(), "0.25", seed=7, engine="jit", isa="portable", threads=1)
votes = classifier.votes(flat_image(120), 40, stage=1, index=3)
hits = {each.__name__: sum(each.stats.cache_hits.values()) if hasattr(each, "stats") else each.cache_hits
        for each in KERNELS if not hasattr(each, "stats") or each.signatures}
print(json.dumps([votes.tolist(), hits]))
"""


@pytest.fixture
def copied_package(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "intsmooth_ref", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
def test_machine_code_is_kept_until_any_file_with_kernels_changes(copied_package):
    """Noise is added by a kernel of `noise.kernels`, which is part of the code of one of `certify.vote_kernel`."""
    changed_file = copied_package / "intsmooth_ref/noise/kernels.py"
    text = changed_file.read_text("utf-8")
    changed = text.replace("noisy[offset] = np.int32(pixels[offset])", "noisy[offset] = 9 + np.int32(pixels[offset])")
    assert changed != text
    noise = sample(noise_table(discrete_gaussian(Fraction(255, 4))), 7, 3, ESTIMATION, 0, 40, 9)

    def expected(level):
        return np.bincount(classes_by_hand(flat_image(level), noise), minlength=2).tolist()

    def votes_and_hits():
        cache = {"NUMBA_CACHE_DIR": str(copied_package / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        return json.loads(run_python(VOTES, copied_package, **cache))

    assert expected(120) != expected(129)
    votes, hits = votes_and_hits()
    assert votes == expected(120) and set(hits.values()) == {0} and "cast_votes" in hits
    votes, hits = votes_and_hits()
    assert votes == expected(120) and hits["cast_votes"] == hits["accumulate"] == hits["quantize_input"] == 1
    changed_file.write_text(changed, "utf-8")
    votes, hits = votes_and_hits()
    assert votes == expected(129) and set(hits.values()) == {0}
    changed_file.write_text(text, "utf-8")
    votes, hits = votes_and_hits()
    assert votes == expected(120) and set(hits.values()) == {0}


def modules_imported_by(path):
    """The files of the package from which a module imports at its top level, or inside an `if` or `try` there."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            base = folder.joinpath(*(node.module or "").split("."))
            yield from filter(Path.is_file, [base.with_suffix(".py"), *(base / f"{a.name}.py" for a in node.names)])


def test_the_files_whose_change_throws_code_away_are_all_that_kernels_stand_in_or_read():
    from intsmooth_ref import compilation

    stamped = {path.resolve() for room in compilation._KERNEL_ROOMS for path in (PACKAGE / room).glob("*.py")}
    todo = [
        path.resolve() for path in PACKAGE.rglob("*.py")
        if re.search(r"^ *@(kernel|Operator|intrinsic)\b|\b(kernel|Operator)\(", path.read_text("utf-8"), re.MULTILINE)
    ]  # fmt: skip
    assert len(todo) >= 5
    seen = set()
    while todo:
        path = todo.pop()
        seen.add(path)
        todo += [each.resolve() for each in modules_imported_by(path) if each.resolve() not in seen]
    assert seen <= stamped


WITHOUT_A_CACHE_FOLDER = """
from numba.core import caching

def refuse(self):
    raise OSError("read-only file system")

caching._CacheLocator.ensure_cache_path = refuse
import numpy as np
from intsmooth_ref.engine import Engine
from threshold_model import threshold_model
images = np.array([127, 128, 129], np.int32)[:, None, None, None].repeat(3, 1).repeat(3, 2)
print(Engine(threshold_model(), "jit", "portable").classify(images).tolist())
"""


def test_kernels_run_where_no_cache_folder_can_be_written(tmp_path):
    """A pixel is halved and rounded up, so that 129 is the first level that exceeds 128 / 2 nine times."""
    assert run_python(WITHOUT_A_CACHE_FOLDER, tmp_path) == "[0, 0, 1]\n"
