"""From a float model to an integer model: folding keeps the function, rounding is off by its rounding and no more."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from math import inf, prod
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_engine, float_model, quantize
from intsmooth_ref.data_tools.calibration import (
    CALIBRATION,
    KNOWN_ANSWERS,
    RangeChooser,
    Values,
    chosen_grid,
    known_answer_images,
    mean_square,
    min_max,
    noisy_images,
    range_chooser,
    values_of,
)
from intsmooth_ref.data_tools.float_file import save_float_model
from intsmooth_ref.data_tools.float_model import FloatLayer, FloatModel, Input
from intsmooth_ref.data_tools.folding import folded
from intsmooth_ref.data_tools.post_training import fused_clamps, kept_mean, nearest_mean, quantized
from intsmooth_ref.data_tools.quantization import activation_quantization, widened
from intsmooth_ref.dataset import Dataset, load_dataset, save_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import first_difference
from intsmooth_ref.errors import ArithmeticRangeError, ModelFormatError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model
from intsmooth_ref.model.layers import Conv2D, LookupTable, Quantization, Requantize
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table, sample

SHAPE = (8, 8, 3)
SAME = (1, 1, 1, 1)


class Network:
    """Grows a float model of random weights whose activations stay near 1."""

    def __init__(self, seed: int, mean: Sequence[float] = (0, 0, 0), deviation: Sequence[float] = (1, 1, 1)) -> None:
        self.random = np.random.default_rng(seed)
        means, deviations = np.float32(mean), np.float32(deviation)
        self.layers: list[FloatLayer] = [Input(name="image", shape=SHAPE, mean=means, deviation=deviations)]
        self.channels = {"image": 3}

    def floats(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape).astype(np.float32)

    def add(self, kind: type[FloatLayer], name: str, *inputs: str, channels: int = 0, **options: Any) -> str:
        self.layers.append(kind(name=name, inputs=inputs, **options))
        self.channels[name] = channels or self.channels[inputs[0]]
        return name

    def conv(self, name: str, source: str, channels: int, size: int = 3, groups: int = 1, **options: Any) -> str:
        depth = self.channels[source] // groups
        weights = self.floats(channels, size, size, depth) / np.float32((size * size * depth) ** 0.5)
        options = {"padding": (size // 2,) * 4, **options}
        return self.add(float_model.Conv2D, name, source, channels=channels, weights=weights, groups=groups, **options)

    def norm(self, name: str, source: str) -> str:
        n = self.channels[source]
        return self.add(
            float_model.BatchNorm, name, source, scale=1 + self.floats(n) / 4, shift=self.floats(n) / 4,
            mean=self.floats(n) / 4, variance=np.exp(self.floats(n) / 2),
        )  # fmt: skip

    def relu(self, name: str, source: str, maximum: float = inf) -> str:
        return self.add(float_model.Clamp, name, source, maximum=maximum)

    def linear(self, name: str, source: str, outputs: int, inputs: int = 0, **options: Any) -> str:
        inputs = inputs or self.channels[source]
        weights = self.floats(outputs, inputs) / np.float32(inputs**0.5)
        return self.add(float_model.Linear, name, source, channels=outputs, weights=weights, **options)

    def finish(self, source: str) -> FloatModel:
        self.add(float_model.GlobalAveragePool, "mean", source)
        self.linear("scores", "mean", 5, bias=self.floats(5))
        return FloatModel(tuple(self.layers), tuple("abcde"), "random")


def residual(**input_options: Any) -> FloatModel:
    net = Network(1, **input_options)
    x = net.relu("stem_relu", net.norm("stem_norm", net.conv("stem", "image", 6)))
    y = net.relu("relu1", net.norm("norm1", net.conv("conv1", x, 6, strides=(2, 2))))
    y = net.norm("norm2", net.conv("conv2", y, 6))
    x = net.norm("shortcut_norm", net.conv("shortcut", x, 6, size=1, strides=(2, 2)))
    return net.finish(net.relu("relu2", net.add(float_model.Add, "sum", y, x)))


def inception() -> FloatModel:
    """Branches that one concatenation alone reads, a pool among them, and one that is read elsewhere, too."""
    net = Network(2)
    x = net.relu("stem_relu", net.conv("stem", "image", 4))
    a = net.relu("a_relu", net.conv("a", x, 3, bias=net.floats(3)))
    b = net.add(float_model.MaxPool, "b_pool", net.conv("b", x, 2), kernel=(3, 3), padding=SAME)
    c = net.add(float_model.AveragePool, "c_pool", x, kernel=(3, 3), padding=SAME, count_include_pad=True)
    joined = net.add(float_model.Concat, "joined", a, b, c, x, channels=13)
    inner = net.add(float_model.Concat, "inner", net.conv("d", joined, 2), net.conv("e", joined, 3), channels=5)
    outer = net.add(float_model.Concat, "outer", inner, net.conv("f", joined, 4), channels=9)
    return net.finish(net.relu("late_relu", outer))


def mobile() -> FloatModel:
    net = Network(3)
    x = net.relu("relu6", net.norm("norm1", net.conv("conv1", "image", 8, strides=(2, 2))), maximum=0.75)
    x = net.norm("norm2", net.conv("depthwise", x, 8, groups=8))
    x = net.add(float_model.Function, "swish", x, function="hard_swish")
    x = net.add(float_model.Pad, "pad", net.conv("dilated", x, 4, groups=2, dilation=(2, 1), padding=(2, 0, 1, 0)),
                padding=(0, 1, 2, 0))  # fmt: skip
    x = net.add(float_model.Function, "leaky", x, function="leaky_relu", slope=0.125)
    return net.finish(net.add(float_model.Clamp, "hard_tanh", net.conv("last", x, 6), minimum=-0.5, maximum=0.25))


def odd_norms() -> FloatModel:
    """Batch normalization wherever it does not belong."""
    net = Network(4)
    x = net.norm("input_norm", "image")
    a = net.norm("twice2", net.norm("twice1", net.conv("conv1", x, 4)))
    shared = net.conv("shared", a, 4)
    b = net.norm("of_shared", shared)
    x = net.norm("of_sum", net.add(float_model.Add, "sum", b, shared))
    x = net.norm("of_relu", net.relu("relu", x))
    x = net.norm("of_pool", net.add(float_model.MaxPool, "pool", x, kernel=(2, 2), strides=(2, 2)))
    x = net.norm("of_concat", net.add(float_model.Concat, "concat", x, x, channels=8))
    v = net.norm("of_mean", net.add(float_model.GlobalAveragePool, "mean", x))
    net.norm("of_scores", net.linear("scores", v, 5))
    return FloatModel(tuple(net.layers))


def squeeze() -> FloatModel:
    """Its scores are averages."""
    net = Network(5)
    x = net.relu("relu1", net.conv("conv1", "image", 6, bias=net.floats(6)))
    x = net.relu("relu2", net.conv("classes", x, 5, size=1))
    net.add(float_model.GlobalAveragePool, "scores", x)
    return FloatModel(tuple(net.layers))


def perceptron(**input_options: Any) -> FloatModel:
    """Its scores are clamped."""
    net = Network(6, **input_options)
    x = net.linear("hidden", net.add(float_model.Flatten, "flat", "image"), 12, inputs=8 * 8 * 3)
    net.relu("relu2", net.linear("scores", net.relu("relu1", net.norm("norm", x)), 5, bias=net.floats(5)))
    return FloatModel(tuple(net.layers))


def pooled_input(**input_options: Any) -> FloatModel:
    net = Network(7, **input_options)
    pool = net.add(float_model.MaxPool, "pool", "image", kernel=(2, 2), strides=(2, 2))
    shrunk = net.conv("shrunk", "image", 3, size=1, strides=(2, 2), padding=(0, 0, 0, 0))
    half = net.relu("half", shrunk)
    total = net.add(float_model.Add, "sum", pool, shrunk)
    return net.finish(net.conv("conv", net.add(float_model.Add, "second_sum", total, half), 4))


EQUAL: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "deviation": (0.25, 0.5, 0.125)}
USUAL: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "deviation": (0.2470, 0.2435, 0.2616)}

MODELS: Mapping[str, Callable[[], FloatModel]] = {
    "residual": residual, "inception": inception, "mobile": mobile, "odd_norms": odd_norms, "squeeze": squeeze,
    "perceptron": perceptron, "pooled_input": pooled_input,
    "equal_means": lambda: residual(**EQUAL), "usual_means": lambda: residual(**USUAL),
    "normalized_perceptron": lambda: perceptron(**USUAL), "normalized_pool": lambda: pooled_input(**USUAL),
}  # fmt: skip


def pictures(count: int) -> np.ndarray:
    """Noisy images, int32: patches of 2x2 and noise of a quarter of full scale."""
    random = np.random.default_rng(7)
    patches = random.integers(0, 256, (count, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2)
    return (patches + np.rint(random.normal(size=(count, *SHAPE)) * 64)).astype(np.int32)


# --- folding ----------------------------------------------------------------------------------------------------------


def in_float64(layer: FloatLayer) -> FloatLayer:
    return replace(layer, **{name: array.astype(np.float64) for name, array in float_model.arrays(layer).items()})


def tensors_in_float64(model: FloatModel, images: np.ndarray) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for layer in map(in_float64, model.layers):
        if isinstance(layer, Input):
            tensors[layer.name] = (images / 255 - layer.mean) / layer.deviation
        else:
            tensors[layer.name] = float_engine.operate(layer, *(tensors[name] for name in layer.inputs))
    return tensors


def scores_in_float64(model: FloatModel, images: np.ndarray) -> np.ndarray:
    return tensors_in_float64(model, images)[model.layers[-1].name]


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_is_the_same_function_without_batch_normalization(name: str) -> None:
    model, images = MODELS[name](), pictures(4)
    plain = folded(model)
    assert not any(isinstance(layer, float_model.BatchNorm) for layer in plain.layers)
    assert {layer.name for layer in plain.layers} - {"normalized"} <= {layer.name for layer in model.layers}
    # weights are rounded to float32, 2**-24 of each, and there are few layers
    assert np.allclose(scores_in_float64(plain, images), scores_in_float64(model, images), rtol=0, atol=2e-6)


def test_folding_is_what_exact_fractions_give() -> None:
    weights, bias = np.float32([[1.5, -2.0], [0.25, 3.0]]), np.float32([1.0, -0.5])
    norm = float_model.BatchNorm(
        name="norm", inputs=("linear",), scale=np.float32([3.0, -1.0]), shift=np.float32([0.5, 0.125]),
        mean=np.float32([2.0, 0.75]), variance=np.float32([2.0, 0.0]), epsilon=0.25,
    )  # fmt: skip
    image = Input.fractions_of_full_scale("image", (1, 1, 2))
    flat = float_model.Flatten(name="flat", inputs=("image",))
    linear = float_model.Linear(name="linear", inputs=("flat",), weights=weights, bias=bias)
    layer = folded(FloatModel((image, flat, linear, norm))).layers[-1]
    assert isinstance(layer, float_model.Linear) and layer.bias is not None and layer.name == "linear"
    gains = [Fraction(3) / Fraction(3, 2), Fraction(-1) / Fraction(1, 2)]  # the roots of 9/4 and 1/4
    for channel, gain in enumerate(gains):
        assert [Fraction(w) for w in layer.weights[channel].tolist()] == [
            gain * Fraction(w) for w in weights[channel].tolist()
        ]
        shift, mean = Fraction(float(norm.shift[channel])), Fraction(float(norm.mean[channel]))
        assert Fraction(float(layer.bias[channel])) == gain * (Fraction(float(bias[channel])) - mean) + shift


def test_a_norm_is_folded_only_into_a_layer_that_it_alone_reads() -> None:
    kinds = {layer.name: layer.kind for layer in folded(odd_norms()).layers}
    gone = {"twice1", "twice2", "of_scores"}
    assert kinds == {layer.name: layer.kind.replace("BatchNorm", "Linear" if layer.name == "of_mean" else "Conv2D")
                     for layer in odd_norms().layers if layer.name not in gone}  # fmt: skip


def first_convolution(**input_options: Any) -> FloatModel:
    """A convolution with padding, and all that it gives."""
    net = Network(8, **input_options)
    net.conv("conv", "image", 4)
    return FloatModel((*net.layers, float_model.Flatten(name="flat", inputs=("conv",))))


def test_of_means_that_differ_padding_leaves_nothing_to_approximate() -> None:
    model, images = first_convolution(**USUAL), pictures(3)
    for asked in (None, 0.0, 0.5):
        plain = folded(model, asked)
        assert [layer.name for layer in plain.layers] == ["image", "normalized", "conv", "flat"]
        assert not plain.input.mean.any() and plain.input.deviation.tolist() == [1.0] * 3
        assert np.allclose(scores_in_float64(plain, images), scores_in_float64(model, images), rtol=0, atol=1e-6)


def test_another_mean_than_the_inputs_changes_the_border_alone() -> None:
    model, images = first_convolution(**EQUAL), pictures(3)
    plain = folded(model, 0.375)
    assert plain.input.mean.tolist() == [0.375] * 3 and plain.input.deviation.tolist() == [1.0] * 3
    difference = np.abs(scores_in_float64(plain, images) - scores_in_float64(model, images)).reshape(3, 8, 8, 4)
    assert difference[:, 1:-1, 1:-1].max() < 1e-6 < 0.1 < difference[:, 0].max()


def test_a_mean_is_kept_only_if_it_is_one_and_the_input_is_padded() -> None:
    assert folded(residual(**EQUAL)).input.mean.tolist() == [0.5] * 3
    assert folded(residual(**EQUAL), 0.25).input.mean.tolist() == [0.25] * 3
    for model in (perceptron(**EQUAL), perceptron(**USUAL), residual(**USUAL), pooled_input(**EQUAL)):
        assert not folded(model).input.mean.any() and not folded(model, 0.25).input.mean.any()


def test_an_input_that_is_not_read_by_products_alone_is_normalized_by_a_layer() -> None:
    layers = folded(pooled_input(**USUAL)).layers
    assert [layer.name for layer in layers[:2]] == ["image", "normalized"]
    assert all("image" not in layer.inputs for layer in layers[2:])
    assert not layers[0].mean.any()  # type: ignore[attr-defined]


def test_a_folded_weight_beyond_float32_is_refused() -> None:
    norm = float_model.BatchNorm(
        name="norm", inputs=("flat",), scale=np.float32([1e30, 1]), shift=np.zeros(2, np.float32),
        mean=np.zeros(2, np.float32), variance=np.zeros(2, np.float32), epsilon=1e-30,
    )  # fmt: skip
    image = Input.fractions_of_full_scale("image", (1, 1, 2))
    flat = float_model.Flatten(name="flat", inputs=("image",))
    with pytest.raises(ModelFormatError, match="layer 'norm': found a folded weight or bias beyond float32"):
        folded(FloatModel((image, flat, norm)))


def test_a_diagonal_that_no_layer_could_hold_is_refused() -> None:
    n = 100 * 100
    norm = float_model.BatchNorm(
        name="norm", inputs=("flat",), scale=np.ones(n, np.float32), shift=np.zeros(n, np.float32),
        mean=np.zeros(n, np.float32), variance=np.ones(n, np.float32),
    )  # fmt: skip
    flat = float_model.Flatten(name="flat", inputs=("image",))
    model = FloatModel((Input.fractions_of_full_scale("image", (100, 100, 1)), flat, norm))
    with pytest.raises(ModelFormatError, match="layer 'norm': found a batch normalization of 10000 values.* 8192$"):
        folded(model)


# --- values and ranges ------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_sampler_in_stages_of_their_own() -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, *SHAPE)).astype(np.uint8)
    table = noise_table(discrete_gaussian(Fraction(51)))
    for stage, number in ((CALIBRATION, 20), (KNOWN_ANSWERS, 21)):
        noise = sample(table, 5, 0, number, 0, 20, 192).reshape(20, *SHAPE)
        found = noisy_images(images, 50, Fraction(51), 5, stage)
        assert found.dtype == np.int32 and np.array_equal(found, images + noise)
    few = noisy_images(images, 7, Fraction(51), 5, CALIBRATION)
    denoised = few - sample(table, 5, 0, 20, 0, 7, 192).reshape(7, *SHAPE)
    assert len({image.tobytes() for image in denoised} & {image.tobytes() for image in images.astype(np.int32)}) == 7


def test_the_values_of_a_tensor_are_its_extremes_and_a_sample_of_it() -> None:
    images = np.arange(50 * 9000).reshape(50, 9000)
    found = values_of(lambda part: [("a", part), ("b", -part[:, :1])], images, 0, 7)
    a, b = found["a"], found["b"]
    assert (a.low, a.high, b.low, b.high) == (0, 449999, -441000, 0)
    assert sorted(-b.sample) == list(range(0, 450000, 9000))
    # the mean of 2**16 draws is off by more than 6.2 of its deviations with a probability of less than 1e-9
    assert 2**16 <= len(a.sample) < 2**16 + 50 and abs(a.sample.mean() - 225000) < 6.2 * 450000 / 12**0.5 / 2**8


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelFormatError, match="layer 'x': found values that are not finite"):
        values_of(lambda part: [("x", np.array([0.0, np.inf]))], np.zeros((1, 1)), 0, 1)


def values(*numbers: float) -> Values:
    return Values.of(np.array(numbers), len(numbers), np.random.default_rng(0))


def ends(grid: Quantization) -> tuple[float, float]:
    return float(-grid.zero_point * grid.scale), float((255 - grid.zero_point) * grid.scale)


def test_each_range_is_the_one_of_its_name() -> None:
    many = values(*np.linspace(-1, 1, 10001).tolist(), 50.0)
    step = 51 / 255
    assert ends(range_chooser("min-max", 99)(many)) == pytest.approx((-1, 50), abs=step)
    assert ends(range_chooser("percentile", 90)(many)) == pytest.approx((-0.8, 0.8), abs=0.01)
    assert 0.5 < ends(range_chooser("mse", 99)(many))[1] <= 50 * 1.01
    assert range_chooser("mse", 99) is mean_square


@pytest.mark.parametrize("name", quantize.RANGES)
@pytest.mark.parametrize("numbers", [(0.0, 0.0), (1e-9, 1e-9), (-3.0, -3.0), (*[0.0] * 10**5, 1.0)], ids=str)
def test_every_tensor_has_a_grid_dead_or_not(name: str, numbers: tuple[float, ...]) -> None:
    grid = chosen_grid(values(*numbers), range_chooser(name, 99.9))
    low, high = ends(grid)
    assert low <= min(numbers) * 0.49 and max(numbers) * 0.49 <= high and low <= 0 <= high
    seldom = Values(0.0, 2.0, np.zeros(100))  # what is not zero escaped the sample
    assert ends(chosen_grid(seldom, range_chooser(name, 99.9))) == pytest.approx((0, 2), rel=0.01)


# --- quantization, layer by layer -------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def made(name: str) -> tuple[FloatModel, IntegerModel]:
    model = MODELS[name]()
    return model, quantized(model, pictures(64))


def product_error(layer: Any, source: np.ndarray, counterpart: Any, scale: Fraction) -> np.ndarray:
    """How far rounded weights and biases can bring each output from the float layer's, for the very source."""
    if counterpart.requantization is None:
        units = np.array([float(counterpart.output.scale)])
    else:
        pairs = zip(counterpart.requantization.multiplier.tolist(), counterpart.requantization.shift.tolist())
        units = np.array([float(counterpart.output.scale * m / Fraction(2) ** s) for m, s in pairs])
    per_weight = (units / float(scale)).reshape(-1, *[1] * (layer.weights.ndim - 1))
    bias = 0.0 if layer.bias is None else layer.bias
    off = replace(
        layer, weights=np.abs(layer.weights - counterpart.weights * per_weight),
        bias=np.abs(bias - counterpart.bias * units),
    )  # fmt: skip
    assert (off.weights <= per_weight * 0.5001).all() and (off.bias <= units * 0.5001).all()  # rounded to nearest
    return float_engine.operate(off, np.abs(source))


