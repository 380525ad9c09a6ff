"""A model as C99: one header and one source, which need nothing but `stdint.h`.

The program allocates no memory and knows no floating-point number. It computes what `engine/reference.py` specifies,
in integers that `model/proof.py` has proven to fit: accumulators in int32_t, products with multipliers in int64_t. So
no signed integer overflows, and what else C leaves undefined or to the implementation is not used; a negative integer
is divided by a power of two, rounded down, by

    (1)   value >> shift = -1 - ((-1 - value) >> shift),   for value < 0,

where -1 - value, which is not negative, can neither overflow nor be shifted in more than one way.

An element less its zero point is named before it is multiplied: for processors with VNNI (-O2 -march=native), GCC 12.2
computes `sum += weight * (pixel - 128)` with the difference cut to 8 bits. An int16_t in between, which holds every
such difference, keeps it from that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import singledispatch
from math import prod
from typing import Iterable, Mapping, Sequence

import numpy as np

from .. import __version__
from ..errors import ParameterError
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..model.layers import (
    INTEGER_RANGES,
    Add,
    ArgMax,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    GlobalAveragePool,
    InputQuantization,
    Layer,
    Linear,
    LookupTable,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
    Softmax,
)
from ..model.proof import NOISY_PIXEL_LIMIT, TensorProof
from .scratch import Tensor, is_view, plan_scratch

#: A compiler need not tell names apart that agree in their first 31 characters; `NAME_` leads to others.
NAME = re.compile("[A-Za-z][A-Za-z0-9_]{0,15}")
NAME_RULE = "a letter, and up to 15 letters, digits and '_'"

LINE_LENGTH = 120

Lines = list[str]


@dataclass(frozen=True)
class CProgram:
    """The text of `NAME.h` and of `NAME.c`."""

    header: str
    source: str


def c_program(model: IntegerModel, name: str) -> CProgram:
    """Write a model as C99, all public names of which begin with `name`.

    Raises:
        ParameterError: if the name will not do, or the model rounds by a mode that has no C text here.
    """
    if NAME.fullmatch(name) is None:
        raise ParameterError(f"name {name!r}: expected {NAME_RULE}")
    layers = model.layers[:-1] if isinstance(model.output, ArgMax) else model.layers
    plan = plan_scratch(model, layers)
    digest = fingerprint(model)
    functions = [_Function(model, number, layer) for number, layer in enumerate(layers) if not is_view(layer)]
    definitions = [function.definition() for function in functions]
    calls = [_call(function, plan.tensors) for function in functions]
    header = _HEADER.format(
        name=name, upper=name.upper(), version=__version__, fingerprint=digest, limit=NOISY_PIXEL_LIMIT,
        shape="x".join(map(str, model.input.shape)), size=prod(model.input.shape), classes=model.classes,
        bytes=plan.bytes, words=f"\n    int32_t words[{plan.words}];" if plan.words else "",
        names=f"\nextern const char *const {name}_class_names[{name.upper()}_CLASSES];\n" if model.class_names else "",
    )  # fmt: skip
    source = _SOURCE.format(
        name=name, upper=name.upper(), version=__version__, fingerprint=digest,
        names=_class_names(name, model.class_names),
        helpers="\n".join(_helpers(functions)),
        layers="\n".join("\n".join(lines) + "\n" for lines in definitions),
        calls="\n".join(_indented(calls)),
        dtype=model.proofs[layers[-1].name].dtype,
        result=_pointer(model.proofs[layers[-1].name].dtype, plan.tensors[layers[-1].name], "const "),
    )  # fmt: skip
    return CProgram(header, source)


_HEADER = """\
/* {name}.h: a classifier of images in integers alone. Made by intsmooth_ref {version} from the model of fingerprint
 * {fingerprint}
 *
 * An image is {shape} int32_t (height, width, channels; channels fastest): grey levels 0 .. 255, or these plus noise,
 * each within -{limit} .. {limit}.
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_IMAGE_SIZE {size}
#define {upper}_CLASSES {classes}
{names}
/* What the computation works in; its contents are of no consequence. */
typedef struct {{
    uint8_t bytes[{bytes}];{words}
    int32_t scores[{upper}_CLASSES];
}} {name}_scratch;

/* The class of an image: the index of its largest score, the lowest one in a tie. */
int {name}_predict(const int32_t *image);

