"""Transcripts: one way to write a certificate, one way to read it, and a schema that says the same."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
import tracemalloc
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged
from intsmooth_ref.certify import chunks, transcript
from intsmooth_ref.certify.chunks import Chunk, Chunks, merkle_root, merkle_tree_hash
from intsmooth_ref.certify.transcript import (
    LINE_BYTES_MAX,
    CertificateDocument,
    Decision,
    Familywise,
    ImageReference,
    Noise,
    Stage,
    canonical_line,
    claim_bytes,
    parse_line,
    read_transcript,
)
from intsmooth_ref.errors import ParameterError, TranscriptError

SEED = 20261123
SCHEMA = json.loads(Path(transcript.__file__).with_name("certificate.schema.json").read_text("ascii"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

HASH = "0123456789abcdef" * 4
GAUSSIAN, LAPLACE = Noise("discrete_gaussian", Fraction(255, 4)), Noise("discrete_laplace", Fraction(7))

FIXED = CertificateDocument(
    model_sha256=HASH,
    image=ImageReference(3, "9" * 64, 7),
    noise=GAUSSIAN,
    seed=2**64 - 1,
    n0=100,
    n=1000,
    alpha=Fraction(1, 1000),
    familywise=None,
    bound="majority",
    targets=(),
    selection=Stage.of((90, 0, 10), [Chunk("a" * 64, ((0, 90), (2, 10)))]),
    estimation=Stage.of((920, 0, 80), [Chunk("e" * 64, ((0, 920), (2, 80)))]),
    decisions=(),
    prediction=0,
    theorem="majority",
    radius=5000,
    information={"cpu": 'x86-64, "two" \\ cores', "numpy": ""},
)
SEQUENTIAL = replace(
    FIXED,
    n=2500,
    targets=(0, 1024, 4064),
    familywise=Familywise(Fraction(1, 20), 50),
    estimation=Stage.of(
        (2300, 20, 180),
        [
            Chunk("b" * 64, ((0, 950), (1, 20), (2, 30))),
            Chunk("c" * 64, ((0, 1000),)),
            Chunk("d" * 64, ((0, 350), (2, 150))),
        ],
    ),
    decisions=(Decision(0, 1000, 950, True), Decision(1024, 2500, 2300, False)),
    radius=0,
)
DOCUMENTS = {
    "sequential": SEQUENTIAL,
    "fixed": FIXED,
    "two-class": replace(FIXED, bound="two-class", theorem="two-class"),
    "majority by the bound of two classes": replace(FIXED, bound="two-class"),
    "laplace": replace(FIXED, noise=LAPLACE, theorem="likelihood-ratio"),
    "abstained": replace(FIXED, prediction=-1, theorem=None, radius=0),
    "abstained, laplace": replace(SEQUENTIAL, noise=LAPLACE, prediction=-1, theorem=None, radius=0),
}
every_document = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())


def encoded(certificate: Any) -> bytes:
    return json.dumps(certificate, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def rfc8785(value: Any) -> str:
    """RFC 8785, section 3.2, for JSON without floats and control characters."""
    if isinstance(value, dict):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
        return "{" + ",".join(f"{rfc8785(key)}:{rfc8785(each)}" for key, each in members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(rfc8785, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return {None: "null", True: "true", False: "false"}[value] if not type(value) is int else f"{value:d}"


def refusal(line: bytes) -> tuple[str, str]:
    """The JSON path and the rest of the error that a line causes."""
    with pytest.raises(TranscriptError) as caught:
        parse_line(line, "a b.jsonl: line 7")
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 400
    found = re.fullmatch(r"a b\.jsonl: line 7: (\$[A-Za-z0-9_.\[\]]*): (found .*, expected .*)", message)
    assert found is not None, message
    return found[1], found[2]


# ------------------------------------------------------------------------------------------- writing and reading


@every_document
def test_a_certificate_is_read_as_it_was_written(document: CertificateDocument) -> None:
    line = canonical_line(document)
    assert parse_line(line, "") == document
    assert VALIDATOR.is_valid(json.loads(line))


@every_document
def test_a_line_is_the_bytes_of_rfc_8785(document: CertificateDocument) -> None:
    """For sorted ASCII keys, printable ASCII strings and integers that a double holds, RFC 8785 and Python's encoder
    agree: UTF-16 units sort as code points do, only `"` and backslash are escaped, and ECMAScript writes such
    numbers in plain digits."""
    line = canonical_line(document)
    assert line == encoded(json.loads(line)) == rfc8785(json.loads(line)).encode("utf-8") + b"\n"


def test_a_line_says_what_the_certificate_says() -> None:
    selection = {
        "samples": 100,
        "votes": [90, 0, 10],
        "chunks": [{"sha256": "a" * 64, "votes": [[0, 90], [2, 10]]}],
        "merkle_root": merkle_root(SEQUENTIAL.selection.chunks),
    }
    estimation = {
        "samples": 2500,
        "votes": [2300, 20, 180],
        "chunks": [
            {"sha256": "b" * 64, "votes": [[0, 950], [1, 20], [2, 30]]},
            {"sha256": "c" * 64, "votes": [[0, 1000]]},
            {"sha256": "d" * 64, "votes": [[0, 350], [2, 150]]},
        ],
        "merkle_root": merkle_root(SEQUENTIAL.estimation.chunks),
    }
    expected = {
        "format": "intsmooth-ref certificate",
        "format_version": 1,
        "model_sha256": HASH,
        "image": {"index": 3, "sha256": "9" * 64, "label": 7},
        "noise": {"distribution": "discrete_gaussian", "sigma": "255/4"},
        "generator": "Philox4x32-10",
        "seed": "18446744073709551615",
        "n0": 100,
        "n": 2500,
        "alpha": "1/1000",
        "familywise": {"alpha": "1/20", "images": 50},
        "bound": "majority",
        "stopping": {"rule": "sequential", "targets": [0, 1024, 4064]},
        "selection": selection,
        "estimation": estimation,
        "decisions": [
            {"target": 0, "samples": 1000, "votes": 950, "certified": True},
            {"target": 1024, "samples": 2500, "votes": 2300, "certified": False},
        ],
        "prediction": 0,
        "theorem": "majority",
        "norm": "L2",
        "radius_sq": 0,
        "information": {"cpu": 'x86-64, "two" \\ cores', "numpy": ""},
    }
    assert json.loads(canonical_line(SEQUENTIAL)) == expected
    laplace = json.loads(canonical_line(DOCUMENTS["laplace"]))
    assert laplace["noise"] == {"distribution": "discrete_laplace", "scale": "7"}
    assert laplace["norm"] == "L1" and laplace["radius_l1"] == 5000 and "radius_sq" not in laplace
    assert laplace["stopping"] == {"rule": "fixed"} and laplace["familywise"] is None


def test_what_is_claimed_does_not_depend_on_the_information() -> None:
    claim = claim_bytes(FIXED)
    assert claim == claim_bytes(replace(FIXED, information={"cpu": "another"}))
    certificate = json.loads(canonical_line(FIXED))
    del certificate["information"]
    assert claim == encoded(certificate)
    different = [
        replace(FIXED, seed=1),
        replace(FIXED, radius=5001),
        replace(FIXED, image=replace(FIXED.image, label=8)),
        replace(FIXED, estimation=replace(FIXED.estimation, merkle_root=HASH)),
    ]
    assert len({claim, *map(claim_bytes, different)}) == 5


def test_the_specification_names_the_fields_of_the_schema() -> None:
    assert transcript.__doc__ is not None
    table = transcript.__doc__.split("Fields\n------")[1].split("\nThis is the form.")[0]
    named = re.findall(r"^    ([a-z]\w*) {2,}", table, re.MULTILINE)
    assert named.pop(0) == "field"
    assert sorted(named) == sorted(SCHEMA["properties"])
    assert sorted(SCHEMA["required"]) == sorted(set(named) - {"radius_sq", "radius_l1"})


def test_the_schema_is_one_and_describes_itself() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    def without_description(schema: Any, name: str) -> Iterator[str]:
        for key, each in schema.get("properties", {}).items():
            if not set(each) & {"description", "const", "enum", "type"}:
                if "description" not in SCHEMA["$defs"][each["$ref"].split("/")[-1]]:
                    yield f"{name}.{key}"

    undescribed = list(without_description(SCHEMA, "$"))
    assert undescribed == []


hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(1, 2**32)
budgets = st.integers(0, 2**53 - 1)
classes = st.integers(-1, 2**16 - 1)
probabilities = st.fractions(0, 1, max_denominator=10**30).filter(lambda alpha: 0 < alpha < 1)
parameters = st.fractions(0, 2000, max_denominator=10**30).filter(lambda parameter: parameter > 0)
votes_of_chunks = st.dictionaries(st.integers(0, 2**16 - 1), st.integers(1, 1000), min_size=1, max_size=5)
stages = st.builds(
    Stage, counts, st.lists(st.integers(0, 2**32), min_size=1, max_size=5).map(tuple),
    st.lists(st.builds(Chunk, hashes, votes_of_chunks.map(lambda votes: tuple(sorted(votes.items())))), max_size=3)
    .map(tuple), hashes,
)  # fmt: skip
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
keys = st.text(st.sampled_from("abyz_"), min_size=1, max_size=40)


@st.composite
def documents(draw: st.DrawFn) -> CertificateDocument:
    """Any certificate that the format has."""
    gaussian = draw(st.booleans())
    targets = tuple(sorted(draw(st.sets(budgets, max_size=5))))
    bound = draw(st.sampled_from(["majority", "two-class"] if gaussian and not targets else ["majority"]))
    prediction = draw(classes)
    theorems = ["majority", bound] if gaussian else ["likelihood-ratio"]
    decisions = st.builds(Decision, budgets, counts, st.integers(0, 2**32), st.booleans())
    return CertificateDocument(
        model_sha256=draw(hashes),
        image=draw(st.builds(ImageReference, st.integers(0, 2**32 - 1), hashes, classes)),
        noise=Noise("discrete_gaussian" if gaussian else "discrete_laplace", draw(parameters)),
        seed=draw(st.integers(0, 2**64 - 1)),
        n0=draw(counts),
        n=draw(counts),
        alpha=draw(probabilities),
        familywise=draw(st.none() | st.builds(Familywise, probabilities, counts)),
        bound=bound,
        targets=targets,
        selection=draw(stages),
        estimation=draw(stages),
        decisions=tuple(draw(st.lists(decisions, max_size=3))) if targets else (),
        prediction=prediction,
        theorem=None if prediction == -1 else draw(st.sampled_from(theorems)),
        radius=draw(budgets),
        information=draw(st.dictionaries(keys, printable, max_size=4)),
    )


@settings(deadline=None)
@given(documents())
def test_any_certificate_survives_writing_and_reading(document: CertificateDocument) -> None:
    line = canonical_line(document)
    certificate = json.loads(line)
    assert parse_line(line, "") == document
    assert line == rfc8785(certificate).encode("utf-8") + b"\n"
    assert VALIDATOR.is_valid(certificate)


# ----------------------------------------------------------------- every field, replaced by what does not belong there

#: None is a string that ends with a newline: a pattern's `$` must not pass it by ECMA 262, as a schema has it, yet does
#: so in Python, with which `jsonschema` searches.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, -2, 2, 3, 65535, 65536, 2**32 - 1, 2**32, 2**32 + 1, 2**53 - 1, 1 - 2**53,
    "", "abc", HASH, HASH.upper(), HASH[1:], HASH + "0", "0", "00", "007", "7", "-7", "7/1", "1/2", "2/4", "3/2", "1/0",
    "0/1", "-1/2", "+1/2", " 1/2", "1/2 ", "0.5", "1e-3", "18446744073709551615", "18446744073709551616", "9" * 21,
    "1/1" + "0" * 999, "1/1" + "0" * 1000, "9" * 1000, "9" * 1001, "9" * 5000,
    "~ " * 100, "x" * 201, '"' * 200, "\\" * 201,
    "majority", "two-class", "likelihood-ratio", "discrete_gaussian", "discrete_laplace", "L1", "L2",
    "fixed", "sequential", "Philox4x32-10", "intsmooth-ref certificate",
    [], [0], [0, 0], [1, 0], [0, 2**53], [HASH], [HASH, None], [[]], list(range(64)), list(range(65)),
    {}, {"a": "b"}, {"a": 1}, {"A": "b"}, {"": ""}, {"a" * 40: "~" * 200}, {"a" * 41: ""},
    {f"{'_' * (n // 26)}{chr(97 + n % 26)}": "" for n in range(64)},
    {f"{'_' * (n // 26)}{chr(97 + n % 26)}": "" for n in range(65)},
    {"rule": "fixed"}, {"rule": "fixed", "targets": []}, {"rule": "sequential"},
    {"rule": "sequential", "targets": [0, 2**53 - 1]}, {"rule": "sequential", "targets": [5, 4]},
    {"distribution": "discrete_gaussian", "sigma": "1/4"}, {"distribution": "discrete_laplace", "scale": "9"},
    {"distribution": "rounded_normal", "sigma": "1/4"}, {"alpha": "1/3", "images": 2**32},
    {"certified": True, "samples": 1, "target": 0, "votes": 0},
    [{"certified": True, "samples": 1, "target": 0, "votes": 0}] * 64,
    [{"certified": True, "samples": 1, "target": 0, "votes": 0}] * 65,
    {"sha256": HASH, "votes": [[65535, 1000]]}, {"sha256": HASH, "votes": []},
    [{"sha256": HASH, "votes": [[1, 1], [2, 1], [4, 1], [3, 1]]}],
    [0, 1000], [0, 1001], [0, "1"], [65535, 1], [65536, 1], [-1, 1], [1, 1, 1], [[0, 1]], [[0, 1], [65535, 1000]],
    [[1, 1], [0, 1]], [[1, 1], [1, 2]], [[0, 1], [1]], [[5, 1], [4, 1], [3, 1]],
    [[class_, 1] for class_ in range(1000)], [[class_, 1] for class_ in range(1001)],
]  # fmt: skip

#: Fields whose values depend on another's; the others are read in the same way in every certificate.
DEPENDENT = ("bound", "decisions", "noise", "norm", "prediction", "radius_l1", "radius_sq", "stopping", "theorem")

#: Inside of what is read as the first decision, the first chunk and the estimation are.
SAME_AGAIN = ("$.decisions[1].", "$.estimation.chunks[1].", "$.estimation.chunks[2].", "$.selection.")

#: Where a value is right by itself, yet does not go with another field, the path that the error names instead.
ELSEWHERE = {
    ("$.noise.distribution", "$.noise"),
    ("$.noise", "$.norm"),
    ("$.stopping.rule", "$.stopping"),
    ("$.stopping", "$.bound"),
    ("$.stopping", "$.decisions"),
    ("$.bound", "$.theorem"),
    ("$.prediction", "$.theorem"),
}


def places(value: Any, path: str = "$", container: Any = None, key: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Path, container and key of every value, the outermost left out."""
    if container is not None:
        yield path, container, key
    if isinstance(value, dict):
        for name in list(value):
            yield from places(value[name], f"{path}.{name}", value, name)
    if isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], f"{path}[{index}]", value, index)


