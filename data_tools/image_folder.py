"""A folder of images to a dataset file: `python -m intsmooth_ref.data_tools.image_folder FOLDER OUT.h5`.

Each sub-folder is a class, in sorted order; with `--flat` the images lie in FOLDER itself and have no labels. Where
FOLDER/train and FOLDER/test hold the classes, each is converted to a file of its own. Images are taken in the order of
the bytes of their relative paths. Hidden files and files of other suffixes are left out; an image that is damaged,
truncated or so large that decoding it is a risk is named and left out.

What becomes of a pixel, in this order:

    1. an EXIF orientation is applied; of an animation the first frame counts;
    2. grey of 16 bits becomes 8 bits, (v * 255 + 32767) // 65535; colour of 16 bits loses its low byte in Pillow;
    3. transparency is laid over white;
    4. palette, CMYK, YCbCr and bilevel become RGB by Pillow's `convert`, which ignores colour profiles; grey is
       repeated in the three channels; with --gray all becomes one channel, (299 R + 587 G + 114 B) / 1000 of a colour;
    5. with --size the image is resized, LANCZOS, without regard to its proportions.

JPEG decoders differ in the last bit, so the file says which one was at work, and whoever certifies shares the file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import warnings
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Callable, Iterator, NoReturn, Sequence

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from intsmooth_ref.cli.messages import counted
from intsmooth_ref.data_tools.converter import MAX_PIXEL_BYTES, add_output, checksum_line, expect, printable, run
from intsmooth_ref.data_tools.program import argument_parser, say, show_progress
from intsmooth_ref.dataset import DEFAULT_SPLIT, IMAGE_SUFFIXES, Dataset
from intsmooth_ref.errors import DatasetError, reason_of
from intsmooth_ref.strict_hdf5 import NAME, NAME_RULE

#: The only decoders that are let near a file, whatever its suffix says.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

#: What a folder is called that holds a split, not a class.
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")

WHITE = (255, 255, 255, 255)
MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class Source:
    """An image file: its path relative to the folder or archive, what reads it, its class or -1, its split."""

    relative: str
    read: Callable[[], bytes]
    label: int
    split: str


@dataclass(frozen=True)
class Form:
    """The form that all images get.

    Attributes:
        size: (height, width); without it, that of the first image.
        gray: one channel instead of three.
        resize: images of another size are resized; if not, they are refused.
    """

    size: tuple[int, int] | None
    gray: bool = False
    resize: bool = True


class UnreadableImage(Exception):
    """An image that is left out, and why."""


# --- files ------------------------------------------------------------------------------------------------------------


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders in the order of the bytes of their names: the index is the label."""
    visible = (each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return sorted(visible, key=os.fsencode)


def source_files(folder: Path, flat: bool, split: str) -> tuple[list[Source], tuple[str, ...]]:
    """The image files in order, and the names of the classes.

    Raises:
        DatasetError: if the folder is missing.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: found no such folder; expected a folder of images")
    classes = [] if flat else class_folders(folder)
    if flat:
        sources = [Source(path.name, path.read_bytes, -1, split) for path in folder.iterdir() if is_image(path)]
    else:
        sources = [
            Source(path.relative_to(folder).as_posix(), path.read_bytes, label, split)
            for label, each in enumerate(classes)
            for path in images_below(each)
        ]
    return sorted(sources, key=lambda source: os.fsencode(source.relative)), tuple(each.name for each in classes)


def check_classes(folder: Path) -> None:
    """Refuse a folder of splits, which would be taken for classes.

    Raises:
        DatasetError: if all sub-folders are called as splits are, and hold folders but no image.
    """
    found = class_folders(folder)
    if found and all(each.name.lower() in SPLIT_FOLDERS and class_folders(each) for each in found):
        if not any(is_image(path) for each in found for path in each.iterdir()):
            names = ", ".join(each.name for each in found)
            expected = f"one a class: convert {found[0]} by itself, with --split {found[0].name}"
            raise DatasetError(f"{folder}: found folders of splits ({names}); expected {expected}")


def is_image(path: Path) -> bool:
    return names_image(path.name) and path.is_file()


def names_image(name: str) -> bool:
    """Whether a file of this name, without its folders, is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_below(folder: Path) -> Iterator[Path]:
    """All image files of a class, at any depth."""
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in map(Path(parent).joinpath, names) if is_image(path))


