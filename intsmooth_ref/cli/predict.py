"""predict the class of the smoothed network, without a radius

For each image, n noisy copies vote; the two classes with most votes are held against each other in an exact two-sided
binomial test, and where it does not decide at level alpha the prediction is -1, abstained (Cohen, Rosenfeld and Kolter
2019). The table has the columns idx, label (-1: unknown), predict, correct (1, or 0 where the class is wrong, abstained
or the label unknown) and time.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Callable

from .arguments import add_sampling
from .images import Found, Job, Record, print_summary, run_over_images

if TYPE_CHECKING:
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier

COLUMNS = ("idx", "label", "predict", "correct")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, "vote")


def run(options: argparse.Namespace) -> int:
    """Predict, print the summary; returns the exit status."""

    def prepare(classifier: SmoothedClassifier, images: int) -> Job:
        from ..certify.radius import require_enough_samples

        require_enough_samples(options.n, classifier.remaining_alpha(options.n, options.alpha) / 2)

        def task(image: np.ndarray, known: Record, progress: Callable[[int], None]) -> Found:
            index = known["idx"]
            found = classifier.predict(image, options.n, options.alpha, index=index, progress=progress)
            return Found({"predict": found.prediction, "votes": found.votes})

        return Job({"command": "predict", "n": options.n, "alpha": str(options.alpha)}, options.n, task)

    done = run_over_images(options, COLUMNS, prepare)
    abstained = sum(record["predict"] < 0 for record in done.records)
    correct = sum(record["correct"] for record in done.records)
    labelled = any(record["label"] >= 0 for record in done.records)
    counts = [f"{correct} correct"] * labelled + [f"{abstained} abstained"]
    print_summary(options, [done.subset, ", ".join(counts)], done)
    return 0
