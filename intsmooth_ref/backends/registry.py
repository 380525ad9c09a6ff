"""Which rule belongs to which operator of which runtime.

A mode is a rule with its options set, and where it was measured. `modes_of` answers what may stand behind an operator
of a runtime: several modes where kernels differ by processor, instruction set or kind of kernel, which `where` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

import numpy as np

from ..errors import ParameterError
from . import accumulation, addition, pooling, requantization

OPERATORS = ("conv", "linear", "add", "average_pool", "global_average_pool", "accumulator")
ONNX_RUNTIME, ONNX_REFERENCE = ("ONNX Runtime", "1.32.0"), ("onnx.reference", "1.23.2")
LITERT, PYTORCH, OPENVINO = ("LiteRT", "2.3.0"), ("PyTorch", "2.13.0"), ("OpenVINO", "2026.4.1")
PRODUCTS = ("conv", "linear")


@dataclass(frozen=True)
class Mode:
    """A rule, and where it holds.

    Attributes:
        name: of the rule and its options; with `backend` and `where` unique.
        operators: names in `OPERATORS`.
        backend, version: the runtime and its version when the rule was measured.
        where: which kernels and processors.
        rule: for `conv` and `linear` called with accumulators and a `Product`; for `add` with two tensors and a `Sum`;
            for the pools with windows and an `Average`; for `accumulator` with input and weights.
    """

    name: str
    operators: tuple[str, ...]
    backend: str
    version: str
    where: str
    rule: Callable[..., np.ndarray]

    @property
    def source(self) -> str:
        """What the rule's docstring says: formula, and source where it is known."""
        function = self.rule.func if isinstance(self.rule, partial) else self.rule
        return " ".join((function.__doc__ or "").split())


def _mode(
    name: str,
    operators: tuple[str, ...],
    runtime: tuple[str, str],
    where: str,
    rule: Callable[..., np.ndarray],
    **options: Any,
) -> Mode:
    return Mode(name, operators, *runtime, where, partial(rule, **options) if options else rule)


_integer = requantization.integer_rounding

