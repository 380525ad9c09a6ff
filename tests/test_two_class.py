"""Theorem 2 of `certify/PROOF.md`, and the radius of two classes, against exact enumeration.

The theorem: let `P(f(x+z) = A) >= Phi(xA)` and `P(f(x+z) = c) <= Phi(xB)` for every other class. If
`2 sqrt(n) / s <= xA - xB - 2**-32`, n = ||delta||**2, then A is likelier than every other class at `x + delta`.

Probabilities are exact but for what `test_theorem.py` cuts off, far below its `SLACK`; a near-tie counts as lost by A,
and as certified, both against the theorem.
"""

from __future__ import annotations

import decimal
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, count, product
from math import comb, isqrt
from typing import Any

import numpy as np
import pytest
from test_theorem import SLACK, UNIT, Vector, directions, distribution, lattice_box, mass, noise, norm_sq, perturbations

from intsmooth_ref.certify import two_class
from intsmooth_ref.certify.radius import radius_sq
from intsmooth_ref.certify.two_class import argument_bounds, radius_sq_two_class, s_lower, two_class_claim
from intsmooth_ref.errors import ArithmeticRangeError, ParameterError
from intsmooth_ref.interval import Interval, normal_cdf, normal_tail
from intsmooth_ref.noise.distributions import discrete_gaussian

ALPHA = Fraction(1, 1000)
SIGMA = Fraction(255, 4)
GRID = 2**32

SMALL_SIGMAS = [Fraction(1, 4), Fraction(2, 5), Fraction(1, 2), Fraction(1), Fraction(7, 4), Fraction(3)]
SIGMAS = [*SMALL_SIGMAS, Fraction(255, 100), Fraction(255, 8), SIGMA, Fraction(255, 2)]
LARGE_SIGMAS = [Fraction(255), Fraction(1024)]


# The scale s


def exact_s(sigma: Fraction) -> Any:
    """`1 / (2 Phi^-1((1 + p0) / 2))` by mpmath, p0 from the sum of all weights after Poisson summation."""
    mpmath = pytest.importorskip("mpmath")
    width = mpmath.mpf(sigma.numerator) / sigma.denominator
    weights = (mpmath.exp(-2 * (mpmath.pi * width * m) ** 2) for m in range(1, 40))
    p0 = 1 / (width * mpmath.sqrt(2 * mpmath.pi) * (1 + 2 * sum(weights)))
    return 1 / (2 * mpmath.sqrt(2) * mpmath.erfinv(p0))


def check_s(sigma: Fraction) -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        assert s_lower(sigma) * GRID == int(mpmath.floor(exact_s(sigma) * GRID))
    assert 0 < s_lower(sigma) < sigma


@pytest.mark.parametrize("sigma", SIGMAS)
def test_s_is_rounded_down_to_the_last_of_its_32_bits(sigma: Fraction) -> None:
    check_s(sigma)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", LARGE_SIGMAS)
def test_s_is_rounded_down_to_the_last_of_its_32_bits_for_the_widest_noise(sigma: Fraction) -> None:
    check_s(sigma)


