"""Certified accuracy with high probability: the smallest number that the exact binomial law allows, and no smaller."""

from __future__ import annotations

from fractions import Fraction
from math import comb, log, sqrt
from typing import Any

import numpy as np
import pytest

from intsmooth_ref.certify import accuracy
from intsmooth_ref.certify.accuracy import certified_accuracy, false_certificates
from intsmooth_ref.errors import ParameterError

ALPHA = RHO = Fraction(1, 1000)
LEVELS = [Fraction(1, 1000), Fraction(1, 20), Fraction(2, 7), Fraction(1, 2), Fraction(19, 20)]


def law(images: int, alpha: Fraction) -> list[Fraction]:
    """`P(Binomial(images, alpha) = j)` for j = 0 .. images."""
    return [comb(images, j) * alpha**j * (1 - alpha) ** (images - j) for j in range(images + 1)]


def more_than(k: int, images: int, alpha: Fraction) -> Fraction:
    """`P(Binomial(images, alpha) > k)` by its few terms up to k, in integers."""
    false, true = alpha.numerator, alpha.denominator - alpha.numerator
    up_to = sum(comb(images, j) * false**j * true ** (images - j) for j in range(k + 1))
    return 1 - Fraction(up_to, alpha.denominator**images)


def smallest(probabilities: list[Fraction], rho: Fraction) -> int:
    """The smallest k beyond which the probabilities of 0, 1, ... sum to `rho` at most."""
    return next(k for k in range(len(probabilities)) if sum(probabilities[k + 1 :]) <= rho)


@pytest.mark.parametrize("images", [1, 2, 3, 10, 33, 60])
def test_the_number_allowed_is_the_smallest_by_exact_fractions(images: int) -> None:
    for alpha in LEVELS:
        probabilities = law(images, alpha)
        for rho in LEVELS:
            assert false_certificates(images, alpha, rho) == smallest(probabilities, rho)


@pytest.mark.parametrize("images", [1, 2, 7, 20])
def test_a_tail_that_equals_rho_is_at_most_rho(images: int) -> None:
    """Where an enclosure could not tell; one image with alpha = rho is the case that occurs."""
    assert false_certificates(1, ALPHA, ALPHA) == 0
    for alpha in LEVELS:
        probabilities = law(images, alpha)
        for k in range(images):
            tail = sum(probabilities[k + 1 :], Fraction(0))
            assert false_certificates(images, alpha, tail) == k
            assert false_certificates(images, alpha, tail * (1 - Fraction(1, 10**60))) == k + 1


def test_integers_and_enclosures_allow_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(images, alpha, rho) for images in (3, 50, 200) for alpha in LEVELS for rho in (RHO, Fraction(1, 30))]
    monkeypatch.setattr(accuracy, "EXACT_BITS", 10**9)
    in_integers = [false_certificates(*case) for case in cases]
    monkeypatch.setattr(accuracy, "EXACT_BITS", 0)
    assert [false_certificates(*case) for case in cases] == in_integers


@pytest.mark.parametrize("images", [500, 1000, 10_000])
def test_the_number_allowed_for_a_test_set_is_the_smallest_by_exact_integers(images: int) -> None:
    for alpha, rho in [(ALPHA, RHO), (ALPHA, Fraction(1, 10**9)), (Fraction(1, 10**6), RHO)]:
        k = false_certificates(images, alpha, rho)
        assert more_than(k, images, alpha) <= rho
        assert k == 0 or more_than(k - 1, images, alpha) > rho


@pytest.mark.parametrize("images, alpha", [(10**5, ALPHA), (10**6, ALPHA), (10**6, Fraction(1, 10**7))])
def test_the_number_allowed_for_a_million_images_is_the_smallest_by_the_incomplete_beta_function(
    images: int, alpha: Fraction
) -> None:
    mpmath = pytest.importorskip("mpmath")
    k = false_certificates(images, alpha, RHO)
    with mpmath.workdps(40):
        p = mpmath.mpf(alpha.numerator) / alpha.denominator

        def beyond(k: int) -> Any:
            return mpmath.betainc(k + 1, images - k, 0, p, regularized=True)

        assert beyond(k) <= mpmath.mpf(1) / 1000 < (beyond(k - 1) if k else 1)