def broken_beyond_the_schema(certificate: Any) -> str | None:
    """The path of a value that breaks a rule which the schema does not state: these are all of them.

    Rationals stand in lowest terms, alpha below 1, a seed below 2**64; targets ascend, and so do a chunk's classes.
    """
    alphas = {"$.alpha": certificate["alpha"]}
    if certificate["familywise"] is not None:
        alphas["$.familywise.alpha"] = certificate["familywise"]["alpha"]
    noise = certificate["noise"]
    parameters = {f"$.noise.{name}": noise[name] for name in ("sigma", "scale") if name in noise}
    for path, text in {**alphas, **parameters}.items():
        if str(Fraction(text)) != text or (path in alphas and Fraction(text) >= 1):
            return path
    if int(certificate["seed"]) >= 2**64:
        return "$.seed"
    targets = certificate["stopping"].get("targets", [])
    for index in range(1, len(targets)):
        if targets[index - 1] >= targets[index]:
            return f"$.stopping.targets[{index}]"
    for stage in ("estimation", "selection"):
        for number, chunk in enumerate(certificate[stage]["chunks"]):
            for index in range(1, len(chunk["votes"])):
                if chunk["votes"][index - 1][0] >= chunk["votes"][index][0]:
                    return f"$.{stage}.chunks[{number}].votes[{index}][0]"
    return None


