"""verify a transcript: replay its certificates, wholly or in part, and confirm or refute them

Model and images are those that you name, never what the transcript names. By default every vote is cast again and
everything that follows from the votes is compared. With --chunks only so many chunks of 1000 votes are replayed, drawn
at random. With --fresh the images are voted on anew, from another seed, which shows whether the claims stand without
the seed they were made with. Exit status: 0 confirmed, 1 refuted, 2 could not be checked.
"""

from __future__ import annotations

import argparse
import secrets
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence

from ..errors import IntsmoothError
from .arguments import add_engine, add_model, add_threads, integer_from, open_data, open_model
from .interruption import Interruption
from .messages import one_line
from .progress import Progress

if TYPE_CHECKING:
    from ..certify.transcript import CertificateDocument
    from ..certify.verification import Difference, Verifier

#: What cannot be checked ends with this exit status.
REFUSED = 2
#: The probability of a forger's escape, or of calling true certificates contradicted.
MISS = Fraction(1, 1000)

CONFIRMED_STATUS, REFUTED_STATUS = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("transcript", type=Path, metavar="TRANSCRIPT",
                        help="certificates, one a line, as certify --transcript writes them")  # fmt: skip
    add_model(parser)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA",
                        help="images: a dataset file (HDF5), .npz or .npy; default: the embedded digits")  # fmt: skip
    parser.add_argument("--split", metavar="NAME",
                        help="which split of a dataset file (default: test, or the only one)")  # fmt: skip
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--chunks", type=integer_from(1), metavar="K",
                      help="replay K chunks only, drawn at random from the whole transcript")  # fmt: skip
    ways.add_argument("--fresh", type=integer_from(1), nargs="?", const=0, metavar="N",
                      help="vote anew with a fresh seed, N samples an image (default: n of the"
                      " certificate)")  # fmt: skip
    parser.add_argument("--seed", type=integer_from(0), metavar="S",
                        help="of --fresh, to repeat it (default: drawn by the system and printed)")  # fmt: skip
    add_threads(parser)
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Verify, print the verdict; returns the exit status."""
    from ..certify.transcript import read_transcript
    from ..certify.verification import Verifier, family_differences
    from ..errors import ParameterError

    if options.seed is not None and options.fresh is None:
        raise ParameterError("--seed: goes with --fresh only; a replay takes the seeds of the certificates")
    documents = list(read_transcript(options.transcript))
    model, data = open_model(options.model).model, open_data(options.data, options.split, options.model)
    verifier = Verifier(model, data, engine=options.engine, isa=options.isa, threads=options.threads,
                        batch=options.batch)  # fmt: skip
    verdicts = _Verdicts(options.transcript, documents)
    print("\n".join(_heading(documents, verifier)), flush=True)
    for place, difference in family_differences(documents):
        verdicts.refute(place, difference)
    if options.fresh is not None:
        end = _fresh(options, verifier, verdicts)
    elif options.chunks is not None:
        end = _replay_some(options, verifier, verdicts)
    else:
        end = _replay(verifier, verdicts, range(len(documents)))
    return verdicts.status(end)


class _Verdicts:
    """What is found of each certificate, said as soon as it is found."""

    def __init__(self, transcript: Path, documents: Sequence[CertificateDocument]) -> None:
        self.documents, self._transcript = documents, transcript
        self._refuted: set[int] = set()
        self._unchecked: set[int] = set()
        self._other_refutation = False

    @property
    def sound(self) -> list[int]:
        """The places of those certificates of which nothing bad has been found."""
        return [place for place in range(len(self.documents)) if place not in self._refuted | self._unchecked]

    def examine(self, place: int, look: Callable[[CertificateDocument], Difference | None]) -> None:
        """Take note of what `look` finds in a certificate, or of why it cannot look."""
        try:
            difference = look(self.documents[place])
        except IntsmoothError as error:
            self._unchecked.add(place)
            print(f"cannot be checked: {self._where(place)}: {error}", flush=True)
            return
        if difference:
            self.refute(place, difference)

    def refute(self, place: int, difference: Difference) -> None:
        """A certificate is refuted; its first difference is shown."""
        if place not in self._refuted:
            self._refuted.add(place)
            print(f"refuted: {self._where(place)}: {difference}", flush=True)

    def refute_all(self, reason: str) -> None:
        """The transcript is refuted as a whole."""
        self._other_refutation = True
        print(f"refuted: {one_line(str(self._transcript))}: {reason}")

    def _where(self, place: int) -> str:
        return f"{one_line(str(self._transcript))}: line {place + 1} (image {self.documents[place].image.index})"

    def status(self, end: str) -> int:
        """Say how it ends, if well, with the words of `end`; the exit status."""
        total = len(self.documents)
        if self._refuted or self._other_refutation:
            print(f"{len(self._refuted)} of {_counted(total, 'certificate')} refuted")
            return REFUTED_STATUS
        if self._unchecked:
            print(f"{len(self._unchecked)} of {_counted(total, 'certificate')} could not be checked")
            return REFUSED
        print(end)
        return CONFIRMED_STATUS


def _heading(documents: Sequence[CertificateDocument], verifier: Verifier) -> list[str]:
    """Of which images and which model the transcript speaks, and what it claims."""
    indices = Counter(document.image.index for document in documents)
    several = [index for index, times in indices.items() if times > 1]
    again = f"; several of {', '.join(map(str, several[:10]))}{' ...' * (len(several) > 10)}" if several else ""
    split = f"the {len(verifier.data.images)} images of split {verifier.data.split!r}"
    which = f"{len(indices)} of {split}, {min(indices)} to {max(indices)}{again}"
    lines = [f"{_counted(len(documents), 'certificate')} of {which}", f"model {verifier.fingerprint}"]
    kinds = Counter(_kind(document) for document in documents)
    lines += [f"{times} with {kind}" for kind, times in kinds.most_common(5)]
    if len(kinds) > 5:
        lines.append(f"... and {len(kinds) - 5} other kinds")
    return lines


def _kind(document: CertificateDocument) -> str:
    noise, family = document.noise, document.familywise
    share = f", of a family of {family.images} with {_short(family.alpha)}" if family else ""
    targets = f", {_counted(len(document.targets), 'target')}" if document.targets else ""
    return (
        f"{noise.distribution}, {noise.law.parameter} {_short(noise.parameter)}; alpha {_short(document.alpha)}{share};"
        f" n {document.n}, bound {document.bound}{targets}; seed {document.seed}"
    )


def _short(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"about {float(value):.3g}"


def _replay(verifier: Verifier, verdicts: _Verdicts, places: Sequence[int]) -> str:
    """All votes of the certificates at these places."""
    documents = [verdicts.documents[place] for place in places]
    total = sum(document.selection.samples + document.estimation.samples for document in documents)
    with _Replaying(total, len(places)) as replaying:
        for place in places:
            verdicts.examine(place, lambda document: verifier.replay(document, replaying.batch_done))
            replaying.step()
    print(f"{replaying.summary} with engine {verifier.engine.name} ({verifier.engine.isa}); whether seeds were chosen,"
          " no replay can show: see --fresh")  # fmt: skip
    return "confirmed"


def _replay_some(options: argparse.Namespace, verifier: Verifier, verdicts: _Verdicts) -> str:
    """Chunks drawn at random from the certificates whose parts fit together."""
    from ..certify.verification import chunks_of, needs_whole_replay, undetected_votes

    for place in verdicts.sound:
        verdicts.examine(place, verifier.check)
    whole = [place for place in verdicts.sound if needs_whole_replay(verdicts.documents[place])]
    if whole:
        print(f"{_counted(len(whole), 'certificate')} with votes at several looks, replayed as a whole", flush=True)
        _replay(verifier, verdicts, whole)
    rest = [place for place in verdicts.sound if place not in whole]
    addresses = [each for place in rest for each in chunks_of(place, verdicts.documents[place])]
    if not addresses:
        return "confirmed"
    draws = min(options.chunks, len(addresses))
    drawn = [addresses[number] for number in sorted(secrets.SystemRandom().sample(range(len(addresses)), draws))]
    with _Replaying(sum(address.samples for address in drawn), draws, "chunks") as replaying:
        for address in drawn:
            verdicts.examine(
                address.certificate,
                lambda document: verifier.replay_chunk(document, address, replaying.batch_done),
            )
            replaying.step()
    print(f"{replaying.summary} in {draws} of {_counted(len(addresses), 'chunk')}, drawn at random, with engine"
          f" {verifier.engine.name} ({verifier.engine.isa})")  # fmt: skip
    sizes = [address.samples for address in addresses]
    room, votes = undetected_votes(sizes, draws, MISS), sum(sizes)
    share = -(-room * 10000 // votes)
    print(f"forged votes are caught with probability {float(1 - MISS)} where they are more than {room} of the {votes}"
          f" ({share // 100}.{share % 100:02d} %)")  # fmt: skip
    return "confirmed as far as replayed"


def _fresh(options: argparse.Namespace, verifier: Verifier, verdicts: _Verdicts) -> str:
    """Fresh votes on each image, held against the claims and against the votes that are stated."""
    from ..certify.freshness import is_contradicted, is_too_lucky, luck, require_one_each
    from ..certify.procedure import remaining_alpha
    from ..certify.transcript import SAMPLES_MAX
    from ..certify.verification import Difference
    from ..errors import ParameterError

    if options.fresh > SAMPLES_MAX:
        raise ParameterError(f"--fresh {options.fresh}: expected at most {SAMPLES_MAX} samples")
    seed = secrets.randbits(64) if options.seed is None else options.seed
    if any(seed == document.seed for document in verdicts.documents):
        raise ParameterError(f"--seed {seed}: expected a fresh seed, not one that the certificates were made with")
    require_one_each(verdicts.documents)
    for place in verdicts.sound:
        verdicts.examine(place, verifier.check)
    places = verdicts.sound
    documents = [verdicts.documents[place] for place in places]
    claims = sum(document.prediction >= 0 for document in documents)
    level = MISS / 2 / max(claims, 1)
    fresh: list[tuple[int, ...]] = []
    numbers = [options.fresh or document.n for document in documents]

    def speak_against(document: CertificateDocument, votes: Sequence[int]) -> bool:
        rule = verifier.rule(document)
        own_level = remaining_alpha(level, sum(votes), verifier.elements, rule.noise.total_variation)
        return is_contradicted(document, rule.level, votes, own_level)

    def contradiction(document: CertificateDocument) -> Difference | None:
        if not speak_against(document, fresh[-1]):
            return None
        found = f"{fresh[-1][document.prediction]} of {sum(fresh[-1])} fresh votes for class {document.prediction}"
        return Difference(f"$.{document.radius_name}", str(document.radius), f"{found}, too few for it")

    def against(document: CertificateDocument, samples: int) -> list[int]:
        """As few votes for the class as there can be."""
        votes = [0] * verifier.model.classes
        votes[document.prediction - 1] = samples
        return votes

    with _Replaying(sum(numbers), len(documents)) as replaying:
        for place, document, samples in zip(places, documents, numbers):
            fresh.append(verifier.votes(document, seed, samples, replaying.batch_done))
            verdicts.examine(place, contradiction)
            replaying.step()
    refuted = len(places) - len(verdicts.sound)
    could = sum(speak_against(document, against(document, samples)) for document, samples in zip(documents, numbers))
    print(f"{replaying.summary}, fresh from seed {seed}")
    print(f"{refuted} of {_counted(claims, 'claim')} contradicted; {could} could have been, by votes for another class"
          f" alone; a true one is with probability 1/{level.denominator // level.numerator} at most")  # fmt: skip
    higher, different = luck(documents, fresh)
    compared = f"the stated votes are higher than the fresh ones in {higher} of {different} images where they differ"
    if is_too_lucky(higher, different, MISS / 2):
        verdicts.refute_all(f"{compared}, too many to be chance: were seeds chosen, or images left out?")
    elif different:
        print(compared)
    else:
        print("no stated votes to compare the fresh ones with: of fixed procedures, and as many as fresh ones")
    return "nothing contradicts the claims"


class _Replaying:
    """Votes being cast: progress, Ctrl-C, and a summary afterwards. A context manager."""

    def __init__(self, votes: int, steps: int, what: str = "certificates") -> None:
        self.progress = Progress(steps, -(-votes // max(steps, 1)), what)
        self._interruption = Interruption()
        self._steps, self._what = steps, what

    def batch_done(self, samples: int) -> None:
        self.progress.samples(samples)
        self._interruption.check()

    def __enter__(self) -> _Replaying:
        self._interruption.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.clear()
        self._interruption.__exit__(None, None, None)
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(f"; {self.progress.images_done} of {self._steps} {self._what} were looked at")
        done, seconds = self.progress.samples_done, self.progress.seconds
        self.summary = f"{done} votes in {seconds:.1f} s"

    def step(self) -> None:
        """A certificate or chunk is done."""
        self.progress.clear()  # a verdict may have been printed
        self.progress.image()
        self._interruption.check()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
