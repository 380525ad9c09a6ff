"""The command `audit`: one line for every mistake, the same content in text, JSON and HTML, and no compiled float."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest

from intsmooth_ref.audit import floating_point
from intsmooth_ref.audit.floating_point import PathSearch, floating_point_in
from intsmooth_ref.audit.page import page
from intsmooth_ref.audit.report import audit, text_lines
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.compilation import jit_disabled, numba_available
from intsmooth_ref.engine.reference import ReferenceModel, operate
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.fixedpoint import ROUNDING_MODES
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model, save_model
from intsmooth_ref.model.layers import (
    Add,
    ArgMax,
    Conv2D,
    Flatten,
    InputQuantization,
    Linear,
    LookupTable,
    Quantization,
    Requantization,
    Requantize,
    Softmax,
)
from threshold_model import threshold_model

FULL = Quantization.full_range("uint8", Fraction(1), 0)
BARE = Quantization.full_range("int32", Fraction(1), 0)
HALF, SAME = Requantization.of((2**30, 31)), Requantization.of((2**30, 30))
MARKUP = '<script>alert("2")</script>&amp;'
HOSTILE = '<script>alert("1")</script>\x1b[31m\n&amp;'


def small_model(class_names=(), provenance=""):
    """2x1 pixels of two channels; what the audit finds of it can be told by hand."""
    input_ = InputQuantization(name="input", shape=(2, 1, 2), requantization=SAME,
                               output=Quantization("uint8", Fraction(1), 0, 10, 20))  # fmt: skip
    return IntegerModel((
        input_,
        LookupTable(name="table", inputs=("input",), table=np.arange(256).astype(np.int16), output=FULL),
        Conv2D(name="conv", inputs=("table",), weights=np.array([[[[0, 0]]], [[[1, 2]]]], np.int8),
               bias=np.array([7, -45], np.int32), requantization=HALF,
               output=Quantization("uint8", Fraction(1), 0, 0, 6)),
        Add(name="sum", inputs=("conv", "conv"), multiplier=np.array([1, 1], np.int32), shift=2, output=FULL),
        Flatten(name="flat", inputs=("sum",)),
        Linear(name="scores", inputs=("flat",), weights=np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.int8),
               bias=np.array([0, -9], np.int32), requantization=SAME, output=FULL),
        ArgMax(name="class", inputs=("scores",)),
    ), class_names, provenance)  # fmt: skip


def audited(model, images=0, **more):
    return audit(model, np.zeros((images, *model.input.shape), np.int32), engine="reference", **more)


def layers_of(found):
    return {layer.name: layer for layer in found.layers}


def test_what_can_be_told_by_hand_is_found():
    """conv: channel 0 is (7 + 1) >> 1 = 4; channel 1 is x + 2y - 45 in -15 .. 15, halved -7 .. 8, clamped to 0 .. 6."""
    found = layers_of(audited(small_model()))
    table, conv, sum_, scores, class_ = (found[name] for name in ("table", "conv", "sum", "scores", "class"))
    assert table.unread == ((0, 9), (21, 255)) and (table.low, table.high) == (10, 20)
    assert conv.constant == ((0, 4),) and (conv.low, conv.high) == (0, 6)
    assert conv.accumulators.channels == ((7, 7), (-15, 15)) and conv.accumulators.attained
    assert (conv.accumulators.low, conv.accumulators.high, conv.accumulators.bits) == (-15, 15, 5)
    assert (conv.accumulators.partial_low, conv.accumulators.partial_high) == (-45, 60)
    assert [each.value for each in conv.accumulators.extremes] == [-15, 15]
    clamp = conv.clamp
    assert (clamp.channels, clamp.below, clamp.always_below, clamp.above, clamp.always_above) == (2, 1, 0, 1, 0)
    assert conv.rounding.accumulators == 32 and conv.rounding.ties == 1 + 16
    assert conv.pairs.possible == 0 and conv.pairs.witness is None
    assert sum_.constant == ((0, 2),) and (sum_.low, sum_.high) == (0, 3)
    sums = [a + b for a in range(7) for b in range(7)]
    assert sum_.tied_sums == (sum(each % 4 == 2 for each in sums), len(sums))
    assert scores.accumulators.channels == ((2, 2), (-9, -6)) and scores.constant == ((0, 2), (1, 0))
    assert (scores.clamp.below, scores.clamp.always_below) == (1, 1)
    assert class_.losing == (1,)


def test_the_table_of_a_softmax_is_read_as_far_as_scores_lie_apart():
    first = InputQuantization(name="input", shape=(1, 1, 2), requantization=SAME,
                              output=Quantization("int8", Fraction(1), 0, -10, 30))  # fmt: skip
    softmax = Softmax(name="softmax", inputs=("flat",), table=np.full(256, 9, np.int32),
                      output=Quantization.full_range("uint8", Fraction(1, 256), 0))  # fmt: skip
    found = layers_of(audited(IntegerModel((first, Flatten(name="flat", inputs=("input",)), softmax))))
    assert found["softmax"].unread == ((41, 255),) and found["softmax"].losing == ()


@pytest.mark.parametrize(
    ("minimum", "maximum", "counts"),
    [(0, 5, (0, 0, 1, 1)), (0, 9, (0, 0, 1, 0)), (20, 99, (1, 0, 0, 0)), (30, 99, (1, 1, 0, 0))],
)
def test_a_channel_that_the_clamp_always_cuts_is_constant(minimum, maximum, counts):
    """Values of 9 .. 20: what just reaches the clamp is not cut."""
    cut = Requantize(name="cut", inputs=("input",), requantization=SAME,
                     output=Quantization("uint8", Fraction(1), 0, minimum, maximum))  # fmt: skip
    first = InputQuantization(name="input", shape=(1, 1, 1), requantization=SAME,
                              output=Quantization("uint8", Fraction(1), 0, 9, 20))  # fmt: skip
    found = layers_of(audited(IntegerModel((first, cut, Flatten(name="flat", inputs=("cut",))))))["cut"]
    clamp = found.clamp
    assert (clamp.below, clamp.always_below, clamp.above, clamp.always_above) == counts
    assert found.constant == ((0, minimum or maximum),)


def test_extremes_and_witnesses_replay_from_the_json_alone(tmp_path):
    """The embedded network's first layer: its record, read back, against the reference engine."""
    assert main(["audit", "--engine", "reference", "--max-images", "1", "--climb", "8",
                 "--json", str(tmp_path / "a.json")]) == 0  # fmt: skip
    record = json.loads((tmp_path / "a.json").read_text("ascii"))
    model = load_model(embedded_file("digits.h5")).model
    layer = model.layers[1]
    first = next(each for each in record["layers"] if each["name"] == layer.name)
    accumulators = first["accumulators"]
    bare = Conv2D(**{**vars(layer), "requantization": None, "output": BARE})
    for end, extreme in zip(("low", "high"), accumulators["extremes"]):
        image = np.array(extreme["image"], np.int32).reshape(1, *model.input.shape)
        read = dict(ReferenceModel(model).trace(image))["input"]
        sums = operate(bare, [model.proofs["input"]], read)
        assert sums[(0, *extreme["place"])] == extreme["value"] == accumulators[end]
    witness = first["pairs"]["witness"]
    image = np.array(witness["image"], np.int32).reshape(1, *model.input.shape)
    output = dict(ReferenceModel(model).trace(image))[layer.name]
    assert output[(0, *witness["place"])] == witness["output"] != witness["wrong_output"]
    assert {each["mode"] for each in first["rounding"]["differences"]} == set(ROUNDING_MODES) - {"single_rounding"}


