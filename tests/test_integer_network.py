"""Training in integers: the module's integers are the engine's, its gradients those of the reals they stand for."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from intsmooth_ref.data_tools import quantization
from intsmooth_ref.data_tools.digits import noisy
from intsmooth_ref.data_tools.quantization import activation_quantization
from intsmooth_ref.dataset import load_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import ArithmeticRangeError, IntsmoothError, ModelFormatError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model
from intsmooth_ref.model.layers import (
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    GlobalAveragePool,
    Layer,
    Linear,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Reshape,
)
from intsmooth_ref.model.proof import TensorProof

torch = pytest.importorskip("torch")

from intsmooth_ref.data_tools import integer_network  # noqa: E402
from intsmooth_ref.data_tools.integer_network import FLOAT32_INTEGERS, IntegerNetwork, fits_float32  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "weights"
Floats = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- networks ---------------------------------------------------------------------------------------------------------


def float_weights(model: IntegerModel) -> dict[str, Floats]:
    """The reals that a model's weights and biases stand for, by the ratios of its multipliers."""
    floats = {}
    for layer in model.layers:
        if isinstance(layer, (Conv2D, Linear)):
            units = [layer.output.scale] * len(layer.bias)
            if layer.requantization is not None:
                pairs = zip(layer.requantization.multiplier.tolist(), layer.requantization.shift.tolist())
                units = [layer.output.scale * Fraction(multiplier, 2**shift) for multiplier, shift in pairs]
            bias = np.array([float(b * unit) for b, unit in zip(layer.bias.tolist(), units)])
            source = model.proofs[layer.inputs[0]].scale
            scales = np.array([float(unit / source) for unit in units])
            weights = layer.weights * scales.reshape(-1, *[1] * (layer.weights.ndim - 1))
            floats[layer.name] = (weights.astype(np.float32), bias.astype(np.float32))
    return floats


