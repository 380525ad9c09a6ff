"""Parameters of other runtimes' operators, drawn so that near-ties are dense: what a last bit decides shows."""

import numpy as np

from intsmooth_ref.backends.parameters import Average, Grid, Product, Sum

RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def random_scale(generator):
    """A power of two at times: then ties are exact."""
    mantissa = 1 if generator.integers(3) == 0 else generator.uniform(1, 2)
    return np.float32(mantissa * 2.0 ** generator.integers(-8, -2))


def random_grid(generator, dtype, scale=None):
    low, high = RANGES[dtype]
    zero_point = generator.choice([low, low + 3, low + 128, high, generator.integers(low, high + 1)])
    return Grid(random_scale(generator) if scale is None else np.float32(scale), int(zero_point), low, high)


def random_product(generator, dtype, exponent, channels=1, biased=False):
    """Ratios of input times weight scale to output scale from 2**exponent to 2**(exponent+1)."""
    xs, output = random_scale(generator), random_grid(generator, dtype)
    ratio = 2.0**exponent * generator.uniform(1, 2, channels)
    ws = (output.scale / xs * ratio).astype(np.float32)
    bias = generator.normal(0, 20, channels) * float(output.scale) if biased else np.zeros(1)
    return Product(xs, ws, output, bias.astype(np.float32))


def grid_like(generator, grid, factor):
    """An output of about the same zero point, lest every value be clamped, and of `factor` times the scale."""
    low, high = grid.minimum, grid.maximum
    zero_point = int(np.clip(grid.zero_point + generator.integers(-40, 41), low, high))
    return Grid(np.float32(grid.scale * factor), zero_point, low, high)


def random_sum(generator, dtype, smallest=-3):
    first, second = random_grid(generator, dtype), random_grid(generator, dtype)
    factor = 2.0 ** generator.integers(smallest, 3) * generator.choice([1, generator.uniform(1, 2)])
    wider = first if first.scale > second.scale else second
    return Sum(first, second, grid_like(generator, wider, factor))


def sum_beside_the_end_of_16_bits():
    """Sums reach 32742 before the zero point of 127 is added, and more than 2**15 - 1 then."""
    low, high = RANGES["int8"]
    steep = Grid(np.float32(64.2), low, low, high)
    return Sum(steep, steep, Grid(np.float32(1), high, low, high))


def random_average(generator, dtype, keeps_grid=False):
    grid = random_grid(generator, dtype)
    factor = 1 if keeps_grid else generator.choice([1, 0.5, 0.37, 0.91, 1.7])
    return Average(grid, grid if keeps_grid else grid_like(generator, grid, factor))
