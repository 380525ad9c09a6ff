"""What a certificate in one norm says in the others: the largest balls of integer perturbations inside the proven one.

A ball of one norm is covered when it lies inside the ball that is certified. For integer vectors of d pixel values the
farthest point of each ball, in the certified norm, is known, so each radius below is the largest that follows from the
certificate; `PROOF.md`, "Other norms", has the derivations.

    certified                 covered too
    ||delta||_2**2 <= n       (1)  ||delta||_1    <= floor(sqrt(n))             farthest: one entry s, with s**2
                              (2)  ||delta||_inf  <= floor(sqrt(floor(n / d)))  farthest: all entries t, with d t**2
    ||delta||_1 <= r          (3)  ||delta||_inf  <= floor(r / d)               farthest: all entries t, with d t
                              (4)  ||delta||_2**2 <= m                          see below

For (4): the shortest vector that is not covered has the L1 norm r + 1, spread as evenly as integers allow. With
`r + 1 = q d + s`, `0 <= s < d`, it has s entries q + 1 and d - s entries q, so that `m = d q**2 + s (2q + 1) - 1`. For
`r < d`, the usual case, m is r: for integers `||delta||_1 <= ||delta||_2**2`. Always m is at least the r**2 / d that
the inequality of Cauchy and Schwarz gives for real vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from ..errors import ParameterError


@dataclass(frozen=True)
class Radii:
    """One certificate in three norms: an integer perturbation within any one of the radii is covered.

    Attributes:
        l1: of the sum of magnitudes, in grey levels.
        l2_sq: of the sum of squares, in grey levels squared.
        linf: of the largest magnitude, in grey levels.
    """

    l1: int
    l2_sq: int
    linf: int


def radii_from_l2(radius_sq: int, values: int) -> Radii:
    """All that `||delta||_2**2 <= radius_sq` covers, equations (1) and (2).

    Args:
        radius_sq: grey levels squared, at least 0.
        values: d, the pixel values of an image (height * width * channels), at least 1.

    Raises:
        ParameterError: if a number is below what is expected.
    """
    radius_sq, values = _checked(radius_sq, values)
    return Radii(isqrt(radius_sq), radius_sq, isqrt(radius_sq // values))


def radii_from_l1(radius_l1: int, values: int) -> Radii:
    """All that `||delta||_1 <= radius_l1` covers, equations (3) and (4).

    Args:
        radius_l1: grey levels, at least 0.
        values: d, the pixel values of an image (height * width * channels), at least 1.

    Raises:
        ParameterError: if a number is below what is expected.
    """
    radius_l1, values = _checked(radius_l1, values)
    entry, larger_entries = divmod(radius_l1 + 1, values)
    shortest_outside = values * entry**2 + larger_entries * (2 * entry + 1)
    return Radii(radius_l1, shortest_outside - 1, radius_l1 // values)


def _checked(radius: int, values: int) -> tuple[int, int]:
    if radius < 0 or values < 1:
        raise ParameterError(f"radius {radius}, {values} pixel values: expected at least 0 and 1")
    return int(radius), int(values)  # NumPy's integers would wrap around
