"""Hypothesis strategies: random models of every layer kind, with extreme shapes and values, and images for them."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from intsmooth_ref.fixedpoint import (
    INT32_MAX,
    INT32_MIN,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ROUNDING_MODES,
    accumulator_range,
)
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    INTEGER_RANGES,
    Add,
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    InputQuantization,
    Linear,
    LookupTable,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Reshape,
    Softmax,
)
from intsmooth_ref.model.proof import NOISY_PIXEL_LIMIT, prove


def edges_or_between(low, high):
    """Mostly the ends of a range, where things break."""
    return st.one_of(st.sampled_from([low, high]), st.integers(low, high))


@st.composite
def quantizations(draw, dtype=None):
    dtype = dtype or draw(st.sampled_from(["uint8", "int8"]))
    low, high = INTEGER_RANGES[dtype]
    minimum = draw(st.one_of(st.just(low), st.integers(low, high)))
    maximum = draw(st.one_of(st.just(high), st.integers(minimum, high)))
    scale = Fraction(draw(st.integers(1, 1000)), draw(st.integers(1, 1000)))
    return Quantization(dtype, scale, draw(edges_or_between(low, high)), minimum, maximum)


@st.composite
def requantizations(draw, channels, reach):
    """Multipliers and shifts that bring accumulators of up to `reach` near 8 bits, in a mode that can take them."""
    rounding = draw(st.sampled_from(ROUNDING_MODES))
    usual = max(30 + max(reach, 1).bit_length() - 9, 1)
    pairs = []
    for _ in range(draw(st.sampled_from([1, channels]))):
        shift = min(max(usual + draw(st.integers(-3, 3)), 1), 62) if draw(st.booleans()) else draw(st.integers(1, 62))
        while accumulator_range(shift, rounding)[1] < reach:
            shift += 1
        pairs.append((draw(edges_or_between(MULTIPLIER_MIN, MULTIPLIER_MAX)), shift))
    return Requantization.of(*pairs, rounding=rounding)


def _weights(draw, shape):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    extreme = draw(st.sampled_from([None, (-128, 127), (0, 0), (127, 127), (-128, -128)]))
    if extreme:
        return generator.choice(np.array(extreme, np.int8), shape).astype(np.int8)
    return generator.integers(-128, 128, shape).astype(np.int8)


def _bias(draw, weights, source):
    """Biases of usual size, or those that bring the accumulator to the very end of int32."""
    low = min(source.minimum - source.zero_point, 0)
    high = max(source.maximum - source.zero_point, 0)
    bias = []
    for row in weights.reshape(len(weights), -1).astype(object):
        top = sum(max(w * low, w * high) for w in row)
        bottom = sum(min(w * low, w * high) for w in row)
        bias.append(draw(st.sampled_from([0, draw(st.integers(-3000, 3000)), INT32_MAX - top, INT32_MIN - bottom])))
    return np.array(bias, np.int32)


def _reach(weights, bias, source):
    limit = max(abs(source.minimum - source.zero_point), abs(source.maximum - source.zero_point))
    rows = np.abs(weights.reshape(len(weights), -1).astype(np.int64)).sum(axis=1) * limit
    return min(int((rows + np.abs(bias.astype(np.int64))).max()), 2**31 - 1)


class Builder:
    """Grows a model layer by layer; `head` is the proof of the tensor that the next layer reads."""

    def __init__(self, draw):
        self.draw = draw
        self.layers = []
        shape = tuple(draw(st.integers(1, 6)) for _ in range(2)) + (draw(st.integers(1, 4)),)
        multiplier, shift = draw(edges_or_between(MULTIPLIER_MIN, MULTIPLIER_MAX)), draw(st.integers(29, 40))
        able = [mode for mode in ROUNDING_MODES if accumulator_range(shift, mode)[1] >= NOISY_PIXEL_LIMIT]
        rounding = draw(st.sampled_from(able))
        requantization = Requantization.of((multiplier, shift), rounding=rounding)
        self.add(InputQuantization, inputs=(), shape=shape, requantization=requantization, output=draw(quantizations()))

    def add(self, kind, inputs=None, **fields):
        """Append a layer that reads the head, or the named layers; returns its name."""
        name = f"layer{len(self.layers)}"
        layer = kind(name=name, inputs=(self.name,) if inputs is None else inputs, **fields)
        proofs = prove([*self.layers, layer], complete=False)
        self.layers.append(layer)
        self.name, self.head = name, proofs[name]
        return name

    def _products(self, weights, bare=False):
        """Weights, bias, requantization and output of a Conv2D or Linear."""
        bias = _bias(self.draw, weights, self.head)
        fields = {"weights": weights, "bias": bias}
        if bare:
            return {**fields, "output": Quantization.full_range("int32", Fraction(1), 0)}
        reach = _reach(weights, bias, self.head)
        requantization = self.draw(requantizations(len(weights), reach))
        return {**fields, "requantization": requantization, "output": self.draw(quantizations())}

    def _window(self, largest=4):
        """Kernel, strides and padding that leave at least one window; kernels may exceed the image."""
        height, width, _ = self.head.shape
        kernel = tuple(self.draw(st.integers(1, largest)) for _ in range(2))
        padding = []
        for size, extent in zip((height, width), kernel):
            before = self.draw(st.integers(0, extent - 1))
            after = self.draw(st.integers(0, extent - 1))
            missing = max(extent - size - before - after, 0)
            grow_before = min(missing, extent - 1 - before)
            padding += [before + grow_before, after + missing - grow_before]
        strides = tuple(self.draw(st.integers(1, 3)) for _ in range(2))
        return kernel, strides, tuple(padding)

    def conv2d(self, same_shape=False):
        channels = self.head.shape[2]
        groups = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        outputs = channels if same_shape else groups * self.draw(st.integers(1, 3))
        if same_shape:
            kernel, strides, padding, dilation = (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)
        else:
            (height, width), strides, padding = self._window()
            dilation = tuple(self.draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2))
            kernel = (height, width)
            extra = [(extent - 1) * (step - 1) for extent, step in zip(kernel, dilation)]
            padding = (padding[0], padding[1] + extra[0], padding[2] + extra[1], padding[3])
        weights = _weights(self.draw, (outputs, *kernel, channels // groups))
        self.add(Conv2D, strides=strides, padding=padding, dilation=dilation, groups=groups, **self._products(weights))

    def pool(self, kind):
        kernel, strides, padding = self._window()
        extra = {"count_include_pad": self.draw(st.booleans())} if kind is AveragePool else {}
        self.add(kind, kernel=kernel, strides=strides, padding=padding, **extra)

    def residual(self):
        """A convolution that keeps the shape, added to what it read."""
        skip = self.name
        self.conv2d(same_shape=True)
        shift = self.draw(st.integers(1, 62))
        multiplier = np.array([self.draw(edges_or_between(1, MULTIPLIER_MAX)) for _ in range(2)], np.int32)
        self.add(Add, (self.name, skip), multiplier=multiplier, shift=shift, output=self.draw(quantizations()))

    def concat(self):
        """Two readings of one tensor, brought to one quantization, side by side; the order is drawn."""
        start, output = self.name, self.draw(quantizations())
        names = []
        for _ in range(2):
            self.head, self.name = prove(self.layers, complete=False)[start], start
            names.append(self.requantize(output))
        self.add(Concat, tuple(self.draw(st.permutations(names))))

    def requantize(self, output=None):
        reach = max(abs(self.head.minimum - self.head.zero_point), abs(self.head.maximum - self.head.zero_point))
        requantization = self.draw(requantizations(self.head.shape[-1], reach))
        return self.add(Requantize, requantization=requantization, output=output or self.draw(quantizations()))

    def clamp(self):
        low, high = INTEGER_RANGES[self.head.dtype]
        minimum = self.draw(edges_or_between(low, high))
        self.add(Clamp, minimum=minimum, maximum=self.draw(edges_or_between(minimum, high)))

    def pad(self):
        self.add(Pad, padding=tuple(self.draw(st.integers(0, 2)) for _ in range(4)))

    def lookup_table(self):
        output = self.draw(quantizations())
        generator = np.random.default_rng(self.draw(st.integers(0, 2**32)))
        table = generator.integers(output.minimum, output.maximum + 1, 256).astype(np.int16)
        self.add(LookupTable, table=table, output=output)

    def softmax(self):
        dtype = self.draw(st.sampled_from(["uint8", "int8"]))
        output = Quantization.full_range(dtype, Fraction(1, 256), INTEGER_RANGES[dtype][0])
        top = self.draw(st.sampled_from([1, 255, 2**16, INT32_MAX]))
        table = np.sort(np.random.default_rng(self.draw(st.integers(0, 99))).integers(0, top + 1, 256))[::-1]
        table = table.astype(np.int32)
        table[0] = top
        self.add(Softmax, table=table, output=output)

    def global_average_pool(self):
        height, width, _ = self.head.shape
        limit = max(abs(self.head.minimum - self.head.zero_point), abs(self.head.maximum - self.head.zero_point))
        requantization = self.draw(requantizations(1, limit * height * width))
        self.add(GlobalAveragePool, requantization=requantization, output=self.draw(quantizations()))

    def reshape(self):
        height, width, channels = self.head.shape
        self.add(Reshape, shape=self.draw(st.sampled_from([(width, height, channels), (height, width * channels, 1)])))

    def linear(self, bare):
        weights = _weights(self.draw, (self.draw(st.integers(1, 5)), self.head.shape[0]))
        self.add(Linear, **self._products(weights, bare))

    def image_layer(self):
        choices = (
            self.conv2d, self.residual, self.concat, self.requantize, self.clamp, self.pad, self.lookup_table,
            self.softmax, self.reshape, lambda: self.pool(MaxPool), lambda: self.pool(AveragePool),
        )  # fmt: skip
        self.draw(st.sampled_from(choices))()

    def finish(self):
        if self.draw(st.booleans()):
            self.global_average_pool()
        else:
            self.add(Flatten)
        if self.draw(st.booleans()):
            self.linear(bare=self.draw(st.booleans()))
        if self.draw(st.booleans()):
            self.add(ArgMax)
        return IntegerModel(tuple(self.layers))


@st.composite
def models(draw):
    """A random `IntegerModel` of up to five layers between its input and its end."""
    builder = Builder(draw)
    for _ in range(draw(st.integers(0, 5))):
        builder.image_layer()
    return builder.finish()


def images_for(model, generator, count):
    """Int32 images: usual, far outside 0..255, at the limits, and flat ones."""
    shape = (count, *model.input.shape)
    kinds = (
        generator.integers(-100, 356, shape),
        generator.choice(np.array([-NOISY_PIXEL_LIMIT, NOISY_PIXEL_LIMIT, 0, 255]), shape),
        np.broadcast_to(generator.integers(-600, 900, (count, 1, 1, 1)), shape),
    )
    return generator.choice(np.stack(kinds), axis=0).astype(np.int32)
