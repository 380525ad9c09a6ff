"""Nanoseconds per value of the compiled noise, beside NumPy's normal generator with rounding, in the same run.

    python tests/benchmark_noise.py

Single-threaded; the median of repeats. The peer draws float64 normals and rounds them to int32: fast, and neither exact
nor reproducible across versions.
"""

from __future__ import annotations

import platform
import time
from fractions import Fraction
from statistics import median
from typing import Callable

import numpy as np

SIGMAS = (Fraction(1, 4), Fraction(1), Fraction(255, 8), Fraction(255, 4), Fraction(255, 2), Fraction(1024))
SIZE, COUNT, REPEATS = 3 * 32 * 32, 100, 15


def nanoseconds_per_value(draw: Callable[[], object]) -> float:
    draw()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        draw()
        times.append(time.perf_counter() - begin)
    return 1e9 * median(times) / (SIZE * COUNT)


def main() -> None:
    import numba

    from intsmooth_ref.noise import kernels, sampler
    from intsmooth_ref.noise.distributions import discrete_gaussian

    pixels = np.full(SIZE, 128, np.uint8)
    generator = np.random.Generator(np.random.PCG64(1))
    print(f"{COUNT} samples of {SIZE} values; NumPy {np.__version__}, Numba {numba.__version__}, {platform.machine()}")
    print(f"{'sigma':>8} {'compiled':>9} {'NumPy path':>11} {'normal + rint':>14} {'compiled / normal':>18}")
    for sigma in SIGMAS:
        table = sampler.noise_table(discrete_gaussian(sigma))
        compiled = nanoseconds_per_value(lambda: kernels.add_noise(table, pixels, 1, 2, sampler.ESTIMATION, 0, COUNT))
        plain = nanoseconds_per_value(lambda: sampler.add_noise(table, pixels, 1, 2, sampler.ESTIMATION, 0, COUNT))
        peer = nanoseconds_per_value(
            lambda: np.rint(generator.normal(0, float(sigma), (COUNT, SIZE))).astype(np.int32) + pixels
        )
        print(f"{str(sigma):>8} {compiled:9.2f} {plain:11.2f} {peer:14.2f} {compiled / peer:18.3f}")


if __name__ == "__main__":
    main()
