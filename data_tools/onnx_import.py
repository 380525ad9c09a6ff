"""From a float32 ONNX file to a float model file: operations of operator sets 7 and later, images `(N, C, H, W)`.

The batch dimension is 1 or symbolic; height and width are numbers. Quantized models, other types than float32, weights
outside the file and operations that a float model cannot hold are refused. Softmax, LogSoftmax and ArgMax at the end
are left out: they change no largest score. A GELU must be the operation Gelu, which operator set 20 introduced.

Nothing outside the file is read, and no node is run before it is known what it does. In the end the scores of the file,
computed by ONNX Runtime where it is installed and else by the reference of ONNX, are compared with the float model's.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
from functools import partial
from math import inf, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence, Union

import numpy as np

from intsmooth_ref.cli.arguments import rational
from intsmooth_ref.data_tools.channels_first import FloatModelBuilder, Operand, Tensor, expect, located, same_padding
from intsmooth_ref.data_tools.converter import file_content, printable, say
from intsmooth_ref.data_tools.float_file import save_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.errors import IntsmoothError, ModelFormatError, ParameterError
from intsmooth_ref.model.proof import MAX_ELEMENTS, MAX_EXTENT, MAX_LAYERS

if TYPE_CHECKING:
    import onnx

#: What a file may have; its weights are `MAX_ELEMENTS` a tensor at most.
MAX_FILE_BYTES = 1 << 30
MAX_NODES = 4 * MAX_LAYERS

#: The first operator set in which arithmetic is broadcast as in NumPy.
FIRST_OPSET = 7

#: Elements of a constant in arithmetic among constants, which may give as many as the product of two.
MAX_SMALL = 1 << 12

AT_THE_END = ("Softmax", "LogSoftmax", "ArgMax")

#: FLOAT, INT, STRING, TENSOR, FLOATS, INTS, STRINGS: no graphs, no sparse tensors.
ATTRIBUTE_TYPES = (1, 2, 3, 4, 6, 7, 8)

#: Weights, shapes, and switches.
TENSOR_TYPES = {1: "FLOAT", 6: "INT32", 7: "INT64", 9: "BOOL"}

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
    try:
        import onnx  # noqa: F401
    except ImportError as problem:
        hint = "the import needs the extra `onnx`: pip install 'intsmooth_ref[onnx]'"
        raise ParameterError(f"{problem}; {hint}") from None
    content = file_content(path, MAX_FILE_BYTES)
    with located(str(path)):
        file = _parsed(content)
        _check(file)
        graph = file.graph
        constants = {tensor.name: _constant(tensor) for tensor in graph.initializer}
        image, shape = _image(graph, constants)
        builder = FloatModelBuilder(shape, mean, deviation)
        scores, dropped = _before_the_end(graph)
        output = _rebuilt(file, {**constants, image: builder.input}, scores, dropped, builder)
        run, runtime = _runtime(file, image, scores)
        history = [provenance, f"imported from {printable(path.name)}, SHA-256 {hashlib.sha256(content).hexdigest()}"]
        history += [f"{node.op_type} at the end left out" for node in dropped]
        history += [f"scores compared with those of {runtime}"]
        model = builder.model(output, class_names, "; ".join(filter(None, history)))
        builder.expect_agreement(model, run)
    return model


# --- the file, which is not trusted -----------------------------------------------------------------------------------


def _parsed(content: bytes) -> onnx.ModelProto:
    import onnx

    try:
        file = onnx.ModelProto.FromString(content)
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise ModelFormatError("found no ONNX file, or a damaged one; expected a whole one") from None
    expect(len(file.graph.node) > 0, "no ONNX file, or one without nodes", "a network")
    _expect_text(file)
    return file


def _expect_text(message: Any) -> None:
    """Names that are no UTF-8 would reach everything below as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            text = all(isinstance(each, str) for each in ([value] if isinstance(value, (str, bytes)) else value))
            expect(text, f"a field {field.name!r} that is no UTF-8", "a whole ONNX file")
        elif field.type == field.TYPE_MESSAGE:
            for each in [value] if hasattr(value, "ListFields") else value:
                _expect_text(each)


