"""Both engines compute what the operators mean, bit for bit, on every operator, shape and extreme value."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oracle
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import DatasetError
from intsmooth_ref.model.layers import LAYER_KINDS
from random_models import images_for, models
from threshold_model import threshold_model

ENGINES = ["reference", *(["jit"] if numba_available() else [])]
relaxed = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None,
           "report_multiple_bugs": False}


def assert_engines_agree_with_the_oracle(model, images):
    """Layer by layer, each layer's inputs taken from the oracle, and the proven interval around every value."""
    traces = [Engine(model, name).trace(images) for name in ENGINES]
    expected, layers = {}, iter(model.layers)
    for outputs in zip(*traces):
        layer = next(layers)
        sources = [model.proofs[name] for name in layer.inputs]
        inputs = [expected[name] for name in layer.inputs] or [images]
        expected[layer.name] = oracle.compute(layer, sources, *inputs)
        proof = model.proofs[layer.name]
        for name, tensor in outputs:
            assert name == layer.name
            assert tensor.dtype == proof.dtype and tensor.shape == (len(images), *proof.shape)
            assert tensor.tolist() == expected[name].tolist(), layer
        assert all(proof.minimum <= value <= proof.maximum for value in expected[layer.name].flat)


@settings(max_examples=40, **relaxed)
@given(models(), st.integers(0, 3), st.integers(0, 2**32))
def test_engines_equal_python_integers_on_random_models(model, count, seed):
    assert_engines_agree_with_the_oracle(model, images_for(model, np.random.default_rng(seed), count))


@pytest.mark.slow
@settings(max_examples=500, **relaxed)
@given(models(), st.integers(0, 3), st.integers(0, 2**32))
def test_engines_equal_python_integers_on_many_random_models(model, count, seed):
    assert_engines_agree_with_the_oracle(model, images_for(model, np.random.default_rng(seed), count))


def test_the_random_models_contain_every_layer_kind():
    seen = set()

    @settings(max_examples=200, **relaxed)
    @given(models())
    def collect(model):
        seen.update(layer.kind for layer in model.layers)

    collect()
    assert seen == set(LAYER_KINDS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 3, 1), np.float64), np.zeros((1, 3, 3, 1), np.uint8), np.zeros((3, 3, 1), np.int32)]
)
def test_images_of_another_dtype_or_shape_are_refused(engine, images):
    with pytest.raises(DatasetError, match=r"images: found .* expected int32 \(N, \*\(3, 3, 1\)\)"):
        Engine(threshold_model(), engine).output(images)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_lowest_index_wins_a_tie(engine):
    """Nine pixels whose sum equals the threshold: both scores are 0."""
    images = np.full((1, 3, 3, 1), 128, np.int32)
    assert Engine(threshold_model(), engine).output(images).tolist() == [[0, 0]]
    assert Engine(threshold_model(), engine).classify(images).tolist() == [0]
