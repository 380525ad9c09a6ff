"""How many samples sequential constructions need, against the fixed test: computed exactly, not simulated.

    python tests/campaign_stopping.py --most 100000 --digits 10000

For each distribution of pA and each construction of a decision table: the samples an image needs on average and their
share of the fixed test's; the probabilities that the sequential and the fixed test certify the target, that they decide
differently, were both run on the same samples, and that an image is given up early which the fixed test certifies; the
largest probability of a false claim; the time to make the table. Everything comes from a recursion over the
distribution of the count. It is in floats, which is good enough for a report; only the table of the package and the
probability of a false claim are exact upper bounds.

Constructions, each with give-up bounds made in the same manner for the votes against the class, at the package's level
for them:

- *spending, x of level*: the package's recursion with other schedules of looks and spending functions x; t is the share
  of the samples. Exponents 1 and 3 stand for bounds of Pocock's and O'Brien and Fleming's kind (Kim and DeMets 1987).
- *union*: a Clopper-Pearson test at each look, the level divided among the looks: over doubling blocks without end,
  level / (k (k+1)) for block k, or over the looks of the package in equal parts (compare Voracek 2024,
  arXiv:2406.17830, who sets a union over geometric blocks beside betting).
- *mixture*: a test martingale, the likelihood ratio to p* mixed over alternatives pA > p* with a Beta prior
  (Robbins 1970; "betting", Waudby-Smith and Ramdas 2024), with Ville's inequality: certified from 1 / level on. It
  may be looked at after every sample; looks at 49/50 of the samples of the next come close to that.

Distributions of `R = sigma * Phi^-1(pA)` for the selected class, sigma = 0.25:

- *like CIFAR-10*: linear between the certified accuracies 0.75, 0.60 and 0.43 at radius 0, 0.25 and 0.5 published for
  ResNet-110 (Cohen, Rosenfeld and Kolter 2019); assumed: the same slope up to 0.875 and a lump of the rest at
  pA = 1 - 1e-6; for the quarter that is classified wrongly, R uniform on -0.1 .. 0.4.
- *crowded*: the same certified accuracies, but 70 % of the images between 0.25 and 0.5 lie in 0.4 .. 0.5, and as many
  in 0.5 .. 0.6.
- *pessimistic*: R uniform on 0.45 .. 0.55, all images close to the target.
- *digits*: the shares of votes of the embedded network for the embedded images, held for pA.

The command above on 2026-11-23 (Python 3.11.7, NumPy 2.4.6, SciPy 1.17.1): samples on average, and the probability that
the decisions differ. The fixed test certifies 0.4253, 0.4217, 0.4303 and 0.6586 of the images.

    construction                          CIFAR-10-like     crowded          pessimistic       digits          error
    package: spending t, ratio 4/5         1799 0.0005      2867 0.0008     20040 0.0067      2653 0.0011   9.89e-04
    spending t, ratio 1/2                  2145 0.0003      3399 0.0005     23449 0.0039      3135 0.0006   9.95e-04
    spending t, ratio 9/10                 1734 0.0005      2766 0.0009     19359 0.0075      2558 0.0012   9.92e-04
    spending t^1/4, ratio 4/5              1633 0.0011      2670 0.0019     19535 0.0157      2420 0.0024   1.00e-03
    spending t^1/2, ratio 4/5              1661 0.0007      2685 0.0012     19277 0.0103      2454 0.0016   9.94e-04
    spending t^2, ratio 4/5                2098 0.0003      3296 0.0004     22320 0.0038      3080 0.0006   9.92e-04
    spending t^3, ratio 4/5                2400 0.0002      3720 0.0003     24512 0.0024      3512 0.0004   9.92e-04
    spending equal, ratio 4/5              1667 0.0015      2739 0.0026     20231 0.0211      2468 0.0032   9.99e-04
    spending equal, ratio 1/2              1877 0.0013      3081 0.0022     22684 0.0184      2746 0.0028   9.96e-04
    union 1/(k(k+1)), ratio 1/2            2567 0.0022      4158 0.0038     30035 0.0313      3734 0.0052   5.28e-05
    union equal, ratio 4/5                 1910 0.0014      3117 0.0025     22790 0.0211      2849 0.0035   3.19e-04
    mixture Beta(1/2, 1/2), ratio 49/50    1992 0.0021      3313 0.0038     25044 0.0312      3025 0.0051   8.11e-04
    mixture Beta(1, 1), ratio 49/50        2022 0.0019      3352 0.0033     25256 0.0276      3102 0.0046   7.29e-04

The package's table needs fewer samples than the mixtures and the unions and differs less from the fixed test, since it
spends the level to the last 1 %. To spend it earlier saves samples and costs decisions, later the reverse; t stands in
between. With fewer samples, like CIFAR-10: 638 of 10,000 (0.0015), 243 of 1,000 (0.0068).
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from math import ceil, log, sqrt
from time import perf_counter

import numpy as np
from scipy.special import betainc, betaln, ndtr, xlog1py, xlogy
from scipy.stats import binom

from intsmooth_ref.certify.binomial import smallest_trials
from intsmooth_ref.certify.radius import majority_boundary, radius_sq_at_least
from intsmooth_ref.certify.stopping import (
    FUTILITY,
    RESERVE_BITS,
    Chance,
    DecisionTable,
    crossing_probability,
    decision_tables,
    first_passage,
    hopeless,
)
from intsmooth_ref.interval import Interval

SIGMA = Fraction(1, 4)
TARGET = Fraction(1, 2)
FULL_SCALE = 255

#: Beside the target the grid of R is fine, at the ends coarse.
OFFSETS = (
    *(0.0005 * k for k in range(5)), *(0.003, 0.004, 0.005, 0.0065, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03),
    *(0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.375, 0.45, 0.5, 0.6),
)  # fmt: skip

#: Probabilities below this are dropped.
NEGLIGIBLE = 1e-16

#: From a schedule, a probability p and a level: from which count on a vote shows that its probability exceeds p.
Construction = Callable[[Sequence[int], Fraction, Fraction], Sequence[int]]


@dataclass(frozen=True)
class Outcome:
    """Of a table and a fixed test, for one pA or on average."""

    samples: float
    sequential: float
    fixed: float
    differ: float
    lost: float

    @property
    def figures(self) -> np.ndarray:
        return np.array([self.samples, self.sequential, self.fixed, self.differ, self.lost])


def outcome(table: DecisionTable, probability: float, fixed_from: int) -> Outcome:
    """What becomes of an image with this pA; `fixed_from` is the count from which the fixed test certifies.

    The states are probabilities of counts `lowest ..` that are not decided yet. Where one is decided after t samples,
    the rest of the samples decides the fixed test: P(Binomial(most - t, pA) >= fixed_from - count).
    """
    states, lowest, before, most = np.ones(1), 0, 0, table.looks[-1]
    samples = sequential = differ = lost = 0.0
    for look, certify_from, give_up_at in zip(table.looks, table.certify_from, table.give_up_at):
        samples += (look - before) * float(states.sum())
        spread = 9 * sqrt((look - before) * probability * (1 - probability)) + 30
        mean = (look - before) * probability
        votes = np.arange(max(0, int(mean - spread)), min(look - before, ceil(mean + spread)) + 1)
        states = np.convolve(states, binom.pmf(votes, look - before, probability))
        lowest, before = lowest + int(votes[0]), look
        counts = lowest + np.arange(len(states))
        fixed_later = binom.sf(fixed_from - counts - 1, most - look, probability)
        certified, given_up = counts >= certify_from, counts <= give_up_at
        sequential += float(states[certified].sum())
        missed = float(states[given_up] @ fixed_later[given_up])
        differ += float(states[certified] @ (1 - fixed_later[certified])) + missed
        lost += missed if look < most else 0.0
        going_on = np.flatnonzero(~certified & ~given_up & (states > NEGLIGIBLE))
        if not len(going_on):
            break
        states, lowest = states[going_on[0] : going_on[-1] + 1], int(counts[going_on[0]])
    return Outcome(samples, sequential, float(binom.sf(fixed_from - 1, most, probability)), differ, lost)


@dataclass(frozen=True)
class Distribution:
    """Of R, by its distribution function at some points, linear between; or of pA, by equally likely values."""

    name: str
    points: tuple[tuple[float, float], ...] = ()
    values: tuple[float, ...] = ()

    def average(self, at: Callable[[float], np.ndarray]) -> np.ndarray:
        """The average of a function of pA; between the points of a grid by the trapezoidal rule."""
        if self.values:
            return np.mean([at(value) for value in self.values], axis=0)
        target = float(TARGET)
        radii, shares = (np.array(column) for column in zip(*self.points))
        grid = np.unique([target + sign * offset for offset in OFFSETS for sign in (-1, 1)])
        weights = np.diff(np.interp(grid, radii, shares))
        parts = [weight * (at(p) + at(q)) / 2 for weight, p, q in zip(weights, self._p(grid), self._p(grid[1:]))
                 if weight > 0]  # fmt: skip
        return np.sum(parts, axis=0) + (1 - shares[-1]) * at(1 - 1e-6)

    @staticmethod
    def _p(radii: np.ndarray) -> list[float]:
        return [float(p) for p in ndtr(radii / float(SIGMA))]


def _mixed(wrong: float, *right: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Points of R's distribution: a share `wrong` uniform on -0.1 .. 0.4, and points of the others' cumulated share."""
    ends = sorted({-0.1, 0.4, *(radius for radius, _ in right)})
    radii, shares = zip(*right)
    return tuple((r, wrong * min(1.0, (r + 0.1) / 0.5) + float(np.interp(r, radii, shares))) for r in ends)


