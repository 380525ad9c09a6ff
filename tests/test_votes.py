"""Votes are the classes of the addressed noisy images, sample by sample, whatever engine, block, batch or thread."""

import hashlib
import struct
import threading
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.certify.chunks import Chunk, Chunks
from intsmooth_ref.certify.votes import (
    COMPILED_BATCH,
    REFERENCE_BATCH,
    NoisyClassifier,
    Tally,
    usual_batch,
    vote_function,
)
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    Add,
    ArgMax,
    Conv2D,
    Flatten,
    InputQuantization,
    Linear,
    MaxPool,
    Quantization,
    Requantization,
)
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import ESTIMATION, PREDICTION, SELECTION, add_noise, noise_table
from threshold_model import classes_by_hand, flat_image, threshold_model

ENGINES = [("reference", None)]
if numba_available():
    from intsmooth_ref.engine.jit.selection import available_isas

    ENGINES += [("jit", isa) for isa in available_isas()]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: "-".join(filter(None, engine)))

TABLE = noise_table(discrete_gaussian(Fraction(255, 4)))
CLASSES = 5


def network(size, stride=1, arg_max=False, bias=None):
    """Five classes of `size` x `size` images: convolution, residual addition, pool, linear, and perhaps an `ArgMax`.

    Without a bias of its own each class has one that makes it about as frequent as the others.
    """
    generator = np.random.default_rng(size)
    output = Quantization("uint8", Fraction(1), 60, 60, 255)

    def products(kind, name, source, shape, ratio=None, **fields):
        weights = generator.integers(-128, 128, shape).astype(np.int8)
        bias = generator.integers(-500, 500, shape[0]).astype(np.int32)
        if ratio is None:
            return kind(name=name, inputs=(source,), weights=weights, bias=bias,
                        output=Quantization.full_range("int32", Fraction(1), 0))  # fmt: skip
        return kind(name=name, inputs=(source,), weights=weights, bias=bias, output=output,
                    requantization=Requantization.of(ratio), **fields)  # fmt: skip

    layers = [
        InputQuantization(name="input", shape=(size, size, 3), requantization=Requantization.of((2**30, 31)),
                          output=Quantization.full_range("uint8", Fraction(1), 40)),
        products(Conv2D, "first", "input", (8, 3, 3, 3), (2**30, 37), padding=(1, 1, 1, 1),
                 strides=(stride, stride)),
        products(Conv2D, "second", "first", (8, 3, 3, 8), (2**30, 38), padding=(1, 1, 1, 1)),
        Add(name="sum", inputs=("second", "first"), multiplier=np.array([2**30, 2**29 + 1], np.int32), shift=30,
            output=output),
        MaxPool(name="pool", inputs=("sum",), kernel=(2, 2), strides=(2, 2)),
        Flatten(name="flat", inputs=("pool",)),
        products(Linear, "scores", "flat", (CLASSES, (-(-size // stride) // 2) ** 2 * 8)),
    ]  # fmt: skip
    if bias is not None:
        layers[-1] = replace(layers[-1], bias=bias)
        return IntegerModel((*layers, *([ArgMax(name="class", inputs=("scores",))] if arg_max else [])))
    noisy = add_noise(TABLE, np.full(size * size * 3, 128, np.uint8), 0, 0, SELECTION, 0, 50)
    scores = Engine(IntegerModel(tuple(layers)), "reference").output(noisy.reshape(-1, size, size, 3))
    return network(size, stride, arg_max, layers[-1].bias - (scores.sum(axis=0, dtype=np.int64) // 50).astype(np.int32))


#: Of the first two, 16 samples are computed together, of the last one.
NETWORKS = {"small": network(4), "with ArgMax": network(5, arg_max=True), "large": network(148, 12)}
each_network = pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)


def picture(model, seed=0):
    return np.random.default_rng(seed).integers(0, 256, model.input.shape).astype(np.uint8)


def independent_votes(model, pixels, seed, image, stage, first_sample, samples):
    """Noise of the plain sampler, classes of the reference engine, one sample at a time."""
    reference, votes = Engine(model, "reference"), []
    for sample in range(first_sample, first_sample + samples):
        noisy = add_noise(TABLE, pixels, seed, image, stage, sample, 1)
        votes.append(int(reference.classify(noisy.reshape(1, *model.input.shape))[0]))
    return votes


def test_the_networks_here_compute_as_many_samples_at_a_time_as_they_say():
    pytest.importorskip("numba")
    from intsmooth_ref.engine.jit.lowering import samples_of_a_block

    assert [samples_of_a_block(model) for model in NETWORKS.values()] == [16, 16, 1]


@each_engine
@pytest.mark.parametrize(
    ("seed", "image", "stage", "first_sample", "samples"),
    [(0, 0, SELECTION, 0, 1), (2**64 - 1, 2**32 - 1, ESTIMATION, 2**32 - 37, 37), (7, 3, PREDICTION, 15, 33),
     (2**32, 1, 2**24 - 1, 2**31 - 5, 16), (1, 5, ESTIMATION, 1000, 17), (1, 5, ESTIMATION, 1000, 0)],
)  # fmt: skip
def test_votes_are_those_of_independent_noise_and_classes(engine, seed, image, stage, first_sample, samples):
    address = (seed, image, stage, first_sample, samples)
    model = NETWORKS["small"]
    pixels = picture(model).reshape(-1)
    votes = vote_function(Engine(model, *engine), TABLE)(pixels, *address)
    assert votes.dtype == np.int32 and votes.tolist() == independent_votes(model, pixels, *address)
    assert len(votes) == samples


@each_engine
@each_network
def test_votes_of_every_block_size_are_those_of_independent_noise_and_classes(engine, model):
    pixels = picture(model, 1).reshape(-1)
    address = (11, 2, ESTIMATION, 90)
    samples = 3 if model.input.shape[0] > 20 else 40
    votes = vote_function(Engine(model, *engine), TABLE)(pixels, *address, samples)
    assert votes.tolist() == independent_votes(model, pixels, *address, samples)
    assert samples == 3 or len(set(votes.tolist())) > 1  # else any noise would do


@each_engine
def test_votes_are_the_classes_that_a_description_of_the_model_gives(engine):
    pixels, address = flat_image(129).reshape(-1), (2**64 - 1, 5, ESTIMATION, 3, 50)
    noise = add_noise(TABLE, np.zeros(9, np.uint8), *address)
    expected = classes_by_hand(flat_image(129), noise)
    assert vote_function(Engine(threshold_model(), *engine), TABLE)(pixels, *address).tolist() == expected
    assert 0 < sum(expected) < 50


@each_engine
@each_network
def test_votes_of_parts_are_those_of_the_whole(engine, model):
    vote = vote_function(Engine(model, *engine), TABLE)
    pixels, seed = picture(model, 2).reshape(-1), 99
    total = 37 if model.input.shape[0] < 20 else 3
    whole = vote(pixels, seed, 0, SELECTION, 10, total)
    generator = np.random.default_rng(4)
    for cuts in (1, 4):
        borders = [0, *sorted(generator.integers(0, total + 1, cuts).tolist()), total]
        votes = [vote(pixels, seed, 0, SELECTION, 10 + a, b - a) for a, b in zip(borders, borders[1:])]
        assert np.array_equal(np.concatenate(votes), whole)


@each_engine
@pytest.mark.parametrize(("threads", "batch"), [(1, None), (1, 1), (1, 17), (2, 16), (3, 5), (4, None), (2, 1000)])
def test_threads_and_batches_change_no_vote(engine, threads, batch):
    model, image = NETWORKS["with ArgMax"], picture(NETWORKS["with ArgMax"], 3)
    name, isa = engine
    classifier = SmoothedClassifier(model, "0.25", seed=5, engine=name, isa=isa, threads=threads, batch=batch)
    done = []
    votes = classifier.votes(image, 40, stage=ESTIMATION, index=8, progress=done.append)
    expected = independent_votes(model, image.reshape(-1), 5, 8, ESTIMATION, 0, 40)
    assert votes.tolist() == np.bincount(expected, minlength=CLASSES).tolist() and sum(done) == 40


@pytest.mark.parametrize("cuts", [[], [1], [999, 1000, 1001], [0, 700, 700, 1400, 2100]])
def test_a_tally_counts_and_hashes_votes_in_whatever_pieces_they_come(cuts):
    votes = np.random.default_rng(5).integers(0, CLASSES, 2345).astype(np.int32)
    tally = Tally(CLASSES + 1)  # a class without votes has its place
    for a, b in zip([0, *cuts], [*cuts, len(votes)]):
        tally.add(votes[a:b])
    chunks = [votes[a : a + 1000] for a in (0, 1000, 2000)]
    hashes = [hashlib.sha256(struct.pack(f"<{len(chunk)}H", *chunk.tolist())).hexdigest() for chunk in chunks]
    assert tally.counts.tolist() == [votes.tolist().count(each) for each in range(CLASSES + 1)]
    assert tally.samples == 2345 == tally.stage.samples
    assert list(tally.stage.votes) == tally.counts.tolist() and [each.sha256 for each in tally.stage.chunks] == hashes
    present = [tuple(sorted(Counter(chunk.tolist()).items())) for chunk in chunks]
    assert [each.votes for each in tally.stage.chunks] == present


@each_engine
def test_one_function_serves_several_threads_at_once(engine):
    """Each thread computes other samples, all at the same time and several times over."""
    model = NETWORKS["small"]
    vote, pixels = vote_function(Engine(model, *engine), TABLE), picture(model, 4).reshape(-1)
    ranges = [(first, 15 + first % 13) for first in range(0, 300, 50)]
    expected = [independent_votes(model, pixels, 6, 0, ESTIMATION, *each) for each in ranges]
    found, barrier = [[] for _ in ranges], threading.Barrier(len(ranges))

    def work(index):
        barrier.wait()
        for _ in range(2):
            found[index].append(vote(pixels, 6, 0, ESTIMATION, *ranges[index]).tolist())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(ranges))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[votes] * 2 for votes in expected]


@each_engine
def test_voting_leaves_the_pixels_alone_and_takes_any_layout(engine):
    model = NETWORKS["small"]
    vote, address = vote_function(Engine(model, *engine), TABLE), (1, 2, SELECTION, 3, 20)
    pixels = picture(model).reshape(-1)
    expected, kept = vote(pixels, *address), pixels.copy()
    every_other, frozen = np.repeat(pixels, 2)[::2], pixels.copy()
    frozen.setflags(write=False)
    for other in (every_other, frozen):
        assert np.array_equal(vote(other, *address), expected)
    assert np.array_equal(pixels, kept)


@each_engine
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2**64}, "seed 18446744073709551616: expected an int from 0 to"),
        ({"seed": -1}, "seed -1"),
        ({"image": 2**32}, "image index 4294967296: expected an int from 0 to 4294967295"),
        ({"stage": 2**24}, "stage 16777216: expected an int from 0 to 16777215"),
        ({"first_sample": 2**32}, "first sample 4294967296"),
        ({"first_sample": 2**32 - 3, "samples": 4}, "sample count 4: expected an int from 0 to 3"),
        ({"samples": -1}, "sample count -1"),
        ({"samples": 1.5}, "sample count 1.5"),
        ({"pixels": np.zeros(48, np.int32)}, r"pixels of type int32 and shape \(48,\): expected uint8"),
        ({"pixels": np.zeros((4, 4, 3), np.uint8)}, r"pixels of type uint8 and shape \(4, 4, 3\): expected uint8"),
    ],
)
def test_what_has_no_address_is_refused(engine, changed, message):
    vote = vote_function(Engine(NETWORKS["small"], *engine), TABLE)
    arguments = {"pixels": np.zeros(48, np.uint8), "seed": 1, "image": 0, "stage": 0, "first_sample": 0, "samples": 4}
    with pytest.raises(ParameterError, match=message):
        vote(*{**arguments, **changed}.values())


