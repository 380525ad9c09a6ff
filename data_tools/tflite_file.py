"""TFLite files, which are not trusted: the tables that a quantized network needs, every offset checked.

A .tflite file is a FlatBuffer (flatbuffers.dev, "FlatBuffer Internals"); its schema is TensorFlow's
`tensorflow/compiler/mlir/lite/schema/schema.fbs`. FlatBuffers' own Python runtime verifies nothing: in a damaged file
it reads where chance points, and vectors of any length. The layout is simple enough to be read here, safely:

    file     uint32 place of the first table, then the identifier "TFL3"
    table    int32 distance back to its vtable, then its fields
    vtable   uint16 its bytes, uint16 the table's bytes, then uint16 for each field: its place in the table, or 0
    field    a number; or uint32, the distance to a table, a vector or a text
    vector   uint32 count, then the elements: numbers, or uint32 distances as above

Everything is little-endian. A table may stand in several places of a file, but they are read to a fixed depth, so what
is read is bounded by the file's size and the limits below.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any, Sequence

import numpy as np

from intsmooth_ref.data_tools.channels_first import expect, located
from intsmooth_ref.data_tools.converter import printable
from intsmooth_ref.model.proof import MAX_ELEMENTS, MAX_LAYERS

IDENTIFIER = b"TFL3"
MAX_OPERATORS, MAX_TENSORS, MAX_RANK, MAX_NAME = MAX_LAYERS, 8 * MAX_LAYERS, 8, 4096

#: TensorType, by number.
TENSOR_TYPES = (
    "FLOAT32", "FLOAT16", "INT32", "UINT8", "INT64", "STRING", "BOOL", "INT16", "COMPLEX64", "INT8", "FLOAT64",
    "COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16", "INT4",
)  # fmt: skip

#: Of constants.
DTYPES = {"FLOAT32": "<f4", "INT32": "<i4", "UINT8": "u1", "INT64": "<i8", "INT8": "i1"}

#: BuiltinOperator, by number, up to those of StableHLO.
OPERATORS = tuple(
    """ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
    LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
    CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE
    EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR
    ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE
    RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND
    COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE
    BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1
    UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
    RIGHT_SHIFT""".split()
)


class Table:
    """A table of a FlatBuffer; fields by their number in the schema."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content, self._place = content, place
        vtable = place - int(self._number("<i", place))
        size, self._size = (int(self._number("<H", vtable + offset)) for offset in (0, 2))
        expect(size >= 4 and size % 2 == 0, f"a table's layout of {size} bytes", "an even number, at least 4")
        self._fields = struct.unpack(f"<{size // 2 - 2}H", self._bytes(vtable + 4, size - 4))

    def number(self, field: int, layout: str, default: int | float = 0) -> Any:
        """A number; `layout` as in `struct`."""
        place = self._field(field, struct.calcsize(layout))
        return default if place is None else self._number(layout, place)

    def table(self, field: int) -> Table | None:
        place = self._distant(field)
        return None if place is None else Table(self._content, place)

    def tables(self, field: int, limit: int) -> list[Table]:
        """A vector of tables, of which there are `limit` at most."""
        first, count = self._vector(field, 4)
        expect(count <= limit, f"{count} tables in a vector", f"at most {limit}")
        places = [first + 4 * index for index in range(count)]
        return [Table(self._content, place + int(self._number("<I", place))) for place in places]

    def numbers(self, field: int, dtype: str) -> np.ndarray:
        """A vector of numbers; none if it is left out."""
        first, count = self._vector(field, np.dtype(dtype).itemsize)
        return np.frombuffer(self._content, dtype, count, first)

    def text(self, field: int) -> str:
        first, count = self._vector(field, 1)
        expect(count <= MAX_NAME, f"a name of {count} bytes", f"at most {MAX_NAME}")
        try:
            return self._content[first : first + count].decode()
        except UnicodeDecodeError:
            expect(False, "a name that is no UTF-8", "a whole TFLite file")
            raise

    def _field(self, field: int, size: int) -> int | None:
        inside = self._fields[field] if field < len(self._fields) else 0
        if not inside:
            return None
        expect(4 <= inside and inside + size <= self._size, f"a field at byte {inside} of a table of {self._size}",
               "one inside")  # fmt: skip
        return self._place + inside

    def _distant(self, field: int) -> int | None:
        place = self._field(field, 4)
        return None if place is None else place + int(self._number("<I", place))

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """Place of the first element, and how many there are."""
        place = self._distant(field)
        if place is None:
            return 0, 0
        count = int(self._number("<I", place))
        self._bytes(place + 4, count * size)
        return place + 4, count

    def _number(self, layout: str, place: int) -> int | float:
        value: int | float = struct.unpack(layout, self._bytes(place, struct.calcsize(layout)))[0]
        return value

    def _bytes(self, place: int, count: int) -> memoryview:
        inside = 0 <= place and place + count <= len(self._content)
        expect(inside, f"{count} bytes at {place} of a file of {len(self._content)}", "a whole TFLite file")
        return memoryview(self._content)[place : place + count]


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """A tensor; `values` are those of a constant, else None.

    Attributes:
        shape: with the batch; of a batch of any size, 1.
        scales, zero_points: one a tensor, or one for each slice along `axis`; none if it is not quantized.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    values: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TfliteOperator:
    """An operator: numbers of the tensors that it reads, -1 where it leaves one out, and gives."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: int
    options: Table | None


