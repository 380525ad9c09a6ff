"""CIFAR-10 to a dataset file: `python -m intsmooth_ref.data_tools.cifar10 SOURCE OUT.h5`.

SOURCE is one of these, and the file gets the splits `train` and `test`:

    1. `cifar-10-python.tar.gz` from https://www.cs.toronto.edu/~kriz/cifar.html, or its folder `cifar-10-batches-py`;
    2. `cifar-10-binary.tar.gz` from there, or its folder `cifar-10-batches-bin`;
    3. a folder {train,test}/CLASS/IMAGE of 32x32 images, decoded as `image_folder` does it.

The first two give the same images and labels, in the order of their batches: five are train, the sixth is test. Take
one of these where you can: the pixels of a JPEG file depend on its decoder.

In the first, a batch is a pickle, which is a program. `PickleReader` knows the thirty instructions that such a batch
may need. It builds dicts, lists and tuples of numbers, strings and uint8 arrays; it imports nothing and calls nothing,
whatever the pickle names. In the second, a batch is a sequence of records: a byte for the label, then 32x32 bytes of
red, as many of green, as many of blue.
"""

from __future__ import annotations

import hashlib
import pickle  # for the names of its instructions only
import sys
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Callable, Mapping, NoReturn, Sequence

import numpy as np

from intsmooth_ref.data_tools.converter import (
    add_output, checksum_line, expect, file_content, printable, run, tar_members,
)  # fmt: skip
from intsmooth_ref.data_tools.image_folder import Form, Source, convert, source_files
from intsmooth_ref.data_tools.program import argument_parser, show_progress
from intsmooth_ref.dataset import Dataset
from intsmooth_ref.errors import DatasetError

CLASSES = 10
SIDE = 32
IMAGE_BYTES = 3 * SIDE * SIDE
RECORD_BYTES = 1 + IMAGE_BYTES

#: A batch of the archive has 31 MB.
MAX_BATCH_BYTES = 1 << 25
#: Such a batch takes three for an image: its label, its file name, and a note of that name.
MAX_INSTRUCTIONS = 1 << 18
MAX_NAME_BYTES = 64

SPLITS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SPLIT_RULE = "train is data_batch_1 to data_batch_5 in this order, test is test_batch"


# --- pickles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """What a pickle may name, or the reader has no value for. It stands for nothing and cannot be called."""

    name: str


MARK = Name("mark")
RECONSTRUCT = Name("numpy.core.multiarray _reconstruct")
NDARRAY = Name("numpy ndarray")
DTYPE = Name("numpy dtype")
NAMES = {each.name: each for each in (RECONSTRUCT, NDARRAY, DTYPE)}

#: What `pickle` would have called a function for; `BUILD` completes it.
EMPTY_ARRAY = Name("array without content")
UINT8 = Name("dtype uint8")


