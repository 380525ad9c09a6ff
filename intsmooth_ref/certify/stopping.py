"""Sequential certification: sampling ends as soon as a target is certified, or cannot reasonably be any more.

Votes for a class A, chosen beforehand from other samples, come one after the other, each with probability pA,
independently. A target budget is certified by showing that pA exceeds its majority boundary p* (`radius.py`). A fixed
test draws all `most` samples first; here the votes are looked at after `t_1 < t_2 < ... < t_J = most` samples, and a
table of integers says at look j whether the `count` so far certifies (`count >= certify_from[j]`), gives up
(`count <= give_up_at[j]`) or asks for more samples. At the last look one of the first two holds.

**The error.** The level is spent over the looks as the samples come in (Lan and DeMets 1983),

    (1)   a_j = level * t_j / most,

and the thresholds are, one look after the other, the smallest integers c_j for which

    (2)   P(count_i >= c_i for some i <= j) <= a_j   for pA = p*.   (c_j is certify_from[j])

The left side is computed, not bounded by a union: it is the probability of a first passage, and an exact recursion over
the distribution of the counts that have not passed gives it (Armitage, McPherson and Rowe 1969).

*It is enough to look at p*.* Draw U_1, U_2, ... uniformly from 0 .. 1 and let sample s vote for A when U_s <= pA. With
a smaller pA each vote, so each count, so each passage can only be lost: the probability in (2) rises with pA.
*Giving up costs no soundness.* (2) asks whether a passage occurs at any look whatever, as if nobody ever gave up. Who
stops early sees fewer passages, who goes on after giving up sees no more than (2) counts.
*Several targets cost nothing.* They share the looks, and at every look a higher target has no lower threshold. If a
target is certified falsely, pA is at most its boundary; let p* be the lowest boundary that is at least pA. The false
target is this one or a higher one, so the count that passed its threshold passed the threshold of p* at the same look.
By (2) this has probability `level` at most: so has the event that any false target is ever certified.

**Giving up.** The same in a mirror: the votes against A, with (1) and (2) for the probability 1 - p1 and `FUTILITY` in
the place of the level, where p1 is the smallest share of `most` votes that the fixed test certifies, so that of images
with pA = p1 it certifies about one half. With probability `FUTILITY` at most such an image is given up; with larger pA,
less. Besides, a count is given up from which not even votes for A alone would lead to a threshold. On none of
this does soundness rest.

**What it saves.** For radius 0.5 at sigma 0.25, level 0.001 and 100,000 samples (`tests/campaign_stopping.py`, which
also compares other constructions; 2026-11-23): on images distributed like those of CIFAR-10, 1,799 samples on average,
1.8 %, and a decision other than the fixed test's with probability 0.0005; if all images lie close to the target, at
radii from 0.45 to 0.55, 20,040 samples and 0.0067.

**Rounding.** Probabilities are integers in units of 2**-bits, rounded up: of a vote for A no more is known than an
enclosure of p*, whose upper end counts for votes and whose lower end for the votes against. What is too unlikely to
be followed one by one is added where it does no less harm: what lies far below to the lowest count that is kept (by the
argument above it passes no less often from there), what lies far above to what has passed. So (2) holds with an
upper bound in the place of its left side. No decision depends on a binary floating-point number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from numbers import Integral

from ..errors import ParameterError
from ..interval import Interval
from .binomial import smallest_trials, tail_at_most
from .radius import TRIALS_MAX, budget_text, majority_boundary, require_conceivable

#: The most samples that tables are made for: a table for so many takes up to ten seconds, one for 10**5 up to 0.3.
MOST_MAX = 2**24

#: Of all targets together; tables for so many take half a minute.
TARGETS_TIMES_MOST_MAX = 2**26

#: The time grows with the number of digits that a level needs.
LEVEL_MIN = Fraction(1, 2**256)

#: Each look comes after 4/5 of the samples of the next, and none before these.
SHRINK = Fraction(4, 5)
FIRST_LOOK = 8

#: How probably an image may be given up that the fixed test certifies half the time.
FUTILITY = Fraction(1, 20)

#: The level is some 2**RESERVE_BITS units of probability.
RESERVE_BITS = 48
#: Counts that weigh no more units together are lumped into the next above: even if all of it passed, one look after
#: the other, that would be a small part of the level.
LUMPED = 1 << 24
#: Probabilities of single votes, and ratios, have so many bits more.
GUARD_BITS = 32
#: Bits of `crossing_probability`.
AUDIT_BITS = 128


@dataclass(frozen=True)
class DecisionTable:
    """What to decide at each look, for one target.

    Attributes:
        looks: after how many samples the votes are looked at; ascending, the last is all samples.
        certify_from: the target is certified from this count on; above `looks` where no count certifies.
        give_up_at: the target is given up at this count and below; -1 where no count gives up. One below
            `certify_from` at the last look.
    """

    looks: tuple[int, ...]
    certify_from: tuple[int, ...]
    give_up_at: tuple[int, ...]


@dataclass(frozen=True)
class Chance:
    """An enclosure of a probability p: `lower <= p * 2**(bits + GUARD_BITS) <= upper`.

    What is computed from it is in units of `2**-bits`.
    """

    lower: int
    upper: int
    bits: int

    @classmethod
    def enclosing(cls, boundary: Callable[[int], Interval], bits: int) -> Chance:
        """The chance that `boundary` encloses to so many digits."""
        fraction_bits = bits + GUARD_BITS
        lower, upper = boundary(fraction_bits // 3 + 10).scaled_floor(fraction_bits)
        return cls(max(lower, 0), min(upper + 1, 1 << fraction_bits), bits)

    @property
    def complement(self) -> Chance:
        one = 1 << self.bits + GUARD_BITS
        return Chance(one - self.upper, one - self.lower, self.bits)


def looks(most: int) -> tuple[int, ...]:
    """After how many samples the votes are looked at: `most`, 4/5 of it, 4/5 of that, ..., ascending.

    >>> looks(40)
    (9, 12, 16, 20, 25, 32, 40)

    Raises:
        ParameterError: if `most` is not in `1 .. MOST_MAX`.
    """
    if not isinstance(most, Integral) or not 1 <= most <= MOST_MAX:
        raise ParameterError(f"{most} samples: expected 1 to {MOST_MAX}")
    schedule = [int(most)]
    while (earlier := int(schedule[-1] * SHRINK)) >= FIRST_LOOK:
        schedule.append(earlier)
    return tuple(reversed(schedule))


def decision_tables(
    noise: str, parameter: Fraction, budgets: tuple[int, ...], most: int, level: Fraction
) -> tuple[DecisionTable, ...]:
    """One table for each target; with probability `1 - level` or more, none is ever certified that is false.

    At each look, both kinds of thresholds do not fall from one target to the next.

    Args:
        noise: "discrete_gaussian" or "discrete_laplace".
        parameter: sigma or scale, in grey levels.
        budgets: the targets, ascending, as in `majority_boundary`.
        most: samples at most, `1 .. MOST_MAX`.
        level: as alpha in `certified_budget`, `2**-256` at least.

    Raises:
        ParameterError: if a parameter is out of its range or no exact number, the budgets do not ascend, or not even
            `most` votes for the class alone would certify a target.
    """
    if not isinstance(level, Fraction) or not LEVEL_MIN <= level < 1:
        found = f"{float(level):.6g}" if isinstance(level, Fraction) else repr(level)
        raise ParameterError(f"level {found}: expected a Fraction from 2**-256 on, below 1")
    if not budgets or any(above <= below for below, above in zip(budgets, budgets[1:])):
        raise ParameterError(f"targets {tuple(budgets)}: expected at least one, in ascending order")
    for budget in budgets:
        require_conceivable(noise, parameter, budget)
    if len(budgets) * most > TARGETS_TIMES_MOST_MAX:
        limit = TARGETS_TIMES_MOST_MAX // len(budgets)
        raise ParameterError(f"{len(budgets)} targets with {most} samples: expected {limit} samples at most")
    return _decision_tables(noise, Fraction(parameter), tuple(map(int, budgets)), looks(most), level)


@lru_cache(maxsize=1 << 8)
def _decision_tables(
    noise: str, parameter: Fraction, budgets: tuple[int, ...], schedule: tuple[int, ...], level: Fraction
) -> tuple[DecisionTable, ...]:
    most, bits = schedule[-1], RESERVE_BITS + smallest_trials(level)
    allowed, allowed_futility = spending(schedule, level, bits), spending(schedule, FUTILITY, bits)
    least_from, least_give_up = (0,) * len(schedule), (-1,) * len(schedule)
    tables = []
    for budget in budgets:
        boundary = majority_boundary(noise, parameter, budget)
        chance = Chance.enclosing(boundary, bits)
        certify_from, _ = first_passage(schedule, chance, allowed, least_from)
        if all(count > look for count, look in zip(certify_from, schedule)):
            raise ParameterError(
                f"{most} samples cannot certify the target {budget_text(noise, budget)} at level {float(level):.6g},"
                f" not even by a unanimous vote: expected {_samples_needed(most, boundary, level)}"
            )
        against = Chance.enclosing(_fixed_share(most, chance, allowed[-1]), bits).complement
        against_from, _ = first_passage(schedule, against, allowed_futility, (0,) * len(schedule))
        last = certify_from[-1]
        give_up_at = tuple(
            min(enough - 1, max(look - votes_against, hopeless(look, last, most), least))
            for look, enough, votes_against, least in zip(schedule, certify_from, against_from, least_give_up)
        )
        tables.append(DecisionTable(schedule, certify_from, give_up_at))
        least_from, least_give_up = certify_from, give_up_at
    return tuple(tables)


def crossing_probability(table: DecisionTable, boundary: Callable[[int], Interval]) -> Fraction:
    """An upper bound, sharp to some 29 decimals, of the probability that the table ever certifies at pA = boundary.

    Give-up bounds are not respected, as in (2). `boundary(digits)` encloses a probability to so many digits.
    """
    chance, unlimited = Chance.enclosing(boundary, AUDIT_BITS), (2 << AUDIT_BITS,) * len(table.looks)
    _, passed = first_passage(table.looks, chance, unlimited, table.certify_from)
    return min(Fraction(passed, 1 << AUDIT_BITS), Fraction(1))


def spending(schedule: Sequence[int], level: Fraction, bits: int) -> tuple[int, ...]:
    """Equation (1) in units of `2**-bits`, rounded down."""
    return tuple(int(level * (1 << bits) * look / schedule[-1]) for look in schedule)


def first_passage(
    schedule: Sequence[int], chance: Chance, allowed: Sequence[int], least: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """Thresholds by equation (2), and what a passage through them is bounded by.

    `states[i]` is for the count `lowest + i`. At any time, for any count k, `passed` and the states from k on together
    bound the probability that a threshold has been passed or the count is at least k.

    Args:
        schedule: the looks.
        chance: of a vote.
        allowed: for each look, what `passed` may reach there, in units of `2**-chance.bits`.
        least: for each look, what the threshold is at least.

    Returns:
        The thresholds, at least `schedule[j] + 1` where no count will do, none after one that every count passes; and
        `passed`, an upper bound of the probability that any threshold is passed, in the same units.
    """
    thresholds, passed = [], 0
    states, lowest, before = [1 << chance.bits], 0, 0
    for look, limit, at_least in zip(schedule, allowed, least):
        fewest, steps, beyond = _votes_between(look - before, chance)
        passed += -(-beyond * sum(states) >> chance.bits)  # rounded up, the states may sum to a little more than one
        states, lowest, before = _convolution(states, steps, chance.bits), lowest + fewest, look
        threshold = lowest + len(states)
        while threshold > max(at_least, lowest) and passed + states[-1] <= limit:
            passed += states.pop()
            threshold -= 1
        thresholds.append(max(threshold, at_least))
        if not states:  # every count passes: `crossing_probability` alone allows as much
            break
        lumped, kept = 0, 0
        while lumped + states[kept] <= LUMPED and kept < len(states) - 1:
            lumped += states[kept]
            kept += 1
        states, lowest = [states[kept] + lumped, *states[kept + 1 :]], lowest + kept
    return tuple(thresholds), passed


def _votes_between(trials: int, chance: Chance) -> tuple[int, list[int], int]:
    """The votes among `trials` samples: `(fewest, steps, beyond)`, probabilities in units of `2**-chance.bits`.

    `steps[i]` bounds the probability of `fewest + i` votes, `beyond` that of more votes than `steps` has. Fewer than
    `fewest` are taken for `fewest`; this needs no addition, as `steps` sums to one at least.

    Every probability is a product of ratios to that of a number of votes near the mean, which is one over their sum;
    here the sum is rounded down and lacks what is omitted.
    """
    one = 1 << chance.bits + GUARD_BITS
    mean = min((trials + 1) * chance.lower // one, trials)
    more, more_sum, beyond = _ratios(trials - mean, mean + 1, chance)
    fewer, fewer_sum, _ = _ratios(mean, trials - mean + 1, chance.complement)
    total = one + more_sum + fewer_sum
    steps = [-((-ratio << chance.bits) // total) for ratio in (*reversed(fewer), one, *more)]
    return mean - len(fewer), steps, beyond


def _ratios(left: int, following: int, chance: Chance) -> tuple[list[int], int, int]:
    """Binomial probabilities from the mean on, as ratios to the first: `(upper bounds, sum of lower bounds, omitted)`.

    One vote more, of the `left` samples that are left, multiplies the probability by `left / following * p / (1-p)`.
    Ratios are in units of `2**-(bits + GUARD_BITS)`; from the first on that is at most `2**-bits` they are omitted. As
    it is below one, a factor below one has occurred; the factors fall, so that the later ones are smaller still.
    """
    one = 1 << chance.bits + GUARD_BITS
    uppers, upper, lower, total = [], one, one, 0
    while left:
        upper = -(-upper * left * chance.upper // (following * (one - chance.upper)))
        if upper <= 1 << GUARD_BITS:
            break
        lower = lower * left * chance.lower // (following * (one - chance.lower))
        uppers.append(upper)
        total += lower
        left, following = left - 1, following + 1
    return uppers, total, left


def _convolution(a: list[int], b: list[int], bits: int) -> list[int]:
    """`sum_i a[i] * b[k-i] / 2**bits`, rounded up, for each k.

    Both lists become the digits of one large number each, of so many bytes that their product's digits do not overlap:
    then Python's multiplication does the work (Kronecker's substitution).
    """
    width = 2 * bits // 8 + 4
    product = _packed(a, width) * _packed(b, width)
    length = width * (len(a) + len(b) - 1)
    digits = product.to_bytes(length, "little")
    return [-(-int.from_bytes(digits[k : k + width], "little") >> bits) for k in range(0, length, width)]


def _packed(digits: list[int], width: int) -> int:
    return int.from_bytes(b"".join(digit.to_bytes(width, "little") for digit in digits), "little")


def hopeless(look: int, last: int, most: int) -> int:
    """The largest count from which not even votes for A alone lead to the threshold `last` of the last look.

    Nor do they to an earlier one: every threshold allows at least as many votes against A as the one before, since a
    count with no more of them than that has passed already.
    """
    return last - 1 - (most - look)


def _fixed_share(most: int, chance: Chance, level: int) -> Callable[[int], Interval]:
    """The smallest share of `most` votes that the fixed test certifies, a test with one look; or all votes."""
    (certify_from,), _ = first_passage((most,), chance, (level,), (0,))
    share = Fraction(min(certify_from, most), most)
    return lambda digits: Interval.of(share, digits)


def _samples_needed(most: int, boundary: Callable[[int], Interval], level: Fraction) -> str:
    """The smallest number of samples above `most` of which a unanimous vote certifies, in words."""

    def enough(samples: int) -> bool:
        return tail_at_most(samples, samples, boundary, level)

    low, high = most, most + 1
    while not enough(high):
        if high >= TRIALS_MAX:
            return f"more than {TRIALS_MAX}"
        low, high = high, min(2 * high, TRIALS_MAX)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return f"at least {high}"