class Structure(HTMLParser):
    """Elements that are opened and closed in order, and the text between them."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_says_what_the_text_says_and_escapes_what_the_file_says():
    found = audited(small_model(("a", MARKUP), HOSTILE))
    structure = Structure()
    structure.feed(page(found))
    structure.close()
    tags = {tag for tag, _ in structure.seen}
    assert structure.open == [] and {"html", "title", "table", "dl", "h3"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "a"}
    assert not any(name.startswith("on") or name in ("src", "href") for _, each in structure.seen for name in each)
    text = "".join(structure.text)
    assert text.count(MARKUP) == text.count(HOSTILE) == 1
    for line in text_lines(found):
        for sentence in line.split("  ")[1:]:
            assert sentence.strip() in text or "x" in sentence


def test_the_text_on_a_terminal_holds_no_control_character(tmp_path, capsys):
    save_model(tmp_path / "m.h5", small_model(("a", MARKUP), HOSTILE))
    assert main(["audit", str(tmp_path / "m.h5"), "--engine", "reference"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[31m\n" in out
    assert "compiled       nothing: the reference engine runs here" in out
    assert "1 of 2 channels are constant: 0 (always 4)" in out


@pytest.fixture
def files(tmp_path):
    save_model(tmp_path / "model.h5", threshold_model())
    (tmp_path / "text.h5").write_text("no model\n")
    np.save(tmp_path / "other.npy", np.zeros((2, 5, 5, 1), np.uint8))
    np.save(tmp_path / "data.npy", np.full((2, 3, 3, 1), 9, np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.h5"], 1, "nothing.h5"),
        (["text.h5"], 1, "text.h5"),
        (["model.h5", "other.npy"], 1, "other.npy: holds images (5, 5, 1), expected (3, 3, 1)"),
        (["model.h5", "--pixels=9..3"], 1, "pixels 9..3: expected ascending"),
        (["model.h5", "--pixels=0..1048577"], 1, "pixels 0..1048577"),
        (["model.h5", "--pixels", "white"], 2, "expected grey levels such as 0..255"),
        (["model.h5", "--max-images", "-1"], 2, "expected an integer, at least 0"),
        (["model.h5", "--json", "model.h5"], 1, "model.h5: is read by this command"),
        (["model.h5", "--json", "text.h5"], 1, "text.h5: found a file already"),
        (["model.h5", "--json", "x", "--html", "x"], 1, "x: stands for --json and --html"),
        (["model.h5", "--html", "no/where.html"], 1, "no/where.html"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(files, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    try:
        found = main(["audit", *arguments, "--engine", "reference"])
    except SystemExit as exit_:
        found = exit_.code
    error = capsys.readouterr().err
    assert found == status and message in error and error.count("\n") == 1
    assert sorted(files.iterdir()) == before


def test_given_images_are_searched_and_both_files_are_written(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    arguments = ["audit", "model.h5", "data.npy", "--engine", "reference", "--pixels=0..255", "--json", "a.json",
                 "--html", "a.html"]  # fmt: skip
    assert main(arguments) == 0
    record = json.loads((files / "a.json").read_text())
    assert (record["images"], record["pixels"], record["version"]) == (2, [0, 255], 1)
    assert "noisy pixels lie in 0 .. 255" in (files / "a.html").read_text() and "0 .. 255" in capsys.readouterr().out
    first = (files / "a.json").read_bytes(), (files / "a.html").read_bytes()
    assert main(arguments) == 1 and main([*arguments, "--overwrite"]) == 0
    assert ((files / "a.json").read_bytes(), (files / "a.html").read_bytes()) == first


def test_control_c_ends_the_search_with_one_line(files):
    command = [sys.executable, "-m", "intsmooth_ref", "audit", "--climb", "100000000", "--engine", "reference",
               "--json", str(files / "a.json")]  # fmt: skip
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    time.sleep(4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "intsmooth-ref: interrupted\n")
    assert not (files / "a.json").exists()


# --- compiled code ----------------------------------------------------------------------------------------------------


def test_where_nothing_is_compiled_that_is_what_is_said(monkeypatch):
    with PathSearch(threshold_model(), "reference") as search:
        found = search.result()
    assert (found.engine, found.isa, found.kernels, found.found) == ("reference", "numpy", (), ())
    monkeypatch.setattr(floating_point, "resolve_engine", lambda name: "jit")
    monkeypatch.setattr(floating_point, "jit_disabled", lambda: True)
    with PathSearch(threshold_model()) as search:
        assert (search.result().engine, search.result().kernels) == ("jit", ())


def test_types_and_instructions_of_floating_point_are_found_and_words_in_names_are_not():
    ir = "\n".join([
        '; float', 'source_filename = "float"', "define i64 @double(i64 %float) {", '  %x = add i64 1, 2 ; fadd',
        "  %y = fadd double %a, %b", "  %z = sitofp i64 %x to <4 x float>", '  call void @f(), !float !1', "}",
    ])  # fmt: skip
    assert [line.split()[0] for line in floating_point_in(ir)] == ["=", "="] and len(floating_point_in(ir)) == 2


@pytest.mark.slow
@pytest.mark.skipif(not numba_available() or jit_disabled(), reason="nothing is compiled")
def test_the_compiled_path_of_a_model_is_searched_from_noise_to_votes():
    with PathSearch(threshold_model(), "jit", "portable") as search:
        found = search.result()
    names = {name.rpartition(".")[2] for name in found.kernels}
    assert {"cast_votes", "add", "quantize_input", "accumulate", "arg_max_accumulators"} <= names
    assert (found.engine, found.isa, found.found) == ("jit", "portable", ()) and found.lines > 1000


@pytest.mark.skipif(not numba_available() or jit_disabled(), reason="nothing is compiled")
def test_a_model_that_cannot_be_compiled_is_one_clear_error():
    with PathSearch(threshold_model(), "jit", "abacus") as search:
        with pytest.raises(ParameterError, match="to search its code: isa 'abacus': expected one of"):
            search.result()
