"""Known-answer vectors are right, can be read by anybody, and name the first thing that another implementation gets
wrong."""

import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import oracle
from intsmooth_ref.audit.vector_format import MAGIC, Case, Digest, VectorSet, read_vectors, vector_text
from intsmooth_ref.audit.vectors import PRIMITIVES, known_answers, network_answers, network_images, vector_set
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.errors import VectorFormatError
from intsmooth_ref.fixedpoint import ROUNDING_MODES
from intsmooth_ref.model.fingerprint import tensor_sha256
from intsmooth_ref.model.hdf5 import load_model, save_model
from intsmooth_ref.model.layers import LAYER_KINDS, Quantization, Requantization
from intsmooth_ref.model.proof import TensorProof
from threshold_model import threshold_model

COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
SPECIFICATION = Path(__file__).parent.parent / "intsmooth_ref" / "audit" / "VECTORS.md"
DIGITS = embedded_file("digits.h5")
SETS = (*PRIMITIVES, "network")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The vectors of the embedded model, every tensor in full."""
    path = tmp_path_factory.mktemp("vectors") / "digits"
    assert main(["vectors", str(DIGITS), str(path), "--images", "2", "--tensors"]) == 0
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def cases(name):
    return {known.case.name: known.case for known in known_answers(name)}


def changed(vectors, case_name, result, change):
    """The set with one result replaced."""

    def new(case):
        results = {**case.results, result: change(case.results[result])} if case.name == case_name else case.results
        return replace(case, results=results)

    return VectorSet(vectors.name, tuple(map(new, vectors.cases)))


def write(path, vectors):
    path.write_text(vector_text(vectors), encoding="ascii")
    return path


# --- what the vectors say ---------------------------------------------------------------------------------------------


def test_philox_vectors_contain_the_published_answers():
    lines = (Path(__file__).parent / "philox_kat.txt").read_text(encoding="ascii").splitlines()
    rows = [[int(word, 16) for word in line.split()[2:]] for line in lines if line and not line.startswith("#")]
    found = [
        [*case.given["counter"].tolist(), *case.given["key"].tolist(), *case.results["words"].tolist()]
        for case in cases("philox").values()
    ]
    assert len(rows) == 3 and all(row in found for row in rows)


def noise_by_definition(case):
    """Every element by all 256 bits of U, whose digits stand where the sampler's docstring says."""
    key = int(case.given["seed"])
    thresholds = [sum(int(d) << (16 * (15 - j)) for j, d in enumerate(row)) for row in case.given["thresholds"]]
    count, size = case.results["noise"].shape
    image, stage, first = (int(case.given[name]) for name in ("image", "stage", "first_sample"))

    def words(block, sample_number, level):
        state, round_key = [block, sample_number, image, 256 * stage + level], [key & 0xFFFFFFFF, key >> 32]
        for _ in range(10):
            a, b = 0xD2511F53 * state[0], 0xCD9E8D57 * state[2]
            state = [(b >> 32) ^ state[1] ^ round_key[0], b % 2**32, (a >> 32) ^ state[3] ^ round_key[1], a % 2**32]
            round_key = [(round_key[0] + 0x9E3779B9) % 2**32, (round_key[1] + 0xBB67AE85) % 2**32]
        return [half for word in state for half in (word & 0xFFFF, word >> 16)]

    def value(row, element):
        digits = [words(element // 8, first + row, 0)[element % 8], *words(element, first + row, 1),
                  *words(element, first + row, 2)[:7]]  # fmt: skip
        u = sum(digit << (16 * (15 - j)) for j, digit in enumerate(digits))
        return int(case.given["minimum"]) + sum(threshold <= u for threshold in thresholds)

    return [[value(row, element) for element in range(size)] for row in range(count)]


@pytest.mark.parametrize("name", ["gaussian-1-last-addresses", "laplace-3-2", "every-digit-is-needed"])
def test_noise_vectors_follow_from_their_own_thresholds(name):
    case = cases("noise")[name]
    assert case.results["noise"].tolist() == noise_by_definition(case)


def test_a_noise_vector_needs_all_digits_of_a_draw():
    case = cases("noise")["every-digit-is-needed"]
    assert len({tuple(row[:13]) for row in case.given["thresholds"].tolist()}) == 1
    assert case.results["noise"][1, 9] == int(case.given["minimum"]) + 3  # at, below by 1 and by 2**32: passed


def test_requantization_vectors_equal_exact_fractions_and_contain_ties_of_either_sign():
    for case in cases("requantization").values():
        mode, ties = case.given["rounding"], set()
        rows = zip(*(case.given[name].tolist() for name in ("accumulator", "multiplier", "shift")))
        for (accumulator, multiplier, shift), rounded in zip(rows, case.results["rounded"].tolist()):
            if mode in oracle.ROUNDING:
                assert rounded == oracle.ROUNDING[mode](accumulator, multiplier, shift)
            if Fraction(accumulator * multiplier, 2**shift) % 1 == Fraction(1, 2):
                ties.add((multiplier % 2, accumulator > 0))
        assert ties and ({(0, False), (0, True)} <= ties or shift <= 30 or shift == 62), case.name
        assert {(1, False), (1, True)} <= ties or shift > 31, case.name
    assert {case.given["rounding"] for case in cases("requantization").values()} == set(ROUNDING_MODES)


def test_operator_vectors_equal_python_integers_and_cover_every_kind_and_mode():
    kinds, modes = set(), set()
    for case in cases("operators").values():
        given = dict(case.given)
        inputs = [given[f"input{k}"] for k in range(3) if f"input{k}" in given]
        sources = [
            TensorProof(x.shape, x.dtype.name, Fraction(1), int(given.get(f"input{k}.zero_point", 0)), 0, 0)
            for k, x in enumerate(inputs)
        ]
        kinds.add(given["kind"])
        modes.add(given.get("requantization.rounding"))
        layer = layer_of(given)
        if layer.requantization is None or layer.requantization.rounding in oracle.ROUNDING:
            expected = oracle.compute(layer, sources, *(x[np.newaxis] for x in inputs))
            assert case.results["output"].tolist() == expected.tolist()[0], case.name
    assert kinds == set(LAYER_KINDS) and modes == {None, *ROUNDING_MODES}


def layer_of(given):
    """A stand-in for a layer, with the fields that a case states and nothing else."""

    class Stated:
        kind = given["kind"]
        requantization = None

    for name, value in given.items():
        if not isinstance(value, str) and value.ndim == 0:
            value = int(value)
        elif name in ("strides", "padding", "dilation", "kernel", "shape"):
            value = tuple(value.tolist())
        if "." not in name:
            setattr(Stated, name, value)
    if "requantization.rounding" in given:
        fields = ("multiplier", "shift", "rounding")
        Stated.requantization = Requantization(*(given[f"requantization.{name}"] for name in fields))
    if "output.dtype" in given:
        bounds = (int(given[f"output.{name}"]) for name in ("zero_point", "minimum", "maximum"))
        Stated.output = Quantization(given["output.dtype"], Fraction(1), *bounds)
    return Stated


def test_network_vectors_are_those_that_the_model_file_brings(folder):
    model_file = load_model(DIGITS)
    network = read_vectors(folder / "network.txt")
    assert np.array_equal(network.cases[1].given["image"], model_file.known_answers.inputs[1])
    assert network.cases[1].results["scores"].tolist() == model_file.known_answers.outputs[1].tolist()


def test_a_model_without_known_answers_gets_random_images_and_the_hashes_of_their_tensors(tmp_path, capsys):
    save_model(tmp_path / "model.h5", threshold_model())
    assert run(capsys, "vectors", tmp_path / "model.h5", tmp_path / "out", "--images", 3)[0] == 0
    network = read_vectors(tmp_path / "out" / "network.txt")
    full = network_answers(threshold_model(), network_images(threshold_model(), 3, None), True)
    assert len({case.given["image"].tobytes() for case in network.cases}) == 3
    for case, known in zip(network.cases, full):
        assert {name: tensor_sha256(value) for name, value in known.case.results.items()} == {
            name: value.sha256 for name, value in case.results.items()
        }


# --- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_what_is_written_reads_back_and_is_written_the_same(folder, name):
    text = (folder / f"{name}.txt").read_text(encoding="ascii")
    vectors = read_vectors(folder / f"{name}.txt")
    assert vector_text(vectors) == text and vectors.name == name
    assert max(map(len, text.splitlines())) <= 200


def test_line_breaks_mean_nothing(folder, tmp_path):
    words = (folder / "requantization.txt").read_text(encoding="ascii").split()
    (tmp_path / "one.txt").write_text(" ".join(words))
    (tmp_path / "many.txt").write_text("\r\n".join(words))
    assert vector_text(read_vectors(tmp_path / "one.txt")) == vector_text(read_vectors(tmp_path / "many.txt"))


HEAD = f"{MAGIC} some 1\ncase a\n"


@pytest.mark.parametrize(
    "text, line, found, expected",
    [
        ("", 1, "the end of the file", "'intsmooth-ref vectors 1'"),
        ("intsmooth-ref vectors 2 some 1", 1, "'2'", "'intsmooth-ref vectors 1'"),
        (f"{MAGIC} some 0", 1, "0", "the number of cases"),
        (f"{MAGIC} some 1\n", 2, "the end of the file", "'case'"),
        (f"{MAGIC} some 1\n\nkase a", 3, "'kase'", "'case'"),
        (HEAD + "taken x int8 0 1", 3, "'taken'", "'given', 'result' or 'end'"),
        (HEAD + "given x float 0 1", 3, "'float'", "text, sha256, uint8"),
        (HEAD + "given x int8 5 1 1 1 1 1", 3, "5", "the number of dimensions"),
        (HEAD + "given x int8 2 99999 99999", 3, "9999800001 elements", "at most"),
        (HEAD + "given x int8 1 3\n1 2\n\nend\n", 6, "'end'", "an integer from -128 to 127, value 2"),
        (HEAD + "given x int8 1 3\n1 2 128\nend\n", 4, "'128'", "an integer from -128 to 127"),
        (HEAD + "given x uint8 1 3\n1 2 -1\nend\n", 4, "'-1'", "an integer from 0 to 255"),
        (HEAD + "given x int8 1 2\n1 1_0\nend\n", 4, "'1_0'", "an integer"),
        (HEAD + "given x int8 1 3\n1 2\n", 5, "the end of the file", "3 values, of which 2 are there"),
        (HEAD + "given x text a\ngiven x text b\nend\n", 4, "the field 'x' a second time", "names that differ"),
        (HEAD + "result x sha256 ABC\nend\n", 3, "'ABC'", "64 hexadecimal digits"),
        (HEAD + "end\ncase b\nend\n", 4, "'case'", "the end of the file after 1 cases"),
        (f"{MAGIC} some 2\ncase a\nend\ncase a\nend\n", 5, "the case 'a' a second time", "names that differ"),
        (HEAD + "given caf\u00e9 text a\nend\n", 3, "the byte 195", "ASCII"),
        (HEAD + f"given {'x' * 101} text a\nend\n", 3, f"'{'x' * 100}'", "the field's name"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line_in_which_it_is(tmp_path, text, line, found, expected):
    path = tmp_path / "file.txt"
    path.write_bytes(text.encode("utf-8"))
    with pytest.raises(VectorFormatError) as refused:
        read_vectors(path)
    assert str(refused.value).startswith(f"{path}: line {line}: found {found}; expected {expected}")
    assert "\n" not in str(refused.value)


def test_a_file_cut_off_anywhere_is_refused_or_whole(folder, tmp_path):
    content = (folder / "philox.txt").read_bytes()
    for length in range(0, len(content) - 1, 7):
        (tmp_path / "cut.txt").write_bytes(content[:length])
        with pytest.raises(VectorFormatError):
            read_vectors(tmp_path / "cut.txt")


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    status, _, err = run(capsys, "vectors", "--check", tmp_path / "no.txt")
    assert status == 1 and err.count("\n") == 1 and "cannot be read: No such file" in err


# --- checking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_equal_answers_pass_with_and_without_the_vectors_that_were_given(folder, name, capsys):
    for more in ([], ["--against", folder]):
        status, out, _ = run(capsys, "vectors", DIGITS, "--check", folder / f"{name}.txt", "--images", 2, *more)
        assert status == 0 and "cases of the set" in out and out.count("\n") == 1


def test_answers_may_leave_out_what_was_given_and_hash_what_was_expected(folder, tmp_path, capsys):
    network = read_vectors(folder / "network.txt")
    bare = VectorSet("network", tuple(
        Case(case.name, {}, {n: Digest(tensor_sha256(v)) for n, v in case.results.items()}) for case in network.cases
    ))  # fmt: skip
    path = write(tmp_path / "bare.txt", bare)
    assert run(capsys, "vectors", DIGITS, "--check", path, "--against", folder)[0] == 0
    assert run(capsys, "vectors", DIGITS, "--check", path, "--images", 2)[0] == 0


@pytest.mark.parametrize("name", SETS)
def test_every_single_wrong_value_is_found(folder, name, tmp_path, capsys):
    """The last value of the last result of each of some cases, larger by one where it can be."""
    vectors = read_vectors(folder / f"{name}.txt")

    def spoil(value):
        spoilt = value.copy()
        spoilt.flat[-1] ^= 1
        return spoilt

    for case in vectors.cases[::9]:
        result = list(case.results)[-1]
        path = write(tmp_path / "wrong.txt", changed(vectors, case.name, result, spoil))
        status, out, _ = run(capsys, "vectors", DIGITS, "--check", path, "--images", 2)
        value = case.results[result]
        index = tuple(np.argwhere(np.ones(value.shape))[-1].tolist())
        assert status == 1 and out.count("\n") == 2
        found, expected = spoil(value)[index], value[index]
        assert f"case {case.name!r}, result {result!r}: index {index}: found {found}, expected {expected}" in out


def test_another_rounding_mode_is_named_in_the_first_layer_that_it_changes(folder, tmp_path, capsys):
    """The digits computed with gemmlowp's two roundings, by the third computation, as a backend might."""
    model = load_model(DIGITS).model
    gemmlowp = [
        replace(layer, requantization=replace(layer.requantization, rounding="gemmlowp"))
        if getattr(layer, "requantization", None) else layer
        for layer in model.layers
    ]  # fmt: skip
    vectors, answers, first_wrong = read_vectors(folder / "network.txt"), [], []
    for case in vectors.cases:
        outputs = {}
        for layer in gemmlowp:
            sources = [model.proofs[name] for name in layer.inputs]
            inputs = [outputs[name] for name in layer.inputs] or [case.given["image"][np.newaxis]]
            outputs[layer.name] = oracle.compute(layer, sources, *inputs).astype(model.proofs[layer.name].dtype)
        results = {name: output[0] for name, output in outputs.items()}
        answers.append(Case(case.name, {}, results))
        first_wrong.append([n for n, v in case.results.items() if not np.array_equal(v, results[n])][:1])
    assert any(first_wrong)
    path = write(tmp_path / "gemmlowp.txt", VectorSet("network", tuple(answers)))
    status, out, _ = run(capsys, "vectors", DIGITS, "--check", path, "--against", folder)
    assert status == 1
    for case, wrong in zip(vectors.cases, first_wrong):
        for name in wrong:
            line = next(line for line in out.splitlines() if line.startswith(f"case {case.name!r}, result {name!r}"))
            assert "index (" in line and line.endswith("; rounding by gemmlowp gives what was found")
    hashes = tuple(
        Case(case.name, {}, {n: Digest(tensor_sha256(v)) for n, v in case.results.items()}) for case in answers
    )
    status, out, _ = run(capsys, "vectors", DIGITS, "--check", write(path, VectorSet("network", hashes)), "--images", 2)
    assert status == 1 and "found SHA-256" in out and "gemmlowp gives what was found" in out


def test_primitives_rounded_otherwise_name_the_mode(folder, tmp_path, capsys):
    vectors = read_vectors(folder / "requantization.txt")
    case = next(case for case in vectors.cases if case.name == "single_rounding-shift-33")
    rows = zip(*(case.given[name].tolist() for name in ("accumulator", "multiplier", "shift")))
    rounded = np.array([oracle.gemmlowp(*row) for row in rows], np.int64)
    path = write(tmp_path / "wrong.txt", changed(vectors, case.name, "rounded", lambda _: rounded))
    status, out, _ = run(capsys, "vectors", "--check", path)
    assert status == 1 and "rounding by gemmlowp gives what was found" in out


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda v: VectorSet(v.name, v.cases[1:]), "the whole case is missing"),
        (lambda v: changed(v, "zeros", "words", lambda w: w[:2]),
         "found uint32 of shape (2,), expected uint32 of shape (4,)"),
        (lambda v: changed(v, "zeros", "words", lambda w: w.astype(np.int64)), "found int64 of shape (4,)"),
        (lambda v: changed(v, "zeros", "words", lambda w: "nothing"), "found the word 'nothing'"),
        (lambda v: VectorSet(v.name, (Case("zeros", {}, {}), *v.cases[1:])), "result 'words': is missing"),
    ],
)  # fmt: skip
def test_answers_of_another_shape_and_missing_ones_are_differences(folder, tmp_path, capsys, spoil, message):
    path = write(tmp_path / "wrong.txt", spoil(read_vectors(folder / "philox.txt")))
    status, out, _ = run(capsys, "vectors", "--check", path)
    assert status == 1 and message in out.splitlines()[0]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda v: VectorSet("nonsense", v.cases), "expected one of philox, noise"),
        (lambda v: VectorSet(v.name, (Case("more", {}, {}), *v.cases)), "found the case 'more'"),
        (lambda v: VectorSet(v.name, (replace(v.cases[0], given={"key": np.zeros(2, np.uint64)}), *v.cases[1:])),
         "found another 'key' than was given"),
        (lambda v: VectorSet(v.name, (replace(v.cases[0], results={"wards": "x"}), *v.cases[1:])),
         "found the result 'wards'"),
    ],
)  # fmt: skip
def test_answers_to_another_question_are_refused(folder, tmp_path, capsys, spoil, message):
    path = write(tmp_path / "wrong.txt", spoil(read_vectors(folder / "philox.txt")))
    status, out, err = run(capsys, "vectors", "--check", path)
    assert status == 1 and out == "" and err.count("\n") == 1 and message in err