def _refuse(problem: OSError) -> NoReturn:
    """A folder that cannot be listed would otherwise be passed over in silence."""
    raise problem


# --- pixels -----------------------------------------------------------------------------------------------------------


def decoded(content: bytes, form: Form) -> np.ndarray:
    """The pixels of an image file, uint8 `(H, W, C)`, as the module describes.

    Raises:
        UnreadableImage: if the file is damaged, truncated, too large, or of a kind that has no 8-bit form.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                image.load()
                return pixels(ImageOps.exif_transpose(image), form)
    except UnidentifiedImageError:
        raise UnreadableImage(f"found no image of a known format; expected one of {', '.join(FORMATS)}") from None
    except Exception as problem:  # a damaged file makes decoders raise anything
        raise UnreadableImage(reason_of(problem)) from None


def pixels(image: Image.Image, form: Form) -> np.ndarray:
    """Steps 2 to 5 of the module's description."""
    converted = opaque(eight_bits(image)).convert("L" if form.gray else "RGB")
    if form.size is not None and form.resize:
        height, width = form.size
        converted = converted.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(converted).reshape(converted.height, converted.width, -1)


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow calls "I;16" or, in older versions, "I", to 8 bits; others as they are."""
    if image.mode == "F":
        raise UnreadableImage("found floating-point pixels; expected integers")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"found pixels {values.min()} .. {values.max()}; expected 0 .. 65535")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def opaque(image: Image.Image) -> Image.Image:
    """Lay an image with transparency, be it a channel or one transparent colour, over white."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))


# --- conversion -------------------------------------------------------------------------------------------------------


def convert(sources: Sequence[Source], form: Form, class_names: Sequence[str], origin: str) -> list[Dataset]:
    """Decode images; files that are left out are named on standard error.

    Args:
        sources: those of one split stand together.
        origin: the first words of the provenance: what was converted, and how it was divided into splits.

    Returns:
        One dataset a split, in the order of the sources.

    Raises:
        DatasetError: if the images have several sizes, are too many, or none of a split can be read.
    """
    images, kept, checksum_lines = decode_all(sources, form)
    names = tuple(map(printable, class_names))
    datasets = []
    for split, files in groupby(sources, key=lambda source: source.split):
        found = len(list(files))
        chosen = [index for index, source in enumerate(kept) if source.split == split]
        if not chosen:
            files_found = counted(found, "file", "files")
            raise DatasetError(f"split {split!r}: found {files_found} and no readable image; expected one at least")
        part = slice(chosen[0], chosen[-1] + 1)
        labels = np.array([source.label for source in kept[part]], dtype=np.int64)
        checksums = hashlib.sha256(b"".join(checksum_lines[part])).hexdigest()
        counts = f"{len(chosen)} files, {found - len(chosen)} left out"
        provenance = f"{origin}; {counts}; {described(form, checksums)}"
        datasets.append(Dataset(images[part], labels, names, provenance, split))
    return datasets


def decode_all(sources: Sequence[Source], form: Form) -> tuple[np.ndarray, list[Source], list[bytes]]:
    """The images that can be read, uint8 `(N, H, W, C)`; their sources; what `sha256sum` prints for their files.

    Raises:
        DatasetError: as `convert` says.
    """
    images = np.empty((0, 0, 0, 0), np.uint8)
    kept: list[Source] = []
    checksum_lines: list[bytes] = []
    for index, source in enumerate(sources):
        show_progress(f"{index}/{len(sources)} images")
        try:
            content = read(source)
            image = decoded(content, form)
        except UnreadableImage as problem:
            say(f"left out: {printable(source.relative)}: {problem}")
            continue
        size = image.shape[:2]
        expected = form.size or (images.shape[1:3] if kept else size)
        if size != expected:
            refuse_size(source, size, expected, None if form.size else kept[0])
        if not kept:
            check_total(len(sources), image)
            images = np.empty((len(sources), *image.shape), np.uint8)
        images[len(kept)] = image
        kept.append(source)
        checksum_lines.append(checksum_line(source.relative, content))
    show_progress("")
    if len(kept) < len(sources):
        say(f"left out: {len(sources) - len(kept)} of {len(sources)} files")
    return images, kept, checksum_lines


