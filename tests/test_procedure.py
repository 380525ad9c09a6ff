"""A procedure turns votes into the claim that its theorem allows, and into nothing else."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from intsmooth_ref.certify.norms import radii_from_l1, radii_from_l2
from intsmooth_ref.certify.procedure import Claim, Procedure, Rule, remaining_alpha
from intsmooth_ref.certify.radius import certified_budget, majority_boundary, radius_l1, radius_sq
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.certify.stopping import crossing_probability, decision_tables
from intsmooth_ref.certify.transcript import Decision, Familywise
from intsmooth_ref.certify.two_class import two_class_claim
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.noise.distributions import discrete_gaussian, discrete_laplace, discrete_uniform, rounded_normal
from intsmooth_ref.noise.sampler import ESTIMATION
from threshold_model import flat_image, threshold_model

GAUSSIAN, LAPLACE = discrete_gaussian(Fraction(255, 4)), discrete_laplace(Fraction(45))
ALPHA = Fraction(1, 1000)


def rule(noise=GAUSSIAN, elements=9, **fields):
    return Rule(Procedure(**{"n0": 10, "n": 1000, "alpha": ALPHA, **fields}), noise, elements, 3)


def test_a_majority_is_claimed_by_the_theorem_of_its_noise():
    votes = (40, 900, 60)
    level = ALPHA - 1000 * 9 * GAUSSIAN.total_variation
    assert rule().level == level < ALPHA
    assert rule().claim(1, votes, ()) == Claim(radius_sq(900, 1000, level, Fraction(255, 4)), "majority")
    level = ALPHA - 1000 * 9 * LAPLACE.total_variation
    assert rule(LAPLACE).claim(1, votes, ()) == Claim(radius_l1(900, 1000, level, Fraction(45)), "likelihood-ratio")
    assert rule().claim(0, votes, ()) is None and rule(LAPLACE).claim(0, votes, ()) is None
    assert (rule().norm, rule(LAPLACE).norm) == ("L2", "L1")


def test_two_classes_are_compared_where_that_is_asked_for():
    two_class = rule(bound="two-class")
    for votes in ((480, 100, 420), (480, 260, 260), (980, 10, 10), (300, 400, 300)):
        expected = two_class_claim(votes, 0, two_class.level, Fraction(255, 4), 9)
        found = two_class.claim(0, votes, ())
        assert found == (Claim(*expected) if expected else None)
    assert two_class.claim(0, (480, 260, 260), ()).theorem == "two-class"
    assert rule().claim(0, (480, 260, 260), ()) is None  # no majority


def test_a_sequential_rule_decides_by_its_tables_and_claims_the_largest_target():
    targets = (0, 1000, 5000)
    sequential = rule(n=2000, targets=targets)
    tables = decision_tables("discrete_gaussian", Fraction(255, 4), targets, 2000, sequential.level)
    assert sequential.looks == tables[0].looks and sequential.looks[-1] == 2000
    for share in (Fraction(99, 100), Fraction(8, 10), Fraction(7, 10), Fraction(1, 2), Fraction(2, 10)):
        counts, decided = [], {}
        for number, look in enumerate(sequential.looks):
            if sequential.is_finished(counts):
                break
            counts.append(int(share * look))
            for target, table in zip(targets, tables):
                if counts[-1] >= table.certify_from[number]:
                    decided.setdefault(target, Decision(target, look, counts[-1], True))
                elif counts[-1] <= table.give_up_at[number]:
                    decided.setdefault(target, Decision(target, look, counts[-1], False))
            assert sequential.decisions(counts) == tuple(decided[each] for each in targets if each in decided)
        assert set(decided) == set(targets) and sequential.is_finished(counts)
        largest = max((each.target for each in decided.values() if each.certified), default=None)
        expected = None if largest is None else Claim(largest, "majority")
        assert sequential.claim(1, (0, 0), sequential.decisions(counts)) == expected


@pytest.mark.parametrize("noise", [GAUSSIAN, LAPLACE], ids=["Gaussian", "Laplace"])
def test_a_sequential_claim_is_false_no_more_often_than_its_level(noise):
    targets = (30, 60)
    sequential = rule(noise, n=3000, targets=targets, alpha=Fraction(1, 100))
    tables = decision_tables(noise.name, noise.parameter, targets, 3000, sequential.level)
    for target, table in zip(targets, tables):
        false = crossing_probability(table, majority_boundary(noise.name, noise.parameter, target))
        assert Fraction(1, 200) < false <= sequential.level


def test_certify_stops_where_the_rule_says_and_counts_what_a_fixed_run_counts():
    image = flat_image(150)
    classifier = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference", threads=1)
    certificate = classifier.certify(image, 20, 4000, target_radii=["1/10", 0, "0.05", 0])
    assert [each.target for each in certificate.decisions] == [0, 163, 651]
    assert certificate.radius_sq == 651 and certificate.radius == "0.100057"  # sqrt(651) = 25.5147...
    samples = certificate.estimation.samples
    assert samples == max(each.samples for each in certificate.decisions) < 1000
    assert certificate.estimation_votes == tuple(classifier.votes(image, samples, stage=ESTIMATION, index=0).tolist())
    for decision in certificate.decisions:
        votes = classifier.votes(image, decision.samples, stage=ESTIMATION, index=0)
        assert decision.votes == votes[1] and decision.certified


def test_radii_in_other_norms_follow_from_the_certified_one():
    image = flat_image(150)
    by_l2 = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference").certify(image)
    by_l1 = SmoothedClassifier(threshold_model(), scale="0.25", seed=3, engine="reference").certify(image)
    assert by_l2.norm == "L2" and by_l2.radii == radii_from_l2(by_l2.radius_sq, 9) and by_l2.radii.linf > 0
    assert by_l1.norm == "L1" and by_l1.radii == radii_from_l1(by_l1.radii.l1, 9)
    assert by_l1.theorem == "likelihood-ratio"
    level = ALPHA - 1000 * 9 * discrete_laplace(Fraction(255, 4)).total_variation
    votes = by_l1.estimation_votes[1]
    assert by_l1.radii.l1 == certified_budget("discrete_laplace", Fraction(255, 4), votes, 1000, level)
    for certificate in (by_l2, by_l1):
        for norm, square in (("L2", certificate.radii.l2_sq), ("L1", certificate.radii.l1**2),
                             ("Linf", certificate.radii.linf**2)):  # fmt: skip
            shown = Fraction(certificate.radius_in(norm))
            assert (shown * 255) ** 2 <= square < ((shown + Fraction(1, 10**6)) * 255) ** 2
    assert by_l1.radius == by_l1.radius_in("L1") and by_l2.radius == by_l2.radius_in("L2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n0": 0}, "0 samples: expected at least 1"),
        ({"n": 9}, "9 samples cannot certify anything"),
        ({"n": 10, "bound": "two-class"}, "10 samples cannot certify anything"),
        ({"alpha": Fraction(1)}, "alpha 1: expected"),
        ({"familywise": Familywise(Fraction(3, 2), 1500)}, "alpha 3/2: expected"),
        ({"alpha": Fraction(1, 10**90)}, "less than the sampler's own error"),
        ({"bound": "three-class"}, "bound 'three-class': expected one of majority, two-class"),
        ({"bound": "two-class", "targets": (5,)}, "bound 'two-class' with target radii"),
        ({"bound": "two-class", "noise": LAPLACE}, "bound 'two-class' with noise discrete_laplace"),
        ({"targets": (5, 5)}, "5"),
        ({"targets": (6, 5)}, "5"),
        ({"targets": tuple(range(65))}, "65 target radii: expected 64 at most"),
        ({"targets": (10**6,)}, "samples"),
        ({"noise": rounded_normal(Fraction(3))}, "noise rounded_normal: expected one that certifies"),
        ({"noise": discrete_uniform(3)}, "noise discrete_uniform"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ParameterError, match=message):
        rule(**fields)


def test_limits_themselves_are_allowed():
    """0.5**10 < 0.001 and 0.5**11 < 0.0005: as few samples as can certify anything; one, where alpha is large."""
    assert rule(n=10).claim(0, (10,), ()).radius == 0 and rule(n=11, bound="two-class").looks == (11,)
    assert rule(n0=1, n=1, alpha=Fraction(3, 4)).claim(0, (1,), ()) is not None
    assert len(rule(n=2000, targets=tuple(range(64))).looks) > 1


def test_all_tests_are_at_what_the_sampler_leaves_of_alpha():
    """A sampler as bad as to leave a tenth of alpha: 1000 samples of 9 elements, each within 1e-7."""
    level = ALPHA / 10
    noise = replace(GAUSSIAN, total_variation=Fraction(1, 10**7))
    votes = (40, 900, 60)
    assert rule(noise).claim(1, votes, ()).radius == radius_sq(900, 1000, level, Fraction(255, 4))
    two_class = rule(noise, bound="two-class").claim(1, votes, ())
    assert two_class == Claim(*two_class_claim(votes, 1, level, Fraction(255, 4), 9))
    (table,) = decision_tables("discrete_gaussian", Fraction(255, 4), (2000,), 1000, level)
    sequential = rule(noise, targets=(2000,))
    for look, certify_from in zip(table.looks, table.certify_from):
        assert certify_from > look or sequential.verdict(2000, look, certify_from)
        assert not sequential.verdict(2000, look, certify_from - 1)
    with pytest.raises(ParameterError, match="13 samples cannot certify anything"):  # 0.5**14 < 0.0001 < 0.5**13
        rule(replace(GAUSSIAN, total_variation=(ALPHA - Fraction(1, 10**4)) / 13 / 9), n=13)


def test_what_the_sampler_leaves_undecided_is_taken_from_alpha():
    assert remaining_alpha(ALPHA, 7, 11, Fraction(1, 10**9)) == ALPHA - Fraction(77, 10**9)
    with pytest.raises(ParameterError, match="less than the sampler's own error, 0.001"):
        remaining_alpha(ALPHA, 10, 100, Fraction(1, 10**6))


def test_a_certificate_says_which_noise_made_it():
    classifier = SmoothedClassifier(threshold_model(), scale_levels="51/2", seed=3, engine="reference")
    document = classifier.document(classifier.certify(flat_image(200)), "0" * 64, label=1)
    assert (document.noise.distribution, document.noise.parameter) == ("discrete_laplace", Fraction(51, 2))
    assert document.norm == "L1" and document.radius > 0 and document.image.label == 1
    assert np.sum(document.estimation.votes) == 1000 and document.information["engine"] == "reference"
