"""Binomial tails: enclosures contain the exact tail, and comparisons agree with an independent 60-digit evaluation."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial
from typing import Any

import numpy as np
import pytest

from intsmooth_ref.certify.binomial import (
    EXACT_TRIALS,
    fair_tail_at_most,
    log_factorial,
    smallest_trials,
    tail_at_most,
    two_sided_p_value_at_most,
    upper_tail,
)
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.interval import Interval

#: The independent evaluation carries 90 digits, of which the continued fraction leaves well over 60.
WORKING = Context(prec=90, rounding=ROUND_HALF_EVEN, Emin=-(10**9), Emax=10**9)
AGREED = Fraction(1, 10**60)


def exact_tail(count: int, trials: int, p: Fraction) -> Fraction:
    terms = (comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(max(count, 0), trials + 1))
    return sum(terms, Fraction(0))


def point(p: Fraction, digits: int) -> Interval:
    return Interval.of(p, digits)


def contains(interval: Interval, value: Fraction) -> bool:
    return Fraction(interval.lower) <= value <= Fraction(interval.upper)


@lru_cache(maxsize=None)
def choices(trials: int, count: int) -> Decimal:
    """`C(trials, count)`: exact up to 10**4 trials, by mpmath's log-gamma function beyond."""
    if trials <= 10**4:
        return WORKING.create_decimal(comb(trials, count))
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(100):
        log = mpmath.loggamma(trials + 1) - mpmath.loggamma(count + 1) - mpmath.loggamma(trials - count + 1)
        return WORKING.create_decimal(mpmath.nstr(mpmath.exp(log), 95))


def incomplete_beta_tail(count: int, trials: int, p: Fraction) -> Fraction:
    """`P(Binomial(trials, p) >= count) = I_p(count, trials - count + 1)` by its continued fraction, DLMF 8.17.22.

    The fraction is evaluated by Lentz's algorithm as modified by Thompson and Barnett; it converges fast below the
    mean of the beta distribution, and above it the reflection 8.17.4 is used.
    """
    if count <= 0:
        return Fraction(1)
    a, b = count, trials - count + 1
    if p * (a + b + 2) >= a + 1:
        return 1 - incomplete_beta_tail(b, trials, 1 - p)
    c = WORKING
    x = c.divide(Decimal(p.numerator), Decimal(p.denominator))
    one, tiny = Decimal(1), Decimal("1e-200")
    result, upper, lower, index = one, one, Decimal(0), 0
    while True:
        index += 1
        m, odd = divmod(index, 2)
        numerator = -(a + m) * (a + b + m) if odd else m * (b - m)
        step = c.divide(c.multiply(Decimal(numerator), x), Decimal((a + index - 1) * (a + index)))
        lower = c.divide(one, c.add(one, c.multiply(step, lower)) or tiny)
        upper = c.add(one, c.divide(step, upper)) or tiny
        factor = c.multiply(upper, lower)
        result = c.multiply(result, factor)
        if abs(c.subtract(factor, one)) < Decimal("1e-75"):
            break
    powers = c.multiply(c.power(x, a), c.power(c.subtract(one, x), b))
    return Fraction(c.divide(c.multiply(choices(trials, count), powers), result))


def test_the_independent_evaluation_agrees_with_exact_fractions() -> None:
    for trials, count, numerator, denominator in [(1, 1, 1, 3), (20, 13, 2, 5), (20, 3, 2, 5), (200, 7, 1, 99)]:
        p = Fraction(numerator, denominator)
        exact = exact_tail(count, trials, p)
        assert abs(incomplete_beta_tail(count, trials, p) - exact) <= exact * AGREED


@pytest.mark.parametrize("trials", range(1, 13))
def test_the_enclosure_contains_the_exact_tail_of_every_small_binomial(trials: int) -> None:
    for p in [Fraction(i, 16) for i in range(17)] + [Fraction(1, 10**9), Fraction(10**9 - 1, 10**9), Fraction(22, 71)]:
        for count in range(-1, trials + 3):
            tail, exact = upper_tail(count, trials, point(p, 30)), exact_tail(count, trials, p)
            assert contains(tail, exact)
            assert Fraction(tail.upper) - Fraction(tail.lower) <= exact / 10**25 + Fraction(1, 10**27)


@pytest.mark.parametrize("trials", [29, 30, 31, 70, 150])
def test_the_enclosure_contains_the_exact_tail_where_factorials_turn_to_stirling(trials: int) -> None:
    for p in [Fraction(1, 7), Fraction(1, 2), Fraction(98, 99)]:
        for count in range(0, trials + 1, 3):
            assert contains(upper_tail(count, trials, point(p, 20)), exact_tail(count, trials, p))


