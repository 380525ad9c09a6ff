"""What every converter does the same: read a source that is not trusted, leave a whole dataset file or none.

Files are read whole and once, so that the SHA-256 in a provenance is that of the very bytes that were used. Archives
are unpacked in memory, within limits, and never to the disk.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import struct
import tarfile
import zlib
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import IO, Callable, Iterator, Sequence, Union

from intsmooth_ref.cli.messages import counted
from intsmooth_ref.data_tools.program import check_output, show_progress, status_of
from intsmooth_ref.dataset import IMAGE_SUFFIXES, MAX_BYTES, Dataset, save_dataset
from intsmooth_ref.errors import DatasetError, reason_of

Stream = Union[IO[bytes], BufferedIOBase]

#: What the pixels may take of the largest dataset file; the rest is room for labels and names.
MAX_PIXEL_BYTES = MAX_BYTES - (1 << 26)

#: An archive may be this large, packed or unpacked. CIFAR-10 has 170 MB and 186 MB, Caltech-101 less.
MAX_ARCHIVE_BYTES = 1 << 29
#: Caltech-101 has about 9,300.
MAX_ARCHIVE_MEMBERS = 1 << 15

#: A dataset file by one of these names would be read as something else.
OTHER_SUFFIXES = (*IMAGE_SUFFIXES, ".npy", ".npz")

#: So many classes are named on the screen.
SHOWN_CLASSES = 20

CHUNK_BYTES = 1 << 20
GZIP_SIGNATURE = b"\x1f\x8b"

#: What `gzip`, `tarfile`, `zipfile` and `zlib` raise on a damaged archive; `RuntimeError`: one that is encrypted.
ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, struct.error, tarfile.TarError,
    zlib.error,
)  # fmt: skip


def expect(holds: bool, where: str | Path, found: str, expected: str) -> None:
    """Raise a `DatasetError` in the usual form unless it holds."""
    if not holds:
        raise DatasetError(f"{where}: found {found}; expected {expected}")


def printable(name: str) -> str:
    """A file's name as text, with `\\x..` for bytes that are no UTF-8 and for characters that cannot be printed."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# --- sources ----------------------------------------------------------------------------------------------------------


def file_content(path: Path, most: int = MAX_ARCHIVE_BYTES) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused before it is opened, as it might never end.

    Raises:
        DatasetError: if there is no such file, or it has more than `most` bytes.
    """
    expect(path.exists(), path, "no such file", "one to read")
    expect(path.is_file(), path, "no regular file", "one to read")
    with open(path, "rb") as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    expect(len(content) <= most, path, f"more than {most} bytes", "a smaller file")
    return content


def opened(content: bytes) -> Stream:
    """A stream of what a gzip file holds, or of the bytes themselves if they are not gzip's."""
    return gzip.open(BytesIO(content)) if content.startswith(GZIP_SIGNATURE) else BytesIO(content)


def taken(stream: Stream, count: int, where: str | Path) -> bytes:
    """The next `count` bytes of a stream, or fewer if it ends.

    Memory is taken for what there is, not for what a header announces.

    Raises:
        DatasetError: if the compressed data is damaged or cut off.
    """
    chunks: list[bytes] = []
    try:
        while count > 0 and (chunk := stream.read(min(count, CHUNK_BYTES))):
            count -= len(chunk)
            chunks.append(chunk)
    except ARCHIVE_ERRORS as problem:
        raise damaged(where, problem) from None
    return b"".join(chunks)


def tar_members(content: bytes, wanted: Callable[[str], bool], where: str | Path) -> dict[str, memoryview]:
    """The files of a tar archive, gzipped or not, whose names are wanted. What else is in there is passed over.

    Raises:
        DatasetError: if the archive is damaged or cut off, larger unpacked than `MAX_ARCHIVE_BYTES`, or a wanted name
            stands twice or belongs to a link or anything else that is no regular file.
    """
    tar = taken(opened(content), MAX_ARCHIVE_BYTES + 1, where)
    expect(len(tar) <= MAX_ARCHIVE_BYTES, where, f"more than {MAX_ARCHIVE_BYTES} bytes unpacked", "a smaller archive")
    members: dict[str, memoryview] = {}
    try:
        with tarfile.open(fileobj=BytesIO(tar), mode="r:") as archive:
            for index, member in enumerate(archive):
                expect(index < MAX_ARCHIVE_MEMBERS, where, f"more than {MAX_ARCHIVE_MEMBERS} files", "fewer")
                name = member.name.removeprefix("./")
                if wanted(name):
                    regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                    expect(regular, where, f"{printable(name)} as no plain file", "a plain file")
                    expect(name not in members, where, f"{printable(name)} twice", "each name once")
                    members[name] = memoryview(tar)[member.offset_data : member.offset_data + member.size]
            end = archive.offset
    except ARCHIVE_ERRORS as problem:
        raise damaged(where, problem) from None
    # `tarfile` takes a damaged or missing header for the end of the archive
    whole = len(tar) - end >= tarfile.BLOCKSIZE and not tar[end:].strip(b"\0")
    expect(whole, where, f"no end of the archive at byte {end}", "blocks of zeros there: a whole tar archive")
    return members


def damaged(where: str | Path, problem: Exception) -> DatasetError:
    return DatasetError(f"{where}: found a damaged archive ({printable(reason_of(problem))}); expected a whole one")


def checksum_line(name: str, content: bytes | memoryview) -> bytes:
    """What `sha256sum` prints for a file."""
    return f"{hashlib.sha256(content).hexdigest()}  ".encode("ascii") + os.fsencode(name) + b"\n"


# --- the program ------------------------------------------------------------------------------------------------------


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT.h5", help="the dataset file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 if it exists")


def run(options: argparse.Namespace, convert: Callable[[], Sequence[Dataset]]) -> int:
    """Convert, write, say what was written; returns the exit status.

    Args:
        options: with `output` and `overwrite`, which `add_output` asks for.
        convert: makes the splits; called once it is known that they can be written.
    """
    def work() -> None:
        output: Path = options.output
        expect(output.suffix.lower() not in OTHER_SUFFIXES, output, "a name of another kind of file", "one in .h5")
        check_output(options)
        datasets = convert()
        show_progress(f"writing {output}")
        save_dataset(output, datasets)
        show_progress("")
        print("\n".join(described(output, datasets)))

    return status_of(work, options.output, room="five times what the pixels take: fewer or smaller images")


def described(output: Path, datasets: Sequence[Dataset]) -> Iterator[str]:
    """Two lines a split, and one of the classes, which all splits share."""
    names = datasets[0].class_names
    for dataset in datasets:
        count, height, width, channels = dataset.images.shape
        classes = counted(len(names), "class", "classes") if names else "no labels"
        images = counted(count, "image", "images")
        yield f"{output}: {images}, {height}x{width}x{channels}, {classes}, split {dataset.split!r}"
        yield f"SHA-256 of the pixels {dataset.sha256}"
    if names:
        more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        yield f"classes: {', '.join(names[:SHOWN_CLASSES])}{more}"
