"""Architectures: the published networks, layer by layer, and first weights that anybody can draw again."""

from __future__ import annotations

from fractions import Fraction
from math import inf, prod, sqrt

import numpy as np
import pytest

from intsmooth_ref.data_tools.architectures import ARCHITECTURES, architecture, rounded_width
from intsmooth_ref.data_tools.float_model import Add, BatchNorm, Clamp, Conv2D, FloatModel, Linear, MaxPool
from intsmooth_ref.errors import IntsmoothError, ParameterError

SMALL = (32, 32, 3)

#: Of ImageNet, as published; VGG of torchvision counts a bias a convolution, and three linear layers.
IMAGENET = ((224, 224, 3), 1000)
TORCHVISION_MOBILENET_V2 = 3_504_872
TORCHVISION_VGG_BN = {11: 132_868_840, 13: 133_053_736, 16: 138_365_992}
VGG_LINEAR = prod((25088, 4096)) + 4096 + prod((4096, 4096)) + 4096 + prod((4096, 1000)) + 1000
#: Millions, of the models mobilenetv2_035 .. mobilenetv2_140 of the collection timm.
TIMM_MOBILENET_V2 = {"0.35": 1.68, "0.5": 1.97, "0.75": 2.64, "1": 3.50, "1.4": 6.11}
#: Millions, of table 6 of He et al. 2015, whose shortcuts have no parameters.
PUBLISHED_RESNET = {20: "0.27", 32: "0.46", 56: "0.85", 110: "1.7"}


def layers(model: FloatModel, kind: type) -> list:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def expression(model: FloatModel, name: str) -> str:
    """A layer as a formula of the input, which is "x"."""
    layer = next(each for each in model.layers if each.name == name)
    sources = [expression(model, each) for each in layer.inputs]
    if isinstance(layer, Conv2D):
        outputs, rows, columns, _ = layer.weights.shape
        assert layer.padding == (rows // 2, rows // 2, columns // 2, columns // 2)
        groups = "" if layer.groups == 1 else f" in {layer.groups}"
        return f"conv{rows}x{columns}/{layer.strides[0]}*{outputs}{groups}({sources[0]})"
    if isinstance(layer, Clamp):
        return f"{'relu' if layer.maximum == inf else f'relu{layer.maximum:g}'}({sources[0]})"
    if isinstance(layer, Add):
        return f"({sources[0]} + {sources[1]})"
    return {"Input": "x", "BatchNorm": f"norm({''.join(sources)})"}.get(layer.kind) or f"{layer.kind}({sources[0]})"


# --- the published networks -------------------------------------------------------------------------------------------


def test_resnet_8_is_the_formula_of_the_paper() -> None:
    def plain(source: str, channels: int) -> str:
        return f"relu((norm(conv3x3/1*{channels}(relu(norm(conv3x3/1*{channels}({source}))))) + {source}))"

    def halving(source: str, channels: int) -> str:
        branch = f"norm(conv3x3/1*{channels}(relu(norm(conv3x3/2*{channels}({source})))))"
        return f"relu(({branch} + norm(conv1x1/2*{channels}({source}))))"

    model = architecture("resnet8", SMALL, 10)
    formula = halving(halving(plain("relu(norm(conv3x3/1*16(x)))", 16), 32), 64)
    assert expression(model, "scores") == f"Linear(GlobalAveragePool({formula}))"


@pytest.mark.parametrize("depth", [8, 20, 32, 56, 110])
def test_a_resnet_has_the_layers_that_its_depth_counts(depth: int) -> None:
    model = architecture(f"resnet{depth}", SMALL, 10)
    shortcuts = [layer.name for layer in layers(model, Conv2D) if layer.weights.shape[1] == 1]
    assert shortcuts == ["stage2_1_shortcut", "stage3_1_shortcut"]
    assert len(layers(model, Conv2D)) - len(shortcuts) + len(layers(model, Linear)) == depth
    assert len(layers(model, Add)) == (depth - 2) // 2
    if depth in PUBLISHED_RESNET:
        shortcut_parameters = 16 * 32 + 32 * 64 + 2 * (32 + 64)
        published = PUBLISHED_RESNET[depth]
        millions = (model.parameters - shortcut_parameters) / 1e6
        assert f"{millions:.{len(published) - 2}f}" == published


def test_resnet_20_has_the_parameters_of_the_paper_and_two_shortcuts() -> None:
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64 + 32 + 64)
    assert architecture("resnet20", SMALL, 10).parameters == convolutions + shortcuts + norms + 650


def test_a_residual_branch_begins_as_zero_and_every_other_norm_as_the_identity() -> None:
    for layer in layers(architecture("resnet20", SMALL, 10), BatchNorm):
        expected = 0.0 if layer.name.endswith("conv2_norm") else 1.0
        assert (layer.scale == expected).all()
        assert not layer.shift.any() and not layer.mean.any() and (layer.variance == 1).all()


