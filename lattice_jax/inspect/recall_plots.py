"""Plots of recall under caches: quality against bytes, accuracy by depth and length, and what each head keeps."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lattice_jax.inspect.plots import COLORS, save_figure

_MARKERS = "osD^v<>P*X"


def plot_recall(folder: Path, out: Path) -> list[Path]:
  """From a folder that `eval.py --task` wrote: `out` and files beside it, each named by what it shows.

  Raises:
    FileNotFoundError: the task has not been done there.
  """
  if (folder / "compare.jsonl").exists():
    return [_plot_losses(_read(folder / "compare.jsonl"), out)]
  if not (folder / "table.jsonl").exists():
    raise FileNotFoundError(f"{folder}/table.jsonl does not exist; give the folder of a --task that was done.")
  rows = _read(folder / "table.jsonl")
  paths = [
    _plot_pareto([row for row in rows if row["depth"] is None], out),
    _plot_depths([row for row in rows if row["depth"] is not None], _beside(out, "depths"))]
  maps = sorted((folder / "kept").glob("*.npy")) if (folder / "kept").is_dir() else []
  for length in sorted({int(path.name.partition("_")[0]) for path in maps}):
    found = [path for path in maps if path.name.startswith(f"{length}_")]
    paths.append(_plot_kept(found, length, _beside(out, f"kept_{length}")))
  return paths


def _plot_pareto(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """A panel for each length and size of answer; the caches of one policy are joined."""
  panels = list(dict.fromkeys((row["length"], row["answer"]) for row in rows))
  figure, grid = _panels(len(panels), (4.2, 3.6))
  families = list(dict.fromkeys(_family(row["cache"]) for row in rows))
  for axes, (length, answer) in zip(grid, panels, strict=True):
    for index, family in enumerate(families):
      points = sorted(
        (row["cache_bytes"] / 2**20, 100 * row["token_accuracy"], 100 * row["low"], 100 * row["high"])
        for row in rows if (row["length"], row["answer"], _family(row["cache"])) == (length, answer, family))
      if points:
        x, y, low, high = np.array(points).T
        axes.errorbar(
          x, y, [y - low, high - y], color=COLORS[index % len(COLORS)], marker=_MARKERS[index % len(_MARKERS)],
          markersize=5, linewidth=1.2, capsize=2, label=family)
    axes.set_title(f"{length:,} tokens, {answer} to say", fontsize="medium", loc="left")
    axes.set_xlim(left=0)
    axes.set_ylim(-3, 103)
    axes.grid(True, alpha=0.25)
    axes.set_xlabel("keys and values of a row (MiB)")
  grid[0].set_ylabel("tokens of the answer right (%)")
  grid[0].legend(frameon=False, fontsize="small")
  save_figure(figure, out)
  return out


def _plot_depths(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """A panel for each cache: depth downwards, length and size of answer to the right."""
  caches, depths = (list(dict.fromkeys(row[name] for row in rows)) for name in ("cache", "depth"))
  columns = list(dict.fromkeys((row["length"], row["answer"]) for row in rows))
  width = 1.1 + 0.55 * len(columns)
  figure, grid = _panels(len(caches), (width, 2.6))
  image = None
  for axes, cache in zip(grid, caches, strict=True):
    values = np.full((len(depths), len(columns)), np.nan)
    for row in rows:
      if row["cache"] == cache:
        place = depths.index(row["depth"]), columns.index((row["length"], row["answer"]))
        values[place] = 100 * row["token_accuracy"]
        axes.text(*place[::-1], f"{values[place]:.0f}", ha="center", va="center", fontsize="x-small")
    image = axes.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    _name_cache(axes, cache, width)
    axes.set_xticks(range(len(columns)), [f"{length}\n{answer}" for length, answer in columns], fontsize="x-small")
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize="x-small")
  grid[0].set_ylabel("depth")
  figure.supxlabel("tokens of the prompt, and of the answer", fontsize="small")
  figure.colorbar(image, ax=grid, label="tokens right (%)")
  save_figure(figure, out)
  return out


def _plot_kept(files: Sequence[Path], length: int, out: Path) -> Path:
  """A panel for each cache: a line for every head of every layer, the prompt from left to right."""
  width = 3.2
  figure, grid = _panels(len(files), (width, 2.6))
  image = None
  for axes, file in zip(grid, files, strict=True):
    shares_LHN = np.load(file, allow_pickle=False).astype(np.float32)
    layers, heads, _ = shares_LHN.shape
    image = axes.imshow(
      shares_LHN.reshape(layers * heads, -1), vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest",
      extent=(0, length, layers, 0))
    _name_cache(axes, file.stem.partition("_")[2], width)
    axes.set_xlabel("position in the prompt", fontsize="small")
  grid[0].set_ylabel(f"layer, {heads} heads each")
  figure.colorbar(image, ax=grid, label="share kept")
  save_figure(figure, out)
  return out


def _plot_losses(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """Loss beside the first cache's, against bytes."""
  figure, (axes,) = _panels(1, (6, 4))
  for index, row in enumerate(rows):
    around = [[row["delta_nll"] - row["delta_low"]], [row["delta_high"] - row["delta_nll"]]]
    axes.errorbar(
      [row["cache_bytes"] / 2**20], [row["delta_nll"]], around, color=COLORS[index % len(COLORS)],
      marker=_MARKERS[index % len(_MARKERS)], capsize=2, linestyle="none", label=row["cache"])
  axes.set_xlabel("keys and values of a row (MiB)")
  axes.set_ylabel(f"loss above «{rows[0]['cache']}» (nats a token)")
  axes.grid(True, alpha=0.25)
  axes.legend(frameon=False, fontsize="small")
  save_figure(figure, out)
  return out


def _panels(number: int, size: tuple[float, float], columns: int = 5) -> tuple[Figure, list[Any]]:
  """As many plots, in lines of at most `columns`; `size` of each."""
  columns = min(columns, number)
  lines = -(-number // columns)
  figure = Figure(figsize=(1.2 + size[0] * columns, 0.5 + size[1] * lines), dpi=110, layout="constrained")
  FigureCanvasAgg(figure)
  plots = list(figure.subplots(lines, columns, squeeze=False).flat)
  for axes in plots[number:]:
    axes.set_visible(False)
  return figure, plots[:number]


def _name_cache(axes: Any, cache: str, width: float) -> None:
  """Above a panel of so many inches, in lines that do not run into the next."""
  name = textwrap.fill(cache.replace(",", ", "), max(8, int(11 * width)))
  axes.set_title(name, fontsize="small", loc="left")


def _family(cache: str) -> str:
  """The policy: what stands before the budget, or before the cache that it keeps as many tokens as."""
  return cache.partition(" like ")[0].partition(":")[0]


def _beside(out: Path, what: str) -> Path:
  return out.with_stem(f"{out.stem}_{what}")


def _read(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
