"""ONNX files, which are not trusted: read, checked, and walked along, for both importers.

Nothing outside a file is read, and no node is run before it is known what it does: `opened` and `check` come first.
What needs no image - weights, and the arithmetic of shapes among them - is computed by the reference of ONNX, and what
it gives stays in proportion to the file: `ConstantArithmetic`.
"""

from __future__ import annotations

import hashlib
import inspect
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Mapping, Sequence

import numpy as np

from intsmooth_ref.data_tools.channels_first import expect, located, same_padding
from intsmooth_ref.data_tools.converter import file_content, printable
from intsmooth_ref.errors import ModelFormatError, ParameterError, reason_of
from intsmooth_ref.model.proof import MAX_ELEMENTS, MAX_EXTENT, MAX_LAYERS

if TYPE_CHECKING:
    import onnx

#: What a file may have; its weights are `MAX_ELEMENTS` a tensor at most.
MAX_FILE_BYTES = 1 << 30
MAX_NODES = 4 * MAX_LAYERS

#: Elements that an operation which may give more than it reads may read in all: of two constants, their product.
MAX_SMALL = 1 << 12

#: What is computed of constants may take so many times the file in all, and so many bytes besides.
MAX_GROWTH, MAX_GROWTH_BYTES = 8, 1 << 24

#: The domains of operations that ONNX itself specifies.
OWN_DOMAINS = ("", "ai.onnx")

#: FLOAT, INT, STRING, TENSOR, FLOATS, INTS, STRINGS: no graphs, no sparse tensors.
ATTRIBUTE_TYPES = (1, 2, 3, 4, 6, 7, 8)

#: Weights, shapes, and switches of a float32 network.
FLOAT_TYPES = {1: "FLOAT", 6: "INT32", 7: "INT64", 9: "BOOL"}

#: What may stand among constants, as in the arithmetic of shapes, and whether only small ones: those whose result may
#: be larger than all they read.
AMONG_CONSTANTS: Mapping[str, bool] = {
    "Add": True, "Cast": False, "Concat": True, "Div": True, "Gather": True, "Identity": False, "Mul": True,
    "Reshape": False, "Shape": True, "Slice": False, "Squeeze": False, "Sub": True, "Transpose": False,
    "Unsqueeze": False,
}  # fmt: skip


# --- before anything in it is believed --------------------------------------------------------------------------------


def opened(path: Path) -> tuple[onnx.ModelProto, str]:
    """The parsed file and its SHA-256.

    Raises:
        ParameterError: if the package `onnx` is missing.
        DatasetError: if there is no such file, or it is too large.
        ModelFormatError: if it is no ONNX file.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as problem:
        hint = "the import needs the extra `onnx`: pip install 'intsmooth_ref[onnx]'"
        raise ParameterError(f"{problem}; {hint}") from None
    content = file_content(path, MAX_FILE_BYTES)
    with located(str(path)):
        return _parsed(content), hashlib.sha256(content).hexdigest()


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


def check(
    file: onnx.ModelProto, operations: Collection[str], at_the_end: Collection[str], first_opset: int
) -> None:
    """What is refused by name, before ONNX's own checker looks at the rest.

    Args:
        operations: what the importer knows, by `operation`.
        at_the_end: what it leaves out there.
    """
    import onnx

    graph, newest = file.graph, onnx.defs.onnx_opset_version()
    opsets = [each.version for each in file.opset_import if each.domain in OWN_DOMAINS]
    expect(len(opsets) == 1 and first_opset <= opsets[0] <= newest, f"operator sets {opsets[:4]}",
           f"one from {first_opset} to {newest}")  # fmt: skip
    expect(len(graph.node) <= MAX_NODES, f"{len(graph.node)} nodes", f"at most {MAX_NODES}")
    expect(not graph.sparse_initializer and not file.functions, "sparse weights or functions of the file's own", "none")
    known = {*operations, *AMONG_CONSTANTS, *at_the_end, "Constant"}
    unknown = [node for node in graph.node if operation(node) not in known]
    with located(where(unknown[0]) if unknown else "operations"):
        found = f"the operations {listed(sorted(set(map(operation, unknown))))}"
        expect(not unknown, found, f"none but {', '.join(sorted(operations))}, and {', '.join(at_the_end)} at the end")
    for node in graph.node:
        with located(where(node)):
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
        raise ModelFormatError(f"found no valid ONNX file ({one_line(problem)}); expected one") from None


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
        with located(where(node)):
            for name in node.input:
                expect(name in known, f"input {printable(name[:100])!r}, which nothing before it gives",
                       "neither a cycle nor a missing weight")  # fmt: skip
        known.update(node.output)
    for each in graph.output:
        expect(each.name in known, f"output {printable(each.name[:100])!r}, which no node gives", "a node's output")


def image_of(
    graph: onnx.GraphProto, constants: Collection[str], types: Mapping[int, str]
) -> tuple[str, tuple[int, int, int], str]:
    """The name of the input that is no weight, its `(H, W, C)` and its type, one of `types`."""
    images = [each for each in graph.input if each.name not in constants]
    expect(len(images) == 1, f"{len(images)} inputs", "one, the image")
    kind = images[0].type.tensor_type
    names = " or ".join(types.values())
    expect(kind.elem_type in types, f"an input that is not {names}", names)
    extents = [each.dim_value if each.HasField("dim_value") else None for each in kind.shape.dim]
    written = ", ".join(each.dim_param or str(each.dim_value) for each in kind.shape.dim)
    good = len(extents) == 4 and extents[0] in (None, 1) and all(1 <= (e or 0) <= MAX_EXTENT for e in extents[1:])
    expect(good, f"an input of shape ({printable(written[:100])})",
           "(N, C, H, W), of which N is 1 or symbolic and the others are numbers")  # fmt: skip
    channels, height, width = (int(each or 0) for each in extents[1:])
    return images[0].name, (height, width, channels), types[kind.elem_type]


# --- nodes ------------------------------------------------------------------------------------------------------------


def operation(node: onnx.NodeProto) -> str:
    """`Conv`, or `com.microsoft.QLinearAdd`."""
    name: str = node.op_type if node.domain in OWN_DOMAINS else f"{node.domain}.{node.op_type}"
    return name


def where(node: onnx.NodeProto) -> str:
    return f"{printable(node.op_type[:100])} {printable(name_of(node)[-100:])!r}"


def name_of(node: onnx.NodeProto) -> str:
    """A node's name, or that of what it gives."""
    name: str = node.name or (node.output[0] if node.output else "")
    return name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def opset(file: onnx.ModelProto) -> int:
    return next(each.version for each in file.opset_import if each.domain in OWN_DOMAINS)


