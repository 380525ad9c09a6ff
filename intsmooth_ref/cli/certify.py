"""certify images: the class of the smoothed network, and a radius within which no perturbation changes it

For each image, n0 noisy copies select a class and n more bound its probability; the radius is what that bound
guarantees (Cohen, Rosenfeld and Kolter 2019), in integers from the pixel to the radius. The table has the columns
idx, label (-1: unknown), predict (-1: abstained), radius (as a fraction of full scale, rounded down), correct (1, or 0
where the class is wrong, abstained or the label unknown) and time; the records beside it hold the radius in grey
levels, the votes, and all that is needed to repeat the run. A transcript holds what others need to replay it: see
verify. Without arguments the embedded network certifies the embedded handwritten digits.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence

from .arguments import add_sampling, integer_from, rationals
from .images import Found, Job, Record, Run, print_summary, run_over_images

if TYPE_CHECKING:
    import numpy as np

    from ..certify.smoothing import SmoothedClassifier

COLUMNS = ("idx", "label", "predict", "radius", "correct")
#: How a record names the radius in each norm: an integer, squared in the first.
RADIUS_NAMES = {"L2": "radius_sq", "L1": "radius_l1", "Linf": "radius_linf"}
#: Steps between the radii of the summary, as far as anything is certified there.
SUMMARY_STEPS = {"L2": Fraction(1, 4), "L1": Fraction(1, 2), "Linf": Fraction(2, 255)}
#: One less the probability with which the summary's lower bound of the accuracy holds.
RHO = Fraction(1, 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, "bound the selected class's probability, at most")
    parser.add_argument("--n0", type=integer_from(1), default=100, metavar="N0",
                        help="samples that select the class (default: 100)")  # fmt: skip
    parser.add_argument("--bound", choices=("majority", "two-class"), default="majority",
                        help="what the radius rests on: the selected class's probability alone, or also those of the"
                        " others, for which alpha is split (default: majority)")  # fmt: skip
    parser.add_argument("--target-radius", type=rationals, action="extend", default=[], metavar="R[,R...]",
                        help="radii of the summary, as fractions of full scale (default: in even steps)")  # fmt: skip
    parser.add_argument("--stop", action="store_true",
                        help="stop sampling as soon as each target radius, in the noise's norm, is certified or cannot"
                        " reasonably be: the radius is then the largest target that is certified (default: take all N"
                        " samples)")  # fmt: skip
    parser.add_argument("--familywise", action="store_true",
                        help="alpha for all images together: each is certified at alpha divided by their"
                        " number")  # fmt: skip
    parser.add_argument("--norm", choices=tuple(RADIUS_NAMES),
                        help="which norm the table and the summary speak of; what is certified in one implies radii in"
                        " the others (default: L2, and L1 with --scale)")  # fmt: skip
    parser.add_argument("--transcript", type=Path, metavar="FILE.jsonl",
                        help="write a certificate a line, which intsmooth-ref verify replays; earlier ones are moved"
                        " aside, not overwritten; with --resume, give it if and only if the run was begun with"
                        " it")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Certify, print the summary; returns the exit status."""
    from ..errors import ParameterError

    if options.stop and not options.target_radius:
        raise ParameterError("--stop: needs --target-radius, the radii to be decided")
    done = run_over_images(options, COLUMNS, lambda classifier, images: _prepared(options, classifier, images))
    print_summary(options, summary(done, options), done)
    return 0


