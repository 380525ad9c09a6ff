"""Cohen's procedure in floats: the published algorithm, held against closed forms and exact tails."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

from intsmooth_ref.certify.transcript import ABSTAIN
from intsmooth_ref.data_tools import float_certification
from intsmooth_ref.data_tools.float_certification import (
    BATCH,
    FloatCertificate,
    Scores,
    certify,
    classify,
    lower_confidence_bound,
    noise_generator,
)
from intsmooth_ref.errors import ModelFormatError

IMAGE = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
CLASSES = 3


def votes_as_told(*classes: np.ndarray) -> Scores:
    """A base classifier that ignores its input: the classes of all samples, in order."""
    left = np.concatenate(classes)

    def scores(images: np.ndarray) -> np.ndarray:
        nonlocal left
        now, left = left[: len(images)], left[len(images) :]
        return np.eye(CLASSES, dtype=np.float32)[now]

    return scores


def counted(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def certified(scores: Scores, n0: int, n: int, alpha: float = 0.001, sigma: float = 0.25) -> FloatCertificate:
    return certify(scores, IMAGE, sigma, n0, n, alpha, noise_generator(0, 0))


def exact_tail(count: int, trials: int) -> Fraction:
    """Of a fair coin: the probability of so many heads or more."""
    return Fraction(sum(comb(trials, heads) for heads in range(count, trials + 1)), 2**trials)


# --- the bound and the radius


@pytest.mark.parametrize("trials", [1, 7, 100, 1000, 100000])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 1e-9])
def test_the_bound_is_scipys_exact_one_sided_confidence_limit(trials: int, alpha: float) -> None:
    for count in {0, 1, trials // 2, trials - 1, trials}:
        interval = binomtest(count, trials, alternative="greater").proportion_ci(1 - alpha, method="exact")
        # SciPy's search for a root stops at 2e-12
        assert lower_confidence_bound(count, trials, alpha) == pytest.approx(interval.low, rel=1e-6, abs=1e-11)


def test_the_bound_is_where_the_exact_tail_is_alpha() -> None:
    for count, trials, alpha in ((9, 10, 0.05), (77, 100, 0.001), (100, 100, 0.001)):
        p = Fraction(lower_confidence_bound(count, trials, alpha))
        tail = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count, trials + 1))
        assert float(tail) == pytest.approx(alpha, rel=1e-9)


def test_a_unanimous_vote_has_the_closed_form_radius() -> None:
    for n, alpha, sigma in ((100, 0.001, 0.25), (1000, 0.001, 0.5), (400, 0.05, 1.0)):
        found = certified(votes_as_told(counted(0, 20), counted(0, n)), 20, n, alpha, sigma)
        assert found.prediction == 1 and found.estimation_votes == (0, n, 0)
        assert found.radius == pytest.approx(sigma * NormalDist().inv_cdf(alpha ** (1 / n)), rel=1e-9)


@pytest.mark.parametrize("n", [20, 101, 500])
def test_it_abstains_exactly_where_a_fair_coin_may_do_as_well(n: int) -> None:
    alpha = Fraction(1, 1000)
    least = next(count for count in range(n + 1) if exact_tail(count, n) < alpha)
    for count in (least - 1, least):
        found = certified(votes_as_told(counted(5), counted(count, n - count)), 5, n)
        assert found.estimation_votes == (count, n - count, 0)
        assert (found.prediction, found.radius > 0) == ((0, True) if count == least else (ABSTAIN, False))
        assert found.radius >= 0


def test_no_vote_for_the_selected_class_abstains() -> None:
    assert certified(votes_as_told(counted(0, 0, 9), counted(0, 200)), 9, 200) == FloatCertificate(
        ABSTAIN, 0.0, (0, 0, 9), (0, 200, 0)
    )


def test_the_class_is_selected_by_the_first_samples_alone_and_bounded_by_the_others_alone() -> None:
    found = certified(votes_as_told(counted(0, 3, 2), counted(0, 990, 10)), 5, 1000)
    assert (found.prediction, found.selection_votes, found.estimation_votes) == (1, (0, 3, 2), (0, 990, 10))
    other = certified(votes_as_told(counted(0, 2, 3), counted(0, 990, 10)), 5, 1000)
    assert other.prediction == ABSTAIN  # class 2 was selected


def test_ties_go_to_the_lowest_class() -> None:
    assert certified(votes_as_told(counted(0, 5, 5), counted(0, 1000)), 10, 1000).prediction == 1
    equal = np.zeros((4, CLASSES), np.float32)
    assert classify(lambda images: equal, np.zeros((4, 2, 2, 3), np.float32)).tolist() == [0] * 4


def test_a_score_that_is_not_a_number_is_refused_not_counted() -> None:
    scores = np.array([[0.0, np.nan, 1.0]], np.float32)
    with pytest.raises(ModelFormatError, match="found a score that is not a number; expected"):
        certified(lambda images: scores.repeat(len(images), 0), 5, 20)
    with pytest.raises(ModelFormatError, match="not a number"):
        classify(lambda images: scores, np.zeros((1, 2, 2, 3), np.float32))


# --- the noise


def noisy_inputs(image: np.ndarray, sigma: float, n0: int, n: int, seed: int, index: int) -> list[np.ndarray]:
    """The batches that the base classifier sees."""
    seen = []

    def scores(images: np.ndarray) -> np.ndarray:
        seen.append(images.copy())
        return np.tile(np.float32([1, 0]), (len(images), 1))

    done: list[int] = []
    certify(scores, image, sigma, n0, n, 0.001, noise_generator(seed, index), done.append)
    assert done == [len(batch) for batch in seen] and sum(done) == n0 + n
    return seen


def test_the_noise_is_normal_has_the_stated_size_and_is_not_clipped() -> None:
    image = np.full((8, 8, 3), 250, np.uint8)
    samples = np.concatenate(noisy_inputs(image, 0.5, 100, 400, 0, 3)).astype(np.float64)
    assert samples.dtype == np.float64 and samples.max() > 255 and samples.min() < 0
    # the chance that a normal sample fails is 1e-9
    assert kstest(((samples - 250) / (255 * 0.5)).reshape(-1), "norm").pvalue > 1e-9


def test_the_noise_depends_on_seed_and_index_and_on_nothing_else() -> None:
    def noise(n0: int, n: int, seed: int, index: int) -> bytes:
        return np.concatenate(noisy_inputs(IMAGE, 0.25, n0, n, seed, index))[:300].tobytes()

    first = noise(100, 200, 7, 2)
    assert first == noise(100, 200, 7, 2) == noise(100, 1000, 7, 2)
    assert noise(100, 200, 8, 2) != first != noise(100, 200, 7, 3)


def test_the_size_of_a_batch_changes_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = noisy_inputs(IMAGE, 0.25, BATCH, 3 * BATCH + 5, 1, 0)
    assert max(map(len, usual)) == BATCH <= 256
    monkeypatch.setattr(float_certification, "BATCH", 2 * BATCH)
    doubled = noisy_inputs(IMAGE, 0.25, BATCH, 3 * BATCH + 5, 1, 0)
    assert len(doubled) < len(usual) and np.concatenate(doubled).tobytes() == np.concatenate(usual).tobytes()


# --- a classifier whose radius is known


@pytest.mark.parametrize("distance", [0.1, 0.25, 0.6])
def test_of_a_linear_classifier_the_radius_is_just_below_the_distance_to_its_boundary(distance: float) -> None:
    """`w x + b > 0`: the smoothed class changes at `(w x + b) / |w|`, and its probability is the CDF of that / sigma.

    The certificate is false, or falls short of the second bound, with probability 1e-10 each.
    """
    generator = np.random.default_rng(5)
    weights, image = generator.normal(size=48), generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    size = float(np.linalg.norm(weights))
    offset = distance * size - weights @ image.reshape(-1) / 255

    def scores(images: np.ndarray) -> np.ndarray:
        margin = images.reshape(len(images), -1) / 255 @ weights + offset
        return np.stack([np.zeros_like(margin), margin], axis=1)

    sigma, n, alpha = 0.25, 20000, 1e-10
    found = certify(scores, image, sigma, 100, n, alpha, noise_generator(0, 0))
    fewest = int(binom.ppf(1e-10, n, NormalDist().cdf(distance / sigma)))
    limit = binomtest(fewest, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    assert found.prediction == 1
    assert sigma * NormalDist().inv_cdf(limit) <= found.radius < distance
    assert found.radius > 0.7 * distance