@pytest.mark.slow
@every_document
def test_reader_and_schema_agree_on_every_replaced_value_and_the_error_names_its_place(
    document: CertificateDocument,
) -> None:
    certificate = json.loads(canonical_line(document))
    outcomes = {"accepted": 0, "refused by both": 0, "refused beyond the schema": 0}
    for path, container, key in list(places(certificate)):
        if path.startswith(SAME_AGAIN) or document is not SEQUENTIAL and path.split(".")[1] not in DEPENDENT:
            continue
        original = container[key]
        for value in VALUES:
            container[key] = value
            line = encoded(certificate)
            if not VALIDATOR.is_valid(certificate):
                found = refusal(line)[0]
                assert found == path or found.startswith((f"{path}.", f"{path}[")) or (path, found) in ELSEWHERE
                outcomes["refused by both"] += 1
            elif (expected := broken_beyond_the_schema(certificate)) is not None:
                assert refusal(line)[0] == expected
                outcomes["refused beyond the schema"] += 1
            else:
                assert canonical_line(parse_line(line, "")) == line
                outcomes["accepted"] += 1
        container[key] = original
    assert encoded(certificate) == canonical_line(document)
    assert min(outcomes.values()) > 0 and outcomes["refused by both"] > 500


@every_document
def test_a_key_that_is_missing_unknown_or_renamed_is_refused_where_it_belongs(document: CertificateDocument) -> None:
    certificate = json.loads(canonical_line(document))
    objects = {path.rpartition(".")[0]: each for path, each, key in places(certificate) if isinstance(key, str)}
    assert "$" in objects and len(objects) >= 6
    del objects["$.information"]
    for path, each in objects.items():
        for key in list(each):
            value = each.pop(key)
            assert not VALIDATOR.is_valid(certificate)
            assert refusal(encoded(certificate))[0] == path
            for other in ("aaa", "zzz", f"{key}_", "n", "radius_l1", "radius_sq", "scale", "sigma", "targets", ""):
                if other not in each and other != key:
                    each[other] = value
                    assert not VALIDATOR.is_valid(certificate)
                    assert refusal(encoded(certificate))[0] == path
                    del each[other]
            each[key] = value
        for other in ("aaa", "zzz", "radius_l1", "radius_sq", "targets"):
            if other not in each:
                each[other] = 0
                assert not VALIDATOR.is_valid(certificate)
                assert refusal(encoded(certificate))[0] == path
                del each[other]


