"""Float32 and float64 arithmetic, every operation rounded where it says so.

NumPy rounds each operation on float32 and float64 arrays to nearest, ties to even, as IEEE 754 has it, and fuses none.
What it does not have is here.
"""

from __future__ import annotations

import numpy as np

Float32 = np.ndarray | np.float32


def float32(values: np.ndarray) -> np.ndarray:
    """Integers of less than 2**53, rounded to float32 once."""
    return np.asarray(values).astype(np.float64).astype(np.float32)


def fused_multiply_add(a: Float32, b: Float32, c: Float32) -> np.ndarray:
    """`a * b + c` of finite float32, rounded once, to float32.

    The product of two significands of 24 bits is exact in float64. The sum is rounded to odd there: if it is inexact,
    to that one of its two neighbours whose last bit is set. A second rounding, to 24 bits, then sees on which side of a
    tie the exact sum lies, as 53 >= 24 + 2 (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums:
    proved algorithms using rounding to odd").
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), np.asarray(c, np.float64)
    total = product + addend
    addend_in_total = total - product
    error = (product - (total - addend_in_total)) + (addend - addend_in_total)  # exact (Knuth's TwoSum)
    even = total.view(np.int64) & 1 == 0
    odd = np.where(even & (error != 0), np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def rounded_half_away(values: np.ndarray) -> np.ndarray:
    """Float64 to the nearest integer, ties away from zero, as C's `round`: float64."""
    truncated = np.trunc(values)
    return truncated + np.copysign(np.abs(values - truncated) >= 0.5, values)


def wrapped(values: np.ndarray, bits: int) -> np.ndarray:
    """Int64 modulo 2**bits, as a signed integer of so many bits."""
    half = np.int64(1) << (bits - 1)
    return ((values + half) & (2 * half - 1)) - half
