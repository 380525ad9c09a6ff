"""The rules of other runtimes once more, in Python integers and fractions, every rounding to a float spelled out.

It shares no code with `intsmooth_ref.backends`. Each rule is called with one accumulator (or pair, or window) and the
parameters as plain numbers: floats are exact rationals here, and `f32` and `f64` round them to 24 or 53 bits.
"""

from fractions import Fraction
from math import floor

from oracle import ROUNDING, truncated

HALF = Fraction(1, 2)


def to_bits(value, bits):
    """The nearest number of so many significant bits, ties to even."""
    value = Fraction(value)
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - bits + 1)
    return round(value / unit) * unit


def f32(value):
    return to_bits(value, 24)


def f64(value):
    return to_bits(value, 53)


def half_away(value):
    return floor(abs(value) + HALF) * (1 if value >= 0 else -1)


def int32(value):
    return (value + 2**31) % 2**32 - 2**31


def int16(value):
    return (value + 2**15) % 2**16 - 2**15


def clamp(value, grid):
    return min(max(int(value), grid.minimum), grid.maximum)


def scale(grid):
    return Fraction(float(grid.scale))


class Channel:
    """The parameters of one channel of a product, as fractions."""

    def __init__(self, product, channel):
        self.xs = Fraction(float(product.input_scale))
        self.ws = Fraction(float(product.weight_scale[channel % len(product.weight_scale)]))
        self.bias = Fraction(float(product.bias[channel % len(product.bias)]))
        self.per_channel = len(product.weight_scale) > 1
        self.count = len(product.weight_scale)
        self.product = product
        self.grid, self.ys, self.zp = product.output, scale(product.output), product.output.zero_point
        self.aw = f32(self.xs * self.ws)


def quantize_multiplier(d):
    """QM: d = m * 2**e with 1/2 <= m < 1; round(m * 2**31) half away, and e."""
    exponent = 0
    while d >= 1:
        d, exponent = d / 2, exponent + 1
    while d < HALF:
        d, exponent = d * 2, exponent - 1
    q = half_away(d * 2**31)
    return (2**30, exponent + 1) if q == 2**31 else (q, exponent)


def multiplied(value, d, mode):
    """MultiplyByQuantizedMultiplier: a left shift wraps in int32; `mode` rounds."""
    q, exponent = quantize_multiplier(d)
    if mode == "single_rounding":
        return ROUNDING[mode](value, q, 31 - exponent)
    value = int32(value * 2 ** max(exponent, 0))
    return ROUNDING[mode](value, q, 31 - min(exponent, 0))


def integer(mode, product_in_float32=False):
    def rule(a, c):
        product = c.aw if product_in_float32 else f64(c.xs * c.ws)
        return clamp(multiplied(a, f64(product / c.ys), mode) + c.zp, c.grid)

    return rule


def f64_half_away(a, c):
    return clamp(half_away(f64(a * f64(f64(c.xs * c.ws) / c.ys))) + c.zp, c.grid)


def f32_rne(a, c):
    return clamp(round(f32(f32(a) * f32(c.aw / c.ys))) + c.zp, c.grid)


def f32_rne_reciprocal(a, c):
    return clamp(round(f32(f32(a) * f32(c.aw * f32(1 / c.ys)))) + c.zp, c.grid)


def f32_rne_zp_inside(a, c):
    return clamp(round(f32(f32(f32(a) * f32(c.aw / c.ys)) + c.zp)), c.grid)


def f32_rne_zp_inside_reciprocal(a, c):
    return clamp(round(f32(f32(f32(a) * f32(c.aw * f32(1 / c.ys))) + c.zp)), c.grid)


def f64_rne_zp_inside(a, c):
    return clamp(round(f64(f64(a * f32(c.aw / c.ys)) + c.zp)), c.grid)


