"""A model of two classes whose answer is known by hand: whether the mean of nine pixels exceeds a threshold."""

from fractions import Fraction

import numpy as np

from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import Flatten, InputQuantization, Linear, Quantization, Requantization


def threshold_model(threshold=128):
    """Two classes of 3x3 images: 1 where the sum of the pixels exceeds nine times the threshold, else 0.

    Noisy pixels from -384 to 384 are kept exactly, at half resolution.
    """
    output = Quantization.full_range("int8", Fraction(1), -64)
    return IntegerModel(
        (
            InputQuantization(name="input", shape=(3, 3, 1), requantization=Requantization.of((2**30, 31)),
                              output=output),
            Flatten(name="flat", inputs=("input",)),
            Linear(name="scores", inputs=("flat",), weights=np.array([[0] * 9, [1] * 9], np.int8),
                   bias=np.array([0, -9 * threshold // 2], np.int32),
                   output=Quantization.full_range("int32", Fraction(1), 0)),
        )
    )  # fmt: skip


def flat_image(level):
    return np.full((3, 3, 1), level, np.uint8)


def classes_by_hand(image, noise, threshold=128):
    """What `threshold_model` computes, from its description, in Python integers."""
    result = []
    for row in noise.tolist():
        halves = [min(max((pixel + z + 1) // 2 - 64, -128), 127) for pixel, z in zip(image.reshape(-1).tolist(), row)]
        result.append(int(sum(half + 64 for half in halves) > 9 * threshold // 2))
    return result
