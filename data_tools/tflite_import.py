"""From a quantized TFLite file to an integer model file, exactly.

Networks quantized to 8 bits throughout, int8 or uint8, with images `(1, H, W, C)` that are quantized first of all or
are 8 bits themselves. Weights less their zero point must fit into int8. SOFTMAX, LOG_SOFTMAX, ARG_MAX and DEQUANTIZE at
the end are left out: they change no largest score.

A layer is named after the tensor that it gives, for operators have no names; the provenance lists them. Requantizations
round once; LiteRT's reference kernels round twice, which --rounding gemmlowp does too for convolutions, means and
changes of grid. What would need rounding that the file does not ask for is refused.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Union

import numpy as np

from intsmooth_ref.data_tools.channels_first import expect, located, same_padding
from intsmooth_ref.data_tools.converter import file_content, printable
from intsmooth_ref.data_tools.import_program import import_parser, run_import
from intsmooth_ref.data_tools.integer_builder import (
    ImportedModel,
    IntegerModelBuilder,
    IntegerTensor,
    Normalization,
    RealFunction,
    Weights,
    clipped,
    exact,
    expect_bias_scales,
    hard_swish,
    leaky_relu,
    narrow_weights,
    smooth,
)
from intsmooth_ref.data_tools.tflite_file import TfliteFile, TfliteOperator, TfliteTensor, parsed
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.fixedpoint import ROUNDING_MODES
from intsmooth_ref.model.layers import Quantization
from intsmooth_ref.model.proof import MAX_EXTENT

MAX_FILE_BYTES = 1 << 30

#: ActivationFunctionType, by number: the name and what it clips to.
ACTIVATIONS: Mapping[int, tuple[Fraction | None, Fraction | None]] = {
    0: (None, None), 1: (Fraction(0), None), 2: (Fraction(-1), Fraction(1)), 3: (Fraction(0), Fraction(6)),
}  # fmt: skip

#: Padding, by number.
SAME, VALID = 0, 1

AT_THE_END = ("SOFTMAX", "LOG_SOFTMAX", "ARG_MAX", "DEQUANTIZE")


@dataclass(frozen=True)
class Image:
    """The input, before anything reads it."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What an operation that changes no largest score gives: its input."""

    tensor: IntegerTensor


Value = Union[Image, IntegerTensor, Scores]


@dataclass(eq=False)
class Walk:
    """Along the operators. `values` are those known so far, by number of the tensor."""

    file: TfliteFile
    builder: IntegerModelBuilder
    normalization: Normalization
    values: dict[int, Value] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def integer_model(
    path: str | Path, normalization: Normalization = Normalization(), class_names: Sequence[str] = (),
    rounding: str = "single_rounding",
) -> ImportedModel:  # fmt: skip
    """The integer model that a quantized TFLite file amounts to.

    Args:
        normalization: of the images that the file reads, in reals: of an int8 tensor of scale 1/255 and zero point -128
            there is none.
        rounding: mode of the requantizations.

    Raises:
        DatasetError: if there is no such file, or it is too large.
        ModelFormatError: what is wrong with it or not supported, and where.
    """
    path = Path(path)
    content = file_content(path, MAX_FILE_BYTES)
    with located(str(path)):
        file = parsed(content)
        walk = Walk(file, IntegerModelBuilder(rounding), normalization)
        _check(file)
        _read_image(walk)
        for operator in file.operators:
            with located(_where(file, operator)):
                walk.values[operator.outputs[0]] = _result(walk, operator)
        output = walk.values.get(file.outputs[0])
        expect(isinstance(output, (IntegerTensor, Scores)), "an output that no operator gives", "scores of 8 bits")
        assert isinstance(output, (IntegerTensor, Scores))
        scores = output.tensor if isinstance(output, Scores) else output
        tensors = {
            file.tensors[number].name: value for number, value in walk.values.items()
            if isinstance(value, IntegerTensor)
        }  # fmt: skip
        history = [f"imported from {printable(path.name)}, SHA-256 {hashlib.sha256(content).hexdigest()}"]
        history += [f"{each} at the end left out" for each in walk.dropped]
        return walk.builder.imported(scores, tensors, class_names, history)


