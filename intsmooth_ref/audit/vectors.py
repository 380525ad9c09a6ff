"""Known-answer vectors: what whoever computes the same elsewhere, in C or Verilog, has to arrive at.

Five sets, each a file; `VECTORS.md` says what their fields mean:

    philox           blocks of the generator
    noise            samples of noise, from thresholds that are given
    requantization   every rounding mode, with its ties and its extremes
    operators        every kind of layer, on small shapes
    network          a model, layer by layer

Everything is computed by the specifications, `philox.philox4x32`, `sampler.sample`, `fixedpoint.requantize` and the
reference engine, from inputs that are the same to the bit on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..engine.reference import operate
from ..errors import VectorFormatError
from ..fixedpoint import (
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ROUNDING_MODES,
    SHIFT_MAX,
    SHIFT_MIN,
    accumulator_range,
    requantize,
)
from ..model.fingerprint import fingerprint, tensor_sha256
from ..model.graph import IntegerModel
from ..model.layers import (
    INTEGER_RANGES,
    Add,
    ArgMax,
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
    Reshape,
    Softmax,
    flat_fields,
)
from ..model.proof import NOISY_PIXEL_LIMIT, TensorProof, prove
from ..noise.distributions import RESOLUTION_BITS, IntegerDistribution, discrete_gaussian, discrete_laplace
from ..noise.philox import WORD_MASK, philox4x32, philox4x32_array
from ..noise.sampler import DIGITS, DIGITS_PER_BLOCK, LEVELS_PER_STAGE, noise_table, sample
from .vector_format import Case, Digest, Value, VectorSet

#: Purposes of Philox and a stage of the sampler that nothing else uses.
CONTENTS, PICTURES, PICTURE_NOISE = (1 << 31) + 16, (1 << 31) + 17, (1 << 20) + 16
SEED = 1

#: Of the noise on pictures that are made here: a quarter of full scale.
PICTURE_SIGMA = Fraction(255, 4)

PRIMITIVES = ("philox", "noise", "requantization", "operators")
NETWORK = "network"


@dataclass(frozen=True, eq=False)
class Known:
    """A case, and what its results would be if they were rounded by another mode.

    Attributes:
        tensors: the results, those that the case states by their hash included.
        alternatives: of a result's name: each other rounding mode, and what it gives.
    """

    case: Case
    tensors: Mapping[str, np.ndarray]
    alternatives: Callable[[str], Iterable[tuple[str, np.ndarray]]] = lambda name: ()


def vector_set(name: str, known: Sequence[Known]) -> VectorSet:
    """The set as a file holds it."""
    return VectorSet(name, tuple(each.case for each in known))


def known_answers(name: str) -> list[Known]:
    """The cases of a set that depends on no model.

    Raises:
        VectorFormatError: if there is no set of that name.
    """
    if name not in PRIMITIVES:
        raise VectorFormatError(f"set {name!r}: expected one of {', '.join((*PRIMITIVES, NETWORK))}")
    makers = {"philox": _philox, "noise": _noise, "requantization": _requantization, "operators": _operators}
    return list(makers[name]())


def _known(name: str, given: Mapping[str, Value], **results: np.ndarray) -> Known:
    return Known(Case(name, given, results), results)


def _words(count: int, number: int, purpose: int = CONTENTS) -> np.ndarray:
    """Random words that the numbers name: uint32 `(count,)`."""
    return philox4x32_array(np.arange(-(-count // 4)), number, 0, purpose, SEED).ravel()[:count]


# --- Philox -----------------------------------------------------------------------------------------------------------

#: Those of Random123 (`tests/kat_vectors`): zeros, all ones, digits of pi; then addresses as the sampler forms them.
_BLOCKS = {
    "zeros": ((0, 0, 0, 0), (0, 0)),
    "ones": ((WORD_MASK,) * 4, (WORD_MASK,) * 2),
    "pi": ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
    "first-selection-sample": ((0, 0, 0, 0), (7, 0)),
    "estimation-level-1": ((63, 99999, 12, LEVELS_PER_STAGE + 1), (0x89ABCDEF, 0x01234567)),
    "prediction-level-2": ((3071, 1, 4999, 2 * LEVELS_PER_STAGE + 2), (WORD_MASK, 0)),
}


def _philox() -> Iterator[Known]:
    for name, (counter, key) in _BLOCKS.items():
        words = philox4x32(counter, key)
        given = {"counter": np.array(counter, np.uint32), "key": np.array(key, np.uint32)}
        yield _known(name, given, words=np.array(words, np.uint32))


# --- noise ------------------------------------------------------------------------------------------------------------


def _noise() -> Iterator[Known]:
    gaussian, wide = discrete_gaussian(Fraction(1)), discrete_gaussian(PICTURE_SIGMA)
    yield _noise_case("gaussian-1", gaussian, seed=7, image=0, stage=0, first=0, shape=(16, 1000))
    yield _noise_case("gaussian-1-last-addresses", gaussian, seed=2**64 - 1, image=2**32 - 1, stage=2,
                      first=2**32 - 2, shape=(2, 17))  # fmt: skip
    yield _noise_case("gaussian-255-4", wide, seed=2026, image=3, stage=1, first=99990, shape=(10, 192))
    yield _noise_case("laplace-3-2", discrete_laplace(Fraction(3, 2)), seed=11, image=1, stage=1, first=0,
                      shape=(4, 64))  # fmt: skip
    drawn = _drawn(seed=5, image=2, stage=1, sample_number=4, element=9)
    near = tuple(drawn + step for step in (-(1 << 32), -1, 0, 1, 1 << 32))
    ties = IntegerDistribution("thresholds_at_a_draw", Fraction(1), -2, near, Fraction(0))
    yield _noise_case("every-digit-is-needed", ties, seed=5, image=2, stage=1, first=3, shape=(3, 17))


def _drawn(seed: int, image: int, stage: int, sample_number: int, element: int) -> int:
    """The 256 bits of U at an address, equation (1) of `noise/sampler.py`."""
    digits: list[int] = []
    for level, block, taken in (
        (0, element // DIGITS_PER_BLOCK, slice(element % DIGITS_PER_BLOCK, element % DIGITS_PER_BLOCK + 1)),
        (1, element, slice(0, 8)),
        (2, element, slice(0, DIGITS - 9)),
    ):
        counter = (block, sample_number, image, LEVELS_PER_STAGE * stage + level)
        words = philox4x32(counter, (seed & WORD_MASK, seed >> 32))
        digits += [half for word in words for half in (word & 0xFFFF, word >> 16)][taken]
    return sum(digit << (16 * (DIGITS - 1 - number)) for number, digit in enumerate(digits))


def _noise_case(
    name: str, law: IntegerDistribution, seed: int, image: int, stage: int, first: int, shape: tuple[int, int]
) -> Known:
    count, size = shape
    thresholds = b"".join(each.to_bytes(RESOLUTION_BITS // 8, "big") for each in law.thresholds)
    given: dict[str, Value] = {
        "law": law.name,
        "parameter": f"{law.parameter.numerator}/{law.parameter.denominator}",
        "minimum": np.array(law.minimum, np.int32),
        "thresholds": np.frombuffer(thresholds, ">u2").reshape(-1, DIGITS).astype(np.uint16),
        "seed": np.array(seed, np.uint64),
        "image": np.array(image, np.uint32),
        "stage": np.array(stage, np.uint32),
        "first_sample": np.array(first, np.uint32),
    }
    return _known(name, given, noise=sample(noise_table(law), seed, image, stage, first, count, size))


# --- requantization ---------------------------------------------------------------------------------------------------

_MULTIPLIERS = (MULTIPLIER_MIN, MULTIPLIER_MIN + 1, 1518500250, 1717986919, MULTIPLIER_MAX - 1, MULTIPLIER_MAX)
_SHIFTS = (SHIFT_MIN, 2, 15, 29, 30, 31, 32, 33, 34, 40, 47, 60, 61, SHIFT_MAX)


def _requantization() -> Iterator[Known]:
    for mode in ROUNDING_MODES:
        for shift in _SHIFTS:
            pairs = [(a, m) for m in _MULTIPLIERS for a in _accumulators(m, shift, mode)]
            accumulator, multiplier = np.array(pairs, np.int64).T
            yield _requantization_case(f"{mode}-shift-{shift}", accumulator, multiplier, shift, mode)


def _accumulators(multiplier: int, shift: int, mode: str) -> list[int]:
    """Zero, both ends of what the mode takes, ties and what is next to them, and some at random."""
    low, high = accumulator_range(shift, mode)
    chosen = {0, 1, -1, low, low + 1, high - 1, high}
    for tie in _ties(multiplier, shift):
        chosen |= {tie - 1, tie, tie + 1, -tie - 1, -tie, -tie + 1}
    chosen |= {int(word) * (high - low) // WORD_MASK + low for word in _words(6, shift)}
    return sorted(each for each in chosen if low <= each <= high)


def _ties(multiplier: int, shift: int) -> list[int]:
    """Accumulators whose product with the multiplier lies halfway between two multiples of `2**shift`.

    With `multiplier = odd * 2**k` these are the odd multiples of `2**(shift - 1 - k)`.
    """
    twos = (multiplier & -multiplier).bit_length() - 1
    if shift - 1 < twos:
        return []
    step = 1 << (shift - 1 - twos)
    return [step, 3 * step, 5 * step, 1001 * step]


def _requantization_case(
    name: str, accumulator: np.ndarray, multiplier: np.ndarray, shift: int, mode: str
) -> Known:
    shifts = np.full_like(accumulator, shift)
    results = {"rounded": requantize(accumulator, multiplier, shifts, mode)}
    given: dict[str, Value] = {
        "rounding": mode,
        "accumulator": accumulator.astype(np.int32),
        "multiplier": multiplier.astype(np.int32),
        "shift": shifts.astype(np.int32),
    }

    def alternatives(_: str) -> Iterator[tuple[str, np.ndarray]]:
        for other in ROUNDING_MODES:
            if other != mode:
                yield other, requantize(accumulator, multiplier, shifts, other)

    return Known(Case(name, given, results), results, alternatives)


# --- operators --------------------------------------------------------------------------------------------------------

#: The ratio 1: an image's grey levels are the integers of its quantization.
_IDENTITY = Requantization.of((1 << 30, 30))


def _quantization(
    dtype: str, zero_point: int, minimum: int | None = None, maximum: int | None = None
) -> Quantization:
    low, high = INTEGER_RANGES[dtype]
    low, high = low if minimum is None else minimum, high if maximum is None else maximum
    return Quantization(dtype, Fraction(1, 50), zero_point, low, high)


def _image_layers(shape: tuple[int, int, int], dtype: str = "uint8", zero_point: int = 3) -> list[Layer]:
    output = _quantization(dtype, zero_point)
    return [InputQuantization(name="image", shape=shape, requantization=_IDENTITY, output=output)]


def _weights(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Random weights, the first -128 and the last 127."""
    weights = (_words(prod(shape), number) & 0xFF).astype(np.int64) - 128
    weights[0], weights[-1] = -128, 127
    return weights.astype(np.int8).reshape(shape)


