"""Verification: somebody who has model and images replays a certificate, and confirms or refutes it.

Nothing that a certificate states is taken on trust: what it follows from is computed again, and the first field that
differs is named, with the fields that it follows from, one of which may be what was changed. Three ways:

- *Everything*: all votes of both stages are computed again; then hashes, votes, decisions, class and radius follow.
- *Some chunks*, drawn by the verifier after the certificates were published. A forger who changed the votes of F out of
  M chunks escapes k draws without replacement with probability

      (1)   C(M - F, k) / C(M, k),

  so a small number of draws leaves little room: `undetected_votes`. As each chunk states its votes, whoever changes v
  votes of a stage changes v / 1000 chunks at least. That votes, radius, image and model fit together is checked for
  every certificate; those of sequential procedures, which state votes at several looks, are replayed as a whole.
- *Fresh noise*, from a seed that the verifier draws. A replay shows that the votes are those of the seed that is
  stated, not that this seed was not chosen among many; fresh votes show whether the claim stands without it
  (`freshness.py`).

The form of a certificate is the business of `transcript.py`, which has refused what is malformed before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import comb, prod
from typing import Callable, Iterator, Sequence

import numpy as np

from ..dataset import Dataset
from ..engine import Engine
from ..errors import ParameterError
from ..model.fingerprint import fingerprint
from ..model.graph import IntegerModel
from ..noise.distributions import IntegerDistribution
from ..noise.sampler import ESTIMATION, SELECTION, noise_table
from .chunks import CHUNK, Chunk, Chunks, merkle_root
from .procedure import DISTRIBUTIONS, Procedure, Rule
from .transcript import (
    ABSTAIN,
    CertificateDocument,
    Decision,
    Noise,
    Stage,
)
from .votes import NoisyClassifier

STAGES = {"selection": SELECTION, "estimation": ESTIMATION}
#: What votes follow from.
OF_VOTES = ("model_sha256", "image", "noise", "seed")

#: Where a hash differs, it is tried whether one vote was changed, for models of so many classes at most.
CLASSES_TRIED = 1024


@dataclass(frozen=True)
class Difference:
    """The first field of a certificate that differs from what it follows from.

    Attributes:
        path: of the field, as `$.estimation.chunks[2]`.
        stated: what the certificate says.
        found: what the verifier found.
        sources: the fields that it follows from, if it was computed from others.
    """

    path: str
    stated: str
    found: str
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        follows = f" (from {', '.join(self.sources)})" if self.sources else ""
        return f"{self.path}: states {self.stated}, found {self.found}{follows}"


@dataclass(frozen=True)
class ChunkAddress:
    """Which chunk of which certificate of a transcript: a stage's name, the chunk's number in it, its samples."""

    certificate: int
    stage: str
    number: int
    samples: int


class Verifier:
    """Checks certificates against a model and images that the verifier trusts.

    Args:
        model: the network that the certificates should be about.
        data: the images.
        engine, isa, threads, batch: as for `SmoothedClassifier`; they change no bit.
    """

    def __init__(
        self, model: IntegerModel, data: Dataset, *, engine: str = "auto", isa: str | None = None,
        threads: int | None = None, batch: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.elements = model, data, prod(model.input.shape)
        self.fingerprint = fingerprint(model)
        self.engine = Engine(model, engine, isa)
        self._threads, self._batch = threads, batch
        self._noisy: tuple[Noise, NoisyClassifier] | None = None

    def rule(self, document: CertificateDocument) -> Rule:
        """The procedure that the certificate states, made ready.

        Raises:
            ParameterError: if there is no such procedure; then the certificate cannot be checked.
        """
        procedure = Procedure(
            document.n0, document.n, document.alpha, document.bound, document.targets, document.familywise
        )
        return Rule(procedure, _distribution(document.noise), self.elements, self.model.classes)

    def check(self, document: CertificateDocument) -> Difference | None:
        """Whether the certificate is about this model and these images, and its parts fit together: no vote is cast."""
        return next(chain(self._frame(document), _roots(document), self._outcome(document)), None)

    def replay(
        self, document: CertificateDocument, progress: Callable[[int], None] | None = None
    ) -> Difference | None:
        """Cast all votes again and compare everything: what `check` compares, and hashes and votes before."""
        frame, votes = self._frame(document), self._votes(document, progress)
        return next(chain(frame, votes, _roots(document), self._outcome(document)), None)

    def _frame(self, document: CertificateDocument) -> Iterator[Difference]:
        """Differences of model and image, of the share of alpha, and between the sizes of the parts."""
        yield from self._subject(document)
        yield from _share(document)
        yield from _sizes(document, "selection", document.n0, "n0", self.model.classes)
        yield from _sizes(document, "estimation", document.n, "n", self.model.classes)

    def _outcome(self, document: CertificateDocument) -> Iterator[Difference]:
        """Differences of what follows from the votes as they are stated."""
        yield from _outcome(document, self.rule(document))  # made when all before is right: tables can take long

    def _votes(
        self, document: CertificateDocument, progress: Callable[[int], None] | None
    ) -> Iterator[Difference]:
        """Differences of hashes and votes, and between the decisions that are stated and those that follow."""
        rule, selected = self.rule(document), selected_class(document)
        counts: list[int] = []
        for name in STAGES:
            stage: Stage = getattr(document, name)
            before = 0
            for number in range(len(stage.chunks)):
                chunk = self._chunk(document, name, number, progress)
                yield from _chunk_differences(chunk, stage, name, number, self.model.classes)
                if name == "estimation":
                    counts += _counts_at_looks(chunk, selected, number, before, rule.looks)
                before += int(np.count_nonzero(chunk == selected))
        yield from _decision_differences(document, rule.decisions(counts))
        samples = document.estimation.samples
        ends = [look for number, look in enumerate(rule.looks[: len(counts)]) if rule.is_finished(counts[: number + 1])]
        if not ends or ends[0] != samples:
            found = f"{ends[0]} to be enough" if ends else "too few to decide all targets"
            yield Difference("$.estimation.samples", str(samples), found, ("stopping", "alpha", "n"))

    def replay_chunk(
        self, document: CertificateDocument, address: ChunkAddress, progress: Callable[[int], None] | None = None
    ) -> Difference | None:
        """Cast the votes of one chunk again and compare its hash and its votes."""
        stage: Stage = getattr(document, address.stage)
        chunk = self._chunk(document, address.stage, address.number, progress)
        return next(_chunk_differences(chunk, stage, address.stage, address.number, self.model.classes), None)

    def votes(
        self, document: CertificateDocument, seed: int, samples: int, progress: Callable[[int], None] | None = None
    ) -> tuple[int, ...]:
        """Votes of each class among so many samples of the estimation, from another seed."""
        total = np.zeros(self.model.classes, np.int64)
        for votes in self._cast(document, seed, ESTIMATION, range(samples), progress):
            total += np.bincount(votes, minlength=self.model.classes)
        return tuple(total.tolist())

    def _chunk(
        self, document: CertificateDocument, name: str, number: int, progress: Callable[[int], None] | None
    ) -> np.ndarray:
        stage: Stage = getattr(document, name)
        samples = range(number * CHUNK, min((number + 1) * CHUNK, stage.samples))
        return np.concatenate(list(self._cast(document, document.seed, STAGES[name], samples, progress)))

    def _cast(
        self, document: CertificateDocument, seed: int, stage: int, samples: range,
        progress: Callable[[int], None] | None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        noise, index = document.noise, document.image.index
        if self._noisy is None or self._noisy[0] != noise:  # one at a time: tables and threads take room
            table = noise_table(_distribution(noise))
            self._noisy = noise, NoisyClassifier(self.engine, table, self._threads, self._batch)
        return self._noisy[1].votes(self.data.images[index], seed, index, stage, samples, progress)

    def _subject(self, document: CertificateDocument) -> Iterator[Difference]:
        """Differences of model and image."""
        image, images = document.image, len(self.data.images)
        if document.model_sha256 != self.fingerprint:
            yield Difference("$.model_sha256", document.model_sha256, f"{self.fingerprint}, the model that is given")
        if image.index >= images:
            yield Difference("$.image.index", str(image.index), f"{images} images in split {self.data.split!r}")
            return
        expected = self.model.input.shape
        if self.data.images.shape[1:] != expected:
            raise ParameterError(f"images of shape {self.data.images.shape[1:]}: expected {expected}, as the model has")
        sha256, label = self.data.image_sha256(image.index), int(self.data.labels[image.index])
        if image.sha256 != sha256:
            yield Difference("$.image.sha256", image.sha256, sha256, ("image.index",))
        if image.label != label and min(image.label, label) >= 0:  # -1 says nothing
            yield Difference("$.image.label", str(image.label), str(label), ("image.index",))


def _distribution(noise: Noise) -> IntegerDistribution:
    return DISTRIBUTIONS[noise.distribution](noise.parameter)


def _share(document: CertificateDocument) -> Iterator[Difference]:
    family = document.familywise
    if family is not None and document.alpha * family.images != family.alpha:
        share = f"{family.alpha} / {family.images} = {family.alpha / family.images}"
        yield Difference("$.alpha", str(document.alpha), share, ("familywise",))


def _sizes(
    document: CertificateDocument, name: str, asked: int, asked_name: str, classes: int
) -> Iterator[Difference]:
    """Differences between the numbers of samples, votes and hashes of a stage; of three numbers the odd one."""
    stage: Stage = getattr(document, name)
    path = f"$.{name}"
    counted, wanted = sum(stage.votes), f"{name}.samples"
    fixed = name == "selection" or not document.targets
    if len(stage.votes) != classes:
        yield Difference(f"{path}.votes", f"{len(stage.votes)} classes", f"{classes}, as the model has")
    if counted != stage.samples:
        if counted == asked and fixed:
            yield Difference(f"{path}.samples", str(stage.samples), str(counted), (f"{name}.votes", asked_name))
        yield Difference(f"{path}.votes", f"{counted} votes", f"{stage.samples} samples", (wanted,))
    if stage.samples > asked or (fixed and stage.samples != asked):
        yield Difference(f"$.{asked_name}", str(asked), str(stage.samples), (wanted,))
    chunks = -(-stage.samples // CHUNK)
    if len(stage.chunks) != chunks:
        yield Difference(f"{path}.chunks", f"{len(stage.chunks)} chunks", str(chunks), (wanted,))
    total = [0] * classes
    for number, chunk in enumerate(stage.chunks):
        samples = min(CHUNK, stage.samples - CHUNK * number)
        in_chunk = sum(votes for _, votes in chunk.votes)
        if in_chunk != samples or chunk.votes[-1][0] >= classes:
            found = f"{samples} samples and {classes} classes"
            yield Difference(f"{path}.chunks[{number}].votes", f"{in_chunk} votes", found, (wanted, f"{name}.votes"))
        for each, votes in chunk.votes:
            total[each] += votes
    for each, (stated, added) in enumerate(zip(stage.votes, total)):
        if stated != added:
            yield Difference(f"{path}.votes[{each}]", str(stated), f"{added} in the chunks", (f"{name}.chunks",))


def _roots(document: CertificateDocument) -> Iterator[Difference]:
    for name in STAGES:
        stage: Stage = getattr(document, name)
        root = merkle_root(stage.chunks)
        if stage.merkle_root != root:
            yield Difference(f"$.{name}.merkle_root", stage.merkle_root, root, (f"{name}.chunks",))


def _outcome(document: CertificateDocument, rule: Rule) -> Iterator[Difference]:
    """Differences of what follows from the votes as they are stated."""
    for number in range(len(document.decisions)):
        yield from _decision(document, rule, number)
    if len(document.decisions) != len(document.targets):
        found = f"{len(document.targets)} targets"
        yield Difference("$.decisions", f"{len(document.decisions)} decisions", found, ("stopping", "estimation"))
    last = max((decision.samples for decision in document.decisions), default=document.estimation.samples)
    if last != document.estimation.samples:
        found = f"{last} to be enough"
        yield Difference("$.estimation.samples", str(document.estimation.samples), found, ("decisions",))
    selected = selected_class(document)
    claim = rule.claim(selected, document.estimation.votes, document.decisions)
    sources = ("decisions",) if document.targets else ("estimation.votes", "alpha", "bound", "noise")
    prediction = selected if claim else ABSTAIN
    if document.prediction != prediction:
        found = f"{prediction}" if claim else f"{prediction}, for nothing is certified"
        yield Difference("$.prediction", str(document.prediction), found, ("selection.votes", *sources))
    theorem, radius = (claim.theorem, claim.radius) if claim else (None, 0)
    if document.radius != radius:
        yield Difference(f"$.{document.radius_name}", str(document.radius), str(radius), sources)
    if document.theorem != theorem:
        yield Difference("$.theorem", str(document.theorem), str(theorem), sources)


def _decision(document: CertificateDocument, rule: Rule, number: int) -> Iterator[Difference]:
    """Differences between a decision and the table that decides."""
    decision, path, stage = document.decisions[number], f"$.decisions[{number}]", document.estimation
    if number >= len(document.targets):
        return
    if decision.target != document.targets[number]:
        yield Difference(f"{path}.target", str(decision.target), str(document.targets[number]), ("stopping.targets",))
        return
    if decision.samples not in rule.looks:
        yield Difference(f"{path}.samples", str(decision.samples), "no look at the votes there", ("stopping", "n"))
        return
    later_samples, votes = stage.samples - decision.samples, stage.votes[selected_class(document)]
    if later_samples < 0:
        yield Difference(f"{path}.samples", str(decision.samples), f"{stage.samples} drawn", ("estimation.samples",))
    lowest, highest = max(0, votes - later_samples), min(votes, decision.samples)
    if not lowest <= decision.votes <= highest:
        sources = ("estimation.votes", f"decisions[{number}].samples")
        yield Difference(f"{path}.votes", str(decision.votes), f"{lowest} to {highest} possible", sources)
    verdict = rule.verdict(decision.target, decision.samples, decision.votes)
    if verdict != decision.certified:
        found = {True: "certified", False: "given up", None: "undecided"}[verdict]
        stated = "certified" if decision.certified else "given up"
        yield Difference(f"{path}.certified", stated, found, (f"decisions[{number}].votes", "stopping", "alpha", "n"))


def _decision_differences(document: CertificateDocument, decisions: Sequence[Decision]) -> Iterator[Difference]:
    """Where the decisions that are stated differ from those that follow from the votes."""
    sources = ("estimation.chunks", "stopping", "alpha", "n")
    for number, (stated, found) in enumerate(zip(document.decisions, decisions)):
        for name, value in vars(found).items():
            if getattr(stated, name) != value:
                yield Difference(f"$.decisions[{number}].{name}", str(getattr(stated, name)), str(value), sources)
    if len(document.decisions) != len(decisions):
        yield Difference("$.decisions", f"{len(document.decisions)} decisions", str(len(decisions)), sources)


def _counts_at_looks(
    votes: np.ndarray, selected: int, number: int, before: int, looks: Sequence[int]
) -> list[int]:
    """The votes for the class at each look within a chunk, `before` of them in the chunks before it."""
    running = before + np.cumsum(votes == selected)
    first = number * CHUNK
    return [int(running[look - first - 1]) for look in looks if first < look <= first + len(votes)]


def _chunk_differences(
    votes: np.ndarray, stage: Stage, name: str, number: int, classes: int
) -> Iterator[Difference]:
    """Differences of a chunk's hash, with the sample that accounts for it, if it is a single one, and of its votes."""
    stated, found, first = stage.chunks[number], _chunk_of(votes), number * CHUNK
    path = f"$.{name}.chunks[{number}]"
    if found.sha256 == stated.sha256:
        if found.votes != stated.votes:
            yield Difference(f"{path}.votes", str(stated.votes), str(found.votes), (*OF_VOTES, f"{name}.votes"))
        return
    where = f"in samples {first} to {first + len(votes) - 1}"
    changed = _changed_vote(votes, stated.sha256, classes)
    if changed is not None:
        sample, vote = changed
        where = f"where sample {first + sample} is of class {int(votes[sample])}, not {vote}"
    yield Difference(f"{path}.sha256", stated.sha256, f"{found.sha256} {where}", OF_VOTES)


