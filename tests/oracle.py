"""The third computation: every operator in Python integers and fractions, element by element, from its definition.

It shares no code with the engines. Tensors are object arrays of Python integers, so nothing can overflow unseen.
"""

from fractions import Fraction
from math import floor

import numpy as np

LOWEST = {"uint8": 0, "int8": -128}


def single_rounding(accumulator, multiplier, shift):
    return floor(Fraction(accumulator * multiplier, 2**shift) + Fraction(1, 2))


def truncated(numerator, denominator):
    """Division as C does it, towards zero."""
    quotient = abs(numerator) // denominator
    return quotient if numerator >= 0 else -quotient


def gemmlowp(accumulator, multiplier, shift):
    """gemmlowp's fixedpoint.h, SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, statement by statement."""
    a = accumulator * 2 ** max(31 - shift, 0)
    assert -(2**31) <= a < 2**31
    product = a * multiplier
    nudge = 2**30 if product >= 0 else 1 - 2**30
    high = truncated(product + nudge, 2**31)
    exponent = max(shift - 31, 0)
    mask = 2**exponent - 1
    remainder = high & mask
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> exponent) + (1 if remainder > threshold else 0)


def srdhm_half_up(accumulator, multiplier, shift):
    """Two roundings to nearest, ties up: to multiples of 2**31 and then, of what is left, of 2**(shift - 31)."""
    half = Fraction(1, 2)
    high = floor(Fraction(accumulator * 2 ** max(31 - shift, 0) * multiplier, 2**31) + half)
    return floor(Fraction(high, 2 ** max(shift - 31, 0)) + half)


ROUNDING = {"single_rounding": single_rounding, "gemmlowp": gemmlowp, "srdhm_half_up": srdhm_half_up}


def compute(layer, sources, *tensors):
    """The output of one layer as an object array of Python integers."""
    tensors = [np.array(tensor.tolist(), dtype=object).reshape(tensor.shape) for tensor in tensors]
    return globals()[f"_{layer.kind}"](layer, sources, *tensors)


def _filled(shape, element):
    out = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        out[index] = element(*index)
    return out


def _finished(layer, accumulator, channel):
    if layer.requantization is None:
        return accumulator
    multipliers, shifts = layer.requantization.multiplier.tolist(), layer.requantization.shift.tolist()
    pick = channel if len(multipliers) > 1 else 0
    q = layer.output.zero_point + ROUNDING[layer.requantization.rounding](accumulator, multipliers[pick], shifts[pick])
    return min(max(q, layer.output.minimum), layer.output.maximum)


def _window_extent(x, kernel, strides, padding):
    height = (x.shape[1] + padding[0] + padding[1] - kernel[0]) // strides[0] + 1
    width = (x.shape[2] + padding[2] + padding[3] - kernel[1]) // strides[1] + 1
    return len(x), height, width


def _InputQuantization(layer, sources, image):
    return _filled(image.shape, lambda *i: _finished(layer, image[i], 0))


def _Conv2D(layer, sources, x):
    outputs, kernel_height, kernel_width, depth = layer.weights.shape
    weights, bias = layer.weights.tolist(), layer.bias.tolist()
    (step_h, step_w), zero = layer.dilation, sources[0].zero_point
    extent = ((kernel_height - 1) * step_h + 1, (kernel_width - 1) * step_w + 1)

    def element(n, oh, ow, o):
        total = bias[o]
        first = o // (outputs // layer.groups) * depth
        for kh in range(kernel_height):
            for kw in range(kernel_width):
                ih = oh * layer.strides[0] + kh * step_h - layer.padding[0]
                iw = ow * layer.strides[1] + kw * step_w - layer.padding[2]
                if 0 <= ih < x.shape[1] and 0 <= iw < x.shape[2]:
                    total += sum((x[n, ih, iw, first + i] - zero) * weights[o][kh][kw][i] for i in range(depth))
        return _finished(layer, total, o)

    return _filled((*_window_extent(x, extent, layer.strides, layer.padding), outputs), element)


