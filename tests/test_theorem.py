"""Theorem 1 of `certify/PROOF.md` against exact enumeration on small lattices.

The theorem: let `z` have independent discrete Gaussian entries of parameter sigma. If `P(f(x+z) = A) >= pA` and
`sqrt(n) < sigma * Phi^-1(pA)`, n = ||delta||**2, then `P(f(x+delta+z) = A) > 1/2`.

For classifiers of the lattice Z^d, d = 1, 2, 3, the probability of A is computed at x = 0 and at every delta up to some
norm. The first delta at which A has no majority any more must not be certified.

Probabilities are integers in units of 2**-256. Each entry's weights are cut off where less than 2**-256 of the mass
is left and rounded; all that is thus lost or gained stays far below `SLACK`, and every assertion holds with that much
to spare. Comparisons that would be ties (A has probability 1/2 exactly) are decided by symmetry, never by the slack.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import product

import pytest

from intsmooth_ref.interval import normal_cdf

Vector = tuple[int, ...]

UNIT = 1 << 256
SLACK = Fraction(1, 2**200)
WORKING = Context(prec=110, rounding=ROUND_HALF_EVEN)
SIGMAS = [Fraction(1, 4), Fraction(2, 5), Fraction(1, 2), Fraction(1), Fraction(7, 4), Fraction(3)]


@lru_cache(maxsize=None)
def noise(sigma: Fraction) -> dict[int, int]:
    """`P(z_i = k)` in units of `1 / UNIT`, from weights `exp(-k**2 / (2 sigma**2))` above `exp(-200)`."""
    largest = int(20 * sigma) + 1
    weights = {k: _weight(k * k / (2 * sigma**2)) for k in range(-largest, largest + 1)}
    total = sum(weights.values())
    return {k: weight * UNIT // total for k, weight in weights.items()}


def _weight(exponent: Fraction) -> int:
    power = WORKING.exp(WORKING.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator)))
    return int(Fraction(power) * UNIT)


def probability(point: Vector, sigma: Fraction) -> int:
    """`P(z = point)` in units of `1 / UNIT`."""
    result = UNIT
    for k in point:
        result = result * noise(sigma).get(k, 0) >> 256
    return result


def reach(sigma: Fraction, largest: int) -> int:
    """The largest norm squared to look at: up to some 14 sigma, where `1 - Phi` is about 1e-45, far above `SLACK`."""
    return min(largest, int(200 * sigma**2))


def norm_sq(vector: Vector) -> int:
    return sum(k * k for k in vector)


def perturbations(dimension: int, largest_norm_sq: int) -> Iterator[Vector]:
    """Every integer vector up to that norm but zero, shortest first."""
    side = range(-int(largest_norm_sq**0.5 + 1), int(largest_norm_sq**0.5 + 1) + 1)
    vectors = [v for v in product(side, repeat=dimension) if 0 < norm_sq(v) <= largest_norm_sq]
    return iter(sorted(vectors, key=norm_sq))


def is_certified(n: int, p_a: Fraction, sigma: Fraction, stretch: Fraction = Fraction(1)) -> bool:
    """Whether `sqrt(n) < stretch * sigma * Phi^-1(p_a)`, that is `Phi(sqrt(n) / (stretch * sigma)) < p_a`.

    Theorem 1 has `stretch = 1`. Numbers closer to each other than `SLACK` count as certified, against the theorem.
    """
    return _normal_cdf_below(n / (stretch * sigma) ** 2) < p_a + SLACK


@lru_cache(maxsize=None)
def _normal_cdf_below(x_squared: Fraction) -> Fraction:
    return Fraction(normal_cdf(x_squared, 90).lower)


def distribution(direction: Vector, sigma: Fraction) -> dict[int, int]:
    """The distribution of `<direction, z>` in units of `1 / UNIT`."""
    result = {0: UNIT}
    for factor in direction:
        convolved: dict[int, int] = {}
        for value, p in result.items():
            for k, q in noise(sigma).items():
                convolved[value + factor * k] = convolved.get(value + factor * k, 0) + p * q
        result = {value: p >> 256 for value, p in convolved.items() if p >> 256}
    return result


@dataclass(frozen=True)
class HalfSpace:
    """`f(w) = A` where `<direction, w> < threshold`, and with probability 1/2 where it is equal, if so `mixed`."""

    direction: Vector
    threshold: int
    mixed: bool

    def keeps_majority(self, delta: Vector) -> bool:
        """Decided by the symmetry of the noise: at `margin` 0 half the mass and half the tie are A's."""
        margin = self.threshold - sum(a * k for a, k in zip(self.direction, delta))
        return margin > 0

    def p_a(self, of_direction: dict[int, int]) -> Fraction:
        below = sum(p for value, p in of_direction.items() if value < self.threshold)
        return Fraction(below, UNIT) + Fraction(of_direction.get(self.threshold, 0), 2 * UNIT) * self.mixed


def first_failing_norm_sq(keeps_majority: Callable[[Vector], bool], deltas: list[Vector]) -> int | None:
    return next((norm_sq(delta) for delta in deltas if not keeps_majority(delta)), None)


def directions(dimension: int) -> list[Vector]:
    """Small directions, one of each that signs and order of the entries turn into each other."""
    largest = {1: 4, 2: 3, 3: 2}[dimension]
    return [a for a in product(range(largest + 1), repeat=dimension) if any(a) and list(a) == sorted(a)]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dimension, largest", [(1, 225), (2, 40), (3, 14)])
