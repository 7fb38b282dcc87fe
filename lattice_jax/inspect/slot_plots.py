"""Heat maps and traces of the slots of one layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from lattice_jax.inspect.plots import COLORS, DIVERGING, save_figure, smooth
from lattice_jax.inspect.slot_trace import SlotTrace
from lattice_jax.inspect.slot_writes import ages

# What a figure shows → its heading, and a caption that says how to read it.
HEADINGS = {
  "traces": "Steps, novelty and span along the text", "writes": "Which tokens wrote to which slots",
  "gates": "What was kept", "ages": "Ages", "novelty": "What was already known", "similarity": "How similar slots are",
  "lengths": "Lengths"}
CAPTIONS = {
  "traces": "For each token and head: the step η that the token chose; the share of its value that was orthogonal to "
            "the slots it was offered to; how many directions the slots span; how similar two slots are on average.",
  "writes": "How far each token turned each slot, in radians; π/2 replaces the slot.",
  "gates": "How much of a slot's direction is left after a token. Blue, below one: the slot is overwritten. Orange, "
           "above one: the write pointed away from the slot.",
  "ages": "How long ago each slot was last written to, or else the text began. Yellow slots hold something old.",
  "novelty": "How much of the token's value lies along each slot, which held that part already. Dark: the value is "
             "orthogonal to the slot and therefore novel there.",
  "similarity": "Cosines of all pairs of slots at the end of the text. Off the diagonal, orange marks slots with the "
                "same direction and blue slots with opposite directions.",
  "lengths": "Long slots turn slowly: they were written to often.",
}
_MIN_TURN = 1e-3  # radians; smaller turns are drawn as none
_MAX_COLUMNS = 1200  # of a heat map; the figure has no pixels for more


def plot_layer(name: str, trace: SlotTrace, folder: Path, *, threshold: float) -> dict[str, Path]:
  """Draws one layer. Returns the PNG for each key of CAPTIONS; "lengths" only if they change."""
  figures = {
    "writes": _heat_maps(
      f"{name}: how far a token turned each slot", "turn (radians)", trace.turn_THM, "magma",
      LogNorm(_MIN_TURN, max(np.pi / 2, float(trace.turn_THM.max()))), np.max),
    "gates": _heat_maps(
      f"{name}: what was kept of each slot, a·ρ", "a·ρ (1 = kept)", trace.keep_THM, DIVERGING,
      _around_one(trace.keep_THM), np.mean),
    "ages": _heat_maps(
      f"{name}: tokens since the last write of {threshold:g} radians or more", "age (tokens) + 1",
      ages(trace.turn_THM, threshold) + 1.0, "viridis", LogNorm(1, max(len(trace.turn_THM), 2)), np.mean),
    "novelty": _heat_maps(
      f"{name}: share of the value that each slot already holds; the rest is novel", "redundant share",
      1 - trace.novel_THM, "magma", Normalize(0, 1), np.max),
    "similarity": _similarity(f"{name}: cosines of the slots after the last token", trace.similarity_HMM),
    "traces": _traces(f"{name}: gates and slots along the text", trace),
  }
  if np.ptp(trace.norm_THM) > 1e-3:
    figures["lengths"] = _heat_maps(
      f"{name}: length of each slot", "length", trace.norm_THM, "viridis",
      Normalize(float(trace.norm_THM.min()), float(trace.norm_THM.max())), np.mean)
  return {
    what: save_figure(figure, folder / f"{name.replace(' ', '')}_{what}.png") for what, figure in figures.items()}


def _around_one(keep_THM: np.ndarray) -> Normalize:
  """White at one. The most extreme 0.5 % of gates on either side, perhaps single writes, do not stretch the scale."""
  low, high = np.quantile(keep_THM, [0.005, 0.995]).tolist()
  reach = max(1 - low, high - 1, 1e-3)
  return TwoSlopeNorm(1.0, 1 - reach, 1 + reach)


def _new_figure(title: str, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
  figure = Figure(figsize=size, dpi=110, layout="constrained")
  figure.suptitle(title, x=0.01, ha="left", fontsize=11)
  return figure, figure.subplots(rows, columns, squeeze=False)


def _heat_maps(
  title: str, unit: str, value_THM: np.ndarray, colors: str | Colormap, norm: Normalize,
  pool: Callable[..., np.ndarray],
) -> Figure:
  """Slots over tokens, one head below another, with a common colour scale."""
  length, heads, slots = value_THM.shape
  height = min(2.6, max(1.1, 0.035 * slots + 0.5))
  figure, axes = _new_figure(title, heads, 1, (10, 0.9 + height * heads))
  for head, plot in enumerate(axes[:, 0]):
    image = plot.imshow(
      np.maximum(_shorten(value_THM[:, head], pool).T, norm.vmin), aspect="auto", cmap=colors, norm=norm,
      interpolation="nearest", extent=(-0.5, length - 0.5, slots - 0.5, -0.5))
    plot.set_ylabel(f"head {head}\nslot", fontsize=9)
    plot.tick_params(labelsize=8, labelbottom=head == heads - 1)
  axes[-1, 0].set_xlabel("position in the text (tokens)")
  figure.colorbar(image, ax=list(axes[:, 0]), label=unit, pad=0.01, aspect=12 * heads)
  return figure


def _shorten(value_TM: np.ndarray, pool: Callable[..., np.ndarray]) -> np.ndarray:
  """At most _MAX_COLUMNS columns, into which neighbouring tokens are pooled."""
  parts = np.array_split(value_TM, min(len(value_TM), _MAX_COLUMNS))
  return np.stack([pool(part, axis=0) for part in parts])


def _similarity(title: str, cosine_HMM: np.ndarray) -> Figure:
  heads = len(cosine_HMM)
  columns = min(heads, 4)
  rows = -(-heads // columns)
  figure, axes = _new_figure(title, rows, columns, (2.6 * columns + 1.2, 2.7 * rows + 0.5))
  for head, plot in enumerate(axes.flat):
    if head >= heads:
      plot.set_axis_off()
      continue
    plot.set_xlabel("slot", fontsize=9)
    plot.set_ylabel("slot" if head % columns == 0 else "", fontsize=9)
    image = plot.imshow(cosine_HMM[head], cmap=DIVERGING, norm=Normalize(-1, 1), interpolation="nearest")
    plot.set_title(f"head {head}", fontsize=9)
    plot.tick_params(labelsize=8)
  figure.colorbar(image, ax=list(axes.flat), label="cosine", pad=0.02)
  return figure


def _traces(title: str, trace: SlotTrace) -> Figure:
  """One plot for each number that a token has per head, one curve per head; many tokens are smoothed."""
  rows = {
    "step η": trace.step_TH, "novel share\nof the value": trace.novel_TH,
    "slots' span\n(directions)": trace.rank_TH, "mean |cosine|\nof two slots": trace.overlap_TH}
  if np.ptp(trace.forget_TH) > 0:
    rows["forget gate"] = trace.forget_TH
  figure, axes = _new_figure(title, len(rows), 1, (10, 0.9 + 1.5 * len(rows)))
  for plot, (label, value_TH) in zip(axes[:, 0], rows.items(), strict=True):
    _draw_heads(plot, value_TH)
    plot.set_ylabel(label, fontsize=9)
    plot.tick_params(labelsize=8, labelbottom=plot is axes[-1, 0])
  axes[-1, 0].set_xlabel("position in the text (tokens)")
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
  return figure


def _draw_heads(plot: Any, value_TH: np.ndarray) -> None:
  width = max(1, len(value_TH) // 200)
  for head, value_T in enumerate(value_TH.T):
    color = COLORS[head % len(COLORS)]
    if width > 1:
      plot.plot(value_T, color=color, alpha=0.15, linewidth=0.6)
    plot.plot(smooth(value_T, width), color=color, linewidth=1.2, label=f"head {head}")
  plot.set_xlim(0, max(len(value_TH) - 1, 1))
  plot.grid(True, alpha=0.25)
  plot.spines[["top", "right"]].set_visible(False)