def _chunk_of(votes: np.ndarray) -> Chunk:
    chunks = Chunks()
    chunks.update(votes)
    (chunk,) = chunks
    return chunk


def _changed_vote(votes: np.ndarray, stated: str, classes: int) -> tuple[int, int] | None:
    """The sample and the class that account for the hash that is stated, if a single vote was changed."""
    if classes > CLASSES_TRIED:
        return None
    content = votes.astype("<u2").tobytes()
    wanted, prefix = bytes.fromhex(stated), hashlib.sha256()
    for sample in range(len(votes)):
        rest = content[2 * sample + 2 :]
        for vote in range(classes):
            digest = prefix.copy()
            digest.update(vote.to_bytes(2, "little") + rest)
            if digest.digest() == wanted:
                return sample, vote
        prefix.update(content[2 * sample : 2 * sample + 2])
    return None


def selected_class(document: CertificateDocument) -> int:
    """The class that the votes of the selection name, certified or not: the lowest one in a tie."""
    votes = document.selection.votes
    return votes.index(max(votes))


def chunks_of(certificate: int, document: CertificateDocument) -> list[ChunkAddress]:
    """All chunks of a certificate, which is number `certificate` of its transcript."""
    return [
        ChunkAddress(certificate, name, number, min(CHUNK, stage.samples - CHUNK * number))
        for name, stage in (("selection", document.selection), ("estimation", document.estimation))
        for number in range(len(stage.chunks))
    ]


