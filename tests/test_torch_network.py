"""A float model as a PyTorch module: it computes what the engine specifies and gives its weights back to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction
from math import inf

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.architectures import architecture
from intsmooth_ref.data_tools.float_model import (
    FLOAT_LAYER_KINDS,
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
    arrays,
)
from intsmooth_ref.errors import ModelFormatError, ParameterError

torch = pytest.importorskip("torch")

from intsmooth_ref.data_tools.torch_network import TorchNetwork, to_float_model  # noqa: E402  (needs PyTorch)

SHAPE = (7, 6, 4)
GENERATOR = np.random.default_rng(8)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return GENERATOR.uniform(0.5, 2, shape).astype(np.float32)


def norm(name: str, source: str, channels: int) -> BatchNorm:
    return BatchNorm(
        name=name, inputs=(source,), scale=normal(channels), shift=normal(channels), mean=normal(channels),
        variance=positive(channels), epsilon=0.25,
    )  # fmt: skip


IMAGE = Input(name="x", shape=SHAPE, mean=positive(4), deviation=positive(4))

#: Layers between the input, of shape (7, 6, 4), and the scores, all pixels in the order of memory.
CASES: dict[str, list[FloatLayer]] = {
    "convolution": [Conv2D(name="y", inputs=("x",), weights=normal(5, 3, 2, 4), bias=normal(5))],
    "convolution without bias, strides and padding": [
        Conv2D(name="y", inputs=("x",), weights=normal(5, 3, 3, 4), strides=(2, 1), padding=(1, 1, 2, 2)),
    ],
    "convolution with another padding at each side": [
        Conv2D(name="y", inputs=("x",), weights=normal(3, 3, 3, 4), bias=normal(3), padding=(0, 1, 3, 2)),
    ],
    "convolution with another padding on the right": [
        Conv2D(name="y", inputs=("x",), weights=normal(3, 3, 3, 4), padding=(1, 1, 1, 2)),
    ],
    "convolution with dilation": [
        Conv2D(name="y", inputs=("x",), weights=normal(3, 3, 2, 4), dilation=(2, 3), padding=(1, 0, 0, 1)),
    ],
    "convolution in groups": [Conv2D(name="y", inputs=("x",), weights=normal(6, 3, 3, 2), groups=2)],
    "depthwise convolution": [
        Conv2D(name="y", inputs=("x",), weights=normal(8, 3, 3, 1), groups=4, padding=(1, 1, 1, 1)),
    ],
    "convolution of one tap": [Conv2D(name="y", inputs=("x",), weights=normal(8, 1, 1, 4), strides=(2, 2))],
    "linear": [
        Flatten(name="f", inputs=("x",)), Linear(name="y", inputs=("f",), weights=normal(9, 168), bias=normal(9)),
    ],
    "linear without bias": [
        GlobalAveragePool(name="g", inputs=("x",)), Linear(name="y", inputs=("g",), weights=normal(9, 4)),
    ],
    "batch norm": [norm("y", "x", 4)],
    "batch norm of a vector": [GlobalAveragePool(name="g", inputs=("x",)), norm("y", "g", 4)],
    "relu": [Clamp(name="y", inputs=("x",))],
    "relu6, and other bounds": [
        Clamp(name="a", inputs=("x",), maximum=0.5), Clamp(name="b", inputs=("x",), minimum=-0.5, maximum=inf),
        Clamp(name="c", inputs=("x",), minimum=-inf, maximum=0.25), Concat(name="y", inputs=("a", "b", "c")),
    ],
    **{
        function: [Function(name="y", inputs=("x",), function=function, slope=0.2 * (function == "leaky_relu"))]
        for function in FUNCTIONS
    },
    "add": [norm("n", "x", 4), Add(name="y", inputs=("n", "x"))],
    "add to itself": [norm("n", "x", 4), Add(name="y", inputs=("n", "n"))],
    "concat": [norm("n", "x", 4), Concat(name="y", inputs=("n", "x", "n"))],
    "max pool": [MaxPool(name="y", inputs=("x",), kernel=(3, 2), strides=(2, 1))],
    "max pool with padding": [
        MaxPool(name="y", inputs=("x",), kernel=(3, 3), strides=(2, 2), padding=(2, 1, 0, 2)),
    ],
    "average pool": [AveragePool(name="y", inputs=("x",), kernel=(2, 3), strides=(1, 2))],
    "average pool with padding that is counted": [
        AveragePool(name="y", inputs=("x",), kernel=(3, 3), strides=(2, 1), padding=(2, 1, 0, 2),
                    count_include_pad=True),
    ],
    "average pool with padding that is not counted": [
        AveragePool(name="y", inputs=("x",), kernel=(3, 3), strides=(2, 1), padding=(2, 1, 0, 2)),
    ],
    "global average": [GlobalAveragePool(name="y", inputs=("x",))],
    "pad": [Pad(name="y", inputs=("x",), padding=(0, 1, 2, 3))],
}  # fmt: skip


def model_of(layers: list[FloatLayer], image: Input = IMAGE) -> FloatModel:
    flat = [] if layers[-1].kind in ("Linear", "GlobalAveragePool") else [Flatten(name="flat", inputs=("y",))]
    try:
        return FloatModel((image, *layers, *flat))
    except ModelFormatError:  # a vector already
        return FloatModel((image, *layers))


def noisy_images(shape: tuple[int, ...], count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(-100, 400, (count, *shape)).astype(np.int32)


def scores(model: FloatModel, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return TorchNetwork(model).eval()(torch.from_numpy(images)).numpy()


def same_arrays(first: FloatModel, second: FloatModel) -> bool:
    pairs = [(arrays(a), arrays(b)) for a, b in zip(first.layers, second.layers)]
    return all(list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_cases_hold_every_kind_of_layer() -> None:
    kinds = {layer.kind for layers in CASES.values() for layer in model_of(layers).layers}
    assert kinds == set(FLOAT_LAYER_KINDS)


@pytest.mark.parametrize("case", CASES)
def test_every_layer_computes_what_the_engine_specifies(case: str) -> None:
    model = model_of(CASES[case])
    images = noisy_images(SHAPE)
    np.testing.assert_allclose(scores(model, images), float_engine.scores(model, images), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mobilenetv2"])
def test_a_whole_network_computes_what_the_engine_specifies(name: str) -> None:
    model = architecture(name, (16, 16, 3), 10, Fraction(1, 2))
    layers = [
        norm(layer.name, layer.inputs[0], len(layer.scale)) if isinstance(layer, BatchNorm) else layer
        for layer in model.layers
    ]
    model, images = replace(model, layers=tuple(layers)), noisy_images((16, 16, 3))
    expected = float_engine.scores(model, images)
    np.testing.assert_allclose(scores(model, images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_grey_levels_are_scaled_then_normalized() -> None:
    image = Input(name="x", shape=(1, 1, 2), mean=np.float32([0, 0.5]), deviation=np.float32([1, 0.25]))
    found = scores(FloatModel((image, Flatten(name="flat", inputs=("x",)))), np.array([[[[510, -51]]]], np.int32))
    np.testing.assert_allclose(found, [[2.0, (-0.2 - 0.5) / 0.25]], rtol=1e-6)


def test_scores_of_a_flattened_image_have_channels_fastest() -> None:
    image = Input.fractions_of_full_scale("x", (2, 3, 2))
    images = np.arange(24, dtype=np.int32).reshape(2, 2, 3, 2)
    found = scores(FloatModel((image, Flatten(name="flat", inputs=("x",)))), images)
    np.testing.assert_allclose(found * 255, np.arange(24).reshape(2, 12), rtol=1e-6)


def test_what_no_layer_reads_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from weakref import ref

    from intsmooth_ref.data_tools import torch_network

    alive: list = []

    def counted(layer: FloatLayer, network: TorchNetwork, *sources: torch.Tensor) -> torch.Tensor:
        result = operate(layer, network, *sources)
        alive.append(ref(result))
        most.append(sum(each() is not None for each in alive))
        return result

    operate, most = torch_network.operate, []
    monkeypatch.setattr(torch_network, "operate", counted)
    with torch.no_grad():
        TorchNetwork(architecture("resnet32", (8, 8, 1), 10)).eval()(torch.from_numpy(noisy_images((8, 8, 1))))
    assert len(alive) > 100 and max(most) <= 4  # a shortcut, its batch norm's input, a branch, what comes of it


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["batch norm", "batch norm of a vector"])
def test_a_batch_norm_is_trained_as_pytorchs_own(case: str) -> None:
    model = model_of(CASES[case])
    layer = next(each for each in model.layers if isinstance(each, BatchNorm))
    network = TorchNetwork(model)
    peer = (torch.nn.BatchNorm1d if "vector" in case else torch.nn.BatchNorm2d)(4, eps=0.25)
    names = {"weight": layer.scale, "bias": layer.shift, "running_mean": layer.mean, "running_var": layer.variance}
    for name, array in names.items():
        getattr(peer, name).data.copy_(torch.from_numpy(array))
    images = noisy_images(SHAPE)
    *_, (_, source) = (each for each in float_engine.trace(model, images) if each[0] == layer.inputs[0])
    x = torch.from_numpy(source if source.ndim == 2 else source.transpose(0, 3, 1, 2).copy())
    expected = peer(x).detach().numpy()
    expected = expected if expected.ndim == 2 else expected.transpose(0, 2, 3, 1).reshape(3, -1)
    found = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    trained = next(each for each in to_float_model(network, model).layers if isinstance(each, BatchNorm))
    np.testing.assert_allclose(trained.mean, peer.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(trained.variance, peer.running_var.numpy(), rtol=1e-5)
    assert not np.allclose(trained.mean, layer.mean)


def test_every_learned_array_gets_a_gradient_and_no_other_does() -> None:
    model = architecture("mobilenetv2", (8, 8, 3), 10, Fraction(1, 4))
    network = TorchNetwork(model)
    network(torch.from_numpy(noisy_images((8, 8, 3), 8))).logsumexp(dim=1).sum().backward()
    assert sum(parameter.numel() for parameter in network.parameters()) == model.parameters
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_one_value_a_channel_is_not_normalized() -> None:
    network = TorchNetwork(model_of(CASES["batch norm of a vector"]))
    with pytest.raises(ParameterError, match="layer 'y': found one value a channel to normalize; expected a larger"):
        network(torch.from_numpy(noisy_images(SHAPE, 1)))
    assert network.eval()(torch.from_numpy(noisy_images(SHAPE, 1))).shape == (1, 4)


# --- weights in and out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_weights_come_back_to_the_bit(case: str) -> None:
    model = replace(model_of(CASES[case]), provenance="made for a test")
    back = to_float_model(TorchNetwork(model), model)
    assert same_arrays(model, back) and back.provenance == "made for a test"
    assert all(each.flags.c_contiguous for layer in back.layers for each in arrays(layer).values())


def test_weights_are_copied_both_ways() -> None:
    model = architecture("resnet8", (8, 8, 3), 10)
    before, network = copy.deepcopy(model), TorchNetwork(model)
    written = to_float_model(network, model)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor += 1
    assert same_arrays(model, before) and same_arrays(written, before)
    assert not same_arrays(to_float_model(network, model), before)


@pytest.mark.parametrize("names", [("a.b", "a-b", "a_b"), ("type", "forward", "training"), (".", "0", "weights")])
def test_layers_may_have_any_name(names: tuple[str, str, str]) -> None:
    sources = ("x", *names)
    layers = [norm(name, source, 4) for name, source in zip(names, sources)]
    model = FloatModel((IMAGE, *layers, Flatten(name="flat", inputs=(names[-1],))))
    images, network = noisy_images(SHAPE), TorchNetwork(model).eval()
    np.testing.assert_allclose(scores(model, images), float_engine.scores(model, images), rtol=1e-4, atol=1e-4)
    assert same_arrays(to_float_model(network, model), model) and len(network.state_dict()) == 12


def test_state_is_named_after_layer_and_field() -> None:
    model = FloatModel((IMAGE, norm("a.b", "x", 4), Flatten(name="flat", inputs=("a.b",))))
    assert list(TorchNetwork(model).state_dict()) == ["a/b/scale", "a/b/shift", "a/b/mean", "a/b/variance"]
    assert [name for name, _ in TorchNetwork(model).named_parameters()] == ["a/b/scale", "a/b/shift"]


def test_convolutions_have_channels_last_in_memory() -> None:
    network = TorchNetwork(architecture("resnet8", (8, 8, 3), 10))
    for module in (network, copy.deepcopy(network)):
        matrices = [each for each in module.parameters() if each.ndim == 4]
        assert len(matrices) == 9
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in matrices)


def test_weights_that_are_not_finite_are_not_written() -> None:
    model = architecture("resnet8", (8, 8, 3), 10)
    network = TorchNetwork(model)
    network.state_dict()["scores/bias"][3] = float("nan")
    with pytest.raises(ModelFormatError, match="'scores': bias holds a value that is not finite"):
        to_float_model(network, model)
