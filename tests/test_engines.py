"""The engines compute what the operators mean, bit for bit, on every operator, shape and extreme value."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import oracle
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import DatasetError
from intsmooth_ref.model.layers import LAYER_KINDS
from random_models import images_for, models
from threshold_model import threshold_model

#: Engine and instruction set of every way to compute a model here.
ENGINES = [("reference", None)]
if numba_available():
    from intsmooth_ref.engine.jit.selection import available_isas

    ENGINES += [("jit", isa) for isa in available_isas()]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: "-".join(filter(None, engine)))
relaxed = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None,
           "report_multiple_bugs": False}


def classes_of(scores):
    """The index of the largest of each row of scores, the lowest in a tie; of the classes themselves, they."""
    return [row if isinstance(row, int) else row.index(max(row)) for row in scores]


def assert_engines_agree_with_the_oracle(model, images):
    """Layer by layer, each layer's inputs taken from the oracle, and the proven interval around every value; then the
    last layer alone, before which an engine may compute several layers at one go."""
    engines = [Engine(model, *engine) for engine in ENGINES]
    expected, layers = {}, iter(model.layers)
    for outputs in zip(*(engine.trace(images) for engine in engines)):
        layer = next(layers)
        sources = [model.proofs[name] for name in layer.inputs]
        inputs = [expected[name] for name in layer.inputs] or [images]
        expected[layer.name] = oracle.compute(layer, sources, *inputs)
        proof = model.proofs[layer.name]
        for engine, (name, tensor) in zip(engines, outputs):
            assert name == layer.name
            assert tensor.dtype == proof.dtype and tensor.shape == (len(images), *proof.shape)
            assert tensor.tolist() == expected[name].tolist(), (engine.isa, layer)
        assert all(proof.minimum <= value <= proof.maximum for value in expected[layer.name].flat)
    assert list(expected) == [layer.name for layer in model.layers]
    last = expected[model.output.name].tolist()
    for engine in engines:
        output, classes = engine.output(images), engine.classify(images)
        assert output.dtype == model.proofs[model.output.name].dtype and output.tolist() == last, engine.isa
        assert classes.dtype == np.int32 and classes.tolist() == classes_of(last), engine.isa


@settings(max_examples=40, **relaxed)
@given(models(), st.integers(0, 3), st.integers(0, 2**32))
def test_engines_equal_python_integers_on_random_models(model, count, seed):
    assert_engines_agree_with_the_oracle(model, images_for(model, np.random.default_rng(seed), count))


@pytest.mark.slow
@settings(max_examples=500, **relaxed)
@given(models(), st.integers(0, 3), st.integers(0, 2**32))
def test_engines_equal_python_integers_on_many_random_models(model, count, seed):
    assert_engines_agree_with_the_oracle(model, images_for(model, np.random.default_rng(seed), count))


def assert_compiled_engines_agree_with_the_reference(model, images):
    """For more images than the oracle can take, as many as make several blocks and the tail of one."""
    expected = [(name, tensor.tolist()) for name, tensor in Engine(model, "reference").trace(images)]
    for engine in [Engine(model, *engine) for engine in ENGINES[1:]]:
        assert [(name, tensor.tolist()) for name, tensor in engine.trace(images)] == expected, engine.isa
        assert engine.output(images).tolist() == expected[-1][1], engine.isa
        assert engine.classify(images).tolist() == classes_of(expected[-1][1]), engine.isa


@settings(max_examples=10, **relaxed)
@given(models(), st.integers(4, 40), st.integers(0, 2**32))
def test_blocks_of_images_equal_the_reference_engine(model, count, seed):
    assert_compiled_engines_agree_with_the_reference(model, images_for(model, np.random.default_rng(seed), count))


@pytest.mark.slow
@settings(max_examples=300, **relaxed)
@given(models(), st.integers(4, 40), st.integers(0, 2**32))
def test_blocks_of_images_equal_the_reference_engine_on_many_random_models(model, count, seed):
    assert_compiled_engines_agree_with_the_reference(model, images_for(model, np.random.default_rng(seed), count))


def test_the_random_models_contain_every_layer_kind():
    """One round is nearly always enough; what comes up changes with every constant in the package."""
    seen = set()
    for number in range(10):

        @seed(number)
        @settings(**{**relaxed, "derandomize": False, "max_examples": 100})
        @given(models())
        def collect(model):
            seen.update(layer.kind for layer in model.layers)

        collect()
        if seen == set(LAYER_KINDS):
            break
    assert seen == set(LAYER_KINDS)


@each_engine
@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 3, 1), np.float64), np.zeros((1, 3, 3, 1), np.uint8), np.zeros((3, 3, 1), np.int32)]
)
def test_images_of_another_dtype_or_shape_are_refused(engine, images):
    with pytest.raises(DatasetError, match=r"images: found .* expected int32 \(N, \*\(3, 3, 1\)\)"):
        Engine(threshold_model(), *engine).output(images)


@each_engine
def test_the_lowest_index_wins_a_tie(engine):
    """Nine pixels whose sum equals the threshold: both scores are 0."""
    images = np.full((1, 3, 3, 1), 128, np.int32)
    assert Engine(threshold_model(), *engine).output(images).tolist() == [[0, 0]]
    assert Engine(threshold_model(), *engine).classify(images).tolist() == [0]
