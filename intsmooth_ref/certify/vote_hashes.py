r"""Hashes of votes: one for each chunk of 1000 samples, and one root over all chunks of a stage.

A stage's samples 0, 1, 2, ... are divided into chunks of 1000, the last one being what is left. The hash of a chunk is
the SHA-256 of the classes that its samples gave, unsigned 16-bit integers, little-endian. For the classes 1, 2 and 258:

    printf '\001\000\002\000\002\001' | sha256sum
    5cee00543deba2563699b16e2f82e78b0cfcff62d4116773138461b4e33394b9

The Merkle root is the Merkle Tree Hash of RFC 6962, section 2.1, with the chunks' hashes (32 bytes each) as leaves: a
leaf becomes SHA-256(00 || leaf), a node SHA-256(01 || left || right), where the left part of n > 1 leaves has as many
as the largest power of two below n. So 32 bytes commit to every vote, and chunks picked at random can be replayed
alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Iterable

from ..errors import ParameterError

if TYPE_CHECKING:
    import numpy as np

#: Samples whose classes are hashed together.
CHUNK = 1000

#: A class is hashed as 16 bits.
CLASSES_MAX = 2**16


def merkle_root(chunks: Iterable[str]) -> str:
    """The Merkle root over the hashes of chunks, 64 hexadecimal digits each, in 64 hexadecimal digits."""
    return merkle_tree_hash(map(bytes.fromhex, chunks)).hex()


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


class ChunkHasher:
    """Hashes the classes of consecutive samples chunk by chunk, in whatever pieces they come."""

    def __init__(self) -> None:
        self._finished: list[str] = []
        self._chunk, self._samples = hashlib.sha256(), 0

    def update(self, classes: np.ndarray) -> None:
        """Take the classes of the samples that come next, integers `(samples,)`.

        Raises:
            ParameterError: if it is no such array, or a class is not in 0 .. 65535.
        """
        if classes.ndim != 1 or classes.dtype.kind not in "iu":
            raise ParameterError(f"classes of {classes.dtype} and shape {classes.shape}: expected integers (samples,)")
        if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < CLASSES_MAX:
            raise ParameterError(f"classes {classes.min()} to {classes.max()}: expected 0 to {CLASSES_MAX - 1}")
        content = memoryview(classes.astype("<u2").tobytes())
        while content:
            piece = content[: 2 * (CHUNK - self._samples)]
            content = content[len(piece) :]
            self._chunk.update(piece)
            self._samples += len(piece) // 2
            if self._samples == CHUNK:
                self._finished.append(self._chunk.hexdigest())
                self._chunk, self._samples = hashlib.sha256(), 0

    def hexdigests(self) -> tuple[str, ...]:
        """The hash of every chunk so far, 64 hexadecimal digits each; the last may be unfinished, and may go on."""
        unfinished = [self._chunk.hexdigest()] if self._samples else []
        return (*self._finished, *unfinished)
