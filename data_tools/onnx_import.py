"""From a float32 ONNX file to a float model file: operations of operator sets 7 and later, images `(N, C, H, W)`.

The batch dimension is 1 or symbolic; height and width are numbers. Quantized models, other types than float32, weights
outside the file and operations that a float model cannot hold are refused. Softmax, LogSoftmax and ArgMax at the end
are left out: they change no largest score. A GELU must be the operation Gelu, which operator set 20 introduced.

Nothing outside the file is read, and no node is run before it is known what it does. In the end the scores of the file,
computed by ONNX Runtime where it is installed and else by the reference of ONNX, are compared with the float model's.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence, Union

import numpy as np

from intsmooth_ref.cli.arguments import rational
from intsmooth_ref.data_tools.channels_first import FloatModelBuilder, Operand, Tensor, expect, located
from intsmooth_ref.data_tools.converter import printable
from intsmooth_ref.data_tools.program import argument_parser, check_output, status_of
from intsmooth_ref.data_tools.float_file import save_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.data_tools.import_program import class_names_in
from intsmooth_ref.data_tools.onnx_file import (
    FLOAT_TYPES,
    ConstantArithmetic,
    applied,
    axes_of_image,
    check,
    constant,
    constant_of,
    expect_flattening,
    expect_over_classes,
    image_of,
    inputs_of,
    listed,
    name_of,
    number,
    one_line,
    opened,
    operation,
    pad_amounts,
    where,
    window_padding,
)
from intsmooth_ref.errors import ModelFormatError

if TYPE_CHECKING:
    import onnx

#: The first operator set in which arithmetic is broadcast as in NumPy.
FIRST_OPSET = 7

AT_THE_END = ("Softmax", "LogSoftmax", "ArgMax")

#: Of whose tensors the types are.
KIND = "a float32 network"

Value = Union[Tensor, np.ndarray]


def float_model(
    path: str | Path, mean: Sequence[float] = (), deviation: Sequence[float] = (), class_names: Sequence[str] = (),
    provenance: str = "",
) -> FloatModel:  # fmt: skip
    """The float model that an ONNX file amounts to.

    Args:
        mean, deviation: the file reads `(grey / 255 - mean) / deviation`: none, one for all or one a channel.
        provenance: what it begins with; the file's name and SHA-256 and what verified the scores follow.

    Raises:
        ParameterError: if the package `onnx` is missing.
        DatasetError: if there is no such file, or it is too large.
        ModelFormatError: what is wrong with it or not supported; or that the scores of both do not agree.
    """
    path = Path(path)
    file, sha256 = opened(path)
    with located(str(path)):
        graph = file.graph
        _refuse_quantized(graph)
        check(file, OPERATIONS, AT_THE_END, FIRST_OPSET)
        constants = {tensor.name: constant(tensor, FLOAT_TYPES, KIND) for tensor in graph.initializer}
        image, shape, _ = image_of(graph, constants, {1: "float32"})
        builder = FloatModelBuilder(shape, mean, deviation)
        scores, dropped = _before_the_end(graph)
        output = _rebuilt(file, {**constants, image: builder.input}, scores, dropped, builder)
        run, runtime = _runtime(file, image, scores)
        history = [provenance, f"imported from {printable(path.name)}, SHA-256 {sha256}"]
        history += [f"{node.op_type} at the end left out" for node in dropped]
        history += [f"scores compared with those of {runtime}"]
        model = builder.model(output, class_names, "; ".join(filter(None, history)))
        builder.expect_agreement(model, run)
    return model


def _refuse_quantized(graph: onnx.GraphProto) -> None:
    quantized = sorted({operation(node) for node in graph.node if _is_quantized(node.op_type)})
    expect(not quantized, f"a quantized model ({listed(quantized)})",
           "a float model: the one it was made of, or the program quantized_onnx_import")  # fmt: skip


def _is_quantized(name: str) -> bool:
    return name.startswith("QLinear") or name.endswith(("QuantizeLinear", "DequantizeLinear", "Integer"))


def _before_the_end(graph: onnx.GraphProto) -> tuple[str, list[onnx.NodeProto]]:
    """The name of the scores, and the nodes behind them that are left out, the last first."""
    expect(len(graph.output) == 1, f"{len(graph.output)} outputs", "one, the scores")
    givers = {name: node for node in graph.node for name in node.output}
    name: str = graph.output[0].name
    dropped: list[onnx.NodeProto] = []
    while name in givers and givers[name].op_type in AT_THE_END:
        dropped.append(givers[name])
        name = givers[name].input[0]
    return name, dropped


# --- the walk along the graph -----------------------------------------------------------------------------------------


def _rebuilt(
    file: onnx.ModelProto, values: dict[str, Value], scores: str, dropped: Sequence[onnx.NodeProto],
    builder: FloatModelBuilder,
) -> Tensor:  # fmt: skip
    """The scores, in the builder."""
    arithmetic = ConstantArithmetic(file)
    for node in file.graph.node:
        if node.op_type not in AT_THE_END or all(node is not each for each in dropped):
            with located(where(node)):
                values[node.output[0]] = _result(arithmetic, node, values, builder)
    output = values[scores]
    expect(isinstance(output, Tensor), "scores that do not depend on the image", "a classifier of images")
    assert isinstance(output, Tensor)
    for node in dropped:
        with located(where(node)):
            expect_over_classes(node, file, len(output.shape) + 1)
    return output


def _result(
    arithmetic: ConstantArithmetic, node: onnx.NodeProto, values: Mapping[str, Value], builder: FloatModelBuilder
) -> Value:
    """What a node gives: a tensor of the builder, or a constant."""
    inputs = inputs_of(node, values)
    if node.op_type == "Constant":
        return constant_of(node, FLOAT_TYPES, KIND)
    if node.op_type == "Shape":
        inputs = [np.empty((1, *each.shape)) if isinstance(each, Tensor) else each for each in inputs]
    if not any(isinstance(each, Tensor) for each in inputs):
        return arithmetic.result(node, [each for each in inputs if isinstance(each, np.ndarray)])
    operator = OPERATIONS.get(node.op_type)
    if operator is None:
        raise ModelFormatError("found a tensor that depends on the image; expected constants only")
    if node.op_type not in ANY_OPERANDS:
        expect(isinstance(inputs[0], Tensor), "a constant as the first input", "a tensor that depends on the image")
        constants = not any(isinstance(each, Tensor) for each in inputs[1:])
        expect(constants, "weights that depend on the image", "constants")
    result: Tensor = applied(operator, node, builder, name_of(node), *inputs)
    return result


def _runtime(
    file: onnx.ModelProto, image: str, scores: str
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """What computes the scores of images, one by one, and its name."""
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(file)
    del cut.graph.output[:]
    cut.graph.output.append(onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, None))
    try:
        import onnxruntime
    except ImportError:
        return partial(_referenced, cut, image), f"the reference of ONNX {onnx.__version__}"
    return partial(_executed, cut, image), f"ONNX Runtime {onnxruntime.__version__}"


def _executed(cut: onnx.ModelProto, image: str, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {image: each[None]})[0].reshape(1, -1) for each in images])
    except Exception as problem:  # its exceptions have no base of their own
        raise ModelFormatError(f"found what ONNX Runtime does not run ({one_line(problem)})") from None


def _referenced(cut: onnx.ModelProto, image: str, images: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator: Any = ReferenceEvaluator(cut)
        return np.concatenate([np.reshape(evaluator.run(None, {image: each[None]})[0], (1, -1)) for each in images])
    except Exception as problem:  # any, for the reference trusts its inputs
        raise ModelFormatError(f"found what the reference of ONNX does not run ({one_line(problem)})") from None


# --- operations, under ONNX's own names of attributes -----------------------------------------------------------------


def _conv(
    builder: FloatModelBuilder, name: str, x: Tensor, weights: np.ndarray, bias: np.ndarray | None = None, *,
    auto_pad: bytes = b"NOTSET", dilations: Sequence[int] = (1, 1), group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] = (0, 0, 0, 0), strides: Sequence[int] = (1, 1),
) -> Tensor:  # fmt: skip
    kernel = weights.shape[2:]
    good = weights.ndim == 4 and kernel_shape in (None, list(kernel)) and len(x.shape) == 3
    expect(good, f"weights of shape {weights.shape} for {x.shape}, kernel_shape {kernel_shape}", "a 2-D convolution")
    padding = window_padding(x.shape[1:], kernel, auto_pad, pads, strides, dilations)
    return builder.conv2d(name, x, weights, bias, strides=tuple(strides), padding=padding, dilation=tuple(dilations),
                          groups=group)  # fmt: skip


def _gemm(
    builder: FloatModelBuilder, name: str, x: Tensor, weights: np.ndarray, bias: np.ndarray | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    expect(weights.ndim == 2 and not transA, f"weights of shape {weights.shape}, transA {transA}", "a matrix and 0")
    rows = weights if transB else weights.T
    if bias is not None:
        expect(bias.shape in ((), (1,), (len(rows),), (1, 1), (1, len(rows))), f"bias of shape {bias.shape}",
               f"({len(rows)},)")  # fmt: skip
        bias = np.broadcast_to(np.float64(beta) * bias.reshape(-1), len(rows))
    return builder.linear(name, x, np.float64(alpha) * rows, bias)


def _matmul(builder: FloatModelBuilder, name: str, x: Tensor, weights: np.ndarray) -> Tensor:
    return _gemm(builder, name, x, weights)


def _batch_normalization(
    builder: FloatModelBuilder, name: str, x: Tensor, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray,
    variance: np.ndarray, *, epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    expect(spatial == 1 and not training_mode, f"spatial {spatial}, training_mode {training_mode}", "1 and 0")
    return builder.batch_norm(name, x, scale, shift, mean, variance, epsilon)


def _relu(builder: FloatModelBuilder, name: str, x: Tensor) -> Tensor:
    return builder.clamp(name, x)


def _clip(
    builder: FloatModelBuilder, name: str, x: Tensor, lowest: np.ndarray | None = None,
    highest: np.ndarray | None = None, *, min: float = -inf, max: float = inf,
) -> Tensor:  # fmt: skip
    """The limits were attributes before operator set 11."""
    limits = [number(default if limit is None else limit) for limit, default in ((lowest, min), (highest, max))]
    return builder.clamp(name, x, *limits)


def _function(function: str) -> Callable[..., Tensor]:
    def operation(builder: FloatModelBuilder, name: str, x: Tensor) -> Tensor:
        return builder.function(name, x, function)

    return operation


def _hard_sigmoid(
    builder: FloatModelBuilder, name: str, x: Tensor, *, alpha: float = 0.2, beta: float = 0.5
) -> Tensor:
    good = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5  # alpha is a float32
    expect(good, f"alpha {alpha:.7g} and beta {beta:.7g}", "1/6 and 1/2")
    return builder.function(name, x, "hard_sigmoid")


def _elu(builder: FloatModelBuilder, name: str, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    expect(alpha == 1, f"alpha {alpha:.7g}", "1")
    return builder.function(name, x, "elu")


def _leaky_relu(builder: FloatModelBuilder, name: str, x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return builder.function(name, x, "leaky_relu", alpha)


def _gelu(builder: FloatModelBuilder, name: str, x: Tensor, *, approximate: bytes = b"none") -> Tensor:
    expect(approximate == b"none", f"the approximation {approximate[:20]!r}", "none")
    return builder.function(name, x, "gelu")


def _arithmetic(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def operation(builder: FloatModelBuilder, name: str, left: Operand, right: Operand) -> Tensor:
        return method(builder, name, left, right)

    return operation


def _concat(builder: FloatModelBuilder, name: str, *tensors: Tensor, axis: int) -> Tensor:
    good = all(isinstance(each, Tensor) for each in tensors)
    expect(good, "a constant that is joined to tensors", "tensors")
    expect(axis in (1, -len(tensors[0].shape)), f"axis {axis}", "1, the channels")
    return builder.concat(name, tensors)


def _max_pool(
    builder: FloatModelBuilder, name: str, x: Tensor, *, kernel_shape: Sequence[int], auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0, dilations: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0), storage_order: int = 0,
    strides: Sequence[int] = (1, 1),
) -> Tensor:  # fmt: skip
    expect(list(dilations) == [1, 1], f"dilations {list(dilations)[:4]}", "[1, 1]")
    padding = window_padding(x.shape[1:], kernel_shape, auto_pad, pads, strides, dilations)
    return builder.max_pool(name, x, tuple(kernel_shape), tuple(strides), padding, bool(ceil_mode))


def _average_pool(
    builder: FloatModelBuilder, name: str, x: Tensor, *, kernel_shape: Sequence[int], auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0, count_include_pad: int = 0, dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), strides: Sequence[int] = (1, 1),
) -> Tensor:  # fmt: skip
    expect(list(dilations) == [1, 1], f"dilations {list(dilations)[:4]}", "[1, 1]")
    padding = window_padding(x.shape[1:], kernel_shape, auto_pad, pads, strides, dilations)
    return builder.average_pool(name, x, tuple(kernel_shape), tuple(strides), padding, bool(count_include_pad),
                                bool(ceil_mode))  # fmt: skip


def _global_average_pool(builder: FloatModelBuilder, name: str, x: Tensor) -> Tensor:
    return builder.global_average_pool(name, x, keeps_extents=True)


def _reduce_mean(
    builder: FloatModelBuilder, name: str, x: Tensor, over: np.ndarray | None = None, *,
    axes: Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0,
) -> Tensor:  # fmt: skip
    """The axes were an attribute before operator set 18."""
    given = axes_of_image(axes, over)
    expect(given == [2, 3], f"a mean over {given}", "one over height and width, [2, 3]")
    return builder.global_average_pool(name, x, bool(keepdims))


def _flatten(builder: FloatModelBuilder, name: str, x: Tensor, *, axis: int = 1) -> Tensor:
    expect(axis in (1, -len(x.shape)), f"axis {axis}", "1")
    return builder.flatten(name, x)


def _reshape(builder: FloatModelBuilder, name: str, x: Tensor, shape: np.ndarray, *, allowzero: int = 0) -> Tensor:
    expect_flattening(shape, x.shape, allowzero)
    return builder.flatten(name, x)


def _squeeze(
    builder: FloatModelBuilder, name: str, x: Tensor, over: np.ndarray | None = None, *,
    axes: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    good = x.shape[1:] == (1, 1) and axes_of_image(axes, over) == [2, 3]
    expect(good, f"axes {axes_of_image(axes, over)} of a tensor of shape {x.shape}", "a height and width of 1, [2, 3]")
    return builder.flatten(name, x)


def _pad(
    builder: FloatModelBuilder, name: str, x: Tensor, amounts: np.ndarray | None = None,
    constant_value: np.ndarray | None = None, axes: np.ndarray | None = None, *, mode: bytes = b"constant",
    pads: Sequence[int] = (), value: float = 0.0,
) -> Tensor:  # fmt: skip
    """The value was an attribute before operator set 11."""
    filled = number(value if constant_value is None else constant_value)
    expect(mode == b"constant" and filled == 0, f"mode {mode[:20]!r} and value {filled}", "constant zeros")
    return builder.pad(name, x, pad_amounts(len(x.shape), amounts, axes, pads, x.shape))


def _identity(builder: FloatModelBuilder, name: str, x: Tensor) -> Tensor:
    return x


def _dropout(
    builder: FloatModelBuilder, name: str, x: Tensor, probability: np.ndarray | None = None,
    training: np.ndarray | None = None, *, ratio: float = 0.5, seed: int = 0,
) -> Tensor:  # fmt: skip
    expect(training is None or not training.any(), "dropout that goes on after training", "training_mode false")
    return x


OPERATIONS: Mapping[str, Callable[..., Tensor]] = {
    "Add": _arithmetic(FloatModelBuilder.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _arithmetic(FloatModelBuilder.divide),
    "Dropout": _dropout,
    "Elu": _elu,
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _function("hard_swish"),
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(FloatModelBuilder.multiply),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": _function("sigmoid"),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(FloatModelBuilder.subtract),
    "Tanh": _function("tanh"),
}

#: Those that may have tensors and constants in any place.
ANY_OPERANDS = ("Add", "Sub", "Mul", "Div", "Concat")


# --- the program ------------------------------------------------------------------------------------------------------


def numbers(text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406` or `1/255`, a type of argument."""
    return tuple(float(rational(each)) for each in text.split(","))


