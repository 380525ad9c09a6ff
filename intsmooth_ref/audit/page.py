"""The audit as one page of HTML: no script, nothing fetched, fit to be printed."""

from __future__ import annotations

from html import escape
from typing import Iterable, Iterator, Sequence

from .report import Audit, LayerAudit, heading, sentences

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; border-bottom: 1px solid #d0d7de; }
h3 small { font-weight: normal; color: #57606a; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #eaeef2; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
dl { display: grid; grid-template-columns: 10rem 1fr; gap: .15rem 1rem; margin: .3rem 0; }
dt { color: #57606a; } dd { margin: 0; overflow-wrap: anywhere; }
.wrong { color: #a40e26; font-weight: 600; } .proven { color: #116329; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } section { break-inside: avoid; }
  thead { display: table-header-group; } }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } }
"""

#: What the words of the page mean.
TERMS = (
    ("accumulator", "smallest and largest final value over all images, from the actual weights and what the"
                    " layers before can give; zero points subtracted, bias included"),
    ("any order", "the same for every partial sum, in whatever order bias and products are added"),
    ("clamp", "in how many channels the rounded value can lie below or above the output's range"),
    ("rounding", "a tie is an accumulator whose exact quotient lies halfway between two integers; another mode's"
                 " differences from single_rounding are counted over the whole interval of each channel, none sampled"),
    ("pairs", "a kernel that adds u8 times s8 in pairs with saturation to 16 bits, as pmaddubsw does; taps in the"
              " order (KH, KW, I) of a group, int8 activations stored plus 128, zero point and bias added afterwards"),
)  # fmt: skip


def page(found: Audit) -> str:
    """The whole document; every text from the model is escaped."""
    title = f"Audit of model {found.fingerprint[:16]}"
    return "\n".join(
        [
            "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
            f"<h1>{escape(title)}</h1>", *_list(heading(found)),
            "<h2>Layers at a glance</h2>", *_table(found.layers),
            "<h2>Layer by layer</h2>", *(line for layer in found.layers for line in _section(layer)),
            "<h2>What the words mean</h2>", *_list(TERMS), "</body>", "</html>", "",
        ]
    )  # fmt: skip


def _list(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "<dl>"
    for topic, sentence in items:
        emphasis = ' class="wrong"' if sentence.startswith(("WRONG", "SATURATES", "FLOATING POINT")) else ""
        yield f"<dt>{escape(topic)}</dt><dd{emphasis}>{escape(sentence)}</dd>"
    yield "</dl>"


def _section(layer: LayerAudit) -> Iterator[str]:
    what = f"{layer.kind}, {' × '.join(map(str, layer.shape)) or 'class'}, {layer.dtype}"
    yield "<section>"
    yield f"<h3>{escape(layer.name)} <small>{escape(what)}</small></h3>"
    yield from _list(sentences(layer))
    yield "</section>"


def _table(layers: Sequence[LayerAudit]) -> Iterator[str]:
    modes = sorted({each.mode for layer in layers if layer.rounding for each in layer.rounding.differences})
    titles = ["layer", "kind", "bits", "any order", "constant channels", "ties", *modes, "pairs"]
    yield "<table><thead><tr>" + "".join(f"<th>{escape(each)}</th>" for each in titles) + "</tr></thead><tbody>"
    for layer in layers:
        found, rounding = layer.accumulators, layer.rounding
        after = {each.mode: each.after for each in rounding.differences} if rounding else {}
        numbers = [
            found.bits if found else None, found.partial_bits if found else None, len(layer.constant),
            rounding.ties if rounding else None, *(after.get(mode) for mode in modes),
        ]  # fmt: skip
        yield (
            f"<tr><td>{escape(layer.name)}</td><td>{escape(layer.kind)}</td>"
            + "".join(f'<td class="number">{"" if each is None else each}</td>' for each in numbers)
            + f"{_verdict(layer)}</tr>"
        )
    yield "</tbody></table>"


def _verdict(layer: LayerAudit) -> str:
    if layer.pairs is None:
        return "<td></td>"
    if not layer.pairs.possible:
        return '<td class="proven">right</td>'
    if layer.pairs.witness is None:
        return "<td>possible</td>"
    return f'<td class="wrong">{"wrong" if layer.pairs.wrong else "saturates"}, witness</td>'
