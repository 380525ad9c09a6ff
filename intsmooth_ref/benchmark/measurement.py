"""Measuring: contestants in turns, round after round, so that what disturbs the machine disturbs them all alike.

Each contestant first tries a few batch sizes and keeps its best. Then come rounds: in each, every contestant has a turn
of some tenths of a second, the order rotating from round to round. A speed is the median of its turns, with the lowest
and the highest beside it; a ratio is the median of the rounds' ratios, each of two turns of one round.

With more than one thread a peer may share each batch among its threads, or run one single-threaded instance a thread,
each on a batch of its own; it keeps what is faster. This package's engine runs in the second way, as certifying does.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from .. import __version__
from ..certify.smoothing import SmoothedClassifier
from ..engine import Engine
from ..engine.jit.selection import available_isas
from ..engine.jit.simd import INSTRUCTION_SETS, measured_peak
from ..errors import ParameterError
from ..machine import cpu_model, usable_cores, versions
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..noise.sampler import ESTIMATION
from .networks import noisy_pictures, pictures
from .peers import Peer, Run

#: Samples in a batch of one instance that each contestant tries.
BATCHES = (1, 8, 32, 128)
#: A batch that takes longer, in seconds, is the largest tried.
LONGEST_BATCH = 1.0
#: A batch size is tried so often, each time for this part of a turn; the best time counts.
TRIALS, TRIAL = 2, 0.5
#: Votes that are counted at least, a part of them in each round, and before that for warming up.
CERTIFY_SAMPLES, CERTIFY_WARM_UP = 10_000, 200

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, eq=False)
class Contestant:
    """One way to compute the network.

    Attributes:
        name: what is measured.
        kind: `own`, `fp32` or `int8`.
        version: of the package or framework.
        isa: of our own engine, else None.
        prepare: makes the network ready for a batch of images on a number of threads.
        shares_batch: whether it can run one batch on several threads.
    """

    name: str
    kind: str
    version: str
    isa: str | None
    prepare: Callable[[int, np.ndarray], Run]
    shares_batch: bool


@dataclass(frozen=True)
class Speed:
    """What a contestant reached.

    Attributes:
        batch: samples a call of one instance; `instances` of them run side by side.
        samples_per_second: of all threads together.
        multiply_adds_per_second: those of the network, at the median speed.
        share_of_peak: for our own engine, of what its instructions reach in registers alone in the same round; None for
            plain loops, which have no such limit.
        agreement: for a peer, the share of `compared` noisy pictures on which it gives our engine's class.
    """

    name: str
    kind: str
    version: str
    batch: int
    instances: int
    samples_per_second: Spread
    multiply_adds_per_second: float
    share_of_peak: Spread | None
    agreement: float | None
    compared: int


@dataclass(frozen=True)
class Ratio:
    """How many times faster `name` is than `peer`, the fastest of its kind."""

    name: str
    peer: str
    kind: str
    times: Spread


@dataclass(frozen=True)
class ProfileStep:
    """One step of our engine: the layers that it computes at once, by which kernel; seconds and work of one sample."""

    layers: tuple[str, ...]
    kernel: str
    multiply_adds: int
    seconds: float


@dataclass(frozen=True)
class Certifying:
    """Votes under noise, end to end: noise drawn and added, samples classified and counted.

    `share_of_network` is that speed as a share of the bare network's in the turn before.
    """

    samples: int
    samples_per_second: Spread
    share_of_network: Spread


@dataclass(frozen=True)
class NetworkResult:
    """All that was measured of one network; peaks are multiply-adds per second of one core, by instruction set."""

    network: str
    fingerprint: str
    multiply_adds: int
    speeds: tuple[Speed, ...]
    ratios: tuple[Ratio, ...]
    left_out: Mapping[str, str]
    peaks: Mapping[str, Spread]
    profiles: Mapping[str, tuple[ProfileStep, ...]]
    certifying: Mapping[str, Certifying]


@dataclass(frozen=True)
class Effort:
    """How long is measured: threads, seconds of a turn, number of rounds; and whether certifying is measured too."""

    threads: int
    seconds: float
    rounds: int
    certify: bool


@dataclass(frozen=True, eq=False)
class _Ready:
    """A contestant at its best batch size, and its scores or classes of the first noisy pictures."""

    contestant: Contestant
    batch: int
    instances: int
    run: Run
    answers: np.ndarray

    @property
    def samples(self) -> int:
        """Of one call of `run`."""
        return self.batch * self.instances


# --- the machine ------------------------------------------------------------------------------------------------------


def machine(peers: Sequence[Peer]) -> dict[str, object]:
    """What is measured on, and with which versions."""
    names = [*dict.fromkeys(["numpy", "numba", *(package for peer in peers for package in peer.packages)])]
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "isas": list(available_isas()),
        "python": platform.python_version(),
        "versions": versions(names),
    }


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Bind this thread, and those that it starts, to as many cores, where the system knows how.

    Raises:
        ParameterError: if there are fewer.
    """
    if threads > usable_cores():
        raise ParameterError(f"--threads {threads}: this process may use {usable_cores()} cores")
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- contestants ------------------------------------------------------------------------------------------------------