class PickleReader:
    """Reads a pickle of protocol 2, as Python 2 wrote it, without running it.

    Strings of Python 2 become `bytes`; an array must be two-dimensional and uint8. What is fetched from the memo must
    be a number, a string or a name, so the result is a tree: nothing contains itself, or stands in two places.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self.content = content
        self.where = where
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The one object of the pickle.

        Raises:
            DatasetError: if the pickle is damaged, or needs more than it may.
        """
        if self.take(2) != pickle.PROTO + b"\x02":
            self.refuse("no pickle of protocol 2", "the two bytes 8002")
        for _ in range(MAX_INSTRUCTIONS):
            instruction = self.take(1)
            if instruction == pickle.STOP:
                result = self.pop()
                if self.stack or self.position != len(self.content):
                    self.refuse("an end with something left over", "one object, and nothing behind it")
                return result
            self.step(instruction)
        self.refuse(f"more than {MAX_INSTRUCTIONS} instructions", "a batch of CIFAR-10")

    def step(self, instruction: bytes) -> None:
        """Carry out one instruction; `pickletools` describes each."""
        match instruction:
            # numbers, strings, names
            case pickle.BININT1:
                self.stack.append(self.integer(1))
            case pickle.BININT2:
                self.stack.append(self.integer(2))
            case pickle.BININT:
                self.stack.append(self.integer(4, signed=True))
            case pickle.NONE:
                self.stack.append(None)
            case pickle.NEWFALSE:
                self.stack.append(False)
            case pickle.NEWTRUE:
                self.stack.append(True)
            case pickle.SHORT_BINSTRING:
                self.stack.append(self.take(self.integer(1)))
            case pickle.BINSTRING:
                self.stack.append(self.take(self.integer(4)))
            case pickle.BINUNICODE:
                self.stack.append(self.text(self.integer(4)))
            case pickle.GLOBAL:
                self.stack.append(self.named())
            # tuples, lists, dicts
            case pickle.MARK:
                self.stack.append(MARK)
            case pickle.EMPTY_TUPLE:
                self.stack.append(())
            case pickle.TUPLE1:
                self.stack.append((self.pop(),))
            case pickle.TUPLE2:
                self.stack.append(self.pop_many(2))
            case pickle.TUPLE3:
                self.stack.append(self.pop_many(3))
            case pickle.TUPLE:
                self.stack.append(self.pop_to_mark())
            case pickle.EMPTY_LIST:
                self.stack.append([])
            case pickle.APPEND:
                self.extend((self.pop(),))
            case pickle.APPENDS:
                self.extend(self.pop_to_mark())
            case pickle.EMPTY_DICT:
                self.stack.append({})
            case pickle.SETITEM:
                self.update(self.pop_many(2))
            case pickle.SETITEMS:
                self.update(self.pop_to_mark())
            # the memo
            case pickle.BINPUT:
                self.memo[self.integer(1)] = self.top()
            case pickle.LONG_BINPUT:
                self.memo[self.integer(4)] = self.top()
            case pickle.BINGET:
                self.stack.append(self.fetched(self.integer(1)))
            case pickle.LONG_BINGET:
                self.stack.append(self.fetched(self.integer(4)))
            # arrays
            case pickle.REDUCE:
                arguments, function = self.pop(), self.pop()
                self.stack.append(self.called(function, arguments))
            case pickle.BUILD:
                state, target = self.pop(), self.pop()
                self.stack.append(self.built(target, state))
            case _:
                self.refuse(f"the instruction {instruction!r}", "one that a batch of CIFAR-10 needs")

    def refuse(self, found: str, expected: str) -> NoReturn:
        raise DatasetError(f"{self.where}: byte {self.position}: found {found}; expected {expected}")

    # --- the content

    def take(self, count: int) -> bytes:
        taken = self.content[self.position : self.position + count]
        if len(taken) != count:
            self.refuse("the end of the pickle", f"{count} bytes more")
        self.position += count
        return taken

    def integer(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "little", signed=signed)

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a text that is no UTF-8", "UTF-8")

    def named(self) -> Name:
        """A module and a name in it, each ended by a newline; only three are known, and they are names still."""
        lines = self.content[self.position : self.position + MAX_NAME_BYTES].split(b"\n", 2)
        name = b" ".join(lines[:2]).decode("latin-1")
        if len(lines) != 3 or name not in NAMES:
            self.refuse(f"the name {name!r}", f"one of {', '.join(NAMES)}")
        self.position += len(name) + 1
        return NAMES[name]

    # --- the stack

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            self.refuse("an instruction for an object that is not there", "an object on the stack")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        """The last objects, the last one last."""
        return tuple(self.pop() for _ in range(count))[::-1]

    def pop_to_mark(self) -> tuple[Any, ...]:
        """The objects behind the last mark; they and the mark leave the stack."""
        items = []
        while self.stack and self.stack[-1] is not MARK:
            items.append(self.stack.pop())
        if not self.stack:
            self.refuse("a collection that was not begun", "a mark on the stack")
        self.stack.pop()
        return tuple(reversed(items))

    def extend(self, items: tuple[Any, ...]) -> None:
        target = self.top()
        if type(target) is not list:
            self.refuse(f"an element for a {type(target).__name__}", "a list")
        target.extend(items)

    def update(self, items: tuple[Any, ...]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            self.refuse(f"{len(items)} keys and values for a {type(target).__name__}", "an even number for a dict")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (bytes, str) or key in target:
                self.refuse("a key that is no string, or there already", "strings, each once")
            target[key] = value

    def fetched(self, index: int) -> Any:
        value = self.memo.get(index)
        if type(value) not in (int, bytes, str, Name):
            self.refuse(f"a reference to a {type(value).__name__}", "one to a number, a string or a name")
        return value

    # --- arrays

    def called(self, function: Any, arguments: Any) -> Name:
        """The two calls by which NumPy's pickles begin an array and a dtype."""
        if function is RECONSTRUCT and same(arguments, (NDARRAY, (0,), b"b")):
            return EMPTY_ARRAY
        if function is DTYPE and same(arguments, (b"u1", 0, 1)):
            return UINT8
        self.refuse("a call", "the one that begins an array, or the dtype uint8")

    def built(self, target: Any, state: Any) -> Any:
        """A dtype, or an array, with what its pickle says of it: version, shape, dtype, order, content."""
        if target is UINT8 and same(state, (3, b"|", None, None, None, -1, -1, 0)):
            return UINT8
        if target is EMPTY_ARRAY and type(state) is tuple and len(state) == 5:
            version, shape, dtype, is_fortran, content = state
            if same((version, dtype), (1, UINT8)) and type(shape) is tuple and type(content) is bytes:
                if list(map(type, shape)) == [int, int] and min(shape) > 0 and prod(shape) == len(content):
                    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran is True else "C")
        self.refuse("the state of some object", "that of dtype uint8, or of a whole uint8 array of two dimensions")


