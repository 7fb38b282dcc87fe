"""Plots of retrieval under caches: accuracy against bytes, accuracy by depth and length, and what each head keeps."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from lattice_jax.evaluation.cache_contents import cache_of_map
from lattice_jax.evaluation.retrieval.summary import FULL
from lattice_jax.files import read_jsonl
from lattice_jax.inspect.plots import COLORS, panel_grid, save_figure

_MARKERS = "osD^v<>P*X"
_HEAT = "cividis"
_DARK = 50  # per cent; below it the map is so dark that numbers on it are white


def plot_retrieval(folder: Path, out: Path) -> list[Path]:
  """Draws what `eval.py --task` wrote into `folder`: `out`, and files beside it that are named by what they show.

  Raises:
    ValueError: the folder holds no finished task.
  """
  if (folder / "compare.jsonl").exists():
    return [_plot_losses(read_jsonl(folder / "compare.jsonl"), out)]
  if not (folder / "table.jsonl").exists():
    raise ValueError(f"{folder}/table.jsonl does not exist; give the folder of a --task that has finished.")
  rows = read_jsonl(folder / "table.jsonl")
  paths = [
    _plot_pareto([row for row in rows if row["depth"] is None], out),
    _plot_depths([row for row in rows if row["depth"] is not None], _beside(out, "depths"))]
  maps = sorted((folder / "kept").glob("*.npy")) if (folder / "kept").is_dir() else []
  for length in sorted({int(path.name.partition("_")[0]) for path in maps}):
    found = {cache_of_map(path): path for path in maps if path.name.startswith(f"{length}_")}
    caches = _by_family(row["cache"] for row in rows if row["cache"] in found)
    paths.append(_plot_kept(caches, found, length, _beside(out, f"kept_{length}")))
  return paths


def _plot_pareto(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """A panel for each prompt length and answer size; a line joins the caches of one policy."""
  panels = sorted({(row["answer"], row["length"]) for row in rows})
  figure, grid = panel_grid(len(panels), (4.0, 3.3))
  families = list(dict.fromkeys(_family(row["cache"]) for row in rows))
  shown = {}
  for axes, (answer, length) in zip(itertools.chain(*grid), panels, strict=True):
    for index, family in enumerate(families):
      points = sorted(
        (row["cache_bytes"] / 2**20, 100 * row["token_accuracy"], 100 * row["low"], 100 * row["high"])
        for row in rows if (row["length"], row["answer"], _family(row["cache"])) == (length, answer, family))
      if points:
        x, y, low, high = np.array(points).T
        shown[family] = axes.errorbar(
          x, y, [y - low, high - y], color=COLORS[index % len(COLORS)], marker=_MARKERS[index % len(_MARKERS)],
          markersize=5, linewidth=1.2, capsize=2)
    axes.set_title(f"prompt of {length:,} tokens, answer size {answer}", fontsize="medium", loc="left")
    axes.set_xlim(left=0)
    axes.set_ylim(-3, 103)
    axes.grid(True, alpha=0.25)
  for line in grid:
    line[0].set_ylabel("answer tokens right (%)")
  figure.supxlabel("keys and values of a row (MiB); bars: 95 % interval from resampling prompts", fontsize="medium")
  figure.legend(
    list(shown.values()), list(shown), loc="outside upper center", ncols=len(shown), frameon=False, fontsize="medium")
  return save_figure(figure, out)


def _plot_depths(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """A panel for each cache: depth downwards, prompt length and answer size to the right."""
  caches = _by_family(row["cache"] for row in rows)
  depths = sorted({row["depth"] for row in rows})
  columns = list(dict.fromkeys((row["length"], row["answer"]) for row in rows))
  width = 0.9 + 0.5 * len(columns)
  figure, grid = panel_grid(len(caches), (width, 0.9 + 0.36 * len(depths)))
  scale, image = Normalize(0, 100), None
  for axes, cache in zip(itertools.chain(*grid), caches, strict=True):
    values = np.full((len(depths), len(columns)), np.nan)
    for row in rows:
      if row["cache"] == cache:
        place = depths.index(row["depth"]), columns.index((row["length"], row["answer"]))
        values[place] = 100 * row["token_accuracy"]
        axes.text(
          *place[::-1], f"{values[place]:.0f}", ha="center", va="center", fontsize="small",
          color="black" if values[place] > _DARK else "white")
    image = axes.imshow(values, norm=scale, cmap=_HEAT, aspect="auto")
    _name_cache(axes, cache, width)
    axes.set_xticks(range(len(columns)), [f"{length:,}\n{answer}" for length, answer in columns], fontsize="x-small")
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize="small")
  for line in grid:
    line[0].set_ylabel("depth", fontsize="small")
  figure.supxlabel(
    "tokens of the prompt, and digits or words of the answer below. Depth: 0 at the start of the prompt, 1 at its end. "
    "Blank: not asked", fontsize="small")
  figure.colorbar(image, ax=list(itertools.chain(*grid)), label="answer tokens right (%)", aspect=30, pad=0.01)
  return save_figure(figure, out)


def _plot_kept(caches: Sequence[str], files: Mapping[str, Path], length: int, out: Path) -> Path:
  """A panel for each cache: one row per head of every layer, the prompt from left to right."""
  width = 3.2
  figure, grid = panel_grid(len(caches), (width, 2.3))
  image = None
  for axes, cache in zip(itertools.chain(*grid), caches, strict=True):
    shares_LHN = np.load(files[cache], allow_pickle=False).astype(np.float32)
    layers, heads, _ = shares_LHN.shape
    image = axes.imshow(
      shares_LHN.reshape(layers * heads, -1), vmin=0, vmax=1, cmap=_HEAT, aspect="auto", interpolation="nearest",
      extent=(0, length, layers, 0))
    _name_cache(axes, cache, width)
    axes.tick_params(labelsize="small")
  for line in grid:
    line[0].set_ylabel(f"layer ({heads} heads each)", fontsize="small")
  figure.supxlabel("position in the prompt (tokens)", fontsize="small")
  figure.colorbar(image, ax=list(itertools.chain(*grid)), label="share of tokens kept", aspect=30, pad=0.01)
  return save_figure(figure, out)


def _plot_losses(rows: Sequence[dict[str, Any]], out: Path) -> Path:
  """Loss above the first cache's, against bytes."""
  figure, ((axes,),) = panel_grid(1, (6, 4))
  for index, row in enumerate(rows):
    around = [[row["delta_nll"] - row["delta_low"]], [row["delta_high"] - row["delta_nll"]]]
    axes.errorbar(
      [row["cache_bytes"] / 2**20], [row["delta_nll"]], around, color=COLORS[index % len(COLORS)],
      marker=_MARKERS[index % len(_MARKERS)], capsize=2, linestyle="none", label=row["cache"])
  axes.set_xlabel("keys and values of a row (MiB)")
  axes.set_ylabel(f"loss above «{rows[0]['cache']}» (nats per token)")
  axes.grid(True, alpha=0.25)
  axes.legend(frameon=False, fontsize="small")
  return save_figure(figure, out)


def _name_cache(axes: Any, cache: str, width: float) -> None:
  """Titles a panel of `width` inches with the cache's name, in lines that do not run into the next panel."""
  name = textwrap.fill(cache.replace(",", ", "), max(8, int(11 * width)))
  axes.set_title(name, fontsize="small", loc="left")


def _family(cache: str) -> str:
  """The policy: the part of the name before the budget, or before the cache whose budget it shares."""
  return cache.partition(" like ")[0].partition(":")[0]


def _by_family(caches: Iterable[str]) -> list[str]:
  """Sorts the caches by policy; the full cache comes first."""
  caches = sorted(dict.fromkeys(caches), key=lambda cache: cache != FULL)
  families = list(dict.fromkeys(map(_family, caches)))
  return sorted(caches, key=lambda cache: families.index(_family(cache)))


def _beside(out: Path, what: str) -> Path:
  return out.with_stem(f"{out.stem}_{what}")
