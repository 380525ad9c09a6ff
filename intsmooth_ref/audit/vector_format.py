"""Known-answer vectors as text: reading and writing the format that `VECTORS.md` specifies.

A file is a sequence of words separated by white space, so that `fscanf` can read it; line breaks are for people. What
is read comes from anywhere: everything is checked, and an error says in which line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod
from typing import Iterator, Mapping, NoReturn, Sequence, Union

import numpy as np

from ..errors import VectorFormatError

MAGIC = "intsmooth-ref vectors 1"

#: A file may be as large as this, and hold as many cases, fields a case, and elements an array.
MAX_BYTES = 1 << 30
MAX_CASES = 1 << 16
MAX_FIELDS = 1 << 13
MAX_ELEMENTS = 1 << 26
MAX_RANK = 4

NAME = re.compile("[A-Za-z0-9_.-]{1,100}")
WORD = re.compile("[!-~]{1,100}")
DIGEST = re.compile("[0-9a-f]{64}")
INTEGER = re.compile("-?[0-9]{1,20}")

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")

LINE_LENGTH = 100


@dataclass(frozen=True)
class Digest:
    """In place of an array: `fingerprint.tensor_sha256` of it."""

    sha256: str


#: What a field holds: an array of integers, a word, or the hash of an array.
Value = Union[np.ndarray, str, Digest]


@dataclass(frozen=True, eq=False)
class Case:
    """What is given, and what comes out of it, each field under its name, in order."""

    name: str
    given: Mapping[str, Value]
    results: Mapping[str, Value]


@dataclass(frozen=True, eq=False)
class VectorSet:
    """What one file holds."""

    name: str
    cases: tuple[Case, ...]


# --- writing ----------------------------------------------------------------------------------------------------------


def vector_text(vectors: VectorSet) -> str:
    """The file's text."""
    lines = [f"{MAGIC} {vectors.name} {len(vectors.cases)}"]
    for case in vectors.cases:
        lines += ["", f"case {case.name}"]
        for role, fields in (("given", case.given), ("result", case.results)):
            for name, value in fields.items():
                lines += _field_lines(f"{role} {name}", value)
        lines.append("end")
    return "\n".join(lines) + "\n"


def _field_lines(head: str, value: Value) -> Iterator[str]:
    if isinstance(value, str):
        yield f"{head} text {value}"
    elif isinstance(value, Digest):
        yield f"{head} sha256 {value.sha256}"
    else:
        yield " ".join(map(str, (head, value.dtype.name, value.ndim, *value.shape)))
        line = ""
        for number in map(str, value.ravel().tolist()):
            if len(line) + len(number) >= LINE_LENGTH:
                yield line
                line = ""
            line += f" {number}"
        if line:
            yield line


# --- reading ----------------------------------------------------------------------------------------------------------


def read_vectors(path: str | os.PathLike[str]) -> VectorSet:
    """Read a file of vectors.

    Raises:
        VectorFormatError: if it cannot be read, or breaks a rule of the format: which, and in which line.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise VectorFormatError(f"{name}: cannot be read: {problem.strerror or problem}") from None
    if len(content) > MAX_BYTES:
        raise VectorFormatError(f"{name}: found more than {MAX_BYTES} bytes; expected a smaller file")
    return _Reader(name, content).vectors()


class _Reader:
    """Takes a file apart word by word, and knows in which line it is."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path = path
        self._lines = content.split(b"\n")
        self._line = 0  # of the word that was taken last, counted from 1
        self._words: list[str] = []
        self._next = 0

    def _refuse(self, found: str, expected: str) -> NoReturn:
        raise VectorFormatError(f"{self._path}: line {self._line}: found {found}; expected {expected}")

    def _fill(self) -> bool:
        """Make sure that there is a next word; False at the end of the file."""
        while self._next == len(self._words):
            if self._line == len(self._lines):
                return False
            self._line += 1
            try:
                self._words = [word.decode("ascii") for word in self._lines[self._line - 1].split()]
            except UnicodeDecodeError as problem:
                self._refuse(f"the byte {problem.object[problem.start]}", "ASCII text")
            self._next = 0
        return True

    def _word(self, expected: str, rule: re.Pattern[str] = WORD) -> str:
        if not self._fill():
            self._refuse("the end of the file", expected)
        word = self._words[self._next]
        if rule.fullmatch(word) is None:
            self._refuse(repr(word[:100]), expected)
        self._next += 1
        return word

    def _integer(self, what: str, lowest: int, highest: int) -> int:
        expected = f"{what}, an integer from {lowest} to {highest}"
        value = int(self._word(expected, INTEGER))
        if not lowest <= value <= highest:
            self._refuse(str(value), expected)
        return value

    def vectors(self) -> VectorSet:
        for word in MAGIC.split():
            if self._word(f"{MAGIC!r}, with which such a file begins") != word:
                self._refuse(repr(self._words[self._next - 1][:100]), f"{MAGIC!r}, with which such a file begins")
        name = self._word("the set's name", NAME)
        count = self._integer("the number of cases", 1, MAX_CASES)
        cases: dict[str, Case] = {}
        for _ in range(count):
            case = self._case()
            if case.name in cases:
                self._refuse(f"the case {case.name!r} a second time", "names that differ")
            cases[case.name] = case
        if self._fill():
            self._refuse(repr(self._words[self._next][:100]), f"the end of the file after {count} cases")
        return VectorSet(name, tuple(cases.values()))

    def _case(self) -> Case:
        if self._word("'case'") != "case":
            self._refuse(repr(self._words[self._next - 1]), "'case'")
        name = self._word("the case's name", NAME)
        fields: dict[str, dict[str, Value]] = {"given": {}, "result": {}}
        while (role := self._word("'given', 'result' or 'end'")) != "end":
            if role not in fields:
                self._refuse(repr(role), "'given', 'result' or 'end'")
            field = self._word("the field's name", NAME)
            if field in fields[role]:
                self._refuse(f"the field {field!r} a second time", "names that differ")
            if len(fields[role]) == MAX_FIELDS:
                self._refuse(f"more than {MAX_FIELDS} fields", "a case of fewer")
            fields[role][field] = self._value()
        return Case(name, fields["given"], fields["result"])

    def _value(self) -> Value:
        kind = self._word("the field's type")
        if kind == "text":
            return self._word("a word")
        if kind == "sha256":
            return Digest(self._word("64 hexadecimal digits, lower-case", DIGEST))
        if kind not in DTYPES:
            self._refuse(repr(kind), f"text, sha256, {', '.join(DTYPES)}")
        rank = self._integer("the number of dimensions", 0, MAX_RANK)
        shape = tuple(self._integer("an extent", 0, MAX_ELEMENTS) for _ in range(rank))
        if prod(shape) > MAX_ELEMENTS:
            self._refuse(f"{prod(shape)} elements", f"at most {MAX_ELEMENTS}")
        return self._array(kind, shape)

    def _array(self, dtype: str, shape: Sequence[int]) -> np.ndarray:
        limits, size = np.iinfo(dtype), prod(shape)
        lowest, highest = int(limits.min), int(limits.max)
        values: list[int] = []
        while len(values) < size:
            if not self._fill():
                self._refuse("the end of the file", f"{size} values, of which {len(values)} are there")
            words = self._words[self._next : self._next + size - len(values)]
            for word in words:
                if INTEGER.fullmatch(word) is None or not lowest <= int(word) <= highest:
                    self._refuse(repr(word[:100]), f"an integer from {lowest} to {highest}, value {len(values)}")
                values.append(int(word))
            self._next += len(words)
        return np.array(values, dtype=dtype).reshape(shape)
