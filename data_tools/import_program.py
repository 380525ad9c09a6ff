"""What both importers of quantized models do the same: options, a whole file or none, one line for what is wrong."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Callable, Sequence

from intsmooth_ref.cli.arguments import rational
from intsmooth_ref.data_tools.converter import file_content
from intsmooth_ref.data_tools.program import argument_parser, check_output, status_of
from intsmooth_ref.data_tools.integer_builder import ImportedModel, Normalization
from intsmooth_ref.dataset import FULL_SCALE
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.hdf5 import save_model

#: What an import needs.
ROOM = "some ten times what the weights take"

Importer = Callable[[argparse.Namespace, Normalization, Sequence[str]], ImportedModel]


def class_names_in(path: Path) -> tuple[str, ...]:
    """One name a line, UTF-8."""
    try:
        return tuple(file_content(path).decode().splitlines())
    except UnicodeDecodeError:
        raise ParameterError(f"{path}: found bytes that are not UTF-8; expected one class name a line") from None


def import_parser(program: str, documentation: str | None, metavar: str, description: str) -> argparse.ArgumentParser:
    parser = argument_parser(program, documentation)
    add = parser.add_argument
    add("file", type=Path, metavar=metavar, help=description)
    add("output", type=Path, metavar="OUT.h5", help="the integer model file to write")
    add("--overwrite", action="store_true", help="replace OUT.h5 if it exists")
    add("--mean", type=rational, default=Fraction(0), metavar="M", help="what was subtracted from images whose full "
        "scale is 1, from all channels alike (default: 0)")  # fmt: skip
    add("--nearest-mean", action="store_true", help="move a mean that lies between two steps of the input's grid to "
        "the nearer one; else it is refused, for no zero point can stand for it")  # fmt: skip
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--deviation", type=above_zero, metavar="D", help="by what they were then divided, all channels "
                       "alike (default: 1)")  # fmt: skip
    scale.add_argument("--input-scale", type=above_zero, metavar="S", help="instead of a deviation: what a grey level "
                       "is worth to the network (default: 1/255)")  # fmt: skip
    add("--class-names", type=Path, metavar="FILE", help="one name a line, in the order of the scores")
    return parser


def above_zero(text: str) -> Fraction:
    """A type of argument: `0.25` or `1/255`."""
    value = rational(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above zero")
    return value


def normalization_of(options: argparse.Namespace) -> Normalization:
    deviation = options.deviation or Fraction(1)
    if options.input_scale is not None:
        deviation = 1 / (FULL_SCALE * options.input_scale)
    return Normalization(options.mean, deviation, options.nearest_mean)


def run_import(options: argparse.Namespace, importer: Importer) -> int:
    """Import, write, say what was written; returns the exit status."""
    return status_of(lambda: _import(options, importer), options.output, room=ROOM)


def _import(options: argparse.Namespace, importer: Importer) -> None:
    output: Path = options.output
    check_output(options)
    names = class_names_in(options.class_names) if options.class_names else ()
    model = importer(options, normalization_of(options), names).model
    save_model(output, model)
    height, width, channels = model.input.shape
    print(f"{output}: {len(model.layers)} layers, {model.parameter_bytes} bytes of parameters, images "
          f"{height}x{width}x{channels}, {model.classes} classes")  # fmt: skip
    print(f"fingerprint {fingerprint(model)}")
