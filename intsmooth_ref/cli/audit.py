"""prove what a model's integers can do, layer by layer, and find where other kernels get it wrong

For each layer: the worst-case accumulator of every channel and the bits that it needs, what the clamp cuts off,
channels and table entries that do nothing, how many accumulators another rounding mode rounds differently, and whether
a kernel that saturates pairs of products to 16 bits can be wrong, with an image on which it is. For the whole: that no
compiled function holds floating point. Images are needed for the search alone; each gets noise of a quarter of full
scale. By default they are those of the embedded network, or random pictures.
"""

from __future__ import annotations

import argparse
import json
import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DatasetError, ParameterError
from .arguments import add_engine, add_model, integer_from, open_data, open_model
from .messages import one_line
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..model.graph import IntegerModel

MAX_IMAGES, CLIMB = 16, 64

#: A stage of the sampler that nothing else uses.
AUDIT_NOISE = (1 << 20) + 3


def pixel_range(text: str) -> tuple[int, int]:
    """Grey levels such as 0..255."""
    match = re.fullmatch(r"(-?\d{1,7})\.\.(-?\d{1,7})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected grey levels such as 0..255 or -200..455")
    return int(match[1]), int(match[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA",
                        help="images to search: a dataset file (HDF5), .npz or .npy; default: the embedded digits, or"
                        " random pictures where MODEL is given")  # fmt: skip
    parser.add_argument("--split", metavar="NAME",
                        help="which split of a dataset file (default: test, or the only one)")  # fmt: skip
    parser.add_argument("--pixels", type=pixel_range, metavar="LOW..HIGH",
                        help="audit for noisy pixels in this range alone, as --pixels=-200..455 (default: every grey"
                        " level that an engine accepts)")  # fmt: skip
    parser.add_argument("--max-images", type=integer_from(0), default=MAX_IMAGES, metavar="N",
                        help=f"search so many images (default: {MAX_IMAGES})")  # fmt: skip
    parser.add_argument("--climb", type=integer_from(0), default=CLIMB, metavar="N",
                        help="try so many more, by hill climbing, in each of the first few layers in which none is"
                        f" found (default: {CLIMB})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, the images found included")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page for people here")
    parser.add_argument("--overwrite", action="store_true", help="replace the files named by --json and --html")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Print the audit; returns the exit status."""
    from ..audit.arithmetic import ALL_PIXELS
    from ..audit.page import page
    from ..audit.report import as_record, audit, text_lines
    from ..audit.saturation import CLIMBED_LAYERS
    from ..new_files import check_new, write_whole

    files = [path for path in (options.json, options.html) if path]
    check_new(files, options.overwrite, [options.model, options.data])
    if len({path.resolve() for path in files}) < len(files):
        raise ParameterError(f"{options.html}: stands for --json and --html; expected two names")
    model = open_model(options.model).model
    images = _images(options, model)
    progress = Progress(len(images) + CLIMBED_LAYERS * options.climb, 1)

    def done() -> None:
        progress.image()
        progress.samples(1)

    try:
        found = audit(
            model, images, pixels=options.pixels or ALL_PIXELS, climb=options.climb, engine=options.engine,
            isa=options.isa, done=done,
        )  # fmt: skip
    finally:
        progress.clear()
    for line in text_lines(found):
        print(one_line(line))
    if options.json:
        write_whole(options.json, (json.dumps(as_record(found), separators=(",", ":")) + "\n").encode("ascii"))
    if options.html:
        write_whole(options.html, page(found).encode("utf-8", "backslashreplace"))
    return 0


def _images(options: argparse.Namespace, model: IntegerModel) -> np.ndarray:
    """Noisy images of the model's shape, int32."""
    from ..benchmark.networks import NOISE_SIGMA, SEED, noisy_pictures
    from ..noise.distributions import discrete_gaussian
    from ..noise.sampler import noise_table, sample

    count, shape = options.max_images, model.input.shape
    if options.data is None and options.model is not None:
        return noisy_pictures(shape, count)
    data = open_data(options.data, options.split, None)
    if data.images.shape[1:] != shape:
        found = f"holds images {data.images.shape[1:]}"
        raise DatasetError(f"{options.data}: {found}, expected {shape}, which the model takes")
    images = data.images[:count]
    noise = sample(noise_table(discrete_gaussian(NOISE_SIGMA)), SEED, 0, AUDIT_NOISE, 0, len(images), prod(shape))
    noisy: np.ndarray = images + noise.reshape(images.shape)
    return noisy