@pytest.mark.parametrize("sigma", SMALL_SIGMAS)
def test_no_step_of_the_normal_quantiles_of_the_noise_is_larger_than_the_middle_one(sigma: Fraction) -> None:
    """By mpmath, out to 8 sigma; the steps even fall from the middle on."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(90):
        tails = [sum(p for j, p in noise(sigma).items() if j > k) for k in range(max(2, int(8 * sigma)))]
        h = [mpmath.sqrt(2) * mpmath.erfinv(1 - mpmath.mpf(2 * tail) / UNIT) for tail in tails]
        steps = [2 * h[0], *(after - before for before, after in zip(h, h[1:]))]
        assert all(after < before for before, after in zip(steps, steps[1:]))
        s = mpmath.mpf(s_lower(sigma).numerator) / s_lower(sigma).denominator
        assert steps[0] <= 1 / s and steps[0] > 1 / (s + mpmath.mpf(1) / GRID)


@pytest.mark.parametrize("sigma", [Fraction(1, 4), Fraction(1), Fraction(7, 4), Fraction(255, 8)])
def test_the_steps_are_checked_to_the_end_of_the_samplers_table(sigma: Fraction) -> None:
    tails, table = two_class._tails(sigma, 30), discrete_gaussian(sigma)
    assert len(tails) - 1 == table.maximum
    for k, tail in enumerate(tails[:-1]):  # P(z > k) = F(-k-1), of which the table holds the floor
        lower, upper = Fraction(tail.lower) * 2**256, Fraction(tail.upper) * 2**256
        threshold = table.thresholds[table.maximum - k - 1]
        assert threshold <= upper and lower < threshold + 1
        assert (upper - lower) * 10**30 < lower
    assert tails[-1].upper < Fraction(1, 2**256) <= tails[-2].lower


def normal_steps(arguments: list[Fraction]) -> list[Interval]:
    """The tails of a law whose h(k) are these."""
    return [normal_tail(x, 60) for x in arguments]


@pytest.mark.parametrize("step", [Fraction(1, 10), Fraction(1, 3), Fraction(7, 2)])
def test_equal_steps_pass_and_one_that_is_larger_by_a_hair_does_not(step: Fraction) -> None:
    hair = Fraction(1, 10**20)
    arguments = [step / 2 + k * step for k in range(int(18 / step))]
    assert two_class._steps_are_at_most(step + hair, normal_steps(arguments), 30)
    assert not two_class._steps_are_at_most(step - hair, normal_steps(arguments), 30)
    for wrong in (1, len(arguments) // 2, len(arguments) - 1):
        bent = arguments[:wrong] + [x + 2 * hair for x in arguments[wrong:]]
        assert not two_class._steps_are_at_most(step + hair, normal_steps(bent), 30)
        assert two_class._steps_are_at_most(step + 3 * hair, normal_steps(bent), 30)


def test_no_s_is_given_for_a_law_whose_middle_step_is_not_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uniform law on -4 .. 4: its last step is larger."""
    monkeypatch.setattr(
        two_class, "_tails", lambda sigma, digits: [Interval.of(Fraction(4 - k, 9), digits) for k in range(4)]
    )
    with pytest.raises(ArithmeticRangeError, match="sigma 617/500"):
        s_lower(Fraction(617, 500))


# The theorem


#: Classes that are rarer are left out: what is cut off the noise would show in their quantiles.
RAREST = Fraction(1, 2**100)


@lru_cache(maxsize=None)
def quantile(p: Fraction) -> Fraction:
    """`Phi^-1(p)` by mpmath, to more than 40 digits for `p` in RAREST .. 1 - RAREST."""
    mpmath = pytest.importorskip("mpmath")
    assert RAREST <= p <= 1 - RAREST
    with mpmath.workdps(80):
        x = mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p.numerator) / p.denominator - 1)
        return Fraction(mpmath.nstr(x, 70))


def bound(p_a: Fraction, p_b: Fraction, scale: Fraction) -> Fraction:
    """The theorem's bound on sqrt(n) without its margin, with `scale` as s."""
    return scale * (quantile(p_a) - quantile(p_b)) / 2


def is_certified(n: int, p_a: Fraction, p_b: Fraction, scale: Fraction) -> bool:
    """Without the margin, and with near-ties certified: against the theorem."""
    limit = bound(p_a, p_b, scale) * (1 + Fraction(1, 10**30))
    return limit >= 0 and n <= limit**2


class Slab:
    """f = A where a value is up to `below`, B where it is from `above` on, C between."""

    def __init__(self, law: dict[int, int]) -> None:
        self.values = sorted(law)
        self.up_to = list(accumulate((law[value] for value in self.values), initial=0))

    def __call__(self, below: int, above: int, shift: int) -> tuple[int, int, int]:
        """P(A), P(B), P(C) in units of 1/UNIT after a shift of the value."""
        a = self.up_to[bisect_right(self.values, below - shift)]
        a_or_c = self.up_to[bisect_left(self.values, above - shift)]
        return a, self.up_to[-1] - a_or_c, a_or_c - a


