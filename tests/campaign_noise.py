"""Goodness of fit of the sampler, by the compiled path, on as many draws as one likes.

    python tests/campaign_noise.py --draws 100000000

Prints a table: Pearson's chi-square over bins of at least 100 expected draws, mean, variance and symmetry of sign, each
as a statistic beside the bound that it exceeds with (asymptotic) probability 1e-9 if the sampler is right.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

import numpy as np

from intsmooth_ref.noise.distributions import (
    RESOLUTION_BITS,
    IntegerDistribution,
    discrete_gaussian,
    discrete_laplace,
    discrete_uniform,
    rounded_normal,
)

FAILURE_PROBABILITY = 1e-9
SMALLEST_EXPECTED = 100
DISTRIBUTIONS = (
    (discrete_gaussian, Fraction(1)),
    (discrete_gaussian, Fraction(255, 4)),
    (discrete_gaussian, Fraction(255, 2)),
    (rounded_normal, Fraction(255, 4)),
    (discrete_laplace, Fraction(45)),
    (discrete_uniform, 110),
)


@dataclass(frozen=True)
class Statistic:
    """A test statistic, and the bound that it exceeds in absolute value with probability `FAILURE_PROBABILITY`."""

    name: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        return abs(self.value) <= self.bound


def probabilities(distribution: IntegerDistribution) -> np.ndarray:
    """P(minimum + j), j = 0 .. N, each within one rounding of T_j - T_(j-1) over 2**256."""
    steps = zip((0,) + distribution.thresholds, distribution.thresholds + (1 << RESOLUTION_BITS,))
    return np.array([(above - below) / (1 << RESOLUTION_BITS) for below, above in steps])


def statistics(distribution: IntegerDistribution, histogram: np.ndarray) -> list[Statistic]:
    """The statistics of a histogram (N + 1,) of draws by value."""
    from scipy.stats import norm

    values = np.arange(distribution.minimum, distribution.maximum + 1)
    expected = probabilities(distribution)
    draws = int(histogram.sum())
    mean = float(values @ expected)
    variance = float((values - mean) ** 2 @ expected)
    fourth_moment = float((values - mean) ** 4 @ expected)
    sum_of_values = sum(value * int(number) for value, number in zip(values.tolist(), histogram))
    square_error = float((values - mean) ** 2 @ histogram) - draws * variance
    positive, negative = int(histogram[values > 0].sum()), int(histogram[values < 0].sum())
    bound = float(norm.isf(FAILURE_PROBABILITY / 2))
    return [
        chi_square(expected, histogram),
        Statistic("mean", (sum_of_values - draws * mean) / sqrt(draws * variance), bound),
        Statistic("variance", square_error / sqrt(draws * (fourth_moment - variance**2)), bound),
        Statistic("symmetry", (positive - negative) / sqrt(positive + negative), bound),
    ]


def chi_square(expected: np.ndarray, histogram: np.ndarray) -> Statistic:
    """Pearson's statistic, neighbouring values pooled until a bin expects `SMALLEST_EXPECTED` draws."""
    from scipy.stats import chi2

    draws = int(histogram.sum())
    bins = np.floor(np.cumsum(expected) * draws / SMALLEST_EXPECTED).astype(np.int64)
    _, starts = np.unique(np.concatenate([[0], bins[:-1]]), return_index=True)
    pooled_expected, pooled = np.add.reduceat(expected * draws, starts), np.add.reduceat(histogram, starts)
    if pooled_expected[-1] < SMALLEST_EXPECTED:  # the remainder joins its neighbour
        pooled_expected = np.append(pooled_expected[:-2], pooled_expected[-2:].sum())
        pooled = np.append(pooled[:-2], pooled[-2:].sum())
    statistic = float(((pooled - pooled_expected) ** 2 / pooled_expected).sum())
    return Statistic(
        f"chi-square({len(pooled) - 1})", statistic, float(chi2.isf(FAILURE_PROBABILITY, len(pooled) - 1))
    )


def histogram_of(distribution: IntegerDistribution, values: np.ndarray) -> np.ndarray:
    """How often each value of the support was drawn: int64 (N + 1,)."""
    return np.bincount(values.ravel() - distribution.minimum, minlength=len(distribution.thresholds) + 1)


def compiled_histogram(distribution: IntegerDistribution, draws: int, seed: int, image: int) -> np.ndarray:
    """The histogram of at least `draws` draws of the compiled path, by rows of a million."""
    from intsmooth_ref.noise.kernels import add_noise
    from intsmooth_ref.noise.sampler import ESTIMATION, noise_table

    size = min(draws, 10**6)
    table, pixels = noise_table(distribution), np.zeros(size, np.uint8)
    histogram = np.zeros(len(distribution.thresholds) + 1, np.int64)
    for sample in range(-(-draws // size)):
        histogram += histogram_of(distribution, add_noise(table, pixels, seed, image, ESTIMATION, sample, 1))
    return histogram


def main() -> int:
    import numba
    import scipy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10**8, help="draws per distribution")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    print(f"{arguments.draws} draws each, seed {arguments.seed}; {versions}, SciPy {scipy.__version__}")
    print(f"{'distribution':26} {'statistic':18} {'value':>10} {'bound':>10}")
    failures = 0
    for image, (constructor, parameter) in enumerate(DISTRIBUTIONS):  # an image index each: independent draws
        distribution = constructor(parameter)
        histogram = compiled_histogram(distribution, arguments.draws, arguments.seed, image)
        for statistic in statistics(distribution, histogram):
            verdict = "" if statistic.passed else "  FAILED"
            label = f"{distribution.name}({parameter})"
            print(f"{label:26} {statistic.name:18} {statistic.value:10.3f} {statistic.bound:10.3f}{verdict}")
            failures += not statistic.passed
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
