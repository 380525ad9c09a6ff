"""The smoothed classifier: `g(x)` is the class that the integer network gives most often for `x` plus noise.

`predict` and `certify` follow Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing"
(2019), algorithm 1, with discrete Gaussian noise, an integer network and an integer radius. Votes are counted by
address: the seed, an image's index, the stage and a sample's number decide each bit of its noise, so neither the batch
size nor the number of threads can change a vote.
"""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Callable, Generator, Union

import numpy as np

from ..engine import Engine
from ..errors import DatasetError, ParameterError
from ..model.graph import IntegerModel
from ..noise.distributions import discrete_gaussian
from ..noise.sampler import ESTIMATION, PREDICTION, SELECTION, check_addresses, noise_table
from .binomial import two_sided_p_value_at_most
from .radius import FULL_SCALE, radius_sq, radius_text, require_enough_samples
from .votes import usual_batch, vote_counter

#: The prediction of a classifier that does not commit itself.
ABSTAIN = -1

Rational = Union[Fraction, int, str, float, Decimal]


@dataclass(frozen=True)
class Prediction:
    """What `predict` found: the class or `ABSTAIN`, and the votes of each class."""

    prediction: int
    votes: tuple[int, ...]


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        prediction: the class that the smoothed classifier gives, or `ABSTAIN`.
        radius_sq: every integer perturbation with a sum of squares of at most this, in grey levels squared, leaves the
            prediction as it is; 0 when abstaining.
        selection_votes: of each class, among n0 samples.
        estimation_votes: of each class, among n samples.
    """

    prediction: int
    radius_sq: int
    selection_votes: tuple[int, ...]
    estimation_votes: tuple[int, ...]

    @property
    def radius(self) -> str:
        """The radius as a fraction of full scale, in decimal digits, rounded down."""
        return radius_text(self.radius_sq)


def exact_rational(value: Rational, what: str) -> Fraction:
    """The rational that `value` is written as: "0.25", "51/4", 0.001 (a float is taken as its shortest digits say).

    Raises:
        ParameterError: if it is not a number.
    """
    try:
        return Fraction(repr(value) if isinstance(value, float) else value)
    except (ValueError, TypeError, ArithmeticError):
        raise ParameterError(f"{what} {value!r}: expected a number such as 0.25 or 51/4") from None


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SmoothedClassifier:
    """An integer model, smoothed by discrete Gaussian noise.

    Args:
        model: the integer network.
        sigma: the noise's parameter as a fraction of full scale (0.25 is 63.75 grey levels), or
        sigma_levels: in grey levels; exactly one of the two, held as an exact rational.
        seed: 0 .. 2**64-1; drawn from the operating system where none is given. A certificate is valid for seeds that
            are drawn after the image is chosen.
        engine: `auto`, `jit` or `reference`; changes no bit.
        isa: the instruction set of the compiled engine, by default the best here; changes no bit.
        threads: how many batches of samples run at once, by default one a processor; changes no bit.
        batch: samples per batch, by default what suits the network's size; changes no bit.

    Raises:
        ParameterError: if a parameter is out of range.
    """

    def __init__(
        self, model: IntegerModel, sigma: Rational | None = None, *, sigma_levels: Rational | None = None,
        seed: int | None = None, engine: str = "auto", isa: str | None = None, threads: int | None = None,
        batch: int | None = None,
    ) -> None:  # fmt: skip
        if sigma is not None and sigma_levels is None:
            self.sigma_levels = exact_rational(sigma, "sigma") * FULL_SCALE
        elif sigma_levels is not None and sigma is None:
            self.sigma_levels = exact_rational(sigma_levels, "sigma_levels")
        else:
            raise ParameterError("sigma: expected either sigma (a fraction of full scale) or sigma_levels, not both")
        self.seed = secrets.randbits(64) if seed is None else seed
        self.threads = _processors() if threads is None else threads
        for what, value in (("threads", self.threads), ("batch", batch)):
            if value is not None and not 1 <= value <= 1 << 16:
                raise ParameterError(f"{what} {value}: expected 1 to {1 << 16}")
        self.model = model
        self.noise = noise_table(discrete_gaussian(self.sigma_levels))
        self.engine = Engine(model, engine, isa)
        self.batch = batch
        self._count = vote_counter(self.engine, self.noise)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def certify(
        self, image: np.ndarray, n0: int = 100, n: int = 1000, alpha: Rational = "0.001", *, index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Certificate:  # fmt: skip
        """Certify one image: with probability at least `1 - alpha` the certificate is true, or abstains.

        Args:
            image: uint8 `(H, W, C)`.
            n0: samples that select the class.
            n: samples that bound its probability from below.
            alpha: how often the claim may fail.
            index: the image's number, which addresses its noise.
            progress: called with the number of samples done, batch by batch.

        Raises:
            DatasetError: if the image does not fit the model.
            ParameterError: if n cannot certify anything at this alpha, or a number is out of range.
        """
        level = self.remaining_alpha(n, alpha)
        require_enough_samples(n, level)
        self.check_image(image, index, n0, n)
        selection = self.votes(image, n0, stage=SELECTION, index=index, progress=progress)
        selected = int(selection.argmax())
        estimation = self.votes(image, n, stage=ESTIMATION, index=index, progress=progress)
        radius = radius_sq(int(estimation[selected]), n, level, self.sigma_levels)
        return Certificate(
            ABSTAIN if radius is None else selected, radius or 0, tuple(selection.tolist()), tuple(estimation.tolist())
        )

    def predict(
        self, image: np.ndarray, n: int = 1000, alpha: Rational = "0.001", *, index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Prediction:  # fmt: skip
        """The smoothed classifier's class: wrong with probability at most `alpha`, or `ABSTAIN`.

        The two classes with most votes are held against each other in an exact two-sided binomial test. Arguments and
        errors as for `certify`.
        """
        level = self.remaining_alpha(n, alpha)
        self.check_image(image, index, n)
        votes = self.votes(image, n, stage=PREDICTION, index=index, progress=progress)
        best = int(votes.argmax())
        runner_up = int(np.delete(votes, best).max(initial=0))
        decided = two_sided_p_value_at_most(int(votes[best]), int(votes[best]) + runner_up, level)
        return Prediction(best if decided else ABSTAIN, tuple(votes.tolist()))

    def remaining_alpha(self, n: int, alpha: Rational) -> Fraction:
        """`alpha` less what the sampler leaves undecided in n samples: the level that the votes are tested at.

        The joint law of n images of d drawn values is within `n * d * total_variation` of the exact one
        (`noise/PROOF.md`).

        Raises:
            ParameterError: if alpha is not strictly between 0 and 1, or nothing of it remains.
        """
        rational = exact_rational(alpha, "alpha")
        if not 0 < rational < 1:
            raise ParameterError(f"alpha {alpha}: expected a probability strictly between 0 and 1")
        elements = int(np.prod(self.model.input.shape))
        level = rational - n * elements * self.noise.total_variation
        if level <= 0:
            raise ParameterError(f"alpha {alpha}: less than the sampler's own error, {float(rational - level):.2g}")
        return level

    def check_image(self, image: np.ndarray, index: int, *sample_counts: int) -> None:
        """Raise the error that this image, or these numbers of samples, would cause."""
        expected = self.model.input.shape
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != expected:
            found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            raise DatasetError(f"image {index}: found {found}, expected uint8 {expected}, which the model takes")
        for count in sample_counts:
            if count < 1:
                raise ParameterError(f"{count} samples: expected at least 1")
            check_addresses(self.seed, index, SELECTION, 0, count, image.size)

    def votes(
        self, image: np.ndarray, count: int, *, stage: int, index: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Votes of each class, int64 `(classes,)`, among samples 0 .. count-1 of one stage of one image."""
        pixels = np.ascontiguousarray(image).reshape(-1)
        batch = self.batch or min(usual_batch(self.engine), -(-count // self.threads))

        def votes_of_batch(first: int) -> np.ndarray:
            return self._count(pixels, self.seed, index, stage, first, min(batch, count - first))

        total = np.zeros(self.model.classes, np.int64)
        starts = range(0, count, batch)
        with closing(self._map(votes_of_batch, starts)) as batches:  # an interruption cancels the batches not begun
            for votes in batches:
                total += votes
                if progress:
                    progress(int(votes.sum()))
        return total

    def _map(self, function: Callable[[int], np.ndarray], starts: range) -> Generator[np.ndarray, None, None]:
        yield from self._pool.map(function, starts) if self._pool else map(function, starts)
