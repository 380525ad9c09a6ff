"""PyTorch modules become float models with the same scores, and what a float model cannot hold is refused by name.

The oracle is PyTorch: each module's own scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_engine, float_model, torch_import
from intsmooth_ref.data_tools.channels_first import FloatModelBuilder
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.errors import ModelFormatError, ParameterError

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

SHAPE = (9, 12, 4)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

MEAN, DEVIATION = (0.4, 0.5, 0.25, 0.125), (0.25, 0.5, 1.0, 2.0)


def trained(module: Any) -> Any:
    """With batch norms whose statistics and weights are not those of the beginning."""
    generator = torch.Generator().manual_seed(1)
    for each in module.modules():
        if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
            each.running_mean.uniform_(-1, 1, generator=generator)
            each.running_var.uniform_(0.5, 2, generator=generator)
            if each.affine:
                each.weight.data.uniform_(-1, 2, generator=generator)
                each.bias.data.uniform_(-1, 1, generator=generator)
    return module


def scores_of(module: Any, images: np.ndarray, mean: Any = MEAN, deviation: Any = DEVIATION) -> np.ndarray:
    normalized = (images / 255 - np.array(mean)) / np.array(deviation)
    with torch.no_grad():
        scores = module.eval()(torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32))
    return scores.numpy().reshape(len(images), -1)


def some_images(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(7).integers(-100, 356, (6, *shape)).astype(np.int32)


def imported(module: Any, shape: tuple[int, int, int] = SHAPE) -> FloatModel:
    """The float model, held against PyTorch on images of the test's own."""
    model = torch_import.float_model(module, shape, MEAN[: shape[2]], DEVIATION[: shape[2]])
    expected = scores_of(module, some_images(shape), MEAN[: shape[2]], DEVIATION[: shape[2]])
    np.testing.assert_allclose(
        float_engine.scores(model, some_images(shape)), expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )
    return model


def kinds(model: FloatModel) -> list[str]:
    return [layer.kind for layer in model.layers]