def test_the_enclosure_for_an_interval_of_probabilities_contains_the_tail_of_each() -> None:
    for low, high in [(-1, 3), (0, 0), (0, 5), (2, 3), (1, 9), (7, 10), (10, 10), (4, 12)]:
        wide = Interval(Decimal(low) / 10, Decimal(high) / 10, 20)
        for count in range(0, 10):
            for p in [Fraction(j, 40) for j in range(max(0, 4 * low), min(40, 4 * high) + 1)]:
                assert contains(upper_tail(count, 9, wide), exact_tail(count, 9, p))


@pytest.mark.parametrize("digits", [10, 25, 50])
def test_log_factorial_encloses_the_logarithm_of_the_exact_factorial(digits: int) -> None:
    for n in [0, 1, 2, 3, digits - 1, digits, digits + 1, 2 * digits, 300, 2000]:
        enclosure, exact = log_factorial(n, digits), Interval.of(factorial(n), 80).ln()
        assert enclosure.lower <= exact.lower and exact.upper <= enclosure.upper
        assert enclosure.upper - enclosure.lower <= Decimal(10) ** (7 - digits)


def close_calls(samples: int, seed: int, largest: int, least: int = 1) -> list[tuple[int, int, Fraction, Fraction]]:
    """`(count, trials, alpha, p)` with `p` a hair beside the Clopper-Pearson bound, k = 0 and k = n among them."""
    from scipy.special import betaincinv

    rng = np.random.default_rng(seed)
    cases: list[tuple[int, int, Fraction, Fraction]] = []
    while len(cases) < samples:
        trials = int(np.exp(rng.uniform(np.log(least), np.log(largest + 1))))
        trials = min(max(trials, least), largest)
        count = {0: 0, 1: trials, 2: 1}.get(int(rng.integers(20)), int(rng.integers(trials + 1)))
        alpha = Fraction(int(rng.integers(1, 1000)), 1000 ** int(rng.integers(1, 4)))
        bound = float(betaincinv(count, trials - count + 1, float(alpha))) if count else float(rng.random())
        hair = 1 + Fraction(int(rng.choice([-1, 1])), 10 ** int(rng.integers(6, 11)))
        p = Fraction(bound).limit_denominator(10**16) * hair
        if 0 < p < 1:
            cases.append((count, trials, alpha, p))
    return cases


def check_decisions(cases: list[tuple[int, int, Fraction, Fraction]]) -> None:
    outcomes = []
    for count, trials, alpha, p in cases:
        peer = incomplete_beta_tail(count, trials, p)
        assert abs(peer - alpha) > alpha * AGREED, "the independent evaluation must be able to tell"
        assert tail_at_most(count, trials, lambda digits: point(p, digits), alpha) == (peer <= alpha)
        outcomes.append(peer <= alpha)
    assert min(outcomes.count(True), outcomes.count(False)) > len(cases) // 4


def test_clopper_pearson_decisions_agree_with_a_60_digit_incomplete_beta_function() -> None:
    check_decisions(close_calls(500, seed=11, largest=1000))


@pytest.mark.slow
def test_ten_thousand_clopper_pearson_decisions_agree_with_a_60_digit_incomplete_beta_function() -> None:
    check_decisions(close_calls(10_000, seed=12, largest=3000))


@pytest.mark.slow
def test_decisions_for_ten_million_trials_agree_with_a_60_digit_incomplete_beta_function() -> None:
    pytest.importorskip("mpmath")
    check_decisions(close_calls(250, seed=13, largest=10**7, least=10**7))


@pytest.mark.parametrize("count, trials", [(10**6, 10**7), (5_001_000, 10**7), (10**7 - 3, 10**7), (10**7, 10**7)])
def test_enclosures_for_ten_million_trials_contain_the_60_digit_value(count: int, trials: int) -> None:
    pytest.importorskip("mpmath")
    p = Fraction(count, trials) - Fraction(1, 3125)  # a short decimal, so that its enclosure is a point
    tail, peer = upper_tail(count, trials, point(p, 40)), incomplete_beta_tail(count, trials, p)
    assert Fraction(tail.lower) <= peer * (1 + AGREED) and peer * (1 - AGREED) <= Fraction(tail.upper)
    assert Fraction(tail.upper) - Fraction(tail.lower) <= peer / 10**35


def test_the_unanimous_vote_of_four_billion_has_the_tail_p_to_the_n() -> None:
    trials, p = 2**32, Fraction(999_999_999, 10**9)
    tail = upper_tail(trials, trials, point(p, 30))
    exact = (Interval.of(trials, 60) * Interval.of(p, 60).ln()).exp()
    assert tail.lower <= exact.lower and exact.upper <= tail.upper


