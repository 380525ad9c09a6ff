"""The embedded model and images are what their card says, and the program that makes them keeps its promises."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from intsmooth_ref.data_tools import digits
from intsmooth_ref.dataset import Dataset, load_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import first_difference
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import ModelFile, load_model
from intsmooth_ref.model.layers import Linear

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
MODEL, IMAGES = WEIGHTS / "digits.h5", WEIGHTS / "digits-images.h5"


@pytest.fixture(scope="module")
def model_file() -> ModelFile:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def model(model_file: ModelFile) -> IntegerModel:
    return model_file.model


@pytest.fixture(scope="module")
def held_out() -> Dataset:
    return load_dataset(IMAGES)


@pytest.fixture(scope="module")
def card() -> str:
    return (WEIGHTS / "README.md").read_text(encoding="utf-8").partition("\n## Cards\n")[2]


# --- the committed files


def test_the_two_files_are_small() -> None:
    assert MODEL.stat().st_size + IMAGES.stat().st_size < 300_000


def test_the_images_are_scikit_learns_last_397(held_out: Dataset) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    for image, values in zip(held_out.images, source.images[1400:]):
        for level, value in zip(image.ravel().tolist(), values.ravel().tolist()):
            # the nearest grey level to value / 16 of full scale, a tie going upwards
            assert -Fraction(1, 2) <= Fraction(int(value) * 255, 16) - level < Fraction(1, 2)
    assert held_out.labels.tolist() == source.target[1400:].tolist()
    assert held_out.images.shape == (397, 8, 8, 1)


def test_the_held_out_split_is_large_and_balanced(held_out: Dataset) -> None:
    counts = np.bincount(held_out.labels, minlength=10)
    assert held_out.split == "test" and held_out.class_names == tuple("0123456789")
    assert len(held_out.images) >= 300
    assert counts.min() >= 30 and counts.max() <= 50


def test_the_split_is_said_to_be_disjoint_from_the_training_images(held_out: Dataset, model: IntegerModel) -> None:
    assert "images 1400..1796 of 1797, none of them trained on (training: images 0..1399)" in held_out.provenance
    assert "on 1400 images of SHA-256" in model.provenance and "images 0..1399;" in model.provenance


def test_the_model_names_the_training_images_by_their_hash(model: IntegerModel) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    training, _ = digits.split_digits(source.images, source.target)
    assert training.sha256 in model.provenance


def test_source_and_licence_are_named(held_out: Dataset, card: str) -> None:
    for text in (held_out.provenance, card):
        for words in ("E. Alpaydin, C. Kaynak", "10.24432/C50P49", "CC BY 4.0"):
            assert words in text


def test_the_known_answers_replay_on_the_reference_engine(model_file: ModelFile) -> None:
    known = model_file.known_answers
    assert known is not None and known.inputs.shape == (16, 8, 8, 1)
    assert known.inputs.min() < 0 and known.inputs.max() > 255  # there is noise on them
    assert first_difference(Engine(model_file.model, "reference"), known) is None


def test_the_model_fits_the_images_and_ends_in_bare_scores(model: IntegerModel, held_out: Dataset) -> None:
    last = model.output
    assert isinstance(last, Linear) and last.requantization is None and last.output.dtype == "int32"
    assert model.input.shape == held_out.images.shape[1:]
    assert model.class_names == held_out.class_names


def test_every_scale_is_exact_in_float32(model: IntegerModel) -> None:
    for proof in model.proofs.values():
        assert Fraction(float(np.float32(float(proof.scale)))) == proof.scale


def test_the_integer_model_classifies_the_clean_images_as_the_card_says(
    model: IntegerModel, held_out: Dataset, card: str
) -> None:
    found = Engine(model, "reference").classify(held_out.images.astype(np.int32))
    right = int((found == held_out.labels).sum())
    assert f"{right} of 397" in card


def test_the_card_names_hashes_and_counts(model: IntegerModel, held_out: Dataset, card: str) -> None:
    assert fingerprint(model) in card and held_out.sha256 in card
    assert "20,602 parameters" in card and "140,160 multiply-adds" in card


# --- the program


def test_parameters_and_multiply_adds_are_counted_right(model: IntegerModel) -> None:
    # by hand: 8x8 positions of 9 -> 16, 4x4 of 9*16 -> 32, 2x2 of 9*32 -> 48, and 192 -> 10
    assert sum(model.multiply_adds.values()) == 64 * 9 * 16 + 16 * 144 * 32 + 4 * 288 * 48 + 192 * 10
    assert digits.parameters(model) == (9 + 1) * 16 + (144 + 1) * 32 + (288 + 1) * 48 + (192 + 1) * 10


def test_a_shift_moves_the_whole_image_by_a_pixel_at_most() -> None:
    images = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(1000, axis=0)
    canvas = np.zeros((12, 12), dtype=np.uint8)
    canvas[2:10, 2:10] = images[0, :, :, 0]
    steps = (-1, 0, 1)
    windows = {canvas[2 - y : 10 - y, 2 - x : 10 - x].tobytes(): (y, x) for y in steps for x in steps}
    moved = [windows[image.tobytes()] for image in digits.shifted(images, np.random.default_rng(0))]
    assert set(moved) == set(windows.values())  # fails with probability 8 * (35/36)**1000 < 1e-11
    assert moved.count((0, 0)) > 500  # expected 778; fails with probability < 1e-60, by Hoeffding


def test_noise_is_drawn_in_stages_that_certification_leaves_free() -> None:
    assert min(digits.TRAINING, digits.CALIBRATION, digits.EVALUATION, digits.KNOWN_ANSWERS) > 2
    black = np.zeros((3, 8, 8, 1), dtype=np.uint8)
    draws = [digits.noisy(black, 0, stage, 0).tobytes() for stage in (digits.TRAINING, digits.CALIBRATION, 0, 1, 2)]
    assert len(set(draws)) == 5


def test_copies_of_an_image_share_a_batch_and_every_image_comes_once() -> None:
    labels = np.arange(100)
    images = np.zeros((100, 8, 8, 1), dtype=np.uint8)
    seen = []
    for batch, targets in digits.training_batches(images, labels, epoch=0, seed=0):
        first, second = np.split(targets, digits.COPIES)
        assert first.tolist() == second.tolist() and len(batch) == len(targets)
        seen += first.tolist()
    assert sorted(seen) == labels.tolist()


def test_the_accuracies_are_fractions_of_images() -> None:
    images = np.zeros((4, 8, 8, 1), dtype=np.uint8)
    dataset = Dataset(images, np.array([0, 0, 0, 1], dtype=np.int64), ("a", "b"), "", "test")
    found = digits.accuracies(lambda noisy: np.zeros(len(noisy), dtype=np.int64), dataset, 0)
    assert (found.clean, found.noisy, found.smoothed) == (0.75, 0.75, 0.75)


def run_without(tmp_path: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Run the program where `module` cannot be imported."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{module}.py").write_text("raise ImportError(f'No module named {__name__}')\n")
    search_path = os.pathsep.join([str(hidden), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "intsmooth_ref.data_tools.digits", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": search_path},
    )  # fmt: skip


def test_without_pytorch_one_line_names_the_extra(tmp_path: Path) -> None:
    done = run_without(tmp_path, "torch")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pip install 'intsmooth_ref[train]'" in line
    assert not list(tmp_path.glob("*.h5"))


def test_files_that_exist_are_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "digits.h5").write_bytes(b"precious")
    with pytest.raises(digits.ParameterError, match="digits.h5: found a file already; expected none, or the option"):
        digits.output_paths(tmp_path, overwrite=False)
    assert digits.output_paths(tmp_path, overwrite=True) == (tmp_path / "digits.h5", tmp_path / "digits-images.h5")


def test_a_missing_folder_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(digits.ParameterError, match="found no such folder"):
        digits.output_paths(tmp_path / "nowhere", overwrite=False)


def test_an_interruption_is_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "make", interrupted)
    assert digits.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--seed", "-1"], ["--seed", "one"], ["--unknown"]])
def test_wrong_options_end_in_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        digits.main(arguments)
    assert stop.value.code == 2
