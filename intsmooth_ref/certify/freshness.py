"""Fresh noise: whether claims stand without the seed that they were made with.

The seed of a certificate may have been chosen among many, so that luck speaks for the claim. The verifier lets the
network vote again, from a seed of its own, and asks two questions, with a probability of at most `level` in all of
saying no to true certificates:

1. *Is a claim contradicted?* A certificate asserts bounds of probabilities: that of its class is above B, the boundary
   of the radius (`radius.py`); with theorem 2, it is above Phi(xA) and all others are below Phi(xB)
   (`two_class.py`). Were that true, fresh votes as low, or as high, as those that were found would have a small
   probability: at most the share of the level that this bound has.
2. *Were the votes too lucky?* The votes that a certificate states for the class selected and as many fresh ones are
   exchangeable, whatever the class's probability is. So the stated count is the larger of the two in about half of the
   images: where they differ, the number of such images has the law Binomial(images, 1/2). Chosen seeds, invented votes,
   or images left out because nothing was certified, shift it. Certificates that abstain count, too;
   those of sequential procedures, whose number of samples depends on the votes, do not. The question is one about the
   whole transcript: votes raised in some images and lowered in as many others would pass it.

All comparisons are exact or rounded in the certificate's favour.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Sequence

from ..errors import ParameterError
from ..interval import Interval
from .binomial import fair_tail_at_most, tail_at_most
from .radius import majority_boundary
from .transcript import ABSTAIN, TWO_CLASS, CertificateDocument
from .two_class import contradicts_bounds
from .verification import selected_class


def is_contradicted(
    document: CertificateDocument, claim_level: Fraction, fresh: Sequence[int], level: Fraction
) -> bool:
    """Question 1, for one certificate.

    Args:
        document: the certificate.
        claim_level: at which its votes were tested (`Rule.level`).
        fresh: votes of each class, from a fresh seed.
        level: how often a true claim may be called contradicted.
    """
    if document.prediction == ABSTAIN:
        return False
    if document.theorem == TWO_CLASS:
        return contradicts_bounds(fresh, document.estimation.votes, document.prediction, claim_level, level)
    boundary = majority_boundary(document.noise.distribution, document.noise.parameter, document.radius)
    samples, count = sum(fresh), fresh[document.prediction]
    if document.radius == 0:
        return fair_tail_at_most(samples - count, samples, level)
    return tail_at_most(samples - count, samples, lambda digits: Interval.of(1, digits) - boundary(digits), level)


def require_one_each(documents: Sequence[CertificateDocument]) -> None:
    """Refuse certificates of one image, which would share its fresh votes: luck in one could be hidden by another.

    Raises:
        ParameterError: if an image has several certificates.
    """
    for index, times in Counter(document.image.index for document in documents).items():
        if times > 1:
            raise ParameterError(f"image {index} has {times} certificates: expected one an image with fresh votes")


def luck(documents: Sequence[CertificateDocument], fresh: Sequence[Sequence[int]]) -> tuple[int, int]:
    """In how many images the stated count of the class selected is above the fresh one, and in how many it differs.

    Images with another number of fresh votes than of stated ones are left out.

    Raises:
        ParameterError: if an image has several certificates.
    """
    require_one_each(documents)
    pairs = [
        (document.estimation.votes[selected_class(document)], votes[selected_class(document)])
        for document, votes in zip(documents, fresh)
        if not document.targets and sum(votes) == document.estimation.samples
    ]
    return sum(stated > found for stated, found in pairs), sum(stated != found for stated, found in pairs)


def is_too_lucky(higher: int, different: int, level: Fraction) -> bool:
    """Question 2, from what `luck` counted."""
    return fair_tail_at_most(higher, different, level)