@pytest.mark.parametrize(
    "text",
    [
        "1.0", "0.5", "1e3", "1E3", "-0", "+1", "007", "0x10", "NaN", "Infinity", "-Infinity", "undefined",
        "True", "None", "nul", "tru", "9" * 16, "9" * 5000, "-" + "9" * 5000, "1e999999999", "'a'", '"\\u0061"',
        '"\\/"', '"\\n"', '"\\ud800"', '"' + "a" * 10**5 + '"', '"' + '\\"' * 10**5 + '"', " 1", ",", ":", "}",
        "{" * 10**5, '{"a":' * 10**5, "[" * 10**5, "[" * 10**5 + "]" * 10**5,
    ],
)  # fmt: skip
def test_json_that_is_not_canonical_or_none_at_all_is_refused_at_its_place(text: str) -> None:
    certificate = json.loads(canonical_line(SEQUENTIAL))
    for path, container, key in list(places(certificate)):
        original, container[key] = container[key], "here it goes"
        line = encoded(certificate).replace(b'"here it goes"', text.encode("ascii"))
        container[key] = original
        found = refusal(line)[0]
        assert found == path or found.startswith((f"{path}.", f"{path}["))


def changed(before: str, after: str) -> bytes:
    line = canonical_line(SEQUENTIAL).decode("ascii")
    assert line.count(before) == 1
    return line.replace(before, after).encode("utf-8")