MODES = (
    _mode("f32_rne", PRODUCTS, ONNX_RUNTIME, "QLinearConv, QLinearMatMul, QGemm", requantization.f32_rne),
    _mode("ort_fma", ("add",), ONNX_RUNTIME, "QLinearAdd, x86 with AVX2", addition.ort_fma),
    _mode("ort_sse", ("add",), ONNX_RUNTIME, "QLinearAdd, x86 without AVX2", addition.ort_sse),
    _mode("fix22", ("add",), ONNX_RUNTIME, "QLinearAdd, Arm", addition.fix22),
    _mode("ort_avg", ("average_pool",), ONNX_RUNTIME, "QLinearAveragePool", pooling.ort_avg),
    _mode("ort_gap", ("average_pool", "global_average_pool"), ONNX_RUNTIME,
          "QLinearGlobalAveragePool; QLinearAveragePool of the whole image", pooling.ort_gap),
    _mode("f64_rne_zp_inside", ("conv",), ONNX_REFERENCE, "QLinearConv", requantization.f64_rne_zp_inside),
    _mode("gemmlowp", ("conv",), LITERT, "reference kernels", _integer, mode="gemmlowp"),
    _mode("f64_half_away", ("linear",), LITERT, "reference kernels", requantization.f64_half_away),
    _mode("srdhm_half_up", PRODUCTS, LITERT, "optimized kernels; linear with weight scales by channel", _integer,
          mode="srdhm_half_up"),
    _mode("srdhm_half_up, product in float32", ("linear",), LITERT, "optimized kernels, one weight scale", _integer,
          mode="srdhm_half_up", product_in_float32=True),
    _mode("single_rounding", PRODUCTS, LITERT,
          "optimized kernels, x86 without AVX; linear with weight scales by channel", _integer, mode="single_rounding"),
    _mode("single_rounding, product in float32", ("linear",), LITERT,
          "optimized kernels, x86 without AVX, one weight scale", _integer,
          mode="single_rounding", product_in_float32=True),
    _mode("f32_rne", PRODUCTS, LITERT, "XNNPACK", requantization.f32_rne),
    _mode("tflite_ls20", ("add",), LITERT, "reference kernels", addition.tflite_ls20),
    _mode("tflite_ls20, wrap16", ("add",), LITERT, "optimized kernels", addition.tflite_ls20, wrap16=True),
    _mode("xnn21", ("add",), LITERT, "XNNPACK", addition.xnn21),
    _mode("cdiv_half_away", ("average_pool",), LITERT, "AVERAGE_POOL_2D", pooling.cdiv_half_away),
    _mode("mean_or_sum", ("global_average_pool",), LITERT, "MEAN, reference kernels", pooling.mean_or_sum),
    _mode("mean_opt", ("global_average_pool",), LITERT, "MEAN, optimized kernels, one thread", pooling.mean_opt),
    _mode("xnn_mean", ("global_average_pool",), LITERT, "MEAN, XNNPACK", pooling.xnn_mean),
    _mode("fbgemm_float_bias", PRODUCTS, PYTORCH, "fbgemm; linear of the engine x86", requantization.fbgemm_float_bias),
    _mode("qnnpack", PRODUCTS, PYTORCH, "qnnpack", requantization.qnnpack),
    _mode("onednn", ("conv",), PYTORCH, "onednn, x86 with AVX512; conv of the engine x86", requantization.onednn),
    _mode("onednn, scales first", ("conv",), PYTORCH, "onednn, x86 with AVX2 or SSE4.1", requantization.onednn,
          scales_first=True),
    _mode("aten", ("add",), PYTORCH, "all engines but qnnpack, x86 with AVX512", addition.aten),
    _mode("aten, 32 lanes", ("add",), PYTORCH, "all engines but qnnpack, x86 with AVX2", addition.aten, lanes=32),
    _mode("fix22", ("add",), PYTORCH, "qnnpack, uint8", addition.fix22),
    _mode("aten_pool", ("average_pool",), PYTORCH, "avg_pool2d, channels first, all engines but qnnpack",
          pooling.aten_pool),
    _mode("aten_pool, 16 lanes", ("average_pool",), PYTORCH,
          "avg_pool2d, channels last, all engines but qnnpack, x86 with AVX512",
          pooling.aten_pool, lanes=16),
    _mode("openvino_bias", ("conv",), OPENVINO, "with a bias; uint8 of zero point 0 nearly: see the rule",
          requantization.openvino_bias),
    _mode("openvino_fold", ("conv",), OPENVINO, "without a bias", requantization.openvino_fold),
    _mode("openvino_add", ("add",), OPENVINO, "nearly: see the rule", addition.openvino_add),
    _mode("exact_wrap32", ("accumulator",), ONNX_RUNTIME, "x86 with VNNI, Arm", accumulation.exact_wrap32),
    _mode("pair_saturating_16", ("accumulator",), ONNX_RUNTIME, "uint8 by int8, x86 without VNNI",
          accumulation.pair_saturating_16),
    _mode("pair_saturating_16", ("accumulator",), PYTORCH, "fbgemm, and onednn of linear and 1x1 conv, without VNNI",
          accumulation.pair_saturating_16),
    _mode("exact_wrap32", ("accumulator",), LITERT, "all kernels", accumulation.exact_wrap32),
)  # fmt: skip


def modes_of(operator: str, backend: str | None = None) -> tuple[Mode, ...]:
    """The modes that apply to an operator, of one runtime or of all.

    Raises:
        ParameterError: if there is no such operator.
    """
    if operator not in OPERATORS:
        raise ParameterError(f"operator {operator!r}: expected one of {', '.join(OPERATORS)}")
    return tuple(mode for mode in MODES if operator in mode.operators and backend in (None, mode.backend))
