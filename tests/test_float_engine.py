"""The float engine: every kind of layer gives what PyTorch gives, and what its definition gives in plain Python."""

from __future__ import annotations

import warnings
from math import exp, fsum, inf, sqrt, tanh
from statistics import NormalDist
from typing import Any, Callable, Mapping

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.float_engine import operate, scores, trace
from intsmooth_ref.data_tools.float_model import (
    FUNCTIONS,
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
)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def conv(**options: Any) -> Conv2D:
    return Conv2D(name="conv", inputs=("x",), **options)


def close(found: np.ndarray, expected: Any) -> bool:
    return found.dtype == np.float32 and np.allclose(found, expected, rtol=1e-5, atol=1e-5)


# --- definitions ------------------------------------------------------------------------------------------------------


def window_sum(layer: Conv2D, x: np.ndarray, at: tuple[int, ...]) -> float:
    """One output of a convolution by its definition, in float64."""
    sample, row, column, out = at
    outputs, rows, columns, depth = layer.weights.shape
    first = out // (outputs // layer.groups) * depth
    terms = [] if layer.bias is None else [float(layer.bias[out])]
    for i, j, k in np.ndindex(rows, columns, depth):
        y = row * layer.strides[0] + i * layer.dilation[0] - layer.padding[0]
        z = column * layer.strides[1] + j * layer.dilation[1] - layer.padding[2]
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            terms.append(float(x[sample, y, z, first + k]) * float(layer.weights[out, i, j, k]))
    return fsum(terms)