@pytest.mark.parametrize("name", MODELS)
def test_every_integer_layer_is_within_its_rounding_of_the_float_layer_on_the_same_input(name: str) -> None:
    """Half a step of the output, and what rounding weights and biases can do at most; inside the grid's range."""
    model, integers = made(name)
    plain = folded(model, float(kept_mean(integers)))
    images = pictures(70)[64:]
    reals = {
        layer: float(integers.proofs[layer].scale) * (tensor.astype(np.float64) - integers.proofs[layer].zero_point)
        for layer, tensor in Engine(integers, "reference").trace(images)
    }
    by_name, clamps = {layer.name: layer for layer in plain.layers}, fused_clamps(plain)
    for layer in integers.layers:
        proof, sources = integers.proofs[layer.name], [reals[each] for each in layer.inputs]
        scale, extra = float(proof.scale), 0.0
        if layer is integers.input:
            expected = images / 255
        elif layer.name in by_name:
            tested = in_float64(by_name[layer.name])
            expected = float_engine.operate(tested, *sources)
            if isinstance(tested, (float_model.Conv2D, float_model.Linear)):
                extra = product_error(tested, sources[0], layer, integers.proofs[layer.inputs[0]].scale)
            if layer.name in clamps:
                expected = float_engine.operate(clamps[layer.name], expected)
        else:  # the same reals on another grid; the table of an input moves them by its mean
            expected = sources[0] - float(kept_mean(integers) if isinstance(layer, LookupTable) else 0)
        low, high = (0, 255) if proof.dtype == "uint8" else (-(2**31), 2**31)
        inside = np.clip(expected, scale * (low - proof.zero_point), scale * (high - proof.zero_point))
        exact = layer.kind in ("MaxPool", "Concat", "Flatten", "Pad") or proof.dtype == "int32"
        allowed = scale * (0 if exact else 0.5) + extra + 1e-6 * (scale + np.abs(inside))
        assert (np.abs(reals[layer.name] - inside) <= allowed).all(), layer.name


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_float_model_but_for_a_few_steps(name: str) -> None:
    model, integers = made(name)
    images = pictures(128)[64:]
    proof = integers.proofs[integers.output.name]
    found = float(proof.scale) * (Engine(integers, "reference").output(images).astype(float) - proof.zero_point)
    expected = scores_in_float64(model, images)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * expected.std(axis=1).mean()


