r"""Chunks of votes: of each 1000 samples a hash of every vote and the votes of each class, and one root over all.

A stage's samples 0, 1, 2, ... are divided into chunks of 1000, the last one being what is left. The hash of a chunk is
the SHA-256 of the classes that its samples gave, unsigned 16-bit integers, little-endian. For the classes 1, 2 and 258:

    printf '\001\000\002\000\002\001' | sha256sum
    5cee00543deba2563699b16e2f82e78b0cfcff62d4116773138461b4e33394b9

The Merkle root is the Merkle Tree Hash of RFC 6962, section 2.1, with the chunks' hashes (32 bytes each) as leaves: a
leaf becomes SHA-256(00 || leaf), a node SHA-256(01 || left || right), where the left part of n > 1 leaves has as many
as the largest power of two below n. So 32 bytes commit to every vote.

Chunks picked at random can be replayed alone. As each states its votes of each class, and these add up to those of the
stage, whoever changes v votes of a stage has to change v / 1000 chunks of it at least.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterable, Iterator

import numpy as np

from ..errors import ParameterError

#: Samples whose classes are hashed together.
CHUNK = 1000

#: A class is hashed as 16 bits.
CLASSES_MAX = 2**16


@dataclass(frozen=True)
class Chunk:
    """The votes of up to 1000 consecutive samples.

    Attributes:
        sha256: of the classes, 64 hexadecimal digits.
        votes: pairs of a class and its votes, classes ascending, of those that have votes.
    """

    sha256: str
    votes: tuple[tuple[int, int], ...]


class Chunks:
    """Divides the classes of consecutive samples into chunks, in whatever pieces they come."""

    def __init__(self) -> None:
        self._finished: list[Chunk] = []
        self._rest = np.empty(0, np.uint16)

    def update(self, classes: np.ndarray) -> None:
        """Take the classes of the samples that come next, integers `(samples,)`.

        Raises:
            ParameterError: if it is no such array, or a class is not in 0 .. 65535.
        """
        if classes.ndim != 1 or classes.dtype.kind not in "iu":
            raise ParameterError(f"classes of {classes.dtype} and shape {classes.shape}: expected integers (samples,)")
        if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < CLASSES_MAX:
            raise ParameterError(f"classes {classes.min()} to {classes.max()}: expected 0 to {CLASSES_MAX - 1}")
        words = np.concatenate([self._rest, classes.astype(np.uint16)])
        whole = len(words) - len(words) % CHUNK
        self._finished += [_chunk(words[begin : begin + CHUNK]) for begin in range(0, whole, CHUNK)]
        self._rest = words[whole:]

    def __iter__(self) -> Iterator[Chunk]:
        """Every chunk so far; the last may be unfinished, and may go on."""
        yield from self._finished
        if self._rest.size:
            yield _chunk(self._rest)


def _chunk(classes: np.ndarray) -> Chunk:
    votes = np.bincount(classes)
    present = np.flatnonzero(votes)
    words = classes.astype("<u2").tobytes()  # here, for what NumPy joins has the byte order of the machine
    return Chunk(hashlib.sha256(words).hexdigest(), tuple(zip(present.tolist(), votes[present].tolist())))


def merkle_root(chunks: Iterable[Chunk]) -> str:
    """The Merkle root over the hashes of chunks, in 64 hexadecimal digits."""
    return merkle_tree_hash(bytes.fromhex(chunk.sha256) for chunk in chunks).hex()


def merkle_tree_hash(leaves: Iterable[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, of any number of leaves in one pass; without leaves it is the hash of no bytes.

    After m leaves `roots` holds the roots of complete trees, one for each bit that is set in m, the largest first: as
    in binary addition, a new leaf joins complete trees of its size as long as there are any. In the end the smallest
    trees join first, so that the left part of every node is complete, as the definition has it.
    """
    roots: list[bytes] = []
    for count, leaf in enumerate(leaves, start=1):
        root = hashlib.sha256(b"\x00" + leaf).digest()
        while count % 2 == 0:
            root = _inner_node(roots.pop(), root)
            count //= 2
        roots.append(root)
    if not roots:
        return hashlib.sha256(b"").digest()
    root = roots.pop()
    while roots:
        root = _inner_node(roots.pop(), root)
    return root


def _inner_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