/* The scores of an image, one a class. */
void {name}_scores(const int32_t *image, int32_t *scores);

/* The same in scratch memory of the caller's: these may run in several threads at once, those above in one. */
int {name}_predict_in({name}_scratch *scratch, const int32_t *image);
void {name}_scores_in({name}_scratch *scratch, const int32_t *image, int32_t *scores);

#ifdef __cplusplus
}}
#endif

#endif
"""

_SOURCE = """\
/* {name}.c: see {name}.h. Made by intsmooth_ref {version} from the model of fingerprint
 * {fingerprint}
 */
#include "{name}.h"
{names}
{helpers}
{layers}
void {name}_scores_in({name}_scratch *scratch, const int32_t *image, int32_t *scores)
{{
{calls}
    const {dtype}_t *result = {result};
    for (int32_t index = 0; index < {upper}_CLASSES; index++) {{
        scores[index] = result[index];
    }}
}}

int {name}_predict_in({name}_scratch *scratch, const int32_t *image)
{{
    int best = 0;
    {name}_scores_in(scratch, image, scratch->scores);
    for (int index = 1; index < {upper}_CLASSES; index++) {{
        if (scratch->scores[index] > scratch->scores[best]) {{
            best = index;
        }}
    }}
    return best;
}}

static {name}_scratch own_scratch;

void {name}_scores(const int32_t *image, int32_t *scores)
{{
    {name}_scores_in(&own_scratch, image, scores);
}}

int {name}_predict(const int32_t *image)
{{
    return {name}_predict_in(&own_scratch, image);
}}
"""

#: Functions of the source, of which it holds those that it calls; each may call those above it.
_HELPERS = {
    "shifted_right": """\
/* value / 2**shift, rounded down, although C leaves the right shift of a negative integer to the compiler. */
static int64_t shifted_right(int64_t value, int32_t shift)
{
    return value >= 0 ? value >> shift : -1 - ((-1 - value) >> shift);
}
""",
    "single_rounding": """\
/* accumulator * multiplier / 2**shift, rounded to nearest, ties towards plus infinity. */
static int64_t single_rounding(int32_t accumulator, int32_t multiplier, int32_t shift)
{
    return shifted_right((int64_t)accumulator * multiplier + ((int64_t)1 << (shift - 1)), shift);
}
""",
    "gemmlowp": """\
/* accumulator * multiplier / 2**shift, rounded twice, as gemmlowp does: first the high half of the doubled product, to
 * nearest, ties towards plus infinity; then what is left of the shift, to nearest, ties away from zero. */
static int64_t gemmlowp(int32_t accumulator, int32_t multiplier, int32_t shift)
{
    int32_t left = shift < 31 ? 31 - shift : 0;
    int32_t right = shift > 31 ? shift - 31 : 0;
    int64_t product = (int64_t)accumulator * ((int64_t)1 << left) * multiplier;
    int64_t high = shifted_right(product + ((int64_t)1 << 30), 31);
    int64_t quotient = shifted_right(high, right);
    int64_t remainder = high - quotient * ((int64_t)1 << right);
    int64_t threshold = ((((int64_t)1 << right) - 1) >> 1) + (high < 0 ? 1 : 0);
    return remainder > threshold ? quotient + 1 : quotient;
}
""",
    "srdhm_half_up": """\
/* accumulator * multiplier / 2**shift, rounded twice, both times to nearest, ties towards plus infinity: first the high
 * half of the doubled product, then what is left of the shift. */
static int64_t srdhm_half_up(int32_t accumulator, int32_t multiplier, int32_t shift)
{
    int32_t left = shift < 31 ? 31 - shift : 0;
    int32_t right = shift > 31 ? shift - 31 : 0;
    int64_t product = (int64_t)accumulator * ((int64_t)1 << left) * multiplier;
    int64_t high = shifted_right(product + ((int64_t)1 << 30), 31);
    return right > 0 ? shifted_right(high + ((int64_t)1 << (right - 1)), right) : high;
}
""",
    "clamped": """\
static int32_t clamped(int64_t value, int32_t minimum, int32_t maximum)
{
    return value < minimum ? minimum : value > maximum ? maximum : (int32_t)value;
}
""",
    "floor_quotient": """\