def test_layers_have_the_names_of_the_folded_model() -> None:
    model, integers = made("residual")
    assert [layer.name for layer in integers.layers] == [
        "image", "stem", "conv1", "conv2", "shortcut", "sum", "mean", "scores"
    ]  # fmt: skip
    assert integers.class_names == model.class_names


def test_a_relu_is_the_clamp_to_the_grid_and_a_relu6_ends_where_6_is() -> None:
    stem = made("residual")[1].layers[1]
    assert isinstance(stem, Conv2D) and stem.output == Quantization.full_range("uint8", stem.output.scale, 0)
    conv1 = made("mobile")[1].layers[1]
    assert isinstance(conv1, Conv2D) and (conv1.output.minimum, conv1.output.zero_point) == (0, 0)
    assert abs(conv1.output.maximum * conv1.output.scale - Fraction(3, 4)) <= conv1.output.scale / 2
    assert 255 * conv1.output.scale < Fraction(3, 4) * Fraction(1001, 1000)  # no range beyond what can occur
    last = next(layer for layer in made("mobile")[1].layers if layer.name == "last")
    assert isinstance(last, Conv2D)
    scale, zero_point = last.output.scale, last.output.zero_point
    assert abs((last.output.minimum - zero_point) * scale + Fraction(1, 2)) <= scale
    assert abs((last.output.maximum - zero_point) * scale - Fraction(1, 4)) <= scale


