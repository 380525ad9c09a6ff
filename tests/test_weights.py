"""Each model in `weights/` has the votes that it was committed with, and is as small as its card says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import first_difference
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.hdf5 import ModelFile, load_model
from intsmooth_ref.noise.sampler import ESTIMATION

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
IMAGES, SAMPLES, SEED = 10, 50, 20261123


@dataclass(frozen=True)
class Shipped:
    """A model: the noise that it is for, how many bytes it may take, and the SHA-256 of its votes."""

    sigma: str
    most_bytes: int
    votes: str


SHIPPED = {
    "digits.h5": Shipped("0.25", 50_000, "01a0e8a10ba796e4b456b2e210cef38871d1bcf17dd9777f944c544a47a2beed"),
}


def made_image(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Slanted waves of grey levels, another direction and length for each number and channel."""
    rows, columns, channels = np.indices(shape)
    wave = (3 + number) * rows + (17 - 2 * number) * columns + 40 * channels + 25 * number
    return np.abs(wave * 8 % 510 - 255).astype(np.uint8)


@pytest.fixture(scope="module", params=SHIPPED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(name: str) -> ModelFile:
    return load_model(WEIGHTS / name)


def test_every_model_that_is_shipped_is_tested_here() -> None:
    assert {path.name for path in WEIGHTS.glob("*.h5")} == {*SHIPPED, "digits-images.h5"}


def test_a_model_is_small(name: str) -> None:
    assert (WEIGHTS / name).stat().st_size < SHIPPED[name].most_bytes


def test_its_card_names_the_fingerprint(name: str, file: ModelFile) -> None:
    assert f"`{fingerprint(file.model)}`" in (WEIGHTS / "README.md").read_text("utf-8").partition(f"\n### `{name}`")[2]


def test_both_engines_give_its_known_answers(file: ModelFile) -> None:
    assert file.known_answers is not None
    for engine in ("auto", "reference"):
        assert first_difference(Engine(file.model, engine), file.known_answers) is None


def test_ten_images_have_the_votes_that_they_had_when_it_was_committed(name: str, file: ModelFile) -> None:
    classifier = SmoothedClassifier(file.model, SHIPPED[name].sigma, seed=SEED)
    if classifier.engine.name == "reference" and name != "digits.h5":
        pytest.skip("half a thousand samples of a larger network take the reference engine minutes")
    images = [made_image(file.model.input.shape, number) for number in range(IMAGES)]
    each = [classifier.votes(image, SAMPLES, stage=ESTIMATION, index=number) for number, image in enumerate(images)]
    votes = np.stack(each)
    assert (votes.sum(axis=1) == SAMPLES).all()
    assert len({image.tobytes() for image in images}) == IMAGES
    assert hashlib.sha256(votes.astype("<i8").tobytes()).hexdigest() == SHIPPED[name].votes
