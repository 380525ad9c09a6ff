"""measure the compiled engine beside PyTorch, ONNX Runtime and OpenVINO

Samples per second of one network in every way that is installed: this package's engine, and the peers in float32 and in
8 bits, each at its best batch size and on the same number of threads. They take turns for some rounds; given are the
median and, in brackets, the lowest and the highest round. Without MODEL the embedded digits network is measured, then
ResNet-20, ResNet-110 and MobileNetV2 with random weights, for pictures of 32x32. The peers are installed by
pip install 'intsmooth_ref[bench]'; those that are missing are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from ..errors import ParameterError
from .arguments import integer_from, open_model, rational
from .interruption import Interruption

if TYPE_CHECKING:
    from ..benchmark.measurement import NetworkResult, ProfileStep, Ratio, Speed, Spread
    from ..benchmark.peers import Peer
    from ..model.graph import IntegerModel

#: The version of the file that --json writes.
FORMAT = "intsmooth-ref bench 1"
DIGITS = "digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL",
                        help="model file (HDF5) to measure instead of --networks")  # fmt: skip
    parser.add_argument("--networks", metavar="NAME[,NAME]",
                        help="some of digits, resnet20, resnet110, mobilenetv2 (default: all)")  # fmt: skip
    parser.add_argument("--threads", type=integer_from(1), default=1, metavar="T",
                        help="of every contestant (default: 1)")  # fmt: skip
    parser.add_argument("--isa", metavar="NAME[,NAME]",
                        help="instruction sets of this package's engine, or all that this machine runs (default: the"
                        " best)")  # fmt: skip
    parser.add_argument("--peers", metavar="NAME[,NAME]",
                        help="some of torch, onnxruntime, openvino, or none (default: those installed)")  # fmt: skip
    parser.add_argument("--seconds", type=rational, default="0.3", metavar="S", help="of one turn (default: 0.3)")
    parser.add_argument("--rounds", type=integer_from(1), default=7, metavar="R", help="turns of each (default: 7)")
    parser.add_argument("--certify", action="store_true",
                        help="also measure 10,000 votes under noise, as certify counts them")  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="also print the time of every layer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured, profiles included")


def run(options: argparse.Namespace) -> int:
    """Measure, print; returns the exit status."""
    from ..engine import resolve_engine

    resolve_engine("jit")
    networks = _networks(options)
    _require_compilation()
    from ..benchmark.measurement import Effort, machine, measure, pinned

    isas = _isas(options.isa)
    peers, left_out = _peers(options.peers)
    if not 0 < options.seconds <= 60:
        raise ParameterError(f"--seconds {options.seconds}: expected more than 0, at most 60")
    effort = Effort(options.threads, float(options.seconds), options.rounds, options.certify)
    results: list[NetworkResult] = []
    status = _Status()
    description = machine(peers)
    with Interruption() as interruption, pinned(effort.threads):

        def progress(what: str) -> None:
            interruption.check()
            status.show(what)

        _write(options.json, description, effort, left_out, results)
        _print_head(description, effort, left_out)
        for name, open_network in networks.items():
            try:
                progress(f"{name}: preparing")
                results.append(measure(name, open_network(), isas, peers, effort, progress))
            finally:
                status.clear()
            _print_result(results[-1], options.profile, effort.threads)
            _write(options.json, description, effort, left_out, results)
    return 0


# --- what is asked for ------------------------------------------------------------------------------------------------


def _require_compilation() -> None:
    from ..compilation import jit_disabled

    if jit_disabled():
        raise ParameterError("NUMBA_DISABLE_JIT is set: expected it not to be, for without it nothing is compiled")


def _names(text: str, option: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise ParameterError(f"{option} {name!r}: expected some of {', '.join(known)}, separated by commas")
    return names


def _networks(options: argparse.Namespace) -> Mapping[str, Callable[[], IntegerModel]]:
    """The networks by name, each made when it is called."""
    from ..benchmark.networks import RANDOM_NETWORKS, random_network

    if options.model is not None:
        if options.networks is not None:
            raise ParameterError(f"--networks {options.networks}: expected either MODEL or --networks, not both")
        model = open_model(options.model).model
        return {options.model.name: lambda: model}
    makers: dict[str, Callable[[], IntegerModel]] = {DIGITS: lambda: open_model(None).model}
    for name in RANDOM_NETWORKS:
        makers[name] = partial(random_network, name)
    chosen = list(makers) if options.networks is None else _names(options.networks, "--networks", list(makers))
    return {name: makers[name] for name in chosen}


def _isas(text: str | None) -> Sequence[str | None]:
    from ..engine.jit.selection import available_isas

    available = available_isas()
    if text is None:
        return (None,)
    return available if text == "all" else _names(text, "--isa", available)


def _peers(text: str | None) -> tuple[Sequence[Peer], Mapping[str, str]]:
    """The peers to measure, and why others of those asked for are left out."""
    from ..benchmark.peers import FRAMEWORKS, PEERS, reason_to_skip

    if text == "none":
        return (), {}
    chosen = FRAMEWORKS if text is None else _names(text, "--peers", FRAMEWORKS)
    left_out: dict[str, str] = {}
    for peer in PEERS:
        reason = reason_to_skip(peer) if peer.framework in chosen else None
        if reason is not None and text is not None:
            raise ParameterError(f"--peers {peer.framework}: {reason}")
        if reason is not None:
            left_out[peer.name] = reason
    return [peer for peer in PEERS if peer.framework in chosen and peer.name not in left_out], left_out


# --- what is shown ----------------------------------------------------------------------------------------------------


class _Status:
    """One line on standard error that says what is being done; silent where that is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, what: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{what}")
            sys.stderr.flush()

    def clear(self) -> None:
        self.show("")


