"""Quantized ONNX files become integer models with exactly their parameters; what else they may hold is refused.

The oracle is `exact_steps`, from the parameters that each test writes into its file. ONNX Runtime is a peer: it
computes in float32, so it may differ where the exact value lies within a few float32 roundings of a tie, and nowhere
else.
"""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
import pytest
from damage import damaged, run_elsewhere
from exact_steps import (
    FLOAT32_ERROR,
    MULTIPLIER_ERROR,
    disagreements,
    products,
    rational,
    scaled,
    windows,
)

from intsmooth_ref.data_tools import quantized_onnx_import
from intsmooth_ref.data_tools.integer_builder import ImportedModel, Normalization
from intsmooth_ref.engine.reference import ReferenceModel, operate
from intsmooth_ref.errors import DatasetError, IntsmoothError, ModelFormatError
from intsmooth_ref.fixedpoint import quantize_multiplier
from intsmooth_ref.model import layers as kinds
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.hdf5 import load_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT, UINT8, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8
HEIGHT, WIDTH, CHANNELS = 7, 9, 4
GENERATOR = np.random.default_rng(12)
IMAGE = GENERATOR.integers(-20, 276, (1, HEIGHT, WIDTH, CHANNELS)).astype(np.int32)
MICROSOFT = "com.microsoft"

#: Scales of x and y; their zero points where they are uint8, 128 less where they are int8.
XS, XZ, YS, YZ = np.float32(0.0235), 119, np.float32(0.0371), 132
LOWEST = {"uint8": 0, "int8": -128}

Node = Callable[..., Any]
node: Node = onnx.helper.make_node


def zero(value: int, dtype: str) -> np.ndarray:
    return np.array(value + LOWEST[dtype], dtype)


def integers(*shape: int) -> np.ndarray:
    return GENERATOR.integers(-127, 128, shape).astype(np.int8)


def network(
    nodes: list[Any], constants: Mapping[str, Any], image: str = "image", output: str = "scores", type: Any = FLOAT,
    shape: tuple[int, ...] = (CHANNELS, HEIGHT, WIDTH), opset: int = 17,
) -> Any:  # fmt: skip
    inputs = [onnx.helper.make_tensor_value_info(image, type, ["n", *shape])]
    outputs = [onnx.helper.make_tensor_value_info(output, FLOAT, ["n", "classes"])]
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "network", inputs, outputs, held)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MICROSOFT, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def imported(
    folder: Path, model: Any, normalization: Normalization = Normalization(deviation=1 / (255 * rational(XS))),
    class_names: Any = (),
) -> ImportedModel:  # fmt: skip
    """By default a grey level is a step of x."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return quantized_onnx_import.integer_model(path, normalization, class_names)


def traced(model: ImportedModel, images: np.ndarray = IMAGE) -> dict[str, np.ndarray]:
    """By the name of the file's tensor, laid out as in the model."""
    layers = dict(ReferenceModel(model.model).trace(images))
    return {name: layers[tensor.layer].reshape(-1, *tensor.shape) for name, tensor in model.tensors.items()}