def test_vectors_that_are_wrong_themselves_are_no_measure(folder, tmp_path, capsys):
    vectors = read_vectors(folder / "philox.txt")
    write(tmp_path / "philox.txt", changed(vectors, "pi", "words", lambda words: words + np.uint32(1)))
    status, _, err = run(capsys, "vectors", "--check", folder / "philox.txt", "--against", tmp_path)
    assert status == 1 and "case 'pi': found a result 'words' that is itself wrong" in err


def test_the_network_of_another_model_is_refused(folder, tmp_path, capsys):
    save_model(tmp_path / "model.h5", threshold_model())
    check = ("vectors", tmp_path / "model.h5", "--check", folder / "network.txt", "--against", folder)
    status, _, err = run(capsys, *check)
    assert status == 1 and "found a model of fingerprint fc0ad9874f77" in err and err.count("\n") == 1


def test_files_are_replaced_on_request_only(folder, capsys):
    before = (folder / "philox.txt").read_bytes()
    status, _, err = run(capsys, "vectors", DIGITS, folder, "--images", 2)
    assert status == 1 and "expected none, or the option --overwrite" in err
    assert run(capsys, "vectors", DIGITS, folder, "--images", 2, "--tensors", "--overwrite")[0] == 0
    assert (folder / "philox.txt").read_bytes() == before


