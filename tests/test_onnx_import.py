"""ONNX files become float models with the same scores; what else a file may hold is refused in one line.

The oracles are ONNX Runtime, and PyTorch for files that it exported.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from damage import damaged, run_elsewhere

from intsmooth_ref.data_tools import channels_first, float_engine, onnx_file, onnx_import
from intsmooth_ref.data_tools.float_file import load_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.errors import DatasetError, IntsmoothError, ModelFormatError
from intsmooth_ref.model.proof import MAX_ELEMENTS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
CHANNELS, HEIGHT, WIDTH = 3, 8, 11
GENERATOR = np.random.default_rng(5)
IMAGES = GENERATOR.integers(-100, 356, (5, HEIGHT, WIDTH, CHANNELS)).astype(np.int32)

Node = Callable[..., Any]
node: Node = onnx.helper.make_node


def values(*shape: int) -> np.ndarray:
    return GENERATOR.uniform(-1, 1, shape).astype(np.float32)


def network(
    nodes: list[Any], weights: dict[str, Any] | None = None, opset: int = 20, batch: Any = "n", output: str = "y",
    shape: tuple[Any, ...] = (CHANNELS, HEIGHT, WIDTH),
) -> Any:  # fmt: skip
    """A model that reads `x` and gives `output`."""
    image = onnx.helper.make_tensor_value_info("x", FLOAT, [batch, *shape])
    scores = onnx.helper.make_tensor_value_info(output, FLOAT, ["n", "classes"])
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = onnx.helper.make_graph(nodes, "network", [image], [scores], held)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def between(nodes: list[Any], weights: dict[str, Any], features: int, opset: int = 20) -> Any:
    """A model in which nodes that read `a` and give `b` stand between a convolution and a linear layer."""
    held = {"kernel": values(4, CHANNELS, 3, 3), "rows": values(features, 5), "offset": values(5), **weights}
    return network([node("Conv", ["x", "kernel"], ["a"]), *nodes, node("Flatten", ["b"], ["flat"]),
                    node("Gemm", ["flat", "rows", "offset"], ["y"])], held, opset)  # fmt: skip


def written(folder: Path, model: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def computed(model: Any, images: np.ndarray) -> np.ndarray:
    """The scores of ONNX Runtime, for images one by one."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    each = (images / np.float32(255)).astype(np.float32).transpose(0, 3, 1, 2)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: x[None]})[0].reshape(1, -1) for x in each])


def imported(folder: Path, model: Any) -> FloatModel:
    """The float model, held against ONNX Runtime on images of the test's own."""
    result = onnx_import.float_model(written(folder, model))
    expected = computed(model, IMAGES)
    np.testing.assert_allclose(
        float_engine.scores(result, IMAGES), expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )
    return result


def kinds(model: FloatModel) -> list[str]:
    return [layer.kind for layer in model.layers]


# --- every operation, by hand -----------------------------------------------------------------------------------------

