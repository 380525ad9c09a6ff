"""Files that are made: each whole or not at all, and none over another unless that is asked for."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Sequence

from .errors import IntsmoothError, ParameterError


def check_new(paths: Sequence[Path], overwrite: bool, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse, before anything is computed, names that cannot be written; `inputs` are files that are read.

    Raises:
        ParameterError: if a file is there and `overwrite` is not asked for, or it is an input, or no regular file, or
            its folder is not there.
    """
    read = {each.resolve() for each in inputs if each is not None}
    for path in paths:
        if path.resolve() in read:
            raise ParameterError(f"{path}: is read by this command; expected another name for what it writes")
        if path.exists() and not path.is_file():
            raise ParameterError(f"{path}: found no regular file; expected a file or a free name")
        if path.exists() and not overwrite:
            raise ParameterError(f"{path}: found a file already; expected none, or the option --overwrite")
        if not path.resolve().parent.is_dir():
            raise ParameterError(f"{path}: found no folder {path.parent}; expected one that exists")


def write_whole(path: str | os.PathLike[str], content: bytes, error: type[IntsmoothError] = ParameterError) -> None:
    """Write a file that appears whole or not at all: what stood there stays until the new bytes are safe on the disk.

    Raises:
        error: if the folder, the disk or the permissions do not allow it, or no regular file stands there.
    """
    target = os.path.realpath(path)  # a symbolic link keeps pointing to the file it points to
    if os.path.lexists(target) and not os.path.isfile(target):
        raise error(f"{path}: cannot be written: found no regular file in its place; expected a file or nothing")
    partial = f"{target}.{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as problem:
        raise error(f"{path}: cannot be written: {problem.strerror or problem}") from None
    finally:
        if os.path.lexists(partial):
            os.unlink(partial)