/* numerator / denominator, rounded down; the denominator is positive. */
static int32_t floor_quotient(int32_t numerator, int32_t denominator)
{
    return numerator >= 0 ? numerator / denominator : -1 - (-1 - numerator) / denominator;
}
""",
}

#: Rounding modes that have a C text, and the helpers that each calls.
_ROUNDING = {name: ("shifted_right", name) for name in ("single_rounding", "gemmlowp", "srdhm_half_up")}


def _helpers(functions: Sequence[_Function]) -> list[str]:
    needed = {name for function in functions for name in function.helpers}
    return [text for name, text in _HELPERS.items() if name in needed]


# --- text -------------------------------------------------------------------------------------------------------------


def _indented(lines: Iterable[str]) -> Lines:
    return [f"    {line}" if line else line for line in lines]


def _loop(variable: str, extent: int, body: Sequence[str]) -> Lines:
    """A loop over 0 .. extent - 1; every index of a model fits int32_t."""
    return [f"for (int32_t {variable} = 0; {variable} < {extent}; {variable}++) {{", *_indented(body), "}"]


def _product(variable: str, factor: int) -> str:
    return variable if factor == 1 else f"{variable} * {factor}"


def _plus(expression: str, constant: int) -> str:
    """The sum of an expression and a constant of either sign, spelled as a person would."""
    if constant == 0:
        return expression
    return f"{expression} + {constant}" if constant > 0 else f"{expression} - {-constant}"


def _real(element: str, proof: TensorProof) -> str:
    """A factor: an element less its tensor's zero point."""
    return f"({_plus(element, -proof.zero_point)})" if proof.zero_point else element


def _multiply_add(weight: str, element: str, proof: TensorProof) -> Lines:
    """Add the product of a weight and an element less its zero point to the accumulator."""
    if proof.zero_point == 0:
        return [f"accumulator += {weight} * {element};"]
    return [f"int16_t real = (int16_t)({_plus(element, -proof.zero_point)});", f"accumulator += {weight} * real;"]


def _literal(value: int) -> str:
    """An int32_t constant; C reads -2147483648 as the negative of a constant that int32_t does not hold."""
    return "INT32_MIN" if value == -(2**31) else str(value)


def _joined(values: Sequence[str]) -> Lines:
    """The values, separated by commas, in lines as long as they may be."""
    lines, line = [], ""
    for value in values:
        if len(line) + len(value) + 2 > LINE_LENGTH - 4:
            lines.append(line + ",")
            line = value
        else:
            line = f"{line}, {value}" if line else value
    return [*lines, line]


def _array(dtype: str, name: str, values: Iterable[str], size: int) -> Lines:
    return [f"static const {dtype}_t {name}[{size}] = {{", *_indented(_joined(list(values))), "};"]


def _class_names(name: str, class_names: Sequence[str]) -> str:
    if not class_names:
        return ""
    lines = [f"    {_string(each)}," for each in class_names]
    return "\n".join([f"\nconst char *const {name}_class_names[{name.upper()}_CLASSES] = {{", *lines, "};\n"])


def _string(text: str) -> str:
    """A string constant of UTF-8; what is no letter, digit or space is a byte of three octal digits."""
    plain = (chr(byte) if chr(byte).isalnum() and byte < 128 or byte == 32 else f"\\{byte:03o}"
             for byte in text.encode("utf-8"))  # fmt: skip
    return f'"{"".join(plain)}"'


def _shape(proof: TensorProof) -> str:
    return f"{proof.dtype} {'x'.join(map(str, proof.shape)) or '1'}"


# --- one function a layer ---------------------------------------------------------------------------------------------


