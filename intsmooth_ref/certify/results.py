"""The files of a run: a table that other projects' scripts read, records from which it can be resumed, a transcript.

The table is what `certify.py` and `predict.py` of locuslab/smoothing write, tab-separated, one line an image. The
records, JSON lines, hold every integer of the certificate and every parameter of the run, and nothing that differs
from one run to the next: only the table's column `time` does. The transcript, where one is asked for, holds what others
need to replay the run (`transcript.py`). All are written and flushed image by image, the transcript first, the table
last; so whatever interrupts a run leaves a file at most one complete line ahead of one that is written later, and at
most one line that is cut short. Files in any other state are not taken for those of a run.

Nothing of value is overwritten or cut: a new run moves earlier files aside, and a resumed one reads and compares all
of them with itself before it opens any for writing.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import ExitStack
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, IO, Mapping, Sequence

from ..errors import ResultFileError

if TYPE_CHECKING:
    from .transcript import CertificateDocument

Record = Mapping[str, Any]

#: With what every line of the records, and of a transcript, begins.
RECORD_BEGINS, CERTIFICATE_BEGINS = '{"idx":', '{"alpha":'

#: What helps where files cannot be those of one run.
ANEW = "begin anew without --resume, which moves the earlier files aside; the same --seed gives the same results"


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
        lines = _complete_lines(records, RECORD_BEGINS)
    except OSError as error:
        raise ResultFileError(f"{records}: cannot be read: {error.strerror}") from None
    return _parsed(lines[0], records, 1) if lines else None


def check_continues(records: Sequence[Record], expected: Sequence[Record], table: Path, unrecorded: int = 0) -> None:
    """Refuse to resume a run with other parameters, or other images, than those it was begun with.

    Args:
        records: those that the files hold.
        expected: of each image in turn, what is known of its record before it is computed; a parameter that neither
            it nor a record names has its default.
        table: the file that is named in the error.
        unrecorded: how many images the files hold besides.

    Raises:
        ResultFileError: the first value that differs, as it was and as it is.
    """
    begun, asked = len(records) + unrecorded, len(expected)
    if begun > asked:
        raise ResultFileError(f"{table}: holds {begun} images already, more than the {asked} asked for")
    for number, (record, values) in enumerate(zip(records, expected), start=1):
        for name in [*values, *_parameters(record)]:
            if record.get(name) != values.get(name):
                raise ResultFileError(
                    f"{records_path(table)}: line {number}: was begun with {_stated(name, record)}, cannot be resumed"
                    f" with {_stated(name, values)}: expected the options that the run was begun with"
                )


def _parameters(record: Record) -> Sequence[str]:
    """What a record names of its run: all that stands behind `correct`, the last that is found of an image."""
    names = list(record)
    return names[names.index("correct") + 1 :] if "correct" in record else []


def _stated(name: str, record: Record) -> str:
    return f"{name} {record[name]!r}" if name in record else f"the default {name}"


def files_of(table: Path | None, transcript: Path | None, inputs: Sequence[Path] = ()) -> list[Path]:
    """All files that a run writes, each found to be one that it may write; `inputs` are those that it reads.

    Raises:
        ResultFileError: if one is neither a regular file nor a free name in a folder, or stands for two files.
    """
    if table:
        _require_place(table)  # first of all: the empty name, a folder, has no records beside it
        if table.suffix.lower() == ".jsonl":
            raise ResultFileError(f"{table}: this ending is kept for the records beside the table; expected .tsv")
    roles = [(table, "the table"), (records_path(table), f"the records of {table}")] if table else []
    roles += [(transcript, "the transcript")] if transcript else []
    files = [path for path, _ in roles]
    for path in files:
        _require_place(path)
        if any(_is_same(path, each) for each in inputs if each.exists()):
            raise ResultFileError(f"{path}: is read by this run, expected another name for what it writes")
    for (path, role), (other, other_role) in combinations(roles, 2):
        if _is_same(path, other):
            both = f"{role} and {other_role}"
            raise ResultFileError(f"{other}: stands for two files of this run, {both}: expected another name for one")
    return files


def _require_place(path: Path) -> None:
    """Refuse what is neither a regular file nor a free name in a folder."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ResultFileError(f"{path}: is no regular file, expected one to write results to")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ResultFileError(f"{path}: is a link to nothing, expected a file or a name that is free") from None
        reason = error.strerror
        if path.parent.is_dir():
            if os.access(path.parent, os.W_OK):
                return
            reason = os.strerror(errno.EACCES)
        raise ResultFileError(f"{path}: cannot be written: {reason}") from None
    except OSError as error:
        raise ResultFileError(f"{path}: cannot be written: {error.strerror}") from None


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names stand for one file, be it there or not."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.name == other.name and path.parent.samefile(other.parent)


