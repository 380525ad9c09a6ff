"""The command line: same bytes however it is run, one clear line for every mistake, nothing certified is ever lost."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from intsmooth_ref.certify.radius import radius_text
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import rational, rationals
from intsmooth_ref.cli.messages import one_line
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.engine.known_answers import make_known_answers
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import KnownAnswers, save_model
from threshold_model import threshold_model

IMAGES = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of two classes and twelve flat images, from far below its threshold to far above."""
    folder = tmp_path_factory.mktemp("files")
    model = threshold_model()
    images = np.repeat(np.linspace(60, 200, IMAGES).astype(np.uint8), 9).reshape(IMAGES, 3, 3, 1)
    labels = (images[:, 0, 0, 0] > 128).astype(np.int64)
    save_model(folder / "model.h5", model, make_known_answers(model, images.astype(np.int32)))
    save_dataset(folder / "data.h5", [Dataset(images, labels, ("dark", "bright"), "made by a test", "test")])
    np.save(folder / "data.npy", images)
    return folder


def run(capsys, *arguments):
    """Exit status, standard output and standard error of one command, in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def without_time(path):
    return [line.split("\t")[:-1] for line in path.read_text().splitlines()]


def certify(files, *more, engine="reference"):
    return ("certify", files / "model.h5", files / "data.h5", "--n", 200, "--n0", 20, "--engine", engine, *more)


def test_engine_threads_and_batch_change_no_byte_but_the_time(files, tmp_path, capsys):
    variants = [("reference", 1, 100), ("reference", 2, 33)]
    variants += [("jit", 1, 100), ("jit", 2, 7)] if numba_available() else []
    contents = set()
    for number, (engine, threads, batch) in enumerate(variants):
        out = tmp_path / f"{number}.tsv"
        arguments = certify(files, "--seed", 7, "--threads", threads, "--batch", batch, "--out", out, engine=engine)
        assert run(capsys, *arguments)[0] == 0
        contents.add((str(without_time(out)), (tmp_path / f"{number}.jsonl").read_bytes()))
    assert len(contents) == 1


def test_the_table_goes_to_standard_output_and_the_summary_does_not(files, capsys):
    status, out, err = run(capsys, *certify(files, "--seed", 7))
    lines = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and lines[0] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert [line[0] for line in lines[1:]] == [str(index) for index in range(IMAGES)]
    assert "certified accuracy" in err and "seed 7" in err and "certified accuracy" not in out


def test_the_records_hold_all_that_repeats_the_run(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    assert run(capsys, *certify(files, "--out", out, "--sigma-levels", "51/2"))[0] == 0
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [set(record) for record in records] == [
        {"idx", "label", "predict", "radius", "radius_sq", "selection_votes", "estimation_votes", "correct",
         "image_sha256", "command", "n0", "n", "alpha", "noise", "sigma_levels", "generator", "seed", "model_sha256"}
    ] * IMAGES  # fmt: skip
    for record, line in zip(records, without_time(out)[1:]):
        assert record["sigma_levels"] == "51/2" and record["alpha"] == "1/1000"
        assert sum(record["estimation_votes"]) == record["n"] == 200 and sum(record["selection_votes"]) == 20
        assert line == [str(record[name]) for name in ("idx", "label", "predict", "radius", "correct")]
        assert record["radius"] == radius_text(record["radius_sq"])
        assert record["correct"] == (record["predict"] == record["label"])
    again = tmp_path / "b.tsv"
    seed = records[0]["seed"]
    assert run(capsys, *certify(files, "--out", again, "--sigma", "1/10", "--seed", seed))[0] == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_max_counts_the_images_that_skip_leaves(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    run(capsys, *certify(files, "--skip", 5, "--max", 2, "--out", out))
    assert [line[0] for line in without_time(out)[1:]] == ["0", "5"]


def test_an_image_has_the_same_result_in_any_run(files, tmp_path, capsys):
    for name, more in (("all", ()), ("some", ("--skip", 3))):
        run(capsys, *certify(files, "--seed", 1, "--out", tmp_path / f"{name}.tsv", *more))
    assert without_time(tmp_path / "some.tsv")[1:] == without_time(tmp_path / "all.tsv")[1::3]


def test_a_resumed_run_ends_with_the_same_bytes(files, tmp_path, capsys):
    whole, part = tmp_path / "whole.tsv", tmp_path / "part.tsv"
    run(capsys, *certify(files, "--seed", 7, "--out", whole))
    run(capsys, *certify(files, "--seed", 7, "--out", part, "--max", 5))
    with open(part, "ab") as file:
        file.write(b"5\t1\t1\t0.")  # cut short by a crash
    assert run(capsys, *certify(files, "--out", part, "--resume"))[0] == 0  # the seed comes from the records
    assert without_time(part) == without_time(whole)
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    status, out, err = run(capsys, *certify(files, "--out", part, "--resume"))
    assert status == 0 and "nothing left to do" in out
    status, out, err = run(capsys, *certify(files, "--out", part, "--resume", "--n0", 21))
    assert status == 1 and "was begun with n0 20, cannot be resumed with n0 21" in err


def test_a_run_is_not_resumed_on_other_images(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    run(capsys, *certify(files, "--out", out, "--max", 2))
    images = np.load(files / "data.npy")
    images[1, 0, 0, 0] += 1
    np.savez(tmp_path / "other.npz", images=images, labels=np.zeros(IMAGES, np.int64))
    arguments = ("certify", files / "model.h5", tmp_path / "other.npz", "--n", 200, "--n0", 20, "--engine", "reference")
    status, _, err = run(capsys, *arguments, "--out", out, "--resume")
    assert status == 1 and "line 2: was begun with image_sha256" in err


def test_earlier_results_are_moved_aside(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    run(capsys, *certify(files, "--max", 2, "--out", out))
    before = out.read_bytes()
    status, _, err = run(capsys, *certify(files, "--max", 1, "--out", out))
    assert status == 0 and f"{out} was there: moved to {out}.1" in err
    assert (tmp_path / "a.tsv.1").read_bytes() == before and (tmp_path / "a.jsonl.1").exists()


def test_images_without_labels_are_certified(files, tmp_path, capsys):
    arguments = ("certify", files / "model.h5", files / "data.npy", "--n", 100, "--engine", "reference")
    status, out, err = run(capsys, *arguments, "--out", tmp_path / "a.tsv")
    assert status == 0 and "certified accuracy" not in out and "certified  " in out
    assert all(line[1] == "-1" and line[4] == "0" for line in without_time(tmp_path / "a.tsv")[1:])


def test_predict_says_the_class_or_abstains(files, tmp_path, capsys):
    arguments = ("predict", files / "model.h5", files / "data.h5", "--n", 100, "--seed", 5, "--engine", "reference")
    status, out, _ = run(capsys, *arguments, "--out", tmp_path / "p.tsv")
    lines = without_time(tmp_path / "p.tsv")
    assert status == 0 and lines[0] == ["idx", "label", "predict", "correct"]
    assert lines[1] == ["0", "0", "0", "1"] and lines[-1] == ["11", "1", "1", "1"]
    assert f"{IMAGES} images" in out


def test_without_labels_or_names_nothing_is_counted_as_wrong_or_refused(files, tmp_path, capsys):
    save_model(tmp_path / "named.h5", IntegerModel(threshold_model().layers, ("day", "night")))
    arguments = ("--n", 100, "--seed", 5, "--engine", "reference", "--max", 1, "--out", tmp_path / "p.tsv")
    status, out, _ = run(capsys, "predict", tmp_path / "named.h5", files / "data.npy", *arguments)
    assert status == 0 and " correct" not in out and "\n0 abstained\n" in out


def test_inspect_shows_the_proof_and_checks_the_known_answers(files, tmp_path, capsys):
    status, out, _ = run(capsys, "inspect", files / "model.h5", "--check", "--engine", "reference")
    assert status == 0 and "known answers agree: 12 images, every layer, engine reference" in out
    assert "scores  Linear" in out and "fingerprint" in out
    model = threshold_model()
    known = make_known_answers(model, np.zeros((1, 3, 3, 1), np.int32))
    wrong = KnownAnswers(known.inputs, known.outputs, {**known.layer_sha256, "flat": "0" * 64})
    save_model(tmp_path / "wrong.h5", model, wrong)
    status, _, err = run(capsys, "inspect", tmp_path / "wrong.h5", "--check", "--engine", "reference")
    assert status == 1 and "known answers differ: layer 'flat': SHA-256 of the output is" in err
    save_model(tmp_path / "none.h5", IntegerModel(model.layers, (), "made by a\nof b; began as: \x1b"))
    out = run(capsys, "inspect", tmp_path / "none.h5")[1]
    assert "\nprovenance  made by a\\nof b\n            began as: \\x1b\n\n" in out
    status, _, err = run(capsys, "inspect", tmp_path / "none.h5", "--check")
    assert status == 1 and "holds no known answers to check" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "the following arguments are required: COMMAND"),
        (["fly"], 2, "invalid choice: 'fly'"),
        (["certify", "--n", "0"], 2, "--n: '0': expected an integer, at least 1"),
        (["certify", "--n", "many"], 2, "--n: 'many': expected an integer"),
        (["certify", "--sigma", "x"], 2, "--sigma: 'x' is no number; expected one such as 0.25"),
        (["certify", "--sigma", "1", "--sigma-levels", "1"], 2, "not allowed with argument --sigma"),
        (["certify", "--engine", "gpu"], 2, "--engine: invalid choice: 'gpu'"),
        (["certify", "--seed", "-1"], 2, "--seed: '-1': expected an integer, at least 0"),
        (["certify", "--unknown"], 2, "unrecognized arguments: --unknown"),
        (["certify", "MODEL", "DATA", "--n", "9"], 1, "9 samples cannot certify anything at alpha = 0.001"),
        (["certify", "MODEL", "DATA", "--alpha", "1"], 1, "alpha 1: expected a probability strictly between"),
        (["certify", "MODEL", "DATA", "--sigma", "5"], 1, "1024"),
        (["certify", "MODEL", "DATA", "--seed", "18446744073709551616"], 1, "18446744073709551616"),
        (["certify", "MODEL", "DATA", "--split", "train"], 1, "train"),
        (["certify", "MODEL", "DATA", "--resume"], 1, "--resume: needs --out"),
        (["certify", "MODEL", "DATA", "--out", "/nonexistent/a.tsv"], 1, "No such file or directory"),
        (["certify", "MODEL"], 1, "expected a data file after the model"),
        (["certify", "missing.h5", "DATA"], 1, "missing.h5"),
        (["certify", "DATA", "DATA"], 1, "of format 'intsmooth-ref images'; expected 'intsmooth-ref model'"),
        (["certify", "MODEL", "MODEL"], 1, "of format 'intsmooth-ref model'; expected 'intsmooth-ref images'"),
        (["certify", "NAMED", "DATA"], 1, "data.h5: found class 0 called 'dark'; expected 'day', as in the model"),
        (["predict", "NAMED", "DATA"], 1, "data.h5: found class 0 called 'dark'; expected 'day', as in the model"),
        (["certify", "NAMED", "THREE"], 1, "found 3 named classes (a, b, c); expected 2 (day, bright), the model's"),
        (["certify", "MODEL", "FOLDER"], 1, "image_folder"),
        (["certify", "MODEL", "WRONG"], 1, "expected uint8 (3, 3, 1), which the model takes"),
        (["predict", "MODEL", "DATA", "--n", "10"], 1, "expected at least 11"),
        (["inspect", "missing.h5"], 1, "missing.h5"),
    ],
)
def test_a_mistake_ends_in_one_line_and_a_status(files, tmp_path, capsys, arguments, status, message):
    np.save(tmp_path / "wrong.npy", np.zeros((2, 4, 4, 1), np.uint8))
    save_model(tmp_path / "named.h5", IntegerModel(threshold_model().layers, ("day", "bright")))
    np.savez(tmp_path / "three.npz", images=np.zeros((1, 3, 3, 1), np.uint8), class_names=["a", "b", "c"])
    places = {"MODEL": files / "model.h5", "DATA": files / "data.h5", "FOLDER": tmp_path,
              "WRONG": tmp_path / "wrong.npy", "NAMED": tmp_path / "named.h5",
              "THREE": tmp_path / "three.npz"}  # fmt: skip
    found, out, err = run(capsys, *(places.get(argument, argument) for argument in arguments))
    assert found == status and message in err and err.count("\n") == 1 and err.startswith("intsmooth-ref")
    assert out == ""


def command(*arguments):
    return [sys.executable, "-m", "intsmooth_ref", *(str(argument) for argument in arguments)]


def test_ctrl_c_keeps_what_is_certified_and_resume_completes_it(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    arguments = certify(files, "--seed", 7, "--n", 100000, "--out", out)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (out.exists() and out.read_text().count("\n") >= 3):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1
    done = out.read_text().count("\n") - 1
    assert 2 <= done < IMAGES and f"interrupted; {done} of {IMAGES} images are in {out}: go on with --resume" in err
    before = out.read_bytes()
    limit = done + 1
    assert run(capsys, *arguments, "--resume", "--max", limit)[0] == 0
    assert out.read_bytes().startswith(before) and out.read_text().count("\n") == limit + 1


def test_a_full_disk_keeps_what_is_certified(files, tmp_path):
    out = tmp_path / "a.tsv"
    arguments = certify(files, "--seed", 7, "--out", out)

    def allow_two_kilobytes():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    run_ = subprocess.run(command(*arguments), capture_output=True, text=True, preexec_fn=allow_two_kilobytes,
                          env=environment)  # fmt: skip
    complete = out.read_text().count("\n") - 1
    assert run_.returncode == 1 and run_.stderr.count("\n") == 1
    assert f"File too large; {complete} images are complete" in run_.stderr and 1 <= complete < IMAGES
    assert subprocess.run(command(*arguments, "--resume"), capture_output=True).returncode == 0
    assert out.read_text().count("\n") == IMAGES + 1


def test_a_closed_pipe_ends_the_run_without_a_traceback(files):
    process = subprocess.Popen(command(*certify(files)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141 and "Traceback" not in err


def test_help_names_every_subcommand(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(name in out for name in ("certify", "predict", "inspect"))


def test_a_fault_of_the_program_is_one_line_too(files, capsys, monkeypatch):
    def fault(*_):
        raise ZeroDivisionError("a\nfault")

    monkeypatch.setattr("intsmooth_ref.certify.procedure.certified_budget", fault)
    status, _, err = run(capsys, *certify(files))
    assert status == 70 and err.count("\n") == 1 and "a fault of this program: ZeroDivisionError: a fault;" in err
    monkeypatch.setenv("INTSMOOTH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(capsys, *certify(files))


def contents(folder):
    """Every name in a folder, with what kind of file it is and what it holds."""
    found = {}
    for path in folder.iterdir():
        status = path.lstat()
        found[path.name] = (status.st_mode, status.st_ino, path.read_bytes() if stat.S_ISREG(status.st_mode) else b"")
    return found


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "folder.tsv"), "folder.tsv: is no regular file"),
        (("--out", "a.tsv", "--transcript", "folder.tsv"), "folder.tsv: is no regular file"),
        (("--out", "a.tsv", "--transcript", "pipe"), "pipe: is no regular file"),
        (("--out", "b.tsv"), "b.jsonl: is no regular file"),
        (("--out", "b.tsv", "--resume"), "b.jsonl: is no regular file"),
        (("--transcript", "device"), "device: is no regular file"),
        (("--out", "a.tsv", "--transcript", "nowhere"), "nowhere: is a link to nothing"),
        (("--out", "a.tsv", "--transcript", "loop"), "loop: cannot be written: Too many levels of symbolic links"),
        (("--out", "a.tsv", "--transcript", "missing/t"), "missing/t: cannot be written: No such file or directory"),
        (("--out", "a.tsv", "--transcript", "a.tsv/t"), "a.tsv/t: cannot be written: Not a directory"),
        (("--out", "a.tsv", "--transcript", "x" * 256), "xxx: cannot be written: File name too long"),
        (("--out", "a.tsv", "--transcript", ""), ".: is no regular file"),
        (("--out", ""), ".: is no regular file"),
        (("--out", "/"), "/: is no regular file"),
        (("--out", "a.jsonl"), "a.jsonl: this ending is kept for the records"),
        (("--out", "A.JSONL"), "A.JSONL: this ending is kept for the records"),
        (("--out", "a.tsv", "--transcript", "FOLDER/a.tsv"), "two files of this run, the table and the transcript"),
        (("--out", "a.tsv", "--transcript", "a.jsonl"), "the records of a.tsv and the transcript: expected"),
        (("--out", "c.tsv", "--transcript", "c.jsonl"), "the records of c.tsv and the transcript"),
        (("--out", "c.tsv", "--transcript", "./c.tsv"), "two files of this run, the table and the transcript"),
        (("--out", "data.h5"), "data.h5: is read by this run"),
        (("--out", "a.tsv", "--n0", "5000000000"), "sample count 5000000000"),
        (("--out", "a.tsv", "--n", "5000000000"), "sample count 5000000000"),
    ],
)
def test_a_run_that_is_refused_leaves_every_file_as_it_was(files, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tsv").mkdir()
    for name in ("pipe", "b.jsonl"):
        os.mkfifo(tmp_path / name)
    try:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:  # only the superuser makes devices
        os.mkfifo(tmp_path / "device")
    for name in ("nowhere", "loop"):
        (tmp_path / name).symlink_to("loop" if name == "loop" else "missing")
    for name in ("a.tsv", "a.jsonl"):
        (tmp_path / name).write_text("earlier results")
    (tmp_path / "data.h5").write_bytes((files / "data.h5").read_bytes())
    before = contents(tmp_path)
    more = [each.replace("FOLDER", str(tmp_path)) for each in more]
    command_line = ("certify", files / "model.h5", "data.h5", "--n", 200, "--engine", "reference", *more)
    status, out, err = run(capsys, *command_line)
    assert status == 1 and message in err and err.count("\n") == 1 and out == ""
    assert contents(tmp_path) == before


def lines_of(path, number):
    return b"".join(path.read_bytes().splitlines(True)[:number])


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        # what was never of this run
        ({"t.jsonl": b"my notes\nof many years\n"}, (), "t.jsonl: holds 2 certificates, expected the 4 of"),
        ({"a.tsv": b"my notes\n"}, (), "a.tsv: found the header 'my notes'"),
        ({"a.tsv": b"my notes", "a.jsonl": None, "t.jsonl": None}, (), "a.tsv: found 'my notes', expected results"),
        ({"a.tsv": None, "a.jsonl": b"my notes", "t.jsonl": None}, (), "a.jsonl: found 'my notes', expected results"),
        ({"a.tsv": None, "a.jsonl": b"[" * 100000 + b"\n"}, (), "a.jsonl: line 1: found '[[["),
        ({"a.tsv": None, "a.jsonl": None, "t.jsonl": b"my notes"}, (), "t.jsonl: found 'my notes', expected results"),
        ({"a.tsv": None, "a.jsonl": None, "t.jsonl": b"my notes\n"}, (), "t.jsonl: line 1: $: found my, expected"),
        ({"a.tsv": None, "a.jsonl": None, "t.jsonl": 1}, ("--seed", 8), "t.jsonl: line 1: found image 0, expected the"
         " certificate of image 0 of this run: its seed is 7, not 8"),
        ({"a.tsv": None, "a.jsonl": None, "t.jsonl": 1}, ("--seed", 7, "--norm", "L1", "--bound", "two-class"),
         "its bound is None, not 'two-class'"),
        # more missing than an interruption takes
        ({"a.tsv": None}, (), "a.jsonl: holds 4 records, expected the 0 of"),
        ({"a.tsv": 3}, (), "a.jsonl: holds 4 records, expected the 2 of"),
        ({"a.jsonl": None}, (), "a.jsonl: holds 0 records, expected the 4 of"),
        ({"a.jsonl": 3}, (), "a.jsonl: holds 3 records, expected the 4 of"),
        ({"t.jsonl": 3}, (), "t.jsonl: holds 3 certificates, expected the 4 of"),
        ({"t.jsonl": 3}, (), "the run went on without --transcript, and can only go on without it; begin anew without"),
        ({"t.jsonl": None}, (), "t.jsonl: holds 0 certificates, expected the 4 of"),
        ({"t.jsonl": None}, (), "the run was begun without --transcript, and can only go on without it; begin anew"),
        ({"a.tsv": 3, "a.jsonl": 2}, (), "t.jsonl: holds 4 certificates, expected the 2 of"),
        # of another run
        ({}, ("--n0", 21), "was begun with n0 20, cannot be resumed with n0 21"),
        ({}, ("--bound", "two-class"), "was begun with the default bound, cannot be resumed with bound 'two-class'"),
        ({}, ("--skip", 2), "line 2: was begun with idx 1, cannot be resumed with idx 2"),
        ({}, ("--max", 3), "holds 4 images already, more than the 3 asked for"),
        ({"a.tsv": 4, "t.jsonl": None}, ("--n0", 21), "t.jsonl: holds 0 certificates"),
        ({"a.tsv": 4}, ("--n0", 21), "was begun with n0 20"),
    ],
)
def test_a_resumption_that_is_refused_changes_no_byte(files, tmp_path, capsys, change, more, message):
    out, transcript = tmp_path / "a.tsv", tmp_path / "t.jsonl"
    assert run(capsys, *certify(files, "--seed", 7, "--max", 4, "--out", out, "--transcript", transcript))[0] == 0
    for name in ("a.tsv", "t.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"{")  # cut short by a crash: it would be taken away
    for name, content in change.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(lines_of(tmp_path / name, content) if isinstance(content, int) else content)
    before = contents(tmp_path)
    status, _, err = run(capsys, *certify(files, "--out", out, "--transcript", transcript, "--resume", *more))
    assert status == 1 and message in err and err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [(), ("--bound", "two-class"), ("--scale", "0.1"), ("--stop", "--target-radius", "0.1,0.2"), ("--norm", "Linf"),
     ("--familywise", "--alpha", "0.01"), ("--scale-levels", "20", "--stop", "--target-radius", "0.1")],
)  # fmt: skip
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_run_of_any_kind_goes_on_from_any_interruption_to_the_same_bytes(files, tmp_path, capsys, options, ahead):
    def arguments(name, *more):
        names = ("--out", tmp_path / f"{name}.tsv", "--transcript", tmp_path / f"{name}.t")
        return certify(files, *names, *options, *more)

    asked = ("--max", 3)  # as many as a share of alpha is for
    status, _, err = run(capsys, *arguments("whole", "--seed", 7, *asked))
    assert status == 0, err
    for number, (ending, header) in enumerate((("t", 0), ("jsonl", 0), ("tsv", 1))):
        kept = 1 + header + (number < ahead)
        whole = (tmp_path / f"whole.{ending}").read_bytes().splitlines(True)
        (tmp_path / f"part.{ending}").write_bytes(b"".join(whole[:kept]) + whole[kept][:9])
    status, _, err = run(capsys, *arguments("part", "--resume", *asked))
    assert status == 0, err
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "part.t").read_bytes() == (tmp_path / "whole.t").read_bytes()
    assert without_time(tmp_path / "part.tsv") == without_time(tmp_path / "whole.tsv")


def test_a_run_is_not_resumed_without_an_option_that_it_was_begun_with(files, tmp_path, capsys):
    for options, message in (
        (("--bound", "two-class"), "was begun with bound 'two-class', cannot be resumed with the default bound"),
        (("--norm", "Linf"), "was begun with norm 'Linf', cannot be resumed with the default norm"),
        (("--stop", "--target-radius", "0.1"), "was begun with targets [651], cannot be resumed with the default"),
        (("--scale", "0.1"), "was begun with noise 'discrete_laplace', cannot be resumed with noise 'discrete_gaus"),
        (("--sigma", "0.1"), "was begun with sigma_levels '51/2', cannot be resumed with sigma_levels '255/4'"),
    ):
        out = tmp_path / "a.tsv"
        run(capsys, *certify(files, "--max", 1, "--out", out, *options))
        status, _, err = run(capsys, *certify(files, "--max", 2, "--out", out, "--resume"))
        assert status == 1 and message in err and out.read_text().count("\n") == 2


def test_every_file_that_is_moved_aside_is_named(files, tmp_path, capsys):
    out, transcript = tmp_path / "a.tsv", tmp_path / "t.jsonl"
    (tmp_path / "a.jsonl").write_text("a transcript of another run, perhaps")
    err = run(capsys, *certify(files, "--max", 1, "--out", out, "--transcript", transcript))[2]
    assert err == f"intsmooth-ref: {tmp_path / 'a.jsonl'} was there: moved to {tmp_path / 'a.jsonl.1'}\n"
    assert (tmp_path / "a.jsonl.1").read_text() == "a transcript of another run, perhaps"


def test_a_number_of_any_size_is_read_or_refused_at_once(capsys):
    for option, text in (
        ("--sigma", "1e99999999"), ("--alpha", "1E-99999999"), ("--scale", "1e1001"), ("--sigma-levels", "1" * 1001),
        ("--target-radius", "0.1,1e123456789"),
    ):  # fmt: skip
        status, _, err = run(capsys, "certify", option, text)
        assert status == 2 and "expected at most 1000 characters, and an exponent of at most 1000" in err
        assert err.count("\n") == 1 and len(err) < 250
    assert rational("1e-1000") == Fraction(1, 10**1000) and rational("9" * 1000) == 10**1000 - 1
    assert rational("25E-2") == rational(" 1/4 ") == Fraction(1, 4)
    for text in ("1e", "e5", "1e5e5", "1e5/3", "1/0", "", "nan", "inf"):
        assert "is no number" in run(capsys, "certify", "--sigma", text)[2]


def test_target_radii_are_numbers_that_a_radius_can_have(capsys):
    for text, shown in (("-1", "-1"), ("0.5,-1/1000", "-1/1000"), ("1000001", "1000001"), ("1e7", "1e7")):
        status, _, err = run(capsys, "certify", f"--target-radius={text}")
        assert status == 2 and f"--target-radius: radius {shown}: expected 0 to 1000000 times full scale" in err
    assert rationals("0,1e6,1/3") == [0, 10**6, Fraction(1, 3)]


def test_a_name_that_cannot_be_printed_is_shown_escaped_in_one_line(files, tmp_path, capsys):
    for name, shown in (("a\nb.h5", "a\\nb.h5"), ("a\x1b[2J.h5", "a\\x1b[2J.h5"), ("a\udcff.h5", "a\\udcff.h5")):
        status, _, err = run(capsys, "certify", files / "model.h5", tmp_path / name)
        assert status == 1 and shown in err and err.count("\n") == 1 and "\x1b" not in err
    assert run(capsys, "certify", "a", "b", "c\nd")[2].count("\n") == 1
    out = tmp_path / "a\nb\udcff.tsv"
    for moved in (False, True):
        status, text, err = run(capsys, *certify(files, "--max", 1, "--out", out))
        assert status == 0 and f"table {tmp_path}/a\\nb\\udcff.tsv, records {tmp_path}/a\\nb\\udcff.jsonl\n" in text
        assert err.count("\n") == 2 * moved and "a\\nb\\udcff.tsv.1\n" in err or not moved
    assert out.exists() and "é" == one_line("é")


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_where_standard_streams_are_closed_no_file_takes_their_place(files, tmp_path, closed):
    script = """
