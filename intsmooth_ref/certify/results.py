"""The files of a run: a table that other projects' scripts read, records from which it can be resumed, a transcript.

The table is what `certify.py` and `predict.py` of locuslab/smoothing write, tab-separated, one line an image. The
records, JSON lines, hold every integer of the certificate and every parameter of the run, and nothing that differs
from one run to the next: only the table's column `time` does. The transcript, where one is asked for, holds what others
need to replay the run (`transcript.py`). All are written and flushed image by image.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, IO, Mapping, Sequence

from ..errors import ResultFileError
from .transcript import parse_line

Record = Mapping[str, Any]


def records_path(table: Path) -> Path:
    """Where the records stand: beside the table, with the ending `.jsonl`."""
    return table.with_suffix(".jsonl")


def table_line(record: Record, columns: Sequence[str], seconds: float) -> str:
    """One line of the table; `columns` without the last, `time`."""
    return "\t".join([*(str(record[column]) for column in columns), str(timedelta(seconds=round(seconds, 6)))])


def read_run(table: Path) -> Record | None:
    """The first record of a run that was begun, None if nothing was written."""
    records = records_path(table)
    try:
        lines = _complete_lines(records)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultFileError(f"{records}: cannot be read: {error.strerror}") from None
    return _parsed(lines[0], records, 1) if lines else None


def check_continues(records: Sequence[Record], expected: Sequence[Record], table: Path) -> None:
    """Refuse to resume a run with other parameters, or other images, than those it was begun with.

    Args:
        records: those that the files hold.
        expected: of each image in turn, what is known of its record before it is computed.
        table: the file that is named in the error.

    Raises:
        ResultFileError: the first value that differs, as it was and as it is.
    """
    if len(records) > len(expected):
        raise ResultFileError(f"{table}: holds {len(records)} images already, more than the {len(expected)} asked for")
    for number, (record, values) in enumerate(zip(records, expected), start=1):
        for name, value in values.items():
            if record.get(name) != value:
                raise ResultFileError(
                    f"{records_path(table)}: line {number}: was begun with {name} {record.get(name)!r}, cannot be"
                    f" resumed with {name} {value!r}"
                )


def files_of(table: Path | None, transcript: Path | None) -> list[Path]:
    """All files that a run writes."""
    return [*([table, records_path(table)] if table else []), *([transcript] if transcript else [])]


def move_aside(files: Sequence[Path]) -> Mapping[Path, Path]:
    """Rename those of the files that an earlier run left, so that nothing certified is lost; their new names."""
    there = [path for path in files if path.exists()]
    number = 1
    while any(_numbered(path, number).exists() for path in files):
        number += 1
    try:
        for path in there:
            path.rename(_numbered(path, number))
    except OSError as error:
        raise ResultFileError(f"{there[0]}: the earlier results cannot be moved aside: {error.strerror}") from None
    return {path: _numbered(path, number) for path in there}


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class ResultFiles:
    """The files of one run, open for appending. A context manager.

    Attributes:
        records: of the images that are complete.
    """

    def __init__(self, table: Path | None, columns: Sequence[str], transcript: Path | None = None) -> None:
        """Open the files, empty or with the complete lines they hold, in step with each other.

        Lines that an interruption cut short, or that only some of the files received, are dropped.

        Raises:
            ResultFileError: if a file cannot be opened, or is not one of these.
        """
        self.table, self.transcript, self.columns = table, transcript, columns
        self.records: list[Record] = []
        if table and table.suffix == ".jsonl":
            raise ResultFileError(f"{table}: this ending is kept for the records beside the table; expected .tsv")
        files = files_of(table, transcript)
        for path in files:
            if path.exists() and not path.is_file():
                raise ResultFileError(f"{path}: is no regular file, expected one to write results to")
            if files.count(path) > 1:
                raise ResultFileError(f"{path}: stands for two files of this run, expected another name for each")
        try:
            lines = [_complete_lines(path) if path.exists() else [] for path in files]
            if table:
                lines = self._in_step(table, *lines)
            self._files = [_opened(path, each) for path, each in zip(files, lines)]
        except OSError as error:
            raise ResultFileError(f"{error.filename or files[0]}: cannot be written: {error.strerror}") from None

    def _in_step(
        self, table: Path, rows: list[str], records: list[str], certificates: list[str] | None = None
    ) -> list[list[str]]:
        """The lines of each file that are kept: those of images that all files have."""
        header = "\t".join([*self.columns, "time"])
        if rows and rows[0] != header:
            raise ResultFileError(f"{table}: found the header {rows[0][:80]!r}, expected {header!r}")
        kept = min(len(rows[1:]), len(records))
        parsed = [_parsed(line, records_path(table), i + 1) for i, line in enumerate(records)][:kept]
        _check_rows(rows[1:], parsed, table)
        self.records = parsed
        if certificates is None:
            return [[header, *rows[1 : kept + 1]], records[:kept]]
        assert self.transcript is not None
        if len(certificates) < kept:  # it is written first, so an interruption cannot have caused this
            raise ResultFileError(
                f"{self.transcript}: holds {len(certificates)} certificates, expected the {kept} of {table}"
            )
        _check_certificates(certificates, parsed, self.transcript)
        return [[header, *rows[1 : kept + 1]], records[:kept], certificates[:kept]]

    def append(self, record: Record, seconds: float, certificate: bytes = b"") -> None:
        """Write one image's line to each file and flush them; the transcript's is a line of `transcript.py`.

        Raises:
            ResultFileError: if the disk is full, say; what was written before stays.
        """
        lines = [f"{table_line(record, self.columns, seconds)}\n".encode("utf-8"), _record_line(record)]
        lines = [*(lines if self.table else []), *([certificate] if self.transcript else [])]
        try:
            for file, line in reversed(list(zip(self._files, lines))):
                _write_line(file, line)
        except OSError as error:
            kept = "make room and go on with --resume" if self.table else "those in the transcript can be verified"
            raise ResultFileError(
                f"{self.table or self.transcript}: cannot be written: {error.strerror}; {len(self.records)} images are"
                f" complete and stay: {kept}"
            ) from None
        self.records.append(record)

    def __enter__(self) -> ResultFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()


def _complete_lines(path: Path) -> list[str]:
    """All lines that end with a newline: an interrupted write leaves one that does not."""
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise ResultFileError(f"{path}: found bytes that are no text, expected results of this command") from None


def _parsed(line: str, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "idx" not in record:
        raise ResultFileError(f"{path}: line {number}: found {line[:60]!r}, expected a record of this command")
    return record


def _check_rows(rows: Sequence[str], records: Sequence[Record], table: Path) -> None:
    for number, (row, record) in enumerate(zip(rows, records), start=2):
        if row.split("\t")[0] != str(record["idx"]):
            raise ResultFileError(f"{table}: line {number}: found {row[:60]!r}, expected image {record['idx']}")


def _check_certificates(lines: Sequence[str], records: Sequence[Record], transcript: Path) -> None:
    for number, (line, record) in enumerate(zip(lines, records), start=1):
        found = parse_line(f"{line}\n".encode("utf-8"), f"{transcript}: line {number}")
        of_certificate = (found.image.index, found.image.sha256, found.model_sha256, found.seed)
        if of_certificate != tuple(record.get(name) for name in ("idx", "image_sha256", "model_sha256", "seed")):
            raise ResultFileError(
                f"{transcript}: line {number}: found image {found.image.index}, expected the certificate of image"
                f" {record['idx']} of this run"
            )


def _record_line(record: Record) -> bytes:
    return (json.dumps(record, separators=(",", ":")) + "\n").encode("utf-8")


def _opened(path: Path, lines: Sequence[str]) -> IO[bytes]:
    """The file with exactly these lines, unbuffered, positioned at its end."""
    content = "".join(f"{line}\n" for line in lines).encode("utf-8")
    file = open(path, "r+b" if path.exists() else "x+b", buffering=0)
    if file.read() != content:  # shorter only by what is dropped: what stays is not written again
        file.seek(0)
        file.write(content)
        file.truncate()
    file.seek(0, os.SEEK_END)
    return file


def _write_line(file: IO[bytes], data: bytes) -> None:
    """Write a whole line or, where the disk is full, leave none of it."""
    begin = file.tell()
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
    except OSError:
        file.truncate(begin)
        raise
