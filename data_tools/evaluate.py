"""The float twin and the integer model certified side by side: `python -m intsmooth_ref.data_tools.evaluate`.

FLOAT.h5 is a float model, INTEGER.h5 what was made of it, DATA.h5 labelled images that neither was trained on. Both are
certified on the same images, in the same order, at the same sigma, n0, n and alpha: the integer model by the package's
own procedure, the float twin by that of Cohen, Rosenfeld and Kolter in floats (`float_certification`); then the integer
model alone with more samples. FOLDER gets

    integer-N.tsv, integer-N.jsonl   table and records of `intsmooth-ref certify`, to the byte, for each N
    float-N.tsv, float-N.jsonl       the same of the float twin: a radius in floats, votes, RUNTIME and its version
    table.md, table.json             the comparison, for people and for programs

Earlier files are moved aside, not overwritten; with --resume an interrupted run goes on, and what is complete stays.
Accuracies, radii and savings are rounded down. An image counts as certified at a radius when it is classified right and
its own radius is not below: an integer comparison of squared grey levels for the integer model, of floats for its twin.
At radius 0 that is: right, and not abstained. For the float twin's best speed take --runtime onnxruntime, which fuses
layers; PyTorch computes each by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shlex
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from intsmooth_ref import __version__
from intsmooth_ref.benchmark.peers import onnxruntime_session
from intsmooth_ref.certify.procedure import Procedure
from intsmooth_ref.certify.radius import radius_sq_at_least
from intsmooth_ref.certify.results import ResultFiles, files_of, move_aside
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.class_names import check_same_classes
from intsmooth_ref.cli import certify as certify_command
from intsmooth_ref.cli.arguments import integer_from, rational
from intsmooth_ref.cli.interruption import Interruption
from intsmooth_ref.cli.messages import counted, one_line
from intsmooth_ref.cli.progress import Progress
from intsmooth_ref.data_tools import float_certification, float_engine
from intsmooth_ref.data_tools.comparison import Certified, Comparison, Storage, as_json, as_markdown, exact_text
from intsmooth_ref.data_tools.float_certification import BATCH, Scores
from intsmooth_ref.data_tools.float_file import load_float_model, other_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.data_tools.program import argument_parser as tool_parser
from intsmooth_ref.data_tools.program import say, status_of
from intsmooth_ref.dataset import Dataset, load_dataset
from intsmooth_ref.errors import DatasetError, ModelFormatError, ParameterError, ResultFileError
from intsmooth_ref.machine import cpu_model, versions
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model

Record = Mapping[str, Any]

MARKDOWN, JSON = "table.md", "table.json"
COLUMNS = certify_command.COLUMNS
#: What computes floats, and what to install for it.
RUNTIMES = {"torch": "the extra `train`", "onnxruntime": "the extra `bench`", "numpy": "nothing more"}
#: Samples of the integer model's second run.
INTEGER_N = 10000
#: Bytes of a float parameter.
FLOAT_BYTES = 4
#: The last column of a results table, as `str(timedelta)` writes it.
TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, eq=False)
class Subjects:
    """What is compared, and on which images.

    Attributes:
        float_sha256: of the float model's file.
        scores: the float model in its runtime.
        classifier: the integer model, smoothed.
        indices: of the images in `data`, in order.
    """

    float_model: FloatModel
    float_sha256: str
    scores: Scores
    classifier: SmoothedClassifier
    data: Dataset
    indices: range

    @property
    def integer_model(self) -> IntegerModel:
        return self.classifier.model


# --- what is compared -------------------------------------------------------------------------------------------------


def float_scores(model: FloatModel, runtime: str, threads: int) -> Scores:
    """The float model made ready.

    Raises:
        ParameterError: if the runtime is not installed.
    """
    try:
        return {"torch": _by_torch, "onnxruntime": _by_onnxruntime, "numpy": _by_numpy}[runtime](model, threads)
    except ImportError as problem:
        found = f"--runtime {runtime}: found that it cannot be imported ({problem})"
        raise ParameterError(f"{found}; expected {RUNTIMES[runtime]}, or --runtime numpy, which is slower") from None


def _by_torch(model: FloatModel, threads: int) -> Scores:
    import torch

    from intsmooth_ref.data_tools.torch_network import TorchNetwork

    torch.set_num_threads(threads)
    network = TorchNetwork(model).eval()

    def scores(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = network(torch.from_numpy(images)).numpy()
        return found

    return scores


def _by_onnxruntime(model: FloatModel, threads: int) -> Scores:
    from intsmooth_ref.data_tools.float_onnx import IMAGES, onnx_bytes

    session = onnxruntime_session(onnx_bytes(model), threads)

    def scores(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {IMAGES: images})[0]
        return found

    return scores


def _by_numpy(model: FloatModel, threads: int) -> Scores:
    return partial(float_engine.scores, model)


def chosen_images(images: int, most: int | None, skip: int | None) -> range:
    """Indices of every skip-th image, up to so many; without `skip`, at most so many that are evenly spread over all.

    A dataset may be sorted by class, so that its first part would show a few classes only.
    """
    if skip is None:
        skip = -(-images // most) if most else 1
    return range(images)[::skip][:most]


def subjects(options: argparse.Namespace) -> Subjects:
    """Read the models and the images, and refuse, before anything is begun, what can lead to nothing."""
    float_model = load_float_model(options.float)
    integer_model = load_model(options.integer).model
    data = load_dataset(options.data, options.split)
    indices = chosen_images(len(data.images), options.max, options.skip)
    _check_matching(float_model, integer_model, data, indices)
    classifier = SmoothedClassifier(integer_model, options.sigma, seed=options.seed, threads=options.threads)
    for n in integer_samples(options):
        classifier.rule(Procedure(options.n0, n, options.alpha))
        classifier.check_image(data.images[indices[-1]], indices[-1], options.n0, n)
    sha256 = hashlib.sha256(options.float.read_bytes()).hexdigest()
    other = other_float_model(integer_model.provenance, sha256)
    if other:
        say(one_line(f"warning: {options.integer}: names another float model ({other}); found {sha256}"))
    scores = float_scores(float_model, options.runtime, options.threads)
    return Subjects(float_model, sha256, scores, classifier, data, indices)


def _check_matching(float_model: FloatModel, integer_model: IntegerModel, data: Dataset, indices: range) -> None:
    """Refuse models that cannot be twins, and images that do not fit them or have no label."""
    twins = [(model.input.shape, model.classes) for model in (float_model, integer_model)]
    if twins[0] != twins[1]:
        twin, integer = (f"images {shape} and {counted(classes, 'class', 'classes')}" for shape, classes in twins)
        raise ModelFormatError(f"the float model: found {twin}; expected {integer}, as the integer model has")
    if data.images.shape[1:] != float_model.input.shape:
        raise DatasetError(f"images {data.images.shape[1:]}; expected {float_model.input.shape}, which the models take")
    for names in (float_model.class_names, integer_model.class_names):
        check_same_classes(data.class_names, names, f"split {data.split!r}")
    labels = data.labels[indices.start : indices.stop : indices.step]
    if not ((labels >= 0) & (labels < float_model.classes)).all():
        found = f"split {data.split!r}: found labels from {labels.min()} to {labels.max()}"
        raise DatasetError(f"{found}; expected one of the models' {float_model.classes} classes for each image")


# --- the two kinds of run ---------------------------------------------------------------------------------------------


def announce(kind: str, n: int, options: argparse.Namespace, subjects: Subjects) -> None:
    """The heading of a run on standard error."""
    images = counted(len(subjects.indices), "image", "images")
    say(f"{kind}: {options.n0:,} + {n:,} samples of {images}")


def integer_run(subjects: Subjects, options: argparse.Namespace, n: int) -> Certified:
    """What `intsmooth-ref certify` does, from where it was interrupted; its summary goes to standard error."""
    announce("integer model", n, options, subjects)
    parser = argparse.ArgumentParser()
    certify_command.add_arguments(parser)
    table = table_path(options.out, "integer", n)
    given = {
        "model": options.integer, "data": options.data, "split": options.split, "sigma": options.sigma, "n": n,
        "n0": options.n0, "alpha": options.alpha, "seed": options.seed, "threads": options.threads,
        "skip": subjects.indices.step, "max": len(subjects.indices), "out": table, "resume": True,
    }  # fmt: skip
    with redirect_stdout(sys.stderr):
        certify_command.run(argparse.Namespace(**{**vars(parser.parse_args([])), **given}))
    engine = subjects.classifier.engine
    return Certified(
        "integer", options.n0, n, ResultFiles(table, COLUMNS).records, integer_reaches, table_seconds(table),
        right_without_noise(subjects, lambda images: engine.classify(images.astype(np.int32))),
        f"intsmooth_ref {__version__}, {engine.name} {engine.isa}", str(options.threads),
    )  # fmt: skip


def float_run(subjects: Subjects, options: argparse.Namespace) -> Certified:
    """The float twin's procedure on all images, from where it was interrupted."""
    announce(f"float twin ({options.runtime})", options.n, options, subjects)
    table = table_path(options.out, "float", options.n)
    files = ResultFiles(table, COLUMNS)
    known = [_known(subjects, options, index) for index in subjects.indices]
    files.check_continues(known[: files.begun])
    left = known[len(files.records) :]
    progress, interruption = Progress(len(left), options.n0 + options.n), Interruption()

    def batch_done(samples: int) -> None:
        progress.samples(samples)
        interruption.check()

    try:
        with interruption, files:
            for record in left:
                begin = time.monotonic()
                found = float_certification.certify(
                    subjects.scores, subjects.data.images[record["idx"]], float(options.sigma), options.n0, options.n,
                    float(options.alpha), float_certification.noise_generator(options.seed, record["idx"]), batch_done,
                )  # fmt: skip
                files.append(_float_record(record, found), time.monotonic() - begin)
                progress.image()
    except KeyboardInterrupt:
        done = f"; {len(files.records)} of {len(known)} images are in {table}: go on with --resume"
        raise KeyboardInterrupt(done) from None
    finally:
        progress.clear()
    return Certified(
        "float", options.n0, options.n, files.records, float_reaches, table_seconds(table),
        right_without_noise(subjects, partial(float_certification.classify, subjects.scores)),
        f"{options.runtime} {versions([options.runtime]).get(options.runtime, '')}",
        "as NumPy's BLAS chooses" if options.runtime == "numpy" else str(options.threads),
    )  # fmt: skip