def _check(file: TfliteFile) -> None:
    """What is refused by name."""
    for numbers, what in ((file.inputs, "inputs"), (file.outputs, "outputs")):
        expect(len(numbers) == 1 and numbers[0] >= 0, f"{len(numbers)} {what}", "one: an image, scores")
    given = [number for operator in file.operators for number in operator.outputs] + list(file.inputs)
    expect(len(set(given)) == len(given), "a tensor that is given twice", "each once")
    for operator in file.operators:
        with located(_where(file, operator)):
            known = operator.kind in OPERATORS or operator.kind in AT_THE_END
            expect(known, f"the operator {operator.kind}", f"{', '.join(OPERATORS)}, and {', '.join(AT_THE_END)} at "
                   "the end")  # fmt: skip
            constant = file.tensors[operator.outputs[0]].values
            expect(constant is None, "a constant as the output", "a tensor that depends on the image")


def _where(file: TfliteFile, operator: TfliteOperator) -> str:
    return f"{operator.kind} {printable(file.tensors[operator.outputs[0]].name[-100:])!r}"


# --- tensors ----------------------------------------------------------------------------------------------------------


def _read_image(walk: Walk) -> None:
    """An input of 8 bits is a layer; one of floats is that of the QUANTIZE that reads it."""
    number = walk.file.inputs[0]
    tensor = walk.file.tensors[number]
    with located(f"input {printable(tensor.name[-100:])!r}"):
        shape = tensor.shape
        good = len(shape) == 4 and shape[0] == 1 and all(1 <= each <= MAX_EXTENT for each in shape)
        expect(good and tensor.values is None, f"an input of shape {shape}", "an image, (1, H, W, C)")
        if tensor.type == "FLOAT32":
            walk.values[number] = Image()
        else:
            walk.values[number] = _image(walk, tensor, _grid(tensor))


def _image(walk: Walk, tensor: TfliteTensor, grid: Quantization) -> IntegerTensor:
    _, height, width, channels = walk.file.tensors[walk.file.inputs[0]].shape
    return walk.builder.image(tensor.name, (height, width, channels), grid, walk.normalization)


def _grid(tensor: TfliteTensor) -> Quantization:
    """Of a tensor that depends on the image."""
    hint = "INT8 or UINT8: a network quantized throughout"
    expect(tensor.type in ("INT8", "UINT8"), f"a tensor {printable(tensor.name[-100:])!r} of type {tensor.type}", hint)
    found = f"{len(tensor.scales)} scales and {len(tensor.zero_points)} zero points of an activation"
    expect(len(tensor.scales) == len(tensor.zero_points) == 1, found, "one of each")
    zero_point = int(tensor.zero_points[0])
    grid = Quantization.full_range(tensor.type.lower(), exact(tensor.scales[0]), zero_point)
    expect(grid.minimum <= zero_point <= grid.maximum, f"zero point {zero_point}", f"one of {tensor.type}")
    return grid


def _result(walk: Walk, operator: TfliteOperator) -> Value:
    """What an operator gives, of the shape that the file announces."""
    output = walk.file.tensors[operator.outputs[0]]
    first = walk.values.get(operator.inputs[0]) if operator.inputs else None
    if operator.kind in AT_THE_END:
        return _at_the_end(walk, operator, first)
    if isinstance(first, Scores):
        expect(operator.kind == "QUANTIZE", f"what follows one of {', '.join(AT_THE_END)}", "only those")
        return first
    if operator.kind == "QUANTIZE" and isinstance(first, Image):
        result = _image(walk, output, _grid(output))
    else:
        result = OPERATORS[operator.kind](walk, operator, output.name, _grid(output))
    expect((1, *result.shape) == output.shape, f"an output of shape {output.shape}", f"{(1, *result.shape)}")
    return result


def _at_the_end(walk: Walk, operator: TfliteOperator, value: Value | None) -> Scores:
    expect(isinstance(value, (IntegerTensor, Scores)), "nothing quantized", "a quantized tensor")
    assert isinstance(value, (IntegerTensor, Scores))
    tensor = value.tensor if isinstance(value, Scores) else value
    if operator.kind == "SOFTMAX":
        beta = _Options(operator, 9).number(0, "<f")
        expect(beta > 0, f"beta {beta}", "one above zero")
    if operator.kind != "DEQUANTIZE":
        expect(len(tensor.shape) == 1, f"scores of shape {tensor.shape}", "(classes,)")
    if operator.kind == "ARG_MAX":
        axis = _constant(walk, operator, 1).reshape(-1).tolist()
        expect(axis in ([1], [-1]), f"axis {axis[:4]}", "1, the classes")
    walk.dropped.append(operator.kind)
    return Scores(tensor)


