"""The curves of a report: every metric of every run over its updates, thinned to as many points as a screen shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.files import Record
from lattice_jax.report.workdir import Run

_MOST_POINTS, _FEW_RUNS = 1200, 4  # points of one curve; they are shared out where there are more runs than a few
_DIGITS = 5  # significant digits of a point
_FIRST = {  # the charts that stand first, in this order
  "loss": "Loss (nats per token)", "bits_per_byte": "Bits per {unit}", "learning_rate": "Learning rate",
  "tokens_per_second": "Speed (tokens per second)", "grad_norm": "Gradient norm"}
_OF_EVALUATIONS = ("bits_per_byte", "accuracy", "word_perplexity")
_NOT_DRAWN = ("step", "total", "time_elapsed")


@dataclass(frozen=True)
class Thinned:
  """Stretches of the updates of a run. last_S: their last steps; starts_S: where they begin among the updates."""

  last_S: np.ndarray
  starts_S: np.ndarray

  def of(self, values_T: np.ndarray, how: Callable[[np.ndarray], float]) -> list[float | None]:
    """`how` of the finite values of every stretch; None where there are none."""
    parts = np.split(values_T, self.starts_S[1:])
    return [_number(how(part[np.isfinite(part)])) if np.isfinite(part).any() else None for part in parts]


def all_curves(runs: Sequence[Run]) -> dict[str, Any]:
  """What the page draws: {"axes": [{steps, minutes} of each run], "charts": [{title, main, series}]}.

  A series is {run, label, values} over the run's axis, with "low" and "high" of each stretch where the runs are few,
  or {run, label, steps, values}, the points of its evaluations.
  """
  most = max(100, _MOST_POINTS // 2 // max(len(runs), 2))
  thinned = [_thin(run.updates, most) for run in runs]
  charts: dict[str, dict[str, Any]] = {}
  for metric in _metrics(run.updates for run in runs):
    for index, run in enumerate(runs):
      if any(metric in line for line in run.updates):
        _chart(charts, metric, run)["series"].append(_curve(index, run, metric, thinned[index], len(runs) <= _FEW_RUNS))
  for index, run in enumerate(runs):
    for metric in _OF_EVALUATIONS:
      for label, lines in evaluations_of(run, metric).items():
        _chart(charts, metric, run)["series"].append({
          "run": index, "label": label, "steps": [line["step"] for line in lines],
          "values": [_number(line[metric]) for line in lines]})
  axes = [{"steps": cut.last_S.tolist(), "minutes": [_number(time / 60) for time in _elapsed(run.updates)[_ends(cut)]]}
          for run, cut in zip(runs, thinned, strict=True)]
  return {"axes": axes, "charts": sorted(charts.values(), key=lambda chart: not chart["main"])}


def evaluations_of(run: Run, metric: str) -> dict[str, list[Record]]:
  """The evaluations that have this metric, by "split, protocol"."""
  series: dict[str, list[Record]] = {}
  for line in run.evaluations:
    if metric in line and _is_finite(line[metric]):
      label = f"{line['split']}, {line['protocol']}" if "protocol" in line else line["split"]
      series.setdefault(label, []).append(line)
  return series


def values_of(lines: Sequence[Record], metric: str) -> np.ndarray:
  """The metric in every line; NaN where it is missing or not finite."""
  return np.array([line[metric] if metric in line and _is_finite(line[metric]) else np.nan for line in lines])


def finite_or_none(values: Iterable[Any]) -> list[float | None]:
  """What JSON can hold of these values."""
  return [_number(value) if _is_finite(value) else None for value in values]


def seconds_of(run: Run) -> float:
  """How long the run trained, all its processes together, as far as its updates say."""
  elapsed = _elapsed(run.updates)
  return float(elapsed[-1]) if len(elapsed) else 0.0


def _metrics(all_updates: Iterable[Sequence[Record]]) -> list[str]:
  """The numbers in the updates, those that stand first in front."""
  found: dict[str, None] = dict.fromkeys(_FIRST)
  for updates in all_updates:
    for line in (*updates[:1], *updates[-1:]):
      found |= {name: None for name, value in line.items() if name not in _NOT_DRAWN and _is_number(value)}
  return list(found)


def _chart(charts: dict[str, dict[str, Any]], metric: str, run: Run) -> dict[str, Any]:
  title = _FIRST[metric] if metric in _FIRST else metric.replace("_", " ").capitalize()
  title = title.format(unit=run.unit)
  return charts.setdefault(title, {
    "title": title, "main": metric in _FIRST or metric in _OF_EVALUATIONS, "series": []})


def _curve(index: int, run: Run, metric: str, cut: Thinned, has_band: bool) -> dict[str, Any]:
  values_T = values_of(run.updates, metric)
  curve = {"run": index, "label": "", "values": cut.of(values_T, np.mean)}
  if has_band and len(cut.starts_S) < len(values_T):
    curve |= {"low": cut.of(values_T, np.min), "high": cut.of(values_T, np.max)}
  return curve


def _thin(updates: Sequence[Record], most: int) -> Thinned:
  steps_T = np.array([line["step"] for line in updates], np.int64)
  starts_S = np.unique(np.linspace(0, len(updates), min(most, len(updates)), endpoint=False).astype(np.int64))
  last_S = steps_T[[*(starts_S[1:] - 1), len(updates) - 1]] if len(updates) else steps_T
  return Thinned(last_S, starts_S)


def _ends(cut: Thinned) -> np.ndarray:
  return np.append(cut.starts_S[1:] - 1, -1) if len(cut.starts_S) else cut.starts_S


def _elapsed(updates: Sequence[Record]) -> np.ndarray:
  """Seconds of training at every update: a process counts from its own start, so a smaller number begins a new one."""
  own_T = np.nan_to_num(values_of(updates, "time_elapsed"))
  before_T = np.concatenate([np.zeros(1), own_T[:-1]])
  return own_T + np.cumsum(np.where(own_T < before_T, before_T, 0.0)) if len(own_T) else own_T


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
  return _is_number(value) and math.isfinite(value)


def _number(value: float) -> float:
  return float(f"{value:.{_DIGITS}g}")
