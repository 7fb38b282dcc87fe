"""All tables and measurements by name. A name that is not there is refused with the nearest ones."""

from __future__ import annotations

from lattice_jax.domains import did_you_mean
from lattice_jax.reproduce.rows import Measurement, Row, Table
from lattice_jax.reproduce.tables import anllm, lagkv, lattice, local_attention, transformer_vq

_PAPERS = {
  "transformer_vq": transformer_vq, "lattice": lattice, "lagkv": lagkv, "anllm": anllm,
  "local_attention": local_attention}
PAGES = {name: paper.TABLES for name, paper in _PAPERS.items()}
TABLES = {table.name: table for tables in PAGES.values() for table in tables}
MEASUREMENTS = {one.name: one for paper in _PAPERS.values() for one in paper.MEASUREMENTS}
# Published results that no row stands for, and why.
LEFT_OUT = (
  "LongBench groups, RULER by task, GSM8K and other suites under LagKV: those tasks are not part of this program.",
  "Common-sense suites of Lattice (reported: 54.03, TTT 52.42) and of AnLLM by task, AnLLM's translations: likewise.",
  "Trellis, the successor of Lattice: this program does not have it.",
  "Tables of tokens a second of Transformer-VQ by way of reduction: their figures could not be found.")


def find_table(name: str) -> Table:
  """Raises ValueError, with the nearest names, where there is none."""
  if name not in TABLES:
    raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}.{did_you_mean(name, TABLES)}")
  return TABLES[name]


def find_row(table: Table, name: str) -> Row:
  """Raises ValueError, with the nearest names, where the table has none."""
  rows = {row.name: row for row in table.rows}
  if name not in rows:
    raise ValueError(
      f"table {table.name} has no row {name!r}; it has {', '.join(rows)}.{did_you_mean(name, rows)}")
  return rows[name]


def measurements_of(rows: list[Row]) -> list[Measurement]:
  """What must be run for these rows, each once, what others need before them."""
  found: dict[str, Measurement] = {}

  def add(name: str) -> None:
    if name not in found:
      for needed in MEASUREMENTS[name].needs:
        add(needed)
      found[name] = MEASUREMENTS[name]

  for row in rows:
    if row.sample:
      add(row.sample.measurement)
  return list(found.values())
