"""TFLite files for tests, written as FlatBuffers specifies them; nothing is shared with the reader under test.

A table is a dictionary from field numbers to values: `number(layout, value)`, a dictionary, a list of them, a NumPy
array or a text. Children are written behind their parents, so all distances but those to vtables are positive.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

TYPES = {"FLOAT32": 0, "INT32": 2, "UINT8": 3, "INT64": 4, "INT16": 7, "INT8": 9, "INT4": 17}
DTYPES = {"FLOAT32": "<f4", "INT32": "<i4", "UINT8": "u1", "INT64": "<i8", "INT16": "<i2", "INT8": "i1", "INT4": "i1"}

#: BuiltinOperator and BuiltinOptions of the schema.
CODES = {
    "ADD": (0, 11), "AVERAGE_POOL_2D": (1, 5), "CONCATENATION": (2, 10), "CONV_2D": (3, 1), "DEPTHWISE_CONV_2D": (4, 2),
    "DEQUANTIZE": (6, 38), "FULLY_CONNECTED": (9, 8), "LOGISTIC": (14, 0), "MAX_POOL_2D": (17, 5), "MUL": (18, 21),
    "RELU": (19, 0), "RELU_N1_TO_1": (20, 0), "RELU6": (21, 0), "RESHAPE": (22, 17), "SOFTMAX": (25, 9),
    "TANH": (28, 0), "CUSTOM": (32, 0), "PAD": (34, 22), "MEAN": (40, 27), "SUB": (41, 28), "SQUEEZE": (43, 30),
    "ARG_MAX": (56, 40), "LEAKY_RELU": (98, 75), "QUANTIZE": (114, 89), "HARD_SWISH": (117, 96), "GELU": (150, 0),
}  # fmt: skip


def number(layout: str, value: Any) -> tuple[str, Any]:
    return layout, value


class FlatBuffer:
    """Tables, each after the one that refers to it."""

    def __init__(self, root: dict[int, Any], identifier: bytes) -> None:
        self.content = bytearray(struct.pack("<I", 0) + identifier)
        self._point(0, self._table(root))

    def _align(self, multiple: int, ahead: int = 0) -> int:
        self.content += bytes(-(len(self.content) + ahead) % multiple)
        return len(self.content)

    def _point(self, place: int, target: int) -> None:
        struct.pack_into("<I", self.content, place, target - place)

    def _table(self, fields: dict[int, Any]) -> int:
        places = {field: 8 + 8 * index for index, field in enumerate(fields)}
        size = 8 + 8 * len(fields)
        count = max(fields, default=-1) + 1
        vtable = self._align(8)
        self.content += struct.pack(f"<{count + 2}H", 4 + 2 * count, size, *(places.get(f, 0) for f in range(count)))
        table = self._align(8)
        self.content += struct.pack("<i", table - vtable) + bytes(size - 4)
        for field, value in fields.items():
            place = table + places[field]
            if isinstance(value, tuple):
                struct.pack_into(*[value[0], self.content, place, value[1]])
            else:
                self._point(place, self._child(value))
        return table

    def _child(self, value: Any) -> int:
        if isinstance(value, dict):
            return self._table(value)
        if isinstance(value, list):
            vector = self._align(4)
            self.content += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for index, each in enumerate(value):
                self._point(vector + 4 + 4 * index, self._child(each))
            return vector
        data = value.encode() if isinstance(value, str) else value.tobytes()
        vector = self._align(16, ahead=4)
        self.content += struct.pack("<I", len(data) if isinstance(value, str) else value.size) + data + b"\0"
        return vector


class Network:
    """A .tflite file in the making; tensors are known by name."""

    def __init__(self) -> None:
        self.tensors: list[dict[int, Any]] = []
        self.buffers: list[dict[int, Any]] = [{}]
        self.operators: list[dict[int, Any]] = []
        self.codes: list[str] = []
        self.names: dict[str, int] = {}

    def tensor(
        self, name: str, shape: Any, type: str, scale: Any = None, zero: Any = 0, axis: int = 0, values: Any = None
    ) -> str:
        buffer = 0
        if values is not None:
            self.buffers.append({0: np.frombuffer(np.ascontiguousarray(values, DTYPES[type]).tobytes(), np.uint8)})
            buffer = len(self.buffers) - 1
        fields = {0: np.array(shape, "<i4"), 1: number("<b", TYPES[type]), 2: number("<I", buffer), 3: name}
        if scale is not None:
            scales = np.array(scale, "<f4").reshape(-1)
            zeros = np.resize(np.array(zero, "<i8").reshape(-1), scales.size)
            fields[4] = {2: scales, 3: zeros, 6: number("<i", axis)}
        self.names[name] = len(self.tensors)
        self.tensors.append(fields)
        return name

    def operator(
        self, kind: str, inputs: list[str], output: str, options: dict[int, Any] | None = None,
        options_type: int | None = None,
    ) -> None:  # fmt: skip
        if kind not in self.codes:
            self.codes.append(kind)
        numbers = [self.names.get(name, -1) for name in inputs]
        fields: dict[int, Any] = {0: number("<I", self.codes.index(kind)), 1: np.array(numbers, "<i4"),
                                  2: np.array([self.names[output]], "<i4")}  # fmt: skip
        if options is not None:
            fields[3] = number("<B", CODES[kind][1] if options_type is None else options_type)
            fields[4] = options
        self.operators.append(fields)

    def bytes(self, image: str, scores: str, old: bool = False) -> bytes:
        """`old` files know operators below 127 only, in a field of their own."""
        codes = [
            {0: number("<b", min(CODES[kind][0], 127)), 2: number("<i", 1), 3: number("<i", CODES[kind][0])}
            | ({1: "secret"} if kind == "CUSTOM" else {})
            for kind in self.codes
        ]  # fmt: skip
        if old:
            codes = [{0: code[0]} for code in codes]
        graph = {0: self.tensors, 1: np.array([self.names[image]], "<i4"), 2: np.array([self.names[scores]], "<i4"),
                 3: self.operators, 4: "main"}  # fmt: skip
        root = {0: number("<I", 3), 1: codes, 2: [graph], 3: "written by a test", 4: self.buffers}
        return bytes(FlatBuffer(root, b"TFL3").content)