def own_contestant(engine: Engine) -> Contestant:
    """Our compiled engine; its answers are the classes themselves."""

    def prepare(threads: int, images: np.ndarray) -> Run:
        return lambda: engine.classify(images)

    return Contestant(f"intsmooth_ref {engine.isa}", "own", __version__, engine.isa, prepare, shares_batch=False)


def peer_contestant(model: IntegerModel, peer: Peer) -> Contestant:
    return Contestant(
        peer.name, peer.kind, peer.version, None, partial(peer.prepare, model), shares_batch=True
    )


def _side_by_side(contestant: Contestant, instances: int, images: np.ndarray) -> Run:
    """Single-threaded instances, each on its part of the images."""
    runs = [contestant.prepare(1, part) for part in np.split(images, instances)]
    pool = ThreadPoolExecutor(instances)
    return lambda: np.concatenate(list(pool.map(lambda run: run(), runs)))


def _ready(contestant: Contestant, images: np.ndarray, effort: Effort, progress: Progress) -> _Ready:
    """Try the batch sizes; keep the fastest. `images` are enough for the largest on every thread."""
    tried: list[_Ready] = []
    for batch in BATCHES:
        longest = 0.0
        for instances in sorted({1, effort.threads}):
            if instances < effort.threads and not contestant.shares_batch:
                continue
            progress(f"{contestant.name}: preparing batches of {batch}")
            chosen = images[: batch * instances]
            if instances == 1:
                run = contestant.prepare(effort.threads, chosen)
            else:
                run = _side_by_side(contestant, instances, chosen)
            tried.append(_Ready(contestant, batch, instances, run, run().copy()))
            longest = max(longest, _seconds(run))
        if longest > LONGEST_BATCH:
            break
    speeds = [0.0] * len(tried)
    for _ in range(TRIALS):
        for number, each in enumerate(tried):
            progress(f"{contestant.name}: trying batches of {each.batch}")
            speeds[number] = max(speeds[number], _turn(each.run, each.samples, effort.seconds * TRIAL))
    return replace(tried[speeds.index(max(speeds))], answers=tried[-1].answers)


# --- turns and rounds -------------------------------------------------------------------------------------------------


def _seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _turn(run: Run, samples: int, seconds: float) -> float:
    """Samples per second over a turn, after one call that is not counted."""
    run()
    calls, begin = 0, time.perf_counter()
    while True:
        run()
        calls += 1
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return calls * samples / elapsed


def measure(
    network: str, model: IntegerModel, isas: Sequence[str | None], peers: Sequence[Peer], effort: Effort,
    progress: Progress,
) -> NetworkResult:  # fmt: skip
    """Measure one network.

    Args:
        network: its name in the result.
        isas: instruction sets of our engine; None is the one that it takes by itself.
        peers: those installed. One that cannot compute this network is left out, and the result says why.
        progress: called often, with what is being done; may raise to end the measurement.
    """
    images = noisy_pictures(model.input.shape, max(BATCHES) * effort.threads)

    def say(what: str) -> None:
        progress(f"{network}: {what}")

    say("compiling")
    engines = [Engine(model, "jit", isa) for isa in isas]
    own = [_ready(own_contestant(engine), images, effort, say) for engine in engines]
    ready, left_out = list(own), {}
    for peer in peers:
        try:
            ready.append(_ready(peer_contestant(model, peer), images, effort, say))
        except Exception as problem:  # a framework fails in ways of its own
            left_out[peer.name] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    rates: dict[str, list[float]] = {each.contestant.name: [] for each in ready}
    peaks: dict[str, list[float]] = {engine.isa: [] for engine in engines if engine.isa in INSTRUCTION_SETS}
    for isa in peaks:
        measured_peak(isa, effort.seconds)  # compiles
    for number in range(effort.rounds):
        for isa in peaks:
            say(f"round {number + 1} of {effort.rounds}: peak of {isa}")
            peaks[isa].append(measured_peak(isa, effort.seconds))
        turns = number % len(ready)
        for each in ready[turns:] + ready[:turns]:
            say(f"round {number + 1} of {effort.rounds}: {each.contestant.name}")
            rates[each.contestant.name].append(_turn(each.run, each.samples, effort.seconds))
    multiply_adds = sum(model.multiply_adds.values())
    speeds = tuple(_speed(each, rates, peaks, multiply_adds, effort.threads, own[0].answers) for each in ready)
    profiles: dict[str, tuple[ProfileStep, ...]] = {}
    certifying: dict[str, Certifying] = {}
    for engine, each, speed in zip(engines, own, speeds):
        say(f"profile of {engine.isa}")
        repeats = max(round(effort.seconds * speed.samples_per_second.median / each.samples), 1)
        profiles[engine.isa] = _profile(engine, images[: each.batch], repeats)
        if effort.certify:
            certifying[engine.isa] = _certifying(model, engine.isa, each, effort, say)
    return NetworkResult(
        network, fingerprint(model), multiply_adds, speeds, _ratios(speeds, rates), left_out,
        {isa: Spread.of(values) for isa, values in peaks.items()}, profiles, certifying,
    )  # fmt: skip