def _bias(channels: int, number: int) -> np.ndarray:
    return ((_words(channels, number) & 0x3FFF).astype(np.int64) - 0x2000).astype(np.int32)


#: For each channel another multiplier; the first, a power of two, makes ties frequent.
_CHANNEL_MULTIPLIERS = (1 << 30, 1518500250, MULTIPLIER_MAX, 1288490189)


def _requantization_of(channels: int, shift: int, mode: str = "single_rounding") -> Requantization:
    pairs = [(_CHANNEL_MULTIPLIERS[c % 4], shift + c % 2) for c in range(channels)]
    return Requantization.of(*pairs, rounding=mode)


def _operators() -> Iterator[Known]:
    """A case for every kind of layer, and for what it may be set to."""
    for name, layers in operator_models():
        yield _operator_case(name, layers)


def operator_models() -> Iterator[tuple[str, list[Layer]]]:
    """The name of each case, and a beginning of a model, the last layer of which is the operator."""
    last: dict[str, Any] = {"name": "operator", "inputs": ("image",)}
    for mode in ROUNDING_MODES:
        to_half = Requantization.of((1 << 30, 31), rounding=mode)
        yield f"input-quantization-{mode}", [InputQuantization(
            name="operator", shape=(4, 5, 2), requantization=to_half, output=_quantization("int8", -7),
        )]  # fmt: skip
        yield f"requantize-{mode}", [
            *_image_layers((4, 4, 3)),
            Requantize(**last, requantization=_requantization_of(3, 32, mode), output=_quantization("int8", -100)),
        ]
        yield f"conv2d-{mode}", [*_image_layers((5, 4, 3)), Conv2D(
            **last, weights=_weights((4, 3, 3, 3), 1), bias=_bias(4, 2), padding=(1, 1, 1, 1),
            requantization=_requantization_of(4, 38, mode), output=_quantization("uint8", 100),
        )]  # fmt: skip
        yield f"linear-{mode}", [*_flat_layers((2, 3, 4)), Linear(
            **{**last, "inputs": ("flat",)}, weights=_weights((5, 24), 3), bias=_bias(5, 4),
            requantization=_requantization_of(5, 38, mode), output=_quantization("int8", 5, minimum=-100, maximum=99),
        )]  # fmt: skip
        yield f"global-average-pool-{mode}", [*_image_layers((4, 6, 5)), GlobalAveragePool(
            **last, requantization=Requantization.of((1431655765, 35), rounding=mode), output=_quantization("uint8", 1),
        )]  # fmt: skip
    yield from _convolutions(last)
    yield "linear-accumulators", [*_flat_layers((2, 2, 5)), Linear(
        **{**last, "inputs": ("flat",)}, weights=_weights((3, 20), 5), bias=_bias(3, 6),
        output=Quantization.full_range("int32", Fraction(1, 50), 0),
    )]  # fmt: skip
    for dtype, zero_point in (("uint8", 130), ("int8", -128)):
        yield from _operators_on(dtype, zero_point, last)


