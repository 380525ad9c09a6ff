"""From a trained PyTorch module to a float model, by symbolic tracing.

`torch.fx` records what the module does with its input, operation by operation; each becomes a layer, named after the
node of the trace. A module such as `Conv2d` is the function of the same name with its attributes as arguments, so one
table serves both. The module may be traced if its control flow does not depend on the image.

A softmax at the end is left out: it changes no largest score. Whatever else a float model cannot hold is refused, and
in the end the scores of both are compared.
"""

from __future__ import annotations

import copy
import operator
from math import inf, prod
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

import numpy as np

from intsmooth_ref.data_tools.channels_first import FloatModelBuilder, Operand, Tensor, expect, located, same_padding
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.errors import ModelFormatError, ParameterError, reason_of

if TYPE_CHECKING:
    import torch

#: The operations there are, for a person to read.
SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d/2d, ReLU, ReLU6, Hardtanh, clamp, Hardswish, Hardsigmoid, SiLU, Sigmoid, Tanh, GELU, "
    "ELU, LeakyReLU, sums, arithmetic with constants, cat, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, mean over (2, 3), "
    "flatten, zero padding, Dropout, Identity, and Softmax or LogSoftmax at the end"
)

#: What adds a layer, and which attributes of a module are which of its arguments.
Operation = tuple[Callable[..., Any], Mapping[str, str]]

#: What a shape has for the batch dimension.
BATCH = object()


def float_model(
    module: torch.nn.Module, shape: tuple[int, int, int], mean: Sequence[float] = (), deviation: Sequence[float] = (),
    class_names: Sequence[str] = (), provenance: str = "",
) -> FloatModel:  # fmt: skip
    """The float model that a module amounts to in evaluation mode; the module itself is left as it is.

    Args:
        module: reads float images `(N, C, H, W)` and gives scores `(N, classes)`.
        shape: of an image, `(H, W, C)`.
        mean, deviation: the module reads `(grey / 255 - mean) / deviation`: none, one for all or one a channel.

    Raises:
        ParameterError: if PyTorch is missing, or the module cannot be traced.
        ModelFormatError: which node is not supported and what is; or that the scores of both do not agree.
    """
    try:
        import torch
    except ImportError as problem:
        hint = "the import needs the extra `train`: pip install 'intsmooth_ref[train]'"
        raise ParameterError(f"{problem}; {hint}") from None
    builder = FloatModelBuilder(shape, mean, deviation)
    with torch.no_grad(), located(f"module {type(module).__name__}"):
        copied = copy.deepcopy(module).cpu().float().eval()
        traced = _traced(copied)
        last, dropped, dimension = _before_softmax(traced)
        output = _rebuilt(traced, last, builder)
        if dropped:
            over_classes = dimension in (1, -len(output.shape))
            expect(over_classes, f"{dropped} over dimension {dimension} at the end", "1, the classes")
            provenance = f"{provenance}; {dropped} at the end left out".removeprefix("; ")
        model = builder.model(output, class_names, provenance)
        builder.expect_agreement(model, lambda images: _scores(copied, traced, last, torch.from_numpy(images)))
    return model


def _traced(module: torch.nn.Module) -> torch.fx.GraphModule:
    import torch.fx

    try:
        return torch.fx.symbolic_trace(module)
    except Exception as problem:  # any, for the module's own code runs
        raise ParameterError(
            f"module {type(module).__name__}: found none that can be traced ({reason_of(problem)}); "
            "expected control flow that does not depend on the image"
        ) from None


def _before_softmax(traced: torch.fx.GraphModule) -> tuple[torch.fx.Node, str, Any]:
    """The node that gives the scores, and what behind it is left out: `Softmax`, `LogSoftmax` or nothing, and over
    which dimension."""
    import torch.fx
    from torch.nn import functional

    last = list(traced.graph.nodes)[-1].args[0]
    expect(isinstance(last, torch.fx.Node), f"a module that gives {type(last).__name__}", "one tensor of scores")
    names = {torch.nn.Softmax: "Softmax", torch.nn.LogSoftmax: "LogSoftmax",
             torch.softmax: "Softmax", functional.softmax: "Softmax", "softmax": "Softmax",
             torch.log_softmax: "LogSoftmax", functional.log_softmax: "LogSoftmax", "log_softmax": "LogSoftmax",
             }  # fmt: skip
    kind = _kind(traced, last)
    if kind not in names:
        return last, "", None
    at = traced.get_submodule(str(last.target)).dim if last.op == "call_module" else (*last.args, None, None)[1]
    return last.all_input_nodes[0], names[kind], last.kwargs.get("dim", at)


