"""CIFAR-10: every form of it gives the same pixels, and no archive or pickle can do more than be refused."""

from __future__ import annotations

import collections
import gzip
import hashlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import pytest
from damage import damaged
from PIL import Image

from intsmooth_ref import strict_hdf5
from intsmooth_ref.data_tools import cifar10, converter
from intsmooth_ref.data_tools.cifar10 import PickleReader
from intsmooth_ref.dataset import Dataset, load_dataset
from intsmooth_ref.errors import DatasetError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

#: MD5 of the official `batches.meta`, as torchvision publishes it (`torchvision/datasets/cifar.py`).
META_MD5 = "5ff9c542aee3614f3951f8cda6e48888"


# --- the two official layouts, written out by hand


class Python2Pickle:
    """What Python 2's `cPickle.dumps(value, 2)` writes for dicts, lists, byte strings, integers and uint8 matrices."""

    def __init__(self) -> None:
        self.noted = 0

    def put(self) -> bytes:
        self.noted += 1
        return b"q" + bytes([self.noted]) if self.noted < 256 else b"r" + struct.pack("<I", self.noted)

    def value(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
            return head + value + (self.put() if len(value) < 256 else b"")
        if isinstance(value, int):
            for code, layout, limit in ((b"K", "<B", 1 << 8), (b"M", "<H", 1 << 16)):
                if 0 <= value < limit:
                    return code + struct.pack(layout, value)
            return b"J" + struct.pack("<i", value)
        if isinstance(value, dict):
            start = b"}" + self.put() + b"("
            return start + b"".join(self.value(each) for item in value.items() for each in item) + b"u"
        if isinstance(value, list):
            parts = [b"]" + self.put()]
            for first in range(0, len(value), 1000):
                parts += [b"(", *(self.value(each) for each in value[first : first + 1000]), b"e"]
            return b"".join(parts)
        return self.matrix(value)

    def matrix(self, array: np.ndarray) -> bytes:
        return b"".join([
            b"cnumpy.core.multiarray\n_reconstruct\n", self.put(), b"cnumpy\nndarray\n", self.put(),
            b"K\0\x85U\1b\x87R", self.put(), b"(K\1", *map(self.value, array.shape), b"\x86",
            b"cnumpy\ndtype\n", self.put(), b"U\2u1K\0K\1\x87R", self.put(),
            b"(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89", self.value(array.tobytes()), b"tb",
        ])  # fmt: skip


def python2(value: Any) -> bytes:
    return b"\x80\2" + Python2Pickle().value(value) + b"."


def plane_bytes(image: np.ndarray) -> bytes:
    """The page of the data set: 1024 bytes red, 1024 green, 1024 blue, each row by row."""
    return bytes(int(image[y, x, c]) for c in range(3) for y in range(32) for x in range(32))


def batch_images(index: int, count: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(index)
    return random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8), random.integers(0, 10, count).tolist()


BATCH_CONTENT = {name: batch_images(index, 2 + index % 2) for index, name in enumerate(BATCHES)}


def python_batch(name: str) -> bytes:
    images, labels = BATCH_CONTENT[name]
    data = np.frombuffer(b"".join(map(plane_bytes, images)), np.uint8).reshape(-1, 3072)
    files = [b"some_%06d.png" % number for number in range(len(images))]
    return python2({b"batch_label": b"batch " + name.encode(), b"labels": labels, b"data": data, b"filenames": files})


def binary_batch(name: str) -> bytes:
    return b"".join(bytes([label]) + plane_bytes(image) for image, label in zip(*BATCH_CONTENT[name]))


META = python2({
    b"num_cases_per_batch": 10000, b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072,
})  # fmt: skip
PYTHON_FILES = {"batches.meta": META, "readme.html": b"<html>", **{name: python_batch(name) for name in BATCHES}}
BINARY_FILES = {
    "batches.meta.txt": "".join(f"{name}\n" for name in NAMES).encode() + b"\n",
    **{f"{name}.bin": binary_batch(name) for name in BATCHES},
}
LAYOUTS = {"cifar-10-batches-py": PYTHON_FILES, "cifar-10-batches-bin": BINARY_FILES}


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    return found


def tar(folder: str, files: dict[str, bytes], more: Sequence[tuple[tarfile.TarInfo, bytes]] = ()) -> bytes:
    """A tar archive as the official ones are: GNU format, the folder first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member(folder, kind=tarfile.DIRTYPE))
        for name, content in files.items():
            archive.addfile(member(f"{folder}/{name}", len(content)), io.BytesIO(content))
        for info, content in more:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_gz(folder: str, files: dict[str, bytes], more: Sequence[tuple[tarfile.TarInfo, bytes]] = ()) -> bytes:
    return gzip.compress(tar(folder, files, more), 1, mtime=0)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def expected(batches: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    images = np.concatenate([BATCH_CONTENT[name][0] for name in batches])
    return images, [label for name in batches for label in BATCH_CONTENT[name][1]]


# --- running the converter


def convert(source: Path, output: Path) -> tuple[Dataset, Dataset]:
    assert cifar10.main([str(source), str(output), "--overwrite"]) == 0
    return load_dataset(output, "train"), load_dataset(output, "test")


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    """The one line that a run which must fail says; it leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    assert cifar10.main([str(source), str(source.parent / "out.h5"), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(source.parent.iterdir()) == before
    return captured.err.rstrip("\n")


def archive_with(tmp_path: Path, **changed: bytes | None) -> Path:
    """The Python archive with some files changed, or without them."""
    files = {name: content for name, content in {**PYTHON_FILES, **changed}.items() if content is not None}
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(tar_gz("cifar-10-batches-py", files))
    return path


# --- pixels, labels, splits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["archive", "unzipped archive", "folder"])
def test_each_official_form_gives_the_same_pixels_and_labels(tmp_path: Path, layout: str, form: str) -> None:
    source = tmp_path / "source"
    if form == "folder":
        written(source, LAYOUTS[layout])
    else:
        source.write_bytes((tar_gz if form == "archive" else tar)(layout, LAYOUTS[layout]))
    train, test = convert(source, tmp_path / "out.h5")
    for dataset, batches in ((train, BATCHES[:5]), (test, BATCHES[5:])):
        images, labels = expected(batches)
        assert np.array_equal(dataset.images, images)
        assert (dataset.labels.tolist(), dataset.class_names) == (labels, NAMES)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    source = archive_with(tmp_path)
    outputs = tmp_path / "one.h5", tmp_path / "two.h5"
    for output in outputs:
        convert(source, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_the_provenance_names_the_source_its_hash_and_the_rule_of_the_splits(tmp_path: Path) -> None:
    source = archive_with(tmp_path)
    rule = "train is data_batch_1 to data_batch_5 in this order, test is test_batch"
    for dataset in convert(source, tmp_path / "out.h5"):
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        assert dataset.provenance == f"cifar10: archive 'cifar-10-python.tar.gz' of SHA-256 {digest}; {rule}"
    folder = written(tmp_path / "cifar-10-batches-bin", BINARY_FILES)
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in BINARY_FILES.items())
    for dataset in convert(folder, tmp_path / "out.h5"):
        assert hashlib.sha256(lines.encode()).hexdigest() in dataset.provenance
        assert dataset.provenance.endswith(rule) and str(tmp_path) not in dataset.provenance


def test_images_in_folders_keep_their_pixels(tmp_path: Path) -> None:
    for split, batches in (("train", BATCHES[:5]), ("test", BATCHES[5:])):
        for index, (image, label) in enumerate(zip(*expected(batches))):
            for name in NAMES:
                (tmp_path / "images" / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "images" / split / NAMES[label] / f"{index:04}.png")
    for dataset, batches in zip(convert(tmp_path / "images", tmp_path / "out.h5"), (BATCHES[:5], BATCHES[5:])):
        images, labels = expected(batches)
        order = sorted(range(len(labels)), key=lambda index: (labels[index], index))
        assert np.array_equal(dataset.images, images[order])
        assert (dataset.labels.tolist(), dataset.class_names) == (sorted(labels), NAMES)
        assert f"{len(labels)} files, 0 left out; RGB, as they are; decoded by Pillow" in dataset.provenance


def small_image(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_images_of_another_size_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_image(tmp_path / "images" / "train" / "cat" / "1.png")
    small_image(tmp_path / "images" / "test" / "cat" / "1.png", (33, 32))
    line = refused(capsys, tmp_path / "images")
    assert line == "error: test/cat/1.png: found 32x33 pixels (height x width); expected 32x32"


def test_images_of_other_classes_in_test_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_image(tmp_path / "images" / "train" / "cat" / "1.png")
    small_image(tmp_path / "images" / "test" / "dog" / "1.png")
    assert "expected the same in both" in refused(capsys, tmp_path / "images")


def test_a_split_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_image(tmp_path / "images" / "train" / "cat" / "1.png")
    (tmp_path / "images" / "test").mkdir()
    where = tmp_path / "images" / "test"
    assert refused(capsys, tmp_path / "images").startswith(f"error: {where}: found no image; expected")


# --- pickles


def unpickled(content: bytes) -> Any:
    return PickleReader(content, "pickle").load()


def test_the_pickles_of_these_tests_are_as_the_official_ones() -> None:
    assert hashlib.md5(META).hexdigest() == META_MD5


def equal(one: Any, other: Any) -> bool:
    """Of the same types at every depth, and of the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


GOOD_PICKLES = {
    "batches.meta": META,
    "batch": python_batch("data_batch_1"),
    "long list": python2(list(range(2500))),
    "integers": python2([0, 255, 256, 65535, 65536, 2**31 - 1, -1, -(2**31)]),
    "long string": python2([b"x" * 255, b"y" * 256]),
    "memo beyond 255": python2([b"%d" % number for number in range(300)]),
    "small tuples": b"\x80\2()K\1\x85K\1K\2\x86K\1K\2K\3\x87t.",
    "constants": b"\x80\2(N\x88\x89t.",
    "text": b"\x80\2X\2\0\0\0\xc3\xa9.",
    "one element, one item": b"\x80\2]K\1a}U\1aK\2s\x86.",
    "references": b"\x80\2(U\1aq\1h\1K\7r\0\1\0\0j\0\1\0\0t.",
    "fortran order": python2(np.arange(6, dtype=np.uint8).reshape(2, 3)).replace(b"\x89U\6", b"\x88U\6"),
}


@pytest.mark.parametrize("name", GOOD_PICKLES)
def test_harmless_pickles_give_what_python_makes_of_them(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2 has moved `numpy.core`
        oracle = pickle.loads(GOOD_PICKLES[name], encoding="bytes")
    assert equal(unpickled(GOOD_PICKLES[name]), oracle)


class Malice:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


CALLED: list[str] = []


def canary(*arguments: object) -> None:
    CALLED.append("called")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function, arguments",
    [
        (canary, ()), (os.system, ("exit 1",)), (eval, ("1",)), (exec, ("1",)), (getattr, ([], "append")),
        (np.fromfile, ("/dev/zero", "u1", 9)), (np.load, ("a.npy",)), (np.ndarray, ((1 << 40,),)), (np.dtype, ("O",)),
        (np.frombuffer, (b"a",)), (collections.OrderedDict, ()), (bytearray, (1 << 40,)), (bytes, (1 << 40,)),
    ],
)  # fmt: skip
def test_a_pickle_that_calls_a_function_is_refused(function: Any, arguments: Any, protocol: int) -> None:
    content = pickle.dumps(Malice(function, *arguments), protocol)
    for each in (content, content.replace(content[:2], b"\x80\2", 1), b"\x80\2" + content):
        with pytest.raises(DatasetError):
            unpickled(each)
    assert not CALLED


def test_the_canary_would_have_sung() -> None:
    pickle.loads(pickle.dumps(Malice(canary), 2))
    assert CALLED.pop() == "called"


def reconstruct(shape: bytes = b"K\0\x85", kind: bytes = b"cnumpy\nndarray\n") -> bytes:
    return b"cnumpy.core.multiarray\n_reconstruct\n" + kind + shape + b"U\1b\x87R"


def dtype(code: bytes = b"u1", order: bytes = b"|") -> bytes:
    begun = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\0K\1\x87R"
    return begun + b"(K\3U\1" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def array(shape: bytes, kind: bytes = dtype(), content: bytes = b"U\4abcd", start: bytes = reconstruct()) -> bytes:
    return start + b"(K\1" + shape + kind + b"\x89" + content + b"tb"


BAD_PICKLES = {
    "nothing": b"",
    "no protocol": b"N.",
    "protocol 3": b"\x80\3N.",
    "no end": b"\x80\2N",
    "no object": b"\x80\2.",
    "two objects": b"\x80\2NN.",
    "a mark for an object": b"\x80\2(.",
    "something behind the end": b"\x80\2N.N",
    "a list in itself": b"\x80\2]q\1h\1a.",
    "a dict in itself": b"\x80\2}q\1U\1ah\1s.",
    "a tuple in its list": b"\x80\2]q\1(h\1tq\2a.",
    "doubled lists": b"\x80\2" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 40)) + b".",
    "a reference to nothing": b"\x80\2h\1.",
    "a reference to a tuple": b"\x80\2(tq\1h\1\x86.",
    "a string of 4 GiB": b"\x80\2T\xff\xff\xff\xffa.",
    "a short string cut off": b"\x80\2U\5ab.",
    "a text that is none": b"\x80\2X\1\0\0\0\xff.",
    "a memo of 4 GiB": b"\x80\2Nr\xff\xff\xff\xff",
    "an integer cut off": b"\x80\2M\1",
    "a name cut off": b"\x80\2cnumpy\nndarray",
    "a long name": b"\x80\2c" + b"n" * 10000 + b"\nndarray\n.",
    "an unknown name": b"\x80\2cos\nsystem\n.",
    "a module with a newline for a space": b"\x80\2cnumpy ndarray\n\n.",
    "a tuple without mark": b"\x80\2NNt.",
    "an element for no list": b"\x80\2NNa.",
    "elements for a mark": b"\x80\2((e.",
    "elements for a dict": b"\x80\2}(NNe.",
    "an item for a list": b"\x80\2]NNs.",
    "an odd number of items": b"\x80\2}(U\1au.",
    "a key twice": b"\x80\2}(U\1aNU\1aNu.",
    "a key that is a list": b"\x80\2}]Ns.",
    "a key that is a deep tuple": b"\x80\2}" + b")" + b"\x85" * 100000 + b"Ns.",
    "a call of an array": b"\x80\2cnumpy\nndarray\nK\1\x85\x85R.",
    "a call of nothing": b"\x80\2N)R.",
    "another class of array": b"\x80\2" + reconstruct(kind=b"cnumpy\ndtype\n") + b".",
    "an array that starts with content": b"\x80\2" + reconstruct(shape=b"M\xff\xff\x85") + b".",
    "an object array": b"\x80\2" + array(b"K\1K\4\x86", dtype(b"O8")) + b".",
    "a float array": b"\x80\2" + array(b"K\1K\1\x86", dtype(b"f4", b"<")) + b".",
    "a dtype of another order": b"\x80\2" + array(b"K\1K\4\x86", dtype(order=b">")) + b".",
    "an array for a dtype": b"\x80\2" + array(b"K\1K\4\x86", array(b"K\1K\4\x86")) + b".",
    "an array of one dimension": b"\x80\2" + array(b"K\4\x85") + b".",
    "an array of a wrong size": b"\x80\2" + array(b"K\2K\4\x86") + b".",
    "an array of 4 EiB": b"\x80\2" + array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86") + b".",
    "an array of negative size": b"\x80\2" + array(b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86") + b".",
    "an array of inferred size": b"\x80\2" + array(b"J\xff\xff\xff\xffK\4\x86") + b".",
    "an array of nothing": b"\x80\2" + array(b"K\0K\4\x86", content=b"U\0") + b".",
    "an array of bool size": b"\x80\2" + array(b"\x88K\4\x86") + b".",
    "an array of a list": b"\x80\2" + array(b"K\0K\0\x86", content=b"]") + b".",
    "a state for a list": b"\x80\2]}b.",
    "a state for a name": b"\x80\2cnumpy\nndarray\n}b.",
    "too much to do": b"\x80\2(" + b"N" * cifar10.MAX_INSTRUCTIONS + b"t.",
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_a_pickle_that_is_no_tree_of_plain_values_is_refused(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(DatasetError, match=r"^pickle: byte \d+: found [^\n]{1,120}; expected [^\n]+$"):
        unpickled(BAD_PICKLES[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 20) + 100 * len(BAD_PICKLES[name])


def test_every_other_instruction_of_pickle_is_refused() -> None:
    known = set(b"KMJN\x88\x89UTXc()\x85\x86\x87t]ae}suqrhjRb.")
    others = [each.code.encode("latin-1") for each in pickletools.opcodes if ord(each.code) not in known]
    assert len(others) == len(pickletools.opcodes) - 29  # and PROTO, which may stand at the start only
    for instruction in others:
        with pytest.raises(DatasetError, match="found the instruction"):
            unpickled(b"\x80\2" + b"(]}NU\1a" + instruction + b"\1\0\0\0\n\n.")


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else() -> None:
    content = python2({b"data": np.zeros((1, 5), np.uint8), b"labels": [3, 1], b"filenames": [b"a.png", b"b.png"]})
    for variant in [content[:length] for length in range(len(content))] + damaged(content, 3000):
        try:
            unpickled(variant)
        except DatasetError as problem:
            assert "\n" not in str(problem)


# --- archives


@pytest.mark.parametrize(
    "info",
    [
        member("cifar-10-batches-py/test_batch", kind=tarfile.SYMTYPE),
        member("cifar-10-batches-py/test_batch", kind=tarfile.LNKTYPE),
        member("cifar-10-batches-py/test_batch", kind=tarfile.DIRTYPE),
        member("cifar-10-batches-py/test_batch", kind=tarfile.CHRTYPE),
        member("cifar-10-batches-py/test_batch", kind=tarfile.FIFOTYPE),
        member("cifar-10-batches-py/test_batch", kind=tarfile.GNUTYPE_SPARSE),
    ],
)
def test_a_batch_that_is_no_plain_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], info: tarfile.TarInfo
) -> None:
    info.linkname = "/etc/passwd"
    source = tmp_path / "cifar.tar.gz"
    files = {name: content for name, content in PYTHON_FILES.items() if name != "test_batch"}
    source.write_bytes(tar_gz("cifar-10-batches-py", files, [(info, b"")]))
    line = refused(capsys, source)
    assert line == f"error: {source}: found cifar-10-batches-py/test_batch as no plain file; expected a plain file"


def test_a_batch_with_holes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sparse file in the form of PAX looks like a plain one, but its content is a map of its holes first."""
    name = "cifar-10-batches-py/test_batch"
    source = tmp_path / "cifar.tar.gz"
    with tarfile.open(source, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = member("cifar-10-batches-py/GNUSparseFile.1/test_batch", 512)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
        info.pax_headers["GNU.sparse.name"] = name
        archive.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    assert refused(capsys, source) == f"error: {source}: found {name} as no plain file; expected a plain file"


def test_a_batch_that_stands_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = PYTHON_FILES["test_batch"]
    source = tmp_path / "cifar.tar.gz"
    more = [(member("./cifar-10-batches-py/test_batch", len(again)), again)]
    source.write_bytes(tar_gz("cifar-10-batches-py", PYTHON_FILES, more))
    assert "found cifar-10-batches-py/test_batch twice; expected each name once" in refused(capsys, source)


def test_other_members_are_passed_over_and_nothing_is_unpacked(tmp_path: Path) -> None:
    strangers = [
        (member("../outside", 3), b"bad"), (member(str(tmp_path / "absolute"), 3), b"bad"),
        (member("cifar-10-batches-py/sub/../test_batch", 3), b"bad"), (member("other/test_batch", 3), b"bad"),
        (member("n" * 300, 3), b"bad"), (member("pipe", kind=tarfile.FIFOTYPE), b""),
    ]  # fmt: skip
    source = tmp_path / "in" / "cifar.tar.gz"
    source.parent.mkdir()
    source.write_bytes(tar_gz("cifar-10-batches-py", PYTHON_FILES, strangers))
    _, test = convert(source, tmp_path / "in" / "out.h5")
    assert np.array_equal(test.images, expected(BATCHES[5:])[0])
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["cifar.tar.gz", "in", "out.h5"]


def test_an_archive_with_pax_headers_is_read(tmp_path: Path) -> None:
    """As macOS and Python write them."""
    source = tmp_path / "cifar.tar.gz"
    folder = written(tmp_path / "cifar-10-batches-bin", BINARY_FILES)
    with tarfile.open(source, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, "./cifar-10-batches-bin", filter=lambda info: info.replace(mtime=1.5, deep=False))
    _, test = convert(source, tmp_path / "out.h5")
    assert np.array_equal(test.images, expected(BATCHES[5:])[0])


def cut(content: bytes, length: int) -> bytes:
    return content[:length]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


TAR = tar("cifar-10-batches-py", PYTHON_FILES)
TAR_END = len(TAR.rstrip(b"\0")) // 512 * 512 + 512
TAR_GZ = gzip.compress(TAR, 1, mtime=0)

DAMAGED_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"404 Not Found\n",
    "half of a gzip file": lambda: cut(TAR_GZ, len(TAR_GZ) // 2),
    "a gzip file without its checksum": lambda: cut(TAR_GZ, len(TAR_GZ) - 8),
    "a wrong checksum": lambda: flipped(TAR_GZ, len(TAR_GZ) - 6),
    "a wrong bit in the middle": lambda: flipped(TAR_GZ, len(TAR_GZ) // 2),
    "something behind the gzip file": lambda: TAR_GZ + b"more",
    "half of a tar file": lambda: cut(TAR, 512 * 20),
    "a tar file cut off between two members": lambda: cut(TAR, TAR_END),
    "a tar file with a wrong header": lambda: flipped(TAR, TAR.index(b"cifar-10-batches-py/data_batch_3")),
    "something behind the tar file": lambda: TAR + b"more",
    "an extended header of 8 GiB": lambda: (
        member("x", 8**11 - 1, tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    ),
    "long names without end": lambda: member("x", 512, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) * 4000,
    "a member of negative size": lambda: (
        member("y", 0).tobuf(tarfile.GNU_FORMAT) + member("x", -1024).tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    ),
    "a member that leads back": lambda: (
        TAR[:TAR_END] + member("./cifar-10-batches-py/no", -512 * 9).tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    ),
}


@pytest.mark.parametrize("name", DAMAGED_ARCHIVES)
def test_a_damaged_archive_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = tmp_path / "cifar.tar.gz"
    source.write_bytes(DAMAGED_ARCHIVES[name]())
    assert f"{source}: found " in refused(capsys, source)


def test_damage_within_an_archive_is_noticed_or_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gzip has a checksum of its content; only its own header may change unnoticed."""
    source = tmp_path / "cifar.tar.gz"
    content = gzip.compress(tar("cifar-10-batches-py", {"batches.meta": META, "test_batch": b"x" * 40}), 9, mtime=0)
    for variant in damaged(content, 300):
        source.write_bytes(variant)
        line = refused(capsys, source)
        assert "found a damaged archive" in line or "found no " in line
        if "found no file data_batch_1" in line:
            assert gzip.decompress(variant) == gzip.decompress(content)


def test_a_gzip_bomb_is_given_up_at_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bomb.tar.gz"
    source.write_bytes(gzip.compress(bytes(1 << 26)))
    monkeypatch.setattr(converter, "MAX_ARCHIVE_BYTES", 1 << 22)
    tracemalloc.start()
    line = refused(capsys, source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line == f"error: {source}: found more than 4194304 bytes unpacked; expected a smaller archive"
    assert peak < 1 << 24


def test_an_archive_of_countless_members_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bomb.tar.gz"
    source.write_bytes(gzip.compress(tar("x", {str(index): b"" for index in range(101)})))
    monkeypatch.setattr(converter, "MAX_ARCHIVE_MEMBERS", 100)
    assert refused(capsys, source) == f"error: {source}: found more than 100 files; expected fewer"


def test_a_batch_too_large_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "MAX_BATCH_BYTES", 5000)
    size = len(PYTHON_FILES["data_batch_1"])
    source = archive_with(tmp_path)
    assert refused(capsys, source) == f"error: {source}: data_batch_1: found {size} bytes; expected 1 to 5000"
    line = refused(capsys, written(tmp_path / "folder", PYTHON_FILES))
    assert line.endswith("data_batch_1: found more than 5000 bytes; expected a smaller file")


# --- batches


def pickled_batch(data: Any, labels: Any) -> bytes:
    return python2({b"data": data, b"labels": labels})


PLANES = np.zeros((2, 3072), np.uint8)

BAD_FILES = {
    "batches.meta": [
        (python2([b"cat"]), "found a list; expected a dict"),
        (python2({b"names": [b"cat"]}), "found no 'label_names'; expected a dict with label_names"),
        (python2({b"label_names": [b"cat"] * 100}), "found 100 class names; expected 10"),
        (python2({b"label_names": [1] * 10}), "found other names; expected a list of strings"),
        (python2({b"label_names": [b"\n"] * 10}), "found the class name '\\n'; expected printable text"),
        (b"", "found 0 bytes; expected 1 to"),
        (None, "found no file batches.meta; expected batches.meta, data_batch_1, "),
    ],
    "data_batch_3": [
        (pickled_batch(PLANES, [1]), "found other labels; expected a list of 2 integers"),
        (pickled_batch(PLANES, [1, b"2"]), "found other labels; expected a list of 2 integers"),
        (pickled_batch(PLANES, b"12"), "found other labels; expected a list of 2 integers"),
        (pickled_batch(PLANES[:, 1:], [1, 2]), "found other data; expected an array of 3072 bytes an image"),
        (pickled_batch(b"12", [1, 2]), "found other data; expected an array of 3072 bytes an image"),
        (python2({b"data": PLANES}), "found no 'labels'; expected a dict with data, labels"),
        (pickled_batch(PLANES, [1, 10]), "expected 0 to 9, or -1 for unknown"),
        (None, "found no file data_batch_3; expected"),
    ],
}


@pytest.mark.parametrize("name, content, message", [(n, *each) for n, every in BAD_FILES.items() for each in every])
def test_a_batch_that_is_not_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    assert message in refused(capsys, archive_with(tmp_path, **{name: content}))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("test_batch.bin", bytes(3072), "found 3072 bytes; expected a multiple of 3073"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "found label 10 of image 0; expected 0 to 9"),
        ("batches.meta.txt", b"cat\ndog\n", "found 2 class names; expected 10"),
        ("batches.meta.txt", b"\0\n" * 10, "expected printable text"),
    ],
)
def test_a_binary_batch_that_is_not_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    source = tmp_path / "cifar-10-binary.tar.gz"
    source.write_bytes(tar_gz("cifar-10-batches-bin", {**BINARY_FILES, name: content}))
    assert message in refused(capsys, source)


def test_a_folder_without_one_of_its_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "folder", BINARY_FILES)
    (folder / "data_batch_4.bin").unlink()
    line = refused(capsys, folder)
    assert line == f"error: {folder / 'data_batch_4.bin'}: found no such file; expected one to read"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = refused(capsys, tmp_path / "pipe")
    assert line == f"error: {tmp_path / 'pipe'}: found no regular file; expected one to read"


def test_an_archive_or_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "other.tar.gz"
    source.write_bytes(tar_gz("cifar-100-python", {"meta": b"x"}))
    expected_folders = "cifar-10-batches-py or cifar-10-batches-bin in it"
    assert refused(capsys, source) == f"error: {source}: found no batch; expected {expected_folders}"
    (tmp_path / "folder").mkdir()
    assert "found no CIFAR-10; expected one of batches.meta, batches.meta.txt" in refused(capsys, tmp_path / "folder")
    assert refused(capsys, tmp_path / "no").endswith("no: found no such file; expected one to read")


# --- the program


def test_an_interrupted_run_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = archive_with(tmp_path), tmp_path / "out.h5"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for module, step in ((cifar10, "images_of"), (converter, "save_dataset"), (strict_hdf5.os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, interrupted)
            assert cifar10.main([str(source), str(output)]) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert list(tmp_path.iterdir()) == [source]
    assert cifar10.main([str(source), str(output)]) == 0
    assert len(load_dataset(output, "train").images) == 12


def test_what_exists_is_kept_without_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = archive_with(tmp_path), tmp_path / "out.h5"
    output.write_bytes(b"precious")
    assert refused(capsys, source).endswith("found a file already; expected none, or the option --overwrite")
    assert output.read_bytes() == b"precious"


def test_too_little_memory_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cifar10, "images_of", exhausted)
    assert "found too little memory; expected five times" in refused(capsys, archive_with(tmp_path))


def test_wrong_arguments_end_in_status_2() -> None:
    with pytest.raises(SystemExit) as stop:
        cifar10.main(["source"])
    assert stop.value.code == 2


def test_it_runs_as_a_module_and_says_what_it_wrote(tmp_path: Path) -> None:
    source, output = archive_with(tmp_path), tmp_path / "o.h5"
    command = [sys.executable, "-m", "intsmooth_ref.data_tools.cifar10", str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    header = b"intsmooth-ref images 1 12 32 32 3\n"
    digest = hashlib.sha256(header + expected(BATCHES[:5])[0].tobytes()).hexdigest()
    lines = done.stdout.splitlines()
    assert lines[0] == f"{output}: 12 images, 32x32x3, 10 classes, split 'train'"
    assert lines[1] == f"SHA-256 of the pixels {digest}"
    assert lines[2] == f"{output}: 3 images, 32x32x3, 10 classes, split 'test'"