class Applied(nn.Module):  # type: ignore[misc]
    """A function between a convolution and a linear layer, which each have something to get wrong."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.function, self.last = nn.Conv2d(4, 6, 3), function, None
        with torch.no_grad():
            flat = torch.flatten(function(self.first(torch.zeros(2, 4, 9, 12))), 1)
        self.last = nn.Linear(flat.shape[1], 5)

    def forward(self, x: Any) -> Any:
        return self.last(torch.flatten(self.function(self.first(x)), 1))


# --- every operation --------------------------------------------------------------------------------------------------

MODULES = {
    "strides, padding and dilation": lambda: nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 3)),
    "groups": lambda: nn.Conv2d(6, 12, 3, groups=3, bias=False),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "same, even kernel": lambda: nn.Conv2d(6, 8, (4, 2), padding="same", dilation=(1, 2)),
    "valid": lambda: nn.Conv2d(6, 8, 3, padding="valid"),
    "batch norm": lambda: nn.BatchNorm2d(6, eps=0.1),
    "batch norm without weights": lambda: nn.BatchNorm2d(6, affine=False),
    "batch norm of flattened images": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(420)),
    "relu of flattened images": lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(420, 7)),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(),
    "hardtanh": lambda: nn.Hardtanh(-0.25, 0.5),
    "hardswish": lambda: nn.Hardswish(),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "silu": lambda: nn.SiLU(),
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "gelu": lambda: nn.GELU(),
    "elu": lambda: nn.ELU(),
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "max pool": lambda: nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)),
    "max pool, rounded up": lambda: nn.MaxPool2d(3, stride=(3, 2), padding=1, ceil_mode=True),
    "max pool, no window at the end": lambda: nn.MaxPool2d(1, 2, ceil_mode=True),
    "max pool, no window in the padding": lambda: nn.MaxPool2d(2, stride=(6, 9), padding=1, ceil_mode=True),
    "average pool, padding counts": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "average pool": lambda: nn.AvgPool2d((3, 2), stride=2, padding=(1, 0), count_include_pad=False),
    "average pool, rounded up": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "average pool, rounded up, no padding to count": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "average pool, no window in the padding": lambda: nn.AvgPool2d(2, (6, 9), padding=1, ceil_mode=True),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((7, 5)),
    "adaptive, as it is": lambda: nn.AdaptiveAvgPool2d((7, None)),
    "zero padding": lambda: nn.ZeroPad2d((1, 2, 3, 0)),
    "constant padding": lambda: nn.ConstantPad2d(1, 0.0),
    "identity and dropout": lambda: nn.Sequential(nn.Identity(), nn.Dropout2d(), nn.Dropout(0.9)),
    "global": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 3, 1)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_the_scores_of_pytorch(name: str) -> None:
    imported(trained(Applied(MODULES[name]())))


FUNCTIONS = {
    "relu": lambda x: functional.relu(x, inplace=True) + torch.relu(-1 * x),
    "relu6": functional.relu6,
    "clamp from below": lambda x: x.clamp(min=-0.125),
    "clamp from above": lambda x: torch.clamp(x, max=0.25),
    "hardtanh": lambda x: functional.hardtanh(x, -0.5, 0.25),
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "silu": functional.silu,
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "elu": functional.elu,
    "leaky relu": lambda x: functional.leaky_relu(x, 0.2),
    "sum": lambda x: torch.add(x, x.relu()).add(x),
    "sum in place": lambda x: operator_iadd(x.relu(), x),
    "a constant, and what it was added to": lambda x: (x + 1) + x.relu(),
    "differences": lambda x: (1 - x) - 0.5,
    "quotient and product": lambda x: 3 * x / torch.tensor([1.0, 2, 3, -4, 5, 6]).view(6, 1, 1),
    "a constant that NumPy has no type for": lambda x: x * torch.tensor([1.0, 2, 3, -4, 5, 6]).bfloat16().view(6, 1, 1),
    "cat": lambda x: torch.cat([x, x.relu(), x], dim=1),
    "cat of flattened images": lambda x: torch.cat([x.flatten(1), x.relu().mean((2, 3)), (-1 * x).flatten(1)], -1),
    "max pool": lambda x: functional.max_pool2d(x, 2, 1),
    "average pool": lambda x: functional.avg_pool2d(x, 2),
    "average pool of the whole": lambda x: functional.avg_pool2d(x, x.size()[2:]),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, extents kept": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "view": lambda x: x.contiguous().view(x.size(0), x.size(1) * x.shape[2] * x.size(-1)),
    "reshape of all": lambda x: x.reshape((-1, 420)),
    "padding": lambda x: functional.pad(x, (1, 0, 2, 3)),
    "dropout": lambda x: functional.dropout(x, training=False),
    "gate": lambda x: x * torch.sigmoid(x),
    "hard gate": lambda x: functional.hardsigmoid(x) * x,
}


def operator_iadd(x: Any, y: Any) -> Any:
    x += y
    return x


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_the_scores_of_pytorch(name: str) -> None:
    imported(Applied(FUNCTIONS[name]))


@pytest.mark.parametrize("name, kind", [("gate", "silu"), ("hard gate", "hard_swish")])
def test_a_tensor_times_its_gate_is_one_layer(name: str, kind: str) -> None:
    model = imported(Applied(FUNCTIONS[name]))
    functions = [layer.function for layer in model.layers if isinstance(layer, float_model.Function)]
    assert functions == [kind] and kinds(model) == ["Input", "Conv2D", "Function", "Flatten", "Linear"]


def test_what_changes_a_tensor_in_place_changes_it_for_whoever_reads_it_later() -> None:
    def both(x: Any) -> Any:
        y = functional.relu_(x)
        return x + 2 * y

    assert kinds(imported(Applied(both))) == ["Input", "Conv2D", "Clamp", "BatchNorm", "Add", "Flatten", "Linear"]


# --- whole networks ---------------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):  # type: ignore[misc]
    """The block of MobileNetV2: expanded, depthwise, projected, added (Sandler et al. 2018, figure 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, 3 * channels, 1, bias=False), nn.BatchNorm2d(3 * channels), nn.ReLU6(inplace=True),
            nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False),
            nn.BatchNorm2d(3 * channels), nn.ReLU6(inplace=True),
            nn.Conv2d(3 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return x + self.block(x)


class Fire(nn.Module):  # type: ignore[misc]
    """The block of SqueezeNet: squeezed, expanded twice, joined (Iandola et al. 2016, figure 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 3, 1)
        self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.squeeze(x), inplace=True)
        return torch.cat([functional.relu(self.one(x)), functional.relu(self.three(x))], 1)


def mobile() -> Any:
    torch.manual_seed(3)
    return trained(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), InvertedResidual(8), InvertedResidual(8),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10)))  # fmt: skip


def squeeze() -> Any:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(6), Fire(8),
                         nn.Conv2d(8, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten())  # fmt: skip


@pytest.mark.parametrize("network", [mobile, squeeze])
def test_known_networks_give_the_scores_of_pytorch(network: Any) -> None:
    model = imported(network())
    assert model.shapes[model.layers[-1].name] == ((10,) if network is mobile else (7,))


def test_layers_are_named_after_the_nodes_of_the_trace() -> None:
    torch.manual_seed(0)
    shared = nn.ReLU()
    model = imported(nn.Sequential(nn.Conv2d(4, 2, 1), shared, shared, nn.Flatten(), nn.Linear(216, 3)))
    assert [layer.name for layer in model.layers] == ["input", "0", "1", "1_1", "3", "4"]


def test_weights_and_parameters_are_those_of_the_module() -> None:
    module = mobile()
    model = imported(module)
    assert model.parameters == sum(each.numel() for each in module.parameters())
    first = next(layer for layer in model.layers if isinstance(layer, float_model.Conv2D))
    np.testing.assert_array_equal(first.weights, module[0].weight.detach().numpy().transpose(0, 2, 3, 1))


def test_a_normalization_by_the_module_joins_that_of_the_caller() -> None:
    class Normalized(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last = nn.Linear(4, 3)
            self.register_buffer("mean", torch.tensor([0.5, 0.25, 0.125, 1.0]).view(1, 4, 1, 1))

        def forward(self, x: Any) -> Any:
            return self.last(((x - self.mean) / 0.5).mean((2, 3)))

    model = imported(Normalized())
    assert kinds(model) == ["Input", "GlobalAveragePool", "Linear"]
    # ((g - mean) / deviation - m) / s = (g - (mean + m * deviation)) / (deviation * s), each a sum of powers of two
    np.testing.assert_array_equal(model.input.deviation, np.float32([0.125, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(model.input.mean, [0.4 + 0.125, 0.5 + 0.125, 0.25 + 0.125, 0.125 + 2], rtol=1e-7)


def test_an_image_that_is_turned_negative_is_no_normalization() -> None:
    """Equation (3) holds for slopes above 0: there is no negative deviation."""

    class Negative(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.last(self.first(1 - x).relu().mean((2, 3)))

    model = imported(Negative())
    assert kinds(model) == ["Input", "BatchNorm", "Conv2D", "Clamp", "GlobalAveragePool", "Linear"]
    np.testing.assert_array_equal(model.input.deviation, np.float32(DEVIATION))


def test_a_constant_behind_a_linear_layer_joins_its_bias() -> None:
    class Shifted(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last = nn.Linear(4, 3, bias=False)

        def forward(self, x: Any) -> Any:
            return self.last(x.mean((2, 3))) + torch.tensor([1.0, 2.0, 3.0])

    model = imported(Shifted())
    assert kinds(model)[-1] == "Linear"
    np.testing.assert_array_equal(model.layers[-1].bias, np.float32([1, 2, 3]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("end, name", [(nn.Softmax(1), "Softmax"), (nn.LogSoftmax(-1), "LogSoftmax")])
def test_a_softmax_at_the_end_is_left_out_and_said_to_be(end: Any, name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    model = torch_import.float_model(nn.Sequential(network, end), SHAPE, provenance="by hand", class_names="abc")
    expected = scores_of(network, some_images(), 0, 1)
    np.testing.assert_allclose(float_engine.scores(model, some_images()), expected, atol=1e-5 * np.abs(expected).max())
    assert model.provenance == f"by hand; {name} at the end left out" and model.class_names == ("a", "b", "c")


class OnePixel(nn.Module):  # type: ignore[misc]
    """Scores `(N, C, 1, 1)`, as of a network that is convolutions all through."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.end = nn.Conv2d(4, 3, 3), end

    def forward(self, x: Any) -> Any:
        return self.end(self.first(x).mean((2, 3), keepdim=True))


def test_the_classes_of_scores_of_one_pixel_are_the_second_dimension_and_not_the_last() -> None:
    expected = scores_of(OnePixel(nn.Identity()), some_images())
    for dimension in (1, -3):
        model = torch_import.float_model(OnePixel(nn.Softmax(dimension)), SHAPE, MEAN, DEVIATION)
        np.testing.assert_allclose(float_engine.scores(model, some_images()), expected, rtol=1e-5, atol=1e-5)
        assert model.provenance == "Softmax at the end left out"
    for dimension in (-1, 2, -4):
        with pytest.raises(ModelFormatError, match=f"OnePixel: found Softmax over dimension {dimension} at the end"):
            torch_import.float_model(OnePixel(nn.Softmax(dimension)), SHAPE)


def test_the_module_is_left_as_it_was() -> None:
    module = mobile().double().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch_import.float_model(module, SHAPE)
    after = module.state_dict()
    assert module.training and module[1].training
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "PReLU; expected one of: Conv2d": lambda: nn.PReLU(),
    "node 'function': found ConvTranspose2d": lambda: nn.ConvTranspose2d(6, 3, 2),
    "found a product of two tensors": lambda: lambda x: x * x.relu(),
    "padding mode reflect; expected zeros": lambda: nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"),
    "padding of mode replicate": lambda: lambda x: functional.pad(x, (1, 1, 1, 1), mode="replicate"),
    "padding of mode constant and value 1": lambda: nn.ConstantPad2d(1, 1.0),
    "statistics of the batch": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "the approximation 'tanh'": lambda: nn.GELU("tanh"),
    "alpha 0.5; expected 1": lambda: nn.ELU(0.5),
    "alpha 2; expected 1": lambda: lambda x: torch.add(x, x, alpha=2),
    "dilation 2; expected 1": lambda: nn.MaxPool2d(2, dilation=2),
    "a padding that counts": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "divisor_override 3": lambda: nn.AvgPool2d(2, divisor_override=3),
    "height and width that divide": lambda: nn.AdaptiveAvgPool2d(2),
    "a mean over 1": lambda: lambda x: x.mean(1),
    "dimensions 2 to -1 flattened": lambda: nn.Flatten(2),
    r"put into \(N, 60, 7\)": lambda: lambda x: x.view(x.size(0), 60, 7),
    "dimension 2; expected 1": lambda: lambda x: torch.cat([x, x], 2),
    "a constant that is joined": lambda: lambda x: torch.cat([x, torch.zeros(1, 1, 7, 10).expand(2, 1, 7, 10)], 1),
    "dropout that goes on": lambda: lambda x: functional.dropout(x, 0.0),
    "a division by zero": lambda: lambda x: x / 0,
    "two tensors subtracted": lambda: lambda x: x - x.relu(),
    r"a constant of shape \(10,\)": lambda: lambda x: x + torch.ones(10),
    "a sum of shapes": lambda: lambda x: x + x.mean((2, 3), keepdim=True),
    "unusual arguments": lambda: lambda x: torch.clamp(x, 0, 1, out=None),
    "attribute itemsize": lambda: lambda x: x + x.itemsize,
    "Softmax2d": lambda: nn.Softmax2d(),
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_a_float_model_cannot_hold_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(ModelFormatError, match=pattern) as caught:
        torch_import.float_model(Applied(REFUSED[pattern]()), SHAPE)
    assert str(caught.value).startswith("module Applied: node '") and "\n" not in str(caught.value)


UNUSUAL = {
    "a limit a channel": lambda x: torch.clamp(x, min=torch.zeros(6, 1, 1)),
    "a slope a channel": lambda x: functional.leaky_relu(x, torch.ones(6, 1, 1)),
    "an alpha a channel": lambda x: functional.elu(x, alpha=torch.ones(6, 1, 1)),
    "statistics that are numbers": lambda x: functional.batch_norm(x, 0.0, 1.0),
    "same padding of a flattened image": lambda x: functional.conv2d(
        x.flatten(1), torch.ones(1, 6, 3, 3), padding="same"),
    "same padding every 0 pixels": lambda x: functional.conv2d(x, torch.ones(1, 6, 3, 3), stride=0, padding="same"),
    "an extent that there is none of": lambda x: x / x.size(5),
    "one amount of padding": lambda x: functional.pad(x, 3),
    "a height that is text": lambda x: functional.adaptive_avg_pool2d(x, "a"),
    "dimensions that are text": lambda x: x.mean(("a", "b")),
    "a number beyond floats": lambda x: x * 10**400,
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_arguments_of_every_other_kind_are_refused_in_one_line(name: str) -> None:
    class Unusual(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 6, 3)

        def forward(self, x: Any) -> Any:
            return UNUSUAL[name](self.first(x))

    with pytest.raises(ModelFormatError, match="^module Unusual: node '.*': .*found .*; expected ") as caught:
        torch_import.float_model(Unusual(), SHAPE)
    assert "\n" not in str(caught.value)


def linear() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 3))


