"""The slot audit as one self-contained HTML file, and as JSON with every number."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inspect.slot_plots import CAPTIONS, HEADINGS
from lattice_jax.inspect.slot_trace import SlotTrace
from lattice_jax.inspect.slot_writes import SlotSummary, Write, ages
from lattice_jax.page_style import STYLE

_DECIMALS = 5
_INTRODUCTION = (
  ("A Lattice layer remembers a text in a fixed number of slots for each head. Every token takes one gradient step on "
   "the slots: it turns some of them towards its value, and so overwrites what they held. This page replays that for "
   "one text: which tokens wrote to which slot, how much of what was there they left, and what the slots hold at the "
   "end."),
  ("A write is counted if a token turns a slot by {threshold:g} radians or more; π/2 would replace the slot. The part "
   "of a value that lies along the slots it is offered to was already known (redundant); the rest is novel. In heat "
   "maps a row is a slot, and a column is a token, or several if there is no room for all; heads stand below one "
   "another."))
_STYLE = STYLE + """
nav li{margin:4px 0}figure{margin:20px 0}figcaption{color:var(--muted);max-width:60em}
.report th,.report td{text-align:right;vertical-align:top;padding:2px 9px}
.report td.text{text-align:left;font-family:monospace}td.text div{white-space:pre-wrap;overflow-wrap:anywhere}
tr:hover td{background:var(--page)}mark{background:#ffd54d;color:#222;padding:0 1px}.faint{color:var(--muted)}
summary{cursor:pointer;font-weight:600}
"""


@dataclass(frozen=True)
class LayerAudit:
  """The audit of one layer. figures: what is shown → PNG."""

  name: str
  trace: SlotTrace
  slots: list[SlotSummary]
  figures: Mapping[str, Path]


def write_json(path: Path, facts: Mapping[str, Any], texts: Sequence[str], layers: Sequence[LayerAudit]) -> None:
  """Writes the facts of the run, the text of each token, and each layer's traces and slot summaries."""
  threshold = facts["threshold"]
  content = dict(facts) | {"tokens": list(texts), "layers": [
    {"name": layer.name, **_numbers(layer.trace, threshold), "slots": list(map(dataclasses.asdict, layer.slots))}
    for layer in layers]}
  path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_html(path: Path, facts: Mapping[str, Any], layers: Sequence[LayerAudit]) -> None:
  """Writes the page to read, with its images inside."""
  rows = "".join(
    f"<tr><th>{_escape(name)}</th><td class=text>{_escape(value)}</td></tr>" for name, value in facts.items())
  body = "".join(_layer(layer, facts["threshold"]) for layer in layers)
  introduction = "".join(f"<p>{_escape(text.format(threshold=facts['threshold']))}</p>" for text in _INTRODUCTION)
  path.write_text(
    "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    f"<title>Slots of {_escape(facts['run'])}</title><style>{_STYLE}</style></head><body><main class=report>"
    f"<h1>Slots of {_escape(facts['run'])}</h1>{introduction}<h2 id=run>The run and the text</h2>"
    f"<table>{rows}</table>{_contents(layers)}{body}</main></body></html>\n", encoding="utf-8")


def _numbers(trace: SlotTrace, threshold: float) -> dict[str, Any]:
  arrays = {
    "turn_THM": trace.turn_THM, "keep_THM": trace.keep_THM, "novel_THM": trace.novel_THM, "norm_THM": trace.norm_THM,
    "age_THM": ages(trace.turn_THM, threshold), "novel_TH": trace.novel_TH, "step_TH": trace.step_TH,
    "forget_TH": trace.forget_TH, "rank_TH": trace.rank_TH, "overlap_TH": trace.overlap_TH,
    "similarity_HMM": trace.similarity_HMM}
  return {name: np.round(value.astype(np.float64), _DECIMALS).tolist() for name, value in arrays.items()}


def _contents(layers: Sequence[LayerAudit]) -> str:
  """Links to every part of every layer."""
  lines = []
  for layer in layers:
    links = " · ".join(
      f"<a href='#{_anchor(layer, what)}'>{_escape(heading)}</a>" for what, heading in _parts(layer).items())
    lines.append(f"<li><a href='#{_anchor(layer)}'>{_escape(layer.name)}</a>: {links}</li>")
  return f"<nav><h2 id=contents>Contents</h2><ul>{''.join(lines)}</ul></nav>"


def _parts(layer: LayerAudit) -> dict[str, str]:
  figures = {what: HEADINGS[what] for what in CAPTIONS if what in layer.figures}
  return {"heads": "Heads"} | figures | {"slots": "Every slot"}


def _anchor(layer: LayerAudit, part: str = "") -> str:
  return "-".join(filter(None, (*layer.name.split(), part)))


def _layer(layer: LayerAudit, threshold: float) -> str:
  figures = {
    what: f"<figure><img alt='{_escape(CAPTIONS[what])}' src='data:image/png;base64,"
          f"{base64.b64encode(path.read_bytes()).decode()}'><figcaption>{_escape(CAPTIONS[what])}</figcaption></figure>"
    for what, path in layer.figures.items()}
  contents = figures | {"heads": _heads(layer, threshold), "slots": _slots(layer)}
  parts = "".join(
    f"<h3 id='{_anchor(layer, what)}'>{_escape(heading)}</h3>{contents[what]}"
    for what, heading in _parts(layer).items())
  return f"<h2 id='{_anchor(layer)}'>{_escape(layer.name)} <a class=faint href='#contents'>↑</a></h2>{parts}"


def _heads(layer: LayerAudit, threshold: float) -> str:
  trace = layer.trace
  is_write_THM = trace.turn_THM >= threshold
  rows = [
    (str(head), f"{trace.step_TH[:, head].mean():.3f}", f"{is_write_THM[:, head].any(-1).mean():.1%}",
     f"{is_write_THM[:, head].sum(-1).mean():.2f}", f"{trace.novel_TH[:, head].mean():.1%}",
     f"{1 - trace.novel_TH[:, head].mean():.1%}", f"{trace.rank_TH[-1, head]:.1f} of {trace.turn_THM.shape[2]}",
     f"{trace.overlap_TH[-1, head]:.3f}")
    for head in range(trace.turn_THM.shape[1])]
  return _table(
    ("head", "mean step η", "tokens that wrote", "slots written per token", "novel share", "redundant share",
     "directions at the end", "mean |cosine| at the end"), rows)


def _slots(layer: LayerAudit) -> str:
  rows = [
    (str(slot.head), str(slot.slot), f"{slot.norm:.3f}", str(slot.age), str(slot.writes), f"{slot.mean_turn:.3f}",
     f"{slot.mean_keep:.3f}", f"{slot.min_keep:.2f} … {slot.max_keep:.2f}", f"{slot.mean_novel:.1%}",
     "" if slot.nearest is None else f"{slot.nearest} ({slot.nearest_cosine:+.2f})")
    for slot in layer.slots]
  writes = ["".join(map(_write, slot.top)) for slot in layer.slots]
  table = _table(
    ("head", "slot", "length", "age", "writes", "mean turn", "mean gate", "gates", "novel share", "nearest slot"),
    rows, ("tokens that wrote most", writes))
  return f"<details><summary>Every slot, and the tokens that wrote most to it</summary>{table}</details>"


def _write(write: Write) -> str:
  return (
    f"<div><span class=faint>{write.turn:.2f} at {write.position}:</span> {_escape(write.before)}"
    f"<mark>{_escape(write.token)}</mark>{_escape(write.after)}</div>")


def _table(
  names: Sequence[str], rows: Sequence[Sequence[str]], last: tuple[str, Sequence[str]] | None = None
) -> str:
  """last: name and cells of a last column that is already HTML."""
  heads = "".join(f"<th>{_escape(name)}</th>" for name in (*names, *(last[:1] if last else ())))
  lines = [
    "".join(f"<td>{_escape(cell)}</td>" for cell in row) + (f"<td class=text>{last[1][n]}</td>" if last else "")
    for n, row in enumerate(rows)]
  return f"<table><tr>{heads}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _escape(text: Any) -> str:
  """Escapes text for HTML and makes control characters visible."""
  visible = "".join("↵" if c == "\n" else c if c.isprintable() else "·" for c in str(text))
  return html.escape(visible)
