"""What the bench of nonlinear recurrences found, as one table for each layer and mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.files import read_jsonl, replace_file
from lattice_jax.markdown import markdown_table

Record = dict[str, Any]


def write_summary(out: Path) -> None:
  """Makes table.md of bench.jsonl in the same folder; of a case that was measured twice it has the newest.

  It begins with one row for each layer and mode, and ends with all that was measured.
  """
  records = {(r["head"], r["mode"], r["T"], r["case"]): r for r in read_jsonl(out / "bench.jsonl")}
  parts = [f"## Times the scan's time\n\n{format_ratios(list(records.values()))}"]
  for (head, mode), group in itertools.groupby(sorted(records.values(), key=_group), key=_group):
    parts.append(f"## {head}, {mode}\n\n{format_crossover(list(group))}")
  replace_file(out / "table.md", "\n\n".join(parts) + "\n")


def format_ratios(records: Sequence[Record]) -> str:
  """Of every layer and mode, by length: the quickest case of each kind (name without its chunk) over the scan."""
  lengths = sorted({record["T"] for record in records})
  rows = [["", "", *(f"{length:,}" for length in lengths)]]
  for (head, mode), group in itertools.groupby(sorted(records, key=_group), key=_group):
    median = {(r["case"], r["T"]): r["median"] for r in group if "median" in r}
    for kind in dict.fromkeys(case.split()[0] for case, _ in median if case != "scan"):
      ratios = []
      for length in lengths:
        own = [seconds for (case, T), seconds in median.items() if case.split()[0] == kind and length == T]
        ratios.append(f"{min(own) / median['scan', length]:.2f}" if own and ("scan", length) in median else "")
      rows.append([f"{head}, {mode}", kind, *ratios])
  return markdown_table(rows, "ll".ljust(len(rows[0]), "r"))


def format_crossover(records: Sequence[Record]) -> str:
  """Milliseconds of every case at every length, and times as long as the scan of the same length took."""
  scan_T = {record["T"]: record for record in records if record["case"] == "scan" and "median" in record}
  rows = [["T", "", "ms", "20–80 %", "× scan", "rounds", "scanned", "error", "MB", "compile s"]]
  for record in sorted(records, key=lambda record: record["T"]):
    memory, compiled = f"{record['temp_bytes'] / 1e6:,.0f}", f"{record['compile_seconds']:.1f}"
    if "median" not in record:
      rows.append([f"{record['T']:,}", record["case"], "does not fit", *[""] * 5, memory, compiled])
      continue
    ms, low, high = (f"{1000 * record[key]:,.2f}" for key in ("median", "q20", "q80"))
    scan = scan_T.get(record["T"])
    rows.append([
      f"{record['T']:,}", record["case"], ms, f"{low}–{high}",
      f"{record['median'] / scan['median']:.2f}" if scan else "",
      f"{record['solver_rounds']:.1f}" if "solver_rounds" in record else "",
      f"{100 * record['scanned']:.0f} %" if "scanned" in record else "",
      f"{record['error']:.1e}" if "error" in record else "", memory, compiled])
  return markdown_table(rows)


def _group(record: Record) -> tuple[str, str]:
  return record["head"], record["mode"]