def _known(subjects: Subjects, options: argparse.Namespace, index: int) -> Record:
    """What the float twin's record of an image says before it is computed."""
    data = subjects.data
    return {
        "idx": index, "label": int(data.labels[index]), "image_sha256": data.image_sha256(index),
        "command": "evaluate", "n0": options.n0, "n": options.n, "alpha": str(options.alpha), "noise": "gaussian",
        "sigma": str(options.sigma), "seed": options.seed, "runtime": options.runtime,
        **{f"{name}_version": version for name, version in versions(["numpy", "scipy", options.runtime]).items()},
        "float_sha256": subjects.float_sha256,
    }  # fmt: skip


def _float_record(known: Record, found: float_certification.FloatCertificate) -> Record:
    """In the order of `intsmooth-ref certify`: the image, what was found, the run."""
    return {
        "idx": known["idx"], "label": known["label"], "predict": found.prediction, "radius": found.radius,
        "selection_votes": list(found.selection_votes), "estimation_votes": list(found.estimation_votes),
        "correct": int(found.prediction == known["label"]), **known,
    }  # fmt: skip


def integer_reaches(record: Record, radius: Fraction) -> bool:
    """`sqrt(radius_sq) / 255 >= radius`, in integers."""
    return bool(record["radius_sq"] >= radius_sq_at_least(radius))


