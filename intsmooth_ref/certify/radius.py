"""From a count of votes to a certified radius, in integers: `PROOF.md`'s theorems 1 and 3, a Clopper-Pearson bound.

A perturbation of an 8-bit image is an integer vector `delta` in grey levels, so what a certificate allows is an integer
too, the *budget*: the largest sum of `abs(delta_i)**p` that is covered, where p is the order of the noise's own norm.

    noise                 p   the budget bounds              majority boundary B(budget)
    discrete_gaussian     2   n = ||delta||_2**2             (1)  Phi(sqrt(n) / sigma)             theorem 1
    discrete_laplace      1   r = ||delta||_1                (2)  1 - exp(-r / scale) / 2          theorem 3

A budget is covered when the probability pA of the class exceeds its boundary. A vote of `count` in `trials` shows that,
with confidence `1 - alpha`, when

    (3)   P(Binomial(trials, B(budget)) >= count) <= alpha

(Clopper and Pearson 1934: were pA not above the boundary, so high a count would have probability alpha at most). The
left side grows with the budget, so the certified ones are 0 up to the radius: `radius_sq` for Gaussian noise,
`radius_l1` for Laplace noise. SciPy guesses where they end and directed rounding decides: a wrong guess costs time and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from math import isqrt, log
from numbers import Integral

from ..dataset import FULL_SCALE
from ..errors import ParameterError
from ..interval import Interval, normal_cdf
from .binomial import fair_tail_at_most, smallest_trials, tail_at_most

#: Votes are numbered with 32 bits.
TRIALS_MAX = 2**32

#: No guess goes beyond so many sigma or scale: the largest float below 1 is reached by (1) at 8.3, by (2) at 36.1.
GUESS_LIMIT = 37

HALF = Fraction(1, 2)


def _laplace_boundary(ratio: Fraction, digits: int) -> Interval:
    """Equation (2) for `ratio = r / scale`."""
    return Interval.of(1, digits) - Interval.of(HALF, digits) * Interval.of(-ratio, digits).exp()


def _gaussian_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _laplace_quantile(probability: float) -> float:
    return -log(2 * (1 - probability))


@dataclass(frozen=True)
class _Law:
    """What the theorem on a noise law says.

    Attributes:
        parameter: what the law's parameter is called.
        order: p, of the norm that perturbations are measured in.
        boundary: encloses B, to so many digits, from `budget / parameter**p`.
        quantile: the p-norm in units of the parameter at which B has a given value; in floats, for a guess only.
    """

    parameter: str
    order: int
    boundary: Callable[[Fraction, int], Interval]
    quantile: Callable[[float], float]


_LAWS = {
    "discrete_gaussian": _Law("sigma", 2, normal_cdf, _gaussian_quantile),
    "discrete_laplace": _Law("scale", 1, _laplace_boundary, _laplace_quantile),
}


def radius_sq(count: int, trials: int, alpha: Fraction, sigma: Fraction) -> int | None:
    """The largest n (grey levels squared) that satisfies equation (3) for discrete Gaussian noise, or None (abstain).

    Every integer `delta` with `||delta||_2**2 <= radius_sq` is covered. Arguments and errors as for
    `certified_budget`, sigma being the parameter.
    """
    return certified_budget("discrete_gaussian", sigma, count, trials, alpha)


def radius_l1(count: int, trials: int, alpha: Fraction, scale: Fraction) -> int | None:
    """The largest r (grey levels) that satisfies equation (3) for discrete Laplace noise, or None (abstain).

    Every integer `delta` with `||delta||_1 <= radius_l1` is covered. Arguments and errors as for `certified_budget`,
    the scale being the parameter.
    """
    return certified_budget("discrete_laplace", scale, count, trials, alpha)


def certified_budget(noise: str, parameter: Fraction, count: int, trials: int, alpha: Fraction) -> int | None:
    """The largest budget that satisfies equation (3), or None (abstain) if not even 0 does.

    Args:
        noise: "discrete_gaussian" or "discrete_laplace".
        parameter: sigma or scale, in grey levels, above zero.
        count: the votes for the class, `0 .. trials`.
        trials: all votes, `1 .. 2**32`.
        alpha: the probability, `0 < alpha < 1`, with which the claim may fail. What the sampler leaves undecided has
            been subtracted from it by the caller. From 1/2 on a claim is no better than a coin, yet still as
            good as its alpha says, so these values are accepted.

    Raises:
        ParameterError: if the noise is unknown, a parameter is out of its range, or alpha, sigma or scale is a float,
            which is not the number it was written as.
    """
    _require_alpha(alpha)
    _checked_law(noise, parameter)
    if not 1 <= trials <= TRIALS_MAX:
        raise ParameterError(f"{trials} trials: expected 1 to {TRIALS_MAX}")
    if not 0 <= count <= trials:
        raise ParameterError(f"{count} votes for the class: expected 0 to the number of trials, {trials}")
    return _largest_certified(noise, Fraction(parameter), int(count), int(trials), Fraction(alpha))


def majority_boundary(noise: str, parameter: Fraction, budget: int) -> Callable[[int], Interval]:
    """What the probability of a class must exceed for the budget to be covered: equations (1) and (2).

    Args:
        noise: "discrete_gaussian" or "discrete_laplace".
        parameter: sigma or scale, in grey levels, above zero.
        budget: `||delta||_2**2` in grey levels squared or `||delta||_1` in grey levels, at least 0.

    Returns:
        The function from a number of digits to an enclosure of the boundary, about as narrow as `10**-digits`. For
        budget 0 that is 1/2 itself.

    Raises:
        ParameterError: if the noise is unknown, the parameter not an exact positive number, or the budget not an
            integer of at least 0.
    """
    law = _checked_law(noise, parameter)
    if not isinstance(budget, Integral) or budget < 0:
        raise ParameterError(f"budget {budget}: expected an integer of at least 0")
    if budget == 0:
        return partial(Interval.of, HALF)
    return partial(law.boundary, int(budget) / Fraction(parameter) ** law.order)


def require_conceivable(noise: str, parameter: Fraction, budget: int) -> None:
    """Refuse a target so far out that no votes could show it: its boundary differs from 1 by less than 10**-16.

    Raises:
        ParameterError: if the budget is beyond `GUESS_LIMIT` times the parameter, or `majority_boundary` refuses it.
    """
    law = _checked_law(noise, parameter)
    majority_boundary(noise, parameter, budget)
    limit = (GUESS_LIMIT * Fraction(parameter)) ** law.order
    if budget > limit:
        raise ParameterError(
            f"target {budget_text(noise, budget)}: expected at most {budget_text(noise, int(limit))},"
            f" {GUESS_LIMIT} times the {law.parameter} of the noise"
        )


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


def _law(noise: str) -> _Law:
    if noise not in _LAWS:
        raise ParameterError(f"noise {noise!r}: expected {' or '.join(_LAWS)}, which a radius is proven for")
    return _LAWS[noise]


def _checked_law(noise: str, parameter: Fraction) -> _Law:
    law = _law(noise)
    _require_exact(law.parameter, parameter)
    if parameter <= 0:
        raise ParameterError(f"{law.parameter} {parameter}: expected a positive number of grey levels")
    return law


@lru_cache(maxsize=1 << 16)
def _largest_certified(noise: str, parameter: Fraction, count: int, trials: int, alpha: Fraction) -> int | None:
    """Search for the last certified budget from SciPy's guess: double the step until it is passed, then bisect.

    `low` is certified, or -1; `high` is not.
    """

    def is_certified(budget: int) -> bool:
        """Equation (3), decided by directed rounding; budget 0 is a fair coin."""
        if budget == 0:
            return fair_tail_at_most(count, trials, alpha)
        return tail_at_most(count, trials, majority_boundary(noise, parameter, budget), alpha)

    step, guess = 1, _guess(noise, parameter, count, trials, alpha)
    if is_certified(guess):
        low, high = guess, guess + step
        while is_certified(high):
            step *= 2
            low, high = high, high + step
    else:
        low, high = guess - step, guess
        while low >= 0 and not is_certified(low):
            step *= 2
            low, high = max(low - step, -1), low
    while high - low > 1:
        middle = (low + high) // 2
        if is_certified(middle):
            low = middle
        else:
            high = middle
    return low if low >= 0 else None


def _guess(noise: str, parameter: Fraction, count: int, trials: int, alpha: Fraction) -> int:
    """SciPy's idea of the last certified budget; anything that is not a sensible number becomes one."""
    law = _law(noise)
    try:
        from scipy.special import betaincinv

        lower_bound = float(betaincinv(count, trials - count + 1, float(alpha)))
        radius = Fraction(law.quantile(lower_bound))
    except Exception:  # whatever goes wrong in floating point, the search finds the answer from anywhere
        return 0
    return int((min(max(radius, Fraction(0)), Fraction(GUESS_LIMIT)) * parameter) ** law.order)


