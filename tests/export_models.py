"""Models and images on which exported models are tried."""

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from hypothesis import HealthCheck, given, seed, settings

from intsmooth_ref.audit.vectors import operator_image, operator_models
from intsmooth_ref.cli.arguments import embedded_file
from intsmooth_ref.dataset import load_dataset
from intsmooth_ref.fixedpoint import ROUNDING_MODES
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import LAYER_KINDS, ArgMax, Flatten, InputQuantization, Quantization, Requantization
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table, sample
from random_models import images_for, models
from threshold_model import threshold_model


def drawn_models(count, number=0):
    """Random models, each with two images, without the shrinking and the repetition of a property test."""
    drawn = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(models())
    def collect(model):
        drawn.append((model, images_for(model, np.random.default_rng(len(drawn)), 2)))

    collect()
    return drawn


@lru_cache(maxsize=None)
def models_of_every_kind():
    """The first of many random models that have a layer kind or a rounding mode which none before them has."""
    wanted, chosen = {*LAYER_KINDS, *ROUNDING_MODES}, []
    for number in range(20):
        for model, images in drawn_models(60, number):
            roundings = {each.requantization.rounding for each in model.layers if getattr(each, "requantization", None)}
            found = wanted & ({layer.kind for layer in model.layers} | roundings)
            if found:
                chosen.append((model, images))
                wanted -= found
        if not wanted:
            return chosen
    raise AssertionError(f"never drawn: {wanted}")


def models_of_one_operator():
    """A model for each operator and setting of the known-answer vectors: here the same in every run."""
    chosen = []
    for name, layers in operator_models():
        last = layers[-1]
        flat = [] if isinstance(last, ArgMax) else [Flatten(name="flattened", inputs=(last.name,))]
        chosen.append((IntegerModel((*layers, *flat)), operator_image(layers, len(name))))
    return chosen


def models_with_ties():
    """Every grey level of a wide range through each rounding mode, by ratios of 1/2 to 1/64: half of them are ties."""
    image = np.arange(-2048, 2048, dtype=np.int32).reshape(1, 64, 64, 1)
    output = Quantization.full_range("int8", Fraction(1, 50), 0)
    return [
        (IntegerModel((
            InputQuantization(name="input", shape=(64, 64, 1), output=output,
                              requantization=Requantization.of((1 << 30, shift), rounding=mode)),
            Flatten(name="scores", inputs=("input",)),
        )), image)
        for mode in ROUNDING_MODES for shift in range(31, 37)
    ]  # fmt: skip


def model_rounded_sideways(monkeypatch):
    """A model of a rounding mode that is yet to be invented."""
    monkeypatch.setattr("intsmooth_ref.model.proof.ROUNDING_MODES", ("sideways", *ROUNDING_MODES))
    first, *rest = threshold_model().layers
    return IntegerModel((replace(first, requantization=replace(first.requantization, rounding="sideways")), *rest))


def noisy_digits(count):
    pixels = load_dataset(embedded_file("digits-images.h5")).images
    chosen = pixels[np.arange(count) % len(pixels)].astype(np.int32)
    noise = sample(noise_table(discrete_gaussian(64)), 5, 0, 18, 0, count, chosen[0].size)
    return chosen + noise.reshape(chosen.shape)