def test_a_softmax_over_anything_but_the_classes_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="found Softmax"):
        torch_import.float_model(nn.Sequential(linear(), nn.Softmax(0)), SHAPE)


def test_a_flattened_image_is_no_scores() -> None:
    with pytest.raises(ModelFormatError, match="a flattened image as the scores"):
        torch_import.float_model(nn.Flatten(), SHAPE)


def test_the_shape_of_the_image_is_that_of_the_weights() -> None:
    with pytest.raises(ModelFormatError, match=r"node '_1': .*input of shape \(428,\); expected \(432,\)"):
        torch_import.float_model(linear(), (107, 1, 4))


def test_a_normalization_has_a_number_a_channel() -> None:
    with pytest.raises(ParameterError, match="mean: found 2 values; expected one, or 4"):
        torch_import.float_model(linear(), SHAPE, mean=(0.5, 0.5))
    with pytest.raises(ModelFormatError, match="deviation holds a value of 0 or less"):
        torch_import.float_model(linear(), SHAPE, deviation=(0.0,))


def test_control_flow_that_depends_on_the_image_is_refused() -> None:
    class Branching(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

    with pytest.raises(ParameterError, match="module Branching: found none that can be traced"):
        torch_import.float_model(Branching(), SHAPE)


@pytest.mark.parametrize("output", ["tuple", "constant"])
def test_a_module_that_gives_no_scores_is_refused(output: str) -> None:
    class Other(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return (x, x) if output == "tuple" else torch.ones(2, 3)

    with pytest.raises(ModelFormatError, match="module Other: .*expected (one tensor of scores|a classifier)"):
        torch_import.float_model(Other(), SHAPE)


def test_a_module_that_does_other_than_its_trace_is_noticed() -> None:
    module = linear()
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ModelFormatError, match="scores other than those of its trace"):
        torch_import.float_model(module, SHAPE)


def test_a_float_model_that_differs_from_the_module_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = float_engine.scores
    wrong: Any = lambda model, images: right(model, images) * np.float32(1.001)  # noqa: E731
    monkeypatch.setattr(float_engine, "scores", wrong)
    with pytest.raises(ModelFormatError, match="module Sequential: found scores that differ by"):
        torch_import.float_model(linear(), SHAPE)


def test_an_offset_that_scores_share_hides_last_digits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    nn.init.constant_(module[-1].bias, 1e5)
    right_scores = float_engine.scores
    last_digits: Any = lambda model, images: np.nextafter(right_scores(model, images), np.float32(np.inf))  # noqa: E731
    monkeypatch.setattr(float_engine, "scores", last_digits)
    torch_import.float_model(module, SHAPE)
    right = FloatModelBuilder.conv2d
    wrong: Any = lambda self, name, source, weights, *rest, **more: right(self, name, source, -weights, *rest, **more)  # noqa: E501,E731
    monkeypatch.setattr(FloatModelBuilder, "conv2d", wrong)
    with pytest.raises(ModelFormatError, match="module Sequential: found scores that differ by"):
        torch_import.float_model(module, SHAPE)


def test_weights_that_are_not_finite_are_refused() -> None:
    module = linear()
    module[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelFormatError, match="node '_1': .*not finite"):
        torch_import.float_model(module, SHAPE)