@each_engine
def test_the_usual_batch_has_about_the_same_number_of_products_in_every_network(engine):
    limit, most = REFERENCE_BATCH if engine[0] == "reference" else COMPILED_BATCH
    small, large = (usual_batch(Engine(NETWORKS[name], *engine)) for name in ("small", "large"))
    products = 13 * 13 * 8 * (27 + 72) + 5 * 6 * 6 * 8
    assert small == most
    assert large == min(most, limit // products)


@pytest.mark.parametrize(("compiled", "limit", "most"), [(object(), 2**30, 1000), (None, 2**27, 100)])
def test_of_a_network_as_large_as_can_be_one_sample_is_computed_at_a_time(compiled, limit, most):
    def batch_of(*products):
        layers = {str(number): each for number, each in enumerate(products)}
        return usual_batch(SimpleNamespace(compiled=compiled, model=SimpleNamespace(multiply_adds=layers)))

    assert [batch_of(limit * 2), batch_of(limit // 2, limit // 2), batch_of(limit // 4, limit // 4)] == [1, 1, 2]
    assert batch_of() == most


@pytest.mark.parametrize("what", ["threads", "batch"])
def test_threads_and_batches_are_limited(what):
    engine = Engine(threshold_model(), "reference")
    if what == "batch":
        assert NoisyClassifier(engine, TABLE, 1, batch=2**16).batch == 2**16
    for value in (0, 2**16 + 1):
        with pytest.raises(ParameterError, match=f"{what} {value}: expected 1 to 65536"):
            NoisyClassifier(engine, TABLE, **{what: value})


@pytest.mark.parametrize("threads", [1, 2])
def test_votes_of_any_range_come_in_order_and_each_is_told_of(threads):
    """From a start of their own, to an end that no batch ends at; the image is read row by row."""
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1) * 28 + 16
    classifier, done = NoisyClassifier(Engine(threshold_model(), "reference"), TABLE, threads, 5), []
    votes = list(classifier.votes(image, 3, 1, ESTIMATION, range(7, 20), done.append))
    noise = add_noise(TABLE, np.zeros(9, np.uint8), 3, 1, ESTIMATION, 7, 13)
    assert np.concatenate(votes).tolist() == classes_by_hand(image, noise)
    assert done == [5, 5, 3] and 0 < sum(classes_by_hand(image, noise)) < 13
    assert list(classifier.votes(image, 3, 1, ESTIMATION, range(7, 7))) == []


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.array([3, -1]), "classes -1 to 3: expected 0 to 65535"),
        (np.array([65536, 0]), "classes 0 to 65536: expected 0 to 65535"),
        (np.array([[1]]), r"classes of int64 and shape \(1, 1\): expected integers"),
        (np.array([1.0]), r"classes of float64 and shape \(1,\): expected integers"),
    ],
)
def test_only_classes_are_hashed(classes, message):
    with pytest.raises(ParameterError, match=message):
        Chunks().update(classes)


def test_the_highest_class_there_can_be_has_a_hash_and_no_votes_have_none():
    chunks = Chunks()
    chunks.update(np.array([], np.int32))
    assert list(chunks) == []
    chunks.update(np.array([65535, 0, 258]))
    sha256 = hashlib.sha256(b"\xff\xff\x00\x00\x02\x01").hexdigest()
    assert list(chunks) == [Chunk(sha256, ((0, 1), (258, 1), (65535, 1)))]
