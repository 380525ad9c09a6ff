"""HDF5 files that are written the same to the byte every time, and read with distrust.

A file is a tree of groups. Attributes hold integers and strings, arrays hold integers or a list of strings, and that is
all: no floats unless the caller asks for them, no compound types, no references, no links that leave the file or form a
cycle. `write` stores a tree without time stamps, compression or anything else that could differ between two runs or two
versions of the HDF5 library. `read` takes files from anywhere: it asks the library for the description of each object
and judges it before a byte of data is read, so that no file can make it allocate more than the caller allows.

Behind the last byte that HDF5 knows of, `write` appends a seal, the SHA-256 of all the bytes before it. A file whose
seal is broken is refused before the library sees it, because libraries before HDF5 2.0 crash on some damaged files. A
file without a seal, which is what any other program writes, is read on its own merits.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
import zlib
from dataclasses import dataclass, field
from math import prod
from typing import Any, Iterator, Mapping, NoReturn, Sequence, Union

import numpy as np

from .errors import IntsmoothError, reason_of
from .new_files import write_whole

Attribute = Union[int, float, str, "tuple[str, ...]", np.ndarray]
Array = Union[np.ndarray, "tuple[str, ...]"]

MAX_DEPTH = 8
MAX_RANK = 4
MAX_OBJECTS = 1 << 15
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_BYTES = 64000  # HDF5 gives an attribute 64 KiB, its name and type included
MAX_STRINGS = 1 << 16

#: "." and ".." would be paths, not names.
NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,128}")
NAME_RULE = "a name of 1 to 128 letters, digits, '_', '.' and '-'"

#: HDF5 ignores what follows the end that its superblock states.
SEAL = re.compile(rb"intsmooth-ref seal 1 ([0-9a-f]{64})\n\Z")
SEAL_BYTES = len("intsmooth-ref seal 1 ") + 64 + 1

SIGNATURE = b"\x89HDF\r\n\x1a\n"

#: What h5py and the HDF5 library raise on a damaged file. `MemoryError`: a size that only the file claims.
LIBRARY_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)


@dataclass(frozen=True, eq=False)
class Group:
    """A group: its attributes (integers, strings, lists of either), its arrays and the groups inside it, by name.

    Integer arrays may have up to four dimensions and any integer dtype; a list of integers in an attribute is int64.
    Where floats are allowed, arrays may also be float32 or float64, and an attribute one float or a list: float64.
    """

    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str], group: Group, error: type[IntsmoothError], *, floats: bool = False
) -> None:
    """Write `group` to `path`: the same group gives the same bytes, in any process, with any version of the library.

    The file appears whole or not at all: what stood at `path` stays until the new bytes are safe on the disk.

    Args:
        floats: allow them.

    Raises:
        error: if the folder, the disk or the permissions do not allow it, or a value has no place in the format.
    """
    try:
        image = _file_image(group, floats)
        seal = f"intsmooth-ref seal 1 {hashlib.sha256(image).hexdigest()}\n".encode("ascii")
    except ValueError as problem:
        raise error(f"{os.fspath(path)}: cannot be written: {reason_of(problem)}") from None
    write_whole(path, image + seal, error)


def _file_image(group: Group, floats: bool) -> bytes:
    """The file's bytes, made in memory, where nothing can interrupt the library between two of its writes."""
    import h5py

    versions = ("earliest", "v108")  # the oldest format: every library reads it, and it holds no time stamps of groups
    options = {"driver": "core", "backing_store": False, "block_size": 1 << 20, "libver": versions}
    with h5py.File(_memory_name(), "w", **options) as file:
        _write_group(file, group, floats)
        file.flush()
        return file.id.get_file_image()


def _memory_name() -> str:
    """The library takes two files in memory for one and the same if their names, which lead nowhere, are equal."""
    return f"intsmooth_ref memory {next(_memory_count)}"


_memory_count = itertools.count()


