"""A page of many accounts: every row that has been compiled, and which have not been."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lattice_jax.config import Config
from lattice_jax.markdown import markdown_table
from lattice_jax.preflight.account import SECONDS_AN_HOUR
from lattice_jax.preflight.machine import Machine, abstract_mesh, find_machine
from lattice_jax.preflight.report import figure
from lattice_jax.preflight.stored import Row, compilers
from lattice_jax.preflight.weak import MOST_SHARE, advice

_COLUMNS = (
  "config", "chips", "mesh", "rows × tokens, remat", "peak GB", "of GB", "a chip receives MB", "TFLOP a chip",
  "compute ms", "HBM ms", "interconnect ms", "bound by", "s an update", "hours", "chip-hours", "cost")


def largest_machine(config: Config, topology: str) -> Machine:
  """The machine of `topology`, or the largest smaller one of its chip for which the config's mesh and rows do.

  Raises:
    ValueError: none will do; that of `topology` itself says why.
  """
  asked = find_machine(topology)
  sizes = asked.chip.topologies
  for size in reversed(sizes[:sizes.index(asked.topology) + 1]):
    machine = find_machine(f"{asked.chip.name}:{size}")
    try:
      abstract_mesh(config, machine)
    except ValueError:
      continue
    return machine
  abstract_mesh(config, asked)
  raise AssertionError("a mesh of the asked size was refused before")


def page(
  rows: Sequence[Row], missing: Mapping[str, Sequence[str]], suite: Path, *, command: str, utilisation: float,
  price: float,
) -> str:
  """Markdown. missing: machines of each config that have not been compiled. suite: the compile suite's folder."""
  names = "; ".join(f"{name} on {', '.join(chips)}" for name, chips in missing.items() if chips)
  left = f"Not compiled yet, where the command goes on: {names}." if names else "Every row has been compiled."
  stale = [f"{row.name} on {row.topology}" for row in rows if not row.is_current]
  older = [f"Compiled before the last change of what decides a program: {', '.join(stale)}."] if stale else []
  return "\n".join([
    _introduction(command, compilers(rows), utilisation, price), left, *older, "", "## Rows", "",
    _rows_table(rows, utilisation, price), "", *_where_chips_wait(rows), "## Beside the compile suite", "",
    *_beside_the_suite(rows, suite), ""])


def _introduction(command: str, compiled_by: str, utilisation: float, price: float) -> str:
  return f"""# Will it fit? The paper's configs

    {command}

Each row is one update of a config at its full size, compiled for chips that are not there ({compiled_by});
nothing was run. A config whose rows do not divide over 256, 64 and 256 chips is compiled for the largest smaller slice
over which they do. The peak is the compiler's, beside what a program may take of a chip. Bytes that a chip receives are
read from the compiled program, counted as often as its loops turn, by a ring's algorithm; operations are by formula,
with what `model.remat` repeats. The three times are those at the chip's peaks, and the longest binds. Seconds and hours
are that bound at {utilisation:.0%}, an **assumption**, and the cost is at {price:g} for a chip-hour of each, another
([many chips](../../scaling.md)). With `--only=h100` it compiles the rows of eight H100 with CUDA's compiler, which
without a device cannot time products of matrices: on one it may choose others.
"""


def _rows_table(rows: Sequence[Row], utilisation: float, price: float) -> str:
  cells = [list(_COLUMNS)]
  for row in rows:
    mesh = " × ".join(f"{axis} {size}" for axis, size in row.mesh.items() if size > 1) or "1"
    usable = row.machine.chip.usable_bytes
    start = [row.name, row.topology, mesh, f"{row.batch:,} × {row.update_len:,}, {row.remat}",
             figure(row.peak_bytes / 1e9), figure(usable / 1e9)]
    cells.append(start + (_times(row, utilisation, price) if row.fits else ["does not fit", *[""] * 9]))
  return markdown_table(cells, "llllrrrrrrrlrrrr")


def _times(row: Row, utilisation: float, price: float) -> list[str]:
  found, chips = row.roofline, row.machine.chips
  seconds = found.bound / utilisation
  hours = seconds * row.steps / SECONDS_AN_HOUR
  return [
    figure(row.traffic.received_bytes / 1e6), figure(row.work.done_flops / chips / 1e12), figure(1e3 * found.compute),
    figure(1e3 * found.memory), figure(1e3 * found.interconnect), found.binding, figure(seconds), f"{hours:,.1f}",
    f"{hours * chips:,.0f}", f"{hours * chips * price:,.0f}"]


def _where_chips_wait(rows: Sequence[Row]) -> list[str]:
  sentences = [f"- {row.name} on {row.topology}: {advice(row)}" for row in rows if advice(row)]
  return [
    f"## Where the exchange passes {MOST_SHARE:.0%}", "",
    "Of the time of an update at the chips' peaks, as if a chip computed nothing meanwhile.", "", *sentences, "",
  ] if sentences else []


def _beside_the_suite(rows: Sequence[Row], suite: Path) -> list[str]:
  """The peaks of both where they compiled the same update for the same chips."""
  cells = [["config", "chips", "preflight, bytes", "compile suite, bytes", "difference"]]
  for row in rows:
    for record in suite_records(suite):
      theirs = (record["case"], record["target"], record["mesh"], record["batch"], record["update_len"])
      if theirs == (row.name, row.topology, row.mesh, row.batch, row.update_len):
        difference = row.peak_bytes / record["peak_bytes"] - 1
        cells.append([
          row.name, row.topology, f"{row.peak_bytes:,}", f"{record['peak_bytes']:,}", f"{difference:+.1%}"])
  if len(cells) == 1:
    return ["No row has a counterpart in the [compile suite](../aot/README.md) yet."]
  return ["Peaks of the same updates in the [compile suite](../aot/README.md):", "", markdown_table(cells, "llrrr")]


def suite_records(suite: Path) -> list[dict]:
  """The training steps among the compile suite's results."""
  files = [suite / f"{name}.json" for name in ("step", "large")]
  return [
    record for file in files if file.is_file() for record in json.loads(file.read_text(encoding="utf-8"))["records"]]
