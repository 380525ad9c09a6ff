"""The smoothed classifier: `g(x)` is the class that the integer network gives most often for `x` plus noise.

`predict` and `certify` follow Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing"
(2019), algorithm 1, with discrete noise, an integer network and an integer radius. Votes are counted by address: the
seed, an image's index, the stage and a sample's number decide each bit of its noise, so neither the batch size nor the
number of threads can change a vote.
"""

from __future__ import annotations

import platform
import secrets
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Callable, Mapping, Sequence, Union

import numpy as np

from ..dataset import FULL_SCALE
from ..engine import Engine
from ..errors import DatasetError, ParameterError
from ..machine import cpu_model, versions
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..noise.distributions import IntegerDistribution
from ..noise.sampler import ESTIMATION, PREDICTION, SELECTION, check_addresses, noise_table
from .binomial import two_sided_p_value_at_most
from .norms import Radii, radii_from_l1, radii_from_l2
from .procedure import DISTRIBUTIONS, Procedure, Rule, remaining_alpha
from .radius import budget_at_least, radius_text
from .transcript import ABSTAIN, MAJORITY, CertificateDocument, Decision, ImageReference, Noise, Stage
from .votes import NoisyClassifier, Tally

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
        radii: no integer perturbation within one of these changes the prediction; all are 0 when abstaining.
        norm: in which the certificate holds, `L2` or `L1`; the radii in the others follow from it.
        theorem: by which it holds, `majority`, `two-class` or `likelihood-ratio`; None when abstaining.
        selection: of the n0 samples, votes of each class and hashes.
        estimation: of the n samples, or of those that were needed.
        decisions: of a sequential procedure, target by target.
        procedure: how it was certified.
        index: the image's number.
        seed: of the noise.
    """

    prediction: int
    radii: Radii
    norm: str
    theorem: str | None
    selection: Stage
    estimation: Stage
    decisions: tuple[Decision, ...]
    procedure: Procedure
    index: int
    seed: int

    @property
    def radius_sq(self) -> int:
        """The radius in the L2 norm: a sum of squares, in grey levels squared."""
        return self.radii.l2_sq

    @property
    def selection_votes(self) -> tuple[int, ...]:
        """Of each class, among n0 samples."""
        return self.selection.votes

    @property
    def estimation_votes(self) -> tuple[int, ...]:
        """Of each class, among n samples, or those that were needed."""
        return self.estimation.votes

    @property
    def radius(self) -> str:
        """The radius in its own norm as a fraction of full scale, in decimal digits, rounded down."""
        return self.radius_in(self.norm)

    def radius_in(self, norm: str) -> str:
        """The radius in the norm `L2`, `L1` or `Linf` as a fraction of full scale, rounded down."""
        squares = {"L2": self.radii.l2_sq, "L1": self.radii.l1**2, "Linf": self.radii.linf**2}
        return radius_text(squares[norm])


def exact_rational(value: Rational, what: str) -> Fraction:
    """The rational that `value` is written as: "0.25", "51/4", 0.001 (a float is taken as its shortest digits say).

    Raises:
        ParameterError: if it is not a number.
    """
    try:
        return Fraction(float.__repr__(value) if isinstance(value, float) else value)
    except (ValueError, TypeError, ArithmeticError):
        raise ParameterError(f"{what} {value!r}: expected a number such as 0.25 or 51/4") from None


def noise_of(parameters: Mapping[str, Rational | None]) -> IntegerDistribution:
    """The noise that one of `sigma`, `sigma_levels`, `scale` and `scale_levels` describes.

    Raises:
        ParameterError: if none or several are given, or the value is out of range.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise ParameterError(f"noise: found {found}; expected one of sigma, sigma_levels, scale and scale_levels")
    ((name, value),) = given.items()
    levels = exact_rational(value, name) * (1 if name.endswith("_levels") else FULL_SCALE)
    return DISTRIBUTIONS["discrete_gaussian" if name.startswith("sigma") else "discrete_laplace"](levels)


