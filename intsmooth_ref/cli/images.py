"""The run over the images of a dataset, which certify and predict share: order, files, resumption, progress."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

import numpy as np

from ..certify.results import ResultFiles, check_continues, move_aside, read_run, records_path, table_line
from ..errors import ParameterError, ResultFileError
from .arguments import open_classifier, open_data
from .interruption import Interruption
from .progress import Progress

if TYPE_CHECKING:
    from ..certify.smoothing import SmoothedClassifier

Record = Mapping[str, Any]
#: `Task`: from a classifier, an image, its index and a progress callback to the image's part of the record.
Check = Callable[["SmoothedClassifier"], None]
Task = Callable[["SmoothedClassifier", np.ndarray, int, Callable[[int], None]], Record]


def run_over_images(
    options: argparse.Namespace, parameters: Record, columns: Sequence[str], samples_per_image: int, check: Check,
    task: Task,
) -> tuple[Sequence[Record], Progress]:  # fmt: skip
    """Run `task` on each chosen image; write the table and the records line by line.

    Args:
        options: of the command line.
        parameters: what the records say of this kind of run, besides model, noise and seed.
        columns: of the table, `time` left out.
        samples_per_image: for the time left.
        check: refuses parameters that can lead to nothing, before anything is begun.

    Returns:
        All records, those of a resumed run included, and what was counted.
    """
    if options.resume and options.out is None:
        raise ParameterError("--resume: needs --out, the file of the run to go on with")
    begun = read_run(options.out) if options.resume else None
    seed = options.seed if options.seed is not None or begun is None else begun.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise ResultFileError(f"{records_path(options.out)}: line 1: found seed {seed!r}, expected an integer")
    classifier = open_classifier(options, seed)
    data = open_data(options.data, options.split, options.model)
    indices = range(len(data.images))[:: options.skip][: options.max]
    run = {**parameters, **_description(classifier)}
    for index in (indices[0], indices[-1]):
        classifier.check_image(data.images[index], index, options.n)
    check(classifier)

    def known(index: int) -> Record:
        """What the record of an image says before it is computed."""
        return {"idx": index, "label": int(data.labels[index]), "image_sha256": data.image_sha256(index), **run}

    files = _open_files(options, columns)
    if files:
        check_continues(files.records, [known(index) for index in indices[: len(files.records)]], options.out)
    records: list[Record] = list(files.records) if files else []
    if files is None:
        print("\t".join([*columns, "time"]), flush=True)
    progress, interruption = Progress(len(indices) - len(records), samples_per_image), Interruption()

    def batch_done(samples: int) -> None:
        progress.samples(samples)
        interruption.check()

    try:
        with interruption, files or nullcontext():
            for index in indices[len(records) :]:
                begin = time.monotonic()
                found = task(classifier, data.images[index], index, batch_done)
                record = _record(known(index), found)
                seconds = time.monotonic() - begin
                if files:
                    files.append(record, seconds)
                else:
                    progress.clear()
                    print(table_line(record, columns, seconds), flush=True)
                records.append(record)
                progress.image()
    except KeyboardInterrupt:
        kept = f"; {len(records)} of {len(indices)} images are in {options.out}: go on with --resume" if files else ""
        raise KeyboardInterrupt(kept) from None
    finally:
        progress.clear()
    return records, progress


def _record(known: Record, found: Record) -> Record:
    """The image first, then what was found, then the run; an image without a label is never correct."""
    correct = int(found["predict"] == known["label"] and known["label"] >= 0)
    image = {name: known[name] for name in ("idx", "label")}
    return {**image, **found, "correct": correct, **known}


def _description(classifier: SmoothedClassifier) -> Record:
    """What every record says of noise, seed and model."""
    from ..model.fingerprint import fingerprint

    return {
        "noise": "discrete_gaussian",
        "sigma_levels": str(classifier.sigma_levels),
        "generator": "Philox4x32-10",
        "seed": classifier.seed,
        "model_sha256": fingerprint(classifier.model),
    }


def _open_files(options: argparse.Namespace, columns: Sequence[str]) -> ResultFiles | None:
    table: Path | None = options.out
    if table is None:
        return None
    if not options.resume:
        aside = move_aside(table)
        if aside is not None:
            print(f"intsmooth-ref: {table} was there: moved to {aside}", file=sys.stderr)
    return ResultFiles(table, columns)


def print_summary(options: argparse.Namespace, lines: Sequence[str], progress: Progress, seed: int) -> None:
    """The summary: to standard output, or to standard error where the table goes to standard output."""
    speed = f"{progress.samples_per_second} samples/s" if progress.samples_done else "nothing left to do"
    where = [f"table {options.out}, records {records_path(options.out)}"] if options.out else []
    text = "\n".join([*lines, f"seed {seed}; {speed} in {progress.seconds:.1f} s", *where])
    print(text, file=sys.stdout if options.out else sys.stderr)
