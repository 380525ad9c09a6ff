"""From the int32 accumulator of a convolution or a matrix product to 8 bits.

Each rule takes accumulators, int64 `(..., C)` of int32 values, and a `Product`, and returns int64 `(..., C)`, zero
point and clamp applied. Notation of the formulas: `f` makes an integer a float32; every operation rounds to float32
unless a rule says float64; RNE is rounding to an integer, ties to even; xs, ws, ys are the scales of input, weights and
output, aw = xs*ws, a the accumulator, zp, lo and hi zero point and range of the output, b the bias as a float.
"""

from __future__ import annotations

import numpy as np

from ..fixedpoint import MULTIPLIER_MAX, requantize
from .floating_point import float32, fused_multiply_add, rounded_half_away, wrapped
from .parameters import Grid, Product

ONE = np.float32(1)


# --- integers ---------------------------------------------------------------------------------------------------------


def real_multiplier(p: Product, product_in_float32: bool = False) -> np.ndarray:
    """TensorFlow Lite's `d`: float64 `(C,)` or `(1,)`.

    d = f64(xs)*f64(ws)/f64(ys), or with the product already rounded to float32: f64(aw)/f64(ys). (TensorFlow Lite,
    `kernels/kernel_util.cc`, `PopulateConvolutionQuantizationParams` and `GetQuantizedConvolutionMultipler`.)
    """
    product = p.product_scale.astype(np.float64)
    if not product_in_float32:
        product = np.float64(p.input_scale) * p.weight_scale.astype(np.float64)
    return product / np.float64(p.output.scale)


