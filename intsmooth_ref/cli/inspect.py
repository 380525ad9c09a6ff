"""show a model layer by layer, and check its known answers

Opening a model proves it: shapes, ranges, multipliers, and each layer's worst-case accumulator from the actual
weights. The table gives what was proven. With --check the known answers in the file are computed again.
"""

from __future__ import annotations

import argparse
from math import prod

from .arguments import add_engine, add_model, open_model
from .messages import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--check", action="store_true", help="compute the known answers again; status 1 if they differ")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Print the model; returns the exit status."""
    from ..engine import Engine
    from ..engine.known_answers import first_difference
    from ..errors import ModelFormatError
    from ..model.fingerprint import fingerprint

    opened = open_model(options.model)
    model = opened.model
    print(f"fingerprint {fingerprint(model)}")
    print(f"classes     {model.classes}" + (f": {', '.join(model.class_names)}" if model.class_names else ""))
    print("provenance  " + "\n            ".join(map(one_line, (model.provenance or "not recorded").split("; "))))
    print()
    rows = [("layer", "kind", "shape", "dtype", "zero point", "values", "accumulator", "bits")]
    for layer in model.layers:
        proof = model.proofs[layer.name]
        low, high = proof.accumulator or (0, 0)
        bits = str(max((-low - 1 if low < 0 else low).bit_length(), high.bit_length()) + 1)
        rows.append(
            (
                layer.name, layer.kind, "x".join(map(str, proof.shape)) or "-", proof.dtype, str(proof.zero_point),
                f"{proof.minimum} .. {proof.maximum}", f"{low} .. {high}" if proof.accumulator else "-",
                bits if proof.accumulator else "-",
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    weights = sum(prod(layer.weights.shape) for layer in model.layers if hasattr(layer, "weights"))
    print(f"\n{len(model.layers)} layers, {weights} weights")
    if not options.check:
        return 0
    if opened.known_answers is None:
        raise ModelFormatError(f"{options.model}: holds no known answers to check")
    engine = Engine(model, options.engine, options.isa)
    difference = first_difference(engine, opened.known_answers)
    if difference:
        raise ModelFormatError(f"{options.model or 'the embedded model'}: known answers differ: {difference}")
    images = len(opened.known_answers.inputs)
    print(f"known answers agree: {images} images, every layer, engine {engine.name} ({engine.isa})")
    return 0
