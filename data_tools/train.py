"""Networks trained under discrete Gaussian noise: `python -m intsmooth_ref.data_tools.train DATA --out FOLDER`.

DATA is a dataset file with a split "train", of which a part is held out. The network is one of `architectures`, or any
float model. After each epoch FOLDER gets three files, each of which is whole at any time:

    float.h5        the float model of the moving average of the weights: what to quantize
    checkpoint.pt   weights, their moving average, momentum, the settings and the log; `--resume` goes on from it
    log.jsonl       a line an epoch: loss, accuracy under noise on training and on held-out images, seconds

The loss of an image with `copies` noisy copies, p_c the class probabilities of each and p their mean, is

    (1)   mean_c CE(p_c, label) + consistency * mean_c KL(p || p_c) + entropy * H(p)

(Jeong and Shin 2020, equation 8; consistency 0 is plain augmentation, Cohen, Rosenfeld, Kolter 2019). The learning rate
rises for a tenth of the steps, then falls along a cosine (Smith and Topin 2018). What is kept for use is the moving
average of the weights.

A batch is cut into shards. Each shard has a thread of its own, which no other thread helps or waits for, batch norm
statistics of its own, and its gradient; the batch's gradient is the mean of theirs, summed in order. So the number of
shards, unlike the number of processors, is part of the result; on a processor that others use too it is also several
times as fast as threads that share each operation. The same settings, versions and type of processor give the same
weights, interrupted or not; a GPU promises as much only if its libraries do.

Which images are held out depends on the images and on `--held-out`, on no seed and no program, and fewer are always
among more. So whoever trains further what another run has trained, and holds out no more than that run did, still
judges by images that neither has trained on.

Needs PyTorch, the extra `train`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from fractions import Fraction
from functools import partial
from io import BytesIO
from math import cos, inf, isfinite, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

import numpy as np

from intsmooth_ref.class_names import check_same_classes
from intsmooth_ref.cli.arguments import integer_from, rational
from intsmooth_ref.cli.interruption import Interruption
from intsmooth_ref.cli.progress import Progress
from intsmooth_ref.data_tools.architectures import ARCHITECTURES, architecture
from intsmooth_ref.data_tools.augmentation import HELD_OUT, TRAINING, Epoch, augmented, epoch, noisy_copies, split_off
from intsmooth_ref.data_tools.float_file import load_float_model, save_float_model
from intsmooth_ref.data_tools.float_model import FloatModel
from intsmooth_ref.data_tools.program import argument_parser, say, status_of
from intsmooth_ref.dataset import FULL_SCALE, Dataset, load_dataset
from intsmooth_ref.errors import DatasetError, ParameterError
from intsmooth_ref.new_files import write_whole
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import SEEDS, NoiseTable, noise_table
from intsmooth_ref.strict_hdf5 import SIGNATURE

if TYPE_CHECKING:
    import torch

FORMAT = "intsmooth-ref training 3"
PROGRAM = "train"
CHECKPOINT, LOG, FLOAT_MODEL = "checkpoint.pt", "log.jsonl", "float.h5"

MOMENTUM = 0.9
#: Of the steps, while the learning rate rises.
WARM_UP = 0.1
#: Images that are held out, unless they are too few.
HELD_OUT_IMAGES = 1000
#: Noisy copies over which the accuracy on a held-out image is the mean, and images in a batch of theirs.
HELD_OUT_COPIES, HELD_OUT_BATCH = 4, 125


@dataclass(frozen=True)
class Settings:
    """All that decides the weights, beside PyTorch's version and the processor; `--resume` asks for the same.

    Attributes:
        program: that trains, one of `TRAINING`.
        network: what is trained: its architecture and width, or the SHA-256 of the file that describes it.
        sigma: grey levels, an exact rational as text.
        images: SHA-256 of the training images.
        labels: SHA-256 of their labels.
        initial: SHA-256 of the file whose weights are the first, or "".
        mirror: whether half of the images are mirrored.
        held_out: images that are not trained on.
        shards: parts of a batch that are computed side by side.
        bfloat16: whether convolutions are computed in that type; weights are kept in float32.

    The others: equation (1), the optimizer's, and the seed of all that is random.
    """

    program: str
    network: str
    sigma: str
    images: str
    labels: str
    initial: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    copies: int
    consistency: float
    entropy: float
    label_smoothing: float
    average: float
    mirror: bool
    held_out: int
    shards: int
    bfloat16: bool
    seed: int


@dataclass
class State:
    """What changes while training.

    Attributes:
        network: what is trained.
        average: the same with the moving average of its weights and of its batch norm's statistics.
        optimizer: holds the momentum of each parameter that is trained.
        records: of the epochs done, as in the log.
    """

    network: torch.nn.Module
    average: torch.nn.Module
    optimizer: torch.optim.SGD
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Images uint8 `(N, H, W, C)`, labels int64 `(N,)`, which of them are trained on and which held out; the noise."""

    images: np.ndarray
    labels: np.ndarray
    trained_on: np.ndarray
    held_out: np.ndarray
    table: NoiseTable


