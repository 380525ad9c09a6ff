"""The command `intsmooth-ref`: one module a subcommand, each with `add_arguments` and `run`.

A wrong input ends in one line on standard error and an exit status other than 0, never in a traceback:
1 for what the package refuses (2 in verify, where 1 means refuted), 2 for wrong arguments, 70 for a fault of the
program, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import NoReturn, Sequence

from .. import __version__
from ..errors import IntsmoothError
from . import audit, bench, certify, export, inspect, predict, trace, vectors, verify
from .messages import PROGRAM, one_line, say

#: Environment variable: a fault of the program shows its traceback.
SHOW_TRACEBACK = "INTSMOOTH_TRACEBACK"
SUBCOMMANDS = (certify, verify, predict, inspect, audit, bench, trace, vectors, export)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"{self.prog}: error: {message} (see {self.prog} --help)") + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    _replace_closed_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(_parser().parse_args(arguments))
    except KeyboardInterrupt as interruption:
        return _fail(f"interrupted{''.join(map(str, interruption.args))}", 130)


def _replace_closed_streams() -> None:
    """Put standard streams that were closed, as by `2>&-`, to where everything is dropped.

    Else a file of results would get the number of one, and whatever a library writes there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Certified robustness of image classifiers, with integers only.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in SUBCOMMANDS:
        name = module.__name__.rpartition(".")[2]
        summary, _, details = (module.__doc__ or "").partition("\n\n")
        subparser = subparsers.add_parser(
            name, help=summary, description=f"{summary}\n\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run, refused=getattr(module, "REFUSED", 1))
    return parser


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except IntsmoothError as error:
        return _fail(str(error), options.refused)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: say nothing at exit either
        return 141
    except MemoryError:
        return _fail("out of memory; a smaller --batch or fewer --threads need less", options.refused)
    except OSError as error:
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", options.refused)
    except Exception as fault:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        what = " ".join(f"{type(fault).__name__}: {fault}".split())
        return _fail(f"a fault of this program: {what}; please report it, with what {SHOW_TRACEBACK}=1 shows", 70)


def _fail(message: str, status: int) -> int:
    say(message)
    return status


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(str(message))