def _tensor(walk: Walk, operator: TfliteOperator, index: int) -> IntegerTensor:
    """An input that depends on the image."""
    number = operator.inputs[index] if index < len(operator.inputs) else -1
    value = walk.values.get(number)
    if isinstance(value, IntegerTensor):
        return value
    if number < 0:
        raise ModelFormatError(f"found no input {index}; expected one")
    tensor = walk.file.tensors[number]
    name = f"input {printable(tensor.name[-100:])!r}"
    if tensor.values is not None:
        raise ModelFormatError(f"found a constant as {name}; expected a tensor that depends on the image")
    if value is None:
        raise ModelFormatError(f"found {name}, which nothing before it gives; expected neither a cycle nor a missing "
                               "constant")  # fmt: skip
    raise ModelFormatError(f"found {name} of type {tensor.type}; expected INT8 or UINT8: a network quantized "
                           "throughout, up to the scores")  # fmt: skip


def _only(walk: Walk, operator: TfliteOperator) -> IntegerTensor:
    return _tensor(walk, operator, 0)


def _constant(walk: Walk, operator: TfliteOperator, index: int) -> np.ndarray:
    values = _constant_tensor(walk, operator, index).values
    assert values is not None
    return values


def _constant_tensor(walk: Walk, operator: TfliteOperator, index: int) -> TfliteTensor:
    number = operator.inputs[index] if index < len(operator.inputs) else -1
    expect(number >= 0, f"no input {index}", "a constant")
    tensor = walk.file.tensors[number]
    expect(tensor.values is not None, f"input {printable(tensor.name[-100:])!r} without data", "a constant")
    return tensor


def _weights(walk: Walk, operator: TfliteOperator, rank: int, axis: int) -> Weights:
    """In the file's layout, with scales along its axis of output channels."""
    tensor = _constant_tensor(walk, operator, 1)
    expect(tensor.type in ("INT8", "UINT8") and len(tensor.shape) == rank, f"weights {tensor.type} of shape "
           f"{tensor.shape}", f"INT8 or UINT8 of rank {rank}")  # fmt: skip
    assert tensor.values is not None
    count = len(tensor.scales)
    good = count == 1 or 1 <= count == tensor.shape[axis] and tensor.axis == axis
    expect(good, f"{count} scales of the weights along axis {tensor.axis}",
           f"1, or {tensor.shape[axis]} along axis {axis}, the output channels")  # fmt: skip
    zeros = tensor.zero_points
    expect(len(zeros) in (0, 1, count), f"{len(zeros)} zero points for {count} scales", "as many")
    along = [1] * rank
    if len(zeros) > 1:
        along[axis] = len(zeros)
    bounded = bool((np.abs(zeros) <= 255).all())
    expect(bounded, "zero points beyond 8 bits", "of 8 bits")
    less = tensor.values.astype(np.int64) - (zeros.reshape(along if len(zeros) > 1 else ()) if len(zeros) else 0)
    return Weights(narrow_weights(less), tuple(exact(scale) for scale in tensor.scales))


def _bias(walk: Walk, operator: TfliteOperator, source: IntegerTensor, weights: Weights, channels: int) -> np.ndarray:
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return np.zeros(channels, np.int64)
    tensor = _constant_tensor(walk, operator, 2)
    expect(tensor.type == "INT32" and not tensor.zero_points.any(), f"a bias {tensor.type}", "INT32, zero points 0")
    if len(tensor.scales):
        expect_bias_scales([exact(scale) for scale in tensor.scales], source.grid.scale, weights.scales)
    values = _constant(walk, operator, 2)
    expect(values.shape == (channels,), f"bias of shape {values.shape}", f"({channels},)")
    return values.astype(np.int64)


# --- options ----------------------------------------------------------------------------------------------------------