@pytest.mark.parametrize("depth", [11, 13, 16])
def test_vgg_has_the_convolutions_of_the_published_network(depth: int) -> None:
    model = architecture(f"vgg{depth}", (224, 224, 3), 10)
    biases = sum(len(layer.weights) for layer in layers(model, Conv2D))
    assert model.parameters - (512 * 10 + 10) + biases == TORCHVISION_VGG_BN[depth] - VGG_LINEAR
    assert len(layers(model, Conv2D)) == depth - 3
    assert [model.shapes[layer.name][0] for layer in layers(model, MaxPool)] == [112, 56, 28, 14, 7]


@pytest.mark.parametrize("side, pooled", [(64, [32, 16, 8, 4, 2]), (32, [16, 8, 4, 2]), (28, [14, 7, 3, 1]), (2, [])])
def test_vgg_pools_while_more_than_two_pixels_are_left(side: int, pooled: list[int]) -> None:
    model = architecture("vgg11", (side, side, 1), 10, Fraction(1, 8))
    assert [model.shapes[layer.name][:2] for layer in layers(model, MaxPool)] == [(size, size) for size in pooled]


def test_mobilenet_v2_is_the_published_network() -> None:
    model = architecture("mobilenetv2", *IMAGENET)
    assert model.parameters == TORCHVISION_MOBILENET_V2
    ends = [model.shapes[name] for name in model.shapes if name.endswith(("project_norm", "stem_relu6", "head_relu6"))]
    stages = [(112, 32), (112, 16), (56, 24), (28, 32), (14, 64), (14, 96), (7, 160), (7, 320), (7, 1280)]
    assert [end for end, before in zip(ends, [(), *ends]) if end != before] == [(s, s, c) for s, c in stages]
    assert len(layers(model, Add)) == 10  # blocks that keep their shape: 1 + 2 + 3 + 2 + 2
    assert {layer.maximum for layer in layers(model, Clamp)} == {6.0}


def test_a_block_of_mobilenet_v2_is_the_formula_of_the_paper() -> None:
    model = architecture("mobilenetv2", SMALL, 10)
    stem = "relu6(norm(conv3x3/1*32(x)))"
    first = f"norm(conv1x1/1*16(relu6(norm(conv3x3/1*32 in 32({stem})))))"
    assert expression(model, "stage1_1_project_norm") == first

    def block(source: str, inside: int, channels: int) -> str:
        wide = f"relu6(norm(conv1x1/1*{inside}({source})))"
        return f"norm(conv1x1/1*{channels}(relu6(norm(conv3x3/1*{inside} in {inside}({wide})))))"

    second = block(first, 96, 24)
    assert expression(model, "stage2_2_add") == f"({block(second, 144, 24)} + {second})"


@pytest.mark.parametrize("width, millions", TIMM_MOBILENET_V2.items())
def test_mobilenet_v2_of_other_widths_has_the_published_size(width: str, millions: float) -> None:
    assert round(architecture("mobilenetv2", *IMAGENET, Fraction(width)).parameters / 1e6, 2) == millions


@pytest.mark.parametrize("side, strides", [(8, (1, 1)), (32, (1, 1)), (33, (2, 1)), (64, (2, 1)), (96, (2, 2))])
def test_mobilenet_v2_halves_only_images_of_more_than_32_pixels_at_first(side: int, strides: tuple[int, int]) -> None:
    model = architecture("mobilenetv2", (side, side, 3), 10, Fraction(1, 4))
    found = {layer.name: layer.strides[0] for layer in layers(model, Conv2D)}
    assert (found["stem"], found["stage2_1_depthwise"]) == strides
    assert [found[f"stage{stage}_1_depthwise"] for stage in (1, 3, 4, 5, 6, 7)] == [1, 2, 2, 1, 2, 1]


