"""The results of a self-check: lines for the terminal, a page to share, and a sentence for each miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.markdown import markdown_table
from lattice_jax.memories.cases import Sizes
from lattice_jax.self_check.check import CALLS, LIMITS, Row

_NAMES = ("op", "form", "impl", "dtype", "result", "gradient", "ms", "definition ms", "")
_COLUMNS = "{:12} {:20} {:9} {:9} {:>9} {:>9} {:>10} {:>13}  {}"
_LEGEND = f"""Result, gradient: the largest error over arrays, relative to the RMS of each. Times are of results and
gradients, the median of {CALLS} calls. `interpret` runs TPU kernels step by step on a CPU; its times say nothing about
theirs."""


def header() -> str:
  return _COLUMNS.format(*_NAMES)


def line(row: Row) -> str:
  """One row for the terminal."""
  return _COLUMNS.format(*_cells(row))


def summary(rows: Sequence[Row]) -> str:
  """How many rows are within the limits, and what is wrong with the others."""
  ran, missed = [row for row in rows if not row.reason], [row for row in rows if not row.holds]
  limits = ", ".join(f"{name} {dtype} {limit:.0e}" for (name, dtype), limit in LIMITS.items())
  sentences = [f"{len(ran) - len(missed)} of {len(ran)} within the limits ({limits})"]
  if not ran:
    sentences.append("nothing was checked: --ops and --dtypes leave no case")
  return "\n".join([*sentences, *map(_miss, missed)])


def status(rows: Sequence[Row]) -> int:
  """The exit status: 1 if an error exceeds its limit, or nothing ran."""
  return 0 if all(row.holds for row in rows) and not all(row.reason for row in rows) else 1


def write(out: Path, command: str, machine: dict[str, Any], sizes: Sizes, rows: Sequence[Row]) -> None:
  """Writes `out`/README.md: the table and how it was made."""
  out.mkdir(parents=True, exist_ok=True)
  table = markdown_table([_NAMES, *map(_cells, rows)], "llllrrrrl")
  place = ", ".join(str(value) if name == "device" else f"{name} {value}" for name, value in machine.items())
  shapes = (f"One row of {sizes.tokens:,} tokens in two documents, {sizes.heads} heads, keys and values of "
            f"{sizes.width} numbers, {sizes.slots} slots or codes.")
  parts = ["# Every op against its definition", f"    {command}", f"{place}. {shapes}\n{_LEGEND}", table, summary(rows)]
  (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _cells(row: Row) -> tuple[str, ...]:
  head = row.op, row.form, row.impl, row.dtype
  if row.reason:
    return (*head, "", "", "", "", row.reason.partition("cannot run: ")[2] or row.reason)
  return (
    *head, f"{row.result_error:.1e}", f"{row.gradient_error:.1e}", f"{row.milliseconds:,.2f}",
    f"{row.reference_milliseconds:,.2f}", "ok" if row.holds else "MISS")


def _miss(row: Row) -> str:
  others = "reference" if row.impl == "xla" else "reference or xla"
  return (
    f"MISS: op {row.op}, {row.form}, impl {row.impl}, {row.dtype}: results differ from the definition by "
    f"{row.result_error:.1e} where {LIMITS['result', row.dtype]:.0e} is allowed, gradients by "
    f"{row.gradient_error:.1e} where {LIMITS['gradient', row.dtype]:.0e} is; train with model.impl={others} on this "
    "device, and report this line and the first one printed.")