def by_onnx_runtime(model: Any, images: np.ndarray, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """8-bit tensors of these types for float images `(N, C, H, W)`."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    have = {each.name for each in shown.graph.output}
    for name, dtype in types.items():
        if name not in have:
            kind = UINT8 if dtype == "uint8" else INT8
            shown.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(types)
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images})))


# --- every operation, in both forms -----------------------------------------------------------------------------------


@dataclass
class Case:
    """An operation that makes y of x, both 8 bits, and the same in QDQ form between `xr`, dequantized x, and `yr`.

    Attributes:
        steps: of y, exact, from its zero point, for x `(H, W, C)` less its zero point.
        qdq, qlinear: nodes; the former read xr and give yr, the latter read x, xs, xz, ys, yz and give y.
        clip: reals between which the operation keeps y.
        own_grid: y stands on the grid of x.
        ties_even: a table, whose ties go to the even integer.
    """

    steps: Callable[[np.ndarray], np.ndarray]
    qdq: list[Any] = field(default_factory=list)
    qlinear: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    clip: tuple[float, float] = (-np.inf, np.inf)
    own_grid: bool = False
    ties_even: bool = False
    opset: int = 17

    def grid(self, dtype: str) -> tuple[Any, np.ndarray]:
        return (XS, zero(XZ, dtype)) if self.own_grid else (YS, zero(YZ, dtype))

    def model(self, form: str, dtype: str) -> Any:
        """Both forms end with y, dequantized and flattened."""
        scale, zero_point = self.grid(dtype)
        constants = {"xs": XS, "xz": zero(XZ, dtype), "ys": scale, "yz": zero_point, **self.constants}
        nodes = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"])]
        if form == "QDQ":
            nodes += [node("DequantizeLinear", ["x", "xs", "xz"], ["xr"]), *self.qdq,
                      node("QuantizeLinear", ["yr", "ys", "yz"], ["y"])]  # fmt: skip
        else:
            nodes += self.qlinear
        nodes += [node("DequantizeLinear", ["y", "ys", "yz"], ["yd"]), node("Flatten", ["yd"], ["flat"]),
                  node("QuantizeLinear", ["flat", "ys", "yz"], ["fq"]),
                  node("DequantizeLinear", ["fq", "ys", "yz"], ["fd"]), *scores("fd")]  # fmt: skip
        return network(nodes, {**constants, **SCORES(self.steps(np.zeros((HEIGHT, WIDTH, CHANNELS), int)).size)},
                       opset=self.opset)  # fmt: skip


def scores(source: str) -> list[Any]:
    """A linear layer at the end, for a flattened image is no vector of scores."""
    return [node("DequantizeLinear", ["rows", "rs", "rz"], ["rd"]), node("MatMul", [source, "rd"], ["scores"])]


def SCORES(features: int) -> dict[str, Any]:
    return {"rows": np.resize(np.arange(-9, 9, dtype=np.int8), (features, 3)), "rs": np.float32(0.01),
            "rz": np.int8(0)}  # fmt: skip


WEIGHT_SCALES = np.array([0.004 * 1.37**index for index in range(6)], np.float32)
XZS = ["x", "xs", "xz"]


def conv(
    kernel: tuple[int, int], *, per_channel: bool = True, sides: tuple[int, int, int, int] = (0, 0, 0, 0),
    strides: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), groups: int = 1, float_bias: bool = False,
    shift: int = 0, clip: tuple[float, float] = (-np.inf, np.inf), between: tuple[Any, ...] = (), bias: bool = True,
    **attributes: Any,
) -> Case:  # fmt: skip
    """`sides` are (top, bottom, left, right); `shift` is the zero point of uint8 weights."""
    outputs = 6
    weights, offsets = integers(outputs, CHANNELS // groups, *kernel), GENERATOR.integers(-9999, 9999, outputs)
    scales = WEIGHT_SCALES if per_channel else WEIGHT_SCALES[:1]
    stored = (weights.astype(int) + shift).astype(np.uint8) if shift else weights
    zeros = np.full(len(scales), shift, stored.dtype)
    if not per_channel:
        scales, zeros = scales[0], zeros[0]
    constants = {"w": stored, "ws": scales, "wz": zeros, "bs": XS * np.broadcast_to(scales, outputs),
                 "bz": np.zeros(outputs, np.int32), "b": offsets.astype(np.int32), "low": np.float32(clip[0]),
                 "high": np.float32(clip[1])}  # fmt: skip
    if float_bias:
        constants["b"] = constants["bias"] = (XS * np.broadcast_to(scales, outputs) * offsets).astype(np.float32)
    options = dict(pads=[sides[0], sides[2], sides[1], sides[3]], strides=list(strides), dilations=list(dilation),
                   group=groups)  # fmt: skip
    options = {**options, **attributes} if "auto_pad" not in attributes else {"strides": list(strides), **attributes}
    last = "c" if between else "yr"
    read = ["xr", "wr"] + (["bias" if float_bias else "br"] if bias else [])
    qdq = [node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=0),
           node("Conv", read, [last], name="/block/conv", **options), *between]  # fmt: skip
    if bias and not float_bias:
        qdq.insert(0, node("DequantizeLinear", ["b", "bs", "bz"], ["br"], axis=0))
    qlinear = [node("QLinearConv", [*XZS, "w", "ws", "wz", "ys", "yz", *(["b"] if bias else [])], ["y"],
                    name="/block/conv", **options)]  # fmt: skip

    def steps(x: np.ndarray) -> np.ndarray:
        added = offsets if bias else np.zeros(outputs, int)
        sums = products(x, weights.transpose(0, 2, 3, 1), added, strides, sides, dilation, groups)
        each = np.broadcast_to(scales, outputs)
        return scaled(sums, [rational(XS) * rational(scale) / rational(YS) for scale in each])

    return Case(steps, qdq, [] if between or float_bias else qlinear, constants, clip)


def linear(form: str, per_channel: bool) -> Case:
    """Of the flattened x, channels first."""
    features, outputs = CHANNELS * HEIGHT * WIDTH, 6
    weights, offsets = integers(features, outputs), GENERATOR.integers(-9999, 9999, outputs)
    scales = WEIGHT_SCALES if per_channel else WEIGHT_SCALES[0]
    turned = form == "Gemm, transB"
    constants = {"w": weights.T.copy() if turned else weights, "ws": scales, "wz": np.zeros(np.shape(scales), np.int8),
                 "b": offsets.astype(np.int32), "bs": XS * np.broadcast_to(scales, outputs),
                 "bz": np.zeros(outputs, np.int32)}  # fmt: skip
    if form == "MatMul":
        offsets = np.zeros(outputs, int)
    axis = 0 if turned else 1
    flat = [node("Flatten", ["xr"], ["xf"]), node("QuantizeLinear", ["xf", "xs", "xz"], ["xq"]),
            node("DequantizeLinear", ["xq", "xs", "xz"], ["xfr"]),
            node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=axis)]  # fmt: skip
    if form == "MatMul":
        qdq = [*flat, node("MatMul", ["xfr", "wr"], ["yr"])]
        qlinear = [node("Flatten", ["x"], ["xq"]),
                   node("QLinearMatMul", ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])]  # fmt: skip
    else:
        qdq = [*flat, node("DequantizeLinear", ["b", "bs", "bz"], ["br"], axis=0),
               node("Gemm", ["xfr", "wr", "br"], ["yr"], transB=int(turned))]  # fmt: skip
        qlinear = [node("Flatten", ["x"], ["xq"]),
                   node("QGemm", ["xq", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"], ["y"], domain=MICROSOFT,
                        transB=int(turned))]  # fmt: skip

    def steps(x: np.ndarray) -> np.ndarray:
        sums = x.transpose(2, 0, 1).ravel().astype(np.int64) @ weights.astype(np.int64) + offsets
        return scaled(sums, [rational(XS) * rational(s) / rational(YS) for s in np.broadcast_to(scales, outputs)])

    return Case(steps, qdq, qlinear, constants)


def of_reals(function: Callable[[Fraction], Fraction]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.vectorize(lambda q: function(rational(XS) * int(q)) / rational(YS), otypes=[object])(x)


def with_mpmath(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function to 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    functions = {"Sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)), "Tanh": mpmath.tanh,
                 "Elu": lambda v: v if v > 0 else mpmath.expm1(v),
                 "Gelu": lambda v: v * mpmath.ncdf(v)}  # fmt: skip

    def value(real: Fraction) -> Fraction:
        with mpmath.workdps(60):
            result = functions[name](mpmath.mpf(real.numerator) / real.denominator)
            return Fraction(int(mpmath.nint(result * 2**180)), 2**180)

    return of_reals(value)


def of_one(kind: str, steps: Callable[[np.ndarray], np.ndarray], qlinear: str = "", **more: Any) -> Case:
    attributes = {name: value for name, value in more.items() if name not in Case.__dataclass_fields__}
    rest = {name: value for name, value in more.items() if name in Case.__dataclass_fields__}
    nodes = [node(qlinear, [*XZS, "ys", "yz"], ["y"], domain=MICROSOFT, **attributes)] if qlinear else []
    return Case(steps, [node(kind, ["xr"], ["yr"], **attributes)], nodes, **rest)


def pooled(kernel: tuple[int, int], strides: tuple[int, int], sides: tuple[int, int, int, int], of_window: Any) -> Any:
    def steps(x: np.ndarray) -> np.ndarray:
        rows = windows(x, kernel, strides, sides)
        return np.array([[of_window(window) for window in row] for row in rows], object)

    return steps


def average_on(ratio: Fraction, count: int = 0) -> Callable[[np.ndarray], list[Fraction]]:
    return lambda window: [Fraction(int(total), count or len(window)) * ratio for total in window.sum(0)]


RATIO = rational(XS) / rational(YS)
SIX = [Fraction(0), Fraction(6)]
DOUBLED = [node("DequantizeLinear", ["x", "hs", "xz"], ["half"])]  # the integers of x, worth half as much
SIGMOIDS = {"ss": np.float32(1 / 256), "sz": np.uint8(0)}


def added(x: np.ndarray) -> np.ndarray:
    return scaled(x, [RATIO * 3 / 2])


def gated(x: np.ndarray) -> np.ndarray:
    """x times the uint8 sigmoid of x."""
    sigmoids = with_mpmath("Sigmoid")(x) * rational(YS) * 256
    rounded = np.array([min(round(each), 255) for each in sigmoids.ravel()], object).reshape(x.shape)
    return rounded * scaled(x, [RATIO / 256])


CASES: dict[str, Case] = {
    "Conv": conv((3, 2)),
    "Conv, sides": conv((3, 2), sides=(0, 2, 1, 0), strides=(2, 1), dilation=(1, 2)),
    "Conv, SAME_UPPER": conv((3, 4), sides=(1, 1, 1, 2), strides=(2, 2), auto_pad="SAME_UPPER"),
    "Conv, SAME_LOWER": conv((3, 4), sides=(1, 1, 2, 1), strides=(2, 2), auto_pad="SAME_LOWER"),
    "Conv, groups": conv((3, 3), groups=2),
    "Conv, per tensor": conv((3, 3), per_channel=False),
    "Conv, no bias": conv((3, 3), bias=False),
    "Conv, float bias": conv((3, 3), float_bias=True),
    "Conv, uint8 weights": conv((3, 3), per_channel=False, shift=128),
    "Conv and Relu": conv((3, 3), between=(node("Relu", ["c"], ["yr"], name="relu"),), clip=(0, np.inf)),
    "Conv and Clip": conv((3, 3), between=(node("Clip", ["c", "low", "high"], ["yr"]),), clip=(-0.5, 1.25)),
    "Gemm": linear("Gemm", True),
    "Gemm, transB": linear("Gemm, transB", True),
    "Gemm, per tensor": linear("Gemm", False),
    "MatMul": linear("MatMul", True),
    "Add": Case(added, [*DOUBLED, node("Add", ["xr", "half"], ["yr"])],
                [node("QLinearAdd", [*XZS, "x", "hs", "xz", "ys", "yz"], ["y"], domain=MICROSOFT)], {"hs": XS / 2}),
    "Add and Relu": Case(added, [*DOUBLED, node("Add", ["half", "xr"], ["s"]), node("Relu", ["s"], ["yr"])], [],
                         {"hs": XS / 2}, (0, np.inf)),
    "Concat": Case(lambda x: np.concatenate([scaled(x, [RATIO]), scaled(x, [RATIO / 2])], axis=-1),
                   [*DOUBLED, node("Concat", ["xr", "half"], ["yr"], axis=1)],
                   [node("QLinearConcat", ["ys", "yz", *XZS, "x", "hs", "xz"], ["y"], domain=MICROSOFT, axis=1)],
                   {"hs": XS / 2}),
    "Mul of x and its Sigmoid": Case(
        gated, [node("Sigmoid", ["xr"], ["s"]), node("QuantizeLinear", ["s", "ss", "sz"], ["sq"]),
                node("DequantizeLinear", ["sq", "ss", "sz"], ["sr"]), node("Mul", ["xr", "sr"], ["yr"])],
        [], SIGMOIDS, ties_even=True),
    "MaxPool": of_one("MaxPool", pooled((3, 2), (2, 1), (1, 0, 0, 1), lambda w: [Fraction(int(q)) for q in w.max(0)]),
                      own_grid=True, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
    "MaxPool, ceil": of_one(
        "MaxPool", pooled((2, 2), (2, 2), (0, 1, 0, 1), lambda w: [RATIO * int(q) for q in w.max(0)]),
        kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "AveragePool": of_one("AveragePool", pooled((3, 2), (1, 2), (0, 0, 0, 0), average_on(RATIO)), "QLinearAveragePool",
                          kernel_shape=[3, 2], strides=[1, 2]),
    "AveragePool, all count": of_one(
        "AveragePool", pooled((3, 2), (1, 2), (1, 1, 0, 1), average_on(RATIO, 6)), "QLinearAveragePool",
        kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    "AveragePool, own grid": of_one(
        "AveragePool", pooled((3, 2), (1, 2), (1, 1, 0, 1), average_on(Fraction(1))), "QLinearAveragePool",
        own_grid=True, kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 1]),
    "AveragePool, whole": of_one("AveragePool", pooled((7, 9), (1, 1), (0, 0, 0, 0), average_on(RATIO)),
                                 "QLinearAveragePool", kernel_shape=[7, 9]),
    "GlobalAveragePool": of_one("GlobalAveragePool", pooled((7, 9), (1, 1), (0, 0, 0, 0), average_on(RATIO)),
                                "QLinearGlobalAveragePool"),
    "ReduceMean": of_one("ReduceMean", lambda x: scaled(x.astype(int).sum((0, 1)), [RATIO / 63]), axes=[3, 2],
                         keepdims=0),
    "Relu": of_one("Relu", lambda x: scaled(np.maximum(x, 0), [RATIO])),
    "Clip": Case(of_reals(lambda v: min(max(v, SIX[0]), SIX[1])), [node("Clip", ["xr", "low", "high"], ["yr"])],
                 constants={"low": np.float32(0), "high": np.float32(6)}),
    "Pad": Case(lambda x: scaled(np.pad(x, ((1, 2), (0, 1), (0, 0))), [RATIO]), [node("Pad", ["xr", "p"], ["yr"])],
                constants={"p": np.int64([0, 0, 1, 0, 0, 0, 2, 1])}),
    "Requantize": Case(lambda x: scaled(x, [RATIO]), [node("Identity", ["xr"], ["yr"])]),
    "LeakyRelu": of_one("LeakyRelu", of_reals(lambda v: v if v > 0 else rational(0.1) * v), "QLinearLeakyRelu",
                        alpha=0.1, ties_even=True),
    "HardSigmoid": of_one("HardSigmoid", of_reals(lambda v: min(max(
        rational(0.2) * v + Fraction(1, 2), Fraction(0)), Fraction(1))), ties_even=True),
    "HardSwish": of_one("HardSwish", of_reals(
        lambda v: v * min(max(v / 6 + Fraction(1, 2), Fraction(0)), Fraction(1))), ties_even=True),
    "Sigmoid": of_one("Sigmoid", with_mpmath("Sigmoid"), "QLinearSigmoid", ties_even=True),
    "Tanh": of_one("Tanh", with_mpmath("Tanh"), ties_even=True),
    "Elu": of_one("Elu", with_mpmath("Elu"), ties_even=True),
    "Gelu": of_one("Gelu", with_mpmath("Gelu"), ties_even=True, opset=20),
}  # fmt: skip
FORMS = [(name, form) for name, case in CASES.items() for form in ("QDQ", "QLinear") if getattr(case, form.lower())]


def limits(case: Case, dtype: str) -> tuple[int, int]:
    """Of y, its clip included: the ends nearest to the exact quotients."""
    lowest = LOWEST[dtype]
    scale, zero_point = case.grid(dtype)
    ends = [lowest, lowest + 255]
    for index, end in enumerate(case.clip):
        if np.isfinite(end):
            ends[index] = min(max(int(zero_point) + round(Fraction(end) / rational(scale)), lowest), lowest + 255)
    return ends[0], ends[1]


def exact(case: Case, x: np.ndarray, dtype: str) -> np.ndarray:
    return case.steps(x[0].astype(np.int64) - int(zero(XZ, dtype)))


@pytest.mark.parametrize("dtype", LOWEST)
@pytest.mark.parametrize("name, form", FORMS)
def test_every_integer_is_the_nearest_to_the_exact_value(name: str, form: str, dtype: str, tmp_path: Path) -> None:
    case = CASES[name]
    tensors = traced(imported(tmp_path, case.model(form, dtype)))
    np.testing.assert_array_equal(tensors["x"], (IMAGE + int(zero(XZ, dtype))).clip(LOWEST[dtype], LOWEST[dtype] + 255))
    steps = exact(case, tensors["x"], dtype)
    found = tensors["y"].reshape(steps.shape)
    wrong, near = disagreements(found, steps, int(case.grid(dtype)[1]), *limits(case, dtype), MULTIPLIER_ERROR,
                                ties_up=not case.ties_even)  # fmt: skip
    assert wrong == 0 and (near == 0 or case.ties_even)
    assert found.std() > 3  # the case tells something


@pytest.mark.parametrize("dtype", LOWEST)
@pytest.mark.parametrize("name, form", FORMS)
def test_onnx_runtime_differs_only_at_near_ties(name: str, form: str, dtype: str, tmp_path: Path) -> None:
    """Fed with the same x: the image is what x stands for."""
    case = CASES[name]
    model = case.model(form, dtype)
    if form == "QDQ" and name == "Conv, uint8 weights" and dtype == "int8":
        pytest.skip("not implemented there")
    x = traced(imported(tmp_path, model))["x"]
    reals = ((x.astype(np.float32) - np.float32(zero(XZ, dtype))) * XS).transpose(0, 3, 1, 2)
    try:
        found = by_onnx_runtime(model, np.ascontiguousarray(reals), {"x": dtype, "y": dtype})
    except Exception as problem:  # its exceptions have no base of their own
        if "NOT_IMPLEMENTED" not in str(problem):
            raise
        pytest.skip("not implemented there")
    np.testing.assert_array_equal(found["x"].transpose(0, 2, 3, 1), x)
    y = found["y"].transpose(0, 2, 3, 1) if found["y"].ndim == 4 else found["y"]
    steps = exact(case, x, dtype)
    magnitude = abs(steps) + 512
    wrong, near = disagreements(y.reshape(steps.shape), steps, int(case.grid(dtype)[1]), *limits(case, dtype),
                                FLOAT32_ERROR, magnitude)  # fmt: skip
    ties = sum((each * 2).denominator == 1 and each.denominator == 2 for each in steps.ravel())
    assert wrong == 0 and near <= ties + 1


@pytest.mark.parametrize("name", ["Conv", "Conv, per tensor", "Gemm", "GlobalAveragePool", "Requantize", "AveragePool"])
def test_multipliers_are_those_of_the_exact_ratios(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = imported(tmp_path, case.model("QDQ", "uint8"))
    layer = next(each for each in model.model.layers if each.name == model.tensors["y"].layer)
    scales = [rational(scale) for scale in np.reshape(case.constants.get("ws", 1), -1)]
    count = {"GlobalAveragePool": HEIGHT * WIDTH, "AveragePool": 6}.get(name, 1)
    pairs = [quantize_multiplier(RATIO * scale / count) for scale in scales]
    found = list(zip(layer.requantization.multiplier.tolist(), layer.requantization.shift.tolist()))
    assert found == pairs and layer.requantization.rounding == "single_rounding"


def test_a_step_too_small_for_any_multiplier_is_nothing(tmp_path: Path) -> None:
    case = CASES["Requantize"]
    model = case.model("QDQ", "uint8")
    for each in model.graph.node[1:3]:  # x is read as if its step were tiny
        each.input[:] = ["tiny" if name == "xs" else name for name in each.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e-30), "tiny"))
    assert np.unique(traced(imported(tmp_path, model))["y"]).tolist() == [YZ]


def test_a_float_bias_is_rounded_as_onnx_runtime_rounds_it(tmp_path: Path) -> None:
    """Biases beside ties, which float32 and float64 round to different integers."""
    outputs, scale = 200, np.float32(0.0123)
    ties = (GENERATOR.integers(-5000, 5000, outputs) + 0.5) * np.float64(XS * scale)
    biases = np.nextafter(ties.astype(np.float32), np.float32(np.inf))
    constants = {"xs": XS, "xz": np.uint8(3), "ys": YS, "yz": np.uint8(128), "w": integers(outputs, CHANNELS, 1, 1),
                 "ws": scale, "wz": np.int8(0), "b": biases}  # fmt: skip
    nodes = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"]), node("DequantizeLinear", ["x", "xs", "xz"], ["xr"]),
             node("DequantizeLinear", ["w", "ws", "wz"], ["wr"]), node("Conv", ["xr", "wr", "b"], ["c"], name="conv"),
             node("QuantizeLinear", ["c", "ys", "yz"], ["y"]), node("DequantizeLinear", ["y", "ys", "yz"], ["yr"]),
             node("GlobalAveragePool", ["yr"], ["g"]), node("QuantizeLinear", ["g", "ys", "yz"], ["gq"]),
             node("DequantizeLinear", ["gq", "ys", "yz"], ["scores"])]  # fmt: skip
    model = network(nodes, constants)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    held = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / "optimized.onnx").graph.initializer)
    peers = [each for each in held if each.dtype == np.int32 and each.shape == (outputs,)]
    if not peers:
        pytest.skip("this version quantizes no biases")
    layer = next(each for each in imported(tmp_path, model).model.layers if each.name == "conv")
    np.testing.assert_array_equal(layer.bias, peers[0])
    assert (layer.bias != np.rint(biases / (np.float64(XS) * np.float64(scale)))).any()


# --- operations on the integers themselves ----------------------------------------------------------------------------

RAW: dict[str, tuple[list[Any], dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "Relu": ([node("Relu", ["x"], ["y"])], {}, lambda x: np.maximum(x, 0)),
    "Clip": ([node("Clip", ["x", "low", "high"], ["y"])], {"low": np.int8(-50), "high": np.int8(60)},
             lambda x: np.clip(x, -50, 60)),
    "MaxPool": ([node("MaxPool", ["x"], ["y"], kernel_shape=[1, 2])], {},
                lambda x: np.maximum(x[:, :, :-1], x[:, :, 1:])),
    "Pad": ([node("Pad", ["x", "p", "v"], ["y"])], {"p": np.int64([0, 0, 1, 0, 0, 0, 0, 2]), "v": np.int8(77)},
            lambda x: np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=77)),
    "Concat": ([node("Relu", ["x"], ["r"]), node("Concat", ["r", "x"], ["y"], axis=-3)], {},
               lambda x: np.concatenate([np.maximum(x, 0), x], axis=-1)),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_operations_on_8_bit_tensors_compute_with_the_integers_as_they_are(name: str, tmp_path: Path) -> None:
    nodes, constants, function = RAW[name]
    features = function(np.zeros((1, HEIGHT, WIDTH, CHANNELS), np.int8)).size
    head = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"])]
    tail = [node("DequantizeLinear", ["y", "ys", "yz"], ["yd"]), node("Flatten", ["yd"], ["flat"]), *scores("flat")]
    grids = {"xs": XS, "xz": np.int8(-9), "ys": YS, "yz": np.int8(3)}
    model = network(head + nodes + tail, {**grids, **constants, **SCORES(features)}, opset=14)
    tensors = traced(imported(tmp_path, model))
    np.testing.assert_array_equal(tensors["y"], function(tensors["x"]))
    reals = (np.float32(1) * (tensors["x"].astype(np.float32) + 9) * XS).transpose(0, 3, 1, 2)
    peer = by_onnx_runtime(model, np.ascontiguousarray(reals), {"y": "int8"})["y"] if name != "Concat" else None
    assert peer is None or np.array_equal(peer.transpose(0, 2, 3, 1), tensors["y"])


def test_integers_are_read_on_the_grid_that_each_reader_names(tmp_path: Path) -> None:
    """y is written with one scale and zero point, and read with others: its integers do not change."""
    nodes = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"]), node("DequantizeLinear", ["x", "ys", "yz"], ["a"]),
             node("GlobalAveragePool", ["a"], ["b"]), node("QuantizeLinear", ["b", "xs", "xz"], ["y"]),
             node("Flatten", ["y"], ["f"]), node("DequantizeLinear", ["f", "xs", "xz"], ["scores"])]  # fmt: skip
    tensors = traced(imported(tmp_path, network(nodes, {"xs": XS, "xz": np.uint8(7), "ys": YS, "yz": np.uint8(90)})))
    sums = (tensors["x"][0].astype(int) - 90).sum((0, 1))
    expected = [7 + (Fraction(int(s), 63) * rational(YS) / rational(XS) + Fraction(1, 2)).__floor__() for s in sums]
    np.testing.assert_array_equal(tensors["y"].ravel(), np.clip(expected, 0, 255))


# --- the image --------------------------------------------------------------------------------------------------------


def simple(xs: Any = XS, xz: Any = np.uint8(0), type: Any = FLOAT, last: str = "scores") -> Any:
    """The image, its means, dequantized."""
    head = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"])] if type == FLOAT else []
    nodes = [*head, node("DequantizeLinear", ["x" if type == FLOAT else "image", "xs", "xz"], ["a"]),
             node("GlobalAveragePool", ["a"], ["b"]), node("QuantizeLinear", ["b", "ys", "yz"], ["y"], name="means"),
             node("DequantizeLinear", ["y", "ys", "yz"], ["c"]), node("Flatten", ["c"], [last])]  # fmt: skip
    return network(nodes, {"xs": xs, "xz": xz, "ys": YS, "yz": np.uint8(3)}, type=type)


@pytest.mark.parametrize("type, dtype", [(FLOAT, "int8"), (INT8, "int8"), (UINT8, "uint8")])
def test_an_image_of_scale_1_255_is_the_grey_level(type: Any, dtype: str, tmp_path: Path) -> None:
    model = imported(tmp_path, simple(np.float32(1 / 255), zero(0, dtype), type), Normalization())
    every = np.arange(-300, -300 + IMAGE.size).reshape(IMAGE.shape).astype(np.int32)
    expected = np.clip(every, 0, 255) + LOWEST[dtype]
    np.testing.assert_array_equal(traced(model, every)["x" if type == FLOAT else "image"], expected)


def test_a_mean_of_whole_steps_moves_the_zero_point(tmp_path: Path) -> None:
    half = Normalization(Fraction(1, 2), Fraction(1, 2))
    model = imported(tmp_path, simple(np.float32(1 / 128), np.uint8(131)), half)
    steps = np.array([(Fraction(int(g), 255) - Fraction(1, 2)) * 256 for g in IMAGE.ravel()], object)
    magnitude = np.full(IMAGE.size, 512, object)
    assert disagreements(traced(model)["x"].ravel(), steps, 131, 0, 255, MULTIPLIER_ERROR, magnitude) == (0, 0)
    with pytest.raises(ModelFormatError, match="a whole number of them: the nearest mean, 0.484375"):
        imported(tmp_path, simple(np.float32(1 / 128), np.uint8(131)), Normalization(Fraction("0.485"), Fraction(1, 2)))


# --- networks quantized by ONNX Runtime -------------------------------------------------------------------------------


def small_network() -> Any:
    """A stem, MobileNetV2's block with its Clips and its sum, a join, all kinds of pools."""
    def values(*shape: int) -> np.ndarray:
        return GENERATOR.uniform(-1, 1, shape).astype(np.float32)

    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="/stem/Conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], name="/stem/Relu"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], name="/block/expand"),
        node("Clip", ["c2", "zero", "six"], ["k2"], name="/block/clip"),
        node("Conv", ["k2", "w3"], ["c3"], name="/block/depthwise", group=8, pads=[1, 1, 1, 1]),
        node("Clip", ["c3", "zero", "six"], ["k3"], name="/block/clip2"),
        node("Conv", ["k3", "w4", "b4"], ["c4"], name="/block/project"),
        node("Add", ["c4", "r1"], ["a"], name="/block/add"), node("Sigmoid", ["a"], ["s"], name="/sigmoid"),
        node("Concat", ["a", "s"], ["j"], name="/join", axis=1),
        node("MaxPool", ["j"], ["m"], name="/max", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", ["m"], ["p"], name="/average", kernel_shape=[2, 2]),
        node("LeakyRelu", ["p"], ["l"], name="/leaky", alpha=0.125),
        node("GlobalAveragePool", ["l"], ["g"], name="/global"), node("Flatten", ["g"], ["f"], name="/flatten"),
        node("Gemm", ["f", "w5", "b5"], ["logits"], name="/fc", transB=1),
        node("Softmax", ["logits"], ["scores"], name="/softmax", axis=1),
    ]  # fmt: skip
    weights = {"w1": values(4, CHANNELS, 3, 3), "b1": values(4), "w2": values(8, 4, 1, 1), "b2": values(8),
               "w3": values(8, 1, 3, 3), "w4": values(4, 8, 1, 1), "b4": values(4), "zero": np.float32(0),
               "six": np.float32(1.5), "w5": values(5, 8), "b5": values(5)}  # fmt: skip
    return network(nodes, weights, shape=(CHANNELS, 12, 12))


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    path.write_bytes(small_network().SerializeToString())
    return path


def quantized_by_onnx_runtime(source: Path, target: Path, form: str, per_channel: bool, dtype: str) -> Any:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            images = np.random.default_rng(1).uniform(0, 1, (3, 4, CHANNELS, 12, 12)).astype(np.float32)
            self.images = iter([{"image": each} for each in images])

        def get_next(self) -> Any:
            return next(self.images, None)

    kind = quantization.QuantType.QUInt8 if dtype == "uint8" else quantization.QuantType.QInt8
    logging.getLogger().setLevel(logging.ERROR)
    quantization.quantize_static(
        str(source), str(target), Images(), quant_format=quantization.QuantFormat[form], per_channel=per_channel,
        activation_type=kind, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(str(target))


NETWORKS = list(itertools.product(("QDQ", "QOperator"), (False, True), LOWEST))
STEPS = {"Conv2D", "Linear", "Add", "GlobalAveragePool", "Requantize", "AveragePool"}


def steps_of(layer: Any, sources: Any, tensors: list[np.ndarray]) -> np.ndarray:
    """Exact but for the multipliers' last bits, from the integer layer: what it rounds."""
    if isinstance(layer, kinds.Add):
        pairs = zip(tensors, sources, layer.multiplier.tolist())
        return sum(scaled(x.astype(int) - s.zero_point, [Fraction(m, 2**layer.shift)]) for x, s, m in pairs)
    x = tensors[0].astype(np.int64) - sources[0].zero_point
    if isinstance(layer, kinds.AveragePool):
        each = pooled(layer.kernel, layer.strides, (0, 0, 0, 0), average_on(Fraction(1)))
        return np.stack([each(image) for image in x])
    ratios = [Fraction(m, 2**s) for m, s in zip(layer.requantization.multiplier.tolist(),
                                                layer.requantization.shift.tolist())]  # fmt: skip
    if isinstance(layer, kinds.Conv2D):
        sums = np.stack([products(image, layer.weights, layer.bias.tolist(), layer.strides, layer.padding,
                                  layer.dilation, layer.groups) for image in x])  # fmt: skip
        return scaled(sums, ratios)
    if isinstance(layer, kinds.Linear):
        return scaled(x @ layer.weights.T.astype(np.int64) + layer.bias, ratios)
    return scaled(x.sum((1, 2)) if isinstance(layer, kinds.GlobalAveragePool) else x, ratios)


@pytest.mark.parametrize("form, per_channel, dtype", NETWORKS)
def test_a_network_quantized_by_onnx_runtime_gives_its_integers_layer_by_layer(
    form: str, per_channel: bool, dtype: str, float_file: Path, tmp_path: Path
) -> None:
    """Each layer is fed with the 8-bit tensors of ONNX Runtime."""
    file = quantized_by_onnx_runtime(float_file, tmp_path / "quantized.onnx", form, per_channel, dtype)
    imported_model = imported(tmp_path, file, Normalization())
    model, tensors = imported_model.model, imported_model.tensors
    images = np.random.default_rng(2).integers(-30, 290, (2, 12, 12, CHANNELS)).astype(np.int32)
    reals = (images / np.float32(255)).astype(np.float32).transpose(0, 3, 1, 2)
    found = by_onnx_runtime(file, reals, {name: tensor.grid.dtype for name, tensor in tensors.items()})
    peers = {tensor.layer: name for name, tensor in tensors.items()}
    values: dict[str, np.ndarray] = {}
    compared = set()
    for layer in model.layers:
        sources = [model.proofs[name] for name in layer.inputs]
        reads = [values[name] for name in layer.inputs]
        values[layer.name] = operate(layer, sources, *(reads or [images]))
        if layer.name in peers:
            peer = found[peers[layer.name]]
            peer = (peer.transpose(0, 2, 3, 1) if peer.ndim == 4 else peer).reshape(values[layer.name].shape)
            differs = peer != values[layer.name]
            if differs.any():
                assert layer.kind in STEPS, layer.name
                proof, output = model.proofs[layer.name], getattr(layer, "output", model.proofs[layer.name])
                steps = steps_of(layer, sources, reads)
                assert disagreements(peer, steps, proof.zero_point, output.minimum, output.maximum, FLOAT32_ERROR,
                                     abs(steps) + 512)[0] == 0, layer.name  # fmt: skip
                assert differs.sum() <= 2 or layer.kind == "AveragePool", layer.name
            values[layer.name] = peer
            compared.add(layer.name)
    made_of = {"stem_Conv", "block_expand", "block_depthwise", "block_project", "block_add", "sigmoid", "join", "max",
               "average", "leaky", "global", "fc"}  # fmt: skip
    suffix = "" if form == "QDQ" else "_quant"
    wanted = {name + suffix if name != "max" else name for name in made_of}
    assert wanted <= compared, wanted - compared
    assert len(compared) >= len(model.layers) - 1  # one input of the Concat is requantized
    assert f"; {'' if form == 'QDQ' else 'QLinear'}Softmax at the end left out; " in model.provenance
    assert f"stem_Conv{suffix} of '/stem/Conv{suffix}': '{peers['stem_Conv' + suffix]}'" in model.provenance


@pytest.mark.parametrize("per_channel", [False, True])
def test_float_weights_that_the_file_quantizes_itself_become_the_same_integers(
    per_channel: bool, tmp_path: Path
) -> None:
    """As frameworks export fake quantization: QuantizeLinear and DequantizeLinear of the float weights."""
    case = conv((3, 3), per_channel=per_channel)
    model = case.model("QDQ", "uint8")
    scales = np.broadcast_to(case.constants["ws"], 6).reshape(6, 1, 1, 1)
    held = {each.name: each for each in model.graph.initializer}
    floats = (case.constants["w"] * scales).astype(np.float32)
    model.graph.node.insert(1, node("QuantizeLinear", ["floats", "ws", "wz"], ["wq"], axis=0))
    model.graph.initializer.append(onnx.numpy_helper.from_array(floats, "floats"))
    model.graph.initializer.remove(held["w"])
    for each in model.graph.node:
        each.input[:] = ["wq" if name == "w" else name for name in each.input]
    whole = case.model("QDQ", "uint8")
    assert fingerprint(imported(tmp_path, model).model) == fingerprint(imported(tmp_path, whole).model)


# --- refusals ---------------------------------------------------------------------------------------------------------


def around(nodes: list[Any], constants: Mapping[str, Any] | None = None, opset: int = 17) -> Any:
    """Nodes that make yr of xr, or y of x."""
    grids = {"xs": XS, "xz": np.uint8(9), "ys": YS, "yz": np.uint8(3), "none": np.float32(1)}
    head = [node("QuantizeLinear", ["image", "xs", "xz"], ["x"]), node("DequantizeLinear", ["x", "xs", "xz"], ["xr"])]
    if not any("y" in each.output for each in nodes):
        nodes = [*nodes, node("QuantizeLinear", ["yr", "ys", "yz"], ["y"])]
    tail = [node("DequantizeLinear", ["y", "ys", "yz"], ["yd"]), node("GlobalAveragePool", ["yd"], ["mean"]),
            node("QuantizeLinear", ["mean", "ys", "yz"], ["mq"]),
            node("DequantizeLinear", ["mq", "ys", "yz"], ["scores"])]  # fmt: skip
    return network([*head, *nodes, *tail], {**grids, **(constants or {})}, opset=opset)


def weighted(w: np.ndarray, scale: Any = 0.01, zero_point: Any = np.int8(0), axis: int = 0, **more: Any) -> Any:
    constants = {"w": w, "ws": np.float32(scale), "wz": zero_point, **more}
    reads = ["xr", "wr", "b"] if "b" in more else ["xr", "wr"]
    nodes = [node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=axis), node("Conv", reads, ["yr"])]
    return around(nodes, constants)


KERNEL = np.ones((2, CHANNELS, 1, 1), np.int8)
REFUSED: dict[str, Any] = {
    "Erf 'yr': found the operations Erf; expected none but Add": around([node("Erf", ["xr"], ["yr"])]),
    "DynamicQuantizeLinear 'q': found the operations ConvInteger, DynamicQuantizeLinear": around(
        [node("DynamicQuantizeLinear", ["xr"], ["q", "s", "z"]), node("ConvInteger", ["q", "w"], ["y"])],
        {"w": KERNEL}),
    "the operations com.microsoft.QAttention": around([node("QAttention", ["x"], ["y"], domain=MICROSOFT)]),
    "Conv 'yr': found weights less their zero point of -99 .. 156 .asymmetric weights.": weighted(
        np.resize(np.uint8([0, 255]), KERNEL.shape), zero_point=np.uint8(99)),
    "tensor 'xz': found type INT16; expected FLOAT, INT32": around(
        [node("Identity", ["xr"], ["yr"])], {"xz": np.int16(0)}),
    "one float32 for a tensor that depends on the image": around(
        [node("DequantizeLinear", ["x", "vs", "xz"], ["yr"])], {"vs": np.float32([1, 1, 1, 1])}),
    "scale 0.0; expected a finite number above zero": around(
        [node("DequantizeLinear", ["x", "s", "xz"], ["yr"])], {"s": np.float32(0)}),
    "scale nan": around([node("DequantizeLinear", ["x", "s", "xz"], ["yr"])], {"s": np.float32("nan")}),
    "a zero point of int8; expected uint8": around(
        [node("DequantizeLinear", ["x", "xs", "z"], ["yr"])], {"z": np.int8(0)}),
    "an image quantized in two ways": around([node("QuantizeLinear", ["image", "ys", "yz"], ["y"])]),
    "scales along axis 1 of the weights": weighted(KERNEL, [1] * CHANNELS, np.zeros(CHANNELS, np.int8), 1),
    "2 scales along axis 1 of": weighted(KERNEL, [1, 1], np.zeros(2, np.int8), 1),
    "a bias of another scale": around([
        node("DequantizeLinear", ["w", "none", "z"], ["wr"]), node("DequantizeLinear", ["b", "none"], ["br"]),
        node("Conv", ["xr", "wr", "br"], ["yr"])], {"w": KERNEL, "z": np.int8(0), "b": np.int32([1, 2])}),
    "a bias beyond int32": weighted(KERNEL, b=np.float32([1e30, 0])),
    r"bias of shape \(3,\)": weighted(KERNEL, b=np.float32([1, 2, 3])),
    "a constant as an input; expected a tensor of 8 bits": around(
        [node("Conv", ["xr", "w"], ["yr"])], {"w": KERNEL.astype(np.float32)}),
    "Conv 'yr': found a result that is not quantized as an input": around([
        node("DequantizeLinear", ["w", "none", "z"], ["wr"]), node("Sigmoid", ["xr"], ["s"]),
        node("Conv", ["s", "wr"], ["yr"])], {"w": KERNEL, "z": np.int8(0)}),
    "Sigmoid 'yr': found an 8-bit tensor, not dequantized": around(
        [node("Identity", ["x"], ["i"]), node("Sigmoid", ["i"], ["yr"])]),
    "found the image as it is": around([node("Sigmoid", ["image"], ["yr"])]),
    "Relu 'yr': found the image as it is": around([node("Relu", ["image"], ["yr"])]),
    "parameters that depend on the image": around([node("Clip", ["xr", "xr"], ["yr"])]),
    "a clip to no number": around([node("Clip", ["xr", "nan"], ["yr"])], {"nan": np.float32("nan")}),
    "attribute inf; expected a finite one": around([node("LeakyRelu", ["xr"], ["yr"], alpha=np.inf)]),
    "1 constants of type float32; expected at most 8 integers": around([node("Pad", ["xr", "none"], ["yr"])]),
    "QLinearAveragePool 'y': found attribute 'kernel_shape' of type 1; expected 7": around(
        [node("QLinearAveragePool", [*XZS, "ys", "yz"], ["y"], domain=MICROSOFT, kernel_shape=2.5)]),
    "a bias of shape .2,., float32; expected int32": around(
        [node("QLinearConv", [*XZS, "w", "none", "z", "ys", "yz", "b"], ["y"])],
        {"w": KERNEL, "z": np.int8(0), "b": np.float32([1, 2])}),
    "a product of two tensors": around([node("Mul", ["xr", "xr"], ["yr"])]),
    "a sum of shapes": around([
        node("GlobalAveragePool", ["xr"], ["g"]), node("QuantizeLinear", ["g", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["r"]), node("Add", ["xr", "r"], ["yr"])]),
    "means onto another grid, of windows that count no padding": around(
        [node("AveragePool", ["xr"], ["yr"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
    "axis 2; expected 1, the channels": around([node("Concat", ["xr", "xr"], ["yr"], axis=2)]),
    "value 1.0; expected zeros": around([node("Pad", ["xr", "p", "none"], ["yr"])], {"p": np.int64([0] * 8)}),
    "those of height and width": around([node("Pad", ["xr", "p"], ["yr"])], {"p": np.int64([0, 1] + [0] * 6)}),
    "integers from 0 to 65536": around([node("Pad", ["xr", "p"], ["yr"])], {"p": np.int64([0, 0, 2**40] + [0] * 5)}),
    "a tensor of shape .60007": around([node("Pad", ["xr", "p"], ["yr"])],
                                       {"p": np.int64([0, 0, 60000, 60000] + [0] * 4)}),
    "windows inside the padded image": around([node("MaxPool", ["xr"], ["yr"], kernel_shape=[60000, 2])]),
    "a clip to 2 .. 1": around([node("Clip", ["xr", "two", "none"], ["yr"])], {"two": np.float32(2)}),
    "Softmax, LogSoftmax or ArgMax as an input": around([node("Softmax", ["xr"], ["s"], axis=1),
                                                        node("Relu", ["s"], ["yr"])]),
    "axis 3; expected 1, the classes": around([node("Softmax", ["xr"], ["yr"], axis=3)]),
    "nothing that depends on the image": around([node("Relu", ["none"], ["c"]), node("Add", ["xr", "c"], ["yr"])]),
    "alpha 2, beta 1, transA 0": around([
        node("DequantizeLinear", ["w", "none"], ["wr"]), node("Flatten", ["xr"], ["f"]),
        node("Gemm", ["f", "wr"], ["yr"], alpha=2.0)], {"w": np.ones((252, 3), np.uint8)}),
    "output_dtype 5": around([node("QuantizeLinear", ["xr", "xs"], ["y"], output_dtype=5)], opset=21),
    "worst-case accumulator": weighted(KERNEL, b=np.int32([2**31 - 1, 0])),
    "Relu 'a': found input 'b', which nothing before it gives": around([node("Relu", ["b"], ["a"]),
                                                                        node("Relu", ["a"], ["b"])]),
}  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_an_integer_model_cannot_hold_is_refused_in_one_line(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=pattern) as caught:
        imported(tmp_path, REFUSED[pattern])
    assert str(caught.value).startswith(f"{tmp_path / 'model.onnx'}: ") and "\n" not in str(caught.value)


def test_scores_of_different_scales_are_refused(tmp_path: Path) -> None:
    nodes = [node("QuantizeLinear", ["image", "xs"], ["x"]), node("DequantizeLinear", ["x", "xs"], ["xr"]),
             node("Flatten", ["xr"], ["f"]), node("DequantizeLinear", ["w", "ws"], ["wr"], axis=1),
             node("MatMul", ["f", "wr"], ["scores"])]  # fmt: skip
    constants = {"xs": XS, "w": np.ones((252, 2), np.uint8), "ws": np.float32([1, 2])}
    with pytest.raises(ModelFormatError, match="output 'scores': found scores of different scales"):
        imported(tmp_path, network(nodes, constants))
    constants["ws"] = np.float32([1, 1])
    last = imported(tmp_path, network(nodes, constants)).model
    assert last.proofs["scores"].dtype == "int32"


@pytest.mark.parametrize("end", ["ArgMax", "LogSoftmax", "Softmax"])
def test_what_changes_no_largest_score_is_left_out_at_the_end(end: str, tmp_path: Path) -> None:
    model = simple(last="flat")
    model.graph.node.append(node(end, ["flat"], ["scores"], axis=1))
    found = imported(tmp_path, model, class_names="abcd").model
    assert [layer.name for layer in found.layers] == ["x", "b"] and f"; {end} at the end left out; " in found.provenance
    assert found.class_names == tuple("abcd")


# --- hostile files ----------------------------------------------------------------------------------------------------


def import_damaged(path: Path, contents: list[bytes]) -> None:
    for content in contents:
        for variant in damaged(content, 150):
            path.write_bytes(variant)
            try:
                quantized_onnx_import.integer_model(path)
            except IntsmoothError as problem:
                assert "\n" not in str(problem), str(problem)


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    names = (("Conv and Clip", "QDQ"), ("Conv", "QLinear"), ("Concat", "QLinear"))
    contents = [CASES[name].model(form, "uint8").SerializeToString() for name, form in names]
    run_elsewhere(import_damaged, tmp_path / "model.onnx", contents)


def test_weights_outside_the_file_are_not_read(tmp_path: Path) -> None:
    model = simple()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelFormatError, match="tensor 'xs': found data outside the file"):
        imported(tmp_path, model)


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\n" * 9])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="model.onnx: found no ONNX file"):
        imported(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.onnx: found no such file"):
        quantized_onnx_import.integer_model(tmp_path / "none.onnx")


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_program_writes_an_integer_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "in.onnx", tmp_path / "out.h5"
    path.write_bytes(simple(np.float32(1 / 128), np.uint8(131)).SerializeToString())
    arguments = [str(path), str(output), "--mean", "0.485", "--deviation", "1/2", "--nearest-mean"]
    assert quantized_onnx_import.main(arguments) == 0
    loaded = load_model(output).model
    nearest = Normalization(Fraction("0.484375"), Fraction(1, 2))
    assert fingerprint(loaded) == fingerprint(quantized_onnx_import.integer_model(path, nearest).model)
    assert capsys.readouterr().out.splitlines()[0].endswith(", images 7x9x4, 4 classes")
    assert quantized_onnx_import.main(arguments) == 1
    assert "found a file already; expected none, or the option --overwrite" in capsys.readouterr().err


def test_the_input_scale_is_what_a_grey_level_is_worth(tmp_path: Path) -> None:
    path, first, second = tmp_path / "in.onnx", tmp_path / "1.h5", tmp_path / "2.h5"
    path.write_bytes(simple(np.float32(1)).SerializeToString())
    assert quantized_onnx_import.main([str(path), str(first), "--input-scale", "1"]) == 0
    assert quantized_onnx_import.main([str(path), str(second), "--deviation", "1/255"]) == 0
    assert fingerprint(load_model(first).model) == fingerprint(load_model(second).model)
    trace = dict(ReferenceModel(load_model(first).model).trace(IMAGE))
    np.testing.assert_array_equal(trace["x"], IMAGE.clip(0, 255))


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(simple().SerializeToString())
    program = f"""import sys
sys.modules["onnx"] = None
from intsmooth_ref.data_tools import quantized_onnx_import
sys.exit(quantized_onnx_import.main([{str(path)!r}, {str(tmp_path / "out.h5")!r}]))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "pip install 'intsmooth_ref[onnx]'" in done.stderr


def test_an_interruption_ends_with_a_line_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantized_onnx_import, "check", interrupt)
    path = tmp_path / "in.onnx"
    path.write_bytes(simple().SerializeToString())
    assert quantized_onnx_import.main([str(path), str(tmp_path / "out.h5")]) == 130
    assert capsys.readouterr().err.strip() == "interrupted" and not (tmp_path / "out.h5").exists()
