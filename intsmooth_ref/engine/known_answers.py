"""Known answers: what a model gives for a few noisy images, with a hash of every layer's output.

They ride in the model file, so that whoever receives it can see at once whether an engine, another program or another
CPU computes the same integers, and if not, which layer is the first to differ.
"""

from __future__ import annotations

import numpy as np

from ..model.fingerprint import tensor_sha256
from ..model.graph import IntegerModel
from ..model.hdf5 import KnownAnswers
from . import Engine


def make_known_answers(model: IntegerModel, images: np.ndarray) -> KnownAnswers:
    """Compute the known answers by the reference engine for int32 noisy `images` `(N, H, W, C)`."""
    hashes, tensor = {}, images
    for name, tensor in Engine(model, "reference").trace(images):
        hashes[name] = tensor_sha256(tensor)
    return KnownAnswers(inputs=images, outputs=tensor, layer_sha256=hashes)


def first_difference(engine: Engine, known: KnownAnswers) -> str | None:
    """Compute the known answers again; None if all agree, else what differs first, in one line."""
    tensor = known.inputs
    for name, tensor in engine.trace(known.inputs):
        found = tensor_sha256(tensor)
        if found != known.layer_sha256[name]:
            return f"layer {name!r}: SHA-256 of the output is {found}, expected {known.layer_sha256[name]}"
    different = np.argwhere(tensor != known.outputs)
    if len(different):
        index = tuple(different[0].tolist())
        return f"output {index}: {tensor[index]}, expected {known.outputs[index]}"
    return None