def radius_text(radius_sq: int, decimals: int = 6) -> str:
    """The radius `sqrt(radius_sq) / 255`, a fraction of full scale, rounded down to so many decimals.

    An L1 radius r is printed by `radius_text(r**2)`.

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


def budget_at_least(noise: str, radius: Fraction) -> int:
    """The smallest budget whose radius reaches `radius`, a fraction of full scale in the noise's own norm.

    >>> budget_at_least("discrete_gaussian", Fraction(1, 4)), budget_at_least("discrete_laplace", Fraction(1, 4))
    (4065, 64)

    Raises:
        ParameterError: if the noise is unknown, or the radius negative or a float.
    """
    _require_exact("radius", radius)
    if radius < 0:
        raise ParameterError(f"radius {radius}: expected at least 0")
    required = (FULL_SCALE * Fraction(radius)) ** _law(noise).order
    return -(-required.numerator // required.denominator)


def budget_text(noise: str, budget: int) -> str:
    """A budget with the radius that it stands for, for messages: `"16257 (radius 0.500011)"`."""
    return f"{budget} (radius {radius_text(int(budget) ** (2 // _law(noise).order))})"


def radius_sq_at_least(radius: Fraction) -> int:
    """The smallest `radius_sq` whose `sqrt(radius_sq) / 255` reaches `radius`, a fraction of full scale.

    Raises:
        ParameterError: if the radius is negative, or a float.
    """
    return budget_at_least("discrete_gaussian", radius)