def float_reaches(record: Record, radius: Fraction) -> bool:
    return bool(record["radius"] >= radius)


def table_path(folder: Path, kind: str, n: int) -> Path:
    return folder / f"{kind}-{n}.tsv"


def table_seconds(table: Path) -> list[float]:
    """What the images took, by the last column of a results table.

    Raises:
        ResultFileError: if that is no time.
    """
    seconds = []
    for number, line in enumerate(table.read_text("utf-8").splitlines()[1:], start=2):
        text = line.rpartition("\t")[2]
        parts = TIME.fullmatch(text)
        if parts is None:
            raise ResultFileError(f"{table}: line {number}: found {text[:60]!r}, expected a time such as 0:00:01.5")
        days, hours, minutes, rest = parts.groups(default="0")
        seconds.append(((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(rest))
    return seconds


def right_without_noise(subjects: Subjects, classify: Callable[[np.ndarray], np.ndarray]) -> int:
    """How many of the images are classified right as they are; `classify` takes float32 grey levels `(N, H, W, C)`."""
    right = 0
    for first in range(0, len(subjects.indices), BATCH):
        chosen = list(subjects.indices[first : first + BATCH])
        classes = classify(subjects.data.images[chosen].astype(np.float32))
        right += int((classes == subjects.data.labels[chosen]).sum())
    return right


# --- the program ------------------------------------------------------------------------------------------------------


def compared(subjects: Subjects, options: argparse.Namespace, command: str) -> Comparison:
    """Carry out all runs, or what is left of them."""
    integers = [integer_run(subjects, options, n) for n in integer_samples(options)]
    data, model = subjects.data, subjects.integer_model
    return Comparison(
        images=described(data, subjects.indices),
        parameters={
            "sigma": exact_text(options.sigma), "alpha": exact_text(options.alpha), "n0": options.n0,
            "seed": options.seed,
        },  # fmt: skip
        twin=float_run(subjects, options),
        integers=integers,
        float_storage=Storage(FLOAT_BYTES * subjects.float_model.parameters, options.float.stat().st_size),
        integer_storage=Storage(model.parameter_bytes, options.integer.stat().st_size),
        circumstances={
            "float model": f"{options.float.name}, SHA-256 {subjects.float_sha256}",
            "integer model": f"{options.integer.name}, fingerprint {subjects.classifier.model_sha256}",
            "images": f"{options.data.name}, SHA-256 of the split {data.sha256}",
            "processor": f"{cpu_model()} ({platform.machine()}), {platform.system()}",
            "versions": ", ".join(f"{name} {version}" for name, version in used_versions(options.runtime).items()),
            "command": command,
            "date": datetime.now(timezone.utc).date().isoformat(),
        },
    )


def used_versions(runtime: str) -> Mapping[str, str]:
    names = dict.fromkeys(["numpy", "scipy", "numba", runtime])
    return {**versions(names), "python": platform.python_version()}


def described(data: Dataset, indices: range) -> str:
    """Which images were certified."""
    if len(indices) == len(data.images):
        return f"All {counted(len(indices), 'image', 'images')} of split {data.split!r}"
    which = ", ".join(map(str, indices[:2])) + (f" .. {indices[-1]}" if len(indices) > 2 else "")
    return f"{len(indices)} of the {len(data.images)} images of split {data.split!r}: {which}"


def integer_samples(options: argparse.Namespace) -> Sequence[int]:
    """The n of each integer run, the float twin's first.

    Raises:
        ParameterError: if the second has fewer.
    """
    more = max(INTEGER_N, options.n) if options.integer_n is None else options.integer_n
    if more < options.n:
        raise ParameterError(f"--integer-n {more}: expected as many samples as --n at least, {options.n}")
    return list(dict.fromkeys([options.n, more]))


def run(options: argparse.Namespace, command: str) -> None:
    """Certify, compare, write and print the comparison.

    Args:
        command: that is being run, for the record.
    """
    inputs = [options.float, options.integer, options.data]
    compared_subjects = subjects(options)
    options.out.mkdir(parents=True, exist_ok=True)
    tables = [table_path(options.out, "integer", n) for n in integer_samples(options)]
    tables.append(table_path(options.out, "float", options.n))
    written = [path for table in tables for path in files_of(table, None, inputs)]
    if not options.resume:
        for path, aside in move_aside([*written, options.out / MARKDOWN, options.out / JSON]).items():
            say(one_line(f"{path} was there: moved to {aside}"))
    comparison = compared(compared_subjects, options, command)
    text = as_markdown(comparison)
    (options.out / JSON).write_text(json.dumps(as_json(comparison), indent=2) + "\n", "utf-8")
    (options.out / MARKDOWN).write_text(text, "utf-8")
    print(text, end="")


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser("evaluate", __doc__)
    add = parser.add_argument
    natural = integer_from(1)
    add("float", type=Path, metavar="FLOAT.h5", help="the float model")
    add("integer", type=Path, metavar="INTEGER.h5", help="the integer model that was made of it")
    add("data", type=Path, metavar="DATA.h5", help="labelled images that neither was trained on")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for results; made if it is not there")
    add("--sigma", type=rational, default=Fraction(1, 4), metavar="S",
        help="noise as a fraction of full scale (default: 0.25)")  # fmt: skip
    add("--split", metavar="NAME", help="of the dataset file (default: test, or the only one)")
    add("--max", type=natural, metavar="M",
        help="M images at most, evenly spread over the split; with --skip, the first M of those (default:"
        " all)")  # fmt: skip
    add("--skip", type=natural, metavar="K", help="take every K-th image (default: what spreads M images evenly)")
    add("--n", type=natural, default=1000, metavar="N", help="samples that both are certified with (default: 1000)")
    add("--integer-n", type=natural, metavar="N",
        help=f"samples, --n or more, that the integer model is certified with once more (default: {INTEGER_N}, or as"
        " --n)")  # fmt: skip
    add("--n0", type=natural, default=100, metavar="N0", help="samples that select the class (default: 100)")
    add("--alpha", type=rational, default=Fraction(1, 1000), metavar="A",
        help="probability that an image's result may be wrong (default: 0.001)")  # fmt: skip
    add("--seed", type=integer_from(0), default=0, metavar="S", help="0 to 2**64-1, of the noise (default: 0)")
    add("--threads", type=natural, default=1, metavar="T", help="of both (default: 1)")
    add("--runtime", choices=RUNTIMES, default="torch",
        help="what computes the float twin: PyTorch (the extra `train`), ONNX Runtime (the extra `bench`), or NumPy,"
        " which is slower (default: torch)")  # fmt: skip
    add("--resume", action="store_true", help="go on with the runs in FOLDER")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = argument_parser().parse_args(given)
    command = shlex.join(["python", "-m", "intsmooth_ref.data_tools.evaluate", *given])
    return status_of(lambda: run(options, command), options.out, room="this network, or fewer --threads")


if __name__ == "__main__":
    sys.exit(main())
