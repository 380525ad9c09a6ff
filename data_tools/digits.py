"""The embedded model and its images, made from scratch: `python -m intsmooth_ref.data_tools.digits`.

The images are the 1797 optical handwritten digits that scikit-learn ships, 8x8 of values 0..16:

    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    doi 10.24432/C50P49, licence CC BY 4.0.

A small convolutional network is trained on the first 1400 under discrete Gaussian noise, sigma a quarter of full
scale, then quantized to integers; the last 397 are held out, a contiguous block, so that their writers differ from
those trained on as far as the order allows. Written are `digits-images.h5`, the held-out images, and `digits.h5`, the
integer model with known answers. The noise is drawn by the package's own sampler, in stages of its own: no random word
that is used here is ever used by a certification.

Needs PyTorch and scikit-learn, the extra `train`. The same seed, the same versions of PyTorch and NumPy and the same
type of CPU give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import numpy as np

from intsmooth_ref.data_tools.program import say, status_of
from intsmooth_ref.data_tools.quantization import conv2d, input_quantization, least_squares, scores
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.engine import Engine
from intsmooth_ref.engine.known_answers import make_known_answers
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.model.fingerprint import fingerprint
from intsmooth_ref.model.graph import IntegerModel
from intsmooth_ref.model.hdf5 import save_model
from intsmooth_ref.model.layers import Conv2D, Flatten, Linear
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table, sample

if TYPE_CHECKING:
    import torch

SOURCE = (
    'E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, '
    "doi 10.24432/C50P49, licence CC BY 4.0, as shipped by scikit-learn (sklearn.datasets.load_digits)"
)
MAPPING = "values v = 0..16 mapped to grey levels (v * 255 + 8) // 16"
TRAINING_IMAGES = 1400

#: The unit of the network's input: a grey level is 1/255 of full scale.
GREY_LEVEL = Fraction(1, 255)
#: A quarter of full scale, in grey levels.
SIGMA = Fraction(255, 4)

#: Stages of the sampler: numbers that certification leaves free.
TRAINING, CALIBRATION, EVALUATION, KNOWN_ANSWERS = 16, 17, 18, 19

#: Output channels of the three convolutions, the second with stride 2, the third without padding.
CHANNELS = (16, 32, 48)
#: Where the outputs of the three ReLUs stand in `float_network`.
RELU_POSITIONS = (1, 3, 5)

#: Chosen on images 1100..1399 after training on 0..1099.
BATCH, LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 64, 3e-3, 1e-2, 0.1
#: Noisy copies of an image in a batch, and the weight of the term that makes their predictions agree.
COPIES, CONSISTENCY = 2, 5.0
#: How often an image is shifted by a pixel; more often hurts, since a pixel is an eighth of the image.
SHIFT_PROBABILITY = 0.25

#: One: the network is small, and the number of threads decides the order of floating-point sums.
THREADS = 1

#: Noisy copies that vote in the smoothed accuracy, and images that become known answers.
VOTES, KNOWN_ANSWER_IMAGES = 100, 16

#: From int32 noisy images `(N, H, W, C)` to classes `(N,)`.
Classifier = Callable[[np.ndarray], np.ndarray]


# --- images -----------------------------------------------------------------------------------------------------------


def to_grey_levels(values: np.ndarray) -> np.ndarray:
    """Values 0..16 `(N, 8, 8)` to uint8 grey levels `(N, 8, 8, 1)`, to nearest."""
    return ((values.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]


def split_digits(values: np.ndarray, labels: np.ndarray) -> tuple[Dataset, Dataset]:
    """The training images and the held-out ones, two contiguous blocks."""
    images, wide = to_grey_levels(values), labels.astype(np.int64)
    names = tuple(map(str, range(10)))
    first, last = TRAINING_IMAGES, len(images) - 1
    held_out = f"images {first}..{last} of {len(images)}, none of them trained on (training: images 0..{first - 1})"
    return (
        Dataset(images[:first], wide[:first], names, f"{SOURCE}; images 0..{first - 1}; {MAPPING}", "train"),
        Dataset(images[first:], wide[first:], names, f"{SOURCE}; {held_out}; {MAPPING}", "test"),
    )


def noisy(images: np.ndarray, seed: int, stage: int, draw: int) -> np.ndarray:
    """Images uint8 or int32 `(N, H, W, C)` plus noise, int32; `draw` numbers independent repetitions."""
    noise = sample(noise_table(discrete_gaussian(SIGMA)), seed, draw, stage, 0, len(images), prod(images.shape[1:]))
    return images.astype(np.int32) + noise.reshape(images.shape)


def shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Some images shifted by up to a pixel in each direction; black moves in."""
    count, height, width = images.shape[:3]
    moved = generator.random((count, 1)) < SHIFT_PROBABILITY
    offsets = 1 + moved * generator.integers(-1, 2, (count, 2))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = offsets[:, :1] + np.arange(height), offsets[:, 1:] + np.arange(width)
    return padded[np.arange(count)[:, np.newaxis, np.newaxis], rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


# --- the float network ------------------------------------------------------------------------------------------------


def float_network() -> torch.nn.Sequential:
    from torch.nn import Conv2d, Flatten, Linear, ReLU, Sequential

    first, second, third = CHANNELS
    return Sequential(
        Conv2d(1, first, 3, padding=1), ReLU(),
        Conv2d(first, second, 3, stride=2, padding=1), ReLU(),
        Conv2d(second, third, 3), ReLU(),
        Flatten(), Linear(2 * 2 * third, 10),
    )  # fmt: skip


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Grey levels `(N, H, W, C)` to fractions of full scale `(N, C, H, W)`, float32."""
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(GREY_LEVEL))


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> torch.nn.Sequential:
    """Train under noise; the learning rate rises, then falls along a cosine (Smith and Topin 2018)."""
    import torch

    torch.manual_seed(seed)
    network = float_network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARM_UP)
    for epoch in range(epochs):
        start, total = time.monotonic(), 0.0
        for batch, targets in training_batches(images, labels, epoch, seed):
            optimizer.zero_grad()
            loss = consistent_cross_entropy(network(as_tensor(batch)), torch.from_numpy(targets))
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(targets)
        seconds = time.monotonic() - start
        say(f"epoch {epoch + 1}/{epochs}  loss {total / (COPIES * len(images)):.4f}  {seconds:.2f} s")
    return network


def training_batches(
    images: np.ndarray, labels: np.ndarray, epoch: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch of noisy images and their labels, in an order of its own; the copies of an image stand in one batch."""
    generator = np.random.default_rng((seed, epoch))
    clean = shifted(images, generator)
    copies = np.stack([noisy(clean, seed, TRAINING, epoch * COPIES + copy) for copy in range(COPIES)])
    order = generator.permutation(len(images))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield np.concatenate(copies[:, chosen]), np.tile(labels[chosen], COPIES)


def consistent_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, plus how far the predictions for copies of one image are from their mean (Jeong and Shin 2020)."""
    from torch.nn.functional import cross_entropy, log_softmax

    log_probabilities = log_softmax(logits, dim=1).unflatten(0, (COPIES, -1))
    mean = log_probabilities.exp().mean(dim=0)
    divergence = (mean * (mean.clamp_min(1e-9).log() - log_probabilities)).sum(dim=2).mean()
    return cross_entropy(logits, targets) + CONSISTENCY * divergence


def float_layers(network: torch.nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of the convolutions, `(O, KH, KW, I)` and `(O,)`, then of the last layer, `(O, I)`."""
    from torch.nn import Conv2d, Linear

    layers, last = [], network[-1]
    assert isinstance(last, Linear)
    for layer in network:
        if isinstance(layer, Conv2d):
            assert layer.bias is not None
            layers.append((layer.weight.detach().numpy().transpose(0, 2, 3, 1), layer.bias.detach().numpy()))
    # PyTorch flattens (C, H, W), the integer model (H, W, C)
    weights = last.weight.detach().numpy().reshape(10, CHANNELS[-1], 2, 2).transpose(0, 2, 3, 1).reshape(10, -1)
    return [*layers, (weights, last.bias.detach().numpy())]


# --- the integer network ----------------------------------------------------------------------------------------------


def quantized(network: torch.nn.Sequential, images: np.ndarray, provenance: str) -> IntegerModel:
    """Post-training quantization; every activation's range is the one of least squared error on noisy `images`."""
    import torch

    tensors = [as_tensor(images)]
    with torch.no_grad():
        for layer in network:
            tensors.append(layer(tensors[-1]))
    pixels, first, second, third = (
        least_squares(tensors[position].numpy()) for position in (0, *(each + 1 for each in RELU_POSITIONS))
    )
    weights1, weights2, weights3, weights4 = float_layers(network)
    height, width, channels = images.shape[1:]
    layers = (
        input_quantization("input", (height, width, channels), GREY_LEVEL, pixels),
        conv2d("conv1", "input", pixels, *weights1, first, padding=(1, 1, 1, 1)),
        conv2d("conv2", "conv1", first, *weights2, second, strides=(2, 2), padding=(1, 1, 1, 1)),
        conv2d("conv3", "conv2", second, *weights3, third),
        Flatten(name="flatten", inputs=("conv3",)),
        scores("scores", "flatten", third, *weights4),
    )
    return IntegerModel(layers, tuple(map(str, range(10))), provenance)


def parameters(model: IntegerModel) -> int:
    """Weights and biases."""
    return sum(layer.weights.size + layer.bias.size for layer in model.layers if isinstance(layer, (Conv2D, Linear)))


# --- evaluation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracies:
    """Fractions of images classified right: clean, noisy (mean over `VOTES` draws), by the majority of these draws."""

    clean: float
    noisy: float
    smoothed: float


def accuracies(classify: Classifier, dataset: Dataset, seed: int) -> Accuracies:
    """Measure a classifier; the noise depends on `seed` alone, so two classifiers meet the same."""
    classes = np.arange(len(dataset.class_names))
    votes = np.zeros((len(dataset.images), len(classes)), dtype=np.int64)
    for draw in range(VOTES):
        votes += classify(noisy(dataset.images, seed, EVALUATION, draw))[:, np.newaxis] == classes
    clean = classify(dataset.images.astype(np.int32))
    right_votes = np.take_along_axis(votes, dataset.labels[:, np.newaxis], axis=1)
    return Accuracies(
        clean=float(np.mean(clean == dataset.labels)),
        noisy=float(right_votes.mean() / VOTES),
        smoothed=float(np.mean(votes.argmax(axis=1) == dataset.labels)),
    )


def float_classifier(network: torch.nn.Sequential) -> Classifier:
    import torch

    def classify(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(network(as_tensor(images)).argmax(dim=1).numpy())

    return classify


# --- the program ------------------------------------------------------------------------------------------------------


def report(network: torch.nn.Sequential, model: IntegerModel, held_out: Dataset, seed: int) -> list[str]:
    """Float and integer model side by side."""
    in_float = accuracies(float_classifier(network), held_out, seed)
    in_integers = accuracies(Engine(model).classify, held_out, seed)
    rows = [
        ("accuracy, clean", f"{in_float.clean:.2%}", f"{in_integers.clean:.2%}"),
        (f"accuracy, noisy (mean of {VOTES} draws)", f"{in_float.noisy:.2%}", f"{in_integers.noisy:.2%}"),
        (f"accuracy, majority of {VOTES} draws", f"{in_float.smoothed:.2%}", f"{in_integers.smoothed:.2%}"),
        ("bytes of parameters", str(4 * parameters(model)), str(model.parameter_bytes)),
    ]
    return [
        f"{'held-out images: ' + str(len(held_out.images)):<36}{'float':>10}{'integer':>10}",
        *(f"{what:<36}{left:>10}{right:>10}" for what, left, right in rows),
        f"parameters {parameters(model)}, multiply-adds {sum(model.multiply_adds.values())}",
    ]


def output_paths(folder: Path, overwrite: bool) -> tuple[Path, Path]:
    """Where the model and the images go; refused before the training, not after it.

    Raises:
        ParameterError: if the folder is missing, or a file stands there that may not be overwritten.
    """
    if not folder.is_dir():
        raise ParameterError(f"{folder}: found no such folder; expected one for the two files")
    paths = folder / "digits.h5", folder / "digits-images.h5"
    for path in paths:
        if path.exists() and not overwrite:
            raise ParameterError(f"{path}: found a file already; expected none, or the option --overwrite")
    return paths


def make(folder: Path, epochs: int, seed: int, overwrite: bool) -> list[str]:
    """Train, quantize, measure, write; returns the report."""
    import torch
    from sklearn.datasets import load_digits

    model_path, images_path = output_paths(folder, overwrite)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    training, held_out = split_digits(digits.images, digits.target)
    network = train(training.images, training.labels, epochs, seed)
    provenance = (
        f"python -m intsmooth_ref.data_tools.digits --epochs {epochs} --seed {seed}, PyTorch {torch.__version__}, "
        f"NumPy {np.__version__}; trained under discrete Gaussian noise, sigma {SIGMA} grey levels, on "
        f"{len(training.images)} images of SHA-256 {training.sha256}: {training.provenance}"
    )
    model = quantized(network, noisy(training.images, seed, CALIBRATION, 0), provenance)
    lines = report(network, model, held_out, seed)
    known_answers = make_known_answers(model, noisy(held_out.images[:KNOWN_ANSWER_IMAGES], seed, KNOWN_ANSWERS, 0))
    save_dataset(images_path, [held_out])
    save_model(model_path, model, known_answers)
    return [
        *lines,
        f"SHA-256 of the training images {training.sha256}",
        f"SHA-256 of the held-out images {held_out.sha256}",
        f"fingerprint of the model       {fingerprint(model)}",
        *(f"{path}: {path.stat().st_size} bytes" for path in (model_path, images_path)),
    ]


def integer_from(smallest: int, limit: int) -> Callable[[str], int]:
    """A parser of integers in `smallest` .. `limit - 1`."""

    def integer(text: str) -> int:
        if not smallest <= int(text) < limit:
            raise argparse.ArgumentTypeError(f"{text}: expected {smallest} to {limit - 1}")
        return int(text)

    return integer


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intsmooth_ref.data_tools.digits",
        description="Train and quantize the model of handwritten digits; write digits.h5 and digits-images.h5.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("."), metavar="FOLDER", help="where the files go (default: here)")
    add("--seed", type=integer_from(0, 1 << 63), default=0, help="of all that is random (default: 0)")
    add("--epochs", type=integer_from(1, 1 << 16), default=200, help="passes over the images (default: 200)")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    options = argument_parser().parse_args(arguments)

    def work() -> None:
        print("\n".join(make(options.out, options.epochs, options.seed, options.overwrite)))

    return status_of(work, options.out, room="room for the network and its batches", extra="train")


if __name__ == "__main__":
    sys.exit(main())
