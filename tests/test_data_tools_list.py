"""The list of programs: each that can be run, none twice, and no command passes for one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from intsmooth_ref.data_tools import __main__ as listing

TOOLS = Path(listing.__file__).parent


def test_without_a_name_the_programs_are_listed_and_the_status_is_2() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "intsmooth_ref.data_tools"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m intsmooth_ref.data_tools.NAME [options]" in done.stderr
    assert not re.search(r"\|\s+(numpy|h5py|torch|PIL)$", done.stderr, re.MULTILINE)


def test_the_list_holds_every_program_and_a_line_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["--help"]) == 0
    captured = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in captured.out.splitlines() if line.startswith("    ")]
    runnable = [path.stem for path in TOOLS.glob("*.py") if "sys.exit(main())" in path.read_text("utf-8")]
    assert [name for name, _ in lines] == sorted(set(runnable) - {"__main__"}) and captured.err == ""
    assert dict(lines)["image_folder"] == "A folder of images to a dataset file"
    assert all(10 < len(purpose) < 80 and not re.search(r"[`:.]", purpose) for _, purpose in lines)


@pytest.mark.parametrize("given", [[], ["quantize"], ["--help", "quantize"]])
def test_a_name_as_an_argument_runs_nothing(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(given) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "NAME is one of these" in captured.err