@dataclass
class _Function:
    """The C function of one layer, and the arrays and helpers that it needs."""

    model: IntegerModel
    number: int
    layer: Layer
    arrays: Lines = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)

    @property
    def identifier(self) -> str:
        """Unique in its first characters, whatever the layer is called."""
        return f"layer{self.number:02}_{re.sub('[^A-Za-z0-9]', '_', self.layer.name)}"

    @property
    def sources(self) -> list[TensorProof]:
        return [self.model.proofs[name] for name in self.layer.inputs]

    @property
    def target(self) -> TensorProof:
        return self.model.proofs[self.layer.name]

    @property
    def parameters(self) -> list[str]:
        if isinstance(self.layer, InputQuantization):
            return ["const int32_t *input", f"{self.target.dtype}_t *output"]
        single = len(self.sources) == 1
        inputs = [f"const {proof.dtype}_t *input{'' if single else number}"
                  for number, proof in enumerate(self.sources)]  # fmt: skip
        return [*inputs, f"{self.target.dtype}_t *output"]

    def definition(self) -> Lines:
        """Comment, arrays and function."""
        body = _body(self.layer, self)
        inputs = ", ".join(map(_shape, self.sources)) or f"int32 {'x'.join(map(str, self.model.input.shape))}"
        comment = [f"/* {self.layer.name}: {self.layer.kind}, {inputs} to {_shape(self.target)}."]
        if self.target.accumulator:
            low, high = self.target.accumulator
            comment.append(f" * Accumulators are proven to lie within {low} .. {high}.")
        comment[-1] += " */"
        head = f"static void {self.identifier}_output({', '.join(self.parameters)})"
        if len(head) > LINE_LENGTH:
            parameters = [f"    {each}" for each in self.parameters]
            head = f"static void {self.identifier}_output(\n" + ",\n".join(parameters) + ")"
        return [*comment, *self.arrays, head, "{", *_indented(body), "}"]

    def array(self, role: str, values: np.ndarray, dtype: str | None = None) -> str:
        """Define an array of constants; returns its name."""
        name = f"{self.identifier}_{role}"
        literals = map(_literal, values.ravel().tolist())
        self.arrays += _array(dtype or values.dtype.name, name, literals, values.size)
        return name

    def helper(self, *names: str) -> str:
        """Note that the function calls these; returns the last."""
        self.helpers.update(names)
        return names[-1]

    def clamped(self, rounded: str, output: Quantization) -> str:
        """The output's integer, from one that is rounded."""
        value = f"{self.helper('clamped')}({_plus(rounded, output.zero_point)}, {output.minimum}, {output.maximum})"
        return f"({output.dtype}_t){value}"

    def store(
        self, place: str, accumulator: str, requantization: Requantization | None, output: Quantization,
        channel: str = "0",
    ) -> Lines:  # fmt: skip
        """Equations (2) and (3) of `fixedpoint`, zero point and clamp."""
        if requantization is None:
            return [f"{place} = {accumulator};"]
        mode, multiplier, shift = requantization.rounding, requantization.multiplier, requantization.shift
        if mode not in _ROUNDING:
            known = ", ".join(_ROUNDING)
            raise ParameterError(f"layer {self.layer.name!r}: rounding {mode!r} has no C text; expected one of {known}")
        self.helper(*_ROUNDING[mode])
        if len(multiplier) == 1:
            pair = f"{multiplier[0]}, {shift[0]}"
        else:
            names = self.array("multiplier", multiplier), self.array("shift", shift, "uint8")
            pair = ", ".join(f"{name}[{channel}]" for name in names)
        rounded = [f"int64_t rounded = {mode}({accumulator}, {pair});"]
        if len(rounded[0]) > LINE_LENGTH - 16:  # the loops around it
            rounded = [f"int64_t rounded = {mode}(", f"    {accumulator}, {pair});"]
        return [*rounded, f"{place} = {self.clamped('rounded', output)};"]


def _call(function: _Function, tensors: Mapping[str, Tensor]) -> str:
    layer, proofs = function.layer, function.model.proofs
    inputs = [_pointer(proofs[name].dtype, tensors[name], "const ") for name in layer.inputs] or ["image"]
    output = _pointer(proofs[layer.name].dtype, tensors[layer.name])
    return f"{function.identifier}_output({', '.join([*inputs, output])});"


def _pointer(dtype: str, tensor: Tensor, constant: str = "") -> str:
    """Where a tensor lies; int8_t may name what is declared as uint8_t."""
    place = _plus(f"scratch->{'words' if tensor.words else 'bytes'}", tensor.offset)
    return f"({constant}int8_t *)({place})" if dtype == "int8" else place


@singledispatch
def _body(layer: Layer, function: _Function) -> Lines:
    raise ParameterError(f"layer {layer.name!r} is a {layer.kind}, which has no C text here")


def _extent(proof: TensorProof) -> tuple[int, int, int]:
    height, width, channels = proof.shape
    return height, width, channels


@_body.register
def _(layer: InputQuantization, function: _Function) -> Lines:
    body = function.store("output[index]", "input[index]", layer.requantization, layer.output)
    return _loop("index", prod(function.target.shape), body)


