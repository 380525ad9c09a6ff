"""Vector instructions, and nothing else: register tiles of a convolution as Numba intrinsics.

A tile is P output pixels by V vectors of output channels. Its accumulators stay in registers while all taps pass; then
they are rounded, clamped, added to a residual if there is one, and stored. What differs from one instruction set to the
next is how four taps are multiplied and added to a lane (`InstructionSet`); all else is LLVM's generic vector code.

A step of the sum takes four neighbouring input channels x0 .. x3 of a pixel, uint8, and adds x0 w0 + .. + x3 w3 to the
int32 lane of each output channel. Nothing saturates: a lane is exact modulo 2**32, and the proven accumulator fits.

| name       | step of the sum                           | lanes | packed weights of a step and a vector              |
| ---------- | ----------------------------------------- | ----- | -------------------------------------------------- |
| avx512vnni | vpdpbusd                                  | 16    | int8  (lane, tap)                                  |
| avxvnni    | vpdpbusd                                  | 8     | int8  (lane, tap)                                  |
| avx2       | vpmaddwd of taps 0, 2 and of taps 1, 3    | 8     | int16 (tap % 2, lane, tap // 2)                    |
| dotprod    | sdot, of x - 128                          | 4     | int8  (lane, tap)                                  |
| neon       | smlal, tap by tap                         | 4     | int16 (tap, lane)                                  |

`vpmaddubsw`, which would take bytes, saturates its sums of two products and is never used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Sequence

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from ...compilation import kernel

INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
TAPS = 4

#: The int32 words that a vector of L lanes needs for bias, rounding and shift: L times this.
CONSTANT_WORDS = 6
#: How a convolution uses lanes: a dense one has an output channel in each; a depthwise one a channel, or the bytes of
#: four channels that are multiplied one after the other, or the bytes of one channel in up to four rows of the image.
#: The last is the fastest; its name goes on with the window, as `rows_of` writes it.
DENSE, LANES, QUADS, ROWS = "dense", "lanes", "quads", "rows"
MOST_ROWS, MOST_COLUMNS = 4, 5
#: The register-only loop: chains of dependent sums, instructions of each in a round, products of a lane in a round.
PEAK_CHAINS, PEAK_UNROLLED = 12, 4
PEAK_PRODUCTS = PEAK_CHAINS * PEAK_UNROLLED * TAPS
#: What the tile does with its accumulators.
STORE_ACCUMULATORS, STORE_BYTES, STORE_SUM = 0, 1, 2
#: The int32 words of a residual addition.
ADDITION_WORDS = 9


@dataclass(frozen=True)
class InstructionSet:
    """One way to multiply and add.

    Attributes:
        machines: names of the architecture, as LLVM's triples begin.
        features: LLVM's names of what the processor must have; `a|b+c` means a, or both b and c.
        lanes: int32 lanes of a vector.
        tiles: (pixels, vectors) of the tiles of a dense convolution, fewest vectors first.
        lanes_tile, quads_tile: of a depthwise convolution with one, with four channels a lane.
        rows_pixels: how many pixels a tile by rows has, 0 if it is of no use.
        intrinsic: LLVM's name of the instruction, where one is called by name.
        signatures: of the intrinsic: bits and number of lanes of its result and its operands, newest LLVM first.
        flip: added to each byte before it is multiplied (0 or 128: a change of sign).
        at_once: how many steps a vector of a pixel's bytes is good for.
    """

    name: str
    machines: tuple[str, ...]
    features: frozenset[str]
    lanes: int
    tiles: tuple[tuple[int, int], ...]
    lanes_tile: tuple[int, int]
    quads_tile: tuple[int, int] | None
    rows_pixels: int
    weight_dtype: str
    intrinsic: str = ""
    signatures: tuple[tuple[tuple[int, int], ...], ...] = ()
    flip: int = 0
    at_once: int = 1

    @property
    def adds(self) -> bool:
        """Whether the intrinsic takes the sum so far."""
        return len(self.signatures[0]) == 4


_X86, _ARM = ("x86_64",), ("aarch64", "arm64")
_SMULL = "llvm.aarch64.neon.smull.v4i32"

#: Best first.
INSTRUCTION_SETS = {
    each.name: each
    for each in (
        InstructionSet(
            name="avx512vnni", machines=_X86, lanes=16, weight_dtype="int8",
            features=frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}),
            tiles=((12, 1), (8, 2), (12, 2)), lanes_tile=(8, 1), quads_tile=(5, 4), rows_pixels=4,
            intrinsic="llvm.x86.avx512.vpdpbusd.512",
            signatures=(((32, 16), (32, 16), (8, 64), (8, 64)), ((32, 16), (32, 16), (32, 16), (32, 16))),
        ),
        InstructionSet(
            name="avxvnni", machines=_X86, lanes=8, weight_dtype="int8",
            features=frozenset({"avx2", "avxvnni|avx512vnni+avx512vl"}),
            tiles=((8, 1), (5, 2)), lanes_tile=(8, 1), quads_tile=(3, 4), rows_pixels=4,
            intrinsic="llvm.x86.avx512.vpdpbusd.256",
            signatures=(((32, 8), (32, 8), (8, 32), (8, 32)), ((32, 8), (32, 8), (32, 8), (32, 8))),
        ),
        InstructionSet(
            name="avx2", machines=_X86, lanes=8, weight_dtype="int16", features=frozenset({"avx2"}),
            tiles=((8, 1), (4, 2)), lanes_tile=(6, 1), quads_tile=(2, 4), rows_pixels=0,
            intrinsic="llvm.x86.avx2.pmadd.wd", signatures=(((32, 8), (16, 16), (16, 16)),),
        ),
        InstructionSet(
            name="dotprod", machines=_ARM, lanes=4, weight_dtype="int8", features=frozenset({"neon", "dotprod"}),
            tiles=((8, 1), (8, 2), (6, 3), (5, 4)), lanes_tile=(8, 1), quads_tile=(5, 4), rows_pixels=3,
            flip=128, at_once=4,
            intrinsic="llvm.aarch64.neon.sdot.v4i32.v16i8", signatures=(((32, 4), (32, 4), (8, 16), (8, 16)),),
        ),
        InstructionSet(
            name="neon", machines=_ARM, lanes=4, weight_dtype="int16", features=frozenset({"neon"}),
            tiles=((8, 1), (8, 2), (6, 3), (5, 4)), lanes_tile=(8, 1), quads_tile=None, rows_pixels=0, at_once=2,
            intrinsic=_SMULL, signatures=(((32, 4), (16, 4), (16, 4)),),
        ),
    )
}  # fmt: skip


# --- which of them this machine has -----------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def target() -> tuple[str, str, str]:
    """The triple, the processor's name and the features for which Numba generates code here, as LLVM calls them.

    Of the triple, not of `platform.machine()`, a process of 32 bits on a kernel of 64 learns what it is.
    """
    from numba.core.registry import cpu_target

    triple, processor, features = cpu_target.target_context.codegen().magic_tuple()
    return str(triple), str(processor), str(features)


@lru_cache(maxsize=None)
def processor_features() -> frozenset[str]:
    """LLVM's names of the features for which Numba generates code here, as far as an instruction set may need them."""
    triple, _, named = target()
    features = {name[1:] for name in named.split(",") if name.startswith("+")}
    if triple.partition("-")[0] in _ARM:  # a processor's name says more there than the list
        features |= {"neon"} - {name[1:] for name in named.split(",") if name.startswith("-")}
        features |= {"dotprod"} if _makes_dot_products() else set()
    return frozenset(features)


