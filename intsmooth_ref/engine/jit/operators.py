"""The operators as Numba kernels: loops over int32 accumulators and int64 products, no floating-point instruction.

Every kernel writes into `out`, whose dtype is the layer's; `x` is C-contiguous. `multiplier` and `shift` are int64 with
one entry per output channel. What an operator means is said in `reference.py`; here stands only how the loops run.
No kernel allocates memory: what it works in is passed to it as scratch.
Scalars are cast explicitly because Numba and NumPy promote mixed integers differently. Arrays are copied element by
element: Numba's slice assignment carries an error message whose formatting uses floats.
"""

from __future__ import annotations

import numpy as np

from ...compilation import kernel

Pair = tuple[int, int]
#: Zero point, minimum and maximum of the output, int64.
Clamped = tuple[int, int, int]

#: Codes of the requantization: an index into `fixedpoint.ROUNDING_MODES`, or this for the bare accumulator.
BARE_ACCUMULATOR = -1
SINGLE_ROUNDING = 0


@kernel
def requantized(accumulator: int, multiplier: int, shift: int, rounding: int) -> int:
    """Equations (2) and (3) of `fixedpoint` for one accumulator; all arguments int64 but the code."""
    one = np.int64(1)
    if rounding == SINGLE_ROUNDING:
        return (accumulator * multiplier + (one << (shift - one))) >> shift
    left = max(np.int64(31) - shift, np.int64(0))
    right = max(shift - np.int64(31), np.int64(0))
    high = ((accumulator << left) * multiplier + (one << np.int64(30))) >> np.int64(31)
    mask = (one << right) - one
    threshold = mask >> one
    if high < 0:
        threshold += one
    result = high >> right
    if (high & mask) > threshold:
        result += one
    return result


