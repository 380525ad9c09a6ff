"""The model file: an `IntegerModel` in HDF5, with known answers by which another backend can be checked.

The format is specified in `weights/README.md`; `layer_groups` reads and writes the layers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from .. import strict_hdf5
from ..errors import ModelFormatError
from ..strict_hdf5 import Attribute, Group, GroupReader
from .fingerprint import fingerprint
from .graph import IntegerModel
from .layer_groups import layer_groups, read_layers
from .layers import LAYER_KINDS
from .proof import NOISY_PIXEL_LIMIT

FORMAT = "intsmooth-ref model"
FORMAT_VERSION = 1

#: By other formats of this package, how a model comes of them.
ADVICE = {"intsmooth-ref float model": "quantize it first with `python -m intsmooth_ref.data_tools.quantize`"}

#: A model file, and all that it holds, may be as large as this.
MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class KnownAnswers:
    """What the model computes on a few noisy images: vectors for whoever computes it elsewhere.

    Attributes:
        inputs: int32 `(N, H, W, C)`, noisy images in grey levels.
        outputs: the last layer's output, `(N, classes)`, or `(N,)` where the model ends in an `ArgMax`.
        layer_sha256: for every layer, by name, `fingerprint.tensor_sha256` of its output for the whole batch.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    layer_sha256: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds."""

    model: IntegerModel
    known_answers: KnownAnswers | None


# --- writing ----------------------------------------------------------------------------------------------------------


def save_model(
    path: str | os.PathLike[str], model: IntegerModel, known_answers: KnownAnswers | None = None
) -> None:
    """Write a model file; the same model and answers give the same bytes.

    Raises:
        ModelFormatError: if the file cannot be written, an integer needs more than 64 bits, or the known answers do not
            belong to the model.
    """
    groups = {"layers": layer_groups(model.layers)}
    if known_answers is not None:
        _check_known_answers(model, known_answers, os.fspath(path))
        groups["known_answers"] = Group(
            arrays={
                "inputs": known_answers.inputs,
                "outputs": known_answers.outputs,
                "layer_sha256": tuple(known_answers.layer_sha256[layer.name] for layer in model.layers),
            }
        )
    attributes: dict[str, Attribute] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(model),
        "provenance": model.provenance,
    }
    strict_hdf5.write(path, Group(attributes, {"class_names": model.class_names}, groups), ModelFormatError)


# --- reading ----------------------------------------------------------------------------------------------------------


def load_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file, prove its model, and verify its fingerprint.

    Raises:
        ModelFormatError: file, layer, field, what was found and what was expected, in one line.
    """
    name = os.fspath(path)
    root = strict_hdf5.read(path, ModelFormatError, MAX_BYTES, format_name=FORMAT, advice=ADVICE)
    reader = GroupReader(root, name, ModelFormatError)
    reader.take_header(FORMAT_VERSION)
    stored_fingerprint = reader.string("fingerprint")
    provenance, class_names = reader.string("provenance"), reader.string_list("class_names")
    layers = read_layers(reader.group("layers"), LAYER_KINDS)
    answers = reader.group("known_answers") if reader.has("known_answers") else None
    reader.finish()
    try:
        model = IntegerModel(layers, class_names, provenance)
    except ModelFormatError as problem:
        raise ModelFormatError(f"{name}: {problem}") from None
    computed = fingerprint(model)
    if computed != stored_fingerprint:
        reader.refuse(f"a model of fingerprint {computed}", f"{stored_fingerprint[:64]}, as its attribute says")
    return ModelFile(model, None if answers is None else _known_answers(answers, model, name))


# --- known answers ----------------------------------------------------------------------------------------------------


def _known_answers(reader: GroupReader, model: IntegerModel, path: str) -> KnownAnswers:
    proof = model.proofs[model.output.name]
    inputs = reader.array("inputs", "int32", 4)
    outputs = reader.array("outputs", proof.dtype, 1 + len(proof.shape))
    hashes = reader.string_list("layer_sha256")
    reader.finish()
    if len(hashes) != len(model.layers):
        reader.refuse(f"{len(hashes)} hashes in 'layer_sha256'", f"{len(model.layers)}, one a layer")
    answers = KnownAnswers(inputs, outputs, {layer.name: each for layer, each in zip(model.layers, hashes)})
    _check_known_answers(model, answers, path)
    return answers


def _check_known_answers(model: IntegerModel, answers: KnownAnswers, path: str) -> None:
    """Shapes, dtypes and names; whether the answers are right is for an engine to say."""
    proof = model.proofs[model.output.name]
    count = len(answers.inputs)
    for name, array, dtype, shape in (
        ("inputs", answers.inputs, "int32", (count, *model.input.shape)),
        ("outputs", answers.outputs, proof.dtype, (count, *proof.shape)),
    ):
        if array.dtype != dtype or array.shape != shape or not count:
            _refuse_answers(path, f"{name} of {array.dtype} and shape {array.shape}", f"{dtype}, {shape}, one at least")
    low, high = int(answers.inputs.min()), int(answers.inputs.max())
    if low < -NOISY_PIXEL_LIMIT or high > NOISY_PIXEL_LIMIT:
        _refuse_answers(path, f"inputs from {low} to {high}", f"{-NOISY_PIXEL_LIMIT} to {NOISY_PIXEL_LIMIT}")
    if set(answers.layer_sha256) != {layer.name for layer in model.layers}:
        _refuse_answers(path, f"hashes of {len(answers.layer_sha256)} layers", "one of each layer of the model")


def _refuse_answers(path: str, found: str, expected: str) -> None:
    raise ModelFormatError(f"{path}: /known_answers: found {found}; expected {expected}")