def _write_group(node: Any, group: Group, floats: bool) -> None:
    for name in (*group.attributes, *group.arrays, *group.groups):
        if not NAME.fullmatch(name):
            raise ValueError(f"{node.name}: found the name {name!r}; expected {NAME_RULE}")
    for name in sorted(group.attributes):
        stored = _stored_attribute(group.attributes[name], f"attribute {name!r} of {node.name}", floats)
        node.attrs.create(name, stored, shape=stored.shape, dtype=stored.dtype)
    for name in sorted(group.arrays):
        stored = _stored_array(group.arrays[name], f"array {name!r} of {node.name}", floats)
        node.create_dataset(name, data=stored, dtype=stored.dtype, track_times=False)
    for name in sorted(group.groups):
        _write_group(node.create_group(name, track_order=False), group.groups[name], floats)


def _stored_attribute(value: Attribute, where: str, floats: bool) -> np.ndarray:
    if isinstance(value, (str, tuple)):
        stored = _stored_strings(value, where)
    elif floats and _numbers(value) == "floats" and np.ndim(value) <= 1:
        stored = np.array(value, dtype="<f8")
    elif _numbers(value) == "floats" or np.ndim(value) > 1 or not _fit_int64(value):
        raise ValueError(f"{where}: found {value}; expected an integer, or a list of integers, of 64 bits")
    else:
        stored = np.array(value, dtype="<i8")
    if stored.nbytes > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{where}: found {stored.nbytes} bytes; expected at most {MAX_ATTRIBUTE_BYTES}")
    return stored


def _fit_int64(value: int | float | np.ndarray) -> bool:
    return all(-(2**63) <= each < 2**63 for each in np.atleast_1d(value).tolist())


def _stored_array(array: Array, where: str, floats: bool) -> np.ndarray:
    if isinstance(array, tuple):
        return _stored_strings(array, where)
    allowed = array.dtype.kind in "iu" or (floats and array.dtype.type in (np.float32, np.float64))
    if not allowed or not 1 <= array.ndim <= MAX_RANK:
        expected = f"integers{' or floats of 32 or 64 bits' if floats else ''}, rank 1 to {MAX_RANK}"
        raise ValueError(f"{where}: found {array.dtype} of rank {array.ndim}; expected {expected}")
    return array.astype(array.dtype.newbyteorder("<"))


def _stored_strings(value: str | tuple[str, ...], where: str) -> np.ndarray:
    """Fixed-length UTF-8, padded with zero bytes: strings of variable length would lie in a heap of their own."""
    import h5py

    encoded = [each.encode("utf-8") for each in ((value,) if isinstance(value, str) else value)]
    if any(b"\0" in each for each in encoded):
        raise ValueError(f"{where}: found a zero character; expected text")
    length = max([1, *map(len, encoded)])
    stored = np.array(encoded, dtype=h5py.string_dtype("utf-8", length))
    return stored.reshape(()) if isinstance(value, str) else stored


# --- reading ----------------------------------------------------------------------------------------------------------


def read(
    path: str | os.PathLike[str], error: type[IntsmoothError], max_bytes: int, *, floats: bool = False,
    format_name: str | None = None, advice: Mapping[str, str] = {},
) -> Group:  # fmt: skip
    """Read a whole file. Arrays are read-only and in native byte order.

    Args:
        max_bytes: bound on the file's size, and on the size of all it holds once it is decompressed.
        floats: allow them.
        format_name: what the attribute `format` must say; it is asked first, lest a file of another kind be called a
            broken one of this.
        advice: by the name of another format, what to do with a file of it.

    Raises:
        error: file, object in it, what was found and what was expected, in one line.
    """
    name = os.fspath(path)
    image = _unsealed(name, _file_content(name, error, max_bytes), error)
    import h5py

    reader = _Reader(name, error, max_bytes, len(image), floats)
    try:
        file = _opened(image)
        try:
            root = h5py.h5g.open(file, b"/")
            if format_name is not None:
                reader.expect_format(root, format_name, advice)
            return reader.group(root, "", 0)
        finally:
            file.close()
    except LIBRARY_ERRORS as problem:
        what = "truncated" if "truncated" in str(problem) else "damaged"
        reason = reason_of(problem)
        raise error(f"{name}: {reader.where}: found a {what} HDF5 file ({reason}); expected a whole one") from None


