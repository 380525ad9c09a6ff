"""`certify --transcript` and `verify`: confirmed 0, refuted 1, could not be checked 2, always in clear lines."""

import json
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest

from intsmooth_ref.certify.radius import radius_text
from intsmooth_ref.certify.transcript import Familywise, claim_bytes, read_transcript
from intsmooth_ref.certify.chunks import Chunk, merkle_root
from intsmooth_ref.cli import main
from intsmooth_ref.cli.certify import summary
from intsmooth_ref.cli.images import Run
from intsmooth_ref.cli.progress import Progress
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.hdf5 import save_model
from intsmooth_ref.noise.distributions import discrete_gaussian
from threshold_model import threshold_model

IMAGES = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of two classes and eight flat images, from far below its threshold to far above."""
    folder = tmp_path_factory.mktemp("files")
    save_model(folder / "model.h5", threshold_model())
    save_model(folder / "other.h5", threshold_model(100))
    images = np.repeat(np.linspace(60, 200, IMAGES).astype(np.uint8), 9).reshape(IMAGES, 3, 3, 1)
    labels = (images[:, 0, 0, 0] > 128).astype(np.int64)
    save_dataset(folder / "data.h5", [Dataset(images, labels, ("dark", "bright"), "made by a test", "test")])
    np.savez(folder / "other.npz", images=images + np.uint8(1), labels=labels)
    return folder


def run(capsys, *arguments):
    """Exit status, standard output and standard error of one command, in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def certify_arguments(files, transcript, *more, engine="reference"):
    return ("certify", files / "model.h5", files / "data.h5", "--n", 1200, "--n0", 20, "--engine", engine,
            "--seed", 7, "--transcript", transcript, *more)  # fmt: skip


def certify(capsys, files, transcript, *more, engine="reference"):
    status, out, err = run(capsys, *certify_arguments(files, transcript, *more, engine=engine))
    assert status == 0, err
    return out, err


@pytest.fixture(scope="module")
def genuine(files):
    """The transcript of a run without further options."""
    assert main([str(argument) for argument in certify_arguments(files, files / "genuine.jsonl")]) == 0
    return files / "genuine.jsonl"


def verify(capsys, files, transcript, *more, engine="reference"):
    return run(capsys, "verify", transcript, files / "model.h5", files / "data.h5", "--engine", engine, *more)