import os, sys
from intsmooth_ref.certify.results import ResultFiles
from intsmooth_ref.cli import main
append = ResultFiles.append

def append_after_a_library_wrote_to_standard_error(*arguments):
    os.write(2, b"warning of a library")
    append(*arguments)

ResultFiles.append = append_after_a_library_wrote_to_standard_error
sys.exit(main(sys.argv[1:]))
"""

    def close():
        for descriptor in closed:
            os.close(descriptor)

    def status(*arguments):
        return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], preexec_fn=close).returncode

    names = ("--transcript", tmp_path / "t.jsonl", "--out", tmp_path / "a.tsv")
    assert status(*certify(files, "--seed", 7, "--max", 2, *names)) == 0
    for name in ("t.jsonl", "a.jsonl", "a.tsv"):
        assert (tmp_path / name).stat().st_size and b"warning" not in (tmp_path / name).read_bytes()
    assert status(*certify(files, "--seed", 7, "--max", 2, *names)) == 0  # says what it moves aside
    assert status("certify", "--n", 0) == 2 and status("certify", "missing.h5", "missing.h5") == 1


@pytest.mark.parametrize("module", ["argparse", "intsmooth_ref.cli", "intsmooth_ref.cli.certify", "numpy"])
def test_ctrl_c_is_one_line_while_modules_are_loaded(files, module):
    script = f"""
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt

