"""Two 8-bit tensors added.

Each rule takes the tensors, int64 of one shape, and a `Sum`, and returns int64 of that shape, zero point and clamp
applied. Notation: A, B the inputs, sa, sb, sc, za, zb, zc scales and zero points of inputs and output; every operation
on floats rounds to float32, RNE is rounding to an integer, ties to even, `fma` rounds once.
"""

from __future__ import annotations

import numpy as np

from ..fixedpoint import requantize
from .floating_point import float32, fused_multiply_add, wrapped
from .parameters import Grid, Sum
from .requantization import quantized_multiplier, shifted_left

#: TensorFlow Lite's headroom for the inputs, in bits.
LEFT_SHIFT = 20


def scaled_by(values: np.ndarray, d: float, mode: str) -> np.ndarray:
    """Int32 values times d by fixedpoint's mode with QM(d)."""
    multiplier, shift = quantized_multiplier(np.array([d]))
    values, shift = shifted_left(values, shift)
    return requantize(values, multiplier, shift, mode)


def tflite_ls20(a: np.ndarray, b: np.ndarray, p: Sum, wrap16: bool = False) -> np.ndarray:
    """D(D((A-za) << 20, sa/t) + D((B-zb) << 20, sb/t), t / (2**20 * sc)) + zc: LiteRT 2.3.0, ADD.

    t = 2*max(sa, sb); D is `gemmlowp` with QM of its second argument, which is float64. With `wrap16`, as in the
    optimized kernel, the last result is cut to 16 bits before the zero point is added, likewise modulo 2**16.
    (TensorFlow Lite, `kernels/internal/reference/add.h`, `AddElementwise`.)
    """
    twice_max = 2.0 * float(max(p.first.scale, p.second.scale))
    scaled = [
        scaled_by((x - grid.zero_point) << LEFT_SHIFT, float(grid.scale) / twice_max, "gemmlowp")
        for x, grid in ((a, p.first), (b, p.second))
    ]
    raw = scaled_by(scaled[0] + scaled[1], twice_max / (2**LEFT_SHIFT * float(p.output.scale)), "gemmlowp")
    if wrap16:
        return p.output.clamped(wrapped(wrapped(raw, 16) + p.output.zero_point, 16))
    return p.output.clamped(raw + p.output.zero_point)


def fixed_point_ratios(p: Sum, bits: int) -> tuple[int, int, int]:
    """Integers for sa/sc and sb/sc over a common power of two, the larger one of so many bits, and that power."""
    ratios = p.first.scale / p.output.scale, p.second.scale / p.output.scale
    shift = bits - int(np.frexp(max(ratios))[1])
    first, second = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    return first, second, shift


def xnn21(a: np.ndarray, b: np.ndarray, p: Sum) -> np.ndarray:
    """((A-za)*ma + (B-zb)*mb + 2**(s-1)) >> s, + zc, the larger multiplier of 21 bits: XNNPACK in LiteRT 2.3.0, ADD.

    LiteRT leaves ratios sa/sc or sb/sc from 256 on to its optimized kernel. (XNNPACK, `src/microparams-init.c`,
    `xnn_init_qs8_add_minmax_*_params`.)
    """
    first, second, shift = fixed_point_ratios(p, 21)
    total = (a - p.first.zero_point) * first + (b - p.second.zero_point) * second
    return p.output.clamped(((total + (1 << (shift - 1))) >> shift) + p.output.zero_point)


def fix22(a: np.ndarray, b: np.ndarray, p: Sum) -> np.ndarray:
    """As `xnn21`, with 22 bits and ties away from zero: PyTorch 2.13.0 with qnnpack; ONNX Runtime on Arm.

    (QNNPACK, `src/qnnpack/requantization.h`, `pytorch_qnnp_compute_add_quantization_params`.)
    """
    first, second, shift = fixed_point_ratios(p, 22)
    total = (a - p.first.zero_point) * first + (b - p.second.zero_point) * second
    quotient = np.sign(total) * ((np.abs(total) + (1 << (shift - 1))) >> shift)
    return p.output.clamped(quotient + p.output.zero_point)


def ort_fma(a: np.ndarray, b: np.ndarray, p: Sum) -> np.ndarray:
    """RNE(fma(A, ra, fma(B, rb, F))), ra = sa/sc, rb = sb/sc, F = zc - fma(ra, za, rb*zb): ONNX Runtime 1.32.0,
    QLinearAdd on x86 with AVX2 or later. (`onnxruntime/core/mlas/lib/qladd.cpp`.)
    """
    ra, rb = p.first.scale / p.output.scale, p.second.scale / p.output.scale
    za, zb, zc = (np.float32(grid.zero_point) for grid in (p.first, p.second, p.output))
    fixed = zc - fused_multiply_add(ra, za, rb * zb)
    return p.output.clamped(np.rint(fused_multiply_add(float32(a), ra, fused_multiply_add(float32(b), rb, fixed))))


def ort_sse(a: np.ndarray, b: np.ndarray, p: Sum) -> np.ndarray:
    """RNE((F + A*ra) + B*rb), F = zc - (ra*za + rb*zb): the same on x86 without fused multiply-add."""
    ra, rb = p.first.scale / p.output.scale, p.second.scale / p.output.scale
    za, zb, zc = (np.float32(grid.zero_point) for grid in (p.first, p.second, p.output))
    fixed = zc - (ra * za + rb * zb)
    return p.output.clamped(np.rint((fixed + float32(a) * ra) + float32(b) * rb))


def _dequantized(x: np.ndarray, grid: Grid) -> np.ndarray:
    """fma(s, X, -s*z)."""
    return fused_multiply_add(float32(x), grid.scale, -grid.scale * np.float32(grid.zero_point))


def aten(a: np.ndarray, b: np.ndarray, p: Sum, lanes: int = 64) -> np.ndarray:
    """RNE(c * (1/sc)) + zc, c = fma(sa, A, -sa*za) + fma(sb, B, -sb*zb): PyTorch 2.13.0, `quantized.add`, one thread.

    The last elements, which do not fill a vector of so many lanes (64 with AVX512, 32 with AVX2), are dequantized as
    sa*(A-za) and rounded as RNE(c * (1/sc) + zc).
    """
    zero, inverse = np.float32(p.output.zero_point), np.float32(1) / p.output.scale
    in_vectors = (np.arange(a.size) < a.size // lanes * lanes).reshape(a.shape)
    fused = (_dequantized(a, p.first) + _dequantized(b, p.second)) * inverse
    plain = p.first.scale * float32(a - p.first.zero_point) + p.second.scale * float32(b - p.second.zero_point)
    return p.output.clamped(np.where(in_vectors, np.rint(fused) + zero, np.rint(plain * inverse + zero)))


def openvino_add(a: np.ndarray, b: np.ndarray, p: Sum) -> np.ndarray:
    """RNE((sa*(A-za) + sb*(B-zb)) / sc + zc): OpenVINO 2026.4.1, Add.

    Incomplete: of 1.6 million sums of every pair of values, ten are off by one, within a float32 error of a tie.
    """
    real = p.first.scale * float32(a - p.first.zero_point) + p.second.scale * float32(b - p.second.zero_point)
    return p.output.clamped(np.rint(real / p.output.scale + np.float32(p.output.zero_point)))