CONVOLUTIONS = {
    "plain": conv(weights=floats(3, 2, 3, 4)),
    "all options": conv(weights=floats(4, 3, 2, 2), bias=floats(4), strides=(2, 1), padding=(1, 2, 0, 3),
                        dilation=(2, 3), groups=2),
    "depthwise": conv(weights=floats(4, 3, 3, 1), bias=floats(4), strides=(2, 2), padding=(1, 1, 1, 1), groups=4),
    "depthwise, dilated": conv(weights=floats(4, 2, 3, 1), padding=(0, 1, 2, 0), dilation=(3, 2), groups=4),
    "groups of two outputs": conv(weights=floats(8, 1, 1, 1), groups=4),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_the_sum_that_defines_it(case: str) -> None:
    layer, x = CONVOLUTIONS[case], floats(2, 7, 8, 4)
    found = operate(layer, x)
    expected = [window_sum(layer, x, at) for at in np.ndindex(*found.shape)]
    assert close(found, np.reshape(expected, found.shape))


def test_more_images_than_are_computed_at_once_are_each_computed_alike() -> None:
    x = floats(2 * float_engine.WINDOWED + 3, 5, 5, 4)
    layer = CONVOLUTIONS["plain"]
    assert close(operate(layer, x), np.concatenate([operate(layer, each[np.newaxis]) for each in x]))


REAL_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "elu": lambda x: x if x > 0 else exp(x) - 1,
    "gelu": lambda x: x * NormalDist().cdf(x),
    "hard_sigmoid": lambda x: min(max(x / 6 + 0.5, 0.0), 1.0),
    "hard_swish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "leaky_relu": lambda x: x if x > 0 else 0.125 * x,
    "sigmoid": lambda x: 1 / (1 + exp(-x)),
    "silu": lambda x: x / (1 + exp(-x)),
    "tanh": tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_one_of_its_name(name: str) -> None:
    x = np.linspace(-9, 9, 73, dtype=np.float32).reshape(1, 73)
    layer = Function(name="f", inputs=("x",), function=name, slope=0.125 if name == "leaky_relu" else 0.0)
    assert close(operate(layer, x), [[REAL_FUNCTIONS[name](each) for each in x[0].tolist()]])
    with np.errstate(all="raise", under="ignore"):  # far away, too
        assert np.isfinite(operate(layer, np.array([[-1e4, 1e4]], np.float32))).all()


def test_grey_levels_are_fractions_of_full_scale_normalized() -> None:
    layer = Input(name="x", shape=(1, 2, 2), mean=np.float32([0.5, 0.25]), deviation=np.float32([0.5, 2.0]))
    found = operate(layer, np.array([[[[255, 0], [-255, 510]]]], np.int32))
    assert close(found, [[[[1.0, -0.125], [-3.0, 0.875]]]])


def test_a_batch_normalization_is_its_formula() -> None:
    layer = BatchNorm(name="n", inputs=("x",), scale=floats(3), shift=floats(1, 3)[0], mean=floats(2, 3)[0],
                      variance=np.float32([1.0, 4.0, 1e-6]), epsilon=0.25)  # fmt: skip
    x = floats(2, 3)
    expected = [
        [float(s) * (float(v) - float(m)) / sqrt(float(q) + 0.25) + float(t)
         for v, s, t, m, q in zip(row, layer.scale, layer.shift, layer.mean, layer.variance)]
        for row in x
    ]  # fmt: skip
    assert close(operate(layer, x), expected)


def test_windows_of_an_average_count_padding_only_when_told() -> None:
    x = np.ones((1, 2, 2, 1), np.float32)
    options: dict[str, Any] = {"name": "a", "inputs": ("x",), "kernel": (2, 2), "padding": (1, 0, 0, 1)}
    assert operate(AveragePool(**options), x).reshape(-1).tolist() == [1.0] * 4
    counted = operate(AveragePool(**options, count_include_pad=True), x)
    assert counted.reshape(-1).tolist() == [0.5, 0.25, 1.0, 0.5]


def test_padding_never_wins_a_maximum() -> None:
    layer = MaxPool(name="m", inputs=("x",), kernel=(2, 2), padding=(1, 1, 1, 1))
    assert (operate(layer, np.full((1, 2, 2, 1), -3, np.float32)) == -3).all()


# --- a peer -----------------------------------------------------------------------------------------------------------


def pytorch(layer: FloatLayer, *tensors: np.ndarray) -> np.ndarray:
    """What PyTorch gives, in its own order of axes, turned back."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def turned(x: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.asarray(x, np.float32))
        return tensor.permute(0, 3, 1, 2) if x.ndim == 4 else tensor

    def vector(x: np.ndarray | None) -> Any:
        return None if x is None else torch.from_numpy(x)

    def padded(x: Any, value: float = 0.0) -> Any:
        top, bottom, left, right = layer.padding  # type: ignore[attr-defined]
        return functional.pad(x, (left, right, top, bottom), value=value)

    x, *others = map(turned, tensors)
    by_kind: dict[type, Callable[[Any], Any]] = {
        Input: lambda la: (x / 255 - vector(la.mean).view(1, -1, 1, 1)) / vector(la.deviation).view(1, -1, 1, 1),
        Conv2D: lambda la: functional.conv2d(
            padded(x), turned(la.weights), vector(la.bias), la.strides, 0, la.dilation, la.groups
        ),
        Linear: lambda la: functional.linear(x, vector(la.weights), vector(la.bias)),
        BatchNorm: lambda la: functional.batch_norm(
            x, *map(vector, (la.mean, la.variance, la.scale, la.shift)), eps=la.epsilon
        ),
        Clamp: lambda la: functional.hardtanh(x, la.minimum, la.maximum),
        Function: lambda la: {
            "leaky_relu": lambda x: functional.leaky_relu(x, la.slope), "hard_sigmoid": functional.hardsigmoid,
            "hard_swish": functional.hardswish,
        }.get(la.function, getattr(functional, la.function, None))(x),  # type: ignore[misc]
        Add: lambda la: x + others[0],
        Concat: lambda la: torch.cat([x, *others], dim=1),
        MaxPool: lambda la: functional.max_pool2d(padded(x, -inf), la.kernel, la.strides),
        AveragePool: lambda la: functional.avg_pool2d(
            x, la.kernel, la.strides, (la.padding[0], la.padding[2]), count_include_pad=la.count_include_pad
        ),
        GlobalAveragePool: lambda la: functional.adaptive_avg_pool2d(x, 1).flatten(1),
        Pad: lambda la: padded(x),
        Flatten: lambda la: x.permute(0, 2, 3, 1).flatten(1),
    }
    result = by_kind[type(layer)](layer)
    return np.asarray((result.permute(0, 2, 3, 1) if result.dim() == 4 else result).numpy())


def layer(kind: Callable[..., FloatLayer], *inputs: str, **options: Any) -> FloatLayer:
    return kind(name="layer", inputs=inputs or ("x",), **options)


IMAGE, VECTOR = floats(3, 9, 8, 4), floats(3, 6)
PEERS: list[tuple[FloatLayer, tuple[np.ndarray, ...]]] = [
    (Input(name="x", shape=(9, 8, 4), mean=floats(4), deviation=np.abs(floats(4)) + 1), (100 * IMAGE,)),
    *((each, (IMAGE,)) for each in CONVOLUTIONS.values()),
    (layer(Linear, weights=floats(5, 6), bias=floats(5)), (VECTOR,)),
    (layer(Linear, weights=floats(5, 6)), (VECTOR,)),
    *(
        (layer(BatchNorm, scale=floats(n), shift=floats(n), mean=floats(n), variance=np.abs(floats(n))), (x,))
        for n, x in ((4, IMAGE), (6, VECTOR))
    ),
    (layer(Clamp), (IMAGE,)),
    (layer(Clamp, minimum=-0.5, maximum=0.75), (VECTOR,)),
    *((layer(Function, function=name, slope=0.2 * (name == "leaky_relu")), (4 * IMAGE,)) for name in FUNCTIONS),
    (layer(Add, "x", "y"), (IMAGE, floats(3, 9, 8, 4) * 2)),
    (layer(Concat, "x", "y", "z"), (IMAGE, floats(3, 9, 8, 1), IMAGE)),
    (layer(Concat, "x", "y"), (VECTOR, floats(3, 2))),
    (layer(MaxPool, kernel=(3, 2), strides=(2, 3), padding=(2, 1, 0, 1)), (IMAGE,)),
    (layer(AveragePool, kernel=(3, 2), strides=(2, 1), padding=(1, 1, 1, 1)), (IMAGE,)),
    (layer(AveragePool, kernel=(2, 3), strides=(1, 2), padding=(0, 0, 1, 1), count_include_pad=True), (IMAGE,)),
    (layer(GlobalAveragePool), (IMAGE,)),
    (layer(Pad, padding=(1, 2, 0, 3)), (IMAGE,)),
    (layer(Flatten), (IMAGE,)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(PEERS)), ids=lambda index: f"{index}_{PEERS[index][0].kind}")
def test_every_kind_of_layer_gives_what_pytorch_gives(case: int) -> None:
    tested, tensors = PEERS[case]
    expected = pytorch(tested, *tensors)
    found = operate(tested, *tensors)
    assert found.shape == expected.shape and close(found, expected)


# --- models -----------------------------------------------------------------------------------------------------------


def branching() -> FloatModel:
    return FloatModel((
        Input.fractions_of_full_scale("image", (4, 4, 1)),
        Conv2D(name="a", inputs=("image",), weights=floats(2, 3, 3, 1)),
        Clamp(name="b", inputs=("a",)),
        Add(name="c", inputs=("a", "b")),
        GlobalAveragePool(name="d", inputs=("c",)),
        Linear(name="e", inputs=("d",), weights=floats(3, 2)),
    ))  # fmt: skip


def test_the_scores_are_the_last_tensor_of_the_trace_whatever_the_batch() -> None:
    images = np.random.default_rng(0).integers(-100, 400, (float_engine.BATCH + 2, 4, 4, 1)).astype(np.int32)
    traced = dict(trace(branching(), images))
    assert list(traced) == ["image", "a", "b", "c", "d", "e"]
    assert close(scores(branching(), images), traced["e"])
    assert close(traced["c"], traced["a"] + np.maximum(traced["a"], 0))


def test_as_many_images_are_computed_at_once_as_memory_is_meant_for() -> None:
    image = Input.fractions_of_full_scale("image", (2, 3, 1))
    small = FloatModel((image, GlobalAveragePool(name="mean", inputs=("image",))))
    assert float_engine.images_at_once(small, 64) == 64
    for side, expected in ((500, 64), (1200, 46), (8192, 1)):
        padding = (0, side - 2, 0, side - 3)
        pad = Pad(name="pad", inputs=("image",), padding=padding)
        wide = FloatModel((image, pad, GlobalAveragePool(name="mean", inputs=("pad",))))
        found = float_engine.images_at_once(wide, 64)
        assert found == expected and (found == 1 or found * (side**2 + 7) <= 2**26)


def test_what_leaves_float32_is_infinite_without_a_warning() -> None:
    image = Input.fractions_of_full_scale("image", (1, 1, 2))
    weights = np.float32([[3e38, 3e38], [3e38, -3e38]])
    linear = Linear(name="linear", inputs=("mean",), weights=weights)
    model = FloatModel((image, GlobalAveragePool(name="mean", inputs=("image",)), linear))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores(model, np.full((1, 1, 1, 2), 255, np.int32)).tolist() == [[inf, 0]]


def test_what_no_layer_reads_any_more_is_let_go() -> None:
    import gc
    import weakref

    alive: dict[str, Any] = {}
    found = {}
    for name, tensor in trace(branching(), np.zeros((1, 4, 4, 1), np.int32)):
        alive[name] = weakref.ref(tensor)
        del tensor
        gc.collect()
        found[name] = [each for each, reference in alive.items() if reference() is not None]
    assert found["b"] == ["a", "b"] and found["d"] == ["c", "d"] and found["e"] == ["d", "e"]