def quantized_multiplier(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """QM(d): `(multiplier, shift)`, int64, with d ~ multiplier * 2**-shift; 0 where d < 2**-32.

    (m, e) = frexp(d), multiplier = round(m * 2**31), half away from zero, shift = 31 - e. (TensorFlow Lite,
    `kernels/internal/quantization_util.cc`, `QuantizeMultiplier`.)
    """
    significand, exponent = np.frexp(np.asarray(d, np.float64))
    multiplier = rounded_half_away(significand * 2.0**31).astype(np.int64)
    exponent = exponent.astype(np.int64) + (multiplier > MULTIPLIER_MAX)
    multiplier = np.where(multiplier > MULTIPLIER_MAX, 1 << 30, multiplier)
    tiny = exponent < -31
    return np.where(tiny, 0, multiplier), np.where(tiny, 31, 31 - exponent)


def shifted_left(accumulator: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accumulators after the left shift of a multiplier above 1, which wraps in int32, and the shift that is left."""
    return wrapped(accumulator << np.maximum(31 - shift, 0), 32), np.maximum(shift, 31)


def integer_rounding(accumulator: np.ndarray, p: Product, mode: str, product_in_float32: bool = False) -> np.ndarray:
    """fixedpoint's mode with QM(d): LiteRT 2.3.0; `gemmlowp` in reference convolutions, `srdhm_half_up` in optimized
    kernels, `single_rounding` in some of them on processors without AVX.

    The optimized fully connected kernel with one weight scale takes d from the product in float32.
    """
    multiplier, shift = quantized_multiplier(real_multiplier(p, product_in_float32))
    if mode != "single_rounding":
        accumulator, shift = shifted_left(accumulator, shift)
    return p.output.clamped(p.output.zero_point + requantize(accumulator, multiplier, shift, mode))


# --- one product in floats --------------------------------------------------------------------------------------------


def f64_half_away(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """round(f64(a) * d) + zp, half away from zero, in float64: LiteRT 2.3.0, reference fully connected kernel."""
    scaled = rounded_half_away(accumulator.astype(np.float64) * real_multiplier(p))
    return p.output.clamped(scaled + p.output.zero_point)


def output_ratio(p: Product, reciprocal: bool = False) -> np.ndarray:
    """aw/ys, or aw * (1/ys): float32."""
    return p.product_scale * (ONE / p.output.scale) if reciprocal else p.product_scale / p.output.scale


def f32_rne(accumulator: np.ndarray, p: Product, reciprocal: bool = False) -> np.ndarray:
    """RNE(f(a) * (aw/ys)) + zp: ONNX Runtime 1.32.0, QLinearConv, QLinearMatMul, QGemm; XNNPACK in LiteRT 2.3.0.

    With `reciprocal` the scale is aw * (1/ys). XNNPACK's AVX512 kernels let products below -2**31, which only a ratio
    above 1 can give, wrap when a negative zero point is added; that is not modelled.
    """
    return p.output.clamped(np.rint(float32(accumulator) * output_ratio(p, reciprocal)) + _float_zero(p.output))


def f32_rne_zp_inside(accumulator: np.ndarray, p: Product, reciprocal: bool = False) -> np.ndarray:
    """RNE(f(a) * (aw/ys) + zp): the zero point joins before the rounding, so that its parity decides ties."""
    return p.output.clamped(np.rint(float32(accumulator) * output_ratio(p, reciprocal) + _float_zero(p.output)))


def f64_rne_zp_inside(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """RNE(f64(a) * f64(aw/ys) + zp), in float64 but for the scale: onnx.reference 1.23.2, QLinearConv."""
    scaled = accumulator.astype(np.float64) * output_ratio(p).astype(np.float64)
    return p.output.clamped(np.rint(scaled + p.output.zero_point))


def _float_zero(output: Grid) -> np.float32:
    return np.float32(output.zero_point)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def fbgemm_float_bias(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """RNE((f(a) + b/aw) * (aw/ys)) + zp: PyTorch 2.13.0, fbgemm, weight scales by channel.

    With one weight scale the first sum is fma(b, 1/aw, f(a)). (FBGEMM, `src/QuantUtilsAvx2.cc`,
    `requantizeOutputProcessingAvx2`: a product with the reciprocal, which the compiler fuses with the sum.)
    """
    if len(p.weight_scale) == 1:
        biased = fused_multiply_add(p.bias, ONE / p.product_scale, float32(accumulator))
    else:
        biased = float32(accumulator) + p.bias / p.product_scale
    return p.output.clamped(np.rint(biased * output_ratio(p)) + _float_zero(p.output))


def qnnpack(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """RNE(f(a + RNE(b * (1/aw))) * (aw * (1/ys))) + zp, the bias an int32: PyTorch 2.13.0, qnnpack."""
    bias = np.rint(p.bias * (ONE / p.product_scale)).astype(np.int64)
    return f32_rne(wrapped(accumulator + bias, 32), p, reciprocal=True)


def onednn(accumulator: np.ndarray, p: Product, scales_first: bool = False) -> np.ndarray:
    """RNE(((f(a)*x)*ws + b) * (1/ys) + zp) with x = 1/(1/xs): PyTorch 2.13.0, oneDNN convolutions with AVX512.

    With `scales_first`, AVX2 and SSE4.1, f(a)*(x*ws) stands for (f(a)*x)*ws.
    """
    scale = ONE / (ONE / p.input_scale)
    if scales_first:
        real = float32(accumulator) * (scale * p.weight_scale)
    else:
        real = float32(accumulator) * scale * p.weight_scale
    return p.output.clamped(np.rint((real + p.bias) * (ONE / p.output.scale) + _float_zero(p.output)))


# --- OpenVINO ---------------------------------------------------------------------------------------------------------

#: Shifts nearer to one another than this are one.
SAME_SHIFT = np.float32(5e-5)


def _real_ends(output: Grid) -> tuple[np.float32, np.float32]:
    """What the ends of the dtype's range are worth: (lo-zp)*ys, (hi-zp)*ys."""
    low, high, zero = (np.float32(value) for value in (output.minimum, output.maximum, output.zero_point))
    return (low - zero) * output.scale, (high - zero) * output.scale


def openvino_bias(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """RNE(fma(f(a)*aw + b, isc, sh)): OpenVINO 2026.4.1, with a bias.

    il = (lo-zp)*ys, ih = (hi-zp)*ys; isc = (hi-lo) / (ih-il), sh = -il*(hi-lo) / (ih-il) + lo, which is zp or a float32
    beside it, but 0 where it comes near 0. How near is not known: that it does so by one rounding, 7.6e-6, is. Where
    zp = lo = 0 the rule is incomplete: in a few networks isc must be a last bit off, and 29 of 2.9 million near-ties of
    uint8 are not explained.
    """
    low, high = _real_ends(p.output)
    steps = np.float32(p.output.maximum - p.output.minimum)
    shift = -low * steps / (high - low) + np.float32(p.output.minimum)
    shift = np.where(np.abs(shift) < SAME_SHIFT, np.float32(0), shift)
    real = float32(accumulator) * p.product_scale + p.bias
    return p.output.clamped(np.rint(fused_multiply_add(real, steps / (high - low), shift)))


def openvino_fold(accumulator: np.ndarray, p: Product) -> np.ndarray:
    """RNE(fma(a, m, sh)) for one weight scale, RNE(f(a)*m + sh) for one a channel: OpenVINO 2026.4.1, without a bias.

    il = (lo-zp)*ys / aw, ih = (hi-zp)*ys / aw; m = (hi-lo) / (ih-il), sh = -il*(hi-lo) / (ih-il) + lo. Shifts that lie
    within 5e-5 of the first channel's become equal to it.
    """
    low, high = (each / p.product_scale for each in _real_ends(p.output))
    steps = np.float32(p.output.maximum - p.output.minimum)
    scale = steps / (high - low)
    shift = -low * steps / (high - low) + np.float32(p.output.minimum)
    if (np.abs(shift - shift[0]) < SAME_SHIFT).all():
        shift = shift[:1]
    if len(p.weight_scale) == 1:
        return p.output.clamped(np.rint(fused_multiply_add(float32(accumulator), scale, shift)))
    return p.output.clamped(np.rint(float32(accumulator) * scale + shift))
