"""Integer distributions held as exact CDFs: 256-bit thresholds, each the floor of a real number, decided by enclosure.

A distribution with the cumulative distribution function F on the integers is held as

    (1)   T_j = floor(2**256 * F(minimum + j)),   j = 0 .. N-1,

and a value is drawn from U, uniform on the integers 0 .. 2**256-1, as

    (2)   value = minimum + #{j : T_j <= U},   so that   P(value <= minimum + j) = T_j / 2**256   exactly.

Equation (1) is mathematics, not an algorithm: a real is enclosed in an interval, and the enclosure narrowed until both
ends have the same floor (Ziv 1991); the loop ends only when they do. Any other correct computation gives the same
integers. All four distributions are symmetric about zero, so everything follows from the left tail F(-1), F(-2), ...
(`_symmetric`). `PROOF.md` proves the bound `total_variation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, count
from math import ceil, floor
from numbers import Rational
from typing import Iterable, Iterator

from ..errors import ParameterError
from ..interval import Interval, normal_cdf

#: Bits of U and of every threshold.
RESOLUTION_BITS = 256

SIGMA_MIN, SIGMA_MAX = Fraction(1, 4), Fraction(1024)
SCALE_MIN, SCALE_MAX = Fraction(1, 4), Fraction(128)
RADIUS_MIN, RADIUS_MAX = 1, 32767

#: Integers `lower, upper` that enclose a real x >= 0: lower <= x * 2**bits <= upper.
Enclosure = tuple[int, int]


@dataclass(frozen=True, eq=False)
class IntegerDistribution:
    """A law on the integers `minimum` .. `minimum + len(thresholds)`, as equations (1) and (2) say.

    Attributes:
        name: the constructor's name.
        parameter: sigma, scale or radius in grey levels, exact.
        minimum: the smallest value.
        thresholds: T_0 <= T_1 <= ... <= T_(N-1), integers in 0 .. 2**256-1.
        total_variation: proven upper bound on the total variation distance between the law that (2) samples and the
            law that the name stands for, its tails beyond the table included (PROOF.md, theorem 2).
    """

    name: str
    parameter: Fraction
    minimum: int
    thresholds: tuple[int, ...]
    total_variation: Fraction

    @property
    def maximum(self) -> int:
        """The largest value."""
        return self.minimum + len(self.thresholds)


def discrete_gaussian(sigma: Fraction | int) -> IntegerDistribution:
    """P(k) proportional to exp(-k**2 / (2 sigma**2)) (Canonne, Kamath and Steinke 2020, definition 1).

    Args:
        sigma: grey levels, an exact rational in 1/4 .. 1024.

    Raises:
        ParameterError: if sigma is not a rational, or outside its range.
    """
    return _discrete_gaussian(_checked("sigma", sigma, SIGMA_MIN, SIGMA_MAX))


def rounded_normal(sigma: Fraction | int) -> IntegerDistribution:
    """The law of round(X) for X normal with mean zero and standard deviation sigma: F(k) = Phi((k + 1/2) / sigma).

    Args:
        sigma: grey levels, an exact rational in 1/4 .. 1024. The time grows with sigma, to tens of seconds at 1024.

    Raises:
        ParameterError: if sigma is not a rational, or outside its range.
    """
    return _rounded_normal(_checked("sigma", sigma, SIGMA_MIN, SIGMA_MAX))


def discrete_laplace(scale: Fraction | int) -> IntegerDistribution:
    """P(k) proportional to exp(-|k| / scale).

    Args:
        scale: grey levels, an exact rational in 1/4 .. 128 (beyond, the support of some 355 * scale leaves int16).

    Raises:
        ParameterError: if scale is not a rational, or outside its range.
    """
    return _discrete_laplace(_checked("scale", scale, SCALE_MIN, SCALE_MAX))


def discrete_uniform(radius: int) -> IntegerDistribution:
    """P(k) = 1 / (2 radius + 1) for k in -radius .. radius.

    Args:
        radius: grey levels, an integer in 1 .. 32767.

    Raises:
        ParameterError: if radius is not an integer, or outside its range.
    """
    checked = _checked("radius", radius, Fraction(RADIUS_MIN), Fraction(RADIUS_MAX))
    if checked.denominator != 1:
        raise ParameterError(f"radius {radius}: expected an integer")
    return _discrete_uniform(checked.numerator)


def _checked(what: str, value: Fraction | int, smallest: Fraction, largest: Fraction) -> Fraction:
    if not isinstance(value, Rational):
        raise ParameterError(f"{what} {value!r}: expected an exact rational (Fraction or int)")
    if not smallest <= value <= largest:
        raise ParameterError(f"{what} {value}: expected {smallest} to {largest} grey levels")
    return Fraction(int(value.numerator), int(value.denominator))  # int() because a NumPy integer can overflow


@lru_cache(maxsize=64)
def _discrete_gaussian(sigma: Fraction) -> IntegerDistribution:
    variance = sigma * sigma
    return _symmetric("discrete_gaussian", sigma, _log_quadratic_tail(-1 / (2 * variance), -1 / variance))


@lru_cache(maxsize=64)
def _discrete_laplace(scale: Fraction) -> IntegerDistribution:
    return _symmetric("discrete_laplace", scale, _log_quadratic_tail(-1 / scale, Fraction(0)))


@lru_cache(maxsize=64)
def _rounded_normal(sigma: Fraction) -> IntegerDistribution:
    return _symmetric("rounded_normal", sigma, (_rounded_normal_tail(k, sigma) for k in count(1)))


@lru_cache(maxsize=64)
def _discrete_uniform(radius: int) -> IntegerDistribution:
    tail = (Fraction((radius - k + 1) << RESOLUTION_BITS, 2 * radius + 1) for k in range(1, radius + 2))
    return _symmetric("discrete_uniform", Fraction(radius), ((floor(x), ceil(x)) for x in tail))


def _symmetric(name: str, parameter: Fraction, tail: Iterable[tuple[int, int]]) -> IntegerDistribution:
    """The distribution whose left tail is `tail`: floor and ceiling of 2**256 * F(-k) for k = 1, 2, ...

    The support ends at -K and K, with K the last k whose floor is not zero. On the right, F(k - 1) = 1 - F(-k), whose
    floor is 2**256 less the ceiling of the tail.
    """
    left, right = [], []
    for tail_floor, tail_ceiling in tail:
        if tail_floor == 0:
            break
        left.append(tail_floor)
        right.append((1 << RESOLUTION_BITS) - tail_ceiling)
    thresholds = tuple(reversed(left)) + tuple(right)
    total_variation = Fraction(len(thresholds) + 2, 1 << RESOLUTION_BITS)
    return IntegerDistribution(name, parameter, -len(left), thresholds, total_variation)


def _rounded_normal_tail(k: int, sigma: Fraction) -> tuple[int, int]:
    """Floor and ceiling of 2**256 * F(-k) = 2**256 * (1 - Phi((k - 1/2) / sigma)), for k >= 1."""
    x_squared = ((k - Fraction(1, 2)) / sigma) ** 2
    digits = 90
    while True:
        tail = Interval.of(1, digits) - normal_cdf(x_squared, digits)
        floors, minus_ceilings = tail.scaled_floor(RESOLUTION_BITS), (-tail).scaled_floor(RESOLUTION_BITS)
        if floors[0] == floors[1] and minus_ceilings[0] == minus_ceilings[1]:
            return floors[0], -minus_ceilings[0]
        digits += 30


def _log_quadratic_tail(first: Fraction, step: Fraction) -> Iterator[tuple[int, int]]:
    """Floors and ceilings of 2**256 * F(-k), k = 1, 2, ..., for a law whose logarithm is a quadratic in |k|.

    P(k) is proportional to w(|k|) with w(0) = 1 and w(k + 1) / w(k) = exp(first + k * step), first < 0, step <= 0.
    """
    bits = RESOLUTION_BITS + 64
    while True:
        tail = _enclosed_tail(first, step, bits)
        if all(floors[0] == floors[1] and ceilings[0] == ceilings[1] for floors, ceilings in tail):
            return ((floors[0], ceilings[0]) for floors, ceilings in tail)
        bits += 64


def _enclosed_tail(first: Fraction, step: Fraction, bits: int) -> list[tuple[Enclosure, Enclosure]]:
    """What `bits` fractional bits tell of floor and ceiling of 2**256 * F(-k), for k = 1, 2, ... as far as needed."""
    weights, rest = _weights(first, step, bits)
    sums = list(accumulate(reversed(weights), _sum, initial=rest))[:0:-1]  # w(k) + w(k+1) + ..., k = 1, 2, ...
    one = 1 << bits
    total_lower, total_upper = one + 2 * sums[0][0], one + 2 * sums[0][1]
    tail = []
    for lower, upper in sums:
        lower, upper = lower << RESOLUTION_BITS, upper << RESOLUTION_BITS
        floors = lower // total_upper, upper // total_lower
        ceilings = -(-lower // total_upper), -(-upper // total_lower)
        tail.append((floors, ceilings))
        if floors[1] == 0:
            break
    return tail


def _weights(first: Fraction, step: Fraction, bits: int) -> tuple[list[Enclosure], Enclosure]:
    """Enclose w(1), w(2), ... w(M), and the sum of all weights beyond, where w(M) vanishes at this resolution.

    One product gives the next weight, another the next ratio of weights. The ratios fall, so the weights beyond M sum
    to less than the geometric series w(M) * ratio / (1 - ratio).
    """
    one = 1 << bits
    ratio, ratio_step = _enclosed_exp(first, bits), _enclosed_exp(step, bits)
    weight = (one, one)
    weights = []
    while weight[0] > 0:
        weight, ratio = _product(weight, ratio, bits), _product(ratio, ratio_step, bits)
        weights.append(weight)
    return weights, (0, weight[1] * ratio[1] // (one - ratio[1]) + 1)


def _enclosed_exp(exponent: Fraction, bits: int) -> Enclosure:
    digits = bits // 3  # 10**-digits is below 2**-bits, for log2(10) > 3
    lower, upper = Interval.of(exponent, digits).exp().scaled_floor(bits)
    return lower, upper + 1


def _sum(a: Enclosure, b: Enclosure) -> Enclosure:
    return a[0] + b[0], a[1] + b[1]


def _product(a: Enclosure, b: Enclosure, bits: int) -> Enclosure:
    return a[0] * b[0] >> bits, -(-(a[1] * b[1]) >> bits)
