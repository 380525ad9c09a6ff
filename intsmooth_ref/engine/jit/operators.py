"""The operators of the compiled engine: loops over int32 accumulators and int64 products, no floating point.

What an operator means is said in `reference.py`; here stands only how the loops run. Every tensor of 8 bits is uint8:
int8 is stored plus 128, and so are its zero point and its limits (`lowering`). Operators are called as `memory`
describes; each says which parameters it reads, in this order, "tensor" standing for the seven integers of `Tensor`,
"rounding" for the seven of `Rounding`. They allocate nothing. Arrays are copied element by element: Numba's slice
assignment carries an error message whose formatting uses floats.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...compilation import Operator, kernel
from .memory import arrays
from .simd import convolution_tile

#: Of a tensor in memory: place of its first element, distance of samples, rows and pixels, height, width, channels.
Tensor = tuple[int, int, int, int, int, int, int]
#: Place of the multipliers and of the shifts in `code`, 1 if there is one a channel or else 0, code of the mode (an
#: index into `fixedpoint.ROUNDING_MODES`), zero point, minimum and maximum.
Rounding = tuple[int, int, int, int, int, int, int]

TENSOR_FIELDS = ROUNDING_FIELDS = 7
SINGLE_ROUNDING, GEMMLOWP = 0, 1
#: How many pixels the portable convolution gathers before it multiplies.
GATHERED_PIXELS = 16


@kernel
def seven(code: np.ndarray, at: int) -> Tensor:
    """Seven parameters: a tensor, or a rounding."""
    return code[at], code[at + 1], code[at + 2], code[at + 3], code[at + 4], code[at + 5], code[at + 6]


@kernel
def requantized(accumulator: int, multiplier: int, shift: int, rounding: int) -> int:
    """Equations (2), (3) and (4) of `fixedpoint` for one accumulator; all arguments int64."""
    one = np.int64(1)
    if rounding == SINGLE_ROUNDING:
        return (accumulator * multiplier + (one << (shift - one))) >> shift
    left = max(np.int64(31) - shift, np.int64(0))
    right = max(shift - np.int64(31), np.int64(0))
    high = ((accumulator << left) * multiplier + (one << np.int64(30))) >> np.int64(31)
    if rounding != GEMMLOWP:
        return (high + ((one << right) >> one)) >> right
    mask = (one << right) - one
    threshold = mask >> one
    if high < 0:
        threshold += one
    result = high >> right
    if (high & mask) > threshold:
        result += one
    return result


@kernel
def rounded(accumulator: int, code: np.ndarray, rounding: Rounding, channel: int) -> int:
    """The accumulator of a channel, int64, as a byte."""
    multipliers, shifts, step, mode, zero_point, low, high = rounding
    at = channel * step
    q = zero_point + requantized(accumulator, code[multipliers + at], code[shifts + at], mode)
    return min(max(q, low), high)


@kernel
def round_channels(values: np.ndarray, code: np.ndarray, rounding: Rounding, out: np.ndarray) -> None:
    """The accumulators of a pixel, int32 `(C,)`, to bytes."""
    multipliers, shifts, step, mode, zero_point, low, high = rounding
    if step == 0:
        round_alike(values, code, rounding, out)
    elif mode == SINGLE_ROUNDING:
        multiplier, shift = code[multipliers : multipliers + values.shape[0]], code[shifts : shifts + values.shape[0]]
        for c in range(values.shape[0]):
            q = (np.int64(values[c]) * multiplier[c] + (np.int64(1) << (shift[c] - np.int64(1)))) >> shift[c]
            out[c] = min(max(zero_point + q, low), high)
    else:
        for c in range(values.shape[0]):
            out[c] = rounded(np.int64(values[c]), code, rounding, c)


@kernel
def round_alike(values: np.ndarray, code: np.ndarray, rounding: Rounding, out: np.ndarray) -> None:
    """Int32 accumulators, all of one multiplier and shift, to bytes."""
    multipliers, shifts, _, mode, zero_point, low, high = rounding
    multiplier, shift = np.int64(np.int32(code[multipliers])), code[shifts]
    if mode == SINGLE_ROUNDING:
        half = np.int64(1) << (shift - np.int64(1))
        for i in range(values.shape[0]):
            q = (np.int64(values[i]) * multiplier + half) >> shift
            out[i] = min(max(zero_point + q, low), high)
    else:
        for i in range(values.shape[0]):
            out[i] = rounded(np.int64(values[i]), code, rounding, 0)


@Operator
def quantize_input(base: Any, start: int, samples: int) -> None:
    """The noisy image, dense int32 in `accumulators`, to 8 bits.

    Parameters: place of the image, out tensor, rounding.
    """
    code, _, _, activations, accumulators = arrays(base)
    image = code[start]
    out, sample, row, pixel, height, width, channels = seven(code, start + 1)
    rounding = seven(code, start + 8)
    size = height * width * channels
    for n in range(samples):
        noisy = accumulators[image + n * size : image + (n + 1) * size]
        round_alike(noisy, code, rounding, noisy)
        i = 0
        for h in range(height):
            for w in range(width):
                at = out + n * sample + h * row + w * pixel
                if channels == 3:  # most images; a loop would cost more than its body
                    activations[at] = noisy[i]
                    activations[at + 1] = noisy[i + 1]
                    activations[at + 2] = noisy[i + 2]
                else:
                    for c in range(channels):
                        activations[at + c] = noisy[i + c]
                i += channels


@Operator
def accumulate(base: Any, start: int, samples: int) -> None:
    """The accumulators of a convolution with any grouping: the portable form of `convolution`.

    Parameters: place of the input; in `tables`, of the offsets of the input pixels and of the runs of bytes that a
    window consists of; number of runs, bytes of a run; pixels of a sample; place of the weights `(O, runs, bytes)` in
    `octets` and of the biases in `tables`; groups, input channels of a group, output channels of a group; place of the
    accumulators and their distance from pixel to pixel; place of scratch in `activations`, bytes
    `(GATHERED_PIXELS, groups, runs * bytes)`.
    """
    code, tables, octets, activations, accumulators = arrays(base)
    p = code[start : start + 14]
    x, places, runs, run_count, run_bytes, pixels, weights, biases = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
    groups, depth, share, out, out_pixel, scratch = p[8], p[9], p[10], p[11], p[12], p[13]
    taps = run_count * run_bytes
    for first in range(0, samples * pixels, GATHERED_PIXELS):
        count = min(GATHERED_PIXELS, samples * pixels - first)
        for index in range(count):
            for g in range(groups):
                window = scratch + (index * groups + g) * taps
                begin = x + tables[places + first + index] + g * depth
                for r in range(run_count):
                    source = activations[begin + tables[runs + r] : begin + tables[runs + r] + run_bytes]
                    target = activations[window + r * run_bytes : window + (r + 1) * run_bytes]
                    for i in range(run_bytes):
                        target[i] = source[i]
        for o in range(groups * share):
            row = octets[weights + o * taps : weights + (o + 1) * taps]
            for index in range(count):
                window = scratch + (index * groups + o // share) * taps
                patch = activations[window : window + taps]
                total = np.int64(tables[biases + o])
                for k in range(taps):
                    total += np.int64(patch[k]) * np.int64(row[k])
                accumulators[out + (first + index) * out_pixel + o] = np.int32(total)  # modulo 2**32


@Operator
def accumulate_depthwise(base: Any, start: int, samples: int) -> None:
    """The accumulators of a depthwise convolution, likewise.

    Parameters: place of the input; in `tables`, of the offsets of the input pixels and of the taps; number of taps,
    channels; pixels of a sample; place of the weights `(taps, channels)` in `octets` and of the biases in `tables`;
    place of the accumulators and their distance from pixel to pixel.
    """
    code, tables, octets, activations, accumulators = arrays(base)
    p = code[start : start + 10]
    x, places, taps, tap_count, channels, pixels = p[0], p[1], p[2], p[3], p[4], p[5]
    weights, biases, out, out_pixel = p[6], p[7], p[8], p[9]
    for index in range(samples * pixels):
        total = accumulators[out + index * out_pixel : out + index * out_pixel + channels]
        for c in range(channels):
            total[c] = tables[biases + c]
        for tap in range(tap_count):
            begin = x + tables[places + index] + tables[taps + tap]
            source = activations[begin : begin + channels]
            weight = octets[weights + tap * channels : weights + (tap + 1) * channels]
            for c in range(channels):
                total[c] = np.int32(np.int64(total[c]) + np.int64(source[c]) * np.int64(weight[c]))


@Operator
def store(base: Any, start: int, samples: int) -> None:
    """Accumulators to bytes.

    Parameters: place of the accumulators and their distance from pixel to pixel; place of the output; in `tables`, of
    the offsets of its pixels; pixels of a sample, channels; rounding.
    """
    code, tables, _, activations, accumulators = arrays(base)
    p = code[start : start + 6]
    total, total_pixel, out, places, pixels, channels = p[0], p[1], p[2], p[3], p[4], p[5]
    rounding = seven(code, start + 6)
    for index in range(samples * pixels):
        source = accumulators[total + index * total_pixel : total + index * total_pixel + channels]
        begin = out + tables[places + index]
        round_channels(source, code, rounding, activations[begin : begin + channels])


@Operator
def add(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors a, b and out; multipliers of a and of b, constant, shift, zero point, minimum, maximum.

    zero_point + ((a * multiplier_a + b * multiplier_b + constant) >> shift), clamped; the constant holds the operands'
    zero points and the rounding.
    """
    code, _, _, activations, _ = arrays(base)
    a, a_sample, a_row, a_pixel, height, width, channels = seven(code, start)
    b, b_sample, b_row, b_pixel, _, _, _ = seven(code, start + 7)
    out, sample, row, pixel, _, _, _ = seven(code, start + 14)
    multiplier_a, multiplier_b, constant, shift, zero_point, low, high = seven(code, start + 21)
    size = width * pixel  # the distance of pixels is the same in all three
    for n in range(samples):
        for h in range(height):
            first = activations[a + n * a_sample + h * a_row : a + n * a_sample + h * a_row + size]
            second = activations[b + n * b_sample + h * b_row : b + n * b_sample + h * b_row + size]
            result = activations[out + n * sample + h * row : out + n * sample + h * row + size]
            for i in range(size):
                q = np.int64(first[i]) * multiplier_a + np.int64(second[i]) * multiplier_b + constant
                result[i] = min(max(zero_point + (q >> shift), low), high)


