"""Enclosures of real numbers: interval arithmetic in `decimal` with every rounding directed outwards.

A real number that has no exact representation is held as an `Interval` that contains it. Python's `decimal` adds,
multiplies and divides with the rounding direction that the context names, and its `exp`, `ln` and `sqrt` are correctly
rounded to nearest (General Decimal Arithmetic Specification 1.70, sections "exp", "ln", "square-root"), so that the
neighbouring numbers on both sides enclose the true value. Nothing here touches binary floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import lru_cache

from .errors import ArithmeticRangeError


@lru_cache(maxsize=None)
def _contexts(digits: int) -> tuple[Context, Context]:
    def context(rounding: str) -> Context:
        return Context(prec=digits, rounding=rounding, Emin=MIN_EMIN, Emax=MAX_EMAX)

    return context(ROUND_FLOOR), context(ROUND_CEILING)


@dataclass(frozen=True)
class Interval:
    """A closed interval `lower <= x <= upper` of reals, its ends rounded to `digits` significant digits.

    Every operation returns an interval that contains the result for all reals in its operands.
    """

    lower: Decimal
    upper: Decimal
    digits: int

    @classmethod
    def of(cls, value: Fraction | int, digits: int) -> Interval:
        """Enclose an exact rational."""
        value = Fraction(value)
        down, up = _contexts(digits)
        numerator, denominator = Decimal(value.numerator), Decimal(value.denominator)
        return cls(down.divide(numerator, denominator), up.divide(numerator, denominator), digits)

    def __add__(self, other: Interval) -> Interval:
        down, up = _contexts(self.digits)
        return Interval(down.add(self.lower, other.lower), up.add(self.upper, other.upper), self.digits)

    def __neg__(self) -> Interval:
        return Interval(self.upper.copy_negate(), self.lower.copy_negate(), self.digits)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        down, up = _contexts(self.digits)
        if self.lower >= 0 and other.lower >= 0:
            return Interval(down.multiply(self.lower, other.lower), up.multiply(self.upper, other.upper), self.digits)
        ends = [(a, b) for a in (self.lower, self.upper) for b in (other.lower, other.upper)]
        return Interval(
            min(down.multiply(a, b) for a, b in ends), max(up.multiply(a, b) for a, b in ends), self.digits
        )

    def __truediv__(self, other: Interval) -> Interval:
        if other.lower <= 0 <= other.upper:
            raise ArithmeticRangeError(f"division by an interval that contains zero: {other.lower} .. {other.upper}")
        down, up = _contexts(self.digits)
        ends = [(a, b) for a in (self.lower, self.upper) for b in (other.lower, other.upper)]
        return Interval(min(down.divide(a, b) for a, b in ends), max(up.divide(a, b) for a, b in ends), self.digits)

    def exp(self) -> Interval:
        down, up = _contexts(self.digits)
        return Interval(down.next_minus(down.exp(self.lower)), up.next_plus(up.exp(self.upper)), self.digits)

    def ln(self) -> Interval:
        if self.lower <= 0:
            raise ArithmeticRangeError(f"logarithm of an interval that is not positive: {self.lower} .. {self.upper}")
        down, up = _contexts(self.digits)
        lower = down.next_minus(down.ln(self.lower)) if self.lower != 1 else Decimal(0)
        upper = up.next_plus(up.ln(self.upper)) if self.upper != 1 else Decimal(0)
        return Interval(lower, upper, self.digits)

    def sqrt(self) -> Interval:
        if self.lower < 0:
            raise ArithmeticRangeError(f"square root of an interval that is not >= 0: {self.lower} .. {self.upper}")
        down, up = _contexts(self.digits)
        lower = down.next_minus(down.sqrt(self.lower)) if self.lower else Decimal(0)
        upper = up.next_plus(up.sqrt(self.upper)) if self.upper else Decimal(0)
        return Interval(lower, upper, self.digits)

    def scaled_floor(self, bits: int) -> tuple[int, int]:
        """`(floor(lower * 2**bits), floor(upper * 2**bits))`, exactly: equal when the interval decides the floor."""
        return _floor_times_power_of_two(self.lower, bits), _floor_times_power_of_two(self.upper, bits)


def _floor_times_power_of_two(value: Decimal, bits: int) -> int:
    if value.adjusted() < -bits:  # then |value| * 2**bits < 1; a tiny decimal's integer ratio would fill memory
        return -1 if value < 0 else 0
    numerator, denominator = value.as_integer_ratio()
    return (numerator << bits) // denominator


@lru_cache(maxsize=None)
def pi(digits: int) -> Interval:
    """Enclose pi by Machin's formula, `pi = 16 arctan(1/5) - 4 arctan(1/239)`, in integers.

    Both series alternate with falling terms, so the first omitted term, below one unit of the fixed-point scale, bounds
    what is left out; the floors put each term that is kept off by less than two units.
    """
    unit = 10 ** (digits + 5)

    def arctan_inverse(n: int) -> tuple[int, int]:
        total, power, k = 0, unit // n, 0
        while power:
            total += (power // (2 * k + 1)) * (-1) ** k
            power //= n * n
            k += 1
        return total - 2 * k - 2, total + 2 * k + 2

    low5, high5 = arctan_inverse(5)
    low239, high239 = arctan_inverse(239)
    lower = Interval.of(Fraction(16 * low5 - 4 * high239, unit), digits)
    upper = Interval.of(Fraction(16 * high5 - 4 * low239, unit), digits)
    return Interval(lower.lower, upper.upper, digits)


def normal_cdf(x_squared: Fraction, digits: int) -> Interval:
    """Enclose `Phi(x)` for `x = sqrt(x_squared) >= 0`, Phi the standard normal CDF.

    Abramowitz and Stegun 26.2.11: `Phi(x) = 1/2 + phi(x) * x * sum_j q**j / (2j+1)!!` with `q = x*x`. All terms of the
    sum are positive, so a partial sum of terms rounded down is a lower bound; terms rounded up give an upper bound once
    the ratio of successive terms, `q / (2j+3)`, is below 1/2 and the last term is added again for the rest of the
    series. The absolute width of the result is about `10**-digits`.

    Raises:
        ArithmeticRangeError: if `x_squared` is negative.
    """
    if x_squared < 0:
        raise ArithmeticRangeError(f"normal_cdf of the root of a negative number: {x_squared}")
    numerator, denominator = x_squared.numerator, x_squared.denominator
    unit = 1 << (4 * digits)

    lower_sum, term, j = 0, unit, 0
    while term:
        lower_sum += term
        term = term * numerator // (denominator * (2 * j + 3))
        j += 1

    upper_sum, term, j = 0, unit, 0
    while term > 1 or 2 * numerator >= denominator * (2 * j + 3):
        upper_sum += term
        term = -(-term * numerator // (denominator * (2 * j + 3)))
        j += 1
    upper_sum += 2 * term

    below, above = Fraction(lower_sum, unit), Fraction(upper_sum, unit)
    series = Interval(Interval.of(below, digits).lower, Interval.of(above, digits).upper, digits)
    square, two = Interval.of(x_squared, digits), Interval.of(2, digits)
    density_times_x = (square / (two * pi(digits))).sqrt() * (-(square / two)).exp()
    return Interval.of(Fraction(1, 2), digits) + density_times_x * series


def normal_density(x: Fraction, digits: int) -> Interval:
    """Enclose `phi(x) = exp(-x**2 / 2) / sqrt(2 pi)`, the standard normal density, to nearly `digits` digits."""
    return (-Interval.of(x * x / 2, digits)).exp() / _root_of_two_pi(digits)


@lru_cache(maxsize=None)
def _root_of_two_pi(digits: int) -> Interval:
    return (Interval.of(2, digits) * pi(digits)).sqrt()


#: From here on the continued fraction of `normal_tail` needs fewer terms than the series of `normal_cdf`.
CONTINUED_FRACTION_FROM = 4


def normal_tail(x: Fraction, digits: int) -> Interval:
    """Enclose `1 - Phi(x)` for `x >= 0`; the relative width is at most `10**-digits` up to x = 1000.

    Near the centre the CDF is taken from one. Far out, let `J(m)` be the integral of `(t-x)**m / m! * phi(t)` over
    t > x, so that `J(0) = 1 - Phi(x)`, and `J(-1) = phi(x)`. Partial integration gives

        J(m-1) = x J(m) + (m+1) J(m+1),   hence   r(m) = x + (m+1) / r(m+1)   for   r(m) = J(m-1) / J(m),

    Laplace's continued fraction (Abramowitz and Stegun 26.2.14). All r(m) are positive, hence
    `x < r(m) < x + (m+1) / x`, and from such an enclosure far down the recurrence leads back to
    `1 - Phi(x) = phi(x) / r(0)`.

    Raises:
        ArithmeticRangeError: if `x` is negative.
    """
    if x < 0:
        raise ArithmeticRangeError(f"normal_tail of a negative number: {x}")
    digits += 7  # 1 - Phi(4) is 3e-5; beyond, the exponent x**2 / 2 costs digits
    if x < CONTINUED_FRACTION_FROM:
        return Interval.of(1, digits) - normal_cdf(x * x, digits)
    bits, depth = 4 * digits, 16 + int((digits / x) ** 2)
    lower, upper = _continued_fraction(x, depth, bits)
    while (upper - lower) * 10**digits > lower:
        depth *= 2
        lower, upper = _continued_fraction(x, depth, bits)
    unit = 1 << bits
    below, above = Interval.of(Fraction(lower, unit), digits), Interval.of(Fraction(upper, unit), digits)
    return normal_density(x, digits) / Interval(below.lower, above.upper, digits)


def _continued_fraction(x: Fraction, depth: int, bits: int) -> tuple[int, int]:
    """Integers that enclose `2**bits * r(0)`, from the enclosure of r(depth) that `normal_tail` names."""
    square = 1 << (2 * bits)
    x_lower = (x.numerator << bits) // x.denominator
    lower, upper = x_lower, x_lower + 1 + -(-(depth + 1) * square // x_lower)
    for m in range(depth, 0, -1):
        lower, upper = x_lower + m * square // upper, x_lower + 1 + -(-m * square // lower)
    return lower, upper
