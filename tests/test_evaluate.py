"""Float twin and integer model side by side: the figures are those that the records give, and no run is ever lost."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any, Callable

import numpy as np
import pytest
from scipy.stats import beta
from threshold_model import threshold_model

from intsmooth_ref.cli import main as command_line
from intsmooth_ref.data_tools import evaluate, float_model
from intsmooth_ref.data_tools.comparison import (
    Certified,
    Comparison,
    Storage,
    as_json,
    as_markdown,
    exact_text,
    rounded_down,
)
from intsmooth_ref.data_tools.evaluate import (
    chosen_images,
    float_reaches,
    integer_reaches,
    table_seconds,
)
from intsmooth_ref.data_tools.float_certification import Scores
from intsmooth_ref.data_tools.float_file import save_float_model
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.errors import ResultFileError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model, save_model

ROOT = Path(__file__).resolve().parent.parent
IMAGES, N0, N, INTEGER_N = 13, 20, 300, 700
SIGMA, SEED = Fraction(1, 4), 3
#: One is next to the threshold.
LEVELS = np.linspace(60, 198, IMAGES).astype(np.uint8)
#: Sorted by class, but for one label that is wrong on purpose.
LABELS = (LEVELS > 128).astype(np.int64)
LABELS[0] = 1


def float_twin(classes: int = 2) -> float_model.FloatModel:
    """The float network that `threshold_model` computes in integers: whether the mean of nine pixels exceeds 128."""
    weights = np.zeros((classes, 9), np.float32)
    weights[1] = 1
    bias = np.zeros(classes, np.float32)
    bias[1] = -9 * 128 / 255
    return float_model.FloatModel(
        (
            float_model.Input.fractions_of_full_scale("input", (3, 3, 1)),
            float_model.Flatten(name="flat", inputs=("input",)),
            float_model.Linear(name="scores", inputs=("flat",), weights=weights, bias=bias),
        )
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    images = np.repeat(LEVELS, 9).reshape(IMAGES, 3, 3, 1)
    save_float_model(folder / "float.h5", float_twin())
    save_model(folder / "integer.h5", threshold_model())
    save_dataset(folder / "data.h5", [Dataset(images, LABELS, ("dark", "bright"), "made by a test", "test")])
    return folder


def arguments(files: Path, out: Path, *more: object, runtime: str = "numpy") -> list[str]:
    given = [
        files / "float.h5", files / "integer.h5", files / "data.h5", "--out", out, "--n0", N0, "--n", N, "--integer-n",
        INTEGER_N, "--seed", SEED, "--runtime", runtime, *more,
    ]  # fmt: skip
    return [str(each) for each in given]


@pytest.fixture(scope="module")
def done(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole run, and what it printed."""
    out = tmp_path_factory.mktemp("done") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert evaluate.main(arguments(files, out)) == 0
    return out, printed.getvalue()


def records(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def table(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "table.json").read_text())
    return content


# --- the runs


