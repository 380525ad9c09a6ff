"""Networks laid out `(N, C, H, W)`, as PyTorch and ONNX hold them, rebuilt operation by operation as float models.

The float model is laid out `(N, H, W, C)`. What follows from that, and what else is put differently there:

    (1)  order[h, w, c] = place of (c, h, w)         flattened images: what reads them has its weights permuted
    (2)  slope * x + offset, constants              a BatchNorm of mean 0 and variance 1, until (3) or (4) applies
    (3)  slope * (g / 255 - mean) / deviation + offset                   of the image alone, slope > 0: a normalization
         = (g / 255 - (mean - offset * deviation / slope)) / (deviation / slope)
    (4)  (W x + bias) + offset = W x + (bias + offset)                   behind a convolution or a linear layer
    (5)  x * sigmoid(x) = silu(x),  x * hard_sigmoid(x) = hard_swish(x)
    (6)  a 1x1 convolution of means over the whole image is a linear layer

In the end the float model is held against its source: `expect_agreement`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Callable, Iterator, Sequence, Union

import numpy as np

from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.float_file import MAX_BYTES
from intsmooth_ref.data_tools.float_model import (
    Add,
    AveragePool,
    BatchNorm,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    FloatLayer,
    FloatModel,
    Function,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Pad,
    arrays,
    free_name,
    output_shape,
)
from intsmooth_ref.errors import ModelFormatError, ParameterError

#: What `x * gate(x)` is called.
GATED = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}

#: Scores agree if they differ by no more than this fraction of what tells classes apart: float32 sums in another order
#: stay below a tenth of it, while an epsilon or a weight in the wrong place does not. What an image's scores have in
#: common tells nothing apart, but it costs them their last digits.
TOLERANCE, LAST_DIGITS = 1e-4, 2.0**-20

#: Images on which a float model is held against its source, and their grey levels: noise leaves 0 .. 255.
IMAGES, GREY_LEVELS = 4, (-64, 320)


@dataclass(frozen=True, eq=False)
class Tensor:
    """What an operation of the source gives.

    Attributes:
        layer: the layer of the float model that holds it.
        shape: `(C, H, W)` or `(C,)`, as the source has it: means over the whole image may keep `(C, 1, 1)` there,
            though their layer gives `(C,)`.
        order: equation (1), element `k` of the layer is element `order[k]` of the source; None if all are in place.
    """

    layer: str
    shape: tuple[int, ...]
    order: np.ndarray | None = None


#: What arithmetic may take: a tensor, or a constant as the source holds it.
Operand = Union[Tensor, np.ndarray, float]


def expect(holds: bool, found: str, expected: str) -> None:
    """Raise a `ModelFormatError` in the usual form unless it holds; `located` says where."""
    if not holds:
        raise ModelFormatError(f"found {found}; expected {expected}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Errors in here begin with the place, in one line."""
    try:
        yield
    except ModelFormatError as problem:
        raise ModelFormatError(f"{where}: {problem}") from None


def same_padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int],
    at_the_end: bool = True,
) -> tuple[int, int, int, int]:  # fmt: skip
    """`(top, bottom, left, right)` with which the output is `ceil(size / stride)`; where they are odd, one more pixel
    goes to the end, or to the beginning."""
    _expect_windows(sizes, kernel, strides)
    sides: list[int] = []
    for size, extent, stride, step in zip(sizes, kernel, strides, dilation):
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * step + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        sides += (smaller, larger) if at_the_end else (larger, smaller)
    return sides[0], sides[1], sides[2], sides[3]


