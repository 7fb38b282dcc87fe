"""The report as one HTML file that fetches nothing: its style, its script and its data are inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.page_style import STYLE, themed
from lattice_jax.report import tables
from lattice_jax.report.curves import all_curves, evaluations_of, finite_or_none, seconds_of
from lattice_jax.report.maps import HeatMap, find_maps
from lattice_jax.report.workdir import Run

_HERE = Path(__file__).parent
_SCRIPTS = ("chart.js", "map.js", "page.js")  # the last one starts what the others define
_MOST_SAMPLES, _MOST_CHARACTERS = 8, 4000  # texts of a run, and characters of a text
# Colours that colour-blind readers can tell apart, and lighter ones for a dark page.
_COLORS = themed(
  "--run0:#0072b2;--run1:#d55e00;--run2:#009e73;--run3:#b8528f;--run4:#3d9fd6;--run5:#b97f00",
  "--run0:#4aa8e0;--run1:#ff8a4c;--run2:#2fd0a4;--run3:#ea9fcb;--run4:#8fd0f7;--run5:#f2bd3d")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_page(path: Path, runs: Sequence[Run], *, title: str, origin: str) -> None:
  """Writes the page. origin: the command and the time that made it.

  Raises ValueError if the file cannot be written, or a file of a workdir is damaged.
  """
  maps = find_maps(runs)
  data = all_curves(runs) | {
    "runs": [run.name for run in runs], "maps": [one.record() for found, _ in maps.values() for one in found],
    "positions": _positions(runs)}
  sections = [
    _section("Results", _results(runs)), _section("Curves", _curves(runs)),
    _section("Evaluations", tables.evaluations_table(runs).html("evaluations")) if _is_evaluated(runs) else "",
    _section("Loss by position", '<div id="positions" class="chart"></div>') if data["positions"] else "",
    _section("Config", _config(runs)), _maps(maps), _section("Samples", _samples(runs)),
    _section("Environment", tables.environment_table(runs).html("environment"))]
  style = STYLE + _COLORS + (_HERE / "page.css").read_text(encoding="utf-8")
  script = "\"use strict\";\n" + "".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
  write_text(path, (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{style}</style></head><body><main><header><div><h1>{escape(title)}</h1>"
    f'<p class="muted">{escape(origin)}</p></div><button id="theme" type="button">Theme: auto</button></header>'
    "<noscript><p>The curves, the maps and sorting need JavaScript; the tables do not.</p></noscript>"
    f'{"".join(sections)}<div id="tip" role="status" hidden></div></main>'
    f'<script type="application/json" id="data">{_embedded(data)}</script><script>{script}</script></body></html>\n'))


def _section(heading: str, body: str) -> str:
  return f'<section id="{heading.lower().replace(" ", "-")}"><h2>{escape(heading)}</h2>{body}</section>' if body else ""


def _results(runs: Sequence[Run]) -> str:
  table = tables.results_table(runs)
  if len(runs) == 1:
    figures = "".join(
      f"<div><span class=muted>{escape(head.text)}</span><b>{escape(cell.text)}</b></div>"
      for head, cell in zip(table.head[1:], table.rows[0][1:], strict=True) if cell.text)
    return f'<div class="figures">{figures}</div>'
  return (
    '<p class="controls"><label>Runs with <input id="filter" type="search" placeholder="a part of the name"></label>'
    '<button id="all" type="button">Show all</button><button id="none" type="button">Show none</button>'
    '<span class="muted" id="shown"></span></p>' + table.html("results-table", is_runs=True) +
    '<p class="muted">Training loss: mean over the last twentieth of the updates. Tokens/s: median over updates.</p>')


def _curves(runs: Sequence[Run]) -> str:
  if not any(run.updates for run in runs):
    return ""
  return (
    '<p class="controls"><label>Over <select id="axis"><option value="steps">updates</option>'
    '<option value="minutes">minutes</option></select></label>'
    '<label>Smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" value="0"></label>'
    '<label><input id="log" type="checkbox"> logarithmic</label></p>'
    '<ul id="legend" class="legend"></ul><div id="main" class="charts"></div>'
    '<details id="more"><summary>Further metrics</summary><div id="others" class="charts"></div></details>'
    '<p class="muted">Points: evaluations. A curve joins the means of stretches of updates; a band around it, where '
    "there is one, goes from the smallest to the largest value.</p>")


def _is_evaluated(runs: Sequence[Run]) -> bool:
  return any(run.evaluations or run.results for run in runs)


def _positions(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Bits by position of the last evaluation of each kind, and of each file of eval.py."""
  series = []
  for index, run in enumerate(runs):
    last = {label: lines[-1] for label, lines in evaluations_of(run, "bits_per_byte").items()}
    files = {name.removesuffix(".json"): result for name, result in run.results}
    for label, line in (last | files).items():
      filled = [part for part in line["buckets"] if part["tokens"]] if "buckets" in line else []
      if len(filled) > 1:
        series.append({
          "run": index, "label": label, "unit": run.unit, "starts": [part["start"] for part in filled],
          "stop": filled[-1]["stop"], "values": finite_or_none(part["bits_per_byte"] for part in filled)})
  return series


