"""The pictures of the dashboard as SVG: bounds beside a threshold, the course of the loss difference, latencies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

_WIDTH, _HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 24  # margins of a chart
_ARMS = ("control", "treatment")


def shown_value(gate: str, value: float | None) -> str:
  """A figure of a gate in its unit; a dash if it is not known."""
  if value is None:
    return "–"
  if gate == "delta":
    return f"{value:+.4f} nats"
  if gate in ("agreement", "canary"):
    return f"{100 * value:+.2f} points" if gate == "canary" else f"{100 * value:.2f} %"
  return f"{value:.3g} ×" if value < 1000 else f"{value:,.0f} ×"


def gate_chart(gate: dict[str, Any]) -> str:
  """The interval between the bounds, the estimate as a point, the threshold as a line; the bad side is shaded.

  An interval that is not bounded yet goes on to the edge. Ratios are on a logarithmic scale.
  """
  width, height, middle = 320, 34, 17
  known = [gate[name] for name in ("lower", "upper", "estimate", "threshold") if gate[name] is not None]
  is_ratio = gate["name"] not in ("delta", "agreement", "canary")
  scale = (lambda value: math.log(max(value, 1e-6))) if is_ratio else (lambda value: value)
  low, high = (scale(end(known)) for end in (min, max))
  room = max(high - low, 0.1 if is_ratio else 0.002) * 0.25
  low, high = low - room, high + room

  def x(value: float) -> float:
    return round(4 + (width - 8) * (scale(value) - low) / (high - low), 1)

  at = x(gate["threshold"])
  start, stop = (
    edge if gate[name] is None else x(gate[name]) for name, edge in (("lower", 0), ("upper", width)))
  bad = (at, width) if gate["is_high_bad"] else (0, at)
  color = {"go": "var(--go)", "stop": "var(--stop)"}.get(gate["answer"]) or "var(--treatment)"
  ends = "".join(
    f'<path d="M{end} {middle - 6}v12" stroke="{color}" stroke-width="2"/>'
    for end, name in ((start, "lower"), (stop, "upper")) if gate[name] is not None)
  is_unbounded = gate["lower"] is None and gate["upper"] is None
  dashes = ' stroke-dasharray="2 5"' if is_unbounded else ""
  point = "" if gate["estimate"] is None else f'<circle cx="{x(gate["estimate"])}" cy="{middle}" r="5" fill="{color}"/>'
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="bounds"><rect x="{bad[0]}" y="4" '
    f'width="{bad[1] - bad[0]}" height="{height - 8}" fill="var(--stopback)"/>'
    f'<path d="M{start} {middle}H{stop}" stroke="{color}" stroke-width="4"{dashes}/>{ends}{point}'
    f'<path d="M{at} 1V{height - 1}" stroke="var(--ink)" stroke-width="2"/></svg>')


def curve_chart(curve: Sequence[dict[str, Any]], margin: float) -> str:
  """The estimate with its bounds by measured unit; it begins anew in every stage."""
  if len(curve) < 2:
    return '<p class="muted">It is drawn from the second measured unit on.</p>'
  first, last = curve[0]["unit"], curve[-1]["unit"]
  values = [point["estimate"] for point in curve] + [margin, 0.0]
  spread = max(max(values) - min(values), 2 * margin)
  # bounds are wide at the start of a stage; what matters is near the estimates
  low, high = min(values) - spread, max(values) + spread

  def x(unit: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (unit - first) / max(last - first, 1), 1)

  def y(value: float | None, otherwise: float) -> float:
    value = min(max(otherwise if value is None else value, low), high)
    return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low), 1)

  parts, before = [], None
  for _, group in itertools.groupby(curve, key=lambda point: point["visit"]):
    points = list(group)
    upper = [f"{x(point['unit'])},{y(point['upper'], high)}" for point in points]
    lower = [f"{x(point['unit'])},{y(point['lower'], low)}" for point in reversed(points)]
    line = " ".join(f"{x(point['unit'])},{y(point['estimate'], 0)}" for point in points)
    parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="var(--band)"/>')
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--treatment)" stroke-width="2"/>')
    if before is not None:
      middle = x((before + points[0]["unit"]) / 2)
      parts.append(f'<path d="M{middle} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="var(--line)" stroke-width="1.5"/>')
    before = points[-1]["unit"]
  ticks = "".join(
    f'<path d="M{_LEFT} {y(value, 0)}H{_WIDTH - _RIGHT}" stroke="var(--line)" stroke-width="1"/>'
    f'<text x="{_LEFT - 6}" y="{y(value, 0) + 4}" text-anchor="end">{value:+.2g}</text>' for value in _ticks(low, high))
  edge = y(margin, 0)
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss difference by measured unit">{ticks}'
    f'{"".join(parts)}<path d="M{_LEFT} {edge}H{_WIDTH - _RIGHT}" stroke="var(--stop)" stroke-width="1.5" '
    f'stroke-dasharray="6 4"/><text x="{_LEFT}" y="{_HEIGHT - 6}">{first:,}</text>'
    f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">measured unit {last:,}</text></svg>')


def latency_chart(arms: dict[str, Any]) -> str:
  """For each time a line from the median to the 99 % quantile of both arms, relative to the control's median."""
  shown = [(name, title) for name, title in (("first_ms", "first token"), ("next_ms", "next token"))
           if all(arms[arm][name] for arm in _ARMS)]
  if not shown:
    return ""
  ratios = {
    (name, arm): [arms[arm][name][q] / arms["control"][name]["p50"] for q in ("p50", "p95", "p99")]
    for name, _ in shown for arm in _ARMS}
  most, left, height = max(map(max, ratios.values())) * 1.05, 92, 44 * len(shown) + 22

  def x(ratio: float) -> float:
    return round(left + (_WIDTH - left - _RIGHT) * ratio / most, 1)

  parts = [f'<path d="M{x(1)} 0V{height - 18}" stroke="var(--line)" stroke-width="1.5"/>',
           f'<text x="{x(1)}" y="{height - 4}" text-anchor="middle">control\'s median</text>']
  for row, (name, title) in enumerate(shown):
    parts.append(f'<text x="0" y="{44 * row + 24}">{title}</text>')
    for place, arm in enumerate(_ARMS):
      p50, p95, p99 = (x(ratio) for ratio in ratios[name, arm])
      y, color = 44 * row + 12 + 16 * place, f"var(--{arm})"
      parts.append(
        f'<path d="M{p50} {y}H{p99}" stroke="{color}" stroke-width="3"/><circle cx="{p50}" cy="{y}" r="5" '
        f'fill="{color}"/><path d="M{p95} {y - 5}v10M{p99} {y - 5}v10" stroke="{color}" stroke-width="2"/>')
  return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="latency by arm">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
  """Round values between the two, some four of them."""
  raw = (high - low) / 4
  step = next(size * 10 ** math.floor(math.log10(raw)) for size in (1, 2, 5, 10)
              if size * 10 ** math.floor(math.log10(raw)) >= raw)
  return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