@kernel
def store(
    accumulator: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, rounding: int, output: Clamped,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Write accumulators int32 `(rows, C)` as 8 bits, or as they are."""
    zero_point, minimum, maximum = output
    if rounding == BARE_ACCUMULATOR:
        for n in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[n, c] = accumulator[n, c]
    else:
        for n in range(out.shape[0]):
            for c in range(out.shape[1]):
                q = zero_point + requantized(np.int64(accumulator[n, c]), multiplier[c], shift[c], rounding)
                out[n, c] = min(max(q, minimum), maximum)


@kernel
def input_quantization(
    x: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, rounding: int, output: Clamped, out: np.ndarray
) -> None:
    """`x` int32 and `out` are `(N, elements)`."""
    zero_point, minimum, maximum = output
    for n in range(x.shape[0]):
        for i in range(x.shape[1]):
            q = zero_point + requantized(np.int64(x[n, i]), multiplier[0], shift[0], rounding)
            out[n, i] = min(max(q, minimum), maximum)


@kernel
def requantize(
    x: np.ndarray, input_zero: int, multiplier: np.ndarray, shift: np.ndarray, rounding: int, output: Clamped,
    out: np.ndarray,
) -> None:  # fmt: skip
    """`x` and `out` are `(rows, C)`."""
    zero_point, minimum, maximum = output
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            q = requantized(np.int64(x[n, c]) - input_zero, multiplier[c], shift[c], rounding)
            out[n, c] = min(max(zero_point + q, minimum), maximum)


@kernel
def accumulate(patches: np.ndarray, weights: np.ndarray, bias: np.ndarray, accumulator: np.ndarray) -> None:
    """`accumulator[n, o] = bias[o] + sum_k patches[n, g, k] * weights[o, k]`, with g the group of output o.

    Patches `(N, G, K)` and weights `(O, K)` are int16, so that a processor multiplies and adds them in pairs.
    """
    samples, groups, taps = patches.shape
    share = weights.shape[0] // groups
    for n in range(samples):
        for g in range(groups):
            patch = patches[n, g]
            for o in range(g * share, (g + 1) * share):
                row = weights[o]
                total = bias[o]
                for k in range(taps):
                    total += np.int32(np.int32(patch[k]) * np.int32(row[k]))
                accumulator[n, o] = total


@kernel
def gather(
    x: np.ndarray, input_zero: int, n: int, top: int, left: int, kernel_shape: Pair, strides: Pair, dilation: Pair,
    patches: np.ndarray,
) -> None:  # fmt: skip
    """The windows of one row of outputs of image n, less the zero point, to int16 `(OW, G, KH * KW * C / G)`.

    What falls into the padding reads the zero point, that is, 0. The first window begins at `(top, left)`.
    """
    _, height, width, channels = x.shape
    groups = patches.shape[1]
    depth = channels // groups
    for ow in range(patches.shape[0]):
        for kh in range(kernel_shape[0]):
            ih = top + kh * dilation[0]
            for kw in range(kernel_shape[1]):
                iw = left + ow * strides[1] + kw * dilation[1]
                first = (kh * kernel_shape[1] + kw) * depth
                inside = 0 <= ih and ih < height and 0 <= iw and iw < width
                for g in range(groups):
                    if inside:
                        for i in range(depth):
                            patches[ow, g, first + i] = np.int32(x[n, ih, iw, g * depth + i]) - input_zero
                    else:
                        for i in range(depth):
                            patches[ow, g, first + i] = np.int16(0)


@kernel
def conv2d(
    x: np.ndarray, input_zero: int, weights: np.ndarray, bias: np.ndarray, multiplier: np.ndarray,
    shift: np.ndarray, rounding: int, output: Clamped, kernel_shape: Pair, strides: Pair, corner: Pair,
    dilation: Pair, patches: np.ndarray, accumulator: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """`weights` int16 `(O, K)` with `K = KH * KW * I / groups`, `corner` the padding `(top, left)`.

    Scratch, for one row of outputs: `patches` int16 `(OW, groups, K)`, `accumulator` int32 `(OW, O)`.
    """
    for n in range(out.shape[0]):
        for oh in range(out.shape[1]):
            top = oh * strides[0] - corner[0]
            gather(x, input_zero, n, top, -corner[1], kernel_shape, strides, dilation, patches)
            accumulate(patches, weights, bias, accumulator)
            store(accumulator, multiplier, shift, rounding, output, out[n, oh])


@kernel
def linear(
    x: np.ndarray, input_zero: int, weights: np.ndarray, bias: np.ndarray, multiplier: np.ndarray,
    shift: np.ndarray, rounding: int, output: Clamped, centred: np.ndarray, accumulator: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """`weights` int16 `(O, I)`. Scratch: `centred` int16 `(N, 1, I)`, `accumulator` int32 `(N, O)`."""
    for n in range(x.shape[0]):
        for i in range(x.shape[1]):
            centred[n, 0, i] = np.int32(x[n, i]) - input_zero
    accumulate(centred, weights, bias, accumulator)
    store(accumulator, multiplier, shift, rounding, output, out)


@kernel
def add(
    a: np.ndarray, b: np.ndarray, zero_points: Pair, multiplier: np.ndarray, shift: int, output: Clamped,
    out: np.ndarray,
) -> None:  # fmt: skip
    """All flat; `multiplier` int64 `(2,)`."""
    zero_point, minimum, maximum = output
    half = np.int64(1) << (shift - np.int64(1))
    for i in range(out.size):
        first = (np.int64(a[i]) - zero_points[0]) * multiplier[0]
        second = (np.int64(b[i]) - zero_points[1]) * multiplier[1]
        q = zero_point + ((first + second + half) >> shift)
        out[i] = min(max(q, minimum), maximum)


@kernel
def max_pool(x: np.ndarray, kernel_shape: Pair, strides: Pair, corner: Pair, out: np.ndarray) -> None:
    samples, height, width, channels = x.shape
    for n in range(samples):
        for oh in range(out.shape[1]):
            for ow in range(out.shape[2]):
                top, left = oh * strides[0] - corner[0], ow * strides[1] - corner[1]
                rows = range(max(top, 0), min(top + kernel_shape[0], height))
                columns = range(max(left, 0), min(left + kernel_shape[1], width))
                first = x[n, max(top, 0), max(left, 0)]
                for c in range(channels):
                    out[n, oh, ow, c] = first[c]
                for ih in rows:
                    for iw in columns:
                        for c in range(channels):
                            out[n, oh, ow, c] = max(out[n, oh, ow, c], x[n, ih, iw, c])


@kernel
def average_pool(
    x: np.ndarray, padding_value: int, kernel_shape: Pair, strides: Pair, corner: Pair, count_include_pad: bool,
    total: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Scratch: `total` int32 `(C,)`."""
    samples, height, width, channels = x.shape
    area = kernel_shape[0] * kernel_shape[1]
    for n in range(samples):
        for oh in range(out.shape[1]):
            for ow in range(out.shape[2]):
                top, left = oh * strides[0] - corner[0], ow * strides[1] - corner[1]
                rows = range(max(top, 0), min(top + kernel_shape[0], height))
                columns = range(max(left, 0), min(left + kernel_shape[1], width))
                inside = len(rows) * len(columns)
                total[:] = np.int32((area - inside) * padding_value) if count_include_pad else np.int32(0)
                count = area if count_include_pad else inside
                for ih in rows:
                    for iw in columns:
                        for c in range(channels):
                            total[c] += np.int32(x[n, ih, iw, c])
                for c in range(channels):
                    out[n, oh, ow, c] = (2 * np.int64(total[c]) + count) // (2 * count)


@kernel
def global_average_pool(
    x: np.ndarray, input_zero: int, multiplier: np.ndarray, shift: np.ndarray, rounding: int, output: Clamped,
    accumulator: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """`x` is `(N, H * W, C)`. Scratch: `accumulator` int32 `(N, C)`."""
    accumulator[:] = np.int32(0)
    for n in range(x.shape[0]):
        for i in range(x.shape[1]):
            for c in range(x.shape[2]):
                accumulator[n, c] += np.int32(x[n, i, c]) - input_zero
    store(accumulator, multiplier, shift, rounding, output, out)


@kernel
def clamp(x: np.ndarray, minimum: int, maximum: int, out: np.ndarray) -> None:
    """All flat."""
    for i in range(out.size):
        out[i] = min(max(np.int64(x[i]), minimum), maximum)


@kernel
def pad(x: np.ndarray, value: int, corner: Pair, out: np.ndarray) -> None:
    samples, height, width, channels = x.shape
    out[:] = value
    for n in range(samples):
        for h in range(height):
            for w in range(width):
                for c in range(channels):
                    out[n, corner[0] + h, corner[1] + w, c] = x[n, h, w, c]


@kernel
def lookup_table(x: np.ndarray, offset: int, table: np.ndarray, out: np.ndarray) -> None:
    """All flat; `table` holds the output's dtype."""
    for i in range(out.size):
        out[i] = table[np.int64(x[i]) - offset]


@kernel
def softmax(x: np.ndarray, table: np.ndarray, zero_point: int, maximum: int, out: np.ndarray) -> None:
    """`x` and `out` are `(rows, C)`; `table` int64."""
    for n in range(x.shape[0]):
        largest = np.int64(x[n].max())
        total = np.int64(0)
        for c in range(x.shape[1]):
            total += table[largest - np.int64(x[n, c])]
        for c in range(x.shape[1]):
            term = table[largest - np.int64(x[n, c])]
            q = zero_point + (np.int64(512) * term + total) // (np.int64(2) * total)
            out[n, c] = min(q, maximum)


@kernel
def arg_max(x: np.ndarray, out: np.ndarray) -> None:
    for n in range(x.shape[0]):
        best = 0
        for c in range(1, x.shape[1]):
            if x[n, c] > x[n, best]:
                best = c
        out[n] = best