def _opened(image: bytes) -> Any:
    """A file in memory: what the library reads cannot change meanwhile. Closing it closes every object in it."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(image)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return h5py.h5f.open(_memory_name().encode("ascii"), h5py.h5f.ACC_RDONLY, access)


def _file_content(path: str, error: type[IntsmoothError], max_bytes: int) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused before it is opened, as it might never end."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path}: found a folder; expected an HDF5 file")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: found a device or a pipe; expected an HDF5 file")
        if status.st_size > max_bytes:
            raise error(f"{path}: found {status.st_size} bytes; expected at most {max_bytes}")
        with open(path, "rb") as file:
            content = file.read(status.st_size)
    except FileNotFoundError:
        raise error(f"{path}: found no such file; expected an HDF5 file") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if not content:
        raise error(f"{path}: found an empty file; expected an HDF5 file")
    if not content.startswith(SIGNATURE):
        raise error(f"{path}: found no HDF5 signature in the first 8 bytes; expected an HDF5 file")
    return content


def _unsealed(path: str, content: bytes, error: type[IntsmoothError]) -> bytes:
    """The HDF5 file itself; its seal, if it has one, is verified."""
    seal = SEAL.fullmatch(content[-SEAL_BYTES:])
    if seal is None:
        return content
    image = content[:-SEAL_BYTES]
    computed = hashlib.sha256(image).hexdigest()
    if computed != seal[1].decode("ascii"):
        raise error(f"{path}: found a damaged file of SHA-256 {computed}; expected {seal[1].decode('ascii')}, its seal")
    return image


class _Reader:
    """One walk through one file, and what it may still spend."""

    def __init__(
        self, path: str, error: type[IntsmoothError], max_bytes: int, file_bytes: int, floats: bool
    ) -> None:
        self.where = "/"  # the object that was opened last
        self._path = path
        self._error = error
        self._max_bytes = max_bytes
        self._bytes_left = max_bytes
        self._file_bytes = file_bytes
        self._floats = floats
        self._seen: set[int] = set()

    def _refuse(self, where: str, found: str, expected: str) -> NoReturn:
        raise self._error(f"{self._path}: {where}: found {found}; expected {expected}")

    def expect_format(self, root: Any, name: str, advice: Mapping[str, str]) -> None:
        from h5py import h5a

        if not h5a.exists(root, b"format"):
            self._refuse("/", "no attribute 'format'", repr(name))
        found = self._attribute(h5a.open(root, b"format"), "/: attribute 'format'")
        if isinstance(found, tuple) and len(found) == 1:
            found = found[0]
        if not isinstance(found, str) or found != name:
            hint = f": {advice[found]}" if isinstance(found, str) and found in advice else ""
            self._refuse("/", f"a file of format {found!r:.100}", f"{name!r}{hint}")

    def group(self, node: Any, where: str, depth: int) -> Group:
        """Everything in `node`, an open group; `where` is its path, empty for the root."""
        import h5py

        self._meet(node, where or "/")
        if depth > MAX_DEPTH:
            self._refuse(where, f"a group at depth {depth}", f"at most {MAX_DEPTH}")
        attributes = self._attributes(node, where or "/")
        arrays: dict[str, Array] = {}
        groups: dict[str, Group] = {}
        for name in self._link_names(node, where or "/"):
            path = f"{where}/{name}"
            self._check_link(node.links.get_info(name.encode()).type, path)
            child = h5py.h5o.open(node, name.encode())
            if isinstance(child, h5py.h5g.GroupID):
                groups[name] = self.group(child, path, depth + 1)
            elif isinstance(child, h5py.h5d.DatasetID):
                arrays[name] = self._array(child, path)
            else:
                self._refuse(path, "a named datatype", "a group or an array")
        return Group(attributes, arrays, groups)

    def _meet(self, node: Any, where: str) -> None:
        """A tree reaches each object once: no cycle, no data counted twice."""
        import h5py

        self.where = where
        address = h5py.h5o.get_info(node).addr
        if address in self._seen:
            self._refuse(where, "a second link to an object", "one link to each object")
        self._seen.add(address)
        if len(self._seen) > MAX_OBJECTS:
            self._refuse(where, f"more than {MAX_OBJECTS} objects", "fewer")

    def _link_names(self, node: Any, where: str) -> list[str]:
        names: list[bytes] = []

        def collect(name: bytes) -> bool | None:
            names.append(name)
            return True if len(names) > MAX_OBJECTS else None  # anything but None ends the iteration

        node.links.iterate(collect)
        if len(names) > MAX_OBJECTS:
            self._refuse(where, f"more than {MAX_OBJECTS} links", "fewer")
        return self._checked_names(names, where)

    def _checked_names(self, names: Sequence[bytes], where: str) -> list[str]:
        checked: dict[str, None] = {}
        for each in names:
            name = each.decode("utf-8", errors="backslashreplace")
            if not NAME.fullmatch(name):
                self._refuse(where, f"the name {name[:128]!r}", NAME_RULE)
            if name in checked:
                self._refuse(where, f"the name {name!r} twice", "names that differ")
            checked[name] = None
        return list(checked)

    def _check_link(self, kind: int, where: str) -> None:
        from h5py import h5l

        if kind != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
            self._refuse(where, kinds.get(kind, "a user-defined link"), "a group or an array in this file")

    # --- types and shapes

    def _element_type(self, datatype: Any, shape: tuple[int, ...], where: str) -> np.dtype:
        """The NumPy dtype of the elements as the file stores them; that of a string is `S` or, if variable, object."""
        from h5py import h5t

        if datatype.committed():
            self._refuse(where, "a named datatype", "integers or strings")
        kind = datatype.get_class()
        if kind == h5t.INTEGER:
            return self._integer_type(datatype, where)
        if kind == h5t.STRING:
            return np.dtype(object if datatype.is_variable_str() else f"S{datatype.get_size()}")
        if kind == h5t.FLOAT:
            return self._float_type(datatype, shape, where)
        names = {
            h5t.COMPOUND: "a compound type", h5t.REFERENCE: "references", h5t.ENUM: "an enumeration or booleans",
            h5t.VLEN: "lists of variable length", h5t.ARRAY: "an array type", h5t.OPAQUE: "opaque bytes",
            h5t.BITFIELD: "bit fields", h5t.TIME: "times",
        }  # fmt: skip
        self._refuse(where, names.get(kind, f"type class {kind}"), "integers or strings")

    def _integer_type(self, datatype: Any, where: str) -> np.dtype:
        from h5py import h5t

        size, order = datatype.get_size(), datatype.get_order()
        plain = datatype.get_precision() == 8 * size and datatype.get_offset() == 0
        if size not in (1, 2, 4, 8) or not plain or order not in (h5t.ORDER_LE, h5t.ORDER_BE):
            self._refuse(where, f"integers of {datatype.get_precision()} bits in {size} bytes", "8, 16, 32 or 64 bits")
        signed = "i" if datatype.get_sign() == h5t.SGN_2 else "u"
        return np.dtype(f"{'<' if order == h5t.ORDER_LE else '>'}{signed}{size}")

    def _float_type(self, datatype: Any, shape: tuple[int, ...], where: str) -> np.dtype:
        """An empty list of floats is no float: h5py writes [] as one, whatever it is a list of."""
        from h5py import h5t

        if prod(shape) and not self._floats:
            self._refuse(where, "floating-point numbers", "integers only")
        standard = {"<f4": h5t.IEEE_F32LE, ">f4": h5t.IEEE_F32BE, "<f8": h5t.IEEE_F64LE, ">f8": h5t.IEEE_F64BE}
        for name, each in standard.items():
            if datatype.equal(each):
                return np.dtype(name)
        self._refuse(where, f"floats of {datatype.get_precision()} bits", "IEEE 754 floats of 32 or 64 bits")

    def _shape(self, space: Any, max_rank: int, where: str) -> tuple[int, ...]:
        from h5py import h5s

        if space.get_simple_extent_type() == h5s.NULL:
            return (0,)
        shape = space.get_simple_extent_dims()
        if len(shape) > max_rank:
            self._refuse(where, f"rank {len(shape)}", f"at most {max_rank}")
        return tuple(map(int, shape))

    # --- attributes

    def _attributes(self, node: Any, where: str) -> dict[str, Attribute]:
        from h5py import h5a

        count = h5a.get_num_attrs(node)
        if count > MAX_ATTRIBUTES:
            self._refuse(where, f"{count} attributes", f"at most {MAX_ATTRIBUTES}")
        opened = [h5a.open(node, index=index) for index in range(count)]
        names = self._checked_names([each.name for each in opened], f"{where}: attributes")
        return {name: self._attribute(each, f"{where}: attribute {name!r}") for name, each in zip(names, opened)}

    def _attribute(self, attribute: Any, where: str) -> Attribute:
        datatype = attribute.get_type()
        shape = self._shape(attribute.get_space(), 1, where)
        dtype = self._element_type(datatype, shape, where)
        size = prod(shape) * datatype.get_size()
        if size > MAX_ATTRIBUTE_BYTES:
            self._refuse(where, f"{size} bytes", f"at most {MAX_ATTRIBUTE_BYTES}")
        if dtype.kind in "iuf":
            return self._attribute_numbers(attribute, shape, dtype, where)
        if dtype.kind == "O" and prod(shape) > 1 and prod(shape) * self._file_bytes > self._max_bytes:
            # they are read at once, and each may be as long as the file
            self._refuse(where, f"{prod(shape)} strings of variable length", "strings of fixed length")
        values = np.empty(shape, datatype.dtype)
        if values.size:
            attribute.read(values, mtype=None if dtype.kind == "O" else datatype)
        strings = self._decoded(values.reshape(-1).tolist(), datatype, where)
        return strings if shape else strings[0]

    def _attribute_numbers(self, attribute: Any, shape: tuple[int, ...], dtype: np.dtype, where: str) -> Attribute:
        values = np.empty(shape, dtype.newbyteorder("="))
        if values.size:
            attribute.read(values)
        if dtype.kind == "f":
            return _read_only(values.astype(np.float64)) if shape else float(values)
        largest = max(values.reshape(-1).tolist(), default=0)
        if largest >= 2**63:
            self._refuse(where, f"{largest}", "an integer of 64 bits with its sign")
        if not shape:
            return int(values)
        return _read_only(values.astype(np.int64))

    def _decoded(self, values: Sequence[Any], datatype: Any, where: str) -> tuple[str, ...]:
        """Text from bytes: a string ends where its type says so, at the first zero byte or before the padding."""
        from h5py import h5t

        padding = None if datatype.is_variable_str() else datatype.get_strpad()
        decoded: list[str] = []
        for each in values:
            content = each or b""  # a variable-length string that was never written is 0
            if padding == h5t.STR_NULLTERM:
                content = content.split(b"\0")[0]
            content = content.rstrip(b" " if padding == h5t.STR_SPACEPAD else b"\0")
            if b"\0" in content:
                self._refuse(where, "a zero byte inside a string", "text")
            try:
                decoded.append(content.decode("utf-8"))
            except UnicodeDecodeError:
                self._refuse(where, f"the bytes {content[:40]!r}", "text in ASCII or UTF-8")
        return tuple(decoded)

    # --- arrays

    def _array(self, dataset: Any, where: str) -> Array:
        from h5py import h5a

        self._meet(dataset, where)
        if h5a.get_num_attrs(dataset):
            self._refuse(where, "attributes of an array", "attributes of groups only")
        datatype = dataset.get_type()
        shape = self._shape(dataset.get_space(), MAX_RANK, where)
        dtype = self._element_type(datatype, shape, where)
        chunk = self._check_storage(dataset.get_create_plist(), dtype, where)
        self._spend(shape, chunk, datatype.get_size(), where)
        if dtype.kind not in "iuf" and (len(shape) != 1 or shape[0] > MAX_STRINGS):
            self._refuse(where, f"strings of shape {shape}", f"a list of at most {MAX_STRINGS}")
        if dtype.kind == "O":
            return self._decoded(list(self._variable_strings(dataset, shape[0], where)), datatype, where)
        if chunk:
            values = self._chunked(dataset, shape, chunk, dtype, where)
        else:
            values = self._whole(dataset, shape, dtype, where)
        if dtype.kind == "S":
            return self._decoded(values.tolist(), datatype, where)
        return _read_only(values.astype(dtype.newbyteorder("="), copy=False))

    def _check_storage(self, properties: Any, dtype: np.dtype, where: str) -> tuple[int, ...]:
        """The shape of a chunk, empty if the array is stored in one piece. Judged before the extent is asked for:

        asking a virtual dataset for its extent opens the files it refers to.
        """
        from h5py import h5d, h5z

        layout = properties.get_layout()
        if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            self._refuse(where, "a virtual dataset", "data in this file")
        if properties.get_external_count():
            self._refuse(where, "external storage", "data in this file")
        filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
        codes = tuple(each[0] for each in filters)
        deflate, shuffle = h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE
        if codes not in ((), (deflate,), (shuffle,), (shuffle, deflate)) or (codes and dtype.kind == "O"):
            listed = ", ".join(f"{each[0]} {each[3].decode(errors='replace')}".strip() for each in filters)
            self._refuse(where, f"the filters [{listed}]", "none, or shuffle, then deflate, of fixed-length elements")
        return tuple(map(int, properties.get_chunk())) if layout == h5d.CHUNKED else ()

    def _spend(self, shape: tuple[int, ...], chunk: tuple[int, ...], item_bytes: int, where: str) -> None:
        """Every chunk is decompressed whole, so what counts is the extent rounded up to chunks."""
        stored = [-(-extent // step) * step for extent, step in zip(shape, chunk)] if chunk else shape
        size = max(prod(stored), prod(chunk or (0,))) * item_bytes
        if size > self._bytes_left:
            left = f"at most {self._bytes_left}, what is left of {self._max_bytes}"
            self._refuse(where, f"an array of {size} bytes", left)
        self._bytes_left -= size

    def _whole(self, dataset: Any, shape: tuple[int, ...], dtype: np.dtype, where: str) -> np.ndarray:
        from h5py import h5s

        size = prod(shape) * dtype.itemsize
        if dataset.get_storage_size() != size:
            self._refuse(where, f"{dataset.get_storage_size()} bytes stored", f"{size}, what its shape {shape} needs")
        values = np.empty(shape, dtype)
        if size:
            dataset.read(h5s.ALL, h5s.ALL, values, mtype=dataset.get_type())
        return values

    def _chunked(
        self, dataset: Any, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: np.dtype, where: str
    ) -> np.ndarray:
        """Chunks are decompressed here: the library's filter inflates a chunk to whatever size it claims."""
        properties = dataset.get_create_plist()
        codes = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
        values = np.empty(shape, dtype)
        for corner in itertools.product(*(range(0, extent, step) for extent, step in zip(shape, chunk))):
            skipped, stored = dataset.read_direct_chunk(corner)
            applied = [code for index, code in enumerate(codes) if not skipped >> index & 1]
            content = self._unfiltered(stored, applied, prod(chunk) * dtype.itemsize, dtype.itemsize, where)
            block = np.frombuffer(content, dtype).reshape(chunk)
            inside = tuple(slice(0, extent - start) for start, extent in zip(corner, shape))
            values[tuple(slice(start, start + step) for start, step in zip(corner, chunk))] = block[inside]
        return values

    def _unfiltered(self, content: bytes, filters: Sequence[int], size: int, item_bytes: int, where: str) -> bytes:
        from h5py import h5z

        expected = f"a chunk of {size} bytes"
        if h5z.FILTER_DEFLATE in filters:
            inflate = zlib.decompressobj()
            try:
                content = inflate.decompress(content, size + 1)
            except zlib.error as problem:
                self._refuse(where, f"a damaged chunk ({problem})", expected)
            if not inflate.eof:
                self._refuse(where, f"a chunk that inflates to another size than {size} bytes", expected)
        if len(content) != size:
            self._refuse(where, f"a chunk of {len(content)} bytes", expected)
        if h5z.FILTER_SHUFFLE in filters:
            content = np.frombuffer(content, np.uint8).reshape(item_bytes, -1).T.tobytes()
        return content

    def _variable_strings(self, dataset: Any, count: int, where: str) -> Iterator[bytes]:
        """One by one: in the file a thousand of them may be one long string, in memory they are a thousand."""
        from h5py import h5s

        memory, space = h5s.create_simple((1,)), dataset.get_space()
        for index in range(count):
            value = np.empty(1, dataset.get_type().dtype)
            space.select_hyperslab((index,), (1,))
            dataset.read(memory, space, value)
            content = value[0] or b""
            if len(content) > self._bytes_left:
                self._refuse(where, f"strings of more than {self._bytes_left} bytes", "fewer")
            self._bytes_left -= len(content)
            yield content


