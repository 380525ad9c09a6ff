"""The exported C program gives the scores of the reference engine, bit for bit, and breaks no rule of C."""

import re
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from export_models import (
    drawn_models,
    model_rounded_sideways,
    models_of_every_kind,
    models_of_one_operator,
    models_with_ties,
    noisy_digits,
)
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.export.c99 import c_program
from intsmooth_ref.export.scratch import is_view, plan_scratch
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import load_model
from intsmooth_ref.model.layers import (
    ArgMax,
    Conv2D,
    GlobalAveragePool,
    InputQuantization,
    Linear,
    Quantization,
    Requantization,
    Reshape,
)
from threshold_model import threshold_model

COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror"]
SANITIZERS = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

#: Reads, for each model, a number of images and the images; writes each one's class and scores.
DRIVER = """\
#include <stdio.h>
#include <stdlib.h>
%(includes)s

static int32_t image[%(pixels)s], scores[%(classes)s];

static void run(int size, int classes, int (*predict)(const int32_t *), void (*score)(const int32_t *, int32_t *))
{
    int32_t count = 0;
    if (fread(&count, sizeof count, 1, stdin) != 1) {
        exit(2);
    }
    for (; count > 0; count--) {
        int32_t best;
        if (fread(image, sizeof *image, (size_t)size, stdin) != (size_t)size) {
            exit(2);
        }
        best = predict(image);
        score(image, scores);
        fwrite(&best, sizeof best, 1, stdout);
        fwrite(scores, sizeof *scores, (size_t)classes, stdout);
    }
}

int main(void)
{
%(runs)s
    return 0;
}
"""


