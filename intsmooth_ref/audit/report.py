"""The audit of one model: everything that is proven or found, as data, and as sentences for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np

from ..engine.reference import ReferenceModel, operate
from ..errors import ParameterError
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..model.layers import INTEGER_RANGES, Add, ArgMax, Conv2D, Layer, Linear, LookupTable, Quantization, Softmax
from .arithmetic import ALL_PIXELS, Accumulators, LayerRange, bare, bits, can_win, extreme_image, layer_ranges
from .floating_point import CompiledPath, PathSearch
from .rounding import ModeDifference, Rounding, rounding_of, tied_sums
from .saturation import SAT16_MAX, SAT16_MIN, PairAudit, Witness, pair_audits

#: The version of the record that `as_record` gives.
VERSION = 1

#: Accumulators that other hardware has, in bits.
WIDTHS = (16, 20, 24)

#: How many channels or classes a sentence names, and the width of the column of topics.
NAMED, TOPIC_WIDTH = 8, 14


@dataclass(frozen=True)
class Extreme:
    """An image that takes an accumulator to an end of the layer's interval, computed by the reference engine."""

    value: int
    place: tuple[int, ...]
    image: tuple[int, ...]


@dataclass(frozen=True)
class AccumulatorAudit:
    """What a layer's accumulators can hold.

    Attributes:
        low, high: the final value, over all channels.
        partial_low, partial_high: any partial sum, in any order of addition.
        bits, partial_bits: in two's complement.
        attained: whether `low` and `high` occur under some image; False where that is not shown.
        channels: the interval of each channel.
        extremes: images that attain `low` and `high`, for convolutions and linear layers that hang on pixels directly.
    """

    low: int
    high: int
    partial_low: int
    partial_high: int
    bits: int
    partial_bits: int
    attained: bool
    channels: tuple[tuple[int, int], ...]
    extremes: tuple[Extreme, ...] = ()


@dataclass(frozen=True)
class ClampAudit:
    """In how many of a layer's channels values can lie below and above its clamp, and in how many they always do."""

    channels: int
    below: int
    always_below: int
    above: int
    always_above: int