@pytest.mark.parametrize("arguments", [[], [DIGITS], ["--against", "x"], [DIGITS, "x", "--check", "y"]])
def test_arguments_that_say_nothing_are_refused(arguments, capsys):
    status, out, err = run(capsys, "vectors", *arguments)
    assert status == 1 and out == "" and err.count("\n") == 1


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_the_c_program_of_the_specification_reads_and_answers(folder, tmp_path, capsys):
    program = SPECIFICATION.read_text(encoding="utf-8").split("```c\n")[1].split("```")[0]
    (tmp_path / "answer.c").write_text(program)
    command = [COMPILER, "-std=c99", "-Wall", "-Wextra", "-pedantic", tmp_path / "answer.c", "-o", tmp_path / "answer"]
    assert subprocess.run(command).returncode == 0
    question = read_vectors(folder / "requantization.txt")
    for case in question.cases:
        if case.given["rounding"] == "single_rounding":
            question = changed(question, case.name, "rounded", np.zeros_like)
    with open(write(tmp_path / "question.txt", question)) as stdin, open(tmp_path / "answer.txt", "w") as stdout:
        assert subprocess.run([tmp_path / "answer"], stdin=stdin, stdout=stdout).returncode == 0
    assert run(capsys, "vectors", "--check", tmp_path / "question.txt")[0] == 1
    assert run(capsys, "vectors", "--check", tmp_path / "answer.txt", "--against", folder)[0] == 0


def test_the_sets_are_the_same_bytes_every_time():
    for name in PRIMITIVES:
        assert vector_text(vector_set(name, known_answers(name))) == vector_text(vector_set(name, known_answers(name)))
