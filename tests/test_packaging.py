"""The package installs with its weights and tools, imports lightly, and works where Numba cannot be imported."""

import configparser
import doctest
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def python(code):
    return run(sys.executable, "-c", code)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["numpy", "scipy", "numba", "h5py", "PIL"]
    assert python(f"import sys, intsmooth_ref; print(set({heavy}) & set(sys.modules))").stdout == "set()\n"


def test_every_public_name_can_be_used():
    code = "import intsmooth_ref as r; print(all(getattr(r, n) for n in r.__all__), set(r.__all__) <= set(dir(r)))"
    assert python(code).stdout == "True True\n"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert "has no attribute 'nothing'" in python("import intsmooth_ref; intsmooth_ref.nothing").stderr


def test_without_numba_the_reference_engine_serves_and_says_so_once():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from intsmooth_ref.cli import main\n"
        "sys.exit(main(['certify', '--max', '2', '--n', '20', '--seed', '1']))"
    )
    without = python(code)
    assert without.returncode == 0
    assert without.stderr.count("Numba cannot be imported: using the reference engine") == 1
    certified = run(sys.executable, "-m", "intsmooth_ref", "certify", "--max", "2", "--n", "20", "--seed", "1")
    assert [line.split("\t")[:-1] for line in without.stdout.splitlines()] == [
        line.split("\t")[:-1] for line in certified.stdout.splitlines()
    ]


def test_with_the_jit_off_the_reference_engine_serves():
    code = "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'\nfrom intsmooth_ref.engine import resolve_engine\n"
    served = python(code + "print(resolve_engine('auto'), resolve_engine('jit'))")
    assert served.stdout == "reference jit\n"


def test_asking_for_the_compiled_engine_without_numba_is_refused():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from intsmooth_ref.cli import main\n"
        "sys.exit(main(['certify', '--engine', 'jit']))"
    )
    refused = python(code)
    assert refused.returncode == 1 and "engine 'jit' needs Numba" in refused.stderr and refused.stderr.count("\n") == 1


def test_the_five_run_time_dependencies_are_all_there_are():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    names = sorted(line.split(">=")[0] for line in config["options"]["install_requires"].split())
    assert names == ["h5py", "numba", "numpy", "pillow", "scipy"]


def lend_dependencies(site_packages, folder):
    """Let another environment import all that is installed in this one, but for the package itself."""
    folder.mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "intsmooth" not in each.name and each.suffix != ".pth":
            (folder / each.name).symlink_to(each)
    (site_packages / "dependencies.pth").write_text(f"{folder}\n")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_installed_away_from_the_checkout_it_does_the_main_job_from_any_folder(how, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    environment = tmp_path / "environment"
    assert run(sys.executable, "-m", "venv", environment).returncode == 0
    scripts = environment / "bin"
    own = Path(run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    lend_dependencies(own, tmp_path / "dependencies")
    arguments = ["-q", "--no-deps", "--ignore-installed", *(["-e"] if how == "editable" else []), source]
    installed = run(scripts / "python", "-m", "pip", "install", *arguments)
    assert installed.returncode == 0, installed.stderr
    if how == "wheel":
        shutil.rmtree(source)
    elsewhere = {"cwd": tmp_path, "env": {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}}
    for command in (
        [scripts / "intsmooth-ref", "certify", "--max", "2", "--seed", "1", "--out", "a.tsv"],
        [scripts / "intsmooth-ref", "inspect", "--check"],
        [scripts / "python", "-m", "intsmooth_ref.data_tools.image_folder", "--help"],
    ):
        done = run(*command, **elsewhere)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.tsv").read_text().count("\n") == 3
    folder = run(scripts / "python", "-c", "import intsmooth_ref.weights as w; print(*w.__path__)", **elsewhere).stdout
    assert str(own if how == "wheel" else source) in folder


def test_readme_prints_two_commands_for_a_fresh_machine():
    section = (ROOT / "README.md").read_text("utf-8").split("## Two commands")[1].split("\n## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and all(command.startswith("pip install") for command in commands)
    assert commands[0].endswith("&& intsmooth-ref certify") and commands[1].endswith("&& pytest")


def test_readmes_example_gives_what_its_comment_says():
    example = (ROOT / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    shown = example.split("\n# ")[1].split(":")[0]
    assert run(sys.executable, "-c", example, cwd=ROOT).stdout == f"{shown}\n"


@pytest.mark.parametrize("module", ["fixedpoint", "certify.radius", "data_tools.quantization"])
def test_worked_examples_in_docstrings_are_right(module):
    tried = doctest.testmod(import_module(f"intsmooth_ref.{module}"))
    assert tried.attempted > 0 and tried.failed == 0


def test_the_embedded_images_have_the_same_records_everywhere(tmp_path):
    """The hash that `weights/README.md` gives, found on five kinds of CPU."""
    card = (ROOT / "weights" / "README.md").read_text("utf-8")
    stated = r"`intsmooth-ref (certify --seed 7 --max 2[^`]*)` .*? `([0-9a-f]{64})`"
    command, digest = re.search(stated, card, re.DOTALL).groups()
    assert run(sys.executable, "-m", "intsmooth_ref", *command.split(), cwd=tmp_path).returncode == 0
    assert hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest() == digest
