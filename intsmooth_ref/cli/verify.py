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
from typing import TYPE_CHECKING, Sequence

from .arguments import add_engine, add_model, add_threads, integer_from, open_data, open_model
from .interruption import Interruption
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
                      help="vote anew with a fresh seed, N samples an image (default: as many as the certificate"
                      " has)")  # fmt: skip
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
    print(f"{_counted(len(documents), 'certificate')} {_subset(documents)}")
    differences, lucky = dict(family_differences(documents)), False
    if options.chunks is None and options.fresh is None:
        _replay(verifier, documents, range(len(documents)), differences)
    else:
        for place, document in enumerate(documents):
            difference = verifier.check(document)
            if difference:
                differences.setdefault(place, difference)
        if options.chunks is not None:
            _replay_some(options, verifier, documents, differences)
        else:
            lucky = _fresh(options, verifier, documents, differences)
    for place, difference in sorted(differences.items()):
        index = documents[place].image.index
        print(f"refuted: {options.transcript}: line {place + 1} (image {index}): {difference}")
    if differences or lucky:
        return REFUTED_STATUS
    print("confirmed" if options.fresh is None else "the claims stand")
    return CONFIRMED_STATUS


def _replay(
    verifier: Verifier, documents: Sequence[CertificateDocument], places: Sequence[int],
    differences: dict[int, Difference],
) -> None:  # fmt: skip
    """All votes of the certificates at these places."""
    total = sum(documents[place].selection.samples + documents[place].estimation.samples for place in places)
    with _Replaying(total, len(places)) as replaying:
        for place in places:
            difference = verifier.replay(documents[place], replaying.batch_done)
            if difference:
                differences.setdefault(place, difference)
            replaying.progress.image()
    print(f"{replaying.summary} with engine {verifier.engine.name} ({verifier.engine.isa})")


def _replay_some(
    options: argparse.Namespace, verifier: Verifier, documents: Sequence[CertificateDocument],
    differences: dict[int, Difference],
) -> None:  # fmt: skip
    """Chunks drawn at random from the certificates whose parts fit together."""
    from ..certify.verification import chunks_of, needs_whole_replay, undetected_votes

    sound = [place for place in range(len(documents)) if place not in differences]
    whole = [place for place in sound if needs_whole_replay(documents[place])]
    if whole:
        print(f"{_counted(len(whole), 'certificate')} with votes at several looks, replayed as a whole")
        _replay(verifier, documents, whole, differences)
    addresses = [each for place in sound if place not in whole for each in chunks_of(place, documents[place])]
    if not addresses:
        return
    draws = min(options.chunks, len(addresses))
    drawn = sorted(secrets.SystemRandom().sample(range(len(addresses)), draws))
    with _Replaying(sum(addresses[number].samples for number in drawn), draws, "chunks") as replaying:
        for address in (addresses[number] for number in drawn):
            difference = verifier.replay_chunk(documents[address.certificate], address, replaying.batch_done)
            if difference:
                differences.setdefault(address.certificate, difference)
            replaying.progress.image()
    print(f"{replaying.summary} in {draws} of {_counted(len(addresses), 'chunk')}, drawn at random, with engine"
          f" {verifier.engine.name} ({verifier.engine.isa})")  # fmt: skip
    sizes = [address.samples for address in addresses]
    room, votes = undetected_votes(sizes, draws, MISS), sum(sizes)
    share = -(-room * 10000 // votes)
    print(f"forged votes are caught with probability {float(1 - MISS)} where they are more than {room} of the {votes}"
          f" ({share // 100}.{share % 100:02d} %)")  # fmt: skip


def _fresh(
    options: argparse.Namespace, verifier: Verifier, documents: Sequence[CertificateDocument],
    differences: dict[int, Difference],
) -> bool:  # fmt: skip
    """Fresh votes on each image; whether the stated ones are too lucky to be true."""
    from ..certify.freshness import is_contradicted, is_too_lucky, luck
    from ..certify.verification import Difference
    from ..errors import ParameterError

    seed = secrets.randbits(64) if options.seed is None else options.seed
    if any(seed == document.seed for document in documents):
        raise ParameterError(f"--seed {seed}: expected a fresh seed, not one that the certificates were made with")
    sound = [place for place in range(len(documents)) if place not in differences]
    documents = [documents[place] for place in sound]
    numbers = [options.fresh or document.estimation.samples for document in documents]
    fresh = []
    with _Replaying(sum(numbers), len(documents)) as replaying:
        for document, samples in zip(documents, numbers):
            fresh.append(verifier.votes(document, seed, samples, replaying.batch_done))
            replaying.progress.image()
    print(f"{replaying.summary}, fresh from seed {seed}")
    claims = sum(document.prediction >= 0 for document in documents)
    level = MISS / 2 / max(claims, 1)
    for place, document, votes in zip(sound, documents, fresh):
        if is_contradicted(document, verifier.rule(document).level, votes, level):
            count = f"{votes[document.prediction]} of {sum(votes)} fresh votes"
            found = f"{count} for class {document.prediction}, too few for it"
            differences[place] = Difference(f"$.{document.radius_name}", str(document.radius), found)
    print(f"{claims} claims, of which {sum(place in differences for place in sound)} contradicted by fresh votes"
          f" (a true one is with probability {float(level):.2g} at most)")  # fmt: skip
    higher, different = luck(documents, fresh)
    lucky = is_too_lucky(higher, different, MISS / 2)
    compared = f"the stated votes are higher than the fresh ones in {higher} of {different} images where they differ"
    if lucky:
        print(f"refuted: {compared}, too many to be chance: were seeds chosen, or images left out?")
    elif different:
        print(compared)
    return lucky


class _Replaying:
    """Votes being cast: progress, Ctrl-C, and a summary afterwards. A context manager."""

    def __init__(self, votes: int, steps: int, what: str = "certificates") -> None:
        self.progress = Progress(steps, -(-votes // max(steps, 1)), what)
        self._interruption = Interruption()

    def batch_done(self, samples: int) -> None:
        self.progress.samples(samples)
        self._interruption.check()

    def __enter__(self) -> _Replaying:
        self._interruption.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.clear()
        self._interruption.__exit__(None, None, None)
        done, seconds = self.progress.samples_done, self.progress.seconds
        self.summary = f"{done} votes in {seconds:.1f} s"


def _subset(documents: Sequence[CertificateDocument]) -> str:
    """Which images a transcript speaks of; those that it speaks of more than once."""
    indices = [document.image.index for document in documents]
    several = [index for index, times in Counter(indices).items() if times > 1]
    again = f"; more than once: {', '.join(map(str, several[:10]))}{' ...' * (len(several) > 10)}" if several else ""
    lowest, highest = min(indices), max(indices)
    return (f"of image {lowest}" if lowest == highest else f"of images {lowest} to {highest}") + again


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