def fbgemm(a, c):
    biased = f32(f32(a) + f32(c.bias / c.aw)) if c.per_channel else f32(f32(a) + c.bias * f32(1 / c.aw))
    return clamp(round(f32(biased * f32(c.aw / c.ys))) + c.zp, c.grid)


def qnnpack(a, c):
    biased = int32(a + round(f32(c.bias * f32(1 / c.aw))))
    return clamp(round(f32(f32(biased) * f32(c.aw * f32(1 / c.ys)))) + c.zp, c.grid)


def onednn(a, c):
    real = f32(f32(f32(a) * f32(1 / f32(1 / c.xs))) * c.ws)
    return clamp(round(f32(f32(f32(real + c.bias) * f32(1 / c.ys)) + c.zp)), c.grid)


def onednn_scales_first(a, c):
    real = f32(f32(a) * f32(f32(1 / f32(1 / c.xs)) * c.ws))
    return clamp(round(f32(f32(f32(real + c.bias) * f32(1 / c.ys)) + c.zp)), c.grid)


def real_ends(c):
    return f32((c.grid.minimum - c.zp) * c.ys), f32((c.grid.maximum - c.zp) * c.ys)


def scale_and_shift(low, high, c):
    steps = c.grid.maximum - c.grid.minimum
    width = f32(high - low)
    return f32(steps / width), f32(f32(f32(-low * steps) / width) + c.grid.minimum)


def openvino_bias(a, c):
    multiplier, shift = scale_and_shift(*real_ends(c), c)
    shift = 0 if abs(shift) < Fraction(5, 10**5) else shift
    real = f32(f32(f32(a) * c.aw) + c.bias)
    return clamp(round(f32(real * multiplier + shift)), c.grid)


def openvino_fold(a, c):
    def folded(channel):
        return scale_and_shift(*(f32(end / channel.aw) for end in real_ends(channel)), channel)

    multiplier, shift = folded(c)
    if not c.per_channel:
        return clamp(round(f32(f32(a) * multiplier + shift)), c.grid)
    shifts = [folded(Channel(c.product, channel))[1] for channel in range(c.count)]
    if all(abs(each - shifts[0]) < Fraction(5, 10**5) for each in shifts):
        shift = shifts[0]
    return clamp(round(f32(f32(f32(a) * multiplier) + shift)), c.grid)


# --- addition ---------------------------------------------------------------------------------------------------------


def tflite(wrap16=False):
    def rule(a, b, p):
        sa, sb, sc = scale(p.first), scale(p.second), scale(p.output)
        twice_max = 2 * max(sa, sb)
        total = sum(
            multiplied((x - grid.zero_point) * 2**20, f64(scale(grid) / twice_max), "gemmlowp")
            for x, grid in ((a, p.first), (b, p.second))
        )
        raw = multiplied(total, f64(twice_max / (2**20 * sc)), "gemmlowp")
        raw = int16(int16(raw) + p.output.zero_point) if wrap16 else raw + p.output.zero_point
        return clamp(raw, p.output)

    return rule


def fixed_point(bits, rounded):
    def rule(a, b, p):
        ratios = [f32(scale(grid) / scale(p.output)) for grid in (p.first, p.second)]
        shift = 0
        while max(ratios) * Fraction(2) ** shift < 2 ** (bits - 1):
            shift += 1
        while max(ratios) * Fraction(2) ** shift >= 2**bits:
            shift -= 1
        first, second = (round(ratio * Fraction(2) ** shift) for ratio in ratios)
        total = (a - p.first.zero_point) * first + (b - p.second.zero_point) * second
        return clamp(rounded(Fraction(total) / Fraction(2) ** shift) + p.output.zero_point, p.output)

    return rule


def half_up(value):
    return floor(value + HALF)


def ort_fma(a, b, p):
    ra, rb = (f32(scale(grid) / scale(p.output)) for grid in (p.first, p.second))
    fixed = f32(p.output.zero_point - f32(ra * p.first.zero_point + f32(rb * p.second.zero_point)))
    return clamp(round(f32(a * ra + f32(b * rb + fixed))), p.output)