def _speed(
    ready: _Ready, rates: Mapping[str, Sequence[float]], peaks: Mapping[str, Sequence[float]], multiply_adds: int,
    threads: int, classes: np.ndarray,
) -> Speed:  # fmt: skip
    contestant = ready.contestant
    turns = rates[contestant.name]
    samples_per_second = Spread.of(turns)
    share_of_peak = agreement = None
    compared = min(len(ready.answers), len(classes))
    if contestant.isa is None:
        agreement = float(np.mean(ready.answers[:compared].argmax(axis=1) == classes[:compared]))
    elif contestant.isa in peaks:
        pairs = zip(turns, peaks[contestant.isa])
        share_of_peak = Spread.of([rate * multiply_adds / (peak * threads) for rate, peak in pairs])
    return Speed(
        contestant.name, contestant.kind, contestant.version, ready.batch, ready.instances, samples_per_second,
        samples_per_second.median * multiply_adds, share_of_peak, agreement, compared,
    )  # fmt: skip


def _ratios(speeds: Sequence[Speed], rates: Mapping[str, Sequence[float]]) -> tuple[Ratio, ...]:
    """Of each of our own to the fastest peer of each kind."""
    ratios = []
    for own in (speed for speed in speeds if speed.kind == "own"):
        for kind in ("fp32", "int8"):
            peers = [speed for speed in speeds if speed.kind == kind]
            if peers:
                fastest = max(peers, key=lambda speed: speed.samples_per_second.median).name
                times = [ours / theirs for ours, theirs in zip(rates[own.name], rates[fastest])]
                ratios.append(Ratio(own.name, fastest, kind, Spread.of(times)))
    return tuple(ratios)


def _profile(engine: Engine, images: np.ndarray, repeats: int) -> tuple[ProfileStep, ...]:
    assert engine.compiled is not None
    steps = engine.compiled.profile(images, repeats)
    return tuple(ProfileStep(step.layers, step.kernel, step.multiply_adds, step.seconds) for step in steps)


def _certifying(model: IntegerModel, isa: str, ready: _Ready, effort: Effort, progress: Progress) -> Certifying:
    """Votes of one image and the bare network in turns."""
    classifier = SmoothedClassifier(model, sigma="0.25", seed=1, threads=effort.threads, engine="jit", isa=isa)
    image = pictures(model.input.shape, 1)[0]
    classifier.votes(image, CERTIFY_WARM_UP, stage=ESTIMATION, index=0)
    done = 0

    def count(samples: int) -> None:
        nonlocal done
        done += samples
        progress(f"certifying with {isa}: {done} votes")

    rates, shares = [], []
    for _ in range(effort.rounds):
        bare = _turn(ready.run, ready.samples, effort.seconds)
        fewest = -(-CERTIFY_SAMPLES // effort.rounds)
        samples = max(min(round(bare * effort.seconds), CERTIFY_SAMPLES), fewest)
        begin, before = time.perf_counter(), done
        while done == before or time.perf_counter() - begin < effort.seconds:
            classifier.votes(image, samples, stage=ESTIMATION, index=0, progress=count)
        rates.append((done - before) / (time.perf_counter() - begin))
        shares.append(rates[-1] / bare)
    return Certifying(done, Spread.of(rates), Spread.of(shares))
