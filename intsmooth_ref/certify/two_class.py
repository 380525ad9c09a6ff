"""From the votes of all classes to a certified radius, in integers: theorem 2 of `PROOF.md`.

Theorem 1 waits until a class has the majority. Theorem 2 asks only that it has more than every other class: with pA a
lower bound of its probability and pB an upper bound of all others', `radius_sq` is the largest integer n with

    (1)   2 sqrt(n) / s <= xA - xB - 2**-32,   Phi(xA) <= pA,   Phi(xB) >= pB,
    (2)   s = 1 / (2 Phi^-1((1 + p0) / 2)),    p0 = P(z_i = 0).

s, rounded down to a multiple of 2**-32, is a little smaller than sigma: with sigma in its place, as for continuous
noise, the claim would be false. The proof rests on a property of the discrete Gaussian law that is checked here, with
every rounding directed, before s is used: of all steps `Phi^-1(F(k)) - Phi^-1(F(k-1))`, F the CDF, the middle one,
k = 0, is the largest, and equals 1/s. The margin of 2**-32 pays for the values of k so far out that they are not
looked at.

The bounds come from one vote of N samples, the class having been selected by others (Clopper and Pearson 1934), and
half of alpha pays for each of the two:

    (3)   xA the largest x with  P(Binomial(N, Phi(x)) >= count_A)  <=  alpha / 2,
    (4)   xB the smallest x with P(Binomial(N, Phi(x)) <= count_B)  <=  alpha / (2 (classes - 1)),

count_B the votes of the runner-up, both x multiples of 2**-32 in -12 .. 12. So the radius is a matter of integers, and
every right computation finds the same. SciPy guesses where the search for x begins; directed rounding decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import floor

from ..errors import ArithmeticRangeError, ParameterError
from ..interval import Interval, normal_cdf, normal_density, normal_tail
from ..noise.distributions import SIGMA_MAX, SIGMA_MIN
from .binomial import fair_tail_at_most, tail_at_most
from .radius import TRIALS_MAX, radius_sq

#: s, xA and xB are multiples of 1 / GRID, and the margin of equation (1) is one of them.
GRID = 2**32

#: The largest absolute value of xA and xB.
ARGUMENT_MAX = 12

#: For images of so many values the margin is proven to suffice (PROOF.md, T7).
DIMENSION_MAX = 2**24

#: The steps are checked out to the first k with P(z > k) below this.
NEGLIGIBLE = Fraction(1, 2**256)

#: Digits to which the steps are compared with 1/s until that decides (Ziv's strategy).
STEP_DIGITS = (30, 60, 120)


def two_class_claim(
    votes: Sequence[int], prediction: int, alpha: Fraction, sigma: Fraction, dimension: int
) -> tuple[int, str] | None:
    """The larger one of the radii of theorems 1 and 2, and which it is: `(radius_sq, "majority" or "two-class")`.

    Both are valid on one event of probability `1 - alpha` (PROOF.md, T10), at the price that the majority has alpha/2
    at its disposal. Where both are equal it is "majority"; None is to abstain. Arguments and errors as for
    `radius_sq_two_class`.
    """
    two_class = radius_sq_two_class(votes, prediction, alpha, sigma, dimension)
    majority = radius_sq(votes[prediction], sum(map(int, votes)), Fraction(alpha) / 2, sigma)
    if majority is not None and (two_class is None or majority >= two_class):
        return majority, "majority"
    return None if two_class is None else (two_class, "two-class")


def radius_sq_two_class(
    votes: Sequence[int], prediction: int, alpha: Fraction, sigma: Fraction, dimension: int
) -> int | None:
    """The largest n (grey levels squared) that satisfies equation (1), or None (abstain) if not even n = 0 does.

    With two classes (3) and (4) are the same bound, xB = -xA, and as s is below sigma, the majority's radius at the
    same alpha, or even at alpha/2, is never smaller.

    Args:
        votes: of each class, two at least; their sum, the number of samples, is `1 .. 2**32`.
        prediction: the class that is certified, selected by other samples than these.
        alpha: the probability, `0 < alpha < 1`, with which the claim may fail. What the sampler leaves undecided has
            been subtracted from it by the caller.
        sigma: the noise's parameter in grey levels, `1/4 .. 1024`.
        dimension: how many values an image has, `1 .. 2**24`. The radius does not depend on it.

    Raises:
        ParameterError: if a parameter is out of its range, or alpha or sigma is a float, which is not the number
            it was written as.
    """
    bounds = argument_bounds(votes, prediction, alpha)
    _require(1 <= dimension <= DIMENSION_MAX, f"{dimension} values in an image: expected 1 to {DIMENSION_MAX}")
    s = s_lower(sigma)
    if bounds is None:
        return None
    x_a, x_b = bounds
    gap = Fraction(x_a - x_b - 1, GRID)
    return floor((s * gap) ** 2 / 4) if gap >= 0 else None


def argument_bounds(votes: Sequence[int], prediction: int, alpha: Fraction) -> tuple[int, int] | None:
    """xA and xB of equations (3) and (4) in units of 1/GRID, or None where one of them does not exist.

    With probability `1 - alpha` the class's probability is above Phi(xA), that of every other below Phi(xB). Arguments
    and errors as for `radius_sq_two_class`.
    """
    counts = [int(count) for count in votes]
    trials = sum(counts)
    _require(len(counts) >= 2, f"votes of {len(counts)} classes: expected at least 2")
    _require(0 <= prediction < len(counts), f"prediction {prediction}: expected 0 to {len(counts) - 1}")
    _require(min(counts) >= 0, f"{min(counts)} votes for a class: expected none below 0")
    _require(1 <= trials <= TRIALS_MAX, f"{trials} votes: expected 1 to {TRIALS_MAX}")
    _require(
        isinstance(alpha, (Fraction, int)) and 0 < alpha < 1, f"alpha {alpha!r}: expected a Fraction above 0, below 1"
    )
    level = Fraction(alpha) / 2
    x_a = _largest_argument(counts[prediction], trials, level)
    runner_up = max(counts[:prediction] + counts[prediction + 1 :])
    # If X is Binomial(N, Phi(x)), N - X is Binomial(N, Phi(-x)): (4) is (3) for -x and the votes not for the runner-up.
    minus_x_b = _largest_argument(trials - runner_up, trials, level / (len(counts) - 1))
    return None if x_a is None or minus_x_b is None else (x_a, -minus_x_b)


def contradicts_bounds(
    fresh: Sequence[int], votes: Sequence[int], prediction: int, alpha: Fraction, level: Fraction
) -> bool:
    """Whether fresh votes contradict the bounds (3) and (4) that other votes gave.

    Were the class's probability above Phi(xA) and that of every other class below Phi(xB), the answer would be yes with
    a probability of at most `level`: half of it is for the class, half is shared by the others.

    Args:
        fresh: of each class, among any number of samples.
        votes, prediction, alpha: as for `radius_sq_two_class`, which has certified something.
        level: a probability above 0.
    """
    bounds = argument_bounds(votes, prediction, alpha)
    if bounds is None:
        return False
    samples, others = sum(fresh), [count for each, count in enumerate(fresh) if each != prediction]
    too_few = _tail_at_most(-bounds[0], samples - fresh[prediction], samples, level / 2)
    return too_few or _tail_at_most(bounds[1], max(others), samples, level / 2 / len(others))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ParameterError(message)


@lru_cache(maxsize=1 << 16)
def _largest_argument(count: int, trials: int, level: Fraction) -> int | None:
    """xA of equation (3) in units of 1/GRID, or None where there is none.

    The tail grows with x. From SciPy's guess on the step is doubled until the end of the x that satisfy (3) is passed;
    then it is bisected. `low` satisfies (3), or lies below the range; `high` does not, or lies above.
    """
    lowest, highest = -ARGUMENT_MAX * GRID, ARGUMENT_MAX * GRID

    def is_low(x: int) -> bool:
        return x < lowest or (x <= highest and _tail_at_most(x, count, trials, level))

    low, step = _guess(count, trials, level), 1
    high = low + 1
    while not is_low(low):
        low, high, step = low - step, low, 2 * step
    while is_low(high):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_low(middle) else (low, middle)
    return low if low >= lowest else None


def _tail_at_most(x: int, count: int, trials: int, level: Fraction) -> bool:
    """Whether `P(Binomial(trials, Phi(x / GRID)) >= count) <= level`, decided by directed rounding."""
    if x == 0:
        return fair_tail_at_most(count, trials, level)
    argument = Fraction(abs(x), GRID)
    if x > 0:
        return tail_at_most(count, trials, lambda digits: normal_cdf(argument**2, digits), level)
    return tail_at_most(count, trials, lambda digits: normal_tail(argument, digits), level)


def _guess(count: int, trials: int, level: Fraction) -> int:
    """SciPy's idea of xA; anything that is not a number becomes one in the range."""
    try:
        from scipy.special import betaincinv, ndtri

        x = float(ndtri(betaincinv(count, trials - count + 1, float(level))))
        return floor(max(-ARGUMENT_MAX, min(x, ARGUMENT_MAX)) * GRID)
    except Exception:  # whatever goes wrong in floating point, the search finds the answer from anywhere
        return 0


