"""Plots the metric of a sweep against its parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.inspect.plots import COLORS, new_figure, save_figure
from lattice_jax.sweep.labels import metric_label
from lattice_jax.sweep.parameters import Value
from lattice_jax.sweep.table import SettingRow, SweepTable

_DECADE = 10
_MOST_PANELS = 4
_MOST_TICKS = 10
_MOST_LINES = len(COLORS)  # for which there is a legend


def plot_table(table: SweepTable, out: Path, names: Sequence[str] = ()) -> None:
  """Draws a panel for each parameter in `names`, by default for those that vary, at most four.

  NAME=WORD shows only the values of that parameter that end in the word and a number, as these numbers.

  Numbers lie on an axis, which is logarithmic if they span a decade; settings that differ in nothing else are joined.
  Other values are listed best first, as points and not bars, because the axis does not begin at zero. Error bars show
  the standard deviation over seeds.
  """
  chosen = list(names) or list(table.varying)[:_MOST_PANELS]
  if len(table.rows) < 2 or not chosen:
    raise ValueError("no two settings are done yet, so there is nothing to plot.")
  numbers = {name: numbers_of(table, name) for name in chosen}
  width = 8 if len(chosen) == 1 else 5 * len(chosen)
  categories = [len(table.varying[name]) for name in chosen if not numbers[name]]
  height = max(4.5, 1.5 + 0.28 * max(categories, default=0))
  figure, panels = new_figure(table.sweep.title, size=(width, height), widths=[1] * len(chosen))
  for axes, name in zip(panels, chosen, strict=True):
    if numbers[name]:
      _plot_numbers(table, name, numbers[name], axes)
    else:
      _plot_categories(table, name, axes)
    axes.grid(True, alpha=0.25)
    if 1 < len(axes.containers) <= _MOST_LINES:
      axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3)
  save_figure(figure, out)


def numbers_of(table: SweepTable, choice: str) -> dict[Value, float]:
  """The number of each value that has one. Empty without a WORD if not all values are numbers."""
  name, _, word = choice.partition("=")
  if name not in table.varying:
    raise ValueError(f"--x={choice} is not a parameter that varies: {', '.join(table.varying) or 'none does yet'}.")
  values = list(table.varying[name])
  if not word:
    is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return {value: value for value in values} if is_numeric else {}
  ends = {value: re.search(rf"\b{re.escape(word)}(\d+(?:\.\d+)?)$", str(value)) for value in values}
  numbers = {value: float(end[1]) for value, end in ends.items() if end}
  if not numbers:
    raise ValueError(f"--x={choice}: no value of {name} that is done ends in {word} and a number.")
  return numbers


def _plot_numbers(table: SweepTable, choice: str, numbers: dict[Value, float], axes: Any) -> None:
  name, _, word = choice.partition("=")
  groups = _by_others(table, name)
  for index, (label, points) in enumerate(groups.items()):
    numbered = sorted((numbers[value], mean, sd) for value, mean, sd in points if value in numbers)
    if not numbered:
      continue
    values, means, spreads = zip(*numbered, strict=True)
    axes.errorbar(
      values, means, yerr=spreads, marker="o", linestyle="-" if len(values) > 1 else "none", capsize=3,
      color=_color(index, groups), label=label)
  everything = list(numbers.values())
  if min(everything) > 0 and max(everything) >= _DECADE * min(everything):
    axes.set_xscale("log")
  if len(everything) <= _MOST_TICKS:
    axes.set_xticks(everything, [f"{value:g}" for value in everything])
    axes.minorticks_off()
  axes.set_xlabel(word or table.names[name])
  axes.set_ylabel(_metric_of(table))


def _plot_categories(table: SweepTable, name: str, axes: Any) -> None:
  groups = _by_others(table, name)
  best_first = list(dict.fromkeys(dict(row.setting)[name] for row in table.rows))
  for index, (label, points) in enumerate(groups.items()):
    places = [best_first.index(value) for value, _, _ in points]
    axes.errorbar(
      [mean for _, mean, _ in points], places, xerr=[sd for _, _, sd in points], marker="o", linestyle="none",
      capsize=3, color=_color(index, groups), label=label)
  axes.set_yticks(range(len(best_first)), [table.shown[name][value] for value in best_first])
  axes.set_ylim(len(best_first) - 0.5, -0.5)  # the best at the top
  axes.set_ylabel(table.names[name])
  axes.set_xlabel(_metric_of(table))


def _metric_of(table: SweepTable) -> str:
  """The label of the metric's axis, which explains the error bars."""
  has_spread = any(len(row.results) > 1 for row in table.rows)
  return metric_label(table.sweep.metric) + ("\nbars: standard deviation over seeds" if has_spread else "")


def _color(index: int, groups: dict[str, Any]) -> str:
  """The group's color; the same for all if there are too many groups for a legend."""
  return COLORS[index if len(groups) <= _MOST_LINES else 0]


def _by_others(table: SweepTable, name: str) -> dict[str, list[tuple[Value, float, float]]]:
  """(value of the parameter, mean, standard deviation) of the rows, grouped by the other parameters."""
  others = {other: list(values) for other, values in table.varying.items() if other != name}

  def place(row: SettingRow) -> list[int]:
    return [values.index(dict(row.setting)[other]) for other, values in others.items()]

  groups: dict[str, list[tuple[Value, float, float]]] = {}
  for row in sorted(table.rows, key=place):
    setting = dict(row.setting)
    label = ", ".join(f"{table.names[other]} {table.varying[other][setting[other]]}" for other in others)
    found = row.spread(lambda result: result.metric)
    groups.setdefault(label, []).append((setting[name], found.mean, found.sd or 0.0))
  return groups
