"""NumPy's `.npz` files with the same bytes every time: no time stamps, no compression, one kind of header."""

from __future__ import annotations

import io
import zipfile
from typing import Mapping, Union

import numpy as np

from .model.fingerprint import little_endian_bytes

#: The oldest date that a zip archive can state.
NO_DATE = (1980, 1, 1, 0, 0, 0)

REGULAR_FILE = 0o100644 << 16
UNIX = 3


def npz_bytes(members: Mapping[str, Union[np.ndarray, str]]) -> bytes:
    """An archive of arrays, each as `NAME.npy`, and of texts under their own names, in the order given."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in members.items():
            array = isinstance(value, np.ndarray)
            member = zipfile.ZipInfo(f"{name}.npy" if array else name, NO_DATE)
            member.external_attr, member.create_system = REGULAR_FILE, UNIX
            archive.writestr(member, npy_bytes(value) if isinstance(value, np.ndarray) else value.encode("utf-8"))
    return file.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a `.npy` file of format 1.0, little-endian, its header padded to a multiple of 64 bytes."""
    dtype = array.dtype.newbyteorder("<").str
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {tuple(map(int, array.shape))}, }}"
    padding = -(len(header) + 11) % 64
    text = (header + " " * padding + "\n").encode("ascii")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + little_endian_bytes(array)
