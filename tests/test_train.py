"""Training: the noise is the sampler's, the loss is the published one, and an interruption changes no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from fractions import Fraction
from math import exp, log
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from intsmooth_ref.data_tools import augmentation, calibration, digits, train
from intsmooth_ref.data_tools.architectures import architecture
from intsmooth_ref.data_tools.augmentation import TRAINING, augmented, epoch, noisy_copies, split_off
from intsmooth_ref.data_tools.float_file import load_float_model, save_float_model
from intsmooth_ref.data_tools.float_model import Conv2D, arrays
from intsmooth_ref.dataset import Dataset, save_dataset
from intsmooth_ref.errors import ParameterError
from intsmooth_ref.noise.distributions import discrete_gaussian
from intsmooth_ref.noise.sampler import noise_table, sample

torch = pytest.importorskip("torch")

from intsmooth_ref.data_tools.torch_network import TorchNetwork  # noqa: E402  (needs PyTorch)

IMAGES, SIDE = 40, 8
TABLE = noise_table(discrete_gaussian(Fraction(255, 8)))
SETTINGS = train.Settings(
    program="train", network="resnet8, width 1", sigma="255/8", images="5eed", labels="", initial="", epochs=3, batch=8,
    learning_rate=0.1, weight_decay=1e-3, copies=2, consistency=3.0, entropy=0.5, label_smoothing=0.0, average=0.9,
    mirror=True, held_out=8, shards=2, bfloat16=False, seed=5,
)  # fmt: skip


def two_kinds_of_images() -> tuple[np.ndarray, np.ndarray]:
    """Dark images and bright ones, which a network tells apart at once."""
    labels = np.arange(IMAGES, dtype=np.int64) % 2
    noise = np.random.default_rng(1).integers(0, 60, (IMAGES, SIDE, SIDE, 3))
    return (noise + 180 * labels[:, None, None, None]).astype(np.uint8), labels


def fresh_state(settings: train.Settings) -> train.State:
    return train.fresh_state(settings, TorchNetwork(architecture("resnet8", (SIDE, SIDE, 3), 2, seed=settings.seed)))


def started(settings: train.Settings, state: train.State | None = None) -> train.Trainer:
    torch.set_num_threads(1)
    images, labels = two_kinds_of_images()
    source = train.Source(images, labels, *split_off(settings.images, IMAGES, settings.held_out), TABLE)
    return train.Trainer(settings, source, state or fresh_state(settings), "cpu")


def run_epochs(trainer: train.Trainer, count: int) -> train.Trainer:
    for _ in range(count):
        trainer.epoch(lambda count: None, lambda: None)
    return trainer


def weights(trainer: train.Trainer) -> list[bytes]:
    """The bits of the network, of its average and of the momentum."""
    state = trainer.state
    momenta = [entry["momentum_buffer"] for entry in state.optimizer.state_dict()["state"].values()]
    tensors = [*state.network.state_dict().values(), *state.average.state_dict().values(), *momenta]
    return [tensor.contiguous().numpy().tobytes() for tensor in tensors]


# --- images -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_addresses_that_the_module_names() -> None:
    images, _ = two_kinds_of_images()
    copies, first, draw = 3, 7, 6
    stage = TRAINING["train"]
    found = noisy_copies(images[:5], TABLE, 11, stage, draw, copies, first)
    assert found.shape == (copies, 5, SIDE, SIDE, 3) and found.dtype == np.int32
    for copy in range(copies):
        noise = sample(TABLE, 11, draw + copy, stage, first, 5, images[0].size)
        assert np.array_equal(found[copy], images[:5].astype(np.int32) + noise.reshape(5, SIDE, SIDE, 3))


def test_noise_is_the_same_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = two_kinds_of_images()
    compiled = noisy_copies(images, TABLE, 1, 22, 0, 2, 3)
    monkeypatch.setattr(augmentation, "numba_available", lambda: False)
    assert np.array_equal(compiled, noisy_copies(images, TABLE, 1, 22, 0, 2, 3))


def test_no_random_word_has_two_uses() -> None:
    from intsmooth_ref.noise.sampler import ESTIMATION, PREDICTION, SELECTION

    of_digits = [digits.TRAINING, digits.CALIBRATION, digits.EVALUATION, digits.KNOWN_ANSWERS]
    stages = [
        SELECTION, ESTIMATION, PREDICTION, calibration.CALIBRATION, calibration.KNOWN_ANSWERS, *of_digits,
        *TRAINING.values(), augmentation.HELD_OUT,
    ]  # fmt: skip
    assert len(stages) == len(set(stages)) == 12


def test_no_epoch_shares_its_random_numbers_with_another_of_any_program_or_with_the_first_weights() -> None:
    plans = [epoch(number, 500, 32, 3, stage, True) for number in range(3) for stage in TRAINING.values()]
    orders = [plan.order for plan in plans] + [np.random.default_rng(3).permutation(500)]
    assert len({order.tobytes() for order in orders}) == len(orders) == 7


def test_an_image_is_shifted_mirrored_and_padded_with_black() -> None:
    images, _ = two_kinds_of_images()
    plan = epoch(4, IMAGES, 24, seed=2, stage=22, mirror=True)  # as of taller images: more black
    found = augmented(images, plan, 10, 20)
    for place, position in enumerate(range(10, 30)):
        down, right = (int(each) for each in plan.shifts[position])
        for row in range(SIDE):
            for column in range(SIDE):
                y = row + down - plan.padding
                x = (SIDE - 1 - column if plan.mirrored[position] else column) + right - plan.padding
                inside = 0 <= y < SIDE and 0 <= x < SIDE
                expected = images[plan.order[position], y, x] if inside else np.zeros(3)
                assert np.array_equal(found[place, row, column], expected)


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own() -> None:
    plans = [epoch(number, 1000, 32, 3, 22, True) for number in range(2)]
    for plan in plans:
        assert np.array_equal(np.sort(plan.order), np.arange(1000))
        assert plan.shifts.min() == 0 and plan.shifts.max() == 8 and set(plan.mirrored) == {False, True}
    assert not np.array_equal(plans[0].order, plans[1].order)


def test_what_happens_to_an_image_of_32_pixels_is_what_the_module_says() -> None:
    plan, generator = epoch(7, 50, 32, 3, 22, True), np.random.default_rng((3, 22, 7))
    assert np.array_equal(plan.order, generator.permutation(50))
    assert np.array_equal(plan.shifts, generator.integers(0, 9, (50, 2)))
    assert np.array_equal(plan.mirrored, generator.random(50) < 0.5)


@pytest.mark.parametrize("height, padding", [(64, 8), (32, 4), (28, 3), (8, 1), (7, 0)])
def test_images_are_shifted_by_an_eighth_of_their_height(height: int, padding: int) -> None:
    plan = epoch(0, 1000, height, 3, 22, True)
    assert plan.padding == padding and plan.shifts.min() == 0 and plan.shifts.max() == 2 * padding


def test_without_mirrors_nothing_else_changes() -> None:
    mirrored, plain = (epoch(2, 100, 32, 3, 22, mirror) for mirror in (True, False))
    assert np.array_equal(mirrored.order, plain.order) and np.array_equal(mirrored.shifts, plain.shifts)
    assert mirrored.mirrored.any() and not plain.mirrored.any()


def test_what_is_held_out_is_never_trained_on() -> None:
    trained_on, held_out = split_off("9e3779b9", 100, 30)
    assert len(held_out) == 30 and np.array_equal(np.sort(np.concatenate([trained_on, held_out])), np.arange(100))
    trainer = started(SETTINGS)
    marked = trainer.source.images.copy()
    marked[trainer.source.held_out] = 255
    marked[trainer.source.trained_on] = 0
    trainer.source = replace(trainer.source, images=marked)
    stage = TRAINING["train"]
    plan = epoch(1, len(trainer.source.trained_on), SIDE, SETTINGS.seed, stage, True)
    for step in range(trainer.steps_per_epoch):
        noisy, labels = trainer._batch(plan, step)
        order = plan.order[8 * step : 8 * step + 8]
        assert np.array_equal(labels, trainer.source.labels[trainer.source.trained_on[order]])
        noise = [sample(TABLE, SETTINGS.seed, 2 + copy, stage, 8 * step, 8, SIDE * SIDE * 3) for copy in range(2)]
        assert np.array_equal(noisy.reshape(2, 8, -1), noise)  # upon black: nothing held out, which is white
    trainer.close()


def test_what_is_held_out_depends_on_the_images_alone_and_fewer_are_among_more() -> None:
    few, many = (set(split_off("9e3779b9", 1000, count)[1].tolist()) for count in (50, 200))
    assert few < many and len(many) == 200
    assert len(many & set(split_off("9e3779ba", 1000, 200)[1].tolist())) < 100  # other images, as chance has it: 40


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_program_holds_the_same_images_out_for_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    images, labels = two_kinds_of_images()
    expected = split_off(Dataset(images, labels, ("dark", "bright"), "", "train").sha256, IMAGES, 8)

    def instead_of_training(trainer: train.Trainer, *rest: object) -> None:
        assert np.array_equal(trainer.source.trained_on, expected[0])
        assert np.array_equal(trainer.source.held_out, expected[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "epoch", instead_of_training)
    assert train.main(arguments(tmp_path, "--seed", seed)) == 130


@pytest.mark.parametrize("program, stage", TRAINING.items())
def test_a_program_trains_under_noise_and_in_an_order_of_its_own(program: str, stage: int) -> None:
    trainer = started(replace(SETTINGS, program=program))
    trainer.source = replace(trainer.source, images=np.zeros_like(trainer.source.images))
    seen = []
    step = trainer._batch

    def remembered(plan: augmentation.Epoch, number: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append((plan.order, *step(plan, number)))
        return seen[-1][1:]

    trainer._batch = remembered  # type: ignore[method-assign]
    run_epochs(trainer, 1)
    trainer.close()
    order, noisy, _ = seen[0]
    assert np.array_equal(order, epoch(0, 32, SIDE, SETTINGS.seed, stage, True).order)
    noise = [sample(TABLE, SETTINGS.seed, copy, stage, 0, 8, SIDE * SIDE * 3) for copy in range(2)]
    assert np.array_equal(noisy.reshape(2, 8, -1), noise)


# --- loss, schedule ---------------------------------------------------------------------------------------------------


def loss_by_definition(scores: np.ndarray, labels: np.ndarray, consistency: float, entropy: float) -> float:
    """Equation (1), term by term."""
    total = 0.0
    for image, label in enumerate(labels):
        copies = []
        for row in scores[:, image]:
            weights = [exp(value) for value in row]
            copies.append([weight / sum(weights) for weight in weights])
        mean = [sum(column) / len(copies) for column in zip(*copies)]
        total -= sum(log(copy[label]) for copy in copies) / len(copies)
        total += consistency * sum(p * log(p / q) for copy in copies for p, q in zip(mean, copy)) / len(copies)
        total -= entropy * sum(p * log(p) for p in mean)
    return total / len(labels)


@pytest.mark.parametrize("consistency, entropy", [(0.0, 0.0), (3.0, 0.0), (0.0, 2.0), (5.0, 0.5)])
def test_the_loss_is_the_published_one(consistency: float, entropy: float) -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(3, 4, 5)), generator.integers(0, 5, 4)
    settings = replace(SETTINGS, consistency=consistency, entropy=entropy)
    found = train.consistent_loss(torch.from_numpy(scores), torch.from_numpy(labels), settings)
    assert float(found) == pytest.approx(loss_by_definition(scores, labels, consistency, entropy), rel=1e-12)


def test_without_copies_the_loss_is_cross_entropy() -> None:
    scores = np.log(np.array([[[0.5, 0.25, 0.25]]]))
    found = train.consistent_loss(torch.from_numpy(scores), torch.tensor([1]), SETTINGS)
    assert float(found) == pytest.approx(log(4), rel=1e-12)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [train.learning_rate(step, 200, 0.4) for step in range(200)]
    assert max(rates) == rates[19] == 0.4 and rates[0] == pytest.approx(0.02)
    assert all(before < after for before, after in zip(rates[:19], rates[1:20]))
    assert all(before > after for before, after in zip(rates[19:], rates[20:]))
    assert 0 < rates[-1] < 1e-4


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_batch_steps_along_the_mean_gradient_of_its_shards() -> None:
    settings = replace(SETTINGS, weight_decay=0.0)
    trainer, twin = started(settings), fresh_state(settings)
    images, labels = trainer._batch(epoch(0, 32, SIDE, settings.seed, 22, True), 0)
    shards = trainer._shards()
    trainer._step(shards, images, labels, 0)
    losses = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = twin.network(torch.from_numpy(images[:, part].reshape(8, SIDE, SIDE, 3))).unflatten(0, (2, 4))
        losses.append(train.consistent_loss(scores, torch.from_numpy(labels[part]), settings))
    (sum(losses) / 2).backward()
    for parameter, expected in zip(trainer.state.network.parameters(), twin.network.parameters()):
        assert torch.allclose(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)
    for first, second in zip(*(shard.buffers() for shard in shards)):
        assert torch.equal(first, second)
    trainer.close()


def test_the_learning_rate_of_a_step_counts_the_epochs_before() -> None:
    trainer = started(SETTINGS)
    for number in range(1, SETTINGS.epochs + 1):
        run_epochs(trainer, 1)
        rate = train.learning_rate(4 * number - 1, 4 * SETTINGS.epochs, SETTINGS.learning_rate)
        assert all(group["lr"] == rate for group in trainer.state.optimizer.param_groups)
        assert trainer.state.records[-1]["learning_rate"] == pytest.approx(rate, rel=1e-4)
    trainer.close()


def test_to_judge_changes_nothing() -> None:
    trainer = run_epochs(started(SETTINGS), 1)
    before = weights(trainer)
    first = trainer.judged()
    assert trainer.judged() == first and weights(trainer) == before
    trainer.close()


def test_training_learns_and_its_average_is_judged_on_what_is_held_out() -> None:
    trainer = run_epochs(started(replace(SETTINGS, epochs=12)), 12)
    records = trainer.state.records
    assert sum(record["noisy_accuracy"] for record in records[-5:]) / 5 > 0.85
    assert sum(record["loss"] for record in records[-5:]) / 5 < records[0]["loss"] / 2
    assert records[-1]["held_out_noisy_accuracy"] > 0.9 and records[-1]["held_out_clean_accuracy"] > 0.9
    trainer.close()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(tmp_path: Path, bfloat16: bool) -> None:
    settings = replace(SETTINGS, bfloat16=bfloat16)
    whole = run_epochs(started(settings), 3)
    part = run_epochs(started(settings), 1)
    train.save_checkpoint(tmp_path, settings, part.state)
    resumed = started(settings)
    train.restore(tmp_path / train.CHECKPOINT, settings, resumed.state)
    run_epochs(resumed, 2)
    assert weights(whole) == weights(resumed) != weights(part)
    strip = [{**record, "seconds": 0} for record in whole.state.records]
    assert strip == [{**record, "seconds": 0} for record in resumed.state.records]
    for trainer in (whole, part, resumed):
        trainer.close()


@pytest.mark.parametrize("change", [{"seed": 6}, {"mirror": False}])
def test_another_seed_and_other_images_give_other_weights(change: dict[str, Any]) -> None:
    same_start = fresh_state(SETTINGS)
    first = run_epochs(started(SETTINGS), 1)
    second = run_epochs(started(replace(SETTINGS, **change), same_start), 1)
    assert weights(first) != weights(second)
    first.close()
    second.close()


def test_a_run_under_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    trainer = started(SETTINGS)
    train.save_checkpoint(tmp_path, SETTINGS, trainer.state)
    with pytest.raises(ParameterError, match="found sigma '255/8'; expected '255/4', for a run that goes on"):
        train.restore(tmp_path / train.CHECKPOINT, replace(SETTINGS, sigma="255/4"), trainer.state)
    trainer.close()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / train.CHECKPOINT).write_bytes(content)
    with pytest.raises(ParameterError, match="found no whole checkpoint") as problem:
        train.read_checkpoint(tmp_path / train.CHECKPOINT)
    assert "\n" not in str(problem.value)


def good_checkpoint() -> dict[str, Any]:
    """After one epoch."""
    trainer = run_epochs(started(SETTINGS), 1)
    trainer.close()
    state = trainer.state
    return {
        "format": train.FORMAT, "settings": asdict(SETTINGS), "network": state.network.state_dict(),
        "average": state.average.state_dict(), "momentum": train.momentum_of(state), "records": state.records,
    }  # fmt: skip


def changed(tensors: dict[str, Any], **change: Any) -> dict[str, Any]:
    """The first tensor, changed: to a value, or to a tensor."""
    first = next(iter(tensors))
    value = change.get("fill")
    return {**tensors, first: torch.full_like(tensors[first], value) if value is not None else change["tensor"]}


NO_SETTINGS = "found program None"
NOWHERE = "found no whole checkpoint"
OTHER = "found weights of another network"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a tensor": (lambda good: torch.zeros(3), NOWHERE),
    "a number": (lambda good: torch.tensor(1.0), NOWHERE),
    "a list": (lambda good: [1], NOWHERE),
    "text": (lambda good: "abc", NOWHERE),
    "nothing": (lambda good: None, NOWHERE),
    "an older format": (lambda good: {**good, "format": "intsmooth-ref training 2"}, "training 2'"),
    "a tensor as format": (lambda good: {**good, "format": torch.zeros(3)}, NOWHERE),
    "no settings": (lambda good: {key: value for key, value in good.items() if key != "settings"}, NO_SETTINGS),
    "a list of settings": (lambda good: {**good, "settings": [1]}, NO_SETTINGS),
    "a tensor as setting": (
        lambda good: {**good, "settings": {**good["settings"], "epochs": torch.zeros(9, 9)}}, "found epochs tensor("),
    "a setting of another type": (lambda good: {**good, "settings": {**good["settings"], "epochs": 3.0}}, "epochs 3.0"),
    "no weights": (lambda good: {**good, "network": None}, OTHER),
    "a list of weights": (lambda good: {**good, "average": [1]}, OTHER),
    "no momentum": (lambda good: {**good, "momentum": {}}, OTHER),
    "momentum of another shape": (
        lambda good: {**good, "momentum": changed(good["momentum"], tensor=torch.zeros(3))}, OTHER),
    "weights of another type": (
        lambda good: {**good, "network": {name: each.double() for name, each in good["network"].items()}}, OTHER),
    "sparse weights": (
        lambda good: {**good, "network": {name: each.to_sparse() for name, each in good["network"].items()}}, OTHER),
    "weights with another name": (lambda good: {**good, "network": {**good["network"], "more": torch.zeros(1)}}, OTHER),
    "weights that are no number": (
        lambda good: {**good, "network": changed(good["network"], fill=float("nan"))}, "that are no numbers"),
    "an infinite average": (
        lambda good: {**good, "average": changed(good["average"], fill=float("inf"))}, "that are no numbers"),
    "infinite momentum": (
        lambda good: {**good, "momentum": changed(good["momentum"], fill=float("inf"))}, "that are no numbers"),
    "a number as log": (lambda good: {**good, "records": 3}, "found a damaged log"),
    "numbers as log": (lambda good: {**good, "records": [1]}, "found a damaged log"),
    "a log of more epochs": (lambda good: {**good, "records": [{"epoch": n} for n in (1, 2, 3, 4)]}, "found a damaged"),
    "a log of another epoch": (lambda good: {**good, "records": [{"epoch": 2}]}, "found a damaged log"),
    "a log of tensors": (lambda good: {**good, "records": [{"epoch": torch.ones(2)}]}, "found a damaged log"),
    "a log that is no number": (
        lambda good: {**good, "records": [{"epoch": 1, "loss": float("nan")}]}, "found a damaged log"),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint_of_one_epoch() -> dict[str, Any]:
    return good_checkpoint()


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_checkpoint_but_a_whole_one_is_gone_on_with(
    tmp_path: Path, checkpoint_of_one_epoch: dict[str, Any], damage: str
) -> None:
    path, (damaged, problem) = tmp_path / train.CHECKPOINT, DAMAGES[damage]
    torch.save(checkpoint_of_one_epoch, path)
    train.restore(path, SETTINGS, fresh_state(SETTINGS))
    torch.save(damaged(dict(checkpoint_of_one_epoch)), path)
    with pytest.raises(ParameterError) as refusal:
        train.restore(path, SETTINGS, fresh_state(SETTINGS))
    assert problem in str(refusal.value) and "\n" not in str(refusal.value)


def test_of_the_optimizer_a_checkpoint_gives_the_momentum_alone(
    tmp_path: Path, checkpoint_of_one_epoch: dict[str, Any]
) -> None:
    """What steps are like is for the settings to say, not for a file."""
    torch.save({**checkpoint_of_one_epoch, "optimizer": {"param_groups": [{"maximize": True}]}}, tmp_path / "any.pt")
    state = fresh_state(SETTINGS)
    before = [{key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups]
    train.restore(tmp_path / "any.pt", SETTINGS, state)
    after = [{key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups]
    assert before == after and after[0]["momentum"] == 0.9 and after[0]["nesterov"] and not after[0]["maximize"]
    for name, momentum in train.momentum_of(state).items():
        assert torch.equal(momentum, checkpoint_of_one_epoch["momentum"][name]) and momentum.any(), name


def test_shards_share_the_mean_of_their_statistics() -> None:
    trainer = started(SETTINGS)
    shards = trainer._shards()
    for value, shard in enumerate(shards, start=1):
        for statistics in shard.buffers():
            statistics.fill_(value)
    train.share_statistics(shards)
    for shard in shards:
        assert all((each == 1.5).all() for each in shard.buffers() if each.is_floating_point())
    trainer.close()


def test_the_average_moves_by_what_is_not_kept() -> None:
    state = fresh_state(SETTINGS)
    with torch.no_grad():
        for network, value in ((state.average, 8.0), (state.network, 16.0)):
            for tensor in network.state_dict().values():
                tensor.fill_(value)
    train.update_average(state.average, state.network, 0.75)
    found = [tensor for tensor in state.average.state_dict().values() if tensor.is_floating_point()]
    assert len(found) > 20 and all((tensor == 10).all() for tensor in found)


# --- any network ------------------------------------------------------------------------------------------------------


class Brightness(torch.nn.Module):
    """Scores of the mean grey level: no batch norm, no buffers, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(2))
        self.middle = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.seen: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((images.dtype, images.shape[1:]))
        return (images.float().mean(dim=(1, 2, 3))[:, None] / 255 - self.middle) * self.gain