LINE = canonical_line(SEQUENTIAL)


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        (changed('"seed":"1', '"seed":"1\\u0031"'), "$.seed", "an escape that it does not need"),
        (changed('"n":2500', '"n": 2500'), "$.n", "found ' ', expected an integer, 1 to 4294967296"),
        (changed('"n":2500', '"n":2500 '), "$", "found ' ', expected the key 'n0'"),
        (changed('"n":2500', '"n":2500,"n":2500'), "$", "found the key 'n', expected the key 'n0'"),
        (changed('"n":2500,"n0":100', '"n0":100,"n":2500'), "$", "found the key 'n0', expected the key 'n'"),
        (changed('"index":3,', ""), "$.image", "found the key 'label', expected the key 'index'"),
        (changed(',"theorem":"majority"', ""), "$", "found the end of the object, expected the key 'theorem'"),
        (changed('"majority"}', '"majority","x":1}'), "$", "found the key 'x', expected the end of the object"),
        (changed('"majority"}', '"majority"}{}'), "$", "found an object, expected the end of the line"),
        (changed("[0,1024,", "[0,1024 "), "$.stopping.targets", "expected ',' or ']'"),
        (changed("4064]", "4064,]"), "$.stopping.targets[3]", "found the end of the array, expected an integer"),
        (changed("[0,1024,", "[,0,1024,"), "$.stopping.targets[0]", "found ',', expected an integer"),
        (changed('"images":50', '"images":5_0'), "$.familywise", "found '_', expected"),
        (changed('"images":50', '"images":'), "$.familywise.images", "found the end of the object, expected an"),
        (changed('"seed":"', '"seed":'), "$.seed", "found 18446744073709551615, expected a string"),
        (changed('"norm":"L2"', '"norm":"L2'), "$.norm", "found 'L2,', expected 'L2'"),
        (changed("[0,1024,", "[0,1024,1024,"), "$.stopping.targets[2]", "found 1024, expected more than 1024"),
        (changed('"' + "c" * 64, '"abc'), "$.estimation.chunks[1].sha256", "found 'abc', expected 64 lower-case"),
        (changed("[2,10]", "[0,10]"), "$.selection.chunks[0].votes[1][0]", "found 0, expected more than 0"),
        (changed("[1,20]", "[3,20]"), "$.estimation.chunks[0].votes[2][0]", "found 2, expected more than 3"),
        (changed("[2,10]", "[65536,10]"), "$.selection.chunks[0].votes[1][0]", "found 65536, expected an integer, 0"),
        (changed("[2,10]", "[2,0]"), "$.selection.chunks[0].votes[1][1]", "found 0, expected an integer, 1 to 1000"),
        (changed("[2,10]", "[2,1001]"), "$.selection.chunks[0].votes[1][1]", "found 1001, expected an integer, 1"),
        (changed("[2,10]", "[2]"), "$.selection.chunks[0].votes[1]", "found the end of the array, expected ','"),
        (changed("[2,10]", "[2 10]"), "$.selection.chunks[0].votes[1]", "found ' ', expected ','"),
        (changed("[2,10]", "[2,10,0]"), "$.selection.chunks[0].votes[1]", "found ',', expected the end of the array"),
        (changed("[2,10]", "2,10"), "$.selection.chunks[0].votes[1]", "found 2, expected an array"),
        (changed("[[0,1000]]", "[]"), "$.estimation.chunks[1].votes", "found none, expected at least 1 element"),
        (changed("[2,10]]", "[2,10]],"), "$.selection.chunks[0]", "found ',', expected the end of the object"),
        (changed('"cpu":', '"numpx":"","cpu":'), "$.information", "found the key 'cpu', expected a key of 1 to 40"),
        (changed('"cpu":', '"cpu":"","cpu":'), "$.information", "found the key 'cpu', expected a key of 1 to 40"),
        (changed('{"cpu":', '{,"cpu":'), "$.information", "found the key 'cpu', expected a key of 1 to 40"),
        (changed(',"numpy":', '"numpy":'), "$.information", "found the key 'numpy', expected a key of 1 to 40"),
        (changed(',"numpy":""', ','), "$.information", "found ',', expected a key of 1 to 40"),
        (changed("x86", "x\u00e986"), "$", "found a byte (0xc3, byte"),
        (changed("x86", "x\x0086"), "$", "found a byte (0x00, byte"),
        (changed("x86", "x\t86"), "$", "found a byte (0x09, byte"),
        (LINE.replace(b"x86", b"\xff86"), "$", "found a byte (0xff, byte"),
        (b"\xef\xbb\xbf" + LINE, "$", "found a byte order mark (0xef, byte 1), expected printable ASCII"),
        (LINE[:-1] + b"\r\n", "$", f"found a carriage return (0x0d, byte {len(LINE)}), expected printable ASCII"),
        (LINE + LINE, "$", "found a second line (0x0a, byte"),
        (LINE.decode().encode("utf-16"), "$", "found a line cut short"),
        (LINE[:-1], "$", "found a line cut short, expected a newline at its end"),
        (b"", "$", "found a line cut short"),
        (b"\n", "$", "found the end of the line, expected an object"),
        (b" " + LINE, "$", "found ' ', expected an object"),
        (b"[]\n", "$", "found an array, expected an object"),
        (b"null\n", "$", "found null, expected an object"),
        (b"{}\n", "$", "found the end of the object, expected the key 'alpha'"),
        (b'{"idx":0}\n', "$", "found the key 'idx', expected the key 'alpha'"),
    ],
)
def test_each_departure_from_the_form_has_a_message_of_its_own(line: bytes, path: str, message: str) -> None:
    found_path, found_message = refusal(line)
    assert found_path == path and message in found_message


@pytest.mark.parametrize("version", ["0", "2", "10", "11", "99999"])
def test_another_version_is_called_so_whatever_else_it_has(version: str) -> None:
    expected = f"found format_version {version}, expected 1, the one version that this package reads"
    path, message = refusal(changed('"format_version":1', f'"format_version":{version}'))
    assert (path, message) == ("$.format_version", expected)
    future = {"aaa": 1.5, "format": "intsmooth-ref certificate", "format_version": int(version), "zzz": None}
    assert refusal(encoded(future)) == (path, message)


def test_a_string_that_speaks_of_another_version_is_only_a_string() -> None:
    text = '"format":"intsmooth-ref certificate","format_version":2,'
    document = replace(FIXED, information={"note": text})
    assert parse_line(canonical_line(document), "") == document


