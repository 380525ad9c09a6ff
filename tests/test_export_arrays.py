"""The exported arrays are the model's, can be read without the package, and are the same bytes every time."""

import json
import subprocess
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.export.arrays import arrays_file
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model
from intsmooth_ref.model.layers import LAYER_KINDS, Quantization, Requantization
from intsmooth_ref.npz import npy_bytes
from random_models import models

SPECIFICATION = Path(__file__).parent.parent / "intsmooth_ref" / "export" / "ARRAYS.md"


def rebuilt(content):
    """The model that an archive describes, from the specification alone."""
    archive = np.load(BytesIO(content))
    description = json.loads(archive["description.json"])

    def value(stored):
        if isinstance(stored, dict):
            return archive[stored["array"]]
        return tuple(stored) if isinstance(stored, list) else stored

    layers = []
    for stored in description["layers"]:
        fields = {name: value(each) for name, each in stored.items() if name not in ("kind", "tensor")}
        nested = {name: {} for name in ("requantization", "output")}
        for name in list(fields):
            if "." in name:
                outer, inner = name.split(".")
                nested[outer][inner] = fields.pop(name)
        if nested["requantization"]:
            fields["requantization"] = Requantization(**nested["requantization"])
        if nested["output"]:
            nested["output"]["scale"] = Fraction(*nested["output"]["scale"])
            fields["output"] = Quantization(**nested["output"])
        layers.append(LAYER_KINDS[stored["kind"]](**fields))
    model = IntegerModel(tuple(layers), tuple(description["class_names"]), description["provenance"])
    assert fingerprint(model) == description["fingerprint"]
    for stored in description["layers"]:
        proof, tensor = model.proofs[stored["name"]], stored["tensor"]
        assert tensor["shape"] == list(proof.shape) and Fraction(*tensor["scale"]) == proof.scale
        accumulator = None if proof.accumulator is None else list(proof.accumulator)
        assert tensor["accumulator"] == accumulator
        for name in ("dtype", "zero_point", "minimum", "maximum"):
            assert tensor[name] == getattr(proof, name)
    return model


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_every_model_can_be_rebuilt_from_its_arrays(model):
    content = arrays_file(model)
    assert fingerprint(rebuilt(content)) == fingerprint(model)
    assert arrays_file(model) == content


def test_the_example_computes_the_embedded_models_known_answers_with_numpy_alone(tmp_path):
    opened = load_model(embedded_file("digits.h5"))
    assert main(["export", "--to", "npz", "--out", str(tmp_path / "digits.npz")]) == 0
    assert (tmp_path / "digits.npz").read_bytes() == arrays_file(opened.model)
    example = SPECIFICATION.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for image, scores in list(zip(opened.known_answers.inputs, opened.known_answers.outputs))[:3]:
        np.save(tmp_path / "image.npy", image)
        without_package = "import sys\nsys.modules['intsmooth_ref'] = sys.modules['h5py'] = None\n"
        command = [sys.executable, "-c", without_package + example, tmp_path / "digits.npz", tmp_path / "image.npy"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [int(word) for word in done.stdout.split()] == scores.tolist()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 4), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", ">i4", "uint64"])
def test_npy_files_are_read_back_by_numpy(shape, dtype):
    array = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    content = npy_bytes(array)
    found = np.load(BytesIO(content))
    assert found.dtype == array.dtype.newbyteorder("<") and found.shape == shape and found.tolist() == array.tolist()
    assert (len(content) - array.nbytes) % 64 == 0


@pytest.mark.parametrize("to, name", [("npz", "model.npz"), ("c", "model.c"), ("c", "model.h")])
def test_files_are_replaced_on_request_only(tmp_path, capsys, to, name):
    (tmp_path / name).write_text("something of value")
    out = tmp_path / name.replace(".h", ".c")
    assert main(["export", "--to", to, "--out", str(out)]) == 1
    assert "expected none, or the option --overwrite" in capsys.readouterr().err
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, "something of value")]
    assert main(["export", "--to", to, "--out", str(out), "--overwrite"]) == 0
    assert (tmp_path / name).read_bytes() != b"something of value"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "c", "--out", "model.txt"], "model.txt: expected a name that ends in .c"),
        (["--to", "c", "--out", "my-model.c"], "name 'my-model': expected a letter, and up to 15"),
        (["--to", "npz", "--out", "no/model.npz"], "no/model.npz: found no folder no"),
        (["--to", "npz", "--out", "."], ".: expected a name that ends in .npz"),
        (["--to", "npz", "--out", "/dev/../.npz"], "expected a name that ends in .npz"),
        (["nothing.h5", "--to", "npz", "--out", "model.npz"], "nothing.h5"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_replaced(tmp_path, capsys):
    (tmp_path / "model.npz").mkdir()
    assert main(["export", "--to", "npz", "--out", str(tmp_path / "model.npz"), "--overwrite"]) == 1
    assert "found no regular file; expected a file or a free name" in capsys.readouterr().err


def test_a_model_is_never_overwritten_by_its_export(tmp_path, capsys):
    model = tmp_path / "model.npz"
    model.write_bytes(embedded_file("digits.h5").read_bytes())
    assert main(["export", str(model), "--to", "npz", "--out", str(model), "--overwrite"]) == 1
    assert "is read by this command" in capsys.readouterr().err
    assert model.read_bytes() == embedded_file("digits.h5").read_bytes()
