"""Fresh votes refute a true certificate no more often than they may, computed exactly, and false ones often."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb

import mpmath
import pytest

from intsmooth_ref.certify.chunks import Chunk
from intsmooth_ref.certify.freshness import is_contradicted, is_too_lucky, luck
from intsmooth_ref.certify.radius import certified_budget
from intsmooth_ref.certify.transcript import CertificateDocument, ImageReference, Noise, Stage
from intsmooth_ref.certify.two_class import argument_bounds, two_class_claim
from intsmooth_ref.errors import ParameterError

GAUSSIAN, LAPLACE = Noise("discrete_gaussian", Fraction(255, 4)), Noise("discrete_laplace", Fraction(45))
LEVEL = Fraction(1, 50)
CHUNKS = [Chunk("0" * 64, ((0, 1),))]  # nothing here looks into them


def document(votes, prediction, noise=GAUSSIAN, index=0, targets=(), **fields):
    """A certificate with these votes in the estimation; the selection chose `prediction`."""
    stage = Stage.of(votes, CHUNKS)
    selection = Stage.of([int(each == prediction) for each in range(len(votes))], CHUNKS)
    given = dict(
        model_sha256="0" * 64, image=ImageReference(index, "0" * 64, -1), noise=noise, seed=1, n0=1, n=sum(votes),
        alpha=LEVEL, familywise=None, bound="majority", targets=targets, selection=selection, estimation=stage,
        decisions=(), prediction=prediction, theorem="majority", radius=0, information={},
    )  # fmt: skip
    return CertificateDocument(**{**given, **fields})


def tail_up_to(count, trials, p):
    """`P(Binomial(trials, p) <= count)` in 50 digits."""
    return mpmath.fsum(comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(count + 1))


@pytest.mark.parametrize("votes", [(30, 10), (40, 0), (36, 4)])
@pytest.mark.parametrize("noise", [GAUSSIAN, LAPLACE], ids=["Gaussian", "Laplace"])
def test_a_claim_at_its_very_boundary_is_contradicted_with_the_level_s_probability_at_most(votes, noise):
    """The class's probability is the boundary itself: of all true claims the one that is contradicted most often."""
    with mpmath.workdps(50):
        radius = certified_budget(noise.distribution, noise.parameter, votes[0], 40, LEVEL)
        parameter = mpmath.mpf(noise.parameter.numerator) / noise.parameter.denominator
        if noise is GAUSSIAN:
            boundary = mpmath.ncdf(mpmath.sqrt(radius) / parameter)
        else:
            boundary = 1 - mpmath.exp(-radius / parameter) / 2
        claim = document(votes, 0, noise, radius=radius)
        for samples in (40, 97):
            contradicted = [is_contradicted(claim, LEVEL, (k, samples - k), LEVEL) for k in range(samples + 1)]
            last = contradicted.count(True) - 1
            assert contradicted == sorted(contradicted, reverse=True) and last >= 0
            assert tail_up_to(last, samples, boundary) <= mpmath.mpf(1) / 50 < tail_up_to(last + 1, samples, boundary)


def test_a_two_class_claim_at_its_very_boundary_is_contradicted_with_the_level_s_probability_at_most():
    votes = (30, 6, 4)
    radius, theorem = two_class_claim(votes, 0, LEVEL, Fraction(255, 4), 12)
    assert theorem == "two-class"
    claim = document(votes, 0, bound="two-class", theorem=theorem, radius=radius)
    with mpmath.workdps(50):
        p_a, p_b = (mpmath.ncdf(mpmath.mpf(x) / 2**32) for x in argument_bounds(votes, 0, LEVEL))
        samples, total = 40, mpmath.mpf(0)
        # p_a + p_b is more than 1/2 + 1/2 - what is left: the rest, if any, goes to the third class
        p_b = min(p_b, 1 - p_a)
        for k_a, k_b in product(range(samples + 1), repeat=2):
            k_c = samples - k_a - k_b
            if k_c >= 0 and is_contradicted(claim, LEVEL, (k_a, k_b, k_c), LEVEL):
                rest = 1 - p_a - p_b
                total += comb(samples, k_a) * comb(samples - k_a, k_b) * p_a**k_a * p_b**k_b * rest**k_c
        assert 0 < total <= mpmath.mpf(1) / 50
    assert is_contradicted(claim, LEVEL, (2, 36, 2), LEVEL) and is_contradicted(claim, LEVEL, (0, 0, 40), LEVEL)
    assert not is_contradicted(claim, LEVEL, votes, LEVEL)


def test_the_runner_up_of_a_two_class_claim_contradicts_it_alone():
    """The class keeps its votes; what the others had goes to the second."""
    votes = (300, *[50] * 14)
    radius, theorem = two_class_claim(votes, 0, LEVEL, Fraction(255, 4), 12)
    claim = document(votes, 0, bound="two-class", theorem=theorem, radius=radius)
    assert theorem == "two-class" and not is_contradicted(claim, LEVEL, votes, LEVEL)
    assert is_contradicted(claim, LEVEL, (300, 700, *[0] * 13), LEVEL)
    assert is_contradicted(claim, LEVEL, (300, *[0] * 13, 700), LEVEL)  # not the one that is stated as the runner-up


