"""Tails of the binomial distribution, enclosed or compared with a level, with every rounding directed outwards.

A tail is its leading term times the sum of the other terms' ratios to it:

    (1)   P(X >= k) = C(N, k) p**k (1-p)**(N-k) * (1 + r(k) + r(k) r(k+1) + ...),   r(j) = (N-j)/(j+1) * p/(1-p).

The leading term comes from logarithms of factorials. Beyond the mean the ratios r(j) are below one and fall, so the sum
is cut off where it no longer matters and a geometric series bounds the rest; before the mean the other tail is summed
and taken from one. No value depends on a binary floating-point number.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial

from ..errors import ParameterError
from ..interval import Interval, pi

#: Digits to which a probability is asked for until a comparison is decided (Ziv's strategy); each more or less doubles.
ZIV_DIGITS = (25, 50, 100, 200, 400)

#: Up to so many fair trials a tail is compared as an integer, above by Ziv's strategy.
EXACT_TRIALS = 4096


def upper_tail(count: int, trials: int, p: Interval) -> Interval:
    """Enclose `P(Binomial(trials, p) >= count)` for every success probability in `p`, equation (1).

    The result is good to about `p.digits` digits if `p` is a single point; a wider `p` widens it by the derivative.
    """
    count, trials = int(count), int(trials)  # NumPy's integers would wrap around
    if count <= 0 or count > trials:
        return Interval.of(1 if count <= 0 else 0, p.digits)
    if p.lower <= 0 or p.upper >= 1:
        lower, upper = (_tail_at(count, trials, end, p.digits) for end in (p.lower, p.upper))
        return Interval(lower.lower, upper.upper, p.digits)
    digits = p.digits + 2 * len(str(trials))  # logarithms as large as trials * ln(trials) cancel, errors add up
    one, p = Interval.of(1, digits), Interval(p.lower, p.upper, digits)
    if count > (p * Interval.of(trials, digits)).lower:
        return _tail_beyond_mean(count, trials, p, one - p)
    return one - _tail_beyond_mean(trials - count + 1, trials, one - p, p)


def _tail_at(count: int, trials: int, p: Decimal, digits: int) -> Interval:
    """The tail at one end of an interval that reaches 0 or 1; the tail rises with `p`, so the ends enclose it."""
    if p <= 0 or p >= 1:
        return Interval.of(0 if p <= 0 else 1, digits)
    return upper_tail(count, trials, Interval(p, p, digits))


def _tail_beyond_mean(count: int, trials: int, p: Interval, complement: Interval) -> Interval:
    """Equation (1); right for any count, quick for one beyond the mean. `complement` encloses `1 - p`."""
    odds = p / complement
    guard = 2 * trials.bit_length()
    unit = 1 << (4 * p.digits + guard)
    bits = 4 * (p.digits + max(0, -odds.lower.adjusted())) + guard  # small odds, too, keep their relative accuracy
    odds_lower, odds_upper = odds.scaled_floor(bits)
    below = Fraction(_ratio_sum_below(count, trials, odds_lower, bits, unit, 1 << guard), unit)
    above = Fraction(_ratio_sum_above(count, trials, odds_upper + 1, bits, unit, 1 << guard), unit)
    ratios = Interval(Interval.of(below, p.digits).lower, Interval.of(above, p.digits).upper, p.digits)
    return _term(count, trials, p, complement) * ratios


def _ratio_sum_below(count: int, trials: int, odds: int, bits: int, unit: int, cut: int) -> int:
    """A lower bound of `unit * (1 + r(count) + r(count) r(count+1) + ...)` for odds of at least `odds / 2**bits`.

    Every term is positive: what is rounded down or left out makes the sum smaller.
    """
    total, term = 0, unit
    for j in range(count, trials + 1):
        total += term
        if term < cut:
            break
        term = term * odds * (trials - j) // (j + 1) >> bits
    return total


def _ratio_sum_above(count: int, trials: int, odds: int, bits: int, unit: int, cut: int) -> int:
    """An upper bound of the same sum for odds of at most `odds / 2**bits`.

    The sum ends early only at a term `t` whose next ratio `r` is below one; as the ratios fall, what is left, `t`
    included, is at most `t / (1-r)`.
    """
    total, term = 0, unit
    for j in range(count, trials + 1):
        if term < cut:
            numerator, denominator = odds * (trials - j), (j + 1) << bits
            if numerator < denominator:
                return total - (-term * denominator // (denominator - numerator))
        total += term
        term = -(-term * odds * (trials - j) // (j + 1) >> bits)
    return total


def _term(count: int, trials: int, p: Interval, complement: Interval) -> Interval:
    """Enclose `C(trials, count) * p**count * (1-p)**(trials-count)`."""
    digits, rest = p.digits, trials - count
    log_choices = log_factorial(trials, digits) - log_factorial(count, digits) - log_factorial(rest, digits)
    log_powers = Interval.of(count, digits) * p.ln() + Interval.of(rest, digits) * complement.ln()
    return (log_choices + log_powers).exp()


@lru_cache(maxsize=1 << 12)
def log_factorial(n: int, digits: int) -> Interval:
    """Enclose `ln(n!)` by Stirling's series (DLMF 5.11.1, with `ln n! = ln Gamma(n) + ln n`):

        ln n! = (n + 1/2) ln n - n + ln(2 pi) / 2 + sum_{m >= 1} B_2m / (2m (2m-1) n**(2m-1)).

    The rest of the series has the sign of, and is smaller than, the first omitted term (DLMF 5.11(ii)). The terms fall
    to about `exp(-2 pi n)` before they grow, far below `10**-digits` for `n >= digits`; smaller factorials are exact.
    """
    if n < digits:
        return Interval.of(factorial(n), digits).ln()
    half = Interval.of(Fraction(1, 2), digits)
    number, two_pi = Interval.of(n, digits), Interval.of(2, digits) * pi(digits)
    total = (number + half) * number.ln() - number + half * two_pi.ln()
    m, term = 1, Fraction(1, 12 * n)
    while abs(term) * 10**digits >= 1:
        total += Interval.of(term, digits)
        m += 1
        term = _stirling_coefficient(m) / n ** (2 * m - 1)
    omitted = Interval.of(term, digits)
    return total + Interval(min(Decimal(0), omitted.lower), max(Decimal(0), omitted.upper), digits)


@lru_cache(maxsize=None)
def _stirling_coefficient(m: int) -> Fraction:
    return _bernoulli_number(2 * m) / (2 * m * (2 * m - 1))


@lru_cache(maxsize=None)
def _bernoulli_number(n: int) -> Fraction:
    """`B_n` by the recurrence `sum_{k <= n} C(n+1, k) B_k = 0` (DLMF 24.5.3)."""
    if n == 0:
        return Fraction(1)
    if n > 1 and n % 2:
        return Fraction(0)
    return -sum((comb(n + 1, k) * _bernoulli_number(k) for k in range(n)), Fraction(0)) / (n + 1)


def tail_at_most(count: int, trials: int, p: Callable[[int], Interval], level: Fraction) -> bool:
    """Whether `P(Binomial(trials, p) >= count) <= level`.

    Ziv's strategy: `p(digits)` encloses the success probability to so many digits, and the digits are raised until
    the enclosure of the tail lies on one side of the level. Should the tail agree with the level to some 390 digits,
    the answer is False: the tail counts as too large, a claim that rests on it is not made, a radius can only shrink.
    """
    for digits in ZIV_DIGITS:
        tail = upper_tail(count, trials, p(digits))
        threshold = Interval.of(level, digits)
        if tail.upper <= threshold.lower:
            return True
        if tail.lower > threshold.upper:
            return False
    return False


def fair_tail_at_most(count: int, trials: int, level: Fraction) -> bool:
    """Whether `P(Binomial(trials, 1/2) >= count) <= level`.

    The tail of a fair coin is a dyadic rational and may equal the level, which no enclosure can see. So it is compared
    as an integer up to `EXACT_TRIALS`, and where it is 1/2 by symmetry. That a longer tail meets a level to 390 digits
    takes a level made for the purpose; the answer is then False, see `tail_at_most`.
    """
    count, trials = int(count), int(trials)  # NumPy's integers would wrap around
    if 2 * count == trials + 1:
        return Fraction(1, 2) <= level
    if trials <= EXACT_TRIALS:
        return _subsets_up_to(trials - count, trials) * level.denominator <= level.numerator << trials
    return tail_at_most(count, trials, lambda digits: Interval.of(Fraction(1, 2), digits), level)


def _subsets_up_to(size: int, n: int) -> int:
    """How many subsets of `n` things have at most `size` elements."""
    total, choices = 0, 1
    for j in range(min(size, n) + 1):
        total += choices
        choices = choices * (n - j) // (j + 1)
    return total


def two_sided_p_value_at_most(successes: int, trials: int, level: Fraction) -> bool:
    """Whether the exact two-sided test rejects a fair coin: PREDICT of Cohen, Rosenfeld and Kolter (2019).

    By symmetry the p-value is `min(1, 2 P(Binomial(trials, 1/2) >= max(successes, trials - successes)))`.

    Raises:
        ParameterError: if `successes` is not in `0 .. trials`.
    """
    if not 0 <= successes <= trials:
        raise ParameterError(f"{successes} successes: expected 0 to the number of trials, {trials}")
    return level >= 1 or fair_tail_at_most(max(successes, trials - successes), trials, level / 2)


def smallest_trials(level: Fraction) -> int:
    """The smallest `n >= 0` with `2**-n <= level`: with fewer votes not even a unanimous one rejects at this level.

    Raises:
        ParameterError: if the level is not above zero.
    """
    if level <= 0:
        raise ParameterError(f"level {level}: expected a probability above zero")
    return (-(-level.denominator // level.numerator) - 1).bit_length()
