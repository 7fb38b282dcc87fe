"""Measurements as JSON lines, tables and plots."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.bench.harness import Measured, quantiles, ratios
from lattice_jax.files import append_jsonl
from lattice_jax.inspect.plots import line_style, new_figure, save_with_legend
from lattice_jax.markdown import markdown_table

_MARKERS = "os^Dv<>p*"


def write_records(path: Path, results: Sequence[Measured], machine: dict[str, Any]) -> None:
  """Appends one line per case."""
  append_jsonl(path, [machine | result.record() for result in results])


def format_table(results: Sequence[Measured], baselines: Sequence[str]) -> str:
  """One group in Markdown: time, memory, and the speed-up over each baseline (with its 20–80 % range over rounds)."""
  factors = {baseline: dict(ratios(results, baseline)) for baseline in baselines}
  factors = {baseline: values for baseline, values in factors.items() if values}
  has_errors = any(result.error is not None for result in results)
  rows = [["", "ms", "20–80 %", "temporary MB", *["error"] * has_errors, *(f"× {baseline}" for baseline in factors)]]
  for result in results:
    record, name = result.record(), result.case.name
    if not result.seconds:
      rows.append([name, "does not fit", "", f"{result.temp_bytes / 1e6:,.0f}", *[""] * (has_errors + len(factors))])
      continue
    error = [] if not has_errors else ["" if result.error is None else f"{result.error:.0e}"]
    times = [f"{1000 * record[key]:,.1f}" for key in ("median", "q20", "q80")]
    rows.append([
      name, times[0], f"{times[1]}–{times[2]}", f"{result.temp_bytes / 1e6:,.0f}", *error,
      *("{1:.2f} ({0:.2f}–{2:.2f})".format(*values[name]) for values in factors.values())])
  return markdown_table(rows)


def format_scaling(results: Sequence[Measured]) -> str:
  """How the time of each case grows from one length to the next, in Markdown."""
  rows = [["", "tokens", "time ratio", "20–80 %", "temporary bytes ratio"]]
  for name in dict.fromkeys(result.case.name for result in results):
    by_length = sorted((r for r in results if r.case.name == name and r.seconds), key=lambda r: r.case.tokens)
    for one, other in itertools.pairwise(by_length):
      low, middle, high = quantiles(np.divide(other.seconds, one.seconds))
      rows.append([
        name, f"{one.case.tokens:,} → {other.case.tokens:,}", f"{middle:.2f}", f"{low:.2f}–{high:.2f}",
        f"{other.temp_bytes / one.temp_bytes:.2f}"])
  return markdown_table(rows)


def plot_records(records: Sequence[dict[str, Any]], title: str, out: Path) -> None:
  """Draws microseconds per token over the length, one line per case."""
  figure, (axes,) = new_figure(title)
  names = list(dict.fromkeys(record["case"] for record in records))
  for index, name in enumerate(names):
    points = sorted((r["T"], 1e6 / r["tokens_per_second"]) for r in records if r["case"] == name and r["rounds"])
    if points:
      color, line = line_style(index)
      axes.plot(
        *zip(*points, strict=True), marker=_MARKERS[index % len(_MARKERS)], label=name, color=color, linestyle=line)
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xlabel("length of a row (tokens)")
  axes.set_ylabel("time per token (µs)")
  save_with_legend(figure, axes, out)


def records_like(records: Sequence[dict[str, Any]], one: dict[str, Any]) -> list[dict[str, Any]]:
  """The records, at any length, of the same machine, code, op and mode as `one`; of a repeated case the newest."""
  same = [name for name in ("device", "jax", "commit", "op", "head", "mode", "B", "dtype") if name in one]
  newest = {
    (record["case"], record["T"]): record for record in records
    if all(name in record and record[name] == one[name] for name in same)}
  return list(newest.values())