# between a and b: nodes, weights, how many features b has, operator set; a is (4, 6, 9)
ALL = 4 * 6 * 9
OPERATIONS: dict[str, tuple[list[Any], dict[str, Any], int, int]] = {
    "Conv, pads": ([node("Conv", ["a", "w", "c"], ["b"], pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2],
                         kernel_shape=[3, 2])], {"w": values(5, 4, 3, 2), "c": values(5)}, 5 * 3 * 8, 11),
    "Conv, SAME_UPPER": ([node("Conv", ["a", "w"], ["b"], auto_pad="SAME_UPPER", strides=[2, 2])],
                         {"w": values(5, 4, 3, 4)}, 5 * 3 * 5, 11),
    "Conv, SAME_LOWER": ([node("Conv", ["a", "w"], ["b"], auto_pad="SAME_LOWER", strides=[2, 3])],
                         {"w": values(5, 4, 3, 4)}, 5 * 3 * 3, 11),
    "Conv, VALID": ([node("Conv", ["a", "w"], ["b"], auto_pad="VALID")], {"w": values(5, 4, 3, 4)}, 5 * 4 * 6, 11),
    "Conv, groups": ([node("Conv", ["a", "w"], ["b"], group=2)], {"w": values(6, 2, 3, 3)}, 6 * 4 * 7, 7),
    "BatchNormalization": ([node("BatchNormalization", ["a", "s", "t", "m", "v"], ["b"], epsilon=0.25)],
                           {"s": values(4), "t": values(4), "m": values(4), "v": values(4) ** 2}, ALL, 15),
    "BatchNormalization, opset 7": ([node("BatchNormalization", ["a", "s", "t", "m", "v"], ["b"])],
                                    {"s": values(4), "t": values(4), "m": values(4), "v": values(4) ** 2}, ALL, 7),
    "Relu": ([node("Relu", ["a"], ["b"])], {}, ALL, 7),
    "Clip, opset 7": ([node("Clip", ["a"], ["b"], min=-0.25, max=0.5)], {}, ALL, 7),
    "Clip, one side": ([node("Clip", ["a", "", "high"], ["b"])], {"high": np.float32(0.125)}, ALL, 13),
    "HardSwish": ([node("HardSwish", ["a"], ["b"])], {}, ALL, 14),
    "HardSigmoid": ([node("HardSigmoid", ["a"], ["b"], alpha=1 / 6)], {}, ALL, 14),
    "Sigmoid": ([node("Sigmoid", ["a"], ["b"])], {}, ALL, 14),
    "Tanh": ([node("Tanh", ["a"], ["b"])], {}, ALL, 14),
    "Elu": ([node("Elu", ["a"], ["b"])], {}, ALL, 14),
    "LeakyRelu": ([node("LeakyRelu", ["a"], ["b"], alpha=0.25)], {}, ALL, 14),
    "Gelu": ([node("Gelu", ["a"], ["b"])], {}, ALL, 20),
    "Add": ([node("Relu", ["a"], ["r"]), node("Add", ["r", "a"], ["b"])], {}, ALL, 14),
    "silu": ([node("Sigmoid", ["a"], ["s"]), node("Mul", ["s", "a"], ["b"])], {}, ALL, 14),
    "hard swish": ([node("HardSigmoid", ["a"], ["s"], alpha=1 / 6), node("Mul", ["a", "s"], ["b"])], {}, ALL, 11),
    "arithmetic": ([node("Mul", ["u", "a"], ["p"]), node("Sub", ["v", "p"], ["q"]), node("Div", ["q", "two"], ["r"]),
                    node("Add", ["r", "u"], ["b"])],
                   {"u": values(1, 4, 1, 1), "v": values(4, 1, 1), "two": np.float32([2])}, ALL, 14),
    "Concat": ([node("Relu", ["a"], ["r"]), node("Concat", ["r", "a", "r"], ["b"], axis=-3)], {}, 3 * ALL, 14),
    "MaxPool": ([node("MaxPool", ["a"], ["b"], kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[1, 2])], {},
                4 * 5 * 5, 12),
    "MaxPool, ceil": ([node("MaxPool", ["a"], ["b"], kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)], {},
                      4 * 3 * 5, 12),
    "MaxPool, SAME_LOWER": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], auto_pad="SAME_LOWER")], {}, ALL, 12),
    "AveragePool": ([node("AveragePool", ["a"], ["b"], kernel_shape=[3, 2], pads=[1, 0, 0, 1])], {}, 4 * 5 * 9, 11),
    "AveragePool, all count": ([node("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                                     count_include_pad=1)], {}, ALL, 11),
    "AveragePool, ceil": ([node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {},
                          4 * 3 * 5, 19),
    "AveragePool, whole": ([node("AveragePool", ["a"], ["b"], kernel_shape=[6, 9])], {}, 4, 11),
    "GlobalAveragePool": ([node("GlobalAveragePool", ["a"], ["g"]), node("Conv", ["g", "w"], ["b"])],
                          {"w": values(7, 4, 1, 1)}, 7, 11),
    "Squeeze": ([node("GlobalAveragePool", ["a"], ["g"]), node("Squeeze", ["g"], ["b"], axes=[-1, 2])], {}, 4, 11),
    "Squeeze, opset 13": ([node("GlobalAveragePool", ["a"], ["g"]), node("Squeeze", ["g", "over"], ["b"])],
                          {"over": np.int64([2, 3])}, 4, 13),
    "ReduceMean": ([node("ReduceMean", ["a"], ["b"], axes=[3, 2], keepdims=0)], {}, 4, 11),
    "ReduceMean, opset 18": ([node("ReduceMean", ["a", "over"], ["b"])], {"over": np.int64([-1, -2])}, 4, 18),
    "Pad, opset 10": ([node("Pad", ["a"], ["b"], pads=[0, 0, 1, 2, 0, 0, 3, 0])], {}, 4 * 10 * 11, 10),
    "Pad, opset 13": ([node("Pad", ["a", "p", "zero"], ["b"])],
                      {"p": np.int64([0, 0, 1, 2, 0, 0, 3, 0]), "zero": np.float32(0)}, 4 * 10 * 11, 13),
    "Pad, axes": ([node("Pad", ["a", "p", "", "over"], ["b"])],
                  {"p": np.int64([2, 1, 0, 3]), "over": np.int64([-1, 2])}, 4 * 10 * 11, 18),
    "Identity and Dropout": ([node("Identity", ["a"], ["i"]), node("Dropout", ["i"], ["b"])], {}, ALL, 13),
    "Reshape": ([node("Reshape", ["a", "to"], ["r"]), node("Relu", ["r"], ["b"])],
                {"to": np.int64([0, -1])}, ALL, 13),
    "Reshape, all but the batch": ([node("Reshape", ["a", "to"], ["b"])], {"to": np.int64([-1, ALL])}, ALL, 13),
    "Flatten": ([node("Flatten", ["a"], ["f"], axis=-3), node("MatMul", ["f", "w"], ["g"]),
                 node("Add", ["g", "c"], ["b"])], {"w": values(ALL, 6), "c": values(6)}, 6, 13),
    "Gemm": ([node("Flatten", ["a"], ["f"]), node("Gemm", ["f", "w", "c"], ["b"], alpha=0.5, beta=-2.0, transB=1)],
             {"w": values(6, ALL), "c": values(1)}, 6, 13),
    "Constant": ([node("Constant", [], ["c"], value_floats=[0.5, -1.0, 2.0, 1.0]),
                  node("Constant", [], ["over"], value_ints=[1, 2]), node("Unsqueeze", ["c", "over"], ["d"]),
                  node("Constant", [], ["e"], value=onnx.numpy_helper.from_array(values(4, 1, 1))),
                  node("Mul", ["d", "e"], ["f"]), node("Mul", ["a", "f"], ["b"])], {}, ALL, 13),
    "shape arithmetic": ([node("Shape", ["a"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
                          node("Unsqueeze", ["n"], ["m"], axes=[0]), node("Concat", ["m", "rest"], ["to"], axis=0),
                          node("Reshape", ["a", "to"], ["b"])], {"zero": np.int64(0), "rest": np.int64([-1])}, ALL, 11),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_scores_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    imported(tmp_path, between(*OPERATIONS[name]))


def test_gates_and_offsets_join_their_layers(tmp_path: Path) -> None:
    for name, expected in (("silu", ["Function", "Flatten", "Linear"]), ("Flatten", ["Flatten", "Linear", "Linear"])):
        assert kinds(imported(tmp_path, between(*OPERATIONS[name]))) == ["Input", "Conv2D", *expected]


def test_initializers_may_be_constant_nodes(tmp_path: Path) -> None:
    model = between([node("Relu", ["a"], ["b"])], {}, ALL)
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    imported(tmp_path, model)


def test_initializers_may_be_listed_as_inputs(tmp_path: Path) -> None:
    model = between([node("Relu", ["a"], ["b"])], {}, ALL)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    imported(tmp_path, model)


def test_the_batch_may_be_one(tmp_path: Path) -> None:
    model = between([node("Relu", ["a"], ["b"])], {}, ALL)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    imported(tmp_path, model)


def test_layers_are_named_after_the_nodes(tmp_path: Path) -> None:
    weights = {"w": values(2, CHANNELS * HEIGHT * WIDTH)}
    nodes = [node("Flatten", ["x"], ["/a/b:0"]), node("Relu", ["/a/b:0"], ["r"], name="x y " * 40 + "z"),
             node("Gemm", ["r", "w"], ["y"], transB=1, name="input")]  # fmt: skip
    first, second, third, last = [layer.name for layer in imported(tmp_path, network(nodes, weights)).layers]
    assert [first, second, last] == ["input", "a_b_0", "input_2"]
    assert third == ("x_y_" * 40 + "z")[-90:].strip("_")


def test_a_normalization_at_the_input_joins_that_of_the_caller(tmp_path: Path) -> None:
    """The usual one, of grey levels 0 to 255: `(g - mean) / deviation`, mean and deviation in grey levels."""
    mean, deviation = np.float32([124, 116, 104]), np.float32([58, 57, 64])
    nodes = [node("Sub", ["x", "m"], ["c"]), node("Div", ["c", "d"], ["z"]), node("GlobalAveragePool", ["z"], ["g"]),
             node("Conv", ["g", "w"], ["s"]), node("Flatten", ["s"], ["y"])]  # fmt: skip
    weights = {"m": mean.reshape(1, 3, 1, 1), "d": deviation.reshape(3, 1, 1), "w": values(4, 3, 1, 1)}
    path = written(tmp_path, network(nodes, weights))
    model = onnx_import.float_model(path, deviation=(1 / 255,))
    assert kinds(model) == ["Input", "GlobalAveragePool", "Linear"]
    np.testing.assert_allclose(model.input.mean, mean / 255, rtol=1e-6)
    np.testing.assert_allclose(model.input.deviation, deviation / 255, rtol=1e-6)
    in_grey_levels = ((IMAGES - mean) / deviation).mean((1, 2)) @ weights["w"][:, :, 0, 0].T
    np.testing.assert_allclose(float_engine.scores(model, IMAGES), in_grey_levels, atol=1e-5)


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "ArgMax", "Softmax and ArgMax"])
def test_what_changes_no_largest_score_is_left_out_at_the_end(end: str, tmp_path: Path) -> None:
    model = between([node("Relu", ["a"], ["b"])], {}, ALL)
    expected = computed(model, IMAGES)
    name = "y"
    for operation in end.split(" and "):
        model.graph.node.append(node(operation, [name], [f"{name}z"], axis=1))
        name += "z"
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(
        name, INT64 if end.endswith("ArgMax") else FLOAT, ["n", "c"]))  # fmt: skip
    found = onnx_import.float_model(written(tmp_path, model), provenance="by hand", class_names="abcde")
    np.testing.assert_allclose(float_engine.scores(found, IMAGES), expected, atol=2e-5 * np.abs(expected).max())
    assert all(f"; {each} at the end left out; " in found.provenance for each in end.split(" and "))
    assert found.provenance.startswith("by hand; imported from model.onnx, SHA-256 ")
    assert found.class_names == tuple("abcde")


@pytest.mark.parametrize("present", [True, False])
def test_the_provenance_says_what_the_scores_were_compared_with(
    present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, between(*OPERATIONS["MaxPool"]))
    if not present:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    named = f"ONNX Runtime {onnxruntime.__version__}" if present else f"the reference of ONNX {onnx.__version__}"
    assert onnx_import.float_model(path).provenance.endswith(f"; scores compared with those of {named}")


@pytest.mark.parametrize("present", [True, False])
def test_scores_that_differ_are_noticed(present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, between([node("Relu", ["a"], ["b"])], {}, ALL))
    if not present:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(onnx_import.OPERATIONS, "Relu", lambda builder, name, x: builder.clamp(name, x, 0, 0.5))  # type: ignore[index]  # fmt: skip # noqa: E501
    with pytest.raises(ModelFormatError, match="model.onnx: found scores that differ by"):
        onnx_import.float_model(path)


# --- files exported by PyTorch ----------------------------------------------------------------------------------------


def exported(folder: Path, module: Any, opset: int, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    path, image = folder / "model.onnx", torch.zeros(1, CHANNELS, HEIGHT, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), image, str(path), dynamo=False, opset_version=opset, **options)
    return path


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_a_file_exported_by_pytorch_gives_the_scores_of_pytorch(opset: int, dynamic: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(6)

    class Network(nn.Module):  # type: ignore[misc]
        """A bottleneck of MobileNetV2, one of SqueezeNet's joins, a flattening as ResNets write it."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(CHANNELS, 6, 3, padding=1), nn.Hardswish())
            self.block = nn.Sequential(
                nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
                nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
                nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6),
            )  # fmt: skip
            self.pool, self.silu, self.last = nn.MaxPool2d(3, 2, ceil_mode=True), nn.SiLU(), nn.Linear(12 * 4 * 5, 5)

        def forward(self, x: Any) -> Any:
            x = self.first((x - 0.5) / 0.25)
            x = x + self.block(x)
            x = torch.cat([x, self.silu(x)], 1)
            return torch.log_softmax(self.last(self.pool(x).contiguous().view(x.size(0), -1)), 1)

    network = Network()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.uniform_(-1, 1)
            each.running_var.uniform_(0.5, 2)
    axes = {"dynamic_axes": {"image": {0: "n"}}} if dynamic else {}
    path = exported(tmp_path, network, opset, input_names=["image"], **axes)
    model = onnx_import.float_model(path)
    with torch.no_grad():
        expected = network(torch.tensor((IMAGES / 255).transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    found = float_engine.scores(model, IMAGES)
    shifted = found - np.log(np.exp(found).sum(1, keepdims=True))  # log softmax
    np.testing.assert_allclose(shifted, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(model.input.mean, np.float32([0.5] * 3))
    np.testing.assert_array_equal(model.input.deviation, np.float32([0.25] * 3))


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "the operations Erf, Not; expected none but Add, ": ([node("Erf", ["a"], ["b"]), node("Not", ["a"], ["c"])], {}),
    r"a quantized model \(DequantizeLinear, QuantizeLinear\); expected a float model": (
        [node("QuantizeLinear", ["a", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["b"])], {"s": values(1)}),
    r"a quantized model \(QLinearConv\)": ([node("QLinearConv", ["a"] * 8, ["b"])], {}),
    r"a quantized model \(ConvInteger\)": ([node("ConvInteger", ["a", "w"], ["b"])], {"w": np.int8([[[[1]]]])}),
    r"a quantized model \(com.microsoft.QLinearAdd\)": (
        [node("QLinearAdd", ["a"] * 8, ["b"], domain="com.microsoft")], {}),
    "the operations com.microsoft.Gelu": ([node("Gelu", ["a"], ["b"], domain="com.microsoft")], {}),
    "Conv 'b': found input 'w', which nothing before it gives; expected neither a cycle": (
        [node("Conv", ["a", "w"], ["b"])], {}),
    "Add 'b': found input 'c', which nothing before it gives": (
        [node("Add", ["a", "c"], ["b"]), node("Relu", ["b"], ["c"])], {}),
    "tensor 'w': found type DOUBLE; expected FLOAT": (
        [node("Conv", ["a", "w"], ["b"])], {"w": np.ones((1, 4, 1, 1))}),
    "tensor 'w': found type FLOAT16": ([node("Conv", ["a", "w"], ["b"])], {"w": np.ones((1, 4, 1, 1), np.float16)}),
    "Conv 'b': .*not finite": ([node("Conv", ["a", "w"], ["b"])], {"w": values(1, 4, 1, 1) * np.float32("inf")}),
    "a 2-D convolution": ([node("Conv", ["a", "w"], ["b"])], {"w": values(4, 4, 3)}),
    "weights that depend on the image": ([node("Conv", ["a", "a"], ["b"])], {}),
    "windows of .* expected those of an image": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2])], {}),
    "one that fits inside": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 60000])], {}),
    r"windows of \(1, 1\) every \(0, 1\)": (
        [node("Conv", ["a", "w"], ["b"], strides=[0, 1])], {"w": values(1, 4, 1, 1)}),
    "every .0, 1.": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[0, 1], ceil_mode=1)], {}),
    r"padding is \(-1, 0, 0, 0\); expected integers from 0": (
        [node("Conv", ["a", "w"], ["b"], pads=[-1, 0, 0, 0])], {"w": values(1, 4, 1, 1)}),
    "auto_pad 'FULL'": ([node("Conv", ["a", "w"], ["b"], auto_pad="FULL")], {"w": values(1, 4, 1, 1)}),
    r"dilations \[2, 2\]": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], dilations=[2, 2])], {}),
    "a padding that counts": ([node("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
                                    pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    "the second output of a node, 'i'": ([node("MaxPool", ["a"], ["m", "i"], kernel_shape=[2, 2]),
                                          node("Relu", ["i"], ["b"])], {}),
    "training_mode 1": ([node("BatchNormalization", ["a", *"cccc"], ["b", "k", "l"], training_mode=1)],
                        {"c": values(4)}),
    r"scale of shape \(3,\); expected \(4,\)": ([node("BatchNormalization", ["a", *"cccc"], ["b"])], {"c": values(3)}),
    "a mean over .1.": ([node("ReduceMean", ["a", "over"], ["b"])], {"over": np.int64([1])}),
    "a mean over ..; expected": ([node("ReduceMean", ["a"], ["b"])], {}),
    r"put into \[1, 24, 9\]": ([node("Reshape", ["a", "to"], ["b"])], {"to": np.int64([1, 24, 9])}),
    r"put into \[0, -1\]": ([node("Reshape", ["a", "to"], ["b"], allowzero=1)], {"to": np.int64([0, -1])}),
    "axis 2; expected 1": ([node("Flatten", ["a"], ["b"], axis=2)], {}),
    "axis 2; expected 1, the channels": ([node("Concat", ["a", "a"], ["b"], axis=2)], {}),
    "mode b'edge' and value 0": ([node("Pad", ["a", "p"], ["b"], mode="edge")], {"p": np.int64([0] * 8)}),
    "those of height and width": ([node("Pad", ["a", "p"], ["b"])], {"p": np.int64([0, 1, 0, 0, 0, 0, 0, 0])}),
    "value 1.0; expected constant zeros": ([node("Pad", ["a", "p", "v"], ["b"])],
                                           {"p": np.int64([0] * 8), "v": np.float32(1)}),
    "alpha 0.2 and beta 0.5; expected 1/6": ([node("HardSigmoid", ["a"], ["b"])], {}),
    "alpha 0.5; expected 1": ([node("Elu", ["a"], ["b"], alpha=0.5)], {}),
    "the approximation b'tanh'": ([node("Gelu", ["a"], ["b"], approximate="tanh")], {}),
    "a product of two tensors": ([node("Mul", ["a", "a"], ["b"])], {}),
    "a constant that is divided": ([node("Div", ["one", "a"], ["b"])], {"one": values(1)}),
    "two tensors subtracted": ([node("Sub", ["a", "a"], ["b"])], {}),
    "division by zero": ([node("Div", ["a", "zero"], ["b"])], {"zero": np.float32(0)}),
    r"a constant of shape \(9,\)": ([node("Add", ["a", "c"], ["b"])], {"c": values(9)}),
    "minimum < maximum": ([node("Clip", ["a", "one", "one"], ["b"])], {"one": np.float32(1)}),
    "dropout that goes on": ([node("Dropout", ["a", "", "on"], ["b"])], {"on": np.array(True)}),
    "Softmax 's': found a tensor that depends on the image": ([node("Softmax", ["a"], ["s"]),
                                                               node("Relu", ["s"], ["b"])], {}),
    "Relu 'b': found nothing that depends on the image": (
        [node("Shape", ["a"], ["s"]), node("Relu", ["s"], ["b"])], {}),
    "arithmetic among 10000 constants": ([node("Add", ["c", "c"], ["d"]), node("Mul", ["a", "d"], ["b"])],
                                         {"c": values(5000)}),
    "arithmetic among 9000 constants": ([node("Concat", ["c"] * 3000, ["d"], axis=0), node("Mul", ["a", "d"], ["b"])],
                                        {"c": values(3)}),
    r"windows of \(2, 2\) every \(1, 1\) over \(\); expected those of an image": (
        [node("Flatten", ["a"], ["f"]), node("MaxPool", ["f"], ["b"], kernel_shape=[2, 2], auto_pad="SAME_UPPER")], {}),
    "Constant 'c': found 0 values; expected one": (
        [node("Constant", [], ["c"]), node("Add", ["a", "c"], ["b"])], {}),
    "Constant 'c': found 2 values; expected one": (
        [node("Constant", [], ["c"], value_float=1.0, value_int=2), node("Add", ["a", "c"], ["b"])], {}),
    "ReduceMean 'b': found 2 constants of type float32; expected at most 8 integers": (
        [node("ReduceMean", ["a", "over"], ["b"])], {"over": np.float32([np.nan, 3])}),
    "Pad 'b': found 2 constants of type float32; expected at most 8 integers": (
        [node("Pad", ["a", "p", "", "over"], ["b"])],
        {"p": np.int64([0, 0, 1, 1]), "over": np.float32([np.nan, 3])}),
    "Reshape 'b': found 9 constants of type int64; expected at most 8 integers": (
        [node("Reshape", ["a", "to"], ["b"])], {"to": np.int64([1] * 9)}),
    "Unrecognized attribute": ([node("Relu", ["a"], ["b"], colour=1)], {}),
    "attribute 'kernel_shape' of type 5": (
        [node("MaxPool", ["a"], ["b"], kernel_shape=onnx.helper.make_graph([], "g", [], []))], {}),
    "elements": ([node("Pad", ["a", "p"], ["b"])], {"p": np.int64([0, 0, 60000, 60000, 0, 0, 0, 0])}),
    "integers from 0 to": ([node("Pad", ["a", "p"], ["b"])], {"p": np.int64([0, 0, 2**62, 0, 0, 0, 0, 0])}),
}  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_a_float_model_cannot_hold_is_refused_in_one_line(pattern: str, tmp_path: Path) -> None:
    path = written(tmp_path, between(*REFUSED[pattern], ALL))
    with pytest.raises(ModelFormatError, match=pattern) as caught:
        onnx_import.float_model(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def simple(**options: Any) -> Any:
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"])]
    return network(nodes, {"w": values(CHANNELS * HEIGHT * WIDTH, 3)}, **options)


@pytest.mark.parametrize(
    "pattern, options",
    [
        (r"operator sets \[6\]; expected one from 7 to", {"opset": 6}),
        (r"operator sets \[9999\]", {"opset": 9999}),
        (r"an input of shape \(8, 3, 8, 11\)", {"batch": 8}),
        (r"an input of shape \(n, 3, h, w\)", {"shape": (3, "h", "w")}),
        (r"an input of shape \(n, 264\)", {"shape": (264,)}),
        (r"an input of shape \(n, 3, 8, 0\)", {"shape": (3, 8, 0)}),
        (r"an input of shape \(n, 3, 8, 65537\)", {"shape": (3, 8, 65537)}),
        (r"gives shape \(65536, 65536, 3\); expected at most", {"shape": (3, 65536, 65536)}),
        ("output 'z', which no node gives", {"output": "z"}),
        ("scores that do not depend on the image", {"output": "w"}),
    ],
)
def test_inputs_and_outputs_are_an_image_and_scores(pattern: str, options: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=pattern):
        onnx_import.float_model(written(tmp_path, simple(**options)))


def test_a_second_input_or_output_is_refused(tmp_path: Path) -> None:
    two_inputs, two_outputs = simple(), simple()
    two_inputs.graph.input.append(onnx.helper.make_tensor_value_info("x2", FLOAT, [1]))
    two_outputs.graph.output.append(onnx.helper.make_tensor_value_info("f", FLOAT, ["n", "c"]))
    with pytest.raises(ModelFormatError, match="found 2 inputs; expected one, the image"):
        onnx_import.float_model(written(tmp_path, two_inputs))
    with pytest.raises(ModelFormatError, match="found 2 outputs; expected one, the scores"):
        onnx_import.float_model(written(tmp_path, two_outputs))


@pytest.mark.parametrize("operation, axis", [("Softmax", 0), ("ArgMax", 0), ("ArgMax", None)])
def test_an_end_that_is_not_over_the_classes_is_refused(operation: str, axis: int | None, tmp_path: Path) -> None:
    model = simple(output="end")
    model.graph.node.append(node(operation, ["y"], ["end"], **({} if axis is None else {"axis": axis})))
    with pytest.raises(ModelFormatError, match=f"{operation} 'end': found axis 0; expected 1, the classes"):
        onnx_import.float_model(written(tmp_path, model))


def test_the_last_of_the_largest_scores_is_not_the_first(tmp_path: Path) -> None:
    model = simple(output="end")
    model.graph.node.append(node("ArgMax", ["y"], ["end"], axis=1, select_last_index=1))
    with pytest.raises(ModelFormatError, match="the last of the largest scores"):
        onnx_import.float_model(written(tmp_path, model))


def test_functions_of_the_file_and_sparse_weights_are_refused(tmp_path: Path) -> None:
    model = simple()
    model.functions.append(onnx.helper.make_function("d", "f", ["a"], ["b"], [node("Relu", ["a"], ["b"])],
                                                     [onnx.helper.make_opsetid("", 20)]))  # fmt: skip
    with pytest.raises(ModelFormatError, match="functions of the file's own; expected none"):
        onnx_import.float_model(written(tmp_path, model))


# --- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_a_node", [False, True])
def test_weights_outside_the_file_are_not_read(in_a_node: bool, tmp_path: Path) -> None:
    model = simple()
    tensor = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    if in_a_node:
        model.graph.node.insert(0, node("Constant", [], ["w"], value=tensor))
        del model.graph.initializer[:]
    with pytest.raises(ModelFormatError, match="tensor 'w': found data outside the file; expected a file that holds"):
        onnx_import.float_model(written(tmp_path, model))


@pytest.mark.parametrize("dims", [[MAX_ELEMENTS + 1], [1 << 40, 1 << 40], [-1, 3], [1 << 62, 0]])
def test_a_tensor_that_announces_absurd_sizes_is_refused(dims: list[int], tmp_path: Path) -> None:
    model = simple()
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(ModelFormatError, match="tensor 'w': found shape"):
        onnx_import.float_model(written(tmp_path, model))


def test_a_tensor_with_less_data_than_its_shape_is_refused(tmp_path: Path) -> None:
    model = simple()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelFormatError, match="model.onnx: .*found"):
        onnx_import.float_model(written(tmp_path, model))


def test_what_is_computed_of_constants_stays_in_proportion_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes, of which each node would make 16 MiB."""
    products = [node("Add", ["column", "row"], [f"table{index}"]) for index in range(40)]
    weights = {"column": values(2048, 1), "row": values(1, 2048)}
    path = written(tmp_path, network([*products, node("GlobalAveragePool", ["x"], ["y"])], weights))
    with pytest.raises(ModelFormatError, match="Add 'table1': found constants that give many times what the file hol"):
        onnx_import.float_model(path)

    monkeypatch.setattr(onnx_file, "MAX_GROWTH_BYTES", 0)
    turned = [node("Transpose", ["w"], ["v"]), node("Identity", ["v"], ["u"]), node("Cast", ["u"], ["t"], to=FLOAT),
              node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "t"], ["y"])]  # fmt: skip
    imported(tmp_path, network(turned, {"w": values(5, CHANNELS * HEIGHT * WIDTH)}))


def test_weights_that_layers_share_count_once_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file could stand for a model beyond all memory otherwise."""
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "w"], ["b"]), node("GlobalAveragePool", ["b"], ["y"])]
    path = written(tmp_path, network(nodes, {"w": values(CHANNELS, CHANNELS, 2, 2)}))
    normalization, kernel = 4 * 2 * CHANNELS, 4 * CHANNELS * CHANNELS * 2 * 2
    monkeypatch.setattr(channels_first, "MAX_BYTES", normalization + 2 * kernel)
    onnx_import.float_model(path)
    monkeypatch.setattr(channels_first, "MAX_BYTES", normalization + 2 * kernel - 1)
    with pytest.raises(ModelFormatError, match=f"Conv 'b': found weights of {normalization + 2 * kernel} bytes in all"):
        onnx_import.float_model(path)


def test_too_many_nodes_are_refused_at_once(tmp_path: Path) -> None:
    model = network([node("Relu", ["x"], ["y"])] * (onnx_file.MAX_NODES + 1))
    with pytest.raises(ModelFormatError, match="found 16385 nodes; expected at most 16384"):
        onnx_import.float_model(written(tmp_path, model))


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x89HDF\r\n\x1a\n" + bytes(500), b"\n" * 9])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="model.onnx: found no ONNX file"):
        onnx_import.float_model(written(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.onnx: found no such file"):
        onnx_import.float_model(tmp_path / "none.onnx")


def import_damaged(path: Path, content: bytes) -> None:
    for variant in damaged(content, 400):
        path.write_bytes(variant)
        try:
            onnx_import.float_model(path)
        except IntsmoothError as problem:
            assert "\n" not in str(problem), str(problem)


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    weights = {"w": values(2, CHANNELS, 3, 3), "s": values(2), "c": values(2, 2)}
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", ["a"], ["b"]),
             node("BatchNormalization", ["b", *"ssss"], ["n"], epsilon=4.0),
             node("GlobalAveragePool", ["n"], ["g"]), node("Flatten", ["g"], ["f"]),
             node("Gemm", ["f", "c", "s"], ["y"], transB=1)]  # fmt: skip
    run_elsewhere(import_damaged, tmp_path / "model.onnx", network(nodes, weights).SerializeToString())


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_program_writes_a_float_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output, names = simple(), tmp_path / "out.h5", tmp_path / "names.txt"
    names.write_text("cat\ndog\nübrig\n", encoding="utf-8")
    arguments = [str(written(tmp_path, model)), str(output), "--mean", "0.5,0.25,1/8", "--deviation", "1/4",
                 "--class-names", str(names)]  # fmt: skip
    assert onnx_import.main(arguments) == 0
    loaded = load_float_model(output)
    assert loaded.class_names == ("cat", "dog", "übrig")
    np.testing.assert_array_equal(loaded.input.mean, np.float32([0.5, 0.25, 0.125]))
    np.testing.assert_array_equal(loaded.input.deviation, np.float32([0.25] * 3))
    normalized = ((IMAGES / 255 - [0.5, 0.25, 0.125]) / 0.25).transpose(0, 3, 1, 2).reshape(len(IMAGES), -1)
    expected = normalized @ onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(float_engine.scores(loaded, IMAGES), expected, atol=1e-5 * np.abs(expected).max())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 3 layers, 792 parameters, images 8x11x3, 3 classes" and "SHA-256" in lines[1]

    before = output.read_bytes()
    assert onnx_import.main(arguments) == 1
    assert "found a file already; expected none, or the option --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == before and onnx_import.main([*arguments, "--overwrite"]) == 0
    source = Path(arguments[0]).read_bytes()
    assert onnx_import.main([arguments[0], arguments[0], "--overwrite"]) == 1
    assert Path(arguments[0]).read_bytes() == source


def test_the_program_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output, names = written(tmp_path, simple()), tmp_path / "out.h5", tmp_path / "names.txt"
    names.write_bytes(b"\xff\xfe\n")
    for arguments, expected in (
        ([str(tmp_path / "no.onnx"), str(output)], "no.onnx: found no such file"),
        ([str(path), str(tmp_path / "no" / "out.h5")], str(tmp_path / "no")),
        ([str(path), str(output), "--class-names", str(names)], "names.txt: found bytes that are not UTF-8"),
        ([str(path), str(output), "--mean", "1,2"], "mean: found 2 values"),
    ):
        assert onnx_import.main(arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
    assert not output.exists()


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    program = f"""import sys
sys.modules["onnx"] = None
from intsmooth_ref.data_tools import onnx_import
sys.exit(onnx_import.main([{str(written(tmp_path, simple()))!r}, {str(tmp_path / "out.h5")!r}]))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "pip install 'intsmooth_ref[onnx]'" in done.stderr


def test_an_interruption_ends_with_a_line_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(float_engine, "scores", interrupt)
    assert onnx_import.main([str(written(tmp_path, simple())), str(tmp_path / "out.h5")]) == 130
    assert capsys.readouterr().err.strip() == "interrupted" and not (tmp_path / "out.h5").exists()


def test_wrong_numbers_are_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        onnx_import.main(["a", "b", "--mean", "1/0"])
    assert caught.value.code == 2 and "Traceback" not in capsys.readouterr().err
