"""The fingerprint: SHA-256 over a canonical serialization of what a model computes.

Class names, provenance and known answers do not enter, and neither does the file: a model that is written anew by
another program or another HDF5 library keeps its fingerprint. The serialization is ASCII text, line by line, with the
elements of arrays in between, so that it can be recomputed from any language (`weights/README.md` shows an example):

    intsmooth-ref model 1
    layer Conv2D                                       the kind; then its fields in the order of `model/layers.py`
    name conv1                                         a string
    inputs 1 input                                     a tuple: its length, then its members
    weights int8 16 3 3 1                              an array: dtype and extents; its elements follow, row-major,
    ...                                                little-endian, then a newline
    requantization.rounding single_rounding
    output.scale 1/51                                  a rational in lowest terms
    output.zero_point -128                             an integer
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Iterator

import numpy as np

from .graph import IntegerModel
from .layers import FieldValue, flat_fields


def fingerprint(model: IntegerModel) -> str:
    """The model's fingerprint: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in canonical_serialization(model):
        digest.update(piece)
    return digest.hexdigest()


def canonical_serialization(model: IntegerModel) -> Iterator[bytes]:
    """The bytes that the fingerprint hashes, piece by piece."""
    yield b"intsmooth-ref model 1\n"
    for layer in model.layers:
        yield f"layer {layer.kind}\n".encode("ascii")
        for name, value in flat_fields(layer):
            yield f"{name} ".encode("ascii")
            yield _serialized(value)
            yield b"\n"


def _serialized(value: FieldValue) -> bytes:
    if isinstance(value, np.ndarray):
        head = " ".join([value.dtype.name, *map(str, value.shape)])
        return head.encode("ascii") + b"\n" + little_endian_bytes(value)
    if isinstance(value, tuple):
        return " ".join(map(str, (len(value), *value))).encode("ascii")
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}".encode("ascii")
    return str(value).encode("ascii")


def little_endian_bytes(array: np.ndarray) -> bytes:
    """The array's elements, row-major, little-endian, whatever the machine."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def tensor_sha256(tensor: np.ndarray) -> str:
    """SHA-256 of a tensor's elements in `little_endian_bytes`: 64 hexadecimal digits."""
    return hashlib.sha256(little_endian_bytes(tensor)).hexdigest()