def test_a_relu_that_cannot_be_fused_is_a_layer() -> None:
    kinds = {layer.name: layer.kind for layer in made("inception")[1].layers}
    assert kinds["late_relu"] == "Clamp" and "a_relu" not in kinds
    half, shrunk = (made("pooled_input")[1].proofs[name] for name in ("half", "shrunk"))
    assert half.minimum == half.zero_point > shrunk.minimum == 0  # the sum reads what is below zero


def clamped(minimum: float, maximum: float) -> FloatModel:
    """Values around zero, then clamps that are layers of their own: of an input, a pool, and what others read, too."""
    net = Network(9)
    of_input = net.add(float_model.Clamp, "of_input", "image", minimum=minimum, maximum=maximum)
    shared = net.conv("shared", "image", 3)
    of_shared = net.add(float_model.Clamp, "of_shared", shared, minimum=minimum, maximum=maximum)
    pool = net.add(float_model.MaxPool, "pool", net.conv("conv", "image", 3), kernel=(3, 3), padding=SAME)
    of_pool = net.add(float_model.Clamp, "of_pool", pool, minimum=minimum, maximum=maximum)
    joined = net.add(float_model.Concat, "joined", of_input, of_shared, of_pool, shared, channels=12)
    return net.finish(joined)


@pytest.mark.parametrize("choose", [range_chooser(name, 90) for name in quantize.RANGES], ids=quantize.RANGES)
@pytest.mark.parametrize("ends", [(9.0, inf), (-inf, -9.0), (9.0, 10.0), (0.125, 9.0), (-9.0, -0.125)], ids=str)
def test_a_clamp_reaches_its_ends_even_where_its_input_does_not(
    ends: tuple[float, float], choose: RangeChooser
) -> None:
    integers = quantized(clamped(*ends), pictures(16), choose)
    tensors = dict(Engine(integers, "reference").trace(pictures(20)[16:]))
    for name, source in (("of_input", "image"), ("of_shared", "shared"), ("of_pool", "pool")):
        proof = integers.proofs[name]
        found, read = (float(proof.scale) * (tensors[each].astype(int) - proof.zero_point) for each in (name, source))
        assert integers.proofs[source].scale == proof.scale
        assert np.abs(found - np.clip(read, *ends)).max() <= float(proof.scale) * 0.5001, name