@pytest.mark.parametrize("shards", [1, 3])
def test_any_module_is_trained_that_takes_grey_levels(shards: int) -> None:
    settings = replace(SETTINGS, shards=shards, learning_rate=2.0, epochs=4)
    network = Brightness()
    trainer = run_epochs(started(settings, train.fresh_state(settings, network)), 4)
    assert set(network.seen) == {(torch.int32, (SIDE, SIDE, 3))}
    assert set(trainer.state.average.seen) == {(torch.int32, (SIDE, SIDE, 3))}
    assert trainer.state.records[-1]["held_out_noisy_accuracy"] == 1.0
    assert network.gain[1] > 0 > network.gain[0] and network.middle == 0.5
    trainer.close()


class Integers(torch.nn.Module):
    """Scores beyond the integers of float32, as accumulators are: the second class by one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = torch.tensor([[2.0**24, 2.0**24 + 1]], dtype=torch.float64).expand(len(images), 2)
        return scores * self.scale.double()


def test_classes_are_counted_by_the_scores_as_they_are() -> None:
    settings = replace(SETTINGS, learning_rate=0.0)
    trainer = started(settings, train.fresh_state(settings, Integers()))
    trainer.source = replace(trainer.source, labels=np.ones_like(trainer.source.labels))
    run_epochs(trainer, 1)
    assert trainer.state.records[0]["noisy_accuracy"] == trainer.state.records[0]["held_out_clean_accuracy"] == 1.0
    trainer.close()


def test_what_has_one_dimension_does_not_decay() -> None:
    state = fresh_state(SETTINGS)
    decay, none = state.optimizer.param_groups
    assert decay["weight_decay"] == SETTINGS.weight_decay and none["weight_decay"] == 0
    assert {each.ndim for each in decay["params"]} == {2, 4} and {each.ndim for each in none["params"]} == {1}
    assert len(decay["params"]) + len(none["params"]) == len(list(state.network.parameters()))


# --- the program ------------------------------------------------------------------------------------------------------


def arguments(tmp_path: Path, *more: str) -> list[str]:
    """Few epochs of a small network, or of what `more` names."""
    images, labels = two_kinds_of_images()
    data = tmp_path / "data.h5"
    if not data.exists():
        save_dataset(data, [Dataset(images, labels, ("dark", "bright"), "made for a test", "train")])
    few = ["--epochs", "2", "--batch", "8", "--held-out", "8", "--sigma", "1/8"]
    network = [] if "--model" in more else ["--architecture", "resnet8"]
    return [str(data), "--out", str(tmp_path / "run"), *few, *network, *more]


def started_like_the_program(tmp_path: Path) -> train.Trainer:
    """At the first of two epochs, as `arguments` has it."""
    content = train.read_checkpoint(tmp_path / "run" / train.CHECKPOINT)
    settings = train.Settings(**content["settings"])
    model = architecture("resnet8", (SIDE, SIDE, 3), 2, seed=settings.seed)
    return started(settings, train.fresh_state(settings, TorchNetwork(model)))


def test_the_program_trains_and_fine_tunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(arguments(tmp_path)) == 0
    assert "2 epochs done" in capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run" / train.LOG).read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2] and all(record["seconds"] >= 0 for record in log)
    first = tmp_path / "run" / train.CHECKPOINT
    before = train.read_checkpoint(first)
    assert train.main(arguments(tmp_path)) == 1
    assert "float.h5: found a file already; expected none, or the option --resume" in capsys.readouterr().err
    (tmp_path / "run" / train.FLOAT_MODEL).unlink()
    assert train.main(arguments(tmp_path)) == 1
    assert "found a checkpoint already; expected none, or the option --resume" in capsys.readouterr().err
    tuned = arguments(tmp_path, "--init", str(first), "--out", str(tmp_path / "tuned"), "--learning-rate", "0")
    assert train.main(tuned) == 0
    after = train.read_checkpoint(tmp_path / "tuned" / train.CHECKPOINT)
    for name, tensor in after["network"].items():
        if not name.endswith(("mean", "variance")):  # at rate 0 nothing moves: what is found is what it began with
            assert torch.equal(tensor, before["average"][name]), name
    assert not list(tmp_path.rglob("*.part"))


def test_each_epoch_leaves_the_float_model_of_the_average(tmp_path: Path) -> None:
    assert train.main(arguments(tmp_path, "--seed", str((1 << 64) - 1))) == 0
    model = load_float_model(tmp_path / "run" / train.FLOAT_MODEL)
    average = train.read_checkpoint(tmp_path / "run" / train.CHECKPOINT)["average"]
    found = TorchNetwork(model).state_dict()
    assert list(found) == list(average) and all(torch.equal(found[name], average[name]) for name in found)
    assert model.class_names == ("dark", "bright") and model.input.shape == (SIDE, SIDE, 3)
    images, _ = two_kinds_of_images()
    digest = Dataset(images, np.zeros(IMAGES, np.int64), ("dark", "bright"), "", "train").sha256
    for part in (digest, f"PyTorch {torch.__version__}", "epoch 2 of 2", '"sigma": "255/8"', '"resnet8, width 1"'):
        assert part in model.provenance


@pytest.mark.parametrize("option", ["--init", "--model"])
def test_a_float_model_is_trained_from_its_weights_on(tmp_path: Path, option: str) -> None:
    model = architecture("resnet8", (SIDE, SIDE, 3), 2, seed=77)
    save_float_model(tmp_path / "first.h5", model)
    command = arguments(tmp_path, "--learning-rate", "0", option, str(tmp_path / "first.h5"))
    assert train.main(command) == 0
    tuned = load_float_model(tmp_path / "run" / train.FLOAT_MODEL)
    for before, after in zip(model.layers, tuned.layers):
        for name, array in arrays(before).items():
            assert before.name == after.name
            moves = before.kind == "BatchNorm" and name in ("mean", "variance")
            if not moves:
                np.testing.assert_allclose(arrays(after)[name], array, rtol=1e-6, atol=0)


@pytest.mark.parametrize("option", ["--init", "--model"])
def test_the_model_to_begin_with_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / train.FLOAT_MODEL
    save_float_model(path, architecture("resnet8", (SIDE, SIDE, 3), 2))
    before = path.read_bytes()
    for more in ([], ["--resume"]):
        assert train.main(arguments(tmp_path, option, str(path), *more)) == 1
        assert "found the file to begin with, to be overwritten; expected another --out" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_run_that_goes_on_writes_the_same_model(tmp_path: Path) -> None:
    assert train.main(arguments(tmp_path)) == 0
    assert train.main(arguments(tmp_path, "--out", str(tmp_path / "again"))) == 0
    trainer = started_like_the_program(tmp_path)
    run_epochs(trainer, 1)
    train.save_checkpoint(tmp_path / "again", trainer.settings, trainer.state)
    trainer.close()
    (tmp_path / "again" / train.FLOAT_MODEL).unlink()
    assert train.main(arguments(tmp_path, "--out", str(tmp_path / "again"), "--resume")) == 0
    first, second = (tmp_path / run / train.FLOAT_MODEL for run in ("run", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["vgg11", "mobilenetv2"])
def test_other_architectures_are_trained_too_from_weights_of_the_seed(tmp_path: Path, name: str) -> None:
    few = ["--architecture", name, "--width", "1/8", "--epochs", "1", "--no-mirror"]
    assert train.main(arguments(tmp_path, *few, "--seed", "3", "--learning-rate", "0")) == 0
    model = load_float_model(tmp_path / "run" / train.FLOAT_MODEL)
    expected = architecture(name, (SIDE, SIDE, 3), 2, Fraction(1, 8), seed=3)
    for layer, first in zip(model.layers, expected.layers, strict=True):
        assert layer.name == first.name
        if isinstance(first, Conv2D):  # at rate 0 nothing moves
            np.testing.assert_allclose(arrays(layer)["weights"], first.weights, rtol=1e-6)
    assert f'"{name}, width 1/8"' in model.provenance and '"mirror": false' in model.provenance


@pytest.mark.parametrize(
    "shape, classes, names, more, problem",
    [
        ((9, 8, 3), 2, (), [], "images (9, 8, 3) and 2 classes; expected images (8, 8, 3)"),
        ((8, 8, 3), 3, (), [], "and 3 classes; expected images (8, 8, 3) and 2 classes, as in DATA"),
        ((8, 8, 3), 2, ("bright", "dark"), [], "DATA: found class 0 called 'dark'; expected 'bright', as in the model"),
        ((8, 8, 3), 2, (), ["--width", "2"], "--width 2: expected none beside --model"),
    ],
)
def test_a_model_for_other_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, int, int], classes: int,
    names: tuple[str, ...], more: list[str], problem: str,
) -> None:  # fmt: skip
    model = replace(architecture("resnet8", shape, classes), class_names=names)
    save_float_model(tmp_path / "other.h5", model)
    command = arguments(tmp_path, "--model", str(tmp_path / "other.h5"), *more)
    assert train.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and problem in line


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(arguments(tmp_path)) == 0
    checkpoint = str(tmp_path / "run" / train.CHECKPOINT)
    deeper = arguments(tmp_path, "--out", str(tmp_path / "b"), "--architecture", "resnet20", "--init", checkpoint)
    assert train.main(deeper) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "found weights of another network; expected those of the same layers" in line


def test_weights_of_another_program_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = good_checkpoint()
    content["settings"]["program"] = "integer_training"
    torch.save(content, tmp_path / "other.pt")
    assert train.main(arguments(tmp_path, "--init", str(tmp_path / "other.pt"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "found program 'integer_training'; expected 'train', for weights to begin with" in line


def test_an_error_is_one_line_whatever_its_names_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\n\x1b[2Jerror: all is well.h5"
    save_float_model(path, architecture("resnet8", (SIDE, 9, 3), 2))
    assert train.main(arguments(tmp_path, "--model", str(path))) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error[:-1].isprintable() and "a\\n\\x1b[2Jerror: all is well.h5: found" in error


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, which is the last that a program says."""
    *said, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and not any(line.startswith("error") for line in said)
    return last