#: LLVM makes an sdot of it if it may; to call the intrinsic if it may not would end the process.
_SUM_OF_PRODUCTS = """
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
define i32 @sum(<16 x i8> %a, <16 x i8> %b) {
  %x = sext <16 x i8> %a to <16 x i32>
  %y = sext <16 x i8> %b to <16 x i32>
  %products = mul <16 x i32> %x, %y
  %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
  ret i32 %sum
}
"""


def _makes_dot_products() -> bool:
    triple, processor, features = target()
    try:
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, features=features)
        return "sdot" in machine.emit_assembly(llvm.parse_assembly(_SUM_OF_PRODUCTS))
    except RuntimeError:
        return False


def has_features(isa: InstructionSet) -> bool:
    """Whether this processor, as Numba generates code for it, has all that the instruction set needs."""
    features = processor_features()
    needed = all(
        any(features.issuperset(alternative.split("+")) for alternative in feature.split("|"))
        for feature in isa.features
    )
    return target()[0].partition("-")[0] in isa.machines and needed


def is_known(isa: InstructionSet) -> bool:
    """Whether this LLVM knows the instruction."""
    return not isa.intrinsic or signature(isa) is not None


@lru_cache(maxsize=None)
def signature(isa: InstructionSet) -> tuple[tuple[int, int], ...] | None:
    """The signature that this LLVM gives the intrinsic, or None if it does not know it.

    LLVM annotates a declaration that it recognizes; a name that it does not know stays bare. Whether the signature is
    right older ones ask only where there is a call.
    """
    for candidate in isa.signatures:
        result, *operands = (f"<{lanes} x i{bits}>" for bits, lanes in candidate)
        values = ", ".join(f"{operand} zeroinitializer" for operand in operands)
        try:
            module = llvm.parse_assembly(
                f"declare {result} @{isa.intrinsic}({', '.join(operands)})\n"
                f"define {result} @call() {{ %1 = call {result} @{isa.intrinsic}({values}) ret {result} %1 }}"
            )
            module.verify()
        except RuntimeError:
            continue
        if "attributes #0" in str(module):
            return candidate
    return None


# --- pieces of LLVM's vector code -------------------------------------------------------------------------------------


def _vector(bits: int, lanes: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), lanes)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _plus(builder: Any, address: Any, offset: int) -> Any:
    return builder.add(address, INT64(offset))


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, INT32(0)), undefined, ir.Constant(_vector(32, lanes), [0] * lanes)
    )


def _constant(bits: int, lanes: int, value: int) -> Any:
    return ir.Constant(_vector(bits, lanes), [value] * lanes)


def _clamp(builder: Any, vector: Any, low: Any, high: Any) -> Any:
    vector = builder.select(builder.icmp_signed("<", vector, low), low, vector)
    return builder.select(builder.icmp_signed(">", vector, high), high, vector)


def _multiply_add(builder: Any, isa: InstructionSet, *operands: Any) -> Any:
    """Call the instruction set's intrinsic, whose operands may have to be seen as other lanes."""
    known = signature(isa)
    assert known is not None
    result, *expected = (_vector(bits, lanes) for bits, lanes in known)
    return _call(builder, isa.intrinsic, result, *map(builder.bitcast, operands, expected))


