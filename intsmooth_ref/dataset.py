"""Datasets: 8-bit images that are frozen, labelled and hashed, so that everybody certifies the same pixels.

Three kinds of file are read: the project's own HDF5 format with one group a split (`weights/README.md`), and NumPy's
`.npy` and `.npz`. Image files are not: their pixels depend on the decoder, so they are converted once.
"""

from __future__ import annotations

import hashlib
import os
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from typing import IO, Sequence

import numpy as np

from . import strict_hdf5
from .class_names import CLASS_NAME_RULE, is_class_name
from .errors import DatasetError, reason_of
from .strict_hdf5 import Array, Attribute, Group, GroupReader

#: Of an 8-bit image, in grey levels.
FULL_SCALE = 255

FORMAT = "intsmooth-ref images"
FORMAT_VERSION = 1

#: A dataset's file, and all that it holds, may be as large as this.
MAX_BYTES = 1 << 32

MAX_CLASSES = 1 << 16

#: The split that is meant when none is named.
DEFAULT_SPLIT = "test"

#: The split of a `.npy` or `.npz` file, which knows of none.
WHOLE_FILE = "all"

#: What NumPy, `zipfile` and `zlib` raise on a damaged file; NumPy parses headers as Python.
NUMPY_FILE_ERRORS = (
    *strict_hdf5.LIBRARY_ERRORS, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

#: A member's record in the directory of a zip archive, without its name.
CENTRAL_RECORD_BYTES = 46

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one split, with their labels.

    Attributes:
        images: uint8 `(N, H, W, C)`, grey levels 0..255.
        labels: int64 `(N,)`, each an index of `class_names`, or -1 where the class is unknown.
        class_names: one a class; empty if the classes have no names.
        provenance: where the images come from, for people.
        split: "test", "train", ...

    Raises:
        DatasetError: if a dtype, a shape or a label is not as described.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    provenance: str
    split: str

    def __post_init__(self) -> None:
        where = f"split {self.split!r}"
        _expect(strict_hdf5.NAME.fullmatch(self.split) is not None, where, "no name", strict_hdf5.NAME_RULE)
        _check_images(self.images, where)
        _check_labels(self.labels, len(self.images), len(self.class_names) or MAX_CLASSES, where)
        found = f"{len(self.class_names)} class names"
        _expect(len(self.class_names) <= MAX_CLASSES, where, found, f"at most {MAX_CLASSES}")
        for name in self.class_names:
            _expect(is_class_name(name), where, f"the class name {name!r}", CLASS_NAME_RULE)
        for name, array in (("images", self.images), ("labels", self.labels)):
            object.__setattr__(self, name, _read_only(array))

    @property
    def sha256(self) -> str:
        """SHA-256 of the header line `intsmooth-ref images 1 N H W C` and the pixels: what is certified."""
        return _sha256(f"images 1 {_extents(self.images)}", self.images)

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of the header line `intsmooth-ref labels 1 N CLASSES`, the labels as little-endian int64, and the
        class names, each with a newline: what accuracy is counted against."""
        names = "".join(f"{name}\n" for name in self.class_names).encode("utf-8")
        header = f"labels 1 {len(self.labels)} {len(self.class_names)}"
        return _sha256(header, self.labels.astype("<i8"), np.frombuffer(names, np.uint8))

    def image_sha256(self, index: int) -> str:
        """SHA-256 of the header line `intsmooth-ref image 1 H W C` and the pixels of one image.

        Raises:
            DatasetError: if there is no image of this index.
        """
        count = len(self.images)
        _expect(0 <= index < count, f"split {self.split!r}", f"image index {index}", f"0 to {count - 1}")
        return _sha256(f"image 1 {_extents(self.images[index])}", self.images[index])


def _extents(array: np.ndarray) -> str:
    return " ".join(map(str, array.shape))


def _sha256(header: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(f"intsmooth-ref {header}\n".encode("ascii"))
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def _expect(holds: bool, where: str, found: str, expected: str) -> None:
    if not holds:
        raise DatasetError(f"{where}: found {found}; expected {expected}")


def _check_images(images: np.ndarray, where: str) -> None:
    found = f"images of {images.dtype} and shape {images.shape}"
    expected = "uint8 (N, H, W, C): grey images have C = 1, a single image has N = 1"
    _expect(images.dtype == np.uint8 and images.ndim == 4, where, found, expected)
    _expect(0 not in images.shape, where, found, "one image and one pixel at least")


def _check_labels(labels: np.ndarray, count: int, classes: int, where: str) -> None:
    found = f"labels of {labels.dtype} and shape {labels.shape}"
    _expect(labels.dtype == np.int64 and labels.shape == (count,), where, found, f"int64 ({count},), one an image")
    out = np.flatnonzero((labels < -1) | (labels >= classes))
    if out.size:
        _expect(False, where, f"label {labels[out[0]]} of image {out[0]}", f"0 to {classes - 1}, or -1 for unknown")


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def save_dataset(path: str | os.PathLike[str], datasets: Sequence[Dataset]) -> None:
    """Write the splits of a dataset to one HDF5 file; the same splits give the same bytes.

    Raises:
        DatasetError: if there is no split, a split stands twice, or the file cannot be written.
    """
    name = os.fspath(path)
    splits = {dataset.split: _stored(dataset) for dataset in datasets}
    _expect(0 < len(datasets) == len(splits), name, f"{len(datasets)} splits", "one at least, each of another name")
    root = Group({"format": FORMAT, "format_version": FORMAT_VERSION}, groups=splits)
    strict_hdf5.write(path, root, DatasetError)


def _stored(dataset: Dataset) -> Group:
    attributes: dict[str, Attribute] = {
        "provenance": dataset.provenance,
        "sha256": dataset.sha256,
        "labels_sha256": dataset.labels_sha256,
    }
    arrays: dict[str, Array] = {"images": dataset.images, "labels": dataset.labels, "class_names": dataset.class_names}
    return Group(attributes, arrays)


def _load_hdf5(path: str, split: str | None) -> Dataset:
    reader = GroupReader(strict_hdf5.read(path, DatasetError, MAX_BYTES, format_name=FORMAT), path, DatasetError)
    reader.take_header(FORMAT_VERSION)
    splits = reader.group_names()
    chosen = _chosen_split(path, splits, split)
    readers = {name: reader.group(name) for name in splits}
    reader.finish()
    return _load_split(readers[chosen], path, chosen)


def _chosen_split(path: str, splits: Sequence[str], split: str | None) -> str:
    _expect(len(splits) > 0, path, "no split", "one at least")
    if split is None:
        split = splits[0] if len(splits) == 1 else DEFAULT_SPLIT
    _expect(split in splits, path, f"no split {split!r}", f"one of {', '.join(splits)}")
    return split


def _load_split(reader: GroupReader, path: str, split: str) -> Dataset:
    images = reader.array("images", "uint8", 4)
    labels = reader.array("labels", "int64", 1)
    class_names, provenance = reader.string_list("class_names"), reader.string("provenance")
    sha256, labels_sha256 = reader.string("sha256"), reader.string("labels_sha256")
    reader.finish()
    dataset = _made(path, images, labels, class_names, provenance, split)
    for what, computed, stored in (
        ("images", dataset.sha256, sha256),
        ("labels", dataset.labels_sha256, labels_sha256),
    ):
        if computed != stored:
            reader.refuse(f"{what} of SHA-256 {computed}", f"{stored[:64]}, as the file says")
    return dataset


def _made(
    path: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], provenance: str, split: str
) -> Dataset:
    try:
        return Dataset(images, labels, class_names, provenance, split)
    except DatasetError as problem:
        raise DatasetError(f"{path}: {problem}") from None


# --- any file ---------------------------------------------------------------------------------------------------------


def load_dataset(path: str | os.PathLike[str], split: str | None = None) -> Dataset:
    """Read a dataset: HDF5, `.npy` (images alone) or `.npz` (`images`, and `labels` and `class_names` if it has them).

    Args:
        split: which split of an HDF5 file; by default the only one, or "test" if there are several.

    Raises:
        DatasetError: file, what was found and what was expected, in one line.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if os.path.isdir(name) or suffix in IMAGE_SUFFIXES:
        what = "a folder" if os.path.isdir(name) else "an image file"
        command = "python -m intsmooth_ref.data_tools.image_folder FOLDER OUT.h5"
        raise DatasetError(f"{name}: found {what}; expected a dataset: convert first with `{command}`")
    if suffix not in (".npy", ".npz"):
        return _load_hdf5(name, split)
    found = f"a NumPy file, where split {split!r} is asked"
    _expect(split in (None, WHOLE_FILE), name, found, "HDF5, which has splits")
    _expect(os.path.isfile(name), name, "no such file", "images in a regular file")
    try:
        return _load_npy(name) if suffix == ".npy" else _load_npz(name)
    except NUMPY_FILE_ERRORS as problem:
        found = f"a NumPy file that cannot be read ({reason_of(problem)})"
        raise DatasetError(f"{name}: found {found}; expected a whole one") from None


def _load_npy(path: str) -> Dataset:
    with open(path, "rb") as file:
        images = _read_npy(file, path, min(MAX_BYTES, os.path.getsize(path)))
    labels = np.full(images.shape[:1], -1, dtype=np.int64)
    return _made(path, images, labels, (), f"file {os.path.basename(path)}", WHOLE_FILE)


def _load_npz(path: str) -> Dataset:
    known = ("images.npy", "labels.npy", "class_names.npy")
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            once = member.filename in known and member.filename not in arrays
            _expect(once, path, f"the member {member.filename[:100]!r}", f"each of {', '.join(known)} at most once")
            # a damaged length here could swallow the record of the next member, and so its labels
            bare = not member.comment and len(member.extra) < CENTRAL_RECORD_BYTES
            _expect(bare, path, f"a comment or long extra field of {member.filename}", "what NumPy writes")
            with archive.open(member) as file:
                most = min(MAX_BYTES, member.file_size)
                arrays[member.filename] = _read_npy(file, f"{path}: {member.filename}", most)
    _expect("images.npy" in arrays, path, "no member 'images.npy'", "images")
    images = arrays["images.npy"]
    labels = _npz_labels(arrays.get("labels.npy"), images.shape[:1], path)
    names = _npz_class_names(arrays.get("class_names.npy"), path)
    return _made(path, images, labels, names, f"file {os.path.basename(path)}", WHOLE_FILE)


def _npz_labels(labels: np.ndarray | None, shape: tuple[int, ...], path: str) -> np.ndarray:
    """Labels of any integer dtype, as int64; unknown where there are none."""
    if labels is None:
        return np.full(shape, -1, dtype=np.int64)
    _expect(labels.dtype.kind in "iu", path, f"labels of {labels.dtype}", "integers")
    _expect(labels.size == 0 or int(labels.max()) < MAX_CLASSES, path, "a label too large", f"under {MAX_CLASSES}")
    return labels.astype(np.int64)


def _npz_class_names(names: np.ndarray | None, path: str) -> tuple[str, ...]:
    if names is None:
        return ()
    _expect(names.dtype.kind in "SU" and names.ndim == 1, path, f"class names of {names.dtype}", "a list of strings")
    return tuple(each.decode("utf-8") if isinstance(each, bytes) else each for each in names.tolist())


def _read_npy(file: IO[bytes], where: str, max_bytes: int) -> np.ndarray:
    """One array of a `.npy` stream. Its header is judged before its data is read, and nothing is ever unpickled."""
    version = np.lib.format.read_magic(file)
    _expect(version in ((1, 0), (2, 0)), where, f"npy version {version}", "1.0 or 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    _expect(dtype.kind in "iuSU", where, f"an array of {dtype}", "uint8 images, integer labels, or strings")
    size = prod(shape) * dtype.itemsize
    _expect(0 <= size <= max_bytes, where, f"an array of {size} bytes", f"at most {max_bytes}")
    content = file.read(size)
    _expect(len(content) == size, where, f"{len(content)} bytes of data", f"{size}, what its shape {shape} needs")
    _expect(not file.read(1), where, "more data than its shape needs", f"{size} bytes")
    array = np.frombuffer(content, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
