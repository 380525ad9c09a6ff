"""Integer networks are trained: what is written is what was judged, to the bit, and an interruption changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Sequence

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_model, integer_training
from intsmooth_ref.data_tools.augmentation import HELD_OUT, noisy_copies, split_off
from intsmooth_ref.data_tools.calibration import CALIBRATION, Values, noisy_images
from intsmooth_ref.data_tools.float_file import save_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.data_tools.post_training import quantized
from intsmooth_ref.data_tools.quantization import activation_quantization
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import first_difference
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model, save_model
from intsmooth_ref.model.layers import Quantization
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table

torch = pytest.importorskip("torch")

from intsmooth_ref.data_tools.train import HELD_OUT_COPIES, Trainer  # noqa: E402

IMAGES, SIDE, HELD = 60, 8, 20
SIGMA = Fraction(255, 8)


@dataclass(frozen=True)
class Files:
    """What the program reads, and where it writes."""

    model: Path
    integers: Path
    data: Path
    out: Path


def stripes() -> Dataset:
    """Faint stripes, upright or level: neither brightness nor a single pixel tells which."""
    generator = np.random.default_rng(1)
    labels = np.arange(IMAGES, dtype=np.int64) % 2
    phases = generator.integers(0, 4, IMAGES)
    waves = 128 + 60 * np.sign(np.sin((np.arange(SIDE) + phases[:, np.newaxis]) * np.pi / 2 + 0.1))
    upright = np.broadcast_to(waves[:, np.newaxis, :], (IMAGES, SIDE, SIDE))
    pictures = np.where(labels[:, np.newaxis, np.newaxis] == 1, upright, upright.transpose(0, 2, 1))
    colours = pictures[..., np.newaxis] + generator.integers(-20, 21, (IMAGES, 1, 1, 3))
    return Dataset(colours.astype(np.uint8), labels, ("level", "upright"), "stripes", "train")


def random_network(seed: int = 3, mean: Sequence[float] = (0.5, 0.5, 0.5)) -> FloatModel:
    """A residual network that normalizes its input; its statistics of batch norm are not trivial."""
    generator = np.random.default_rng(seed)

    def convolution(name: str, source: str, inputs: int, outputs: int) -> float_model.Conv2D:
        weights = generator.normal(0, np.sqrt(2 / (9 * inputs)), (outputs, 3, 3, inputs)).astype(np.float32)
        return float_model.Conv2D(name=name, inputs=(source,), weights=weights, padding=(1, 1, 1, 1))

    def norm(name: str, source: str, channels: int) -> float_model.BatchNorm:
        values = {each: generator.uniform(0.5, 1.5, channels).astype(np.float32) for each in ("scale", "variance")}
        offsets = {each: generator.normal(0, 0.2, channels).astype(np.float32) for each in ("shift", "mean")}
        return float_model.BatchNorm(name=name, inputs=(source,), **values, **offsets)

    deviation = np.array([0.5, 0.6, 0.7], np.float32)
    last = generator.normal(0, 0.3, (2, 6)).astype(np.float32)
    layers = (
        float_model.Input(name="input", shape=(SIDE, SIDE, 3), mean=np.array(mean, np.float32), deviation=deviation),
        convolution("stem", "input", 3, 6), norm("stem.norm", "stem", 6),
        float_model.Clamp(name="stem.relu", inputs=("stem.norm",)),
        convolution("branch", "stem.relu", 6, 6), norm("branch.norm", "branch", 6),
        float_model.Add(name="sum", inputs=("branch.norm", "stem.relu")),
        float_model.Clamp(name="sum.relu", inputs=("sum",)),
        float_model.GlobalAveragePool(name="mean", inputs=("sum.relu",)),
        float_model.Linear(name="scores", inputs=("mean",), weights=last),
    )  # fmt: skip
    return FloatModel(layers)


def three_times_too_wide(values: Values) -> Quantization:
    """A grid as an outlier would make it."""
    return activation_quantization(3 * values.low, 3 * values.high)


def written(folder: Path, model: FloatModel | None = None) -> Files:
    dataset, model = stripes(), model or random_network()
    files = Files(folder / "float.h5", folder / "start.h5", folder / "data.h5", folder / "out")
    save_dataset(files.data, [dataset])
    save_float_model(files.model, model)
    images = noisy_images(dataset.images, 30, SIGMA, 0, CALIBRATION)
    save_model(files.integers, quantized(model, images, three_times_too_wide))
    return files


def train(files: Files, *options: str) -> int:
    paths = [str(each) for each in (files.model, files.integers, files.data)]
    usual = ["--sigma", "1/8", "--epochs", "3", "--batch", "20", "--held-out", str(HELD), "--average", "0.5"]
    return integer_training.main([*paths, "--out", str(files.out), *usual, "--learning-rate", "0.01", *options])


def log(files: Files) -> list[dict[str, float]]:
    return [json.loads(line) for line in (files.out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mean, second", [((0.5, 0.5, 0.5), "LookupTable"), ((0.45, 0.5, 0.55), "Conv2D")])
def test_untrained_the_integer_network_is_what_quantize_made(
    tmp_path: Path, mean: Sequence[float], second: str
) -> None:
    model = random_network(mean=mean)
    start = load_model(written(tmp_path, model).integers).model
    exported = integer_training.integer_network(model, start).export()
    assert fingerprint(exported) == fingerprint(start)
    assert start.layers[1].kind == second and start.layers[1].name != "stem"  # the mean of the input took part


def test_the_accuracy_in_the_log_is_the_engines_on_the_model_that_is_written(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert train(files) == 0
    file = load_model(files.out / "integer.h5")
    engine = Engine(file.model, "reference")
    assert file.known_answers is not None and first_difference(engine, file.known_answers) is None
    dataset = stripes()
    _, held_out = split_off(dataset.sha256, IMAGES, HELD)
    table = noise_table(discrete_gaussian(SIGMA))
    noisy = noisy_copies(dataset.images[held_out], table, 0, HELD_OUT, 0, HELD_OUT_COPIES, 0)
    right = sum(int((engine.classify(copy) == dataset.labels[held_out]).sum()) for copy in noisy)
    assert len(log(files)) == 3 and 0 < right < HELD * HELD_OUT_COPIES
    assert log(files)[-1]["held_out_noisy_accuracy"] == pytest.approx(right / (HELD * HELD_OUT_COPIES), abs=1e-9)
    checkpoint = torch.load(files.out / "checkpoint.pt", weights_only=True)
    network = integer_training.integer_network(random_network(), load_model(files.integers).model)
    for weights, is_written in (("average", True), ("network", False)):
        network.load_state_dict(checkpoint[weights])
        assert (fingerprint(network.export()) == fingerprint(file.model)) == is_written
    for said in ("epoch 3 of 3", "moving average", "PyTorch", "float model", '"sigma": "255/8"'):
        assert said in file.model.provenance


def test_the_integers_learn_what_a_grid_that_is_too_wide_took_from_them(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert train(files, "--epochs", "30", "--learning-rate", "0.05", "--consistency", "0", "--entropy", "0") == 0
    records = log(files)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert records[-1]["noisy_accuracy"] > records[0]["noisy_accuracy"]
    before, after = load_model(files.integers).model, load_model(files.out / "integer.h5").model
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for old, new in zip(before.layers[:-1], after.layers[:-1]):  # grids stay, those of scores are of their weights
        assert before.proofs[old.name].scale == after.proofs[new.name].scale


def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = written(tmp_path)
    assert train(files, "--shards", "2") == 0
    whole = (files.out / "integer.h5").read_bytes()
    interrupted = replace(files, out=tmp_path / "again")

    def epoch_of_interruption(trainer: Trainer, *arguments: object) -> None:
        if trainer.state.records:
            raise KeyboardInterrupt
        one_epoch(trainer, *arguments)

    one_epoch = Trainer.epoch
    monkeypatch.setattr(Trainer, "epoch", epoch_of_interruption)
    assert train(interrupted, "--shards", "2") == 130
    assert len(log(interrupted)) == 1 and (interrupted.out / "integer.h5").read_bytes() != whole
    monkeypatch.undo()
    assert train(interrupted, "--shards", "2", "--resume") == 0
    assert (interrupted.out / "integer.h5").read_bytes() == whole


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(files: Files, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of an error."""
    assert train(files, *options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_an_integer_model_of_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, model = written(tmp_path), random_network()
    renamed = replace(model.layers[1], name="trunk"), replace(model.layers[2], inputs=("trunk",))
    save_float_model(files.model, replace(model, layers=(model.layers[0], *renamed, *model.layers[3:])))
    line = refused(files, capsys)
    assert str(files.integers) in line and "layer 'stem' has no float weights" in line and str(files.model) in line


def test_a_float_model_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, model = written(tmp_path), random_network()
    assert train(files, "--epochs", "1") == 0
    capsys.readouterr()
    trained = replace(files, integers=files.out / "integer.h5", out=tmp_path / "again")
    assert "found other weights than those of the float model" in refused(trained, capsys)  # it would begin anew
    last = model.layers[-1]
    assert isinstance(last, float_model.Linear)
    for other in (random_network(seed=4), replace(model, layers=(*model.layers[:-1], doubled(last)))):
        save_float_model(files.model, other)
        line = refused(replace(files, out=tmp_path / "other"), capsys)
        assert f"{files.integers}: found other weights" in line and str(files.model) in line


def doubled(layer: float_model.Linear) -> float_model.Linear:
    """The same integers, at another scale."""
    return replace(layer, weights=2 * layer.weights)


def test_a_training_goes_on_from_weights_on_the_same_grids_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path)
    assert train(files, "--epochs", "2") == 0
    checkpoint = str(files.out / "checkpoint.pt")
    tuned = replace(files, out=tmp_path / "tuned")
    assert train(tuned, "--epochs", "1", "--learning-rate", "0", "--init", checkpoint) == 0
    first, second = (load_model(each.out / "integer.h5").model for each in (files, tuned))
    assert fingerprint(first) == fingerprint(second) != fingerprint(load_model(files.integers).model)
    capsys.readouterr()
    again = replace(files, out=tmp_path / "again")
    unfolded = refused(again, capsys, "--init", str(files.model))
    assert "found no whole checkpoint" in unfolded
    content = torch.load(checkpoint, weights_only=True)
    for name, other in (("program", "train"), ("network", "integer model of another mean")):
        torch.save({**content, "settings": {**content["settings"], name: other}}, tmp_path / "other.pt")
        line = refused(again, capsys, "--init", str(tmp_path / "other.pt"))
        assert f"found {name} '{other}'; expected" in line and "for weights to begin with" in line