OPTIONS = {
    "by default": (),
    "two-class": ("--bound", "two-class", "--alpha", "0.01"),
    "one target": ("--stop", "--target-radius", "0.1"),
    "three targets": ("--stop", "--target-radius", "0.3,0,0.1", "--n", "20000"),
    "familywise": ("--familywise", "--sigma-levels", "30"),
    "Laplace": ("--scale", "0.2", "--norm", "Linf"),
    "Laplace, target": ("--scale-levels", "51", "--stop", "--target-radius", "0.1"),
    "some images": ("--skip", "7", "--max", "2"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_certify_writes_verify_confirms_wholly_in_part_and_with_fresh_noise(options, files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", *options)
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl")
    assert (status, err) == (0, "") and out.endswith("confirmed\n")
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl", "--chunks", 5)
    assert (status, err) == (0, "") and out.endswith(("confirmed as far as replayed\n", "\nconfirmed\n"))
    assert out.endswith("replayed\n") == ("drawn at random" in out and "with probability 0.999" in out)
    assert out.endswith("confirmed\n") == ("replayed as a whole" in out) == ("--stop" in options)
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl", "--fresh", "--seed", 12)
    assert (status, err) == (0, "") and out.endswith("nothing contradicts the claims\n")
    documents = list(read_transcript(tmp_path / "t.jsonl"))
    claims = sum(document.prediction in (0, 1) for document in documents)
    assert f"0 of {claims} claims contradicted; " in out and f"with probability 1/{2000 * claims} at most\n" in out
    assert f"{sum(document.n for document in documents)} votes in" in out
    assert ", fresh from seed 12\n" in out and {document.prediction for document in documents} >= {0, 1}


@pytest.mark.skipif(not numba_available(), reason="needs Numba")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_engines_write_the_same_certificates_and_confirm_each_others(options, files, tmp_path, capsys):
    claims = []
    for engine, other in (("reference", "jit"), ("jit", "reference")):
        transcript = tmp_path / f"{engine}.jsonl"
        certify(capsys, files, transcript, *options, "--skip", 3, engine=engine)
        assert verify(capsys, files, transcript, engine=other)[0] == 0
        documents = list(read_transcript(transcript))
        assert {document.information["engine"] for document in documents} == {engine}
        claims.append([claim_bytes(document) for document in documents])
    assert claims[0] == claims[1]


def test_what_is_drawn_and_what_that_leaves_to_a_forger_is_said(genuine, files, capsys):
    """C(24 - 7, 12) / C(24, 12) = 0.0023 and C(24 - 8, 12) / C(24, 12) = 0.0007: seven chunks, of 1000 votes each, may
    be forged; 7000 / 9760 = 0.717213..., rounded up."""
    status, out, _ = verify(capsys, files, genuine, "--chunks", 12)
    assert status == 0 and out.startswith("8 certificates of 8 of the 8 images of split 'test', 0 to 7\nmodel ")
    kind = "\n8 with discrete_gaussian, sigma 255/4; alpha 1/1000; n 1200, bound majority; seed 7\n"
    assert kind in out
    assert " in 12 of 24 chunks, drawn at random, with engine reference" in out
    assert "are caught with probability 0.999 where they are more than 7000 of the 9760 (71.73 %)\n" in out
    assert out.endswith("\nconfirmed as far as replayed\n")


def test_a_whole_replay_leaves_nothing_to_be_drawn(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", *OPTIONS["three targets"], "--max", 1)
    out = verify(capsys, files, tmp_path / "t.jsonl", "--chunks", 1)[1]
    assert out.startswith("1 certificate of 1 of the 8 images of split 'test', 0 to 0\n")
    assert "\n1 certificate with votes at several looks, replayed as a whole\n" in out
    assert "drawn at random" not in out and out.endswith("confirmed\n")
    lines = (files / "genuine.jsonl").read_bytes().splitlines(True)
    (tmp_path / "t.jsonl").write_bytes((tmp_path / "t.jsonl").read_bytes() + lines[1])
    out = verify(capsys, files, tmp_path / "t.jsonl", "--chunks", 1)[1]
    assert "1 certificate with votes at several looks" in out and " in 1 of 3 chunks, drawn at random" in out


def test_fresh_votes_are_asked_at_the_levels_that_were_promised(genuine, files, capsys, monkeypatch):
    """A thousandth, half of it for all claims together and half of it for luck; each claim at its own level."""
    level = Fraction(1, 1000) - 1200 * 9 * discrete_gaussian(Fraction(255, 4)).total_variation
    claims, asked = [], []
    monkeypatch.setattr("intsmooth_ref.certify.freshness.is_contradicted", lambda *given: claims.append(given) or False)
    monkeypatch.setattr("intsmooth_ref.certify.freshness.is_too_lucky", lambda *given: asked.append(given) or False)
    monkeypatch.setattr("secrets.randbits", lambda bits: 2**bits - 1)
    out = verify(capsys, files, genuine, "--fresh", 50)[1]
    assert f"{8 * 50} votes in" in out and "fresh from seed 18446744073709551615" in out
    documents = list(read_transcript(genuine))
    certified = sum(document.prediction >= 0 for document in documents)
    own_level = Fraction(1, 2000) / certified - 50 * 9 * discrete_gaussian(Fraction(255, 4)).total_variation
    assert [(each[0].image.index, *each[1::2]) for each in claims[:IMAGES]] == [
        (index, level, own_level) for index in range(IMAGES)
    ]
    assert asked == [(0, 0, Fraction(1, 2000))] and {sum(each[2]) for each in claims} == {50}


def test_a_seed_that_any_certificate_was_made_with_is_not_fresh(genuine, files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--max", 1, "--seed", 8)
    (tmp_path / "t.jsonl").write_bytes((tmp_path / "t.jsonl").read_bytes() + genuine.read_bytes().splitlines(True)[1])
    for seed, status in ((7, 2), (8, 2), (9, 0)):
        assert verify(capsys, files, tmp_path / "t.jsonl", "--fresh", "--seed", seed)[0] == status


def test_more_certificates_than_a_family_has_are_refuted(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--familywise", "--max", 3)
    lines = (tmp_path / "t.jsonl").read_bytes().splitlines(True)
    (tmp_path / "t.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    path = forged(tmp_path, tmp_path / "t.jsonl", 1, lambda fields: fields.update(radius_sq=fields["radius_sq"] + 1))
    for more in ((), ("--chunks", 100)):
        status, out, _ = verify(capsys, files, path, *more)
        refuted = sorted(line for line in out.splitlines() if line.startswith("refuted"))
        assert status == 1 and "line 2 (image 1): $.radius_sq: states" in refuted[0] and len(refuted) == 2
        assert "line 4 (image 0): $.familywise.images: states 3, found 4 certificates of this family" in refuted[1]
        assert out.endswith("2 of 4 certificates refuted\n") and "; several of 0\n" in out
        assert not more or " in 6 of 6 chunks" in out  # of the two that remain
    status, out, err = verify(capsys, files, path, "--fresh")
    assert status == 2 and "image 0 has 2 certificates: expected one" in err


def test_a_transcript_without_a_sound_certificate_is_refuted_in_every_way(genuine, files, capsys):
    for more in (("--chunks", 3), ("--fresh",), ()):
        arguments = ("verify", genuine, files / "other.h5", files / "data.h5", "--engine", "reference", *more)
        status, out, err = run(capsys, *arguments)
        assert (status, err) == (1, "") and out.count("refuted: ") == IMAGES and "confirmed" not in out
        assert out.endswith("8 of 8 certificates refuted\n")


def test_the_transcript_says_what_the_records_say(files, tmp_path, capsys):
    out = tmp_path / "a.tsv"
    certify(capsys, files, tmp_path / "t.jsonl", "--out", out)
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    documents = list(read_transcript(tmp_path / "t.jsonl"))
    assert len(documents) == len(records) == IMAGES
    for record, document in zip(records, documents):
        assert (record["idx"], record["image_sha256"], record["label"]) == tuple(
            getattr(document.image, name) for name in ("index", "sha256", "label")
        )
        assert (record["predict"], record["radius_sq"]) == (document.prediction, document.radius)
        assert record["estimation_votes"] == list(document.estimation.votes)
        assert record["selection_votes"] == list(document.selection.votes)


def test_a_resumed_run_ends_with_the_same_transcript(files, tmp_path, capsys):
    for name, most in (("whole", IMAGES), ("part", 3)):
        certify(capsys, files, tmp_path / f"{name}.jsonl", "--out", tmp_path / f"{name}_table.tsv", "--max", most)
    transcript, whole = tmp_path / "part.jsonl", (tmp_path / "whole.jsonl").read_bytes()
    with open(transcript, "ab") as file:
        file.write(whole[len(transcript.read_bytes()) :][:400])  # cut short by a crash
    more = ("--out", tmp_path / "part_table.tsv", "--resume")
    certify(capsys, files, transcript, *more)
    assert transcript.read_bytes() == whole
    transcript.write_bytes(b"".join(whole.splitlines(True)[:2]))
    arguments = ("certify", files / "model.h5", files / "data.h5", "--n", 1200, "--n0", 20, "--engine", "reference")
    status, _, err = run(capsys, *arguments, "--transcript", transcript, *more)
    assert status == 1 and f"{transcript}: holds 2 certificates, expected the {IMAGES} of" in err
    lines = whole.splitlines(True)
    transcript.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    status, _, err = run(capsys, *arguments, "--transcript", transcript, *more)
    assert status == 1 and "line 1: found image 1, expected the certificate of image 0 of this run" in err


def test_a_run_without_options_is_what_the_help_says(files, tmp_path, capsys):
    arguments = ("certify", files / "model.h5", files / "data.h5", "--engine", "reference", "--max", 1)
    assert run(capsys, *arguments, "--out", tmp_path / "a.tsv")[0] == 0
    (record,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (record["n0"], record["n"], record["alpha"], record["sigma_levels"]) == (100, 1000, "1/1000", "255/4")
    assert not {"bound", "targets", "norm", "familywise", "samples"} & set(record)
    assert sum(record["selection_votes"]) == 100 and sum(record["estimation_votes"]) == 1000
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".jsonl"] == ["a.jsonl"]


def test_records_say_what_is_unusual_about_a_run(files, tmp_path, capsys):
    for options, expected in (
        (("--familywise", "--max", "2"), {"alpha": "1/2000", "familywise": "1/1000 for 2 images"}),
        (("--bound", "two-class"), {"bound": "two-class"}),
        (("--stop", "--target-radius", "0.1,0.05"), {"targets": [163, 651]}),  # ceil of 12.75**2 and 25.5**2
        (("--norm", "Linf"), {"norm": "Linf"}),
        (("--scale-levels", "51"), {"noise": "discrete_laplace", "scale_levels": "51"}),
        (("--scale", "1/5"), {"noise": "discrete_laplace", "scale_levels": "51"}),
    ):
        certify(capsys, files, tmp_path / "t.jsonl", "--out", tmp_path / "a.tsv", "--max", 1, *options)
        record = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])
        assert {name: record.get(name) for name in expected} == expected
        (document, *_) = read_transcript(tmp_path / "t.jsonl")
        family = Familywise(Fraction(1, 1000), 2) if "--familywise" in options else None
        assert document.familywise == family and str(document.alpha) == record["alpha"]
        if "--norm" in options:  # the radius of the table is in the norm that was asked for
            assert record["radius"] == radius_text(record["radius_linf"] ** 2) != radius_text(record["radius_sq"])


@pytest.mark.parametrize("command", ["certify", "verify"])
def test_engine_instruction_set_threads_and_batch_are_passed_on(command, genuine, files, capsys, monkeypatch):
    def seen(*_, **given):
        raise ParameterError(", ".join(f"{name} {given[name]}" for name in ("engine", "isa", "threads", "batch")))

    monkeypatch.setattr("intsmooth_ref.certify.smoothing.SmoothedClassifier", seen)
    monkeypatch.setattr("intsmooth_ref.certify.verification.Verifier", seen)
    arguments = [*([genuine] if command == "verify" else []), files / "model.h5", files / "data.h5"]
    options = ("--engine", "jit", "--isa", "portable", "--threads", 3, "--batch", 5)
    err = run(capsys, command, *arguments, *options)[2]
    assert err == "intsmooth-ref: engine jit, isa portable, threads 3, batch 5\n"


def test_nothing_is_moved_aside_for_a_run_that_cannot_be(genuine, files, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_bytes(genuine.read_bytes())
    for options in (("--seed", 2**64), ("--n", 9), ("--alpha", 2), ("--stop",)):
        assert run(capsys, *certify_arguments(files, tmp_path / "t.jsonl", *options))[0] == 1
        assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_run_is_resumed_with_its_own_seed_and_no_other(files, tmp_path, capsys):
    arguments = ("certify", files / "model.h5", files / "data.h5", "--n", 20, "--engine", "reference", "--out",
                 tmp_path / "a.tsv")  # fmt: skip
    assert run(capsys, *arguments, "--seed", 7, "--max", 1)[0] == 0
    status, _, err = run(capsys, *arguments, "--resume", "--seed", 0)
    assert status == 1 and "was begun with seed 7, cannot be resumed with seed 0" in err
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace('"seed":7', '"seed":"x"'))
    status, _, err = run(capsys, *arguments, "--resume")
    assert status == 1 and "a.jsonl: line 1: found seed 'x', expected an integer" in err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "all 8 images of split 'test'"),
        (("--max", 3), "3 of the 8 images of split 'test': 0 to 2"),
        (("--max", 1), "1 of the 8 images of split 'test': 0"),
        (("--skip", 8), "1 of the 8 images of split 'test': 0"),
        (("--skip", 4), "2 of the 8 images of split 'test': 0, 4 .. 4"),
    ],
)
def test_a_summary_says_of_which_images_it_speaks(options, text, files, tmp_path, capsys):
    arguments = ("certify", files / "model.h5", files / "data.h5", "--engine", "reference", "--n", 10, "--n0", 1)
    out = run(capsys, *arguments, "--out", tmp_path / "a.tsv", *options)[1]
    assert out.startswith(f"{text}\n")


def test_an_abstention_is_not_correct_and_not_certified_where_there_are_no_labels(files, tmp_path, capsys):
    np.save(tmp_path / "unlabelled.npy", np.repeat(np.uint8([128, 250, 250]), 9).reshape(3, 3, 3, 1))
    out = run(capsys, "certify", files / "model.h5", tmp_path / "unlabelled.npy", "--engine", "reference", "--seed", 3,
              "--out", tmp_path / "a.tsv")[1]  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(each["predict"], each["correct"]) for each in records] == [(-1, 0), (1, 0), (1, 0)]
    (certified,) = [line.split()[1:] for line in out.splitlines() if line.startswith("certified")]
    assert certified[0] == "0.666" and out.splitlines()[1].startswith("1 abstained; ")


def summary_of(records, **options):
    """The summary of a run with these records, as words."""
    given = dict(norm=None, target_radius=[], alpha=Fraction(1, 100), familywise=False, stop=False, n=500)
    lines = summary(Run(records, "some images", None), SimpleNamespace(**{**given, **options}))
    assert lines[0] == "some images"
    return [line.split() for line in lines[1:]]


def test_a_summary_counts_correct_images_of_all_and_rounds_down():
    """Of 40 images 10 are right, with a radius that reaches 0.25 * 255 and no farther: ceil(63.75**2) = 4065."""
    one = {"noise": "discrete_gaussian", "radius": "0.250019"}
    records = 10 * [
        {**one, "label": 1, "predict": 1, "correct": 1, "radius_sq": 4065, "samples": 10},
        {**one, "label": 1, "predict": -1, "correct": 0, "radius_sq": 0, "samples": 20},
        {**one, "label": 1, "predict": 0, "correct": 0, "radius_sq": 9999, "samples": 30},
        {**one, "label": -1, "predict": 1, "correct": 0, "radius_sq": 9999, "samples": 45},
    ]
    tail = [sum(comb(40, k) * 99 ** (40 - k) for k in range(m + 1, 41)) for m in range(5)]
    assert tail[2] * 1000 > 100**40 >= tail[3] * 1000  # more than 3 of 40 are false with probability 0.001 at most
    average = "10 abstained; average certified radius 0.062 (L2)".split()
    assert summary_of(records, stop=True) == [
        average,
        "26 samples an image on average, of 500 at most".split(),
        "radius (L2) 0.00 0.25 0.50".split(),
        "certified accuracy 0.250 0.250 0.000".split(),
        "at least, with probability 0.999 0.175 0.175 0.000".split(),
    ]
    assert summary_of(records, familywise=True, target_radius=[Fraction(1, 3), Fraction(1, 8), Fraction(1, 10)]) == [
        average,
        "radius (L2) 0.10 0.125 1/3".split(),
        "certified accuracy 0.250 0.250 0.000".split(),
        "at least, with probability 0.99 0.250 0.250 0.000".split(),
    ]


def test_a_summary_in_another_norm_takes_the_radii_of_that_norm():
    one = {"label": 1, "predict": 1, "correct": 1, "radius": "0.5"}
    laplace = {**one, "noise": "discrete_laplace", "radius_l1": 128, "radius_linf": 2}
    others = [{**laplace, "radius_l1": 127, "radius_linf": 1}]
    assert summary_of([laplace, *others])[1:3] == [
        "radius (L1) 0.00 0.50 1.00".split(), "certified accuracy 1.000 0.500 0.000".split()
    ]  # fmt: skip
    for records in ([laplace, *others], [{**each, "noise": "discrete_gaussian"} for each in (laplace, *others)]):
        assert summary_of(records, norm="Linf")[1:3] == [
            "radius (Linf) 0/255 2/255 4/255".split(), "certified accuracy 1.000 0.500 0.000".split()
        ]  # fmt: skip


def test_progress_is_a_line_on_a_terminal_that_is_rewritten_at_most_ten_times_a_second(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    def shown(seconds, action, *arguments):
        now[0] = 100.0 + seconds
        action(*arguments)
        return capsys.readouterr().err

    progress = Progress(4, 500, "certificates")
    assert capsys.readouterr().err == "\r\x1b[K0/4 certificates, preparing"
    assert shown(0.05, progress.samples, 100) == ""
    assert shown(2.0, progress.samples, 100) == "\r\x1b[K0/4 certificates, 100 samples/s, 0:00:18 left"
    assert shown(2.05, progress.samples, 100) == shown(2.06, progress.image) == ""
    assert shown(4.0, progress.samples, 500) == "\r\x1b[K1/4 certificates, 200 samples/s, 0:00:06 left"
    assert shown(4.1, progress.clear) == "\r\x1b[K" and shown(4.2, progress.clear) == ""
    assert (progress.samples_done, progress.images_done, progress.seconds) == (800, 1, pytest.approx(4.2))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    silent = Progress(4, 500)
    assert shown(9.0, silent.samples, 5) == shown(9.5, silent.samples, 5) == shown(9.9, silent.clear) == ""


def test_an_earlier_transcript_is_moved_aside(genuine, files, tmp_path, capsys):
    transcript = tmp_path / "t.jsonl"
    transcript.write_bytes(genuine.read_bytes())
    before = transcript.read_bytes()
    _, err = certify(capsys, files, transcript, "--max", 1)
    assert f"{transcript} was there: moved to {transcript}.1" in err
    assert (tmp_path / "t.jsonl.1").read_bytes() == before != transcript.read_bytes()


def test_a_transcript_in_the_place_of_the_records_is_refused(files, tmp_path, capsys):
    arguments = ("certify", files / "model.h5", files / "data.h5", "--out", tmp_path / "a.tsv")
    status, _, err = run(capsys, *arguments, "--transcript", tmp_path / "a.jsonl")
    assert status == 1 and "a.jsonl: stands for two files of this run" in err


def forged(tmp_path, transcript, line, change):
    """The transcript with one line changed."""
    lines = transcript.read_text().splitlines()
    fields = json.loads(lines[line])
    change(fields)
    lines[line] = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    path = tmp_path / "forged.jsonl"
    path.write_text("".join(f"{each}\n" for each in lines))
    return path


def test_a_forgery_is_refuted_with_line_image_and_field(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--skip", 2)

    def raise_radius(fields):
        fields["radius_sq"] += 1

    path = forged(tmp_path, tmp_path / "t.jsonl", 3, raise_radius)
    for more in ((), ("--chunks", 3), ("--fresh",)):
        status, out, err = verify(capsys, files, path, *more)
        (refuted,) = [line for line in out.splitlines() if line.startswith("refuted")]
        assert (status, err) == (1, "") and "confirmed" not in out and "stand\n" not in out
        assert re.search(r"line 4 \(image 6\): \$\.radius_sq: states (\d+), found \d+ \(from estimation.votes", refuted)


def test_forged_votes_are_found_where_all_chunks_are_drawn(genuine, files, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_bytes(b"".join(genuine.read_bytes().splitlines(True)[:2]))

    def change_hash(fields):
        stage = fields["estimation"]
        stage["chunks"][1]["sha256"] = "0" * 64
        stage["merkle_root"] = merkle_root([Chunk(each["sha256"], ()) for each in stage["chunks"]])

    def change_first(fields):
        fields["selection"]["chunks"][0]["sha256"] = "0" * 64
        fields["selection"]["merkle_root"] = merkle_root([Chunk("0" * 64, ())])

    chunks = 3 * 2
    path = forged(tmp_path, tmp_path / "t.jsonl", 0, change_first)
    status, out, _ = verify(capsys, files, path, "--chunks", chunks)
    assert status == 1 and "line 1 (image 0): $.selection.chunks[0].sha256: states 0000" in out
    path = forged(tmp_path, tmp_path / "t.jsonl", 1, change_hash)
    status, out, _ = verify(capsys, files, path, "--chunks", 10 * chunks)
    assert status == 1 and f"in {chunks} of {chunks} chunks" in out and "more than 0 of the" in out
    assert "line 2 (image 1): $.estimation.chunks[1].sha256: states 0000" in out
    found = [verify(capsys, files, path, "--chunks", chunks // 2)[0] for _ in range(40)]
    assert set(found) == {0, 1}  # half of the draws miss the chunk: all or none with probability 2**-39


def test_votes_that_were_invented_for_an_early_look_are_found_though_no_chunk_is_of_them(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--stop", "--target-radius", "0,0.1", "--n", 20000)

    def invent(fields):
        fields["decisions"][0]["votes"] += 1

    documents = list(read_transcript(tmp_path / "t.jsonl"))
    place = next(i for i, each in enumerate(documents) if 0 < each.decisions[0].samples < each.estimation.samples
                 and each.decisions[0].votes < each.decisions[0].samples)  # fmt: skip
    status, out, _ = verify(capsys, files, forged(tmp_path, tmp_path / "t.jsonl", place, invent), "--chunks", 1)
    assert status == 1 and f"line {place + 1} (image {place}): $.decisions[0].votes: states" in out


def test_another_model_and_other_images_are_refuted(genuine, files, capsys):
    arguments = ("--engine", "reference")
    status, out, _ = run(capsys, "verify", genuine, files / "other.h5", files / "data.h5", *arguments)
    assert status == 1 and out.count("$.model_sha256: states") == IMAGES
    status, out, _ = run(capsys, "verify", genuine, files / "model.h5", files / "other.npz", *arguments)
    assert status == 1 and out.count("$.image.sha256: states") == IMAGES


def test_a_seed_that_was_chosen_among_many_is_noticed(files, tmp_path, capsys):
    """Of each image the best of many seeds: every replay confirms it, fresh noise does not."""
    images = np.full((24, 3, 3, 1), 140, np.uint8)
    np.savez(tmp_path / "close.npz", images=images, labels=np.ones(24, np.int64))
    arguments = (files / "model.h5", tmp_path / "close.npz", "--engine", "reference")
    best = {}
    for seed in range(10, 22):
        transcript = tmp_path / f"{seed}.jsonl"
        assert run(capsys, "certify", *arguments, "--n", 300, "--n0", 100, "--seed", seed, "--transcript", transcript,
                   "--alpha", "0.4")[0] == 0  # fmt: skip
        for line, document in zip(transcript.read_bytes().splitlines(True), read_transcript(transcript)):
            votes = document.estimation.votes[1]
            best[document.image.index] = max(best.get(document.image.index, (0, b"")), (votes, line))
    chosen = tmp_path / "chosen.jsonl"
    chosen.write_bytes(b"".join(line for _, line in best.values()))
    assert run(capsys, "verify", chosen, *arguments)[0] == 0
    status, out, _ = run(capsys, "verify", chosen, *arguments, "--fresh", "--seed", 5)
    lucky = re.search(r"refuted: .*: the stated votes are higher than the fresh ones in (\d+) of (\d+) images", out)
    assert status == 1 and 15 < int(lucky[1]) <= int(lucky[2]) <= 24
    for images, several in ((10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"), (11, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ...")):
        chosen.write_bytes(b"".join(line for _, line in list(best.values())[:images]) * 2)
        out = run(capsys, "verify", chosen, *arguments, "--chunks", 1)[1]
        assert out.startswith(f"{2 * images} certificates of {images} of the 24 images of split ")
        assert out.splitlines()[0].endswith(f", 0 to {images - 1}; several of {several}")


def test_a_claim_that_is_far_off_is_contradicted_by_fresh_votes(genuine, files, tmp_path, capsys):
    """Votes, hash and radius were invented together, so that nothing but a replay or fresh votes can tell."""
    (tmp_path / "t.jsonl").write_bytes(b"".join(genuine.read_bytes().splitlines(True)[:6]))

    def invent(fields):
        fields["estimation"]["votes"] = [0, 1200]
        for chunk, votes in zip(fields["estimation"]["chunks"], (1000, 200)):
            chunk["votes"] = [[1, votes]]
        fields["radius_sq"] = 25469

    path = forged(tmp_path, tmp_path / "t.jsonl", 5, invent)
    out = verify(capsys, files, path, "--chunks", 1)[1]
    stated = re.search(r"\$\.radius_sq: states 25469, found (\d+)", out)
    if stated:  # make it fit

        def fit(fields):
            invent(fields)
            fields["radius_sq"] = int(stated[1])

        path = forged(tmp_path, tmp_path / "t.jsonl", 5, fit)
    status, out, _ = verify(capsys, files, path, "--fresh")
    assert status == 1 and re.search(r"line 6 \(image 5\): \$\.radius_sq: .* fresh votes for class 1", out)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], r": line 8: \$: found a line cut short"),
        (lambda data: data.replace(b'"format_version":1', b'"format_version":2', 3), r"line 1: \$\.format_version"),
        (lambda data: data.replace(b'"n":1200', b'"n":1200.0', 1), r"line 1: \$\.n: found 1200.0"),
        (lambda data: data.replace(b'"n":1200', b'"n":0', 1), r"line 1: \$\.n: found 0"),
        (lambda data: data.replace(b'"alpha"', b' "alpha"', 1), r"line 1: \$"),
        (lambda data: b"", "found an empty file"),
        (lambda data: b"\x89HDF\r\n\x1a\n" + data, r"line 1: \$"),
        (lambda data: data.replace(b'"255/4"', b'"510/8"', 1), r"line 1: \$\.noise\.sigma"),
    ],
)
def test_a_transcript_that_cannot_be_checked_ends_in_one_line_and_status_2(
    damage, message, genuine, files, tmp_path, capsys
):
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(damage(genuine.read_bytes()))
    status, _, err = verify(capsys, files, path)
    assert status == 2 and err.count("\n") == 1 and re.search(message, err), err


def test_certificates_that_cannot_be_checked_are_named_and_the_others_are_checked(genuine, files, tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_bytes(genuine.read_bytes().replace(b'"255/4"', b'"1/100"', 1))
    for more in ((), ("--chunks", 3), ("--fresh",)):
        status, out, err = verify(capsys, files, path, *more)
        assert (status, err) == (2, "") and out.endswith("1 of 8 certificates could not be checked\n")
        assert "t.jsonl: line 1 (image 0): sigma 1/100: expected 1/4 to 1024" in out and "confirmed" not in out
    path = forged(tmp_path, path, 1, lambda fields: fields.update(radius_sq=fields["radius_sq"] + 1))
    status, out, _ = verify(capsys, files, path)
    assert status == 1 and "cannot be checked: " in out and out.endswith("1 of 8 certificates refuted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MISSING", "MODEL", "DATA"], "missing: cannot be read: No such file or directory"),
        (["MODEL", "MODEL", "DATA"], r"model.h5: line 1: \$"),
        (["GOOD", "MISSING", "DATA"], "missing"),
        (["GOOD", "MODEL", "MISSING"], "missing"),
        (["GOOD", "MODEL"], "expected a data file after the model"),
        (["GOOD", "MODEL", "DATA", "--chunks", "0"], "--chunks: '0': expected an integer, at least 1"),
        (["GOOD", "MODEL", "DATA", "--chunks", "2", "--fresh"], "not allowed with argument"),
        (["GOOD", "MODEL", "DATA", "--seed", "0"], "--seed: goes with --fresh"),
        (["GOOD", "MODEL", "DATA", "--split", "train"], "train"),
        (["GOOD", "MODEL", "DATA", "--fresh", "--seed", str(2**64)], "seed 18446744073709551616"),
        (["GOOD", "MODEL", "DATA", "--fresh", str(2**32 + 1)], "--fresh 4294967297: expected at most 4294967296"),
        (["GOOD", "MODEL", "DATA", "--fresh", "--seed", "7"], "--seed 7: expected a fresh seed"),
        ([], "the following arguments are required: TRANSCRIPT"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, message, genuine, files, tmp_path, capsys):
    places = {"GOOD": genuine, "MODEL": files / "model.h5", "DATA": files / "data.h5",
              "MISSING": tmp_path / "missing"}  # fmt: skip
    status, _, err = run(capsys, "verify", *(places.get(argument, argument) for argument in arguments))
    assert status == 2 and err.count("\n") == 1 and re.search(message, err), err


def test_ctrl_c_ends_a_replay_in_one_line(genuine, files, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_bytes(genuine.read_bytes().splitlines(True)[0] * 1500)  # two million votes: for several seconds
    arguments = ["verify", many, files / "model.h5", files / "data.h5", "--engine", "reference"]
    process = subprocess.Popen([sys.executable, "-u", "-m", "intsmooth_ref", *map(str, arguments)], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline().startswith("1500 certificates of 1 of the 8 images")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "confirmed" not in out
    assert re.fullmatch(r"intsmooth-ref: interrupted; \d+ of 1500 certificates were looked at\n", err), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stop",), "--stop: needs --target-radius"),
        (("--stop", "--target-radius", "0.5", "--bound", "two-class"), "bound 'two-class' with target radii"),
        (("--bound", "two-class", "--scale", "0.1"), "bound 'two-class' with noise discrete_laplace"),
        (("--stop", "--target-radius", "3"), "samples"),
        (("--stop", "--target-radius", "-1"), "radius -1"),
        (("--sigma", "0.1", "--scale", "0.1"), "not allowed with argument"),
        (("--alpha", "1/0"), "'1/0' is no number"),
        (("--resume",), "--resume: needs --out"),
        (("--familywise", "--alpha", "1"), "alpha 1: expected a probability"),
        (("--n", "12", "--familywise"), "12 samples cannot certify anything"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, files, capsys):
    status, out, err = run(capsys, "certify", files / "model.h5", files / "data.h5", "--engine", "reference", *options)
    assert status in (1, 2) and err.count("\n") == 1 and out == "" and re.search(message, err), err


def test_a_summary_speaks_of_its_images_and_gives_a_bound_below_what_was_counted(files, tmp_path, capsys):
    out, _ = certify(capsys, files, tmp_path / "t.jsonl", "--out", tmp_path / "a.tsv", "--skip", 3)
    lines = out.splitlines()
    assert lines[0] == "3 of the 8 images of split 'test': 0, 3 .. 6"
    (counted,) = [line.split()[2:] for line in lines if line.startswith("certified accuracy")]
    (bound,) = [line.split()[5:] for line in lines if line.startswith("at least, with probability 0.999")]
    # P(Binomial(3, 0.001) > 0) > 0.001 >= P(Binomial(3, 0.001) > 1): one of three certificates may be false
    assert [float(each) for each in bound] == [max(0, int(float(each) * 3 + 0.01) - 1) * 333 / 1000 for each in counted]
    out, _ = certify(capsys, files, tmp_path / "t.jsonl", "--out", tmp_path / "b.tsv", "--familywise")
    counted, bound = [line.split() for line in out.splitlines() if line.startswith(("certified acc", "at least"))]
    assert out.startswith("all 8 images of split 'test'\n")
    assert counted[2:] == bound[5:]  # all certificates hold at once with probability 1 - alpha


def test_stopping_early_takes_fewer_samples_for_the_same_decisions(files, tmp_path, capsys):
    options = ("--target-radius", "0.12", "--n", 6000)
    for name, more in (("fixed", ()), ("sequential", ("--stop",))):
        certify(capsys, files, tmp_path / f"{name}_t.jsonl", *options, *more, "--out", tmp_path / f"{name}.tsv")
    fixed, sequential = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("fixed", "sequential")
    )
    target = 937  # ceil((0.12 * 255)**2)
    assert [each["radius_sq"] >= target for each in fixed] == [each["radius_sq"] >= target for each in sequential]
    assert {each["radius_sq"] for each in sequential} == {0, target}
    assert sum(each["samples"] for each in sequential) < 6000 * IMAGES / 3