def same(value: Any, expected: Any) -> bool:
    """Whether value and type agree, in tuples those of every member. An array is not asked: it has no one answer."""
    if type(value) is not type(expected):
        return False
    if isinstance(expected, tuple):
        return len(value) == len(expected) and all(map(same, value, expected))
    return bool(value == expected)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One of the two archives.

    Attributes:
        folder: the one that all its files lie in.
        suffix: of a batch's file.
        meta: the file with the names of the classes.
        read_batch: a batch's planes, uint8 `(N, 3072)`, and labels, int64 `(N,)`, of its content and a name for errors.
        read_names: the names of the classes, of the content of `meta` and a name for errors.
    """

    folder: str
    suffix: str
    meta: str
    read_batch: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[bytes, str], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        return self.meta, *(self.batch_file(batch) for batches in SPLITS.values() for batch in batches)

    def batch_file(self, batch: str) -> str:
        return batch + self.suffix


def pickled(content: bytes, where: str, *keys: bytes) -> list[Any]:
    """What a pickled dict has under these keys.

    Raises:
        DatasetError: if it is none, or a key is missing.
    """
    found = PickleReader(content, where).load()
    expect(type(found) is dict, where, f"a {type(found).__name__}", "a dict")
    for key in keys:
        expect(key in found, where, f"no {key.decode()!r}", "a dict with " + b", ".join(keys).decode())
    return [found[key] for key in keys]


def python_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    planes, labels = pickled(content, where, b"data", b"labels")
    whole = isinstance(planes, np.ndarray) and planes.shape[1] == IMAGE_BYTES
    expect(whole, where, "other data", f"an array of {IMAGE_BYTES} bytes an image")
    integers = type(labels) is list and all(type(label) is int for label in labels)
    expect(integers and len(labels) == len(planes), where, "other labels", f"a list of {len(planes)} integers")
    return planes, np.array(labels, dtype=np.int64)


def python_names(content: bytes, where: str) -> tuple[str, ...]:
    (names,) = pickled(content, where, b"label_names")
    strings = type(names) is list and all(type(name) is bytes for name in names)
    expect(strings, where, "other names", "a list of strings")
    return tuple(name.decode("latin-1") for name in names)


def binary_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    expect(len(content) % RECORD_BYTES == 0, where, f"{len(content)} bytes", f"a multiple of {RECORD_BYTES}")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    return records[:, 1:], records[:, 0].astype(np.int64)


def binary_names(content: bytes, where: str) -> tuple[str, ...]:
    return tuple(name for line in content.decode("latin-1").split("\n") if (name := line.strip()))


LAYOUTS = (
    Layout("cifar-10-batches-py", "", "batches.meta", python_batch, python_names),
    Layout("cifar-10-batches-bin", ".bin", "batches.meta.txt", binary_batch, binary_names),
)


def convert_batches(layout: Layout, files: Mapping[str, bytes | memoryview], origin: str, where: Path) -> list[Dataset]:
    """The splits `train` and `test`.

    Args:
        files: the content of `layout.files`.
        where: what errors name.

    Raises:
        DatasetError: if a file is missing, or not what it should be.
    """
    for name in layout.files:
        expect(name in files, where, f"no file {name}", ", ".join(layout.files))
        size = len(files[name])
        expect(0 < size <= MAX_BATCH_BYTES, f"{where}: {name}", f"{size} bytes", f"1 to {MAX_BATCH_BYTES}")
    names = layout.read_names(bytes(files[layout.meta]), f"{where}: {layout.meta}")
    expect(len(names) == CLASSES, f"{where}: {layout.meta}", f"{len(names)} class names", f"{CLASSES}")
    provenance = f"cifar10: {origin}; {SPLIT_RULE}"
    datasets = []
    for split, batches in SPLITS.items():
        planes, labels = [], []
        for batch in batches:
            show_progress(f"reading {batch}")
            name = layout.batch_file(batch)
            batch_planes, batch_labels = layout.read_batch(bytes(files[name]), f"{where}: {name}")
            planes.append(batch_planes)
            labels.append(batch_labels)
        datasets.append(Dataset(images_of(np.concatenate(planes)), np.concatenate(labels), names, provenance, split))
    return datasets


def images_of(planes: np.ndarray) -> np.ndarray:
    """Images `(N, 32, 32, 3)` of planes `(N, 3072)`: red, green, blue, each row by row."""
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


# --- sources ----------------------------------------------------------------------------------------------------------


def convert_archive(path: Path) -> list[Dataset]:
    """Either of the archives.

    Raises:
        DatasetError: if it is damaged, or another.
    """
    show_progress(f"reading {path}")
    content = file_content(path)
    known = {f"{layout.folder}/{name}" for layout in LAYOUTS for name in layout.files}
    members = tar_members(content, known.__contains__, path)
    origin = f"archive {printable(path.name)!r} of SHA-256 {hashlib.sha256(content).hexdigest()}"
    for layout in LAYOUTS:
        prefix = f"{layout.folder}/"
        files = {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}
        if files:
            return convert_batches(layout, files, origin, path)
    raise DatasetError(f"{path}: found no batch; expected {' or '.join(layout.folder for layout in LAYOUTS)} in it")


def convert_folder(folder: Path) -> list[Dataset]:
    """A folder of either archive, or one of images.

    Raises:
        DatasetError: if it is none of these.
    """
    for layout in LAYOUTS:
        if (folder / layout.meta).exists():
            files = {name: file_content(folder / name, MAX_BATCH_BYTES) for name in layout.files}
            lines = b"".join(checksum_line(name, files[name]) for name in layout.files)
            checksums = f"SHA-256 over the lines of sha256sum of {', '.join(layout.files)}"
            origin = f"folder {printable(folder.resolve().name)!r}, {checksums} {hashlib.sha256(lines).hexdigest()}"
            return convert_batches(layout, files, origin, folder)
    if all((folder / split).is_dir() for split in SPLITS):
        return convert_images(folder)
    metas = ", ".join(layout.meta for layout in LAYOUTS)
    raise DatasetError(f"{folder}: found no CIFAR-10; expected one of {metas}, or folders train and test of images")


def convert_images(folder: Path) -> list[Dataset]:
    """A folder {train,test}/CLASS/IMAGE.

    Raises:
        DatasetError: if the classes differ, or an image is not of 32x32 pixels.
    """
    sources: list[Source] = []
    classes: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        found, classes[split] = source_files(folder / split, flat=False, split=split)
        expect(len(found) > 0, folder / split, "no image", "a folder a class, with images")
        sources += [replace(source, relative=f"{split}/{source.relative}") for source in found]
    same_classes = classes["train"] == classes["test"]
    expect(same_classes, folder, f"train of {len(classes['train'])} classes, test of others", "the same in both")
    origin = f"cifar10: folder {printable(folder.resolve().name)!r}; train and test as in its folders"
    return convert(sources, Form((SIDE, SIDE), resize=False), classes["train"], origin)


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argument_parser("cifar10", __doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="an archive or a folder")
    add_output(parser)
    options = parser.parse_args(arguments)
    source: Path = options.source
    return run(options, lambda: convert_folder(source) if source.is_dir() else convert_archive(source))


if __name__ == "__main__":
    sys.exit(main())