def test_what_is_well_formed_but_untrue_is_left_to_the_verifier() -> None:
    untrue = [
        replace(FIXED, estimation=replace(FIXED.estimation, votes=(0,))),
        replace(FIXED, estimation=replace(FIXED.estimation, chunks=())),
        replace(FIXED, estimation=replace(FIXED.estimation, chunks=(Chunk(HASH, ((1, 1000), (65535, 1000))),))),
        replace(FIXED, estimation=replace(FIXED.estimation, merkle_root=HASH)),
        replace(FIXED, selection=replace(FIXED.selection, samples=7)),
        replace(FIXED, prediction=65535, radius=2**53 - 1),
        replace(SEQUENTIAL, decisions=(Decision(1, 2**32, 2**32, True),) * 64),
    ]
    for document in untrue:
        assert parse_line(canonical_line(document), "") == document


def estimation_of(*votes: Any, sha256: str = HASH) -> dict[str, Stage]:
    """The change of a certificate's estimation to that of one chunk."""
    return {"estimation": Stage(1000, (1000,), (Chunk(sha256, votes),), HASH)}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"n": 0}, "$.n"),
        ({"n": True}, "$.n"),
        ({"n": 1000.0}, "$.n"),
        ({"n": float("nan")}, "$.n"),
        ({"n": np.int64(1000)}, "$.n"),
        ({"n": None}, "$.n"),
        ({"n": 10**100}, "$.n"),
        ({"n": 10**5000}, "$"),
        ({"alpha": 0.001}, "$.alpha"),
        ({"alpha": Fraction(1)}, "$.alpha"),
        ({"alpha": Fraction(-1, 2)}, "$.alpha"),
        ({"alpha": Fraction(1, 10**1000)}, "$.alpha"),
        ({"alpha": Fraction(1, 10**5000)}, "$"),
        ({"seed": -1}, "$.seed"),
        ({"seed": 2**64}, "$.seed"),
        ({"radius": 2**53}, "$.radius_sq"),
        ({"radius": None}, "$.radius_sq"),
        ({"prediction": -1}, "$.theorem"),
        ({"targets": (4, 4)}, "$.stopping.targets[1]"),
        ({"targets": tuple(range(65))}, "$.stopping.targets"),
        ({"bound": "two-class", "targets": (4,)}, "$.bound"),
        ({"bound": "two-class", "noise": LAPLACE, "prediction": -1, "theorem": None}, "$.bound"),
        ({"decisions": SEQUENTIAL.decisions}, "$.decisions"),
        ({"model_sha256": HASH.upper()}, "$.model_sha256"),
        (estimation_of((0, 1000), sha256=HASH.upper()), "$.estimation.chunks[0].sha256"),
        (estimation_of(), "$.estimation.chunks[0].votes"),
        (estimation_of(*((class_, 1) for class_ in range(1001))), "$.estimation.chunks[0].votes"),
        (estimation_of((0, 1), (0, 999)), "$.estimation.chunks[0].votes[1][0]"),
        (estimation_of((-1, 1000)), "$.estimation.chunks[0].votes[0][0]"),
        (estimation_of((65536, 1000)), "$.estimation.chunks[0].votes[0][0]"),
        (estimation_of((np.uint16(0), 1000)), "$.estimation.chunks[0].votes[0][0]"),
        (estimation_of((0, 0)), "$.estimation.chunks[0].votes[0][1]"),
        (estimation_of((0, 1001)), "$.estimation.chunks[0].votes[0][1]"),
        (estimation_of((0, np.int64(1000))), "$.estimation.chunks[0].votes[0][1]"),
        (estimation_of((0, 1000.0)), "$.estimation.chunks[0].votes[0][1]"),
        (estimation_of((0,)), "$.estimation.chunks[0].votes[0]"),
        (estimation_of((0, 1000, 0)), "$.estimation.chunks[0].votes[0]"),
        ({"information": {"Cpu": ""}}, "$.information"),
        ({"information": {"a": "\u00fc"}}, "$.information.a"),
        ({"information": {"a": "\x7f"}}, "$.information.a"),
        ({"information": {"a": "x\n"}}, "$.information.a"),
        ({"information": {"a": 5}}, "$.information.a"),
        ({"information": {"a": "\\" * 201}}, "$.information.a"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(TranscriptError) as caught:
        canonical_line(replace(FIXED, **changes))
    assert str(caught.value).startswith(f"certificate of image 3: {path}: found ")


def test_a_noise_that_certifies_nothing_is_refused() -> None:
    with pytest.raises(TranscriptError, match="'rounded_normal', expected 'discrete_gaussian' or 'discrete_laplace'"):
        Noise("rounded_normal", Fraction(1))


# -------------------------------------------------------------------------------------------------------- files


def test_a_transcript_is_read_one_certificate_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(map(canonical_line, DOCUMENTS.values())))
    assert list(read_transcript(path)) == list(read_transcript(str(path))) == list(DOCUMENTS.values())
    path.write_bytes(LINE + LINE + changed('"' + "c" * 64, '"abc') + LINE)
    reading = read_transcript(path)
    assert next(reading) == next(reading) == SEQUENTIAL
    with pytest.raises(TranscriptError) as caught:
        next(reading)
    expected = "$.estimation.chunks[1].sha256: found 'abc', expected 64 lower-case hexadecimal digits"
    assert str(caught.value) == f"{path}: line 3: {expected}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file, expected at least one certificate"),
        (b"\n", "line 1: $: found the end of the line"),
        (LINE + b"\n", "line 2: $: found the end of the line"),
        (b"\n" + LINE, "line 1: $: found the end of the line"),
        (LINE + LINE[:-1], "line 2: $: found a line cut short"),
        (LINE + LINE[:500], "line 2: $: found a line cut short"),
        (LINE.replace(b"\n", b"\r\n"), "line 1: $: found a carriage return"),
        (b"\x89HDF\r\n\x1a\n", "line 1: $: found a byte (0x89, byte 1)"),
    ],
)
def test_a_file_that_is_no_transcript_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(TranscriptError) as caught:
        list(read_transcript(path))
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(TranscriptError, match=f"{path}: cannot be read: {reason}$"):
            next(read_transcript(path))