class _Options:
    """The options of an operator, which must be of the type that belongs to it; those left out have their defaults."""

    def __init__(self, operator: TfliteOperator, options_type: int) -> None:
        good = operator.options is None or operator.options_type == options_type
        expect(good, f"options of type {operator.options_type}", f"{options_type}")
        self._table = operator.options

    def number(self, field: int, layout: str = "<i", default: int = 0) -> Any:
        return default if self._table is None else self._table.number(field, layout, default)

    def numbers(self, field: int) -> np.ndarray:
        return np.zeros(0, "<i4") if self._table is None else self._table.numbers(field, "<i4")

    def activated(self, field: int, grid: Quantization) -> Quantization:
        """The grid, cut short by the activation that is fused."""
        number = self.number(field, "<b")
        expect(number in ACTIVATIONS, f"fused activation {number}", "none, RELU, RELU_N1_TO_1 or RELU6")
        return clipped(grid, *ACTIVATIONS[number])

    def padding(
        self, source: IntegerTensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
    ) -> tuple[int, int, int, int]:
        mode = self.number(0, "<b")
        good = len(source.shape) == 3 and min(*kernel, *strides, *dilation) >= 1 and mode in (SAME, VALID)
        expect(good, f"windows of {tuple(kernel)} every {tuple(strides)}, dilation {tuple(dilation)}, padding {mode}, "
               f"over {source.shape}", "those of an image, padding SAME (0) or VALID (1)")  # fmt: skip
        return same_padding(source.shape[:2], kernel, strides, dilation) if mode == SAME else (0, 0, 0, 0)


# --- operators --------------------------------------------------------------------------------------------------------


