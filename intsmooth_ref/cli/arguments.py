"""What the subcommands share: options, their types and defaults, and the embedded model and images."""

from __future__ import annotations

import argparse
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from ..errors import DatasetError

if TYPE_CHECKING:
    from ..certify.smoothing import SmoothedClassifier
    from ..dataset import Dataset
    from ..model.hdf5 import ModelFile

DEFAULT_SIGMA = "0.25"


#: Numbers of more characters, and powers of ten beyond, are refused before they are computed.
LENGTH_MAX = EXPONENT_MAX = 1000
#: Every radius that can be certified is far below: noise has at most four times full scale.
RADIUS_MAX = 10**6


def rational(text: str) -> Fraction:
    """A number such as 0.25, 1e-3 or 51/4, exactly."""
    try:
        if len(text) > LENGTH_MAX or abs(int(text.lower().partition("e")[2] or 0)) > EXPONENT_MAX:
            raise argparse.ArgumentTypeError(
                f"{text:.30}{'...' * (len(text) > 30)}: expected at most {LENGTH_MAX} characters, and an exponent of at"
                f" most {EXPONENT_MAX}"
            )
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected one such as 0.25 or 51/4") from None


def rationals(text: str) -> list[Fraction]:
    """Radii as fractions of full scale, separated by commas, as 0.25,1/2."""
    radii = [rational(each) for each in text.split(",")]
    for each, radius in zip(text.split(","), radii):
        if not 0 <= radius <= RADIUS_MAX:
            raise argparse.ArgumentTypeError(f"radius {each}: expected 0 to {RADIUS_MAX} times full scale")
    return radii


def integer_from(minimum: int) -> Callable[[str], int]:
    """A type of argument: integers from `minimum` on."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, at least {minimum}")
        return value

    return integer


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL",
                        help="model file (HDF5); default: the embedded network for handwritten digits")  # fmt: skip


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=("auto", "jit", "reference"), default="auto",
                        help="compiled or plain NumPy; changes no bit (default: auto, jit where Numba is)")  # fmt: skip
    parser.add_argument("--isa", metavar="NAME",
                        help="instruction set of the compiled engine: avx512vnni, avxvnni, avx2, dotprod, neon or"
                        " portable; changes no bit (default: $INTSMOOTH_ISA, or the best here)")  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=integer_from(1), metavar="B",
                        help="samples computed at a time; changes no bit (default: by the network's size)")  # fmt: skip
    parser.add_argument("--threads", type=integer_from(1), metavar="T",
                        help="changes no bit (default: one a processor)")  # fmt: skip


def add_noise(parser: argparse.ArgumentParser, default: str) -> None:
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("--sigma", type=rational, metavar="S",
                       help=f"noise as a fraction of full scale (default: {default})")  # fmt: skip
    noise.add_argument("--sigma-levels", type=rational, metavar="S",
                       help="noise in grey levels instead: 63.75 is the same as --sigma 0.25")  # fmt: skip
    noise.add_argument("--scale", type=rational, metavar="B",
                       help="discrete Laplace noise of this scale instead, as a fraction of full scale; its radii are"
                       " in the L1 norm")  # fmt: skip
    noise.add_argument("--scale-levels", type=rational, metavar="B",
                       help="discrete Laplace noise, its scale in grey levels")  # fmt: skip


def add_sampling(parser: argparse.ArgumentParser, purpose: str) -> None:
    """The options that predict and certify have in common."""
    add_model(parser)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA",
                        help="images: a dataset file (HDF5), .npz or .npy; default: the embedded digits")  # fmt: skip
    add_noise(parser, DEFAULT_SIGMA)
    parser.add_argument("--n", type=integer_from(1), default=1000, metavar="N",
                        help=f"samples that {purpose} (default: 1000; published figures use 100000)")  # fmt: skip
    parser.add_argument("--alpha", type=rational, default=Fraction(1, 1000), metavar="A",
                        help="probability that an image's result may be wrong (default: 0.001)")  # fmt: skip
    parser.add_argument("--skip", type=integer_from(1), default=1, metavar="K",
                        help="take every K-th image (default: 1, all)")  # fmt: skip
    parser.add_argument("--max", type=integer_from(1), metavar="M",
                        help="stop after M images; what --skip leaves out is not counted (default: all)")  # fmt: skip
    parser.add_argument("--split", metavar="NAME",
                        help="which split of a dataset file (default: test, or the only one)")  # fmt: skip
    parser.add_argument("--seed", type=integer_from(0), metavar="S",
                        help="0 to 2**64-1; the same seed gives the same bits (default: drawn by the system"
                        " and recorded)")  # fmt: skip
    add_threads(parser)
    add_engine(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.tsv",
                        help="write the table here, and records beside it as FILE.jsonl (default: the table to"
                        " standard output); earlier results are moved aside, not overwritten")  # fmt: skip
    parser.add_argument("--resume", action="store_true",
                        help="go on with the interrupted run in --out, to the same bytes")  # fmt: skip


def embedded_file(name: str) -> Path:
    """A file of the embedded model and images."""
    return Path(str(resources.files("intsmooth_ref.weights") / name))


def open_model(path: Path | None) -> ModelFile:
    from ..model.hdf5 import load_model

    return load_model(path or embedded_file("digits.h5"))


def open_data(path: Path | None, split: str | None, model_path: Path | None) -> Dataset:
    from ..dataset import load_dataset

    if path is None and model_path is not None:
        raise DatasetError(f"no images for {model_path}: expected a data file after the model")
    return load_dataset(path or embedded_file("digits-images.h5"), split)


def open_classifier(options: argparse.Namespace, seed: int | None) -> SmoothedClassifier:
    from ..certify.smoothing import SmoothedClassifier

    given = {name: getattr(options, name) for name in ("sigma", "sigma_levels", "scale", "scale_levels")}
    if not any(value is not None for value in given.values()):
        given["sigma"] = DEFAULT_SIGMA
    return SmoothedClassifier(
        open_model(options.model).model, **given, seed=seed,
        engine=options.engine, isa=options.isa, threads=options.threads, batch=options.batch,
    )  # fmt: skip