# --- loss and schedule ------------------------------------------------------------------------------------------------


def consistent_loss(scores: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Equation (1), the mean over images: scores `(copies, N, CLASSES)`, labels `(N,)`."""
    from torch.nn.functional import cross_entropy, log_softmax

    copies = len(scores)
    loss = cross_entropy(scores.flatten(0, 1), labels.repeat(copies), label_smoothing=settings.label_smoothing)
    if copies == 1 or settings.consistency == settings.entropy == 0:
        return loss
    log_probabilities = log_softmax(scores, dim=2)
    mean = log_probabilities.exp().mean(dim=0)
    log_mean = mean.clamp_min(1e-20).log()
    divergence = (mean * (log_mean - log_probabilities)).sum(dim=2).mean()
    entropy = -(mean * log_mean).sum(dim=1).mean()
    return loss + settings.consistency * divergence + settings.entropy * entropy


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step, counted from 0: linear up to `peak`, then a cosine down to nearly 0."""
    rise = max(round(WARM_UP * steps), 1)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + cos(pi * (step - rise + 1) / (steps - rise + 1))) / 2


# --- one epoch --------------------------------------------------------------------------------------------------------


class Trainer:
    """Trains and judges a network, epoch by epoch: the threads, one a shard, and what they need.

    The network is any module that is called with grey levels, an int32 tensor `(N, H, W, C)`, and gives the scores
    `(N, classes)`: it does its own scaling. All its parameters that ask for a gradient count in the scores. All its
    buffers of floats are statistics, of which each shard has its own and gets the mean.

    Raises:
        ParameterError: if there are too few images for one batch.
    """

    def __init__(self, settings: Settings, source: Source, state: State, device: str) -> None:
        import torch

        self.settings, self.source, self.state, self.device = settings, source, state, torch.device(device)
        self.steps_per_epoch = len(source.trained_on) // settings.batch
        if self.steps_per_epoch == 0:
            found = f"{len(source.trained_on)} images to train on"
            raise ParameterError(f"--batch {settings.batch}: found {found}; expected a batch of them at least")
        self._parameters = [parameter for parameter in state.network.parameters() if parameter.requires_grad]
        # one thread a shard, and one that prepares the next batch
        one_thread = partial(torch.set_num_threads, 1)
        self._pool = ThreadPoolExecutor(settings.shards + 1, initializer=one_thread)

    def close(self) -> None:
        self._pool.shutdown()

    def epoch(self, progress: Callable[[int], None], check: Callable[[], None]) -> None:
        """Train for one epoch, judge, and add to the state's records.

        Args:
            progress: told the number of images that are done, batch by batch.
            check: called between batches; may raise.

        Raises:
            ParameterError: if the loss is no number any more.
        """
        settings, began = self.settings, time.monotonic()
        number = len(self.state.records)
        height = self.source.images.shape[1]
        plan = epoch(
            number, len(self.source.trained_on), height, settings.seed, TRAINING[settings.program], settings.mirror
        )
        loss, right, steps = 0.0, 0, self.steps_per_epoch
        shards = self._shards()
        upcoming = self._pool.submit(self._batch, plan, 0)
        for step in range(steps):
            check()
            images, labels = upcoming.result()
            if step + 1 < steps:
                upcoming = self._pool.submit(self._batch, plan, step + 1)
            step_loss, step_right = self._step(shards, images, labels, number * steps + step)
            loss, right = loss + step_loss, right + step_right
            progress(settings.batch)
            if not isfinite(loss):
                found = f"a loss of {step_loss} in step {step + 1} of epoch {number + 1}"
                raise ParameterError(f"found {found}; expected a number: a lower --learning-rate may help")
        record = {
            "epoch": number + 1,
            "loss": loss / steps,
            "noisy_accuracy": right / (steps * settings.batch * settings.copies),
            **self.judged(),
            "learning_rate": learning_rate((number + 1) * steps - 1, settings.epochs * steps, settings.learning_rate),
            "seconds": round(time.monotonic() - began, 1),
        }
        self.state.records.append({key: _short(value) for key, value in record.items()})

    def _shards(self) -> list[torch.nn.Module]:
        """The network, and copies that share its weights and have batch norm statistics of their own."""
        network = self.state.network.train()
        shared = {id(parameter): parameter for parameter in network.parameters()}
        return [network] + [copy.deepcopy(network, dict(shared)) for _ in range(self.settings.shards - 1)]

    def _batch(self, plan: Epoch, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Noisy images `(copies, BATCH, H, W, C)`, int32, and their labels."""
        settings, source, first = self.settings, self.source, step * self.settings.batch
        trained_on = replace(plan, order=source.trained_on[plan.order])
        images = augmented(source.images, trained_on, first, settings.batch)
        stage, draw = TRAINING[settings.program], plan.number * settings.copies
        noisy = noisy_copies(images, source.table, settings.seed, stage, draw, settings.copies, first)
        return noisy, source.labels[trained_on.order[first : first + settings.batch]]

    def _step(
        self, shards: Sequence[torch.nn.Module], images: np.ndarray, labels: np.ndarray, step: int
    ) -> tuple[float, int]:
        """One step of the optimizer; the loss, and the number of copies classified right."""
        import torch

        settings, state = self.settings, self.state
        cuts = np.linspace(0, len(labels), settings.shards + 1).astype(int)
        parts = [(images[:, begin:end], labels[begin:end]) for begin, end in zip(cuts, cuts[1:])]
        results = list(self._pool.map(self._gradient, shards, parts))
        steps = settings.epochs * self.steps_per_epoch
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.learning_rate)
        for index, parameter in enumerate(self._parameters):
            parameter.grad = torch.stack([gradients[index] for gradients, _, _ in results]).sum(dim=0)
        state.optimizer.step()
        share_statistics(shards)
        # the first weights, which are random, are forgotten sooner
        update_average(state.average, state.network, min(settings.average, (1 + step) / (10 + step)))
        return sum(loss for _, loss, _ in results), sum(right for _, _, right in results)

    def _gradient(
        self, network: torch.nn.Module, part: tuple[np.ndarray, np.ndarray]
    ) -> tuple[tuple[torch.Tensor, ...], float, int]:
        """Of a shard, in its part of the batch's mean: the gradient and the loss; and the copies classified right."""
        import torch

        images, labels = part
        targets = torch.from_numpy(labels).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            scores = network(as_tensor(images.reshape(-1, *images.shape[2:]), self.device))
        scores = scores.unflatten(0, images.shape[:2])
        # classes are those of the scores as they are: in float32 two may become one
        right = int((scores.argmax(dim=2) == targets).sum())
        loss = consistent_loss(scores.float(), targets, self.settings) * (len(labels) / self.settings.batch)
        gradients = torch.autograd.grad(loss, self._parameters)
        return gradients, loss.item(), right

    def judged(self) -> dict[str, float]:
        """Accuracy of the average of the weights on the held-out images, under noise and without, in float32."""
        count = len(self.source.held_out)
        if count == 0:
            return {}
        firsts = range(0, count, HELD_OUT_BATCH)
        right = np.sum(list(self._pool.map(self._right_of_held_out, firsts)), axis=0)
        return {
            "held_out_noisy_accuracy": int(right[0]) / (count * HELD_OUT_COPIES),
            "held_out_clean_accuracy": int(right[1]) / count,
        }

    def _right_of_held_out(self, first: int) -> tuple[int, int]:
        """Noisy copies, and images, that are classified right."""
        import torch

        source = self.source
        chosen = source.held_out[first : first + HELD_OUT_BATCH]
        images, labels = source.images[chosen], source.labels[chosen]
        noisy = noisy_copies(images, source.table, self.settings.seed, HELD_OUT, 0, HELD_OUT_COPIES, first)
        with torch.no_grad():
            classes = [
                self.state.average(as_tensor(each, self.device)).argmax(dim=1).cpu().numpy()
                for each in (*noisy, images.astype(np.int32))
            ]
        return int((np.stack(classes[:-1]) == labels).sum()), int((classes[-1] == labels).sum())


def share_statistics(shards: Sequence[torch.nn.Module]) -> None:
    """Give all shards the mean of their batch norm statistics."""
    import torch

    for statistics in zip(*(shard.buffers() for shard in shards)):
        if statistics[0].is_floating_point():  # no count of batches, in which they agree
            mean = torch.stack(statistics).mean(dim=0)
            for each in statistics:
                each.copy_(mean)


def update_average(average: torch.nn.Module, network: torch.nn.Module, kept: float) -> None:
    """`average = kept * average + (1 - kept) * network`, weights and statistics."""
    import torch

    with torch.no_grad():
        for averaged, tensor in zip(average.state_dict().values(), network.state_dict().values()):
            if averaged.is_floating_point():
                averaged.lerp_(tensor, 1 - kept)


def as_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Grey levels, int32 `(N, H, W, C)`, where the network is."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def _short(value: Any) -> Any:
    """As many digits as mean something."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- beginning and checkpoints ----------------------------------------------------------------------------------------


def fresh_state(settings: Settings, network: torch.nn.Module) -> State:
    """Nothing trained yet. What has two dimensions or more decays: weights do, biases and batch norms do not."""
    import torch

    average = copy.deepcopy(network).requires_grad_(False).eval()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, settings.learning_rate, MOMENTUM, nesterov=True)
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return State(network, average, optimizer, [])


def momentum_of(state: State) -> dict[str, torch.Tensor]:
    """The momentum by the name of the parameter."""
    return {
        name: state.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in state.network.named_parameters() if parameter.requires_grad
    }  # fmt: skip


def save_checkpoint(folder: Path, settings: Settings, state: State) -> None:
    """Write the checkpoint, then the log, each at once: a reader never sees half a file."""
    import torch

    content = {
        "format": FORMAT,
        "settings": asdict(settings),
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "momentum": momentum_of(state),
        "records": state.records,
    }
    lines = "".join(json.dumps(record) + "\n" for record in state.records)
    stored = BytesIO()
    torch.save(content, stored)
    write_whole(folder / CHECKPOINT, stored.getvalue())
    write_whole(folder / LOG, lines.encode("ascii"))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, which may be anybody's: nothing but tensors and plain values is unpickled.

    Raises:
        ParameterError: if the file is no checkpoint.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # of a damaged file, whatever the step that it breaks raises
        raise _no_checkpoint(path, str(problem)) from None
    if not isinstance(content, dict):
        raise _no_checkpoint(path, f"a {type(content).__name__}")
    found = content.get("format")
    if not (isinstance(found, str) and found == FORMAT):
        raise _no_checkpoint(path, f"format {found!r}")
    return content


def _no_checkpoint(path: Path, found: str) -> ParameterError:
    return ParameterError(f"{path}: found no whole checkpoint ({_short_text(found)}); expected {FORMAT!r}")


def _short_text(text: str) -> str:
    """The first sentence of a message, or the beginning of one that is too long."""
    line = " ".join(text.split()).partition(". ")[0]
    return line if len(line) <= 100 else f"{line[:100]} ..."


def restore(path: Path, settings: Settings, state: State) -> None:
    """Set the state to that of a checkpoint: its weights, its momentum and its log, and nothing else of it.

    Raises:
        ParameterError: if the checkpoint is damaged, or was written under other settings.
    """
    content = read_checkpoint(path)
    expect_settings(path, content, asdict(settings), "for a run that goes on")
    take_over(path, state.network.state_dict(), content.get("network"))
    take_over(path, state.average.state_dict(), content.get("average"))
    take_over(path, momentum_of(state), content.get("momentum"))
    if not _is_log(content.get("records"), settings.epochs):
        raise ParameterError(f"{path}: found a damaged log; expected a record for each epoch that is done")
    state.records[:] = content["records"]


def expect_settings(path: Path, content: Mapping[str, Any], expected: Mapping[str, Any], purpose: str) -> None:
    """Raise a ParameterError if a checkpoint was written under other settings than these, some or all."""
    settings = content.get("settings")
    for name, value in expected.items():
        found = settings.get(name) if isinstance(settings, dict) else None
        if type(found) is not type(value) or found != value:
            raise ParameterError(f"{path}: found {name} {_short_text(repr(found))}; expected {value!r}, {purpose}")


def take_over(path: Path, tensors: Mapping[str, torch.Tensor], found: object) -> None:
    """Fill tensors with those that a file has for the same names, which may be anything.

    Raises:
        ParameterError: if names, shapes or types differ, or a number is not finite.
    """
    import torch

    def fits(name: str, tensor: torch.Tensor) -> bool:
        other = found.get(name) if isinstance(found, dict) else None
        if not isinstance(other, torch.Tensor) or (other.layout, other.device.type) != (torch.strided, "cpu"):
            return False
        return (other.shape, other.dtype) == (tensor.shape, tensor.dtype)

    if not (isinstance(found, dict) and len(found) == len(tensors) and all(map(fits, tensors, tensors.values()))):
        raise ParameterError(f"{path}: found weights of another network; expected those of the same layers")
    if not all(torch.isfinite(tensor).all() for tensor in found.values()):
        raise ParameterError(f"{path}: found weights that are no numbers; expected finite ones")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(found[name])


def _is_log(records: object, epochs: int) -> bool:
    """Whether these are records of the first epochs, of this many at most: names and finite numbers."""
    if not (isinstance(records, list) and len(records) <= epochs and all(isinstance(each, dict) for each in records)):
        return False
    entries = [entry for record in records for entry in record.items()]
    if not all(isinstance(name, str) and type(value) in (int, float) and abs(value) < inf for name, value in entries):
        return False
    return [record.get("epoch") for record in records] == list(range(1, len(records) + 1))


def begin_with(path: Path, network: torch.nn.Module) -> None:
    """Take the averaged weights of another run's checkpoint, or the weights of a float model file.

    Raises:
        ParameterError: if there are none that fit.
        ModelFormatError: if the float model file breaks a rule of its format.
    """
    take_over(path, network.state_dict(), weights_of(path))


def weights_of(path: Path) -> object:
    with path.open("rb") as file:
        is_float_model = file.read(len(SIGNATURE)) == SIGNATURE
    if not is_float_model:
        return averaged_weights(path, program=PROGRAM)
    from intsmooth_ref.data_tools.torch_network import TorchNetwork

    return TorchNetwork(load_float_model(path)).state_dict()


def averaged_weights(path: Path, **settings: str) -> object:
    """Those of a checkpoint that was written under these settings: what `take_over` takes.

    Raises:
        ParameterError: if the file is no checkpoint, or was written under others.
    """
    content = read_checkpoint(path)
    expect_settings(path, content, settings, "for weights to begin with")
    return content.get("average")


# --- the program ------------------------------------------------------------------------------------------------------


def settings_of(options: argparse.Namespace, dataset: Dataset, program: str, network: str) -> Settings:
    """The settings that the options make for a program and a network of this description.

    Raises:
        ParameterError: where options contradict each other, or the images.
    """
    chosen = {name: getattr(options, name) for name in Settings.__dataclass_fields__ if hasattr(options, name)}
    chosen["sigma"] = str(options.sigma * FULL_SCALE)
    if options.held_out is None:
        chosen["held_out"] = min(HELD_OUT_IMAGES, len(dataset.images) // 10)
    chosen["initial"] = sha256_of(options.init) if options.init else ""
    if options.seed >= SEEDS:
        raise ParameterError(f"--seed {options.seed}: expected 0 to {SEEDS - 1}")
    if options.batch < options.shards:
        expected = f"an image for each of the {options.shards} --shards at least"
        raise ParameterError(f"--batch {options.batch}: expected {expected}")
    if chosen["held_out"] >= len(dataset.images):
        raise ParameterError(f"--held-out {options.held_out}: expected fewer than the {len(dataset.images)} images")
    images, labels = dataset.sha256, dataset.labels_sha256
    return Settings(program=program, network=network, images=images, labels=labels, **chosen)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_training_images(path: Path) -> Dataset:
    """The split "train".

    Raises:
        DatasetError: if it cannot be read, or an image has no label.
    """
    dataset = load_dataset(path, "train")
    if (dataset.labels < 0).any():
        raise DatasetError(f"{path}: found images without a label; expected a class for each")
    return dataset


def usable_device(name: str | None) -> str:
    """The device of this name, or the best there is.

    Raises:
        ParameterError: if PyTorch has none of this name here.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        found = f"none that works ({_short_text(str(problem))})"
        raise ParameterError(f"--device {name}: found {found}; expected cpu or cuda") from None
    return name


def chosen_model(options: argparse.Namespace, dataset: Dataset) -> FloatModel:
    """What the options name: a new network for these images, or the float model of a file.

    Raises:
        ParameterError: if the float model is not for these images, or the architecture impossible.
        DatasetError: if its classes have other names.
        ModelFormatError: if the file breaks a rule of its format.
    """
    if options.model is None:
        names = dataset.class_names
        classes = len(names) or int(dataset.labels.max()) + 1
        model = architecture(options.architecture, dataset.images.shape[1:], classes, options.width, options.seed)
        return replace(model, class_names=names)
    if options.width != 1:
        raise ParameterError(f"--width {options.width}: expected none beside --model, which has widths of its own")
    return load_model_for(dataset, options.model)


def load_model_for(dataset: Dataset, path: Path) -> FloatModel:
    """The float model of a file, for these images.

    Raises:
        ParameterError: if it is for others.
        DatasetError: if its classes have other names.
        ModelFormatError: if the file breaks a rule of its format.
    """
    model = load_float_model(path)
    check_same_classes(dataset.class_names, model.class_names, "DATA")
    shape, classes = dataset.images.shape[1:], len(dataset.class_names) or int(dataset.labels.max()) + 1
    fits = model.classes == classes if dataset.class_names else model.classes >= classes
    if model.input.shape != shape or not fits:
        found = f"a model of images {model.input.shape} and {model.classes} classes"
        raise ParameterError(f"{path}: found {found}; expected images {shape} and {classes} classes, as in DATA")
    return model if model.class_names else replace(model, class_names=dataset.class_names)


def run(options: argparse.Namespace) -> None:
    """Train a float model, from the beginning or from a checkpoint, to the last epoch."""
    from intsmooth_ref.data_tools.torch_network import TorchNetwork, to_float_model

    dataset = load_training_images(options.data)
    model = chosen_model(options, dataset)
    described_as = f"{options.architecture}, width {options.width}"
    if options.model:
        described_as = f"float model {sha256_of(options.model)}"
    settings, output = settings_of(options, dataset, PROGRAM, described_as), options.out / FLOAT_MODEL
    expect_free(output, options.resume, options.model, options.init)
    network = TorchNetwork(model)
    if options.init:
        begin_with(options.init, network)

    def write_model(state: State) -> None:
        trained = to_float_model(state.average, model)
        save_float_model(output, replace(trained, provenance=provenance_of(settings, state)))

    train_to_the_end(options, settings, dataset, network, write_model, trained=bool(options.model or options.init))
    print(f"{output}: {settings.epochs} epochs done; quantize makes integers of it")


def expect_free(output: Path, resume: bool, *sources: Path | None) -> None:
    """Raise a ParameterError if a model would be overwritten that is not of this run."""
    if not output.exists():
        return
    if any(source is not None and output.samefile(source) for source in sources):
        raise ParameterError(f"{output}: found the file to begin with, to be overwritten; expected another --out")
    if not resume:
        raise ParameterError(f"{output}: found a file already; expected none, or the option --resume")


def provenance_of(settings: Settings, state: State) -> str:
    """Of the model that is written after an epoch."""
    import torch

    return (
        f"intsmooth_ref.data_tools.{settings.program}, PyTorch {torch.__version__}, epoch {len(state.records)} of "
        f"{settings.epochs}, moving average of the weights; settings {json.dumps(asdict(settings))}"
    )


def train_to_the_end(
    options: argparse.Namespace, settings: Settings, dataset: Dataset, network: torch.nn.Module,
    write_model: Callable[[State], None], trained: bool,
) -> None:  # fmt: skip
    """Train a network as `Trainer` describes it, from its weights or from a checkpoint, to the last epoch.

    Args:
        options: those of `add_training_options`, from which the settings come.
        write_model: called after each epoch, before the checkpoint is written: so a model is never older than that;
            and for a run that has nothing left to do, whose model may have been lost.
        trained: whether the network was trained before, so that its accuracy is worth telling before it goes on.
    """
    import torch

    torch.set_num_threads(1)  # the shards' threads do the work
    device = usable_device(options.device)
    checkpoint = options.out / CHECKPOINT
    if checkpoint.exists() and not options.resume:
        raise ParameterError(f"{checkpoint}: found a checkpoint already; expected none, or the option --resume")
    state = fresh_state(settings, network.to(device))
    if checkpoint.exists():
        restore(checkpoint, settings, state)
    source = Source(
        dataset.images, dataset.labels, *split_off(settings.images, len(dataset.images), settings.held_out),
        noise_table(discrete_gaussian(Fraction(settings.sigma))),
    )  # fmt: skip
    with closing(Trainer(settings, source, state, device)) as trainer, Interruption() as interruption:
        options.out.mkdir(parents=True, exist_ok=True)
        left = settings.epochs - len(state.records)
        say(opening(settings, source, state, device))
        if trained and not state.records and len(source.held_out):
            say(f"before the first epoch  under noise:{judgement(trainer.judged())}")
        if not left:
            write_model(state)
        progress = Progress(left, trainer.steps_per_epoch * settings.batch, "epochs")
        try:
            while len(state.records) < settings.epochs:
                trainer.epoch(progress.samples, interruption.check)
                write_model(state)
                save_checkpoint(options.out, settings, state)
                progress.image()
                progress.clear()
                say(described(state.records[-1], settings.epochs, progress.seconds / progress.images_done))
        finally:
            progress.clear()


def opening(settings: Settings, source: Source, state: State, device: str) -> str:
    """The first line of a run: what is trained on what."""
    learned = sum(parameter.numel() for parameter in state.network.parameters())
    done = f", {len(state.records)} of them done" if state.records else ""
    return (
        f"{settings.network}: {learned} parameters; {len(source.trained_on)} images, {len(source.held_out)} held out; "
        f"sigma {float(Fraction(settings.sigma) / FULL_SCALE):g}; {settings.epochs} epochs{done}; on {device}"
    )


def described(record: dict[str, Any], epochs: int, seconds_per_epoch: float) -> str:
    """A line of progress."""
    remaining = timedelta(seconds=round((epochs - record["epoch"]) * seconds_per_epoch))
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.4f}  under noise: training "
        f"{record['noisy_accuracy']:.2%}{judgement(record)}  {timedelta(seconds=round(record['seconds']))}, "
        f"{remaining} left"
    )


