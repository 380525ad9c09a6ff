"""A trace holds every tensor of one image, each as the reference engine gives it, and the same bytes every time."""

import hashlib
import json

import h5py
import numpy as np
import pytest

from intsmooth_ref import SmoothedClassifier, load_dataset, load_model
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.noise.sampler import SELECTION

MODEL, IMAGES = embedded_file("digits.h5"), embedded_file("digits-images.h5")
NOISE = ("--sigma", "0.25", "--seed", str(2**64 - 1))


def run(capsys, *arguments):
    try:
        status = main(["trace", *map(str, arguments)])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def table(out):
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_trace_is_the_same_bytes_every_time_and_in_every_engine(tmp_path, capsys, suffix):
    contents = set()
    for number, engine in enumerate(["reference", "reference", *["jit"] * numba_available()]):
        path = tmp_path / f"{number}{suffix}"
        assert run(capsys, "--index", 5, *NOISE, "--engine", engine, "--out", path)[0] == 0
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_without_noise_the_tensors_are_those_of_the_image_itself(tmp_path, capsys):
    status, out, _ = run(capsys, MODEL, IMAGES, "--index", 7, "--out", tmp_path / "trace.npz")
    model, image = load_model(MODEL).model, load_dataset(IMAGES).images[7]
    expected = dict(Engine(model, "reference").trace(image[np.newaxis].astype(np.int32)))
    with np.load(tmp_path / "trace.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "trace.json"}
        description = json.loads(file["trace.json"])
    assert arrays.pop("image").tolist() == [image.tolist()]
    assert description["fingerprint"] == fingerprint(model) and description["noise"] == "none"
    assert description["index"] == 7 and description["image_sha256"] == load_dataset(IMAGES).image_sha256(7)
    assert [layer["name"] for layer in description["layers"]] == list(expected)
    for number, (name, tensor) in enumerate(expected.items()):
        found = arrays[f"{number:04}_{name}"]
        assert found.dtype == tensor.dtype and found.tolist() == tensor.tolist()
        digest = hashlib.sha256(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()).hexdigest()
        layer, kind = description["layers"][number], model.layers[number].kind
        assert layer == {"name": name, "kind": kind, "array": f"{number:04}_{name}", "sha256": digest}
        shape = "x".join(map(str, tensor.shape[1:]))
        row = [name, layer["kind"], shape, str(tensor.dtype), str(tensor.min()), str(tensor.max()), digest]
        assert table(out)[1 + number] == row
    assert len(table(out)) == 1 + len(expected) == 1 + len(arrays)


def test_hdf5_holds_the_same_as_npz(tmp_path, capsys):
    for suffix in (".npz", ".h5"):
        assert run(capsys, "--index", 3, *NOISE, "--sample", 9, "--out", tmp_path / f"trace{suffix}")[0] == 0
    with np.load(tmp_path / "trace.npz") as flat, h5py.File(tmp_path / "trace.h5") as file:
        description = json.loads(flat["trace.json"])
        layers = description.pop("layers")
        assert file["image"][()].tolist() == flat["image"].tolist()
        assert [each.decode() for each in file["layer_sha256"][()]] == [layer["sha256"] for layer in layers]
        assert list(file["layers"]) == [layer["array"] for layer in layers]
        for layer in layers:
            assert np.array_equal(file["layers"][layer["array"]][()], flat[layer["array"]])
        attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        assert attributes == description and description["seed"] == str(2**64 - 1) and description["sample"] == 9


def test_the_noise_is_that_of_the_vote_that_certify_casts(tmp_path, capsys):
    """The class of each of the first selection samples, from traces, adds up to the votes of the certificate."""
    model, image, votes = load_model(MODEL).model, load_dataset(IMAGES).images[40], np.zeros(10, int)
    for sample in range(8):
        path = tmp_path / f"{sample}.npz"
        noise = ("--sigma", "0.5", "--seed", 11, "--stage", "selection", "--sample", sample)
        assert run(capsys, "--index", 40, *noise, "--out", path)[0] == 0
        with np.load(path) as file:
            votes[file["0005_scores"][0].argmax()] += 1
    classifier = SmoothedClassifier(model, sigma="0.5", seed=11, engine="reference")
    found = classifier.certify(image, n0=8, n=100, alpha="0.001", index=40)
    assert found.selection_votes == tuple(votes) and SELECTION == 0 and max(votes) < 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--index", 397], "image 397: expected 0 to 396"),
        (["--seed", 1], "--seed: addresses noise; expected --sigma or --scale besides"),
        (["--sample", 1], "--sample: addresses noise"),
        (["--sigma", "0.25"], "expected --seed besides"),
        ([*NOISE[:3], 2**64], "seed 18446744073709551616: expected an int"),
        ([*NOISE, "--sample", 2**32], "first sample 4294967296: expected an int"),
        (["--out", "trace.txt"], "trace.txt: expected a name that ends in .npz or .h5"),
        (["--out", "no/trace.npz"], "no/trace.npz: found no folder no"),
        ([MODEL], "expected a data file after the model"),
        ([MODEL, MODEL], "expected 'intsmooth-ref images'"),
        (["--sigma", "0.25", "--scale", "1"], "not allowed with argument"),
    ],
)
def test_what_cannot_be_traced_is_one_line(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status in (1, 2) and out == "" and err.count("\n") == 1 and message in err


def test_a_file_that_is_there_is_replaced_on_request_only(tmp_path, capsys):
    (tmp_path / "trace.npz").write_text("something of value")
    status, out, err = run(capsys, "--out", tmp_path / "trace.npz")
    assert status == 1 and out == "" and "expected none, or the option --overwrite" in err
    assert (tmp_path / "trace.npz").read_text() == "something of value"
    assert run(capsys, "--out", tmp_path / "trace.npz", "--overwrite")[0] == 0
    assert [each.name for each in tmp_path.iterdir()] == ["trace.npz"]


def test_an_input_is_never_overwritten(tmp_path, capsys):
    data = tmp_path / "data.npz"
    np.savez(data, images=load_dataset(IMAGES).images[:2], labels=np.zeros(2, np.int64))
    before = data.read_bytes()
    status, _, err = run(capsys, MODEL, data, "--out", data, "--overwrite")
    assert status == 1 and "is read by this command" in err and data.read_bytes() == before