def _rounded_up(size: int, extent: int, stride: int, before: int, after: int) -> int:
    """The padding after an image with which rounding down gives as many windows as rounding up did.

    A window that would begin in the padding after the image is none.
    """
    windows = -(-(size + before + after - extent) // stride) + 1
    if (windows - 1) * stride >= size + before:
        windows -= 1
    return max((windows - 1) * stride + extent - size - before, 0)


def padding_rounded_up(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int, int]:
    """`(top, bottom, left, right)` with which a last window may reach over the end of an image of these sizes."""
    _expect_windows(sizes, kernel, strides)
    top, bottom, left, right = padding
    bottom = _rounded_up(sizes[0], kernel[0], strides[0], top, bottom)
    right = _rounded_up(sizes[1], kernel[1], strides[1], left, right)
    return top, bottom, left, right


def _expect_windows(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> None:
    good = len(sizes) == len(kernel) == len(strides) == 2 and min(strides) >= 1
    expect(good, f"windows of {tuple(kernel)} every {tuple(strides)} over {tuple(sizes)}", "those of an image")


class FloatModelBuilder:
    """A float model in the making: each method adds what one operation of the source amounts to.

    An operation's name, made legal and unique, is that of its layer. All methods raise `ModelFormatError`, without
    saying where, if the float model has nothing that does the same.
    """

    def __init__(self, shape: tuple[int, int, int], mean: Sequence[float], deviation: Sequence[float]) -> None:
        """
        Args:
            shape: of the image, `(H, W, C)`.
            mean, deviation: the source reads `(grey / 255 - mean) / deviation`: none, one for all or one a channel.

        Raises:
            ParameterError: if there are as many as neither.
        """
        for name, values in (("mean", mean), ("deviation", deviation)):
            if len(values) not in (0, 1, shape[2]):
                raise ParameterError(f"{name}: found {len(values)} values; expected one, or {shape[2]}: one a channel")
        self._layers: dict[str, FloatLayer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._arithmetic: set[str] = set()
        self._bytes = 0
        self.input = self._add(
            Input, "input", (), shape=tuple(shape), mean=_one_a_channel(mean, 0.0, shape[2]),
            deviation=_one_a_channel(deviation, 1.0, shape[2]),
        )  # fmt: skip

    # --- weights ------------------------------------------------------------------------------------------------------

    def conv2d(
        self, name: str, source: Tensor, weights: np.ndarray, bias: np.ndarray | None, *,
        strides: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0, 0, 0), dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> Tensor:  # fmt: skip
        """Weights `(O, I / groups, KH, KW)`."""
        expect(np.ndim(weights) == 4, f"weights of shape {np.shape(weights)}", "those of a 2-D convolution")
        bias = None if bias is None else _float32(bias)
        if self._is_pooled(source) and weights.shape[2:] == (1, 1) and groups == 1 and not any(padding):
            rows = _float32(weights[:, :, 0, 0])
            return self._add(Linear, name, (source,), (len(weights), 1, 1), weights=rows, bias=bias)  # (6)
        return self._add(
            Conv2D, name, (source,), weights=_float32(np.transpose(weights, (0, 2, 3, 1))), bias=bias,
            strides=strides, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip

    def linear(self, name: str, source: Tensor, weights: np.ndarray, bias: np.ndarray | None) -> Tensor:
        """Weights `(O, I)`."""
        expect(np.ndim(weights) == 2, f"weights of shape {np.shape(weights)}", "those of a linear layer")
        expect(source.shape == weights.shape[1:], f"input of shape {source.shape}", f"{weights.shape[1:]}")
        weights, bias = _float32(_permuted(weights, source)), None if bias is None else _float32(bias)
        return self._add(Linear, name, (source,), weights=weights, bias=bias)

    def batch_norm(
        self, name: str, source: Tensor, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray,
        epsilon: float,
    ) -> Tensor:  # fmt: skip
        arrays = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
        for what, array in arrays.items():
            expected = f"{source.shape[:1]}, one a channel"
            expect(np.shape(array) == source.shape[:1], f"{what} of shape {np.shape(array)}", expected)
        permuted = {what: _float32(_permuted(array, source)) for what, array in arrays.items()}
        return self._elementwise(BatchNorm, name, source, **permuted, epsilon=float(epsilon))

    # --- element by element -------------------------------------------------------------------------------------------

    def clamp(self, name: str, source: Tensor, minimum: float = 0.0, maximum: float = inf) -> Tensor:
        return self._elementwise(Clamp, name, source, minimum=float(minimum), maximum=float(maximum))

    def function(self, name: str, source: Tensor, function: str, slope: float = 0.0) -> Tensor:
        return self._elementwise(Function, name, source, function=function, slope=float(slope))

    def add(self, name: str, left: Operand, right: Operand) -> Tensor:
        if not isinstance(left, Tensor):
            left, right = right, left
        assert isinstance(left, Tensor)
        if not isinstance(right, Tensor):
            return self._affine(name, left, 1.0, right)
        expect(left.shape == right.shape, f"a sum of shapes {left.shape} and {right.shape}", "two of one shape")
        _expect_one_order(left, right)
        return self._add(Add, name, (left, right), left.shape, left.order)

    def subtract(self, name: str, left: Operand, right: Operand) -> Tensor:
        if isinstance(left, Tensor):
            return self._affine(name, left, 1.0, -_constant(right))
        assert isinstance(right, Tensor)
        return self._affine(name, right, -1.0, left)

    def multiply(self, name: str, left: Operand, right: Operand) -> Tensor:
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            return self._gated(name, left, right)
        if not isinstance(left, Tensor):
            left, right = right, left
        assert isinstance(left, Tensor)
        return self._affine(name, left, right, 0.0)

    def divide(self, name: str, left: Operand, right: Operand) -> Tensor:
        expect(isinstance(left, Tensor), "a constant that is divided by a tensor", "a tensor by a constant")
        divisor = _constant(right)
        expect(bool(divisor.all()), "a division by zero", "constants other than zero")
        return self.multiply(name, left, 1 / divisor)

    def _gated(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """Equation (5)."""
        for gate, source in ((left, right), (right, left)):
            layer = self._layers[gate.layer]
            reads_it = layer.inputs == (source.layer,) and gate.shape == source.shape
            if isinstance(layer, Function) and layer.function in GATED and reads_it:
                return self.function(name, source, GATED[layer.function])
        raise ModelFormatError("found a product of two tensors; expected one with a constant, or of x with "
                               "sigmoid(x) or hard_sigmoid(x)")  # fmt: skip

    def _affine(self, name: str, source: Tensor, slope: Operand, offset: Operand) -> Tensor:
        """Equation (2)."""
        scale, shift = (_by_channel(_constant(each), source) for each in (slope, offset))
        zeros = np.zeros_like(scale)
        tensor = self.batch_norm(name, source, scale, shift, zeros, zeros + 1, 0.0)
        self._arithmetic.add(tensor.layer)
        return tensor

    # --- windows ------------------------------------------------------------------------------------------------------

    def max_pool(
        self, name: str, source: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], padding: tuple[int, ...],
        round_up: bool = False,
    ) -> Tensor:  # fmt: skip
        """With `round_up` a last window may reach over the padding's end."""
        if round_up:
            padding = padding_rounded_up(source.shape[1:], kernel, strides, padding)
        return self._add(MaxPool, name, (source,), kernel=kernel, strides=strides, padding=padding)

    def average_pool(
        self, name: str, source: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], padding: tuple[int, ...],
        count_include_pad: bool, round_up: bool = False,
    ) -> Tensor:  # fmt: skip
        """With `round_up` a last window may reach over the padding's end; what lies there never counts."""
        if round_up:
            reached = padding_rounded_up(source.shape[1:], kernel, strides, padding)
            if any(there > here for there, here in zip(reached, padding)):
                counted = count_include_pad and any(padding)
                expect(not counted, "windows that reach over a padding that counts",
                       "ceil_mode or count_include_pad false")  # fmt: skip
                count_include_pad = False
            padding = reached
        if kernel == source.shape[1:] and not any(padding):
            return self.global_average_pool(name, source, keeps_extents=True)
        return self._add(AveragePool, name, (source,), kernel=kernel, strides=strides, padding=padding,
                         count_include_pad=bool(count_include_pad))  # fmt: skip

    def adaptive_average_pool(self, name: str, source: Tensor, extents: Sequence[int]) -> Tensor:
        """Means that give these height and width, which must divide the image's."""
        divides = len(source.shape) == 3 and all(e >= 1 and s % e == 0 for s, e in zip(source.shape[1:], extents))
        found = f"an adaptive pool of {source.shape} to {tuple(extents)}"
        expect(divides, found, "height and width that divide those of the image")
        kernel = tuple(size // extent for size, extent in zip(source.shape[1:], extents))
        return source if kernel == (1, 1) else self.average_pool(name, source, kernel, kernel, (0, 0, 0, 0), False)

    def global_average_pool(self, name: str, source: Tensor, keeps_extents: bool) -> Tensor:
        shape = (source.shape[0], 1, 1) if keeps_extents else source.shape[:1]
        return self._add(GlobalAveragePool, name, (source,), shape)

    def pad(self, name: str, source: Tensor, padding: tuple[int, ...]) -> Tensor:
        return self._add(Pad, name, (source,), padding=padding) if any(padding) else source

    # --- shapes -------------------------------------------------------------------------------------------------------

    def concat(self, name: str, sources: Sequence[Tensor]) -> Tensor:
        """Joined along the channels."""
        if len(sources) == 1:
            return sources[0]
        good = all(each.shape[1:] == sources[0].shape[1:] for each in sources)
        shapes = ", ".join(str(each.shape) for each in sources[:8])
        expect(good, f"shapes {shapes} joined along the channels", "one height and width")
        order = None
        if any(each.order is not None for each in sources):
            begins = np.cumsum([0] + [each.shape[0] for each in sources])
            order = np.concatenate([begin + _whole_order(each) for begin, each in zip(begins, sources)])
        channels = sum(each.shape[0] for each in sources)
        return self._add(Concat, name, sources, (channels, *sources[0].shape[1:]), order)

    def flatten(self, name: str, source: Tensor) -> Tensor:
        """`(C, H, W)` to `(C * H * W,)`, equation (1); of `(C,)`, nothing."""
        if len(source.shape) == 1 or self._is_pooled(source):
            return replace(source, shape=source.shape[:1])
        channels, height, width = source.shape
        order = None
        if height * width > 1:
            order = np.arange(channels * height * width).reshape(channels, height, width).transpose(1, 2, 0).ravel()
        return self._add(Flatten, name, (source,), order_there=order)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def model(self, output: Tensor, class_names: Sequence[str] = (), provenance: str = "") -> FloatModel:
        """The float model with these scores; layers that they do not depend on are left out."""
        if output.shape[1:] == (1, 1):
            output = self.flatten(output.layer, output)
        expect(output.order is None, "a flattened image as the scores", "a linear layer")
        read = {output.layer}
        for layer in reversed(self._layers.values()):
            if layer.name in read:
                read.update(layer.inputs)
        expect("input" in read, "scores that do not depend on the image", "a classifier of images")
        layers = self._without_arithmetic([layer for layer in self._layers.values() if layer.name in read])
        return FloatModel(layers, tuple(class_names), provenance)

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """What the source reads for grey levels `(N, H, W, C)`: float32 `(N, C, H, W)`."""
        layer = self._layers[self.input.layer]
        assert isinstance(layer, Input)
        values = (images.astype(np.float32) / np.float32(255) - layer.mean) / layer.deviation
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def expect_agreement(self, model: FloatModel, scores: Callable[[np.ndarray], np.ndarray]) -> None:
        """Hold the model against its source on a few random images.

        Args:
            scores: of the source, for images as it reads them, float32 `(N, C, H, W)`.

        Raises:
            ModelFormatError: if the scores differ by more than `TOLERANCE` of the largest distance of a score from the
                image's mean score and `LAST_DIGITS` of the largest score, or are not finite.
        """
        images = np.random.default_rng(0).integers(*GREY_LEVELS, (IMAGES, *model.input.shape)).astype(np.int32)
        expected = np.asarray(scores(self.normalized(images)), np.float64).reshape(IMAGES, -1)
        with np.errstate(all="ignore"):  # scores that are not finite are told below
            found = float_engine.scores(model, images)
        expect(expected.shape == found.shape, f"scores of shape {expected.shape}", f"{found.shape}")
        expect(bool(np.isfinite(expected).all()), "scores that are not finite", "finite ones")
        telling = np.abs(expected - expected.mean(axis=1, keepdims=True)).max()
        tolerance = TOLERANCE * telling + LAST_DIGITS * np.abs(expected).max()
        difference = np.abs(expected - found).max()
        expect(difference <= tolerance, f"scores that differ by {difference:.3g} from the float model's",
               f"at most {tolerance:.3g}")  # fmt: skip

    def _without_arithmetic(self, layers: Sequence[FloatLayer]) -> tuple[FloatLayer, ...]:
        """Equations (3) and (4), for constants that are applied to what nothing else reads."""
        readers = Counter(name for layer in layers for name in layer.inputs)
        kept: dict[str, FloatLayer] = {}
        joined_to: dict[str, str] = {}
        for layer in layers:
            layer = replace(layer, inputs=tuple(joined_to.get(name, name) for name in layer.inputs))
            if layer.name in self._arithmetic and readers[layer.inputs[0]] == 1:
                assert isinstance(layer, BatchNorm)
                whole = _joined(kept[layer.inputs[0]], layer)
                if whole is not None:
                    kept[whole.name], joined_to[layer.name] = whole, whole.name
                    readers[whole.name] = readers[layer.name]
                    continue
            kept[layer.name] = layer
        return tuple(kept.values())

    def _is_pooled(self, tensor: Tensor) -> bool:
        """Whether it is `(C, 1, 1)` in the source and `(C,)` in the float model."""
        return len(tensor.shape) == 3 and len(self._shapes[tensor.layer]) == 1

    def _elementwise(self, kind: type[FloatLayer], name: str, source: Tensor, **values: Any) -> Tensor:
        return self._add(kind, name, (source,), source.shape, source.order, **values)

    def _add(
        self, kind: type[FloatLayer], name: str, sources: Sequence[Tensor], shape_there: tuple[int, ...] = (),
        order_there: np.ndarray | None = None, **values: Any,
    ) -> Tensor:  # fmt: skip
        """A layer of this kind; `shape_there` is needed where it is not simply the layer's with the channels first."""
        name = free_name(name, self._layers)
        layer = kind(name=name, inputs=tuple(each.layer for each in sources), **values)
        self._bytes += sum(array.nbytes for array in arrays(layer).values())
        expect(self._bytes <= MAX_BYTES, f"weights of {self._bytes} bytes in all, counted once a layer",
               f"at most {MAX_BYTES}, as in a float model file")  # fmt: skip
        shape = self._shapes[name] = output_shape(layer, self._shapes)
        self._layers[name] = layer
        return Tensor(name, shape_there or (shape[-1], *shape[:-1]), order_there)


def _one_a_channel(values: Sequence[float], default: float, channels: int) -> np.ndarray:
    return _float32(np.resize(values if len(values) else [default], channels))


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what leaves float32 is refused as not finite
        return np.ascontiguousarray(array, dtype=np.float32)


def _permuted(array: np.ndarray, source: Tensor) -> np.ndarray:
    """Equation (1), along the last axis."""
    return array if source.order is None else array[..., source.order]


def _expect_one_order(left: Tensor, right: Tensor) -> None:
    same = np.array_equal(_whole_order(left), _whole_order(right))
    expect(same, "a sum of two flattened images of different height and width", "one height and width")


def _whole_order(tensor: Tensor) -> np.ndarray:
    return np.arange(tensor.shape[0]) if tensor.order is None else tensor.order


def _constant(operand: Operand) -> np.ndarray:
    expect(not isinstance(operand, Tensor), "two tensors subtracted or divided", "a constant as one of them")
    return np.asarray(operand, dtype=np.float64)


def _by_channel(constant: np.ndarray, source: Tensor) -> np.ndarray:
    """One value a channel, of a constant that is broadcast over `(N, C, H, W)` or `(N, C)`."""
    channels, rank = source.shape[0], len(source.shape) + 1
    expect(constant.ndim <= rank, f"a constant of shape {constant.shape}", f"one of rank {rank} at most")
    if constant.size != 1:
        shape = (1,) * (rank - constant.ndim) + constant.shape
        found = f"a constant of shape {constant.shape} with a tensor of shape {source.shape}"
        expect(shape == (1, channels) + (1,) * (rank - 2), found, "one number, or one a channel")
    return np.broadcast_to(constant.reshape(-1), channels)


def _joined(source: FloatLayer, arithmetic: BatchNorm) -> FloatLayer | None:
    """One layer for two, equation (3) or (4), or None if neither applies."""
    slope, offset = arithmetic.scale.astype(np.float64), arithmetic.shift.astype(np.float64)
    if isinstance(source, Input) and (slope > 0).all():
        deviation = source.deviation / slope
        return replace(source, mean=_float32(source.mean - offset * deviation), deviation=_float32(deviation))
    if isinstance(source, (Conv2D, Linear)) and (slope == 1).all():
        return replace(source, bias=_float32(offset if source.bias is None else source.bias + offset))
    return None