@pytest.mark.parametrize("ends", [(9.0, inf), (-inf, -9.0)], ids=str)
def test_a_clamp_that_is_fused_reaches_its_ends_even_if_few_share_its_grid(ends: tuple[float, float]) -> None:
    net = Network(13)
    few = net.add(float_model.Clamp, "clamp", net.conv("few", "image", 1), minimum=ends[0], maximum=ends[1])
    joined = net.add(float_model.Concat, "joined", few, net.conv("many", "image", 30), channels=31)
    integers = quantized(net.finish(joined), pictures(16), range_chooser("percentile", 90))
    proof, tensor = integers.proofs["few"], dict(Engine(integers, "reference").trace(pictures(4)))["few"]
    assert proof.scale == integers.proofs["many"].scale
    found = float(proof.scale) * (tensor.astype(int) - proof.zero_point)
    assert np.abs(found - np.clip(0, *ends)).max() <= float(proof.scale) * 0.5001


def test_what_a_concatenation_alone_reads_is_made_on_its_grid_and_the_rest_requantized() -> None:
    integers = made("inception")[1]
    moved = [layer for layer in integers.layers if isinstance(layer, Requantize)]
    assert {layer.inputs for layer in moved} == {("c_pool",), ("stem",)}
    grids = {name: (proof.scale, proof.zero_point) for name, proof in integers.proofs.items()}
    assert grids["a"] == grids["b"] == grids["b_pool"] == grids["joined"] != grids["stem"] == grids["c_pool"]
    assert grids["d"] == grids["e"] == grids["inner"] == grids["f"] == grids["outer"]