def _window_loops(
    source: TensorProof, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], body: Sequence[str],
) -> Lines:  # fmt: skip
    """The loops over the taps of the window at `row`, `column`; the body sees those at `y`, `x` inside the image."""
    height, width, _ = _extent(source)

    def position(output: str, tap: str, axis: int, before: int) -> str:
        return _plus(f"{_product(output, strides[axis])} + {_product(tap, dilation[axis])}", -before)

    inner = [
        f"int32_t x = {position('column', 'kernel_column', 1, padding[2])};",
        f"if (x < 0 || x >= {width}) {{", "    continue;", "}", *body,
    ]  # fmt: skip
    return _loop("kernel_row", kernel[0], [
        f"int32_t y = {position('row', 'kernel_row', 0, padding[0])};",
        f"if (y < 0 || y >= {height}) {{", "    continue;", "}",
        *_loop("kernel_column", kernel[1], inner),
    ])  # fmt: skip


def _output_loops(target: TensorProof, body: Sequence[str]) -> Lines:
    """The loops over `row`, `column` and `channel` of an output, which is written in this order."""
    height, width, channels = _extent(target)
    return _loop("row", height, _loop("column", width, _loop("channel", channels, body)))


@_body.register
def _(layer: Conv2D, function: _Function) -> Lines:
    (source,) = function.sources
    weights, bias = function.array("weights", layer.weights), function.array("bias", layer.bias)
    outputs, kernel_height, kernel_width, depth = layer.weights.shape
    channels, per_group = source.shape[2], outputs // layer.groups
    first = "" if layer.groups == 1 else f" + {_product(f'(channel / {per_group})', depth)}"
    taps = [
        f"const {source.dtype}_t *pixel = input + {_product(f'(y * {source.shape[1]} + x)', channels)}{first};",
        f"const int8_t *weight = {weights}",
        f"    + {_product(f'((channel * {kernel_height} + kernel_row) * {kernel_width} + kernel_column)', depth)};",
        *_loop("depth", depth, _multiply_add("weight[depth]", "pixel[depth]", source)),
    ]
    return _output_loops(function.target, [
        f"int32_t accumulator = {bias}[channel];",
        *_window_loops(source, (kernel_height, kernel_width), layer.strides, layer.padding, layer.dilation, taps),
        *function.store("*output++", "accumulator", layer.requantization, layer.output, "channel"),
    ])  # fmt: skip


@_body.register
def _(layer: Linear, function: _Function) -> Lines:
    (source,) = function.sources
    weights, bias = function.array("weights", layer.weights), function.array("bias", layer.bias)
    outputs, depth = layer.weights.shape
    weight = f"{weights}[{_product('channel', depth)} + depth]"
    return _loop("channel", outputs, [
        f"int32_t accumulator = {bias}[channel];",
        *_loop("depth", depth, _multiply_add(weight, "input[depth]", source)),
        *function.store("output[channel]", "accumulator", layer.requantization, layer.output, "channel"),
    ])  # fmt: skip


@_body.register
def _(layer: Add, function: _Function) -> Lines:
    function.helper("shifted_right")
    terms = [
        f"(int64_t){_real(f'input{number}[index]', source)} * {multiplier}"
        for number, (source, multiplier) in enumerate(zip(function.sources, layer.multiplier.tolist()))
    ]
    rounded = f"shifted_right(sum + ((int64_t)1 << {layer.shift - 1}), {layer.shift})"
    return _loop("index", prod(function.target.shape), [
        f"int64_t sum = {terms[0]}",
        f"    + {terms[1]};",
        f"output[index] = {function.clamped(rounded, layer.output)};",
    ])  # fmt: skip


@_body.register
def _(layer: Concat, function: _Function) -> Lines:
    copies: Lines = []
    for number, source in enumerate(function.sources):
        copies += _loop("channel", source.shape[-1], [f"*output++ = *input{number}++;"])
    return _loop("pixel", prod(function.target.shape[:-1]), copies)


@_body.register
def _(layer: MaxPool, function: _Function) -> Lines:
    (source,) = function.sources
    _, width, channels = _extent(source)
    taps = [
        f"{source.dtype}_t value = input[{_product(f'(y * {width} + x)', channels)} + channel];",
        "largest = value > largest ? value : largest;",
    ]
    return _output_loops(function.target, [
        f"{source.dtype}_t largest = {INTEGER_RANGES[source.dtype][0]};",
        *_window_loops(source, layer.kernel, layer.strides, layer.padding, (1, 1), taps),
        "*output++ = largest;",
    ])  # fmt: skip