def _flat_layers(shape: tuple[int, int, int]) -> list[Layer]:
    return [*_image_layers(shape), Flatten(name="flat", inputs=("image",))]


def _convolutions(last: Mapping[str, Any]) -> Iterator[tuple[str, list[Layer]]]:
    """What `Conv2D` may be set to besides the rounding mode."""
    settings: Mapping[str, tuple[tuple[int, ...], Mapping[str, Any]]] = {
        "1x1": ((4, 1, 1, 4), {}),
        "one-multiplier": ((4, 3, 3, 4), {"requantization": _requantization_of(1, 38)}),
        "relu": ((4, 3, 3, 4), {"output": _quantization("uint8", 7, minimum=7, maximum=180)}),
        "strides-and-one-sided-padding": ((3, 3, 2, 4), {"strides": (2, 3), "padding": (0, 2, 1, 0)}),
        "dilation": ((3, 2, 3, 4), {"dilation": (3, 2), "padding": (2, 1, 2, 2)}),
        "groups": ((6, 3, 3, 2), {"groups": 2, "padding": (1, 1, 1, 1)}),
        "depthwise": ((8, 3, 3, 1), {"groups": 4}),
        "accumulators": ((3, 3, 3, 4), {
            "requantization": None, "output": Quantization.full_range("int32", Fraction(1, 50), 0),
        }),
    }  # fmt: skip
    for number, (name, (shape, fields)) in enumerate(settings.items(), start=10):
        usual = {"requantization": _requantization_of(shape[0], 38), "output": _quantization("int8", -20)}
        layer = Conv2D(**last, weights=_weights(shape, number), bias=_bias(shape[0], number), **{**usual, **fields})
        yield f"conv2d-{name}", [*_image_layers((7, 6, 4)), layer]
    signed = Conv2D(**last, weights=_weights((2, 3, 3, 2), 30), bias=_bias(2, 31), padding=(2, 2, 2, 2),
                    requantization=_requantization_of(2, 38), output=_quantization("uint8", 128))  # fmt: skip
    yield "conv2d-int8", [*_image_layers((4, 4, 2), "int8", -77), signed]