def _check(file: onnx.ModelProto) -> None:
    """What is refused by name, before ONNX's own checker looks at the rest."""
    import onnx

    graph, newest = file.graph, onnx.defs.onnx_opset_version()
    opsets = [each.version for each in file.opset_import if each.domain in ("", "ai.onnx")]
    expect(len(opsets) == 1 and FIRST_OPSET <= opsets[0] <= newest, f"operator sets {opsets[:4]}",
           f"one from {FIRST_OPSET} to {newest}")  # fmt: skip
    expect(len(graph.node) <= MAX_NODES, f"{len(graph.node)} nodes", f"at most {MAX_NODES}")
    expect(not graph.sparse_initializer and not file.functions, "sparse weights or functions of the file's own", "none")
    operations = {node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
                  for node in graph.node}  # fmt: skip
    quantized = sorted(filter(_is_quantized, operations))
    expect(not quantized, f"a quantized model ({_listed(quantized)})", "a float model: the one it was made of")
    unknown = sorted(operations - set(OPERATIONS) - set(AMONG_CONSTANTS) - set(AT_THE_END) - {"Constant"})
    expect(not unknown, f"the operations {_listed(unknown)}", f"none but {', '.join(sorted(OPERATIONS))}, and "
           f"{', '.join(AT_THE_END)} at the end")  # fmt: skip
    for node in graph.node:
        with located(_where(node)):
            for each in node.attribute:
                good = each.type in ATTRIBUTE_TYPES and not each.ref_attr_name
                expect(good, f"attribute {printable(each.name[:100])!r} of type {each.type}", "numbers, text, tensors")
                _check_tensor(each.t)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    _check_names(graph)
    try:
        onnx.checker.check_model(file)
    except (onnx.checker.ValidationError, ValueError) as problem:
        raise ModelFormatError(f"found no valid ONNX file ({_one_line(problem)}); expected one") from None


def _is_quantized(operation: str) -> bool:
    name = operation.rpartition(".")[2]
    return name.startswith("QLinear") or name.endswith(("QuantizeLinear", "DequantizeLinear", "Integer"))


def _check_tensor(tensor: onnx.TensorProto) -> None:
    import onnx

    with located(f"tensor {printable(tensor.name[:100])!r}"):
        outside = tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL
        expect(not outside, "data outside the file", "a file that holds its weights itself")
        dims = list(tensor.dims)
        good = all(0 <= extent <= MAX_ELEMENTS for extent in dims) and prod(dims) <= MAX_ELEMENTS
        expect(good, f"shape {dims[:8]}", f"at most {MAX_ELEMENTS} elements")


def _check_names(graph: onnx.GraphProto) -> None:
    """Every name that a node reads is that of an input, a weight or an earlier node's output."""
    known = {""} | {each.name for each in graph.input} | {each.name for each in graph.initializer}
    for node in graph.node:
        with located(_where(node)):
            for name in node.input:
                expect(name in known, f"input {printable(name[:100])!r}, which nothing before it gives",
                       "neither a cycle nor a missing weight")  # fmt: skip
        known.update(node.output)
    for each in graph.output:
        expect(each.name in known, f"output {printable(each.name[:100])!r}, which no node gives", "a node's output")


def _constant(tensor: onnx.TensorProto) -> np.ndarray:
    import onnx

    with located(f"tensor {printable(tensor.name[:100])!r}"):
        every = {number: name for name, number in onnx.TensorProto.DataType.items()}
        found = f"type {every.get(tensor.data_type, tensor.data_type)}"
        expect(tensor.data_type in TENSOR_TYPES, found, f"{', '.join(TENSOR_TYPES.values())}: a float32 network")
        try:
            return np.array(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError) as problem:
            raise ModelFormatError(f"found damaged data ({_one_line(problem)}); expected whole data") from None


def _image(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> tuple[str, tuple[int, int, int]]:
    """The name of the input that is no weight, and its `(H, W, C)`."""
    import onnx

    images = [each for each in graph.input if each.name not in constants]
    expect(len(images) == 1, f"{len(images)} inputs", "one, the image")
    kind = images[0].type.tensor_type
    expect(kind.elem_type == onnx.TensorProto.FLOAT, "an input that is not float32", "float32")
    extents = [each.dim_value if each.HasField("dim_value") else None for each in kind.shape.dim]
    written = ", ".join(each.dim_param or str(each.dim_value) for each in kind.shape.dim)
    good = len(extents) == 4 and extents[0] in (None, 1) and all(1 <= (e or 0) <= MAX_EXTENT for e in extents[1:])
    expect(good, f"an input of shape ({printable(written[:100])})",
           "(N, C, H, W), of which N is 1 or symbolic and the others are numbers")  # fmt: skip
    channels, height, width = (int(each or 0) for each in extents[1:])
    return images[0].name, (height, width, channels)


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


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {printable(_name(node)[-100:])!r}"


def _name(node: onnx.NodeProto) -> str:
    name: str = node.name or (node.output[0] if node.output else "")
    return name


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:8])[:200])


