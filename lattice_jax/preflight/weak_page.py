"""The page of weak scaling: a table, sentences and a plot of every series whose rows lie in its folder."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.plots import line_style, new_figure, save_figure
from lattice_jax.preflight.stored import Row, compilers, read_row
from lattice_jax.preflight.weak import MOST_SHARE, advice, exchange_share, received_by, scaling_table

_HEAD = """# Weak scaling, without the chips

    python scripts/preflight.py configs/vq_enwik8.py --topology=v5e --weak=1,4,16,64,256 --set=data.batch=256 --out=weak

One update is compiled for each number of chips ({compiler}), all with as many rows a slice of the `data` axis; nothing
was run. Bytes that a chip receives in an update are read from the compiled programs, counted as often as loops turn, by
a ring's algorithm. Times are those at a chip's peaks, collectives one after another along one axis of the torus; what a
collective takes to start, and networks between slices, are not in them. The share of the exchange is its time of that
time and the longer of compute and HBM: as if a chip did nothing else meanwhile. Where it passes {most:.0%}, the change
that would mend it stands below the table.
"""


def write_page(folder: Path) -> None:
  """Writes README.md and a picture a series."""
  series: dict[tuple[str, str], list[Row]] = defaultdict(list)
  for file in sorted((folder / "rows").glob("*.json")):
    row = read_row(file)
    series[row.name, row.machine.chip.name].append(row)
  parts = [_HEAD.format(compiler=compilers(itertools.chain(*series.values())), most=MOST_SHARE)]
  for (name, chip), rows in sorted(series.items()):
    rows.sort(key=lambda row: row.machine.chips)
    plot_scaling(rows, folder / f"{name}_{chip}.png")
    old = [f"{row.machine.chips}" for row in rows if not row.is_current]
    note = [f"Compiled before the last change of what decides a program: {', '.join(old)} chips."] if old else []
    note += ["Only one number of chips has been compiled so far."] if len(rows) == 1 else []
    sentences = [advice(row) for row in rows if advice(row)] or [
      f"On none of these numbers of chips does the exchange pass {MOST_SHARE:.0%}."]
    first = rows[0]
    rows_of_slice, whole = first.batch // first.mesh["data"], "" if first.fsdp else ", parameters whole on every chip"
    parts.append("\n\n".join([
      f"## {name} on {chip}",
      f"{rows_of_slice} × {first.update_len:,} tokens a slice of `data`, remat {first.remat}{whole}.",
      scaling_table(rows), *note, *sentences, f"![bytes and share by chips]({name}_{chip}.png)"]) + "\n")
  write_text(folder / "README.md", "\n".join(parts))


def plot_scaling(rows: Sequence[Row], out: Path) -> Path:
  """Bytes that a chip receives, by collective, and the share of the exchange, over the number of chips."""
  rows = [row for row in rows if row.fits]
  chips = [row.machine.chips for row in rows]
  figure, (received, share) = new_figure(f"{out.stem}: received by a chip in an update", size=(9, 4.0), widths=(1, 1))
  kinds = dict.fromkeys(kind for row in rows for kind in received_by(row))
  totals = [row.traffic.received_bytes / 1e6 for row in rows]
  for index, (label, values) in enumerate([("all", totals)] + [
    (" over ".join(kind), [received_by(row)[kind] / 1e6 if kind in received_by(row) else 0.0 for row in rows])
    for kind in kinds]):
    color, line = line_style(index)
    received.plot(chips, values, line, color=color, marker="o", markersize=3, label=label)
  share.plot(chips, [100 * exchange_share(row) for row in rows], marker="o", markersize=3)
  share.axhline(100 * MOST_SHARE, color="0.5", linewidth=1, linestyle=":")
  for axes, label in ((received, "MB"), (share, "exchange, % of an update at the peaks")):
    axes.set_xscale("log", base=2)
    axes.set_xticks(chips, [str(number) for number in chips])
    axes.set_xlabel("chips")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25)
  figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
  return save_figure(figure, out)