def test_the_formula_for_continuous_noise_claims_a_perturbation_at_which_two_classes_tie() -> None:
    """sigma = 1: A on z <= 0, B on z >= 2, C between. At delta = 1 A and B have the same probability, by symmetry."""
    slab = Slab(distribution((1,), Fraction(1)))
    a, b, _ = slab(0, 2, shift=0)
    moved_a, moved_b, _ = slab(0, 2, shift=1)
    assert moved_a == moved_b
    p_a, p_b = Fraction(a, UNIT), Fraction(b, UNIT)
    assert f"{float(bound(p_a, p_b, Fraction(1))):.4f}" == "1.0449"
    assert f"{float(bound(p_a, p_b, s_lower(Fraction(1)))):.6f}" == "0.999213"
    assert is_certified(1, p_a, p_b, Fraction(1)) and not is_certified(1, p_a, p_b, s_lower(Fraction(1)))


@pytest.mark.parametrize("sigma, stretch", [
    (Fraction(1, 4), "1.24"), (Fraction(1, 2), "1.06"), (Fraction(1), "1.0008"), (Fraction(7, 4), "1.00003"),
    (Fraction(3), "1.000001"),
])  # fmt: skip
def test_a_slightly_larger_s_would_be_false(sigma: Fraction, stretch: str) -> None:
    """The same classes tie at delta = 1; the theorem's bound falls short of 1 by what T8 of the proof says."""
    a, b, _ = Slab(distribution((1,), sigma))(0, 2, shift=0)
    p_a, p_b = Fraction(a, UNIT), Fraction(b, UNIT)
    assert not is_certified(1, p_a, p_b, s_lower(sigma))
    assert is_certified(1, p_a, p_b, s_lower(sigma) * Fraction(stretch))


def reach(sigma: Fraction, largest: int) -> int:
    """Up to some 6 sigma; the classes of the tests below lose long before."""
    return max(2, min(largest, int(36 * sigma**2)))


@pytest.mark.parametrize("sigma", SMALL_SIGMAS)
@pytest.mark.parametrize("dimension, largest", [(1, 64), (2, 20)])
def test_no_slab_is_lost_at_a_certified_perturbation(dimension: int, largest: int, sigma: Fraction) -> None:
    """A below a threshold, B above another, C between, along every small direction: the worst are among them."""
    lost, s = 0, s_lower(sigma)
    for direction in directions(dimension):
        slab = Slab(distribution(direction, sigma))
        shifts = {}
        for delta in perturbations(dimension, reach(sigma, largest)):
            shifts.setdefault(sum(a * k for a, k in zip(direction, delta)), norm_sq(delta))
        square = norm_sq(direction)
        for below, width in product(range(-1, square + 1), range(1, square + 2)):
            a, b, c = slab(below, below + width, shift=0)
            p_a, p_b = Fraction(a, UNIT), Fraction(max(b, c), UNIT)
            if p_a - p_b <= SLACK or p_b < RAREST:
                continue
            failing = [n for shift, n in shifts.items() if is_lost(slab(below, below + width, shift))]
            if failing:
                lost += 1
                assert not is_certified(min(failing), p_a, p_b, s)
    assert lost >= 5


def is_lost(probabilities: tuple[int, int, int]) -> bool:
    a, b, c = probabilities
    return Fraction(a - max(b, c), UNIT) <= SLACK