def _operators_on(dtype: str, zero_point: int, last: Mapping[str, Any]) -> Iterator[tuple[str, list[Layer]]]:
    """The operators that are the same for both dtypes, on one of them."""
    image = _image_layers((5, 4, 3), dtype, zero_point)
    low, high = INTEGER_RANGES[dtype]
    table = ((_words(256, 40) & 0xFF).astype(np.int64) + low).astype(np.int16)
    other = LookupTable(name="other", inputs=("image",), table=table, output=_quantization(dtype, zero_point))
    both = {**last, "inputs": ("other", "image")}
    sevenths = _quantization("uint8", 9, minimum=9)
    multiplier = np.array([1 << 20, 3 << 19], np.int32)
    yield f"add-{dtype}", [*image, other, Add(**both, multiplier=multiplier, shift=21, output=sevenths)]
    yield f"concat-{dtype}", [*image, other, Concat(**both)]
    window: dict[str, Any] = {"kernel": (3, 2), "strides": (2, 1), "padding": (1, 2, 0, 1)}
    yield f"max-pool-{dtype}", [*image, MaxPool(**last, **window)]
    for counted in (False, True):
        pool = AveragePool(**last, **window, count_include_pad=counted)
        yield f"average-pool-{'with' if counted else 'without'}-padding-{dtype}", [*image, pool]
    yield f"clamp-{dtype}", [*image, Clamp(**last, minimum=low + 40, maximum=high - 90)]
    yield f"pad-{dtype}", [*image, Pad(**last, padding=(1, 0, 2, 3))]
    yield f"flatten-{dtype}", [*image, Flatten(**last)]
    yield f"reshape-{dtype}", [*image, Reshape(**last, shape=(4, 15))]
    opposite = _quantization("int8" if dtype == "uint8" else "uint8", 0)
    shifted = (table.astype(np.int64) - low + INTEGER_RANGES[opposite.dtype][0]).astype(np.int16)
    yield f"lookup-table-{dtype}", [*image, LookupTable(**last, table=shifted, output=opposite)]
    terms = np.array([(1 << 20) * 7**k // 8**k for k in range(256)], np.int32)
    shares = Quantization.full_range(dtype, Fraction(1, 256), low)
    yield f"softmax-{dtype}", [*image, Softmax(**last, table=terms, output=shares)]
    tie = np.full(256, low, np.int16)
    tie[128:] = high
    halves = LookupTable(name="halves", inputs=("image",), table=tie, output=_quantization(dtype, zero_point))
    flat = Flatten(name="flat", inputs=("halves",))
    yield f"arg-max-of-a-tie-{dtype}", [*image, halves, flat, ArgMax(**{**last, "inputs": ("flat",)})]


def operator_image(layers: Sequence[Layer], number: int) -> np.ndarray:
    """Grey levels of the whole range; for an operator on noisy images also what lies far outside of it."""
    first = layers[0]
    assert isinstance(first, InputQuantization)
    size = prod(first.shape)
    levels = (_words(size, number) & 0xFF).astype(np.int64) + INTEGER_RANGES[first.output.dtype][0]
    if len(layers) == 1:
        levels[:8] = [-NOISY_PIXEL_LIMIT, NOISY_PIXEL_LIMIT, -1, 1, -3, 3, 255, -255]
    return levels.astype(np.int32).reshape(1, *first.shape)


def _operator_case(name: str, layers: Sequence[Layer]) -> Known:
    proofs = prove(layers, complete=False)
    layer = layers[-1]
    image = operator_image(layers, len(name))
    tensors: dict[str, np.ndarray] = {}
    for each in layers:
        sources = [proofs[source] for source in each.inputs]
        inputs = [tensors[source] for source in each.inputs] or [image]
        tensors[each.name] = operate(each, sources, *inputs)
    given: dict[str, Value] = {"kind": layer.kind}
    for number, tensor in enumerate(inputs):
        given[f"input{number}"] = tensor[0]
    for number, source in enumerate(sources):
        given[f"input{number}.zero_point"] = np.array(source.zero_point, np.int32)
    given.update(_parameters(layer))
    results = {"output": np.asarray(tensors[layer.name][0])}

    def alternatives(_: str) -> Iterator[tuple[str, np.ndarray]]:
        for mode, output in rounded_otherwise(layer, sources, inputs):
            yield mode, output[0]

    return Known(Case(name, given, results), results, alternatives)


def _parameters(layer: Layer) -> dict[str, Value]:
    """The layer's fields that decide its integers: neither names nor the scales by which integers stand for reals."""
    parameters: dict[str, Value] = {}
    for name, value in flat_fields(layer):
        if isinstance(value, np.ndarray):
            parameters[name] = value
        elif isinstance(value, (int, tuple)) and name != "inputs":
            parameters[name] = np.array(value, np.int32)
        elif isinstance(value, str) and name != "name":
            parameters[name] = value
    return parameters


def rounded_otherwise(
    layer: Layer, sources: Sequence[TensorProof], inputs: Sequence[np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The layer's output `(N, ...)` in each rounding mode but its own; nothing if it does not requantize."""
    requantization = getattr(layer, "requantization", None)
    if requantization is None:
        return
    for mode in ROUNDING_MODES:
        if mode != requantization.rounding:
            other = replace(layer, requantization=replace(requantization, rounding=mode))  # type: ignore[call-arg]
            yield mode, operate(other, sources, *inputs)


# --- a network --------------------------------------------------------------------------------------------------------


def network_images(model: IntegerModel, count: int, real: np.ndarray | None) -> np.ndarray:
    """Images for a model: int32 `(count, H, W, C)`; first those of its known answers, then random ones under noise."""
    shape = model.input.shape
    known = (np.zeros((0, *shape), np.int32) if real is None else real)[:count]
    missing = range(len(known), count)
    law, size = noise_table(discrete_gaussian(PICTURE_SIGMA)), prod(shape)
    made = [
        (_words(size, number, PICTURES) & 0xFF).astype(np.int32)
        + sample(law, SEED, number, PICTURE_NOISE, 0, 1, size)[0]
        for number in missing
    ]
    return np.concatenate([known, np.array(made, np.int32).reshape(len(missing), *shape)])


def network_case(model: IntegerModel, name: str, image: np.ndarray, tensors: bool) -> Known:
    """One image, int32 `(H, W, C)`, through a model: each layer's output, or its hash where `tensors` is false."""
    outputs: dict[str, np.ndarray] = {}
    for layer in model.layers:
        inputs = [outputs[source] for source in layer.inputs] or [image[np.newaxis]]
        outputs[layer.name] = operate(layer, [model.proofs[source] for source in layer.inputs], *inputs)

    def alternatives(layer_name: str) -> Iterator[tuple[str, np.ndarray]]:
        layer = next(each for each in model.layers if each.name == layer_name)
        inputs = [outputs[source] for source in layer.inputs] or [image[np.newaxis]]
        for mode, output in rounded_otherwise(layer, [model.proofs[source] for source in layer.inputs], inputs):
            yield mode, output[0]

    known = {layer: np.asarray(output[0]) for layer, output in outputs.items()}
    results: dict[str, Value] = dict(known)
    if not tensors:
        results = {layer: Digest(tensor_sha256(output)) for layer, output in known.items()}
    given: dict[str, Value] = {"fingerprint": fingerprint(model), "image": image}
    return Known(Case(name, given, results), known, alternatives)


def network_answers(model: IntegerModel, images: np.ndarray, tensors: bool) -> list[Known]:
    """The cases `image-0`, `image-1`, ..."""
    return [network_case(model, f"image-{number}", image, tensors) for number, image in enumerate(images)]