def test_no_half_space_fails_at_a_certified_perturbation(dimension: int, largest: int, sigma: Fraction) -> None:
    deltas, failures = list(perturbations(dimension, reach(sigma, largest))), 0
    for direction in directions(dimension):
        of_direction = distribution(direction, sigma)
        for threshold, mixed in product(range(1, 4 * norm_sq(direction)), (False, True)):
            f = HalfSpace(direction, threshold, mixed)
            failing = first_failing_norm_sq(f.keeps_majority, deltas)
            if failing is not None:
                failures += 1
                assert not is_certified(failing, f.p_a(of_direction), sigma)
    assert failures > 10


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dimension, largest", [(1, 225), (2, 40), (3, 14)])
def test_the_worst_half_space_of_each_perturbation_is_not_certified_there(
    dimension: int, largest: int, sigma: Fraction
) -> None:
    """Neyman and Pearson's: cut at `<delta, w> = ||delta||**2`, ties shared. After the shift A has exactly 1/2."""
    for delta in perturbations(dimension, reach(sigma, largest)):
        if min(delta) >= 0 and list(delta) == sorted(delta):
            n = norm_sq(delta)
            worst = HalfSpace(delta, n, mixed=True)
            assert not worst.keeps_majority(delta)
            assert not is_certified(n, worst.p_a(distribution(delta, sigma)), sigma)


@pytest.mark.parametrize("sigma, stretch", [(Fraction(1), "1.05"), (Fraction(7, 4), "1.02"), (Fraction(3), "1.01")])
def test_a_slightly_larger_radius_would_be_false(sigma: Fraction, stretch: str) -> None:
    """The enumeration has teeth: the same radius times `stretch` certifies a perturbation at which A is at 1/2."""
    for length in range(1, int(10 * sigma)):
        worst = HalfSpace((length,), length**2, mixed=True)
        if is_certified(length**2, worst.p_a(distribution((length,), sigma)), sigma, Fraction(stretch)):
            return
    pytest.fail("no half-space refutes the larger radius")


def lattice_box(dimension: int, radius: int) -> list[Vector]:
    return list(product(range(-radius, radius + 1), repeat=dimension))


def random_minority(rng: random.Random, dimension: int, radius: int) -> dict[Vector, Fraction]:
    """The probability with which f is not A, on a box; outside the box f is A. Mostly beyond a random half-space."""
    direction = [rng.randint(-3, 3) for _ in range(dimension)]
    threshold = rng.randint(1, 2 * radius)
    minority = {}
    for w in lattice_box(dimension, radius):
        beyond = sum(a * k for a, k in zip(direction, w)) >= threshold
        if rng.random() < (0.9 if beyond else 0.03):
            minority[w] = Fraction(rng.randint(1, 4), 4)
    return minority


def mass(of: dict[Vector, Fraction], delta: Vector, sigma: Fraction) -> Fraction:
    """`sum of[w] * P(delta + z = w)`: a finite sum, so that nothing is cut off."""
    moved = (value * probability(tuple(k - d for k, d in zip(w, delta)), sigma) for w, value in of.items())
    return sum(moved, Fraction(0)) / UNIT


def check_enumerated(p_a_at: Callable[[Vector], Fraction], deltas: list[Vector], sigma: Fraction) -> bool:
    """Assert the theorem for one classifier; whether the check said anything. Near-ties count as failures of A."""
    p_a = p_a_at((0,) * len(deltas[0]))
    failing = first_failing_norm_sq(lambda delta: p_a_at(delta) > Fraction(1, 2) + SLACK, deltas)
    if p_a <= Fraction(1, 2) or failing is None:
        return False
    assert not is_certified(failing, p_a, sigma)
    return True


@pytest.mark.parametrize("dimension, radius, largest, sigmas, repeats", [
    (1, 9, 144, SIGMAS, 20),
    (2, 4, 25, SIGMAS[:5], 6),
    (3, 2, 6, SIGMAS[:4], 6),
])
def test_no_random_classifier_fails_at_a_certified_perturbation(
    dimension: int, radius: int, largest: int, sigmas: list[Fraction], repeats: int
) -> None:
    rng, told = random.Random(16), 0
    for sigma in sigmas:
        deltas = list(perturbations(dimension, reach(sigma, largest)))
        for _ in range(repeats):
            minority = random_minority(rng, dimension, radius)
            told += check_enumerated(lambda delta: 1 - mass(minority, delta, sigma), deltas, sigma)
    assert told >= 5


@pytest.mark.parametrize("dimension, largest", [(1, 150), (2, 30), (3, 12)])
def test_no_ball_fails_at_a_certified_perturbation(dimension: int, largest: int) -> None:
    """f is A on a ball alone."""
    told = 0
    for sigma in SIGMAS[: 7 - dimension]:
        deltas = list(perturbations(dimension, reach(sigma, largest)))
        for radius_sq in (1, 2, 4, 8):
            ball = {w: Fraction(1) for w in lattice_box(dimension, 3) if norm_sq(w) <= radius_sq}
            told += check_enumerated(lambda delta: mass(ball, delta, sigma), deltas, sigma)
    assert told >= 5


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_parity_classifier_is_not_certified_at_a_single_step(dimension: int, sigma: Fraction) -> None:
    """f is A where the sum of the entries is even: `P(A) = (1 + E[(-1)**z_i]**dimension) / 2`, one step swaps it."""
    bias = Fraction(sum((1 - 2 * (k % 2)) * p for k, p in noise(sigma).items()), UNIT) ** dimension
    assert bias > -SLACK
    assert not is_certified(1, (1 + bias) / 2, sigma)