def _call(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """Call a function of LLVM by its name."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [each.type for each in operands]), name)
    return builder.call(function, operands)


def _spread(builder: Any, isa: InstructionSet, address: Any, steps: int) -> list[tuple[Any, ...]]:
    """Four bytes of a pixel for each of some steps, ready to be multiplied in every lane."""
    if isa.at_once == 1:
        return [_bytes_as_factors(builder, isa, _splat(builder, _load(builder, address, INT32), isa.lanes))]
    bytes_ = _load(builder, address, _vector(8, TAPS * isa.at_once))  # may be more than the steps have
    if isa.name == "neon":
        wide, count = builder.zext(bytes_, _vector(16, TAPS * isa.at_once)), TAPS
    else:
        (wide,), count = _bytes_as_factors(builder, isa, builder.bitcast(bytes_, _vector(32, isa.at_once))), 1
    lanes = [_shuffle(builder, wide, [lane] * isa.lanes) for lane in range(count * steps)]
    return [tuple(lanes[begin : begin + count]) for begin in range(0, len(lanes), count)]


def _bytes_as_factors(builder: Any, isa: InstructionSet, words: Any) -> tuple[Any, ...]:
    """Four bytes a lane as the instruction multiplies them: all together, or the even ones and the odd ones."""
    if isa.flip:
        words = builder.xor(words, _constant(32, words.type.count, isa.flip * 0x01010101 - (1 << 32)))
    if isa.name != "avx2":
        return (words,)
    halves = builder.bitcast(words, _vector(16, 2 * isa.lanes))
    even = builder.and_(halves, _constant(16, 2 * isa.lanes, 0xFF))
    return even, builder.lshr(halves, _constant(16, 2 * isa.lanes, 8))


def _weights(builder: Any, isa: InstructionSet, address: Any) -> tuple[Any, ...]:
    """The packed weights of one step and one vector."""
    if isa.name == "neon":
        kind, count = _vector(16, isa.lanes), TAPS
    elif isa.name == "avx2":
        kind, count = _vector(16, 2 * isa.lanes), 2
    else:
        kind, count = _vector(8, TAPS * isa.lanes), 1
    size = isa.lanes * TAPS * np.dtype(isa.weight_dtype).itemsize // count
    return tuple(_load(builder, _plus(builder, address, part * size), kind) for part in range(count))


def _dot(builder: Any, isa: InstructionSet, total: Any, spread: tuple[Any, ...], weights: tuple[Any, ...]) -> Any:
    """Add the products of four taps to each lane.

    Arm's instructions take a lane of a vector for all lanes of their last operand.
    """
    for x, w in zip(spread, weights):
        operands = (w, x) if isa.machines == _ARM else (x, w)
        if isa.adds:
            total = _multiply_add(builder, isa, total, *operands)
        else:
            total = builder.add(total, _multiply_add(builder, isa, *operands))
    return total


@dataclass(frozen=True)
class _Rounding:
    """The constants of one vector of output channels, as vectors (`packing.vector_constants`)."""

    multiplier: tuple[Any, Any]
    constant: tuple[Any, Any]
    shift: Any


def _long_product(builder: Any, isa: InstructionSet, a: Any, b: Any) -> Any:
    """The products of 64-bit lanes that hold 32 bits."""
    half = _vector(32, isa.lanes // 2)
    if isa.machines == _ARM:  # which multiplies no 64 bits: LLVM would do so lane by lane
        return _call(builder, "llvm.aarch64.neon.smull.v2i64", a.type, builder.trunc(a, half), builder.trunc(b, half))
    upper = _constant(64, isa.lanes // 2, 32)  # LLVM multiplies 32 bits once it sees that both are sign-extended
    return builder.mul(a, builder.ashr(builder.shl(b, upper), upper))


def _requantize(builder: Any, isa: InstructionSet, accumulator: Any, rounding: _Rounding) -> Any:
    """Equation (2) of `fixedpoint` plus the zero point, for a shift of 32 or more, lane by lane.

    (accumulator * multiplier + constant) >> shift, with constant = 2**(shift-1) + zero_point * 2**shift, in 64 bits
    for the even and the odd lanes; of which the upper half, shifted by the rest, is all that is needed.
    """
    pairs, words = _vector(64, isa.lanes // 2), _vector(32, isa.lanes)
    upper = _constant(64, isa.lanes // 2, 32)
    both = builder.bitcast(accumulator, pairs)
    products = []
    for lane, multiplier, constant in zip((builder.shl(both, upper), both), rounding.multiplier, rounding.constant):
        product = builder.add(_long_product(builder, isa, builder.ashr(lane, upper), multiplier), constant)
        products.append(builder.bitcast(product, words))
    order = [lane + (isa.lanes if lane % 2 else 1) for lane in range(isa.lanes)]
    high = builder.shuffle_vector(*products, ir.Constant(words, order))
    return builder.ashr(high, rounding.shift)


@dataclass(frozen=True)
class _Addition:
    """The constants of a residual addition, as scalars (`packing.Sum.in_halves`)."""

    low: tuple[Any, Any]
    high: tuple[Any, Any]
    low_constant: Any
    high_constant: Any
    shift: Any


def _add_residual(builder: Any, isa: InstructionSet, a: Any, b: Any, addition: _Addition) -> Any:
    """(a * multiplier_a + b * multiplier_b + constant) >> shift, for bytes a and b in int32 lanes.

    Multipliers and constant are split into 2**16 * high + low, so that 32 bits hold every sum:
    ((high part) + ((low part) >> 16)) >> (shift - 16).
    """
    lanes = isa.lanes

    def combined(multipliers: tuple[Any, Any], constant: Any) -> Any:
        if isa.machines == _X86:
            first = builder.and_(multipliers[0], INT32(0xFFFF))
            both = builder.or_(first, builder.shl(multipliers[1], INT32(16)))
            total = _pairs_product(builder, lanes, pair, _splat(builder, both, lanes))
        else:
            products = [builder.mul(x, _splat(builder, m, lanes)) for x, m in zip((a, b), multipliers)]
            total = builder.add(*products)
        return builder.add(total, _splat(builder, constant, lanes))

    pair = builder.or_(a, builder.shl(b, _constant(32, lanes, 16)))
    lower = builder.ashr(combined(addition.low, addition.low_constant), _constant(32, lanes, 16))
    total = builder.add(combined(addition.high, addition.high_constant), lower)
    return builder.ashr(total, _splat(builder, addition.shift, lanes))


def _x86(builder: Any, names: dict[int, str], lanes: int, result: Any, operands: Any, a: Any, b: Any) -> Any:
    """Call an instruction of two operands of the same kind by LLVM's name of it for so many int32 lanes."""
    return _call(builder, names[lanes], result, builder.bitcast(a, operands), builder.bitcast(b, operands))


def _pairs_product(builder: Any, lanes: int, a: Any, b: Any) -> Any:
    """vpmaddwd: a0 b0 + a1 b1 of the 16-bit halves of each lane."""
    names = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
    return _x86(builder, names, lanes, _vector(32, lanes), _vector(16, 2 * lanes), a, b)


def _saturated(builder: Any, lanes: int, four: Sequence[Any]) -> Any:
    """vpackssdw, then vpackuswb: four vectors of int32, clamped to 0 .. 255, as bytes of one vector.

    Each 128 bits of it hold four lanes of the first vector, then the same four of the second, third and fourth.
    """
    to_int16 = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
    to_uint8 = {8: "llvm.x86.avx2.packuswb", 16: "llvm.x86.avx512.packuswb.512"}
    words, halves, bytes_ = _vector(32, lanes), _vector(16, 2 * lanes), _vector(8, 4 * lanes)
    first, second = (_x86(builder, to_int16, lanes, halves, words, *four[i : i + 2]) for i in (0, 2))
    return _x86(builder, to_uint8, lanes, bytes_, halves, first, second)


def _narrow(builder: Any, isa: InstructionSet, values: Sequence[Any], low: Any, high: Any) -> list[Any]:
    """Vectors of int32 lanes as bytes, clamped to the int8 scalars `low` and `high`, which are unsigned."""
    limits = [_splat(builder, builder.zext(each, INT32), isa.lanes) for each in (low, high)]
    return [builder.trunc(_clamp(builder, value, *limits), _vector(8, isa.lanes)) for value in values]


def _shuffle(builder: Any, vector: Any, order: Sequence[int]) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(_vector(32, len(order)), list(order)))


