"""What a float twin and an integer model reached on the same images, as a table and as JSON.

Of a run over N images, `right` those whose class is the label,

    (1)   certified accuracy at r = #{right, radius >= r} / N
    (2)   average certified radius = sum of the radii of `right` / N

(Cohen, Rosenfeld and Kolter 2019; Zhai et al. 2020, for (2)): an abstention is never right. All of it is counted in
integers and rationals. Accuracies, radii and savings are shown rounded down; a difference is that of what is shown.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from math import floor
from typing import Any, Callable, Iterator, Mapping, Sequence

from intsmooth_ref.cli.messages import counted, one_line

Record = Mapping[str, Any]

#: Between the radii of the table, as fractions of full scale.
RADIUS_STEP = Fraction(1, 4)


@dataclass(frozen=True, eq=False)
class Certified:
    """A run that is complete.

    Attributes:
        name: `float` or `integer`.
        n0, n: samples of an image.
        records: of the images: `predict`, `radius` and `correct`.
        reaches: whether a record's radius is not below a fraction of full scale.
        seconds: that each image took, noise included.
        right_without_noise: images whose class the network gives without noise.
        runtime: what computed it, with its version.
        threads: how many, for people.
    """

    name: str
    n0: int
    n: int
    records: Sequence[Record]
    reaches: Callable[[Record, Fraction], bool]
    seconds: Sequence[float]
    right_without_noise: int
    runtime: str
    threads: str

    @property
    def images(self) -> int:
        return len(self.records)

    def certified(self, radius: Fraction) -> int:
        """The numerator of equation (1)."""
        return sum(bool(each["correct"] and self.reaches(each, radius)) for each in self.records)

    @property
    def average_radius(self) -> Fraction:
        """Equation (2), a fraction of full scale."""
        return sum((Fraction(each["radius"]) for each in self.records if each["correct"]), Fraction(0)) / self.images

    @property
    def abstained(self) -> int:
        return sum(each["predict"] < 0 for each in self.records)

    @property
    def samples_per_second(self) -> float:
        """Of the median image, noise and network: the first one may wait for a compiler."""
        return (self.n0 + self.n) / max(statistics.median(self.seconds), 1e-6)


@dataclass(frozen=True)
class Storage:
    """Bytes that parameters take in memory, and that the files take."""

    parameters: int
    file: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """A float twin and an integer model on the same images.

    Attributes:
        images: which, for people.
        parameters: of both runs: sigma, alpha, seed.
        twin: the float run.
        integers: the integer runs; the first has as many samples as the twin's.
        float_storage, integer_storage: what the models take.
        circumstances: models, machine, versions, command, date.
    """

    images: str
    parameters: Mapping[str, Any]
    twin: Certified
    integers: Sequence[Certified]
    float_storage: Storage
    integer_storage: Storage
    circumstances: Mapping[str, Any]

    @property
    def runs(self) -> Sequence[Certified]:
        return [self.twin, *self.integers]

    @property
    def radii(self) -> Sequence[Fraction]:
        """In steps, up to the first at which no run certifies anything."""
        radii = [Fraction(0)]
        while any(run.certified(radii[-1]) for run in self.runs):
            radii.append(radii[-1] + RADIUS_STEP)
        return radii

    @property
    def differences(self) -> Sequence[int]:
        """At each radius, how many more images the integer model has certified than its twin."""
        return [self.integers[0].certified(radius) - self.twin.certified(radius) for radius in self.radii]


# --- for programs -----------------------------------------------------------------------------------------------------


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Counts of images, radii as fractions of full scale, seconds and bytes."""
    return {
        "images": comparison.images,
        "parameters": dict(comparison.parameters),
        "runs": [_run_as_json(run, comparison.radii) for run in comparison.runs],
        "integer_minus_float": _by_radius(comparison.radii, comparison.differences),
        "bytes": {
            "float": vars(comparison.float_storage),
            "integer": vars(comparison.integer_storage),
        },
        "circumstances": dict(comparison.circumstances),
    }


def _run_as_json(run: Certified, radii: Sequence[Fraction]) -> dict[str, Any]:
    return {
        "kind": run.name, "n0": run.n0, "n": run.n, "images": run.images,
        "certified": _by_radius(radii, [run.certified(radius) for radius in radii]),
        "average_certified_radius": float(run.average_radius), "abstained": run.abstained,
        "right_without_noise": run.right_without_noise, "runtime": run.runtime, "threads": run.threads,
        "samples_per_second": run.samples_per_second, "seconds": sum(run.seconds),
    }  # fmt: skip


def _by_radius(radii: Sequence[Fraction], counts: Sequence[int]) -> dict[str, int]:
    return {exact_text(radius): count for radius, count in zip(radii, counts)}


# --- for people -------------------------------------------------------------------------------------------------------


