"""The table of a sweep as Markdown, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lattice_jax.files import to_jsonl
from lattice_jax.markdown import markdown_table
from lattice_jax.sweep.table import SettingRow, Spread, SweepTable


def records(table: SweepTable) -> list[dict[str, Any]]:
  """One record per row, flat except for the list of results by seed."""
  return [_record(table, row) for row in table.rows]


def _record(table: SweepTable, row: SettingRow) -> dict[str, Any]:
  record: dict[str, Any] = dict(row.setting) | {"trials": len(row.results)}
  for name, of in table.columns.items():
    record |= _fields(name, row.spread(of))
    if table.reference is not None:
      record |= _fields(f"{name} difference", table.difference(row, of))
  return record | {
    "parameters": row.results[0].parameters, "state": row.results[0].state,
    "state_bytes": row.results[0].bytes and row.results[0].bytes.memory,
    "tail_bytes": row.results[0].bytes and row.results[0].bytes.tail,
    "tokens_per_second": row.tokens_per_second,
    "commit": ", ".join(sorted({str(result.commit) for result in row.results})), "command": table.command,
    "by_seed": [
      dict(result.seeds) | {name: of(result) for name, of in table.columns.items()} for result in row.results]}


def _fields(name: str, value: Spread | None) -> dict[str, float | None]:
  return {f"{name} mean": value.mean if value else None, f"{name} sd": value.sd if value else None}


def format_table(table: SweepTable) -> str:
  """The table in Markdown, how it was made, and what is missing."""
  head = [*table.names.values(), "trials"]
  for name in table.columns:
    head += [name] if table.reference is None else [name, f"Δ to {table.label(table.reference.setting)}"]
  has_state = any(row.results[0].state for row in table.rows)
  head += ["parameters", *["state of a layer", "bytes between tokens"] * has_state, "tokens/s"]
  lines = [head]
  for row in table.rows:
    cells = [shown[dict(row.setting)[name]] for name, shown in table.shown.items()] + [str(len(row.results))]
    for of in table.columns.values():
      cells.append(row.spread(of).text())
      if table.reference is not None:
        difference = table.difference(row, of)
        cells.append(difference.text("+") if difference else "–")
    first = row.results[0]
    state = [first.state, first.bytes.text() if first.bytes else ""] * has_state
    cells += [f"{first.parameters:,}", *state, f"{row.tokens_per_second:,.0f}"]
    lines.append(cells)
  origin = (f"Made at commit {', '.join(table.commits) or 'none yet'}. Mean ± sample standard deviation over seeds; "
            "tokens/s: median over updates.")
  if has_state:
    origin += (" State of a layer: floating-point numbers of a row by part, heads together; bytes between tokens: of "
               "all that a layer keeps of a row from one token to the next; «tail»: of the convolutions.")
  text = [f"# {table.sweep.title}", "", f"    {table.command}", "", origin, "",
          markdown_table(lines, "l" * len(table.varying) + "r" * (len(head) - len(table.varying)))]
  if table.failed or table.unfinished:
    text += ["", f"{table.unfinished} trial(s) not finished, {len(table.failed)} failed."]
    text += [f"- {record.id}: {record.error}" for record in table.failed]
  if table.foreign:
    text += ["", f"{table.foreign} trial(s) in the folder are not of this sweep file and are left out."]
  return "\n".join(text) + "\n"


def write_table(table: SweepTable, folder: Path) -> None:
  """Writes table.md, table.jsonl and table.csv."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = records(table)
  (folder / "table.md").write_text(format_table(table), encoding="utf-8")
  (folder / "table.jsonl").write_text(to_jsonl(rows), encoding="utf-8")
  text = io.StringIO()
  if rows:
    names = [name for name in rows[0] if name != "by_seed"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  (folder / "table.csv").write_text(text.getvalue(), encoding="utf-8")