def test_the_integer_records_are_those_of_the_certify_command_to_the_byte(
    files: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    for n in (N, INTEGER_N):
        out = tmp_path / f"{n}.tsv"
        given = [files / "integer.h5", files / "data.h5", "--sigma", "0.25", "--n0", N0, "--n", n, "--seed", SEED]
        assert command_line([str(each) for each in ["certify", *given, "--out", out]]) == 0
        assert out.with_suffix(".jsonl").read_bytes() == (done[0] / f"integer-{n}.jsonl").read_bytes()


def test_the_float_votes_and_radii_are_those_of_the_published_procedure(done: tuple[Path, str]) -> None:
    """Noise, votes, bound and radius computed once more, from their description."""
    found = records(done[0], f"float-{N}")
    assert [each["idx"] for each in found] == list(range(IMAGES))
    abstained = 0
    for record, level in zip(found, LEVELS.tolist()):
        generator = np.random.default_rng((SEED, 3, record["idx"]))
        noise = generator.standard_normal((N0 + N, 9), dtype=np.float32).astype(np.float64)
        classes = ((level + 255 * 0.25 * noise).sum(axis=1) > 9 * 128).astype(int)
        assert record["selection_votes"] == np.bincount(classes[:N0], minlength=2).tolist()
        assert record["estimation_votes"] == np.bincount(classes[N0:], minlength=2).tolist()
        selected = int(np.argmax(record["selection_votes"]))
        count = record["estimation_votes"][selected]
        bound = beta.ppf(0.001, count, N - count + 1)
        abstained += bound <= 0.5
        assert record["predict"] == (selected if bound > 0.5 else -1)
        expected = 0.25 * NormalDist().inv_cdf(bound) if bound > 0.5 else 0
        assert record["radius"] == pytest.approx(expected, rel=1e-9)
        assert record["correct"] == int(record["predict"] == LABELS[record["idx"]])
    assert abstained == 1  # the image at the threshold


def test_float_certificates_are_near_the_integer_ones_of_the_same_function(done: tuple[Path, str]) -> None:
    for twin, integer in zip(records(done[0], f"float-{N}"), records(done[0], f"integer-{N}")):
        assert twin["image_sha256"] == integer["image_sha256"] and twin["label"] == integer["label"]
        assert abs(twin["radius"] - float(integer["radius"])) < 0.12


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_other_runtimes_cast_the_same_votes_as_numpy(
    runtime: str, files: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    if runtime == "onnxruntime":
        pytest.importorskip("onnx")
    out = tmp_path / "out"
    assert evaluate.main(arguments(files, out, runtime=runtime)) == 0
    for ours, others in zip(records(done[0], f"float-{N}"), records(out, f"float-{N}")):
        assert ours["estimation_votes"] == others["estimation_votes"] and others["runtime"] == runtime
    assert f"| {runtime} " in (out / "table.md").read_text()


# --- the figures


#: The radii of the table, as far as it may go here.
RADII = {"0": Fraction(0), "0.25": Fraction(1, 4), "0.5": Fraction(1, 2), "0.75": Fraction(3, 4), "1": Fraction(1)}


def expected_figures(
    found: list[dict[str, Any]], reaches: Callable[[dict[str, Any], Fraction], bool]
) -> dict[str, Any]:
    right = [each for each in found if each["predict"] == each["label"]]
    return {
        "certified": {name: sum(reaches(each, radius) for each in right) for name, radius in RADII.items()},
        "average_certified_radius": float(sum((Fraction(each["radius"]) for each in right), Fraction(0)) / IMAGES),
        "abstained": sum(each["predict"] == -1 for each in found),
    }


def test_the_table_says_what_the_records_give(done: tuple[Path, str]) -> None:
    runs = table(done[0])["runs"]
    assert [(run["kind"], run["n"]) for run in runs] == [("float", N), ("integer", N), ("integer", INTEGER_N)]
    for run in runs:
        found = records(done[0], f"{run['kind']}-{run['n']}")
        if run["kind"] == "float":
            expected = expected_figures(found, lambda each, radius: Fraction(each["radius"]) >= radius)
        else:  # sqrt(radius_sq) / 255 >= radius, in integers
            expected = expected_figures(found, lambda each, radius: each["radius_sq"] >= (255 * radius) ** 2)
        assert expected["certified"].items() >= run["certified"].items()
        assert {name: run[name] for name in ("average_certified_radius", "abstained")} == {
            name: expected[name] for name in ("average_certified_radius", "abstained")
        }
        # without noise all is right but the label that is wrong
        assert run["right_without_noise"] == IMAGES - 1 and run["images"] == IMAGES
    last = [list(run["certified"].values())[-1] for run in runs]
    before = [list(run["certified"].values())[-2] for run in runs]
    assert last == [0, 0, 0] and any(before)
    twin, integer = (run["certified"] for run in runs[:2])
    assert table(done[0])["integer_minus_float"] == {radius: integer[radius] - twin[radius] for radius in twin}


def test_a_radius_is_reached_by_the_first_integer_that_does_and_by_an_equal_float() -> None:
    # 63.75**2 = 4064.0625, 255**2 = 65025
    for radius, least in ((Fraction(1, 4), 4065), (Fraction(1), 65025), (Fraction(0), 0)):
        reached = [integer_reaches({"radius_sq": squares}, radius) for squares in (least - 1, least, least + 1)]
        assert reached == [False, True, True]
    assert [float_reaches({"radius": each}, Fraction(1, 4)) for each in (np.nextafter(0.25, 0), 0.25)] == [False, True]


def test_a_wrong_label_counts_as_wrong_however_large_its_radius(done: tuple[Path, str]) -> None:
    first = records(done[0], f"float-{N}")[0]
    assert first["predict"] == 0 and first["label"] == 1 and first["radius"] > 0.3
    assert table(done[0])["runs"][0]["certified"]["0"] == IMAGES - 1 - table(done[0])["runs"][0]["abstained"]


def test_parameters_are_counted_and_files_measured(files: Path, done: tuple[Path, str]) -> None:
    stored = table(done[0])["bytes"]
    # float: 18 weights, 2 biases. Integer: 18 int8 weights, 2 int32 biases, a multiplier and a shift
    assert stored["float"] == {"parameters": 4 * 20, "file": (files / "float.h5").stat().st_size}
    assert stored["integer"] == {"parameters": 18 + 2 * 4 + 4 + 4, "file": (files / "integer.h5").stat().st_size}
    assert "| parameters | 80 | 34 | 57.5 % |" in (done[0] / "table.md").read_text()


def test_the_embedded_models_parameters_take_what_its_card_says() -> None:
    card = (ROOT / "weights" / "README.md").read_text("utf-8")
    said = re.search(r"\| bytes of parameters \| [\d,]+ \| ([\d,]+) \|", card)
    assert said is not None
    assert load_model(ROOT / "weights" / "digits.h5").model.parameter_bytes == int(said[1].replace(",", ""))


def test_what_is_printed_is_the_markdown_and_names_its_circumstances(done: tuple[Path, str], files: Path) -> None:
    out, printed = done
    assert printed == (out / "table.md").read_text()
    for words in (
        "All 13 images of split 'test'; sigma 0.25, alpha 0.001, n0 20, seed 3.", "not sound to the last digit",
        "- processor: ", "numpy ", f"- command: `python -m intsmooth_ref.data_tools.evaluate {files / 'float.h5'} ",
        "- date: 20", "as NumPy's BLAS chooses",
    ):  # fmt: skip
        assert words in printed


# --- the comparison, from made-up records


def made_up(name: str, radii: list[str], correct: list[int], clean: int = 4, n: int = 100) -> Certified:
    found = [
        {"predict": 0 if float(radius) or right else -1, "radius": radius, "correct": right}
        for radius, right in zip(radii, correct)
    ]
    seconds = [9.0, *[0.1] * (len(radii) - 1)]
    return Certified(
        name, 10, n, found, lambda record, radius: Fraction(record["radius"]) >= radius, seconds, clean, "made up", "1"
    )


def comparison(twin: Certified, *integers: Certified) -> Comparison:
    sizes = Storage(4000, 1000), Storage(1001, 1100)
    return Comparison("Four images", {"sigma": "0.25"}, twin, integers, *sizes, {"date": "to\nday"})


def cells(text: str, name: str) -> list[list[str]]:
    """The rows of the tables that begin with this cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == name]


TWIN = made_up("float", ["0.25", "0.5", "0.249999", "0"], [1, 1, 1, 0])
INTEGER = made_up("integer", ["0.25", "0.75", "0.1", "0.3"], [1, 0, 1, 0], clean=3)


def test_accuracies_are_shown_rounded_down_and_differences_with_their_sign() -> None:
    text = as_markdown(comparison(TWIN, INTEGER, made_up("integer", ["0.26"] * 3, [1, 1, 0], n=10000)))
    assert cells(text, "") == [
        ["", "n", "radius 0", "radius 0.25", "radius 0.5", "radius 0.75", "ACR", "abstained", "clean"],
        ["", "n", "runtime", "threads", "samples/s", "wall time"],
    ]
    first, speed = cells(text, "float")
    assert first == ["float", "100", "0.750", "0.500", "0.250", "0.000", "0.249", "1", "1.000"]
    assert speed == ["float", "100", "made up", "1", "1,100", "0:00:09"]  # the first image waited for a compiler
    assert cells(text, "integer")[0] == ["integer", "100", "0.500", "0.250", "0.000", "0.000", "0.087", "0", "0.750"]
    assert cells(text, "integer")[1][:4] == ["integer", "10,000", "0.666", "0.666"]
    assert cells(text, "difference") == [
        ["difference", "", "**-25.0 pp**", "-25.0 pp", "-25.0 pp", "0.0 pp", "-0.162", "-1", "-25.0 pp"]
    ]
    assert "Largest difference: at radius 0 the integer model certifies 1 of 4 images fewer.\n\nColumns: " in text
    assert cells(text, "parameters") == [["parameters", "4,000", "1,001", "74.9 %"]]
    assert cells(text, "file") == [["file", "1,000", "1,100", "-10.0 %"]]
    assert r"- date: to\nday" in text


def test_the_largest_difference_is_flagged_wherever_it_is_and_whatever_its_sign() -> None:
    better = made_up("integer", ["0.5", "0.5", "0.3", "0.6"], [1, 1, 1, 1])
    text = as_markdown(comparison(TWIN, better))
    assert cells(text, "difference")[0][2:6] == ["+25.0 pp", "**+50.0 pp**", "+50.0 pp", "0.0 pp"]
    assert "Largest difference: at radius 0.25 the integer model certifies 2 of 4 images more." in text


def test_whoever_subtracts_two_rows_finds_the_differences() -> None:
    """Radii 0.1239 and 0.1251 are shown as 0.123 and 0.125; two of seven and one of seven as 0.285 and 0.142."""
    before = made_up("float", ["0.8673", *["0"] * 6], [1, 1, *[0] * 5])
    after = made_up("integer", ["0.8757", *["0"] * 6], [1, *[0] * 6])
    text = as_markdown(comparison(before, after))
    assert cells(text, "float")[0][2:] == ["0.285", "0.142", "0.142", "0.142", "0.000", "0.123", "5", "0.571"]
    assert cells(text, "integer")[0][2:] == ["0.142", "0.142", "0.142", "0.142", "0.000", "0.125", "6", "0.571"]
    assert cells(text, "difference")[0][2:] == [
        "**-14.3 pp**", "0.0 pp", "0.0 pp", "0.0 pp", "0.0 pp", "+0.002", "+1", "0.0 pp"
    ]


def test_no_difference_is_zero_with_a_sign() -> None:
    twin = made_up("float", ["0.5", "0.5"], [1, 1], clean=2)
    less = made_up("integer", ["0.4999999", "0.5000001"], [1, 1], clean=2)
    assert cells(as_markdown(comparison(twin, less)), "difference")[0][-3:] == ["0.000", "0", "0.0 pp"]


def test_without_a_difference_none_is_flagged() -> None:
    text = as_markdown(comparison(TWIN, made_up("integer", ["0.25", "0.5", "0.249999", "0"], [1, 1, 1, 0])))
    assert "**" not in text and "At every radius both certify the same number of images." in text


def test_where_nothing_is_right_the_table_has_the_radius_0_alone() -> None:
    nothing = made_up("float", ["0.5", "0"], [0, 0])
    assert as_json(comparison(nothing, nothing))["integer_minus_float"] == {"0": 0}


def test_json_and_markdown_speak_of_the_same_counts() -> None:
    content = as_json(comparison(TWIN, INTEGER))
    assert content["runs"][0]["certified"] == {"0": 3, "0.25": 2, "0.5": 1, "0.75": 0}
    assert content["integer_minus_float"] == {"0": -1, "0.25": -1, "0.5": -1, "0.75": 0}
    assert content["runs"][1]["average_certified_radius"] == 0.35 / 4
    assert content["runs"][1]["seconds"] == pytest.approx(9.3)


def test_numbers_are_rounded_towards_minus_infinity() -> None:
    expected = {(2, 3): "0.666", (1, 1): "1.000", (-1, 3000): "-0.001", (-3, 2): "-1.500", (0, 1): "0.000"}
    assert {pair: rounded_down(Fraction(*pair), 3) for pair in expected} == expected


def test_a_rational_is_written_in_digits_only_where_they_are_exact() -> None:
    expected = {(1, 4): "0.25", (0, 1): "0", (1, 1000): "0.001", (1, 3): "1/3"}
    assert {pair: exact_text(Fraction(*pair)) for pair in expected} == expected


# --- which images


def test_images_are_spread_evenly_over_the_whole_split() -> None:
    assert chosen_images(5000, 1000, None) == range(0, 5000, 5)
    for images in range(1, 40):
        for most in range(1, 45):
            chosen = list(chosen_images(images, most, None))
            assert 1 <= len(chosen) <= most and chosen[0] == 0
            step = chosen[1] - chosen[0] if len(chosen) > 1 else images
            assert chosen == list(range(0, images, step))  # up to the last: no class at the end is left out


def test_skip_and_max_mean_what_they_do_in_certify() -> None:
    assert list(chosen_images(12, 3, 2)) == [0, 2, 4] and list(chosen_images(12, None, 5)) == [0, 5, 10]
    assert list(chosen_images(12, None, None)) == list(range(12))


def test_both_models_are_certified_on_the_chosen_images(files: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert evaluate.main(arguments(files, out, "--max", 5)) == 0
    for name in (f"float-{N}", f"integer-{N}", f"integer-{INTEGER_N}"):
        assert [each["idx"] for each in records(out, name)] == [0, 3, 6, 9, 12]
    assert [run["right_without_noise"] for run in table(out)["runs"]] == [4, 4, 4]  # 0 has the wrong label
    assert "5 of the 13 images of split 'test': 0, 3 .. 12; sigma" in capsys.readouterr().out


# --- interruption, resumption, earlier results


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the float twin computes its batch of this number."""
    made = evaluate.float_scores

    def float_scores(*given: Any) -> Scores:
        scores, count = made(*given), 0

        def interrupting(images: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            if count == batches:
                os.kill(os.getpid(), signal.SIGINT)
            return scores(images)

        return interrupting

    monkeypatch.setattr(evaluate, "float_scores", float_scores)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    files: Path, done: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupted_after(15, patched)  # an image takes 1 + 3 batches
        assert evaluate.main(arguments(files, out)) == 130
    kept = records(out, f"float-{N}")
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == f"interrupted; 3 of 13 images are in {out}/float-{N}.tsv: go on with --resume"
    assert len(kept) == 3
    assert not (out / "table.md").exists()
    assert evaluate.main(arguments(files, out, "--resume")) == 0
    for name in (f"float-{N}", f"integer-{N}", f"integer-{INTEGER_N}"):
        assert (out / f"{name}.jsonl").read_bytes() == (done[0] / f"{name}.jsonl").read_bytes()
    assert table(out)["runs"][0]["certified"] == table(done[0])["runs"][0]["certified"]


def test_a_table_that_is_a_line_behind_its_records_is_caught_up(
    files: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    table_of_twin = out / f"float-{N}.tsv"
    table_of_twin.write_text("".join(table_of_twin.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate.main(arguments(files, out, "--resume")) == 0
    assert (out / f"float-{N}.jsonl").read_bytes() == (done[0] / f"float-{N}.jsonl").read_bytes()
    assert table_of_twin.read_text().count("\n") == IMAGES + 1 and table(out)["runs"][0]["images"] == IMAGES


def test_what_is_complete_is_not_computed_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert evaluate.main(arguments(files, out, "--max", 2)) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*-*")}
    assert len(before) == 6
    assert evaluate.main(arguments(files, out, "--max", 2, "--resume")) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*-*")} == before  # times too


def test_earlier_results_are_moved_aside_all_of_them(files: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    for seed in (1, 2):
        assert evaluate.main(arguments(files, out, "--max", 2, "--seed", seed)) == 0
    names = [f"{kind}.{ending}" for kind in (f"float-{N}", f"integer-{N}", f"integer-{INTEGER_N}")
             for ending in ("tsv", "jsonl")] + ["table.md", "table.json"]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, *(f"{name}.1" for name in names)])
    for name, seed in ((f"float-{N}.jsonl.1", 1), (f"float-{N}.jsonl", 2)):
        assert f'"seed":{seed}' in (out / name).read_text()
    assert capsys.readouterr().err.count("was there: moved to") == 8


@pytest.mark.parametrize("changed", [("--seed", 4), ("--sigma", "0.5"), ("--alpha", "0.01"), ("--n0", 30)])
def test_a_run_goes_on_with_its_own_parameters_only(
    files: Path, tmp_path: Path, changed: tuple[str, object], capsys: Any
) -> None:
    out = tmp_path / "out"
    assert evaluate.main(arguments(files, out, "--max", 2)) == 0
    for path in out.glob("integer-*"):  # what is refused is the float run
        path.unlink()
    capsys.readouterr()
    assert evaluate.main(arguments(files, out, "--max", 2, "--resume", *changed)) == 1
    assert "was begun with" in capsys.readouterr().err.splitlines()[-1]


def test_one_number_of_samples_for_both_makes_two_runs(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate.main(arguments(files, out, "--max", 2, "--integer-n", N)) == 0
    assert [run["kind"] for run in table(out)["runs"]] == ["float", "integer"]


def test_times_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    times = {"0:00:00": 0, "0:01:02.5": 62.5, "1 day, 1:00:00": 90000, "2 days, 0:00:01.000001": 172801.000001}
    path.write_text("idx\ttime\n" + "".join(f"0\t{text}\n" for text in times))
    assert table_seconds(path) == list(times.values())
    path.write_text("idx\ttime\n0\tsoon\n")
    with pytest.raises(ResultFileError, match="line 2: found 'soon', expected a time"):
        table_seconds(path)


# --- what is refused


def refused(given: list[str], capsys: Any) -> str:
    """The only line that a refused run writes."""
    assert evaluate.main(given) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return str(captured.err)


def test_models_that_are_no_twins_are_refused(files: Path, tmp_path: Path, capsys: Any) -> None:
    save_float_model(tmp_path / "float.h5", float_twin(classes=3))
    given = arguments(files, tmp_path / "out")
    given[0] = str(tmp_path / "float.h5")
    assert "found images (3, 3, 1) and 3 classes; expected images (3, 3, 1) and 2" in refused(given, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 1], "images (4, 4, 1); expected (3, 3, 1)"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, -1], "found labels from -1 to 0"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 7], "found labels from 0 to 7; expected one of the models' 2 classes"),
    ],
)
def test_images_that_the_models_cannot_be_right_on_are_refused(
    files: Path, tmp_path: Path, capsys: Any, images: np.ndarray, labels: list[int], words: str
) -> None:
    save_dataset(tmp_path / "data.h5", [Dataset(images, np.array(labels, np.int64), (), "made by a test", "test")])
    given = arguments(files, tmp_path / "out")
    given[2] = str(tmp_path / "data.h5")
    assert words in refused(given, capsys)


@pytest.mark.parametrize(
    "more, words",
    [
        (("--n", 9), "9 samples cannot certify anything"),
        (("--integer-n", N - 1), f"--integer-n {N - 1}: expected as many samples as --n at least, {N}"),
        (("--alpha", 2), "alpha 2: expected a probability"),
        (("--sigma", 0), "sigma"),
        (("--seed", 2**64), "seed"),
        (("--split", "none"), "no split 'none'"),
    ],
)
def test_what_can_lead_to_nothing_is_refused_before_anything_is_begun(
    files: Path, tmp_path: Path, capsys: Any, more: tuple[str, object], words: str
) -> None:
    assert words in refused(arguments(files, tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


def test_images_and_models_of_other_classes_are_refused(files: Path, tmp_path: Path, capsys: Any) -> None:
    save_model(tmp_path / "integer.h5", IntegerModel(threshold_model().layers, ("dark", "light")))
    given = arguments(files, tmp_path / "out")
    given[1] = str(tmp_path / "integer.h5")
    expected = "found class 1 called 'bright'; expected 'light', as in the model"
    assert f"split 'test': {expected}" in refused(given, capsys)
    save_float_model(tmp_path / "float.h5", replace(float_twin(), class_names=("bright", "dark")))
    given[:2] = str(tmp_path / "float.h5"), str(files / "integer.h5")
    assert "found class 0 called 'dark'; expected 'bright'" in refused(given, capsys)
    assert not (tmp_path / "out").exists()


def test_a_float_model_that_the_integer_model_was_not_made_of_is_warned_of(
    files: Path, tmp_path: Path, capsys: Any
) -> None:
    own = hashlib.sha256((files / "float.h5").read_bytes()).hexdigest()
    for named, warnings in ((own, 0), ("c5" * 32, 1)):
        provenance = f"made by a test; float model file of SHA-256 {named}: by hand"
        save_model(tmp_path / "integer.h5", IntegerModel(threshold_model().layers, (), provenance))
        given = arguments(files, tmp_path / "out", "--max", 1)
        given[1] = str(tmp_path / "integer.h5")
        assert evaluate.main(given) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
        warning = f"warning: {tmp_path / 'integer.h5'}: names another float model ({named}); found {own}"
        assert lines == [warning] * warnings


def test_every_run_has_a_heading_and_the_integer_model_never_has_fewer_samples(
    files: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "INTEGER_N", 200)
    given = arguments(files, tmp_path / "out", "--max", 1)
    position = given.index("--integer-n")
    assert evaluate.main(given[:position] + given[position + 2 :]) == 0
    headings = [line for line in capsys.readouterr().err.splitlines() if " samples of " in line]
    assert headings == ["integer model: 20 + 300 samples of 1 image", "float twin (numpy): 20 + 300 samples of 1 image"]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_missing_file_is_one_line(files: Path, tmp_path: Path, capsys: Any, position: int) -> None:
    given = arguments(files, tmp_path / "out")
    given[position] = str(tmp_path / "missing.h5")
    assert "missing.h5" in refused(given, capsys)


def test_a_folder_that_cannot_be_made_is_one_line(files: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(arguments(files, tmp_path / "file"), capsys)


@pytest.mark.parametrize(
    "runtime, module, extra", [("torch", "torch", "train"), ("onnxruntime", "onnx", "bench"),
                               ("onnxruntime", "onnxruntime", "bench")]
)  # fmt: skip
def test_where_a_runtime_is_missing_numpy_is_suggested(
    runtime: str, module: str, extra: str, files: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch_network", "float_onnx"):
        monkeypatch.delitem(sys.modules, f"intsmooth_ref.data_tools.{name}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(arguments(files, tmp_path / "out", runtime=runtime), capsys)
    assert f"the extra `{extra}`" in line and "--runtime numpy" in line


@pytest.mark.parametrize("more", [("--n", 0), ("--runtime", "abacus"), ("--sigma", "much"), ("--max", "-1")])
def test_wrong_arguments_exit_with_2(files: Path, tmp_path: Path, more: tuple[str, object], capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        evaluate.main(arguments(files, tmp_path / "out", *more))
    assert exit_.value.code == 2
