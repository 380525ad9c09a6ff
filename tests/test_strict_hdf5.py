"""HDF5 that is the same to the byte every time, and that takes nothing on trust."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Callable

import h5py
import numpy as np
import pytest

from intsmooth_ref import strict_hdf5
from intsmooth_ref.errors import DatasetError
from intsmooth_ref.strict_hdf5 import Group, GroupReader

MAX_BYTES = 1 << 20

#: SHA-256 of the file that holds `sample()`: one number for every version of the library.
SAMPLE_SHA256 = "fc1b91f63de307ad34d624b5056e04999169fe06d7eb417fa20fe7a249a23a0a"


def sample() -> Group:
    """One of everything that the dialect knows."""
    return Group(
        {"integer": -5, "text": "hé", "empty": "", "list": ("a", "bcd"), "numbers": np.array([1, -2]), "none": ()},
        {
            "four": np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4),
            "big_endian": np.arange(700, dtype=">u2"),
            "names": ("x", "yy"),
        },
        {"b": Group({"kind": "inner"}, {"w": np.full((3, 3), 7, np.int8)}), "a": Group()},
    )


def write_sample(path: Path) -> None:
    strict_hdf5.write(path, sample(), DatasetError)


def read(path: Path) -> Group:
    return strict_hdf5.read(path, DatasetError, MAX_BYTES)


def refusal(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The one line with which a file is refused; it begins with the file."""
    with pytest.raises(DatasetError) as caught:
        strict_hdf5.read(path, DatasetError, max_bytes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "expected" in message
    return message


def stranger(path: Path, fill: Callable[[h5py.File], Any], **options: Any) -> Path:
    """A file as another program writes it."""
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_sample(tmp_path / "file.h5")
    group = read(tmp_path / "file.h5")
    numbers = group.attributes["numbers"]
    assert isinstance(numbers, np.ndarray) and numbers.dtype == np.int64 and numbers.tolist() == [1, -2]
    others = {name: value for name, value in group.attributes.items() if name != "numbers"}
    assert others == {"integer": -5, "text": "hé", "empty": "", "list": ("a", "bcd"), "none": ()}
    four, big_endian = group.arrays["four"], group.arrays["big_endian"]
    assert isinstance(four, np.ndarray) and isinstance(big_endian, np.ndarray)
    assert four.dtype == np.int32 and four.shape == (1, 2, 3, 4) and four.reshape(-1).tolist() == list(range(24))
    assert big_endian.dtype == np.dtype("=u2") and big_endian.tolist() == list(range(700))
    assert group.arrays["names"] == ("x", "yy")
    assert sorted(group.groups) == ["a", "b"]
    inner = group.groups["b"]
    assert inner.attributes == {"kind": "inner"} and np.array_equal(inner.arrays["w"], [[7] * 3] * 3)


def test_arrays_that_were_read_are_read_only(tmp_path: Path) -> None:
    write_sample(tmp_path / "file.h5")
    four = read(tmp_path / "file.h5").arrays["four"]
    assert isinstance(four, np.ndarray) and not four.flags.writeable


def test_the_same_group_gives_the_same_bytes_with_every_version_of_the_library(tmp_path: Path) -> None:
    write_sample(tmp_path / "file.h5")
    assert hashlib.sha256((tmp_path / "file.h5").read_bytes()).hexdigest() == SAMPLE_SHA256


def test_the_order_of_a_mapping_does_not_reach_the_file(tmp_path: Path) -> None:
    backwards = [dict(reversed(list(each.items()))) for each in vars(sample()).values()]
    strict_hdf5.write(tmp_path / "file.h5", Group(*backwards), DatasetError)
    assert hashlib.sha256((tmp_path / "file.h5").read_bytes()).hexdigest() == SAMPLE_SHA256


def test_the_same_group_gives_the_same_bytes_in_another_process_and_a_later_second(tmp_path: Path) -> None:
    write_sample(tmp_path / "here.h5")
    created = os.stat(tmp_path / "here.h5").st_mtime
    child = multiprocessing.get_context("spawn").Process(target=write_sample, args=(tmp_path / "there.h5",))
    child.start()
    child.join(60)
    while os.stat(tmp_path / "there.h5").st_mtime < created + 1.1:  # HDF5 counts time in seconds
        write_sample(tmp_path / "there.h5")
    assert (tmp_path / "there.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()


def test_any_hdf5_library_reads_what_is_written(tmp_path: Path) -> None:
    write_sample(tmp_path / "file.h5")
    with h5py.File(tmp_path / "file.h5", "r") as file:
        assert file.attrs["integer"] == -5 and file.attrs["text"].decode() == "hé"
        assert file["big_endian"].dtype == "<u2" and file["big_endian"][699] == 699
        assert file["names"][()].tolist() == [b"x", b"yy"]
        assert file["b/w"][2, 2] == 7


@pytest.mark.parametrize(
    "group",
    [
        Group({"a/b": 1}),
        Group({"..": 1}),
        Group({"é": 1}),
        Group({"a": 2**63}),
        Group({"a": -(2**63) - 1}),
        Group({"a": np.array([2**63], dtype=object)}),
        Group({"a": np.zeros((2, 2), np.int64)}),
        Group({"a": "zero\0byte"}),
        Group({"a": "half a pair \ud800"}),
        Group({"a": "x" * 64001}),
        Group({}, {"a": np.zeros(3)}),
        Group({}, {"a": np.zeros((1, 1, 1, 1, 1), np.int8)}),
    ],
    ids=repr,
)
def test_a_value_without_a_place_in_the_format_is_refused_in_one_line(tmp_path: Path, group: Group) -> None:
    with pytest.raises(DatasetError, match="file.h5: cannot be written: ") as caught:
        strict_hdf5.write(tmp_path / "file.h5", group, DatasetError)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file.h5"
    path.write_bytes(b"what stood here before")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DatasetError, match="file.h5: cannot be written: No space left on device"):
        write_sample(path)
    assert path.read_bytes() == b"what stood here before"
    assert os.listdir(tmp_path) == ["file.h5"]


def test_an_interrupt_leaves_the_old_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.h5"
    path.write_bytes(b"what stood here before")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(path)
    assert path.read_bytes() == b"what stood here before"
    assert os.listdir(tmp_path) == ["file.h5"]


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path("/dev/full")):
        with pytest.raises(DatasetError, match="no regular file"):
            write_sample(path)
    assert Path("/dev/full").is_char_device()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be written: No such file or directory"):
        write_sample(tmp_path / "nowhere" / "file.h5")


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "file.h5")
    write_sample(tmp_path / "link.h5")
    assert (tmp_path / "link.h5").is_symlink() and (tmp_path / "file.h5").is_file()


