"""Certified radii: exact to the last integer, whatever SciPy says, and no printed radius is rounded up."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import comb, isqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsmooth_ref.certify import radius
from intsmooth_ref.certify.radius import (
    budget_at_least,
    certified_budget,
    majority_boundary,
    radius_l1,
    radius_sq,
    radius_sq_at_least,
    radius_text,
    require_enough_samples,
)
from intsmooth_ref.errors import ParameterError

ALPHA = Fraction(1, 1000)
SIGMA = Fraction(255, 4)
NOISES = ("discrete_gaussian", "discrete_laplace")

#: 80 digits to nearest: the independent evaluation below keeps 60 of them.
WORKING = Context(prec=80, rounding=ROUND_HALF_EVEN, Emin=-(10**9), Emax=10**9)
PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679")


def normal_upper_tail(x_squared: Fraction) -> Decimal:
    """`1 - Phi(sqrt(x_squared))` by the series with alternating signs, in 80 digits; for `x_squared` below 30."""
    c = WORKING
    x = c.sqrt(c.divide(Decimal(x_squared.numerator), Decimal(x_squared.denominator)))
    half_square = c.divide(c.multiply(x, x), Decimal(2))
    total, power, j = Decimal(0), x, 0
    while abs(power) > Decimal("1e-78"):
        total = c.add(total, c.divide(power, Decimal(2 * j + 1)))
        j += 1
        power = c.divide(c.multiply(power, half_square.copy_negate()), Decimal(j))  # a minus sign would round
    return c.subtract(Decimal("0.5"), c.divide(total, c.sqrt(c.multiply(Decimal(2), PI))))


def laplace_upper_tail(ratio: Fraction) -> Decimal:
    """`exp(-ratio) / 2` in 80 digits."""
    exponent = WORKING.divide(Decimal(-ratio.numerator), Decimal(ratio.denominator))
    return WORKING.divide(WORKING.exp(exponent), Decimal(2))


def independent_tail(count: int, trials: int, failure: Decimal) -> Decimal:
    """`P(Binomial(trials, 1 - failure) >= count)` term by term, with exact binomial coefficients."""
    c = WORKING
    success = c.subtract(Decimal(1), failure)
    odds = c.divide(success, failure)
    term = c.multiply(comb(trials, count), c.multiply(c.power(success, count), c.power(failure, trials - count)))
    total = Decimal(0)
    for j in range(count, trials + 1):
        total = c.add(total, term)
        term = c.divide(c.multiply(c.multiply(term, odds), Decimal(trials - j)), Decimal(j + 1))
    return total


def is_certified(n: int, count: int, trials: int, alpha: Fraction, sigma: Fraction) -> bool:
    """Equation (3) for Gaussian noise."""
    return is_tail_at_most(alpha, count, trials, normal_upper_tail(n / sigma**2) if n else None)


def is_certified_l1(r: int, count: int, trials: int, alpha: Fraction, scale: Fraction) -> bool:
    """Equation (3) for Laplace noise."""
    return is_tail_at_most(alpha, count, trials, laplace_upper_tail(r / scale) if r else None)


def is_tail_at_most(alpha: Fraction, count: int, trials: int, failure: Decimal | None) -> bool:
    """By the independent evaluation, which must be able to tell at 60 digits; exactly for a fair coin (None)."""
    if failure is None:
        return Fraction(sum(comb(trials, j) for j in range(count, trials + 1)), 2**trials) <= alpha
    tail = Fraction(independent_tail(count, trials, failure))
    assert abs(tail - alpha) > alpha / 10**60
    return tail <= alpha


def order(n: int | None) -> int:
    """A radius as a number that compares: to abstain is to claim less than radius 0."""
    return -1 if n is None else n


CASES = [
    (1, 1, Fraction(2, 3), SIGMA),
    (1, 1, Fraction(999, 1000), Fraction(1)),
    (10, 10, ALPHA, SIGMA),
    (10, 10, Fraction(1, 1024), SIGMA),
    (99, 100, ALPHA, SIGMA),
    (100, 100, ALPHA, SIGMA),
    (77, 100, Fraction(1, 20), Fraction(1, 4)),
    (650, 1000, ALPHA, Fraction(255, 2)),
    (999, 1000, ALPHA, Fraction(255)),
    (700, 1000, Fraction(3, 5), Fraction(1000003, 7)),
    (1800, 2500, Fraction(1, 10**12), SIGMA),
    (2500, 2500, Fraction(1, 10**30), SIGMA),
]


@pytest.mark.parametrize("count, trials, alpha, sigma", CASES)
def test_the_radius_is_the_last_integer_that_is_certified(
    count: int, trials: int, alpha: Fraction, sigma: Fraction
) -> None:
    n = radius_sq(count, trials, alpha, sigma)
    assert n is not None
    assert is_certified(n, count, trials, alpha, sigma)
    assert not is_certified(n + 1, count, trials, alpha, sigma)


@pytest.mark.parametrize("count, trials, alpha, scale", CASES)
def test_the_l1_radius_is_the_last_integer_that_is_certified(
    count: int, trials: int, alpha: Fraction, scale: Fraction
) -> None:
    r = radius_l1(count, trials, alpha, scale)
    assert r is not None
    assert is_certified_l1(r, count, trials, alpha, scale)
    assert not is_certified_l1(r + 1, count, trials, alpha, scale)


@pytest.mark.parametrize("radius_of, certified", [(radius_sq, is_certified), (radius_l1, is_certified_l1)])
def test_every_count_of_a_small_vote_gets_the_last_integer_that_is_certified(
    radius_of: Callable[..., int | None], certified: Callable[..., bool]
) -> None:
    for trials in (1, 2, 13, 20):
        for count in range(trials + 1):
            vote = (count, trials, Fraction(1, 20), Fraction(10))
            budget = radius_of(*vote)
            assert budget is None or certified(budget, *vote)
            assert not certified(0 if budget is None else budget + 1, *vote)


@pytest.mark.parametrize("count, trials", [(0, 1), (0, 1000), (500, 1000), (0, 10**7), (5_000_000, 10**7), (1, 1)])
def test_a_vote_that_is_no_significant_majority_abstains(count: int, trials: int) -> None:
    assert radius_sq(count, trials, ALPHA, SIGMA) is None
    assert radius_l1(count, trials, ALPHA, SIGMA) is None


@pytest.mark.parametrize("trials", [10**5, 10**7, 2**32])
def test_a_unanimous_vote_of_many_is_certified_up_to_the_root_of_alpha(trials: int) -> None:
    """For k = N the tail is `Phi(x)**N`, so that the bound of Clopper and Pearson is the N-th root of alpha."""
    n, r = radius_sq(trials, trials, ALPHA, SIGMA), radius_l1(trials, trials, ALPHA, SIGMA)
    assert n is not None and r is not None

    def tail(failure: Decimal) -> Decimal:
        return WORKING.power(WORKING.subtract(Decimal(1), failure), trials)

    for budget, failure in (
        (n, lambda n: normal_upper_tail(n / SIGMA**2)),
        (r, lambda r: laplace_upper_tail(r / SIGMA)),
    ):
        assert tail(failure(budget)) <= Decimal("0.001") < tail(failure(budget + 1))


def test_the_radii_agree_with_the_published_formulas_in_floats() -> None:
    """To the one unit a float may miss by: `sigma * Phi^-1(lower bound)` (Cohen, Rosenfeld and Kolter 2019) and

    `-scale * ln(2 - 2 * lower bound)` (Teng, Lee and Yuan 2020, for the runner-up's bound one less the class's).
    """
    from scipy.stats import beta, norm

    for trials in (100, 1000, 10**5, 10**7):
        for share in (0.52, 0.6, 0.75, 0.9, 0.99, 0.999):
            count = round(share * trials)
            lower_bound = beta.ppf(0.001, count, trials - count + 1)
            published = float(SIGMA) * norm.ppf(lower_bound)
            n = radius_sq(count, trials, ALPHA, SIGMA)
            published_l1 = -float(SIGMA) * np.log(2 - 2 * lower_bound)
            r = radius_l1(count, trials, ALPHA, SIGMA)
            if published > 0:
                assert n is not None and abs(n - published**2) < 1 + 1e-6
                assert r is not None and abs(r - published_l1) < 1 + 1e-6
            else:
                assert n is None and r is None


@pytest.mark.parametrize("radius_of", [radius_sq, radius_l1])
def test_radii_rise_with_the_count_and_fall_with_alpha_shrinking(radius_of: Callable[..., int | None]) -> None:
    counts = [order(radius_of(count, 300, ALPHA, SIGMA)) for count in range(301)]
    assert counts == sorted(counts) and len(set(counts)) > 80
    alphas = [Fraction(1, 10**10), Fraction(1, 1000), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)]
    radii = [order(radius_of(240, 300, alpha, SIGMA)) for alpha in alphas]
    assert radii == sorted(radii) and len(set(radii)) == len(alphas)


@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Forget remembered radii, now, on demand and afterwards."""
    forget = radius._largest_certified.cache_clear
    forget()
    yield forget
    forget()


