"""Another implementation's results held against what is expected: which is the first to differ, where, and why.

An implementation answers in the format of the vectors themselves. It may leave out what was given, and state a hash
where an array was expected, or the array where a hash was. Results are compared in the order in which they are
computed, so in a network the first layer that differs is the one to look at: those after it compute with its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np

from ..errors import VectorFormatError
from ..model.fingerprint import tensor_sha256
from .vector_format import Case, Digest, Value, VectorSet
from .vectors import Known


@dataclass(frozen=True)
class Difference:
    """The first result of a case that is not as expected.

    Attributes:
        case, result: their names; in a network the result's name is the layer's.
        what: what was found, and what was expected.
        modes: the rounding modes that give what was found.
    """

    case: str
    result: str
    what: str
    modes: tuple[str, ...]

    def __str__(self) -> str:
        why = f"; rounding by {' or '.join(self.modes)} gives what was found" if self.modes else ""
        return f"case {self.case!r}, result {self.result!r}: {self.what}{why}"


def differences(found: VectorSet, expected: Sequence[Known], path: str) -> list[Difference]:
    """The cases that differ, each by its first wrong result.

    Raises:
        VectorFormatError: if the file holds cases or results that were not asked for, or for other inputs.
    """
    answers = {case.name: case for case in found.cases}
    unknown = answers.keys() - {known.case.name for known in expected}
    if unknown:
        raise VectorFormatError(
            f"{path}: found the case {min(unknown)!r}; expected cases of the set {found.name!r} alone"
        )
    compared = [_first_difference(answers.get(known.case.name), known, path) for known in expected]
    return [each for each in compared if each is not None]


def _first_difference(answer: Case | None, known: Known, path: str) -> Difference | None:
    case = known.case
    first = next(iter(case.results))
    if answer is None:
        return Difference(case.name, first, "the whole case is missing", ())
    _check_fields(answer, case, path)
    for name, value in case.results.items():
        if name not in answer.results:
            return Difference(case.name, name, "is missing", ())
        difference = _difference(answer.results[name], value, known.tensors.get(name))
        if difference:
            return Difference(case.name, name, difference, _explaining_modes(answer.results[name], known, name))
    return None


def _check_fields(answer: Case, case: Case, path: str) -> None:
    """What was given may be left out, but not be anything else; results have names that were asked for."""
    for name, value in answer.given.items():
        if name not in case.given or not same(value, case.given[name]):
            raise VectorFormatError(
                f"{path}: case {case.name!r}: found another {name!r} than was given; expected the same, or none"
            )
    unknown = answer.results.keys() - case.results.keys()
    if unknown:
        raise VectorFormatError(
            f"{path}: case {case.name!r}: found the result {min(unknown)!r}; expected {', '.join(case.results)}"
        )


def same(a: Value, b: Value) -> bool:
    """Whether two fields hold the same, a hash being as good as its array."""
    if isinstance(a, Digest) or isinstance(b, Digest):
        return _digest(a) == _digest(b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return isinstance(a, str) and isinstance(b, str) and a == b


def _digest(value: Value) -> str | None:
    if isinstance(value, Digest):
        return value.sha256
    return tensor_sha256(value) if isinstance(value, np.ndarray) else None


def _difference(found: Value, stated: Value, tensor: np.ndarray | None) -> str | None:
    """What differs; `tensor` is the expected array where only its hash was stated."""
    if same(found, stated):
        return None
    expected = stated if tensor is None else tensor
    if not isinstance(found, np.ndarray) or not isinstance(expected, np.ndarray):
        return f"found {_described(found)}, expected {_described(stated)}"
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"found {_described(found)}, expected {_described(expected)}"
    wrong = np.argwhere(found != expected)
    index = tuple(wrong[0].tolist())
    count = f"; {len(wrong)} of {found.size} values differ" if found.size > 1 else ""
    return f"index {index}: found {found[index]}, expected {expected[index]}{count}"


def _described(value: Value) -> str:
    if isinstance(value, Digest):
        return f"SHA-256 {value.sha256}"
    return f"the word {value!r}" if isinstance(value, str) else f"{value.dtype} of shape {value.shape}"


def _explaining_modes(found: Value, known: Known, name: str) -> tuple[str, ...]:
    return tuple(mode for mode, tensor in known.alternatives(name) if same(found, tensor))


def check_stated(stated: VectorSet, known: Mapping[str, Known], path: str) -> list[Known]:
    """The cases of a file that is to be checked against, each joined with what is known of it here.

    A case of another origin is taken as it stands, and no rounding mode is looked for.

    Raises:
        VectorFormatError: if the file itself is wrong about a case that is known here.
    """
    joined = []
    for case in stated.cases:
        here = known.get(case.name)
        if here is None or not _same_fields(case.given, here.case.given):
            arrays = {name: value for name, value in case.results.items() if isinstance(value, np.ndarray)}
            joined.append(Known(case, arrays))
            continue
        for name, value in case.results.items():
            if name not in here.tensors or not same(value, here.tensors[name]):
                raise VectorFormatError(
                    f"{path}: case {case.name!r}: found a result {name!r} that is itself wrong; expected vectors as"
                    " they were written"
                )
        joined.append(Known(case, here.tensors, here.alternatives))
    return joined


def _same_fields(a: Mapping[str, Value], b: Mapping[str, Value]) -> bool:
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