def onnx_import_parser() -> argparse.ArgumentParser:
    parser = argument_parser("onnx_import", __doc__)
    add = parser.add_argument
    add("file", type=Path, metavar="MODEL.onnx", help="the float32 ONNX file to read")
    add("output", type=Path, metavar="OUT.h5", help="the float model file to write")
    add("--overwrite", action="store_true", help="replace OUT.h5 if it exists")
    add("--mean", type=numbers, default=(0.0,), metavar="M,M,M", help="what was subtracted from images whose full "
        "scale is 1: one number, or one a channel (default: 0)")  # fmt: skip
    add("--deviation", type=numbers, default=(1.0,), metavar="D,D,D", help="by what they were then divided: 1/255 if "
        "the network reads grey levels 0 to 255 (default: 1)")  # fmt: skip
    add("--class-names", type=Path, metavar="FILE", help="one name a line, in the order of the scores")
    return parser


def run(options: argparse.Namespace) -> None:
    """Import, write, say what was written."""
    output: Path = options.output
    check_output(options)
    names = class_names_in(options.class_names) if options.class_names else ()
    model = float_model(options.file, options.mean, options.deviation, names)
    save_float_model(output, model)
    height, width, channels = model.input.shape
    print(f"{output}: {len(model.layers)} layers, {model.parameters} parameters, images {height}x{width}x{channels}, "
          f"{model.classes} classes")  # fmt: skip
    print(model.provenance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    options = onnx_import_parser().parse_args(arguments)
    return status_of(lambda: run(options), options.output, room="some ten times what the weights take")


if __name__ == "__main__":
    sys.exit(main())
