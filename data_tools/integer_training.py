"""Training in integers: `python -m intsmooth_ref.data_tools.integer_training FLOAT.h5 INTEGER.h5 DATA --out FOLDER`.

INTEGER.h5 is what `quantize` made of the float model FLOAT.h5. Its grids stay as they are; the weights go on from those
of the float model, batch normalization folded away. This is quantization-aware training: in each step it is the
integers that classify, the same to the bit as in the engine (`integer_network`), so the weights learn to make up for
their own rounding and for the grids. It is worth its time where quantization alone loses accuracy.

DATA is a dataset file with a split "train". Loss, noise, schedule, shards and the moving average of the weights are
those of `train`, and so are the files that FOLDER gets after each epoch:

    integer.h5      the integer model of the moving average of the weights, with known answers
    checkpoint.pt   weights, their moving average, momentum, the settings and the log; `--resume` goes on from it
    log.jsonl       a line an epoch: loss, accuracy of the integers on training and on held-out images, seconds

Needs PyTorch, the extra `train`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

import numpy as np

from intsmooth_ref.data_tools.calibration import known_answer_images
from intsmooth_ref.data_tools.float_model import Conv2D, FloatModel, Linear
from intsmooth_ref.data_tools.folding import folded
from intsmooth_ref.data_tools.post_training import kept_mean
from intsmooth_ref.data_tools.program import argument_parser
from intsmooth_ref.data_tools.train import (
    State,
    add_training_options,
    averaged_weights,
    expect_free,
    load_model_for,
    load_training_images,
    provenance_of,
    run_training,
    settings_of,
    sha256_of,
    take_over,
    train_to_the_end,
)
from intsmooth_ref.engine.known_answers import make_known_answers
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model import layers as integer
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model, save_model

if TYPE_CHECKING:
    from intsmooth_ref.data_tools.integer_network import IntegerNetwork

PROGRAM, INTEGER_MODEL = "integer_training", "integer.h5"

#: What `train` does otherwise: few epochs of small steps, and no decay, since no batch norm makes up for it.
DEFAULTS = {"epochs": 5, "learning_rate": 0.005, "weight_decay": 0.0}


def integer_network(model: FloatModel, integers: IntegerModel) -> IntegerNetwork:
    """The grids of `integers`, which `quantize` made of `model`, and the weights of `model`, folded.

    Raises:
        ModelFormatError: if the weights of `model` are not those that were rounded to the integer model's, or it cannot
            be trained.
    """
    from intsmooth_ref.data_tools.integer_network import IntegerNetwork

    if integers.input.shape != model.input.shape:
        found = f"input of shape {integers.input.shape}"
        raise ModelFormatError(f"layer {integers.input.name!r} has {found}; expected {model.input.shape}")
    plain = folded(model, float(kept_mean(integers)))
    weights = {}
    for layer in plain.layers:
        if isinstance(layer, (Conv2D, Linear)):
            bias = np.zeros(len(layer.weights), np.float32) if layer.bias is None else layer.bias
            weights[layer.name] = (layer.weights, bias)
    network = IntegerNetwork(integers, weights)
    if fingerprint(_without_biases(network.export())) != fingerprint(_without_biases(integers)):
        raise ModelFormatError("found other weights than those of the float model, rounded; expected these")
    return network


def _without_biases(model: IntegerModel) -> IntegerModel:
    """The model with biases of zero: some are sums of floats, whose last digits another machine may form otherwise."""
    layers = (
        replace(layer, bias=np.zeros_like(layer.bias)) if isinstance(layer, (integer.Conv2D, integer.Linear)) else layer
        for layer in model.layers
    )
    return IntegerModel(tuple(layers), model.class_names)


def run(options: argparse.Namespace) -> None:
    """Train an integer model, from the beginning or from a checkpoint, to the last epoch."""
    dataset = load_training_images(options.data)
    model = load_model_for(dataset, options.model)
    integers = load_model(options.integers).model
    try:
        network = integer_network(model, integers)
    except ModelFormatError as problem:
        raise ModelFormatError(f"{options.integers}: {problem}, as in what quantize makes of {options.model}") from None
    trained = f"integer model {sha256_of(options.integers)} of float model {sha256_of(options.model)}"
    settings, output = settings_of(options, dataset, PROGRAM, trained), options.out / INTEGER_MODEL
    expect_free(output, options.resume, options.integers, options.init)
    if options.init:  # weights folded for another mean, or not at all, would have the same names
        take_over(options.init, network.state_dict(), averaged_weights(options.init, program=PROGRAM, network=trained))
    few = known_answer_images(dataset.images, Fraction(settings.sigma), settings.seed)

    def write_model(state: State) -> None:
        provenance = f"{provenance_of(settings, state)}; began as: {integers.provenance}"
        average = state.average
        assert isinstance(average, type(network))
        exported = average.export(provenance)
        save_model(output, exported, make_known_answers(exported, few))

    train_to_the_end(options, settings, dataset, network, write_model, trained=True)
    print(f"{output}: {settings.epochs} epochs done")


def integer_training_parser() -> argparse.ArgumentParser:
    usage = "%(prog)s [options] --out FOLDER FLOAT.h5 INTEGER.h5 DATA"
    parser = argument_parser("integer_training", __doc__, usage)
    add = parser.add_argument
    add("model", type=Path, metavar="FLOAT.h5", help="a float model file, whose weights are the first")
    add("integers", type=Path, metavar="INTEGER.h5", help="the integer model that `quantize` made of it")
    add("data", type=Path, metavar="DATA", help='a dataset file with a split "train"')
    add("--init", type=Path, metavar="CHECKPOINT",
        help="begin with the averaged weights of another run on these grids")  # fmt: skip
    add_training_options(parser)
    parser.set_defaults(bfloat16=False, **DEFAULTS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    return run_training(run, integer_training_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
