"""The float model file: what was saved is what is loaded, and any trainer can write one."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from math import inf
from pathlib import Path
from typing import Any, Callable

import h5py
import numpy as np
import pytest

from damage import damaged, run_elsewhere, unsealed
from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.float_file import load_float_model, other_float_model, save_float_model
from intsmooth_ref.data_tools.float_model import (
    FLOAT_LAYER_KINDS,
    FUNCTIONS,
    Add,
    AveragePool,
    BatchNorm,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    FloatLayer,
    FloatModel,
    Function,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Pad,
)
from intsmooth_ref.dataset import Dataset, load_dataset, save_dataset
from intsmooth_ref.errors import IntsmoothError, ModelFormatError
from intsmooth_ref.model.hdf5 import load_model

README = Path(__file__).parents[1] / "weights" / "README.md"


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def varied() -> FloatModel:
    """A layer of each kind, with values that are not their defaults."""
    layers: tuple[FloatLayer, ...] = (
        Input(name="input", shape=(6, 5, 2), mean=floats(2), deviation=np.abs(floats(2)) + 1),
        Conv2D(name="conv", inputs=("input",), weights=floats(4, 3, 2, 1), bias=floats(4), strides=(2, 1),
               padding=(1, 2, 0, 1), dilation=(1, 2), groups=2),
        BatchNorm(name="norm", inputs=("conv",), scale=floats(4), shift=floats(4), mean=floats(4),
                  variance=np.abs(floats(4)), epsilon=0.1),
        Clamp(name="relu", inputs=("norm",), minimum=-0.1, maximum=inf),
        Function(name="leaky", inputs=("norm",), function="leaky_relu", slope=0.01),
        Add(name="add", inputs=("relu", "leaky")),
        Concat(name="concat", inputs=("add", "relu")),
        MaxPool(name="maximum", inputs=("concat",), kernel=(2, 2), strides=(1, 2), padding=(1, 0, 0, 1)),
        AveragePool(name="average", inputs=("maximum",), kernel=(3, 1), padding=(1, 1, 0, 0), count_include_pad=True),
        Pad(name="pad", inputs=("average",), padding=(0, 1, 2, 0)),
        Conv2D(name="no_bias", inputs=("pad",), weights=floats(3, 1, 1, 8)),
        GlobalAveragePool(name="mean", inputs=("pad",)),
        Flatten(name="flat", inputs=("no_bias",)),
        Concat(name="vectors", inputs=("mean", "flat")),
    )  # fmt: skip
    shape = FloatModel(layers).shapes["vectors"]
    scores = Linear(name="scores", inputs=("vectors",), weights=floats(3, *shape), bias=floats(3))
    return FloatModel((*layers, scores), ("a", "é", "c"), "by hand")


def description(model: FloatModel) -> Any:
    """All of a model in plain values, which compare."""
    layers = [
        (layer.kind, [
            (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
            for value in (getattr(layer, each.name) for each in fields(layer))
        ])
        for layer in model.layers
    ]  # fmt: skip
    return layers, model.class_names, model.provenance


def saved(path: Path) -> Path:
    save_float_model(path, varied())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        load_float_model(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_of_every_kind_of_layer_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    assert {layer.kind for layer in varied().layers} == set(FLOAT_LAYER_KINDS)
    assert description(load_float_model(saved(tmp_path / "f.h5"))) == description(varied())


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.h5").read_bytes()
    save_float_model(tmp_path / "b.h5", load_float_model(tmp_path / "a.h5"))
    assert (tmp_path / "b.h5").read_bytes() == first
    assert first[-86:].startswith(b"intsmooth-ref seal 1 ")


def test_a_trainer_writes_one_with_plain_h5py_from_the_specification(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs.update({"format": "intsmooth-ref float model", "format_version": 1, "provenance": ""})
        file["class_names"] = ["cat", "dog"]
        first = file.create_group("layers/0000_image")
        first.attrs.update({"kind": "Input", "name": "image", "shape": (2, 2, 1)})
        first.attrs["inputs"] = np.array([], dtype="S1")
        first["mean"], first["deviation"] = np.zeros(1, np.float32), np.ones(1, np.float32)
        flat = file.create_group("layers/0001_flat")
        flat.attrs.update({"kind": "Flatten", "name": "flat", "inputs": "image"})
        last = file.create_group("layers/0002_scores")
        last.attrs.update({"kind": "Linear", "name": "scores", "inputs": ["flat"]})
        weights = np.arange(8).reshape(2, 4)
        last.create_dataset("weights", data=weights, dtype=">f4", chunks=(1, 4), compression="gzip")
        last["bias"] = np.array([0.5, -0.5], np.float32)
        relu = file.create_group("layers/0003_relu")
        relu.attrs.update({"kind": "Clamp", "name": "relu", "inputs": ["scores"], "minimum": 0, "maximum": np.inf})
    model = load_float_model(tmp_path / "f.h5")
    last_linear, clamp = model.layers[2:]
    assert isinstance(last_linear, Linear) and isinstance(clamp, Clamp)
    assert last_linear.weights.dtype == np.float32 and last_linear.weights.tolist() == weights.tolist()
    assert (clamp.minimum, clamp.maximum) == (0.0, inf) and isinstance(clamp.minimum, float)
    assert model.class_names == ("cat", "dog") and model.classes == 2


def specified() -> dict[str, set[str]]:
    """From the table of the specification: what stands in the group of each kind, [optional] or not."""
    text = README.read_text(encoding="utf-8").split("<!-- float layers -->")[1].split("\n\n")[0]
    rows = [line.split(" | ") for line in text.strip().splitlines()[2:]]
    return {row[0].strip("| `"): set(re.findall(r"`(\w+)`", f"{row[1]} {row[2]}")) for row in rows}


def test_the_file_holds_what_the_specification_names(tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}
    with h5py.File(saved(tmp_path / "f.h5")) as file:
        for group in file["layers"].values():
            names = ({*group.attrs} | {*group}) - {"kind", "name", "inputs"}
            found.setdefault(group.attrs["kind"].decode(), set()).update(names)
    assert found == specified()


def test_the_specification_names_every_function() -> None:
    text = README.read_text(encoding="utf-8").split("\nFunctions; ")[1].split("\n\n")[0]
    assert {name for name in re.findall(r"`(\w+)`", text)} - {"slope"} == set(FUNCTIONS)


def test_a_float_model_is_no_model_to_certify_with(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError) as caught:
        load_model(saved(tmp_path / "f.h5"))
    assert "/: found a file of format 'intsmooth-ref float model'; expected 'intsmooth-ref model': quantize it " in str(
        caught.value
    )


def test_a_file_of_another_kind_is_called_that_not_a_broken_one(tmp_path: Path) -> None:
    images = Dataset(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64), (), "", "test")
    save_dataset(tmp_path / "images.h5", [images])
    for load, path, found in (
        (load_float_model, "images.h5", "images"), (load_model, "images.h5", "images"),
        (load_dataset, saved(tmp_path / "f.h5").name, "float model"),
    ):  # fmt: skip
        with pytest.raises(IntsmoothError, match=f"/: found a file of format 'intsmooth-ref {found}'; expected '"):
            load(tmp_path / path)


def test_a_file_of_no_kind_is_refused_before_anything_else_in_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3, np.complex64)
    assert refusal(tmp_path / "other.h5").endswith(
        "/: found no attribute 'format'; expected 'intsmooth-ref float model'"
    )


@pytest.mark.parametrize("empty", [[], h5py.Empty("S1"), h5py.Empty("f4"), np.array([], np.int32)], ids=str)
def test_an_empty_list_of_strings_may_be_of_any_type(tmp_path: Path, empty: Any) -> None:
    save_float_model(tmp_path / "f.h5", replace(varied(), class_names=()))
    with h5py.File(unsealed(tmp_path / "f.h5"), "r+") as file:
        file["layers/0000_input"].attrs["inputs"] = empty
        del file["class_names"]
        file["class_names"] = empty
    model = load_float_model(tmp_path / "f.h5")
    assert (model.input.inputs, model.class_names) == ((), ())


def test_an_empty_list_is_no_name_of_anything(tmp_path: Path) -> None:
    with h5py.File(unsealed(saved(tmp_path / "f.h5")), "r+") as file:
        file["layers/0005_add"].attrs["name"] = []
    assert "/layers/0005_add: found attribute 'name' with 0 values; expected one string" in refusal(tmp_path / "f.h5")


def test_an_integer_model_is_asked_which_float_model_it_was_made_of() -> None:
    own, other = "a" * 64, "b" * 64
    provenance = f"made of images of SHA-256 {other}; float model file of SHA-256 {own}: by hand"
    assert other_float_model(provenance, own) is None and other_float_model(provenance, other) == own
    assert other_float_model("by hand", own) is None


def test_the_example_of_the_specification_is_a_float_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = README.read_text(encoding="utf-8").split("<!-- float model example -->")[1].split("```")[1]
    exec(code.removeprefix("python"), {})
    model = load_float_model(tmp_path / "linear.h5")
    assert model.class_names == ("dark", "bright") and list(model.shapes) == ["image", "flat", "scores"]
    images = np.stack([np.full((8, 8, 1), 127.5 - 51), np.full((8, 8, 1), 127.5 + 51)]).astype(np.float32)
    # (grey / 255 - 0.5) / 0.25 is -0.8 and 0.8, 64 times; the scores are its sum and the opposite
    assert np.allclose(float_engine.scores(model, images), [[51.2, -51.2], [-51.2, 51.2]])


def attribute(layer: str, name: str, value: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file[f"layers/{layer}"].attrs.__setitem__(name, value)


def array(layer: str, name: str, value: Any) -> Callable[[h5py.File], Any]:
    def edit(file: h5py.File) -> None:
        del file[f"layers/{layer}/{name}"]
        file[f"layers/{layer}/{name}"] = value

    return edit


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "format": (lambda f: f.attrs.__setitem__("format", "intsmooth-ref model"), "of format 'intsmooth-ref model'"),
    "version": (lambda f: f.attrs.__setitem__("format_version", 2), "format_version 2"),
    "kind": (attribute("0005_add", "kind", "Softmax"), "the unknown kind 'Softmax'"),
    "unknown": (attribute("0005_add", "axis", 1), "/layers/0005_add: found the unknown attribute 'axis'"),
    "missing": (lambda f: f["layers/0003_relu"].attrs.__delitem__("maximum"), "no attribute 'maximum'"),
    "no bias of another name": (lambda f: f["layers/0001_conv"].move("bias", "bias_"), "no array 'bias'"),
    "float for an integer": (attribute("0001_conv", "groups", 2.0), "attribute 'groups' that holds floats"),
    "text for a float": (attribute("0003_relu", "minimum", "0"), "attribute 'minimum' that holds text"),
    "float for text": (attribute("0003_relu", "name", 0.5), "attribute 'name' that holds floats; expected text"),
    "two floats": (attribute("0003_relu", "minimum", [0.0, 1.0]), "attribute 'minimum' with 2 values"),
    "not a number": (attribute("0003_relu", "minimum", np.nan), "layer 'relu': minimum is not a number"),
    "infinite slope": (attribute("0004_leaky", "slope", np.inf), "layer 'leaky': slope is inf; expected a finite"),
    "float16": (array("0001_conv", "bias", np.zeros(4, np.float16)), "floats of 16 bits"),
    "float64": (array("0001_conv", "bias", np.zeros(4)), "array 'bias' of float64, rank 1; expected float32"),
    "integers": (array("0001_conv", "bias", np.zeros(4, np.int32)), "array 'bias' of int32"),
    "infinite weight": (array("0001_conv", "bias", np.float32([0, 0, np.inf, 0])), "layer 'conv': bias holds a value"),
    "complex": (array("0001_conv", "bias", np.zeros(4, np.complex64)), "type"),
    "shapes": (array("0001_conv", "bias", np.zeros(3, np.float32)), "layer 'conv': bias has 3 values; expected 4"),
    "cycle": (attribute("0005_add", "inputs", ["relu", "concat"]), "layer 'add' reads 'concat'"),
    "number": (lambda f: f["layers"].move("0005_add", "0100_add"), "the group to be called"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named_with_file_layer_and_field(tmp_path: Path, case: str) -> None:
    edit, found = BROKEN[case]
    with h5py.File(unsealed(saved(tmp_path / "f.h5")), "r+") as file:
        edit(file)
    assert found in refusal(tmp_path / "f.h5")


def test_an_array_that_only_its_shape_makes_huge_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(unsealed(saved(tmp_path / "f.h5")), "r+") as file:
        del file["layers/0001_conv/weights"]
        file.create_dataset("layers/0001_conv/weights", (1 << 20, 1 << 10), "f4", chunks=(1, 1))
    assert "an array of 4294967296 bytes" in refusal(tmp_path / "f.h5")


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"f.h5: cannot be written: .*provenance.*; expected at most 64000$"):
        save_float_model(tmp_path / "f.h5", replace(varied(), provenance="x" * 64001))


# --- damage -----------------------------------------------------------------------------------------------------------


def load_damaged(path: Path, corruptions: int, whole: bool) -> None:
    """Every damaged variant is refused in one line, or read; with `whole`, as what it was."""
    original = description(load_float_model(path))
    for variant in damaged(path.read_bytes(), corruptions):
        path.write_bytes(variant)
        try:
            found = description(load_float_model(path))
        except ModelFormatError as refused:
            assert str(refused).startswith(f"{path}: ") and "\n" not in str(refused)
        else:
            assert found == original or not whole


def test_a_damaged_file_is_refused_or_read_in_full(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, saved(tmp_path / "f.h5"), 300, whole=True)


@pytest.mark.slow
@pytest.mark.skipif(h5py.version.hdf5_version_tuple < (2, 0, 0), reason="older libraries crash on some of these files")
def test_a_damaged_file_without_a_seal_is_refused_in_one_line_or_read(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, unsealed(saved(tmp_path / "f.h5")), 300, whole=False)
