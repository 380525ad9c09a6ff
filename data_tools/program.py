"""The frame of every program here: its help is its module's documentation, what goes wrong is one line and a status.

The status is 1 for a bad input, 2 for wrong arguments, 130 for an interruption.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

from intsmooth_ref.cli.messages import one_line
from intsmooth_ref.errors import IntsmoothError
from intsmooth_ref.new_files import check_new

#: What PyTorch's errors say, whose type is no other than that of any error, when there is too little memory.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def argument_parser(name: str, documentation: str | None, usage: str | None = None) -> argparse.ArgumentParser:
    """A parser for `python -m intsmooth_ref.data_tools.NAME`, with the module's documentation as its help."""
    summary, _, details = (documentation or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m intsmooth_ref.data_tools.{name}", usage=usage,
        description=f"{summary.partition(':')[0]}.\n\n{details}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def check_output(options: argparse.Namespace) -> None:
    """Refuse, before anything is computed, an output that cannot be written, or that one of the other options reads.

    Args:
        options: with `output` and `overwrite`; whatever else holds a path is an input.

    Raises:
        ParameterError: as `check_new` says.
    """
    others = {name: value for name, value in vars(options).items() if name != "output"}
    check_new([options.output], options.overwrite, [each for each in others.values() if isinstance(each, Path)])


def say(line: str) -> None:
    """What a program says beside its results: one line, whatever the names in it hold."""
    show_progress("")
    print(one_line(line), file=sys.stderr, flush=True)


def show_progress(line: str) -> None:
    """Rewrite the line of progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{one_line(line)}", end="", file=sys.stderr, flush=True)


def status_of(
    work: Callable[[], object], output: Path, *, room: str, extra: str | None = None,
    interrupted: Callable[[], str] = lambda: "",
) -> int:  # fmt: skip
    """Do the work of a program; returns the exit status.

    Args:
        output: named in errors of the operating system that name no file.
        room: what should have had room in memory.
        extra: the extra without which the work cannot be imported.
        interrupted: what more there is to say after Ctrl-C, unless the interruption itself says it.
    """
    try:
        work()
    except ImportError as problem:
        if extra is None:
            raise
        return failed(f"{problem}; expected the extra `{extra}`: pip install 'intsmooth_ref[{extra}]'")
    except IntsmoothError as problem:
        return failed(str(problem))
    except OSError as problem:
        return failed(f"{problem.filename or output}: {problem.strerror or problem}")
    except (MemoryError, RuntimeError) as problem:
        if not lacks_memory(problem):
            raise
        return failed(f"found too little memory; expected {room}")
    except KeyboardInterrupt as interruption:
        say(f"interrupted{''.join(map(str, interruption.args)) or interrupted()}")
        return 130
    return 0


def failed(problem: str) -> int:
    """Say what went wrong; returns the exit status."""
    say(f"error: {problem}")
    return 1


def lacks_memory(problem: Exception) -> bool:
    """Whether it is for this that Python, PyTorch or a GPU's driver gave up."""
    return isinstance(problem, MemoryError) or any(phrase in str(problem) for phrase in OUT_OF_MEMORY)