@dataclass(frozen=True, eq=False)
class TfliteFile:
    tensors: Sequence[TfliteTensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: Sequence[TfliteOperator]


def parsed(content: bytes) -> TfliteFile:
    """The only subgraph of a file.

    Raises:
        ModelFormatError: if it is no TFLite file, damaged, or larger in some way than the limits above.
    """
    expect(content[4:8] == IDENTIFIER, "no TFLite file", f"the identifier {IDENTIFIER.decode()} at byte 4")
    model = Table(content, struct.unpack("<I", content[:4])[0])
    version = model.number(0, "<I")
    expect(version == 3, f"version {version} of the schema", "3")
    kinds = [_kind(table) for table in model.tables(1, MAX_OPERATORS)]
    buffers = model.tables(4, MAX_TENSORS)
    graphs = model.tables(2, MAX_OPERATORS)
    expect(len(graphs) == 1, f"{len(graphs)} subgraphs", "one")
    tensors = [_tensor(table, buffers) for table in graphs[0].tables(0, MAX_TENSORS)]
    operators = [_operator(table, kinds, len(tensors)) for table in graphs[0].tables(3, MAX_OPERATORS)]
    expect(len(operators) > 0, "no operators", "a network")
    inputs, outputs = (_tensor_numbers(graphs[0], field, len(tensors)) for field in (1, 2))
    return TfliteFile(tensors, inputs, outputs, operators)


def _kind(table: Table) -> str:
    """The larger of two fields: the first is from the time when 127 operators were enough."""
    number = max(table.number(0, "<b"), table.number(3, "<i"))
    if 0 <= number < len(OPERATORS):
        custom = f" {printable(table.text(1))!r}" if OPERATORS[number] == "CUSTOM" else ""
        return OPERATORS[number] + custom
    return f"operator {number}"


def _operator(table: Table, kinds: Sequence[str], tensors: int) -> TfliteOperator:
    index = table.number(0, "<I")
    expect(index < len(kinds), f"an operator of kind {index}", f"one of {len(kinds)} kinds")
    with located(kinds[index]):
        inputs, outputs = (_tensor_numbers(table, field, tensors) for field in (1, 2))
        expect(len(outputs) == 1 and outputs[0] >= 0, f"{len(outputs)} outputs", "one")
        return TfliteOperator(kinds[index], inputs, outputs, table.number(3, "<B"), table.table(4))


def _tensor_numbers(table: Table, field: int, tensors: int) -> tuple[int, ...]:
    numbers = table.numbers(field, "<i4")
    good = len(numbers) <= MAX_TENSORS and bool(((-1 <= numbers) & (numbers < tensors)).all())
    expect(good, f"tensors {numbers[:8].tolist()}", f"numbers below {tensors}")
    return tuple(numbers.tolist())


def _tensor(table: Table, buffers: Sequence[Table]) -> TfliteTensor:
    name = table.text(3)
    with located(f"tensor {printable(name[-100:])!r}"):
        shape, number = table.numbers(0, "<i4"), table.number(1, "<b")
        good = len(shape) <= MAX_RANK and bool((shape >= 0).all()) and prod(shape.tolist()) <= MAX_ELEMENTS
        expect(good, f"shape {shape[:8].tolist()}", f"at most {MAX_RANK} extents and {MAX_ELEMENTS} elements")
        kind = TENSOR_TYPES[number] if 0 <= number < len(TENSOR_TYPES) else f"number {number}"
        outside = table.number(10, "<I")
        expect(not outside and table.table(6) is None, "data outside the file, or sparse", "neither")
        values = _values(buffers, table.number(2, "<I"), kind, tuple(shape.tolist()))
        quantization = table.table(4)
        scales, zero_points, axis = np.zeros(0, "<f4"), np.zeros(0, "<i8"), 0
        if quantization is not None:
            expect(quantization.number(4, "<B") == 0, "a quantization of the file's own kind", "scales and zero points")
            scales, zero_points = quantization.numbers(2, "<f4"), quantization.numbers(3, "<i8")
            axis = quantization.number(6, "<i")
        return TfliteTensor(name, kind, tuple(shape.tolist()), scales, zero_points, axis, values)


def _values(buffers: Sequence[Table], number: int, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What buffer `number` holds; an empty one, and that of number 0, is none."""
    expect(number < len(buffers) or number == 0, f"buffer {number}", f"one of {len(buffers)}")
    if not number:
        return None
    expect(not buffers[number].number(1, "<Q") and not buffers[number].number(2, "<Q"),
           "data behind the FlatBuffer", "data inside")  # fmt: skip
    data = buffers[number].numbers(0, "u1")
    if not len(data):
        return None
    expect(kind in DTYPES, f"constants of type {kind}", f"{', '.join(DTYPES)}")
    dtype = np.dtype(DTYPES[kind])
    expect(len(data) == prod(shape) * dtype.itemsize, f"{len(data)} bytes of data for {shape} of {kind}",
           f"{prod(shape) * dtype.itemsize}")  # fmt: skip
    return np.frombuffer(data.tobytes(), dtype).reshape(shape)