def judgement(record: Mapping[str, Any]) -> str:
    """What is known of the held-out images, if there are any."""
    noisy = record.get("held_out_noisy_accuracy")
    return "" if noisy is None else f"  held out {noisy:.2%} (clean {record['held_out_clean_accuracy']:.2%})"


def number_from_zero(limit: float) -> Callable[[str], float]:
    """A type of argument: numbers from 0 up to and without `limit`."""

    def number(text: str) -> float:
        if not 0 <= float(text) < limit:
            below = "" if limit == float("inf") else f" and below {limit:g}"
            raise argparse.ArgumentTypeError(f"{text}: expected a number of at least 0{below}")
        return float(text)

    return number


def train_parser() -> argparse.ArgumentParser:
    parser = argument_parser("train", __doc__, usage="%(prog)s [options] --out FOLDER DATA")
    parser.add_argument("data", type=Path, metavar="DATA", help='a dataset file with a split "train"')
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="resnet20", metavar="NAME",
                         help=f"one of {', '.join(ARCHITECTURES)} (default: %(default)s)")  # fmt: skip
    network.add_argument("--model", type=Path, metavar="FLOAT.h5", help="train this float model, beginning as it is")
    parser.add_argument("--width", type=rational, default=Fraction(1), metavar="W",
                        help="multiplies the channels of an architecture (default: %(default)s)")  # fmt: skip
    parser.add_argument("--bfloat16", action="store_true",
                        help="compute convolutions in this type: faster where the processor has it")  # fmt: skip
    parser.add_argument("--init", type=Path, metavar="FILE",
                        help="begin with the averaged weights of another run's checkpoint, or with those of a float "
                        "model")  # fmt: skip
    add_training_options(parser)
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Those that programs that train share; a caller may set other defaults."""
    add = parser.add_argument
    natural, small, any_size = integer_from(1), number_from_zero(1), number_from_zero(float("inf"))
    default = "(default: %(default)s)"
    add("--out", type=Path, required=True, metavar="FOLDER", help="where model, checkpoint and log go")
    add("--sigma", type=rational, default=Fraction(1, 4), metavar="S",
        help=f"noise as a fraction of full scale {default}")  # fmt: skip
    add("--epochs", type=natural, default=100, help=f"passes over the images {default}")
    add("--batch", type=natural, default=256, help=f"images in a batch, their copies not counted {default}")
    add("--learning-rate", type=any_size, default=0.2, metavar="R", help=f"at its peak {default}")
    add("--weight-decay", type=any_size, default=2e-4, metavar="D",
        help=f"L2 penalty on the weights of convolutions and linear layers {default}")  # fmt: skip
    add("--copies", type=natural, default=2, metavar="M", help=f"noisy copies of an image {default}")
    add("--consistency", type=any_size, default=5.0, metavar="W",
        help=f"weight of the term that makes an image's copies agree {default}")  # fmt: skip
    add("--entropy", type=any_size, default=0.5, metavar="W",
        help=f"weight of the entropy of their mean {default}")  # fmt: skip
    add("--label-smoothing", type=small, default=0.0, metavar="E",
        help=f"share of a label that goes to all classes alike {default}")  # fmt: skip
    add("--average", type=small, default=0.999, metavar="D",
        help=f"how much of the moving average of the weights a step keeps {default}")  # fmt: skip
    add("--mirror", action=argparse.BooleanOptionalAction, default=True,
        help="mirror half of the images, which is usual; --no-mirror for digits, letters and signs")  # fmt: skip
    add("--held-out", type=integer_from(0), metavar="N", help="images of the split that are not trained on but judged, "
        f"{HELD_OUT_COPIES} draws of noise each (default: {HELD_OUT_IMAGES}, or a tenth of fewer)")  # fmt: skip
    add("--shards", type=natural, default=2, metavar="N",
        help=f"parts of a batch, each with a thread: best the number of cores, or 1 on a GPU {default}")  # fmt: skip
    add("--seed", type=integer_from(0), default=0, help=f"0 to 2**64-1, of all that is random {default}")
    add("--resume", action="store_true", help="go on from the checkpoint in FOLDER, if there is one")
    add("--device", help="of PyTorch (default: cuda where there is one, else cpu)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    return run_training(run, train_parser().parse_args(arguments))


def run_training(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a program that trains; returns the exit status."""

    def interrupted() -> str:
        if (options.out / CHECKPOINT).exists():
            return "; --resume goes on after the last whole epoch"
        return " before the end of the first epoch; nothing is kept"

    room = "room for a batch: a smaller --batch or fewer --copies take less"
    return status_of(lambda: run(options), options.out, room=room, extra="train", interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