def _clamp_bytes(builder: Any, vector: Any, low: Any, high: Any) -> Any:
    low, high = (_splat(builder, each, vector.type.count) for each in (low, high))
    vector = builder.select(builder.icmp_unsigned("<", vector, low), low, vector)
    return builder.select(builder.icmp_unsigned(">", vector, high), high, vector)


# --- the tile ---------------------------------------------------------------------------------------------------------


def _place(builder: Any, table: Any, pixel: int) -> Any:
    """The offset of a pixel of the tile."""
    return builder.sext(_load(builder, _plus(builder, table, 4 * pixel), INT32), INT64)


def _pixel_addresses(builder: Any, arguments: Any, pixels: int) -> list[Any]:
    return [builder.add(arguments.x, _place(builder, arguments.places, p)) for p in range(pixels)]


def _loop(builder: Any, name: str, state: list[Any], turn: Any, goes_on: Any, sure: bool = True) -> list[Any]:
    """Take `turn` from state to state while it `goes_on`, if `sure` at least once; returns the last state."""
    before = builder.block
    body, after = builder.append_basic_block(name), builder.append_basic_block(f"after_{name}")
    if sure:
        builder.branch(body)
    else:
        builder.cbranch(goes_on(state), body, after)
    builder.position_at_end(body)
    running = [builder.phi(value.type) for value in state]
    last = turn(running)
    end = builder.block

    def join(phis: list[Any]) -> list[Any]:
        for phi, first, following in zip(phis, state, last):
            phi.add_incoming(first, before)
            phi.add_incoming(following, end)
        return phis

    join(running)
    builder.cbranch(goes_on(last), body, after)
    builder.position_at_end(after)
    return last if sure else join([builder.phi(value.type) for value in state])