def _conv_2d(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    source, options = _only(walk, operator), _Options(operator, 1)
    weights = _weights(walk, operator, 4, 0)
    outputs, *kernel, depth = weights.integers.shape
    strides = options.number(2), options.number(1)
    dilation = options.number(5, default=1), options.number(4, default=1)
    padding = options.padding(source, kernel, strides, dilation)
    expect(depth >= 1, "weights of depth 0", "1 or more")
    return walk.builder.conv2d(
        name, source, weights, _bias(walk, operator, source, weights, outputs), options.activated(3, grid),
        strides=strides, padding=padding, dilation=dilation, groups=source.shape[2] // depth,
    )  # fmt: skip


def _depthwise_conv_2d(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    """Weights `(1, KH, KW, C * multiplier)`; output channel `c * multiplier + m` reads channel `c`."""
    source, options = _only(walk, operator), _Options(operator, 2)
    weights = _weights(walk, operator, 4, 3)
    one, *kernel, outputs = weights.integers.shape
    channels, multiplier = source.shape[-1], options.number(3)
    found = f"depthwise weights of shape {weights.integers.shape} for {channels} channels, multiplier {multiplier}"
    expect(one == 1 and outputs == channels * multiplier, found, "(1, KH, KW, channels * multiplier)")
    weights = Weights(weights.integers.transpose(3, 1, 2, 0), weights.scales)
    strides = options.number(2), options.number(1)
    dilation = options.number(6, default=1), options.number(5, default=1)
    padding = options.padding(source, kernel, strides, dilation)
    return walk.builder.conv2d(
        name, source, weights, _bias(walk, operator, source, weights, outputs), options.activated(4, grid),
        strides=strides, padding=padding, dilation=dilation, groups=channels,
    )  # fmt: skip


def _fully_connected(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    """What it reads is flattened."""
    source, options = _only(walk, operator), _Options(operator, 8)
    expect(options.number(1, "<b") == 0, "shuffled weights", "plain ones")
    expect(not options.number(2, "<B") or len(source.shape) == 1, "keep_num_dims", "an output (1, O)")
    if len(source.shape) != 1:
        source = walk.builder.flatten(f"{name}_input", source, channels_first=False)
    weights = _weights(walk, operator, 2, 0)
    bias = _bias(walk, operator, source, weights, len(weights.integers))
    return walk.builder.linear(name, source, weights, bias, options.activated(0, grid))


def _add(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    output = _Options(operator, 11).activated(0, grid)
    return walk.builder.add(name, _tensor(walk, operator, 0), _tensor(walk, operator, 1), output)


def _mul(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    output = _Options(operator, 21).activated(0, grid)
    return walk.builder.multiply(name, _tensor(walk, operator, 0), _tensor(walk, operator, 1), output)


def _concatenation(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    options = _Options(operator, 10)
    sources = [_tensor(walk, operator, index) for index in range(len(operator.inputs))]
    axis, activation = options.number(0), options.number(1, "<b")
    expect(len(sources) >= 1 and axis in (-1, len(sources[0].shape)), f"axis {axis}", "the last, the channels")
    expect(activation == 0, f"fused activation {activation}", "none")
    return walk.builder.concat(name, sources, grid)


def _pool(
    operator: TfliteOperator, source: IntegerTensor
) -> tuple[_Options, tuple[int, int], tuple[int, int], tuple[int, ...]]:
    """Options, kernel, strides, padding."""
    options = _Options(operator, 5)
    strides, kernel = (options.number(2), options.number(1)), (options.number(4), options.number(3))
    return options, kernel, strides, options.padding(source, kernel, strides)


def _max_pool_2d(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    source = _only(walk, operator)
    options, kernel, strides, padding = _pool(operator, source)
    pool = walk.builder.max_pool(name, source, kernel, strides, padding)
    return walk.builder.requantized(f"{name}_output", pool, options.activated(5, grid))


def _average_pool_2d(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    source = _only(walk, operator)
    options, kernel, strides, padding = _pool(operator, source)
    return walk.builder.average_pool(name, source, kernel, strides, padding, False, options.activated(5, grid))


def _mean(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    axes = sorted(int(axis) % 4 for axis in _constant(walk, operator, 1).reshape(-1)[:8])
    expect(axes == [1, 2], f"a mean over {axes}", "one over height and width, [1, 2]")
    keeps_extents = bool(_Options(operator, 27).number(0, "<B"))
    return walk.builder.global_average_pool(name, _only(walk, operator), grid, keeps_extents)


def _pad(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    amounts, source = _constant(walk, operator, 1), _only(walk, operator)
    good = amounts.shape == (4, 2) and not amounts[[0, 3]].any()
    expect(good, f"padding {amounts.tolist() if amounts.size <= 16 else amounts.shape}", "that of height and width")
    padded = walk.builder.pad(name, source, tuple(amounts[1:3].ravel().tolist()))
    return walk.builder.requantized(f"{name}_output", padded, grid)


def _reshape(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    """To the shape that the output is announced with; the one that is asked for must be the same."""
    source, announced = _only(walk, operator), walk.file.tensors[operator.outputs[0]].shape
    wanted = _Options(operator, 17).numbers(0)
    if len(operator.inputs) > 1:
        wanted = _constant(walk, operator, 1).reshape(-1)
    good = len(announced) >= 2 and announced[0] == 1 and len(wanted) == len(announced)
    good = good and all(each in (-1, extent) for each, extent in zip(wanted.tolist(), announced))
    expect(good, f"shape {wanted[:8].tolist()}, announced as {announced}", "the same, with a batch of 1")
    return walk.builder.requantized(f"{name}_output", walk.builder.reshape(name, source, announced[1:]), grid)


def _squeeze(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    """Extents of 1 left out."""
    announced = walk.file.tensors[operator.outputs[0]].shape
    source = walk.builder.reshape(name, _only(walk, operator), announced[1:])
    return walk.builder.requantized(f"{name}_output", source, grid)


def _clip(low: Fraction | None, high: Fraction | None) -> Callable[..., IntegerTensor]:
    def clip(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
        return walk.builder.clamp(name, _only(walk, operator), low, high, grid)

    return clip


def _function(function: RealFunction) -> Callable[..., IntegerTensor]:
    def table(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
        return walk.builder.function(name, _only(walk, operator), function, grid)

    return table


def _leaky_relu(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    slope = _Options(operator, 75).number(0, "<f")
    expect(bool(np.isfinite(slope)), f"slope {slope}", "a finite one")
    return walk.builder.function(name, _only(walk, operator), leaky_relu(Fraction(slope)), grid)


def _quantize(walk: Walk, operator: TfliteOperator, name: str, grid: Quantization) -> IntegerTensor:
    return walk.builder.requantized(name, _only(walk, operator), grid)


OPERATORS: Mapping[str, Callable[[Walk, TfliteOperator, str, Quantization], IntegerTensor]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool_2d,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _function(hard_swish),
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _function(smooth("sigmoid")),
    "MAX_POOL_2D": _max_pool_2d,
    "MEAN": _mean,
    "MUL": _mul,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "RELU": _clip(*ACTIVATIONS[1]),
    "RELU6": _clip(*ACTIVATIONS[3]),
    "RELU_N1_TO_1": _clip(*ACTIVATIONS[2]),
    "RESHAPE": _reshape,
    "SQUEEZE": _squeeze,
    "TANH": _function(smooth("tanh")),
}


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = import_parser("tflite_import", __doc__, "MODEL.tflite", "the quantized TFLite file to read")
    parser.add_argument("--rounding", choices=ROUNDING_MODES, default=ROUNDING_MODES[0],
                        help=f"of requantizations (default: {ROUNDING_MODES[0]})")  # fmt: skip
    return run_import(
        parser.parse_args(arguments),
        lambda options, normalization, names: integer_model(options.file, normalization, names, options.rounding),
    )


if __name__ == "__main__":
    sys.exit(main())
