"""Certified accuracy that holds with high probability over the noise of a whole set of images.

A certificate is false with probability at most `alpha`, so among `images` certificates some may be. Each image has
noise of its own (its index is part of every address), so these events are independent, and the number V of false
certificates is stochastically at most binomial (raising each probability to alpha can only add events):

    (1)   P(V > k) <= P(Binomial(images, alpha) > k)   for every k.

With k the smallest number whose right side is at most `rho`, at most k certificates are false with probability at least
`1 - rho`, and of `certified` images that are certified for their label at some radius, at least `certified - k` truly
are:

    (2)   accuracy >= (certified - k) / images.

What (2) speaks of. The accuracy is that of the smoothed classifier on these images, which are chosen before the seed
is drawn: it is no estimate for a population. A certificate that is true at its own radius is true at every smaller one,
so one k serves all radii of a table at once.

No conditioning. V counts the false claims among all `images`, whatever came of each: an abstention claims nothing, and
a certificate for a class that is not the label counts in V if it is false and never in `certified`. Hence (1) and (2)
hold as they stand, but only with the full number of images. To put the number of those that were certified in its
place is wrong: alpha is the probability of a false claim *before* the votes are cast, and given that a claim is made it
may be false for certain.

The published bound, `HighProbAccuracy` in `code/analyze.py` of Cohen, Rosenfeld and Kolter's implementation (2019;
github.com/locuslab/smoothing), lacks the factor 2 under the square root of Bernstein's inequality. For 10000 images
at alpha = rho = 0.001 it allows for 20 false certificates; more occur with probability up to 0.0016, and k is 21.

Where all certificates shall hold at once, each at `alpha / images` does it, with probability `1 - alpha` and without
any independence (Bonferroni's inequality); then k = 0 for `rho = alpha`, as (1) says too.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

from ..errors import ParameterError
from ..interval import Interval
from .binomial import tail_at_most

#: Up to so many bits of the tail's common denominator a tail is compared as an integer, above by Ziv's strategy.
EXACT_BITS = 1 << 12


def false_certificates(images: int, alpha: Fraction, rho: Fraction) -> int:
    """The smallest k with `P(Binomial(images, alpha) > k) <= rho`: with probability `1 - rho` no more are false.

    Should a tail of many images agree with `rho` to 390 digits, which takes a `rho` made for the purpose, k may be
    larger by one than need be, never smaller.

    Args:
        images: all images of the run, those that were not certified included; at least 1.
        alpha: the probability with which each certificate may be false, `0 < alpha < 1`.
        rho: the probability with which more than k may be false, `0 < rho < 1`.

    Raises:
        ParameterError: if a parameter is out of its range, or alpha or rho is not an exact rational.
    """
    for name, level in (("alpha", alpha), ("rho", rho)):
        if not isinstance(level, (Fraction, int)) or not 0 < level < 1:
            raise ParameterError(f"{name} {level!r}: expected an exact rational (a Fraction) above 0 and below 1")
    if images < 1:
        raise ParameterError(f"{images} images: expected at least 1")
    images, alpha, rho = int(images), Fraction(alpha), Fraction(rho)  # NumPy's integers would wrap around
    too_few, enough = -1, images
    while enough - too_few > 1:
        k = (too_few + enough) // 2
        if _more_than_at_most(k, images, alpha, rho):
            enough = k
        else:
            too_few = k
    return enough


def certified_accuracy(certified: int, images: int, alpha: Fraction, rho: Fraction) -> Fraction:
    """The fraction of the images that, with probability `1 - rho`, is truly certified at least: equation (2), or 0.

    Args:
        certified: the images that are certified for their label at the radius in question, `0 .. images`.
        images: all images of the run; alpha, rho: as for `false_certificates`, as are the errors.

    Raises:
        ParameterError: also if `certified` is not in `0 .. images`.
    """
    allowed = false_certificates(images, alpha, rho)
    if not 0 <= certified <= images:
        raise ParameterError(f"{certified} certified images: expected 0 to the number of images, {images}")
    return Fraction(max(0, int(certified) - allowed), int(images))


def _more_than_at_most(k: int, images: int, alpha: Fraction, rho: Fraction) -> bool:
    """Whether `P(Binomial(images, alpha) > k) <= rho`."""
    if images * alpha.denominator.bit_length() > EXACT_BITS:
        return tail_at_most(k + 1, images, lambda digits: Interval.of(alpha, digits), rho)
    false, true = alpha.numerator, alpha.denominator - alpha.numerator
    tail = sum(comb(images, j) * false**j * true ** (images - j) for j in range(k + 1, images + 1))
    return tail * rho.denominator <= rho.numerator * alpha.denominator**images
