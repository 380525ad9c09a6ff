"""Fixed-point multipliers and the named requantization modes.

What is done offline, with exact rationals, and what is done on the device, with integers, are kept apart:

* offline, `quantize_multiplier` turns a positive rational `ratio` into integers `(multiplier, shift)` with

      (1)   ratio ~ multiplier * 2**-shift,   2**30 <= multiplier < 2**31,   1 <= shift <= 62;

* on the device, a requantization mode turns an int32 accumulator into an integer near `accumulator * ratio`. The modes
  differ only in how they round:

      (2)   single_rounding:  (accumulator * multiplier + 2**(shift-1)) >> shift, the product in int64, the shift
            arithmetic: one rounding, to nearest, ties towards plus infinity;
      (3)   gemmlowp:  rounding_divide_by_pot(srdhm(accumulator << max(31 - shift, 0), multiplier), max(shift - 31, 0))
            where `srdhm` is the saturating rounding doubling high multiply, the high half of `2 * a * b`, rounded to
            nearest with ties towards plus infinity, and `rounding_divide_by_pot` divides by a power of two, rounded to
            nearest with ties away from zero: two roundings. (gemmlowp, `fixedpoint/fixedpoint.h`; Jacob et al. 2018,
            section 2.2.) The left shift must not leave int32; `accumulator_range` tells how far an accumulator may go;
      (4)   srdhm_half_up:  as (3), but the second rounding is (high + 2**(right-1)) >> right, `high` the result of
            `srdhm` and right = shift - 31 where that is above zero: two roundings, both with ties towards plus
            infinity. (TensorFlow Lite, `kernels/internal/common.h`, `MultiplyByQuantizedMultiplier4Rows` on NEON:
            `vqrdmulh`, then `vrshl`; LiteRT 2.3.0's optimized kernels, on x86 too.)

The zero point is added, and the result clamped to the output's range, after the rounding; both are exact.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .errors import ArithmeticRangeError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MULTIPLIER_MIN, MULTIPLIER_MAX = 2**30, 2**31 - 1
SHIFT_MIN, SHIFT_MAX = 1, 62

#: The rounding modes by name; the position in this tuple is the mode's code in compiled kernels.
ROUNDING_MODES = ("single_rounding", "gemmlowp", "srdhm_half_up")


def quantize_multiplier(ratio: Fraction) -> tuple[int, int]:
    """The nearest `(multiplier, shift)` to an exact rational, equation (1); a tie goes to the even multiplier.

    Worked example: input scale 1/51, weight scale 3/1000, output scale 1/10 give

    >>> quantize_multiplier(Fraction(1, 51) * Fraction(3, 1000) / Fraction(1, 10))
    (1293543092, 41)

    for the ratio is 1/1700, in [2**-11, 2**-10), hence shift = 30 + 11 = 41, and 2**41 / 1700 = 1293543091 + 852/1700,
    a little above the half, is rounded up.

    Raises:
        ArithmeticRangeError: if no shift from 1 to 62 brings the multiplier into its range.
    """
    ratio = Fraction(ratio)
    if ratio <= 0:
        raise ArithmeticRangeError(f"multiplier of {ratio}: expected a ratio above zero")
    shift = 30 + ratio.denominator.bit_length() - ratio.numerator.bit_length()
    if ratio * Fraction(2) ** shift < MULTIPLIER_MIN:
        shift += 1
    multiplier = round(ratio * Fraction(2) ** shift)  # Fraction rounds exactly, half to even
    if multiplier > MULTIPLIER_MAX:
        multiplier, shift = multiplier // 2, shift - 1
    if not SHIFT_MIN <= shift <= SHIFT_MAX:
        raise ArithmeticRangeError(
            f"multiplier for a ratio near 2**{30 - shift}: needs shift {shift}, expected {SHIFT_MIN} to {SHIFT_MAX}"
        )
    return multiplier, shift


def requantize(accumulator: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, mode: str) -> np.ndarray:
    """Round `accumulator * multiplier * 2**-shift` to an integer by the named mode, equation (2), (3) or (4).

    Args:
        accumulator: int64 array of int32 values, any shape `(..., C)`.
        multiplier, shift: int64 arrays that broadcast against it (`(C,)` or `(1,)`), in the ranges of equation (1).
        mode: a name in `ROUNDING_MODES`.

    Returns:
        int64 array, neither offset by a zero point nor clamped.

    Raises:
        ArithmeticRangeError: if the mode has another name.
    """
    if mode == "single_rounding":
        return (accumulator * multiplier + (np.int64(1) << (shift - 1))) >> shift
    if mode not in ROUNDING_MODES:
        raise ArithmeticRangeError(f"requantization mode {mode!r}: expected one of {', '.join(ROUNDING_MODES)}")
    left, right = np.maximum(31 - shift, 0), np.maximum(shift - 31, 0)
    high = _srdhm(accumulator << left, multiplier)
    return _rounding_divide_by_pot(high, right) if mode == "gemmlowp" else _rounding_right_shift(high, right)


def _srdhm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Saturating rounding doubling high multiply of int32 values; b > 0 here, so that nothing saturates.

    gemmlowp divides `a*b + nudge` by 2**31 towards zero, nudge = 2**30 or, below zero, 1 - 2**30. That is the floor of
    `(a*b + 2**30) / 2**31` in both cases.
    """
    return (a * b + (1 << 30)) >> 31


def _rounding_divide_by_pot(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def _rounding_right_shift(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    return (x + ((np.int64(1) << exponent) >> 1)) >> exponent


def accumulator_range(shift: int, mode: str) -> tuple[int, int]:
    """The smallest and the largest accumulator that the mode takes at this shift without leaving its integers."""
    left = 0 if mode == "single_rounding" else max(31 - shift, 0)
    return INT32_MIN >> left, INT32_MAX >> left
