"""The rules of other runtimes round as their formulas say, near every tie and at every extreme."""

import ast
import itertools
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import backend_oracle as oracle
import intsmooth_ref
from backend_parameters import (
    random_average,
    random_grid,
    random_product,
    random_sum,
    sum_beside_the_end_of_16_bits,
)
from intsmooth_ref.backends import accumulation, addition, near_ties, pooling, registry
from intsmooth_ref.backends import requantization as requantization_rules
from intsmooth_ref.backends.floating_point import fused_multiply_add, rounded_half_away, wrapped
from intsmooth_ref.backends.parameters import Average, Grid, Product
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.fixedpoint import INT32_MAX, INT32_MIN

PACKAGE = Path(intsmooth_ref.__file__).parent
DTYPES = ("uint8", "int8")


# --- the room ---------------------------------------------------------------------------------------------------------


def imported_rooms(path):
    """The rooms of the package that a module names in an import, wherever that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ["fixedpoint.py", "noise", "model", "engine", "certify"])
def test_nothing_that_decides_imports_the_arithmetic_of_other_runtimes(room):
    paths = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    assert paths and not [path for path in paths if "backends" in imported_rooms(path)]


def test_the_room_imports_only_numpy_the_standard_library_and_fixedpoint():
    allowed = {"", "__future__", "typing", "dataclasses", "functools", "numpy", "errors", "fixedpoint"}
    own = {path.stem for path in (PACKAGE / "backends").glob("*.py")}
    for path in (PACKAGE / "backends").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert modules <= allowed | own, path


# --- floats -----------------------------------------------------------------------------------------------------------


def random_float32(generator, count):
    """Finite ones of every sign and of exponents that meet in a sum."""
    words = generator.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    exponents = generator.integers(110, 145, count).astype(np.uint32)
    return ((words & np.uint32(0x807FFFFF)) | (exponents << np.uint32(23))).view(np.float32)


def exact(value):
    return Fraction(float(value))


def test_fused_multiply_add_rounds_once():
    generator = np.random.default_rng(0)
    a, b, c = (random_float32(generator, 4000) for _ in range(3))
    found = fused_multiply_add(a, b, c)
    expected = [oracle.f32(exact(x) * exact(y) + exact(z)) for x, y, z in zip(a, b, c)]
    assert list(map(exact, found)) == expected


def test_fused_multiply_add_rounds_once_where_a_float64_sum_in_between_would_round_twice():
    """a*b + c beside a tie of 24 bits by less than 53 bits show: the sum in float64 is that tie."""
    generator, count = np.random.default_rng(1), 4000
    c = (1 + generator.integers(0, 2**23, count) * 2.0**-23).astype(np.float32)
    a = np.float32(2.0**-12) * (1 + generator.integers(-3, 4, count) * 2.0**-23).astype(np.float32)
    b = np.float32(2.0**-12) * np.where(generator.integers(0, 2, count), 1 + 2.0**-23, 1 - 2.0**-24).astype(np.float32)
    b *= generator.choice(np.float32([1, -1]), count)
    tiny = np.float32(2.0**-45) * generator.choice(np.float32([1, -1]), count)
    for x, y, z in ((a, b, c), (tiny, tiny, c), (c, np.float32(2.0**-24) + tiny * 0, c), (tiny, c, c)):
        expected = [oracle.f32(exact(p) * exact(q) + exact(r)) for p, q, r in zip(x, y, z)]
        assert list(map(exact, fused_multiply_add(x, y, z))) == expected
    halfway = (c.astype(np.float64) + a.astype(np.float64) * b.astype(np.float64)).astype(np.float32)
    assert (halfway != fused_multiply_add(a, b, c)).any()


def test_cancelling_products_lose_nothing():
    a, b = np.float32([3, 1 + 2.0**-23, 0]), np.float32([5, 1 - 2.0**-24, 7])
    c = -(a * b)
    expected = [oracle.f32(exact(x) * exact(y) + exact(z)) for x, y, z in zip(a, b, c)]
    assert list(map(exact, fused_multiply_add(a, b, c))) == expected and expected[1] != 0


def test_halves_are_rounded_away_from_zero_and_what_is_next_to_them_is_not():
    """0.5 less a last bit plus 0.5 would round to 1 in float64."""
    below = np.nextafter(0.5, 0)
    values = np.array([0.5, -0.5, 1.5, -2.5, below, -below, 2.0**52 + 1, 0.0])
    assert rounded_half_away(values).tolist() == [1, -1, 2, -3, 0, 0, 2**52 + 1, 0]


@pytest.mark.parametrize("bits", [16, 32])
def test_integers_wrap(bits):
    ends = [2 ** (bits - 1) * factor + step for factor in range(-3, 4) for step in (-1, 0, 1)]
    wrap = oracle.int16 if bits == 16 else oracle.int32
    assert wrapped(np.array(ends), bits).tolist() == [wrap(value) for value in ends]


# --- requantization ---------------------------------------------------------------------------------------------------


def integer(mode, **options):
    return partial(requantization_rules.integer_rounding, mode=mode, **options)


PRODUCTS = {
    "gemmlowp": (integer("gemmlowp"), oracle.integer("gemmlowp")),
    "single_rounding": (integer("single_rounding"), oracle.integer("single_rounding")),
    "srdhm_half_up": (integer("srdhm_half_up"), oracle.integer("srdhm_half_up")),
    "srdhm_half_up, product in float32": (
        integer("srdhm_half_up", product_in_float32=True), oracle.integer("srdhm_half_up", True),
    ),
    "single_rounding, product in float32": (
        integer("single_rounding", product_in_float32=True), oracle.integer("single_rounding", True),
    ),
    "f64_half_away": (requantization_rules.f64_half_away, oracle.f64_half_away),
    "f32_rne": (requantization_rules.f32_rne, oracle.f32_rne),
    "f32_rne, reciprocal": (partial(requantization_rules.f32_rne, reciprocal=True), oracle.f32_rne_reciprocal),
    "f32_rne_zp_inside": (requantization_rules.f32_rne_zp_inside, oracle.f32_rne_zp_inside),
    "f32_rne_zp_inside, reciprocal": (
        partial(requantization_rules.f32_rne_zp_inside, reciprocal=True), oracle.f32_rne_zp_inside_reciprocal,
    ),
    "f64_rne_zp_inside": (requantization_rules.f64_rne_zp_inside, oracle.f64_rne_zp_inside),
    "fbgemm_float_bias": (requantization_rules.fbgemm_float_bias, oracle.fbgemm),
    "qnnpack": (requantization_rules.qnnpack, oracle.qnnpack),
    "onednn": (requantization_rules.onednn, oracle.onednn),
    "onednn, scales first": (partial(requantization_rules.onednn, scales_first=True), oracle.onednn_scales_first),
    "openvino_bias": (requantization_rules.openvino_bias, oracle.openvino_bias),
    "openvino_fold": (requantization_rules.openvino_fold, oracle.openvino_fold),
}  # fmt: skip

FLOAT_BIAS = ("fbgemm_float_bias", "qnnpack", "onednn", "onednn, scales first", "openvino_bias")


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_requantization_equals_its_formula_near_ties_and_at_extremes(name):
    rule, definition = PRODUCTS[name]
    generator = np.random.default_rng(7)
    for dtype, exponent, channels in itertools.product(DTYPES, (-23, -20, -9, 1), (1, 3)):
        p = random_product(generator, dtype, exponent, channels, biased=name in FLOAT_BIAS)
        rows = near_ties.accumulators(p, 24 if channels == 3 else 60, generator)
        found = rule(rows, p)
        for channel in range(channels):
            c = oracle.Channel(p, channel)
            expected = [definition(a, c) for a in rows[:, channel].tolist()]
            assert found[:, channel].tolist() == expected, (dtype, exponent, channel)


def test_the_rules_of_requantization_are_all_different():
    """So that near-ties tell which one a runtime computes."""
    generator, alike = np.random.default_rng(8), set(itertools.combinations(PRODUCTS, 2))
    for exponent, channels, biased in itertools.product((-23, -20), (1, 3), (False, True)):
        for _ in range(12):
            p = random_product(generator, "uint8", exponent, channels, biased)
            rows = near_ties.accumulators(p, 3000, generator)
            found = {name: rule(rows, p) for name, (rule, _) in PRODUCTS.items()}
            alike = {(one, other) for one, other in alike if (found[one] == found[other]).all()}
    assert not alike


def test_a_shift_of_openvino_that_is_nearly_zero_is_zero():
    """At this output scale, and a zero point of 0, rounding errors make it -7.6e-6, which ties would show."""
    output = Grid(np.float32(0.062222011387348175), 0, -128, 127)
    p = Product(np.float32(2.0**-10), np.float32([output.scale * 2.0**-9]), output)
    c = oracle.Channel(p, 0)
    assert oracle.scale_and_shift(*oracle.real_ends(c), c)[1] == Fraction(-1, 2**17)
    ties = near_ties.tie_centres(p, 0)[1:-1]
    accumulators = np.rint(ties[:, np.newaxis] + np.arange(-8, 9)).astype(np.int64).reshape(-1, 1)
    found = requantization_rules.openvino_bias(accumulators, p)[:, 0].tolist()
    assert found == [oracle.openvino_bias(a, c) for a in accumulators[:, 0].tolist()]


def test_shifts_of_openvino_that_are_nearly_one_are_one():
    """Weight scales that differ by a power of two give the same shift but for the last bit; 5e-5 is no difference."""
    generator, merged = np.random.default_rng(9), 0
    for _ in range(60):
        p = random_product(generator, "int8", -20, 3)
        c = oracle.Channel(p, 0)
        shifts = [oracle.scale_and_shift(
            *(oracle.f32(end / oracle.Channel(p, i).aw) for end in oracle.real_ends(c)), c)[1] for i in range(3)]
        merged += len(set(shifts)) > 1 and max(shifts) - min(shifts) < Fraction(5, 10**5)
        rows = near_ties.accumulators(p, 10, generator)
        for channel in range(3):
            expected = [oracle.openvino_fold(a, oracle.Channel(p, channel)) for a in rows[:, channel].tolist()]
            assert requantization_rules.openvino_fold(rows, p)[:, channel].tolist() == expected
    assert merged > 0


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, (2**30, 31)),
        (1.0, (2**30, 30)),
        (1 - 2.0**-33, (2**30, 30)),  # rounds up to 2**31, which is 2**30 of the next exponent
        (0.5 + 2.0**-32 + 2.0**-34, (2**30 + 1, 31)),
        (0.5 + 2.0**-32, (2**30 + 1, 31)),  # a tie, away from zero
        (2.0**-32, (2**30, 62)),
        (2.0**-33, (0, 31)),  # too small
    ],
)
def test_quantized_multipliers_worked_by_hand(ratio, expected):
    multiplier, shift = requantization_rules.quantized_multiplier(np.array([ratio]))
    assert (multiplier[0], shift[0]) == expected


def test_a_left_shift_wraps_in_int32():
    """A ratio of 4 is 2**30 at shift 28: a left shift by 3, then half of it. 2**29 << 3 is 0 modulo 2**32."""
    p = Product(np.float32(4), np.float32([1]), Grid(np.float32(1), 0, -128, 127))
    found = requantization_rules.integer_rounding(np.array([[2**29 + 1], [31], [-7]]), p, "gemmlowp")
    assert found.tolist() == [[4], [124], [-28]]


# --- addition ---------------------------------------------------------------------------------------------------------

SUMS = {
    "tflite_ls20": (addition.tflite_ls20, oracle.tflite()),
    "tflite_ls20, wrap16": (partial(addition.tflite_ls20, wrap16=True), oracle.tflite(wrap16=True)),
    "xnn21": (addition.xnn21, oracle.fixed_point(21, oracle.half_up)),
    "fix22": (addition.fix22, oracle.fixed_point(22, oracle.half_away)),
    "ort_fma": (addition.ort_fma, oracle.ort_fma),
    "ort_sse": (addition.ort_sse, oracle.ort_sse),
    "aten": (partial(addition.aten, lanes=1), oracle.aten_in_vectors),
    "aten, at the end": (partial(addition.aten, lanes=1 << 20), oracle.aten_at_the_end),
    "openvino_add": (addition.openvino_add, oracle.openvino_add),
}


def nearest_to_ties(p, a, b, count, generator):
    """Of all pairs those whose exact sum comes nearest to a tie, and some others."""
    real = sum(float(g.scale) * (x - g.zero_point) for x, g in ((a, p.first), (b, p.second))) / float(p.output.scale)
    order = np.argsort(np.abs(real - np.floor(real) - 0.5))
    return np.concatenate([order[:count], generator.choice(len(a), count)])


@pytest.mark.parametrize("name", SUMS)
def test_each_addition_equals_its_formula_near_ties_and_at_extremes(name):
    rule, definition = SUMS[name]
    generator = np.random.default_rng(3)
    for dtype in DTYPES * 6:
        p = random_sum(generator, dtype, smallest=-9)
        a, b = near_ties.pairs(p)
        chosen = np.concatenate([nearest_to_ties(p, a, b, 100, generator), [0, 255, -256, -1]])
        found = rule(a[chosen], b[chosen], p).tolist()
        assert found == [definition(x, y, p) for x, y in zip(a[chosen].tolist(), b[chosen].tolist())]


def test_the_zero_point_too_is_added_in_16_bits():
    p = sum_beside_the_end_of_16_bits()
    found = addition.tflite_ls20(np.array([127, 127, 0]), np.array([127, 0, 0]), p, wrap16=True)
    expected = [oracle.tflite(wrap16=True)(*pair, p) for pair in ((127, 127), (127, 0), (0, 0))]
    assert found.tolist() == expected == [-128, 127, 127]
    assert addition.tflite_ls20(np.array([127]), np.array([127]), p).tolist() == [127]


def test_the_rules_of_addition_are_all_different():
    generator, alike = np.random.default_rng(4), set(itertools.combinations(SUMS, 2))
    for number in range(80):
        p = random_sum(generator, DTYPES[number % 2], smallest=-9)
        a, b = near_ties.pairs(p)
        found = {name: rule(a, b, p) for name, (rule, _) in SUMS.items() if name in itertools.chain(*alike)}
        alike = {(one, other) for one, other in alike if (found[one] == found[other]).all()}
        if not alike:
            break
    assert not alike


def test_vectors_and_what_is_left_of_them_are_added_by_their_own_rules():
    p = random_sum(np.random.default_rng(5), "uint8")
    a, b = (each[:200] for each in near_ties.pairs(p))
    inside, end = addition.aten(a, b, p, lanes=1), addition.aten(a, b, p, lanes=1000)
    assert addition.aten(a, b, p).tolist() == [*inside[:192], *end[192:]]


# --- averages ---------------------------------------------------------------------------------------------------------

AVERAGES = {
    "cdiv_half_away": (pooling.cdiv_half_away, oracle.cdiv_half_away),
    "mean_or_sum": (pooling.mean_or_sum, oracle.mean_or_sum),
    "mean_opt": (partial(pooling.mean_opt, lanes=1), oracle.mean_opt("srdhm_half_up")),
    "mean_opt, at the end": (partial(pooling.mean_opt, lanes=1 << 20), oracle.mean_opt("gemmlowp")),
    "ort_gap": (pooling.ort_gap, oracle.ort_gap),
    "ort_avg": (pooling.ort_avg, oracle.ort_avg),
    "xnn_mean": (pooling.xnn_mean, oracle.xnn_mean),
    "aten_pool": (pooling.aten_pool, oracle.aten_pool(inside=True)),
    "aten_pool, in vectors": (partial(pooling.aten_pool, lanes=1), oracle.aten_pool(inside=False)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_each_average_equals_its_formula_for_every_sum(name):
    rule, definition = AVERAGES[name]
    generator = np.random.default_rng(6)
    for dtype, count in itertools.product(DTYPES, (1, 2, 4, 6, 49)):
        p = random_average(generator, dtype, keeps_grid=name == "cdiv_half_away")
        x = near_ties.windows(p.input, count, 5, generator)
        x = x[generator.choice(len(x), min(len(x), 30), replace=False)]
        expected = [[definition(x[i, :, c].tolist(), p) for c in range(5)] for i in range(len(x))]
        assert rule(x, p).tolist() == expected, (dtype, count)


@pytest.mark.parametrize("rule", [pooling.mean_opt, pooling.aten_pool])
def test_channels_that_fill_no_vector_are_averaged_by_their_own_rule(rule):
    """A quarter of the sums of four is a tie; a zero point of 3 makes its parity count."""
    generator, grid = np.random.default_rng(2), Grid(np.float32(1), 3, -128, 127)
    p, x = Average(grid, grid), near_ties.windows(grid, 4, 37, generator)
    found, alone = rule(x, p, lanes=16), rule(x, p, lanes=1000)
    assert (found[:, :32] == rule(x, p, lanes=1)[:, :32]).all() and (found[:, 32:] == alone[:, 32:]).all()
    assert (found[:, :32] != alone[:, :32]).any()


# --- accumulators -----------------------------------------------------------------------------------------------------


def test_pairs_saturate_and_sums_wrap():
    x, weights = np.array([[255, 255, 255], [128, 128, 7]]), np.array([[127, -128], [127, -128], [127, -128]])
    assert accumulation.exact_wrap32(x, weights).tolist() == [[97155, -97920], [33401, -33664]]
    expected = [[32767 + 32385, -32768 - 32640], [32512 + 889, -32768 - 896]]
    assert accumulation.pair_saturating_16(x, weights).tolist() == expected
    huge = np.full((1, 3), 2**31 - 1), np.array([[1], [1], [0]])
    assert accumulation.exact_wrap32(*huge).tolist() == [[-2]]


def test_weights_of_seven_bits_never_saturate_in_pairs():
    generator = np.random.default_rng(0)
    x, weights = generator.integers(0, 256, (20, 64)), generator.integers(-63, 64, (64, 20))
    assert (accumulation.pair_saturating_16(x, weights) == x @ weights).all()


# --- near-ties and the registry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulators_come_near_every_tie_and_reach_both_ends(dtype):
    p = random_product(np.random.default_rng(1), dtype, -20, 2, biased=True)
    found = near_ties.accumulators(p, 100_000, np.random.default_rng(0))
    assert found.dtype == np.int64 and found.shape == (100_000, 2)
    for channel in range(2):
        assert {INT32_MIN, INT32_MAX, 0, -1, 1, 2**24, 2**24 + 1, -(2**24) - 1} <= set(found[:, channel].tolist())
        c = oracle.Channel(p, channel)
        for q in range(p.output.minimum - 1, p.output.maximum + 1):
            tie = ((q + oracle.HALF - c.zp) * c.ys - c.bias) / (c.xs * c.ws)
            distance = np.abs(found[:, channel] - float(tie))
            assert (distance <= 1).any() and (distance < 4).sum() >= 20, q


def test_windows_have_every_sum_and_no_value_out_of_range():
    grid = random_grid(np.random.default_rng(0), "int8")
    for count, channels in ((1, 3), (6, 16), (7, 5)):
        x = near_ties.windows(grid, count, channels, np.random.default_rng(1))
        assert x.shape[1:] == (count, channels) and x.min() == -128 and x.max() == 127
        assert set(x.sum(axis=1).flat) == set(range(-128 * count, 127 * count + 1))


def test_every_rule_is_registered_with_its_runtime_and_formula():
    functions = {getattr(mode.rule, "func", mode.rule) for mode in registry.MODES}
    named = {rule for rules in (PRODUCTS, SUMS, AVERAGES) for rule, _ in rules.values()}
    rules = {getattr(rule, "func", rule) for rule in named}
    unclaimed = {requantization_rules.f32_rne_zp_inside}  # of no runtime that was measured
    assert functions == rules - unclaimed | {accumulation.exact_wrap32, accumulation.pair_saturating_16}
    keys = [(mode.name, mode.backend, mode.where) for mode in registry.MODES]
    assert len(set(keys)) == len(keys)
    for mode in registry.MODES:
        assert set(mode.operators) <= set(registry.OPERATORS) and mode.version and len(mode.source) > 20


def test_modes_are_found_by_operator_and_runtime():
    assert [mode.name for mode in registry.modes_of("add", "ONNX Runtime")] == ["ort_fma", "ort_sse", "fix22"]
    assert {mode.backend for mode in registry.modes_of("conv")} == {
        "ONNX Runtime", "onnx.reference", "LiteRT", "PyTorch", "OpenVINO",
    }  # fmt: skip
    with pytest.raises(ParameterError, match="operator 'convolution': expected one of conv, linear, add"):
        registry.modes_of("convolution")
