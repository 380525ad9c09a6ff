"""The register tiles of the compiled engine, for the tests that go through all of them."""

from intsmooth_ref.engine.jit import simd
from intsmooth_ref.engine.jit.program import Tile
from intsmooth_ref.engine.jit.selection import available_isas

#: The instruction sets that run here, but for the plain loops.
VECTOR_ISAS = available_isas()[:-1]

#: Height, width and step of windows of depthwise convolutions that are computed by rows: every height, width and step
#: that there is a tile for comes up, but not every combination, for each is a kernel of its own.
WINDOWS = [(3, 3, 1), (4, 5, 2), (1, 1, 1), (2, 2, 1), (3, 4, 3), (1, 5, 1), (4, 1, 2)]


def tiles_of(isa, windows=WINDOWS):
    """Every tile of an instruction set, dense ones first; by rows, those for the given windows."""
    known = simd.INSTRUCTION_SETS[isa]
    dense = [Tile(simd.DENSE, *shape) for shape in known.tiles]
    quads = [Tile(simd.QUADS, *known.quads_tile)] if known.quads_tile else []
    kinds = [simd.rows_of(*window) for window in windows] if known.rows_pixels else []
    rows = [Tile(kind, known.rows_pixels, simd.TAPS) for kind in kinds]
    return [*dense, Tile(simd.LANES, *known.lanes_tile), *quads, *rows]