def _one_line(problem: Exception) -> str:
    return printable(" ".join(str(problem).split())[:200])


# --- the walk along the graph -----------------------------------------------------------------------------------------


def _rebuilt(
    file: onnx.ModelProto, values: dict[str, Value], scores: str, dropped: Sequence[onnx.NodeProto],
    builder: FloatModelBuilder,
) -> Tensor:  # fmt: skip
    """The scores, in the builder."""
    for node in file.graph.node:
        if node.op_type not in AT_THE_END or all(node is not each for each in dropped):
            with located(_where(node)):
                values[node.output[0]] = _result(file, node, values, builder)
    output = values[scores]
    expect(isinstance(output, Tensor), "scores that do not depend on the image", "a classifier of images")
    assert isinstance(output, Tensor)
    for node in dropped:
        with located(_where(node)):
            _expect_over_classes(node, file, len(output.shape) + 1)
    return output


def _expect_over_classes(node: onnx.NodeProto, file: onnx.ModelProto, rank: int) -> None:
    attributes = _attributes(node)
    default = 0 if node.op_type == "ArgMax" else -1 if _opset(file) >= 13 else 1
    axis = attributes.get("axis", default)
    expect(axis in (1, 1 - rank), f"axis {axis}", "1, the classes")
    expect(not attributes.get("select_last_index"), "the last of the largest scores", "the first")


def _result(
    file: onnx.ModelProto, node: onnx.NodeProto, values: Mapping[str, Value], builder: FloatModelBuilder
) -> Value:
    """What a node gives: a tensor of the builder, or a constant."""
    for name in node.input:
        expect(not name or name in values, f"the second output of a node, {printable(name[:100])!r}", "first ones only")
    inputs = [values[name] if name else None for name in node.input]
    if node.op_type == "Constant":
        return _constant_of(node)
    if node.op_type == "Shape":
        inputs = [np.empty((1, *each.shape)) if isinstance(each, Tensor) else each for each in inputs]
    if not any(isinstance(each, Tensor) for each in inputs):
        return _computed(file, node, [each for each in inputs if isinstance(each, np.ndarray)])
    operation = OPERATIONS.get(node.op_type)
    if operation is None:
        raise ModelFormatError("found a tensor that depends on the image; expected constants only")
    if node.op_type not in ANY_OPERANDS:
        expect(isinstance(inputs[0], Tensor), "a constant as the first input", "a tensor that depends on the image")
        constants = not any(isinstance(each, Tensor) for each in inputs[1:])
        expect(constants, "weights that depend on the image", "constants")
    attributes = _attributes(node)
    try:
        inspect.signature(operation).bind(builder, _name(node), *inputs, **attributes)
    except TypeError as problem:
        raise ModelFormatError(f"found unusual inputs or attributes ({problem}); expected its usual ones") from None
    return operation(builder, _name(node), *inputs, **attributes)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _opset(file: onnx.ModelProto) -> int:
    return next(each.version for each in file.opset_import if each.domain in ("", "ai.onnx"))


def _constant_of(node: onnx.NodeProto) -> np.ndarray:
    import onnx

    name, value = next(iter(_attributes(node).items()))
    if isinstance(value, onnx.TensorProto):
        return _constant(value)
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    expect(name in types, f"a constant of kind {name}", f"value, {', '.join(types)}")
    return np.array(value, types[name])