def _config(runs: Sequence[Run]) -> str:
  if not any(run.config for run in runs):
    return ""
  differing, parts = tables.config_table(runs), []
  if differing is not None:
    parts.append(f"<h3>What differs</h3>{differing.html('differences')}")
  elif len(runs) > 1:
    parts.append("<p>The configs do not differ.</p>")
  heading = "What is the same" if len(runs) > 1 else "All fields"
  return "".join([*parts, (
    f'<details><summary>{heading}</summary><p class="controls"><label>Fields with <input id="fields" type="search" '
    f'placeholder="a part of a line"></label></p>{tables.common_config(runs).html("fields-table")}</details>')])


def _maps(found: dict[str, tuple[list[HeatMap], list[str]]]) -> str:
  parts, number = [], 0
  for heading, (maps, commands) in found.items():
    body = ""
    for one in maps:
      body += (
        f'<figure data-run="{one.run}"><h3>{escape(one.title)}</h3><div class="map" data-map="{number}"></div>'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>")
      number += 1
    if commands:
      lines = "\n".join(map(escape, commands))
      body += (f"<details{' open' if len(commands) <= 2 else ''}><summary>What makes {'the others' if maps else 'them'}"
               f"</summary><p>The next report shows maps that these commands write into the workdir:</p>"
               f"<pre>{lines}</pre></details>")
    parts.append(_section(heading, body))
  return "".join(parts)


def _samples(runs: Sequence[Run]) -> str:
  parts = []
  for index, run in enumerate(runs):
    for name, text in run.samples[:_MOST_SAMPLES]:
      cut = f" <span class=muted>(the first {_MOST_CHARACTERS:,} of {len(text):,} characters)</span>" * (
        len(text) > _MOST_CHARACTERS)
      parts.append(f'<div data-run="{index}"><h3>{escape(run.name)}: {escape(name)}{cut}</h3>'
                   f"<pre>{escape(text[:_MOST_CHARACTERS])}</pre></div>")
    if len(run.samples) > _MOST_SAMPLES:
      parts.append(f'<p data-run="{index}" class="muted">{len(run.samples) - _MOST_SAMPLES} more in '
                   f"{escape(str(run.path))}.</p>")
  if parts:
    return "".join(parts)
  return ("<p>No run has a text of its own yet. The next report shows what this writes:</p><pre>" + escape(
    f'python eval.py --workdir={runs[0].path} --protocol=none --generate=500 --prompt="The "') + "</pre>")


def _embedded(data: dict[str, Any]) -> str:
  """JSON that cannot end the script element in which it stands."""
  return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")


def title_of(runs: Sequence[Run]) -> str:
  """The name of a run, or how many are compared."""
  return runs[0].name if len(runs) == 1 else f"{len(runs)} runs beside one another"


def summary_of(runs: Sequence[Run]) -> str:
  """In one line what the page is about."""
  updates, minutes = sum(len(run.updates) for run in runs), sum(map(seconds_of, runs)) / 60
  return f"{len(runs)} run{'s' * (len(runs) > 1)}, {updates:,} updates, {minutes:,.1f} minutes of training"
