"""What was measured, as JSON lines, a table and a plot."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lattice_jax.bench.harness import Measured, quantiles, ratios
from lattice_jax.inspect.plots import COLORS, new_figure, save_with_legend
from lattice_jax.markdown import markdown_table
from lattice_jax.runtime import git_commit

_MARKERS = "os^Dv<>p*"


def describe_machine() -> dict[str, Any]:
  """The fields that every record carries."""
  device = jax.devices()[0]
  return {
    "device": device.device_kind if device.platform != "cpu" else _cpu_name(), "jax": jax.__version__,
    "commit": git_commit()}


def write_records(path: Path, results: Sequence[Measured], machine: dict[str, Any]) -> None:
  """Appends one line a case."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    for result in results:
      file.write(json.dumps(machine | result.record()) + "\n")


def table(results: Sequence[Measured], baselines: Sequence[str]) -> str:
  """One group in Markdown: seconds and memory, and how many times faster than each baseline (20–80 % of the rounds)."""
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


def scaling(results: Sequence[Measured]) -> str:
  """How the time of each case grows from one length to the next, in Markdown; all lengths were measured in turn."""
  rows = [["", "tokens", "time ratio", "20–80 %", "temporary bytes ratio"]]
  for name in dict.fromkeys(result.case.name for result in results):
    by_length = sorted((r for r in results if r.case.name == name and r.seconds), key=lambda r: r.case.tokens)
    for one, other in itertools.pairwise(by_length):
      low, middle, high = quantiles(np.divide(other.seconds, one.seconds))
      rows.append([
        name, f"{one.case.tokens:,} → {other.case.tokens:,}", f"{middle:.2f}", f"{low:.2f}–{high:.2f}",
        f"{other.temp_bytes / one.temp_bytes:.2f}"])
  return markdown_table(rows)


def plot(records: Sequence[dict[str, Any]], title: str, out: Path) -> None:
  """Microseconds a token over the length, one line a case."""
  figure, (axes,) = new_figure(title)
  names = list(dict.fromkeys(record["case"] for record in records))
  for index, name in enumerate(names):
    points = sorted((r["T"], 1e6 / r["tokens_per_second"]) for r in records if r["case"] == name and r["rounds"])
    if points:
      axes.plot(*zip(*points, strict=True), marker=_MARKERS[index % len(_MARKERS)], label=name,
                color=COLORS[index % len(COLORS)], linestyle="-" if index < len(COLORS) else "--")
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xlabel("length of a row (tokens)")
  axes.set_ylabel("time per token (µs)")
  save_with_legend(figure, axes, out)


def read_records(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records_like(records: Sequence[dict[str, Any]], one: dict[str, Any]) -> list[dict[str, Any]]:
  """Those of the same machine and code, op and mode as one of them, at any length; of a repeated case the newest."""
  same = [name for name in ("device", "jax", "commit", "op", "head", "mode", "B", "dtype") if name in one]
  newest = {
    (record["case"], record["T"]): record for record in records
    if all(name in record and record[name] == one[name] for name in same)}
  return list(newest.values())


def _cpu_name() -> str:
  info = Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return f"{len(names)} × {names[0]}" if names else platform.processor() or "CPU"