def test_the_claim_of_a_two_class_certificate_is_at_its_own_level_and_fresh_votes_at_the_level_that_is_given():
    """The lower the claim's level, the less is claimed; the lower the other one, the less is contradicted."""
    votes, low = (30, 6, 4), Fraction(1, 1000)
    fresh = [(k, 40 - k, 0) for k in range(41)]
    first = {}
    for claim_level in (LEVEL, low):
        radius, theorem = two_class_claim(votes, 0, claim_level, Fraction(255, 4), 12)
        claim = document(votes, 0, bound="two-class", theorem=theorem, radius=radius)
        for level in (LEVEL, low):
            first[claim_level, level] = sum(is_contradicted(claim, claim_level, each, level) for each in fresh)
    assert first[low, LEVEL] < first[LEVEL, LEVEL] and first[LEVEL, low] < first[LEVEL, LEVEL]
    with mpmath.workdps(50):  # of fresh votes' level the class has half, two others share the rest
        p_a, p_b = (mpmath.ncdf(mpmath.mpf(x) / 2**32) for x in argument_bounds(votes, 0, low))
        refuted = [k for k in range(41) if tail_up_to(k, 40, p_a) <= mpmath.mpf(1) / 100
                   or tail_up_to(k, 40, 1 - p_b) <= mpmath.mpf(1) / 200]  # fmt: skip
    assert first[low, LEVEL] == len(refuted) and refuted == list(range(len(refuted)))


def test_a_two_class_certificate_that_rests_on_a_majority_is_contradicted_as_such():
    votes = (39, 1)
    radius, theorem = two_class_claim(votes, 0, LEVEL, Fraction(255, 4), 12)
    assert theorem == "majority"
    claim = document(votes, 0, bound="two-class", theorem=theorem, radius=radius)
    contradicted = [is_contradicted(claim, LEVEL, (k, 40 - k), LEVEL) for k in range(41)]
    with mpmath.workdps(50):
        boundary = mpmath.ncdf(mpmath.sqrt(radius) / 63.75)
        assert contradicted == [tail_up_to(k, 40, boundary) <= mpmath.mpf(1) / 50 for k in range(41)]


def test_a_claim_of_radius_zero_is_compared_exactly():
    """P(Binomial(10, 1/2) <= 1) = 11 / 1024."""
    claim = document((40, 0), 0)
    for level, contradicted in ((Fraction(11, 1024), True), (Fraction(11, 1024) - Fraction(1, 10**30), False)):
        assert is_contradicted(claim, Fraction(1, 10), (1, 9), level) is contradicted
    assert not is_contradicted(claim, Fraction(1, 10), (9, 1), Fraction(1, 2))


def test_an_abstention_claims_nothing():
    abstained = replace(document((5, 5), 0), prediction=-1, theorem=None)
    for fresh in ((0, 1000), (1000, 0)):
        assert not is_contradicted(abstained, LEVEL, fresh, LEVEL)


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(9, 10), Fraction(1)])
def test_true_votes_are_called_too_lucky_with_the_level_s_probability_at_most(images, p):
    """Every outcome of `images` images with 3 stated and 3 fresh votes each, by exact enumeration."""
    weights = [comb(3, k) * p**k * (1 - p) ** (3 - k) for k in range(4)]
    for level in (Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)):
        refused = Fraction(0)
        for counts in product(range(4), repeat=2 * images):
            stated, fresh = counts[:images], counts[images:]
            documents = [document((k, 3 - k), 0, index=i) for i, k in enumerate(stated)]
            if is_too_lucky(*luck(documents, [(k, 3 - k) for k in fresh]), level):
                chance = Fraction(1)
                for k in counts:
                    chance *= weights[k]
                refused += chance
        assert refused <= level
        if p == Fraction(1, 2) and level >= Fraction(1, 2**images):
            assert refused > 0


def test_luck_counts_what_can_be_compared():
    stated = [
        document((9, 1), 0, index=0),
        document((2, 8), 1, index=1),
        document((9, 1), 0, index=2),
        document((9, 1), 0, index=3, targets=(4,)),
        document((9, 1), 0, index=4),
        replace(document((9, 1), 0, index=5), prediction=-1, theorem=None),
    ]
    fresh = [(8, 2), (1, 9), (8, 2), (8, 2), (8, 3), (9, 1)]
    # image 0 higher, 1 lower, 2 higher, 3 sequential, 4 of another number, 5 equal
    assert luck(stated, fresh) == (2, 3)
    assert luck(stated[-1:], [(8, 2)]) == (1, 1)  # an abstention counts
    with pytest.raises(ParameterError, match="image 5 has 2 certificates: expected one"):
        luck([*stated, stated[-1]], [*fresh, (9, 1)])
    second = replace(document((1, 9), 1, index=5), prediction=-1, theorem=None)
    assert luck([second], [(2, 8)]) == (1, 1)  # with the votes of the class that was selected


def test_votes_are_too_lucky_where_a_fair_coin_reaches_the_level():
    """P(Binomial(9, 1/2) >= 8) = 10 / 512."""
    assert is_too_lucky(8, 9, Fraction(10, 512)) and not is_too_lucky(8, 9, Fraction(10, 512) - Fraction(1, 10**30))
    assert not is_too_lucky(1, 9, Fraction(1, 2)) and not is_too_lucky(0, 0, Fraction(1, 2))