@dataclass(frozen=True)
class LayerAudit:
    """What is known of one layer.

    Attributes:
        low, high: of its output.
        constant: channels that always hold the same value, and that value. Where a tensor was flattened, channels
            before that.
        rows: how many channels were looked at.
        accumulators, clamp, rounding, pairs: None where there is none.
        tied_sums: of an `Add`, how many pairs of values round from a tie, and how many pairs there are.
        unread: of a table, first and last entry of each part that is never read.
        losing: of an `ArgMax`, or the last layer, classes that can never win.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    low: int
    high: int
    constant: tuple[tuple[int, int], ...]
    rows: int
    accumulators: AccumulatorAudit | None = None
    clamp: ClampAudit | None = None
    rounding: Rounding | None = None
    tied_sums: tuple[int, int] | None = None
    pairs: PairAudit | None = None
    unread: tuple[tuple[int, int], ...] | None = None
    losing: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Audit:
    """What is known of a model.

    Attributes:
        pixels: the grey levels of the images that all of it holds for.
        climb: how many images hill climbing was allowed in a layer.
        path: what is known of the compiled code.
    """

    version: int
    fingerprint: str
    classes: int
    class_names: tuple[str, ...]
    provenance: str
    pixels: tuple[int, int]
    images: int
    climb: int
    layers: tuple[LayerAudit, ...]
    path: CompiledPath


def audit(
    model: IntegerModel, images: np.ndarray, *, pixels: tuple[int, int] = ALL_PIXELS, climb: int = 0,
    engine: str = "auto", isa: str | None = None, done: Callable[[], None] = lambda: None,
) -> Audit:  # fmt: skip
    """Audit a model.

    Args:
        images: int32 `(N, H, W, C)`, noisy images in which saturating pairs are looked for; those outside `pixels` are
            clipped to it.
        pixels: the grey levels of the images that the audit is about, both ends included.
        climb: how many images hill climbing may try in a layer.
        engine, isa: whose compiled code is searched for floating point.
        done: called after each image.

    Raises:
        ParameterError: if `pixels` leaves what an engine accepts, or the model cannot be compiled here.
    """
    if not ALL_PIXELS[0] <= pixels[0] <= pixels[1] <= ALL_PIXELS[1]:
        raise ParameterError(f"pixels {pixels[0]}..{pixels[1]}: expected ascending, {ALL_PIXELS[0]}..{ALL_PIXELS[1]}")
    with PathSearch(model, engine, isa) as search:
        ranges = layer_ranges(model, pixels)
        named = [(f"image {index}", image) for index, image in enumerate(np.clip(images, *pixels).astype(np.int32))]
        pairs = pair_audits(model, ranges, named, climb, done)
        layers = tuple(_audited(model, layer, ranges, pairs.get(layer.name)) for layer in model.layers)
        return Audit(
            VERSION, fingerprint(model), model.classes, model.class_names, model.provenance, pixels, len(images), climb,
            layers, search.result(),
        )  # fmt: skip


def as_record(found: Audit) -> dict[str, Any]:
    """The audit as JSON can hold it."""
    return asdict(found)


def _audited(
    model: IntegerModel, layer: Layer, ranges: Mapping[str, LayerRange], pairs: PairAudit | None
) -> LayerAudit:
    proof, found = model.proofs[layer.name], ranges[layer.name]
    values, accumulators = found.values, found.accumulators
    constant = np.flatnonzero(values.low == values.high)
    requantization = getattr(layer, "requantization", None)
    return LayerAudit(
        layer.name, layer.kind, proof.shape, proof.dtype, int(values.low.min()), int(values.high.max()),
        tuple(zip(constant.tolist(), values.low[constant].tolist())), len(values.low),
        None if accumulators is None else _accumulators(model, layer, ranges, accumulators),
        _clamp(layer, found),
        None if requantization is None or accumulators is None
        else rounding_of(requantization, _output(layer), accumulators.low.tolist(), accumulators.high.tolist()),
        _tied_sums(model, layer, ranges), pairs, _unread(model, layer, ranges), _losing(model, layer, ranges),
    )  # fmt: skip


def _output(layer: Layer) -> Quantization:
    output: Quantization = getattr(layer, "output")
    return output


def _accumulators(
    model: IntegerModel, layer: Layer, ranges: Mapping[str, LayerRange], found: Accumulators
) -> AccumulatorAudit:
    extremes: tuple[Extreme, ...] = ()
    if found.attained and isinstance(layer, (Conv2D, Linear)):
        ends = ((int(found.low.argmin()), False), (int(found.high.argmax()), True))
        extremes = tuple(_extreme(model, layer, ranges, *end) for end in ends)
        if tuple(each.value for each in extremes) != found.interval:
            raise AssertionError(f"layer {layer.name!r}: {found.interval} is not what the reference engine attains")
    return AccumulatorAudit(
        *found.interval, *found.partial_interval, bits(*found.interval), bits(*found.partial_interval), found.attained,
        tuple(zip(found.low.tolist(), found.high.tolist())), extremes,
    )  # fmt: skip


def _extreme(
    model: IntegerModel, layer: Conv2D | Linear, ranges: Mapping[str, LayerRange], channel: int, highest: bool
) -> Extreme:
    image, place = extreme_image(model, ranges, layer, channel, highest)
    source = layer.inputs[0]
    tensor = next(tensor for name, tensor in ReferenceModel(model).trace(image[np.newaxis]) if name == source)
    accumulators = operate(bare(layer), [model.proofs[source]], tensor)
    return Extreme(int(accumulators[0][place]), place, tuple(image.reshape(-1).tolist()))


def _clamp(layer: Layer, found: LayerRange) -> ClampAudit | None:
    if found.unclamped is None:
        return None
    low, high = found.unclamped
    limits = layer if hasattr(layer, "minimum") else _output(layer)
    minimum, maximum = getattr(limits, "minimum"), getattr(limits, "maximum")
    counts = (low < minimum, high < minimum, high > maximum, low > maximum)
    return ClampAudit(len(low), *(int(each.sum()) for each in counts))


def _tied_sums(model: IntegerModel, layer: Layer, ranges: Mapping[str, LayerRange]) -> tuple[int, int] | None:
    if not isinstance(layer, Add):
        return None
    sources = [model.proofs[name] for name in layer.inputs]
    values = [
        np.flatnonzero(ranges[name].values.bytes_.any(axis=0)) + INTEGER_RANGES[source.dtype][0]
        for name, source in zip(layer.inputs, sources)
    ]
    return tied_sums(layer, [source.zero_point for source in sources], values)


def _unread(
    model: IntegerModel, layer: Layer, ranges: Mapping[str, LayerRange]
) -> tuple[tuple[int, int], ...] | None:
    """Of a `Softmax`, entries beyond the largest distance of two scores."""
    if not isinstance(layer, (LookupTable, Softmax)):
        return None
    values = ranges[layer.inputs[0]].values
    if isinstance(layer, Softmax):
        largest = int(values.high.max() - values.low.min())
        return ((largest + 1, 255),) if largest < 255 else ()
    unread = ~values.bytes_.any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], unread, [False]]).astype(np.int8)))
    return tuple((int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2]))


def _losing(model: IntegerModel, layer: Layer, ranges: Mapping[str, LayerRange]) -> tuple[int, ...] | None:
    if layer is not model.output:
        return None
    scores = layer.inputs[0] if isinstance(layer, ArgMax) else layer.name
    return tuple(np.flatnonzero(~can_win(model.proofs[scores], ranges[scores].values)).tolist())


# --- sentences --------------------------------------------------------------------------------------------------------


def heading(found: Audit) -> list[tuple[str, str]]:
    """What the audit is about, and what is known of the model as a whole."""
    low, high = found.pixels
    names = f": {', '.join(found.class_names)}" if found.class_names else ""
    return [
        ("fingerprint", found.fingerprint),
        ("classes", f"{found.classes}{names}"),
        ("provenance", found.provenance or "not recorded"),
        ("holds for", f"every image whose noisy pixels lie in {low} .. {high}"),
        ("searched", f"{found.images} images, and up to {found.climb} by climbing in a layer"),
        ("compiled", _path(found.path)),
    ]


def _path(path: CompiledPath) -> str:
    if not path.kernels:
        engine = "the reference engine" if path.engine == "reference" else "the kernels as plain Python"
        return f"nothing: {engine} runs here"
    what = f"{path.lines} lines of LLVM IR of {len(path.kernels)} functions, instruction set {path.isa}"
    if path.found:
        return f"FLOATING POINT in {len(path.found)} of {what}; first: {path.found[0]}"
    return f"no floating-point type or instruction in {what}"


def sentences(layer: LayerAudit) -> Iterator[tuple[str, str]]:
    """What is known of a layer: topic and sentence."""
    yield "output", f"{layer.low} .. {layer.high}; {_constant(layer)}"
    if layer.accumulators is not None:
        yield "accumulator", _final(layer.accumulators)
        yield "any order", _partial(layer.accumulators)
    if layer.clamp is not None:
        yield "clamp", f"{_side(layer.clamp, 'below')}; {_side(layer.clamp, 'above')}"
    if layer.rounding is not None:
        yield from _rounding(layer.rounding)
    if layer.tied_sums is not None:
        ties, count = layer.tied_sums
        yield "rounding", f"single; {ties} of {count} pairs of values add up to a tie"
    if layer.pairs is not None:
        yield "pairs", _pairs(layer.pairs)
    if layer.unread is not None:
        entries = ", ".join(f"{first}..{last}" for first, last in layer.unread)
        yield "table", f"entries never read: {entries}" if entries else "every entry may be read"
    if layer.losing is not None:
        yield "classes", f"that can never win: {_some(layer.losing)}" if layer.losing else "each may win, by interval"


def _some(items: Sequence[object]) -> str:
    """The first few of a list."""
    shown = ", ".join(map(str, items[:NAMED]))
    return f"{shown} and {len(items) - NAMED} more" if len(items) > NAMED else shown


def _constant(layer: LayerAudit) -> str:
    if not layer.constant:
        return "no channel is constant"
    channels = _some([f"{channel} (always {value})" for channel, value in layer.constant])
    return f"{len(layer.constant)} of {layer.rows} channels are constant: {channels}"


def _fits(needed: int) -> str:
    enough = next((width for width in WIDTHS if needed <= width), None)
    return f"{needed} bits: more than {WIDTHS[-1]}" if enough is None else f"{needed} bits: {enough} suffice"


def _final(found: AccumulatorAudit) -> str:
    attained = "not shown to be attained"
    if found.extremes:
        attained = f"both ends attained by images, at {found.extremes[0].place} and {found.extremes[1].place}"
    elif found.attained:
        attained = "attained"
    return f"{found.low} .. {found.high}, {attained}; {_fits(found.bits)}; headroom in int32 {32 - found.bits} bits"


def _partial(found: AccumulatorAudit) -> str:
    return f"{found.partial_low} .. {found.partial_high} for partial sums; {_fits(found.partial_bits)}"


def _side(clamp: ClampAudit, side: str) -> str:
    possible, always = getattr(clamp, side), getattr(clamp, f"always_{side}")
    if not possible:
        return f"never {side}"
    return f"{side} in {possible} of {clamp.channels} channels" + (f", always in {always}" if always else "")


def _rounding(found: Rounding) -> Iterator[tuple[str, str]]:
    ties = f"{found.ties} of {found.accumulators} accumulators are ties"
    if not found.ties:
        agree = "all that round the exact quotient once, to nearest, agree"
        ties = f"of {found.accumulators} accumulators none is a tie: {agree}"
    yield "rounding", f"{found.mode}; {ties}"
    for each in found.differences:
        if each.refused:
            yield each.mode, f"cannot be used: {each.refused}"
            continue
        before = "not counted" if each.before is None else f"differs on {each.before}"
        yield each.mode, f"{before} before the clamp, {_after(each)}"


def _after(each: ModeDifference) -> str:
    if each.example is None:
        return "on none after it"
    channel, accumulator, standard, other = each.example
    first = f"first: channel {channel}, {accumulator} gives {standard} and {other}"
    return f"on {each.after} after it, in {each.channels} channels; {first}"


def _pairs(found: PairAudit) -> str:
    interval = f"{found.low} .. {found.high}"
    if not found.possible:
        what = f"none of {found.pairs} can leave {SAT16_MIN} .. {SAT16_MAX} ({interval})"
        return f"{what}: pair-saturating kernels are right"
    possible = f"{found.possible} of {found.pairs} can leave 16 bits ({interval})"
    if found.witness is None:
        return f"possible by interval, no witness found in {found.images} images: {possible}"
    what = "WRONG on pair-saturating kernels" if found.wrong else "SATURATES, but no output was seen to change"
    return (
        f"{what}: {possible}; witness: {_witness(found.witness)};"
        f" {found.wrong} of {found.outputs} outputs wrong in {found.images} images"
    )


def _witness(found: Witness) -> str:
    products = " + ".join(f"{byte}*{weight}" for byte, weight in zip(found.bytes_, found.weights))
    output = "stays" if found.output == found.wrong_output else f"becomes {found.wrong_output}"
    return (
        f"{found.origin}, at {found.place}, taps {found.pair} and {found.pair + 1}: {products} = {found.pair_sum};"
        f" accumulator {found.exact} becomes {found.saturated}, output {found.output} {output}"
    )


def text_lines(found: Audit) -> Iterator[str]:
    """The audit as text, line by line."""
    for topic, sentence in heading(found):
        yield f"{topic:<{TOPIC_WIDTH}} {sentence}"
    for layer in found.layers:
        yield ""
        yield f"{layer.name}  {layer.kind}  {'x'.join(map(str, layer.shape)) or 'class'}  {layer.dtype}"
        for topic, sentence in sentences(layer):
            yield f"    {topic:<{TOPIC_WIDTH}} {sentence}"
