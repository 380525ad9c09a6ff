"""write known-answer vectors for another implementation, or check what it computes

Plain text, for C, Verilog or anything: Philox, noise, requantization and every operator on small shapes, then a model
layer by layer (`intsmooth_ref/audit/VECTORS.md` specifies the format). With --check, a file in the same format that
another implementation wrote is held against what is expected: for each case the first wrong result is named, with
index, found and expected, and the rounding mode that would explain it. Exit status 0 only if all is equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from .arguments import add_model, integer_from, open_model

if TYPE_CHECKING:
    import numpy as np

    from ..audit.vector_format import Case, VectorSet
    from ..audit.vectors import Known
    from ..model.graph import IntegerModel
    from ..model.hdf5 import ModelFile

#: So many cases that differ are printed.
SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where to write the files, one a set")
    parser.add_argument("--images", type=integer_from(1), default=4, metavar="N",
                        help="images that go through the model: first those of its known answers, then random ones"
                        " under noise (default: 4)")  # fmt: skip
    parser.add_argument("--tensors", action="store_true",
                        help="write every layer's output in full, not its SHA-256 alone")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check another implementation's results")
    parser.add_argument("--against", type=Path, metavar="DIR",
                        help="with --check: the vectors that it was given (default: computed here, as this command"
                        " would write them)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write or check; returns the exit status."""
    from ..errors import ParameterError

    if options.check is not None:
        if options.folder is not None:
            raise ParameterError(f"{options.folder}: with --check nothing is written; expected --against DIR")
        return _check(options)
    if options.against is not None:
        raise ParameterError("--against: needs --check, the file to be held against these vectors")
    if options.folder is None:
        raise ParameterError("vectors: expected a model and a folder to write to, or --check FILE")
    return _write(options)


def _write(options: argparse.Namespace) -> int:
    from ..audit.vector_format import vector_text
    from ..audit.vectors import NETWORK, PRIMITIVES, vector_set
    from ..new_files import check_new, write_whole

    folder: Path = options.folder
    paths = {name: folder / f"{name}.txt" for name in (*PRIMITIVES, NETWORK)}
    opened = open_model(options.model)
    if not folder.exists() and folder.parent.is_dir():
        folder.mkdir()
    check_new(list(paths.values()), options.overwrite, [options.model])
    for name, path in paths.items():
        vectors = vector_set(name, _computed(name, opened, options))
        content = vector_text(vectors).encode("ascii")
        write_whole(path, content)
        print(f"{path}: {len(vectors.cases)} cases, {len(content)} bytes")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..audit.vector_check import differences
    from ..audit.vector_format import read_vectors

    path: Path = options.check
    found = read_vectors(path)
    expected = _expected(found, options)
    different = differences(found, expected, str(path))
    for each in different[:SHOWN]:
        print(each)
    if len(different) > SHOWN:
        print(f"... and {len(different) - SHOWN} cases more")
    equal = len(expected) - len(different)
    print(f"{path}: {equal} of {len(expected)} cases of the set {found.name!r} are equal")
    return 1 if different else 0


def _expected(found: VectorSet, options: argparse.Namespace) -> Sequence[Known]:
    """What the file should hold: as the folder of --against says, or as it is computed here."""
    from ..audit.vector_check import check_stated
    from ..audit.vector_format import read_vectors
    from ..audit.vectors import NETWORK, known_answers, network_case
    from ..errors import VectorFormatError

    if options.against is None:
        return _computed(found.name, open_model(options.model), options)
    path = options.against / f"{found.name}.txt"
    stated = read_vectors(path)
    if stated.name != found.name:
        raise VectorFormatError(f"{path}: found the set {stated.name!r}; expected {found.name!r}")
    if found.name != NETWORK:
        return check_stated(stated, {each.case.name: each for each in known_answers(found.name)}, str(path))
    model = open_model(options.model).model
    images = {case.name: _stated_image(case, model, path) for case in stated.cases}
    known = {name: network_case(model, name, image, True) for name, image in images.items()}
    return check_stated(stated, known, str(path))


def _stated_image(case: Case, model: IntegerModel, path: Path) -> np.ndarray:
    """The image that a case of the network was computed from."""
    import numpy as np

    from ..errors import VectorFormatError
    from ..model.fingerprint import fingerprint
    from ..model.proof import NOISY_PIXEL_LIMIT

    where = f"{path}: case {case.name!r}"
    found = case.given.get("fingerprint")
    if found != fingerprint(model):
        raise VectorFormatError(f"{where}: found a model of fingerprint {found}; expected {fingerprint(model)}")
    image = case.given.get("image")
    if not isinstance(image, np.ndarray) or image.dtype != np.int32 or image.shape != model.input.shape:
        raise VectorFormatError(f"{where}: found no image of the model; expected int32 {model.input.shape}")
    if abs(image.astype(np.int64)).max() > NOISY_PIXEL_LIMIT:
        raise VectorFormatError(f"{where}: found grey levels beyond what a model takes; expected at most"
                                f" {NOISY_PIXEL_LIMIT} in either direction")  # fmt: skip
    return image


def _computed(name: str, opened: ModelFile, options: argparse.Namespace) -> Sequence[Known]:
    from ..audit.vectors import NETWORK, known_answers, network_answers, network_images

    if name != NETWORK:
        return known_answers(name)
    real = None if opened.known_answers is None else opened.known_answers.inputs
    return network_answers(opened.model, network_images(opened.model, options.images, real), options.tensors)