assert {module!r} not in sys.modules
sys.meta_path.insert(0, Interrupting())
runpy.run_module("intsmooth_ref", run_name="__main__", alter_sys=True)
"""
    line = [sys.executable, "-c", script, *map(str, certify(files))]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "intsmooth-ref: interrupted\n")


def test_the_command_is_there_before_anything_slow_is_loaded():
    script = "import sys, intsmooth_ref.cli; sys.exit(bool({'numpy', 'numba', 'h5py', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_resumed_run_may_not_go_on_with_a_transcript_it_left_behind(files, tmp_path, capsys):
    out, transcript = tmp_path / "a.tsv", tmp_path / "t.jsonl"
    for more in (("--max", 1, "--transcript", transcript), ("--max", 2, "--resume")):
        assert run(capsys, *certify(files, "--seed", 7, "--out", out, *more))[0] == 0
    arguments = certify(files, "--seed", 7, "--out", out, "--transcript", transcript)
    status, _, err = run(capsys, *arguments, "--resume")
    assert status == 1 and "the run went on without --transcript, and can only go on without it; begin anew" in err
    assert run(capsys, *certify(files, "--out", out, "--resume"))[0] == 0
    assert run(capsys, *arguments)[0] == 0  # as the message says: the same seed gives the same results
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "a.jsonl.1").read_bytes()
    assert transcript.read_text().count("\n") == IMAGES
