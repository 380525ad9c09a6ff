"""`certify --transcript` and `verify`: confirmed 0, refuted 1, could not be checked 2, always in clear lines."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from intsmooth_ref.certify.transcript import claim_bytes, read_transcript
from intsmooth_ref.certify.vote_hashes import merkle_root
from intsmooth_ref.cli import main
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.model.hdf5 import save_model
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


def certify(capsys, files, transcript, *more, engine="reference"):
    arguments = ("certify", files / "model.h5", files / "data.h5", "--n", 1200, "--n0", 20, "--engine", engine,
                 "--seed", 7, "--transcript", transcript, *more)  # fmt: skip
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    return out, err


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
    "some images": ("--skip", "3", "--max", "2"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_certify_writes_verify_confirms_wholly_in_part_and_with_fresh_noise(options, files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", *options)
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl")
    assert (status, err) == (0, "") and out.endswith("confirmed\n")
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl", "--chunks", 5)
    assert (status, err) == (0, "") and out.endswith("confirmed\n")
    assert "drawn at random" in out and "with probability 0.999" in out or "replayed as a whole" in out
    status, out, err = verify(capsys, files, tmp_path / "t.jsonl", "--fresh", "--seed", 12)
    assert (status, err) == (0, "") and "fresh from seed 12" in out and out.endswith("the claims stand\n")


@pytest.mark.skipif(not numba_available(), reason="needs Numba")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_engines_write_the_same_certificates_and_confirm_each_others(options, files, tmp_path, capsys):
    claims = []
    for engine, other in (("reference", "jit"), ("jit", "reference")):
        transcript = tmp_path / f"{engine}.jsonl"
        certify(capsys, files, transcript, *options, engine=engine)
        assert verify(capsys, files, transcript, engine=other)[0] == 0
        documents = list(read_transcript(transcript))
        assert {document.information["engine"] for document in documents} == {engine}
        claims.append([claim_bytes(document) for document in documents])
    assert claims[0] == claims[1]


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


def test_an_earlier_transcript_is_moved_aside(files, tmp_path, capsys):
    transcript = tmp_path / "t.jsonl"
    certify(capsys, files, transcript)
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


def test_forged_votes_are_found_where_all_chunks_are_drawn(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl")

    def change_hash(fields):
        stage = fields["estimation"]
        stage["chunks"][1] = "0" * 64
        stage["merkle_root"] = merkle_root(stage["chunks"])

    path = forged(tmp_path, tmp_path / "t.jsonl", 2, change_hash)
    chunks = 3 * IMAGES
    status, out, _ = verify(capsys, files, path, "--chunks", 10 * chunks)
    assert status == 1 and f"in {chunks} of {chunks} chunks" in out and "more than 0 of the" in out
    assert "line 3 (image 2): $.estimation.chunks[1]: states 0000" in out
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


def test_another_model_and_other_images_are_refuted(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--max", 2)
    arguments = ("--engine", "reference")
    status, out, _ = run(capsys, "verify", tmp_path / "t.jsonl", files / "other.h5", files / "data.h5", *arguments)
    assert status == 1 and out.count("$.model_sha256: states") == 2
    status, out, _ = run(capsys, "verify", tmp_path / "t.jsonl", files / "model.h5", files / "other.npz", *arguments)
    assert status == 1 and out.count("$.image.sha256: states") == 2


def test_a_seed_that_was_chosen_among_many_is_noticed(files, tmp_path, capsys):
    """Of each image the best of many seeds: every replay confirms it, fresh noise does not."""
    images = np.full((24, 3, 3, 1), 136, np.uint8)
    np.savez(tmp_path / "close.npz", images=images, labels=np.ones(24, np.int64))
    arguments = (files / "model.h5", tmp_path / "close.npz", "--engine", "reference")
    best = {}
    for seed in range(40):
        transcript = tmp_path / f"{seed}.jsonl"
        assert run(capsys, "certify", *arguments, "--n", 300, "--n0", 400, "--seed", seed, "--transcript", transcript,
                   "--alpha", "0.4")[0] == 0  # fmt: skip
        for line, document in zip(transcript.read_bytes().splitlines(True), read_transcript(transcript)):
            votes = document.estimation.votes[1]
            best[document.image.index] = max(best.get(document.image.index, (0, b"")), (votes, line))
    chosen = tmp_path / "chosen.jsonl"
    chosen.write_bytes(b"".join(line for _, line in best.values()) * 2)
    assert run(capsys, "verify", chosen, *arguments)[0] == 0
    status, out, _ = run(capsys, "verify", chosen, *arguments, "--fresh", "--seed", 5)
    lucky = re.search(r"refuted: the stated votes are higher than the fresh ones in (\d+) of (\d+) images", out)
    assert status == 1 and 15 < int(lucky[1]) <= int(lucky[2]) <= 24
    assert "more than once: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ..." in out


def test_a_claim_that_is_far_off_is_contradicted_by_fresh_votes(files, tmp_path, capsys):
    """Votes, hash and radius were invented together, so that nothing but a replay or fresh votes can tell."""
    certify(capsys, files, tmp_path / "t.jsonl", "--max", 6)

    def invent(fields):
        fields["estimation"].update(votes=[0, 1200])
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
        (lambda data: data.replace(b'"255/4"', b'"1/100"', 1), "sigma 1/100: expected 1/4 to 1024"),
        (lambda data: data.replace(b'"n":1200', b'"n":9', 1), "9 samples cannot certify anything"),
    ],
)
def test_a_transcript_that_cannot_be_checked_ends_in_one_line_and_status_2(damage, message, files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl")
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(damage((tmp_path / "t.jsonl").read_bytes()))
    status, _, err = verify(capsys, files, path)
    assert status == 2 and err.count("\n") == 1 and re.search(message, err), err


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
        (["GOOD", "MODEL", "DATA", "--seed", "2"], "--seed: goes with --fresh"),
        (["GOOD", "MODEL", "DATA", "--split", "train"], "train"),
        (["GOOD", "MODEL", "DATA", "--fresh", "--seed", str(2**64)], "seed 18446744073709551616"),
        (["GOOD", "MODEL", "DATA", "--fresh", "--seed", "7"], "--seed 7: expected a fresh seed"),
        ([], "the following arguments are required: TRANSCRIPT"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, message, files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--max", 1)
    places = {"GOOD": tmp_path / "t.jsonl", "MODEL": files / "model.h5", "DATA": files / "data.h5",
              "MISSING": tmp_path / "missing"}  # fmt: skip
    status, _, err = run(capsys, "verify", *(places.get(argument, argument) for argument in arguments))
    assert status == 2 and err.count("\n") == 1 and re.search(message, err), err


def test_ctrl_c_ends_a_replay_in_one_line(files, tmp_path, capsys):
    certify(capsys, files, tmp_path / "t.jsonl", "--n", 200_000, "--max", 4)
    arguments = ["verify", tmp_path / "t.jsonl", files / "model.h5", files / "data.h5", "--engine", "reference"]
    process = subprocess.Popen([sys.executable, "-m", "intsmooth_ref", *map(str, arguments)], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "intsmooth-ref: interrupted\n" and "confirmed" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stop",), "--stop: needs --target-radius"),
        (("--stop", "--target-radius", "0.5", "--bound", "two-class"), "bound 'two-class' with target radii"),
        (("--bound", "two-class", "--scale", "0.1"), "bound 'two-class' with noise discrete_laplace"),
        (("--stop", "--target-radius", "3"), "samples"),
        (("--stop", "--target-radius", "-1"), "radius -1"),
        (("--sigma", "0.1", "--scale", "0.1"), "not allowed with argument"),
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
    options = ("--target-radius", "0.12", "--n", 20_000)
    for name, more in (("fixed", ()), ("sequential", ("--stop",))):
        certify(capsys, files, tmp_path / f"{name}_t.jsonl", *options, *more, "--out", tmp_path / f"{name}.tsv")
    fixed, sequential = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("fixed", "sequential")
    )
    target = 937  # ceil((0.12 * 255)**2)
    assert [each["radius_sq"] >= target for each in fixed] == [each["radius_sq"] >= target for each in sequential]
    assert {each["radius_sq"] for each in sequential} == {0, target}
    assert sum(each["samples"] for each in sequential) < 20_000 * IMAGES / 5