DISTRIBUTIONS = (
    Distribution("like CIFAR-10", _mixed(0.25, (0, 0), (0.25, 0.15), (0.5, 0.32), (0.875, 0.575))),
    Distribution(
        "crowded",
        _mixed(0.25, (0, 0), (0.25, 0.15), (0.4, 0.201), (0.5, 0.32), (0.6, 0.439), (0.875, 0.575)),
    ),
    Distribution("pessimistic", ((0.45, 0.0), (0.55, 1.0))),
)


def spending(spent: Callable[[float], float] | None = None) -> Construction:
    """The package's recursion; `spent` is the share of the level by the time t, or grows equally at each look."""

    def construction(schedule: Sequence[int], p: Fraction, level: Fraction) -> Sequence[int]:
        bits = RESERVE_BITS + smallest_trials(level)
        shares = [spent(look / schedule[-1]) if spent else (j + 1) / len(schedule) for j, look in enumerate(schedule)]
        allowed = [int(Fraction(share) * level * (1 << bits)) for share in shares]
        chance = Chance.enclosing(partial(Interval.of, p), bits)
        return first_passage(schedule, chance, allowed, [0] * len(schedule))[0]

    return construction


def union_bound(share: Callable[[int, int], float]) -> Construction:
    """A Clopper-Pearson test at each look, at `share(look's number from 1, looks)` of the level."""

    def construction(schedule: Sequence[int], p: Fraction, level: Fraction) -> Sequence[int]:
        parts = [float(level) * share(k + 1, len(schedule)) for k in range(len(schedule))]
        return [int(binom.isf(part, look, float(p))) + 1 for part, look in zip(parts, schedule)]

    return construction


