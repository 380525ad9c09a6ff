"""write a model for those who do not run this package: C99, NumPy arrays, ONNX

Integers only, and the same scores to the bit. `--to c` writes NAME.c and, beside it, NAME.h: without dependencies,
memory allocation or floating-point numbers. `--to npz` writes arrays with a description in JSON. `--to onnx` writes a
graph of integer operators; it needs the package onnx.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_model, open_model

if TYPE_CHECKING:
    from ..model.graph import IntegerModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--to", choices=("c", "npz", "onnx"), required=True, help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="where to write it; NAME.c gets the header NAME.h beside it, and the names in C begin"
                        " with NAME")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(options: argparse.Namespace) -> int:
    """Write the files; returns the exit status."""
    from ..errors import ParameterError
    from ..new_files import check_new, write_whole

    out: Path = options.out
    if out.suffix != f".{options.to}":
        raise ParameterError(f"{out}: expected a name that ends in .{options.to}")
    paths = [out, out.with_suffix(".h")] if options.to == "c" else [out]
    check_new(paths, options.overwrite, [options.model])
    contents = _contents(open_model(options.model).model, options.to, out.stem)
    for path, content in zip(paths, contents):
        write_whole(path, content)
        print(f"{path}: {len(content)} bytes")
    return 0


def _contents(model: IntegerModel, to: str, name: str) -> list[bytes]:
    """What the files hold: source and header in C, else the only one."""
    if to == "c":
        from ..export.c99 import c_program

        program = c_program(model, name)
        return [program.source.encode("ascii"), program.header.encode("ascii")]
    if to == "npz":
        from ..export.arrays import arrays_file

        return [arrays_file(model)]
    from ..export.onnx import onnx_file

    return [onnx_file(model)]
