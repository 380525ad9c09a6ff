"""The register tiles of the compiled engine, for the tests that go through all of them."""

from intsmooth_ref.engine.jit import simd
from intsmooth_ref.engine.jit.lowering import Tile
from intsmooth_ref.engine.jit.selection import available_isas

#: The instruction sets that run here, but for the plain loops.
VECTOR_ISAS = available_isas()[:-1]


def tiles_of(isa):
    """Every tile of an instruction set, dense ones first."""
    known = simd.INSTRUCTION_SETS[isa]
    dense = [Tile(simd.DENSE, *shape) for shape in known.tiles]
    quads = [Tile(simd.QUADS, *known.quads_tile)] if known.quads_tile else []
    return [*dense, Tile(simd.LANES, *known.lanes_tile), *quads]
