"""A float model as ONNX: what ONNX Runtime and ONNX's own reference make of it are the scores of the specification."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from intsmooth_ref.data_tools import float_engine
from intsmooth_ref.data_tools.float_model import (
    FLOAT_LAYER_KINDS,
    FUNCTIONS,
    Add,
    AveragePool,
    BatchNorm,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    FloatModel,
    Function,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Pad,
)

onnx = pytest.importorskip("onnx")

GENERATOR = np.random.default_rng(2)


def drawn(*shape: int, above: float = -inf) -> np.ndarray:
    return np.maximum(GENERATOR.normal(size=shape), above).astype(np.float32)


def all_kinds() -> FloatModel:
    """Every kind of layer with its unusual fields: groups, dilation, asymmetric padding, both ways to count it."""
    norm = {"scale": drawn(6), "shift": drawn(6), "mean": drawn(6), "variance": drawn(6, above=0.1)}
    return FloatModel(
        (
            Input(name="images", shape=(9, 8, 3), mean=drawn(3), deviation=drawn(3, above=0.5)),
            Pad(name="pad", inputs=("images",), padding=(1, 0, 2, 1)),
            Conv2D(name="conv", inputs=("pad",), weights=drawn(6, 3, 2, 3), bias=drawn(6), strides=(2, 1),
                   padding=(1, 0, 0, 1), dilation=(1, 2)),
            BatchNorm(name="norm", inputs=("conv",), **norm, epsilon=0.01),
            Clamp(name="relu", inputs=("norm",)),
            Conv2D(name="grouped", inputs=("relu",), weights=drawn(6, 3, 3, 3), groups=2, padding=(1, 1, 1, 1)),
            Clamp(name="band", inputs=("grouped",), minimum=-1.5, maximum=2.5),
            Add(name="add", inputs=("relu", "band")),
            MaxPool(name="max", inputs=("add",), kernel=(3, 2), strides=(1, 2), padding=(1, 0, 1, 0)),
            AveragePool(name="counted", inputs=("max",), kernel=(3, 2), padding=(0, 1, 1, 1), count_include_pad=True),
            AveragePool(name="uncounted", inputs=("max",), kernel=(3, 2), padding=(0, 1, 1, 1)),
            Concat(name="concat", inputs=("counted", "uncounted", "counted")),
            *(Function(name=kind, inputs=("concat",), function=kind, slope=0.2 * (kind == "leaky_relu"))
              for kind in FUNCTIONS),
            Concat(name="functions", inputs=FUNCTIONS),
            GlobalAveragePool(name="average", inputs=("functions",)),
            Flatten(name="flat", inputs=("functions",)),
            Linear(name="of_flat", inputs=("flat",), weights=drawn(6, 2592)),
            Linear(name="of_average", inputs=("average",), weights=drawn(6, 144), bias=drawn(6)),
            Add(name="sum", inputs=("of_flat", "of_average")),
            BatchNorm(name="scores", inputs=("sum",), **norm),
        )
    )  # fmt: skip


def with_every_layer_as_output(model: FloatModel) -> tuple[Any, str]:
    """The ONNX model, and the name of its input."""
    from intsmooth_ref.data_tools.float_onnx import IMAGES, onnx_bytes

    proto = onnx.load_from_string(onnx_bytes(model))
    assert proto.graph.output[0].name == model.layers[-1].name
    proto.graph.output.extend(onnx.ValueInfoProto(name=layer.name) for layer in model.layers[:-1])
    return proto, IMAGES


def by_runtime(model: FloatModel, images: np.ndarray) -> dict[str, np.ndarray]:
    pytest.importorskip("onnxruntime")
    from intsmooth_ref.benchmark.peers import onnxruntime_session

    proto, name = with_every_layer_as_output(model)
    session = onnxruntime_session(proto.SerializeToString(), 1)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {name: images})))


def by_reference(model: FloatModel, images: np.ndarray) -> dict[str, np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    proto, name = with_every_layer_as_output(model)
    evaluator = ReferenceEvaluator(proto)
    return dict(zip(evaluator.output_names, evaluator.run(None, {name: images})))


@pytest.mark.parametrize("outputs", [by_runtime, by_reference])
def test_every_kind_of_layer_gives_what_is_specified(outputs: Any) -> None:
    model = all_kinds()
    assert {layer.kind for layer in model.layers} == set(FLOAT_LAYER_KINDS)
    for count in (1, 5):  # batches of any size
        images = GENERATOR.integers(-100, 356, (count, 9, 8, 3)).astype(np.float32)
        found = outputs(model, images)
        for name, expected in float_engine.trace(model, images):
            tensor = found[name].transpose(0, 2, 3, 1) if expected.ndim == 4 else found[name]
            np.testing.assert_allclose(tensor, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)