def all_radii(cases: list[tuple[int, int, Fraction, Fraction]]) -> list[tuple[int | None, int | None]]:
    return [(radius_sq(*case), radius_l1(*case)) for case in cases]


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1e300, 1e300, 3.7, None])
def test_a_nonsensical_scipy_changes_no_radius(
    nonsense: Any, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    import scipy.special

    cases = CASES + [(60, 100, ALPHA, SIGMA), (12, 100, ALPHA, SIGMA), (90_000, 100_000, ALPHA, SIGMA)]
    expected = all_radii(cases)
    for name in ("ndtri", "betaincinv"):
        fresh()
        with monkeypatch.context() as patch:
            patch.setattr(scipy.special, name, lambda *arguments: nonsense)
            assert all_radii(cases) == expected


def test_a_scipy_that_raises_changes_no_radius(monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]) -> None:
    import scipy.special

    def broken(*arguments: float) -> float:
        raise FloatingPointError("broken on purpose")

    expected = all_radii(CASES)
    fresh()
    monkeypatch.setattr(scipy.special, "betaincinv", broken)
    assert all_radii(CASES) == expected


def test_the_callers_decimal_context_changes_no_radius(fresh: Callable[[], None]) -> None:
    expected = all_radii(CASES)
    fresh()
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        assert all_radii(CASES) == expected


