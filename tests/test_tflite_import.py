"""TFLite files become integer models with exactly their parameters; what else a file may hold is refused in one line.

The oracle is `exact_steps`, from the parameters that each test writes into its file. LiteRT, where it is installed, is
a peer: its kernels may differ where the exact value lies within their arithmetic's error of a tie, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from damage import damaged, run_elsewhere
from exact_steps import (
    FLOAT32_ERROR,
    MULTIPLIER_ERROR,
    disagreements,
    products,
    rational,
    scaled,
    windows,
)
from flatbuffer_writer import FlatBuffer, Network, number

from intsmooth_ref.data_tools import tflite_import
from intsmooth_ref.data_tools.integer_builder import ImportedModel, Normalization
from intsmooth_ref.data_tools.tflite_file import MAX_OPERATORS
from intsmooth_ref.engine.reference import ReferenceModel
from intsmooth_ref.errors import DatasetError, IntsmoothError, ModelFormatError
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.hdf5 import load_model

HEIGHT, WIDTH, CHANNELS = 7, 9, 4
GENERATOR = np.random.default_rng(11)
IMAGE = GENERATOR.integers(-20, 276, (1, HEIGHT, WIDTH, CHANNELS)).astype(np.int32)

#: Scales and zero points of the tensors x, y, in float32 as in the file.
XS, XZ, YS, YZ = np.float32(0.0235), -9, np.float32(0.0371), 4
#: A scale of y on which 6 is inside int8.
WIDE = np.float32(0.0571)
#: Fused activations, by number.
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
SAME, VALID = 0, 1

RATIO = rational(XS) / rational(YS)


def integers(*shape: int) -> np.ndarray:
    return GENERATOR.integers(-127, 128, shape).astype(np.int8)


def byte(value: int) -> Any:
    return number("<b", value)


def whole(value: int) -> Any:
    return number("<i", value)


@dataclass
class Case:
    """An operator that reads x and gives y.

    Attributes:
        steps: of y, exact, for x `(H, W, C)` less its zero point.
        grid: scale and zero point of y.
        clip: reals between which a fused activation keeps y.
        dtype: of x and y.
    """

    write: Callable[[Network], None]
    shape: tuple[int, ...]
    steps: Callable[[np.ndarray], np.ndarray]
    grid: tuple[Any, int] = (YS, YZ)
    clip: tuple[float, float] = (-np.inf, np.inf)
    dtype: str = "INT8"


def file_of(case: Case) -> bytes:
    """x, the operator, y, and a RESHAPE to scores."""
    network = Network()
    zero = XZ if case.dtype == "INT8" else XZ + 128
    network.tensor("x", (1, HEIGHT, WIDTH, CHANNELS), case.dtype, XS, zero)
    network.tensor("y", (1, *case.shape), case.dtype, *case.grid)
    case.write(network)
    count = int(np.prod(case.shape))
    network.tensor("scores", (1, count), case.dtype, *case.grid)
    network.operator("RESHAPE", ["y"], "scores", {0: np.array([1, count], "<i4")})
    return network.bytes("x", "scores")


#: With which a grey level is a step of x.
ONE_STEP = Normalization(deviation=1 / (255 * rational(XS)))


def imported(folder: Path, content: bytes, normalization: Normalization = ONE_STEP, **options: Any) -> ImportedModel:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return tflite_import.integer_model(path, normalization, **options)


def traced(model: ImportedModel, images: np.ndarray = IMAGE) -> dict[str, np.ndarray]:
    """By the name of the file's tensor."""
    layers = dict(ReferenceModel(model.model).trace(images))
    return {name: layers[tensor.layer].reshape(-1, *tensor.shape) for name, tensor in model.tensors.items()}


# --- operators --------------------------------------------------------------------------------------------------------

WEIGHT_SCALES = [np.float32(0.004 * 1.37**index) for index in range(8)]