def s_lower(sigma: Fraction) -> Fraction:
    """The largest multiple of 2**-32 that is not above s(sigma), equation (2), in grey levels.

    Before it is returned, every step of `Phi^-1(F(k))` with k in -K .. K has been found to be at most `1 / s_lower`;
    K is where the sampler's table ends, P(z > K) < 2**-256. The first time this takes some 0.3 s for sigma = 255/4, 1 s
    for 255 and 5 s for 1024.

    Raises:
        ParameterError: if sigma is not a rational, or outside `1/4 .. 1024`.
        ArithmeticRangeError: if a step is found to be larger, or cannot be told: no such sigma is known.
    """
    _require(
        isinstance(sigma, (Fraction, int)) and SIGMA_MIN <= sigma <= SIGMA_MAX,
        f"sigma {sigma!r}: expected a Fraction, {SIGMA_MIN} to {SIGMA_MAX} grey levels",
    )
    return _checked_s(Fraction(sigma))


@lru_cache(maxsize=64)
def _checked_s(sigma: Fraction) -> Fraction:
    for digits in STEP_DIGITS:
        tails = _tails(sigma, digits)
        s = _inverse_of_middle_step(tails[0], digits)
        if _steps_are_at_most(1 / s, tails, digits):
            return s
    raise ArithmeticRangeError(f"sigma {sigma}: a step of Phi^-1(F(k)) is larger than the middle one, 1 / {s}")


