"""From a count of votes to a certified radius, in integers: theorem 1 of `PROOF.md` with a Clopper-Pearson bound.

A perturbation of an 8-bit image is an integer vector `delta` in grey levels, so a radius is an integer too:
`radius_sq`, the largest n such that every `delta` with `||delta||**2 <= n` is covered. Theorem 1 covers n when the
probability pA of the class satisfies `Phi(sqrt(n) / sigma) < pA`; a vote of `count` in `trials` shows that, with
confidence `1 - alpha`, when

    (1)   P(Binomial(trials, Phi(sqrt(n) / sigma)) >= count) <= alpha

(Clopper and Pearson 1934: were pA not above Phi(sqrt(n)/sigma), so high a count would have probability alpha at most).
The left side grows with n, so the certified n are `0 .. radius_sq`. SciPy guesses where they end and directed rounding
decides: a wrong guess costs time and changes nothing.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import isqrt

from ..errors import ParameterError
from ..interval import normal_cdf
from .binomial import fair_tail_at_most, smallest_trials, tail_at_most

#: Votes are numbered with 32 bits.
TRIALS_MAX = 2**32

#: Full scale of an 8-bit image, in grey levels.
FULL_SCALE = 255

#: No guess goes beyond so many sigma: there Phi differs from 1 by less than 10**-57, and few votes show as much.
GUESS_LIMIT_SIGMAS = 16


def radius_sq(count: int, trials: int, alpha: Fraction, sigma: Fraction) -> int | None:
    """The largest n (grey levels squared) that satisfies equation (1), or None (abstain) if not even n = 0 does.

    Args:
        count: the votes for the class, `0 .. trials`.
        trials: all votes, `1 .. 2**32`.
        alpha: the probability, `0 < alpha < 1`, with which the claim may fail. What the sampler leaves undecided has
            been subtracted from it by the caller. From 1/2 on a claim is no better than a coin, yet still as
            good as its alpha says, so these values are accepted.
        sigma: the noise's parameter in grey levels, above zero.

    Raises:
        ParameterError: if a parameter is out of its range, or alpha or sigma is a float, which is not the number
            it was written as.
    """
    _require_alpha(alpha)
    _require_exact("sigma", sigma)
    if sigma <= 0:
        raise ParameterError(f"sigma {sigma}: expected a positive number of grey levels")
    if not 1 <= trials <= TRIALS_MAX:
        raise ParameterError(f"{trials} trials: expected 1 to {TRIALS_MAX}")
    if not 0 <= count <= trials:
        raise ParameterError(f"{count} votes for the class: expected 0 to the number of trials, {trials}")
    return _largest_certified(int(count), int(trials), Fraction(alpha), Fraction(sigma))


def require_enough_samples(trials: int, alpha: Fraction) -> None:
    """Refuse a run in which not even a unanimous vote can certify anything.

    Raises:
        ParameterError: if `2**-trials > alpha`, or alpha is not in `0 < alpha < 1`.
    """
    _require_alpha(alpha)
    needed = smallest_trials(Fraction(alpha))
    if trials < needed:
        raise ParameterError(
            f"{trials} samples cannot certify anything at alpha = {float(alpha):.6g}, not even by a unanimous vote: "
            f"expected at least {needed}"
        )


def _require_alpha(alpha: Fraction) -> None:
    _require_exact("alpha", alpha)
    if not 0 < alpha < 1:
        raise ParameterError(f"alpha {alpha}: expected a probability above 0 and below 1")


def _require_exact(name: str, value: Fraction) -> None:
    if not isinstance(value, (Fraction, int)):
        raise ParameterError(f"{name} {value!r}: expected an exact rational (a Fraction), got {type(value).__name__}")


@lru_cache(maxsize=1 << 16)
def _largest_certified(count: int, trials: int, alpha: Fraction, sigma: Fraction) -> int | None:
    """Search for the last certified n from SciPy's guess: double the step until it is passed, then bisect.

    `low` is certified, or -1; `high` is not.
    """
    step, guess = 1, _guess(count, trials, alpha, sigma)
    if _is_certified(guess, count, trials, alpha, sigma):
        low, high = guess, guess + step
        while _is_certified(high, count, trials, alpha, sigma):
            step *= 2
            low, high = high, high + step
    else:
        low, high = guess - step, guess
        while low >= 0 and not _is_certified(low, count, trials, alpha, sigma):
            step *= 2
            low, high = max(low - step, -1), low
    while high - low > 1:
        middle = (low + high) // 2
        if _is_certified(middle, count, trials, alpha, sigma):
            low = middle
        else:
            high = middle
    return low if low >= 0 else None


def _is_certified(n: int, count: int, trials: int, alpha: Fraction, sigma: Fraction) -> bool:
    """Equation (1), decided by directed rounding; n = 0 is a fair coin."""
    if n == 0:
        return fair_tail_at_most(count, trials, alpha)
    x_squared = n / sigma**2
    return tail_at_most(count, trials, lambda digits: normal_cdf(x_squared, digits), alpha)


def _guess(count: int, trials: int, alpha: Fraction, sigma: Fraction) -> int:
    """SciPy's idea of the last certified n; anything that is not a sensible number becomes one."""
    limit = int((GUESS_LIMIT_SIGMAS * sigma) ** 2)
    try:
        from scipy.special import betaincinv, ndtri

        lower_bound = float(betaincinv(count, trials - count + 1, float(alpha)))
        x = Fraction(float(ndtri(lower_bound)))
    except Exception:  # whatever goes wrong in floating point, the search finds the answer from anywhere
        return 0
    return min(int((x * sigma) ** 2), limit) if x > 0 else 0


def radius_text(radius_sq: int, decimals: int = 6) -> str:
    """The radius `sqrt(radius_sq) / 255`, a fraction of full scale, rounded down to so many decimals.

    >>> radius_text(10000), radius_text(65025)
    ('0.392156', '1.000000')

    Raises:
        ParameterError: if `radius_sq` is negative or `decimals` is below one.
    """
    if radius_sq < 0 or decimals < 1:
        raise ParameterError(f"radius_sq {radius_sq}, {decimals} decimals: expected at least 0 and 1")
    scaled = isqrt(int(radius_sq) * 10 ** (2 * decimals) // FULL_SCALE**2)
    whole, fraction = divmod(scaled, 10**decimals)
    return f"{whole}.{fraction:0{decimals}d}"


def radius_sq_at_least(radius: Fraction) -> int:
    """The smallest `radius_sq` whose `sqrt(radius_sq) / 255` reaches `radius`, a fraction of full scale.

    Raises:
        ParameterError: if the radius is negative, or a float.
    """
    _require_exact("radius", radius)
    if radius < 0:
        raise ParameterError(f"radius {radius}: expected at least 0")
    required = (FULL_SCALE * Fraction(radius)) ** 2
    return -(-required.numerator // required.denominator)