def test_a_line_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(LINE)
    monkeypatch.setattr(transcript, "LINE_BYTES_MAX", len(LINE))
    assert list(read_transcript(path)) == [SEQUENTIAL]
    limit = len(LINE) - 1
    monkeypatch.setattr(transcript, "LINE_BYTES_MAX", limit)
    message = rf"line 1: \$: found a longer line, expected at most {limit} bytes"
    with pytest.raises(TranscriptError, match=message):
        next(read_transcript(path))
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # a gigabyte of zeros, of which the disk holds none
    tracemalloc.start()
    with pytest.raises(TranscriptError, match=message):
        next(read_transcript(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_line_that_is_too_long_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "LINE_BYTES_MAX", len(LINE))
    assert canonical_line(SEQUENTIAL) == LINE
    longer = replace(SEQUENTIAL, information={**SEQUENTIAL.information, "numpy": "1"})
    with pytest.raises(TranscriptError) as caught:
        canonical_line(longer)
    expected = f"found a longer line, expected at most {len(LINE)} bytes"
    assert str(caught.value) == f"certificate of image 3: $: {expected}"


def test_a_line_has_room_for_26_million_samples_whatever_their_votes() -> None:
    """Every field at its longest; of chunks and classes two, the others counted.

    No chunk is longer than one of 1000 classes of five digits with a vote each: a class with v votes takes 9 characters
    and the digits of v, never more than 10 v. 26 million samples in two stages make 26001 chunks at most.
    """
    assert transcript.__doc__ is not None and " at most 2**28 bytes." in transcript.__doc__
    assert LINE_BYTES_MAX == 2**28
    backslashes = {"_" * 39 + chr(97 + n): "\\" * 200 for n in range(26)}
    backslashes |= {"_" * 38 + "a" + chr(97 + n): "\\" * 200 for n in range(26)}
    backslashes |= {"_" * 38 + "b" + chr(97 + n): "\\" * 200 for n in range(12)}
    assert len(backslashes) == 64
    most, digits = 2**32, 10**1000 - 1
    chunk = Chunk(HASH, tuple((class_, 1) for class_ in range(64536, 65536)))

    def length(chunks: int, classes: int) -> int:
        stage = Stage(most, (most,) * classes, (chunk,) * chunks, HASH)
        longest = replace(
            SEQUENTIAL,
            image=ImageReference(2**32 - 1, HASH, 65535),
            noise=Noise("discrete_gaussian", Fraction(digits, digits - 1)),
            n0=most,
            n=most,
            alpha=Fraction(digits - 1, digits),
            familywise=Familywise(Fraction(digits - 1, digits), most),
            targets=tuple(range(2**53 - 64, 2**53)),
            selection=stage,
            estimation=stage,
            decisions=(Decision(2**53 - 1, most, most, False),) * 64,
            prediction=65535,
            radius=2**53 - 1,
            information=backslashes,
        )
        return len(canonical_line(longest)) + 100  # for words that are longer with Laplace noise

    two_chunks, two_classes = length(2, 1) - length(1, 1), length(1, 2) - length(1, 1)
    assert two_chunks % 2 == 0 and length(3, 3) == length(1, 1) + 2 * two_chunks + 2 * two_classes
    one_chunk = two_chunks // 2
    assert length(1, 1) + (26_001 - 2) * one_chunk + (2**16 - 1) * two_classes <= LINE_BYTES_MAX < 27_000 * one_chunk


@every_document
def test_damaged_lines_raise_nothing_but_the_error_that_says_so(document: CertificateDocument) -> None:
    line, pick = canonical_line(document), random.Random(SEED)
    variants = damaged(line, corruptions=1000)
    for _ in range(1000):
        begin, end = sorted(pick.randrange(len(line)) for _ in range(2))
        other = pick.randrange(len(line))
        variants += [
            line[:begin] + line[end:],
            line[:other] + line[begin:end] + line[other:],
            line[:begin] + bytes([pick.choice(b'{}[]:,"\\0129-+.eE \n\r\t\0\xef\xff')]) + line[begin:],
        ]
    accepted = 0
    for variant in variants:
        try:
            read = parse_line(variant, "")
        except TranscriptError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            accepted += 1
            assert canonical_line(read) == variant
    assert 0 < accepted < len(variants) / 4


# ----------------------------------------------------------------------------------------- chunks and Merkle tree

#: The leaves and roots of Certificate Transparency's own tests of RFC 6962 (`merkle_tree_test`), for 0 to 8 leaves.
CT_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def tree_hash_as_defined(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word by word."""
    n = len(leaves)
    if n < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    k = 1
    while 2 * k < n:
        k *= 2
    left, right = tree_hash_as_defined(leaves[:k]), tree_hash_as_defined(leaves[k:])
    return hashlib.sha256(b"\1" + left + right).digest()


@pytest.mark.parametrize("count", range(9))
def test_the_tree_hash_is_that_of_certificate_transparency(count: int) -> None:
    leaves = list(map(bytes.fromhex, CT_LEAVES[:count]))
    assert merkle_tree_hash(leaves).hex() == tree_hash_as_defined(leaves).hex() == CT_ROOTS[count]


@pytest.mark.parametrize("order", "<>=")
def test_classes_are_hashed_little_endian_whatever_the_byte_order_in_memory(order: str) -> None:
    """Arrays that NumPy joins have the machine's byte order, which is the other one on some."""
    classes = np.array([1, 2, 258], np.dtype(np.uint16).newbyteorder(order))
    expected = hashlib.sha256(b"\x01\x00\x02\x00\x02\x01").hexdigest()
    assert chunks._chunk(classes) == Chunk(expected, ((1, 1), (2, 1), (258, 1)))


def test_the_merkle_root_is_the_definitions_for_any_number_of_chunks() -> None:
    leaves = [hashlib.sha256(b"%d" % number).digest() for number in range(300)]
    stated = [Chunk(leaf.hex(), ((number, 1000),)) for number, leaf in enumerate(leaves)]
    roots = [merkle_root(iter(stated[:count])) for count in range(301)]
    assert roots == [tree_hash_as_defined(leaves[:count]).hex() for count in range(301)]
    assert len(set(roots)) == 301


def test_a_stage_has_the_samples_and_the_root_of_its_votes_and_chunks() -> None:
    hashes = ["a" * 64, "b" * 64, "c" * 64]
    root = tree_hash_as_defined(list(map(bytes.fromhex, hashes))).hex()
    stated = tuple(Chunk(sha256, ((0, 5), (2, 2))) for sha256 in hashes)
    assert Stage.of(iter([5, 0, 2]), iter(stated)) == Stage(7, (5, 0, 2), stated, root)


def test_the_worked_example_is_right() -> None:
    assert chunks.__doc__ is not None
    escapes, digest = re.findall(r"printf '(.*)' \| sha256sum\n    ([0-9a-f]{64})", chunks.__doc__)[0]
    content = bytes(int(octal, 8) for octal in escapes.split("\\")[1:])
    assert hashlib.sha256(content).hexdigest() == digest
    example = Chunks()
    example.update(np.array([1, 2, 258]))
    assert list(example) == [Chunk(digest, ((1, 1), (2, 1), (258, 1)))]


def chunks_as_specified(classes: list[int]) -> list[Chunk]:
    """Hash and votes of each chunk by the specification's words."""
    pieces = [classes[begin : begin + 1000] for begin in range(0, len(classes), 1000)]
    hashes = [hashlib.sha256(struct.pack(f"<{len(piece)}H", *piece)).hexdigest() for piece in pieces]
    return [Chunk(sha256, tuple(sorted(Counter(piece).items()))) for sha256, piece in zip(hashes, pieces)]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64, ">i4", ">u2"])