def _tails(sigma: Fraction, digits: int) -> list[Interval]:
    """Enclose `P(z > k)`, k = 0, 1, ..., K, to about `digits` digits each, K the first k where it is below 2**-256.

    One product gives the next weight `exp(-k**2 / (2 sigma**2))`, another the next ratio of weights. As the ratios
    fall, the weights left out sum to less than a geometric series.
    """
    digits += 10  # k products of k ratios cost about k**2 units of the last digit
    variance, one = sigma * sigma, Interval.of(1, digits)
    smallest = Interval.of(NEGLIGIBLE / 10**digits, digits).lower
    ratio, step = (Interval.of(-1 / power, digits).exp() for power in (2 * variance, variance))
    weight, weights = one, []
    while weight.upper > smallest:
        weight, ratio = weight * ratio, ratio * step
        weights.append(weight)
    rest = Interval(Decimal(0), (weight * ratio / (one - ratio)).upper, digits)
    sums = list(accumulate(reversed(weights), initial=rest))[:0:-1]
    total = one + sums[0] + sums[0]
    tails = [tail / total for tail in sums]
    last = next(k for k, tail in enumerate(tails) if tail.upper < NEGLIGIBLE)
    return tails[: last + 1]


def _inverse_of_middle_step(tail: Interval, digits: int) -> Fraction:
    """The largest multiple S of 1/GRID with `Phi^-1(F(0)) <= 1 / (2 S)`, where `tail` is `P(z > 0) = 1 - F(0)`.

    It is found bit by bit. What the digits do not tell counts as too large: a smaller s only shrinks a radius.
    """
    units = 0
    for bit in reversed(range((int(SIGMA_MAX) * GRID).bit_length())):
        candidate = units | 1 << bit
        if normal_tail(Fraction(GRID, 2 * candidate), digits).upper <= tail.lower:
            units = candidate
    return Fraction(units, GRID)


def _steps_are_at_most(largest: Fraction, tails: list[Interval], digits: int) -> bool:
    """Whether `h(k) - h(k-1) <= largest` for `k = 1 .. K`, `Phi(h(k)) = 1 - P(z > k)`, can be told with so many digits.

    `tails` are `P(z > k)`, k = 0 .. K. If `lower <= h(k-1)` and `1 - Phi(lower + largest) <= P(z > k)`, then
    `h(k) <= lower + largest <= h(k-1) + largest`. The lower bounds are Newton's: `1 - Phi` falls and is convex beyond
    zero, so its tangent meets a level before it does. All are multiples of a small unit, rounded down.
    """
    unit = Fraction(1, 1 << 3 * digits)
    width = largest // unit * unit

    def tangent_meets(level: Interval, x: Fraction, tail: Interval) -> Fraction:
        shift = (tail - level) / normal_density(x, digits)
        return (x + Fraction(shift.lower)) // unit * unit

    lower = Fraction(0)
    for previous, level in zip(tails, tails[1:]):
        tail = normal_tail(lower + width, digits)
        while tail.upper > level.lower:
            better = tangent_meets(previous, lower, normal_tail(lower, digits))
            if better <= lower:
                return False
            lower, tail = better, normal_tail(better + width, digits)
        lower = max(lower, tangent_meets(level, lower + width, tail))
    return True