def test_numpy_integers_give_the_radii_of_python_integers(fresh: Callable[[], None]) -> None:
    expected = all_radii([(90_000, 100_000, ALPHA, SIGMA)])
    fresh()
    assert all_radii([(np.int32(90_000), np.int32(100_000), ALPHA, SIGMA)]) == expected  # type: ignore[list-item]
    for noise in NOISES:
        boundary = majority_boundary(noise, SIGMA, np.int32(10_000))  # type: ignore[arg-type]
        assert boundary(30) == majority_boundary(noise, SIGMA, 10_000)(30)


@pytest.mark.parametrize(
    "trials, n, alpha", [(100, 2000, Fraction(1, 20)), (1000, 900, Fraction(1, 1000)), (30, 0, Fraction(1, 10))]
)
def test_a_false_radius_is_claimed_no_more_often_than_alpha_allows(trials: int, n: int, alpha: Fraction) -> None:
    """Coverage at the boundary, where it is least: pA = Phi(sqrt(n)/sigma), so that claiming n or more is false.

    `runs` votes are drawn. Were the probability of a false claim alpha, the number of false claims would exceed
    `limit` with probability at most 1e-9 by Bernstein's inequality; the test's failure probability is below that.
    """
    runs, failure = 200_000, 1e-9
    p = 1 - float(normal_upper_tail(n / SIGMA**2))
    counts, frequency = np.unique(np.random.default_rng(15).binomial(trials, p, size=runs), return_counts=True)
    claims = [radius_sq(int(count), trials, alpha, SIGMA) for count in counts]
    false_claims = sum(int(times) for times, claim in zip(frequency, claims) if order(claim) >= n)
    mean, log = runs * float(alpha), -np.log(failure)
    limit = mean + log / 3 + (log**2 / 9 + 2 * log * mean) ** 0.5
    assert false_claims <= limit
    assert false_claims > 0, "a bound that never fails would be too weak to be this one"


def test_the_probability_of_a_false_claim_computed_exactly_is_at_most_alpha() -> None:
    for n in (0, 1, 50, 400, 3000):
        for trials in (10, 60):
            false_counts = [count for count in range(trials + 1) if order(radius_sq(count, trials, ALPHA, SIGMA)) >= n]
            if false_counts:
                failure = normal_upper_tail(n / SIGMA**2)
                assert Fraction(independent_tail(min(false_counts), trials, failure)) <= ALPHA
    for r in (0, 1, 20, 60, 100):
        for trials in (10, 60):
            false_counts = [count for count in range(trials + 1) if order(radius_l1(count, trials, ALPHA, SIGMA)) >= r]
            if false_counts:
                failure = laplace_upper_tail(r / SIGMA)
                assert Fraction(independent_tail(min(false_counts), trials, failure)) <= ALPHA


