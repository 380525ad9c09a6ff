"""Where the tensors of a model lie in memory.

A tensor of 8 bits is uint8 and `(samples, rows, pixels, channels)`, its channels padded to a multiple of four and its
image surrounded by a border of its zero point, as wide as the widest window that reads it needs: so no kernel asks
where an image ends. The border is written once, when the memory is made. Tensors share memory only if they have the
same shape, border and zero point, so it stays true.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Sequence

import numpy as np

from ...model.proof import TensorProof

CHANNEL_MULTIPLE = 4
#: What a vector may read or write beyond the last tensor, in elements.
SLACK = 256

#: Rows or columns above, below, to the left and to the right of an image.
Border = tuple[int, int, int, int]
NO_BORDER: Border = (0, 0, 0, 0)


#: Sample, row and column of pixels, each flat int64.
Positions = tuple[np.ndarray, np.ndarray, np.ndarray]


def positions(samples: int, height: int, width: int, together: int = 1) -> Positions:
    """All pixels in order, `together` of one row at a time: the last of a row may overlap with those before."""
    begins = np.minimum(np.arange(0, width, together), max(width - together, 0))
    columns = (begins[:, None] + np.arange(min(together, width))).reshape(-1)
    n, h, w = np.meshgrid(np.arange(samples), np.arange(height), columns, indexing="ij")
    return n.reshape(-1), h.reshape(-1), w.reshape(-1)


def padded_channels(channels: int) -> int:
    return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Height, width and channels; a tensor of one axis is one pixel, one of two axes one row."""
    height, width, channels = (1, 1, 1, *shape)[-3:]
    return height, width, channels


@dataclass(frozen=True)
class Tensor:
    """A tensor in memory, in elements.

    Attributes:
        place: of the first element of the first sample, behind its border.
        sample, row, pixel: distances from one to the next.
        wide: whether it is int32, in `accumulators`, and has no border.
        zero_point: of the bytes as they are stored.
    """

    place: int
    sample: int
    row: int
    pixel: int
    height: int
    width: int
    channels: int
    wide: bool
    zero_point: int

    @property
    def parameters(self) -> list[int]:
        """As operators take a tensor."""
        return [self.place, self.sample, self.row, self.pixel, self.height, self.width, self.channels]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def channels_from(self, first: int) -> Tensor:
        """The same tensor from a channel on."""
        return replace(self, place=self.place + first, channels=self.channels - first)

    def places_of_pixels(self, positions: Positions, strides: tuple[int, int] = (1, 1)) -> np.ndarray:
        """Offsets of pixels from `place`, flat int64; rows and columns are taken in steps of `strides`."""
        samples, rows, columns = positions
        return samples * self.sample + rows * (strides[0] * self.row) + columns * (strides[1] * self.pixel)

    def places_of_elements(self, channels: int | None = None, border: Border = NO_BORDER) -> np.ndarray:
        """Offsets of the elements of one sample in the order of the channels, then columns, rows: flat int64."""
        h = np.arange(-border[0], self.height + border[1])
        w = np.arange(-border[2], self.width + border[3])
        c = np.arange(self.channels if channels is None else channels)
        return (h[:, None, None] * self.row + w[:, None] * self.pixel + c).reshape(-1)

    def view(self, memory: np.ndarray, samples: int) -> np.ndarray:
        """The tensor `(samples, height, width, channels)` in its memory."""
        strides = [memory.itemsize * distance for distance in (self.sample, self.row, self.pixel, 1)]
        return np.lib.stride_tricks.as_strided(memory[self.place :], (samples, *self.shape), strides)


def byte_offset(dtype: str) -> int:
    """What is added to an integer of this dtype to store it as a byte."""
    return 128 if dtype == "int8" else 0


@dataclass
class Layout:
    """Gives places to tensors, and takes them back; `samples` of each lie one behind the other.

    Attributes:
        bytes_, words: how much of `activations` and `accumulators` is taken.
        borders: (begin, end, zero point) of what must be filled before anything is computed.
    """

    samples: int
    bytes_: int = 0
    words: int = 0
    borders: list[tuple[int, int, int]] = field(default_factory=list)
    _free: dict[tuple[object, ...], list[Tensor]] = field(default_factory=dict)

    def tensor(self, proof: TensorProof, border: Border = NO_BORDER) -> Tensor:
        """A place for a layer's output."""
        height, width, channels = image_shape(proof.shape)
        zero_point = proof.zero_point + byte_offset(proof.dtype)
        return self._place(height, width, channels, proof.dtype == "int32", zero_point, border)

    def accumulators(self, height: int, width: int, channels: int) -> Tensor:
        """A place for accumulators that are not yet rounded."""
        return self._place(height, width, channels, True, 0, NO_BORDER)

    def _place(self, height: int, width: int, channels: int, wide: bool, zero_point: int, border: Border) -> Tensor:
        key = (height, width, padded_channels(channels), wide, border, zero_point if any(border) else None)
        same = self._free.get(key)
        if same:
            found = same.pop()
            return Tensor(found.place, found.sample, found.row, found.pixel, height, width, channels, wide, zero_point)
        top, bottom, left, right = border
        pixel = padded_channels(channels)
        row = (left + width + right) * pixel
        sample = (top + height + bottom) * row
        begin = self.scratch(self.samples * sample, wide)
        if any(border):
            self.borders.append((begin, begin + self.samples * sample, zero_point))
        return Tensor(begin + top * row + left * pixel, sample, row, pixel, height, width, channels, wide, zero_point)

    def scratch(self, count: int, wide: bool) -> int:
        """The place of so many elements that stay taken."""
        if wide:
            begin, self.words = self.words, self.words + count
        else:
            begin, self.bytes_ = self.bytes_, self.bytes_ + count
        return begin

    def give_back(self, tensor: Tensor, border: Border) -> None:
        """The tensor is read no more."""
        value = tensor.zero_point if any(border) else None
        key = (tensor.height, tensor.width, padded_channels(tensor.channels), tensor.wide, border, value)
        self._free.setdefault(key, []).append(tensor)