# --- reading what strangers wrote -------------------------------------------------------------------------------------


def low_level_string(file: h5py.File, name: str, base: Any, size: int, content: bytes) -> None:
    """A string attribute with the padding of its base type: that of C ends at a zero byte, Fortran's in spaces."""
    datatype = base.copy()
    datatype.set_size(size)
    attribute = h5py.h5a.create(file.id, name.encode(), datatype, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(content, dtype=f"S{size}"), mtype=datatype)


def test_strings_are_read_in_every_form_that_languages_give_them(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["variable"] = "é"
        file.attrs["fixed"] = np.bytes_(b"text")
        file.attrs["ascii"] = np.array("text", dtype=h5py.string_dtype("ascii"))
        file.attrs["list"] = ["a", "é", ""]
        file.attrs["one"] = ["single"]
        file.attrs["bytes"] = np.array([b"x", b"yy"])
        low_level_string(file, "c", h5py.h5t.C_S1, 9, b"text\0left")
        low_level_string(file, "fortran", h5py.h5t.FORTRAN_S1, 8, b"text    ")
        file["names"] = ["first", "zweite", "é"]
        file["chunked"] = np.array([b"x", b"yy", b"zzz"])

    group = read(stranger(tmp_path / "file.h5", fill))
    assert group.attributes == {
        "variable": "é", "fixed": "text", "ascii": "text", "list": ("a", "é", ""), "one": ("single",),
        "bytes": ("x", "yy"), "c": "text", "fortran": "text",
    }  # fmt: skip
    assert group.arrays == {"names": ("first", "zweite", "é"), "chunked": ("x", "yy", "zzz")}


@pytest.mark.parametrize("dtype", [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)])
def test_integers_of_any_width_and_byte_order_are_read(tmp_path: Path, dtype: str) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    data = np.array([low, 0, 1, high], dtype=dtype)
    group = read(stranger(tmp_path / "file.h5", lambda file: file.create_dataset("x", data=data)))
    values = group.arrays["x"]
    assert isinstance(values, np.ndarray) and values.dtype == np.dtype(dtype).newbyteorder("=")
    assert values.tolist() == [low, 0, 1, high]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "gzip"}, {"shuffle": True}, {"compression": "gzip", "compression_opts": 9, "shuffle": True}],
    ids=repr,
)
def test_chunks_are_read_with_and_without_filters(tmp_path: Path, libver: str, options: dict[str, Any]) -> None:
    data = np.arange(-300, 330, dtype=">i4").reshape(21, 30) ** 3
    fill = lambda file: file.create_dataset("x", data=data, chunks=(8, 7), **options)  # noqa: E731
    assert np.array_equal(read(stranger(tmp_path / "file.h5", fill, libver=libver)).arrays["x"], data)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_floats_are_read_and_written_where_the_caller_allows_them(tmp_path: Path, dtype: str) -> None:
    data = np.array([-0.0, 1.5, 2.0**-126, np.inf, -3.25e30], dtype)

    def fill(file: h5py.File) -> None:
        file.create_dataset("x", data=data, chunks=(2,), compression="gzip")
        file.attrs["one"], file.attrs["list"] = data[1], data

    group = strict_hdf5.read(stranger(tmp_path / "a.h5", fill), DatasetError, MAX_BYTES, floats=True)
    strict_hdf5.write(tmp_path / "b.h5", group, DatasetError, floats=True)
    again = strict_hdf5.read(tmp_path / "b.h5", DatasetError, MAX_BYTES, floats=True)
    for found in (group, again):
        values, listed = found.arrays["x"], found.attributes["list"]
        assert isinstance(values, np.ndarray) and isinstance(listed, np.ndarray) and listed.dtype == np.float64
        assert values.dtype == np.dtype(dtype).newbyteorder("=")
        assert values.tobytes() == data.astype(values.dtype).tobytes()
        assert listed.tolist() == data.tolist() and found.attributes["one"] == 1.5


