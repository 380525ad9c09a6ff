"""A float model to an integer model: `python -m intsmooth_ref.data_tools.quantize FLOAT.h5 DATA.h5 OUT.h5 --sigma S`.

Batch normalization is folded away, every tensor gets a grid of 256 points, chosen by the values that it takes over some
images under the noise of `--sigma`, and the weights are rounded (`folding.py`, `calibration.py`, `post_training.py`,
`quantization.py`). Needs NumPy alone; the same arguments give the same bytes on one machine, where sums of floats are
formed in one order.

The report compares every integer tensor, as reals, with what the float network has there: the error is the root of its
mean square, in steps of the tensor's grid of 8 bits. Rounding alone gives 0.29; what is more comes from the weights,
from clipping, and from the layers before.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, Sequence

import numpy as np

from intsmooth_ref.cli.arguments import integer_from, rational
from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.calibration import CALIBRATION, known_answer_images, noisy_images, range_chooser
from intsmooth_ref.data_tools.program import argument_parser, check_output, show_progress, status_of
from intsmooth_ref.data_tools.float_file import load_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.data_tools.folding import folded
from intsmooth_ref.data_tools.post_training import fused_clamps, quantized
from intsmooth_ref.dataset import FULL_SCALE, Dataset, load_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import make_known_answers
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import save_model


#: Images of the report, and how many are computed at once, all tensors of the float network kept.
REPORT_IMAGES, REPORT_BATCH = 128, 8

RANGES = ("mse", "percentile", "min-max")


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How an integer model compares with its float model.

    Attributes:
        errors: by the name of an integer layer, the root of the mean squared difference of reals, in steps of its grid;
            of the layers that both models have, batch normalization folded away.
        same_class: of how many images both give the same class.
        images: of how many they were asked.
    """

    errors: Mapping[str, float]
    same_class: int
    images: int


def agreement(model: FloatModel, integers: IntegerModel, images: np.ndarray) -> Agreement:
    """Compare both on int32 noisy images `(N, H, W, C)`; `integers` was made of `model` by `quantized`."""
    plain, engine = folded(model), Engine(integers)
    output_names = {name: clamp.name for name, clamp in fused_clamps(plain).items()}
    squares, counts = dict.fromkeys(integers.proofs, 0.0), dict.fromkeys(integers.proofs, 0)
    same = 0
    at_once = float_engine.images_at_once(model, REPORT_BATCH)
    for start in range(0, len(images), at_once):
        batch = images[start : start + at_once]
        floats = dict(float_engine.trace(plain, batch))
        floats[plain.input.name] = floats[plain.input.name] + plain.input.mean  # the integer input keeps all of it
        for name, tensor in engine.trace(batch):
            expected = floats.get(output_names.get(name, name))
            if expected is not None:
                proof = integers.proofs[name]
                difference = (tensor.astype(np.int64) - proof.zero_point) - expected / float(proof.scale)
                squares[name] += float(np.square(difference).sum())
                counts[name] += difference.size
        same += int((tensor.argmax(axis=1) == float_engine.scores(model, batch).argmax(axis=1)).sum())
    errors = {name: (squares[name] / counts[name]) ** 0.5 for name in squares if counts[name]}
    return Agreement(errors, same, len(images))


def report(model: FloatModel, integers: IntegerModel, images: np.ndarray) -> Iterable[str]:
    """A line a layer, then the network as a whole."""
    found = agreement(model, integers, images)
    width = max(len("layer"), *map(len, integers.proofs))
    yield f"{'layer':{width}}  kind               reals that the grid holds  error in steps"
    for layer in integers.layers:
        proof = integers.proofs[layer.name]
        low, high = (float(proof.scale) * (end - proof.zero_point) for end in (proof.minimum, proof.maximum))
        held = f"{low:.4g} .. {high:.4g}" if proof.dtype == "uint8" else proof.dtype
        error = f"{found.errors[layer.name]:14.2f}" if layer.name in found.errors and proof.dtype == "uint8" else ""
        yield f"{layer.name:{width}}  {layer.kind:17}  {held:>25}  {error}".rstrip()
    yield f"same class as the float network: {found.same_class} of {found.images} noisy images"
    floats, integer = 4 * model.parameters, integers.parameter_bytes
    less = f", {1 - integer / floats:.1%} less" if integer < floats else ""
    yield f"parameters: {floats} bytes of floats, {integer} bytes of integers{less}"
    yield f"fingerprint {fingerprint(integers)}"