def sanitizers(folder):
    """The options with which undefined behaviour ends a program, if compiler and machine have them."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    build = subprocess.run([COMPILER, *SANITIZERS, folder / "empty.c", "-o", folder / "empty"], capture_output=True)
    runs = build.returncode == 0 and subprocess.run([folder / "empty"], capture_output=True).returncode == 0
    return SANITIZERS if runs else []


def computed_in_c(folder, models_and_images, *options):
    """Classes and scores of each model's images, by one program that holds all the models."""
    names = [f"model{number}" for number in range(len(models_and_images))]
    sources, given = [folder / "driver.c"], b""
    for name, (model, images) in zip(names, models_and_images):
        program = c_program(model, name)
        (folder / f"{name}.h").write_text(program.header, encoding="ascii")
        (folder / f"{name}.c").write_text(program.source, encoding="ascii")
        sources.append(folder / f"{name}.c")
        given += np.int32(len(images)).tobytes() + images.tobytes()
    runs = [f"    run({n.upper()}_IMAGE_SIZE, {n.upper()}_CLASSES, {n}_predict, {n}_scores);" for n in names]
    (folder / "driver.c").write_text(DRIVER % {
        "includes": "\n".join(f'#include "{name}.h"' for name in names),
        "pixels": max(int(np.prod(model.input.shape)) for model, _ in models_and_images),
        "classes": max(model.classes for model, _ in models_and_images),
        "runs": "\n".join(runs),
    })  # fmt: skip
    command = [COMPILER, *STRICT, *options, *sources, "-o", folder / "program"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([folder / "program"], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    numbers, results = np.frombuffer(done.stdout, np.int32), []
    for model, images in models_and_images:
        size = len(images) * (1 + model.classes)
        rows, numbers = numbers[:size].reshape(len(images), 1 + model.classes), numbers[size:]
        results.append((rows[:, 0], rows[:, 1:]))
    assert numbers.size == 0
    return results


def scores_of(model, images):
    """By the reference engine: what the model gives, or what its `ArgMax` reads."""
    tensors = dict(Engine(model, "reference").trace(images))
    last = model.output
    scores = tensors[last.inputs[0]] if last.kind == "ArgMax" else tensors[last.name]
    return Engine(model, "reference").classify(images), scores.astype(np.int32).reshape(len(images), model.classes)


def assert_c_equals_the_reference(folder, models_and_images, *options):
    found = computed_in_c(folder, models_and_images, *options)
    for (classes, scores), (model, images) in zip(found, models_and_images):
        expected_classes, expected_scores = scores_of(model, images)
        assert classes.tolist() == expected_classes.tolist()
        assert scores.tolist() == expected_scores.tolist()


@needs_compiler
def test_a_thousand_noisy_digits_have_the_same_scores_in_c(tmp_path):
    model = load_model(embedded_file("digits.h5")).model
    assert_c_equals_the_reference(tmp_path, [(model, noisy_digits(1000))], "-O2")


@needs_compiler
def test_digits_run_under_the_sanitizers(tmp_path):
    options = sanitizers(tmp_path)
    if not options:
        pytest.skip("the compiler has no sanitizers")
    model = load_model(embedded_file("digits.h5")).model
    assert_c_equals_the_reference(tmp_path, [(model, noisy_digits(50))], "-O1", *options)


@needs_compiler
def test_random_models_of_every_layer_kind_have_the_same_scores_in_c(tmp_path):
    drawn = [*models_of_every_kind(), *drawn_models(15)]
    assert_c_equals_the_reference(tmp_path, drawn, "-O0", *sanitizers(tmp_path))


def wide_model(dtype, zero_point):
    """Convolution and matrix product over as many channels as fill a vector; GCC 12.2 once got those at 128 wrong."""
    generator = np.random.default_rng(3)

    def parameters(*shape):
        weights = generator.integers(-128, 128, shape).astype(np.int8)
        return {"weights": weights, "bias": generator.integers(-999, 999, shape[0]).astype(np.int32)}

    grid = Quantization.full_range(dtype, Fraction(1, 50), zero_point)
    return IntegerModel((
        InputQuantization(name="input", shape=(4, 4, 16), requantization=Requantization.of((1 << 30, 30)), output=grid),
        Conv2D(name="conv", inputs=("input",), **parameters(32, 1, 1, 16), output=grid,
               requantization=Requantization.of((1 << 30, 39))),
        GlobalAveragePool(name="pool", inputs=("conv",), requantization=Requantization.of((1 << 30, 34)), output=grid),
        Linear(name="scores", inputs=("pool",), **parameters(10, 32),
               output=Quantization.full_range("int32", Fraction(1), 0)),
    ))  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("options", [["-O2"], ["-O3"], ["-O2", "-march=native"], ["-O3", "-march=native"]], ids="".join)
def test_vector_instructions_change_no_bit(tmp_path, options):
    images = np.random.default_rng(4).integers(-300, 500, (3, 4, 4, 16)).astype(np.int32)
    grids = (("uint8", 128), ("uint8", 100), ("int8", -128), ("int8", 5))
    chosen = [(wide_model(*grid), images) for grid in grids]
    assert all(len(np.unique(scores_of(model, images)[1])) > 20 for model, _ in chosen)
    assert_c_equals_the_reference(tmp_path, chosen, *options)


@needs_compiler
def test_every_operator_in_each_of_its_settings_has_the_same_scores_in_c(tmp_path):
    assert_c_equals_the_reference(tmp_path, models_of_one_operator())


@needs_compiler
def test_ties_of_either_sign_are_rounded_as_each_mode_says(tmp_path):
    assert_c_equals_the_reference(tmp_path, models_with_ties())


@needs_compiler
def test_classes_that_a_layer_reads_are_computed_too(tmp_path):
    layers = threshold_model().layers
    classes = ArgMax(name="class", inputs=(layers[-1].name,))
    model = IntegerModel((*layers, classes, Reshape(name="score", inputs=("class",), shape=(1,))))
    images = np.stack([np.full((3, 3, 1), level, np.int32) for level in (0, 128, 129, 255)])
    ((classes, scores),) = computed_in_c(tmp_path, [(model, images)])
    assert classes.tolist() == [0, 0, 0, 0] and scores.tolist() == [[0], [0], [1], [1]]


@needs_compiler
@pytest.mark.slow
def test_many_random_models_have_the_same_scores_in_c(tmp_path):
    assert_c_equals_the_reference(tmp_path, drawn_models(120), "-O0", *sanitizers(tmp_path))


def test_the_same_model_gives_the_same_text():
    model = load_model(embedded_file("digits.h5")).model
    assert c_program(model, "digits") == c_program(model, "digits")


def test_no_float_and_no_allocation_is_in_the_text():
    for model, _ in drawn_models(60):
        assert re.search(r"\b(float|double|malloc|calloc|alloca)\b", c_program(model, "model").source) is None


def test_tensors_that_live_at_the_same_time_share_no_memory():
    """Replayed element by element: what a layer reads is still there, whoever has written in between."""
    for model, _ in drawn_models(80):
        plan = plan_scratch(model, model.layers)
        memory = {False: [None] * plan.bytes, True: [None] * plan.words}
        content = {}
        for layer in model.layers:
            for name in layer.inputs:
                tensor = plan.tensors[name]
                found = memory[tensor.words][tensor.offset : tensor.offset + tensor.size]
                assert found == [content[name]] * tensor.size and tensor.size == np.prod(model.proofs[name].shape)
            tensor = plan.tensors[layer.name]
            if is_view(layer):
                content[layer.name] = content[layer.inputs[0]]
                continue
            content[layer.name] = layer.name
            memory[tensor.words][tensor.offset : tensor.offset + tensor.size] = [layer.name] * tensor.size
            assert len(memory[tensor.words]) == (plan.words if tensor.words else plan.bytes)
        tensor = plan.tensors[model.output.name]
        found = memory[tensor.words][tensor.offset : tensor.offset + tensor.size]
        assert found == [content[model.output.name]] * tensor.size


def test_a_rounding_mode_without_a_c_text_is_refused_by_name(monkeypatch):
    with pytest.raises(ParameterError, match="layer 'input': rounding 'sideways' has no C text; expected one of"):
        c_program(model_rounded_sideways(monkeypatch), "model")


@pytest.mark.parametrize("name", ["", "9lives", "_x", "a-b", "seventeen_letters", "caf\u00e9", "a b", "a\n"])
def test_names_that_c_or_a_person_would_stumble_over_are_refused(name):
    with pytest.raises(ParameterError, match="expected a letter, and up to 15"):
        c_program(threshold_model(), name)


@needs_compiler
def test_class_names_of_any_text_compile_and_come_back(tmp_path):
    names = ('"; int x; //', "caf\u00e9 ??/ \\ %d \u4e00 9")
    program = c_program(IntegerModel(threshold_model().layers, names), "model")
    (tmp_path / "model.h").write_text(program.header, encoding="ascii")
    (tmp_path / "model.c").write_text(program.source, encoding="ascii")
    main_text = '#include <stdio.h>\n#include "model.h"\nint main(void) { return puts(model_class_names[%d]) < 0; }\n'
    for index, name in enumerate(names):
        (tmp_path / "main.c").write_text(main_text % index)
        program_path = tmp_path / "program"
        sources = [tmp_path / "main.c", tmp_path / "model.c"]
        assert subprocess.run([COMPILER, *STRICT, *sources, "-o", program_path]).returncode == 0
        assert subprocess.run([program_path], capture_output=True).stdout.decode("utf-8") == name + "\n"


def test_the_command_writes_header_and_source(tmp_path, capsys):
    assert main(["export", "--to", "c", "--out", str(tmp_path / "net.c")]) == 0
    program = c_program(load_model(embedded_file("digits.h5")).model, "net")
    assert (tmp_path / "net.c").read_text() == program.source and (tmp_path / "net.h").read_text() == program.header
    assert "net.h" in capsys.readouterr().out