def exponential_bounds(ratio: Fraction) -> tuple[Fraction, Fraction]:
    """Partial sums of `exp(-ratio)` on both sides of it, some 1e-60 apart: its terms alternate and, once they fall,
    the series lies between any two successive sums."""
    term, sums, j = Fraction(1), [Fraction(0)], 0
    while j < ratio or abs(term) > Fraction(1, 10**60):
        sums.append(sums[-1] + term)
        j += 1
        term *= -ratio / j
    return min(sums[-2:]), max(sums[-2:])


@pytest.mark.parametrize("scale", [Fraction(1, 4), Fraction(1), Fraction(22, 7), Fraction(45)])
def test_the_laplace_boundary_encloses_the_exponential_series_in_exact_fractions(scale: Fraction) -> None:
    for budget in (1, 2, 3, 7, 10):
        lower, upper = exponential_bounds(budget / scale)
        for digits in (10, 25, 50):
            enclosure = majority_boundary("discrete_laplace", scale, budget)(digits)
            assert Fraction(enclosure.lower) <= 1 - upper / 2 and 1 - lower / 2 <= Fraction(enclosure.upper)
            assert Fraction(enclosure.upper) - Fraction(enclosure.lower) <= Fraction(4, 10**digits)


@pytest.mark.parametrize("sigma", [Fraction(1, 4), Fraction(1), Fraction(22, 7), SIGMA])
def test_the_gaussian_boundary_encloses_the_independent_normal_distribution(sigma: Fraction) -> None:
    for budget in (1, 2, 3, 10000):
        if budget / sigma**2 < 30:
            exact = WORKING.subtract(Decimal(1), normal_upper_tail(budget / sigma**2))
            for digits in (10, 25, 50):
                enclosure = majority_boundary("discrete_gaussian", sigma, budget)(digits)
                assert enclosure.lower <= exact <= enclosure.upper
                assert enclosure.upper - enclosure.lower <= Decimal(10) ** (2 - digits)


@pytest.mark.parametrize("noise", NOISES)
def test_a_budget_of_nothing_takes_exactly_a_fair_coin(noise: str) -> None:
    half = majority_boundary(noise, SIGMA, 0)(25)
    assert half.lower == half.upper == Decimal("0.5")
    assert certified_budget(noise, Fraction(1, 4), 10, 10, Fraction(1, 1024)) == 0
    assert certified_budget(noise, Fraction(1, 4), 10, 10, Fraction(1, 1024) - Fraction(1, 10**50)) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 10, Fraction(0), SIGMA), "alpha 0"),
        ((5, 10, Fraction(-1, 1000), SIGMA), "alpha -1/1000"),
        ((5, 10, Fraction(1), SIGMA), "alpha 1"),
        ((5, 10, 0.001, SIGMA), "exact rational"),
        ((5, 10, ALPHA, 63.75), "sigma 63.75: expected an exact rational"),
        ((5, 10, ALPHA, Fraction(0)), "sigma 0: expected a positive number of grey levels"),
        ((0, 0, ALPHA, SIGMA), "0 trials"),
        ((5, 2**32 + 1, ALPHA, SIGMA), "trials"),
        ((-1, 10, ALPHA, SIGMA), "-1 votes"),
        ((11, 10, ALPHA, SIGMA), "11 votes"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        radius_sq(*arguments)
    with pytest.raises(ParameterError, match=message.replace("sigma", "scale")):
        radius_l1(*arguments)


def test_noise_and_budgets_that_no_theorem_speaks_of_are_refused() -> None:
    for refused in (
        lambda: certified_budget("rounded_normal", SIGMA, 10, 10, ALPHA),
        lambda: majority_boundary("discrete_uniform", SIGMA, 1),
        lambda: budget_at_least("gaussian", Fraction(1)),
    ):
        with pytest.raises(ParameterError, match="expected discrete_gaussian or discrete_laplace"):
            refused()
    for budget in (-1, 2.5):
        with pytest.raises(ParameterError, match=f"budget {budget}: expected an integer of at least 0"):
            majority_boundary("discrete_laplace", SIGMA, budget)  # type: ignore[arg-type]
    for scale, message in ((Fraction(0), "scale 0: expected a positive"), (1.5, "scale 1.5: expected an exact")):
        with pytest.raises(ParameterError, match=message):
            majority_boundary("discrete_laplace", scale, 1)  # type: ignore[arg-type]


def test_a_run_too_small_to_certify_anything_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ParameterError, match="9 samples cannot certify anything at alpha = 0.001.* at least 10$"):
        require_enough_samples(9, ALPHA)
    require_enough_samples(10, ALPHA)
    assert radius_sq(9, 9, ALPHA, SIGMA) is None and radius_sq(10, 10, ALPHA, SIGMA) is not None
    with pytest.raises(ParameterError, match="alpha"):
        require_enough_samples(10, Fraction(0))


