"""certify images: the class of the smoothed network, and a radius within which no perturbation changes it

For each image, n0 noisy copies select a class and n more bound its probability; the radius is what that bound
guarantees (Cohen, Rosenfeld and Kolter 2019), in integers from the pixel to the radius. The table has the columns
idx, label, predict (-1: abstained), radius (L2, as a fraction of full scale, rounded down), correct and time; the
records beside it hold radius_sq in grey levels squared, the votes, and all that is needed to repeat the run.
Without arguments the embedded network certifies the embedded handwritten digits.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from .arguments import add_sampling, integer_from
from .images import print_summary, run_over_images

if TYPE_CHECKING:
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier

COLUMNS = ("idx", "label", "predict", "radius", "correct")
#: Radii of the summary, in quarters of full scale, as far as anything is certified there.
SUMMARY_STEP = Fraction(1, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, "bound the selected class's probability")
    parser.add_argument("--n0", type=integer_from(1), default=100, metavar="N0",
                        help="samples that select the class (default: 100)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Certify, print the summary; returns the exit status."""
    parameters = {"command": "certify", "n0": options.n0, "n": options.n, "alpha": str(options.alpha)}

    def check(classifier: SmoothedClassifier) -> None:
        from ..certify.radius import require_enough_samples

        require_enough_samples(options.n, classifier.remaining_alpha(options.n, options.alpha))

    def task(
        classifier: SmoothedClassifier, image: np.ndarray, index: int, progress: Callable[[int], None]
    ) -> Mapping[str, Any]:
        found = classifier.certify(image, options.n0, options.n, options.alpha, index=index, progress=progress)
        return {
            "predict": found.prediction,
            "radius": found.radius,
            "radius_sq": found.radius_sq,
            "selection_votes": found.selection_votes,
            "estimation_votes": found.estimation_votes,
        }

    records, progress = run_over_images(options, parameters, COLUMNS, options.n0 + options.n, check, task)
    print_summary(options, summary(records), progress, records[0]["seed"])
    return 0


def summary(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Certified accuracy at several radii, abstentions, average certified radius: fractions of all images."""
    from ..certify.radius import radius_sq_at_least

    images = len(records)
    labelled = any(record["label"] >= 0 for record in records)
    counted = [record for record in records if record["correct"] or not labelled and record["predict"] >= 0]
    radii: list[Fraction] = []
    counts: list[int] = []
    radius = Fraction(0)
    while not radii or counts[-1]:
        needed = radius_sq_at_least(radius)
        radii.append(radius)
        counts.append(sum(record["radius_sq"] >= needed for record in counted))
        radius += SUMMARY_STEP
    abstained = sum(record["predict"] < 0 for record in records)
    average = sum((Fraction(record["radius"]) for record in counted), Fraction(0)) / images
    return [
        f"{images} images, {abstained} abstained",
        "radius             " + "".join(f"{float(each):>7.2f}" for each in radii),
        ("certified accuracy " if labelled else "certified          ")
        + "".join(f"{_three_digits(Fraction(count, images)):>7}" for count in counts),
        f"average certified radius {_three_digits(average)}",
    ]


def _three_digits(value: Fraction) -> str:
    """Rounded down."""
    thousandths = value.numerator * 1000 // value.denominator
    return f"{thousandths // 1000}.{thousandths % 1000:03d}"
