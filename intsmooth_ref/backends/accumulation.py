"""Sums of products of 8-bit values, as kernels accumulate them: `(N, K) x (K, O) -> (N, O)`, all int64."""

from __future__ import annotations

import numpy as np

from .floating_point import wrapped

INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1


def exact_wrap32(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum x*w modulo 2**32: kernels with 32-bit accumulators and 16-bit, or dot product, instructions."""
    return wrapped(x @ weights, 32)


def pair_saturating_16(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum of sat16(x0*w0 + x1*w1) over adjacent pairs along K, modulo 2**32, x unsigned and w signed.

    What `vpmaddubsw` does, and with it ONNX Runtime 1.32.0, fbgemm and oneDNN (PyTorch 2.13.0) and OpenVINO 2026.4.1 on
    x86 processors without VNNI. A last x without a partner stands alone.
    """
    padding = x.shape[-1] % 2
    x, weights = np.pad(x, ((0, 0), (0, padding))), np.pad(weights, ((0, padding), (0, 0)))
    total = np.zeros((len(x), weights.shape[1]), np.int64)
    for k in range(0, x.shape[1], 2):
        pair = x[:, k : k + 2] @ weights[k : k + 2]
        total += np.clip(pair, INT16_MIN, INT16_MAX)
    return wrapped(total, 32)