@Operator
def max_pool(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; kernel, strides, top, left."""
    code, _, _, activations, _ = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, out_height, out_width, _ = seven(code, start + 7)
    kernel_height, kernel_width, step_h, step_w, top, left, _ = seven(code, start + 14)
    for n in range(samples):
        for oh in range(out_height):
            for ow in range(out_width):
                ih, iw = oh * step_h - top, ow * step_w - left
                at = out + n * sample + oh * row + ow * pixel
                result = activations[at : at + channels]
                for c in range(channels):
                    result[c] = 0
                for h in range(max(ih, 0), min(ih + kernel_height, height)):
                    for w in range(max(iw, 0), min(iw + kernel_width, width)):
                        at = x + n * x_sample + h * x_row + w * x_pixel
                        source = activations[at : at + channels]
                        for c in range(channels):
                            result[c] = max(result[c], source[c])


@Operator
def average_pool(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; kernel, strides, top, left, zero point or -1 where padding is not counted; place
    of scratch in `accumulators`, one a channel."""
    code, _, _, activations, accumulators = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, out_height, out_width, _ = seven(code, start + 7)
    kernel_height, kernel_width, step_h, step_w, top, left, padding_value = seven(code, start + 14)
    total = accumulators[code[start + 21] : code[start + 21] + channels]
    area = kernel_height * kernel_width
    for n in range(samples):
        for oh in range(out_height):
            for ow in range(out_width):
                ih, iw = oh * step_h - top, ow * step_w - left
                rows = range(max(ih, 0), min(ih + kernel_height, height))
                columns = range(max(iw, 0), min(iw + kernel_width, width))
                count = len(rows) * len(columns)
                padding = np.int64(0)
                if padding_value >= 0:
                    padding, count = (area - count) * padding_value, area
                for c in range(channels):
                    total[c] = padding
                for h in rows:
                    for w in columns:
                        at = x + n * x_sample + h * x_row + w * x_pixel
                        source = activations[at : at + channels]
                        for c in range(channels):
                            total[c] += np.int32(source[c])
                at = out + n * sample + oh * row + ow * pixel
                for c in range(channels):
                    activations[at + c] = (2 * np.int64(total[c]) + count) // (2 * count)


@Operator
def global_average_pool(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; rounding; zero point of x times its pixels; place of scratch in `accumulators`,
    one a channel."""
    code, _, _, activations, accumulators = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, _, _, _, _, _ = seven(code, start + 7)
    rounding = seven(code, start + 14)
    zero, scratch = code[start + 21], code[start + 22]
    total = accumulators[scratch : scratch + channels]
    for n in range(samples):
        for c in range(channels):
            total[c] = 0
        for h in range(height):
            for w in range(width):
                at = x + n * x_sample + h * x_row + w * x_pixel
                source = activations[at : at + channels]
                for c in range(channels):
                    total[c] += np.int32(source[c])
        for c in range(channels):
            activations[out + n * sample + c] = rounded(np.int64(total[c]) - zero, code, rounding, c)


@Operator
def clamp(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; minimum, maximum."""
    code, _, _, activations, _ = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, _, _, _ = seven(code, start + 7)
    low, high = np.uint8(code[start + 14]), np.uint8(code[start + 15])
    size = width * pixel  # the distance of pixels is the same in both
    for n in range(samples):
        for h in range(height):
            source = activations[x + n * x_sample + h * x_row : x + n * x_sample + h * x_row + size]
            result = activations[out + n * sample + h * row : out + n * sample + h * row + size]
            for i in range(size):
                result[i] = min(max(source[i], low), high)


@Operator
def requantize(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; rounding; zero point of x."""
    code, _, _, activations, _ = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, _, _, _ = seven(code, start + 7)
    rounding = seven(code, start + 14)
    zero = code[start + 21]
    for n in range(samples):
        for h in range(height):
            for w in range(width):
                source, target = x + n * x_sample + h * x_row + w * x_pixel, out + n * sample + h * row + w * pixel
                for c in range(channels):
                    value = np.int64(activations[source + c]) - zero
                    activations[target + c] = rounded(value, code, rounding, c)


@Operator
def lookup_table(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; place of the 256 bytes in `code`."""
    code, _, _, activations, _ = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, _, _, _ = seven(code, start + 7)
    table = code[start + 14]
    for n in range(samples):
        for h in range(height):
            for w in range(width):
                source, target = x + n * x_sample + h * x_row + w * x_pixel, out + n * sample + h * row + w * pixel
                for c in range(channels):
                    activations[target + c] = code[table + np.int64(activations[source + c])]


@Operator
def softmax(base: Any, start: int, samples: int) -> None:
    """Parameters: tensors x and out; place of the 256 entries in `code`."""
    code, _, _, activations, _ = arrays(base)
    x, x_sample, x_row, x_pixel, height, width, channels = seven(code, start)
    out, sample, row, pixel, _, _, _ = seven(code, start + 7)
    table = code[start + 14]
    for n in range(samples):
        for h in range(height):
            for w in range(width):
                source, target = x + n * x_sample + h * x_row + w * x_pixel, out + n * sample + h * row + w * pixel
                largest = np.int64(0)
                for c in range(channels):
                    largest = max(largest, np.int64(activations[source + c]))
                total = np.int64(0)
                for c in range(channels):
                    total += code[table + largest - np.int64(activations[source + c])]
                for c in range(channels):
                    term = code[table + largest - np.int64(activations[source + c])]
                    activations[target + c] = min((512 * term + total) // (2 * total), np.int64(255))


@kernel
def moved(code: np.ndarray, tables: np.ndarray, start: int, samples: int, memory: np.ndarray) -> None:
    """`move` in one memory."""
    source, source_sample, target, target_sample, from_, to, count = seven(code, start)
    for n in range(samples):
        for i in range(count):
            value = memory[source + n * source_sample + tables[from_ + i]]
            memory[target + n * target_sample + tables[to + i]] = value


@Operator
def move(base: Any, start: int, samples: int) -> None:
    """Bytes from one tensor to another, for what is pure movement of data.

    Parameters: place and distance of samples of the source, of the target; in `tables`, places of the offsets of the
    elements from the one and to the other; number of elements.
    """
    code, tables, _, activations, _ = arrays(base)
    moved(code, tables, start, samples, activations)


@Operator
def move_accumulators(base: Any, start: int, samples: int) -> None:
    """As `move`, for tensors of 32 bits."""
    code, tables, _, _, accumulators = arrays(base)
    moved(code, tables, start, samples, accumulators)


@kernel
def find_largest(
    code: np.ndarray, start: int, samples: int, memory: np.ndarray, accumulators: np.ndarray
) -> None:
    """`arg_max` of scores in one memory."""
    x, x_sample, _, _, _, _, channels = seven(code, start)
    for n in range(samples):
        scores = memory[x + n * x_sample : x + n * x_sample + channels]
        best = 0
        for c in range(1, channels):
            if scores[c] > scores[best]:
                best = c
        accumulators[code[start + 7] + n] = best


@Operator
def arg_max(base: Any, start: int, samples: int) -> None:
    """The lowest index of a largest value. Parameters: tensor x; place of the classes in `accumulators`."""
    code, _, _, activations, accumulators = arrays(base)
    find_largest(code, start, samples, activations, accumulators)


@Operator
def arg_max_accumulators(base: Any, start: int, samples: int) -> None:
    """As `arg_max`, for scores of 32 bits."""
    code, _, _, _, accumulators = arrays(base)
    find_largest(code, start, samples, accumulators, accumulators)


@lru_cache(maxsize=None)
def convolution(isa: str, kind: str, pixels: int, vectors: int) -> Operator:
    """The convolution of a kind in register tiles of `pixels` by `vectors` of an instruction set (`simd`).

    Parameters: those of `lowering.VectorConvolution`, in its order.
    """
    def operator(base: Any, start: int, samples: int) -> None:
        code, tables, octets, activations, accumulators = arrays(base)
        words, bytes_ = tables.ctypes.data, activations.ctypes.data
        p = code[start : start + 22]
        x, places, runs, run_count, steps, pixel_count = bytes_ + p[0], p[1], p[2], p[3], p[4], p[5]
        weights, weight_bytes, constants, constant_words = octets.ctypes.data + p[6], p[7], p[8], p[9]
        blocks, first_channels, block_channels, channels = p[10], p[11], p[12], p[13]
        mode, out, out_places, low, high = p[14], bytes_ + p[15], p[16], p[17], p[18]
        other, other_places, addition = bytes_ + p[19], p[20], p[21]
        size = np.int64(1)
        if mode == 0:
            size, out = np.int64(4), accumulators.ctypes.data + 4 * p[15]
        for block in range(blocks):
            channel = block * block_channels
            for first in range(0, samples * pixel_count, pixels):
                convolution_tile(
                    isa, kind, pixels, vectors,
                    (
                        x + tables[first_channels + block], words + 4 * (places + first), words + 4 * runs, run_count,
                        steps, weights + block * weight_bytes, words + 4 * (constants + block * constant_words), mode,
                        channels - channel, out + size * channel, words + 4 * (out_places + first), low, high,
                        other + channel, words + 4 * (other_places + first), words + 4 * addition,
                    ),
                )  # fmt: skip

    operator.__name__ = f"convolution_{kind}_{isa}_{pixels}x{vectors}"
    return Operator(operator)
