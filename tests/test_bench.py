"""The benchmark measures the networks it names, the peers compute the same networks, and 8 bits are 8 bits."""

import json
import os
import sys
from fractions import Fraction

import numpy as np
import pytest

from intsmooth_ref.benchmark.networks import (
    RANDOM_NETWORKS,
    noisy_pictures,
    pictures,
    random_network,
)
from intsmooth_ref.benchmark.peers import PEERS, onnx_graph, onnxruntime_session, openvino_network, reason_to_skip
from intsmooth_ref.cli import main
from intsmooth_ref.cli.arguments import embedded_file, open_model
from intsmooth_ref.compilation import jit_disabled, numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.fixedpoint import quantize_multiplier
from intsmooth_ref.model.fingerprint import fingerprint, tensor_sha256
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import (
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv2D,
    Flatten,
    InputQuantization,
    Linear,
    LookupTable,
    MaxPool,
    Pad,
    Quantization,
    Requantization,
    Requantize,
)

FINGERPRINTS = {
    "resnet20": "196bdfdb148951bc6acf71b87c205e0ea07a7571a7a86d149713d7712c4d445b",
    "resnet110": "7a0c1c49ef117b4a9ba6a5b0b4238dbffa8d1d567e0fc2a20f313216958d770d",
    "mobilenetv2": "d3a4c3f063cc95dec63ecd546a1dce7d5c43139911c4e3b6fb9a929cf500687b",
}
PICTURES = "e489b37068135a638fcf8c17a597afb732df71585cd8310a9a37e6dbf1b4aa62"

#: The largest takes seconds to make.
NETWORKS = [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet110")) for name in RANDOM_NETWORKS]

compiles = pytest.mark.skipif(
    not numba_available() or jit_disabled(), reason="the command measures the compiled engine"
)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convolutions", "millions"),
    [
        ("resnet20", 19 + 2, (40.5, 41.5)),
        ("mobilenetv2", 52, (85, 100)),
        pytest.param("resnet110", 109 + 2, (252.5, 253.5), marks=pytest.mark.slow),
    ],
)
def test_a_network_has_the_published_depth_and_work(name, convolutions, millions):
    model = random_network(name)
    assert sum(isinstance(layer, Conv2D) for layer in model.layers) == convolutions
    assert millions[0] * 1e6 <= sum(model.multiply_adds.values()) <= millions[1] * 1e6
    assert model.input.shape == (32, 32, 3) and model.classes == 10


def test_multiply_adds_are_counted_by_hand():
    model = random_network("resnet20")
    counts = model.multiply_adds
    assert counts["stem"] == 32 * 32 * 16 * 27 and counts["stage1.1.conv1"] == 32 * 32 * 16 * 144
    assert counts["stage2.1.conv1"] == 16 * 16 * 32 * 144 and counts["stage2.1.shortcut"] == 16 * 16 * 32 * 16
    assert counts["scores"] == 640 and counts["pool"] == counts["stage1.1.add"] == 0
    assert random_network("mobilenetv2").multiply_adds["stage3.1.depthwise"] == 16 * 16 * 144 * 9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_same_on_every_machine(name):
    assert fingerprint(random_network(name)) == FINGERPRINTS[name]