def test_what_differs_from_a_concatenation_in_its_zero_point_alone_is_requantized() -> None:
    def choose(values: Values) -> Quantization:
        return Quantization.full_range("uint8", Fraction(1, 16), 128 if values.low < 0 else 0)

    net = Network(10)
    positive = net.relu("relu", net.conv("conv", "image", 3))
    joined = net.add(float_model.Concat, "joined", positive, net.conv("other", positive, 3), channels=6)
    integers = quantized(net.finish(joined), pictures(16), choose)
    proof, tensors = integers.proofs["joined"], dict(Engine(integers, "reference").trace(pictures(4)))
    assert (integers.proofs["conv"].zero_point, proof.zero_point) == (0, 128)
    reals = [tensors["conv"].astype(int), tensors["joined"][..., :3].astype(int) - 128]
    assert reals[0].any() and np.array_equal(np.minimum(reals[0], 127), reals[1])


def test_a_grid_that_several_share_holds_them_all() -> None:
    model = inception()
    integers = quantized(model, pictures(16), min_max)
    for name, tensor in tensors_in_float64(folded(model), pictures(16)).items():
        proof = integers.proofs.get(name)
        if proof is not None and name not in ("scores", "a", "stem"):  # of a and stem, the ReLU's output counts
            low, high = (float(proof.scale) * (end - proof.zero_point) for end in (0, 255))
            assert low - float(proof.scale) <= tensor.min() and tensor.max() <= high + float(proof.scale), name


def pixels_as_scores() -> FloatModel:
    net = Network(11)
    net.add(float_model.Flatten, "scores", net.add(float_model.MaxPool, "pool", "image", kernel=(8, 8)))
    return FloatModel(tuple(net.layers))


@pytest.mark.parametrize("network", [squeeze, perceptron, pixels_as_scores])
def test_scores_of_8_bits_are_not_clipped(network: Callable[[], FloatModel]) -> None:
    model = network()
    proof = quantized(model, pictures(64), range_chooser("percentile", 90)).proofs["scores"]
    top = scores_in_float64(model, pictures(64)).max()
    assert proof.dtype == "uint8" and float(255 * proof.scale) >= top * (1 - 1e-5)


def test_bare_scores_have_one_scale() -> None:
    proof = made("residual")[1].proofs["scores"]
    assert proof.dtype == "int32" and proof.zero_point == 0


def test_the_zero_point_of_an_input_with_a_mean_is_what_the_float_network_pads_with() -> None:
    integers = made("equal_means")[1]
    table, grid = integers.layers[1], integers.input.output
    assert isinstance(table, LookupTable) and table.table.tolist() == list(range(256))
    assert table.output.scale == grid.scale
    padded_with = grid.scale * (table.output.zero_point - grid.zero_point)  # as a fraction of full scale
    assert padded_with == kept_mean(integers) and abs(padded_with - Fraction(1, 2)) <= grid.scale / 2
    for name in ("residual", "normalized_perceptron", "usual_means", "normalized_pool"):
        assert kept_mean(made(name)[1]) == 0


@pytest.mark.parametrize("choose", [range_chooser(name, 90) for name in quantize.RANGES], ids=quantize.RANGES)
@pytest.mark.parametrize("mean", [0.5, 1.5, -3.0])
def test_padding_is_the_mean_to_within_half_a_step_even_where_no_pixel_comes_near_it(
    mean: float, choose: RangeChooser
) -> None:
    model, dark = first_convolution(mean=[mean] * 3, deviation=[0.25] * 3), pictures(32) // 5
    integers = quantized(model, dark, choose)
    scale = integers.input.output.scale
    assert abs(kept_mean(integers) - Fraction(mean)) <= scale / 2
    # three rows and columns of nine taps are padding at most, off by half a step each
    exact, kept = (scores_in_float64(folded(model, each), dark) for each in (None, float(kept_mean(integers))))
    weights = folded(model).layers[1].weights  # type: ignore[attr-defined]
    assert np.abs(exact - kept).max() <= np.abs(weights).sum(axis=(1, 2, 3)).max() * float(scale) / 2 + 1e-6


def test_the_point_that_is_nearest_to_a_mean_is_on_the_grid() -> None:
    grid = activation_quantization(-99.5 / 256, 155.5 / 256)  # in steps: -100 .. 155
    assert (grid.scale, grid.zero_point) == (Fraction(1, 256), 100)
    for mean, expected in ((155.5, 155), (-100.5, -100), (17.25, 17)):
        model = folded(first_convolution(mean=[mean / 256] * 3))
        assert widened(grid, mean / 256) is grid and nearest_mean(model, grid) == Fraction(expected, 256)


def dead(weights: Callable[[np.ndarray], np.ndarray], bias: float) -> FloatModel:
    """Channel 2 of the first convolution has such weights and such a bias."""
    model = residual()
    changed = []
    for layer in folded(model).layers:
        if layer.name == "stem":
            assert isinstance(layer, float_model.Conv2D) and layer.bias is not None
            new_weights, new_bias = layer.weights.copy(), layer.bias.copy()
            new_weights[2], new_bias[2] = weights(new_weights[2]), bias
            layer = replace(layer, weights=new_weights, bias=new_bias)
        changed.append(layer)
    return FloatModel(tuple(changed), model.class_names)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-30, 1e-44])
@pytest.mark.parametrize("bias", [0.0, 0.7, -1e4, -1e9])
def test_channels_that_training_has_switched_off_do_no_harm(size: float, bias: float) -> None:
    model = dead(lambda weights: weights * np.float32(size), bias)
    integers = quantized(model, pictures(32))
    stem = dict(Engine(integers, "reference").trace(pictures(8)))["stem"][..., 2]
    expected = min(max(Fraction(bias) / integers.proofs["stem"].scale, Fraction(0)), Fraction(255))
    assert np.abs(stem - float(expected)).max() <= 0.5001


