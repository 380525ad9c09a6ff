"""predict the class of the smoothed network, without a radius

For each image, n noisy copies vote; the two classes with most votes are held against each other in an exact two-sided
binomial test, and where it does not decide at level alpha the prediction is -1, abstained (Cohen, Rosenfeld and Kolter
2019). The table has the columns idx, label, predict, correct and time.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Callable, Mapping

from .arguments import add_sampling
from .images import print_summary, run_over_images

if TYPE_CHECKING:
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier

COLUMNS = ("idx", "label", "predict", "correct")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, "vote")


def run(options: argparse.Namespace) -> int:
    """Predict, print the summary; returns the exit status."""
    parameters = {"command": "predict", "n": options.n, "alpha": str(options.alpha)}

    def check(classifier: SmoothedClassifier) -> None:
        from ..certify.radius import require_enough_samples

        require_enough_samples(options.n, classifier.remaining_alpha(options.n, options.alpha) / 2)

    def task(
        classifier: SmoothedClassifier, image: np.ndarray, index: int, progress: Callable[[int], None]
    ) -> Mapping[str, Any]:
        found = classifier.predict(image, options.n, options.alpha, index=index, progress=progress)
        return {"predict": found.prediction, "votes": found.votes}

    records, progress = run_over_images(options, parameters, COLUMNS, options.n, check, task)
    abstained = sum(record["predict"] < 0 for record in records)
    correct = sum(record["correct"] for record in records)
    lines = [f"{len(records)} images, {correct} correct, {abstained} abstained"]
    print_summary(options, lines, progress, records[0]["seed"])
    return 0