def _sum_of_taps(builder: Any, isa: InstructionSet, tile: tuple[int, int], arguments: Any, biases: list[Any]) -> Any:
    """All segments, each of `steps` times four bytes: the accumulators of P pixels by V vectors."""
    pixels, vectors = tile
    step_size = isa.lanes * TAPS * np.dtype(isa.weight_dtype).itemsize
    first = _pixel_addresses(builder, arguments, pixels)
    order = [(p, v) for p in range(pixels) for v in range(vectors)]
    if isa.at_once > 1:  # pixels stay in registers, weights pass
        order.sort(key=lambda pair: pair[1])

    def steps(state: list[Any], count: int) -> list[Any]:
        offset, weights, *totals = state
        spread: dict[int, Any] = {}
        for step in range(count):
            packed: dict[int, Any] = {}
            for p, v in order:
                if v not in packed:
                    packed[v] = _weights(builder, isa, _plus(builder, weights, (step * vectors + v) * step_size))
                if p not in spread:
                    spread[p] = _spread(builder, isa, builder.add(first[p], offset), count)
                at = p * vectors + v
                totals[at] = _dot(builder, isa, totals[at], spread[p][step], packed[v])
        return [_plus(builder, offset, count * TAPS), _plus(builder, weights, count * vectors * step_size), *totals]

    def segment(state: list[Any]) -> list[Any]:
        number, *rest = state
        at = builder.add(arguments.segments, builder.shl(number, INT64(2)))
        begin = builder.sext(_load(builder, at, INT32), INT64)
        end = builder.add(begin, builder.shl(arguments.steps, INT64(2)))

        def loop(name: str, state: list[Any], count: int, sure: bool) -> list[Any]:
            last = _plus(builder, end, -count * TAPS)
            fits = lambda state: builder.icmp_signed("<=", state[0], last)  # noqa: E731
            return _loop(builder, name, state, lambda state: steps(state, count), fits, sure)

        state = [begin, *rest]
        if isa.at_once > 1:
            state = loop("steps", state, isa.at_once, False)
        state = loop("step", state, 1, isa.at_once == 1)
        return [_plus(builder, number, 1), *state[1:]]

    def is_left(state: list[Any]) -> Any:
        return builder.icmp_signed("<", state[0], arguments.segment_count)

    totals = [biases[v] for _ in range(pixels) for v in range(vectors)]
    _, _, *totals = _loop(builder, "segment", [INT64(0), arguments.weights, *totals], segment, is_left)
    return [totals[p * vectors : (p + 1) * vectors] for p in range(pixels)]


def _sum_of_channels(
    builder: Any, isa: InstructionSet, kind: str, tile: tuple[int, int], arguments: Any, biases: list[Any]
) -> Any:
    """All taps of a depthwise convolution: the accumulators of P pixels by V vectors of channels.

    With one channel a lane, each lane holds one byte of the input. With four, the bytes are multiplied as they lie in
    memory, and vector j of the sums is of channels 4 * lane + j: its weights are 0 but for one byte of each lane.
    """
    pixels, vectors = tile
    words, size = _vector(32, isa.lanes), 4 * isa.lanes

    def factors(at: Any) -> list[Any]:
        """The input of a pixel, as each vector of sums takes it."""
        if kind == QUADS:
            parts = _bytes_as_factors(builder, isa, _load(builder, at, words))
            return [parts[v % len(parts)] for v in range(vectors)]
        bytes_ = [_load(builder, _plus(builder, at, isa.lanes * v), _vector(8, isa.lanes)) for v in range(vectors)]
        return [builder.zext(each, words) for each in bytes_]

    first = _pixel_addresses(builder, arguments, pixels)
    before = builder.block
    tap_block, done = builder.append_basic_block("tap"), builder.append_basic_block("done")
    builder.branch(tap_block)
    builder.position_at_end(tap_block)
    tap, weights = builder.phi(INT64), builder.phi(INT64)
    totals = [[builder.phi(words) for _ in range(vectors)] for _ in range(pixels)]
    tap.add_incoming(INT64(0), before)
    weights.add_incoming(arguments.weights, before)
    offset = builder.sext(_load(builder, builder.add(arguments.segments, builder.shl(tap, INT64(2))), INT32), INT64)
    weight = [_load(builder, _plus(builder, weights, size * v), words) for v in range(vectors)]
    following = []
    for p in range(pixels):
        each = zip(totals[p], factors(builder.add(first[p], offset)), weight)
        following.append([_one_product(builder, isa, kind, total, x, w) for total, x, w in each])
    next_tap, next_weights = _plus(builder, tap, 1), _plus(builder, weights, size * vectors)
    tap.add_incoming(next_tap, tap_block)
    weights.add_incoming(next_weights, tap_block)
    for p in range(pixels):
        for v in range(vectors):
            totals[p][v].add_incoming(biases[v], before)
            totals[p][v].add_incoming(following[p][v], tap_block)
    builder.cbranch(builder.icmp_signed("<", next_tap, arguments.segment_count), tap_block, done)
    builder.position_at_end(done)
    return following


def _one_product(builder: Any, isa: InstructionSet, kind: str, total: Any, x: Any, weight: Any) -> Any:
    """Add to each lane the one product that is not 0."""
    if isa.name == "avx2":
        return builder.add(total, _pairs_product(builder, isa.lanes, x, weight))
    if kind == LANES and isa.machines != _X86:
        half = _vector(16, isa.lanes)
        product = _call(builder, _SMULL, total.type, builder.trunc(x, half), builder.trunc(weight, half))
        return builder.add(total, product)
    return _multiply_add(builder, isa, total, x, weight)