def _Linear(layer, sources, x):
    weights, bias, zero = layer.weights.tolist(), layer.bias.tolist(), sources[0].zero_point

    def element(n, o):
        return _finished(layer, bias[o] + sum((a - zero) * w for a, w in zip(x[n], weights[o])), o)

    return _filled((len(x), len(weights)), element)


def _Add(layer, sources, a, b):
    def element(*i):
        exact = sum(
            Fraction((x[i] - source.zero_point) * multiplier, 2**layer.shift)
            for x, source, multiplier in zip((a, b), sources, layer.multiplier.tolist())
        )
        q = layer.output.zero_point + floor(exact + Fraction(1, 2))
        return min(max(q, layer.output.minimum), layer.output.maximum)

    return _filled(a.shape, element)


def _Concat(layer, sources, *tensors):
    return np.array(np.concatenate(tensors, axis=-1), dtype=object)


def _window(layer, x, n, oh, ow, c):
    """The values of a window that lie inside the image."""
    top, left = oh * layer.strides[0] - layer.padding[0], ow * layer.strides[1] - layer.padding[2]
    return [
        x[n, ih, iw, c]
        for ih in range(top, top + layer.kernel[0])
        for iw in range(left, left + layer.kernel[1])
        if 0 <= ih < x.shape[1] and 0 <= iw < x.shape[2]
    ]


def _MaxPool(layer, sources, x):
    shape = (*_window_extent(x, layer.kernel, layer.strides, layer.padding), x.shape[3])
    return _filled(shape, lambda *i: max(_window(layer, x, *i)))


def _AveragePool(layer, sources, x):
    area = layer.kernel[0] * layer.kernel[1]

    def element(*i):
        values = _window(layer, x, *i)
        if layer.count_include_pad:
            values += [sources[0].zero_point] * (area - len(values))
        return floor(Fraction(sum(values), len(values)) + Fraction(1, 2))

    return _filled((*_window_extent(x, layer.kernel, layer.strides, layer.padding), x.shape[3]), element)


def _GlobalAveragePool(layer, sources, x):
    def element(n, c):
        return _finished(layer, sum(value - sources[0].zero_point for value in x[n, :, :, c].flat), c)

    return _filled((len(x), x.shape[3]), element)


def _Clamp(layer, sources, x):
    return _filled(x.shape, lambda *i: min(max(x[i], layer.minimum), layer.maximum))


def _Pad(layer, sources, x):
    top, bottom, left, right = layer.padding

    def element(n, h, w, c):
        inside = top <= h < top + x.shape[1] and left <= w < left + x.shape[2]
        return x[n, h - top, w - left, c] if inside else sources[0].zero_point

    return _filled((len(x), x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3]), element)


def _Flatten(layer, sources, x):
    return _filled((len(x), x[0].size if len(x) else 0), lambda n, i: x[n].flat[i])


def _Reshape(layer, sources, x):
    out = np.empty((len(x), *layer.shape), dtype=object)
    for n in range(len(x)):
        out[n].flat[:] = list(x[n].flat)
    return out


def _Requantize(layer, sources, x):
    return _filled(x.shape, lambda *i: _finished(layer, x[i] - sources[0].zero_point, i[-1]))


def _LookupTable(layer, sources, x):
    table, offset = layer.table.tolist(), LOWEST[sources[0].dtype]
    return _filled(x.shape, lambda *i: table[x[i] - offset])


def _Softmax(layer, sources, x):
    table = layer.table.tolist()

    def element(*i):
        row = x[i[:-1]]
        terms = [table[max(row) - value] for value in row]
        share = Fraction(256 * terms[i[-1]], sum(terms))
        return min(layer.output.zero_point + floor(share + Fraction(1, 2)), layer.output.maximum)

    return _filled(x.shape, element)


def _ArgMax(layer, sources, x):
    return _filled((len(x),), lambda n: min(i for i, value in enumerate(x[n]) if value == max(x[n])))
