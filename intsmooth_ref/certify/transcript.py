r"""Transcripts: files of certificates, each a document that says what is claimed and all that is needed to replay it.

A transcript is a file of JSON lines, one certificate a line. This page specifies it for whoever reads or writes one
from another language; `certificate.schema.json` states the same of a single certificate, as far as a JSON Schema can.

Canonical form
--------------
A certificate can be written in one way only, that of RFC 8785 (JSON Canonicalization Scheme): keys ascend, there is no
white space, and no character more than needed. Its JSON is restricted to objects, arrays, `true`, `false`, `null`,
integers within +-(2**53-1), and strings of printable ASCII, in which a backslash escapes `"` and `\` and nothing else.
Every line ends with one newline (byte 10), the last one too, and has at most 2**28 bytes. Of these types are made

- a *rational*: a string such as "255/4" or "7", above zero, in lowest terms of at most 1000 digits each;
- a *hash*: a string of 64 lower-case hexadecimal digits, a SHA-256;
- a *budget*: an integer, 0 .. 2**53-1, in the unit of the radius.

Fields
------
All of them are required, and nothing else is allowed.

    field           value
    --------------  ---------------------------------------------------------------------------------------------------
    format          "intsmooth-ref certificate"
    format_version  1; in every version to come, too, these two stand side by side
    model_sha256    hash: the model's fingerprint (`model/fingerprint.py`)
    image           {"index": 0 .. 2**32-1, addresses the noise,
                     "label": 0 .. 65535, or -1 where it is unknown; no input,
                     "sha256": hash of the pixels (`Dataset.image_sha256`)}
    noise           {"distribution": "discrete_gaussian", "sigma": rational} or
                    {"distribution": "discrete_laplace", "scale": rational}, grey levels (`noise/distributions.py`)
    generator       "Philox4x32-10", with the addresses of `noise/sampler.py`
    seed            a string of decimal digits, "0" .. "18446744073709551615", no leading zeros
    n0              1 .. 2**32: samples of the selection
    n               1 .. 2**32: samples of the estimation, at most; by the fixed rule all of them
    alpha           rational below 1: the probability, at most, that this certificate is false
    familywise      null, or {"alpha": rational below 1, "images": 1 .. 2**32}: the probability, at most, that any of so
                    many certificates is false, of which this one's alpha is a share
    bound           "majority", or "two-class": with Gaussian noise and the fixed rule only
    stopping        {"rule": "fixed"} or
                    {"rule": "sequential", "targets": [1 to 64 budgets, ascending, none twice]}
    selection       the votes that chose the class:
                    {"chunks": [at most 4294968, of 1000 samples each but the last (`chunks.py`):
                         {"sha256": hash of their classes,
                          "votes": [[0 .. 65535: a class, 1 .. 1000: its votes] for each class that has some,
                                    ascending; 1 to 1000 of them]}],
                     "merkle_root": hash over the chunks,
                     "samples": 1 .. 2**32, drawn,
                     "votes": [0 .. 2**32 for each class in turn, 1 to 65536 of them]}
    estimation      the votes that bound that class's probability, likewise
    decisions       [] by the fixed rule; by the sequential one, of the targets in turn those that were decided, each as
                    {"certified": true, or false: given up,
                     "samples": 1 .. 2**32, after how many it was decided,
                     "target": budget,
                     "votes": 0 .. 2**32, how many of these samples gave the class}
    prediction      0 .. 65535: the class, or -1: abstained
    theorem         of `PROOF.md`: "majority" (theorem 1, Gaussian noise), "two-class" (theorem 2, with this bound) or
                    "likelihood-ratio" (theorem 3, Laplace noise); null where abstained, and only there
    norm            "L2" with Gaussian noise, "L1" with Laplace noise
    radius_sq       with L2: a budget, grey levels squared; whatever changes the image by integers whose squares add up
                    to at most this leaves the prediction as it is
    radius_l1       with L1, in its stead: a budget, grey levels; likewise for absolute values
    information     {at most 64 strings of at most 200 characters, under keys of 1 to 40 of a-z and _}: versions,
                    processor, ...; for people, no input, and not part of what is certified

This is the form. Whether a certificate is true (its votes add up to its samples, its chunks are as many as they should
be, its class exists, its votes are those of the seed and give its radius, ...) is for a verifier to find out.

What a seed proves
------------------
A replay proves that the votes are those that this seed gives, not that the seed was not chosen. The probability alpha
is over the seed, for a model and an image that were fixed before it was drawn. A prover who tries many seeds and
publishes the best one makes a false claim likelier, by up to as many times as seeds were tried. So the seed has to be
drawn, after model and image are fixed, by somebody or something that the prover does not control, or be committed to
in advance. What tests a claim whose seed nobody can vouch for is noise from a fresh one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from os import PathLike
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, NoReturn, TypeVar

from ..errors import TranscriptError
from .chunks import CHUNK, CLASSES_MAX, Chunk, merkle_root

FORMAT = "intsmooth-ref certificate"
FORMAT_VERSION = 1
GENERATOR = "Philox4x32-10"

#: The prediction of a classifier that does not commit itself.
ABSTAIN = -1

MAJORITY, TWO_CLASS = "majority", "two-class"
FIXED, SEQUENTIAL = "fixed", "sequential"

INTEGER_MAX = 2**53 - 1
INDEX_MAX = 2**32 - 1
SAMPLES_MAX = 2**32
CHUNKS_MAX = -(-SAMPLES_MAX // CHUNK)
SEED_MAX = 2**64 - 1
TARGETS_MAX = 64
RATIONAL_DIGITS_MAX = 1000
INFORMATION_MAX, INFORMATION_VALUE_MAX = 64, 200

#: A longer line is refused before it is read, and not written. There is room for 26 million samples, whatever their
#: votes, and for fifty times as many of ten classes.
LINE_BYTES_MAX = 1 << 28


class Law(NamedTuple):
    """What goes with a law of noise."""

    parameter: str
    norm: str
    radius: str
    majority_theorem: str


LAWS = {
    "discrete_gaussian": Law("sigma", "L2", "radius_sq", MAJORITY),
    "discrete_laplace": Law("scale", "L1", "radius_l1", "likelihood-ratio"),
}


@dataclass(frozen=True)
class ImageReference:
    """Which image: the index that addresses its noise, the hash of its pixels, and its label or -1."""

    index: int
    sha256: str
    label: int


@dataclass(frozen=True)
class Noise:
    """A law of noise: `discrete_gaussian` or `discrete_laplace`, and its parameter in grey levels.

    Raises:
        TranscriptError: if the law is no such one.
    """

    distribution: str
    parameter: Fraction

    def __post_init__(self) -> None:
        if self.distribution not in LAWS:
            expected = " or ".join(map(repr, LAWS))
            raise TranscriptError(f"noise: found the distribution {self.distribution!r}, expected {expected}")

    @property
    def law(self) -> Law:
        """What goes with the distribution."""
        return LAWS[self.distribution]


@dataclass(frozen=True)
class Familywise:
    """The probability that any of so many certificates is false, of which each has a share."""

    alpha: Fraction
    images: int


@dataclass(frozen=True)
class Stage:
    """The votes of one stage, as they are stated: nothing here says that they fit together.

    Attributes:
        samples: how many were drawn.
        votes: of each class.
        chunks: of 1000 samples each, the last one of what is left.
        merkle_root: over the chunks.
    """

    samples: int
    votes: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    merkle_root: str

    @classmethod
    def of(cls, votes: Iterable[int], chunks: Iterable[Chunk]) -> Stage:
        """The stage of these votes, with the number of samples and the Merkle root that they have."""
        votes, chunks = tuple(votes), tuple(chunks)
        return cls(sum(votes), votes, chunks, merkle_root(chunks))


@dataclass(frozen=True)
class Decision:
    """That a target was certified, or given up, with so many votes for the class after so many samples."""

    target: int
    samples: int
    votes: int
    certified: bool


@dataclass(frozen=True)
class CertificateDocument:
    """One certificate, field by field as the module says; what follows from other fields is not repeated.

    Attributes:
        targets: of the sequential rule; empty with the fixed rule.
        theorem: its name, None where abstained.
        radius: `radius_sq` or `radius_l1`, as the noise has it.
    """

    model_sha256: str
    image: ImageReference
    noise: Noise
    seed: int
    n0: int
    n: int
    alpha: Fraction
    familywise: Familywise | None
    bound: str
    targets: tuple[int, ...]
    selection: Stage
    estimation: Stage
    decisions: tuple[Decision, ...]
    prediction: int
    theorem: str | None
    radius: int
    information: Mapping[str, str]

    @property
    def norm(self) -> str:
        """In which perturbations are measured: `L2` or `L1`."""
        return self.noise.law.norm

    @property
    def radius_name(self) -> str:
        """The field that holds the radius: `radius_sq` or `radius_l1`."""
        return self.noise.law.radius


def canonical_line(document: CertificateDocument) -> bytes:
    """The certificate as one line of a transcript, newline included.

    Raises:
        TranscriptError: if `parse_line` would refuse the line, for a value that the format has no place for.
    """
    where = f"certificate of image {document.image.index}"
    try:
        line = _canonical_json(_fields(document))
    except ValueError:  # Python's limit to the digits that it writes
        raise TranscriptError(f"{where}: $: found a number of thousands of digits, expected shorter ones") from None
    parse_line(line, where)
    return line


def claim_bytes(document: CertificateDocument) -> bytes:
    """The same line without `information`: equal on every machine for equal certificates."""
    fields = _fields(document)
    del fields["information"]
    return _canonical_json(fields)


def _fields(document: CertificateDocument) -> dict[str, Any]:
    """The certificate as JSON has it; what JSON has no type for as a string."""
    noise, familywise, targets = document.noise, document.familywise, document.targets
    law = LAWS[noise.distribution]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_sha256": document.model_sha256,
        "image": vars(document.image),
        "noise": {"distribution": noise.distribution, law.parameter: str(noise.parameter)},
        "generator": GENERATOR,
        "seed": str(document.seed),
        "n0": document.n0,
        "n": document.n,
        "alpha": str(document.alpha),
        "familywise": familywise and {"alpha": str(familywise.alpha), "images": familywise.images},
        "bound": document.bound,
        "stopping": {"rule": SEQUENTIAL, "targets": targets} if targets else {"rule": FIXED},
        "selection": _stage_fields(document.selection),
        "estimation": _stage_fields(document.estimation),
        "decisions": [vars(decision) for decision in document.decisions],
        "prediction": document.prediction,
        "theorem": document.theorem,
        "norm": law.norm,
        law.radius: document.radius,
        "information": dict(document.information),
    }


def _stage_fields(stage: Stage) -> dict[str, Any]:
    return {**vars(stage), "chunks": [vars(chunk) for chunk in stage.chunks]}


def _canonical_json(fields: Mapping[str, Any]) -> bytes:
    """RFC 8785 for what a certificate holds, and a newline.

    The standard sorts keys by UTF-16 units, escapes as little as it must and writes numbers as ECMAScript does. For
    strings of printable ASCII and integers within +-(2**53-1) `json.dumps` does the same. A value of a type that JSON
    has not becomes a string, which a reader refuses where it stands.
    """
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), default=repr).encode("ascii") + b"\n"


def read_transcript(path: str | PathLike[str]) -> Iterator[CertificateDocument]:
    """Read a transcript, one certificate at a time: memory holds no more than one line and what it says.

    Raises:
        TranscriptError: in one line, with file, number of the line and JSON path, if the file cannot be read or breaks
            a rule of the format; certificates of earlier lines have been given by then.
    """
    number = 0
    for number, line in enumerate(_lines(path), start=1):
        yield parse_line(line, f"{path}: line {number}")
    if number == 0:
        raise TranscriptError(f"{path}: found an empty file, expected at least one certificate")


def _lines(path: str | PathLike[str]) -> Iterator[bytes]:
    """The lines of a file with their newlines; of one that is too long only as much as shows it."""
    try:
        with open(path, "rb") as file:
            while line := file.readline(LINE_BYTES_MAX + 1):
                yield line
    except OSError as error:
        raise TranscriptError(f"{path}: cannot be read: {error.strerror}") from None


def parse_line(line: bytes, where: str) -> CertificateDocument:
    """Read one line of a transcript, newline included.

    Whatever it returns, `canonical_line` writes as the very bytes that were read.

    Args:
        line: the bytes; none of them is ever taken for a name, a size or a command.
        where: file and line, which begin the error's message.

    Raises:
        TranscriptError: `WHERE: JSON PATH: found this, expected that`, in one line, for the first place at which the
            bytes depart from the canonical form of a certificate, or a field that does not go with another.
    """
    if len(line) > LINE_BYTES_MAX:
        raise TranscriptError(f"{where}: $: found a longer line, expected at most {LINE_BYTES_MAX} bytes")
    if not line.endswith(b"\n"):
        raise TranscriptError(f"{where}: $: found a line cut short, expected a newline at its end")
    stray = _NOT_PRINTABLE.search(line, 0, len(line) - 1)
    if stray is not None:
        found = next(name for start, name in _STRAY_BYTES.items() if line.startswith(start, stray.start()))
        byte, offset = line[stray.start()], stray.start() + 1
        raise TranscriptError(f"{where}: $: found {found} (0x{byte:02x}, byte {offset}), expected printable ASCII")
    return _Reader(line.decode("ascii"), where).certificate()


_NOT_PRINTABLE = re.compile(rb"[^ -~]")
#: What to call a byte that is no printable ASCII; the last entry fits every one.
_STRAY_BYTES = {b"\xef\xbb\xbf": "a byte order mark", b"\r": "a carriage return", b"\n": "a second line", b"": "a byte"}

#: No more characters than these are quoted in an error.
_QUOTED = 60

#: A string, as it is written, up to the longest rational; a word or number as far as it is quoted. Nothing longer can
#: be right, and no search goes on for longer.
_SCALAR = re.compile(
    r'"(?:[^"\\]|\\["\\]){0,%d}"|[-+.0-9A-Za-z]{1,%d}' % (2 * RATIONAL_DIGITS_MAX + 1, _QUOTED + 1)
)
_KEY = re.compile(r',?"([^"\\]{0,60})":')
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,15}")
_SEED = re.compile(r'"(0|[1-9][0-9]{0,19})"')
_HEX = re.compile(r'"[0-9a-f]{64}"')
_RATIONAL = re.compile(r'"([1-9][0-9]{{0,{0}}}(?:/[1-9][0-9]{{0,{0}}})?)"'.format(RATIONAL_DIGITS_MAX - 1))
_INFORMATION_KEY = re.compile(r'(,?)"([a-z_]{1,40})":')
_OTHER_VERSION = re.compile(rf'"format":"{FORMAT}","format_version":(?!{FORMAT_VERSION}\b)([0-9]{{1,15}})\b')

#: What to call a character that begins neither a key nor a scalar.
_STRUCTURE = {
    "\n": "the end of the line", "{": "an object", "}": "the end of the object",
    "[": "an array", "]": "the end of the array", '"': "a string too long, or with an escape that it does not need",
}  # fmt: skip

_Value = TypeVar("_Value")


class _Reader:
    """Reads one certificate from front to back.

    There is one way to write each certificate, and so one way to read it: at every position it is known what must come
    next, be it a key or a type of value. What is doubled, unknown, unsorted, spaced out, too large or too deep is
    thereby refused at its first character, before anything has been made of it.
    """

    def __init__(self, line: str, where: str) -> None:
        self._line, self._where, self._position = line, where, 0

    def certificate(self) -> CertificateDocument:
        """Read the whole line."""
        self._refuse_other_versions()
        key = partial(self._key, "$")
        self._expect("$", "{")
        alpha = self._probability(key("alpha"))
        bound = self._choice(key("bound"), MAJORITY, TWO_CLASS)
        decisions = self._array(key("decisions"), self._decision, TARGETS_MAX)
        estimation = self._stage(key("estimation"))
        familywise = self._familywise(key("familywise"))
        self._choice(key("format"), FORMAT)
        self._integer(key("format_version"), FORMAT_VERSION, FORMAT_VERSION)
        self._choice(key("generator"), GENERATOR)
        image = self._image(key("image"))
        information = self._information(key("information"))
        model_sha256 = self._hex(key("model_sha256"))
        n = self._samples(key("n"))
        n0 = self._samples(key("n0"))
        noise = self._noise(key("noise"))
        law = LAWS[noise.distribution]
        self._choice(key("norm"), law.norm)
        prediction = self._class(key("prediction"))
        radius = self._budget(key(law.radius))
        seed = self._seed(key("seed"))
        selection = self._stage(key("selection"))
        targets = self._stopping(key("stopping"))
        theorem = self._choice(key("theorem"), *_theorems(prediction, bound, law))
        self._expect("$", "}")
        self._expect("$", "\n")
        if bound == TWO_CLASS and (law.norm != "L2" or targets):
            self._refuse("$.bound", f"{MAJORITY!r}: the other needs Gaussian noise and the fixed rule", repr(bound))
        if decisions and not targets:
            self._refuse("$.decisions", "none by the fixed rule", f"{len(decisions)} of them")
        return CertificateDocument(
            model_sha256, image, noise, seed, n0, n, alpha, familywise, bound, targets, selection, estimation,
            decisions, prediction, theorem, radius, information,
        )  # fmt: skip

    def _refuse_other_versions(self) -> None:
        """Before anything else: another version may have other fields, of which nothing sensible could be said.

        No string can hold what is looked for, since its quotation marks would be escaped.
        """
        other = _OTHER_VERSION.search(self._line)
        if other is not None:
            expected = f"{FORMAT_VERSION}, the one version that this package reads"
            self._refuse("$.format_version", expected, f"format_version {other[1]}")

    def _decision(self, path: str) -> Decision:
        self._expect(path, "{")
        certified = self._choice(self._key(path, "certified"), False, True)
        samples = self._samples(self._key(path, "samples"))
        target = self._budget(self._key(path, "target"))
        votes = self._votes(self._key(path, "votes"))
        self._expect(path, "}")
        return Decision(target, samples, votes, certified)

    def _stage(self, path: str) -> Stage:
        self._expect(path, "{")
        chunks = self._array(self._key(path, "chunks"), self._chunk, CHUNKS_MAX)
        root = self._hex(self._key(path, "merkle_root"))
        samples = self._samples(self._key(path, "samples"))
        votes = self._array(self._key(path, "votes"), self._votes, CLASSES_MAX, least=1)
        self._expect(path, "}")
        return Stage(samples, votes, chunks, root)

    def _chunk(self, path: str) -> Chunk:
        self._expect(path, "{")
        sha256 = self._hex(self._key(path, "sha256"))
        votes_path = self._key(path, "votes")
        votes = self._array(votes_path, self._class_votes, CHUNK, least=1)
        for number, (lower, upper) in enumerate(zip(votes, votes[1:]), start=1):
            if lower[0] >= upper[0]:
                self._refuse(f"{votes_path}[{number}][0]", f"more than {lower[0]}", f"{upper[0]}")
        self._expect(path, "}")
        return Chunk(sha256, votes)

    def _class_votes(self, path: str) -> tuple[int, int]:
        self._expect(path, "[")
        class_ = self._integer(f"{path}[0]", 0, CLASSES_MAX - 1)
        self._expect(path, ",", "','")
        votes = self._integer(f"{path}[1]", 1, CHUNK)
        self._expect(path, "]")
        return class_, votes

    def _familywise(self, path: str) -> Familywise | None:
        if self._line.startswith("null", self._position):
            return self._choice(path, None)
        self._expect(path, "{", "null or an object")
        alpha = self._probability(self._key(path, "alpha"))
        images = self._integer(self._key(path, "images"), 1, INDEX_MAX + 1)
        self._expect(path, "}")
        return Familywise(alpha, images)

    def _image(self, path: str) -> ImageReference:
        self._expect(path, "{")
        index = self._integer(self._key(path, "index"), 0, INDEX_MAX)
        label = self._class(self._key(path, "label"))
        sha256 = self._hex(self._key(path, "sha256"))
        self._expect(path, "}")
        return ImageReference(index, sha256, label)

    def _noise(self, path: str) -> Noise:
        self._expect(path, "{")
        distribution = self._choice(self._key(path, "distribution"), *LAWS)
        parameter = self._rational(self._key(path, LAWS[distribution].parameter))
        self._expect(path, "}")
        return Noise(distribution, parameter)

    def _stopping(self, path: str) -> tuple[int, ...]:
        self._expect(path, "{")
        targets: tuple[int, ...] = ()
        if self._choice(self._key(path, "rule"), FIXED, SEQUENTIAL) == SEQUENTIAL:
            targets_path = self._key(path, "targets")
            targets = self._array(targets_path, self._budget, TARGETS_MAX, least=1)
            for number, (lower, upper) in enumerate(zip(targets, targets[1:]), start=1):
                if lower >= upper:
                    self._refuse(f"{targets_path}[{number}]", f"more than {lower}", f"{upper}")
        self._expect(path, "}")
        return targets

    def _information(self, path: str) -> dict[str, str]:
        self._expect(path, "{")
        information: dict[str, str] = {}
        last = ""
        while not self._line.startswith("}", self._position):
            if len(information) == INFORMATION_MAX:
                self._refuse(path, f"at most {INFORMATION_MAX} strings")
            key = _INFORMATION_KEY.match(self._line, self._position)
            if key is None or key[2] <= last or bool(key[1]) != bool(information):
                self._refuse(path, "a key of 1 to 40 of a-z and _, beyond the one before it, or the end of the object")
            self._position, last = key.end(), key[2]
            expected = f"a string of at most {INFORMATION_VALUE_MAX} characters"
            information[last] = json.loads(self._scalar(f"{path}.{last}", expected, _is_information))
        self._expect(path, "}")
        return information

    def _budget(self, path: str) -> int:
        return self._integer(path, 0, INTEGER_MAX)

    def _samples(self, path: str) -> int:
        return self._integer(path, 1, SAMPLES_MAX)

    def _votes(self, path: str) -> int:
        return self._integer(path, 0, SAMPLES_MAX)

    def _class(self, path: str) -> int:
        return self._integer(path, -1, CLASSES_MAX - 1)

    def _integer(self, path: str, lowest: int, highest: int) -> int:
        def accepts(scalar: str) -> bool:
            return _INTEGER.fullmatch(scalar) is not None and lowest <= int(scalar) <= highest

        expected = f"an integer, {lowest} to {highest}" if lowest < highest else str(lowest)
        return int(self._scalar(path, expected, accepts))

    def _seed(self, path: str) -> int:
        def accepts(scalar: str) -> bool:
            return _SEED.fullmatch(scalar) is not None and int(scalar[1:-1]) <= SEED_MAX

        return int(self._scalar(path, f"a string of decimal digits, '0' to '{SEED_MAX}'", accepts)[1:-1])

    def _hex(self, path: str) -> str:
        return self._scalar(path, "64 lower-case hexadecimal digits", _HEX.fullmatch)[1:-1]

    def _probability(self, path: str) -> Fraction:
        return self._rational(path, "above 0 and below 1", lambda value: value < 1)

    def _rational(
        self, path: str, which: str = "above 0", admits: Callable[[Fraction], bool] = lambda value: True
    ) -> Fraction:
        def accepts(scalar: str) -> bool:
            if _RATIONAL.fullmatch(scalar) is None:
                return False
            value = Fraction(scalar[1:-1])
            return str(value) == scalar[1:-1] and admits(value)

        expected = f"a rational {which} in lowest terms such as '1/1000'"
        return Fraction(self._scalar(path, expected, accepts)[1:-1])

    def _choice(self, path: str, *values: _Value) -> _Value:
        """One of these strings, booleans or null."""
        written = {json.dumps(value): value for value in values}
        expected = " or ".join(repr(value) if isinstance(value, str) else text for text, value in written.items())
        return written[self._scalar(path, expected, written.__contains__)]

    def _array(self, path: str, read: Callable[[str], _Value], most: int, least: int = 0) -> tuple[_Value, ...]:
        self._expect(path, "[")
        values: list[_Value] = []
        while not self._line.startswith("]", self._position):
            if len(values) == most:
                self._refuse(path, f"at most {most} elements", "more")
            if values:
                self._expect(path, ",", "',' or ']'")
            values.append(read(f"{path}[{len(values)}]"))
        if len(values) < least:
            self._refuse(path, f"at least {least} element", "none")
        self._expect(path, "]")
        return tuple(values)

    def _key(self, path: str, name: str) -> str:
        """Consume the key that must come next in the object at `path`; the path of its value."""
        comma = "" if self._line[self._position - 1] == "{" else ","
        self._expect(path, f'{comma}"{name}":', f"the key {name!r}")
        return f"{path}.{name}"

    def _expect(self, path: str, text: str, expected: str | None = None) -> None:
        """Consume this text."""
        if not self._line.startswith(text, self._position):
            self._refuse(path, expected or _STRUCTURE[text])
        self._position += len(text)

    def _scalar(self, path: str, expected: str, accepts: Callable[[str], object]) -> str:
        """Consume a string, as it is written, or a word or number, if it is accepted."""
        scalar = _SCALAR.match(self._line, self._position)
        if scalar is None or not accepts(scalar[0]):
            self._refuse(path, expected)
        self._position = scalar.end()
        return scalar[0]

    def _refuse(self, path: str, expected: str, found: str | None = None) -> NoReturn:
        """`found` is by default what stands at the position."""
        raise TranscriptError(f"{self._where}: {path}: found {found or self._found()}, expected {expected}")

    def _found(self) -> str:
        """What stands at the position, cut to a readable length."""
        key = _KEY.match(self._line, self._position)
        if key is not None:
            return f"the key {key[1]!r}"
        scalar = _SCALAR.match(self._line, self._position)
        if scalar is not None:
            quoted = scalar[0].startswith('"')
            return _shortened(repr(json.loads(scalar[0])) if quoted else scalar[0])
        next_one = self._line[self._position]
        return _STRUCTURE.get(next_one, repr(next_one))


def _theorems(prediction: int, bound: str, law: Law) -> tuple[str | None, ...]:
    """Those that a certificate may rest on."""
    if prediction == ABSTAIN:
        return (None,)
    return (MAJORITY, TWO_CLASS) if bound == TWO_CLASS else (law.majority_theorem,)


def _is_information(scalar: str) -> bool:
    return scalar.startswith('"') and len(json.loads(scalar)) <= INFORMATION_VALUE_MAX


def _shortened(text: str) -> str:
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
