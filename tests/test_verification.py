"""A true certificate is confirmed by any engine; whatever is changed in one is refuted, and the place is named."""

import copy
import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from intsmooth_ref.certify.procedure import Procedure
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.certify.transcript import Familywise, canonical_line, parse_line
from intsmooth_ref.certify.verification import (
    ChunkAddress,
    Verifier,
    chunks_of,
    family_differences,
    needs_whole_replay,
    selected_class,
    undetected_votes,
)
from intsmooth_ref.certify.chunks import Chunk, merkle_root
from intsmooth_ref.compilation import numba_available
from intsmooth_ref.dataset import Dataset
from intsmooth_ref.errors import ParameterError, TranscriptError
from intsmooth_ref.noise.sampler import ESTIMATION, SELECTION, add_noise, noise_table
from threshold_model import classes_by_hand, flat_image, threshold_model

LEVELS = (150, 135, 128, 110)
DATA = Dataset(
    np.stack([flat_image(level) for level in LEVELS]), np.array([1, 1, 0, -1], np.int64), ("dark", "bright"),
    "made by a test", "test",
)  # fmt: skip
MODEL = threshold_model()
ENGINES = ["reference", *(["jit"] if numba_available() else [])]

#: Procedures of every kind, with the noise they go with.
KINDS = {
    "fixed": ({"sigma": "0.25"}, Procedure(1200, 2300, Fraction(1, 1000))),
    "two-class": ({"sigma_levels": "51/2"}, Procedure(20, 300, Fraction(1, 100), "two-class")),
    "sequential": ({"sigma": "0.25"}, Procedure(30, 4000, Fraction(1, 1000), targets=(0, 300, 4000))),
    "Laplace": ({"scale": "0.25"}, Procedure(30, 1500, Fraction(1, 1000))),
    "Laplace, sequential": ({"scale": "0.25"}, Procedure(30, 4000, Fraction(1, 1000), targets=(20, 60))),
    "family": ({"sigma": "0.25"}, Procedure(10, 400, Fraction(1, 4000), familywise=Familywise(Fraction(1, 1000), 4))),
}


def document(kind, index=0, seed=3, engine="reference"):
    noise, procedure = KINDS[kind]
    classifier = SmoothedClassifier(MODEL, **noise, seed=seed, engine=engine)
    certificate = classifier.carry_out(classifier.rule(procedure), DATA.images[index], index)
    return classifier.document(certificate, DATA.image_sha256(index), label=int(DATA.labels[index]))