def needs_whole_replay(document: CertificateDocument) -> bool:
    """Whether chunks alone would not do: votes at looks within chunks are stated, and when the sampling ended."""
    return bool(document.targets)


def undetected_votes(sizes: Sequence[int], draws: int, miss: Fraction) -> int:
    """How many votes a forger may change and still escape with a probability above `miss`, at most.

    Args:
        sizes: how many votes each chunk has.
        draws: how many of the chunks are replayed, drawn without replacement.
        miss: the probability, above 0.

    Returns:
        The votes of the F largest chunks, F the largest number for which equation (1) is above `miss`. Whoever changes
        more votes changes more than F chunks.
    """
    chunks = len(sizes)
    all_draws = comb(chunks, draws)

    def escapes(forged: int) -> bool:
        return comb(chunks - forged, draws) > miss * all_draws

    low, high = 0, chunks + 1  # the probability falls with F: it is above `miss` for `low`, or `low` is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if escapes(middle) else (low, middle)
    return sum(sorted(sizes, reverse=True)[:low])


def family_differences(documents: Sequence[CertificateDocument]) -> Iterator[tuple[int, Difference]]:
    """Certificates that are more than their family has shares of alpha for, each by its place in the transcript.

    A family is what has one alpha in common: certificates of one model that differ in image and seed alone.
    """
    members: Counter[tuple[object, ...]] = Counter()
    for place, document in enumerate(documents):
        if document.familywise is not None:
            family = (document.familywise, document.model_sha256, document.noise, document.n0, document.n,
                      document.bound, document.targets)  # fmt: skip
            members[family] += 1
            if members[family] > document.familywise.images:
                found = f"{members[family]} certificates of this family"
                yield place, Difference("$.familywise.images", str(document.familywise.images), found)
