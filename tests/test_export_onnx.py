"""The exported ONNX graph holds integers only, and gives the scores of the reference engine wherever it runs."""

import sys

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
from intsmooth_ref.model.hdf5 import load_model

onnx = pytest.importorskip("onnx")

from intsmooth_ref.export.onnx import onnx_file, tensor_name  # noqa: E402


def by_onnxruntime(content, images):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def by_reference_evaluator(content, images):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images})[0]


RUNTIMES = pytest.mark.parametrize("run", [by_onnxruntime, by_reference_evaluator])


def assert_the_graph_equals_the_reference(run, model, images):
    found, expected = run(onnx_file(model), images), Engine(model, "reference").output(images)
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.tolist() == expected.tolist()


@RUNTIMES
def test_noisy_digits_have_the_same_scores(run):
    model = load_model(embedded_file("digits.h5")).model
    count = 1000 if run is by_onnxruntime else 20
    assert_the_graph_equals_the_reference(run, model, noisy_digits(count))


@RUNTIMES
def test_random_models_of_every_kind_give_the_same_integers(run):
    for model, images in [*models_of_every_kind(), *drawn_models(60)]:
        assert_the_graph_equals_the_reference(run, model, images)


@RUNTIMES
def test_every_operator_in_each_of_its_settings_gives_the_same_integers(run):
    for model, images in models_of_one_operator():
        assert_the_graph_equals_the_reference(run, model, images)


@RUNTIMES
def test_ties_of_either_sign_are_rounded_as_each_mode_says(run):
    for model, images in models_with_ties():
        assert_the_graph_equals_the_reference(run, model, images)


@pytest.mark.slow
def test_many_random_models_give_the_same_integers():
    for model, images in drawn_models(200):
        assert_the_graph_equals_the_reference(by_onnxruntime, model, images)


@RUNTIMES
def test_single_images_and_batches_are_one_graph(run):
    model = load_model(embedded_file("digits.h5")).model
    images = noisy_digits(3)
    content = onnx_file(model)
    rows = [run(content, images[number : number + 1]) for number in range(3)]
    assert np.concatenate(rows).tolist() == run(content, images).tolist()


def test_every_layer_can_be_read_from_the_graph():
    from onnx.reference import ReferenceEvaluator

    model = load_model(embedded_file("digits.h5")).model
    images, graph = noisy_digits(2), onnx.load_from_string(onnx_file(model))
    for name, expected in Engine(model, "reference").trace(images):
        (found,) = ReferenceEvaluator(graph).run([tensor_name(name)], {"image": images})
        assert found.dtype == expected.dtype and found.tolist() == expected.tolist()


def test_no_float_is_in_the_graph():
    """Of every tensor the type is inferred, and it is an integer or a truth value."""
    kinds = onnx.TensorProto
    integers = {kinds.UINT8, kinds.INT8, kinds.INT32, kinds.INT64, kinds.UINT64, kinds.BOOL}
    for model, _ in models_of_every_kind():
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_file(model)), strict_mode=True).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        assert {name for node in graph.node for name in node.output} <= types.keys()
        assert set(types.values()) | {each.data_type for each in graph.initializer} <= integers


def test_the_same_model_gives_the_same_bytes():
    model = load_model(embedded_file("digits.h5")).model
    assert onnx_file(model) == onnx_file(model)


def test_a_rounding_mode_without_a_graph_is_refused_by_name(monkeypatch):
    with pytest.raises(ParameterError, match="layer 'input': rounding 'sideways' has no ONNX graph"):
        onnx_file(model_rounded_sideways(monkeypatch))


def test_the_command_writes_the_graph(tmp_path):
    assert main(["export", "--to", "onnx", "--out", str(tmp_path / "digits.onnx")]) == 0
    assert (tmp_path / "digits.onnx").read_bytes() == onnx_file(load_model(embedded_file("digits.h5")).model)


def test_without_onnx_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "--to", "onnx", "--out", str(tmp_path / "digits.onnx")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'intsmooth_ref[onnx]'" in error
    assert list(tmp_path.iterdir()) == []