@pytest.fixture(scope="module")
def documents():
    return {kind: document(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def verifier():
    return Verifier(MODEL, DATA, engine="reference", threads=1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_true_certificate_is_confirmed_by_every_engine(kind, engine, documents):
    verifier = Verifier(MODEL, DATA, engine=engine, threads=2, batch=77)
    done = []
    assert verifier.replay(documents[kind], done.append) is None
    assert sum(done) == documents[kind].selection.samples + documents[kind].estimation.samples
    assert verifier.check(documents[kind]) is None
    for address in chunks_of(0, documents[kind]):
        assert verifier.replay_chunk(documents[kind], address) is None


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_of_every_image_are_confirmed_and_some_abstain(kind, verifier):
    found = [document(kind, index) for index in range(len(LEVELS))]
    assert [verifier.replay(each) for each in found] == [None] * len(LEVELS)
    assert {each.prediction for each in found} >= {-1, 1}
    assert all((each.prediction < 0) == (each.theorem is None) for each in found)


def leaves(value, path="$"):
    """Every place of a JSON value that holds no object and no array of something, with its path."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]")
    if not isinstance(value, dict) and not (isinstance(value, list) and value):
        yield path


def at(value, path):
    """The parent of a place in a JSON value, and its key there."""
    keys = [int(key) if key.isdigit() else key for key in path[2:].replace("[", ".").replace("]", "").split(".")]
    for key in keys[:-1]:
        value = value[key]
    return value, keys[-1]


def forgeries(value, path):
    """Other values of the same form for one place."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value + 1000]
    if isinstance(value, str) and len(value) == 64:
        return [("1" if value[0] == "0" else "0") + value[1:], hashlib.sha256(b"forged").hexdigest()]
    others = {
        "$.seed": ["4", "18446744073709551615"], "$.bound": ["majority", "two-class"], "$.norm": ["L1", "L2"],
        "$.theorem": ["majority", "two-class", "likelihood-ratio", None],
        "$.noise.distribution": ["discrete_gaussian", "discrete_laplace"],
        "$.stopping.rule": ["fixed", "sequential"], "$.familywise": [{"alpha": "1/10", "images": 5}],
        "$.decisions": [[{"certified": True, "samples": 10, "target": 0, "votes": 10}]],
        "$.generator": ["Philox4x32-7"], "$.format": ["intsmooth-ref model"],
    }  # fmt: skip
    if path in others:
        return [other for other in others[path] if other != value]
    return ["1/20", "1/1000000"] if "alpha" in path else ["62", "1000/7"]


def caught(fields, verifier):
    """What is named as wrong: a path and the fields that it follows from."""
    line = (json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n").encode()
    try:
        forged = parse_line(line, "here")
        difference = verifier.replay(forged)
    except TranscriptError as error:
        return str(error).split(": ")[1], ()
    except ParameterError as error:  # a procedure that no one can carry out
        return str(error), ("n", "alpha", "stopping")
    return (difference.path, difference.sources) if difference else ("nothing", ())


#: Fields whose forms go together: where one is changed alone, another may be the one that is out of place.
FORM = ("$.bound", "$.theorem", "$.norm", "$.noise", "$.stopping", "$.decisions", "$.prediction", "$.radius_sq")


def is_named(path, named, sources):
    """Whether a difference names the forged place, an array or object it stands in, or says that it follows from it."""
    place, inside, _ = path.partition("].votes[")  # of the votes of a chunk any may be the one that is out of place
    if inside and named.startswith(f"{place}].votes"):
        return True
    if path.startswith(named) or any(path.startswith(f"$.{source}") for source in sources):
        return True
    return path.startswith(FORM) and named.startswith(FORM)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_is_forged_is_named_or_what_follows_from_it_is(kind, documents, verifier):
    genuine = json.loads(canonical_line(documents[kind]))
    places = [path for path in leaves(genuine) if not path.startswith("$.information")]
    assert len(places) > 25
    wrong = []
    for path in places:
        parent, key = at(genuine, path)
        values = forgeries(parent[key], path)
        if path == "$.n" and documents[kind].targets:  # more samples at the end may change no decision: still true
            values = [documents[kind].estimation.samples - 1, 999]
        for value in values:
            fields = copy.deepcopy(genuine)
            parent, key = at(fields, path)
            parent[key] = value
            named, sources = caught(fields, verifier)
            if not is_named(path, named, sources):
                wrong.append((path, value, named, sources))
    assert wrong == []


def chunk_of(classes):
    """The chunk of these classes, 16 bits each, little-endian."""
    present, votes = np.unique(classes, return_counts=True)
    return Chunk(hashlib.sha256(classes.tobytes()).hexdigest(), tuple(zip(present.tolist(), votes.tolist())))


def in_chunk(document, name, number, **fields):
    """The document with one chunk of a stage changed."""
    chunks = list(getattr(document, name).chunks)
    chunks[number] = replace(chunks[number], **fields)
    return staged(document, name, chunks=tuple(chunks))


def staged(document, name, **fields):
    """The document with some fields of one stage changed."""
    return replace(document, **{name: replace(getattr(document, name), **fields)})


def voted(document, name, *more):
    """The document with more votes of each class in turn."""
    before = (*getattr(document, name).votes, 0)
    return staged(document, name, votes=tuple(a + b for a, b in zip(before, more)))


def decided(document, number, **fields):
    """The document with one of its decisions changed."""
    decisions = list(document.decisions)
    decisions[number] = replace(decisions[number], **fields)
    return replace(document, decisions=tuple(decisions))


OF_RADIUS = ("estimation.votes", "alpha", "bound", "noise")
OF_VERDICT = ("stopping", "alpha", "n")
#: Changes after which a certificate's parts do not fit together, and what is named: path, stated, found, sources. The
#: fixed one has 1200 and 2300 samples; the sequential one 2560 of 4000, 2222 of them for its class, and was decided at
#: 35 (31 votes, target 0), 88 (74, target 300) and 2560 samples (target 4000).
MISFITS = [
    ("fixed", lambda d: replace(d, n0=1199), "n0", "1199", "1200", ("selection.samples",)),
    ("fixed", lambda d: replace(d, n0=1201), "n0", "1201", "1200", ("selection.samples",)),
    ("fixed", lambda d: replace(d, n=2299), "n", "2299", "2300", ("estimation.samples",)),
    ("fixed", lambda d: replace(d, n=2301), "n", "2301", "2300", ("estimation.samples",)),
    ("sequential", lambda d: replace(d, n0=31), "n0", "31", "30", ("selection.samples",)),
    ("sequential", lambda d: replace(d, n=2559), "n", "2559", "2560", ("estimation.samples",)),
    ("fixed", lambda d: staged(d, "selection", samples=1201), "selection.samples", "1201", "1200",
     ("selection.votes", "n0")),
    ("fixed", lambda d: staged(d, "estimation", samples=2299), "estimation.samples", "2299", "2300",
     ("estimation.votes", "n")),
    ("sequential", lambda d: staged(d, "selection", samples=29), "selection.samples", "29", "30",
     ("selection.votes", "n0")),
    ("sequential", lambda d: staged(replace(d, n=2560), "estimation", samples=2559), "estimation.votes", "2560 votes",
     "2559 samples", ("estimation.samples",)),
    ("fixed", lambda d: voted(d, "selection", 0, -1), "selection.votes", "1199 votes", "1200 samples",
     ("selection.samples",)),
    ("fixed", lambda d: voted(d, "estimation", 1, 0), "estimation.votes", "2301 votes", "2300 samples",
     ("estimation.samples",)),
    ("fixed", lambda d: voted(d, "selection", 0, 0, 0), "selection.votes", "3 classes", "2, as the model has", ()),
    ("fixed", lambda d: voted(d, "estimation", 0, 0, 0), "estimation.votes", "3 classes", "2, as the model has", ()),
    ("fixed", lambda d: staged(d, "selection", chunks=d.selection.chunks[:-1]), "selection.chunks", "1 chunks", "2",
     ("selection.samples",)),
    ("fixed", lambda d: staged(d, "estimation", chunks=(*d.estimation.chunks, d.estimation.chunks[0])),
     "estimation.chunks", "4 chunks", "3", ("estimation.samples",)),
    ("fixed", lambda d: in_chunk(d, "estimation", 2, votes=((1, 301),)), "estimation.chunks[2].votes", "301 votes",
     "300 samples and 2 classes", ("estimation.samples", "estimation.votes")),
    ("fixed", lambda d: in_chunk(d, "selection", 0, votes=((0, 999),)), "selection.chunks[0].votes", "999 votes",
     "1000 samples and 2 classes", ("selection.samples", "selection.votes")),
    ("fixed", lambda d: in_chunk(d, "selection", 0, votes=((0, 999), (2, 1))), "selection.chunks[0].votes",
     "1000 votes", "1000 samples and 2 classes", ("selection.samples", "selection.votes")),
    ("fixed", lambda d: voted(d, "estimation", 1, -1), "estimation.votes[0]", "309", "308 in the chunks",
     ("estimation.chunks",)),
    ("fixed", lambda d: voted(d, "selection", -1, 1), "selection.votes[0]", "168", "169 in the chunks",
     ("selection.chunks",)),
    ("fixed", lambda d: staged(d, "selection", merkle_root="0" * 64), "selection.merkle_root", "0" * 64, None,
     ("selection.chunks",)),
    ("fixed", lambda d: staged(d, "estimation", merkle_root="0" * 64), "estimation.merkle_root", "0" * 64, None,
     ("estimation.chunks",)),
    ("fixed", lambda d: replace(d, radius=d.radius - 1), "radius_sq", None, None, OF_RADIUS),
    ("fixed", lambda d: replace(d, radius=d.radius + 1), "radius_sq", None, None, OF_RADIUS),
    ("Laplace", lambda d: replace(d, radius=d.radius - 1), "radius_l1", None, None, OF_RADIUS),
    ("fixed", lambda d: replace(d, prediction=0), "prediction", "0", "1", ("selection.votes", *OF_RADIUS)),
    ("fixed", lambda d: replace(d, prediction=-1), "prediction", "-1", "1", ("selection.votes", *OF_RADIUS)),
    ("sequential", lambda d: replace(d, prediction=0), "prediction", "0", "1", ("selection.votes", "decisions")),
    ("sequential", lambda d: replace(d, radius=300), "radius_sq", "300", "4000", ("decisions",)),
    ("fixed", lambda d: replace(d, theorem="two-class"), "theorem", "two-class", "majority", OF_RADIUS),
    ("fixed", lambda d: replace(d, image=replace(d.image, label=0)), "image.label", "0", "1", ("image.index",)),
    ("fixed", lambda d: replace(d, image=replace(d.image, label=2)), "image.label", "2", "1", ("image.index",)),
    ("family", lambda d: replace(d, alpha=Fraction(1, 3999)), "alpha", "1/3999", "1/1000 / 4 = 1/4000",
     ("familywise",)),
    ("family", lambda d: replace(d, alpha=Fraction(1, 4001)), "alpha", "1/4001", "1/1000 / 4 = 1/4000",
     ("familywise",)),
    ("sequential", lambda d: replace(d, decisions=(d.decisions[0], *d.decisions[::2])), "decisions[1].target", "0",
     "300", ("stopping.targets",)),
    ("sequential", lambda d: decided(d, 0, samples=36), "decisions[0].samples", "36", "no look at the votes there",
     ("stopping", "n")),
    ("sequential", lambda d: decided(replace(d, n=2561), 2, samples=2561), "decisions[2].samples", "2561",
     "2560 drawn", ("estimation.samples",)),
    ("sequential", lambda d: decided(d, 0, votes=36), "decisions[0].votes", "36", "0 to 35 possible",
     ("estimation.votes", "decisions[0].samples")),
    ("sequential", lambda d: decided(d, 2, samples=2048, votes=1709), "decisions[2].votes", "1709",
     "1710 to 2048 possible", ("estimation.votes", "decisions[2].samples")),
    ("sequential", lambda d: decided(d, 2, votes=2223), "decisions[2].votes", "2223", "2222 to 2222 possible",
     ("estimation.votes", "decisions[2].samples")),
    ("sequential", lambda d: staged(d, "estimation", votes=(2540, 20), chunks=tuple(
        replace(each, votes=votes) for each, votes in zip(d.estimation.chunks, (
            ((0, 1000),), ((0, 1000),), ((0, 540), (1, 20)))))), "decisions[0].votes", "31", "0 to 20 possible",
     ("estimation.votes", "decisions[0].samples")),
    ("sequential", lambda d: decided(d, 1, certified=False), "decisions[1].certified", "given up", "certified",
     ("decisions[1].votes", *OF_VERDICT)),
    ("sequential", lambda d: decided(d, 2, samples=2048, votes=1750), "decisions[2].certified", "certified",
     "undecided", ("decisions[2].votes", *OF_VERDICT)),
    ("Laplace, sequential", lambda d: decided(d, 1, certified=True), "decisions[1].certified", "certified", "given up",
     ("decisions[1].votes", *OF_VERDICT)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "path", "stated", "found", "sources"), MISFITS)
def test_parts_that_do_not_fit_together_are_named_without_a_vote(
    kind, change, path, stated, found, sources, documents, verifier
):
    difference = verifier.check(change(documents[kind]))
    assert (difference.path, difference.sources) == (f"$.{path}", sources)
    assert stated in (None, difference.stated) and found in (None, difference.found)


@pytest.mark.parametrize("kind", KINDS)
def test_information_is_no_part_of_what_is_certified(kind, documents, verifier):
    changed = replace(documents[kind], information={"cpu": "another"})
    assert verifier.replay(changed) is None and verifier.check(changed) is None


@pytest.mark.parametrize("stage", ["selection", "estimation"])
def test_chunks_in_another_order_are_refuted_with_the_first_that_moved(stage, documents, verifier):
    genuine = getattr(documents["fixed"], stage)
    chunks = [genuine.chunks[1], genuine.chunks[0], *genuine.chunks[2:]]
    moved = replace(genuine, chunks=tuple(chunks), merkle_root=merkle_root(chunks))
    difference = verifier.replay(replace(documents["fixed"], **{stage: moved}))
    assert difference.path == f"$.{stage}.chunks[0].{'votes' if stage == 'selection' else 'sha256'}"  # 200, not 1000


def test_images_that_changed_places_are_refuted(verifier):
    first, second = document("fixed", 0), document("fixed", 1)
    for forged in (replace(first, image=second.image), replace(second, image=first.image)):
        difference = verifier.replay(forged)
        assert difference.path == "$.selection.chunks[0].sha256" and "image" in difference.sources
    kept_index = replace(first, image=replace(second.image, index=0))
    assert verifier.replay(kept_index).path == "$.image.sha256"


@pytest.mark.parametrize("sample", [0, 999, 1000, 2299])
def test_a_single_vote_that_was_flipped_is_named_though_everything_else_was_made_to_fit(sample, documents, verifier):
    genuine = documents["fixed"]
    table = noise_table(SmoothedClassifier(MODEL, "0.25", engine="reference").noise)
    noise = add_noise(table, np.zeros(9, np.uint8), genuine.seed, 0, ESTIMATION, 0, 2300)
    classes = np.array(classes_by_hand(DATA.images[0], noise), "<u2")
    assert np.bincount(classes).tolist() == list(genuine.estimation.votes)
    classes[sample] = 1 - classes[sample]
    chunks = [chunk_of(classes[first : first + 1000]) for first in (0, 1000, 2000)]
    forged = replace(genuine.estimation, votes=tuple(np.bincount(classes).tolist()), chunks=tuple(chunks),
                     merkle_root=merkle_root(chunks))  # fmt: skip
    rule = verifier.rule(genuine)
    claim = rule.claim(1, forged.votes, ())
    forged = replace(genuine, estimation=forged, radius=claim.radius)
    assert verifier.check(forged) is None  # its parts do fit together
    difference = verifier.replay(forged)
    assert difference.path == f"$.estimation.chunks[{sample // 1000}].sha256"
    assert f"sample {sample} is of class {1 - classes[sample]}, not {classes[sample]}" in difference.found
    addresses = chunks_of(0, forged)
    refuted = [address for address in addresses if verifier.replay_chunk(forged, address)]
    size = 300 if sample == 2299 else 1000
    assert refuted == [ChunkAddress(0, "estimation", sample // 1000, size)] and len(addresses) == 5


def test_votes_that_were_invented_to_genuine_hashes_are_found_by_every_chunk_that_states_them(documents, verifier):
    """Everything fits together, and every hash is right: no replay of hashes alone could tell."""
    genuine = documents["fixed"]
    stage = genuine.estimation
    chunks = tuple(replace(chunk, votes=((1, sum(votes for _, votes in chunk.votes)),)) for chunk in stage.chunks)
    invented = replace(stage, votes=(0, stage.samples), chunks=chunks)
    claim = verifier.rule(genuine).claim(1, invented.votes, ())
    forged = replace(genuine, estimation=invented, radius=claim.radius)
    assert verifier.check(forged) is None and claim.radius > genuine.radius
    for address in chunks_of(0, forged):
        difference = verifier.replay_chunk(forged, address)
        assert (difference is None) == (address.stage == "selection")
        assert difference is None or difference.path == f"$.estimation.chunks[{address.number}].votes"
    assert verifier.replay(forged).path == "$.estimation.chunks[0].votes"


def test_a_chunk_in_which_much_was_changed_is_named_by_its_samples(documents, verifier):
    stage = documents["fixed"].estimation
    chunks = (stage.chunks[0], replace(stage.chunks[1], sha256="0" * 64), stage.chunks[2])
    difference = verifier.replay(replace(documents["fixed"], estimation=replace(stage, chunks=chunks)))
    assert difference.path == "$.estimation.chunks[1].sha256" and "in samples 1000 to 1999" in difference.found


def test_going_on_beyond_the_decision_and_stopping_before_it_are_refuted(documents, verifier):
    genuine = documents["sequential"]
    classifier = SmoothedClassifier(MODEL, "0.25", seed=3, engine="reference")
    first_two = {"decisions": genuine.decisions[:2], "radius": 300}
    for samples, decisions, found in (
        (3200, {}, "2560 to be enough"),
        (2561, {}, "2560 to be enough"),
        (2048, first_two, "too few to decide all targets"),
    ):
        procedure = replace(KINDS["fixed"][1], n0=30, n=samples)
        other = classifier.carry_out(classifier.rule(procedure), DATA.images[0], 0)
        forged = replace(genuine, estimation=other.estimation, **decisions)
        path = "$.decisions" if decisions else "$.estimation.samples"
        assert verifier.check(forged).path == path or samples == 2561
        difference = verifier.replay(forged)
        assert (difference.path, difference.stated) == ("$.estimation.samples", str(samples))
        assert difference.found == found and difference.sources == ("stopping", "alpha", "n")


def test_a_decision_that_is_kept_back_is_missed(documents, verifier):
    genuine = documents["sequential"]
    forged = replace(genuine, decisions=genuine.decisions[:2], radius=300)
    difference = verifier.check(forged)
    assert (difference.path, difference.stated, difference.found) == ("$.decisions", "2 decisions", "3 targets")
    difference = verifier.replay(forged)
    assert (difference.path, difference.stated, difference.found) == ("$.decisions", "2 decisions", "3")
    assert difference.sources == ("estimation.chunks", "stopping", "alpha", "n")


def test_chunks_do_not_do_where_votes_at_an_early_look_are_stated(documents):
    sequential = documents["sequential"]
    assert needs_whole_replay(sequential) and not needs_whole_replay(documents["fixed"])
    assert needs_whole_replay(replace(sequential, decisions=sequential.decisions[2:]))  # whether it ended there


def test_in_a_tie_the_lowest_class_is_selected(documents):
    for votes, selected in (((5, 7, 7), 1), ((7, 7, 5), 0), ((0, 0, 1), 2)):
        assert selected_class(staged(replace(documents["fixed"], prediction=0), "selection", votes=votes)) == selected


def test_fresh_votes_are_of_the_estimation_from_the_seed_that_is_given(documents, verifier):
    table = noise_table(SmoothedClassifier(MODEL, "0.25", engine="reference").noise)
    classes = classes_by_hand(DATA.images[0], add_noise(table, np.zeros(9, np.uint8), 99, 0, ESTIMATION, 0, 120))
    assert verifier.votes(documents["fixed"], 99, 120) == (120 - sum(classes), sum(classes))
    for stage, seed in ((SELECTION, 99), (ESTIMATION, documents["fixed"].seed)):  # elsewhere the votes are others
        others = classes_by_hand(DATA.images[0], add_noise(table, np.zeros(9, np.uint8), seed, 0, stage, 0, 120))
        assert sum(others) != sum(classes)


@pytest.mark.parametrize(("most", "text"), [(2, "where sample 1234 is of class"), (1, "in samples 1000 to 1999")])
def test_a_changed_vote_is_sought_among_so_many_classes_at_most(most, text, documents, verifier, monkeypatch):
    monkeypatch.setattr("intsmooth_ref.certify.verification.CLASSES_TRIED", most)
    genuine = documents["fixed"]
    table = noise_table(SmoothedClassifier(MODEL, "0.25", engine="reference").noise)
    noise = add_noise(table, np.zeros(9, np.uint8), genuine.seed, 0, ESTIMATION, 1000, 1000)
    classes = np.array(classes_by_hand(DATA.images[0], noise), "<u2")
    classes[234] = 1 - classes[234]
    chunks = (genuine.estimation.chunks[0], chunk_of(classes), genuine.estimation.chunks[2])
    votes = (sum(dict(each.votes).get(0, 0) for each in chunks), sum(dict(each.votes).get(1, 0) for each in chunks))
    difference = verifier.replay(staged(genuine, "estimation", chunks=chunks, votes=votes))
    assert difference.path == "$.estimation.chunks[1].sha256" and text in difference.found
    assert difference.sources == ("model_sha256", "image", "noise", "seed")


def test_another_model_and_other_images_are_refuted(documents):
    other = Verifier(threshold_model(127), DATA, engine="reference")
    assert other.replay(documents["fixed"]).path == "$.model_sha256"
    few = Dataset(DATA.images[1:2], DATA.labels[1:2], DATA.class_names, "", "test")
    assert Verifier(MODEL, few, engine="reference").replay(documents["fixed"]).path == "$.image.sha256"
    forged = replace(documents["fixed"], image=replace(documents["fixed"].image, index=1))
    assert Verifier(MODEL, few, engine="reference").replay(forged).path == "$.image.index"


def test_images_that_the_model_does_not_take_are_no_reason_to_refute(documents):
    wide = Dataset(np.zeros((4, 3, 4, 1), np.uint8), DATA.labels, DATA.class_names, "", "test")
    with pytest.raises(ParameterError, match=r"images of shape \(3, 4, 1\): expected \(3, 3, 1\)"):
        Verifier(MODEL, wide, engine="reference").replay(documents["fixed"])


def test_a_family_has_no_more_members_than_shares(documents):
    member, single = documents["family"], documents["fixed"]
    assert list(family_differences([member, single, member, member, member])) == []
    ((place, difference),) = family_differences([member, single, member, member, member, member])
    assert place == 5 and difference.path == "$.familywise.images"


@pytest.mark.parametrize("chunks", [1, 2, 7, 9])
def test_what_escapes_a_random_replay_is_what_enumeration_says(chunks):
    """All draws of k chunks, all numbers of forged chunks F: the share of draws that miss them all."""
    sizes = [137] + [1000] * (chunks - 1)
    for draws in range(1, chunks + 1):
        for miss in (Fraction(1, 1000), Fraction(1, 9), Fraction(1, 3), Fraction(1, 2)):
            escaping = 0
            for forged in range(chunks + 1):
                missed = sum(not set(drawn) & set(range(forged)) for drawn in combinations(range(chunks), draws))
                if Fraction(missed, comb(chunks, draws)) > miss:
                    escaping = forged
            assert undetected_votes(sizes, draws, miss) == sum(sorted(sizes)[chunks - escaping :])


def test_of_a_long_transcript_twenty_chunks_leave_a_forger_less_than_a_third():
    """40,400 chunks; F of them forged escape with C(M - F, 20) / C(M, 20), close to (1 - F/M)**20."""
    room = undetected_votes([1000] * 40_400, 20, Fraction(1, 1000))
    assert room % 1000 == 0 and abs((1 - room / 40_400_000) ** 20 - 0.001) < 1e-5