class SmoothedClassifier:
    """An integer model, smoothed by noise.

    Args:
        model: the integer network.
        sigma: the parameter of discrete Gaussian noise as a fraction of full scale (0.25 is 63.75 grey levels), or
        sigma_levels: in grey levels; certificates are in the L2 norm. Or
        scale: the scale of discrete Laplace noise as a fraction of full scale, or
        scale_levels: in grey levels; certificates are in the L1 norm. Exactly one, held as an exact rational.
        seed: 0 .. 2**64-1; drawn from the operating system where none is given. A certificate is valid for seeds that
            are drawn after the image is chosen.
        engine: `auto`, `jit` or `reference`; changes no bit.
        isa: the instruction set of the compiled engine, by default the best here; changes no bit.
        threads: how many batches of samples run at once, by default one a processor; changes no bit.
        batch: samples per batch, by default what suits the network's size; changes no bit.

    Attributes:
        noise: its law, with its parameter in grey levels.

    Raises:
        ParameterError: if a parameter is out of range.
    """

    def __init__(
        self, model: IntegerModel, sigma: Rational | None = None, *, sigma_levels: Rational | None = None,
        scale: Rational | None = None, scale_levels: Rational | None = None, seed: int | None = None,
        engine: str = "auto", isa: str | None = None, threads: int | None = None, batch: int | None = None,
    ) -> None:  # fmt: skip
        self.noise = noise_of(
            {"sigma": sigma, "sigma_levels": sigma_levels, "scale": scale, "scale_levels": scale_levels}
        )
        self.seed = secrets.randbits(64) if seed is None else seed
        self.model = model
        self.engine = Engine(model, engine, isa)
        self._noisy = NoisyClassifier(self.engine, noise_table(self.noise), threads, batch)

    def certify(
        self, image: np.ndarray, n0: int = 100, n: int = 1000, alpha: Rational = "0.001", *, bound: str = MAJORITY,
        target_radii: Sequence[Rational] = (), index: int = 0, progress: Callable[[int], None] | None = None,
    ) -> Certificate:  # fmt: skip
        """Certify one image: with probability at least `1 - alpha` the certificate is true, or abstains.

        Args:
            image: uint8 `(H, W, C)`.
            n0: samples that select the class.
            n: samples that bound its probability from below.
            alpha: how often the claim may fail.
            bound: `majority`, or `two-class` to use the votes of the other classes too.
            target_radii: fractions of full scale in the noise's norm; with some, at most n samples are drawn, fewer
                where the targets are decided sooner, and the radius is the largest target that is certified.
            index: the image's number, which addresses its noise.
            progress: called with the number of samples done, batch by batch.

        Raises:
            DatasetError: if the image does not fit the model.
            ParameterError: if n cannot certify anything at this alpha, or a number is out of range.
        """
        targets = [exact_rational(radius, "target radius") for radius in target_radii]
        budgets = tuple(sorted({budget_at_least(self.noise.name, radius) for radius in targets}))
        procedure = Procedure(n0, n, exact_rational(alpha, "alpha"), bound, budgets)
        return self.carry_out(self.rule(procedure), image, index, progress)

    @cached_property
    def model_sha256(self) -> str:
        """The model's fingerprint."""
        return fingerprint(self.model)

    def rule(self, procedure: Procedure) -> Rule:
        """The procedure made ready for this noise and model. Errors as for `certify`."""
        return Rule(procedure, self.noise, prod(self.model.input.shape), self.model.classes)

    def carry_out(
        self, rule: Rule, image: np.ndarray, index: int, progress: Callable[[int], None] | None = None
    ) -> Certificate:
        """As `certify`, by a rule that is ready."""
        procedure = rule.procedure
        self.check_image(image, index, procedure.n0, procedure.n)
        selection, estimation = Tally(self.model.classes), Tally(self.model.classes)
        self._fill(selection, image, index, SELECTION, procedure.n0, progress)
        selected = int(selection.counts.argmax())
        counts: list[int] = []
        while not rule.is_finished(counts):
            self._fill(estimation, image, index, ESTIMATION, rule.looks[len(counts)], progress)
            counts.append(int(estimation.counts[selected]))
        decisions, stage = rule.decisions(counts), estimation.stage
        claim = rule.claim(selected, stage.votes, decisions)
        radii_from = radii_from_l2 if rule.norm == "L2" else radii_from_l1
        return Certificate(
            selected if claim else ABSTAIN, radii_from(claim.radius if claim else 0, image.size), rule.norm,
            claim.theorem if claim else None, selection.stage, stage, decisions, procedure, index, self.seed,
        )  # fmt: skip

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

    def document(
        self, certificate: Certificate, image_sha256: str, *, label: int = -1
    ) -> CertificateDocument:  # fmt: skip
        """The certificate as a document that others can replay (`transcript.py`).

        Args:
            certificate: what `certify` found with this classifier.
            image_sha256: `Dataset.image_sha256` of the image.
            label: the image's class, -1 where it is not known.
        """
        procedure = certificate.procedure
        return CertificateDocument(
            model_sha256=self.model_sha256,
            image=ImageReference(certificate.index, image_sha256, label),
            noise=Noise(self.noise.name, self.noise.parameter),
            seed=certificate.seed, n0=procedure.n0, n=procedure.n, alpha=procedure.alpha,
            familywise=procedure.familywise, bound=procedure.bound, targets=procedure.targets,
            selection=certificate.selection, estimation=certificate.estimation, decisions=certificate.decisions,
            prediction=certificate.prediction, theorem=certificate.theorem,
            radius=certificate.radii.l2_sq if certificate.norm == "L2" else certificate.radii.l1,
            information=self._information(),
        )  # fmt: skip

    def _information(self) -> dict[str, str]:
        """What a certificate says of the machine that made it."""
        return {
            "cpu": cpu_model(), "architecture": platform.machine(), "system": platform.system(),
            "python": platform.python_version(), "engine": self.engine.name, "isa": self.engine.isa,
            **versions(["numpy", "numba"]),
        }  # fmt: skip

    def remaining_alpha(self, n: int, alpha: Rational) -> Fraction:
        """`alpha` less what the sampler leaves undecided in n samples: the level that the votes are tested at.

        Raises:
            ParameterError: if alpha is not strictly between 0 and 1, or nothing of it remains.
        """
        elements = prod(self.model.input.shape)
        return remaining_alpha(exact_rational(alpha, "alpha"), n, elements, self.noise.total_variation)

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
        tally = Tally(self.model.classes)
        self._fill(tally, image, index, stage, count, progress)
        return tally.counts

    def _fill(
        self, tally: Tally, image: np.ndarray, index: int, stage: int, count: int,
        progress: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        """Let samples vote until the tally has `count` of them."""
        for votes in self._noisy.votes(image, self.seed, index, stage, range(tally.samples, count), progress):
            tally.add(votes)
