"""The dashboard of a rollout as one HTML page, made from a snapshot alone; it fetches nothing and runs no script."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lattice_jax.inference.rollout.charts import curve_chart, gate_chart, latency_chart, shown_value
from lattice_jax.page_style import STYLE

_ROLES = {
  "quality": "must go", "purpose": "must go", "guard": "guardrail", "report": "reported only"}
_CAUSES = {"not_finite": "logits that are not finite", "kl": "divergence above the limit, several units in a row"}
_MARKS = {"go": "✓ go", "stop": "✕ stop", "wait": "… wait", "no stop": "– no stop", "reported": "– reported"}


def render_dashboard(snapshot: dict[str, Any], *, refresh: int = 2) -> str:
  """The page for `Rollout.snapshot()`, or for that of live traffic.

  While the rollout runs, a browser loads it anew every `refresh` seconds.
  """
  head = "" if snapshot["is_ended"] else f'<meta http-equiv="refresh" content="{refresh}">'
  title = f"Rollout {snapshot['config']['salt']}: {snapshot['status']}"
  body = "".join([
    _header(snapshot), _stages(snapshot), _figures(snapshot), _section("Gates of this stage", _gates(snapshot)),
    '<div class="pair">',
    _section("Loss difference, stage by stage", curve_chart(
      snapshot["curve"], snapshot["config"]["delta_margin"]),
      "Treatment minus control in nats per token, with its one-sided bounds. Dashes: the margin; "
      "vertical lines: a new stage, which needs evidence of its own."),
    _section("Latency and bytes", _arms(snapshot), "The last 1,024 units of each arm. Milliseconds."),
    "</div>", _traffic(snapshot["traffic"]) if "traffic" in snapshot else "",
    _section("Decisions", _decisions(snapshot["decisions"])), _section("Settings", _settings(snapshot))])
  return (
    f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    f'content="width=device-width, initial-scale=1">{head}<title>{escape(title)}</title><style>{STYLE}</style></head>'
    f"<body><main>{body}</main></body></html>\n")


def _header(snapshot: dict[str, Any]) -> str:
  facts = snapshot["facts"]
  arms = " → ".join(escape(str(facts[name])) for name in ("control", "treatment") if name in facts)
  injected = f'<span class="chip stop">injected regression of {facts["inject"]:g} nats</span>' if (
    facts.get("inject")) else ""
  kind = {"running": "wait", "watching": "stop", "complete": "go"}.get(snapshot["status"])
  return (
    f'<header><div><h1>{escape(snapshot["config"]["salt"])}</h1><p class="muted">{arms}</p></div><div>{injected}'
    f'<span class="chip {kind or "stop"}">{escape(snapshot["status"])}</span></div></header>')


def _stages(snapshot: dict[str, Any]) -> str:
  """The stages in a row: passed, here, ahead."""
  names = [stage["name"] for stage in snapshot["plan"]]
  here, parts = names.index(snapshot["stage"]), []
  is_back = snapshot["status"] in ("rolled back", "watching", "no purpose")
  for place, stage in enumerate(snapshot["plan"]):
    kind = "ahead" if place > here else "passed" if place < here or snapshot["status"] == "complete" else (
      "failed" if is_back else "here")
    percent = f"serves {stage['percent']:g} %" if stage["percent"] else "serves nothing"
    parts.append(f'<li class="{kind}"><b>{escape(stage["title"])}</b><span>{percent}</span></li>')
  return f'<ol class="stages">{"".join(parts)}</ol>'


def _figures(snapshot: dict[str, Any]) -> str:
  config, needs, canaries = snapshot["config"], snapshot["needs"], snapshot["canaries"]
  arms = snapshot["arms"]
  figures = [
    ("treatment serves", f"{snapshot['percent']:g} %", "of the units"),
    ("units", f"{snapshot['units']:,}", "in the whole rollout, with canaries"),
    ("measured", f"{needs['units']:,}", f"in this stage, {config['min_units']:,} needed"),
    ("served", f"{needs['served']:,}", f"by the treatment in this stage, {config['min_served']:,} needed"),
    ("canaries", f"{canaries['treatment']:,} : {canaries['control']:,}",
     f"right, treatment : control, of {canaries['asked']:,}"),
    ("errors", f"{arms['treatment']['errors']:,} : {arms['control']['errors']:,}",
     f"treatment : control, of {arms['treatment']['units']:,} : {arms['control']['units']:,} units")]
  return '<div class="figures">' + "".join(
    f'<div><span class="muted">{escape(name)}</span><b>{escape(value)}</b><span class="muted">{escape(note)}</span>'
    "</div>" for name, value, note in figures) + "</div>"


def _gates(snapshot: dict[str, Any]) -> str:
  rows = []
  for gate in snapshot["gates"]:
    answer = gate["answer"]
    if gate["role"] == "report":
      answer = "reported"
    elif gate["role"] == "guard" and answer != "stop":
      answer = "no stop"
    sign = "<" if gate["is_high_bad"] else ">"
    rows.append(
      f'<tr><td><b>{escape(gate["title"])}</b><br><span class="muted">{_ROLES[gate["role"]]}: {sign} '
      f'{shown_value(gate["name"], gate["threshold"])}</span></td><td class="bar">{gate_chart(gate)}</td>'
      f'<td class="number">{shown_value(gate["name"], gate["estimate"])}<br>'
      f'<span class="muted">{_bounds(gate)}</span></td>'
      f'<td class="number">{gate["units"]:,}</td>'
      f'<td><span class="chip {answer.replace(" ", "-")}">{_MARKS[answer]}</span></td></tr>')
  run, limit = snapshot["kl_run"], snapshot["config"]["kl_limit"]
  note = (
    f"Divergence above {limit:g} nats in the last units in a row: {run} of {snapshot['config']['kl_run']} that end the "
    "rollout.")
  return (
    '<div class="wide"><table class="gates"><thead><tr><th>gate</th><th>bounds, and the threshold as a line</th>'
    '<th class="number">estimate, bounds</th><th class="number">units</th><th>answer</th></tr></thead><tbody>'
    f'{"".join(rows)}</tbody></table></div><p class="muted">{escape(note)}</p>')


def _bounds(gate: dict[str, Any]) -> str:
  lower, upper = (None if gate[side] is None else shown_value(gate["name"], gate[side]) for side in ("lower", "upper"))
  if lower and upper:
    return f"{lower} to {upper}"
  return f"above {lower}" if lower else f"below {upper}" if upper else "no bounds yet"


def _arms(snapshot: dict[str, Any]) -> str:
  rows, arms = [], snapshot["arms"]
  for name, title in (("first_ms", "first token"), ("next_ms", "next token"), ("longest_ms", "longest gap")):
    for arm in ("control", "treatment"):
      summary = arms[arm][name]
      cells = "".join(
        f'<td class="number">{_short(summary[column])}</td>' for column in ("p50", "p95", "p99", "largest")) if (
        summary) else '<td colspan="4" class="number muted">not measured</td>'
      rows.append(
        f'<tr><td>{title}</td><td class="whole"><i class="dot {arm}"></i>{arm}</td>{cells}</tr>')
  held = {arm: arms[arm]["cache_bytes"] for arm in ("control", "treatment")}
  if all(held.values()):
    control, treatment = (held[arm]["p50"] for arm in ("control", "treatment"))
    change = f"{treatment / control - 1:+.0%}"
    text = f"Bytes of a unit's cache, median: {treatment:,.0f} : {control:,.0f} ({change})."
  else:
    text = "Bytes of a unit's cache: not measured in both arms yet."
  return (
    f'{latency_chart(arms)}<div class="wide"><table><thead><tr><th></th><th></th><th class="number">p50</th>'
    '<th class="number">p95</th><th class="number">p99</th><th class="number">largest</th></tr></thead><tbody>'
    f"{''.join(rows)}</tbody></table></div><p>{escape(text)}</p>")


def _traffic(traffic: dict[str, int]) -> str:
  return _section(
    "Requests", f"<p>{traffic['waiting']:,} wait for their comparison. Left out of comparisons, as nothing had room: "
    f"{traffic['shadows_dropped']:,} before the other arm wrote its text, {traffic['comparisons_dropped']:,} after "
    f"that. Not recorded: {traffic['not_recorded']:,}.</p>")


def _decisions(decisions: Sequence[dict[str, Any]]) -> str:
  if not decisions:
    return '<p class="muted">None yet: the rollout waits in its first stage.</p>'
  rows = []
  for decision in reversed(decisions):
    kind = "go" if decision["verdict"] in ("advance", "complete") else "stop"
    stages = dict.fromkeys((decision["from"], decision["to"]))
    rows.append(
      f'<tr><td class="number">{decision["after"]:,}</td><td class="whole">{escape(_time(decision["at"]))}</td>'
      f'<td><span class="chip {kind}">{escape(decision["verdict"])}</span></td>'
      f'<td class="whole">{escape(" → ".join(stages))}</td><td class="reason">{escape(_reason(decision))}'
      "</td></tr>")
  return (
    '<div class="wide"><table><thead><tr><th class="number">after unit</th><th>time (UTC)</th><th>verdict</th>'
    f'<th>stage</th><th>because</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


def _reason(decision: dict[str, Any]) -> str:
  gates = {gate["name"]: gate for gate in decision["gates"]}
  if decision["cause"] in gates:
    gate = gates[decision["cause"]]
    side = "lower" if gate["is_high_bad"] else "upper"
    bound, threshold = (shown_value(gate["name"], gate[key]) for key in (side, "threshold"))
    return f"{gate['title']}: {side} bound {bound}, threshold {threshold}"
  if decision["cause"]:
    return _CAUSES[decision["cause"]]
  loss = gates["delta"]
  return f"every gate said go; loss difference below {shown_value('delta', loss['upper'])}"


def _settings(snapshot: dict[str, Any]) -> str:
  rows: Iterable[tuple[str, Any]] = [("hash of config and facts", snapshot["key"]), *snapshot["facts"].items(),
                                     *snapshot["config"].items()]
  texts = [(name, ", ".join(value) if isinstance(value, (tuple, list)) else str(value)) for name, value in rows]
  items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in texts)
  return f'<details><summary>Config and facts, which the log must match to go on</summary><dl>{items}</dl></details>'


def _section(title: str, content: str, note: str = "") -> str:
  text = f'<p class="muted">{escape(note)}</p>' if note else ""
  return f"<section><h2>{escape(title)}</h2>{text}{content}</section>"


def _short(value: float) -> str:
  return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _time(seconds: float) -> str:
  return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