def test_the_model_to_begin_with_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path)
    files.out.mkdir()
    beside = replace(files, integers=files.integers.rename(files.out / "integer.h5"))
    before = beside.integers.read_bytes()
    for options in ((), ("--resume",)):
        assert "found the file to begin with" in refused(beside, capsys, *options)
    assert "found a file already" in refused(replace(beside, integers=copied(beside.integers)), capsys)
    assert beside.integers.read_bytes() == before


def copied(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_name("copy.h5")))


def test_an_integer_model_of_other_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path)
    start = load_model(files.integers).model
    layers = list(start.layers)
    layers[0] = replace(start.input, shape=(SIDE, 2 * SIDE, 3))
    save_model(files.integers, IntegerModel(tuple(layers)))
    assert "layer 'input' has input of shape (8, 16, 3); expected (8, 8, 3)" in refused(files, capsys)


def test_images_that_the_model_is_not_for_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, dataset = written(tmp_path), stripes()
    save_dataset(files.data, [replace(dataset, images=dataset.images[:, :, :, :1].copy())])
    line = refused(files, capsys)
    assert str(files.model) in line and "expected images (8, 8, 1)" in line


def test_files_that_are_missing_or_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path)
    assert "nothing.h5" in refused(replace(files, integers=tmp_path / "nothing.h5"), capsys)
    assert str(files.model) in refused(replace(files, integers=files.model), capsys)
    assert str(files.integers) in refused(replace(files, model=files.integers), capsys)


def test_a_folder_with_a_checkpoint_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path)
    assert train(files, "--epochs", "1") == 0
    capsys.readouterr()
    assert "found a file already" in refused(files, capsys, "--epochs", "1")
    assert "found learning_rate 0.01; expected 0.02" in refused(
        files, capsys, "--epochs", "1", "--learning-rate", "0.02", "--resume"
    )


def test_without_pytorch_the_error_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'intsmooth_ref[train]'" in refused(written(tmp_path), capsys)


def test_inexact_formats_are_no_option(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        train(Files(tmp_path, tmp_path, tmp_path, tmp_path), "--bfloat16")
    assert ended.value.code == 2
