"""A trace: every tensor that a model computes for one image, with a SHA-256 each.

Whoever computes the same model elsewhere finds in it the first tensor in which the two differ, and where. A trace is
stored as `.npz` or as HDF5, with the same bytes every time:

    | `.npz`             | HDF5                        | holds                                                   |
    | ------------------ | --------------------------- | ------------------------------------------------------- |
    | `image`            | `/image`                    | the image with its noise, int32 `(1, H, W, C)`          |
    | `NNNN_LAYER`       | `/layers/NNNN_LAYER`        | the output of layer NNNN, `(1, ...)`                    |
    | `trace.json`:      |                             |                                                         |
    | `layers`, `sha256` | `/layer_sha256`             | `fingerprint.tensor_sha256` of each output, in order    |
    | everything else    | attributes                  | the model's fingerprint, and which image and noise      |
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Union

import numpy as np

from .. import strict_hdf5
from ..engine import Engine
from ..errors import ParameterError
from ..model.fingerprint import fingerprint, tensor_sha256
from ..model.graph import IntegerModel
from ..model.layers import Layer
from ..new_files import write_whole
from ..npz import npz_bytes
from ..strict_hdf5 import Array, Group

FORMAT = "intsmooth-ref trace"
FORMAT_VERSION = 1

SUFFIXES = (".npz", ".h5")


@dataclass(frozen=True, eq=False)
class TracedTensor:
    """One layer's output `(1, ...)` and its hash."""

    layer: Layer
    output: np.ndarray
    sha256: str


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model computes for one image.

    Attributes:
        model: the model.
        image: int32 `(1, H, W, C)`, with its noise.
        origin: which image it is, and which noise.
        tensors: of every layer, in order.
    """

    model: IntegerModel
    image: np.ndarray
    origin: Mapping[str, Union[int, str]]
    tensors: tuple[TracedTensor, ...]


def trace(engine: Engine, image: np.ndarray, origin: Mapping[str, Union[int, str]]) -> Trace:
    """Compute a model for one int32 image `(H, W, C)`, and keep every tensor."""
    batch = image[np.newaxis]
    outputs = dict(engine.trace(batch))
    tensors = tuple(
        TracedTensor(layer, outputs[layer.name], tensor_sha256(outputs[layer.name])) for layer in engine.model.layers
    )
    return Trace(engine.model, batch, origin, tensors)


def save_trace(path: Path, traced: Trace) -> None:
    """Write a trace as `.npz` or `.h5`, as the name ends.

    Raises:
        ParameterError: if the name ends otherwise, or the file cannot be written.
    """
    if path.suffix == ".npz":
        write_whole(path, _npz(traced))
    elif path.suffix == ".h5":
        strict_hdf5.write(os.fspath(path), _group(traced), ParameterError)
    else:
        raise ParameterError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")


def _attributes(traced: Trace) -> dict[str, Union[int, str]]:
    digest = fingerprint(traced.model)
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": digest, **traced.origin}


def _members(traced: Trace) -> dict[str, np.ndarray]:
    """The tensors under names of four digits, so that sorted by name they stand in the order of the layers."""
    return {f"{number:04}_{each.layer.name}": each.output for number, each in enumerate(traced.tensors)}


def _npz(traced: Trace) -> bytes:
    members = _members(traced)
    layers = [
        {"name": each.layer.name, "kind": each.layer.kind, "array": member, "sha256": each.sha256}
        for member, each in zip(members, traced.tensors)
    ]
    description = json.dumps({**_attributes(traced), "layers": layers}, indent=1) + "\n"
    return npz_bytes({"trace.json": description, "image": traced.image, **members})


def _group(traced: Trace) -> Group:
    hashes = tuple(each.sha256 for each in traced.tensors)
    arrays: dict[str, Array] = {"image": traced.image, "layer_sha256": hashes}
    return Group(dict(_attributes(traced)), arrays, {"layers": Group(arrays=dict(_members(traced)))})
