"""The thresholds of every distribution against CDFs computed by other means: direct sums of `exp` and the alternating
series of the normal CDF, in 200 digits of `decimal`; closed forms of mpmath; `fractions` where the CDF is rational."""

from __future__ import annotations

import subprocess
import sys
import time
from decimal import MAX_EMAX, MIN_EMIN, ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from itertools import accumulate
from typing import Callable

import pytest

from intsmooth_ref.errors import ParameterError
from intsmooth_ref.noise.distributions import (
    IntegerDistribution,
    discrete_gaussian,
    discrete_laplace,
    discrete_uniform,
    rounded_normal,
)

FULL = 2**256
AWKWARD = Fraction(355, 113)
#: Digits of the oracles; their CDFs are right to far more than the 10**-150 that `exact_floor` asks for.
CONTEXT = Context(prec=200, Emin=MIN_EMIN, Emax=MAX_EMAX)

SOME_OF_EACH = [
    discrete_gaussian(Fraction(1, 4)),
    discrete_gaussian(AWKWARD),
    discrete_gaussian(Fraction(255, 4)),
    rounded_normal(Fraction(1, 4)),
    rounded_normal(AWKWARD),
    discrete_laplace(Fraction(1, 4)),
    discrete_laplace(AWKWARD),
    discrete_uniform(1),
    discrete_uniform(1000),
]