def conv(
    kernel: tuple[int, int], strides: tuple[int, int], padding: int, sides: tuple[int, int, int, int],
    shape: tuple[int, int], *, dilation: tuple[int, int] = (1, 1), groups: int = 1, per_channel: bool = True,
    activation: int = NONE, clip: tuple[float, float] = (-np.inf, np.inf), bias: bool = True, dtype: str = "INT8",
    ys: Any = YS,
) -> Case:  # fmt: skip
    outputs = 6
    weights, offsets = integers(outputs, *kernel, CHANNELS // groups), GENERATOR.integers(-9999, 9999, outputs)
    scales = WEIGHT_SCALES[: outputs if per_channel else 1]
    ratios = [rational(XS) * rational(scale) / rational(ys) for scale in scales]

    def write(network: Network) -> None:
        if dtype == "INT8":
            network.tensor("w", weights.shape, dtype, scales, values=weights)
        else:
            network.tensor("w", weights.shape, dtype, scales, 128, values=weights.astype(int) + 128)
        network.tensor("b", (outputs,), "INT32", XS * np.array(scales), values=offsets)
        options = {0: byte(padding), 1: whole(strides[1]), 2: whole(strides[0]), 3: byte(activation),
                   4: whole(dilation[1]), 5: whole(dilation[0])}  # fmt: skip
        network.operator("CONV_2D", ["x", "w", "b"] if bias else ["x", "w"], "y", options)

    def steps(x: np.ndarray) -> np.ndarray:
        added = offsets if bias else np.zeros(outputs, int)
        return scaled(products(x, weights, added, strides, sides, dilation, groups), ratios)

    return Case(write, (*shape, outputs), steps, (ys, YZ if dtype == "INT8" else YZ + 128), clip, dtype)


def depthwise(multiplier: int, per_channel: bool) -> Case:
    """SAME of 9 columns with windows of 3 every 2: a pixel on both sides; of 7 rows with windows of 4: 1 and 2."""
    outputs = CHANNELS * multiplier
    weights, offsets = integers(1, 4, 3, outputs), GENERATOR.integers(-9999, 9999, outputs)
    scales = WEIGHT_SCALES[: outputs if per_channel else 1]

    def write(network: Network) -> None:
        network.tensor("w", weights.shape, "INT8", scales, axis=3, values=weights)
        network.tensor("b", (outputs,), "INT32", XS * np.array(scales), values=offsets)
        options = {0: byte(SAME), 1: whole(2), 2: whole(2), 3: whole(multiplier), 4: byte(RELU6)}
        network.operator("DEPTHWISE_CONV_2D", ["x", "w", "b"], "y", options)

    def steps(x: np.ndarray) -> np.ndarray:
        each = weights.transpose(3, 1, 2, 0)
        ratios = [rational(XS) * rational(scale) / rational(WIDE) for scale in scales]
        return scaled(products(x, each, offsets, (2, 2), (1, 2, 1, 1), groups=CHANNELS), ratios)

    return Case(write, (4, 5, outputs), steps, (WIDE, YZ), clip=(0, 6))


def fully_connected(per_channel: bool) -> Case:
    depth, outputs = HEIGHT * WIDTH * CHANNELS, 5
    weights, offsets = integers(outputs, depth), GENERATOR.integers(-9999, 9999, outputs)
    scales = WEIGHT_SCALES[: outputs if per_channel else 1]

    def write(network: Network) -> None:
        network.tensor("w", weights.shape, "INT8", scales, values=weights)
        network.tensor("b", (outputs,), "INT32", XS * np.array(scales), values=offsets)
        network.operator("FULLY_CONNECTED", ["x", "w", "b"], "y", {0: byte(RELU)})

    def steps(x: np.ndarray) -> np.ndarray:
        sums = weights.astype(np.int64) @ x.ravel() + offsets
        return scaled(sums, [rational(XS) * rational(scale) / rational(YS) for scale in scales])

    return Case(write, (outputs,), steps, clip=(0, np.inf))


def of_one(
    kind: str, shape: tuple[int, ...], steps: Callable[[np.ndarray], np.ndarray], options: Any = None,
    grid: tuple[Any, int] = (YS, YZ), constants: Any = (), **more: Any,
) -> Case:  # fmt: skip
    def write(network: Network) -> None:
        for name, type, values in constants:
            network.tensor(name, np.shape(values), type, values=values)
        network.operator(kind, ["x", *(name for name, _, _ in constants)], "y", options)

    return Case(write, shape, steps, grid, **more)


def of_reals(function: Callable[[Fraction], Fraction], grid: tuple[Any, int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.vectorize(lambda q: function(rational(XS) * int(q)) / rational(grid[0]), otypes=[object])(x)


def with_mpmath(name: str, grid: tuple[Any, int]) -> Callable[[np.ndarray], np.ndarray]:
    """A function to 60 digits."""

    def steps(x: np.ndarray) -> np.ndarray:
        mpmath = pytest.importorskip("mpmath")
        functions = {"LOGISTIC": lambda v: 1 / (1 + mpmath.exp(-v)), "TANH": mpmath.tanh}

        def value(real: Fraction) -> Fraction:
            with mpmath.workdps(60):
                result = functions[name](mpmath.mpf(real.numerator) / real.denominator)
                return Fraction(int(mpmath.nint(result * 2**180)), 2**180)

        return of_reals(value, grid)(x)

    return steps


def add(activation: int, clip: tuple[float, float]) -> Case:
    """x and, on a grid of half its step, x again: twice its integers, up to saturation."""

    def write(network: Network) -> None:
        network.tensor("t", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS / 2, 31)
        network.operator("QUANTIZE", ["x"], "t")
        network.operator("ADD", ["x", "t"], "y", {0: byte(activation)})

    def steps(x: np.ndarray) -> np.ndarray:
        other = np.clip(31 + 2 * x, -128, 127) - 31
        return scaled(x, [RATIO]) + scaled(other, [RATIO / 2])

    return Case(write, (HEIGHT, WIDTH, CHANNELS), steps, clip=clip)


def mean_steps(ratio: Fraction) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: scaled(x.astype(np.int64).sum((0, 1)), [ratio / (HEIGHT * WIDTH)])


def average(padding: int, sides: tuple[int, int, int, int], shape: tuple[int, int]) -> Case:
    """3 x 2 windows every (2, 1), on the grid of x: means of the integers themselves, ties up; padding not counted."""

    def steps(x: np.ndarray) -> np.ndarray:
        rows = windows(x, (3, 2), (2, 1), sides)
        return np.array([[[Fraction(int(s), len(w)) for s in w.sum(0)] for w in row] for row in rows], object)

    options = {0: byte(padding), 1: whole(1), 2: whole(2), 3: whole(2), 4: whole(3), 5: byte(NONE)}
    return of_one("AVERAGE_POOL_2D", (*shape, CHANNELS), steps, options, (XS, XZ))


def maximum(x: np.ndarray) -> np.ndarray:
    rows = windows(x, (3, 2), (2, 2), (1, 1, 0, 1))
    return np.array([[[Fraction(int(q)) for q in w.max(0)] for w in row] for row in rows], object)


def concatenated(x: np.ndarray) -> np.ndarray:
    ratio = rational(XS) / rational(YS)
    return np.concatenate([scaled(x, [ratio]), scaled(np.maximum(x, 0), [ratio])], axis=-1)


def write_concatenation(network: Network) -> None:
    network.tensor("r", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS, XZ)
    network.operator("RELU", ["x"], "r")
    network.operator("CONCATENATION", ["x", "r"], "y", {0: whole(3)})


def write_silu(network: Network) -> None:
    network.tensor("s", (1, HEIGHT, WIDTH, CHANNELS), "INT8", np.float32(1 / 256), -128)
    network.operator("LOGISTIC", ["x"], "s")
    network.operator("MUL", ["s", "x"], "y", {})


def silu_steps(x: np.ndarray) -> np.ndarray:
    """Of the product of x and the 8-bit sigmoid of x."""
    sigmoids = with_mpmath("LOGISTIC", (np.float32(1 / 256), -128))(x)
    rounded = np.array([min(round(each), 255) for each in sigmoids.ravel()], object).reshape(x.shape)
    return rounded * scaled(x, [rational(XS) / 256 / rational(YS)])


FULL = (HEIGHT, WIDTH, CHANNELS)
SAME_PAD = {0: byte(SAME), 1: whole(2), 2: whole(2), 3: whole(2), 4: whole(3), 5: byte(NONE)}
SIGMOID_GRID = (np.float32(1 / 256), -128)

CASES: dict[str, Case] = {
    "CONV_2D": conv((3, 2), (1, 1), VALID, (0, 0, 0, 0), (5, 8)),
    "CONV_2D, SAME": conv((3, 2), (2, 2), SAME, (1, 1, 0, 1), (4, 5), activation=RELU, clip=(0, np.inf)),
    "CONV_2D, dilation": conv((2, 3), (1, 1), SAME, (1, 2, 1, 1), (7, 9), dilation=(3, 1), activation=RELU6,
                              clip=(0, 6), ys=WIDE),
    "CONV_2D, groups": conv((1, 1), (1, 2), VALID, (0, 0, 0, 0), (7, 5), groups=2, activation=RELU_N1_TO_1,
                            clip=(-1, 1)),
    "CONV_2D, per tensor": conv((3, 3), (1, 1), VALID, (0, 0, 0, 0), (5, 7), per_channel=False),
    "CONV_2D, no bias": conv((3, 3), (1, 1), VALID, (0, 0, 0, 0), (5, 7), bias=False),
    "CONV_2D, uint8": conv((3, 3), (1, 1), VALID, (0, 0, 0, 0), (5, 7), per_channel=False, dtype="UINT8"),
    "DEPTHWISE_CONV_2D": depthwise(1, True),
    "DEPTHWISE_CONV_2D, multiplier": depthwise(2, True),
    "DEPTHWISE_CONV_2D, per tensor": depthwise(1, False),
    "FULLY_CONNECTED": fully_connected(False),
    "FULLY_CONNECTED, per channel": fully_connected(True),
    "ADD": add(NONE, (-np.inf, np.inf)),
    "ADD, RELU": add(RELU, (0, np.inf)),
    "MUL of x and its sigmoid": Case(write_silu, FULL, silu_steps),
    "CONCATENATION": Case(write_concatenation, (HEIGHT, WIDTH, 2 * CHANNELS), concatenated),
    "QUANTIZE": of_one("QUANTIZE", FULL, lambda x: scaled(x, [RATIO])),
    "MAX_POOL_2D": of_one("MAX_POOL_2D", (4, 5, CHANNELS), maximum, SAME_PAD, (XS, XZ)),
    "AVERAGE_POOL_2D": average(VALID, (0, 0, 0, 0), (3, 8)),
    "AVERAGE_POOL_2D, SAME": average(SAME, (1, 1, 0, 1), (4, 9)),
    "MEAN": of_one("MEAN", (CHANNELS,), mean_steps(RATIO), {}, constants=[("axes", "INT32", [2, 1])]),
    "MEAN, extents kept": of_one("MEAN", (1, 1, CHANNELS), lambda x: mean_steps(RATIO)(x).reshape(1, 1, -1),
                                 {0: number("<B", 1)}, constants=[("axes", "INT32", [-3, -2])]),
    "PAD": of_one("PAD", (HEIGHT + 3, WIDTH + 1, CHANNELS), lambda x: scaled(
        np.pad(x, ((1, 2), (0, 1), (0, 0))), [Fraction(1)]), {}, (XS, XZ),
        constants=[("sides", "INT32", [[0, 0], [1, 2], [0, 1], [0, 0]])]),
    "RESHAPE": of_one("RESHAPE", (WIDTH, HEIGHT, CHANNELS), lambda x: scaled(
        x.reshape(WIDTH, HEIGHT, CHANNELS), [Fraction(1)]), {}, (XS, XZ),
        constants=[("to", "INT32", [1, -1, HEIGHT, CHANNELS])]),
    "RELU": of_one("RELU", FULL, lambda x: scaled(np.maximum(x, 0), [RATIO])),
    "RELU6": of_one("RELU6", FULL, of_reals(lambda v: min(max(v, Fraction(0)), Fraction(6)), (YS, YZ))),
    "RELU_N1_TO_1": of_one("RELU_N1_TO_1", FULL, lambda x: scaled(x, [RATIO]), clip=(-1, 1)),
    "LEAKY_RELU": of_one("LEAKY_RELU", FULL, of_reals(lambda v: v if v > 0 else rational(0.1) * v, (YS, YZ)),
                         {0: number("<f", 0.1)}),
    "HARD_SWISH": of_one("HARD_SWISH", FULL, of_reals(
        lambda v: v * min(max(v + 3, Fraction(0)), Fraction(6)) / 6, (YS, YZ))),
    "LOGISTIC": of_one("LOGISTIC", FULL, with_mpmath("LOGISTIC", SIGMOID_GRID), grid=SIGMOID_GRID),
    "TANH": of_one("TANH", FULL, with_mpmath("TANH", (np.float32(1 / 128), 0)), grid=(np.float32(1 / 128), 0)),
}  # fmt: skip


def limits(case: Case) -> tuple[int, int]:
    """Of the integers of y, its clip included: the ends nearest to the exact quotients."""
    lowest, highest = (-128, 127) if case.dtype == "INT8" else (0, 255)
    scale, zero = rational(case.grid[0]), case.grid[1]
    low = max(lowest, zero + round(Fraction(case.clip[0]) / scale)) if np.isfinite(case.clip[0]) else lowest
    high = min(highest, zero + round(Fraction(case.clip[1]) / scale)) if np.isfinite(case.clip[1]) else highest
    return low, high


def is_table(name: str) -> bool:
    """Whose ties go to the even integer."""
    return name in ("LOGISTIC", "TANH", "LEAKY_RELU", "HARD_SWISH") or name.startswith("MUL")


@pytest.mark.parametrize("name", CASES)
def test_every_integer_is_the_nearest_to_the_exact_value(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tensors = traced(imported(tmp_path, file_of(case)))
    zero = XZ if case.dtype == "INT8" else XZ + 128
    lowest, highest = (-128, 127) if case.dtype == "INT8" else (0, 255)
    np.testing.assert_array_equal(tensors["x"], np.clip(IMAGE + zero, lowest, highest))
    steps = case.steps(tensors["x"][0].astype(np.int64) - zero)
    wrong, near = disagreements(tensors["y"][0], steps, case.grid[1], *limits(case), MULTIPLIER_ERROR,
                                ties_up=not is_table(name))  # fmt: skip
    assert (wrong, near) == (0, near) and near <= 1
    assert tensors["y"].std() > 5 or case.clip == (-1, 1)  # the case tells something


# --- LiteRT -----------------------------------------------------------------------------------------------------------


def by_litert(content: bytes, x: np.ndarray, resolver: str) -> np.ndarray:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    kind = getattr(interpreter.OpResolverType, resolver)
    network = interpreter.Interpreter(
        model_content=content, experimental_op_resolver_type=kind, experimental_preserve_all_tensors=True
    )
    network.allocate_tensors()
    network.set_tensor(network.get_input_details()[0]["index"], x)
    network.invoke()
    index = next(each["index"] for each in network.get_tensor_details() if each["name"] == "y")
    return np.array(network.get_tensor(index))


@pytest.mark.parametrize("name", [each for each in CASES if each.startswith(("CONV_", "DEPTH"))
                                  and not each.endswith(("no bias", "uint8"))])
def test_gemmlowp_rounding_gives_the_integers_of_litert_s_reference_kernels(name: str, tmp_path: Path) -> None:
    content = file_of(CASES[name])
    tensors = traced(imported(tmp_path, content, rounding="gemmlowp"))
    np.testing.assert_array_equal(by_litert(content, tensors["x"], "BUILTIN_REF"), tensors["y"])


#: Of sums of 20 bits, of tables made in float32, of ratios of 31 bits that are rounded twice.
FIXED_POINT_ERROR = Fraction(1, 2**18)

#: LiteRT asks for one grid, or a bias; and it computes the sigmoid anew, rounded otherwise.
NOT_BY_LITERT = ("CONCATENATION", "CONV_2D, no bias", "MUL of x and its sigmoid")


@pytest.mark.parametrize("name", [each for each in CASES if each not in NOT_BY_LITERT])
def test_litert_differs_only_at_near_ties(name: str, tmp_path: Path) -> None:
    """Products by XNNPACK, in float32; the rest by LiteRT's own kernels."""
    case = CASES[name]
    content = file_of(case)
    tensors = traced(imported(tmp_path, content))
    float32 = name.startswith(("CONV_", "DEPTH", "FULLY"))
    found = by_litert(content, tensors["x"], "AUTO" if float32 else "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    zero = XZ if case.dtype == "INT8" else XZ + 128
    steps = case.steps(tensors["x"][0].astype(np.int64) - zero)
    error = FLOAT32_ERROR if float32 else FIXED_POINT_ERROR
    wrong, near = disagreements(found[0], steps, case.grid[1], *limits(case), error, abs(steps) + 256)
    ties = near if "AVERAGE" in name else 0  # means of six integers are often halves, which LiteRT rounds away from 0
    assert (wrong, near - ties) == (0, 0)


# --- the image --------------------------------------------------------------------------------------------------------


def simple(scale: float = 1 / 255, zero: int = -128, dtype: str = "INT8", end: str = "") -> Network:
    """x, a mean over it, and what comes at the end."""
    network = Network()
    network.tensor("x", (1, HEIGHT, WIDTH, CHANNELS), dtype, None if dtype == "FLOAT32" else scale, zero)
    network.tensor("axes", (2,), "INT32", values=[1, 2])
    network.tensor("y", (1, CHANNELS), "INT8", YS, YZ)
    source = "x"
    if dtype == "FLOAT32":
        network.tensor("q", (1, HEIGHT, WIDTH, CHANNELS), "INT8", scale, zero)
        network.operator("QUANTIZE", ["x"], "q", {})
        source = "q"
    network.operator("MEAN", [source, "axes"], "y", {})
    return network


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
def test_an_int8_image_of_scale_1_255_is_grey_minus_128(dtype: str, tmp_path: Path) -> None:
    model = imported(tmp_path, simple(dtype=dtype).bytes("x", "y"), Normalization())
    every = np.arange(-300, -300 + IMAGE.size).reshape(IMAGE.shape).astype(np.int32)
    first = traced(model, every)["x" if dtype == "INT8" else "q"]
    np.testing.assert_array_equal(first, np.clip(every - 128, -128, 127))
    assert len(model.model.layers) == 2


def test_a_mean_of_whole_steps_moves_the_zero_point(tmp_path: Path) -> None:
    """`(grey / 255 - 1/2) / (1/2)` on a grid of scale 1/128 and zero point 3: 128 steps are black."""
    model = imported(tmp_path, simple(1 / 128, 3).bytes("x", "y"), Normalization(Fraction(1, 2), Fraction(1, 2)))
    reals = [(Fraction(int(grey), 255) - Fraction(1, 2)) / Fraction(1, 2) for grey in IMAGE.ravel()]
    wrong, near = disagreements(
        traced(model)["x"], np.array([real * 128 for real in reals], object).reshape(IMAGE.shape), 3, -128, 127,
        MULTIPLIER_ERROR, np.full(IMAGE.shape, 512, object),
    )  # fmt: skip
    assert (wrong, near) == (0, 0)
    names = [layer.name for layer in model.model.layers]
    assert names == ["x", "x_reread", "y"] and model.model.proofs["x_reread"].zero_point == 3


def test_a_mean_between_two_steps_is_refused_or_moved_when_that_is_asked_for(tmp_path: Path) -> None:
    content = simple(1 / 128, 3).bytes("x", "y")
    with pytest.raises(ModelFormatError, match="a mean of 0.485, 124.16 steps .* the nearest mean, 0.484375"):
        imported(tmp_path, content, Normalization(Fraction("0.485"), Fraction(1, 2)))
    near = imported(tmp_path, content, Normalization(Fraction("0.485"), Fraction(1, 2), nearest=True))
    same = imported(tmp_path, content, Normalization(Fraction("0.484375"), Fraction(1, 2)))
    assert fingerprint(near.model) == fingerprint(same.model)
    with pytest.raises(ModelFormatError, match="black, 0, would be -189 on the input's grid; expected -128 to 127"):
        imported(tmp_path, content, Normalization(Fraction("0.75"), Fraction(1, 2)))


def test_dead_channels_are_their_zero_point(tmp_path: Path) -> None:
    """No accumulator times a ratio below 2**-32 reaches 1/2; weights so small are zero."""
    network = Network()
    network.tensor("x", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS, XZ)
    scales = np.float32([1e-3, 1e-30])
    network.tensor("w", (2, HEIGHT * WIDTH * CHANNELS), "INT8", scales, values=integers(2, HEIGHT * WIDTH * CHANNELS))
    network.tensor("b", (2,), "INT32", XS * scales, values=[5, 2**31 - 1])
    network.tensor("y", (1, 2), "INT8", YS, YZ)
    network.operator("FULLY_CONNECTED", ["x", "w", "b"], "y", {})
    model = imported(tmp_path, network.bytes("x", "y"))
    assert traced(model)["y"][0, 1] == YZ != traced(model)["y"][0, 0]


# --- the end, and names -----------------------------------------------------------------------------------------------


def test_what_changes_no_largest_score_is_left_out_at_the_end(tmp_path: Path) -> None:
    network = simple()
    network.tensor("p", (1, CHANNELS), "INT8", 1 / 256, -128)
    network.operator("SOFTMAX", ["y"], "p", {0: number("<f", 1.0)})
    network.tensor("f", (1, CHANNELS), "FLOAT32")
    network.operator("DEQUANTIZE", ["p"], "f", {})
    model = imported(tmp_path, network.bytes("x", "f")).model
    assert [layer.name for layer in model.layers] == ["x", "y"]
    assert "; SOFTMAX at the end left out; DEQUANTIZE at the end left out; " in model.provenance


def test_layers_have_the_names_of_tensors_and_are_found_by_them(tmp_path: Path) -> None:
    network = Network()
    network.tensor("serving/x:0", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS, XZ)
    network.tensor("net/relu;net/conv", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS, XZ)
    network.tensor("net relu net conv", (1, HEIGHT * WIDTH * CHANNELS), "INT8", XS, XZ)
    network.operator("RELU", ["serving/x:0"], "net/relu;net/conv")
    network.operator("RESHAPE", ["net/relu;net/conv"], "net relu net conv",
                     {0: np.array([1, HEIGHT * WIDTH * CHANNELS], "<i4")})  # fmt: skip
    model = imported(tmp_path, network.bytes("serving/x:0", "net relu net conv"), class_names=())
    found = {name: tensor.layer for name, tensor in model.tensors.items()}
    assert found == {"serving/x:0": "serving_x_0", "net/relu;net/conv": "net_relu_net_conv",
                     "net relu net conv": "net_relu_net_conv_2"}  # fmt: skip
    assert [layer.name for layer in model.model.layers] == list(found.values())
    assert "net_relu_net_conv of 'net/relu;net/conv': 'net/relu;net/conv', net_relu_net" in model.model.provenance


def test_files_older_than_127_operators_are_read_alike(tmp_path: Path) -> None:
    new, old = (imported(tmp_path, simple().bytes("x", "y", old)).model for old in (False, True))
    assert fingerprint(new) == fingerprint(old)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(write: Callable[[Network], None], shape: tuple[int, ...] = (CHANNELS,), **grid: Any) -> bytes:
    network = Network()
    network.tensor("x", (1, HEIGHT, WIDTH, CHANNELS), "INT8", XS, XZ)
    network.tensor("axes", (2,), "INT32", values=[1, 2])
    network.tensor("w", (6, 1, 1, CHANNELS), "INT8", WEIGHT_SCALES[:6], values=integers(6, 1, 1, CHANNELS))
    network.tensor("y", (1, *shape), **{"type": "INT8", "scale": YS, "zero": YZ, **grid})
    write(network)
    return network.bytes("x", "y")


def one(kind: str, *inputs: str, options: Any = None, **more: Any) -> Callable[[Network], None]:
    return lambda network: network.operator(kind, ["x", *inputs], "y", options, **more)


def with_weights(**tensor: Any) -> Callable[[Network], None]:
    def write(network: Network) -> None:
        network.tensor("v", (6, 1, 1, CHANNELS), **{"type": "INT8", "scale": 0.1, **tensor})
        network.operator("CONV_2D", ["x", "v"], "y", CONV)

    return write


def with_bias(**tensor: Any) -> Callable[[Network], None]:
    def write(network: Network) -> None:
        network.tensor("b", **{"shape": (6,), "type": "INT32", "values": np.arange(6), **tensor})
        network.operator("CONV_2D", ["x", "w", "b"], "y", CONV)

    return write


CONV = {0: byte(VALID), 1: whole(1), 2: whole(1)}
SIX = (HEIGHT, WIDTH, 6)
REFUSED: dict[str, bytes] = {
    "SUB 'y': found the operator SUB; expected ADD, ": refused(one("SUB", "x")),
    "found the operator CUSTOM 'secret'": refused(one("CUSTOM")),
    "found the operator GELU": refused(one("GELU")),
    "MEAN 'y': found a tensor 'y' of type INT16; expected INT8 or UINT8": refused(one("MEAN", "axes"), type="INT16"),
    "found a tensor 'y' of type FLOAT32; expected INT8": refused(one("MEAN", "axes"), type="FLOAT32", scale=None),
    "2 scales and 2 zero points of an activation": refused(one("MEAN", "axes"), scale=[YS, YS]),
    "0 scales and 0 zero points of an activation": refused(one("MEAN", "axes"), scale=None),
    "zero point 300": refused(one("MEAN", "axes"), zero=300),
    "scale 0.0; expected a finite number above zero": refused(one("MEAN", "axes"), scale=0),
    "scale inf": refused(one("MEAN", "axes"), scale=np.inf),
    r"an output of shape \(1, 5\); expected \(1, 4\)": refused(one("MEAN", "axes"), (5,)),
    r"a mean over \[1, 3\]": refused(lambda n: (n.tensor("a", (2,), "INT32", values=[1, 3]),
                                                n.operator("MEAN", ["x", "a"], "y"))[1]),
    "input 'y' without data": refused(one("MEAN", "y")),
    "no input 1": refused(one("MEAN")),
    "found a constant as input 'w'": refused(lambda n: n.operator("MEAN", ["w", "axes"], "y")),
    "found input 'y', which nothing before it gives; expected neither a cycle": refused(
        lambda n: n.operator("MEAN", ["y", "axes"], "y")),
    "a tensor that is given twice": refused(lambda n: [n.operator("MEAN", ["x", "axes"], "y") for _ in range(2)][0]),
    "options of type 11; expected 27": refused(one("MEAN", "axes", options={}, options_type=11)),
    "weights less their zero point of -177 .. 77 .asymmetric weights.": refused(with_weights(
        zero=50, values=np.resize([-127, 127], (6, 1, 1, CHANNELS))), SIX),
    "tensor 'v': found constants of type INT4": refused(with_weights(
        type="INT4", values=np.ones((6, 1, 1, CHANNELS))), SIX),
    "weights FLOAT32": refused(with_weights(type="FLOAT32", scale=None, values=np.ones((6, 1, 1, 4))), SIX),
    "6 scales of the weights along axis 3": refused(with_weights(scale=[0.1] * 6, axis=3,
                                                                 values=integers(6, 1, 1, CHANNELS)), SIX),
    r"tensor 'v': found 24 bytes of data for \(6, 1, 1, 4\) of FLOAT32": refused(
        lambda n: (n.tensor("v", (6, 1, 1, 4), "INT8", 0.1, values=integers(6, 1, 1, 4)),
                   n.tensors[-1].update({1: byte(0)}), n.operator("CONV_2D", ["x", "v"], "y", CONV))[2], SIX),
    r"bias of shape \(5,\)": refused(with_bias(shape=(5,), values=np.arange(5)), SIX),
    "a bias INT8": refused(with_bias(type="INT8"), SIX),
    "a bias of another scale": refused(with_bias(scale=[0.1] * 6), SIX),
    "fused activation 4": refused(one("CONV_2D", "w", options={**CONV, 3: byte(4)}), SIX),
    "padding 7": refused(one("CONV_2D", "w", options={**CONV, 0: byte(7)}), SIX),
    r"windows of \(1, 1\) every \(0, 1\)": refused(one("CONV_2D", "w", options={**CONV, 2: whole(0)}), SIX),
    "every .-1, 1.": refused(one("CONV_2D", "w", options={**CONV, 2: whole(-1)}), SIX),
    "windows inside the padded image": refused(
        one("MAX_POOL_2D", options={**CONV, 3: whole(100), 4: whole(100)}), FULL, scale=XS, zero=XZ),
    "means onto another grid, of windows that count no padding": refused(
        one("AVERAGE_POOL_2D", options={0: byte(SAME), 1: whole(2), 2: whole(2), 3: whole(2), 4: whole(2)}), (4, 5, 4)),
    "a sum of shapes": refused(lambda n: (n.tensor("z", (1, 4), "INT8", YS, YZ), n.operator("MEAN", ["x", "axes"], "z"),
                                          n.operator("ADD", ["x", "z"], "y"))[2], FULL),
    "found a constant as input 'w'; expected a tensor that": refused(one("ADD", "w"), FULL),
    "axis 1; expected the last": refused(one("CONCATENATION", "x", options={0: whole(1)}), FULL),
    "shuffled weights": refused(one("FULLY_CONNECTED", "w", options={1: byte(1)}), (6,)),
    "input of shape .252,.; expected .4,.": refused(lambda n: (
        n.tensor("v", (6, 4), "INT8", 0.1, values=integers(6, 4)),
        n.operator("FULLY_CONNECTED", ["x", "v"], "y"))[1], (6,)),
    "beta 0.0; expected one above zero": refused(one("SOFTMAX", options={0: number("<f", 0.0)}), FULL),
    "a product of two tensors": refused(one("MUL", "x"), FULL),
    "shape .1, 7. announced as .1, 4.|shape .1, 7., announced": refused(one("RESHAPE", options={0: np.int32([1, 7])})),
    "that of height and width": refused(lambda n: (n.tensor("p", (4, 2), "INT32", values=[[1, 0]] + [[0, 0]] * 3),
                                                   n.operator("PAD", ["x", "p"], "y"))[1], FULL),
    "integers from 0 to 65536": refused(lambda n: (
        n.tensor("p", (4, 2), "INT32", values=[[0, 0], [0, -1], [0, 0], [0, 0]]),
        n.operator("PAD", ["x", "p"], "y"))[1], FULL),
    r"layer 'y' gives shape \(7, 9, 4\); expected scores of shape": refused(one("RELU"), FULL),
}  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_an_integer_model_cannot_hold_is_refused_in_one_line(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=pattern) as caught:
        imported(tmp_path, REFUSED[pattern])
    assert str(caught.value).startswith(f"{tmp_path / 'model.tflite'}: ") and "\n" not in str(caught.value)


def test_a_float_network_and_hybrid_kernels_are_refused(tmp_path: Path) -> None:
    network = Network()
    network.tensor("x", (1, HEIGHT, WIDTH, CHANNELS), "FLOAT32")
    network.tensor("w", (6, 1, 1, CHANNELS), "INT8", 0.1, values=integers(6, 1, 1, CHANNELS))
    network.tensor("y", (1, *SIX), "INT8", YS, YZ)
    network.operator("CONV_2D", ["x", "w"], "y", CONV)
    with pytest.raises(ModelFormatError, match="CONV_2D 'y': found input 'x' of type FLOAT32; expected INT8 or UINT8"):
        imported(tmp_path, network.bytes("x", "y"))


def test_a_worst_case_accumulator_outside_int32_is_refused(tmp_path: Path) -> None:
    network = Network()
    network.tensor("x", (1, 1, 1, 2), "INT8", XS, XZ)
    network.tensor("w", (2, 2), "INT8", 0.01, values=np.ones((2, 2)))
    network.tensor("b", (2,), "INT32", values=[2**31 - 1, 0])
    network.tensor("y", (1, 2), "INT8", YS, YZ)
    network.operator("FULLY_CONNECTED", ["x", "w", "b"], "y", {})
    with pytest.raises(ModelFormatError, match="layer 'y' has a worst-case accumulator of .* in channel 0"):
        imported(tmp_path, network.bytes("x", "y"))


# --- hostile files ----------------------------------------------------------------------------------------------------


def import_damaged(path: Path, contents: list[bytes], corruptions: int) -> None:
    for content in contents:
        for variant in damaged(content, corruptions):
            path.write_bytes(variant)
            try:
                tflite_import.integer_model(path)
            except IntsmoothError as problem:
                assert "\n" not in str(problem), str(problem)


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    names = ["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "PAD"]
    run_elsewhere(import_damaged, tmp_path / "model.tflite", [file_of(CASES[name]) for name in names], 150)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x18\0\0\0TFL3", b"\xff\xff\xff\xffTFL3" + bytes(50), bytes(80)])
def test_what_is_no_tflite_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="model.tflite: found"):
        imported(tmp_path, content)


def test_a_vector_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(simple().bytes("x", "y"))
    place = content.index(b"written by a test") - 4
    content[place : place + 4] = b"\xff\xff\xff\xff"  # nobody reads the description, so it does no harm
    imported(tmp_path, bytes(content))
    place = content.index(b"axes") - 4
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(ModelFormatError, match="found 2147483647 bytes at .* of a file of"):
        imported(tmp_path, bytes(content))


def test_a_field_outside_its_table_is_refused(tmp_path: Path) -> None:
    content = bytearray(simple().bytes("x", "y"))
    root = int.from_bytes(content[:4], "little")
    vtable = root - int.from_bytes(content[root : root + 4], "little", signed=True)
    for place in (2, 60000):
        content[vtable + 4 : vtable + 6] = place.to_bytes(2, "little")
        with pytest.raises(ModelFormatError, match=f"found a field at byte {place} of a table of"):
            imported(tmp_path, bytes(content))


def test_absurd_sizes_and_other_files_data_are_refused(tmp_path: Path) -> None:
    def with_change(change: Callable[[Network], None]) -> bytes:
        network = simple()
        change(network)
        return network.bytes("x", "y")

    for pattern, change in {
        "tensor 'x': found shape .1, 1073741824, 1073741824, 4.": lambda n: n.tensors[0].update(
            {0: np.int32([1, 2**30, 2**30, 4])}),
        "tensor 'x': found shape .1, -7": lambda n: n.tensors[0].update({0: np.int32([1, -7, 9, 4])}),
        "data outside the file": lambda n: n.tensors[1].update({10: number("<I", 1)}),
        "data behind the FlatBuffer": lambda n: n.buffers[1].update({1: number("<Q", 4096), 2: number("<Q", 8)}),
        "buffer 77": lambda n: n.tensors[1].update({2: number("<I", 77)}),
        "an operator of kind 9": lambda n: n.operators[0].update({0: number("<I", 9)}),
        "tensors .99, 1.": lambda n: n.operators[0].update({1: np.int32([99, 1])}),
        "a tensor 'y' of type number 99": lambda n: n.tensors[2].update({1: byte(99)}),
        f"{MAX_OPERATORS + 1} tables in a vector": lambda n: n.operators.extend([{}] * MAX_OPERATORS),
    }.items():  # fmt: skip
        with pytest.raises(ModelFormatError, match=pattern):
            imported(tmp_path, with_change(change))


def test_another_version_of_the_schema_and_more_graphs_are_refused(tmp_path: Path) -> None:
    for root, pattern in (({0: number("<I", 2)}, "version 2 of the schema; expected 3"),
                          ({0: number("<I", 3), 2: [{}, {}]}, "2 subgraphs; expected one")):  # fmt: skip
        with pytest.raises(ModelFormatError, match=pattern):
            imported(tmp_path, bytes(FlatBuffer(root, b"TFL3").content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.tflite: found no such file"):
        tflite_import.integer_model(tmp_path / "none.tflite")


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_program_writes_an_integer_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "in.tflite", tmp_path / "out.h5"
    path.write_bytes(simple(1 / 128, 3).bytes("x", "y"))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    arguments = [str(path), str(output), "--mean", "0.5", "--deviation", "1/2", "--rounding", "gemmlowp",
                 "--class-names", str(tmp_path / "names.txt")]  # fmt: skip
    assert tflite_import.main(arguments) == 0
    loaded = load_model(output).model
    assert loaded.class_names == ("a", "b", "c", "d")
    expected = tflite_import.integer_model(path, Normalization(Fraction(1, 2), Fraction(1, 2)), rounding="gemmlowp")
    assert fingerprint(loaded) == fingerprint(expected.model)
    assert loaded.layers[-1].requantization.rounding == "gemmlowp"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}: 3 layers, ") and lines[0].endswith(", images 7x9x4, 4 classes")
    assert tflite_import.main(arguments) == 1
    assert "found a file already; expected none, or the option --overwrite" in capsys.readouterr().err
    assert tflite_import.main([*arguments, "--overwrite"]) == 0


def test_the_program_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "in.tflite", tmp_path / "out.h5"
    path.write_bytes(simple().bytes("x", "y"))
    for arguments, expected in (
        ([str(tmp_path / "no"), str(output)], "no: found no such file"),
        ([str(path), str(tmp_path / "no" / "out.h5")], "found no folder"),
        ([str(path), str(output), "--mean", "0.3"], "steps of the input's grid"),
        ([str(path), str(output), "--input-scale", "1e-30"], "multiplier for a ratio near"),
    ):
        status = tflite_import.main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert (status, len(lines)) == (1, 1) and lines[0].startswith("error: ") and expected in lines[0], lines
    assert not output.exists()
    for wrong in (["--deviation", "0"], ["--input-scale", "1", "--deviation", "1"], ["--rounding", "up"]):
        with pytest.raises(SystemExit):
            tflite_import.main([str(path), str(output), *wrong])


def test_an_interruption_ends_with_a_line_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tflite_import, "parsed", interrupt)
    (tmp_path / "in.tflite").write_bytes(b"anything")
    assert tflite_import.main([str(tmp_path / "in.tflite"), str(tmp_path / "out.h5")]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