def read(source: Source) -> bytes:
    try:
        return source.read()
    except OSError as problem:
        raise UnreadableImage(problem.strerror or str(problem)) from None


def check_total(count: int, image: np.ndarray) -> None:
    """Refuse early what no dataset file can hold."""
    if count * image.nbytes > MAX_PIXEL_BYTES:
        found = f"{count} images of {image.nbytes} bytes"
        raise DatasetError(f"found {found}; expected {MAX_PIXEL_BYTES} bytes in all at most: a smaller --size")


def refuse_size(source: Source, size: tuple[int, ...], expected: tuple[int, ...], like: Source | None) -> NoReturn:
    """Sizes are (height, width); `like` is the image that set the one expected, if the caller did not."""
    found = "found {}x{} pixels (height x width); expected {}x{}".format(*size, *expected)
    remedy = f" like {printable(like.relative)}, or the option --size HxW" if like else ""
    raise DatasetError(f"{printable(source.relative)}: {found}{remedy}")


def described(form: Form, checksums: str) -> str:
    """The form of the images, and the hash of what `sha256sum` prints for the files, in order."""
    size = "as they are"
    if form.size is not None and form.resize:
        size = "resized to {}x{} by LANCZOS".format(*form.size)
    return (
        f"{'grey' if form.gray else 'RGB'}, {size}; decoded by {decoder()}; "
        f"SHA-256 over the lines of sha256sum of the files {checksums}"
    )


def decoder() -> str:
    """Pillow and the libraries it decodes with."""
    jpeg = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version_feature("libjpeg_turbo") or features.version_codec("jpg") or "unknown"
    return f"Pillow {PIL.__version__}, {jpeg} {version}"


def warn_of_classes(dataset: Dataset) -> None:
    """Say what passes but is seldom meant: a class without an image, and a single class."""
    for name, count in zip(dataset.class_names, np.bincount(dataset.labels, minlength=len(dataset.class_names))):
        if count == 0:
            say(f"warning: found no image of the class {name!r}; it stays a class")
    if len(dataset.class_names) == 1:
        say(f"warning: found one class, {dataset.class_names[0]!r}; expected two at least to tell apart")


# --- the program ------------------------------------------------------------------------------------------------------


def image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise argparse.ArgumentTypeError(f"{text}: expected HEIGHTxWIDTH, each 1 to {MAX_SIDE}, like 32x32")
    return int(match[1]), int(match[2])


def split_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {NAME_RULE}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argument_parser("image_folder", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sub-folder a class, with images at any depth")
    add_output(parser)
    parser.add_argument("--size", type=image_size, metavar="HxW", help="resize to this height and width")
    parser.add_argument("--gray", action="store_true", help="one channel of grey instead of RGB")
    parser.add_argument("--split", type=split_name, default=DEFAULT_SPLIT, help=f"its name (default: {DEFAULT_SPLIT})")
    parser.add_argument("--flat", action="store_true", help="images lie in FOLDER itself and have no labels")
    options = parser.parse_args(arguments)

    def dataset() -> list[Dataset]:
        folder: Path = options.folder
        sources, class_names = source_files(folder, options.flat, options.split)
        if not options.flat:
            check_classes(folder)
        where = "in the folder itself" if options.flat else "in a sub-folder a class (images without classes: --flat)"
        expect(len(sources) > 0, folder, "no image", f"{', '.join(IMAGE_SUFFIXES)} files {where}")
        origin = f"image_folder: folder {printable(folder.resolve().name)!r}"
        datasets = convert(sources, Form(options.size, options.gray), class_names, origin)
        if not options.flat:
            warn_of_classes(datasets[0])
        return datasets

    return run(options, dataset)


if __name__ == "__main__":
    sys.exit(main())
