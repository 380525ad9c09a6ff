"""The rules of other runtimes hold of the runtimes themselves: no element differs, near ties and at extremes.

Each peer is a generator of pairs: what the runtime computed, and what the rule gives. Where a runtime is not installed
its tests are skipped; where another version than the one measured computes otherwise, they are expected failures.
"""

import os
import platform
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import litert_models
from backend_parameters import (
    RANGES,
    random_average,
    random_grid,
    random_product,
    random_sum,
    sum_beside_the_end_of_16_bits,
)
from intsmooth_ref.backends import accumulation, addition, near_ties, pooling, registry, requantization
from intsmooth_ref.backends.parameters import Average, Grid, Product
from litert_models import Tensor

#: Ratios of accumulators to outputs: from those where float32 cannot hold an accumulator to those of small networks.
EXPONENTS = (-23, -22, -18, -10)


def processor_has(*flags):
    """Whether this is an x86 processor with these instructions, by what Linux says of it."""
    try:
        with open("/proc/cpuinfo") as file:
            line = next(line for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return platform.machine() == "x86_64" and set(flags) <= set(line.split())


def needs(*flags):
    if not processor_has(*flags):
        pytest.skip(f"needs an x86 processor with {', '.join(flags)}")


def flat(value):
    return np.asarray(value, np.int64)


# --- products ---------------------------------------------------------------------------------------------------------
# An accumulator is the bias of a channel that reads nothing, for runtimes with integer biases; elsewhere a row of the
# input times 63, 63, ..., 1: weights so small saturate on no processor.

DEPTH, WEIGHT, INPUT_ZERO = 512, 63, 120


def weights_of(channels):
    """Int8 `(channels, DEPTH)`, by which `rows_for` reaches any accumulator."""
    weights = np.full((channels, DEPTH), WEIGHT, np.int8)
    weights[:, -1] = 1
    return weights


REACHABLE = (DEPTH - 1) * WEIGHT * 115


def rows_for(accumulators):
    """Uint8 `(N, DEPTH)` of zero point `INPUT_ZERO` with these accumulators `(N,)`."""
    quotient, rest = np.divmod(accumulators, WEIGHT)
    each, left = np.divmod(quotient, DEPTH - 1)
    rows = np.concatenate([each[:, None] + (np.arange(DEPTH - 1) < left[:, None]), rest[:, None]], axis=1) + INPUT_ZERO
    assert rows.min() >= 0 and rows.max() <= 255
    return rows


def targeted(p, count, generator, channels):
    """Inputs `(count, DEPTH)` and accumulators `(count, channels)`; each row comes near a tie of one channel."""
    wanted = near_ties.accumulators(p, count, generator, -REACHABLE, REACHABLE)
    rows = rows_for(wanted[np.arange(count), np.arange(count) % wanted.shape[1]])
    return rows, (rows - INPUT_ZERO) @ weights_of(channels).T.astype(np.int64)


def by_bias(p, count, generator):
    """A product with as many channels as accumulators, and these: its weight scales repeat."""
    wanted = near_ties.accumulators(p, -(-count // len(p.weight_scale)), generator).reshape(-1)
    scales = p.weight_scale
    if len(scales) > 1:
        scales = np.tile(scales, len(wanted) // len(scales))
    return Product(p.input_scale, scales, p.output), wanted


def onnx_model(nodes, inputs, outputs, constants):
    onnx = pytest.importorskip("onnx")
    types = {np.dtype(name): getattr(onnx.TensorProto, name.upper()) for name in ("uint8", "int8", "int32")}
    made = [
        onnx.helper.make_node(kind, takes, gives, domain=domain, **options)
        for kind, takes, gives, domain, options in nodes
    ]
    describe = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        made, "graph",
        [describe(name, types[array.dtype], array.shape) for name, array in inputs.items()],
        [describe(name, types[np.dtype(dtype)], None) for name, dtype in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def by_onnxruntime(model, inputs):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return flat(session.run(None, inputs)[0])


def by_reference_evaluator(model, inputs):
    reference = pytest.importorskip("onnx.reference")
    return flat(reference.ReferenceEvaluator(model).run(None, inputs)[0])


def onnx_conv(run, rule):
    generator = np.random.default_rng(0)
    for dtype in RANGES:
        for exponent in EXPONENTS:
            for channels in (1, 4):
                p, wanted = by_bias(random_product(generator, dtype, exponent, channels), 8192, generator)
                zero = np.zeros(p.weight_scale.shape if channels > 1 else (), np.int8)
                scales = p.weight_scale if channels > 1 else p.weight_scale[0]
                inputs = {"x": np.zeros((1, 1, 1, 1), dtype)}
                constants = {
                    "xs": p.input_scale, "xz": np.zeros((), dtype), "w": np.zeros((len(wanted), 1, 1, 1), np.int8),
                    "ws": scales, "wz": zero, "ys": p.output.scale, "yz": np.array(p.output.zero_point, dtype),
                    "b": wanted.astype(np.int32),
                }  # fmt: skip
                node = ("QLinearConv", ["x", *constants], ["y"], "", {})
                yield run(onnx_model([node], inputs, {"y": dtype}, constants), inputs).reshape(-1), rule(wanted, p)


def onnx_matmul(rule):
    generator = np.random.default_rng(1)
    for exponent in (-17, -14, -10):
        for channels in (1, 3):
            p = random_product(generator, "uint8", exponent, channels)
            rows, accumulators = targeted(p, 8000, generator, 3)
            inputs = {"a": rows.astype(np.uint8)}
            constants = {
                "as": p.input_scale, "az": np.uint8(INPUT_ZERO), "b": np.ascontiguousarray(weights_of(3).T),
                "bs": p.weight_scale if channels > 1 else p.weight_scale[0],
                "bz": np.zeros(3 if channels > 1 else (), np.int8), "ys": p.output.scale,
                "yz": np.uint8(p.output.zero_point),
            }  # fmt: skip
            node = ("QLinearMatMul", ["a", *constants], ["y"], "", {})
            yield by_onnxruntime(onnx_model([node], inputs, {"y": "uint8"}, constants), inputs), rule(accumulators, p)


def litert_product(operator, kernels, by_channel, rule, rows=1):
    generator, zero = np.random.default_rng(2), 3
    window = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": 1}
    for exponent in EXPONENTS:
        for _ in range(4):
            p, wanted = by_bias(random_product(generator, "int8", exponent, 4 if by_channel else 1), 8192, generator)
            count, scales, (first, deep) = len(wanted), p.weight_scale, ((rows,), 4)
            shape, axis, options = (count, 4), 0, ("FullyConnectedOptions", {})
            if operator == "CONV_2D":
                first, shape, options = (1, 1, 1), (count, 1, 1, 4), ("Conv2DOptions", window)
            elif operator == "DEPTHWISE_CONV_2D":
                first, deep, shape, axis = (1, 1, 1), count, (1, 1, 1, count), 3
                scales = np.broadcast_to(scales, count)
                options = ("DepthwiseConv2DOptions", {**window, "depthMultiplier": 1})
            model = litert_models.network(operator, 3 if axis or "CONV" in operator else 5, options, [
                Tensor((*first, deep), "int8", p.input_scale, zero),
                Tensor(shape, "int8", scales, 0, axis, np.zeros(shape)),
                Tensor((count,), "int32", p.input_scale * scales, data=wanted),
                Tensor((*first, count), "int8", p.output.scale, p.output.zero_point),
            ])  # fmt: skip
            found = litert_models.run(model, kernels, np.full((*first, deep), zero)).reshape(-1, count)
            yield found, np.broadcast_to(rule(wanted, p), found.shape)


def torch_with(engine):
    torch = pytest.importorskip("torch")
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"PyTorch was built without {engine}")
    torch.set_num_threads(1)
    return torch


def quantized(torch, array, scale, zero_point):
    integers = torch.from_numpy(np.ascontiguousarray(array))
    return torch._make_per_tensor_quantized_tensor(integers, float(scale), zero_point)


def quantized_weights(torch, weights, scales):
    if len(scales) == 1:
        return quantized(torch, weights, scales[0], 0)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    scales = torch.tensor(scales.astype(np.float64))
    return torch._make_per_channel_quantized_tensor(torch.from_numpy(weights), scales, zeros, 0)


def torch_product(operator, engine, rule, monkeypatch):
    torch = torch_with(engine)
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    generator, count, ops = np.random.default_rng(3), 4000, torch.ops.quantized
    for exponent in (-17, -15, -12, -8):
        for channels in (1, 4):
            p = random_product(generator, "uint8", exponent, channels)
            bias = (generator.normal(0, 30, 4) * float(p.output.scale)).astype(np.float32)
            p = Product(p.input_scale, p.weight_scale, p.output, bias)
            x, accumulators = targeted(p, count, generator, 4)
            bias, output = torch.from_numpy(bias), (float(p.output.scale), p.output.zero_point)
            if operator == "linear":
                packed = ops.linear_prepack(quantized_weights(torch, weights_of(4), p.weight_scale), bias)
                found = ops.linear(quantized(torch, x.astype(np.uint8), p.input_scale, INPUT_ZERO), packed, *output)
            else:
                weights = quantized_weights(torch, weights_of(4).reshape(4, DEPTH, 1, 1), p.weight_scale)
                packed = ops.conv2d_prepack(weights, bias, [1, 1], [0, 0], [1, 1], 1)
                image = quantized(torch, x.T.reshape(1, DEPTH, 50, -1).astype(np.uint8), p.input_scale, INPUT_ZERO)
                image = image.contiguous(memory_format=torch.channels_last)
                found = ops.conv2d(image, packed, *output).permute(0, 2, 3, 1)
            yield flat(found.int_repr().numpy()).reshape(count, 4), rule(accumulators, p)


def by_openvino(model, inputs, tmp_path, operator):
    """The output, where the operator runs in 8 bits."""
    openvino = pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    onnx.save(model, tmp_path / "model.onnx")
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", settings)
    kinds = {
        str(node.get_rt_info()["layerType"].astype(str)): str(node.get_rt_info()["primitiveType"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
    }
    assert kinds.get(operator, "missing").lower().endswith("i8"), kinds
    return flat(compiled(inputs)[0])


def dequantize(tensor, scale, zero, output, **rest):
    return ("DequantizeLinear", [tensor, scale, zero], [output], "", rest)


def openvino_conv(biased, rule, tmp_path):
    needs("avx512f", "avx512_vnni")
    generator, count = np.random.default_rng(4), 2500
    for dtype in RANGES:
        input_zero, shift = (INPUT_ZERO, 0) if dtype == "uint8" else (0, INPUT_ZERO)
        for exponent in (-17, -15, -12):
            for channels in (1, 4):
                p = random_product(generator, dtype, exponent, channels)
                if biased and dtype == "uint8" and p.output.zero_point == 0:
                    continue  # see the rule: not all of these are explained
                bias = np.float32(p.product_scale * generator.integers(-5000, 5000, 4).astype(np.float32))
                p = Product(p.input_scale, p.weight_scale, p.output, bias if biased else np.zeros(1, np.float32))
                rows, _ = targeted(p, count, generator, 4)
                x = np.clip(rows - shift, *RANGES[dtype])
                accumulators = (x - input_zero) @ weights_of(4).T.astype(np.int64)
                inputs = {"x": x.T.reshape(1, DEPTH, 50, -1).astype(dtype)}
                scales = p.weight_scale if channels > 1 else p.weight_scale[0]
                constants = {
                    "xs": p.input_scale, "xz": np.array(input_zero, dtype), "w": weights_of(4).reshape(4, DEPTH, 1, 1),
                    "ws": scales, "wz": np.zeros(4 if channels > 1 else (), np.int8), "ys": p.output.scale,
                    "yz": np.array(p.output.zero_point, dtype), **({"b": p.bias} if biased else {}),
                }  # fmt: skip
                nodes = [
                    dequantize("x", "xs", "xz", "xr"), dequantize("w", "ws", "wz", "wr", axis=0),
                    ("Conv", ["xr", "wr", *(["b"] if biased else [])], ["c"], "", {}),
                    ("QuantizeLinear", ["c", "ys", "yz"], ["y"], "", {}),
                ]  # fmt: skip
                model = onnx_model(nodes, inputs, {"y": dtype}, constants)
                found = by_openvino(model, inputs, tmp_path, "Convolution")
                yield found.transpose(0, 2, 3, 1).reshape(count, 4), rule(accumulators, p)


# --- additions: every pair of values ----------------------------------------------------------------------------------


def constants_of(p, dtype):
    """Scales and zero points of the inputs a and b and the output c."""
    return {
        name + letter: value for letter, grid in zip("abc", (p.first, p.second, p.output))
        for name, value in (("scale_", grid.scale), ("zero_", np.array(grid.zero_point, dtype)))
    }  # fmt: skip


def onnx_add(rule):
    needs("avx2", "fma")
    generator = np.random.default_rng(5)
    for dtype in [*RANGES] * 10:
        p = random_sum(generator, dtype)
        a, b = near_ties.pairs(p)
        inputs = {"a": a.astype(dtype), "b": b.astype(dtype)}
        constants = constants_of(p, dtype)
        takes = ["a", "scale_a", "zero_a", "b", "scale_b", "zero_b", "scale_c", "zero_c"]
        node = ("QLinearAdd", takes, ["c"], "com.microsoft", {})
        yield by_onnxruntime(onnx_model([node], inputs, {"c": dtype}, constants), inputs), rule(a, b, p)


def litert_add(kernels, rule):
    generator = np.random.default_rng(6)
    smallest = -3 if kernels == "XNNPACK" else -8
    sums = [random_sum(generator, "int8", smallest) for _ in range(20)]
    if kernels == "optimized":
        sums.append(sum_beside_the_end_of_16_bits())
    for p in sums:
        a, b = near_ties.pairs(p)
        model = litert_models.network("ADD", 2, ("AddOptions", {}), [
            Tensor((1, 256, 256, 1), "int8", grid.scale, grid.zero_point) for grid in (p.first, p.second, p.output)
        ])  # fmt: skip
        found = litert_models.run(model, kernels, *(each.reshape(1, 256, 256, 1) for each in (a, b)))
        yield found.reshape(-1), rule(a, b, p)


def torch_add(engine, dtypes, rule, monkeypatch):
    torch = torch_with(engine)
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    if rule is addition.aten:
        lanes = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability())
        if lanes is None:
            pytest.skip("the vectors of this processor were not measured")
        rule = partial(addition.aten, lanes=lanes)
    generator = np.random.default_rng(7)
    for number in range(16):
        p = random_sum(generator, dtypes[number % len(dtypes)])
        a, b = (each[: len(each) - 3 * number] for each in near_ties.pairs(p))
        a_, b_ = (quantized(torch, each.astype(dtypes[number % len(dtypes)]), grid.scale, grid.zero_point)
                  for each, grid in ((a, p.first), (b, p.second)))
        found = torch.ops.quantized.add(a_, b_, float(p.output.scale), p.output.zero_point)
        yield flat(found.int_repr().numpy()), rule(a, b, p)


# --- averages: every sum ----------------------------------------------------------------------------------------------


def images_of(x, height, width):
    """Windows `(N, n, C)` as images `(N, H, W, C)`."""
    return x.reshape(len(x), height, width, x.shape[-1])


def onnx_pool(operator, rule):
    generator = np.random.default_rng(8)
    for number in range(12):
        dtype, (height, width) = ["uint8", "int8"][number % 2], [(7, 7), (2, 3), (8, 4), (5, 1)][number % 4]
        p, channels = random_average(generator, dtype), 40
        x = near_ties.windows(p.input, height * width, channels, generator)
        for _ in range(3 if operator == "QLinearAveragePool" else 8):
            x = np.concatenate([x, near_ties.windows(p.input, height * width, channels, generator)])
        images, options = images_of(x, height, width), {}
        if operator == "QLinearAveragePool":  # two windows an image: with one alone the rule is the other operator's
            images, options = np.concatenate([images, images[::-1]], axis=1), {"kernel_shape": [height, width]}
            options["strides"], x = [height, 1], np.stack([x, x[::-1]], axis=1)
        inputs = {"x": images.transpose(0, 3, 1, 2).astype(dtype)}
        constants = {
            "xs": p.input.scale, "xz": np.array(p.input.zero_point, dtype), "ys": p.output.scale,
            "yz": np.array(p.output.zero_point, dtype),
        }  # fmt: skip
        node = (operator, ["x", *constants], ["y"], "com.microsoft", options)
        found = by_onnxruntime(onnx_model([node], inputs, {"y": dtype}, constants), inputs)
        expected = rule(x, p)
        yield np.moveaxis(found, 1, -1).reshape(expected.shape), expected


def litert_mean(kernels, rule):
    generator = np.random.default_rng(9)
    for number in range(24):
        height, width, channels = [(7, 7), (2, 3), (4, 4), (5, 1)][number % 4] + ([64, 40, 5][number % 3],)
        p = random_average(generator, "int8")
        x = np.concatenate([near_ties.windows(p.input, height * width, channels, generator) for _ in range(4)])
        images = images_of(x, height, width)
        model = litert_models.network("MEAN", 2, ("ReducerOptions", {"keepDims": True}), [
            Tensor(images.shape, "int8", p.input.scale, p.input.zero_point),
            Tensor((2,), "int32", data=[1, 2]),
            Tensor((len(x), 1, 1, channels), "int8", p.output.scale, p.output.zero_point),
        ])  # fmt: skip
        yield litert_models.run(model, kernels, images).reshape(len(x), channels), rule(x, p)


def litert_average_pool(kernels, rule):
    generator = np.random.default_rng(10)
    for number in range(16):
        height, width, channels = [(7, 7), (2, 3), (4, 4), (5, 1)][number % 4] + ([64, 40, 5][number % 3],)
        p = random_average(generator, "int8", keeps_grid=True)
        x = np.concatenate([near_ties.windows(p.input, height * width, channels, generator) for _ in range(4)])
        options = {"padding": 1, "strideH": 1, "strideW": 1, "filterHeight": height, "filterWidth": width}
        model = litert_models.network("AVERAGE_POOL_2D", 2, ("Pool2DOptions", options), [
            Tensor((len(x), height, width, channels), "int8", p.input.scale, p.input.zero_point),
            Tensor((len(x), 1, 1, channels), "int8", p.input.scale, p.input.zero_point),
        ])  # fmt: skip
        found = litert_models.run(model, kernels, images_of(x, height, width))
        yield found.reshape(len(x), channels), rule(x, p)


def torch_pool(channels_last, rule, monkeypatch):
    torch = torch_with("fbgemm")
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")  # qnnpack has pools of its own
    if channels_last and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("the vectors of this processor were not measured")
    generator = np.random.default_rng(11)
    for number in range(24):
        dtype, channels = ["uint8", "int8"][number % 2], [64, 40, 5][number % 3]
        height, width = [(7, 7), (2, 3), (4, 4), (5, 1)][number % 4]
        grid = random_grid(generator, dtype)
        x = np.concatenate([near_ties.windows(grid, height * width, channels, generator) for _ in range(4)])
        images = images_of(x, height, width).transpose(0, 3, 1, 2).astype(dtype)
        images = quantized(torch, images, grid.scale, grid.zero_point)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        found = torch.nn.functional.avg_pool2d(images, (height, width), 1)
        yield flat(found.int_repr().numpy()).reshape(len(x), channels), rule(x, Average(grid, grid))


# --- accumulators -----------------------------------------------------------------------------------------------------


def onnx_accumulators(rule):
    needs("avx512_vnni")
    generator = np.random.default_rng(12)
    for _ in range(4):
        x = generator.choice(np.array([0, 1, 254, 255]), (200, 301)).astype(np.uint8)
        weights = generator.choice(np.array([-128, -127, 126, 127]), (301, 200)).astype(np.int8)
        inputs = {"a": x, "b": weights}
        node = ("MatMulInteger", ["a", "b"], ["y"], "", {})
        found = by_onnxruntime(onnx_model([node], inputs, {"y": "int32"}, {}), inputs)
        yield found, rule(x.astype(np.int64), weights.astype(np.int64))


def torch_extremes(operator, engine, rule, accumulate, monkeypatch):
    """Products of inputs and weights so large that adjacent ones leave 16 bits."""
    torch = torch_with(engine)
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    generator, count, depth, ops = np.random.default_rng(13), 2000, 64, torch.ops.quantized
    p = Product(np.float32(0.02), np.float32([0.01]), Grid(np.float32(0.8), 128, 0, 255))
    for _ in range(3):
        x = generator.choice(np.array([0, 1, 200, 255]), (count, depth))
        weights = generator.choice(np.array([-128, -127, 90, 127]), (16, depth)).astype(np.int8)
        output, bias = (float(p.output.scale), p.output.zero_point), torch.zeros(16)
        if operator == "linear":
            packed = ops.linear_prepack(quantized_weights(torch, weights, p.weight_scale), bias)
            found = ops.linear(quantized(torch, x.astype(np.uint8), p.input_scale, 0), packed, *output)
        else:
            packed = quantized_weights(torch, weights.reshape(16, depth, 1, 1), p.weight_scale)
            packed = ops.conv2d_prepack(packed, bias, [1, 1], [0, 0], [1, 1], 1)
            image = quantized(torch, x.T.reshape(1, depth, 50, -1).astype(np.uint8), p.input_scale, 0)
            image = image.contiguous(memory_format=torch.channels_last)
            found = ops.conv2d(image, packed, *output).permute(0, 2, 3, 1)
        accumulators = accumulate(x, weights.T.astype(np.int64))
        yield flat(found.int_repr().numpy()).reshape(count, 16), rule(accumulators, p)


# --- the tests --------------------------------------------------------------------------------------------------------

integer = requantization.integer_rounding
up = partial(integer, mode="srdhm_half_up")
up_in_float32 = partial(integer, mode="srdhm_half_up", product_in_float32=True)
litert = partial(partial, litert_product)

PEERS = {
    ("ONNX Runtime", "QLinearConv", "f32_rne"): partial(onnx_conv, by_onnxruntime, requantization.f32_rne),
    ("ONNX Runtime", "QLinearMatMul", "f32_rne"): partial(onnx_matmul, requantization.f32_rne),
    ("ONNX Runtime", "QLinearAdd", "ort_fma"): partial(onnx_add, addition.ort_fma),
    ("ONNX Runtime", "QLinearAveragePool", "ort_avg"): partial(onnx_pool, "QLinearAveragePool", pooling.ort_avg),
    ("ONNX Runtime", "QLinearGlobalAveragePool", "ort_gap"): partial(
        onnx_pool, "QLinearGlobalAveragePool", pooling.ort_gap),
    ("ONNX Runtime", "MatMulInteger", "exact_wrap32"): partial(onnx_accumulators, accumulation.exact_wrap32),
    ("onnx.reference", "QLinearConv", "f64_rne_zp_inside"): partial(
        onnx_conv, by_reference_evaluator, requantization.f64_rne_zp_inside),
    **{("LiteRT", f"{operator}, {kernels}, {'channels' if by_channel else 'tensor'}", name): litert(
        operator, kernels, by_channel, rule)
       for operator in ("CONV_2D", "DEPTHWISE_CONV_2D") for by_channel in (False, True)
       for kernels, name, rule in (("reference", "gemmlowp", partial(integer, mode="gemmlowp")),
                                   ("optimized", "srdhm_half_up", up),
                                   ("XNNPACK", "f32_rne", requantization.f32_rne))},
    **{("LiteRT", f"FULLY_CONNECTED, {kernels}, {'channels' if by_channel else 'tensor'}, batch {rows}", name): litert(
        "FULLY_CONNECTED", kernels, by_channel, rule, rows=rows)
       for rows in (1, 2) for by_channel, kernels, name, rule in (
           (False, "reference", "f64_half_away", requantization.f64_half_away),
           (True, "reference", "f64_half_away", requantization.f64_half_away),
           (False, "optimized", "srdhm_half_up, product in float32", up_in_float32),
           (True, "optimized", "srdhm_half_up", up),
           (False, "XNNPACK", "f32_rne", requantization.f32_rne),
           (True, "XNNPACK", "f32_rne", requantization.f32_rne))},
    ("LiteRT", "ADD, reference", "tflite_ls20"): partial(litert_add, "reference", addition.tflite_ls20),
    ("LiteRT", "ADD, optimized", "tflite_ls20, wrap16"): partial(
        litert_add, "optimized", partial(addition.tflite_ls20, wrap16=True)),
    ("LiteRT", "ADD, XNNPACK", "xnn21"): partial(litert_add, "XNNPACK", addition.xnn21),
    **{("LiteRT", f"AVERAGE_POOL_2D, {kernels}", "cdiv_half_away"): partial(
        litert_average_pool, kernels, pooling.cdiv_half_away) for kernels in litert_models.RESOLVERS},
    ("LiteRT", "MEAN, reference", "mean_or_sum"): partial(litert_mean, "reference", pooling.mean_or_sum),
    ("LiteRT", "MEAN, optimized", "mean_opt"): partial(litert_mean, "optimized", pooling.mean_opt),
    ("LiteRT", "MEAN, XNNPACK", "xnn_mean"): partial(litert_mean, "XNNPACK", pooling.xnn_mean),
    ("PyTorch", "linear, fbgemm", "fbgemm_float_bias"): partial(
        torch_product, "linear", "fbgemm", requantization.fbgemm_float_bias),
    ("PyTorch", "linear, x86", "fbgemm_float_bias"): partial(
        torch_product, "linear", "x86", requantization.fbgemm_float_bias),
    ("PyTorch", "conv, fbgemm", "fbgemm_float_bias"): partial(
        torch_product, "conv", "fbgemm", requantization.fbgemm_float_bias),
    ("PyTorch", "linear, qnnpack", "qnnpack"): partial(torch_product, "linear", "qnnpack", requantization.qnnpack),
    ("PyTorch", "conv, qnnpack", "qnnpack"): partial(torch_product, "conv", "qnnpack", requantization.qnnpack),
    ("PyTorch", "conv, onednn", "onednn"): partial(torch_product, "conv", "onednn", requantization.onednn),
    ("PyTorch", "conv, x86", "onednn"): partial(torch_product, "conv", "x86", requantization.onednn),
    ("PyTorch", "add", "aten"): partial(torch_add, "fbgemm", ["uint8", "int8"], addition.aten),
    ("PyTorch", "add, qnnpack", "fix22"): partial(torch_add, "qnnpack", ["uint8"], addition.fix22),
    ("PyTorch", "avg_pool2d, channels first", "aten_pool"): partial(torch_pool, False, pooling.aten_pool),
    ("PyTorch", "avg_pool2d, channels last", "aten_pool, 16 lanes"): partial(
        torch_pool, True, partial(pooling.aten_pool, lanes=16)),
    ("OpenVINO", "Convolution with a bias", "openvino_bias"): partial(
        openvino_conv, True, requantization.openvino_bias),
    ("OpenVINO", "Convolution without one", "openvino_fold"): partial(
        openvino_conv, False, requantization.openvino_fold),
}  # fmt: skip

#: What PyTorch computes when it is told to do without the newer instructions of the processor.
OLDER = {
    "conv, onednn": partial(torch_product, "conv", "onednn", partial(requantization.onednn, scales_first=True)),
    **{f"saturating {operator}, onednn": partial(
        torch_extremes, operator, "onednn", partial(requantization.onednn, scales_first=True),
        accumulation.pair_saturating_16) for operator in ("linear", "conv")},
    **{f"saturating {operator}, fbgemm": partial(
        torch_extremes, operator, "fbgemm", requantization.fbgemm_float_bias, accumulation.pair_saturating_16)
       for operator in ("linear", "conv")},
}  # fmt: skip

PACKAGES = {"ONNX Runtime": "onnxruntime", "onnx.reference": "onnx", "LiteRT": "ai-edge-litert", "PyTorch": "torch",
            "OpenVINO": "openvino"}  # fmt: skip


def counted(peer, **fixtures):
    """How many elements differ, and of how many."""
    wanted = peer.func.__code__.co_varnames[: peer.func.__code__.co_argcount]
    differing = elements = 0
    for found, expected in peer(**{name: value for name, value in fixtures.items() if name in wanted}):
        assert found.shape == expected.shape and len(np.unique(expected)) > 1
        differing, elements = differing + int((found != expected).sum()), elements + found.size
    return differing, elements


@pytest.mark.parametrize(("backend", "operator", "mode"), PEERS)
def test_a_runtime_computes_what_its_rule_says(backend, operator, mode, tmp_path, monkeypatch):
    measured = {each.version for each in registry.MODES if (each.name, each.backend) == (mode, backend)}
    differing, elements = counted(PEERS[backend, operator, mode], tmp_path=tmp_path, monkeypatch=monkeypatch)
    installed = metadata.version(PACKAGES[backend]).split("+")[0]
    if differing and installed not in measured:
        pytest.xfail(f"{backend} {installed}: {differing} of {elements} differ; measured with {', '.join(measured)}")
    assert differing == 0 and elements >= 80_000


@pytest.mark.slow
def test_pytorch_without_newer_instructions_saturates_and_scales_in_another_order():
    """In a process of its own, for the libraries look at these settings once."""
    torch_with("onednn")
    needs("avx2", "fma")
    settings = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    program = (
        "import pytest, test_backend_peers as peers\n"
        "for peer in peers.OLDER.values(): print(*peers.counted(peer, monkeypatch=pytest.MonkeyPatch()))"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={**os.environ, **settings, "PYTHONPATH": path},
        cwd=here, text=True, capture_output=True, check=True,
    )  # fmt: skip
    counts = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(counts) == len(OLDER) and all(differing == 0 and elements > 90_000 for differing, elements in counts)