def _kind(traced: torch.fx.GraphModule, node: torch.fx.Node) -> Any:
    """What the tables are asked for: the type of a module, a function, or the name of a method."""
    return type(traced.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _scores(
    module: torch.nn.Module, traced: torch.fx.GraphModule, last: torch.fx.Node, images: torch.Tensor
) -> np.ndarray:
    """What the module gives before its softmax."""
    import torch.fx

    interpreter = torch.fx.Interpreter(traced, garbage_collect_values=False)
    try:
        same = torch.equal(interpreter.run(images), module(images))
    except Exception as problem:  # any, for the module's own code runs
        raise ModelFormatError(f"found no scores ({reason_of(problem)}); expected some") from None
    expect(same, "scores other than those of its trace", "a module that does the same each time, and no hooks")
    scores: np.ndarray = interpreter.env[last].numpy()
    return scores


# --- the walk along the trace -----------------------------------------------------------------------------------------


def _rebuilt(traced: torch.fx.GraphModule, last: torch.fx.Node, builder: FloatModelBuilder) -> Tensor:
    """The scores, in the builder."""
    operations = {**_functions(), **_methods(), **_modules()}
    values: dict[torch.fx.Node, Any] = {}
    for node in traced.graph.nodes:
        with located(f"node {node.name!r}"):
            if node.op == "placeholder":
                expect(not values, "a second input", "an image and nothing else")
                values[node] = builder.input
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(node.target)(traced)
            else:
                values[node] = _result(traced, node, values, builder, operations)
        if node is last:
            break
    scores = values[last]
    expect(isinstance(scores, Tensor), "scores that do not depend on the image", "a classifier of images")
    assert isinstance(scores, Tensor)
    return scores


def _result(
    traced: torch.fx.GraphModule, node: torch.fx.Node, values: dict[torch.fx.Node, Any], builder: FloatModelBuilder,
    operations: Mapping[Any, Operation],
) -> Any:  # fmt: skip
    """What a node gives: a tensor of the builder, or, of constants alone, what Python makes of them."""
    from torch.fx.node import map_arg

    args = map_arg(node.args, values.__getitem__)
    kwargs = dict(map_arg(node.kwargs, values.__getitem__))
    if not _holds_tensor((args, kwargs)):
        return _computed(traced, node, args, kwargs)
    kind = _kind(traced, node)
    what = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    if kind not in operations:
        raise ModelFormatError(f"found {what}; expected one of: {SUPPORTED}")
    operation, attributes = operations[kind]
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        kwargs.update({argument: getattr(module, attribute) for argument, attribute in attributes.items()})
    try:
        with located(what):
            result = operation(builder, node.name, *args, **kwargs)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        unusual = f"found {what} with unusual arguments ({reason_of(problem)})"  # a tensor for a number, and the like
        raise ModelFormatError(f"{unusual}; expected its usual ones") from None
    if kwargs.get("inplace") or what in _IN_PLACE or what.endswith("_"):
        values[node.all_input_nodes[0]] = result
    return result


#: What `x += y` and the like call; other operations in place have an underscore at the end or an argument `inplace`.
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return _holds_tensor(list(value.values()))
    return any(map(_holds_tensor, value)) if isinstance(value, (tuple, list)) else isinstance(value, Tensor)


def _computed(traced: torch.fx.GraphModule, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    """An operation on constants, carried out."""
    try:
        if node.op == "call_module":
            return traced.get_submodule(str(node.target))(*args, **kwargs)
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)
    except Exception as problem:  # any, for the module's own code runs
        reason = reason_of(problem)
        raise ModelFormatError(f"found constants that do not go together ({reason}); expected others") from None


# --- operations, under PyTorch's own names of arguments ---------------------------------------------------------------


def _conv2d(
    builder: FloatModelBuilder, name: str, input: Tensor, weight: Any, bias: Any = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    expect(padding_mode == "zeros", f"padding mode {padding_mode}", "zeros")
    weights, strides, steps = _array(weight), _pair(stride), _pair(dilation)
    if padding == "same":
        sides = same_padding(input.shape[1:], weights.shape[2:], strides, steps)
    else:
        sides = _around(0 if padding == "valid" else padding)
    return builder.conv2d(name, input, weights, _array_or_none(bias), strides=strides, padding=sides, dilation=steps,
                          groups=groups)  # fmt: skip


def _linear(builder: FloatModelBuilder, name: str, input: Tensor, weight: Any, bias: Any = None) -> Tensor:
    return builder.linear(name, input, _array(weight), _array_or_none(bias))


def _batch_norm(
    builder: FloatModelBuilder, name: str, input: Tensor, running_mean: Any, running_var: Any, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: Any = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    expect(running_mean is not None and not training, "statistics of the batch", "running statistics")
    mean, variance = _array(running_mean), _array(running_var)
    scale = np.ones_like(mean) if weight is None else _array(weight)
    shift = np.zeros_like(mean) if bias is None else _array(bias)
    return builder.batch_norm(name, input, scale, shift, mean, variance, eps)


def _relu(builder: FloatModelBuilder, name: str, input: Tensor, inplace: bool = False) -> Tensor:
    return builder.clamp(name, input)


def _relu6(builder: FloatModelBuilder, name: str, input: Tensor, inplace: bool = False) -> Tensor:
    return builder.clamp(name, input, 0, 6)


def _hardtanh(
    builder: FloatModelBuilder, name: str, input: Tensor, min_val: float = -1, max_val: float = 1, inplace: bool = False
) -> Tensor:
    return builder.clamp(name, input, min_val, max_val)


def _clamp(builder: FloatModelBuilder, name: str, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    lowest, highest = (default if limit is None else limit for limit, default in ((min, -inf), (max, inf)))
    return builder.clamp(name, input, lowest, highest)


def _function(function: str) -> Callable[..., Tensor]:
    def operation(builder: FloatModelBuilder, name: str, input: Tensor, inplace: bool = False) -> Tensor:
        return builder.function(name, input, function)

    return operation


def _gelu(builder: FloatModelBuilder, name: str, input: Tensor, approximate: str = "none") -> Tensor:
    expect(approximate == "none", f"the approximation {approximate!r}", "none")
    return builder.function(name, input, "gelu")


def _elu(builder: FloatModelBuilder, name: str, input: Tensor, alpha: float = 1, inplace: bool = False) -> Tensor:
    expect(alpha == 1, f"alpha {alpha}", "1")
    return builder.function(name, input, "elu")


def _leaky_relu(
    builder: FloatModelBuilder, name: str, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return builder.function(name, input, "leaky_relu", negative_slope)


def _add(builder: FloatModelBuilder, name: str, input: Any, other: Any, alpha: Any = 1) -> Tensor:
    expect(alpha == 1, f"alpha {alpha}", "1")
    return builder.add(name, _operand(input), _operand(other))


def _subtract(builder: FloatModelBuilder, name: str, input: Any, other: Any, alpha: Any = 1) -> Tensor:
    expect(alpha == 1, f"alpha {alpha}", "1")
    return builder.subtract(name, _operand(input), _operand(other))


def _multiply(builder: FloatModelBuilder, name: str, input: Any, other: Any) -> Tensor:
    return builder.multiply(name, _operand(input), _operand(other))


def _divide(builder: FloatModelBuilder, name: str, input: Any, other: Any, rounding_mode: Any = None) -> Tensor:
    expect(rounding_mode is None, f"rounding mode {rounding_mode}", "none")
    return builder.divide(name, _operand(input), _operand(other))


def _cat(builder: FloatModelBuilder, name: str, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    good = all(isinstance(each, Tensor) for each in tensors)
    expect(good, "a constant that is joined to tensors", "tensors")
    expect(dim in (1, -len(tensors[0].shape)), f"dimension {dim}", "1, the channels")
    return builder.concat(name, tensors)


def _max_pool2d(
    builder: FloatModelBuilder, name: str, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    expect(_pair(dilation) == (1, 1), f"dilation {dilation}", "1")
    expect(not return_indices, "indices of the maxima", "return_indices=False")
    kernel = _pair(kernel_size)
    return builder.max_pool(name, input, kernel, _pair(stride) if stride else kernel, _around(padding), ceil_mode)


def _avg_pool2d(
    builder: FloatModelBuilder, name: str, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Tensor:  # fmt: skip
    expect(divisor_override is None, f"divisor_override {divisor_override}", "none")
    kernel, strides = _pair(kernel_size), _pair(stride or kernel_size)
    return builder.average_pool(name, input, kernel, strides, _around(padding), count_include_pad, ceil_mode)


def _adaptive_avg_pool2d(builder: FloatModelBuilder, name: str, input: Tensor, output_size: Any) -> Tensor:
    extents = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    wanted = [size if extent is None else extent for size, extent in zip(input.shape[1:], extents)]
    return builder.adaptive_average_pool(name, input, wanted)


def _mean(
    builder: FloatModelBuilder, name: str, input: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    dims = sorted(each % 4 for each in dim) if isinstance(dim, (tuple, list)) else dim
    expect(dims == [2, 3] and dtype is None, f"a mean over {dim} as {dtype or 'it is'}", "one over (2, 3)")
    return builder.global_average_pool(name, input, keeps_extents=keepdim)


def _pad(
    builder: FloatModelBuilder, name: str, input: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    expect(mode == "constant" and not value, f"padding of mode {mode} and value {value}", "constant zeros")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    expect(len(pad) <= 4, f"padding {tuple(pad)}", "that of height and width")
    return builder.pad(name, input, (top, bottom, left, right))


def _flatten(
    builder: FloatModelBuilder, name: str, input: Tensor, start_dim: int = 0, end_dim: int = -1
) -> Tensor:
    rank = len(input.shape) + 1
    good = start_dim % rank == 1 and end_dim % rank == rank - 1
    expect(good, f"dimensions {start_dim} to {end_dim} flattened", "1 to -1")
    return builder.flatten(name, input)


def _reshape(builder: FloatModelBuilder, name: str, input: Tensor, *shape: Any) -> Tensor:
    extents = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    features = prod(input.shape)
    good = extents in ((BATCH, -1), (BATCH, features), (-1, features))
    written = ", ".join("N" if each is BATCH else str(each) for each in extents)
    expect(good, f"a tensor of shape {input.shape} put into ({written})", "(N, -1)")
    return builder.flatten(name, input)


def _identity(builder: FloatModelBuilder, name: str, input: Tensor) -> Tensor:
    return input


def _dropout(
    builder: FloatModelBuilder, name: str, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    expect(not training, "dropout that goes on after training", "F.dropout(..., training=self.training)")
    return input


def _size(builder: FloatModelBuilder, name: str, input: Tensor, dim: int | None = None) -> Any:
    extents = (BATCH, *input.shape)
    return extents if dim is None else extents[dim]


def _dim(builder: FloatModelBuilder, name: str, input: Tensor) -> int:
    return len(input.shape) + 1


def _attribute(builder: FloatModelBuilder, name: str, input: Tensor, attribute: str) -> Any:
    expect(attribute in ("shape", "ndim"), f"attribute {attribute}", "shape or ndim")
    return _size(builder, name, input) if attribute == "shape" else _dim(builder, name, input)


def _array(value: Any) -> np.ndarray:
    expect(not isinstance(value, Tensor), "weights that depend on the image", "constants")
    array: np.ndarray = value.detach().float().numpy()  # float, for NumPy has no bfloat16
    return array


def _array_or_none(value: Any) -> np.ndarray | None:
    return None if value is None else _array(value)


def _operand(value: Any) -> Operand:
    return _array(value) if hasattr(value, "detach") else value


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value) * (2 if len(value) == 1 else 1)
    good = len(values) == 2 and all(isinstance(each, int) for each in values)
    expect(good, f"{value!r}", "an integer or two")
    return values[0], values[1]


def _around(value: Any) -> tuple[int, int, int, int]:
    rows, columns = _pair(value)
    return rows, rows, columns, columns


# --- tables -----------------------------------------------------------------------------------------------------------


def _functions() -> dict[Any, Operation]:
    """Functions by the function itself."""
    import torch
    from torch.nn import functional

    table: dict[Callable[..., Any], tuple[Any, ...]] = {
        _conv2d: (functional.conv2d, torch.conv2d),
        _linear: (functional.linear,),
        _batch_norm: (functional.batch_norm,),
        _relu: (functional.relu, functional.relu_, torch.relu, torch.relu_),
        _relu6: (functional.relu6,),
        _hardtanh: (functional.hardtanh, functional.hardtanh_),
        _clamp: (torch.clamp, torch.clamp_, torch.clip),
        _function("hard_swish"): (functional.hardswish,),
        _function("hard_sigmoid"): (functional.hardsigmoid,),
        _function("silu"): (functional.silu,),
        _function("sigmoid"): (functional.sigmoid, torch.sigmoid, torch.sigmoid_),
        _function("tanh"): (functional.tanh, torch.tanh, torch.tanh_),
        _gelu: (functional.gelu,),
        _elu: (functional.elu, functional.elu_),
        _leaky_relu: (functional.leaky_relu, functional.leaky_relu_),
        _add: (operator.add, operator.iadd, torch.add),
        _subtract: (operator.sub, operator.isub, torch.sub),
        _multiply: (operator.mul, operator.imul, torch.mul),
        _divide: (operator.truediv, operator.itruediv, torch.div),
        _cat: (torch.cat, torch.concat),
        _max_pool2d: (functional.max_pool2d, torch.max_pool2d),
        _avg_pool2d: (functional.avg_pool2d,),
        _adaptive_avg_pool2d: (functional.adaptive_avg_pool2d,),
        _mean: (torch.mean,),
        _pad: (functional.pad,),
        _flatten: (torch.flatten,),
        _reshape: (torch.reshape,),
        _dropout: (functional.dropout, functional.dropout2d),
        _attribute: (getattr,),
    }
    return {function: (operation, {}) for operation, functions in table.items() for function in functions}


def _methods() -> dict[Any, Operation]:
    """Methods of tensors by name."""
    table: dict[Callable[..., Any], str] = {
        _relu: "relu relu_", _clamp: "clamp clamp_ clip", _function("sigmoid"): "sigmoid sigmoid_",
        _function("tanh"): "tanh tanh_", _add: "add add_", _subtract: "sub sub_", _multiply: "mul mul_",
        _divide: "div div_", _mean: "mean", _flatten: "flatten", _reshape: "reshape view", _size: "size",
        _dim: "dim", _identity: "contiguous",
    }  # fmt: skip
    return {name: (operation, {}) for operation, names in table.items() for name in names.split()}


def _modules() -> dict[Any, Operation]:
    """Modules by type, with the attributes that are the arguments of their functions."""
    from torch import nn

    table: dict[Any, tuple[Callable[..., Any], str]] = {
        nn.Conv2d: (_conv2d, "weight bias stride padding dilation groups padding_mode"),
        nn.Linear: (_linear, "weight bias"),
        nn.BatchNorm1d: (_batch_norm, "running_mean running_var weight bias eps"),
        nn.BatchNorm2d: (_batch_norm, "running_mean running_var weight bias eps"),
        nn.ReLU: (_relu, "inplace"),
        nn.ReLU6: (_relu6, "inplace"),
        nn.Hardtanh: (_hardtanh, "min_val max_val inplace"),
        nn.Hardswish: (_function("hard_swish"), "inplace"),
        nn.Hardsigmoid: (_function("hard_sigmoid"), "inplace"),
        nn.SiLU: (_function("silu"), "inplace"),
        nn.Sigmoid: (_function("sigmoid"), ""),
        nn.Tanh: (_function("tanh"), ""),
        nn.GELU: (_gelu, "approximate"),
        nn.ELU: (_elu, "alpha inplace"),
        nn.LeakyReLU: (_leaky_relu, "negative_slope inplace"),
        nn.MaxPool2d: (_max_pool2d, "kernel_size stride padding dilation ceil_mode return_indices"),
        nn.AvgPool2d: (_avg_pool2d, "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
        nn.AdaptiveAvgPool2d: (_adaptive_avg_pool2d, "output_size"),
        nn.Flatten: (_flatten, "start_dim end_dim"),
        nn.Dropout: (_identity, ""),
        nn.Dropout2d: (_identity, ""),
        nn.Identity: (_identity, ""),
    }
    return {
        nn.ZeroPad2d: (_pad, {"pad": "padding"}),
        nn.ConstantPad2d: (_pad, {"pad": "padding", "value": "value"}),
        **{kind: (operation, {name: name for name in names.split()}) for kind, (operation, names) in table.items()},
    }
