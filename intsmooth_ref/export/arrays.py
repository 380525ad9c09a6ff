"""A model as NumPy arrays and a description in JSON, as `ARRAYS.md` specifies, for whoever has not this package."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np

from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..model.layers import Layer, flat_fields
from ..model.proof import TensorProof
from ..npz import npz_bytes

FORMAT = "intsmooth-ref arrays"
FORMAT_VERSION = 1

#: The archive's member that is no array.
DESCRIPTION = "description.json"


def arrays_file(model: IntegerModel) -> bytes:
    """The bytes of the `.npz` file; the same model gives the same bytes."""
    arrays: dict[str, np.ndarray] = {}
    layers = [_layer(model, number, layer, arrays) for number, layer in enumerate(model.layers)]
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(model),
        "provenance": model.provenance,
        "class_names": list(model.class_names),
        "layers": layers,
    }
    return npz_bytes({DESCRIPTION: json.dumps(description, indent=1) + "\n", **arrays})


def _layer(model: IntegerModel, number: int, layer: Layer, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The layer's description; its arrays are added to `arrays`."""
    described: dict[str, Any] = {"kind": layer.kind}
    for name, value in flat_fields(layer):
        if isinstance(value, np.ndarray):
            member = f"{number:04}_{layer.name}.{name}"
            arrays[member] = value
            described[name] = {"array": member}
        else:
            described[name] = _rational(value) if isinstance(value, Fraction) else value
    described["tensor"] = _tensor(model.proofs[layer.name])
    return described


def _rational(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def _tensor(proof: TensorProof) -> dict[str, Any]:
    return {
        "shape": proof.shape,
        "dtype": proof.dtype,
        "scale": _rational(proof.scale),
        "zero_point": proof.zero_point,
        "minimum": proof.minimum,
        "maximum": proof.maximum,
        "accumulator": proof.accumulator,
    }