def decimal_of(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def exact_floor(probability: Decimal) -> int:
    """floor(2**256 * probability), where the probability is known to 10**-150, or a failed assertion."""
    scaled = probability * FULL
    floor = scaled.to_integral_value(ROUND_FLOOR)
    assert Decimal(10) ** -70 < scaled - floor < 1 - Decimal(10) ** -70
    return int(floor)


def probabilities_from_weights(log_weight: Callable[[int], Fraction]) -> dict[int, Decimal]:
    """P(k) proportional to exp(log_weight(|k|)), by summing every weight above 10**-190."""
    weights, k = [Decimal(1)], 1
    while weights[-1] > Decimal(10) ** -190:
        weights.append(decimal_of(log_weight(k)).exp())
        k += 1
    total = 2 * sum(weights) - 1
    return {k: weights[abs(k)] / total for k in range(1 - len(weights), len(weights))}


def decimal_pi() -> Decimal:
    """The Gauss-Legendre iteration."""
    a, b, t, p = Decimal(1), 1 / Decimal(2).sqrt(), Decimal("0.25"), Decimal(1)
    for _ in range(9):  # the number of right digits doubles: 9 times are more than 350
        a, b, t, p = (a + b) / 2, (a * b).sqrt(), t - p * ((a - b) / 2) ** 2, 2 * p
    return (a + b) ** 2 / (4 * t)


def normal_cdf_by_alternating_series(x: Fraction) -> Decimal:
    """Phi(x) = 1/2 + (2 pi)**-1/2 * sum of (-1)**n x**(2n+1) / (n! 2**n (2n+1)); 320 digits outlast cancellation."""
    with localcontext(CONTEXT) as context:
        context.prec = 320
        term = decimal_of(x)
        square, total, n = term * term, term, 0
        while abs(term) > Decimal(10) ** -200:
            n += 1
            term = -term * square / (2 * n)
            total += term / (2 * n + 1)
        return Decimal("0.5") + total / (2 * decimal_pi()).sqrt()


def gaussian_log_weight(sigma: Fraction) -> Callable[[int], Fraction]:
    return lambda k: Fraction(-k * k) / (2 * sigma * sigma)


def laplace_log_weight(scale: Fraction) -> Callable[[int], Fraction]:
    return lambda k: -k / scale


WEIGHTED = [
    (discrete_gaussian, gaussian_log_weight, Fraction(1, 4)),
    (discrete_gaussian, gaussian_log_weight, Fraction(1)),
    (discrete_gaussian, gaussian_log_weight, AWKWARD),
    (discrete_gaussian, gaussian_log_weight, Fraction(255, 4)),
    (discrete_laplace, laplace_log_weight, Fraction(1, 4)),
    (discrete_laplace, laplace_log_weight, Fraction(1)),
    (discrete_laplace, laplace_log_weight, AWKWARD),
]


@pytest.mark.parametrize("constructor, log_weight, parameter", WEIGHTED)
def test_thresholds_are_the_floors_of_the_directly_summed_cdf(
    constructor: Callable[[Fraction], IntegerDistribution],
    log_weight: Callable[[Fraction], Callable[[int], Fraction]],
    parameter: Fraction,
) -> None:
    distribution = constructor(parameter)
    with localcontext(CONTEXT):
        probabilities = probabilities_from_weights(log_weight(parameter))
        cdf = dict(zip(probabilities, accumulate(probabilities.values())))
        numbers = range(distribution.minimum, distribution.maximum)
        assert distribution.thresholds == tuple(exact_floor(cdf[k]) for k in numbers)
        # and the support ends where nothing of 2**-256 is left on either side
        assert exact_floor(cdf[distribution.minimum - 1]) == 0
        assert exact_floor(cdf[distribution.maximum]) == FULL - 1


@pytest.mark.parametrize(
    "sigma, stride",
    [
        (Fraction(1, 4), 1),
        (Fraction(1), 1),
        (AWKWARD, 3),
        pytest.param(Fraction(255, 4), 61, marks=pytest.mark.slow),
    ],
)
def test_rounded_normal_thresholds_are_the_floors_of_the_normal_cdf(sigma: Fraction, stride: int) -> None:
    distribution = rounded_normal(sigma)

    def threshold(k: int) -> int:
        return exact_floor(normal_cdf_by_alternating_series((k + Fraction(1, 2)) / sigma))

    with localcontext(CONTEXT):
        for index in range(0, len(distribution.thresholds), stride):
            assert distribution.thresholds[index] == threshold(distribution.minimum + index)
        assert threshold(distribution.minimum - 1) == 0
        assert threshold(distribution.maximum) == FULL - 1


@pytest.mark.parametrize("radius", [1, 2, 7, 1000])
def test_uniform_thresholds_are_exact(radius: int) -> None:
    distribution = discrete_uniform(radius)
    assert (distribution.minimum, distribution.maximum) == (-radius, radius)
    assert distribution.thresholds == tuple(FULL * j // (2 * radius + 1) for j in range(1, 2 * radius + 1))


@pytest.mark.parametrize("distribution", SOME_OF_EACH, ids=lambda d: f"{d.name}-{d.parameter}")
def test_thresholds_ascend_and_mirror(distribution: IntegerDistribution) -> None:
    thresholds = distribution.thresholds
    assert distribution.minimum == -distribution.maximum
    assert 0 < thresholds[0] and thresholds[-1] < FULL
    assert all(a <= b for a, b in zip(thresholds, thresholds[1:]))
    assert all(a + b in (FULL - 1, FULL) for a, b in zip(thresholds, reversed(thresholds)))


@pytest.mark.parametrize("constructor, log_weight, parameter", WEIGHTED[::2])
def test_total_variation_bounds_the_distance_to_the_true_law(
    constructor: Callable[[Fraction], IntegerDistribution],
    log_weight: Callable[[Fraction], Callable[[int], Fraction]],
    parameter: Fraction,
) -> None:
    distribution = constructor(parameter)
    steps = zip((0,) + distribution.thresholds, distribution.thresholds + (FULL,))
    with localcontext(CONTEXT):
        true = probabilities_from_weights(log_weight(parameter))
        distance = sum(true.values()) * 0
        for value, (below, above) in enumerate(steps, start=distribution.minimum):
            distance += abs(true.pop(value) - Decimal(above - below) / FULL)
        distance = (distance + sum(true.values())) / 2  # what is left in `true` lies beyond the table
        assert 0 < distance <= decimal_of(distribution.total_variation)


@pytest.mark.parametrize("radius", [1, 7, 1000])
def test_total_variation_bounds_the_distance_to_the_uniform_law(radius: int) -> None:
    distribution = discrete_uniform(radius)
    steps = zip((0,) + distribution.thresholds, distribution.thresholds + (FULL,))
    true = Fraction(1, 2 * radius + 1)
    distance = sum(abs(true - Fraction(above - below, FULL)) for below, above in steps) / 2
    assert 0 < distance <= distribution.total_variation


@pytest.mark.parametrize("sigma", [Fraction(1, 4), AWKWARD, Fraction(255, 4), Fraction(1024)])
def test_probability_of_zero_is_that_of_mpmath_theta_function(sigma: Fraction) -> None:
    """The weights of the discrete Gaussian sum to Jacobi's theta_3(0, exp(-1 / (2 sigma**2))).

    mpmath sums the series in the nome, which converges as slowly as the sum itself; Jacobi's transformation, with a
    nome of exp(-2 pi**2 sigma**2), is another computation altogether.
    """
    mpmath = pytest.importorskip("mpmath")
    distribution = discrete_gaussian(sigma)
    middle = -distribution.minimum
    with mpmath.workprec(400):
        exact = mpmath.mpf(sigma.numerator) / sigma.denominator
        total = exact * mpmath.sqrt(2 * mpmath.pi) * mpmath.jtheta(3, 0, mpmath.exp(-2 * (mpmath.pi * exact) ** 2))
        error = distribution.thresholds[middle] - distribution.thresholds[middle - 1] - FULL / total
        assert abs(error) < 1  # two floors


@pytest.mark.parametrize("sigma", [Fraction(1, 4), AWKWARD, pytest.param(Fraction(255, 4), marks=pytest.mark.slow)])
def test_rounded_normal_agrees_with_mpmath(sigma: Fraction) -> None:
    mpmath = pytest.importorskip("mpmath")
    distribution = rounded_normal(sigma)
    with mpmath.workprec(600):
        for index in range(0, len(distribution.thresholds), 1 + len(distribution.thresholds) // 50):
            x = (distribution.minimum + index + Fraction(1, 2)) / sigma
            cdf = mpmath.ncdf(mpmath.mpf(x.numerator) / x.denominator)
            assert distribution.thresholds[index] == int(mpmath.floor(cdf * FULL))


def test_the_same_parameter_gives_the_same_object() -> None:
    assert discrete_gaussian(1) is discrete_gaussian(Fraction(1))
    assert discrete_uniform(3) is discrete_uniform(3)


def test_the_sigma_in_use_is_ready_at_once() -> None:
    from intsmooth_ref.noise import distributions

    begin = time.perf_counter()
    distributions._discrete_gaussian.__wrapped__(Fraction(255, 4))
    assert time.perf_counter() - begin < 1


def test_the_largest_sigma_has_its_thresholds() -> None:
    """Weights by products of 200 digits, whose errors of rounding stay below 10**-190 in 22000 steps."""
    distribution = discrete_gaussian(1024)
    with localcontext(CONTEXT):
        ratio, step = (decimal_of(Fraction(-n, 2**21)).exp() for n in (1, 2))
        weights = [Decimal(1)]
        while weights[-1] > Decimal(10) ** -100:
            weights.append(weights[-1] * ratio)
            ratio *= step
        total = 2 * sum(weights) - 1
        tails = list(accumulate(reversed(weights)))[::-1]
        for k in range(1, -distribution.minimum + 1, 3):
            # The weights left out, below 10**-100, are no part of the margin of `exact_floor`: add their bound.
            lower, upper = tails[k] / total, (tails[k] + Decimal(10) ** -96) / total
            floors = {int((probability * FULL).to_integral_value(ROUND_FLOOR)) for probability in (lower, upper)}
            assert floors == {distribution.thresholds[-distribution.minimum - k]}


@pytest.mark.parametrize("constructor", [discrete_gaussian, rounded_normal, discrete_laplace, discrete_uniform])
@pytest.mark.parametrize("parameter", [0, -1, Fraction(1, 5), 10**6, 0.5, 1.0, "1", None])
def test_impossible_parameters_are_refused(
    constructor: Callable[[object], IntegerDistribution], parameter: object
) -> None:
    with pytest.raises(ParameterError):
        constructor(parameter)


def test_a_fractional_radius_is_refused() -> None:
    with pytest.raises(ParameterError, match="integer"):
        discrete_uniform(Fraction(3, 2))  # type: ignore[arg-type]


def test_the_numpy_path_imports_neither_numba_nor_scipy() -> None:
    code = "import sys, intsmooth_ref.noise.sampler; sys.exit(bool({'numba', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
