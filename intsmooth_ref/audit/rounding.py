"""Where the rounding mode of a requantization matters: how many accumulators another mode rounds differently.

Counted exactly over the interval of each channel, never sampled. Every mode f of `fixedpoint` keeps the order of
accumulators, so it is known by its thresholds

    (1)   t_f(q) = the smallest accumulator a of the interval with f(a) >= q   (the end of the interval if none),

and f and g differ at a exactly if a lies between t_f(q) and t_g(q) for some q:

    (2)   { a : f(a) != g(a) } = union over q of [min(t_f(q), t_g(q)), max(t_f(q), t_g(q))).

Thresholds ascend with q, so that union is counted in one pass. After zero point and clamp only the thresholds remain
whose `zero_point + q` is a step inside the clamp, of which there are at most 255 a channel. A threshold is guessed from
the ratio, and found by doubling and halving steps from there.

An accumulator is a tie of `single_rounding` if accumulator * multiplier = 2**(shift-1) modulo 2**shift. With
multiplier = 2**v * odd that is, the odd factor being a unit modulo any power of two,

    (3)   accumulator = 2**(shift-1-v)  modulo  2**(shift-v),

and no accumulator if v >= shift. Where none is a tie, all modes that round the exact quotient once and to nearest are
the same mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np

from ..fixedpoint import INT32_MAX, INT32_MIN, ROUNDING_MODES, accumulator_range, requantize
from ..model.layers import Add, Quantization, Requantization

#: The mode that the others are compared with.
STANDARD = "single_rounding"

#: How many thresholds, or accumulators, are looked at together, and at most of one layer and mode.
CHUNK, MOST_STEPS = 1 << 18, 1 << 27


@dataclass(frozen=True)
class ModeDifference:
    """How a mode compares with `STANDARD` on the accumulators of one layer, each channel's own counted by itself.

    Attributes:
        mode: its name.
        before: how many are rounded differently, before the clamp; None where counting would take more than
            `MOST_STEPS` steps.
        after: and still differ after zero point and clamp.
        channels: how many channels have any that differ after the clamp.
        example: of those, one channel, its smallest such accumulator, and what the standard and the mode give.
        refused: why the mode cannot take these accumulators; then nothing is counted.
    """

    mode: str
    before: int | None = None
    after: int | None = None
    channels: int = 0
    example: tuple[int, int, int, int] | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Rounding:
    """What is known of the requantization of a layer.

    Attributes:
        mode: its own.
        accumulators: how many there are in the intervals of all channels.
        ties: how many of them are ties, equation (3).
        differences: of each mode but the standard.
    """

    mode: str
    accumulators: int
    ties: int
    differences: tuple[ModeDifference, ...]


@dataclass(frozen=True)
class Channel:
    """One channel of a requantization: its interval of accumulators, both ends included, and its constants."""

    low: int
    high: int
    multiplier: int
    shift: int

    def rounded(self, accumulators: np.ndarray, mode: str) -> np.ndarray:
        """By the named mode, int64."""
        return requantize(accumulators, np.int64(self.multiplier), np.int64(self.shift), mode)

    def ends(self, mode: str) -> tuple[int, int]:
        low, high = self.rounded(np.array([self.low, self.high], np.int64), mode).tolist()
        return low, high


def rounding_of(
    requantization: Requantization, output: Quantization, low: Sequence[int], high: Sequence[int]
) -> Rounding:
    """Count ties, and differences of each mode, for channels whose accumulators run from `low` to `high`."""
    constants = list(zip(requantization.multiplier.tolist(), requantization.shift.tolist()))
    count = max(len(low), len(constants))  # all channels may share one interval, or one pair of constants
    channels = [
        Channel(low[c % len(low)], high[c % len(high)], *constants[c % len(constants)]) for c in range(count)
    ]
    modes = [mode for mode in ROUNDING_MODES if mode != STANDARD]
    return Rounding(
        requantization.rounding,
        sum(channel.high - channel.low + 1 for channel in channels),
        sum(map(ties, channels)),
        tuple(difference(channels, output, mode) for mode in modes),
    )


def ties(channel: Channel) -> int:
    """Equation (3)."""
    factor = (channel.multiplier & -channel.multiplier).bit_length() - 1
    if factor >= channel.shift:
        return 0
    remainder, modulus = 1 << (channel.shift - 1 - factor), 1 << (channel.shift - factor)
    return (channel.high - remainder) // modulus - (channel.low - 1 - remainder) // modulus


def tied_sums(layer: Add, zero_points: Sequence[int], values: Sequence[np.ndarray]) -> tuple[int, int]:
    """Of the pairs of values that an `Add` can meet, how many give a sum that is a tie, and how many there are."""
    first, second = (
        (each.astype(np.int64) - zero_point) * multiplier
        for each, zero_point, multiplier in zip(values, zero_points, layer.multiplier.tolist())
    )
    half = np.int64(1) << (layer.shift - 1)
    sums = first[:, np.newaxis] + second
    return int(((sums & (2 * half - 1)) == half).sum()), sums.size


def difference(channels: Sequence[Channel], output: Quantization, mode: str) -> ModeDifference:
    """Compare a mode with the standard on these channels, equation (2)."""
    for index, channel in enumerate(channels):
        lowest, highest = _takes(channel.shift, mode)
        if channel.low < lowest or channel.high > highest:
            return ModeDifference(mode, refused=(
                f"takes {lowest} .. {highest} at shift {channel.shift}; channel {index} has"
                f" {channel.low} .. {channel.high}"
            ))  # fmt: skip
    after, touched, example = 0, 0, None
    for index, channel in enumerate(channels):
        count, first = _count(channel, mode, _steps_inside(channel, output, mode))
        if first is not None and example is None:
            standard, other = (
                int(np.clip(output.zero_point + channel.rounded(np.int64(first), each), output.minimum, output.maximum))
                for each in (STANDARD, mode)
            )
            example = (index, first, standard, other)
        after, touched = after + count, touched + (count > 0)
    work = sum(min(len(_steps(channel, mode)), channel.high - channel.low + 1) for channel in channels)
    before = sum(_count_unclamped(channel, mode) for channel in channels) if work <= MOST_STEPS else None
    return ModeDifference(mode, before, after, touched, example)


def _takes(shift: int, mode: str) -> tuple[int, int]:
    """The accumulators that both the mode and the standard take."""
    ranges = [accumulator_range(shift, each) for each in (mode, STANDARD)] + [(INT32_MIN, INT32_MAX)]
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _steps(channel: Channel, mode: str) -> range:
    """The q of equation (2) that either mode reaches only after the beginning of the interval."""
    ends = [channel.ends(each) for each in (STANDARD, mode)]
    return range(min(low for low, _ in ends) + 1, max(high for _, high in ends) + 1)


def _steps_inside(channel: Channel, output: Quantization, mode: str) -> range:
    """Those that the clamp leaves."""
    steps = _steps(channel, mode)
    lowest, highest = output.minimum - output.zero_point + 1, output.maximum - output.zero_point
    return range(max(steps.start, lowest), min(steps.stop, highest + 1))


def _count_unclamped(channel: Channel, mode: str) -> int:
    """Over all steps, or accumulator by accumulator where these are fewer."""
    steps, end = _steps(channel, mode), channel.high + 1
    if len(steps) <= end - channel.low:
        return _count(channel, mode, steps)[0]
    count = 0
    for start in range(channel.low, end, CHUNK):
        accumulators = np.arange(start, min(start + CHUNK, end), dtype=np.int64)
        count += int((channel.rounded(accumulators, STANDARD) != channel.rounded(accumulators, mode)).sum())
    return count


def _count(channel: Channel, mode: str, steps: range) -> tuple[int, int | None]:
    """How many accumulators the steps tell apart, equation (2), and the smallest of them."""
    count, first, counted_to = 0, None, channel.low
    for begin, end in _differing(channel, mode, steps):
        begin = np.maximum(begin, np.concatenate([[counted_to], end[:-1]]))  # ends ascend
        new = np.maximum(end - begin, 0)
        if first is None and new.any():
            first = int(begin[new > 0][0])
        count, counted_to = count + int(new.sum()), int(end[-1])
    return count, first


def _differing(channel: Channel, mode: str, steps: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The intervals of equation (2), in order of q, in chunks."""
    for start in range(0, len(steps), CHUNK):
        part = steps[start : start + CHUNK]
        q = np.arange(part.start, part.stop, dtype=np.int64)
        ours, theirs = threshold(channel, STANDARD, q), threshold(channel, mode, q)
        yield np.minimum(ours, theirs), np.maximum(ours, theirs)


def threshold(channel: Channel, mode: str, q: np.ndarray) -> np.ndarray:
    """Equation (1) for each q: int64, from `channel.low` to `channel.high + 1`."""
    low, end = channel.low, channel.high + 1

    def reached(accumulators: np.ndarray) -> np.ndarray:
        """Whether f(a) >= q; below the interval never, from its end on always."""
        inside = channel.rounded(np.clip(accumulators, low, channel.high), mode) >= q
        return (inside & (accumulators >= low)) | (accumulators >= end)

    guess = -(((1 << (channel.shift - 1)) - (q << channel.shift)) // channel.multiplier)  # may overflow: only a guess
    above = np.clip(guess, low, end)  # on its way up until it is reached
    below = above - 1  # and down until it is not
    step = 1
    while not (done := reached(above)).all():
        above = np.where(done, above, np.minimum(above + step, end))
        step *= 2
    step = 1
    while (wrong := reached(below)).any():
        below = np.where(wrong, np.maximum(below - step, low - 1), below)
        step *= 2
    while (above - below > 1).any():
        middle = (above + below) >> 1
        hit = reached(middle)
        open_ = above - below > 1
        above, below = np.where(open_ & hit, middle, above), np.where(open_ & ~hit, middle, below)
    return above