def test_pictures_are_the_same_on_every_machine_and_in_any_portion():
    shape = (32, 32, 3)
    assert tensor_sha256(noisy_pictures(shape, 4)) == PICTURES
    assert np.array_equal(noisy_pictures(shape, 4)[2:], noisy_pictures(shape, 2, first=2))
    assert np.array_equal(pictures((8, 8, 1), 3)[1:], pictures((8, 8, 1), 2, first=1))
    for shape in ((7, 33, 2), (1, 1, 1), (3, 5, 4)):
        assert pictures(shape, 2).shape == (2, *shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_is_all_zero_or_clamped_and_no_class_takes_it_all(name):
    """On pictures other than those of the calibration: at most 60 % at the zero point, 1 % clamped, grids well used."""
    model = random_network(name)
    images = noisy_pictures(model.input.shape, 6, first=1000)
    for (_, values), layer in zip(Engine(model, "reference").trace(images), model.layers):
        output = layer.output
        if layer is model.output:
            assert np.bincount(values.argmax(axis=1)).max() <= 4
            continue
        low_end = values == output.minimum if output.minimum < output.zero_point else np.zeros(1)
        clamped = np.mean(values == output.maximum) + np.mean(low_end)
        assert np.mean(values == output.zero_point) < 0.6 and clamped < 0.01, layer.name
        assert 15 < values.std() < 64 and values.max() > 150, layer.name


# --- peers ------------------------------------------------------------------------------------------------------------


def every_kind():
    """A small network of all kinds of layers that peers compute, of both dtypes, with odd windows and bounds."""
    grid = Quantization.full_range("uint8", Fraction(1, 64), 100)
    coarse = Quantization.full_range("uint8", Fraction(1, 20), 30)
    relu6 = Quantization("uint8", Fraction(1, 32), 0, 0, 192)
    signed = Quantization("int8", Fraction(1, 16), -10, -10, 127)
    generator = np.random.default_rng(5)

    def products(*shape):
        """Weights so small that not even the 16-bit sums of an old CPU's 8-bit kernels saturate."""
        weights = generator.integers(-60, 61, shape).astype(np.int8)
        return {"weights": weights, "bias": generator.integers(-500, 500, shape[0]).astype(np.int32)}

    def requantization(channels, *ratio):
        pairs = [quantize_multiplier(Fraction(*ratio) * (channel + 4) / 4) for channel in range(channels)]
        return Requantization.of(*pairs)

    image = InputQuantization(name="image", shape=(9, 8, 3), output=grid, requantization=requantization(1, 64, 255))
    layers = [
        image,
        Conv2D(name="conv", inputs=("image",), **products(8, 3, 2, 3), requantization=requantization(8, 1, 90),
               output=relu6, padding=(0, 1, 1, 0), dilation=(1, 2)),
        Conv2D(name="depthwise", inputs=("conv",), **products(8, 3, 3, 1), requantization=requantization(8, 1, 400),
               output=signed, strides=(2, 1), padding=(1, 1, 1, 1), groups=8),
        Requantize(name="other", inputs=("depthwise",), output=coarse, requantization=requantization(1, 5, 4)),
        MaxPool(name="largest", inputs=("other",), kernel=(3, 3), strides=(1, 2), padding=(1, 1, 1, 1)),
        AveragePool(name="mean", inputs=("other",), kernel=(3, 3), strides=(1, 2), padding=(1, 1, 1, 1)),
        Add(name="sum", inputs=("largest", "mean"), multiplier=np.array([1 << 19, 1 << 19], np.int32), shift=20,
            output=Quantization.full_range("uint8", Fraction(1, 10), 100)),
        Clamp(name="bounded", inputs=("sum",), minimum=105, maximum=140),
        Concat(name="both", inputs=("sum", "bounded")),
        Pad(name="wider", inputs=("both",), padding=(0, 1, 2, 0)),
        Flatten(name="flat", inputs=("wider",)),
    ]  # fmt: skip
    features = int(np.prod(IntegerModel(tuple(layers), ()).proofs["flat"].shape))
    last = Linear(name="scores", inputs=("flat",), **products(5, features),
                  output=Quantization.full_range("int32", Fraction(1, 1 << 16), 0))  # fmt: skip
    return IntegerModel((*layers, last))


def peer_scores(peer, model, images):
    reason = reason_to_skip(peer)
    if reason:
        pytest.skip(reason)
    return peer.prepare(model, 1, images)()


def integer_scores(model, images):
    return Engine(model, "reference").output(images) * float(model.output.output.scale)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("name", ["digits", "every kind"])
def test_a_peer_computes_what_the_integers_stand_for(name, peer):
    """Rounding apart: each score within a fifth of the scores' own deviation."""
    model = open_model(None).model if name == "digits" else every_kind()
    images = noisy_pictures(model.input.shape, 32)
    found, expected = peer_scores(peer, model, images), integer_scores(model, images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < expected.std() / 5
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.9


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_agrees_about_the_class_on_most_pictures(peer):
    model = random_network("resnet20")
    images = noisy_pictures(model.input.shape, 32)
    found, expected = peer_scores(peer, model, images), integer_scores(model, images)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.75


def test_onnxruntime_computes_in_8_bits(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model = random_network("resnet20")
    onnxruntime_session(onnx_graph(model, True, 8), 1, tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 21 and kinds.count("QLinearAdd") == 9
    assert not {"Conv", "Add", "Gemm", "GlobalAveragePool", "DequantizeLinear"} & set(kinds)


def test_openvino_computes_in_8_bits_and_float32_is_float32():
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    model = random_network("resnet20")
    for quantized, precisions in ((True, {"u8", "i8"}), (False, {"f32"})):
        compiled = openvino_network(onnx_graph(model, quantized, 8), 1).get_runtime_model()
        nodes = [{key: value.value for key, value in node.get_rt_info().items()} for node in compiled.get_ordered_ops()]
        convolutions = [node for node in nodes if node["layerType"] == "Convolution"]
        assert len(convolutions) == 21 and {node["runtimePrecision"] for node in convolutions} <= precisions


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_refuses_a_layer_that_it_cannot_compute(peer):
    digits = open_model(None).model
    last = digits.layers[-1]
    grid = Quantization.full_range("uint8", digits.proofs["flatten"].scale, digits.proofs["flatten"].zero_point)
    table = LookupTable(name="table", inputs=("flatten",), table=np.arange(256, dtype=np.int16), output=grid)
    scores = Linear(name="scores", inputs=("table",), weights=last.weights, bias=last.bias, output=last.output)
    model = IntegerModel((*digits.layers[:-1], table, scores))
    if reason_to_skip(peer):
        pytest.skip(reason_to_skip(peer))
    with pytest.raises(ParameterError, match="layer 'table' is a LookupTable"):
        peer.prepare(model, 1, noisy_pictures(model.input.shape, 1))


def test_a_peer_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    reasons = {peer.name: reason_to_skip(peer) for peer in PEERS}
    assert reasons["openvino int8"] == "openvino is not installed: pip install 'intsmooth_ref[bench]'"


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    try:
        status = main(["bench", *(str(argument) for argument in arguments)])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@compiles
def test_the_command_measures_and_writes_what_it_measured(tmp_path, capsys):
    from intsmooth_ref.engine.jit.selection import available_isas

    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    path = tmp_path / "bench.json"
    arguments = ("--networks", "digits", "--peers", "none", "--rounds", 1, "--seconds", 0.02, "--profile")
    status, out, err = run(capsys, *arguments, "--json", path)
    assert status == 0 and err == "" and "digits: 0.1 million multiply-adds a sample" in out and "profile of" in out
    assert affinity is None or os.sched_getaffinity(0) == affinity
    written = json.loads(path.read_text())
    assert written["format"] == "intsmooth-ref bench 1" and written["rounds"] == written["threads"] == 1
    assert written["machine"]["isas"] == list(available_isas()) and written["machine"]["versions"]["numpy"]
    (network,) = written["networks"]
    model = open_model(None).model
    assert network["fingerprint"] == fingerprint(model)
    by_hand = 8 * 8 * 16 * 9 + 4 * 4 * 32 * 144 + 2 * 2 * 48 * 288 + 192 * 10
    assert network["multiply_adds"] == sum(model.multiply_adds.values()) == by_hand
    isa = Engine(model, "jit").isa
    (speed,) = network["speeds"]
    assert speed["name"] == f"intsmooth_ref {isa}" and set(network["profiles"]) == {isa}
    rate = speed["samples_per_second"]
    assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"]
    assert isa == "portable" or 0 < speed["share_of_peak"]["median"] < 2 and network["peaks"][isa]["median"] > 0
    steps = network["profiles"][isa]
    assert sum(step["multiply_adds"] for step in steps) == by_hand and all(step["seconds"] >= 0 for step in steps)


@compiles
def test_a_model_file_is_measured_beside_a_peer_and_certifying(tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from intsmooth_ref.model.hdf5 import save_model

    save_model(tmp_path / "model.h5", every_kind())
    status, out, _ = run(capsys, tmp_path / "model.h5", "--peers", "onnxruntime", "--rounds", 2, "--seconds", 0.02,
                         "--isa", "portable", "--certify")  # fmt: skip
    assert status == 0 and "model.h5: " in out and "onnxruntime fp32, the fastest in float32" in out
    assert "onnxruntime int8, the fastest in 8 bits" in out and "% of the bare network's speed" in out


@compiles
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--networks", "x"], 1, "--networks 'x': expected some of digits, resnet20, resnet110, mobilenetv2, sep"),
        (["--networks", ""], 1, "--networks '': expected some of digits"),
        (["MODEL", "--networks", "digits"], 1, "expected either MODEL or --networks, not both"),
        (["missing.h5"], 1, "missing.h5"),
        (["--isa", "mmx"], 1, "--isa 'mmx': expected some of"),
        (["--peers", "x"], 1, "--peers 'x': expected some of torch, onnxruntime, openvino, separated by commas"),
        (["--peers", "openvino"], 1, "--peers openvino: openvino is not installed: pip install 'intsmooth_ref[bench]'"),
        (["--threads", "100000"], 1, "--threads 100000: this process may use"),
        (["--threads", "0"], 2, "--threads: '0': expected an integer, at least 1"),
        (["--rounds", "0"], 2, "--rounds: '0': expected an integer, at least 1"),
        (["--seconds", "0"], 1, "--seconds 0: expected more than 0, at most 60"),
        (["--seconds", "x"], 2, "--seconds: 'x' is no number"),
        (["--peers", "none", "--json", "/nonexistent/a.json"], 1, "/nonexistent/a.json: No such file or directory"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_is_measured(capsys, monkeypatch, arguments, status, message):
    monkeypatch.setitem(sys.modules, "openvino", None)
    places = {"MODEL": embedded_file("digits.h5")}
    found, out, err = run(capsys, *(places.get(argument, argument) for argument in arguments))
    assert found == status and message in err and err.count("\n") == 1 and err.startswith("intsmooth-ref")
    assert out == ""


def test_without_compilation_there_is_nothing_to_measure(capsys, monkeypatch):
    monkeypatch.setattr("intsmooth_ref.engine.numba_available", lambda: False)
    status, _, err = run(capsys, "--networks", "digits")
    assert status == 1 and "engine 'jit' needs Numba" in err and err.count("\n") == 1