def _write(
    path: Path | None, description: Mapping[str, Any], effort: Any, left_out: Mapping[str, str],
    results: Sequence[NetworkResult],
) -> None:  # fmt: skip
    if path is not None:
        content = {
            "format": FORMAT, "machine": description, **asdict(effort), "left_out": left_out,
            "networks": [asdict(result) for result in results],
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _print_head(description: Mapping[str, Any], effort: Any, left_out: Mapping[str, str]) -> None:
    print(f"{description['cpu']}, {description['usable_cores']} of {description['cores']} cores usable,"
          f" {description['system']}, Python {description['python']}")  # fmt: skip
    print(f"instruction sets: {', '.join(description['isas'])}")
    plural = "s" * (effort.threads > 1)
    print(f"{effort.threads} thread{plural}, {effort.rounds} rounds, {effort.seconds:g} s a turn")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")


def _print_result(result: NetworkResult, profile: bool, threads: int) -> None:
    print(f"\n{result.network}: {result.multiply_adds / 1e6:,.1f} million multiply-adds a sample")
    for name, reason in result.left_out.items():
        print(f"left out: {name}: {reason}")
    head = ("", "version", "batch", "samples/s", "(lowest .. highest)", "10^9 multiply-adds/s", "of peak", "agrees")
    _print_table([head, *map(_speed_row, result.speeds)], left=2)
    print()
    for ratio in result.ratios:
        print(_ratio_line(ratio))
    for isa, peak in result.peaks.items():
        print(f"peak of {isa}: {_spread(peak, 1e9, 1)} * 10^9 multiply-adds/s a core, in registers")
    for isa, certifying in result.certifying.items():
        print(f"certify with {isa}: {_figures(certifying.samples_per_second.median)} noisy samples/s,"
              f" {_spread(certifying.share_of_network, 0.01, 0)} % of the bare network's speed,"
              f" {certifying.samples:,} votes")  # fmt: skip
    if profile:
        for isa, steps in result.profiles.items():
            _print_profile(isa, steps, result.peaks[isa].median if isa in result.peaks else None)


def _speed_row(speed: Speed) -> tuple[str, ...]:
    spread = speed.samples_per_second
    return (
        speed.name, speed.version, f"{speed.instances}x" * (speed.instances > 1) + f"{speed.batch}",
        _figures(spread.median), f"({_figures(spread.lowest)} .. {_figures(spread.highest)})",
        f"{speed.multiply_adds_per_second / 1e9:.1f}",
        "" if speed.share_of_peak is None else f"{speed.share_of_peak.median:.0%}",
        "" if speed.agreement is None else f"{speed.agreement:.0%} of {speed.compared}",
    )  # fmt: skip


def _ratio_line(ratio: Ratio) -> str:
    kind = {"fp32": "float32", "int8": "8 bits"}[ratio.kind]
    return f"{ratio.name} is {_spread(ratio.times, 1, 2)} times as fast as {ratio.peer}, the fastest in {kind}"


def _print_profile(isa: str, steps: Sequence[ProfileStep], peak: float | None) -> None:
    total = sum(step.seconds for step in steps)
    print(f"\nprofile of {isa}, one sample:")
    rows = [("kernel", "layers", "microseconds", "share", "10^9 multiply-adds/s", "of peak")]
    for step in steps:
        speed = step.multiply_adds / step.seconds if step.seconds else 0.0
        rows.append(
            (
                step.kernel, "+".join(step.layers), f"{step.seconds * 1e6:.2f}", f"{step.seconds / total:.1%}",
                f"{speed / 1e9:.1f}" if speed else "", f"{speed / peak:.0%}" if speed and peak else "",
            )
        )  # fmt: skip
    rows.append(("all", "", f"{total * 1e6:.2f}", "", "", ""))
    _print_table(rows, left=2)


def _print_table(rows: Sequence[tuple[str, ...]], left: int) -> None:
    """Columns in line, the first `left` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        )
        print("  ".join(cells).rstrip())


def _figures(value: float) -> str:
    """Three figures or more, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(spread: Spread, unit: float, digits: int) -> str:
    ends = f"{spread.lowest / unit:.{digits}f} .. {spread.highest / unit:.{digits}f}"
    return f"{spread.median / unit:.{digits}f} ({ends})"