def inputs_of(node: onnx.NodeProto, values: Mapping[str, Any]) -> list[Any]:
    """What a node reads, None where it leaves an input out."""
    for name in node.input:
        expect(not name or name in values, f"the second output of a node, {printable(name[:100])!r}", "first ones only")
    return [values[name] if name else None for name in node.input]


def applied(operator: Callable[..., Any], node: onnx.NodeProto, *arguments: Any) -> Any:
    """What an importer's function gives for these arguments and the node's attributes."""
    attributes = attributes_of(node)
    try:
        inspect.signature(operator).bind(*arguments, **attributes)
    except TypeError as problem:
        raise ModelFormatError(f"found unusual inputs or attributes ({problem}); expected its usual ones") from None
    return operator(*arguments, **attributes)


def expect_over_classes(node: onnx.NodeProto, file: onnx.ModelProto, rank: int) -> None:
    """That a `Softmax`, `LogSoftmax` or `ArgMax` of scores of this rank, the batch included, is over the classes."""
    attributes = attributes_of(node)
    default = 0 if node.op_type == "ArgMax" else -1 if opset(file) >= 13 else 1
    axis = attributes.get("axis", default)
    expect(axis in (1, 1 - rank), f"axis {axis}", "1, the classes")
    expect(not attributes.get("select_last_index"), "the last of the largest scores", "the first")


# --- constants --------------------------------------------------------------------------------------------------------


def constant(tensor: onnx.TensorProto, types: Mapping[int, str], kind: str) -> np.ndarray:
    """The array that a file holds, of one of these types; `kind` says of what kind of network they are."""
    import onnx

    with located(f"tensor {printable(tensor.name[:100])!r}"):
        every = {number: name for name, number in onnx.TensorProto.DataType.items()}
        found = f"type {every.get(tensor.data_type, tensor.data_type)}"
        expect(tensor.data_type in types, found, f"{', '.join(types.values())}: {kind}")
        try:
            return np.array(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError) as problem:
            raise ModelFormatError(f"found damaged data ({one_line(problem)}); expected whole data") from None


def constant_of(node: onnx.NodeProto, types: Mapping[int, str], kind: str) -> np.ndarray:
    """What a node `Constant` gives."""
    import onnx

    attributes = attributes_of(node)
    expect(len(attributes) == 1, f"{len(attributes)} values", "one")
    [(name, value)] = attributes.items()
    if isinstance(value, onnx.TensorProto):
        return constant(value, types, kind)
    numbers = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    expect(name in numbers, f"a constant of kind {name}", f"value, {', '.join(numbers)}")
    return np.array(value, numbers[name])