def test_a_network_whose_branches_are_zero_is_quantized() -> None:
    model = residual()
    zeroed = [
        replace(layer, scale=np.zeros(6, np.float32), shift=np.zeros(6, np.float32))
        if isinstance(layer, float_model.BatchNorm) and layer.name == "norm2" else layer
        for layer in model.layers
    ]  # fmt: skip
    integers = quantized(FloatModel(tuple(zeroed)), pictures(16))
    assert not dict(Engine(integers, "reference").trace(pictures(2)))["conv2"].any()


def test_a_ratio_that_no_multiplier_expresses_names_its_layer() -> None:
    model = residual()
    layers = [
        replace(layer, weights=layer.weights * np.float32(0), bias=np.full(5, 1e-45, np.float32))
        if isinstance(layer, float_model.Linear) else layer
        for layer in model.layers
    ]  # fmt: skip
    quantized(FloatModel(tuple(layers)), pictures(4))  # bare scores have no multiplier
    huge = dead(lambda weights: weights * np.float32(1e30), 0.0)
    tiny = [replace(layer, maximum=1e-30) if layer.name == "stem_relu" else layer for layer in huge.layers]
    with pytest.raises(ArithmeticRangeError, match="^layer 'stem': multiplier for a ratio"):
        quantized(FloatModel(tuple(tiny)), pictures(4))
    with pytest.raises(ArithmeticRangeError, match="^layer 'image': multiplier for a ratio"):
        quantized(first_convolution(mean=[1e12] * 3), pictures(4))


# --- the report and the program ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["equal_means", "usual_means"])
def test_errors_are_roots_of_mean_squares_in_steps_from_the_float_network_as_it_was_trained(name: str) -> None:
    model, integers = made(name)
    images = pictures(6)
    found = quantize.agreement(model, integers, images)
    floats, integer = tensors_in_float64(model, images), dict(Engine(integers, "reference").trace(images))
    for name, float_name in (("stem", "stem_relu"), ("shortcut", "shortcut_norm"), ("sum", "relu2"), ("mean", "mean")):
        proof = integers.proofs[name]
        steps = integer[name].astype(float) - proof.zero_point - floats[float_name] / float(proof.scale)
        assert found.errors[name] == pytest.approx(np.sqrt(np.mean(steps**2)), rel=1e-3)
    grid = integers.input.output
    pixels = integer["image"].astype(float) - grid.zero_point - images / 255 / float(grid.scale)
    assert found.errors["image"] == pytest.approx(np.sqrt(np.mean(pixels**2)), rel=1e-3)
    same = integer["scores"].argmax(axis=1) == floats["scores"].argmax(axis=1)
    assert (found.same_class, found.images) == (int(same.sum()), 6)


def test_a_class_is_compared_with_the_float_network_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, integers = made("usual_means")
    images = pictures(6)
    same = quantize.agreement(model, integers, images).same_class
    monkeypatch.setattr(quantize, "folded", lambda model: folded(upside_down(model)))
    wrong = quantize.agreement(model, integers, images)
    assert wrong.same_class == same > 3 and wrong.errors["mean"] < 1


def upside_down(model: FloatModel) -> FloatModel:
    """Its least score is the largest."""
    *layers, last = model.layers
    negated = {field: -array for field, array in float_model.arrays(last).items()}
    return FloatModel((*layers, replace(last, **negated)), model.class_names)


def test_a_report_says_less_only_of_what_is_less() -> None:
    def last_lines(model: FloatModel) -> str:
        integers = quantized(model, pictures(8))
        return "\n".join(quantize.report(model, integers, pictures(8)))

    assert "parameters: 0 bytes of floats, " in last_lines(pixels_as_scores())
    net = Network(12)
    net.linear("scores", net.add(float_model.GlobalAveragePool, "mean", "image"), 1)
    assert " less" not in last_lines(pixels_as_scores()) + last_lines(FloatModel(tuple(net.layers)))
    plenty = perceptron()
    integer_bytes = quantized(plenty, pictures(8)).parameter_bytes
    percent = 100 * (1 - Fraction(integer_bytes, 4 * plenty.parameters))
    assert f" {integer_bytes} bytes of integers, {float(percent):.1f}% less" in last_lines(plenty)