def too_much_for_pytorch() -> None:
    torch.empty(1 << 58, dtype=torch.uint8)


def too_much_for_python() -> None:
    raise MemoryError


def too_much_for_a_gpu() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("demand", [too_much_for_pytorch, too_much_for_python, too_much_for_a_gpu])
def test_too_little_memory_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demand: Callable[[], None]
) -> None:
    monkeypatch.setattr(train.Trainer, "_gradient", lambda *rest: demand())
    assert train.main(arguments(tmp_path)) == 1
    assert error_line(capsys).startswith("error: found too little memory; expected")


def test_an_error_of_the_program_itself_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*rest: object) -> None:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(train.Trainer, "_gradient", wrong)
    with pytest.raises(RuntimeError, match="must match"):
        train.main(arguments(tmp_path))


def test_a_finished_run_writes_a_lost_model_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(arguments(tmp_path)) == 0
    path = tmp_path / "run" / train.FLOAT_MODEL
    assert str(path) in capsys.readouterr().out
    before = path.read_bytes()
    path.unlink()
    assert train.main(arguments(tmp_path, "--resume")) == 0
    assert path.read_bytes() == before


def test_few_images_are_not_all_held_out(tmp_path: Path) -> None:
    command = arguments(tmp_path)
    options = train.train_parser().parse_args(command)
    options.held_out = None
    dataset = train.load_training_images(options.data)
    assert train.settings_of(options, dataset, "train", "").held_out == IMAGES // 10


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    assert train.main(arguments(tmp_path, "--batch", "64")) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_the_checkpoint_and_resume_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intsmooth_ref.data_tools.train", *arguments(tmp_path, "--epochs", "100000")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        assert "100000 epochs; on cpu" in process.stderr.readline()
        assert process.stderr.readline().startswith("epoch 1/100000")
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().splitlines()
        assert process.wait() == 130
    assert lines[-1] == "interrupted; --resume goes on after the last whole epoch"
    done = len(train.read_checkpoint(tmp_path / "run" / train.CHECKPOINT)["records"])
    log = (tmp_path / "run" / train.LOG).read_text().splitlines()
    assert done == len(log) == 1 + sum(line.startswith("epoch") for line in lines)