def _computed(file: onnx.ModelProto, node: onnx.NodeProto, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """An operation on constants, by the reference of ONNX."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    small = AMONG_CONSTANTS.get(node.op_type)
    expect(small is not None, "nothing that depends on the image", "a tensor that does")
    largest = max((each.size for each in inputs), default=0)
    expect(not small or node.op_type == "Shape" or largest <= MAX_SMALL, f"arithmetic among {largest} constants",
           f"at most {MAX_SMALL}")  # fmt: skip
    if node.op_type == "Shape":
        attributes = _attributes(node)
        return np.array(inputs[0].shape, np.int64)[attributes.get("start", 0) : attributes.get("end")]
    names = list(filter(None, node.input))
    arguments = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    graph = onnx.helper.make_graph([node], "constants", arguments, [onnx.ValueInfoProto(name=node.output[0])])
    alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _opset(file))])
    try:
        outputs: Any = ReferenceEvaluator(alone).run(None, dict(zip(names, inputs)))
        result = np.asarray(outputs[0])
    except Exception as problem:  # any, for the reference trusts its inputs
        raise ModelFormatError(f"found constants that do not go together ({_one_line(problem)})") from None
    expect(result.dtype.kind in "fib", f"a constant of type {result.dtype}", "numbers")
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
        raise ModelFormatError(f"found what ONNX Runtime does not run ({_one_line(problem)})") from None


def _referenced(cut: onnx.ModelProto, image: str, images: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator: Any = ReferenceEvaluator(cut)
        return np.concatenate([np.reshape(evaluator.run(None, {image: each[None]})[0], (1, -1)) for each in images])
    except Exception as problem:  # any, for the reference trusts its inputs
        raise ModelFormatError(f"found what the reference of ONNX does not run ({_one_line(problem)})") from None


# --- operations, under ONNX's own names of attributes -----------------------------------------------------------------


def _padding(
    source: Tensor, kernel: Sequence[int], auto_pad: bytes, pads: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """`(top, bottom, left, right)` of a window."""
    good = len(kernel) == len(strides) == len(dilations) == 2 and min(*kernel, *strides, *dilations) >= 1
    found = f"windows of {tuple(kernel)} every {tuple(strides)}, dilation {tuple(dilations)}"
    expect(good and len(pads) == 4, found, "those of an image")
    mode = auto_pad.decode(errors="replace")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return same_padding(source.shape[1:], kernel, strides, dilations, at_the_end=mode == "SAME_UPPER")
    expect(mode in ("NOTSET", "VALID"), f"auto_pad {mode[:20]!r}", "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    top, left, bottom, right = pads if mode == "NOTSET" else (0, 0, 0, 0)
    return top, bottom, left, right


def _conv(
    builder: FloatModelBuilder, name: str, x: Tensor, weights: np.ndarray, bias: np.ndarray | None = None, *,
    auto_pad: bytes = b"NOTSET", dilations: Sequence[int] = (1, 1), group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] = (0, 0, 0, 0), strides: Sequence[int] = (1, 1),
) -> Tensor:  # fmt: skip
    kernel = weights.shape[2:]
    good = weights.ndim == 4 and kernel_shape in (None, list(kernel)) and len(x.shape) == 3
    expect(good, f"weights of shape {weights.shape} for {x.shape}, kernel_shape {kernel_shape}", "a 2-D convolution")
    padding = _padding(x, kernel, auto_pad, pads, strides, dilations)
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
    limits = [_number(default if limit is None else limit) for limit, default in ((lowest, min), (highest, max))]
    return builder.clamp(name, x, *limits)


def _number(value: Any) -> float:
    array = np.asarray(value)
    expect(array.size == 1, f"a constant of shape {array.shape}", "a number")
    return float(array.reshape(-1)[0])


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
    padding = _padding(x, kernel_shape, auto_pad, pads, strides, dilations)
    return builder.max_pool(name, x, tuple(kernel_shape), tuple(strides), padding, bool(ceil_mode))


def _average_pool(
    builder: FloatModelBuilder, name: str, x: Tensor, *, kernel_shape: Sequence[int], auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0, count_include_pad: int = 0, dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), strides: Sequence[int] = (1, 1),
) -> Tensor:  # fmt: skip
    expect(list(dilations) == [1, 1], f"dilations {list(dilations)[:4]}", "[1, 1]")
    padding = _padding(x, kernel_shape, auto_pad, pads, strides, dilations)
    return builder.average_pool(name, x, tuple(kernel_shape), tuple(strides), padding, bool(count_include_pad),
                                bool(ceil_mode))  # fmt: skip


def _global_average_pool(builder: FloatModelBuilder, name: str, x: Tensor) -> Tensor:
    return builder.global_average_pool(name, x, keeps_extents=True)


def _reduce_mean(
    builder: FloatModelBuilder, name: str, x: Tensor, over: np.ndarray | None = None, *,
    axes: Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0,
) -> Tensor:  # fmt: skip
    """The axes were an attribute before operator set 18."""
    expect(_axes(axes, over) == [2, 3], f"a mean over {_axes(axes, over)}", "one over height and width, [2, 3]")
    return builder.global_average_pool(name, x, bool(keepdims))


def _axes(attribute: Sequence[int] | None, operand: np.ndarray | None) -> list[int]:
    """Of a tensor of rank 4, from zero on and sorted."""
    given = attribute if operand is None else operand.reshape(-1)[:8].tolist()
    return sorted(int(axis) % 4 for axis in given or ())


def _flatten(builder: FloatModelBuilder, name: str, x: Tensor, *, axis: int = 1) -> Tensor:
    expect(axis in (1, -len(x.shape)), f"axis {axis}", "1")
    return builder.flatten(name, x)


def _reshape(builder: FloatModelBuilder, name: str, x: Tensor, shape: np.ndarray, *, allowzero: int = 0) -> Tensor:
    features, extents = prod(x.shape), shape.reshape(-1)[:8].tolist()
    batch = (1,) if allowzero else (0, 1)
    good = len(extents) == 2 and (extents[0] in batch and extents[1] in (-1, features) or extents == [-1, features])
    expect(good, f"a tensor of shape {x.shape} put into {extents}", "(N, -1)")
    return builder.flatten(name, x)


def _squeeze(
    builder: FloatModelBuilder, name: str, x: Tensor, over: np.ndarray | None = None, *,
    axes: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    good = x.shape[1:] == (1, 1) and _axes(axes, over) == [2, 3]
    expect(good, f"axes {_axes(axes, over)} of a tensor of shape {x.shape}", "a height and width of 1, [2, 3]")
    return builder.flatten(name, x)


def _pad(
    builder: FloatModelBuilder, name: str, x: Tensor, amounts: np.ndarray | None = None,
    constant_value: np.ndarray | None = None, axes: np.ndarray | None = None, *, mode: bytes = b"constant",
    pads: Sequence[int] = (), value: float = 0.0,
) -> Tensor:  # fmt: skip
    """Amounts and value were attributes before operator set 11: those before each axis, then those after."""
    filled = _number(value if constant_value is None else constant_value)
    expect(mode == b"constant" and filled == 0, f"mode {mode[:20]!r} and value {filled}", "constant zeros")
    each = list(pads) if amounts is None else amounts.reshape(-1)[:16].tolist()
    given = [0, 1, 2, 3] if axes is None else [int(axis) % 4 for axis in axes.reshape(-1)[:8]]
    around = dict(zip(given, zip(each[: len(given)], each[len(given) :])))
    nothing = (0, 0)
    good = len(x.shape) == 3 and len(each) == 2 * len(given) == 2 * len(around)
    good = good and around.get(0, nothing) == around.get(1, nothing) == nothing
    expect(good, f"pads {each} on axes {given} of {x.shape}", "those of height and width")
    return builder.pad(name, x, (*around.get(2, nothing), *around.get(3, nothing)))


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

#: What may stand among constants, as in the arithmetic of shapes, and whether only small ones: those whose result may
#: be larger than all they read.
AMONG_CONSTANTS: Mapping[str, bool] = {
    "Add": True, "Cast": False, "Concat": True, "Div": True, "Gather": True, "Identity": False, "Mul": True,
    "Reshape": False, "Shape": True, "Slice": False, "Squeeze": False, "Sub": True, "Transpose": False,
    "Unsqueeze": False,
}  # fmt: skip


# --- the program ------------------------------------------------------------------------------------------------------


def numbers(text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406` or `1/255`, a type of argument."""
    return tuple(float(rational(each)) for each in text.split(","))


def class_names_in(path: Path) -> tuple[str, ...]:
    """One name a line, UTF-8."""
    try:
        return tuple(file_content(path).decode().splitlines())
    except UnicodeDecodeError:
        raise ParameterError(f"{path}: found bytes that are not UTF-8; expected one class name a line") from None


def argument_parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m intsmooth_ref.data_tools.onnx_import", description=f"{summary}\n\n{details}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    if output.exists() and not options.overwrite:
        raise ParameterError(f"{output}: found a file already; expected none, or the option --overwrite")
    names = class_names_in(options.class_names) if options.class_names else ()
    model = float_model(options.file, options.mean, options.deviation, names)
    save_float_model(output, model)
    height, width, channels = model.input.shape
    print(f"{output}: {len(model.layers)} layers, {model.parameters} parameters, images {height}x{width}x{channels}, "
          f"{model.classes} classes")  # fmt: skip
    print(model.provenance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    options = argument_parser().parse_args(arguments)
    try:
        run(options)
    except IntsmoothError as problem:
        say(f"error: {problem}")
        return 1
    except OSError as problem:
        say(f"error: {problem.filename or options.output}: {problem.strerror or problem}")
        return 1
    except MemoryError:
        say("error: found too little memory; expected some ten times what the weights take")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
