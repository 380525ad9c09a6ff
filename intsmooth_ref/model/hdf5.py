"""The model file: an `IntegerModel` in HDF5, with known answers by which another backend can be checked.

The format is specified in `weights/README.md`. Reader and writer follow the dataclasses in `layers`: a field of a layer
is an attribute or an array under the name that `flat_fields` gives it, so a new kind of layer needs no line here.
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, fields, is_dataclass
from fractions import Fraction
from math import gcd
from typing import Any, Mapping, get_args, get_type_hints

import numpy as np

from .. import strict_hdf5
from ..errors import ModelFormatError
from ..strict_hdf5 import Array, Attribute, Group, GroupReader
from .fingerprint import fingerprint
from .graph import IntegerModel
from .layers import LAYER_KINDS, FieldValue, Layer, flat_fields
from .proof import NOISY_PIXEL_LIMIT

FORMAT = "intsmooth-ref model"
FORMAT_VERSION = 1

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
    layers = {_group_name(index, layer.name): _stored(layer) for index, layer in enumerate(model.layers)}
    groups = {"layers": Group(groups=layers)}
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


def _group_name(index: int, layer_name: str) -> str:
    """Four digits, so that sorted by name the groups stand in the order of the layers."""
    return f"{index:04}_{layer_name}"


def _stored(layer: Layer) -> Group:
    attributes: dict[str, Attribute] = {"kind": layer.kind}
    arrays: dict[str, Array] = {}
    for name, value in flat_fields(layer):
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            attributes[name] = _stored_attribute(value)
    return Group(attributes, arrays)


def _stored_attribute(value: FieldValue) -> Attribute:
    """A rational as its numerator and denominator; a tuple of integers as an array; the rest as it is."""
    if isinstance(value, Fraction):
        value = (value.numerator, value.denominator)
    if isinstance(value, tuple) and value and not isinstance(value[0], str):
        return np.array(value, dtype=object)  # of Python integers: those beyond int64 are refused, not wrapped
    return value  # type: ignore[return-value]


# --- reading ----------------------------------------------------------------------------------------------------------


def load_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file, prove its model, and verify its fingerprint.

    Raises:
        ModelFormatError: file, layer, field, what was found and what was expected, in one line.
    """
    name = os.fspath(path)
    reader = GroupReader(strict_hdf5.read(path, ModelFormatError, MAX_BYTES), name, ModelFormatError)
    _check_format(reader)
    stored_fingerprint = reader.string("fingerprint")
    provenance, class_names = reader.string("provenance"), reader.string_list("class_names")
    layers = _layers(reader.group("layers"))
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


def _check_format(reader: GroupReader) -> None:
    found = reader.string("format")
    if found != FORMAT:
        reader.refuse(f"a file of format {found[:100]!r}", repr(FORMAT))
    version = reader.integer("format_version")
    if version != FORMAT_VERSION:
        reader.refuse(f"format_version {version}", f"{FORMAT_VERSION}, the one that this release reads")


def _layers(reader: GroupReader) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for index, group_name in enumerate(reader.group_names()):
        layer_reader = reader.group(group_name)
        layer = _layer(layer_reader)
        expected = _group_name(index, layer.name)
        if group_name != expected:
            layer_reader.refuse(f"layer {layer.name!r} as number {index}", f"the group to be called {expected!r}")
        layers.append(layer)
    reader.finish()
    return tuple(layers)


def _layer(reader: GroupReader) -> Layer:
    kind = reader.string("kind")
    if kind not in LAYER_KINDS:
        reader.refuse(f"the unknown kind {kind[:100]!r}", f"one of {', '.join(LAYER_KINDS)}")
    layer = _instance(LAYER_KINDS[kind], "", reader)
    reader.finish()
    return layer


def _instance(cls: type, prefix: str, reader: GroupReader) -> Any:
    """An instance of a dataclass of `layers`, each field under its dotted name; all of them must be there."""
    hints = get_type_hints(cls)
    return cls(**{each.name: _field_value(each, hints[each.name], prefix, reader) for each in fields(cls)})


def _field_value(each: Field[Any], hint: Any, prefix: str, reader: GroupReader) -> Any:
    name = prefix + each.name
    if each.metadata:
        return reader.array(name, each.metadata["dtype"], each.metadata["rank"])
    nested: Any = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    if nested is not None:
        optional = type(None) in get_args(hint)
        return None if optional and not reader.has(f"{name}.") else _instance(nested, f"{name}.", reader)
    return _ATTRIBUTES[hint](reader, name)


def _rational(reader: GroupReader, name: str) -> Fraction:
    values = reader.integers(name)
    if len(values) != 2 or values[1] < 1 or gcd(*values) != 1:
        reader.refuse(f"attribute {name!r} = {values}", "a numerator and a positive denominator in lowest terms")
    return Fraction(*values)


def _boolean(reader: GroupReader, name: str) -> bool:
    value = reader.integer(name)
    if value not in (0, 1):
        reader.refuse(f"attribute {name!r} = {value}", "0 or 1")
    return bool(value)


#: How an attribute is read, by the type of the field it fills.
_ATTRIBUTES: Mapping[Any, Any] = {
    int: GroupReader.integer,
    str: GroupReader.string,
    bool: _boolean,
    Fraction: _rational,
    tuple[int, ...]: GroupReader.integers,
    tuple[str, ...]: GroupReader.strings,
}


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