def mixture(a: float, b: float) -> Construction:
    """Beta(a, b) cut off below p; the martingale rises with the count, so that bisection finds the threshold."""

    def log_mass(a: float, b: float, p: float) -> float:
        upper = betainc(b, a, 1 - p)
        return float(betaln(a, b) + np.log(upper)) if upper > 0 else -np.inf

    def construction(schedule: Sequence[int], p: Fraction, level: Fraction) -> Sequence[int]:
        x, needed = float(p), -log(level)
        thresholds = []
        for look in schedule:
            low, high = -1, look + 1  # not certified, certified
            while high - low > 1:
                count = (low + high) // 2
                likelihood = xlogy(count, x) + xlog1py(look - count, -x)
                wealth = log_mass(a + count, b + look - count, x) - log_mass(a, b, x) - likelihood
                low, high = (low, count) if wealth >= needed else (count, high)
            thresholds.append(high)
        return thresholds

    return construction


def schedule(most: int, ratio: Fraction) -> tuple[int, ...]:
    """Looks at `most`, ratio times it, ..., down to 8 samples; at least a sample apart."""
    found = [most]
    while (earlier := int(found[-1] * ratio)) >= 8:
        found.append(earlier)
    return tuple(reversed(found))


def constructed(
    construction: Construction, at: Sequence[int], boundary: Fraction, share: Fraction, level: Fraction
) -> DecisionTable:
    """A table by this construction, for the boundary p* and, in a mirror, for images with pA = share."""
    certify_from = tuple(construction(at, boundary, level))
    against = construction(at, 1 - share, FUTILITY)
    give_up_at = tuple(
        min(enough - 1, max(look - votes, hopeless(look, certify_from[-1], at[-1])))
        for look, enough, votes in zip(at, certify_from, against)
    )
    return DecisionTable(tuple(at), certify_from, give_up_at)