@pytest.mark.parametrize("dimension, radius, largest, classes, repeats", [
    (1, 9, 64, 3, 20), (1, 9, 64, 4, 20), (2, 3, 10, 3, 5), (2, 3, 10, 4, 5),
])  # fmt: skip
def test_no_random_classifier_loses_at_a_certified_perturbation(
    dimension: int, radius: int, largest: int, classes: int, repeats: int
) -> None:
    """f is A outside a box; in it, A mostly before a random half-space, beyond it mostly one of the others."""
    rng, told = random.Random(19), 0
    for sigma in SMALL_SIGMAS[1:5]:
        deltas = list(perturbations(dimension, reach(sigma, largest)))
        for _ in range(repeats):
            direction = [rng.randint(-3, 3) for _ in range(dimension)]
            threshold, others = rng.randint(0, radius), list(range(1, classes))
            regions: list[dict[Vector, Fraction]] = [{} for _ in others]
            for w in lattice_box(dimension, radius):
                beyond = sum(a * k for a, k in zip(direction, w)) >= threshold
                if rng.random() < (0.95 if beyond else 0.05):
                    regions[rng.choice(others) - 1 if rng.random() < 0.3 else 0][w] = Fraction(1)

            def probabilities(delta: Vector) -> tuple[Fraction, Fraction]:
                masses = [mass(region, delta, sigma) for region in regions]
                return 1 - sum(masses, Fraction(0)), max(masses)

            p_a, p_b = probabilities((0,) * dimension)
            failing = next((norm_sq(d) for d in deltas if lead(probabilities(d)) <= SLACK), None)
            if p_b >= RAREST and lead((p_a, p_b)) > SLACK and failing is not None:
                told += 1
                assert not is_certified(failing, p_a, p_b, s_lower(sigma))
    assert told >= 5


def lead(probabilities: tuple[Fraction, Fraction]) -> Fraction:
    return probabilities[0] - probabilities[1]


# From votes to the radius


def phi(x: int) -> Fraction:
    """A lower bound of `Phi(x / GRID)`, good to 80 digits."""
    argument = Fraction(abs(x), GRID)
    return Fraction(normal_cdf(argument**2, 80).lower) if x >= 0 else Fraction(normal_tail(argument, 80).lower)


def least_after_shift(p: Fraction, of_delta: dict[int, int], n: int) -> Fraction:
    """Neyman and Pearson's: the least probability that is left at delta of one that is p without it, exactly."""
    left = Fraction(0)
    rest = p * UNIT
    for value in sorted(of_delta):
        part = min(rest, Fraction(of_delta[value]))
        left += part / of_delta[value] * of_delta.get(value - n, 0)
        rest -= part
    return left / UNIT


@pytest.mark.parametrize("sigma, trials", [(Fraction(1), 30), (Fraction(7, 4), 12), (Fraction(3), 12)])
@pytest.mark.parametrize("dimension", [1, 2])
def test_no_radius_of_a_whole_table_exceeds_the_exact_answer_at_the_confidence_bounds(
    dimension: int, sigma: Fraction, trials: int
) -> None:
    """Every vote among three classes. With pA and pB at their bounds, the worst classes must not meet."""
    alpha, radii, covered = Fraction(1, 4), set(), 0
    deltas = [d for d in perturbations(dimension, 16) if min(d) >= 0 and list(d) == sorted(d)]
    laws = [(norm_sq(delta), distribution(delta, sigma)) for delta in deltas]
    for a, b in product(range(trials + 1), repeat=2):
        votes = (a, b, trials - a - b)
        n = radius_sq_two_class(votes, 0, alpha, sigma, dimension) if 0 <= votes[2] <= b else None
        if n is None:
            continue
        assert n < 16, "the perturbations above must reach as far"
        radii.add(n)
        bounds = argument_bounds(votes, 0, alpha)
        assert bounds is not None
        p_a, rest = phi(bounds[0]), phi(-bounds[1])  # pB = 1 - rest
        for norm, law in laws:
            if norm <= n:
                covered += 1
                assert least_after_shift(p_a, law, norm) + least_after_shift(rest, law, norm) - 1 > SLACK
    assert len(radii) >= 2 and covered > 0


