"""show every tensor that a model computes for one image

A line for each layer: name, kind, shape, dtype, smallest and largest value, and the SHA-256 of the elements, row-major
and little-endian. With --sigma (or another noise) the image is the very sample that `certify --seed S` casts a vote of:
the noise depends on seed, image, stage and sample alone. With --out the tensors themselves are written, the same bytes
every time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from .arguments import add_engine, add_model, add_noise, integer_from, open_data, open_model

if TYPE_CHECKING:
    import numpy as np

    from ..audit.trace import Trace
    from ..dataset import Dataset

STAGES = ("selection", "estimation", "prediction")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA",
                        help="images: a dataset file (HDF5), .npz or .npy; default: the embedded digits")  # fmt: skip
    parser.add_argument("--index", type=integer_from(0), default=0, metavar="I", help="which image (default: 0)")
    parser.add_argument("--split", metavar="NAME",
                        help="which split of a dataset file (default: test, or the only one)")  # fmt: skip
    add_noise(parser, "none")
    parser.add_argument("--seed", type=integer_from(0), metavar="S", help="of the noise, 0 to 2**64-1")
    parser.add_argument("--stage", choices=STAGES, help="of the noise (default: estimation)")
    parser.add_argument("--sample", type=integer_from(0), metavar="J", help="number of the sample (default: 0)")
    add_engine(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tensors to FILE.npz or FILE.h5")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(options: argparse.Namespace) -> int:
    """Compute and print the tensors of one image; returns the exit status."""
    from ..audit.trace import SUFFIXES, save_trace, trace
    from ..engine import Engine
    from ..errors import DatasetError, ParameterError
    from ..new_files import check_new

    if options.out is not None:
        if options.out.suffix not in SUFFIXES:
            raise ParameterError(f"{options.out}: expected a name that ends in {' or '.join(SUFFIXES)}")
        check_new([options.out], options.overwrite, [options.model, options.data])
    model = open_model(options.model).model
    data = open_data(options.data, options.split, options.model)
    if options.index >= len(data.images):
        raise DatasetError(f"image {options.index}: expected 0 to {len(data.images) - 1}")
    image, origin = _noisy_image(options, data)
    traced = trace(Engine(model, options.engine, options.isa), image, origin)
    _print(traced)
    if options.out is not None:
        save_trace(options.out, traced)
    return 0


def _noisy_image(options: argparse.Namespace, data: Dataset) -> tuple[np.ndarray, dict[str, int | str]]:
    """The image, int32 `(H, W, C)`, with its noise if there is any; and where it comes from."""
    import numpy as np

    from ..certify.smoothing import noise_of
    from ..errors import ParameterError
    from ..noise import sampler

    origin: dict[str, int | str] = {"index": options.index, "image_sha256": data.image_sha256(options.index)}
    pixels = data.images[options.index]
    parameters = {name: getattr(options, name) for name in ("sigma", "sigma_levels", "scale", "scale_levels")}
    if all(value is None for value in parameters.values()):
        for name in ("seed", "stage", "sample"):
            if getattr(options, name) is not None:
                raise ParameterError(f"--{name}: addresses noise; expected --sigma or --scale besides")
        return pixels.astype(np.int32), {**origin, "noise": "none"}
    if options.seed is None:
        raise ParameterError("--sigma or --scale: expected --seed besides, which decides the noise")
    law, stage, number = noise_of(parameters), options.stage or "estimation", options.sample or 0
    stages = dict(zip(STAGES, (sampler.SELECTION, sampler.ESTIMATION, sampler.PREDICTION)))
    flat = np.ascontiguousarray(pixels).reshape(-1)
    table = sampler.noise_table(law)
    noisy = sampler.add_noise(table, flat, options.seed, options.index, stages[stage], number, 1)
    address = {"seed": str(options.seed), "stage": stage, "sample": number}
    return noisy.reshape(pixels.shape), {**origin, "noise": law.name, "parameter": str(law.parameter), **address}


def _print(traced: Trace) -> None:
    rows = [("layer", "kind", "shape", "dtype", "min", "max", "SHA-256")]
    for each in traced.tensors:
        shape = "x".join(map(str, each.output.shape[1:])) or "-"
        low, high = str(each.output.min()), str(each.output.max())
        rows.append((each.layer.name, each.layer.kind, shape, each.output.dtype.name, low, high, each.sha256))
    for line in _aligned(rows):
        print(line)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