def test_no_more_images_are_computed_at_once_than_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, seen = residual(), pictures(20), []

    def counted(model: FloatModel, images: np.ndarray) -> Any:
        seen.append(len(images))
        return traced(model, images)

    traced = float_engine.trace
    monkeypatch.setattr(float_engine, "trace", counted)
    monkeypatch.setattr(float_engine, "FLOATS", 3 * sum(map(prod, model.shapes.values())))
    integers = quantized(model, images)
    assert max(seen) <= 4 and sum(seen) == 20  # what is folded is less
    seen.clear()
    quantize.agreement(model, integers, images)
    assert max(seen) <= 3 and sum(seen) == 40
    seen.clear()
    float_engine.scores(model, images)
    assert max(seen) <= 3 and sum(seen) == 20


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a float model and images."""
    save_float_model(tmp_path / "float.h5", residual(**USUAL))
    images, labels = np.clip(pictures(40), 0, 255).astype(np.uint8), np.zeros(40, np.int64)
    splits = [Dataset(images, labels, ("a",), "made up", split) for split in ("train", "test")]
    save_dataset(tmp_path / "data.h5", splits)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    paths = [str(folder / name) for name in ("float.h5", "data.h5", "out.h5")]
    return quantize.main([*paths, "--sigma", "0.25", *options])


def test_the_program_writes_a_model_whose_known_answers_every_engine_gives(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files) == 0
    file = load_model(files / "out.h5")
    assert file.known_answers is not None and len(file.known_answers.inputs) == 16
    assert first_difference(Engine(file.model), file.known_answers) is None
    images = load_dataset(files / "data.h5", "train").images
    expected = noisy_images(images, 16, Fraction(255, 4), 0, KNOWN_ANSWERS)
    assert np.array_equal(file.known_answers.inputs, expected)
    same = quantized(residual(**USUAL), noisy_images(images, 512, Fraction(255, 4), 0, CALIBRATION))
    assert [layer.name for layer in same.layers] == [layer.name for layer in file.model.layers]
    assert same.input.output == file.model.input.output
    printed = capsys.readouterr().out
    assert all(layer.name in printed for layer in file.model.layers)
    assert "same class as the float network:" in printed and "fingerprint" in printed


def test_known_answers_take_no_more_of_a_file_than_the_weights_of_a_small_network() -> None:
    for side, expected in ((8, 16), (24, 2), (32, 1), (64, 1)):
        images = np.zeros((20, side, side, 3), np.uint8)
        found = known_answer_images(images, Fraction(255, 4), 0)
        assert found.shape == (expected, side, side, 3) and (expected == 1 or found.nbytes <= 1 << 14)


def test_a_layer_that_is_added_has_a_legal_name_whatever_the_longest_name_is() -> None:
    long = "x" * 100  # as long as a name may be
    for means in ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6)):  # a table, and a convolution of one tap
        model = residual(mean=means, deviation=USUAL["deviation"])
        renamed = [
            replace(
                layer, name=long if layer.name == model.input.name else layer.name,
                inputs=tuple(long if name == model.input.name else name for name in layer.inputs),
            )
            for layer in model.layers
        ]  # fmt: skip
        integers = quantized(FloatModel(tuple(renamed)), pictures(16))
        assert len(integers.layers) == len(quantized(model, pictures(16)).layers)


def test_no_program_replaces_what_it_reads(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("float.h5", "data.h5"):
        before = (files / name).read_bytes()
        paths = [str(files / each) for each in ("float.h5", "data.h5", name)]
        assert quantize.main([*paths, "--sigma", "0.25", "--overwrite"]) == 1
        assert "is read by this command; expected another name" in capsys.readouterr().err
        assert (files / name).read_bytes() == before


def test_the_provenance_names_command_model_and_images(files: Path) -> None:
    options = "--split test --images 30 --range percentile --percentile 99 --seed 3"
    assert run(files, *options.split()) == 0
    provenance = load_model(files / "out.h5").model.provenance
    assert f"quantize float.h5 data.h5 out.h5 --sigma 1/4 {options} " in provenance
    assert hashlib.sha256((files / "float.h5").read_bytes()).hexdigest() in provenance
    assert load_dataset(files / "data.h5", "test").sha256 in provenance
    assert provenance.endswith(": random") and str(files) not in provenance


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(files: Path) -> None:
    assert run(files) == 0
    first = (files / "out.h5").read_bytes()
    assert run(files, "--overwrite") == 0
    assert (files / "out.h5").read_bytes() == first
    assert run(files, "--overwrite", "--seed", "1") == 0
    assert (files / "out.h5").read_bytes() != first


def test_a_file_is_replaced_only_when_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "out.h5").write_bytes(b"precious")
    assert run(files) == 1
    assert "out.h5: found a file already; expected none, or the option --overwrite" in capsys.readouterr().err
    assert (files / "out.h5").read_bytes() == b"precious"


def other_shape(folder: Path) -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    save_dataset(folder / "data.h5", [Dataset(images, np.zeros(2, np.int64), (), "", "train")])


def overflowing(folder: Path) -> None:
    first, conv, last = first_convolution().layers
    assert isinstance(conv, float_model.Conv2D)
    huge = replace(conv, weights=np.full(conv.weights.shape, 3e38, np.float32))
    save_float_model(folder / "float.h5", FloatModel((first, huge, last)))


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model": (lambda folder: (folder / "float.h5").unlink(), "float.h5: found no such file"),
    "not HDF5": (lambda folder: (folder / "float.h5").write_bytes(b"PK"), "float.h5: found no HDF5 signature"),
    "cut off": (
        lambda folder: (folder / "float.h5").write_bytes((folder / "float.h5").read_bytes()[:5000]), "truncated",
    ),
    "no images": (lambda folder: (folder / "data.h5").unlink(), "data.h5: found no such file"),
    "beyond float32": (overflowing, "layer 'conv': found values that are not finite; expected numbers"),
    "other shape": (other_shape, "data.h5: found images of shape (8, 8, 1); expected (8, 8, 3), the model's"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_wrong_is_one_line_and_no_file(files: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, found = SPOILED[case]
    spoil(files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(files) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and found in error and error.count("\n") == 1
    assert not (files / "out.h5").exists()


@pytest.mark.parametrize(
    "options, found",
    [(("--sigma", "1000"), "sigma"), (("--split", "none"), "no split 'none'"), (("--seed", str(2**64)), "seed")],
)
def test_an_impossible_option_is_one_line(
    files: Path, options: tuple[str, ...], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and found in error and error.count("\n") == 1


@pytest.mark.parametrize("options", ["--percentile 50", "--percentile x", "--range all", "--images 0"])
def test_an_option_without_meaning_is_a_matter_of_usage(files: Path, options: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(files, *options.split())
    assert stopped.value.code == 2


def test_ctrl_c_ends_the_program_with_a_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantized", interrupted)
    assert run(files) == 130
    assert capsys.readouterr().err == "interrupted\n" and not (files / "out.h5").exists()
