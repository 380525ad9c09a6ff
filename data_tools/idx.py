"""IDX files, MNIST and its kin, to a dataset file: `python -m intsmooth_ref.data_tools.idx OUT.h5 --images ...`.

    python -m intsmooth_ref.data_tools.idx mnist.h5 \\
        --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz \\
        --test-images t10k-images-idx3-ubyte.gz --test-labels t10k-labels-idx1-ubyte.gz

The first pair becomes the split `train`, the second `test`; either may be missing. Files are gzipped or not. Images
keep their order and their grey levels, in one channel: nothing is decoded, so every machine makes the same file.

The format, as http://yann.lecun.com/exdb/mnist/ states it, integers being big-endian:

    1. two zero bytes; the type of the elements, here 0x08 for unsigned bytes; the number of dimensions;
    2. for each dimension its extent, in four bytes: (N, height, width) for images, (N) for labels;
    3. the elements, the last dimension fastest, and then the end of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
from math import prod
from pathlib import Path
from typing import Sequence

import numpy as np

from intsmooth_ref.data_tools.converter import (
    MAX_PIXEL_BYTES, add_output, expect, file_content, opened, printable, run, taken,
)  # fmt: skip
from intsmooth_ref.data_tools.program import argument_parser, show_progress
from intsmooth_ref.dataset import Dataset

UNSIGNED_BYTE = 0x08

IMAGES = ("images", "height", "width")
LABELS = ("labels",)


def read_idx(path: Path, dimensions: Sequence[str]) -> tuple[np.ndarray, str]:
    """The array of an IDX file, uint8, and the file's SHA-256.

    Args:
        dimensions: the names of the dimensions that it must have.

    Raises:
        DatasetError: if it has others, elements of another type or none, or does not hold what its header announces.
    """
    show_progress(f"reading {path}")
    packed = file_content(path, MAX_PIXEL_BYTES)
    stream = opened(packed)
    header = taken(stream, 4, path)
    expect(len(header) == 4 and header[:2] == b"\0\0", path, f"the first bytes {header.hex()!r}", "0000: an IDX file")
    expect(header[2] == UNSIGNED_BYTE, path, f"elements of type 0x{header[2]:02x}", "0x08, unsigned bytes")
    names = ", ".join(dimensions)
    expect(header[3] == len(dimensions), path, f"{header[3]} dimensions", f"{len(dimensions)}: ({names})")
    extents = struct.Struct(f">{len(dimensions)}I")
    packed_extents = taken(stream, extents.size, path)
    expect(len(packed_extents) == extents.size, path, "a header that is cut off", f"extents of ({names})")
    shape = extents.unpack(packed_extents)
    size = prod(shape)
    expect(0 < size <= MAX_PIXEL_BYTES, path, f"extents {shape}", f"1 to {MAX_PIXEL_BYTES} bytes in all")
    content = taken(stream, size + 1, path)
    found = f"{len(content)} bytes of data" if len(content) <= size else "more data"
    expect(len(content) == size, path, found, f"{size} for its extents {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape), hashlib.sha256(packed).hexdigest()


def convert(images_path: Path, labels_path: Path, class_names: tuple[str, ...], split: str) -> Dataset:
    """Read one pair of files.

    Raises:
        DatasetError: if a file is no IDX file of its kind, they do not belong together, or a label has no class.
    """
    images, images_sha256 = read_idx(images_path, IMAGES)
    labels, labels_sha256 = read_idx(labels_path, LABELS)
    expect(len(labels) == len(images), labels_path, f"{len(labels)} labels", f"{len(images)}, one an image")
    provenance = (
        f"idx: images of {printable(images_path.name)!r}, SHA-256 {images_sha256}; "
        f"labels of {printable(labels_path.name)!r}, SHA-256 {labels_sha256}; all of them, in their order"
    )
    return Dataset(images[..., np.newaxis], labels.astype(np.int64), class_names, provenance, split)


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def pairs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """The files of each split that is asked for; wrong arguments end the program."""
    asked = {"train": (options.images, options.labels), "test": (options.test_images, options.test_labels)}
    given = {split: paths for split, paths in asked.items() if paths != (None, None)}
    if not given:
        parser.error("found no file; expected --images and --labels, --test-images and --test-labels, or all four")
    for split, paths in given.items():
        if None in paths:
            parser.error(f"found one file for the split {split!r}; expected two, images and labels")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argument_parser("idx", __doc__)
    add_output(parser)
    parser.add_argument("--images", type=Path, metavar="FILE", help="of the split train")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="of the split train")
    parser.add_argument("--test-images", type=Path, metavar="FILE", help="of the split test")
    parser.add_argument("--test-labels", type=Path, metavar="FILE", help="of the split test")
    parser.add_argument("--class-names", type=names, default=(), metavar="A,B,...", help="names of the labels from 0")
    options = parser.parse_args(arguments)
    files = pairs(parser, options)

    def datasets() -> list[Dataset]:
        made = [convert(*paths, options.class_names, split) for split, paths in files.items()]
        sizes = [dataset.images.shape[1:3] for dataset in made]
        expect(len(set(sizes)) == 1, options.test_images, f"images of sizes {sizes}", "one size in train and test")
        return made

    return run(options, datasets)


if __name__ == "__main__":
    sys.exit(main())
