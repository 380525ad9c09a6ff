"""An integer model as a PyTorch module: its forward pass is the engine's, to the bit, and has gradients.

Quantization-aware training (Jacob et al. 2018, section 3) keeps float weights, computes with their quantized values,
and lets the gradient pass the roundings as if they were not there ("straight-through": Bengio, Leonard, Courville
2013). Usually the quantized values are floats near the integers; here they are the integers. Between layers a tensor
holds

    (1)   steps = q - zero_point,   real = scale * steps

in float32, where integers up to 2**24 are exact. Each layer has two results, with r its ratio of scales:

    (2)   float path     r * (sum_k weight_k * steps_k + bias),   weight and bias rounded, as in the integer model
    (3)   exact          clamp(round(float path)), in int64, by the model's own multiplier and shift

Forward goes (3). Backward goes (2), and nothing passes where the float path lies beyond the clamp. Likewise for a
weight: float path weight / scale, exact the int8 weight. The grids of activations are the model's and stay, those of
weights follow the weights: each pass computes the layers that `export` would give, made anew by `quantization`.

The sum of products in (2) serves (3) too where it is exact. It is, whatever the order of its terms, if

    (4)   sum_k |weight_k| * max |steps_k| <= 2**24

for every output channel, and if it is a sum: a library may choose another algorithm (Winograd's) or number format. So
before the first pass of each shape it is tried with integers up to the size that (4) allows, whatever the images and
weights of that pass; where (4) fails, or the trial, the exact sum is a second one, in float64, which is exact for all
that fits int32.

This module imports PyTorch, the extra `train`: whoever needs it imports it in the function that does.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import singledispatch
from math import inf
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d, linear, max_pool2d

from intsmooth_ref.data_tools.quantization import QuantizedWeights, quantize_weights, quantized_products
from intsmooth_ref.data_tools.torch_network import as_array, as_tensor, padded, state_name
from intsmooth_ref.errors import ModelFormatError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    INTEGER_RANGES,
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
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
)
from intsmooth_ref.model.proof import TensorProof

#: The fields of a layer that are trained.
TRAINED = ("weights", "bias")

#: Equation (4): up to here float32 holds every integer.
FLOAT32_INTEGERS = 1 << 24

#: The largest steps and weights of int8 and uint8 grids, with which float32 sums are tried.
LARGEST_STEPS, LARGEST_WEIGHT = 255, 127

#: The slope of a table at an entry is taken over so many entries on each side, for single steps are all 0 or 1.
TABLE_REACH = 4

Sources = Sequence[TensorProof]
Floats = tuple[np.ndarray, np.ndarray]


class IntegerNetwork(torch.nn.Module):
    """An integer model whose weights and biases are trained.

    Called with int32 grey levels `(N, H, W, C)`, within `-2**20 .. 2**20`, it gives scores, float64 `(N, classes)`: the
    integers of the engine times their scale, in the same order, which float32 could not promise of accumulators.

    What is trained has the names and the layout that it has in `torch_network`: "LAYER/weights" and "LAYER/bias".

    Attributes:
        model: gives the layers and the grids; its weights are not used.
    """

    def __init__(self, model: IntegerModel, weights: Mapping[str, Floats]) -> None:
        """Take the float weights `(O, ...)` and biases `(O,)` of the model's `Conv2D` and `Linear` layers, by name.

        Raises:
            ModelFormatError: if the model has a layer that cannot be trained through or none to train, or weights are
                missing or have another shape.
        """
        super().__init__()
        self.model = model
        for layer in model.layers:
            _check(layer, model)
            if isinstance(layer, (Conv2D, Linear)):
                _check_weights(layer, weights)
                for field, values in zip(TRAINED, weights[layer.name]):
                    tensor = as_tensor(values.astype(np.float32))
                    self.register_parameter(state_name(layer, field), torch.nn.Parameter(tensor))
        if not any(True for _ in self.parameters()):
            raise ModelFormatError("model has no weights; expected, for training, a Conv2D or a Linear")
        self._last_use = {name: layer.name for layer in model.layers for name in layer.inputs}
        self._sums = _Sums()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, float64 `(N, classes)`, of int32 grey levels `(N, H, W, C)`.

        Raises:
            ArithmeticRangeError: if a weight or bias is not finite.
        """
        last, steps = self.model.layers[-1], images
        with _exact_formats(images):
            for last, steps in self._steps(images):
                pass
            return steps.double() * float(_grid(last, self.model).scale)

    def integers(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by name, as `Engine(self.export()).trace(images)` gives it.

        Args:
            images: int32 `(N, H, W, C)`, grey levels.
        """
        tensor = torch.tensor(images, device=next(self.parameters()).device)
        with torch.no_grad(), _exact_formats(tensor):
            return {
                layer.name: _engine_layout(steps, _grid(layer, self.model)) for layer, steps in self._steps(tensor)
            }

    def export(self, provenance: str = "") -> IntegerModel:
        """The integer model that the present weights make, on the grids of `model`."""
        layers = (
            self._quantized(layer)[0] if isinstance(layer, (Conv2D, Linear)) else layer for layer in self.model.layers
        )
        return IntegerModel(tuple(layers), self.model.class_names, provenance)

    def _floats(self, layer: Layer) -> list[torch.Tensor]:
        """Weights and bias as they are trained."""
        return [self.get_parameter(state_name(layer, field)) for field in TRAINED]

    def _quantized(self, layer: Conv2D | Linear) -> tuple[Conv2D | Linear, QuantizedWeights]:
        """The layer with the present weights, and their scales."""
        weights, bias = map(as_array, self._floats(layer))
        source = self.model.proofs[layer.inputs[0]].scale
        if layer.requantization is not None:
            quantized, requantization = quantized_products(weights, bias, source, layer.output.scale)
            output = layer.output
        else:
            quantized, requantization = quantize_weights(weights, bias, source, per_channel=False), None
            output = replace(layer.output, scale=source * quantized.scales[0])
        present = replace(
            layer, weights=quantized.weights, bias=quantized.bias, requantization=requantization, output=output
        )
        return present, quantized

    def _steps(self, images: torch.Tensor) -> Iterator[tuple[Layer, torch.Tensor]]:
        """Each layer, with the present weights, and its steps, equation (1): `(N, C, H, W)` or `(N, C)`."""
        tensors: dict[str, torch.Tensor] = {}
        for layer in self.model.layers:
            sources = [self.model.proofs[name] for name in layer.inputs]
            inputs = [tensors[name] for name in layer.inputs] or [images]
            if isinstance(layer, (Conv2D, Linear)):
                layer, quantized = self._quantized(layer)
                tensors[layer.name] = self._products(layer, quantized, sources[0], inputs[0])
            else:
                tensors[layer.name] = operate(layer, sources, *inputs)
            yield layer, tensors[layer.name]
            for name in layer.inputs:
                if self._last_use[name] == layer.name:
                    tensors.pop(name, None)

    def _products(
        self, layer: Conv2D | Linear, quantized: QuantizedWeights, source: TensorProof, steps: torch.Tensor
    ) -> torch.Tensor:
        """What `Conv2D` and `Linear` share: the sum, in floats and exactly, then its requantization."""
        weights, bias = self._floats(layer)
        scales = [source.scale * scale for scale in quantized.scales]
        rounded = _rounded(weights, quantized.weights, quantized.scales)
        total = sums(layer, steps, rounded)
        exact = self._sums.exact(layer, source, steps, rounded, total).to(torch.int64) + _per_channel(layer.bias, steps)
        path = total + _rounded(bias, quantized.bias, scales).reshape(-1, *[1] * (steps.ndim - 2))
        if layer.requantization is None:
            return straight_through(path.double(), exact)
        return _requantized(path, exact, layer.requantization, layer.output)


def _check(layer: Layer, model: IntegerModel) -> None:
    """That there is a gradient, and that the arithmetic is that of equation (3)."""
    where = f"layer {layer.name!r}"
    if type(layer) not in operate.registry and not isinstance(layer, (Conv2D, Linear)):
        kinds = sorted(kind.__name__ for kind in (*operate.registry, Conv2D, Linear) if kind is not object)
        raise ModelFormatError(f"{where} is of kind {layer.kind}; expected, for training, one of {', '.join(kinds)}")
    requantization = getattr(layer, "requantization", None)
    if requantization is not None and requantization.rounding != "single_rounding":
        found = f"has rounding {requantization.rounding!r}"
        raise ModelFormatError(f"{where} {found}; expected, for training, 'single_rounding'")
    bare = isinstance(layer, (Conv2D, Linear)) and requantization is None
    if bare and layer is not model.output:
        raise ModelFormatError(f"{where} gives accumulators; expected, for training, none before the last layer")


def _check_weights(layer: Conv2D | Linear, weights: Mapping[str, Floats]) -> None:
    if layer.name not in weights:
        raise ModelFormatError(f"layer {layer.name!r} has no float weights; expected some for each layer with weights")
    found = tuple(each.shape for each in weights[layer.name])
    expected = (layer.weights.shape, layer.bias.shape)
    if found != expected:
        where = f"layer {layer.name!r}"
        raise ModelFormatError(f"{where} has float weights and bias of shapes {found}; expected {expected}")


def _exact_formats(images: torch.Tensor) -> torch.autocast:
    """Inside it, `autocast` is off: the types that it chooses do not hold the integers."""
    return torch.autocast(images.device.type, enabled=False)


def _grid(layer: Layer, model: IntegerModel) -> Quantization | TensorProof:
    """How the layer's integers stand for reals; the scale of bare accumulators is the present one."""
    output: Quantization | None = getattr(layer, "output", None)
    return output or model.proofs[layer.name]


def _engine_layout(steps: torch.Tensor, grid: Quantization | TensorProof) -> np.ndarray:
    """Steps as the engines give them: with their zero point, `(N, H, W, C)`, of the grid's dtype."""
    q = steps.to(torch.int64) + grid.zero_point
    return np.ascontiguousarray((q.permute(0, 2, 3, 1) if q.ndim == 4 else q).cpu().numpy().astype(grid.dtype))


# --- gradients that pass roundings ------------------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """Forward `exact`; backward the gradient of `path`, zero where `path` is beyond `low .. high`."""

    @staticmethod
    def forward(ctx: Any, path: torch.Tensor, exact: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.clamped = (low, high) != (-inf, inf)
        if ctx.clamped and ctx.needs_input_grad[0]:
            ctx.save_for_backward((path >= low) & (path <= high))
        return exact.to(path.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.clamped:
            (inside,) = ctx.saved_tensors
            gradient = gradient * inside
        return gradient, None, None, None


def straight_through(
    path: torch.Tensor, exact: torch.Tensor, low: float = -inf, high: float = inf
) -> torch.Tensor:
    """The values of `exact`, as floats of `path`'s type, with the gradient of `path` within `low .. high`."""
    result: torch.Tensor = _StraightThrough.apply(path, exact, low, high)
    return result


def _rounded(parameter: torch.Tensor, integers: np.ndarray, scales: Sequence[Fraction]) -> torch.Tensor:
    """Quantized weights or biases with the gradient of those that are trained: one scale a channel, or one for all."""
    divisors = torch.tensor([float(scale) for scale in scales], dtype=torch.float32, device=parameter.device)
    path = parameter / divisors.reshape((-1,) + (1,) * (parameter.ndim - 1))
    return straight_through(path, as_tensor(integers).to(parameter.device))


def _per_channel(values: np.ndarray, steps: torch.Tensor) -> torch.Tensor:
    """int32 `(C,)` or `(1,)` to int64, shaped to go along the channels of `(N, C, H, W)` or `(N, C)`."""
    tensor = torch.from_numpy(values.astype(np.int64)).to(steps.device)
    return tensor.reshape(-1, *[1] * (steps.ndim - 2))


def _requantized(
    path: torch.Tensor, exact: torch.Tensor, requantization: Requantization, output: Quantization
) -> torch.Tensor:
    """Equations (2) and (3) from an accumulator: `path` with its gradient, `exact` its exact value, an integer."""
    multiplier = _per_channel(requantization.multiplier, path)
    shift = _per_channel(requantization.shift, path)
    ratio = (multiplier * 0.5**shift.double()).float()
    product = exact.to(torch.int64, copy=True)
    product *= multiplier
    return _shifted(path * ratio, product, shift, output)


def _shifted(
    path: torch.Tensor, product: torch.Tensor, shift: torch.Tensor | int, output: Quantization
) -> torch.Tensor:
    """`clamp((product + 2**(shift-1)) >> shift)`, in steps, with the gradient of `path`; `product` is overwritten."""
    low, high = output.minimum - output.zero_point, output.maximum - output.zero_point
    product += 1 << (shift - 1)
    product >>= shift
    return straight_through(path, product.clamp_(low, high), low, high)


# --- sums of products -------------------------------------------------------------------------------------------------


def sums(layer: Conv2D | Linear, steps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sums of products, without bias, in floats of the arguments' type; weights as PyTorch lays them out."""
    if isinstance(layer, Linear):
        return linear(steps, weights)
    top, bottom, left, right = layer.padding
    symmetric = top == bottom and left == right
    return conv2d(
        steps if symmetric else padded(steps, layer.padding, 0), weights, None, layer.strides,
        (top, left) if symmetric else 0, layer.dilation, layer.groups,
    )  # fmt: skip


class _Sums:
    """Exact sums of products; remembers for which layers and shapes the library's float32 sums are sums."""

    def __init__(self) -> None:
        self._tried: dict[tuple[Any, ...], bool] = {}

    def exact(
        self, layer: Conv2D | Linear, source: TensorProof, steps: torch.Tensor, weights: torch.Tensor,
        total: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """The exact sums: `total`, which was computed in float32, or else others in float64."""
        with torch.no_grad():
            trusted = fits_float32(layer, source) and self._are_sums(layer, steps, weights)
            return total.detach() if trusted else _float64_sums(layer, steps)

    def _are_sums(self, layer: Conv2D | Linear, steps: torch.Tensor, weights: torch.Tensor) -> bool:
        case = (layer.name, steps.shape, steps.stride(), weights.stride(), steps.device, torch.get_num_threads())
        if case not in self._tried:
            self._tried[case] = sums_are_exact(layer, steps, weights)
        return self._tried[case]


def sums_are_exact(layer: Conv2D | Linear, steps: torch.Tensor, weights: torch.Tensor) -> bool:
    """Whether float32 sums are exact in two trials with tensors laid out like these, in each all images the same.

    One is of random integers of both signs, the other of large positive ones, whose sums come near the bound of (4) if
    there are products enough.
    """
    generator = np.random.default_rng(0)
    heaviest = min(max(FLOAT32_INTEGERS // (LARGEST_STEPS * weights[0].numel()), 1), LARGEST_WEIGHT)

    def integers(most: int, shape: Sequence[int], positive: bool) -> torch.Tensor:
        values = generator.integers((most + 1) // 2 if positive else -most, most + 1, tuple(shape))
        return torch.from_numpy(values.astype(np.float64)).to(steps.device)

    def trial(positive: bool) -> bool:
        image = integers(LARGEST_STEPS, steps[:1].shape, positive)
        tried = integers(heaviest, weights.shape, positive)
        found = sums(layer, torch.empty_like(steps).copy_(image), torch.empty_like(weights).copy_(tried))
        return bool((found == sums(layer, image, tried)).all())

    return trial(positive=False) and trial(positive=True)


def fits_float32(layer: Conv2D | Linear, source: TensorProof) -> bool:
    """Equation (4), from the actual weights."""
    farthest = max(abs(source.minimum - source.zero_point), abs(source.maximum - source.zero_point))
    magnitudes = np.abs(layer.weights.reshape(len(layer.weights), -1).astype(np.int64)).sum(axis=1)
    return bool((magnitudes * farthest <= FLOAT32_INTEGERS).all())


def _float64_sums(layer: Conv2D | Linear, steps: torch.Tensor) -> torch.Tensor:
    """Exact: every partial sum is an integer below 2**53, and no library has a fast algorithm for this type."""
    return sums(layer, steps.double(), as_tensor(layer.weights).to(steps.device, torch.float64))


# --- the other layers, one short function a kind ----------------------------------------------------------------------


@singledispatch
def operate(layer: Layer, sources: Sources, *steps: torch.Tensor) -> torch.Tensor:
    """A layer without weights: from the steps of what it reads to its own."""
    raise TypeError(f"no operator for {layer.kind}")


@operate.register
def _(layer: InputQuantization, sources: Sources, images: torch.Tensor) -> torch.Tensor:
    grey = images.permute(0, 3, 1, 2)
    return _requantized(grey.float(), grey, layer.requantization, layer.output)


@operate.register
def _(layer: Add, sources: Sources, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    first, second = layer.multiplier.tolist()
    unit = 0.5**layer.shift
    path = a * (first * unit) + b * (second * unit)
    product = a.detach().long() * first + b.detach().long() * second
    return _shifted(path, product, layer.shift, layer.output)


@operate.register
def _(layer: Concat, sources: Sources, *steps: torch.Tensor) -> torch.Tensor:
    return torch.cat(steps, dim=1)


@operate.register
def _(layer: MaxPool, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    lowest = INTEGER_RANGES[sources[0].dtype][0] - sources[0].zero_point
    return max_pool2d(padded(steps, layer.padding, lowest), layer.kernel, layer.strides)


@operate.register
def _(layer: AveragePool, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    total = _pool_sums(padded(steps.double(), layer.padding, 0), layer)
    ones = torch.ones((1, 1, *steps.shape[2:]), dtype=torch.float64, device=steps.device)
    count = _pool_sums(padded(ones, layer.padding, float(layer.count_include_pad)), layer)
    exact = (2 * total.detach().long() + count.long()) // (2 * count.long())
    return straight_through((total / count).float(), exact)


def _pool_sums(padded: torch.Tensor, layer: AveragePool) -> torch.Tensor:
    return avg_pool2d(padded, layer.kernel, layer.strides, divisor_override=1)


@operate.register
def _(layer: GlobalAveragePool, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    total = steps.sum(dim=(2, 3), dtype=torch.float64)
    return _requantized(total.float(), total.detach(), layer.requantization, layer.output)


@operate.register
def _(layer: Clamp, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    return steps.clamp(layer.minimum - sources[0].zero_point, layer.maximum - sources[0].zero_point)


@operate.register
def _(layer: Pad, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    return padded(steps, layer.padding, 0)


@operate.register
def _(layer: Flatten, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    return (steps.permute(0, 2, 3, 1) if steps.ndim == 4 else steps).reshape(len(steps), -1)


@operate.register
def _(layer: Requantize, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    return _requantized(steps, steps.detach(), layer.requantization, layer.output)


@operate.register
def _(layer: LookupTable, sources: Sources, steps: torch.Tensor) -> torch.Tensor:
    entries = steps.detach().long() + (sources[0].zero_point - INTEGER_RANGES[sources[0].dtype][0])
    table = as_tensor(layer.table).to(steps.device, torch.float32)
    slopes = as_tensor(table_slopes(layer.table)).to(steps.device)
    return straight_through(steps * slopes[entries], table[entries] - layer.output.zero_point)


def table_slopes(table: np.ndarray) -> np.ndarray:
    """The slope at each entry, float32: the mean over `TABLE_REACH` entries to both sides, or as many as there are."""
    index = np.arange(len(table))
    before, after = np.maximum(index - TABLE_REACH, 0), np.minimum(index + TABLE_REACH, len(table) - 1)
    return ((table[after] - table[before]) / (after - before)).astype(np.float32)
