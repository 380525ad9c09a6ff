"""From votes to a claim: how many samples are drawn, and which radius they show.

A `Procedure` says what is to be done, a `Rule` is one made ready for a noise law and a size of image. Two kinds:

- *fixed*: all n samples are drawn, then the votes give the largest radius that the bound allows: `majority` by theorem
  1 (discrete Gaussian noise) or 3 (discrete Laplace noise), `two-class` by theorem 2 or 1, whichever gives more.
- *sequential*: the samples are looked at now and then, and the run ends once each target radius is certified or given
  up (`stopping.py`).

The theorems are proven in `PROOF.md`. Both the one who certifies and the one who verifies use this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Sequence

from ..errors import ParameterError
from ..noise.distributions import IntegerDistribution, discrete_gaussian, discrete_laplace
from .radius import certified_budget, require_enough_samples
from .stopping import DecisionTable, decision_tables
from .transcript import LAWS, MAJORITY, TARGETS_MAX, TWO_CLASS, Decision, Familywise
from .two_class import DIMENSION_MAX, two_class_claim

BOUNDS = (MAJORITY, TWO_CLASS)

#: The laws of noise that certify, by name; each takes its parameter in grey levels.
DISTRIBUTIONS = {"discrete_gaussian": discrete_gaussian, "discrete_laplace": discrete_laplace}


@dataclass(frozen=True)
class Procedure:
    """All that decides a certificate besides model, noise, image and seed.

    Attributes:
        n0: samples that select the class.
        n: samples that bound its probability, at most.
        alpha: how often the certificate may be false.
        bound: `majority` or `two-class`.
        targets: budgets, ascending; with some, the procedure is sequential and certifies the largest it can.
        familywise: of which family's alpha this certificate's is a share, if of one.

    Raises:
        ParameterError: if these do not go together.
    """

    n0: int
    n: int
    alpha: Fraction
    bound: str = MAJORITY
    targets: tuple[int, ...] = ()
    familywise: Familywise | None = None

    def __post_init__(self) -> None:
        for count in (self.n0, self.n):
            if count < 1:
                raise ParameterError(f"{count} samples: expected at least 1")
        for alpha in (self.alpha, self.familywise.alpha if self.familywise else self.alpha):
            if not 0 < alpha < 1:
                raise ParameterError(f"alpha {alpha}: expected a probability strictly between 0 and 1")
        if self.bound not in BOUNDS:
            raise ParameterError(f"bound {self.bound!r}: expected one of {', '.join(BOUNDS)}")
        if len(self.targets) > TARGETS_MAX:
            raise ParameterError(f"{len(self.targets)} target radii: expected {TARGETS_MAX} at most")
        if self.targets and self.bound != MAJORITY:
            raise ParameterError(f"bound {self.bound!r} with target radii: expected {MAJORITY!r}, which can stop early")


@dataclass(frozen=True)
class Claim:
    """That no perturbation of a size up to `radius` changes the class: grey levels squared (L2) or grey levels (L1)."""

    radius: int
    theorem: str


class Rule:
    """A procedure made ready.

    Attributes:
        procedure: what is to be done.
        norm: in which radii are measured, `L2` or `L1`.
        level: alpha less what the sampler leaves undecided, at which votes are tested.
        looks: after how many samples the votes are looked at; the last is n.

    Raises:
        ParameterError: if the noise certifies nothing, or n samples cannot certify anything at this alpha.
    """

    def __init__(self, procedure: Procedure, noise: IntegerDistribution, elements: int, classes: int) -> None:
        if noise.name not in LAWS:
            raise ParameterError(f"noise {noise.name}: expected one that certifies, {' or '.join(LAWS)}")
        self.procedure, self.noise, self.norm, self._elements = procedure, noise, LAWS[noise.name].norm, elements
        if procedure.bound == TWO_CLASS and self.norm != "L2":
            raise ParameterError(f"bound {TWO_CLASS!r} with noise {noise.name}: expected discrete_gaussian")
        if procedure.bound == TWO_CLASS and (classes < 2 or elements > DIMENSION_MAX):
            found = f"{classes} classes and images of {elements} values"
            raise ParameterError(f"bound {TWO_CLASS!r}: found {found}; expected at least 2 and at most {DIMENSION_MAX}")
        self.level = remaining_alpha(procedure.alpha, procedure.n, elements, noise.total_variation)
        require_enough_samples(procedure.n, self.level if procedure.bound == MAJORITY else self.level / 2)
        self._tables: tuple[DecisionTable, ...] = ()
        if procedure.targets:
            self._tables = decision_tables(noise.name, noise.parameter, procedure.targets, procedure.n, self.level)
        self.looks = self._tables[0].looks if self._tables else (procedure.n,)

    def decisions(self, counts: Sequence[int]) -> tuple[Decision, ...]:
        """What the sequential test decides, target by target, from the class's votes at each look so far.

        Targets that are not decided yet are left out.
        """
        found = []
        for target in self.procedure.targets:
            for samples, count in zip(self.looks, counts):
                certified = self.verdict(target, samples, count)
                if certified is not None:
                    found.append(Decision(target, samples, count, certified))
                    break
        return tuple(found)

    def verdict(self, target: int, samples: int, count: int) -> bool | None:
        """What `count` votes at the look after so many samples say: the target is certified, given up, or neither."""
        table, look = self._tables[self.procedure.targets.index(target)], self.looks.index(samples)
        if count >= table.certify_from[look]:
            return True
        return False if count <= table.give_up_at[look] else None

    def is_finished(self, counts: Sequence[int]) -> bool:
        """Whether the samples up to the last of these looks are all that is needed."""
        if self._tables:
            return len(self.decisions(counts)) == len(self._tables)
        return len(counts) == len(self.looks)

    def claim(self, prediction: int, votes: Sequence[int], decisions: Sequence[Decision]) -> Claim | None:
        """What the votes of the estimation show for the class `prediction`; None where they show nothing."""
        theorem = LAWS[self.noise.name].majority_theorem
        if self._tables:
            certified = [decision.target for decision in decisions if decision.certified]
            return Claim(max(certified), theorem) if certified else None
        parameter = self.noise.parameter
        if self.procedure.bound == TWO_CLASS:
            found = two_class_claim(votes, prediction, self.level, parameter, self._elements)
            return Claim(*found) if found else None
        radius = certified_budget(self.noise.name, parameter, votes[prediction], self.procedure.n, self.level)
        return None if radius is None else Claim(radius, theorem)


def remaining_alpha(alpha: Fraction, samples: int, elements: int, total_variation: Fraction) -> Fraction:
    """`alpha` less what the sampler leaves undecided in so many samples of images of `elements` values.

    The joint law of n images of d drawn values is within `n * d * total_variation` of the exact one
    (`noise/PROOF.md`, 14).

    Raises:
        ParameterError: if alpha is not strictly between 0 and 1, or nothing of it remains.
    """
    if not 0 < alpha < 1:
        raise ParameterError(f"alpha {alpha}: expected a probability strictly between 0 and 1")
    level = alpha - samples * elements * total_variation
    if level <= 0:
        raise ParameterError(f"alpha {alpha}: less than the sampler's own error, {float(alpha - level):.2g}")
    return level