def as_markdown(comparison: Comparison) -> str:
    """Three tables, and how they came about."""
    parameters = ", ".join(f"{name} {value}" for name, value in comparison.parameters.items())
    lines = [
        "# Float twin and integer model, certified side by side", "",
        f"{comparison.images}; {parameters}.", "",
        *_table(_accuracy_rows(comparison)), "",
        _largest_difference(comparison), "",
        "Columns: certified accuracy at each radius (classified right, not abstained, radius not below), average",
        "certified radius (ACR; 0 where the class is wrong), images abstained on, accuracy without noise; rounded",
        "down. Differences are integer less float at the same n, of the figures shown (pp: percentage points). The",
        "float twin is certified in floats, for comparison only: its radii are not sound to the last digit.", "",
        *_table(_storage_rows(comparison)), "",
        *_table(_speed_rows(comparison)), "",
        "Parameters: 4 bytes for each learned float; weights, biases, multipliers, shifts and tables in integers. The",
        "integer file may hold known answers, too. Samples per second: noise and network, of the median image; the",
        "wall time is that of all images.", "",
        *(f"- {name}: {_verbatim(name, str(value))}" for name, value in comparison.circumstances.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _verbatim(name: str, value: str) -> str:
    """A command's dashes and stars are no typography."""
    return f"`{one_line(value)}`" if name == "command" else one_line(value)


def _table(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; the first row is its head."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"|{' --- |' * len(row)}"


def _accuracy_rows(comparison: Comparison) -> Iterator[Sequence[str]]:
    twin, integer = comparison.runs[:2]
    radii = (f"radius {exact_text(radius)}" for radius in comparison.radii)
    yield ["", "n", *radii, "ACR", "abstained", "clean"]
    yield _accuracy_row(twin, comparison)
    yield _accuracy_row(integer, comparison)
    yield _difference_row(twin, integer, comparison)
    for run in comparison.integers[1:]:
        yield _accuracy_row(run, comparison)


def _thousandths(run: Certified, comparison: Comparison) -> tuple[list[int], int, int]:
    """What a row shows, rounded down: certified accuracies, average certified radius, accuracy without noise."""
    certified = [1000 * run.certified(radius) // run.images for radius in comparison.radii]
    return certified, floor(1000 * run.average_radius), 1000 * run.right_without_noise // run.images


def _accuracy_row(run: Certified, comparison: Comparison) -> Sequence[str]:
    certified, average, clean = _thousandths(run, comparison)
    figures = [f"{each / 1000:.3f}" for each in (*certified, average, clean)]
    return [run.name, f"{run.n:,}", *figures[:-1], str(run.abstained), figures[-1]]


def _difference_row(twin: Certified, integer: Certified, comparison: Comparison) -> Sequence[str]:
    """Of the figures in the two rows above, so that whoever subtracts them finds the same."""
    (before, before_radius, before_clean), (after, after_radius, after_clean) = (
        _thousandths(run, comparison) for run in (twin, integer)
    )
    points = [_points(b - a) for a, b in zip(before, after)]
    largest = _largest(comparison.differences)
    if largest is not None:
        points[largest] = f"**{points[largest]}**"
    radius, abstained = after_radius - before_radius, integer.abstained - twin.abstained
    return [
        "difference", "", *points, f"{radius / 1000:+.3f}" if radius else "0.000",
        f"{abstained:+d}" if abstained else "0", _points(after_clean - before_clean),
    ]  # fmt: skip


def _largest_difference(comparison: Comparison) -> str:
    largest = _largest(comparison.differences)
    if largest is None:
        return "At every radius both certify the same number of images."
    images, difference = counted(comparison.twin.images, "image", "images"), comparison.differences[largest]
    which = "more" if difference > 0 else "fewer"
    where = f"at radius {exact_text(comparison.radii[largest])}"
    return f"Largest difference: {where} the integer model certifies {abs(difference)} of {images} {which}."


def _largest(differences: Sequence[int]) -> int | None:
    """Where the first of the largest stands, None if all are 0."""
    sizes = [abs(difference) for difference in differences]
    return sizes.index(max(sizes)) if any(sizes) else None


def _storage_rows(comparison: Comparison) -> Iterator[Sequence[str]]:
    yield ["bytes", "float", "integer", "saving"]
    for name in ("parameters", "file"):
        before, after = getattr(comparison.float_storage, name), getattr(comparison.integer_storage, name)
        yield [name, f"{before:,}", f"{after:,}", f"{rounded_down(100 - Fraction(100 * after, before), 1)} %"]


def _speed_rows(comparison: Comparison) -> Iterator[Sequence[str]]:
    yield ["", "n", "runtime", "threads", "samples/s", "wall time"]
    for run in comparison.runs:
        wall = timedelta(seconds=round(sum(run.seconds)))
        yield [run.name, f"{run.n:,}", run.runtime, run.threads, f"{run.samples_per_second:,.0f}", str(wall)]


def rounded_down(value: Fraction, decimals: int) -> str:
    """Towards minus infinity.

    >>> rounded_down(Fraction(2, 3), 3), rounded_down(Fraction(-1, 3), 1)
    ('0.666', '-0.4')
    """
    units = floor(value * 10**decimals)
    whole, rest = divmod(abs(units), 10**decimals)
    return f"{'-' * (units < 0)}{whole}.{rest:0{decimals}d}"


def exact_text(value: Fraction) -> str:
    """In decimal digits, if a few of them are exact."""
    text = f"{float(value):g}"
    return text if Fraction(text) == value else str(value)


def _points(thousandths: int) -> str:
    """A difference in percentage points, with its sign."""
    return f"{thousandths / 10:+.1f} pp" if thousandths else "0.0 pp"