def _prepared(options: argparse.Namespace, classifier: SmoothedClassifier, images: int) -> Job:
    from ..certify.procedure import Procedure
    from ..certify.radius import budget_at_least
    from ..certify.transcript import Familywise, canonical_line
    from ..errors import ParameterError

    noise = classifier.noise.name
    targets = sorted({budget_at_least(noise, radius) for radius in options.target_radius}) if options.stop else ()
    family = Familywise(options.alpha, images) if options.familywise else None
    alpha = options.alpha / images if options.familywise else options.alpha
    rule = classifier.rule(Procedure(options.n0, options.n, alpha, options.bound, tuple(targets), family))
    norm = options.norm or rule.norm
    if targets and norm != rule.norm:
        raise ParameterError(f"--norm {norm} with --stop: expected {rule.norm}, in which the targets are decided")

    def task(image: np.ndarray, known: Record, progress: Callable[[int], None]) -> Found:
        index = known["idx"]
        found = classifier.carry_out(rule, image, index, progress)
        radii = {"L2": found.radii.l2_sq, "L1": found.radii.l1, "Linf": found.radii.linf}
        fields: dict[str, Any] = {"predict": found.prediction, "radius": found.radius_in(norm)}
        fields.update({RADIUS_NAMES[each]: radii[each] for each in {rule.norm: 0, norm: 0}})
        if targets:
            fields["samples"] = found.estimation.samples
        fields.update(selection_votes=found.selection_votes, estimation_votes=found.estimation_votes)
        certificate = b""
        if options.transcript:
            document = classifier.document(found, known["image_sha256"], label=known["label"])
            certificate = canonical_line(document)
        return Found(fields, certificate)

    parameters = {"command": "certify", "n0": options.n0, "n": options.n, "alpha": str(alpha)}
    unusual = {
        "familywise": f"{options.alpha} for {images} images" if family else None,
        "bound": options.bound if options.bound != "majority" else None,
        "targets": list(targets) or None,
        "norm": norm if norm != rule.norm else None,
    }
    parameters.update({name: value for name, value in unusual.items() if value is not None})
    return Job(parameters, options.n0 + options.n, task)


def summary(run: Run, options: argparse.Namespace) -> list[str]:
    """Of which images it speaks; certified accuracy at several radii, as counted and as a bound that holds with high
    probability; abstentions; average certified radius: fractions of all images, rounded down."""
    from ..certify.accuracy import certified_accuracy

    records = run.records
    images = len(records)
    labelled = any(record["label"] >= 0 for record in records)
    counted = [record for record in records if record["correct"] or not labelled and record["predict"] >= 0]
    norm = options.norm or ("L1" if records[0]["noise"] == "discrete_laplace" else "L2")
    radii, counts = _certified_at(counted, norm, options.target_radius)
    abstained = sum(record["predict"] < 0 for record in records)
    average = sum((Fraction(record["radius"]) for record in counted), Fraction(0)) / images
    if options.familywise:
        bound, rho = [Fraction(count, images) for count in counts], options.alpha
    else:
        bound, rho = [certified_accuracy(count, images, options.alpha, RHO) for count in counts], RHO
    lines = [run.subset, f"{abstained} abstained; average certified radius {_three_digits(average)} ({norm})"]
    if options.stop:
        samples = sum(record["samples"] for record in records)
        lines.append(f"{samples // images} samples an image on average, of {options.n} at most")
    rows = {
        f"radius ({norm})": [_radius_text(radius, norm) for radius in radii],
        "certified accuracy" if labelled else "certified": [_three_digits(Fraction(each, images)) for each in counts],
        f"at least, with probability {_probability_text(rho)}": [_three_digits(each) for each in bound],
    }
    width = max(map(len, rows))
    return [*lines, *(f"{name:<{width}}" + "".join(f"  {cell:>6}" for cell in cells) for name, cells in rows.items())]


def _certified_at(
    records: Sequence[Record], norm: str, radii: Sequence[Fraction]
) -> tuple[Sequence[Fraction], Sequence[int]]:
    """How many of the records are certified at each radius; by default in steps, up to the first without any."""
    from ..certify.radius import budget_at_least

    name, noise = RADIUS_NAMES[norm], "discrete_gaussian" if norm == "L2" else "discrete_laplace"

    def count(radius: Fraction) -> int:
        needed = budget_at_least(noise, radius)
        return sum(record[name] >= needed for record in records)

    if radii:
        return sorted(radii), [count(radius) for radius in sorted(radii)]
    steps, counts = [Fraction(0)], [count(Fraction(0))]
    while counts[-1]:
        steps.append(steps[-1] + SUMMARY_STEPS[norm])
        counts.append(count(steps[-1]))
    return steps, counts


def _radius_text(radius: Fraction, norm: str) -> str:
    if norm == "Linf" and (radius * 255).denominator == 1:
        return f"{radius * 255}/255"
    texts = (f"{float(radius):.2f}", f"{float(radius):.6g}")
    return next((text for text in texts if Fraction(text) == radius), str(radius))


def _probability_text(rho: Fraction) -> str:
    text = f"{float(1 - rho):.6g}"
    return text if Fraction(text) == 1 - rho else f"1 - {rho}"


def _three_digits(value: Fraction) -> str:
    """Rounded down."""
    thousandths = value.numerator * 1000 // value.denominator
    return f"{thousandths // 1000}.{thousandths % 1000:03d}"