@pytest.mark.parametrize("claim", [radius_sq_two_class, lambda *arguments: (two_class_claim(*arguments) or (None,))[0]])
def test_a_false_claim_has_at_most_probability_alpha_in_exact_multinomial_sums(
    claim: Callable[..., int | None]
) -> None:
    """Slabs for which A is lost first at some n: the votes whose claim covers that n."""
    sigma, trials, largest = Fraction(2), 14, Fraction(0)
    alpha = Fraction(1, 4)
    slab = Slab(distribution((1,), sigma))
    for below, width in product(range(-1, 4), range(1, 6)):
        p = [Fraction(q, UNIT) for q in slab(below, below + width, shift=0)]
        lost_at = next(m**2 for m in range(20) if is_lost(slab(below, below + width, m)))
        false = Fraction(0)
        for a, b in product(range(trials + 1), repeat=2):
            c = trials - a - b
            if c >= 0:
                claimed = claim((a, b, c), 0, alpha, sigma, 1)
                if claimed is not None and claimed >= lost_at:
                    false += comb(trials, a) * comb(trials - a, b) * p[0] ** a * p[1] ** b * p[2] ** c
        assert false <= alpha
        largest = max(largest, false)
    assert largest > alpha / 25, "the claims are not so modest that the bound says nothing"


def exact_tail(count: int, trials: int, x: int) -> Fraction:
    """`P(Binomial(trials, Phi(x / GRID)) >= count)`, good to some 45 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        p = mpmath.erfc(-mpmath.mpf(x) / GRID / mpmath.sqrt(2)) / 2
        terms = [comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(count, trials + 1)]
        return Fraction(mpmath.nstr(mpmath.fsum(terms), 55))


@pytest.mark.parametrize("count, trials", [
    (1, 1), (1, 12), (12, 12), (7, 20), (1, 1000), (480, 1000), (500, 1000), (517, 1000), (990, 1000), (1000, 1000),
])  # fmt: skip
@pytest.mark.parametrize("level", [Fraction(1, 2000), Fraction(1, 18000), Fraction(1, 3), Fraction(1, 10**400)])
def test_the_arguments_are_the_last_of_their_grid_that_the_votes_show(
    count: int, trials: int, level: Fraction
) -> None:
    x = two_class._largest_argument(count, trials, level)
    if x is None:
        assert exact_tail(count, trials, -12 * GRID) > level
    else:
        assert abs(x) <= 12 * GRID
        assert exact_tail(count, trials, x) <= level < exact_tail(count, trials, x + 1)


@pytest.mark.parametrize("votes, prediction", [((12, 5, 3), 0), ((3, 12, 5), 1), ((9, 0, 0, 0), 0), ((2, 7, 7, 4), 1)])
def test_the_bounds_of_a_vote_are_the_last_of_their_grid_by_the_tails_of_both_classes(
    votes: tuple[int, ...], prediction: int
) -> None:
    """Half of alpha for the class, half shared by the others; the runner-up's is a lower tail."""
    bounds, alpha, trials = argument_bounds(votes, prediction, Fraction(1, 20)), Fraction(1, 20), sum(votes)
    assert bounds is not None
    (x_a, x_b), runner_up = bounds, max(votes[:prediction] + votes[prediction + 1 :])
    assert exact_tail(votes[prediction], trials, x_a) <= alpha / 2 < exact_tail(votes[prediction], trials, x_a + 1)
    share = alpha / 2 / (len(votes) - 1)
    assert 1 - exact_tail(runner_up + 1, trials, x_b) <= share < 1 - exact_tail(runner_up + 1, trials, x_b - 1)


def test_the_argument_of_a_fair_coin_is_zero_where_its_tail_is_the_level() -> None:
    assert two_class._largest_argument(10, 10, Fraction(1, 2**10)) == 0
    assert two_class._largest_argument(10, 10, Fraction(1, 2**10) - Fraction(1, 10**30)) == -1
    assert two_class._largest_argument(0, 10, Fraction(999, 1000)) is None