@_body.register
def _(layer: AveragePool, function: _Function) -> Lines:
    function.helper("floor_quotient")
    (source,) = function.sources
    _, width, channels = _extent(source)
    taps = [f"sum += input[{_product(f'(y * {width} + x)', channels)} + channel];", "count++;"]
    padding: Lines = []
    if layer.count_include_pad:
        area = prod(layer.kernel)
        padding = [f"sum += ({area} - count) * ({source.zero_point});", f"count = {area};"]
    return _output_loops(function.target, [
        "int32_t sum = 0;", "int32_t count = 0;",
        *_window_loops(source, layer.kernel, layer.strides, layer.padding, (1, 1), taps),
        *padding,
        f"*output++ = ({source.dtype}_t)floor_quotient(2 * sum + count, 2 * count);",
    ])  # fmt: skip


@_body.register
def _(layer: GlobalAveragePool, function: _Function) -> Lines:
    (source,) = function.sources
    height, width, channels = _extent(source)
    value = _plus(f"input[{_product('pixel', channels)} + channel]", -source.zero_point)
    return _loop("channel", channels, [
        "int32_t accumulator = 0;",
        *_loop("pixel", height * width, [f"accumulator += {value};"]),
        *function.store("output[channel]", "accumulator", layer.requantization, layer.output),
    ])  # fmt: skip


@_body.register
def _(layer: Clamp, function: _Function) -> Lines:
    function.helper("clamped")
    value = f"({function.target.dtype}_t)clamped(input[index], {layer.minimum}, {layer.maximum})"
    return _loop("index", prod(function.target.shape), [f"output[index] = {value};"])


@_body.register
def _(layer: Pad, function: _Function) -> Lines:
    (source,) = function.sources
    height, width, channels = _extent(source)
    top, _, left, _ = layer.padding
    return _output_loops(function.target, [
        f"int32_t y = {_plus('row', -top)};", f"int32_t x = {_plus('column', -left)};",
        f"if (y >= 0 && y < {height} && x >= 0 && x < {width}) {{",
        f"    *output++ = input[{_product(f'(y * {width} + x)', channels)} + channel];",
        "} else {",
        f"    *output++ = {source.zero_point};",
        "}",
    ])  # fmt: skip


@_body.register
def _(layer: Requantize, function: _Function) -> Lines:
    (source,) = function.sources
    accumulator = _plus("*input++", -source.zero_point)
    body = function.store("*output++", accumulator, layer.requantization, layer.output, "channel")
    return _loop("pixel", prod(source.shape[:-1]), _loop("channel", source.shape[-1], body))


@_body.register
def _(layer: LookupTable, function: _Function) -> Lines:
    (source,) = function.sources
    table = function.array("table", layer.table, layer.output.dtype)
    entry = _plus("input[index]", -INTEGER_RANGES[source.dtype][0])
    return _loop("index", prod(function.target.shape), [f"output[index] = {table}[{entry}];"])


@_body.register
def _(layer: Softmax, function: _Function) -> Lines:
    (source,) = function.sources
    table, channels = function.array("table", layer.table), source.shape[-1]
    quotient = "(512 * term + sum) / (2 * sum)"  # of integers that are not negative
    return _loop("pixel", prod(source.shape[:-1]), [
        f"{source.dtype}_t largest = input[0];", "int64_t sum = 0;",
        *_loop("channel", channels, ["largest = input[channel] > largest ? input[channel] : largest;"]),
        *_loop("channel", channels, [f"sum += {table}[largest - input[channel]];"]),
        *_loop("channel", channels, [
            f"int64_t term = {table}[largest - input[channel]];",
            f"output[channel] = {function.clamped(quotient, layer.output)};",
        ]),
        f"input += {channels};", f"output += {channels};",
    ])  # fmt: skip


@_body.register
def _(layer: ArgMax, function: _Function) -> Lines:
    (source,) = function.sources
    return ["output[0] = 0;", *_loop("index", source.shape[0], [
        "if (input[index] > input[output[0]]) {", "    output[0] = index;", "}",
    ])]  # fmt: skip