class ConstantArithmetic:
    """Operations on constants, by the reference of ONNX; the state is how many bytes their results may yet take."""

    def __init__(self, file: onnx.ModelProto) -> None:
        self._opset, self._bytes_left = opset(file), MAX_GROWTH * file.ByteSize() + MAX_GROWTH_BYTES

    def result(self, node: onnx.NodeProto, inputs: Sequence[np.ndarray]) -> np.ndarray:
        small = AMONG_CONSTANTS.get(operation(node))
        expect(small is not None, "nothing that depends on the image", "a tensor that does")
        elements = sum(each.size for each in inputs)
        expect(not small or node.op_type == "Shape" or elements <= MAX_SMALL, f"arithmetic among {elements} constants",
               f"at most {MAX_SMALL}")  # fmt: skip
        result = _computed(node, inputs, self._opset)
        self._bytes_left -= result.nbytes
        expect(self._bytes_left >= 0, "constants that give many times what the file holds",
               f"at most {MAX_GROWTH} times as much, and {MAX_GROWTH_BYTES} bytes")  # fmt: skip
        return result


def _computed(node: onnx.NodeProto, inputs: Sequence[np.ndarray], opset: int) -> np.ndarray:
    import onnx
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape":
        attributes = attributes_of(node)
        return np.array(inputs[0].shape, np.int64)[attributes.get("start", 0) : attributes.get("end")]
    names = list(filter(None, node.input))
    arguments = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    graph = onnx.helper.make_graph([node], "constants", arguments, [onnx.ValueInfoProto(name=node.output[0])])
    alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        outputs: Any = ReferenceEvaluator(alone).run(None, dict(zip(names, inputs)))
        result = np.asarray(outputs[0])
    except Exception as problem:  # any, for the reference trusts its inputs
        raise ModelFormatError(f"found constants that do not go together ({one_line(problem)})") from None
    expect(result.dtype.kind in "fibu", f"a constant of type {result.dtype}", "numbers")
    return result


def number(value: Any) -> float:
    array = np.asarray(value)
    expect(array.size == 1 and array.dtype.kind in "fibu", f"a constant of shape {array.shape}", "a number")
    return float(array.reshape(-1)[0])


# --- windows, axes, shapes, under ONNX's own names of attributes ------------------------------------------------------


def window_padding(
    sizes: Sequence[int], kernel: Sequence[int], auto_pad: bytes, pads: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """`(top, bottom, left, right)` of a window over an image of these height and width."""
    good = len(kernel) == len(strides) == len(dilations) == 2 and min(*kernel, *strides, *dilations) >= 1
    found = f"windows of {tuple(kernel)} every {tuple(strides)}, dilation {tuple(dilations)}"
    expect(good and len(pads) == 4, found, "those of an image")
    mode = auto_pad.decode(errors="replace")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return same_padding(sizes, kernel, strides, dilations, at_the_end=mode == "SAME_UPPER")
    expect(mode in ("NOTSET", "VALID"), f"auto_pad {mode[:20]!r}", "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    top, left, bottom, right = pads if mode == "NOTSET" else (0, 0, 0, 0)
    return top, bottom, left, right


def axes_of_image(attribute: Sequence[int] | None, operand: np.ndarray | None) -> list[int]:
    """Of a tensor of rank 4, from zero on and sorted."""
    given = attribute or () if operand is None else _integers(operand)
    return sorted(axis % 4 for axis in given)


def pad_amounts(
    rank: int, amounts: np.ndarray | None, axes: np.ndarray | None, pads: Sequence[int], shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """`(top, bottom, left, right)` of a `Pad`: those before each axis, then those after; of rank 3 without the batch.

    Amounts were an attribute before operator set 11.
    """
    each = list(pads) if amounts is None else _integers(amounts)
    given = [0, 1, 2, 3] if axes is None else [axis % 4 for axis in _integers(axes)]
    around = dict(zip(given, zip(each[: len(given)], each[len(given) :])))
    nothing = (0, 0)
    good = rank == 3 and len(each) == 2 * len(given) == 2 * len(around)
    good = good and around.get(0, nothing) == around.get(1, nothing) == nothing
    expect(good, f"pads {each} on axes {given} of {shape}", "those of height and width")
    return (*around.get(2, nothing), *around.get(3, nothing))


def expect_flattening(shape: np.ndarray, source: tuple[int, ...], allowzero: int) -> None:
    """That a `Reshape` puts all but the batch into one extent."""
    features, extents = prod(source), _integers(shape)
    batch = (1,) if allowzero else (0, 1)
    good = len(extents) == 2 and (extents[0] in batch and extents[1] in (-1, features) or extents == [-1, features])
    expect(good, f"a tensor of shape {source} put into {extents}", "(N, -1)")


def _integers(constant: np.ndarray) -> list[int]:
    """Of axes, amounts or extents, of which a tensor of rank 4 has few."""
    expect(constant.dtype.kind == "i" and constant.size <= 8, f"{constant.size} constants of type {constant.dtype}",
           "at most 8 integers")  # fmt: skip
    integers: list[int] = constant.reshape(-1).tolist()
    return integers


def listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:8])[:200])


def one_line(problem: Exception) -> str:
    return printable(reason_of(problem))