def constructions(
    most: int, level: Fraction, budget: int, boundary: Fraction, fixed_from: int
) -> Iterable[tuple[str, Callable[[], DecisionTable]]]:
    """Names, and what makes the table."""
    parameter = SIGMA * FULL_SCALE
    yield "package: spending t, ratio 4/5", lambda: decision_tables(
        "discrete_gaussian", parameter, (budget,), most, level
    )[0]
    doubling, own, fine, finest = Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(49, 50)
    cases: list[tuple[str, Construction, Fraction]] = [
        ("spending t, ratio 1/2", spending(lambda t: t), doubling),
        ("spending t, ratio 9/10", spending(lambda t: t), fine),
        ("spending t^1/4, ratio 4/5", spending(lambda t: t**0.25), own),
        ("spending t^1/2, ratio 4/5", spending(lambda t: t**0.5), own),
        ("spending t^2, ratio 4/5", spending(lambda t: t**2), own),
        ("spending t^3, ratio 4/5", spending(lambda t: t**3), own),
        ("spending equal, ratio 4/5", spending(), own),
        ("spending equal, ratio 1/2", spending(), doubling),
        ("union 1/(k(k+1)), ratio 1/2", union_bound(lambda k, _: 1 / (k * (k + 1))), doubling),
        ("union equal, ratio 4/5", union_bound(lambda _, all_looks: 1 / all_looks), own),
        ("mixture Beta(1/2, 1/2), ratio 49/50", mixture(0.5, 0.5), finest),
        ("mixture Beta(1, 1), ratio 49/50", mixture(1, 1), finest),
    ]
    for name, construction, ratio in cases:
        yield name, partial(
            constructed, construction, schedule(most, ratio), boundary, Fraction(fixed_from, most), level
        )


def digits_shares(samples: int) -> tuple[float, ...]:
    """The selected class's share of the votes, for each embedded image."""
    from intsmooth_ref.certify.smoothing import SmoothedClassifier
    from intsmooth_ref.cli.arguments import embedded_file
    from intsmooth_ref.dataset import load_dataset
    from intsmooth_ref.model.hdf5 import load_model

    classifier = SmoothedClassifier(load_model(embedded_file("digits.h5")).model, SIGMA, seed=7)
    shares = []
    for index, image in enumerate(load_dataset(embedded_file("digits-images.h5")).images):
        found = classifier.certify(image, 100, samples, index=index)
        shares.append(found.estimation_votes[int(np.argmax(found.selection_votes))] / samples)
    return tuple(shares)


def main() -> int:
    import scipy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10**5, help="samples of the fixed test")
    parser.add_argument("--level", type=Fraction, default=Fraction(1, 1000))
    parser.add_argument("--digits", type=int, default=0, help="votes of each embedded image; 0: leave them out")
    arguments = parser.parse_args()
    most, level = arguments.most, arguments.level

    budget = radius_sq_at_least(TARGET)
    enclosed = majority_boundary("discrete_gaussian", SIGMA * FULL_SCALE, budget)
    boundary = Fraction(enclosed(40).upper)
    fixed_from = int(binom.isf(float(level), most, float(boundary))) + 1
    distributions = list(DISTRIBUTIONS)
    if arguments.digits:
        distributions.append(Distribution("digits", values=digits_shares(arguments.digits)))

    print(f"{most} samples, level {float(level):g}, radius {float(TARGET)} at sigma {float(SIGMA)}, "
          f"p* = {float(boundary):.6f}, fixed test from {fixed_from}; Python {platform.python_version()}, "
          f"NumPy {np.__version__}, SciPy {scipy.__version__}")  # fmt: skip
    print(f"{'distribution':14} {'construction':35} {'samples':>8} {'share':>7} {'certified':>9} {'fixed':>7} "
          f"{'differ':>7} {'lost':>7} {'error':>8} {'seconds':>7}")  # fmt: skip
    for name, make in constructions(most, level, budget, boundary, fixed_from):
        started = perf_counter()
        table = make()
        seconds = perf_counter() - started
        error = float(crossing_probability(table, enclosed))

        @lru_cache(maxsize=None)
        def at(probability: float) -> np.ndarray:
            return outcome(table, probability, fixed_from).figures

        for distribution in distributions:
            samples, sequential, fixed, differ, lost = distribution.average(at)
            print(f"{distribution.name:14} {name:35} {samples:8.0f} {samples / most:7.2%} {sequential:9.4f} "
                  f"{fixed:7.4f} {differ:7.4f} {lost:7.5f} {error:8.2e} {seconds:7.3f}", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
