"""Certified robustness of image classifiers, with integers only.

    image (uint8) --> noise --> integer network --> votes per class --> certificate

Data flows one way, and each arrow has a room of its own:

    fixedpoint.py    multipliers and the named requantization modes
    interval.py      enclosures of real numbers, every rounding directed outwards
    machine.py       what machine this is, for people to read
    compilation.py   how kernels are compiled, and whether Numba is there
    new_files.py     files that are made, whole or not at all
    class_names.py   what a class may be called, and whether images and a model mean the same classes
    strict_hdf5.py   HDF5 files that always have the same bytes, and reading those of strangers
    dataset.py       images in, once, as hashed uint8 arrays
    noise/           Philox, exact distributions of integers, the sampler
    model/           layers, the proof that their integers stay in range, the model file, the fingerprint
    npz.py           NumPy's archives, the same bytes every time
    engine/          the model computed: `reference.py` specifies, `jit/` compiles it, for the processor at hand
    certify/         votes, bounds, radii, when to stop; files of results, transcripts and their verification
    benchmark/       the compiled engine measured beside other runtimes
    export/          a model as C99, as NumPy arrays, as ONNX: integers only
    backends/        what other runtimes compute, for comparison only
    audit/           what is proven and found about one model, layer by layer; traces and known-answer vectors
    cli/             the command `intsmooth-ref`, one module a subcommand
    data_tools/      converters and training, run by `python -m intsmooth_ref.data_tools.NAME`
    weights/         the embedded model and images

Each may import those above it in this list, never those below; `certify` is where noise and engine meet.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

#: Public names, each loaded with its module when it is first used: importing the package stays light.
_EXPORTS = {
    "ABSTAIN": "certify.smoothing",
    "Certificate": "certify.smoothing",
    "Prediction": "certify.smoothing",
    "SmoothedClassifier": "certify.smoothing",
    "Verifier": "certify.verification",
    "canonical_line": "certify.transcript",
    "read_transcript": "certify.transcript",
    "Engine": "engine",
    "IntegerModel": "model.graph",
    "fingerprint": "model.fingerprint",
    "load_model": "model.hdf5",
    "save_model": "model.hdf5",
    "Dataset": "dataset",
    "load_dataset": "dataset",
    "save_dataset": "dataset",
    "IntsmoothError": "errors",
}

__all__ = sorted(_EXPORTS)

# In a checkout `data_tools/` and `weights/` lie beside the package, not inside it, as they do once it is installed.
_package = Path(__file__).resolve().parent
if not (_package / "data_tools").exists() and (_package.parent / "data_tools" / "__init__.py").exists():
    __path__.append(str(_package.parent))


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