def _store_quads(builder: Any, isa: InstructionSet, arguments: Any, constants: _Constants, totals: Any) -> None:
    """Store accumulators `totals[pixel][number]` of four channels a lane as bytes."""
    low, high = (builder.trunc(each, INT8) for each in (arguments.low, arguments.high))
    rounding = [constants.rounding(number) for number in range(len(totals[0]))]
    for p, numbers in enumerate(totals):
        q = [_requantize(builder, isa, total, each) for total, each in zip(numbers, rounding)]
        if isa.machines == _X86:
            by_lane = [4 * number + lane for lane in range(4) for number in range(4)]
            order = [16 * part + each for part in range(isa.lanes // 4) for each in by_lane]
            result = _clamp_bytes(builder, _shuffle(builder, _saturated(builder, isa.lanes, q), order), low, high)
        else:
            result = _constant(32, isa.lanes, 0)
            for number, narrow in enumerate(_narrow(builder, isa, q, low, high)):
                byte = builder.zext(narrow, _vector(32, isa.lanes))
                result = builder.or_(result, builder.shl(byte, _constant(32, isa.lanes, 8 * number)))
        _store(builder, result, builder.add(arguments.out, _place(builder, arguments.out_places, p)))


def rows_of(height: int, width: int, stride: int) -> str:
    """The kind of a depthwise convolution by rows: height and width of its window, its step along a row."""
    return f"{ROWS}_{height}x{width}_{stride}"


def window_of(kind: str) -> tuple[int, int, int]:
    """Height, width and step of `rows_of`."""
    height, width, step = (int(each) for each in kind.replace("x", "_").split("_")[1:])
    return height, width, step


def _sum_of_rows(builder: Any, isa: InstructionSet, kind: str, pixels: int, arguments: Any, constants: Any) -> Any:
    """All taps of a depthwise convolution of neighbouring pixels of one row, four vectors of channels wide.

    The bytes of a column of the window stand side by side in the lane of their channel, so that one step of the sum
    takes them all; what is loaded of a column serves every window that it belongs to. `arguments.steps` is the
    distance of pixels. Of each 128 bits of channels, vector j holds channels 4 j to 4 j + 3.
    """
    height, width, stride = window_of(kind)
    size = TAPS * isa.lanes
    first = builder.add(arguments.x, _place(builder, arguments.places, 0))
    rows = [builder.add(first, _place(builder, arguments.segments, width * row)) for row in range(height)]
    totals = [[constants.bias(number) for number in range(TAPS)] for _ in range(pixels)]
    for column in range((pixels - 1) * stride + width):
        offset = builder.mul(arguments.steps, INT64(column))
        bytes_ = [_load(builder, builder.add(row, offset), _vector(8, size)) for row in rows]
        by_channel = _interleaved(builder, isa.lanes, [bytes_[min(row, height - 1)] for row in range(MOST_ROWS)])
        for tap in range(width):
            pixel, between = divmod(column - tap, stride)
            if between == 0 and 0 <= pixel < pixels:
                for number, x in enumerate(by_channel):
                    at = _plus(builder, arguments.weights, size * (TAPS * tap + number))
                    weight = _load(builder, at, _vector(8, size))
                    (factor,) = _bytes_as_factors(builder, isa, builder.bitcast(x, _vector(32, isa.lanes)))
                    totals[pixel][number] = _multiply_add(builder, isa, totals[pixel][number], factor, weight)
    return totals


def _interleaved(builder: Any, lanes: int, rows: Sequence[Any]) -> list[Any]:
    """Four vectors of bytes as four vectors of lanes, each lane the four bytes of a channel."""

    def zipped(a: Any, b: Any, size: int) -> list[Any]:
        """The lower and the upper halves of each 128 bits, in pieces of `size` bytes from a and b in turn."""
        count, half = a.type.count, 8 // size
        parts = range(0, count, 16 // size)
        orders = (
            [part + begin + i + which * count for part in parts for i in range(half) for which in (0, 1)]
            for begin in (0, half)
        )
        return [builder.shuffle_vector(a, b, ir.Constant(_vector(32, count), order)) for order in orders]

    halves = _vector(16, 2 * lanes)
    words = [[builder.bitcast(each, halves) for each in zipped(rows[i], rows[i + 1], 1)] for i in (0, 2)]
    return [each for upper, lower in zip(*words) for each in zipped(upper, lower, 2)]


def _store_rows(builder: Any, isa: InstructionSet, arguments: Any, constants: Any, totals: Any) -> None:
    """Store accumulators `totals[pixel][number]` of a depthwise convolution by rows as bytes."""
    low, high = (builder.trunc(each, INT8) for each in (arguments.low, arguments.high))
    rounding = [constants.rounding(number) for number in range(TAPS)]
    for p, numbers in enumerate(totals):
        q = [_requantize(builder, isa, total, each) for total, each in zip(numbers, rounding)]
        if isa.machines == _X86:
            result = _clamp_bytes(builder, _saturated(builder, isa.lanes, q), low, high)
        else:
            narrow = _narrow(builder, isa, q, low, high)
            pairs = [_joined(builder, *narrow[i : i + 2]) for i in (0, 2)]
            result = _joined(builder, *pairs)
        _store(builder, result, builder.add(arguments.out, _place(builder, arguments.out_places, p)))


def _joined(builder: Any, a: Any, b: Any) -> Any:
    """One vector after the other."""
    return builder.shuffle_vector(a, b, ir.Constant(_vector(32, 2 * a.type.count), list(range(2 * a.type.count))))


class _Constants:
    """Reads the words of a block of output channels, vector by vector: bias, multipliers, constants, shifts."""

    def __init__(self, builder: Any, isa: InstructionSet, address: Any) -> None:
        self._builder, self._isa, self._address = builder, isa, address

    def _part(self, vector: int, part: int, kind: Any) -> Any:
        offset = 4 * self._isa.lanes * (CONSTANT_WORDS * vector + part)
        return _load(self._builder, _plus(self._builder, self._address, offset), kind)

    def bias(self, vector: int) -> Any:
        return self._part(vector, 0, _vector(32, self._isa.lanes))

    def rounding(self, vector: int) -> _Rounding:
        pairs, words = _vector(64, self._isa.lanes // 2), _vector(32, self._isa.lanes)
        even, odd, even_constant, odd_constant = (self._part(vector, part, pairs) for part in range(1, 5))
        return _Rounding((even, odd), (even_constant, odd_constant), self._part(vector, 5, words))


def _finish(builder: Any, isa: InstructionSet, arguments: Any, constants: _Constants, totals: Any) -> None:
    """Store accumulators `totals[pixel][vector]`: as they are, as bytes, or as bytes of a sum with a residual."""
    pixels, vectors, lanes = len(totals), len(totals[0]), isa.lanes
    every = [(p, v) for p in range(pixels) for v in range(vectors)]

    def is_mode(mode: int) -> Any:
        return builder.icmp_signed("==", arguments.mode, INT64(mode))

    end = builder.append_basic_block("end")
    bare, rounded = builder.append_basic_block("accumulators"), builder.append_basic_block("rounded")
    builder.cbranch(is_mode(STORE_ACCUMULATORS), bare, rounded)

    builder.position_at_end(bare)
    words = {(p, v): totals[p][v] for p, v in every}
    places = [_place(builder, arguments.out_places, p) for p in range(pixels)]
    out = [builder.add(arguments.out, builder.shl(place, INT64(2))) for place in places]
    _store_channels(builder, arguments.channels, out, words, lanes, 4, end)

    builder.position_at_end(rounded)
    rounding = [constants.rounding(v) for v in range(vectors)]
    q = {(p, v): _requantize(builder, isa, totals[p][v], rounding[v]) for v in range(vectors) for p in range(pixels)}
    low, high = (builder.trunc(each, INT8) for each in (arguments.low, arguments.high))
    before_store = builder.block
    residual, stored = builder.append_basic_block("residual"), builder.append_basic_block("bytes")
    builder.cbranch(is_mode(STORE_SUM), residual, stored)

    builder.position_at_end(residual)
    limits = [_splat(builder, builder.trunc(each, INT32), lanes) for each in (arguments.low, arguments.high)]
    *scalars, minimum, maximum = (
        _load(builder, _plus(builder, arguments.addition, 4 * i), INT32) for i in range(ADDITION_WORDS)
    )
    addition = _Addition((scalars[0], scalars[1]), (scalars[2], scalars[3]), *scalars[4:])
    sums = {}
    for p in range(pixels):
        other = builder.add(arguments.other, _place(builder, arguments.other_places, p))
        for v in range(vectors):
            bytes_ = _load(builder, _plus(builder, other, lanes * v), _vector(8, lanes))
            wide = builder.zext(bytes_, _vector(32, lanes))
            sums[p, v] = _add_residual(builder, isa, _clamp(builder, q[p, v], *limits), wide, addition)
    sum_low, sum_high = builder.trunc(minimum, INT8), builder.trunc(maximum, INT8)
    after_sum = builder.block
    builder.branch(stored)

    builder.position_at_end(stored)

    def either(alone: Any, summed: Any) -> Any:
        phi = builder.phi(alone.type)
        phi.add_incoming(alone, before_store)
        phi.add_incoming(summed, after_sum)
        return phi

    result = [either(q[key], sums[key]) for key in every]
    limits = [either(low, sum_low), either(high, sum_high)]
    narrow = dict(zip(every, _narrow(builder, isa, result, *limits)))
    places = [_place(builder, arguments.out_places, p) for p in range(pixels)]
    out = [builder.add(arguments.out, place) for place in places]
    _store_channels(builder, arguments.channels, out, narrow, lanes, 1, end)
    builder.position_at_end(end)


def _store_channels(
    builder: Any, channels: Any, out: list[Any], values: dict[tuple[int, int], Any], lanes: int, size: int, end: Any
) -> None:
    """Store `channels` elements of `size` bytes a pixel, a multiple of four; then go to the block `end`."""
    vectors = max(v for _, v in values) + 1
    whole, part = builder.append_basic_block("whole"), builder.append_basic_block("part")
    builder.cbranch(builder.icmp_signed(">=", channels, INT64(vectors * lanes)), whole, part)
    builder.position_at_end(whole)
    for (p, v), value in values.items():
        _store(builder, value, _plus(builder, out[p], size * lanes * v))
    builder.branch(end)
    builder.position_at_end(part)
    for v in range(vectors):
        for chunk in range(0, lanes, 4):
            here, after = builder.append_basic_block("chunk"), builder.append_basic_block("after")
            builder.cbranch(builder.icmp_signed(">", channels, INT64(v * lanes + chunk)), here, after)
            builder.position_at_end(here)
            for p, address in enumerate(out):
                value = values[p, v]
                four = builder.shuffle_vector(value, value, ir.Constant(_vector(32, 4), list(range(chunk, chunk + 4))))
                _store(builder, four, _plus(builder, address, size * (lanes * v + chunk)))
            builder.branch(after)
            builder.position_at_end(after)
    builder.branch(end)


@dataclass(frozen=True)
class _Arguments:
    """What a tile is told, as LLVM values; all int64.

    Attributes:
        x: address of the input tensor, at the first channel that the block reads.
        places: address of the P input pixels' offsets from it, int32.
        segments: address of offsets, int32 `(segment_count,)`, of the runs of bytes that a window consists of.
        steps: how many times four bytes a run has; by rows, the distance of pixels.
        weights, constants: addresses of those of the block of output channels.
        mode: STORE_ACCUMULATORS, STORE_BYTES or STORE_SUM.
        channels: how many channels of the block to store, a multiple of four.
        out, out_places: address of the output at the block's first channel, and of the P output pixels' offsets.
        low, high: the clamp.
        other, other_places, addition: the residual, likewise, and the constants of the addition.
    """

    x: Any
    places: Any
    segments: Any
    segment_count: Any
    steps: Any
    weights: Any
    constants: Any
    mode: Any
    channels: Any
    out: Any
    out_places: Any
    low: Any
    high: Any
    other: Any
    other_places: Any
    addition: Any


def _literal(value: Any) -> Any:
    if not isinstance(value, types.Literal):
        raise RequireLiteralValue("name and shape of a tile")
    return value.literal_value


@intrinsic
def convolution_tile(typing: Any, isa: Any, kind: Any, pixels: Any, vectors: Any, arguments: Any) -> Any:
    """A tile of a convolution: four literals and the fields of `_Arguments`, a tuple of int64."""
    instruction_set, tile = INSTRUCTION_SETS[_literal(isa)], (_literal(pixels), _literal(vectors))
    use = _literal(kind)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = _Arguments(*(builder.extract_value(values[4], i) for i in range(len(fields(_Arguments)))))
        constants = _Constants(builder, instruction_set, given.constants)
        biases = [constants.bias(v) for v in range(tile[1])]
        if use.startswith(ROWS):
            totals = _sum_of_rows(builder, instruction_set, use, tile[0], given, constants)
            _store_rows(builder, instruction_set, given, constants, totals)
        elif use == DENSE:
            totals = _sum_of_taps(builder, instruction_set, tile, given, biases)
            _finish(builder, instruction_set, given, constants, totals)
        else:
            totals = _sum_of_channels(builder, instruction_set, use, tile, given, biases)
            finish = _store_quads if use == QUADS else _finish
            finish(builder, instruction_set, given, constants, totals)
        return context.get_dummy_value()

    return types.void(isa, kind, pixels, vectors, arguments), generate


@intrinsic
def register_loop(typing: Any, isa: Any, rounds: Any, address: Any) -> Any:
    """`rounds` times 48 steps of the sum on registers alone, for the machine's limit; stores one vector."""
    instruction_set = INSTRUCTION_SETS[_literal(isa)]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, count, at = values
        kind, halves = _vector(32, instruction_set.lanes), _vector(16, 2 * instruction_set.lanes)

        def as_input(total: Any) -> tuple[Any, ...]:
            """The sum itself: of products that stay the same LLVM would compute only one."""
            if instruction_set.name == "avx2":
                return (builder.bitcast(total, halves),) * 2
            if instruction_set.name == "neon":
                return (builder.trunc(total, _vector(16, instruction_set.lanes)),) * TAPS
            return (total,)

        weights = _weights(builder, instruction_set, at)
        start = _load(builder, at, kind)
        before = builder.block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        index, totals = builder.phi(INT64), [builder.phi(kind) for _ in range(PEAK_CHAINS)]
        following = totals
        for _ in range(PEAK_UNROLLED):
            following = [_dot(builder, instruction_set, each, as_input(each), weights) for each in following]
        next_index = _plus(builder, index, 1)
        index.add_incoming(INT64(0), before)
        index.add_incoming(next_index, loop)
        for phi, value in zip(totals, following):
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_index, count), loop, done)
        builder.position_at_end(done)
        total = following[0]
        for each in following[1:]:
            total = builder.add(total, each)
        _store(builder, total, at)
        return context.get_dummy_value()

    return types.void(isa, rounds, address), generate


@lru_cache(maxsize=None)
def _peak_loop(isa: str) -> Any:
    def loop(rounds: int, buffer: np.ndarray) -> None:
        register_loop(isa, rounds, buffer.ctypes.data)

    return kernel(loop)


def measured_peak(isa: str, seconds: float = 0.2) -> float:
    """Multiply-adds per second of one core that does nothing else: the limit of an instruction set on this machine."""
    loop, buffer, rounds = _peak_loop(isa), np.ones(256, np.uint8), 1000
    loop(rounds, buffer)
    while True:
        begin = time.perf_counter()
        loop(rounds, buffer)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return rounds * PEAK_PRODUCTS * INSTRUCTION_SETS[isa].lanes / elapsed
        rounds = int(rounds * max(1.2 * seconds / max(elapsed, 1e-9), 1.2))