@pytest.mark.parametrize("samples", [0, 1, 999, 1000, 1001, 2000, 3456])
def test_chunks_are_the_same_in_whatever_pieces_the_classes_come(samples: int, dtype: Any) -> None:
    pick = np.random.default_rng(SEED)
    given = np.where(pick.random(samples) < 0.9, pick.integers(0, 10, samples), pick.integers(0, 65536, samples))
    given[2000:3000] = 7  # a whole chunk of one class
    given[-1:] = 65535
    expected = chunks_as_specified(given.tolist())
    for largest in (1, 7, 999, 1000, 1001, 5000):
        divided, done = Chunks(), 0
        while done < samples:
            piece = int(pick.integers(0, largest + 1)) if largest > 1 else 1
            divided.update(given[done : done + piece].astype(dtype))
            done = min(done + piece, samples)
            if largest > 900:
                assert list(divided) == chunks_as_specified(given[:done].tolist())
        assert list(divided) == list(divided) == expected


@pytest.mark.parametrize("samples", [1, 1000, 2500])
def test_chunks_can_be_written_and_read(samples: int) -> None:
    given = np.random.default_rng(SEED).integers(0, 20, samples)
    divided = Chunks()
    divided.update(given)
    stage = Stage.of(np.bincount(given).tolist(), divided)
    assert stage.chunks == tuple(chunks_as_specified(given.tolist()))
    document = replace(FIXED, estimation=stage)
    assert parse_line(canonical_line(document), "") == document


def test_an_array_may_have_gaps_and_be_used_again() -> None:
    reused, divided = np.arange(5000, dtype="<u2"), Chunks()
    divided.update(reused[::2])
    divided.update(reused[1::2])
    reused[:] = 0
    assert list(divided) == chunks_as_specified([*range(0, 5000, 2), *range(1, 5000, 2)])
    divided.update(reused[:1])
    reused[:] = 9
    assert list(divided) == chunks_as_specified([*range(0, 5000, 2), *range(1, 5000, 2), 0])


@pytest.mark.parametrize(
    "wrong",
    [np.array([0.0]), np.array([True]), np.zeros((2, 2), int), np.array(3), np.array([65536]), np.array([0, -1])],
)
def test_what_is_no_class_is_not_taken(wrong: np.ndarray) -> None:
    divided = Chunks()
    with pytest.raises(ParameterError, match="expected"):
        divided.update(wrong)
    assert list(divided) == []