def test_an_undecidable_comparison_is_answered_no_after_a_bounded_effort() -> None:
    asked = []

    def vague(digits: int) -> Interval:
        asked.append(digits)
        return Interval(Decimal("0.4"), Decimal("0.6"), digits)

    assert not tail_at_most(6, 10, vague, Fraction(2, 5))
    assert asked == sorted(asked) and len(asked) < 10 and asked[-1] == 400


@pytest.mark.parametrize(
    "count, trials, tail",
    [
        (10, 10, Fraction(1, 2**10)),
        (20, 23, Fraction(1, 2**12)),  # 1 + 23 + 253 + 1771 = 2**11, the coincidence behind the binary Golay code
        (88, 90, Fraction(1, 2**78)),  # 1 + 90 + 4005 = 2**12
        (501, 1001, Fraction(1, 2)),
        (5_000_001, 10_000_001, Fraction(1, 2)),
    ],
)
def test_a_fair_tail_that_equals_the_level_is_at_most_the_level(count: int, trials: int, tail: Fraction) -> None:
    assert fair_tail_at_most(count, trials, tail)
    assert not fair_tail_at_most(count, trials, tail * (1 - Fraction(1, 10**50)))


def test_fair_tails_agree_with_exact_integer_sums() -> None:
    for trials in range(1, 25):
        for count in range(trials + 2):
            exact = exact_tail(count, trials, Fraction(1, 2))
            for level in (exact, exact + Fraction(1, 10**40), exact - Fraction(1, 10**40), Fraction(1, 20)):
                assert fair_tail_at_most(count, trials, level) == (exact <= level)


@pytest.mark.parametrize(
    "trials, count", [(EXACT_TRIALS + 1, 2100), (5000, 2400), (5000, 2600), (5000, 4990), (5000, 5000)]
)
def test_fair_tails_of_many_trials_are_told_from_levels_that_agree_to_150_digits(trials: int, count: int) -> None:
    total, subsets = 0, comb(trials, count)
    for j in range(count, trials + 1):
        total, subsets = total + subsets, subsets * (trials - j) // (j + 1)
    exact = Fraction(total, 2**trials)
    assert fair_tail_at_most(count, trials, exact * (1 + Fraction(1, 10**150)))
    assert not fair_tail_at_most(count, trials, exact * (1 - Fraction(1, 10**150)))


def test_two_sided_p_values_agree_with_exact_integer_sums() -> None:
    for trials in range(0, 25):
        for successes in range(trials + 1):
            top = max(successes, trials - successes)
            p_value = min(Fraction(1), Fraction(2 * sum(comb(trials, j) for j in range(top, trials + 1)), 2**trials))
            for level in (p_value, p_value - Fraction(1, 10**30), Fraction(1, 1000), Fraction(1)):
                assert two_sided_p_value_at_most(successes, trials, level) == (p_value <= level)


def test_two_sided_decisions_agree_with_scipy_where_floats_can_tell() -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(14)
    for _ in range(100):
        trials = int(rng.integers(1, 5000))
        successes, level = int(rng.binomial(trials, 0.5 + rng.normal() * 0.02)), Fraction(1, int(rng.integers(2, 2000)))
        p_value = binomtest(successes, trials, 0.5).pvalue
        if abs(p_value - float(level)) > 1e-9 * float(level):
            assert two_sided_p_value_at_most(successes, trials, level) == (p_value <= float(level))


def test_impossible_counts_and_levels_are_refused() -> None:
    for successes in (-1, 6):
        with pytest.raises(ParameterError, match="0 to the number of trials, 5"):
            two_sided_p_value_at_most(successes, 5, Fraction(1, 20))
    with pytest.raises(ParameterError, match="above zero"):
        smallest_trials(Fraction(0))


def test_the_smallest_number_of_trials_is_the_first_whose_unanimous_tail_reaches_the_level() -> None:
    fractions = [Fraction(2), Fraction(3, 7), *(Fraction(1, n) for n in (1, 2, 1000, 1024, 1025, 10**100))]
    for level in fractions:
        n = smallest_trials(level)
        assert Fraction(1, 2**n) <= level and (n == 0 or Fraction(1, 2 ** (n - 1)) > level)


def test_numpy_integers_give_the_answers_of_python_integers() -> None:
    def numpy(n: int) -> Any:
        return np.int32(n)

    p, level = point(Fraction(2, 3), 30), Fraction(1, 50)
    assert upper_tail(numpy(700), numpy(1000), p) == upper_tail(700, 1000, p)
    for successes in (35, 40, 60):
        decision = two_sided_p_value_at_most(successes, 60, level)
        assert two_sided_p_value_at_most(numpy(successes), numpy(60), level) == decision