def _numbers(value: int | float | np.ndarray) -> str:
    """What an attribute that holds numbers holds."""
    return "floats" if np.asarray(value).dtype.kind == "f" else "integers"


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# --- taking a group apart ---------------------------------------------------------------------------------------------


class GroupReader:
    """Takes out of a group what a format says is in it, each thing once; `finish` refuses what is left over.

    Every method raises the typed error it was made with: file, object, what was found, what was expected.
    """

    def __init__(self, group: Group, path: str, error: type[IntsmoothError], where: str = "") -> None:
        self._attributes = dict(group.attributes)
        self._arrays = dict(group.arrays)
        self._groups = dict(group.groups)
        self._path = path
        self._error = error
        self._where = where

    def refuse(self, found: str, expected: str) -> NoReturn:
        raise self._error(f"{self._path}: {self._where or '/'}: found {found}; expected {expected}")

    def take_header(self, version: int) -> None:
        """`format`, which `read` has checked, and `format_version`, which must be this one."""
        self.string("format")
        found = self.integer("format_version")
        if found != version:
            self.refuse(f"format_version {found}", f"{version}, the one that this release reads")

    def has(self, prefix: str) -> bool:
        """Is there anything left whose name begins like this?"""
        return any(name.startswith(prefix) for name in (*self._attributes, *self._arrays, *self._groups))

    def group_names(self) -> list[str]:
        return sorted(self._groups)

    def integer(self, name: str) -> int:
        values = self.integers(name)
        if len(values) != 1:
            self.refuse(f"attribute {name!r} with {len(values)} values", "one integer")
        return values[0]

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._take(self._attributes, "attribute", name)
        held = "text" if isinstance(value, (str, tuple)) else _numbers(value)
        if held != "integers":
            self.refuse(f"attribute {name!r} that holds {held}", "integers")
        return tuple(np.atleast_1d(value).tolist())

    def number(self, name: str) -> float:
        """A float; an integer stands for itself."""
        value = self._take(self._attributes, "attribute", name)
        if isinstance(value, (str, tuple)):
            self.refuse(f"attribute {name!r} that holds text", "a number")
        values = np.atleast_1d(value).tolist()
        if len(values) != 1:
            self.refuse(f"attribute {name!r} with {len(values)} values", "one number")
        return float(values[0])

    def string(self, name: str) -> str:
        values = self.strings(name)
        if len(values) != 1:
            self.refuse(f"attribute {name!r} with {len(values)} values", "one string")
        return values[0]

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._take(self._attributes, "attribute", name)
        if np.size(value) == 0:
            return ()  # of whatever type
        if not isinstance(value, (str, tuple)):
            self.refuse(f"attribute {name!r} that holds {_numbers(value)}", "text")
        return (value,) if isinstance(value, str) else value

    def string_list(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        value = self._take(self._arrays, "array", name)
        if np.size(value) == 0:
            return ()  # of whatever type
        if not isinstance(value, tuple):
            self.refuse(f"array {name!r} of {value.dtype}", "strings")
        return value

    def array(self, name: str, dtype: str, rank: int) -> np.ndarray:
        value = self._take(self._arrays, "array", name)
        if isinstance(value, tuple):
            self.refuse(f"array {name!r} of strings", f"{dtype} of rank {rank}")
        if value.dtype != dtype or value.ndim != rank:
            self.refuse(f"array {name!r} of {value.dtype}, rank {value.ndim}", f"{dtype} of rank {rank}")
        return value

    def group(self, name: str) -> GroupReader:
        value = self._take(self._groups, "group", name)
        return GroupReader(value, self._path, self._error, f"{self._where}/{name}")

    def finish(self) -> None:
        kinds = (("attribute", self._attributes), ("array", self._arrays), ("group", self._groups))
        for kind, left in kinds:
            if left:
                self.refuse(f"the unknown {kind} {min(left)!r}", "what the format names, and nothing else")

    def _take(self, source: dict[str, Any], kind: str, name: str) -> Any:
        if name not in source:
            self.refuse(f"no {kind} {name!r}", "one")
        return source.pop(name)