# --- the program ------------------------------------------------------------------------------------------------------


def checked_images(model: FloatModel, path: Path, split: str) -> Dataset:
    """The images for a model.

    Raises:
        ParameterError: if they have another shape than the model takes.
    """
    dataset = load_dataset(path, split)
    shape = dataset.images.shape[1:]
    if shape != model.input.shape:
        raise ParameterError(f"{path}: found images of shape {shape}; expected {model.input.shape}, the model's")
    return dataset


def provenance(options: argparse.Namespace, model: FloatModel, dataset: Dataset) -> str:
    """What was made of what, and how."""
    float_sha256 = hashlib.sha256(options.float_model.read_bytes()).hexdigest()
    percentile = f" --percentile {options.percentile:g}" if options.range == "percentile" else ""
    return (
        f"made by python -m intsmooth_ref.data_tools.quantize {options.float_model.name} {options.data.name} "
        f"{options.output.name} --sigma {options.sigma} --split {dataset.split} --images {options.images} "
        f"--range {options.range}{percentile} --seed {options.seed} with NumPy {np.__version__}; "
        f"images of SHA-256 {dataset.sha256}: {dataset.provenance}; "
        f"float model file of SHA-256 {float_sha256}: {model.provenance}"
    )


def run(options: argparse.Namespace) -> None:
    """Read, quantize, write, report."""
    check_output(options)
    show_progress("reading")
    model = load_float_model(options.float_model)
    dataset = checked_images(model, options.data, options.split)
    sigma = options.sigma * FULL_SCALE
    images = noisy_images(dataset.images, options.images, sigma, options.seed, CALIBRATION)
    integers = quantized(
        model, images, range_chooser(options.range, options.percentile), seed=options.seed,
        provenance=provenance(options, model, dataset),
        done=lambda count: show_progress(f"{count}/{len(images)} noisy images"),
    )  # fmt: skip
    show_progress("comparing")
    lines = list(report(model, integers, images[:REPORT_IMAGES]))
    show_progress("known answers")
    few = known_answer_images(dataset.images, sigma, options.seed)
    save_model(options.output, integers, make_known_answers(integers, few))
    show_progress("")
    print("\n".join(lines))
    print(f"{options.output}: {options.output.stat().st_size} bytes")


def percent(text: str) -> float:
    """A type of argument: a percentage above 50."""
    if not 50 < float(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 50, at most 100")
    return float(text)


def quantize_parser() -> argparse.ArgumentParser:
    parser = argument_parser("quantize", __doc__)
    add = parser.add_argument
    add("float_model", type=Path, metavar="FLOAT.h5", help="a float model file")
    add("data", type=Path, metavar="DATA.h5", help="a dataset file, with images like those that the model is for")
    add("output", type=Path, metavar="OUT.h5", help="the integer model file to write")
    add("--sigma", type=rational, required=True, metavar="S", help="noise as a fraction of full scale, such as 0.25")
    add("--split", default="train", metavar="NAME", help="of the dataset (default: train)")
    add("--images", type=integer_from(1), default=512, metavar="N", help="so many of them (default: 512)")
    add("--range", choices=RANGES, default="mse",
        help="which range a grid covers: that of least squared error, percentiles, or all (default: mse)")  # fmt: skip
    add("--percentile", type=percent, default=99.99, metavar="P", help="for --range percentile (default: 99.99)")
    add("--seed", type=integer_from(0), default=0, help="of noise and samples (default: 0)")
    add("--overwrite", action="store_true", help="replace OUT.h5 if it exists")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    options = quantize_parser().parse_args(arguments)
    return status_of(lambda: run(options), options.output, room="room for a few images in all layers")


if __name__ == "__main__":
    sys.exit(main())
