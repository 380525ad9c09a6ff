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
from intsmooth_ref.certify.radius import radius_sq, radius_sq_at_least, radius_text, require_enough_samples
from intsmooth_ref.errors import ParameterError

ALPHA = Fraction(1, 1000)
SIGMA = Fraction(255, 4)

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
        power = c.divide(c.multiply(power, -half_square), Decimal(j))
    return c.subtract(Decimal("0.5"), c.divide(total, c.sqrt(c.multiply(Decimal(2), PI))))


def independent_tail(count: int, trials: int, x_squared: Fraction) -> Decimal:
    """`P(Binomial(trials, Phi(sqrt(x_squared))) >= count)` term by term, with exact binomial coefficients."""
    c = WORKING
    failure = normal_upper_tail(x_squared)
    success = c.subtract(Decimal(1), failure)
    odds = c.divide(success, failure)
    term = c.multiply(comb(trials, count), c.multiply(c.power(success, count), c.power(failure, trials - count)))
    total = Decimal(0)
    for j in range(count, trials + 1):
        total = c.add(total, term)
        term = c.divide(c.multiply(c.multiply(term, odds), Decimal(trials - j)), Decimal(j + 1))
    return total


def is_certified(n: int, count: int, trials: int, alpha: Fraction, sigma: Fraction) -> bool:
    """Equation (1) by the independent evaluation, which must be able to tell at 60 digits."""
    if n == 0:
        return Fraction(sum(comb(trials, j) for j in range(count, trials + 1)), 2**trials) <= alpha
    tail = Fraction(independent_tail(count, trials, n / sigma**2))
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


def test_every_count_of_a_small_vote_gets_the_last_integer_that_is_certified() -> None:
    for trials in (1, 2, 13, 20):
        for count in range(trials + 1):
            n = radius_sq(count, trials, Fraction(1, 20), Fraction(10))
            if n is None:
                assert not is_certified(0, count, trials, Fraction(1, 20), Fraction(10))
            else:
                assert is_certified(n, count, trials, Fraction(1, 20), Fraction(10))
                assert not is_certified(n + 1, count, trials, Fraction(1, 20), Fraction(10))


@pytest.mark.parametrize("count, trials", [(0, 1), (0, 1000), (500, 1000), (0, 10**7), (5_000_000, 10**7), (1, 1)])
def test_a_vote_that_is_no_significant_majority_abstains(count: int, trials: int) -> None:
    assert radius_sq(count, trials, ALPHA, SIGMA) is None


@pytest.mark.parametrize("trials", [10**5, 10**7, 2**32])
def test_a_unanimous_vote_of_many_is_certified_up_to_the_root_of_alpha(trials: int) -> None:
    """For k = N the tail is `Phi(x)**N`, so that the bound of Clopper and Pearson is the N-th root of alpha."""
    n = radius_sq(trials, trials, ALPHA, SIGMA)
    assert n is not None

    def tail(n: int) -> Decimal:
        return WORKING.power(WORKING.subtract(Decimal(1), normal_upper_tail(n / SIGMA**2)), trials)

    assert tail(n) <= Decimal("0.001") < tail(n + 1)


def test_the_radius_agrees_with_the_published_formula_in_floats() -> None:
    """Cohen, Rosenfeld and Kolter: `sigma * Phi^-1(lower bound)`, to the one unit a float may miss by."""
    from scipy.stats import beta, norm

    for trials in (100, 1000, 10**5, 10**7):
        for share in (0.52, 0.6, 0.75, 0.9, 0.99, 0.999):
            count = round(share * trials)
            lower_bound = beta.ppf(0.001, count, trials - count + 1)
            published = float(SIGMA) * norm.ppf(lower_bound)
            n = radius_sq(count, trials, ALPHA, SIGMA)
            if published > 0:
                assert n is not None and abs(n - published**2) < 1 + 1e-6
            else:
                assert n is None


def test_radii_rise_with_the_count_and_fall_with_alpha_shrinking() -> None:
    counts = [order(radius_sq(count, 300, ALPHA, SIGMA)) for count in range(301)]
    assert counts == sorted(counts) and len(set(counts)) > 100
    alphas = [Fraction(1, 10**10), Fraction(1, 1000), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)]
    radii = [order(radius_sq(240, 300, alpha, SIGMA)) for alpha in alphas]
    assert radii == sorted(radii) and len(set(radii)) == len(alphas)


@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Forget remembered radii, now, on demand and afterwards."""
    forget = radius._largest_certified.cache_clear
    forget()
    yield forget
    forget()


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1e300, 1e300, 3.7, None])
def test_a_nonsensical_scipy_changes_no_radius(
    nonsense: Any, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    import scipy.special

    cases = CASES + [(60, 100, ALPHA, SIGMA), (12, 100, ALPHA, SIGMA), (90_000, 100_000, ALPHA, SIGMA)]
    expected = [radius_sq(*case) for case in cases]
    for name in ("ndtri", "betaincinv"):
        fresh()
        with monkeypatch.context() as patch:
            patch.setattr(scipy.special, name, lambda *arguments: nonsense)
            assert [radius_sq(*case) for case in cases] == expected


def test_a_scipy_that_raises_changes_no_radius(monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]) -> None:
    import scipy.special

    def broken(*arguments: float) -> float:
        raise FloatingPointError("broken on purpose")

    expected = [radius_sq(*case) for case in CASES]
    fresh()
    monkeypatch.setattr(scipy.special, "betaincinv", broken)
    assert [radius_sq(*case) for case in CASES] == expected


def test_the_callers_decimal_context_changes_no_radius(fresh: Callable[[], None]) -> None:
    expected = [radius_sq(*case) for case in CASES]
    fresh()
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        assert [radius_sq(*case) for case in CASES] == expected


def test_numpy_integers_give_the_radii_of_python_integers(fresh: Callable[[], None]) -> None:
    expected = radius_sq(90_000, 100_000, ALPHA, SIGMA)
    fresh()
    assert radius_sq(np.int32(90_000), np.int32(100_000), ALPHA, SIGMA) == expected


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
                assert Fraction(independent_tail(min(false_counts), trials, n / SIGMA**2)) <= ALPHA


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 10, Fraction(0), SIGMA), "alpha 0"),
        ((5, 10, Fraction(-1, 1000), SIGMA), "alpha -1/1000"),
        ((5, 10, Fraction(1), SIGMA), "alpha 1"),
        ((5, 10, 0.001, SIGMA), "exact rational"),
        ((5, 10, ALPHA, 63.75), "exact rational"),
        ((5, 10, ALPHA, Fraction(0)), "positive number of grey levels"),
        ((0, 0, ALPHA, SIGMA), "0 trials"),
        ((5, 2**32 + 1, ALPHA, SIGMA), "trials"),
        ((-1, 10, ALPHA, SIGMA), "-1 votes"),
        ((11, 10, ALPHA, SIGMA), "11 votes"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        radius_sq(*arguments)


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


def test_whole_grey_levels_are_reached_exactly_and_impossible_radii_refused() -> None:
    assert radius_sq_at_least(Fraction(0)) == 0
    for level in (1, 2, 51, 128, 255, 1000):
        assert radius_sq_at_least(Fraction(level, 255)) == level**2
        assert isqrt(radius_sq_at_least(Fraction(level, 255) + Fraction(1, 10**30)) - 1) == level
    for wrong in (Fraction(-1, 2), 0.5):
        with pytest.raises(ParameterError, match="radius"):
            radius_sq_at_least(wrong)  # type: ignore[arg-type]