@pytest.mark.parametrize("dtype", ["<f2", np.longdouble])
def test_floats_of_other_widths_are_never_read(tmp_path: Path, dtype: Any) -> None:
    path = stranger(tmp_path / "file.h5", lambda file: file.create_dataset("x", data=np.zeros(2, dtype)))
    with pytest.raises(DatasetError, match="/x: found floats of .* bits; expected IEEE 754 floats of 32 or 64 bits$"):
        strict_hdf5.read(path, DatasetError, MAX_BYTES, floats=True)


@pytest.mark.parametrize("group", [Group({"a": 0.5}), Group({"a": np.array([0.5])}), Group({}, {"x": np.zeros(2)})])
def test_floats_are_written_only_where_the_caller_allows_them(tmp_path: Path, group: Group) -> None:
    with pytest.raises(DatasetError, match="expected (an integer|integers,)"):
        strict_hdf5.write(tmp_path / "file.h5", group, DatasetError)
    strict_hdf5.write(tmp_path / "file.h5", group, DatasetError, floats=True)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "S1"])
def test_an_empty_dataspace_is_an_empty_list_and_holds_no_float(tmp_path: Path, dtype: str) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["nothing"] = file.attrs["none"] = h5py.Empty(dtype)
        file["nothing"] = h5py.Empty(dtype)
        file["none"] = np.zeros(0, dtype)

    group = read(stranger(tmp_path / "a.h5", fill))
    assert {np.size(each) for each in (*group.attributes.values(), *group.arrays.values())} == {0}
    reader = GroupReader(group, "a.h5", DatasetError)
    for name in ("nothing", "none"):
        assert reader.strings(name) == reader.string_list(name) == ()


