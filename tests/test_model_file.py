"""The model file: what was saved is what is loaded, and nothing else ever is."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable

import h5py
import numpy as np
import pytest

from damage import damaged, run_elsewhere, unsealed
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.fingerprint import canonical_serialization, fingerprint, tensor_sha256
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import KnownAnswers, ModelFile, load_model, save_model
from intsmooth_ref.model.layers import (
    Add,
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    InputQuantization,
    Layer,
    Linear,
    LookupTable,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Reshape,
    Softmax,
)

README = Path(__file__).parents[1] / "weights" / "README.md"

PIXELS = Quantization.full_range("uint8", Fraction(1, 255), 0)
SIGNED = Quantization.full_range("int8", Fraction(1, 51), -3)
RATIO_ONE = Requantization.of((1 << 30, 30))
HALF = Requantization.of((1 << 30, 31))


def tiny() -> IntegerModel:
    """The example of `weights/README.md`."""
    layers = (
        InputQuantization(name="input", shape=(1, 2, 1), requantization=RATIO_ONE, output=PIXELS),
        Flatten(name="flat", inputs=("input",)),
        Linear(
            name="scores", inputs=("flat",), weights=np.array([[3, -2], [-1, 4]], np.int8),
            bias=np.array([5, -6], np.int32), output=Quantization.full_range("int32", Fraction(1, 25500), 0),
        ),
    )  # fmt: skip
    return IntegerModel(layers, ("even", "odd"), "made by hand")


def varied() -> IntegerModel:
    """A layer of every kind, and every type of field."""
    weights = np.arange(-27, 27, dtype=np.int8).reshape(2, 3, 3, 3)
    channels = Requantization.of((1 << 30, 35), ((1 << 31) - 1, 36), rounding="single_rounding")
    negative = np.arange(-128, 128, dtype=np.int16)[::-1].copy()
    probabilities = Quantization.full_range("uint8", Fraction(1, 256), 0)
    layers: tuple[Layer, ...] = (
        InputQuantization(name="input", shape=(6, 5, 3), requantization=RATIO_ONE, output=PIXELS),
        Conv2D(
            name="conv", inputs=("input",), weights=weights, bias=np.array([-7, 2**20], np.int32),
            requantization=channels, output=SIGNED, padding=(1, 0, 1, 2), dilation=(1, 1), strides=(2, 1),
        ),
        Pad(name="pad", inputs=("conv",), padding=(0, 1, 0, 1)),
        MaxPool(name="max", inputs=("pad",), kernel=(2, 2)),
        AveragePool(name="mean", inputs=("max",), kernel=(2, 2), padding=(1, 0, 1, 0), count_include_pad=True),
        LookupTable(name="table", inputs=("mean",), table=negative, output=SIGNED),
        Add(
            name="sum", inputs=("table", "mean"), multiplier=np.array([1 << 20, 3], np.int32), shift=21, output=SIGNED
        ),
        Concat(name="both", inputs=("sum", "mean")),
        Clamp(name="relu", inputs=("both",), minimum=-3, maximum=100),
        GlobalAveragePool(name="global", inputs=("relu",), requantization=HALF, output=SIGNED),
        Reshape(name="shape", inputs=("global",), shape=(4,)),
        Requantize(name="again", inputs=("shape",), requantization=RATIO_ONE, output=SIGNED),
        Softmax(name="soft", inputs=("again",), table=np.arange(256, 0, -1, dtype=np.int32), output=probabilities),
        ArgMax(name="class", inputs=("soft",)),
    )  # fmt: skip
    return IntegerModel(layers, (), "ünï")


def with_answers(model: IntegerModel) -> ModelFile:
    inputs = np.arange(-20, -20 + 2 * int(np.prod(model.input.shape)), dtype=np.int32).reshape(2, *model.input.shape)
    trace = dict(Engine(model, "reference").trace(inputs))
    hashes = {name: tensor_sha256(tensor) for name, tensor in trace.items()}
    return ModelFile(model, KnownAnswers(inputs, trace[model.output.name], hashes))


def description(file: ModelFile) -> tuple[Any, ...]:
    """All that a model file says, ready to be compared."""
    answers = file.known_answers
    vectors = answers and (answers.inputs.tolist(), answers.outputs.tolist(), dict(answers.layer_sha256))
    return b"".join(canonical_serialization(file.model)), file.model.class_names, file.model.provenance, vectors


def saved(path: Path, model: IntegerModel | None = None) -> Path:
    file = with_answers(model or tiny())
    save_model(path, file.model, file.known_answers)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "expected" in message
    return message


# --- the promise of the round trip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny, varied])
def test_a_model_that_was_saved_is_loaded_the_same(tmp_path: Path, make: Callable[[], IntegerModel]) -> None:
    file = with_answers(make())
    save_model(tmp_path / "model.h5", file.model, file.known_answers)
    loaded = load_model(tmp_path / "model.h5")
    assert description(loaded) == description(file)
    assert fingerprint(loaded.model) == fingerprint(file.model)
    save_model(tmp_path / "again.h5", loaded.model, loaded.known_answers)
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "model.h5").read_bytes()


def test_known_answers_are_optional(tmp_path: Path) -> None:
    save_model(tmp_path / "model.h5", tiny())
    assert load_model(tmp_path / "model.h5").known_answers is None


def test_arrays_of_a_loaded_model_are_read_only(tmp_path: Path) -> None:
    file = load_model(saved(tmp_path / "model.h5"))
    scores = file.model.output
    assert isinstance(scores, Linear) and file.known_answers is not None
    for array in (scores.weights, scores.bias, file.known_answers.inputs, file.known_answers.outputs):
        assert not array.flags.writeable


def test_the_file_is_laid_out_as_the_specification_says(tmp_path: Path) -> None:
    model = varied()
    with h5py.File(saved(tmp_path / "model.h5", model), "r") as file:
        assert sorted(file) == ["class_names", "known_answers", "layers"]
        assert sorted(file.attrs) == ["fingerprint", "format", "format_version", "provenance"]
        assert file.attrs["format"] == b"intsmooth-ref model" and file.attrs["format_version"] == 1
        assert file.attrs["fingerprint"].decode() == fingerprint(model)
        assert list(file["layers"])[:2] == ["0000_input", "0001_conv"] and len(file["layers"]) == len(model.layers)
        conv = file["layers/0001_conv"]
        assert {name: np.asarray(value).tolist() for name, value in conv.attrs.items()} == {
            "kind": b"Conv2D", "name": b"conv", "inputs": [b"input"], "requantization.rounding": b"single_rounding",
            "output.dtype": b"int8", "output.scale": [1, 51], "output.zero_point": -3, "output.minimum": -128,
            "output.maximum": 127, "strides": [2, 1], "padding": [1, 0, 1, 2], "dilation": [1, 1], "groups": 1,
        }  # fmt: skip
        assert sorted(conv) == ["bias", "requantization.multiplier", "requantization.shift", "weights"]
        assert conv["weights"].dtype == np.int8 and conv["weights"].shape == (2, 3, 3, 3)
        assert conv["requantization.multiplier"][()].tolist() == [1 << 30, (1 << 31) - 1]
        assert file["layers/0004_mean"].attrs["count_include_pad"] == 1
        assert sorted(file["known_answers"]) == ["inputs", "layer_sha256", "outputs"]
        assert file["known_answers/outputs"].dtype == np.int32
        assert len(file["known_answers/layer_sha256"]) == len(model.layers)


# --- the worked example -----------------------------------------------------------------------------------------------


def block(marker: str) -> str:
    """The code block of the specification behind this marker."""
    found = re.search(rf"<!-- {marker} -->\n```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def serialization_of_the_specification() -> bytes:
    """From the text alone: every `\\xNN` is a byte."""
    text = block("serialization").encode("ascii")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda escape: bytes([int(escape[1], 16)]), text)


def test_the_fingerprint_of_the_specification_is_the_sha256_of_its_serialization() -> None:
    serialization = serialization_of_the_specification()
    assert hashlib.sha256(serialization).hexdigest() == block("fingerprint").strip()
    assert f"is {len(serialization)} bytes long" in README.read_text(encoding="utf-8")


def test_the_model_of_the_specification_has_the_serialization_that_it_shows() -> None:
    assert b"".join(canonical_serialization(tiny())) == serialization_of_the_specification()
    assert fingerprint(tiny()) == block("fingerprint").strip()


# --- files that break a rule ------------------------------------------------------------------------------------------


def attribute(path: str, name: str, value: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file[path].attrs.__setitem__(name, value)


def array(path: str, data: np.ndarray | None) -> Callable[[h5py.File], Any]:
    def replace(file: h5py.File) -> None:
        if path in file:
            del file[path]
        if data is not None:
            file[path] = data

    return replace


INPUT, SCORES = "/layers/0000_input", "/layers/0002_scores"

BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "format": (attribute("/", "format", "intsmooth-ref images"), "/: found a file of format 'intsmooth-ref images'"),
    "version": (attribute("/", "format_version", 2), "/: found format_version 2; expected 1"),
    "no version": (lambda f: f.attrs.__delitem__("format_version"), "/: found no attribute 'format_version'"),
    "fingerprint": (attribute("/", "fingerprint", "0" * 64), "/: found a model of fingerprint"),
    "unknown attribute": (attribute("/", "author", "me"), "/: found the unknown attribute 'author'"),
    "unknown array": (array("/extra", np.zeros(1, np.int8)), "/: found the unknown array 'extra'"),
    "unknown group": (lambda f: f.create_group("extra"), "/: found the unknown group 'extra'"),
    "kind": (attribute(SCORES, "kind", "Perceptron"), f"{SCORES}: found the unknown kind 'Perceptron'"),
    "base kind": (attribute(SCORES, "kind", "Layer"), f"{SCORES}: found the unknown kind 'Layer'"),
    "other kind": (attribute(SCORES, "kind", "Conv2D"), f"{SCORES}: found array 'weights' of int8, rank 2"),
    "missing field": (lambda f: f[INPUT].attrs.__delitem__("shape"), f"{INPUT}: found no attribute 'shape'"),
    "unknown field": (attribute(SCORES, "groups", 1), f"{SCORES}: found the unknown attribute 'groups'"),
    "missing array": (array(f"{SCORES}/bias", None), f"{SCORES}: found no array 'bias'"),
    "dtype": (array(f"{SCORES}/bias", np.zeros(2, np.int64)), f"{SCORES}: found array 'bias' of int64, rank 1"),
    "rank": (array(f"{SCORES}/bias", np.zeros((2, 1), np.int32)), f"{SCORES}: found array 'bias' of int32, rank 2"),
    "floats": (array(f"{SCORES}/bias", np.zeros(2)), f"{SCORES}/bias: found floating-point numbers"),
    "half a requantization": (
        attribute(SCORES, "requantization.rounding", "single_rounding"),
        f"{SCORES}: found no array 'requantization.multiplier'",
    ),
    "zero denominator": (attribute(SCORES, "output.scale", np.array([1, 0])), "'output.scale' = (1, 0)"),
    "not in lowest terms": (attribute(SCORES, "output.scale", np.array([2, 4])), "'output.scale' = (2, 4)"),
    "one number": (attribute(SCORES, "output.scale", 3), "'output.scale' = (3,)"),
    "negative scale": (attribute(SCORES, "output.scale", np.array([-1, 4])), "layer 'scores': output has scale -1/4"),
    "text": (attribute(INPUT, "output.minimum", "0"), f"{INPUT}: found attribute 'output.minimum' that holds text"),
    "number": (attribute(INPUT, "output.dtype", 8), f"{INPUT}: found attribute 'output.dtype' that holds integers"),
    "huge": (attribute(INPUT, "shape", np.array([1, 2**62, 1])), "layer 'input': shape is (1, 4611686018427387904, 1)"),
    "negative": (attribute(INPUT, "shape", np.array([1, -2, 1])), "layer 'input': shape is (1, -2, 1)"),
    "name": (attribute(SCORES, "name", "other"), f"{SCORES}: found layer 'other' as number 2"),
    "gap": (lambda f: f.move(SCORES, "/layers/0003_scores"), "as number 2; expected the group to be called"),
    "no layers": (lambda f: f.__delitem__("layers"), "/: found no group 'layers'"),
    "empty": (lambda f: [f["layers"].__delitem__(n) for n in list(f["layers"])], "model has 0 layers"),
    "class names": (array("/class_names", np.array([b"one"])), "model has 1 class names; expected 2"),
    "number of hashes": (array("/known_answers/layer_sha256", np.array([b"0" * 64])), "found 1 hashes"),
    "answers' dtype": (array("/known_answers/inputs", np.zeros((2, 1, 2, 1), np.int64)), "'inputs' of int64, rank 4"),
    "answers' shape": (array("/known_answers/inputs", np.zeros((2, 2, 1, 1), np.int32)), "shape (2, 2, 1, 1)"),
    "answers' range": (array("/known_answers/inputs", np.full((2, 1, 2, 1), 2**21, np.int32)), "from 2097152 to"),
    "answers' number": (array("/known_answers/outputs", np.zeros((3, 2), np.int32)), "int32 and shape (3, 2)"),
    "unknown answer": (array("/known_answers/extra", np.zeros(2, np.int32)), "/known_answers: found the unknown array"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named_with_file_layer_and_field(tmp_path: Path, case: str) -> None:
    edit, found = BROKEN[case]
    with h5py.File(unsealed(saved(tmp_path / "model.h5")), "r+") as file:
        edit(file)
    assert found in refusal(tmp_path / "model.h5")


def test_a_boolean_is_0_or_1(tmp_path: Path) -> None:
    with h5py.File(unsealed(saved(tmp_path / "model.h5", varied())), "r+") as file:
        file["layers/0004_mean"].attrs["count_include_pad"] = 2
    found = "/layers/0004_mean: found attribute 'count_include_pad' = 2; expected 0 or 1"
    assert found in refusal(tmp_path / "model.h5")


def test_another_weight_never_passes_for_the_model(tmp_path: Path) -> None:
    with h5py.File(unsealed(saved(tmp_path / "model.h5")), "r+") as file:
        file[f"{SCORES}/weights"][0, 0] = 4
    assert "/: found a model of fingerprint" in refusal(tmp_path / "model.h5")


def test_a_file_from_another_language_keeps_the_fingerprint(tmp_path: Path) -> None:
    """Big-endian, chunked, compressed, and no seal; attributes narrow, and scalars as lists of one."""
    source, target = saved(tmp_path / "model.h5"), tmp_path / "rewritten.h5"

    def copy(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            dtype = node.dtype.newbyteorder(">") if node.dtype.kind in "iu" else node.dtype
            new.create_dataset(name, data=node[()].astype(dtype), chunks=True, compression="gzip", shuffle=True)
        for key, value in node.attrs.items():
            narrow = np.int32(value) if key.startswith("output.") and np.ndim(value) == 0 and key[7] in "mz" else value
            new.require_group(name).attrs[key] = np.atleast_1d(narrow)

    with h5py.File(source, "r") as old, h5py.File(target, "w", libver="latest") as new:
        copy("/", old)
        old.visititems(copy)
    assert description(load_model(target)) == description(load_model(source))


def test_an_integer_beyond_64_bits_cannot_be_saved(tmp_path: Path) -> None:
    first, flat, last = tiny().layers
    assert isinstance(last, Linear)
    scale = Quantization.full_range("int32", Fraction(1, 2**63), 0)
    last = Linear(name="scores", inputs=("flat",), weights=last.weights, bias=last.bias, output=scale)
    with pytest.raises(ModelFormatError, match="attribute 'output.scale' of /layers/0002_scores"):
        save_model(tmp_path / "model.h5", IntegerModel((first, flat, last)))


def test_answers_of_another_model_cannot_be_saved(tmp_path: Path) -> None:
    answers = with_answers(varied()).known_answers
    with pytest.raises(ModelFormatError, match="model.h5: /known_answers: found inputs of int32"):
        save_model(tmp_path / "model.h5", tiny(), answers)


# --- damage -----------------------------------------------------------------------------------------------------------


def load_damaged(path: Path, corruptions: int, whole: bool) -> None:
    """Every damaged variant is refused, or gives the same model; with `whole`, the same everything."""
    original = description(load_model(path))
    for variant in damaged(path.read_bytes(), corruptions):
        path.write_bytes(variant)
        try:
            found = description(load_model(path))
        except ModelFormatError as refused:
            assert str(refused).startswith(f"{path}: ")
        else:
            assert found[0] == original[0] and (found == original or not whole)


def test_a_damaged_file_is_refused_or_read_in_full(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, saved(tmp_path / "model.h5"), 300, whole=True)


@pytest.mark.slow
@pytest.mark.skipif(h5py.version.hdf5_version_tuple < (2, 0, 0), reason="older libraries crash on some of these files")
def test_a_damaged_file_without_a_seal_never_gives_another_model(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, unsealed(saved(tmp_path / "model.h5")), 300, whole=False)
