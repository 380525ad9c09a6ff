"""Caltech-101 to a dataset file: `python -m intsmooth_ref.data_tools.caltech101 SOURCE OUT.h5`.

SOURCE is `caltech-101.zip` from https://data.caltech.edu/records/mzrjq-6wc02, the `101_ObjectCategories.tar.gz` in it,
the folder `101_ObjectCategories` unpacked from that, or any folder of CLASS/IMAGE files. Classes are numbered in the
order of the bytes of their names; `BACKGROUND_Google`, which is no class of objects, is left out.

The data set has no official test images, so there is a rule: in each class, in the order of the bytes of their names,
every tenth image is test and the others are train. In the archive these are the images whose number ends in 0. A tenth
is the usual share, it leaves train what it needs, and still gives the smallest class, of 31 images, three test images.
The rule counts files, readable or not, so an image that another decoder cannot read moves no other into another split.

Images are decoded as `image_folder` does it, and resized to 64x64 unless --size says otherwise, without regard to their
proportions. The originals are about 300x200; at 64x64 their subjects can still be told apart, and a network for them
needs four times the arithmetic of one for 32x32, where 128x128 would need sixteen times.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import zipfile
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Sequence

from intsmooth_ref.data_tools.converter import (
    ARCHIVE_ERRORS, MAX_ARCHIVE_BYTES, add_output, damaged, expect, file_content, printable, run, taken, tar_members,
)  # fmt: skip
from intsmooth_ref.data_tools.image_folder import Form, Source, convert, image_size, names_image, source_files
from intsmooth_ref.data_tools.program import argument_parser, show_progress
from intsmooth_ref.dataset import Dataset
from intsmooth_ref.errors import DatasetError

FOLDER = "101_ObjectCategories"
ARCHIVE = "101_ObjectCategories.tar.gz"
BACKGROUND = "BACKGROUND_Google"

DEFAULT_SIZE = (64, 64)
DEFAULT_TEST_EVERY = 10

ZIP_SIGNATURE = b"PK"
#: The others have no bound on the memory that a small input makes them take.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


# --- where the images are ---------------------------------------------------------------------------------------------


def images_of(path: Path) -> tuple[list[Source], str]:
    """All images, named CLASS/IMAGE, still without label and split; and what they come from, for the provenance.

    Raises:
        DatasetError: if the source is missing, damaged, or laid out in another way.
    """
    if path.is_dir():
        sources, _ = source_files(path, flat=False, split="")
        expect(len(sources) > 0, path, "no image", "CLASS/IMAGE: a folder a class, with images only")
        for source in sources:
            depth = source.relative.count("/")
            expect(depth == 1, path, printable(source.relative), "CLASS/IMAGE: a folder a class, with images only")
        return sources, f"folder {printable(path.resolve().name)!r}"
    show_progress(f"reading {path}")
    content = file_content(path)
    tar = zipped_archive(content, path) if content.startswith(ZIP_SIGNATURE) else content
    members = tar_members(tar, names_class_image, path)
    expect(len(members) > 0, path, "no image", f"{FOLDER}/CLASS/IMAGE in a tar archive")
    sources = [Source(name.partition("/")[2], partial(bytes, image), -1, "") for name, image in members.items()]
    return sources, f"archive {printable(path.name)!r} of SHA-256 {hashlib.sha256(content).hexdigest()}"


def names_class_image(name: str) -> bool:
    """Whether a member of the archive is an image in the folder of a class."""
    match = re.fullmatch(rf"{FOLDER}/[^/.][^/]*/([^/]+)", name, re.DOTALL)
    return match is not None and names_image(match[1])


def zipped_archive(content: bytes, where: Path) -> bytes:
    """The tar archive in the zip archive.

    Raises:
        DatasetError: if there is none, or the zip archive is damaged.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            found = [each for each in archive.infolist() if each.filename.rpartition("/")[2] == ARCHIVE]
            expect(len(found) == 1, where, f"{len(found)} files named {ARCHIVE}", "one in the zip archive")
            expect(found[0].compress_type in ZIP_METHODS, where, "an unusual compression", "a deflated zip archive")
            with archive.open(found[0]) as stream:
                tar = taken(stream, MAX_ARCHIVE_BYTES + 1, where)
    except (*ARCHIVE_ERRORS, zipfile.BadZipFile) as problem:
        raise damaged(where, problem) from None
    expect(len(tar) <= MAX_ARCHIVE_BYTES, where, f"more than {MAX_ARCHIVE_BYTES} bytes of {ARCHIVE}", "fewer")
    return tar


# --- classes and splits -----------------------------------------------------------------------------------------------


def class_of(source: Source) -> str:
    return source.relative.partition("/")[0]


def divided(
    sources: Sequence[Source], test_every: int, keep_background: bool
) -> tuple[list[Source], tuple[str, ...]]:
    """Give each image its label and its split: first all that are train, then all that are test.

    Returns:
        The images, and the names of the classes.

    Raises:
        DatasetError: if no image is left, or no class has as many as `test_every`.
    """
    kept = [source for source in sources if keep_background or class_of(source) != BACKGROUND]
    kept.sort(key=lambda source: tuple(map(os.fsencode, source.relative.split("/"))))
    classes: list[str] = []
    splits: dict[str, list[Source]] = {"train": [], "test": []}
    for name, members in groupby(kept, key=class_of):
        for number, source in enumerate(members, start=1):
            split = "train" if number % test_every else "test"
            splits[split].append(replace(source, label=len(classes), split=split))
        classes.append(name)
    if not splits["test"]:
        found = f"{len(kept)} images of {len(classes)} classes, none of them test"
        raise DatasetError(f"found {found}; expected classes of {test_every} images, or a smaller --test-every")
    return splits["train"] + splits["test"], tuple(classes)


def convert_caltech101(path: Path, size: tuple[int, int], test_every: int, keep_background: bool) -> list[Dataset]:
    """The splits `train` and `test`.

    Raises:
        DatasetError: if the source cannot be used; images that cannot be read are named and left out.
    """
    images, origin = images_of(path)
    sources, class_names = divided(images, test_every, keep_background)
    rule = f"test is what stands at each multiple of {test_every} in the order of names of a class, train the rest"
    background = "with" if keep_background else "without"
    return convert(sources, Form(size), class_names, f"caltech101: {origin}, {background} {BACKGROUND}; {rule}")


# --- the program ------------------------------------------------------------------------------------------------------


def interval(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: expected 2 to 99999")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argument_parser("caltech101", __doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="an archive or a folder")
    add_output(parser)
    size = "{}x{}".format(*DEFAULT_SIZE)
    parser.add_argument(
        "--size", type=image_size, default=DEFAULT_SIZE, metavar="HxW", help=f"height and width (default: {size})"
    )
    parser.add_argument(
        "--test-every", type=interval, default=DEFAULT_TEST_EVERY, metavar="K",
        help=f"every K-th image of a class is test (default: {DEFAULT_TEST_EVERY})",
    )  # fmt: skip
    parser.add_argument("--keep-background", action="store_true", help=f"keep {BACKGROUND} as a class")
    options = parser.parse_args(arguments)
    return run(
        options,
        lambda: convert_caltech101(options.source, options.size, options.test_every, options.keep_background),
    )


if __name__ == "__main__":
    sys.exit(main())