def move_aside(files: Sequence[Path]) -> Mapping[Path, Path]:
    """Rename those of the files that an earlier run left, so that nothing certified is lost; their new names.

    Raises:
        ResultFileError: if one cannot be renamed; the others have their names again.
    """
    number = 1
    while any(os.path.lexists(_numbered(path, number)) for path in files):
        number += 1
    moved: dict[Path, Path] = {}
    for path in files:
        if path.exists():
            try:
                moved[path] = path.rename(_numbered(path, number))
            except OSError as error:
                for each, aside in moved.items():
                    aside.rename(each)
                raise ResultFileError(f"{path}: was there, cannot be moved aside: {error.strerror}") from None
    return moved


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class ResultFiles:
    """The files of one run. A context manager: from its begin to its end they are open for appending.

    Attributes:
        records: of the images that are complete: all files have their line.
        begun: how many images any file has a complete line of, at most one more.
    """

    def __init__(self, table: Path | None, columns: Sequence[str], transcript: Path | None = None) -> None:
        """Read what the files hold, if they are there, and check that they are in step with each other.

        No file is changed. As the context begins, those that are missing are made, and lines are dropped that an
        interruption cut short, or that only some of the files received.

        Raises:
            ResultFileError: if a file is not one of these, or not in step.
            TranscriptError: if a line of the transcript is no certificate.
        """
        self.table, self.transcript, self.columns = table, transcript, columns
        self._paths = files_of(table, transcript)
        self._header = "\t".join([*columns, "time"])
        self.records: list[Record] = []
        self._ahead: list[Record] = []
        self._unrecorded: list[CertificateDocument] = []
        try:
            if table:
                self._kept = self._read(table)
            else:
                self._kept = [0] * len(self._paths)
                if transcript and transcript.exists() and transcript.stat().st_size:
                    raise ResultFileError(f"{transcript}: is there already, expected a new file without a table")
        except OSError as error:
            raise ResultFileError(f"{error.filename}: cannot be read: {error.strerror}") from None

    @property
    def begun(self) -> int:
        return len(self.records) + len(self._ahead) + len(self._unrecorded)

    def _read(self, table: Path) -> list[int]:
        """Take in the lines that the files hold; how many bytes of each file are lines that all of them have."""
        rows = _complete_lines(table, f"{self._header}\n")
        if rows and rows[0] != self._header:
            raise ResultFileError(f"{table}: found the header {rows[0][:80]!r}, expected {self._header!r}")
        records = records_path(table)
        lines = _complete_lines(records, RECORD_BEGINS)
        parsed = [_parsed(line, records, number) for number, line in enumerate(lines, start=1)]
        self._check_rows(rows[1:], parsed, table)
        complete = max(len(rows) - 1, 0)
        if not complete <= len(parsed) <= complete + 1:
            held = f"{records}: holds {len(parsed)} records, expected the {complete} of {table}, or one more"
            raise ResultFileError(f"{held}: no interruption leaves them so; {ANEW}")
        self.records, self._ahead = parsed[:complete], parsed[complete:]
        kept = [rows[: complete + 1], lines[:complete]]
        if self.transcript:
            certificates = _complete_lines(self.transcript, CERTIFICATE_BEGINS)
            self._check_number(len(certificates), records)
            self._check_certificates(certificates, parsed)
            kept.append(certificates[:complete])
        return [sum(len(line.encode("utf-8")) + 1 for line in each) for each in kept]

    def _check_rows(self, rows: Sequence[str], records: Sequence[Record], table: Path) -> None:
        for number, (row, record) in enumerate(zip(rows, records), start=2):
            if row.split("\t")[:-1] != [str(record.get(column)) for column in self.columns]:
                raise ResultFileError(
                    f"{table}: line {number}: found {row[:60]!r}, expected image {record['idx']} as its record has it"
                )

    def _check_number(self, certificates: int, records: Path) -> None:
        """Refuse a transcript that no interruption can have left beside these records."""
        expected, more = len(self.records) + len(self._ahead), ", or one more" * (not self._ahead)
        if not expected <= certificates <= len(self.records) + 1:
            reason = "is it that of another run?"
            if certificates < expected:
                how = "went on" if certificates else "was begun"
                reason = f"the run {how} without --transcript, and can only go on without it;"
            raise ResultFileError(
                f"{self.transcript}: holds {certificates} certificates, expected the {expected} of {records}{more}:"
                f" {reason} {ANEW}"
            )

    def _check_certificates(self, lines: Sequence[str], records: Sequence[Record]) -> None:
        """Every line is a certificate, and that of the image whose record stands in the same line."""
        from .transcript import parse_line

        for number, line in enumerate(lines, start=1):
            where = f"{self.transcript}: line {number}"
            document = parse_line(f"{line}\n".encode("utf-8"), where)
            if number <= len(records):
                _check_agrees({**_known(document), **_found(document)}, records[number - 1], where)
            else:
                self._unrecorded.append(document)

    def check_continues(self, expected: Sequence[Record]) -> None:
        """Refuse to go on with these files in a run with other parameters, or other images.

        Args:
            expected: of the first `begun` images, or of all if they are fewer, what is known of their records before
                they are computed.

        Raises:
            ResultFileError: the first value that differs, as it was and as it is.
        """
        if self.table:
            check_continues([*self.records, *self._ahead], expected, self.table, len(self._unrecorded))
            for document in self._unrecorded:
                _check_agrees(_known(document), expected[self.begun - 1], f"{self.transcript}: line {self.begun}")

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
        """Open the files with the lines that stay.

        Raises:
            ResultFileError: if one cannot be opened or written.
        """
        try:
            with ExitStack() as opened:
                self._files = [opened.enter_context(_open(path)) for path in self._paths]
                for file, kept in zip(self._files, self._kept):
                    file.truncate(kept)
                    file.seek(0, os.SEEK_END)
                if self.table and self._kept[0] == 0:
                    _write(self._files[0], f"{self._header}\n".encode("utf-8"))
                self._opened = opened.pop_all()
        except OSError as error:
            raise ResultFileError(f"{error.filename or self._paths[0]}: cannot be written: {error.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()


def _complete_lines(path: Path, begins: str) -> list[str]:
    """All lines that end with a newline; none if there is no file.

    An interrupted write leaves one that does not; if it is the only one, it has to begin as lines of this file do.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    cut_short = rest.decode("utf-8", "replace")
    if not lines and not cut_short.startswith(begins) and not begins.startswith(cut_short):
        raise ResultFileError(f"{path}: found {cut_short[:60]!r}, expected results of this command")
    try:
        return [line.decode("utf-8") for line in lines]
    except UnicodeDecodeError:
        raise ResultFileError(f"{path}: found bytes that are no text, expected results of this command") from None


def _parsed(line: str, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or "idx" not in record:
        raise ResultFileError(f"{path}: line {number}: found {line[:60]!r}, expected a record of this command")
    return record


def _known(document: CertificateDocument) -> Record:
    """What the record of a certificate's image says before it is computed; None where a default goes unnamed."""
    image, noise, family = document.image, document.noise, document.familywise
    return {
        "idx": image.index, "label": image.label, "image_sha256": image.sha256, "model_sha256": document.model_sha256,
        "seed": document.seed, "n0": document.n0, "n": document.n, "alpha": str(document.alpha),
        "noise": noise.distribution, f"{noise.law.parameter}_levels": str(noise.parameter),
        "bound": None if document.bound == "majority" else document.bound, "targets": list(document.targets) or None,
        "familywise": f"{family.alpha} for {family.images} images" if family else None,
    }  # fmt: skip


def _found(document: CertificateDocument) -> Record:
    """What the record of a certificate's image says of what was found."""
    return {
        "predict": document.prediction, document.radius_name: document.radius,
        "selection_votes": list(document.selection.votes), "estimation_votes": list(document.estimation.votes),
    }  # fmt: skip


def _check_agrees(certified: Record, record: Record, where: str) -> None:
    """Refuse a certificate that differs from its record, or from what is known of it."""
    for name, value in certified.items():
        if record.get(name) != value:
            raise ResultFileError(
                f"{where}: found image {certified['idx']}, expected the certificate of image {record['idx']} of this"
                f" run: its {name} is {value!r:.60}, not {record.get(name)!r:.60}"
            )


def _record_line(record: Record) -> bytes:
    return (json.dumps(record, separators=(",", ":")) + "\n").encode("utf-8")


def _open(path: Path) -> IO[bytes]:
    return open(path, "r+b" if path.exists() else "x+b", buffering=0)


def _write_line(file: IO[bytes], data: bytes) -> None:
    """Write a whole line or, where the disk is full, leave none of it."""
    begin = file.tell()
    try:
        _write(file, data)
    except OSError:
        file.truncate(begin)
        raise


def _write(file: IO[bytes], data: bytes) -> None:
    written = 0
    while written < len(data):  # the system may take less than all
        written += file.write(data[written:])
