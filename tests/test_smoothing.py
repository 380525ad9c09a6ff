"""Votes depend on addresses alone; a certificate is what its votes say, and says so or abstains."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import intsmooth_ref
from intsmooth_ref.certify.procedure import Procedure
from intsmooth_ref.certify.radius import radius_sq
from intsmooth_ref.certify.smoothing import ABSTAIN, SmoothedClassifier, exact_rational
from intsmooth_ref.certify.transcript import Familywise, ImageReference
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.errors import DatasetError, ParameterError
from intsmooth_ref.machine import cpu_model, usable_cores, versions
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import ESTIMATION, PREDICTION, SELECTION, noise_table, sample
from threshold_model import classes_by_hand, flat_image, threshold_model

ENGINES = ["reference", *(["jit"] if numba_available() else [])]


@pytest.mark.parametrize("engine", ENGINES)
def test_votes_are_the_classes_of_pixels_plus_addressed_noise(engine):
    image = flat_image(140)
    classifier = SmoothedClassifier(threshold_model(), "0.1", seed=2**64 - 1, engine=engine, threads=2, batch=7)
    table = noise_table(discrete_gaussian(Fraction(255, 10)))
    noise = sample(table, 2**64 - 1, 5, ESTIMATION, 0, 100, 9)
    expected = np.bincount(classes_by_hand(image, noise), minlength=2).tolist()
    assert classifier.votes(image, 100, stage=ESTIMATION, index=5).tolist() == expected
    assert 0 < expected[0] < 100


@pytest.mark.parametrize("index", [0, 1, 2**32 - 1])
def test_engine_threads_and_batch_change_no_vote(index):
    found = set()
    for engine in ENGINES:
        for threads, batch in ((1, 100), (1, 1), (3, 7), (2, 300)):
            classifier = SmoothedClassifier(threshold_model(), "0.25", seed=7, engine=engine, threads=threads,
                                            batch=batch)  # fmt: skip
            found.add(classifier.certify(flat_image(150), 30, 200, index=index))
    assert len(found) == 1


def test_a_certificate_is_the_radius_of_its_votes():
    classifier = SmoothedClassifier(threshold_model(), sigma_levels="63.75", seed=3, engine="reference")
    certificate = classifier.certify(flat_image(200), 20, 500, "0.01")
    assert certificate.prediction == 1 and sum(certificate.estimation_votes) == 500
    level = Fraction(1, 100) - 500 * 9 * noise_table(discrete_gaussian(Fraction(255, 4))).total_variation
    assert 0 < Fraction(1, 100) - level < Fraction(1, 10**60)
    assert certificate.radius_sq == radius_sq(certificate.estimation_votes[1], 500, level, Fraction(255, 4)) > 0


def test_selection_and_estimation_see_different_noise():
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference")
    votes = [classifier.votes(flat_image(130), 64, stage=stage, index=0).tolist() for stage in (SELECTION, ESTIMATION)]
    table = noise_table(discrete_gaussian(Fraction(255, 4)))
    assert not np.array_equal(sample(table, 3, 0, SELECTION, 0, 64, 9), sample(table, 3, 0, ESTIMATION, 0, 64, 9))
    assert votes[0] != votes[1]


def test_a_tie_abstains_with_radius_zero():
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference")
    image = flat_image(128)
    certificate = classifier.certify(image, 20, 200)
    assert (certificate.prediction, certificate.radius_sq, certificate.radius) == (ABSTAIN, 0, "0.000000")
    assert classifier.predict(image, 200).prediction == ABSTAIN
    assert classifier.predict(flat_image(200), 200).prediction == 1


def test_the_radius_never_exceeds_the_true_one():
    """The class flips where the mean reaches the threshold: at `||delta||**2 = 9 * distance**2` and no farther."""
    classifier = SmoothedClassifier(threshold_model(), "0.1", seed=11, engine="reference")
    for level in (135, 140, 150, 160):
        certificate = classifier.certify(flat_image(level), 50, 2000)
        if certificate.prediction == 1:
            assert certificate.radius_sq < 9 * (level - 128 + 1) ** 2


def test_a_seed_is_drawn_where_none_is_given():
    """All 64 bits: of 40 seeds none has the highest with probability 2**-40, and so for the lowest."""
    seeds = {SmoothedClassifier(threshold_model(), "0.25", engine="reference").seed for _ in range(40)}
    assert len(seeds) == 40 and all(0 <= seed < 2**64 for seed in seeds)
    assert any(seed >= 2**63 for seed in seeds) and {seed % 2 for seed in seeds} == {0, 1}


def test_a_tie_of_the_selection_goes_to_the_lowest_class():
    image = flat_image(115)
    for seed in range(20):
        classifier = SmoothedClassifier(threshold_model(), "0.25", seed=seed, engine="reference")
        if classifier.votes(image, 2, stage=SELECTION, index=0).tolist() == [1, 1]:
            break
    certificate = classifier.certify(image, 2, 300)
    assert certificate.selection_votes == (1, 1) and certificate.prediction == 0


def test_predict_holds_the_two_classes_with_most_votes_against_each_other():
    """2 P(Binomial(20, 1/2) >= 16) = 12392 / 2**20, whatever the others have; ties among the best abstain."""
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=1, engine="reference")
    tail, little = Fraction(12392, 2**20), Fraction(1, 10**30)
    for votes, alpha, expected in (
        ([3, 4, 16], tail + little, 2),
        ([3, 4, 16], tail - little, ABSTAIN),
        ([4, 16, 4], tail + little, 1),
        ([16, 0, 4], tail - little, ABSTAIN),
        ([90, 90, 0], Fraction(99, 100), ABSTAIN),
        ([0, 7], Fraction(1, 64) + little, 1),
        ([0, 7], Fraction(1, 64) - little, ABSTAIN),
        ([7], Fraction(1, 64) + little, 0),
    ):
        classifier.votes = lambda *_, votes=votes, **__: np.array(votes)
        found = classifier.predict(flat_image(1), sum(votes), alpha)
        assert (found.prediction, found.votes) == (expected, tuple(votes))


def test_predict_lets_samples_of_its_own_stage_vote():
    classifier, image = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference"), flat_image(140)
    table = noise_table(discrete_gaussian(Fraction(255, 4)))
    ones = {stage: sum(classes_by_hand(image, sample(table, 3, 6, stage, 0, 200, 9)))
            for stage in (SELECTION, ESTIMATION, PREDICTION)}  # fmt: skip
    assert classifier.predict(image, 200, index=6).votes == (200 - ones[PREDICTION], ones[PREDICTION])
    assert len(set(ones.values())) == 3


def test_predict_refuses_what_cannot_be_decided():
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=1, engine="reference")
    for arguments, error, message in (
        ({"image": flat_image(1).astype(np.int32)}, DatasetError, "found int32"),
        ({"n": 0}, ParameterError, "0 samples: expected at least 1"),
        ({"alpha": 1}, ParameterError, "alpha 1: expected"),
        # the sampler leaves 9 times this undecided in each of the samples
        ({"n": 10, "alpha": 50 * classifier.noise.total_variation}, ParameterError, "less than the sampler's own"),
    ):
        with pytest.raises(error, match=message):
            classifier.predict(**{"image": flat_image(1), "n": 20, **arguments})


def test_a_document_holds_what_was_done_to_which_image():
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference")
    procedure = Procedure(10, 400, Fraction(1, 4000), familywise=Familywise(Fraction(1, 1000), 4))
    certificate = classifier.carry_out(classifier.rule(procedure), flat_image(150), 17)
    document = classifier.document(certificate, "ab" * 32, label=5)
    assert document.image == ImageReference(17, "ab" * 32, 5) and document.seed == 3
    assert (document.n0, document.n, document.alpha) == (10, 400, Fraction(1, 4000))
    assert document.familywise == Familywise(Fraction(1, 1000), 4) and document.bound == "majority"
    assert (document.selection.samples, document.estimation.samples, document.targets) == (10, 400, ())
    assert (document.prediction, document.theorem, document.radius) == (1, "majority", certificate.radius_sq)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("vendor_id\t: x\nmodel name\t: A: 1 (R) \u03bc\nmodel name\t: B\n", "A: 1 (R) ?"),
        ("vendor_id\t: x\n", "some machine"),
        (None, "some machine"),
    ],
)
def test_the_processor_s_name_is_what_the_system_says_in_printable_ascii(content, expected, tmp_path, monkeypatch):
    (tmp_path / "there").write_text(content or "", encoding="utf-8")
    place = tmp_path / ("there" if content else "missing")
    monkeypatch.setattr("builtins.open", lambda path, *_, **options: Path(path and place).open(**options))
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "some machine")
    assert cpu_model.__wrapped__() == expected


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert usable_cores() == expected


def test_versions_are_of_this_package_and_of_what_is_installed():
    found = versions(["numpy", "no-such-package-anywhere"])
    assert found == {"intsmooth_ref": intsmooth_ref.__version__, "numpy": np.__version__}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.1, Fraction(1, 10)), ("1e-3", Fraction(1, 1000)), ("51/4", Fraction(51, 4)), (2, Fraction(2))],
)
def test_numbers_are_taken_as_they_are_written(value, expected):
    assert exact_rational(value, "alpha") == expected


@pytest.mark.parametrize("value", ["", "x", "1/0", float("nan"), float("inf"), None])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ParameterError, match="alpha .*expected a number"):
        exact_rational(value, "alpha")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "noise: found none; expected one of sigma, sigma_levels, scale and scale_levels"),
        ({"sigma": 1, "scale": 1}, "noise: found sigma, scale; expected one of"),
        ({"sigma": 0}, "1/4"),
        ({"sigma_levels": 1025}, "1024"),
        ({"sigma": "0.25", "threads": 0}, "threads 0: expected 1 to"),
        ({"sigma": "0.25", "batch": 0}, "batch 0: expected 1 to"),
        ({"sigma": "0.25", "engine": "gpu"}, "engine 'gpu': expected one of auto, jit, reference"),
    ],
)
def test_impossible_parameters_are_refused(arguments, message):
    with pytest.raises(ParameterError, match=message):
        SmoothedClassifier(threshold_model(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 9}, ParameterError, "9 samples cannot certify anything at alpha = 0.001.*at least 10"),
        ({"n0": 0}, ParameterError, "0 samples: expected at least 1"),
        ({"alpha": 0}, ParameterError, "alpha 0: expected a probability strictly between"),
        ({"alpha": "1e-90"}, ParameterError, "less than the sampler's own error"),
        ({"index": 2**32}, ParameterError, "4294967296"),
        ({"n": 2**32 + 1}, ParameterError, "429496729"),
        ({"image": np.zeros((3, 3, 1), np.int32)}, DatasetError, r"image 0: found int32 \(3, 3, 1\), expected uint8"),
        ({"image": np.zeros((3, 3), np.uint8)}, DatasetError, r"found uint8 \(3, 3\), expected uint8 \(3, 3, 1\)"),
        ({"image": [[0]]}, DatasetError, "found list"),
    ],
)
def test_what_cannot_be_certified_is_refused_before_it_begins(arguments, error, message):
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=1, engine="reference")
    with pytest.raises(error, match=message):
        classifier.certify(**{"image": flat_image(1), **arguments})


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ParameterError, match="seed"):
        SmoothedClassifier(threshold_model(), "0.25", seed=2**64, engine="reference").certify(flat_image(1))