def test_the_format_is_asked_before_anything_else_in_the_file(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["format"] = "theirs"
        file["x"] = [0.5]

    path = stranger(tmp_path / "a.h5", fill)
    with pytest.raises(DatasetError, match="/: found a file of format 'theirs'; expected 'ours': ask them$"):
        strict_hdf5.read(path, DatasetError, MAX_BYTES, format_name="ours", advice={"theirs": "ask them", "ours": "no"})
    with pytest.raises(DatasetError, match="/x: found floating-point numbers"):
        strict_hdf5.read(path, DatasetError, MAX_BYTES, format_name="theirs")
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 7
    with pytest.raises(DatasetError, match="/: found a file of format 7; expected '7'$"):
        strict_hdf5.read(path, DatasetError, MAX_BYTES, format_name="7")


def cycle(file: h5py.File) -> None:
    file.create_group("a/b")
    file["a/b/back"] = file["a"]


def second_link(file: h5py.File) -> None:
    file["x"] = np.zeros(3, np.int8)
    file["y"] = file["x"]


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "i4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def partial_integers(file: h5py.File) -> None:
    datatype = h5py.h5t.STD_I32LE.copy()
    datatype.set_precision(24)
    h5py.h5d.create(file.id, b"x", datatype, h5py.h5s.create_simple((4,)))


def named_type(file: h5py.File) -> None:
    file["t"] = np.dtype("i4")


def of_named_type(file: h5py.File) -> None:
    file["z"] = np.dtype("i4")
    file.create_dataset("x", (3,), dtype=file["z"])


def nested(file: h5py.File) -> None:
    file.create_group("/".join("a" * 9))


def deflate_bomb(file: h5py.File) -> None:
    dataset = file.create_dataset("x", (1000,), "i1", chunks=(1000,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(10**8)))


def unfinished_chunk(file: h5py.File) -> None:
    dataset = file.create_dataset("x", (1000,), "i1", chunks=(1000,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(1000))[:-6])


def attributed_array(file: h5py.File) -> None:
    file["x"] = np.zeros(3, np.int8)
    file["x"].attrs["unit"] = "grey levels"


def many_attributes(file: h5py.File) -> None:
    for index in range(65):
        file.attrs[f"a{index}"] = index


HOSTILE: dict[str, tuple[Callable[[h5py.File], Any], str, str]] = {
    "soft link": (lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "/x", "a soft link"),
    "external link": (lambda f: f.__setitem__("x", h5py.ExternalLink("o.h5", "/y")), "/x", "an external link"),
    "cycle": (cycle, "/a/b/back", "a second link"),
    "cycle of the root": (lambda f: f.__setitem__("x", f["/"]), "/x", "a second link"),
    "second hard link": (second_link, "/y", "a second link"),
    "virtual dataset": (virtual, "/x", "a virtual dataset"),
    "external storage": (
        lambda f: f.create_dataset("x", (4,), "i1", external=[("elsewhere.raw", 0, 4)]), "/x", "external storage",
    ),
    "lzf": (lambda f: f.create_dataset("x", (4,), "i4", compression="lzf"), "/x", "32000 lzf"),
    "scale-offset": (lambda f: f.create_dataset("x", (4,), "i4", scaleoffset=0), "/x", "scaleoffset"),
    "fletcher": (lambda f: f.create_dataset("x", (4,), "i4", fletcher32=True), "/x", "fletcher32"),
    "floats": (lambda f: f.create_dataset("x", data=[0.5]), "/x", "floating-point numbers; expected integers only"),
    "float attribute": (lambda f: f.attrs.create("a", 0.5), "/: attribute 'a'", "integers only"),
    "compound": (lambda f: f.create_dataset("x", (1,), "i4,i4"), "/x", "a compound type"),
    "complex": (lambda f: f.create_dataset("x", (1,), "c16"), "/x", "type"),
    "reference": (lambda f: f.create_dataset("x", (1,), h5py.ref_dtype), "/x", "references"),
    "lists": (lambda f: f.create_dataset("x", (1,), h5py.vlen_dtype("i4")), "/x", "lists of variable length"),
    "enumeration": (lambda f: f.create_dataset("x", (1,), h5py.enum_dtype({"A": 1}, "i4")), "/x", "an enumeration"),
    "boolean": (lambda f: f.attrs.create("a", True), "/: attribute 'a'", "an enumeration or booleans"),
    "array type": (lambda f: f.attrs.create("a", 0, dtype=np.dtype(("i4", (1,)))), "/: attribute 'a'", "array type"),
    "opaque": (lambda f: f.create_dataset("x", (1,), "V8"), "/x", "opaque bytes"),
    "24 bits": (partial_integers, "/x", "integers of 24 bits in 4 bytes"),
    "named datatype": (named_type, "/t", "a named datatype"),
    "of a named datatype": (of_named_type, "/x", "a named datatype"),
    "no data": (lambda f: f.create_dataset("x", (1000,), "i4"), "/x", "0 bytes stored; expected 4000"),
    "huge shape": (lambda f: f.create_dataset("x", (1 << 40,), "i4"), "/x", "an array of 4398046511104 bytes"),
    "product over 64 bits": (
        lambda f: f.create_dataset("x", (1 << 21,) * 3, "i8", chunks=(1, 1, 1)), "/x", "73786976294838206464 bytes",
    ),
    "huge chunk": (
        lambda f: f.create_dataset("x", (1,), "i1", chunks=(1 << 30,), maxshape=(None,)), "/x", "1073741824 bytes",
    ),
    "huge strings": (lambda f: f.create_dataset("x", (4,), "S1000000"), "/x", "an array of 4000000 bytes"),
    "deflate bomb": (deflate_bomb, "/x", "inflates to another size than 1000 bytes"),
    "unfinished chunk": (unfinished_chunk, "/x", "inflates to another size than 1000 bytes"),
    "missing chunk": (lambda f: f.create_dataset("x", (10,), "i1", chunks=(5,)), "/x", "a damaged HDF5 file"),
    "rank 5": (lambda f: f.create_dataset("x", (1,) * 5, "i1"), "/x", "rank 5; expected at most 4"),
    "rank of an attribute": (lambda f: f.attrs.create("a", np.zeros((2, 2), int)), "/: attribute 'a'", "rank 2"),
    "strings of rank 2": (lambda f: f.create_dataset("x", (2, 2), "S3", data=[[b"a"] * 2] * 2), "/x", "(2, 2)"),
    "deep": (nested, "/a/a/a/a/a/a/a/a/a", "depth 9; expected at most 8"),
    "attributes of an array": (attributed_array, "/x", "attributes of an array"),
    "many attributes": (many_attributes, "/", "65 attributes; expected at most 64"),
    "unsigned overflow": (lambda f: f.attrs.create("a", np.uint64(2**63)), "/: attribute 'a'", "9223372036854775808"),
    "no text": (lambda f: f.attrs.create("a", np.bytes_(b"\xff\xfe")), "/: attribute 'a'", r"bytes b'\xff\xfe'"),
    "zero byte": (lambda f: f.attrs.create("a", np.bytes_(b"a\0b")), "/: attribute 'a'", "a zero byte"),
    "name": (lambda f: f.create_group("é"), "/", "the name 'é'"),
    "long name": (lambda f: f.create_group("x" * 129), "/", "the name 'xxx"),
    "name of an attribute": (lambda f: f.attrs.create("a b", 1), "/: attributes", "the name 'a b'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_the_dialect_does_not_know_is_refused_with_file_and_object(tmp_path: Path, case: str) -> None:
    fill, where, found = HOSTILE[case]
    message = refusal(stranger(tmp_path / "file.h5", fill))
    assert message.startswith(f"{tmp_path / 'file.h5'}: {where}: ") and found in message


def test_a_long_attribute_is_refused(tmp_path: Path) -> None:
    fill = lambda file: file.attrs.create("a", np.zeros(70000, np.int8))  # noqa: E731
    assert "70000 bytes; expected at most 64000" in refusal(stranger(tmp_path / "file.h5", fill, libver="latest"))


@pytest.mark.parametrize(
    "fill, where",
    [
        (lambda file: [file.attrs.create(name, 1) for name in ("twin_a", "twin_b")], "/: attributes"),
        (lambda file: [file.create_group(name) for name in ("twin_a", "twin_b")], "/"),
    ],
    ids=["attributes", "links"],
)
def test_a_name_that_stands_twice_is_refused(tmp_path: Path, fill: Callable[[h5py.File], Any], where: str) -> None:
    path = stranger(tmp_path / "file.h5", fill, libver="earliest")
    path.write_bytes(path.read_bytes().replace(b"twin_b", b"twin_a"))
    assert refusal(path).startswith(f"{path}: {where}: found the name 'twin_a' twice")


def test_a_crowd_of_objects_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stranger(tmp_path / "file.h5", lambda file: [file.create_group(f"a/{index}") for index in range(30)])
    read(path)
    monkeypatch.setattr(strict_hdf5, "MAX_OBJECTS", 31)  # with the root and "a" it has 32
    assert "more than 31 objects" in refusal(path)


def test_all_arrays_together_stay_within_the_bound(tmp_path: Path) -> None:
    path = stranger(tmp_path / "file.h5", lambda f: [f.create_dataset(n, data=np.ones(600, "i1")) for n in "ab"])
    strict_hdf5.read(path, DatasetError, path.stat().st_size)
    fill = lambda f: [f.create_dataset(n, data=np.zeros(6000, "i1"), compression="gzip") for n in "ab"]  # noqa: E731
    path = stranger(tmp_path / "compressed.h5", fill)
    assert path.stat().st_size < 10000
    message = refusal(path, max_bytes=10000)
    assert "/b: found an array of 6000 bytes; expected at most 4000, what is left of 10000" in message


def test_variable_strings_cannot_multiply_the_file(tmp_path: Path) -> None:
    path = stranger(tmp_path / "file.h5", lambda file: file.attrs.create("a", ["x" * 100] * 100))
    assert "100 strings of variable length" in refusal(path, max_bytes=path.stat().st_size + 1)
    path = stranger(tmp_path / "array.h5", lambda file: file.create_dataset("x", data=["x" * 9000] * 9))
    assert len(read(path).arrays["x"]) == 9


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = stranger(tmp_path / "file.h5", deflate_bomb)
    tracemalloc.start()
    refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_every_way_in_which_a_path_is_no_hdf5_file_has_a_line_of_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("folder", "empty.h5", "text.h5", "missing.h5", "pipe.h5", "large.h5")]
    folder, empty, text, missing, pipe, large = paths
    folder.mkdir()
    empty.write_bytes(b"")
    text.write_text("no HDF5")
    os.mkfifo(pipe)
    large.write_bytes(bytes(MAX_BYTES + 1))
    found = ["a folder", "an empty file", "no HDF5 signature", "no such file", "a device or a pipe", "1048577 bytes"]
    for path, what in zip(paths, found):
        assert f"found {what}" in refusal(path)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    write_sample(tmp_path / "file.h5")
    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(DatasetError, match="file.h5: cannot be read: Permission denied"):
        read(tmp_path / "file.h5")


# --- the seal ---------------------------------------------------------------------------------------------------------


def test_the_seal_is_the_sha256_of_what_precedes_it(tmp_path: Path) -> None:
    write_sample(tmp_path / "file.h5")
    content = (tmp_path / "file.h5").read_bytes()
    digest = hashlib.sha256(content[:-86]).hexdigest()
    assert content[-86:] == f"intsmooth-ref seal 1 {digest}\n".encode()


def test_a_broken_seal_is_refused_and_a_missing_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    write_sample(path)
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    assert "a damaged file of SHA-256" in refusal(path)
    path.write_bytes(content[:-86])
    assert read(path).attributes["integer"] == -5


def test_a_truncated_file_is_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    write_sample(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert "a truncated HDF5 file" in refusal(path)


# --- taking a group apart ---------------------------------------------------------------------------------------------


def test_a_reader_names_what_is_missing_unknown_or_of_another_type() -> None:
    def reader() -> GroupReader:
        return GroupReader(sample(), "file.h5", DatasetError, "/here")

    for take, found in (
        (lambda r: r.integer("absent"), "no attribute 'absent'"),
        (lambda r: r.integer("text"), "attribute 'text' that holds text"),
        (lambda r: r.integer("numbers"), "attribute 'numbers' with 2 values"),
        (lambda r: r.string("list"), "attribute 'list' with 2 values"),
        (lambda r: r.string("integer"), "attribute 'integer' that holds integers"),
        (lambda r: r.array("four", "int8", 4), "array 'four' of int32, rank 4"),
        (lambda r: r.array("four", "int32", 3), "array 'four' of int32, rank 4"),
        (lambda r: r.array("names", "int8", 1), "array 'names' of strings"),
        (lambda r: r.string_list("four"), "array 'four' of int32"),
        (lambda r: r.group("absent"), "no group 'absent'"),
        (lambda r: r.group("b").integer("absent"), "no attribute 'absent'"),
        (lambda r: r.finish(), "the unknown attribute 'empty'"),
    ):
        with pytest.raises(DatasetError, match="file.h5: /here(/b)?: found ") as caught:
            take(reader())
        assert f"found {found}; expected " in str(caught.value)


def test_a_list_of_one_is_a_scalar_where_a_scalar_is_meant() -> None:
    reader = GroupReader(Group({"a": np.array([7]), "b": ("text",)}), "file.h5", DatasetError)
    assert (reader.integer("a"), reader.string("b")) == (7, "text")
    reader.finish()
