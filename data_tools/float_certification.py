"""Certification in floats: CERTIFY of Cohen, Rosenfeld and Kolter (2019), section 3.2.2, as published.

For comparison only: what this certifies is **not sound to the last digit**. The noise is a float generator's, the
network computes in float32, the bound and the radius come from SciPy's special functions, and each of them rounds as it
likes. The package's own certificates (`intsmooth_ref.certify`) owe nothing to this module.

For an image x, as fractions of full scale, the base classifier f sees `x + noise`, `noise ~ N(0, sigma^2 I)`, not
clipped to the range of the image. With n0 samples, then n others:

    (1)   c_A    = the class with most of the n0 votes, the lowest in a tie
    (2)   p_A    = the lower Clopper-Pearson bound, at confidence 1 - alpha, of c_A's probability from the n votes
    (3)   radius = sigma * Phi^-1(p_A)   if p_A > 1/2, else the classifier abstains

(2) is the alpha quantile of the Beta(k, n - k + 1) distribution for k votes, 0 for none: what the published code takes
from `proportion_confint(k, n, alpha=2 * alpha, method="beta")`. The noise of an image is drawn from a generator of its
own, so that the images of a run can be certified in any order, or some now and some later, with the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta

from intsmooth_ref.certify.transcript import ABSTAIN
from intsmooth_ref.dataset import FULL_SCALE
from intsmooth_ref.errors import ModelFormatError

#: Scores `(N, classes)` of float32 grey levels `(N, H, W, C)`: the base classifier.
Scores = Callable[[np.ndarray], np.ndarray]

#: Samples that are drawn and computed at a time: few enough for a processor's cache, enough to keep it busy.
BATCH = 128
#: What NumPy's generators are seeded for, after the seed itself and before the image's index.
NOISE = 3


@dataclass(frozen=True)
class FloatCertificate:
    """What `certify` found.

    Attributes:
        prediction: the class, or `ABSTAIN`.
        radius: in the L2 norm, as a fraction of full scale; 0 when abstaining.
        selection_votes, estimation_votes: of each class, among n0 and among n samples.
    """

    prediction: int
    radius: float
    selection_votes: tuple[int, ...]
    estimation_votes: tuple[int, ...]


def noise_generator(seed: int, index: int) -> np.random.Generator:
    """Of the image with this index."""
    return np.random.default_rng((seed, NOISE, index))


def certify(
    scores: Scores, image: np.ndarray, sigma: float, n0: int, n: int, alpha: float, generator: np.random.Generator,
    progress: Callable[[int], None] = lambda samples: None,
) -> FloatCertificate:  # fmt: skip
    """Equations (1) to (3).

    Args:
        scores: the base classifier.
        image: uint8 `(H, W, C)`.
        sigma: of the noise, as a fraction of full scale.
        n0: samples that select the class.
        n: samples that bound its probability from below.
        alpha: how often the claim may fail, were nothing rounded.
        generator: of the noise, which n0 samples take first and n next.
        progress: called with the number of samples done, batch by batch; may raise.

    Raises:
        ModelFormatError: if a score is not a number.
    """
    selection = _votes(scores, image, sigma, n0, generator, progress)
    selected = int(selection.argmax())
    estimation = _votes(scores, image, sigma, n, generator, progress)
    bound = lower_confidence_bound(int(estimation[selected]), n, alpha)
    votes = tuple(selection.tolist()), tuple(estimation.tolist())
    if bound > 0.5:
        return FloatCertificate(selected, sigma * float(ndtri(bound)), *votes)
    return FloatCertificate(ABSTAIN, 0.0, *votes)


def lower_confidence_bound(count: int, trials: int, alpha: float) -> float:
    """Equation (2). Not by `scipy.special.betaincinv`, which older releases get wrong in the second digit."""
    return float(beta.ppf(alpha, count, trials - count + 1)) if count else 0.0


def classify(scores: Scores, images: np.ndarray) -> np.ndarray:
    """The class of each image, int64 `(N,)`: the index of the largest score, the lowest one in a tie.

    Raises:
        ModelFormatError: if a score is not a number.
    """
    return _numbers(scores(images)).argmax(axis=1)


def _numbers(scores: np.ndarray) -> np.ndarray:
    if np.isnan(scores).any():
        raise ModelFormatError("float network: found a score that is not a number; expected weights that give numbers")
    return scores


def _votes(
    scores: Scores, image: np.ndarray, sigma: float, count: int, generator: np.random.Generator,
    progress: Callable[[int], None],
) -> np.ndarray:  # fmt: skip
    """Of each class, among so many samples: int64 `(classes,)`."""
    votes = np.zeros(1, np.int64)
    for noisy in _noisy_batches(image, sigma, count, generator):
        found = _numbers(scores(noisy))
        votes = votes + np.bincount(found.argmax(axis=1), minlength=found.shape[1])
        progress(len(noisy))
    return votes


def _noisy_batches(
    image: np.ndarray, sigma: float, count: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Samples of the image in grey levels, float32 `(N, H, W, C)`, under noise of `sigma` times full scale."""
    for first in range(0, count, BATCH):
        noisy = generator.standard_normal((min(BATCH, count - first), *image.shape), dtype=np.float32)
        noisy *= np.float32(FULL_SCALE * sigma)
        noisy += image
        yield noisy
