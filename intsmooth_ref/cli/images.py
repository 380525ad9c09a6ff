"""The run over the images of a dataset, which certify and predict share: order, files, resumption, progress."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from ..certify.results import ResultFiles, files_of, move_aside, read_run, records_path, table_line
from ..class_names import check_same_classes
from ..errors import ParameterError, ResultFileError
from .arguments import open_classifier, open_data
from .interruption import Interruption
from .messages import one_line, say
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier
    from ..dataset import Dataset

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What was found of one image: its part of the record, and its line of the transcript, if there is one."""

    fields: Record
    certificate: bytes = b""


#: From an image, what is known of its record before it is computed, and a progress callback to what is found.
Task = Callable[["np.ndarray", Record, Callable[[int], None]], Found]


@dataclass(frozen=True)
class Job:
    """A kind of run: what its records say of it, how many samples an image takes at most, and what is done."""

    parameters: Record
    samples_per_image: int
    task: Task


#: Makes a run ready for so many images; refuses, before anything is begun, what can lead to nothing.
Prepare = Callable[["SmoothedClassifier", int], Job]


@dataclass(frozen=True)
class Run:
    """A run that is complete: all its records, those of a resumed run included, of which images, what was counted."""

    records: Sequence[Record]
    subset: str
    progress: Progress


def run_over_images(options: argparse.Namespace, columns: Sequence[str], prepare: Prepare) -> Run:
    """Carry out the task on each chosen image; write the table, the records and the transcript line by line.

    Args:
        options: of the command line.
        columns: of the table, `time` left out.
        prepare: makes the run ready.
    """
    if options.resume and options.out is None:
        raise ParameterError("--resume: needs --out, the file of the run to go on with")
    transcript: Path | None = getattr(options, "transcript", None)
    written = files_of(options.out, transcript, [path for path in (options.model, options.data) if path])
    begun = read_run(options.out) if options.resume else None
    seed = options.seed if options.seed is not None or begun is None else begun.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise ResultFileError(f"{records_path(options.out)}: line 1: found seed {seed!r}, expected an integer")
    classifier = open_classifier(options, seed)
    data = open_data(options.data, options.split, options.model)
    check_same_classes(data.class_names, classifier.model.class_names, options.data or "the embedded images")
    indices = range(len(data.images))[:: options.skip][: options.max]
    for index in (indices[0], indices[-1]):
        classifier.check_image(data.images[index], index, options.n, getattr(options, "n0", options.n))
    job = prepare(classifier, len(indices))
    run = {**job.parameters, **_description(classifier)}

    def known(index: int) -> Record:
        """What the record of an image says before it is computed."""
        return {"idx": index, "label": int(data.labels[index]), "image_sha256": data.image_sha256(index), **run}

    if not options.resume:
        for path, aside in move_aside(written).items():
            say(f"{path} was there: moved to {aside}")
    files = ResultFiles(options.out, columns, transcript)
    files.check_continues([known(index) for index in indices[: files.begun]])
    records: list[Record] = list(files.records)
    progress, interruption = Progress(len(indices) - len(records), job.samples_per_image), Interruption()

    def batch_done(samples: int) -> None:
        progress.samples(samples)
        interruption.check()

    try:
        with interruption, files:
            if options.out is None:
                print("\t".join([*columns, "time"]), flush=True)
            for index in indices[len(records) :]:
                begin = time.monotonic()
                found = job.task(data.images[index], known(index), batch_done)
                record = _record(known(index), found.fields)
                seconds = time.monotonic() - begin
                files.append(record, seconds, found.certificate)
                if options.out is None:
                    progress.clear()
                    print(table_line(record, columns, seconds), flush=True)
                records.append(record)
                progress.image()
    except KeyboardInterrupt:
        done = f"; {len(records)} of {len(indices)} images are in"
        kept = f"{done} {options.out}: go on with --resume" if options.out else f"{done} {transcript}"
        raise KeyboardInterrupt(kept if written else "") from None
    finally:
        progress.clear()
    return Run(records, _subset(data, indices), progress)


def _subset(data: Dataset, indices: range) -> str:
    """Which images a summary speaks of."""
    of = f"{len(indices)} of the {len(data.images)} images of split {data.split!r}"
    if len(indices) == len(data.images):
        return f"all {len(indices)} images of split {data.split!r}"
    if indices.step == 1 or len(indices) == 1:
        return f"{of}: {indices[0]} to {indices[-1]}" if len(indices) > 1 else f"{of}: {indices[0]}"
    return f"{of}: {indices[0]}, {indices[1]} .. {indices[-1]}"


def _record(known: Record, found: Record) -> Record:
    """The image first, then what was found, then the run; an image without a label is never correct."""
    correct = int(found["predict"] == known["label"] and known["label"] >= 0)
    image = {name: known[name] for name in ("idx", "label")}
    return {**image, **found, "correct": correct, **known}


def _description(classifier: SmoothedClassifier) -> Record:
    """What every record says of noise, seed and model."""
    from ..certify.transcript import LAWS

    noise = classifier.noise
    return {
        "noise": noise.name,
        f"{LAWS[noise.name].parameter}_levels": str(noise.parameter),
        "generator": "Philox4x32-10",
        "seed": classifier.seed,
        "model_sha256": classifier.model_sha256,
    }


def print_summary(options: argparse.Namespace, lines: Sequence[str], run: Run) -> None:
    """The summary: to standard output, or to standard error where the table goes to standard output."""
    progress, transcript = run.progress, getattr(options, "transcript", None)
    speed = f"{progress.samples_per_second} samples/s" if progress.samples_done else "nothing left to do"
    where = [f"table {options.out}, records {records_path(options.out)}"] if options.out else []
    where += [f"transcript {transcript}"] if transcript else []
    speed_line = f"seed {run.records[0]['seed']}; {speed} in {progress.seconds:.1f} s"
    text = "\n".join([*lines, speed_line, *map(one_line, where)])
    print(text, file=sys.stdout if options.out else sys.stderr)
