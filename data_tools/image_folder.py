"""A folder of images to a dataset file: `python -m intsmooth_ref.data_tools.image_folder FOLDER OUT.h5`.

Each sub-folder is a class, in sorted order; with `--flat` the images lie in FOLDER itself and have no labels. Images
are taken in the order of the bytes of their relative paths. Hidden files and files of other suffixes are left out; an
image that is damaged, truncated or so large that decoding it is a risk is named and left out.

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
from pathlib import Path
from typing import Iterator, NoReturn, Sequence

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from intsmooth_ref.dataset import DEFAULT_SPLIT, IMAGE_SUFFIXES, MAX_BYTES, Dataset, save_dataset
from intsmooth_ref.errors import DatasetError, IntsmoothError
from intsmooth_ref.strict_hdf5 import NAME, NAME_RULE

#: The only decoders that are let near a file, whatever its suffix says.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

WHITE = (255, 255, 255, 255)
MAX_SIDE = 1 << 14
#: What the pixels may take of the largest dataset file; the rest is room for labels and names.
MAX_PIXEL_BYTES = MAX_BYTES - (1 << 26)


@dataclass(frozen=True)
class Source:
    """An image file: where it lies, its path relative to the folder, its class or -1."""

    path: Path
    relative: str
    label: int


@dataclass(frozen=True)
class Form:
    """The form that all images get; without a `size` (height, width) they must have one already."""

    size: tuple[int, int] | None
    gray: bool


class UnreadableImage(Exception):
    """An image that is left out, and why."""


# --- files ------------------------------------------------------------------------------------------------------------


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders in the order of the bytes of their names: the index is the label."""
    visible = (each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return sorted(visible, key=os.fsencode)


def source_files(folder: Path, flat: bool) -> tuple[list[Source], tuple[str, ...]]:
    """The image files in order, and the names of the classes.

    Raises:
        DatasetError: if the folder is missing or holds no image where one is expected.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: found no such folder; expected a folder of images")
    classes = [] if flat else class_folders(folder)
    if flat:
        sources = [Source(path, path.name, -1) for path in folder.iterdir() if is_image(path)]
    else:
        sources = [
            Source(path, path.relative_to(folder).as_posix(), label)
            for label, each in enumerate(classes)
            for path in images_below(each)
        ]
    if not sources:
        where = "in the folder itself" if flat else "in a sub-folder a class (images without classes: --flat)"
        raise DatasetError(f"{folder}: found no image; expected {', '.join(IMAGE_SUFFIXES)} files {where}")
    return sorted(sources, key=lambda source: os.fsencode(source.relative)), tuple(each.name for each in classes)


def is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


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
        raise UnreadableImage(" ".join(str(problem).split()) or type(problem).__name__) from None


def pixels(image: Image.Image, form: Form) -> np.ndarray:
    """Steps 2 to 5 of the module's description."""
    converted = opaque(eight_bits(image)).convert("L" if form.gray else "RGB")
    if form.size is not None:
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


def convert(folder: Path, form: Form, split: str, flat: bool) -> Dataset:
    """Read a folder; files that are left out are named on standard error.

    Raises:
        DatasetError: if there is no folder, no image, or images of several sizes.
    """
    sources, class_names = source_files(folder, flat)
    images: list[np.ndarray] = []
    kept: list[Source] = []
    checksums = hashlib.sha256()
    for index, source in enumerate(sources):
        show_progress(f"{index}/{len(sources)} images")
        try:
            content = read(source.path)
            image = decoded(content, form)
        except UnreadableImage as problem:
            say(f"left out: {printable(source.relative)}: {problem}")
            continue
        if not images:
            check_total(len(sources), image)
        elif image.shape != images[0].shape:
            refuse_size(source, image, kept[0], images[0])
        images.append(image)
        kept.append(source)
        checksums.update(f"{hashlib.sha256(content).hexdigest()}  ".encode() + os.fsencode(source.relative) + b"\n")
    show_progress("")
    left_out = len(sources) - len(kept)
    if left_out:
        say(f"left out: {left_out} of {len(sources)} files")
    if not images:
        raise DatasetError(f"{folder}: found {len(sources)} files and no readable image; expected one at least")
    labels = np.array([source.label for source in kept], dtype=np.int64)
    provenance = described(folder, form, len(kept), left_out, checksums.hexdigest())
    return Dataset(np.stack(images), labels, tuple(map(printable, class_names)), provenance, split)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise UnreadableImage(problem.strerror or str(problem)) from None


def check_total(count: int, image: np.ndarray) -> None:
    """Refuse early what no dataset file can hold."""
    if count * image.nbytes > MAX_PIXEL_BYTES:
        show_progress("")
        found = f"{count} images of {image.nbytes} bytes"
        raise DatasetError(f"found {found}; expected {MAX_PIXEL_BYTES} bytes in all at most: a smaller --size")


def refuse_size(source: Source, image: np.ndarray, first_source: Source, first: np.ndarray) -> NoReturn:
    found = f"{image.shape[0]}x{image.shape[1]} pixels (height x width)"
    expected = f"{first.shape[0]}x{first.shape[1]} like {printable(first_source.relative)}"
    show_progress("")
    raise DatasetError(f"{printable(source.relative)}: found {found}; expected {expected}, or the option --size HxW")


def described(folder: Path, form: Form, count: int, left_out: int, checksums: str) -> str:
    """The provenance. Its hash is that of what `sha256sum` prints for the files, in order, from within the folder."""
    size = "as they are" if form.size is None else "resized to {}x{} by LANCZOS".format(*form.size)
    channels = "grey" if form.gray else "RGB"
    return (
        f"image_folder: {count} files of folder {printable(folder.resolve().name)!r}, {left_out} left out; {channels}, "
        f"{size}; decoded by {decoder()}; SHA-256 over the lines of sha256sum of the files {checksums}"
    )


def decoder() -> str:
    """Pillow and the libraries it decodes with."""
    jpeg = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version_feature("libjpeg_turbo") or features.version_codec("jpg") or "unknown"
    return f"Pillow {PIL.__version__}, {jpeg} {version}"


def printable(name: str) -> str:
    """A file's name as text, with `\\x..` for bytes that are no UTF-8 and for characters that cannot be printed."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# --- the program ------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    show_progress("")
    print(line, file=sys.stderr)


def show_progress(line: str) -> None:
    """Rewrite the line of progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise argparse.ArgumentTypeError(f"{text}: expected HEIGHTxWIDTH, each 1 to {MAX_SIDE}, like 32x32")
    return int(match[1]), int(match[2])


def split_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {NAME_RULE}")
    return text


def argument_parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m intsmooth_ref.data_tools.image_folder",
        description=f"{summary.partition(':')[0]}.\n\n{details}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sub-folder a class, with images at any depth")
    parser.add_argument("output", type=Path, metavar="OUT.h5", help="the dataset file to write")
    parser.add_argument("--size", type=image_size, metavar="HxW", help="resize to this height and width")
    parser.add_argument("--gray", action="store_true", help="one channel of grey instead of RGB")
    parser.add_argument("--split", type=split_name, default=DEFAULT_SPLIT, help=f"its name (default: {DEFAULT_SPLIT})")
    parser.add_argument("--flat", action="store_true", help="images lie in FOLDER itself and have no labels")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 if it exists")
    return parser


def run(options: argparse.Namespace) -> None:
    """Convert, write, say what was written."""
    output: Path = options.output
    if output.exists() and not options.overwrite:
        raise DatasetError(f"{output}: found a file already; expected none, or the option --overwrite")
    if not output.parent.is_dir():
        raise DatasetError(f"{output.parent}: found no such folder; expected one for the dataset file")
    dataset = convert(options.folder, Form(options.size, options.gray), options.split, options.flat)
    save_dataset(output, [dataset])
    count, height, width, channels = dataset.images.shape
    classes = f"{len(dataset.class_names)} classes" if dataset.class_names else "no labels"
    print(f"{output}: {count} images, {height}x{width}x{channels}, {classes}, split {dataset.split!r}")
    print(f"SHA-256 of the pixels {dataset.sha256}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    options = argument_parser().parse_args(arguments)
    try:
        run(options)
    except IntsmoothError as problem:
        say(f"error: {problem}")
        return 1
    except OSError as problem:
        say(f"error: {problem.filename or options.folder}: {problem.strerror or problem}")
        return 1
    except MemoryError:
        say("error: out of memory; a smaller --size needs less")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
