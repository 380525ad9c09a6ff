"""Theorem 3 of `certify/PROOF.md` against exact enumeration, over all classifiers of small lattices at once.

The theorem: let `z` have independent discrete Laplace entries, P(k) proportional to exp(-|k| / scale). If
`P(f(x+z) = A) >= pA` and `pA > 1 - exp(-r / scale) / 2`, r = ||delta||_1, then `P(f(x+delta+z) = A) > 1/2`.

With `q = exp(-1 / scale)` rational, every probability below is a rational number, infinite tails included:
`P(z_i = k) = q**|k| (1-q) / (1+q)` and `P(z_i >= k) = q**k / (1+q)` for k >= 1. Nothing is cut off or rounded. Only the
boundary is an enclosure, at a scale that meets q to 90 digits, so that ties count as `SLACK` apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import product

import pytest

from intsmooth_ref.certify.radius import majority_boundary
from intsmooth_ref.noise.distributions import RESOLUTION_BITS, discrete_laplace

Vector = tuple[int, ...]

HALF = Fraction(1, 2)
SLACK = Fraction(1, 10**60)
WORKING = Context(prec=100, rounding=ROUND_HALF_EVEN)

#: exp(-1 / scale), from a scale of 0.43 grey levels to one of 100.
RATIOS = [Fraction(1, 10), Fraction(1, 3), Fraction(2, 5), Fraction(3, 5), Fraction(9, 10), Fraction(99, 100)]


@lru_cache(maxsize=None)
def scale_of(q: Fraction) -> Fraction:
    """`-1 / ln q`, in 90 digits."""
    logarithm = WORKING.ln(WORKING.divide(Decimal(q.numerator), Decimal(q.denominator)))
    return -1 / Fraction(logarithm)


@lru_cache(maxsize=None)
def boundary(q: Fraction, r: int) -> Fraction:
    return Fraction(majority_boundary("discrete_laplace", scale_of(q), r)(80).lower)


def is_certified(r: int, p_a: Fraction, q: Fraction) -> bool:
    """Whether theorem 3 covers r. Numbers closer to each other than `SLACK` count as certified, against the theorem."""
    return boundary(q, r) < p_a + SLACK


def probability(k: int, q: Fraction) -> Fraction:
    """`P(z_i = k)`."""
    return q ** abs(k) * (1 - q) / (1 + q)


def tail(k: int, q: Fraction) -> Fraction:
    """`P(z_i >= k)` for any k, a geometric series and its reflection."""
    return q**k / (1 + q) if k >= 1 else 1 - q ** (1 - k) / (1 + q)


def l1(vector: Vector) -> int:
    return sum(map(abs, vector))


def perturbations(dimension: int, largest: int) -> Iterator[Vector]:
    """Every integer vector of that L1 norm at most, shortest first."""
    vectors = product(range(-largest, largest + 1), repeat=dimension)
    return iter(sorted((v for v in vectors if l1(v) <= largest), key=l1))


def unlike(dimension: int, largest: int) -> list[Vector]:
    """Those of them that signs and order of the entries do not turn into each other, zero left out."""
    return [v for v in perturbations(dimension, largest) if min(v) >= 0 and list(v) == sorted(v) and any(v)]


def test_the_series_are_those_of_the_noise_that_is_drawn() -> None:
    """The tails agree with the table that the sampler inverts, in 256 bits, and their differences with P(z_i = k)."""
    for scale in (Fraction(1, 2), Fraction(1), Fraction(7, 4)):
        q = Fraction(WORKING.exp(WORKING.divide(Decimal(-scale.denominator), Decimal(scale.numerator))))
        drawn = discrete_laplace(scale)
        for k in range(-40, 41):
            up_to = Fraction(drawn.thresholds[k - drawn.minimum], 1 << RESOLUTION_BITS)
            assert abs(up_to - (1 - tail(k + 1, q))) <= Fraction(1, 10**76)
            assert tail(k, q) - tail(k + 1, q) == probability(k, q)


def law_of_log_ratio(delta: Vector, q: Fraction) -> dict[int, Fraction]:
    """The law, without the perturbation, of `L = ||w||_1 - ||w-delta||_1`: `P(delta + z = w) / P(z = w) = q**-L`.

    Entry by entry, for delta_i > 0: L_i is delta_i from there on, -delta_i up to zero and `2 w_i - delta_i` between.
    So few values take the infinite lattice together, and nothing else about w matters.
    """
    law = {0: Fraction(1)}
    for step in map(abs, delta):
        if step:
            entry = {2 * w - step: probability(w, q) for w in range(1, step)}
            entry[step], entry[-step] = tail(step, q), tail(0, q)
            summed: dict[int, Fraction] = {}
            for (a, p_a), (b, p_b) in product(law.items(), entry.items()):
                summed[a + b] = summed.get(a + b, Fraction(0)) + p_a * p_b
            law = summed
    return law


@pytest.mark.parametrize("delta", [(3,), (-4,), (2, -3), (1, 5), (0, 4)])
def test_the_law_of_the_ratio_is_that_of_the_points_one_by_one(delta: Vector) -> None:
    """Up to the mass outside a box."""
    q, side = Fraction(1, 3), 25
    of_points = dict.fromkeys(law_of_log_ratio(delta, q), Fraction(0))
    for w in product(range(-side, side + 1), repeat=len(delta)):
        moved = tuple(k - d for k, d in zip(w, delta))
        mass = Fraction(1)
        for k in w:
            mass *= probability(k, q)
        of_points[l1(w) - l1(moved)] += mass
    outside = 2 * len(delta) * tail(side + 1, q)
    assert all(0 <= p - of_points[value] <= outside for value, p in law_of_log_ratio(delta, q).items())


def exact_boundary(delta: Vector, q: Fraction) -> Fraction:
    """The largest P(f(x+z) = A) of all f with P(f(x+delta+z) = A) <= 1/2, randomized ones included.

    Such an f must give away half the mass that the perturbation brings; it costs least where w is likeliest with the
    perturbation and least likely without it (Neyman and Pearson), and the last value of L is shared.
    """
    law = law_of_log_ratio(delta, q)
    given_away, cost = Fraction(0), Fraction(0)
    for log_ratio in sorted(law, reverse=True):
        moved = min(law[log_ratio] * q**-log_ratio, HALF - given_away)
        given_away, cost = given_away + moved, cost + moved * q**log_ratio
    assert given_away == HALF
    return 1 - cost


@pytest.mark.parametrize("q", RATIOS)
@pytest.mark.parametrize("dimension, largest", [(1, 30), (2, 14), (3, 8)])
def test_no_classifier_whatever_fails_at_a_certified_perturbation(dimension: int, largest: int, q: Fraction) -> None:
    for delta in unlike(dimension, largest):
        assert sum(law_of_log_ratio(delta, q).values()) == 1
        assert exact_boundary(delta, q) <= 1 - q ** l1(delta) / 2 < boundary(q, l1(delta)) + SLACK


@pytest.mark.parametrize("q", RATIOS)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_boundary_is_attained_by_a_perturbation_of_one_entry(dimension: int, q: Fraction) -> None:
    """So no larger radius is true, at any budget and in any dimension: at this pA a classifier has a tie."""
    for r in range(1, 12):
        delta = (r,) + (0,) * (dimension - 1)
        assert exact_boundary(delta, q) == 1 - q**r / 2
        assert abs(boundary(q, r) - exact_boundary(delta, q)) < SLACK


@pytest.mark.parametrize("q", RATIOS)
def test_the_boundary_is_attained_exactly_where_the_far_quadrant_keeps_half_the_mass(q: Fraction) -> None:
    """Of m entries: where `(1+q)**m <= 2`. Beyond, this perturbation is a little safer than its norm says."""
    for delta in unlike(3, 6):
        entries = sum(map(bool, delta))
        attained = exact_boundary(delta, q) == 1 - q ** l1(delta) / 2
        assert attained == ((1 + q) ** entries <= 2)


@pytest.mark.parametrize("q", RATIOS)
def test_the_worst_half_space_keeps_a_tie_and_is_not_certified(q: Fraction) -> None:
    """f is A where w_1 < r and half the time where w_1 = r, in any dimension; by the tails alone."""

    def p_a(moved: int) -> Fraction:
        return 1 - (tail(r - moved, q) + tail(r + 1 - moved, q)) / 2

    for r in range(1, 20):
        assert p_a(r) == HALF
        assert not is_certified(r, p_a(0) - 2 * SLACK, q)
        assert is_certified(r, p_a(0) + 2 * SLACK, q), "a hair more and the theorem says otherwise"
        assert all(p_a(moved) > HALF for moved in range(-3, r))


@pytest.mark.parametrize("q", RATIOS)
def test_a_slightly_larger_radius_would_be_false(q: Fraction) -> None:
    """The radius times 1.01 certifies r grey levels for a classifier that has a tie there."""
    stretched = scale_of(q) * Fraction(101, 100)
    for r in range(1, 20):
        claimed = majority_boundary("discrete_laplace", stretched, r)(80)
        assert Fraction(claimed.upper) < exact_boundary((r,), q) - SLACK


def random_minority(rng: random.Random, dimension: int, side: int) -> dict[Vector, Fraction]:
    """The probability with which f is not A, on a box; outside the box f is A. Mostly beyond a random half-space."""
    direction = [rng.randint(-3, 3) for _ in range(dimension)]
    threshold = rng.randint(1, 2 * side)
    minority = {}
    for w in product(range(-side, side + 1), repeat=dimension):
        beyond = sum(a * k for a, k in zip(direction, w)) >= threshold
        if rng.random() < (0.9 if beyond else 0.03):
            minority[w] = Fraction(rng.randint(1, 4), 4)
    return minority


def p_a_of(minority: dict[Vector, Fraction], delta: Vector, q: Fraction) -> Fraction:
    lost = Fraction(0)
    for w, share in minority.items():
        for k, d in zip(w, delta):
            share *= probability(k - d, q)
        lost += share
    return 1 - lost


@pytest.mark.parametrize("dimension, side, largest, repeats", [(1, 12, 16, 12), (2, 4, 6, 5)])
def test_no_random_classifier_fails_at_a_certified_perturbation(
    dimension: int, side: int, largest: int, repeats: int
) -> None:
    rng, told = random.Random(23), 0
    for q in RATIOS[:5]:
        for _ in range(repeats):
            minority = random_minority(rng, dimension, side)
            of_delta = {delta: p_a_of(minority, delta, q) for delta in perturbations(dimension, largest)}
            p_a = of_delta[(0,) * dimension]
            failing = [l1(delta) for delta, p in of_delta.items() if p <= HALF]
            if p_a > HALF and failing:
                told += 1
                assert not is_certified(failing[0], p_a, q)
    assert told >= 10
