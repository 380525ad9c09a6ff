"""The two files of a run: a table that other projects' scripts read, and records from which the run can be resumed.

The table is what `certify.py` and `predict.py` of locuslab/smoothing write, tab-separated, one line an image. The
records, JSON lines, hold every integer of the certificate and every parameter of the run, and nothing that differs
from one run to the next: only the table's column `time` does. Both are written and flushed image by image.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, IO, Mapping, Sequence

from ..errors import ResultFileError

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


def move_aside(table: Path) -> Path | None:
    """Rename the files of an earlier run, so that nothing certified is lost; the table's new name, if there was one."""
    files = [path for path in (table, records_path(table)) if path.exists()]
    if not files:
        return None
    number = 1
    while any(_numbered(path, number).exists() for path in (table, records_path(table))):
        number += 1
    try:
        for path in files:
            path.rename(_numbered(path, number))
    except OSError as error:
        raise ResultFileError(f"{table}: the earlier results cannot be moved aside: {error.strerror}") from None
    return _numbered(table, number)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class ResultFiles:
    """The table and the records of one run, open for appending. A context manager."""

    def __init__(self, table: Path, columns: Sequence[str]) -> None:
        """Open both files, empty or with the complete lines they hold, in step with each other.

        Lines that an interruption cut short, or that only one of the files received, are dropped.

        Raises:
            ResultFileError: if a file cannot be opened, or is not one of these.
        """
        self.table, self.records_path, self.columns = table, records_path(table), columns
        self.records: list[Record] = []
        for path in (table, self.records_path):
            if path.exists() and not path.is_file():
                raise ResultFileError(f"{path}: is no regular file, expected one to write results to")
        if table.suffix == ".jsonl":
            raise ResultFileError(f"{table}: this ending is kept for the records beside the table; expected .tsv")
        header = "\t".join([*columns, "time"])
        try:
            rows = _complete_lines(table) if table.exists() else []
            lines = _complete_lines(self.records_path) if self.records_path.exists() else []
            if rows and rows[0] != header:
                raise ResultFileError(f"{table}: found the header {rows[0][:80]!r}, expected {header!r}")
            self.records = [_parsed(line, self.records_path, i + 1) for i, line in enumerate(lines)][: len(rows[1:])]
            _check_rows(rows[1:], self.records, table)
            kept = len(self.records)
            self._table = _opened(table, [header, *rows[1 : kept + 1]])
            self._records = _opened(self.records_path, lines[:kept])
        except OSError as error:
            raise ResultFileError(f"{error.filename or table}: cannot be written: {error.strerror}") from None

    def append(self, record: Record, seconds: float) -> None:
        """Write one image's line to both files and flush them.

        Raises:
            ResultFileError: if the disk is full, say; what was written before stays.
        """
        try:
            _write_line(self._records, json.dumps(record, separators=(",", ":")))
            _write_line(self._table, table_line(record, self.columns, seconds))
        except OSError as error:
            raise ResultFileError(
                f"{self.table}: cannot be written: {error.strerror}; {len(self.records)} images are complete"
                " and stay: make room and go on with --resume"
            ) from None
        self.records.append(record)

    def __enter__(self) -> ResultFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._table, self._records):
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


def _write_line(file: IO[bytes], line: str) -> None:
    """Write a whole line or, where the disk is full, leave none of it."""
    data, begin = f"{line}\n".encode("utf-8"), file.tell()
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
    except OSError:
        file.truncate(begin)
        raise