def random_floats(seed: int, *shape: int) -> Floats:
    """Weights that keep the deviation of what they multiply, about; one channel that is switched off."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    weights[-1] = 0
    return weights.astype(np.float32), generator.normal(0, 0.2, shape[0]).astype(np.float32)


def every_kind() -> tuple[IntegerModel, dict[str, Floats]]:
    """A network with each kind of layer that can be trained through, groups, dilation and lopsided padding."""
    pixels, rectified = activation_quantization(-0.6, 1.6), activation_quantization(0, 3)
    signed, summed = activation_quantization(-3, 3), activation_quantization(0, 4)
    floats = {
        "stem": random_floats(1, 8, 3, 3, 3), "depthwise": random_floats(2, 8, 3, 3, 1),
        "groups": random_floats(3, 8, 3, 3, 4), "mixed": random_floats(4, 16, 1, 1, 16),
        "hidden": random_floats(5, 12, 16), "scores": random_floats(6, 5, 12),
    }  # fmt: skip
    swished = activation_quantization(-0.4, 3)
    layers: tuple[Layer, ...] = (
        quantization.input_quantization("input", (32, 32, 3), Fraction(1, 255), pixels),
        quantization.conv2d("stem", "input", pixels, *floats["stem"], rectified, padding=(1, 1, 1, 1)),
        MaxPool(name="largest", inputs=("stem",), kernel=(3, 3), strides=(2, 2), padding=(0, 1, 0, 1)),
        quantization.conv2d("depthwise", "largest", rectified, *floats["depthwise"], signed, padding=(2, 2, 2, 2),
                            dilation=(2, 2), groups=8),
        quantization.add("sum", ("depthwise", "largest"), (signed, rectified), summed),
        quantization.conv2d("groups", "sum", summed, *floats["groups"], signed, strides=(2, 2), padding=(0, 1, 0, 1),
                            groups=2),
        AveragePool(name="means", inputs=("sum",), kernel=(3, 3), strides=(2, 2), padding=(0, 1, 0, 1)),
        quantization.requantize("brought", "means", summed, signed),
        Concat(name="joined", inputs=("groups", "brought")),
        quantization.lookup_table("swish", "joined", signed, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), swished),
        Clamp(name="clamped", inputs=("swish",), minimum=10, maximum=200),
        Pad(name="padded", inputs=("clamped",), padding=(1, 0, 2, 1)),
        AveragePool(name="blurred", inputs=("padded",), kernel=(2, 2), padding=(1, 0, 0, 1), count_include_pad=True),
        quantization.conv2d("mixed", "blurred", swished, *floats["mixed"], rectified),
        quantization.global_average_pool("mean", "mixed", rectified, 9 * 11, rectified),
        quantization.linear("hidden", "mean", rectified, *floats["hidden"], rectified),
        quantization.scores("scores", "hidden", rectified, *floats["scores"]),
    )  # fmt: skip
    return IntegerModel(layers), floats


def noisy_images(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    patches = generator.integers(0, 256, (count, shape[0] // 4, shape[1] // 4, shape[2])).repeat(4, 1).repeat(4, 2)
    return (patches + np.rint(generator.normal(0, 64, patches.shape))).astype(np.int32)


def digits() -> IntegerNetwork:
    model = load_model(FOLDER / "digits.h5").model
    return IntegerNetwork(model, float_weights(model))


def train(network: IntegerNetwork, images: np.ndarray, labels: np.ndarray, steps: int, rate: float) -> list[float]:
    """The losses of each step."""
    optimizer = torch.optim.SGD(network.parameters(), rate, 0.9)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels.copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- integers ---------------------------------------------------------------------------------------------------------


def assert_every_layer_is(engine: Engine, network: IntegerNetwork, images: np.ndarray) -> None:
    found = network.integers(images)
    for name, expected in engine.trace(images):
        assert found[name].dtype == expected.dtype and np.array_equal(found[name], expected), name
    assert list(found) == [layer.name for layer in network.model.layers]


@pytest.mark.slow
def test_ten_thousand_noisy_digits_have_the_engines_scores_before_and_after_training() -> None:
    dataset = load_dataset(FOLDER / "digits-images.h5")
    images = np.concatenate([noisy(dataset.images, 3, 30, draw) for draw in range(26)])
    assert len(images) > 10_000
    network = digits()
    for steps in (0, 6):
        before = network.export()
        train(network, images[:128], dataset.labels[:128], steps, 0.05)
        model = network.export()
        assert steps == 0 or any(
            not np.array_equal(old.weights, new.weights)
            for old, new in zip(before.layers, model.layers) if isinstance(old, Conv2D) and isinstance(new, Conv2D)
        )  # fmt: skip
        assert_every_layer_is(Engine(model), network, images)
        assert_every_layer_is(Engine(model, "reference"), network, images[:300])


def test_every_kind_of_layer_has_the_engines_integers_before_and_after_training() -> None:
    model, floats = every_kind()
    network = IntegerNetwork(model, floats)
    images = noisy_images(200, (32, 32, 3), seed=1)
    for steps in (0, 5):
        train(network, images[:40], np.arange(40) % 5, steps, 0.01)
        assert_every_layer_is(Engine(network.export(), "reference"), network, images)
    for layer in model.layers:  # nothing agrees because it is constant
        assert len(np.unique(network.integers(images[:9])[layer.name])) > 9, layer.name


def test_untrained_the_export_is_the_model_that_quantization_makes() -> None:
    model, floats = every_kind()
    exported = IntegerNetwork(model, floats).export("from a test")
    assert exported.provenance == "from a test"
    for mine, original in zip(exported.layers, model.layers):
        assert mine.kind == original.kind and mine.name == original.name
        if isinstance(mine, (Conv2D, Linear)) and isinstance(original, (Conv2D, Linear)):
            assert np.array_equal(mine.weights, original.weights) and np.array_equal(mine.bias, original.bias)
            assert mine.output == original.output
            for ours, theirs in zip(parts(mine.requantization), parts(original.requantization)):
                assert np.array_equal(ours, theirs)


def parts(requantization: Requantization | None) -> tuple[np.ndarray, ...]:
    return () if requantization is None else (requantization.multiplier, requantization.shift)


def test_the_scores_are_the_integers_times_their_scale_even_under_autocast() -> None:
    model, floats = every_kind()
    network = IntegerNetwork(model, floats)
    images = noisy_images(20, (32, 32, 3), seed=2)
    output = network.export().output
    assert isinstance(output, Linear)
    expected = network.integers(images)["scores"] * float(output.output.scale)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = network(torch.from_numpy(images))
        assert found.dtype == torch.float64
        assert np.array_equal(found.detach().numpy(), expected)


def test_the_class_is_the_engines_where_scores_differ_beyond_the_integers_of_float32() -> None:
    pixels = activation_quantization(0, 1)
    weights = np.ones((2, 3 * 64 * 64), np.float32)
    step = quantization.scores("scores", "flat", pixels, weights, np.zeros(2, np.float32)).output.scale
    floats = {"scores": (weights, np.array([0, step], np.float32))}
    layers = (
        quantization.input_quantization("input", (64, 64, 3), Fraction(1, 255), pixels),
        Flatten(name="flat", inputs=("input",)),
        quantization.scores("scores", "flat", pixels, *floats["scores"]),
    )
    network = IntegerNetwork(IntegerModel(layers), floats)
    images = np.full((3, 64, 64, 3), 255, np.int32) - np.arange(3, dtype=np.int32).reshape(3, 1, 1, 1)
    first, second = network.integers(images)["scores"].T.astype(np.int64)
    assert (first > FLOAT32_INTEGERS).all() and (second == first + 1).all()
    classes = Engine(network.export(), "reference").classify(images)
    assert np.array_equal(network(torch.from_numpy(images)).argmax(dim=1).numpy(), classes) and classes.all()


def test_twice_the_weights_give_twice_the_scores() -> None:
    model, floats = every_kind()
    doubled = {**floats, "scores": (2 * floats["scores"][0], 2 * floats["scores"][1])}
    images = torch.from_numpy(noisy_images(20, (32, 32, 3), seed=6))
    once, twice = (IntegerNetwork(model, each)(images) for each in (floats, doubled))
    assert torch.equal(2 * once, twice) and once.abs().min() > 0


def one_convolution(weights: np.ndarray, bias: np.ndarray, high: float) -> IntegerNetwork:
    """Of full-range uint8 inputs, then a mean over all pixels and scores."""
    pixels, grid = Quantization.full_range("uint8", Fraction(1, 255), 0), activation_quantization(0, high)
    last = np.eye(len(weights), dtype=np.float32), np.zeros(len(weights), np.float32)
    shape = (4, 4, weights.shape[3])
    layers = (
        quantization.input_quantization("input", shape, Fraction(1, 255), pixels),
        quantization.conv2d("conv", "input", pixels, weights, bias, grid),
        quantization.global_average_pool("mean", "conv", grid, 16, grid),
        quantization.scores("scores", "mean", grid, *last),
    )
    return IntegerNetwork(IntegerModel(layers), {"conv": (weights, bias), "scores": last})


def test_sums_beyond_the_integers_of_float32_are_exact() -> None:
    generator = np.random.default_rng(4)
    weights = (generator.integers(120, 128, (2, 1, 1, 1024)) / 127).astype(np.float32)
    weights[:, 0, 0, 0] = 1
    network = one_convolution(weights, np.zeros(2, np.float32), high=0.002)
    layer = network.export().layers[1]
    assert isinstance(layer, Conv2D) and not fits_float32(layer, network.model.proofs["input"])
    images = generator.integers(200, 256, (5, 4, 4, 1024)).astype(np.int32)
    totals = images.reshape(-1, 1024).astype(np.int64) @ layer.weights.reshape(2, 1024).T.astype(np.int64)
    assert (totals > FLOAT32_INTEGERS).all() and (totals % 2 == 1).any()  # which no float32 is
    steps = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    unused = torch.zeros(layer.weights.shape).permute(0, 3, 1, 2), torch.zeros(())
    exact = integer_network._Sums().exact(layer, network.model.proofs["input"], steps, *unused)
    assert np.array_equal(exact.permute(0, 2, 3, 1).reshape(-1, 2).numpy(), totals)
    assert_every_layer_is(Engine(network.export(), "reference"), network, images)


def test_biases_and_scores_beyond_the_integers_of_float32_are_exact() -> None:
    pixels = activation_quantization(0, 1)
    weights = np.random.default_rng(5).normal(0, 1e-6, (3, 12)).astype(np.float32)
    floats = {"scores": (weights, np.array([1.0, 0.9, -0.7], np.float32))}
    layers = (
        quantization.input_quantization("input", (2, 2, 3), Fraction(1, 255), pixels),
        Flatten(name="flat", inputs=("input",)),
        quantization.scores("scores", "flat", pixels, *floats["scores"]),
    )
    model = IntegerModel(layers)
    network, images = IntegerNetwork(model, floats), noisy_images(20, (4, 4, 3), seed=8)[:, :2, :2].copy()
    found = network.integers(images)["scores"]
    assert (np.abs(found.astype(np.int64)) > FLOAT32_INTEGERS).all() and (found % 2 == 1).any()
    assert_every_layer_is(Engine(model, "reference"), network, images)


def test_a_float32_sum_is_trusted_up_to_the_very_last_integer_that_float32_holds() -> None:
    source = TensorProof((1033,), "uint8", Fraction(1), 127, 0, 255)
    weights = np.full((2, 1033), -127, np.int8)
    weights[:, ::2] = 127
    layer = Linear(name="layer", inputs=("a",), weights=weights, bias=np.zeros(2, np.int32),
                   output=Quantization.full_range("int32", Fraction(1), 0))  # fmt: skip
    for last, fits in ((8, True), (-8, True), (9, False), (-9, False)):  # 127 below the zero point, 128 above
        weights[1, -1] = last
        worst = 128 * sum(abs(weight) for weight in weights[1].tolist())
        assert fits == (worst <= FLOAT32_INTEGERS) and abs(worst - FLOAT32_INTEGERS) in (0, 128)
        weights[0] = 0
        assert fits_float32(layer, source) == fits


@pytest.mark.parametrize("zero_point", [0, 255])
def test_steps_count_on_both_sides_of_the_zero_point(zero_point: int) -> None:
    source = TensorProof((1033,), "uint8", Fraction(1), zero_point, 0, 255)
    layer = Linear(name="layer", inputs=("a",), weights=np.full((1, 1033), 127, np.int8), bias=np.zeros(1, np.int32),
                   output=Quantization.full_range("int32", Fraction(1), 0))  # fmt: skip
    assert not fits_float32(layer, source)  # 255 * 127 * 1033 is twice 2**24
    assert fits_float32(replace(layer, weights=layer.weights[:, ::2].copy()), source)


Inexact = Callable[[torch.Tensor], torch.Tensor]


def inexact_convolutions(monkeypatch: pytest.MonkeyPatch, inexact: Inexact) -> None:
    """A library whose float32 convolutions give `inexact` of the sums."""
    convolution = integer_network.conv2d

    def other_convolution(steps: torch.Tensor, *rest: object) -> torch.Tensor:
        exact = convolution(steps, *rest)
        return inexact(exact) if steps.dtype == torch.float32 else exact

    monkeypatch.setattr(integer_network, "conv2d", other_convolution)


@pytest.mark.parametrize(
    "inexact",
    [
        lambda sums: sums * (1 + 1e-4),
        lambda sums: torch.where(sums < 0, sums + 0.5, sums),
        lambda sums: sums * (1 + 1e-4) if len(sums) == 30 else sums,
    ],
    ids=["always", "only where negative", "only of 30 images"],
)
def test_a_library_whose_float32_convolution_is_not_exact_is_found_out(
    monkeypatch: pytest.MonkeyPatch, inexact: Inexact
) -> None:
    inexact_convolutions(monkeypatch, inexact)
    model, floats = every_kind()
    convolutions = [layer for layer in model.layers if isinstance(layer, Conv2D)]
    assert all(fits_float32(layer, model.proofs[layer.inputs[0]]) for layer in convolutions)
    network, images = IntegerNetwork(model, floats), noisy_images(30, (32, 32, 3), 3)
    for count in (7, 30):
        assert_every_layer_is(Engine(model, "reference"), network, images[:count])


def test_it_is_found_out_though_the_first_sums_are_all_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    inexact_convolutions(monkeypatch, lambda sums: sums * 1.25)  # many steps off
    generator = np.random.default_rng(6)
    weights = generator.normal(0, 1, (2, 1, 1, 8)).astype(np.float32)
    network = one_convolution(weights, np.zeros(2, np.float32), high=8)
    engine, images = Engine(network.export(), "reference"), generator.integers(0, 256, (5, 4, 4, 8)).astype(np.int32)
    for each in (np.zeros_like(images), images):  # black pixels are zero steps
        assert_every_layer_is(engine, network, each)


def test_it_is_found_out_though_only_sums_that_are_large_are_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    inexact_convolutions(monkeypatch, lambda sums: torch.where(sums > 2**22, torch.round(sums / 2**18) * 2**18, sums))
    weights = np.full((2, 1, 1, 576), 0.8, np.float32)
    weights[:, 0, 0, 0] = 1
    network = one_convolution(weights, np.zeros(2, np.float32), high=500)
    layer = network.export().layers[1]
    assert isinstance(layer, Conv2D) and fits_float32(layer, network.model.proofs["input"])
    images = np.random.default_rng(7).integers(0, 256, (5, 4, 4, 576)).astype(np.int32)
    for each in (images // 16, images):
        assert_every_layer_is(Engine(network.export(), "reference"), network, each)


def test_where_sums_are_exact_no_second_ones_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, floats = every_kind()
    network, images = IntegerNetwork(model, floats), noisy_images(9, (32, 32, 3), 3)
    network.integers(images)
    monkeypatch.setattr(integer_network, "_float64_sums", None)  # not callable
    assert_every_layer_is(Engine(model, "reference"), network, images)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_reals_and_zero_beyond_the_clamp() -> None:
    generator = np.random.default_rng(7)
    pixels, grid = activation_quantization(-0.5, 1.5), activation_quantization(-1.0, 2.0)
    floats = {"hidden": random_floats(8, 6, 12), "scores": random_floats(9, 3, 6)}
    floats["hidden"][1][:3] = [-2.5, 0.5, 3.5]  # one is nearly always below its range, one nearly always above
    layers = (
        quantization.input_quantization("input", (2, 2, 3), Fraction(1, 255), pixels),
        Flatten(name="flat", inputs=("input",)),
        quantization.linear("hidden", "flat", pixels, *floats["hidden"], grid),
        quantization.scores("scores", "hidden", grid, *floats["scores"]),
    )
    model = IntegerModel(layers)
    network = IntegerNetwork(model, floats)
    images = generator.integers(-60, 320, (50, 2, 2, 3)).astype(np.int32)
    chosen = generator.normal(0, 1, (50, 3))
    loss = (network(torch.from_numpy(images)) * torch.from_numpy(chosen)).sum()
    loss.backward()

    hidden = model.layers[2]
    assert isinstance(hidden, Linear) and hidden.requantization is not None
    flat = (network.integers(images)["flat"].astype(np.int64) - pixels.zero_point).tolist()
    reals = float_weights(model)["scores"][0].astype(np.float64)
    gradient_of_hidden = chosen @ reals
    weights_gradient, bias_gradient, inside = np.zeros((6, 12)), np.zeros(6), 0
    for image, row in enumerate(flat):
        for unit in range(6):
            ratio = Fraction(int(hidden.requantization.multiplier[unit]), 2 ** int(hidden.requantization.shift[unit]))
            total = sum(w * x for w, x in zip(hidden.weights[unit].tolist(), row)) + int(hidden.bias[unit])
            if 0 <= grid.zero_point + ratio * total <= 255:
                inside += 1
                weights_gradient[unit] += gradient_of_hidden[image, unit] * np.array(row) * float(pixels.scale)
                bias_gradient[unit] += gradient_of_hidden[image, unit]
    assert 100 < inside < 250
    found = dict(network.named_parameters())
    assert np.allclose(found["hidden/weights"].grad.numpy(), weights_gradient, rtol=1e-4, atol=1e-5)
    assert np.allclose(found["hidden/bias"].grad.numpy(), bias_gradient, rtol=1e-4, atol=1e-5)
    units = network.integers(images)["hidden"].astype(np.float64) - grid.zero_point
    assert np.allclose(found["scores/weights"].grad.numpy(), chosen.T @ units * float(grid.scale), rtol=1e-4)
    assert np.allclose(found["scores/bias"].grad.numpy(), chosen.sum(axis=0), rtol=1e-4)


SOURCE = Quantization.full_range("uint8", Fraction(1, 64), 100)
NARROW = Quantization.full_range("uint8", Fraction(1, 100), 90)
NEVER_CLAMPED = Quantization.full_range("uint8", Fraction(1, 10), 128)


def clamped(x: torch.Tensor, output: Quantization) -> torch.Tensor:
    low, high = (float(output.scale * (end - output.zero_point)) for end in (output.minimum, output.maximum))
    return x.clamp(low, high)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)


@pytest.mark.parametrize(
    "layer, output, function",
    [
        (quantization.add("layer", ("a", "a"), (SOURCE, SOURCE), NARROW), NARROW, lambda x: clamped(2 * x, NARROW)),
        (quantization.requantize("layer", "a", SOURCE, NARROW), NARROW, lambda x: clamped(x, NARROW)),
        (quantization.global_average_pool("layer", "a", SOURCE, 36, NARROW), NARROW, lambda x: x.mean(dim=(2, 3))),
        (AveragePool(name="layer", inputs=("a",), kernel=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1)), SOURCE, pooled),
        (MaxPool(name="layer", inputs=("a",), kernel=(2, 3)), SOURCE,
         lambda x: torch.nn.functional.max_pool2d(x, (2, 3), 1)),
        (Clamp(name="layer", inputs=("a",), minimum=80, maximum=200), SOURCE,
         lambda x: x.clamp(-20 / 64, 100 / 64)),
        (Pad(name="layer", inputs=("a",), padding=(1, 2, 0, 1)), SOURCE,
         lambda x: torch.nn.functional.pad(x, (0, 1, 1, 2))),
        (Flatten(name="layer", inputs=("a",)), SOURCE, lambda x: x.permute(0, 2, 3, 1).flatten(1)),
        # without ties, the slope is the same between any two entries eight steps apart
        (quantization.lookup_table("layer", "a", SOURCE, lambda x: 3.02 - 3.2 * x, NEVER_CLAMPED), NEVER_CLAMPED,
         lambda x: 3.02 - 3.2 * x),
    ],
    ids=lambda value: value.kind if isinstance(value, Layer) else "",
)  # fmt: skip
def test_a_layer_without_weights_has_the_gradient_of_its_function(
    layer: Layer, output: Quantization, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    generator = np.random.default_rng(11)
    # no two values are alike, so that the largest of a window is one
    q = np.stack([generator.permutation(np.arange(9, 225, 6)).reshape(1, 6, 6) for _ in range(4)])
    steps = torch.from_numpy(q - SOURCE.zero_point).float().requires_grad_()
    proof = TensorProof((6, 6, 1), "uint8", SOURCE.scale, SOURCE.zero_point, 0, 255)
    found = integer_network.operate(layer, [proof] * len(layer.inputs), *[steps] * len(layer.inputs))
    real = (steps.detach().double() * float(SOURCE.scale)).requires_grad_()
    expected = function(real)
    assert found.shape == expected.shape
    assert (found.double() * float(output.scale) - expected).abs().max() <= 0.501 * float(output.scale)
    weights = torch.from_numpy(generator.normal(0, 1, tuple(expected.shape)))
    (gradient,) = torch.autograd.grad((found.double() * float(output.scale) * weights).sum(), steps)
    (reals_gradient,) = torch.autograd.grad((expected * weights).sum(), real)
    assert torch.allclose(gradient.double(), reals_gradient * float(SOURCE.scale), rtol=0.01, atol=1e-9)


def test_a_sum_gives_each_of_its_tensors_its_own_gradient() -> None:
    layer = quantization.add("layer", ("a", "b"), (SOURCE, NARROW), NEVER_CLAMPED)
    generator = np.random.default_rng(12)
    steps = [torch.from_numpy(generator.integers(-60, 61, (2, 3, 4, 4))).float().requires_grad_() for _ in range(2)]
    proofs = [TensorProof((4, 4, 3), "uint8", grid.scale, grid.zero_point, 0, 255) for grid in (SOURCE, NARROW)]
    found = integer_network.operate(layer, proofs, *steps) * float(NEVER_CLAMPED.scale)
    weights = torch.from_numpy(generator.normal(0, 1, (2, 3, 4, 4))).float()
    for gradient, grid in zip(torch.autograd.grad((found * weights).sum(), steps), (SOURCE, NARROW)):
        assert torch.allclose(gradient, weights * float(grid.scale), rtol=1e-4)


def test_joined_tensors_get_their_own_gradients() -> None:
    steps = [torch.full((2, channels, 3, 3), 5.0, requires_grad=True) for channels in (2, 3)]
    joined = integer_network.operate(Concat(name="layer", inputs=("a", "b")), [], *steps)
    weights = torch.arange(90.0).reshape(2, 5, 3, 3)
    first, second = torch.autograd.grad((joined * weights).sum(), steps)
    assert torch.equal(first, weights[:, :2]) and torch.equal(second, weights[:, 2:])


def test_the_loss_of_every_kind_of_layer_falls() -> None:
    model, floats = every_kind()
    images, labels = noisy_images(40, (32, 32, 3), seed=5), np.arange(40) % 5
    losses = train(IntegerNetwork(model, floats), images, labels, 25, 0.02)
    assert max(losses[-5:]) < min(losses[:5])


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(model: IntegerModel, floats: dict[str, Floats]) -> str:
    with pytest.raises(IntsmoothError) as problem:
        IntegerNetwork(model, floats)
    assert isinstance(problem.value, ModelFormatError) and "\n" not in str(problem.value)
    return str(problem.value)


def test_layers_without_a_gradient_are_refused_by_name() -> None:
    model, floats = every_kind()
    ends = ArgMax(name="decision", inputs=("hidden",))
    assert "layer 'decision' is of kind ArgMax; expected" in refused(IntegerModel((*model.layers[:-1], ends)), floats)
    reshaped = [*model.layers]
    reshaped[2:3] = [Reshape(name="same", inputs=("stem",), shape=(32, 32, 8)), replace(reshaped[2], inputs=("same",))]
    assert "layer 'same' is of kind Reshape; expected" in refused(IntegerModel(tuple(reshaped)), floats)


def test_other_roundings_are_refused() -> None:
    model, floats = every_kind()
    for index, layer in enumerate(model.layers):
        if isinstance(layer, (Requantize, GlobalAveragePool)):
            rounding = replace(layer.requantization, rounding="gemmlowp")
            changed = [*model.layers]
            changed[index] = replace(layer, requantization=rounding)
            message = refused(IntegerModel(tuple(changed)), floats)
            assert f"layer {layer.name!r} has rounding 'gemmlowp'; expected" in message


def test_weights_that_are_missing_or_of_another_shape_are_refused() -> None:
    model, floats = every_kind()
    assert "layer 'stem' has no float weights" in refused(model, {"mixed": floats["mixed"]})
    wrong = {**floats, "mixed": (floats["mixed"][0][:, :, :, :8], floats["mixed"][1])}
    assert "layer 'mixed' has float weights and bias of shapes ((16, 1, 1, 8), (16,))" in refused(model, wrong)
    flat = (model.layers[0], Flatten(name="flat", inputs=("input",)))
    assert "model has no weights" in refused(IntegerModel(flat), {})


def test_accumulators_before_the_last_layer_are_refused() -> None:
    model, floats = every_kind()
    layers = (*model.layers, Flatten(name="after", inputs=("scores",)))
    assert "layer 'scores' gives accumulators" in refused(IntegerModel(layers), floats)


def test_weights_that_are_no_numbers_are_an_error_of_one_line() -> None:
    network = digits()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ArithmeticRangeError):
        network(torch.zeros((1, 8, 8, 1), dtype=torch.int32))
