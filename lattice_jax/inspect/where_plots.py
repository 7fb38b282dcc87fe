"""Bars of where the time of a program goes: one bar a part of the model, cut by kind of instruction."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lattice_jax.inspect.plots import COLORS, new_figure
from lattice_jax.inspect.where import Where, by_kind, by_path

_MOST_BARS, _LEAST = 12, 0.002  # of the whole
_OTHERS = "others"


def plot_where(where: Where, out: Path) -> Path:
  """Writes the picture in the format that the name says, and returns the name."""
  figure = _draw(where)
  out.parent.mkdir(parents=True, exist_ok=True)
  # letters stay letters, and the same figures give the same file
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "where"}):
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
  return out


def _draw(where: Where) -> Figure:
  paths = [name for name, seconds, *_ in where.totals(by_path)[:_MOST_BARS] if seconds >= _LEAST * where.busy]
  kinds = [name for name, *_ in where.totals(by_kind)[:len(COLORS) - 1]]
  parts: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in (*kinds, _OTHERS)}
  for one in where.spent:
    kind = by_kind(one.what)
    parts[kind if kind in kinds else _OTHERS][by_path(one.what)] += 1e3 * one.seconds
  figure, (axes,) = new_figure(f"{where.title}: {1e3 * where.wall:,.1f} ms", size=(8, 1.2 + 0.28 * len(paths)))
  left = [0.0] * len(paths)
  for color, (kind, times) in zip(COLORS, parts.items(), strict=False):
    widths = [times[path] for path in paths]
    if any(widths):
      axes.barh(paths, widths, left=left, color=color, label=kind)
    left = [start + width for start, width in zip(left, widths, strict=True)]
  axes.invert_yaxis()
  axes.set_xlabel("own time of instructions, all threads (ms)")
  axes.grid(True, axis="x", alpha=0.25)
  axes.legend(frameon=False, fontsize="small", loc="lower right")
  return figure
