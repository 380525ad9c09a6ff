"""The float model file: a `FloatModel` in HDF5, as any trainer can write it.

The format is specified in `weights/README.md`, beside that of the integer model; `model/layer_groups.py` reads and
writes the layers of both.
"""

from __future__ import annotations

import os
import re

from intsmooth_ref import strict_hdf5
from intsmooth_ref.data_tools.float_model import FLOAT_LAYER_KINDS, FloatModel
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.layer_groups import layer_groups, read_layers
from intsmooth_ref.strict_hdf5 import Attribute, Group, GroupReader

FORMAT = "intsmooth-ref float model"
VERSION = 1

#: A float model file, and all that it holds, may be as large as this: 268 million parameters.
MAX_BYTES = 1 << 30

#: How the provenance of an integer model names the file that it was made of.
NAMED = re.compile("float model file of SHA-256 ([0-9a-f]{64})")


def save_float_model(path: str | os.PathLike[str], model: FloatModel) -> None:
    """Write a float model file; the same model gives the same bytes.

    Raises:
        ModelFormatError: if the file cannot be written.
    """
    attributes: dict[str, Attribute] = {"format": FORMAT, "format_version": VERSION, "provenance": model.provenance}
    root = Group(attributes, {"class_names": model.class_names}, {"layers": layer_groups(model.layers)})
    strict_hdf5.write(path, root, ModelFormatError, floats=True)


def load_float_model(path: str | os.PathLike[str]) -> FloatModel:
    """Read a float model file and check its model.

    Raises:
        ModelFormatError: file, layer, field, what was found and what was expected, in one line.
    """
    name = os.fspath(path)
    root = strict_hdf5.read(path, ModelFormatError, MAX_BYTES, floats=True, format_name=FORMAT)
    reader = GroupReader(root, name, ModelFormatError)
    reader.take_header(VERSION)
    provenance, class_names = reader.string("provenance"), reader.string_list("class_names")
    layers = read_layers(reader.group("layers"), FLOAT_LAYER_KINDS)
    reader.finish()
    try:
        return FloatModel(layers, class_names, provenance)
    except ModelFormatError as problem:
        raise ModelFormatError(f"{name}: {problem}") from None


def other_float_model(provenance: str, sha256: str) -> str | None:
    """The SHA-256 of the float model file that an integer model was made of, if its provenance names another one.

    Args:
        provenance: of the integer model.
        sha256: of the float model's file, whole.
    """
    named = NAMED.findall(provenance)
    return named[0] if named and sha256 not in named else None