def test_every_printed_radius_is_the_root_rounded_down() -> None:
    for n in range(10**5 + 1):
        text = radius_text(n)
        whole, fraction = text.split(".")
        scaled = int(whole) * 10**6 + int(fraction)
        assert len(fraction) == 6 and scaled**2 * 65025 <= n * 10**12 < (scaled + 1) ** 2 * 65025


@settings(deadline=None)
@given(st.integers(0, 10**30), st.integers(1, 40))
def test_a_printed_radius_of_any_length_is_rounded_down(n: int, decimals: int) -> None:
    value, unit = Fraction(radius_text(n, decimals)), Fraction(1, 10**decimals)
    assert value**2 * 65025 <= n < (value + unit) ** 2 * 65025


def test_radii_that_float_formatting_rounds_up_are_printed_below_the_root() -> None:
    """`{:.3f}` and `{:.6f}` of the float root print about half of all radii too large; `radius_text` none of them."""
    for decimals in (3, 6):
        rounded_up = [n for n in range(2000) if Fraction(f"{n**0.5 / 255:.{decimals}f}") ** 2 * 65025 > n]
        assert len(rounded_up) > 800
        for n in rounded_up:
            printed = f"{n**0.5 / 255:.{decimals}f}"
            assert Fraction(radius_text(n, decimals)) == Fraction(printed) - Fraction(1, 10**decimals)


def test_known_radii_print_as_known() -> None:
    known = {0: "0.000000", 1: "0.003921", 10000: "0.392156", 65025: "1.000000", 4 * 65025: "2.000000"}
    assert {n: radius_text(n) for n in known} == known
    assert radius_text(2 * 65025, 10) == "1.4142135623"
    assert radius_text(np.int64(2**40), 12) == radius_text(2**40, 12)
    for arguments in ((-1, 6), (4, 0)):
        with pytest.raises(ParameterError, match="expected at least"):
            radius_text(*arguments)


@settings(deadline=None)
@given(st.fractions(min_value=0, max_value=10, max_denominator=10**6))
def test_the_smallest_radius_sq_that_reaches_a_radius_does_and_the_one_before_does_not(r: Fraction) -> None:
    n = radius_sq_at_least(r)
    assert r**2 * 65025 <= n and (n == 0 or n - 1 < r**2 * 65025)


@settings(deadline=None)
@given(st.fractions(min_value=0, max_value=10, max_denominator=10**6))
def test_the_smallest_l1_radius_that_reaches_a_radius_does_and_the_one_before_does_not(radius: Fraction) -> None:
    r = budget_at_least("discrete_laplace", radius)
    assert radius * 255 <= r and (r == 0 or r - 1 < radius * 255)
    assert budget_at_least("discrete_gaussian", radius) == radius_sq_at_least(radius)


def test_an_l1_radius_is_printed_by_its_square_and_rounded_down() -> None:
    for r in range(2000):
        assert Fraction(radius_text(r**2)) == Fraction(r * 10**6 // 255, 10**6)


def test_whole_grey_levels_are_reached_exactly_and_impossible_radii_refused() -> None:
    assert radius_sq_at_least(Fraction(0)) == 0
    for level in (1, 2, 51, 128, 255, 1000):
        assert radius_sq_at_least(Fraction(level, 255)) == level**2
        assert isqrt(radius_sq_at_least(Fraction(level, 255) + Fraction(1, 10**30)) - 1) == level
    for wrong in (Fraction(-1, 2), 0.5):
        with pytest.raises(ParameterError, match="radius"):
            radius_sq_at_least(wrong)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="radius"):
            budget_at_least("discrete_laplace", wrong)  # type: ignore[arg-type]
