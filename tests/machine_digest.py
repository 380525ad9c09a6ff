"""One hash over what must be the same on every machine: `python tests/machine_digest.py [ENGINE [ISA]]`.

    philox      the published known answers, and addresses as the sampler forms them
    noise       10**6 values of each distribution, drawn as certifying draws them
    operators   every kind of layer in every rounding mode, on small shapes, in the engine asked for
    votes       of one embedded image, with the certificate that they give, as a line of a transcript

One line each, then the digest: SHA-256 of these lines. `test_machine_digest.py` holds it against a constant.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from fractions import Fraction
from pathlib import Path
from typing import Iterator

import numpy as np

from intsmooth_ref import SmoothedClassifier, load_dataset, load_model
from intsmooth_ref.audit.vector_format import vector_text
from intsmooth_ref.audit.vectors import known_answers, operator_image, operator_models, vector_set
from intsmooth_ref.certify.transcript import claim_bytes
from intsmooth_ref.compilation import jit_disabled, numba_available
from intsmooth_ref.engine import Engine
from intsmooth_ref.machine import versions
from intsmooth_ref.model.fingerprint import little_endian_bytes
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.layers import Flatten
from intsmooth_ref.model.proof import prove
from intsmooth_ref.noise import sampler
from intsmooth_ref.noise.distributions import discrete_gaussian, discrete_laplace, discrete_uniform, rounded_normal
from intsmooth_ref.noise.sampler import ESTIMATION, noise_table

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
SEED = 20261123

#: 1000 samples of 1000 pixels.
SAMPLES, PIXELS = 1000, 1000
DISTRIBUTIONS = (
    discrete_gaussian(Fraction(255, 4)), rounded_normal(Fraction(255, 4)), discrete_laplace(Fraction(85, 2)),
    discrete_uniform(100),
)  # fmt: skip


def philox() -> Iterator[bytes]:
    yield vector_text(vector_set("philox", known_answers("philox"))).encode("ascii")


def noise() -> Iterator[bytes]:
    black = np.zeros(PIXELS, np.uint8)
    add_noise = sampler.add_noise
    if numba_available() and not jit_disabled():
        from intsmooth_ref.noise import kernels

        add_noise = kernels.add_noise
    for distribution in DISTRIBUTIONS:
        yield little_endian_bytes(add_noise(noise_table(distribution), black, SEED, 3, ESTIMATION, 0, SAMPLES))


def operators(engine: str, isa: str | None) -> Iterator[bytes]:
    for number, (name, layers) in enumerate(operator_models()):
        last = layers[-1]
        scores = [] if len(prove(layers, complete=False)[last.name].shape) < 2 else [
            Flatten(name="flattened", inputs=(last.name,))
        ]
        model = IntegerModel((*layers, *scores))
        yield name.encode("ascii")
        for _, tensor in Engine(model, engine, isa).trace(operator_image(layers, number)):
            yield little_endian_bytes(tensor)


def votes(engine: str, isa: str | None) -> Iterator[bytes]:
    model, data = load_model(WEIGHTS / "digits.h5").model, load_dataset(WEIGHTS / "digits-images.h5")
    classifier = SmoothedClassifier(model, "0.25", seed=SEED, engine=engine, isa=isa)
    certificate = classifier.certify(data.images[5], n0=100, n=1000, index=5)
    yield claim_bytes(classifier.document(certificate, data.image_sha256(5), label=int(data.labels[5])))


def parts(engine: str = "auto", isa: str | None = None) -> list[str]:
    """A line for each part: its name and its hash."""
    made = {"philox": philox(), "noise": noise(), "operators": operators(engine, isa), "votes": votes(engine, isa)}
    return [f"{name:<10} {hashlib.sha256(b''.join(content)).hexdigest()}" for name, content in made.items()]


def digest_of(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("ascii")).hexdigest()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    found = parts(*arguments)
    used = Engine(load_model(WEIGHTS / "digits.h5").model, *arguments)
    print("\n".join(found))
    print(f"{'digest':<10} {digest_of(found)}")
    print(f"{platform.machine()} {sys.byteorder}-endian, {used.name} {used.isa or ''}, Python "
          f"{platform.python_version()}, {versions(['numpy', 'numba', 'h5py'])}")  # fmt: skip