def ort_sse(a, b, p):
    ra, rb = (f32(scale(grid) / scale(p.output)) for grid in (p.first, p.second))
    fixed = f32(p.output.zero_point - f32(f32(ra * p.first.zero_point) + f32(rb * p.second.zero_point)))
    return clamp(round(f32(f32(fixed + f32(a * ra)) + f32(b * rb))), p.output)


def aten_in_vectors(a, b, p):
    c = sum(f32(scale(g) * x - f32(scale(g) * g.zero_point)) for x, g in ((a, p.first), (b, p.second)))
    return clamp(round(f32(f32(c) * f32(1 / scale(p.output)))) + p.output.zero_point, p.output)


def aten_at_the_end(a, b, p):
    c = sum(f32(scale(g) * (x - g.zero_point)) for x, g in ((a, p.first), (b, p.second)))
    return clamp(round(f32(f32(f32(c) * f32(1 / scale(p.output))) + p.output.zero_point)), p.output)


def openvino_add(a, b, p):
    c = sum(f32(scale(g) * (x - g.zero_point)) for x, g in ((a, p.first), (b, p.second)))
    return clamp(round(f32(f32(f32(c) / scale(p.output)) + p.output.zero_point)), p.output)


# --- averages of the values of a window -------------------------------------------------------------------------------


def cdiv_half_away(values, p):
    n, total = len(values), sum(values)
    return clamp(truncated(total + n // 2 if total > 0 else total - n // 2, n), p.output)


def mean_or_sum(values, p):
    n = len(values)
    q, exponent = quantize_multiplier(f64(scale(p.input) / scale(p.output)))
    k = min(n.bit_length() - 1, 32, 31 + exponent)
    total = int32(sum(x - p.input.zero_point for x in values) * 2 ** max(exponent - k, 0))
    scaled = ROUNDING["gemmlowp"](total, q * 2**k // n, 31 - min(exponent - k, 0))
    return clamp(scaled + p.output.zero_point, p.output)


def mean_opt(mode):
    def rule(values, p):
        ratio = f32(scale(p.input) / f32(len(values) * scale(p.output)))
        shifted = f32(f32(p.input.zero_point * scale(p.input)) / scale(p.output))
        moved = f32(shifted + HALF) if shifted > 0 else f32(shifted - HALF)
        bias = p.output.zero_point - truncated(moved.numerator, moved.denominator)
        return clamp(multiplied(sum(values), ratio, mode) + bias, p.output)

    return rule


def ort_gap(values, p):
    total = sum(x - p.input.zero_point for x in values)
    ratio = f32(scale(p.input) / f32(scale(p.output) * len(values)))
    return clamp(round(f32(f32(total) * ratio)) + p.output.zero_point, p.output)


def ort_avg(values, p):
    total = Fraction(0)
    for x in values:
        total = f32(total + f32(scale(p.input) * (x - p.input.zero_point)))
    average = f32(f32(total / len(values)) / scale(p.output))
    return clamp(round(f32(average + p.output.zero_point)), p.output)


def xnn_mean(values, p):
    n = len(values)
    ratio = f32(f32(scale(p.input) / scale(p.output)) * f32(Fraction(1, n)))
    bias = f32(p.output.zero_point - f32(f32(n * p.input.zero_point) * ratio))
    return clamp(round(f32(f32(f32(sum(values)) * ratio) + bias)), p.output)


def aten_pool(inside):
    def rule(values, p):
        ratio = f32(f32(scale(p.input) / scale(p.output)) / len(values))
        scaled = f32(sum(x - p.input.zero_point for x in values) * ratio)
        zero = p.output.zero_point
        return clamp(round(f32(scaled + zero)) if inside else round(scaled) + zero, p.output)

    return rule
