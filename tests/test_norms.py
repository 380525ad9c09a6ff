"""Radii in other norms against exact enumeration: every vector in the ball is covered, and no larger ball would do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import isqrt

import numpy as np
import pytest

from intsmooth_ref.certify.norms import Radii, radii_from_l1, radii_from_l2
from intsmooth_ref.errors import ParameterError

Vector = tuple[int, ...]
Norm = Callable[[Vector], int]


def l1(delta: Vector) -> int:
    return sum(map(abs, delta))


def l2_sq(delta: Vector) -> int:
    return sum(entry * entry for entry in delta)


def linf(delta: Vector) -> int:
    return max(map(abs, delta))


def largest_ball(norm: Norm, certified: Norm, radius: int, dimension: int, box: int) -> int:
    """One less than the smallest `norm` of a vector that `certified(delta) <= radius` leaves out, by enumeration.

    Signs change no norm, so magnitudes suffice. So does a box whose side alone is beyond the radius: a larger entry
    may be shrunk to it, the vector stays outside and no norm grows.
    """
    outside = (delta for delta in product(range(box + 1), repeat=dimension) if certified(delta) > radius)
    return min(map(norm, outside)) - 1


@pytest.mark.parametrize("dimension, largest", [(1, 200), (2, 200), (3, 60), (4, 24), (5, 12)])
def test_radii_from_an_l2_certificate_are_the_largest_by_enumeration(dimension: int, largest: int) -> None:
    for n in range(largest + 1):
        box = isqrt(n) + 1
        expected = Radii(largest_ball(l1, l2_sq, n, dimension, box), n, largest_ball(linf, l2_sq, n, dimension, box))
        assert radii_from_l2(n, dimension) == expected


@pytest.mark.parametrize("dimension, largest", [(1, 60), (2, 40), (3, 20), (4, 11), (5, 7), (6, 5)])
def test_radii_from_an_l1_certificate_are_the_largest_by_enumeration(dimension: int, largest: int) -> None:
    for r in range(largest + 1):
        box = r + 1
        expected = Radii(r, largest_ball(l2_sq, l1, r, dimension, box), largest_ball(linf, l1, r, dimension, box))
        assert radii_from_l1(r, dimension) == expected


def test_the_enumeration_of_vectors_with_signs_agrees_with_that_of_magnitudes() -> None:
    for n, dimension in [(5, 1), (7, 2), (12, 3)]:
        side = range(-4, 5)
        outside = [delta for delta in product(side, repeat=dimension) if l2_sq(delta) > n]
        assert radii_from_l2(n, dimension) == Radii(min(map(l1, outside)) - 1, n, min(map(linf, outside)) - 1)


def test_an_l1_radius_is_worth_at_least_what_cauchy_and_schwarz_and_integrality_give() -> None:
    gained = 0
    for dimension in range(1, 60):
        for r in range(4 * dimension):
            simple = max(r, r * r // dimension)
            assert radii_from_l1(r, dimension).l2_sq >= simple
            gained += radii_from_l1(r, dimension).l2_sq > simple
    assert gained > 1000


def test_radii_of_the_size_of_photographs_are_those_worked_by_hand() -> None:
    values = 224 * 224 * 3
    assert radii_from_l2(65025, 784) == Radii(255, 65025, 9)  # 784 * 81 = 63504, 784 * 100 > 65025
    assert radii_from_l2(65025, values) == Radii(255, 65025, 0)
    assert radii_from_l1(200, values) == Radii(200, 200, 0)
    assert radii_from_l1(784, 784) == Radii(784, 786, 1)  # the shortest vector outside: one 2 and 783 ones
    assert radii_from_l1(10**30, 1) == Radii(10**30, 10**60 + 2 * 10**30, 10**30)


def test_numpy_integers_give_the_radii_of_python_integers() -> None:
    assert radii_from_l1(np.int32(2**30), np.int32(3)) == radii_from_l1(2**30, 3)
    assert radii_from_l2(np.int32(2**31 - 1), np.int32(3)) == radii_from_l2(2**31 - 1, 3)
    assert type(radii_from_l2(np.int32(4), np.int32(3)).l2_sq) is int


@pytest.mark.parametrize("convert", [radii_from_l1, radii_from_l2])
def test_impossible_radii_and_images_without_values_are_refused(convert: Callable[[int, int], Radii]) -> None:
    for arguments in ((-1, 784), (5, 0), (5, -3)):
        with pytest.raises(ParameterError, match="expected at least 0 and 1"):
            convert(*arguments)