@pytest.mark.parametrize(
    "more, problem",
    [
        (["--batch", "1"], "--batch 1: expected an image for each of the 2 --shards at least"),
        (["--held-out", "40"], "expected fewer than the 40 images"),
        (["--batch", "64"], "--batch 64: found 32 images to train on; expected a batch of them at least"),
        (["--init", "nowhere.pt"], "No such file"),
        (["--seed", str(1 << 64)], "expected 0 to 18446744073709551615"),
        (["--model", "nowhere.h5"], "nowhere.h5"),
        (["--width", "0"], "width 0: expected a number above zero"),
        (["--width", "1e6"], "layer 'stem': found weights of shape (16000000, 3, 3, 3)"),
        (["--device", "abacus"], "--device abacus: found none that works"),
        (["--learning-rate", "1e30"], "in step 2 of epoch 1; expected a number: a lower --learning-rate may help"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], problem: str
) -> None:
    assert train.main(arguments(tmp_path, *more)) == 1
    assert problem in error_line(capsys)


@pytest.mark.parametrize(
    "option",
    ["--architecture=resnet19", "--model=x", "--width=x", "--sigma=x", "--epochs=0", "--average=1", "--consistency=-1"],
)
def test_wrong_options_end_in_status_2(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(tmp_path, option))
    assert stop.value.code == 2