@pytest.mark.parametrize("shape, stride", [((8, 8), 1), ((32, 32), 1), ((32, 33), 2), ((64, 64), 2)])
def test_a_resnet_halves_only_images_of_more_than_32_pixels_at_first(shape: tuple[int, int], stride: int) -> None:
    model = architecture("resnet8", (*shape, 3), 10)
    assert layers(model, Conv2D)[0].strides == (stride, stride)
    assert model.shapes["stage1_1_relu"][:2] == tuple(-(-side // stride) for side in shape)


# --- widths -----------------------------------------------------------------------------------------------------------


def test_widths_are_rounded_as_published() -> None:
    widths = (32, 16, 24, 32, 64, 96, 160, 320)
    assert [rounded_width(each, Fraction(35, 100)) for each in widths] == [16, 8, 8, 16, 24, 32, 56, 112]
    assert [rounded_width(each, Fraction(1, 2)) for each in widths] == [16, 8, 16, 16, 32, 48, 80, 160]
    assert [rounded_width(each, Fraction(14, 10)) for each in widths] == [48, 24, 32, 48, 88, 136, 224, 448]
    assert rounded_width(1, Fraction(1, 1000)) == 8


@pytest.mark.parametrize("name", ["resnet8", "vgg11"])
def test_width_multiplies_every_convolution(name: str) -> None:
    single, double = (architecture(name, SMALL, 10, width) for width in (Fraction(1, 2), Fraction(1)))
    for narrow, wide in zip(layers(single, Conv2D), layers(double, Conv2D)):
        assert 2 * len(narrow.weights) == len(wide.weights)


def test_a_block_is_added_where_rounding_makes_its_widths_equal() -> None:
    model = architecture("mobilenetv2", SMALL, 10, Fraction(35, 100))
    assert "stage2_1_add" in model.shapes and len(layers(model, Add)) == 11


# --- weights and shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_first_weights_have_the_deviation_of_equation_4(name: str) -> None:
    """Six standard errors: a layer of a correct network fails with probability 2e-9, and the seed is fixed."""
    for layer in layers(architecture(name, SMALL, 10), Conv2D) + layers(architecture(name, SMALL, 10), Linear):
        outputs, *kernel, inputs = layer.weights.shape
        deviation = sqrt(2 / (prod(kernel) * outputs / layer.groups)) if kernel else sqrt(1 / inputs)
        squares = float(np.mean((layer.weights.astype(np.float64) / deviation) ** 2))
        assert abs(squares - 1) < 6 * sqrt(2 / layer.weights.size), layer.name
        assert abs(layer.weights.mean() / deviation) < 6 / sqrt(layer.weights.size), layer.name


def test_first_weights_are_drawn_layer_by_layer_from_the_seed() -> None:
    model = architecture("resnet8", (8, 8, 1), 2, seed=3)
    generator = np.random.default_rng(3)
    stem, first = generator.standard_normal(9 * 16), generator.standard_normal(16 * 9 * 16)
    found = {layer.name: layer.weights for layer in layers(model, Conv2D)}
    assert np.array_equal(found["stem"].ravel(), (sqrt(2 / 144) * stem).astype(np.float32))
    assert np.array_equal(found["stage1_1_conv1"].ravel(), (sqrt(2 / 144) * first).astype(np.float32))
    other = architecture("resnet8", (8, 8, 1), 2, seed=4)
    assert not np.array_equal(found["stem"], layers(other, Conv2D)[0].weights)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (28, 28, 1), (17, 40, 3), (64, 64, 3)])
def test_images_of_any_size_give_a_score_a_class(name: str, shape: tuple[int, int, int]) -> None:
    model = architecture(name, shape, 7, Fraction(1, 8))
    assert model.input.shape == shape and model.shapes["scores"] == (7,)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_batch_norm_folds_into_a_convolution_without_bias_that_nothing_else_reads(name: str) -> None:
    model = architecture(name, SMALL, 10, Fraction(1, 8))
    kinds = {layer.name: layer for layer in model.layers}
    readers = [source for layer in model.layers for source in layer.inputs]
    norms = layers(model, BatchNorm)
    assert len(norms) == len(layers(model, Conv2D))
    for norm in norms:
        (source,) = norm.inputs
        assert isinstance(kinds[source], Conv2D) and kinds[source].bias is None and readers.count(source) == 1


@pytest.mark.parametrize(
    "name, shape, classes, width, problem",
    [
        ("resnet21", SMALL, 10, Fraction(1), "architecture 'resnet21': expected one of resnet8, resnet20"),
        ("resnet8", SMALL, 10, Fraction(0), "width 0: expected a number above zero"),
        ("vgg16", SMALL, 10, Fraction(-1), "width -1: expected a number above zero"),
        ("resnet8", SMALL, 10, Fraction(10**9), "layer 'stem': found weights of shape (16000000000, 3, 3, 3)"),
        ("resnet8", SMALL, 10, Fraction(200), "and at most 67108864 weights"),
        ("resnet8", SMALL, 0, Fraction(1), "layer 'scores': found weights of shape (0, 64); expected 1 to 65536"),
        ("resnet8", (8, 8, 0), 10, Fraction(1), "found weights of shape (16, 3, 3, 0)"),
    ],
)
def test_what_cannot_be_built_is_refused_before_memory_is_taken(
    name: str, shape: tuple[int, int, int], classes: int, width: Fraction, problem: str
) -> None:
    with pytest.raises(ParameterError) as refused:
        architecture(name, shape, classes, width)
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_an_image_too_large_is_refused() -> None:
    with pytest.raises(IntsmoothError, match="at most 67108864 elements"):
        architecture("resnet8", (60000, 60000, 1), 10)