@pytest.mark.parametrize("guess", [-12 * GRID, 0, 12345, 12 * GRID])
def test_what_scipy_guesses_changes_nothing(guess: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [two_class._largest_argument(count, 100, ALPHA) for count in (0, 1, 30, 99, 100)]
    monkeypatch.setattr(two_class, "_guess", lambda *_: guess)
    search = two_class._largest_argument.__wrapped__
    assert [search(count, 100, ALPHA) for count in (0, 1, 30, 99, 100)] == expected


def test_a_guess_is_made_without_scipy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.special", None)
    assert two_class._guess(30, 100, ALPHA) == 0


@pytest.mark.parametrize("votes", [
    (1000, 0, 0), (990, 10, 0), (600, 200, 200), (450, 100, 56, 56, 56, 56, 56, 56, 56, 58),
    (200, 100, 100, *(75,) * 8),
])  # fmt: skip
@pytest.mark.parametrize("sigma", [Fraction(1, 2), SIGMA, Fraction(255, 2)])
def test_the_radius_is_the_last_integer_of_equation_1(votes: tuple[int, ...], sigma: Fraction) -> None:
    n, bounds = radius_sq_two_class(votes, 0, ALPHA, sigma, 3072), argument_bounds(votes, 0, ALPHA)
    assert n is not None and bounds is not None
    gap = (bounds[0] - bounds[1] - 1) * s_lower(sigma)  # in units of 1/GRID
    assert gap >= 0 and 4 * n * GRID**2 <= gap**2 < 4 * (n + 1) * GRID**2


@pytest.mark.parametrize("sigma", [Fraction(1, 4), Fraction(1), Fraction(51, 20)])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 30])
def test_the_margin_of_equation_1_is_one_step_of_the_grid(
    n: int, sigma: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the least difference that leaves room for the margin on n is certified, one step before it is not."""
    units = s_lower(sigma).numerator * GRID // s_lower(sigma).denominator
    root = isqrt(4 * n * GRID**4)
    without_margin = next(x for x in count(root // units) if 4 * n * GRID**4 <= (units * x) ** 2)
    for difference, expected in ((without_margin + 1, n), (without_margin, n - 1)):
        monkeypatch.setattr(two_class, "argument_bounds", lambda *_: (difference - 5, -5))
        assert order(radius_sq_two_class((2, 1), 0, ALPHA, sigma, 1)) == expected


def test_votes_that_are_too_close_abstain() -> None:
    for votes in ((334, 333, 333), (0, 0, 10), (0, 10, 0), (5, 5), (1, 0)):
        assert radius_sq_two_class(votes, 0, ALPHA, SIGMA, 10) is None
        assert two_class_claim(votes, 0, ALPHA, SIGMA, 10) is None


def test_classes_are_counted_wherever_they_stand() -> None:
    votes = [56, 100, 56, 450, 56, 56, 56, 56, 56, 58]
    expected = radius_sq_two_class(sorted(votes, reverse=True), 0, ALPHA, SIGMA, 3072)
    assert expected is not None and expected > 0
    assert radius_sq_two_class(votes, 3, ALPHA, SIGMA, 3072) == expected
    assert radius_sq_two_class(np.array(votes, np.int32), int(np.int64(3)), ALPHA, SIGMA, 3072) == expected
    assert radius_sq_two_class(votes, 1, ALPHA, SIGMA, 3072) is None


def test_a_vote_that_the_runner_up_loses_or_the_prediction_wins_never_shrinks_the_radius() -> None:
    for sigma in (Fraction(1), SIGMA):
        for a in range(20, 40):
            n, moved, lost = (
                radius_sq_two_class(votes, 0, Fraction(1, 20), sigma, 1)
                for votes in ((a, 14, 6), (a + 1, 13, 6), (a, 13, 7))
            )
            assert order(n) <= order(lost) and order(n) <= order(moved)


def order(n: int | None) -> int:
    """A radius as a number that compares: to abstain is to claim less than radius 0."""
    return -1 if n is None else n


def test_between_two_classes_the_majority_is_never_beaten() -> None:
    for alpha, sigma, trials in product((Fraction(1, 20), ALPHA), (Fraction(1, 2), Fraction(3), SIGMA), (13, 40)):
        for a in range(trials + 1):
            two = radius_sq_two_class((a, trials - a), 0, alpha, sigma, 1)
            assert order(two) <= order(radius_sq(a, trials, alpha / 2, sigma))
            claim = two_class_claim((a, trials - a), 0, alpha, sigma, 1)
            assert claim is None or claim == (radius_sq(a, trials, alpha / 2, sigma), "majority")


def test_the_claim_is_the_larger_one_of_both_theorems() -> None:
    found = set()
    for a, b in product(range(0, 41, 2), repeat=2):
        votes = (a, b, *[(40 - a - b) // 8] * 8)
        if min(votes) < 0 or a < b:
            continue
        two = radius_sq_two_class(votes, 0, Fraction(1, 20), Fraction(10), 1)
        one = radius_sq(a, sum(votes), Fraction(1, 40), Fraction(10))
        claim = two_class_claim(votes, 0, Fraction(1, 20), Fraction(10), 1)
        if order(one) < order(two):
            assert claim == (two, "two-class")
        else:
            assert claim == (None if one is None else (one, "majority"))
        found.add(claim and claim[1])
    assert found == {None, "majority", "two-class"}


def test_a_class_without_majority_is_certified_and_one_with_it_certified_further() -> None:
    weak = (450, 100, 56, 56, 56, 56, 56, 56, 56, 58)
    assert radius_sq(450, 1000, ALPHA, SIGMA) is None
    n = radius_sq_two_class(weak, 0, ALPHA, SIGMA, 3072)
    assert n is not None and two_class_claim(weak, 0, ALPHA, SIGMA, 3072) == (n, "two-class") and n > 25**2
    spread = (600,) + (100,) * 4
    assert order(radius_sq_two_class(spread, 0, ALPHA, SIGMA, 3072)) > order(radius_sq(600, 1000, ALPHA, SIGMA))


def test_the_callers_decimal_context_changes_nothing() -> None:
    sigma = Fraction(37, 32)
    expected = two_class._checked_s.__wrapped__(sigma), two_class._largest_argument.__wrapped__(30, 50, ALPHA)
    with decimal.localcontext() as context:
        context.prec, context.rounding = 3, decimal.ROUND_UP
        again = two_class._checked_s.__wrapped__(sigma), two_class._largest_argument.__wrapped__(30, 50, ALPHA)
    assert again == expected


@pytest.mark.parametrize("changed, message", [
    ({"votes": (10,)}, "1 classes: expected at least 2"),
    ({"votes": (10, -1)}, "-1 votes for a class"),
    ({"votes": (0, 0)}, "0 votes: expected 1 to 4294967296"),
    ({"votes": (2**32, 1)}, "4294967297 votes"),
    ({"prediction": 2}, "prediction 2: expected 0 to 1"),
    ({"prediction": -1}, "prediction -1"),
    ({"alpha": Fraction(0)}, "alpha"),
    ({"alpha": Fraction(1)}, "alpha"),
    ({"alpha": 0.001}, "alpha 0.001: expected a Fraction"),
    ({"sigma": 63.75}, "sigma 63.75: expected a Fraction"),
    ({"sigma": Fraction(1, 5)}, "expected a Fraction, 1/4 to 1024 grey levels"),
    ({"sigma": Fraction(1025)}, "expected a Fraction, 1/4 to 1024 grey levels"),
    ({"dimension": 0}, "0 values in an image"),
    ({"dimension": 2**24 + 1}, "16777217 values in an image"),
])  # fmt: skip
def test_impossible_parameters_are_refused(changed: dict[str, Any], message: str) -> None:
    parameters = {"votes": (10, 5), "prediction": 0, "alpha": ALPHA, "sigma": Fraction(1), "dimension": 10, **changed}
    for function in (radius_sq_two_class, two_class_claim):
        with pytest.raises(ParameterError, match=message):
            function(**parameters)
