"""How a model uses its codebooks: the share of every code, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.colors import LogNorm

from lattice_jax.checkpoint import load_for_eval
from lattice_jax.config import ModelConfig
from lattice_jax.files import replace_file
from lattice_jax.inspect.plots import new_figure, save_figure

_COUNT = "codebook_count"
_MIN_SHARE = 1e-2  # of an even share; rarer use is drawn as none


def code_shares(model: ModelConfig, buffers: Any) -> tuple[list[str], np.ndarray]:
  """(row names, [rows, codes]) from the moving averages of code counts; a row per layer and codebook, bottom up.

  Each row sums to 1. Raises ValueError if no memory has a codebook.
  """
  rows = [
    (layer, head, count_M / max(count_M.sum(), 1e-30))
    for layer, count_HM in sorted(_counts(model, buffers), key=lambda item: item[0])
    for head, count_M in enumerate(count_HM)]
  if not rows:
    raise ValueError(f"model.pattern={','.join(model.pattern)} has no memory with a codebook to plot.")
  has_heads = any(head for _, head, _ in rows)
  names = [f"{layer + 1}" + (f" · {head + 1}" if has_heads else "") for layer, head, _ in rows]
  return names, np.stack([share_M for _, _, share_M in rows])


def perplexity(share_RM: np.ndarray) -> np.ndarray:
  """exp of each row's entropy: the number of codes that, used evenly, would have the same entropy."""
  return np.exp(-(share_RM * np.log(np.maximum(share_RM, 1e-30))).sum(-1))


def plot_codebook(workdir: Path, out: Path) -> list[Path]:
  """Draws a heat map of code use in the newest checkpoint: a row per layer, its codes sorted by use.

  Returns `out` and the JSON beside it, which holds the shares and is what a report draws from.
  """
  config, _, buffers, step = load_for_eval(workdir)
  names, share_RM = code_shares(config.model, buffers)
  codes = share_RM.shape[1]
  relative_RM = np.sort(share_RM, axis=1)[:, ::-1] * codes
  height = min(12.0, max(3.6, 1.6 + 0.22 * len(names)))
  figure, (axes, side) = new_figure(
    f"Codebook use of {workdir.resolve().name} at step {step}", size=(9, height), widths=(5, 1))
  image = axes.imshow(
    np.maximum(relative_RM, _MIN_SHARE), aspect="auto", interpolation="nearest", cmap="viridis",
    norm=LogNorm(_MIN_SHARE, max(10.0, relative_RM.max())), extent=(0.5, codes + 0.5, len(names) - 0.5, -0.5))
  axes.set_xlabel("code, from most to least used")
  axes.set_ylabel("layer · codebook" if "·" in names[0] else "layer")
  every = -(-len(names) // 24)  # labels that fit
  axes.set_yticks(range(0, len(names), every), names[::every])
  figure.colorbar(image, ax=axes, label="times an even share", pad=0.02)
  _draw_perplexity(side, perplexity(share_RM), codes, axes.get_ylim())
  numbers = {"step": step, "row": axes.get_ylabel(), "rows": names, "share_RM": share_RM.tolist()}
  return [save_figure(figure, out), _write_numbers(out.with_suffix(".json"), numbers)]


def _draw_perplexity(side: Any, perplexity_R: np.ndarray, codes: int, limits: tuple[float, float]) -> None:
  side.barh(range(len(perplexity_R)), perplexity_R, color="#0072b2", height=0.8)
  side.set_ylim(limits)
  side.set_xlim(0, codes)
  side.set_yticks([])
  side.set_xlabel(f"perplexity\n(of {codes} codes)")


def _write_numbers(path: Path, numbers: dict[str, Any]) -> Path:
  replace_file(path, json.dumps(numbers) + "\n")
  return path


def _counts(model: ModelConfig, buffers: Any) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (layer, counts [H, M]) of every codebook, whether layers are stacked or not."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(buffers):
    group, block, *_, name = (key.key for key in path)
    if name != _COUNT:
      continue
    is_stacked = group == "groups"
    first = 0 if is_stacked else int(group.removeprefix("group_"))
    for number, count_HM in enumerate(np.asarray(leaf) if is_stacked else np.asarray(leaf)[None], start=first):
      yield number * len(model.pattern) + int(block.removeprefix("block_")), count_HM