def test_the_published_formula_claims_more_than_is_true() -> None:
    """`HighProbAccuracy` of github.com/locuslab/smoothing: it subtracts some 20.6 of 10000 images at 0.001, 0.001."""
    images, alpha, rho = 10_000, 0.001, 0.001
    subtracted = images * (alpha + sqrt(alpha * (1 - alpha) * log(1 / rho) / images) + log(1 / rho) / (3 * images))
    assert 20.6 < subtracted < 20.7
    assert Fraction(157, 10**5) < more_than(20, images, ALPHA) < Fraction(158, 10**5)  # against the 0.001 it claims
    assert false_certificates(images, ALPHA, RHO) == 21


def test_bernsteins_inequality_allows_for_no_fewer_than_the_exact_law() -> None:
    """With the factor 2 where it belongs: the exact number is never the larger one."""
    for images in (100, 500, 10_000, 10**5):
        for alpha, rho in [(0.001, 0.001), (0.05, 0.001), (0.001, 1e-9)]:
            bernstein = images * alpha + sqrt(2 * images * alpha * (1 - alpha) * log(1 / rho)) + 2 * log(1 / rho) / 3
            exact = false_certificates(images, Fraction(repr(alpha)), Fraction(repr(rho)))
            assert images * alpha - 1 < exact <= bernstein


def test_images_of_unlike_probabilities_break_the_bound_no_more_often_than_rho() -> None:
    """Each certificate false with a probability of its own up to alpha: the exact law of the sum of unlike coins."""
    alpha = Fraction(1, 4)
    for shares in ([1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, Fraction(1, 2), Fraction(9, 10), Fraction(1, 100)]):
        number = [Fraction(1)]
        for share in shares:
            p = alpha * share
            number = [a * (1 - p) + b * p for a, b in zip(number + [Fraction(0)], [Fraction(0)] + number)]
        for rho in LEVELS:
            k = false_certificates(len(shares), alpha, rho)
            assert sum(number[k + 1 :]) <= rho


def test_to_count_only_the_images_that_were_certified_would_claim_too_much() -> None:
    """Each image at the boundary: certified with probability alpha, and then falsely. All certificates are false."""
    images, alpha, rho = 60, Fraction(1, 20), Fraction(1, 20)
    false = law(images, alpha)
    conditioned = sum(p for v, p in enumerate(false) if v and v > false_certificates(v, alpha, rho))
    assert conditioned > Fraction(9, 10)
    assert sum(p for v, p in enumerate(false) if v > false_certificates(images, alpha, rho)) <= rho


def test_certificates_at_a_share_of_alpha_all_hold_at_once() -> None:
    for images in (1, 2, 10, 500, 10_000):
        assert false_certificates(images, ALPHA / images, ALPHA) == 0
        assert images == 1 or false_certificates(images, ALPHA, ALPHA) > 0


def test_the_accuracy_is_the_certified_images_less_the_false_ones_and_never_below_zero() -> None:
    assert certified_accuracy(6100, 10_000, ALPHA, RHO) == Fraction(6100 - 21, 10_000)
    assert certified_accuracy(10_000, 10_000, ALPHA, RHO) == Fraction(9979, 10_000)
    assert certified_accuracy(22, 10_000, ALPHA, RHO) == Fraction(1, 10_000)
    assert certified_accuracy(5, 10_000, ALPHA, RHO) == certified_accuracy(0, 1, ALPHA, RHO) == 0
    assert certified_accuracy(1, 1, ALPHA, RHO) == 1


def test_numpy_integers_give_the_accuracy_of_python_integers() -> None:
    for certified in (1, 100):  # 1 is below the number allowed, 2: an unsigned difference would wrap around
        arguments: Any = (np.uint8(certified), np.int8(120), ALPHA, RHO)
        assert certified_accuracy(*arguments) == certified_accuracy(certified, 120, ALPHA, RHO)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 10, 0.001, RHO), "alpha 0.001: expected an exact rational"),
        ((5, 10, ALPHA, 0.001), "rho 0.001: expected an exact rational"),
        ((5, 10, Fraction(0), RHO), "alpha .* above 0 and below 1"),
        ((5, 10, ALPHA, 1), "rho 1: .* above 0 and below 1"),
        ((0, 0, ALPHA, RHO), "0 images: expected at least 1"),
        ((11, 10, ALPHA, RHO), "11 certified images: expected 0 to the number of images, 10"),
        ((-1, 10, ALPHA, RHO), "-1 certified images"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        certified_accuracy(*arguments)
