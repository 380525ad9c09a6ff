"""Interval arithmetic: every operation encloses the true result, and encloses it tightly."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import factorial, isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intsmooth_ref.errors import ArithmeticRangeError
from intsmooth_ref.interval import (
    CONTINUED_FRACTION_FROM,
    Interval,
    _continued_fraction,
    normal_cdf,
    normal_density,
    normal_tail,
    pi,
)

DIGITS = 30

#: No deadline: how long an example takes depends on what else the machine does.
examples = settings(max_examples=60, deadline=None)

#: pi to 100 decimals, Abramowitz and Stegun, table 1.1 (digits as in OEIS A000796), truncated.
PI_100 = (
    "3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679"
)
#: e and ln 2 truncated to 50 decimals (OEIS A001113, A002162).
E_50 = "2.71828182845904523536028747135266249775724709369995"
LN2_50 = "0.69314718055994530941723212145817656807550013436025"

rationals = st.fractions(min_value=-1000, max_value=1000, max_denominator=10**6)
positive_rationals = st.fractions(min_value=Fraction(1, 10**6), max_value=1000, max_denominator=10**6)


@st.composite
def intervals_with_member(draw: st.DrawFn) -> tuple[Interval, Fraction]:
    """A wide interval and a rational inside it."""
    low, member, high = sorted(draw(st.tuples(rationals, rationals, rationals)))
    return Interval(Interval.of(low, 8).lower, Interval.of(high, 8).upper, 8), member


def contains(interval: Interval, value: Fraction) -> bool:
    return Fraction(interval.lower) <= value <= Fraction(interval.upper)


def is_tight(interval: Interval, digits: int) -> bool:
    """Whether the relative width is at most `10**-digits`."""
    lower, upper = Fraction(interval.lower), Fraction(interval.upper)
    return (upper - lower) * 10**digits <= max(abs(lower), abs(upper))


def truncated(digits: str) -> tuple[Fraction, Fraction]:
    """The two rationals that enclose a positive number published with its last digit truncated."""
    value = Fraction(digits)
    return value, value + Fraction(1, 10 ** len(digits.split(".")[1]))


def overlaps(interval: Interval, lower: Fraction, upper: Fraction) -> bool:
    return Fraction(interval.lower) <= upper and lower <= Fraction(interval.upper)


@examples
@given(rationals, st.integers(1, 40))
def test_a_rational_is_enclosed_by_neighbouring_decimals(value: Fraction, digits: int) -> None:
    interval = Interval.of(value, digits)
    assert contains(interval, value)
    assert value == 0 or is_tight(interval, digits - 1)


@examples
@given(intervals_with_member(), intervals_with_member())
def test_sum_difference_product_and_negative_contain_the_exact_result(
    a: tuple[Interval, Fraction], b: tuple[Interval, Fraction]
) -> None:
    (x, member_x), (y, member_y) = a, b
    assert contains(x + y, member_x + member_y)
    assert contains(x - y, member_x - member_y)
    assert contains(x * y, member_x * member_y)
    assert contains(-x, -member_x)


@examples
@given(intervals_with_member(), intervals_with_member())
def test_a_quotient_contains_the_exact_result_and_division_by_zero_is_refused(
    a: tuple[Interval, Fraction], b: tuple[Interval, Fraction]
) -> None:
    (x, member_x), (y, member_y) = a, b
    if contains(y, Fraction(0)):
        with pytest.raises(ArithmeticRangeError, match="contains zero"):
            x / y
    else:
        assert contains(x / y, member_x / member_y)


@examples
@given(rationals, rationals, st.sampled_from("+-*/"))
def test_operations_on_points_lose_only_the_last_digits(a: Fraction, b: Fraction, operation: str) -> None:
    x, y = Interval.of(a, DIGITS), Interval.of(b, DIGITS)
    if operation == "/" and b == 0:
        return
    result = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[operation]()
    assert Fraction(result.upper) - Fraction(result.lower) <= Fraction(abs(a) + abs(b) + 1 + abs(a) * 10**6, 10**28)


@examples
@given(rationals, rationals, st.integers(0, 300))
def test_scaled_floor_is_the_exact_floor_of_both_ends(a: Fraction, b: Fraction, bits: int) -> None:
    low, high = sorted((a, b))
    interval = Interval(Interval.of(low, DIGITS).lower, Interval.of(high, DIGITS).upper, DIGITS)
    ends = Fraction(interval.lower), Fraction(interval.upper)
    assert interval.scaled_floor(bits) == tuple((end.numerator << bits) // end.denominator for end in ends)


@examples
@given(positive_rationals)
def test_a_square_root_encloses_the_rational_whose_square_is_known(value: Fraction) -> None:
    root = Interval.of(value**2, 60).sqrt()
    assert contains(root, value)
    assert is_tight(root, 50)


@examples
@given(st.integers(1, 10**30))
def test_a_square_root_agrees_with_the_integer_square_root(n: int) -> None:
    root = Interval.of(n, 60).sqrt()
    assert Fraction(root.lower) ** 2 <= n <= Fraction(root.upper) ** 2
    assert Fraction(isqrt(n)) <= Fraction(root.upper) and Fraction(root.lower) < isqrt(n) + 1
    assert is_tight(root, 58)


def test_the_square_root_of_zero_and_the_logarithm_of_one_are_zero() -> None:
    zero = Interval(Decimal(0), Decimal(0), DIGITS)
    assert Interval.of(0, DIGITS).sqrt() == Interval.of(1, DIGITS).ln() == zero


@pytest.mark.parametrize(
    "value, floor", [("1e-1000000000000", 0), ("-1e-1000000000000", -1), ("0e-99", 0), ("-0.1", -1)]
)
def test_scaled_floor_takes_the_smallest_decimals(value: str, floor: int) -> None:
    assert Interval(Decimal(value), Decimal(value), DIGITS).scaled_floor(3) == (floor, floor)


@examples
@given(st.fractions(min_value=-20, max_value=20, max_denominator=1000))
def test_the_exponential_encloses_a_taylor_series_with_its_remainder(x: Fraction) -> None:
    terms = 120
    partial = sum((x**j / factorial(j) for j in range(terms)), Fraction(0))
    remainder = 2 * abs(x) ** terms / factorial(terms)  # the terms left out fall faster than by halves
    result = Interval.of(x, 40).exp()
    assert overlaps(result, partial - remainder, partial + remainder)
    assert is_tight(result, 37)


@examples
@given(positive_rationals)
def test_the_logarithm_is_undone_by_the_exponential(x: Fraction) -> None:
    assert contains(Interval.of(x, DIGITS).ln().exp(), x)
    assert is_tight(Interval.of(x, DIGITS).ln().exp(), DIGITS - 3)


@examples
@given(intervals_with_member())
def test_monotone_functions_of_a_wide_interval_contain_those_of_its_members(a: tuple[Interval, Fraction]) -> None:
    wide, member = a
    scale = Interval.of(Fraction(1, 100), 8)
    point = Interval.of(member, 40) * Interval.of(Fraction(1, 100), 40)
    pairs = [((wide * scale).exp(), point.exp())]
    if wide.lower > 0:
        pairs += [((wide * scale).ln(), point.ln()), ((wide * scale).sqrt(), point.sqrt())]
    for outer, inner in pairs:
        assert outer.lower <= inner.lower and inner.upper <= outer.upper


@pytest.mark.parametrize("digits", [5, 20, 50, 90])
def test_pi_e_and_ln_2_enclose_their_published_digits(digits: int) -> None:
    one, two = Interval.of(1, digits), Interval.of(2, digits)
    for interval, published in ((pi(digits), PI_100), (one.exp(), E_50), (two.ln(), LN2_50)):
        assert overlaps(interval, *truncated(published))
        assert is_tight(interval, digits - 2)


@pytest.mark.parametrize(
    "x, upper_tail",
    [  # 1 - Phi(x), rounded to 15 decimals (Abramowitz and Stegun, table 26.1)
        (Fraction(1, 2), "0.308537538725987"),
        (Fraction(1), "0.158655253931457"),
        (Fraction(3, 2), "0.066807201268858"),
        (Fraction(2), "0.022750131948179"),
        (Fraction(3), "0.001349898031630"),
    ],
)
def test_the_normal_cdf_encloses_tabulated_values(x: Fraction, upper_tail: str) -> None:
    tail, half_unit = Fraction(upper_tail), Fraction(1, 2 * 10**15)
    assert overlaps(normal_cdf(x**2, 40), 1 - tail - half_unit, 1 - tail + half_unit)


@pytest.mark.parametrize("x_squared", [Fraction(1, 100), Fraction(1, 3), *map(Fraction, (2, 7, 25, 100))])
def test_the_normal_cdf_lies_between_the_bounds_of_its_asymptotic_series(x_squared: Fraction) -> None:
    """Abramowitz and Stegun 26.2.12: partial sums of `phi(x)/x (1 - 1/x**2 + 3/x**4 - ...)` enclose the tail."""
    digits = 60
    one, square = Interval.of(1, digits), Interval.of(x_squared, digits)
    density = (-(square / Interval.of(2, digits))).exp() / (Interval.of(2, digits) * pi(digits)).sqrt()
    above = density / square.sqrt()
    below = above * (one - one / square)
    tail = one - normal_cdf(x_squared, digits)
    assert below.lower <= tail.upper and tail.lower <= above.upper


def test_the_normal_cdf_agrees_with_the_integral_of_the_series_of_the_density() -> None:
    """`Phi(x) - 1/2 = (1/sqrt(2 pi)) sum (-1)**j x**(2j+1) / (2**j j! (2j+1))` in exact rationals, another series."""
    for x in (Fraction(1, 7), Fraction(1), Fraction(5, 2), Fraction(4)):
        terms = ((-1) ** j * x ** (2 * j + 1) / (2**j * factorial(j) * (2 * j + 1)) for j in range(150))
        series = sum(terms, Fraction(0))
        expected = Interval.of(series, 50) / (Interval.of(2, 50) * pi(50)).sqrt() + Interval.of(Fraction(1, 2), 50)
        result = normal_cdf(x**2, 50)
        assert result.lower <= expected.upper and expected.lower <= result.upper
        assert is_tight(result, 47)


def test_the_normal_cdf_at_zero_encloses_one_half() -> None:
    assert contains(normal_cdf(Fraction(0), DIGITS), Fraction(1, 2))


TAIL_ARGUMENTS = ["0", "1/1000000", "1/3", "2", "3.999999", "4", "4.000001", "19/3", "18.8", "100", "1000"]


@pytest.mark.parametrize("digits", [1, 5, 30, 100])
@pytest.mark.parametrize("x", TAIL_ARGUMENTS)
def test_the_normal_tail_keeps_its_relative_accuracy_however_far_out(x: str, digits: int) -> None:
    mpmath = pytest.importorskip("mpmath")
    value = Fraction(x)
    with mpmath.workdps(130):
        peer = mpmath.erfc(mpmath.mpf(value.numerator) / value.denominator / mpmath.sqrt(2)) / 2
        expected = Fraction(mpmath.nstr(peer, 120))
    tail = normal_tail(value, digits)
    assert overlaps(tail, expected * (1 - Fraction(1, 10**115)), expected * (1 + Fraction(1, 10**115)))
    assert is_tight(tail, digits)


@pytest.mark.parametrize("x", [Fraction(CONTINUED_FRACTION_FROM), Fraction(13, 3), Fraction(7), Fraction(10)])
def test_the_continued_fraction_and_the_series_of_the_cdf_agree(x: Fraction) -> None:
    tail, difference = normal_tail(x, 60), Interval.of(1, 100) - normal_cdf(x**2, 100)
    assert tail.lower <= difference.upper and difference.lower <= tail.upper


@pytest.mark.parametrize("x", ["4", "13/3", "599/100", "50"])
def test_the_continued_fraction_encloses_the_ratio_at_every_depth_and_precision(x: str) -> None:
    """`phi(x) / (1 - Phi(x))` by mpmath; with few bits every rounding shows, with few terms the first enclosure."""
    mpmath = pytest.importorskip("mpmath")
    value = Fraction(x)
    with mpmath.workdps(80):
        point = mpmath.mpf(value.numerator) / value.denominator
        ratio = mpmath.npdf(point) / (mpmath.erfc(point / mpmath.sqrt(2)) / 2)
        expected = Fraction(mpmath.nstr(ratio, 60))
    for depth in (0, 1, 2, 3, 10, 40):
        for bits in (0, 1, 2, 5, 9, 100):
            lower, upper = _continued_fraction(value, depth, bits)
            assert lower < expected * 2**bits < upper


@examples
@given(st.fractions(min_value=0, max_value=40, max_denominator=10**6))
def test_the_normal_tail_lies_between_the_bounds_of_its_ratio_to_the_density(x: Fraction) -> None:
    """Birnbaum 1942, Sampford 1953: `2 / (x + sqrt(x**2+4)) <= (1 - Phi(x)) / phi(x) <= 4 / (3x + sqrt(x**2+8))`."""
    ratio = normal_tail(x, DIGITS) / normal_density(x, DIGITS)

    def bound(scale: int, factor: int, under_root: int) -> Interval:
        root = Interval.of(x * x + under_root, DIGITS).sqrt()
        return Interval.of(scale, DIGITS) / (Interval.of(factor * x, DIGITS) + root)

    assert bound(2, 1, 4).lower <= ratio.upper and ratio.lower <= bound(4, 3, 8).upper


@pytest.mark.parametrize("x", ["0", "1/7", "1", "-1", "6", "40"])
def test_the_normal_density_times_the_root_of_two_pi_is_the_exponential(x: str) -> None:
    density, value = normal_density(Fraction(x), 40), Fraction(x)
    root = (Interval.of(2, 60) * pi(60)).sqrt()
    product, expected = density * root, Interval.of(-value * value / 2, 60).exp()
    assert product.lower <= expected.upper and expected.lower <= product.upper
    assert is_tight(density, 35)


@pytest.mark.parametrize("x_squared", ["1/1000000", "1/3", "1", "2.25", "10", "36", "200", "1600"])
def test_functions_agree_with_mpmath_at_higher_precision(x_squared: str) -> None:
    mpmath = pytest.importorskip("mpmath")
    value = Fraction(x_squared)
    with mpmath.workdps(120):
        x = mpmath.mpf(value.numerator) / value.denominator
        pairs: list[tuple[Interval, Callable[[], object]]] = [
            (Interval.of(value, 50).exp(), lambda: mpmath.exp(x)),
            (Interval.of(value, 50).ln(), lambda: mpmath.log(x)),
            (Interval.of(value, 50).sqrt(), lambda: mpmath.sqrt(x)),
            (normal_cdf(value, 50), lambda: 1 - mpmath.erfc(mpmath.sqrt(x / 2)) / 2),
            (pi(50), lambda: +mpmath.pi),
        ]
        for interval, peer in pairs:
            expected = Fraction(mpmath.nstr(peer(), 110))
            slack = abs(expected) / 10**100
            assert overlaps(interval, expected - slack, expected + slack)
            assert expected == 0 or is_tight(interval, 45)


def test_arguments_outside_the_domain_are_refused() -> None:
    minus_one_to_one = Interval(Decimal(-1), Decimal(1), DIGITS)
    with pytest.raises(ArithmeticRangeError, match="logarithm"):
        minus_one_to_one.ln()
    with pytest.raises(ArithmeticRangeError, match="square root"):
        minus_one_to_one.sqrt()
    with pytest.raises(ArithmeticRangeError, match="negative number"):
        normal_cdf(Fraction(-1), DIGITS)
    with pytest.raises(ArithmeticRangeError, match="negative number"):
        normal_tail(Fraction(-1), DIGITS)


def test_the_callers_decimal_context_changes_nothing() -> None:
    expected, tail = normal_cdf(Fraction(7, 3), 41), normal_tail(Fraction(9, 2), 41)
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        assert normal_cdf(Fraction(7, 3), 41) == expected
        assert normal_tail(Fraction(9, 2), 41) == tail
