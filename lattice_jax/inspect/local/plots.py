"""Pictures of a report on local attention, drawn from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inspect.local.arms import NAMES
from lattice_jax.inspect.plots import line_style, new_figure, save_figure

_DPI = 72


def draw_errors(errors: dict[str, Any], out: Path) -> dict[str, Path]:
  """Errors of all arms, by position and by layer; name → PNG."""
  return {
    "errors": _plot_bars("Error of attention's output at equal bytes", errors["budgets"], out / "errors.png"),
    "position": _plot_positions(errors["budgets"], out / "position.png"),
    "layers": _plot_layers(errors["budgets"], out / "layers.png")}


def draw_needle(needle: dict[str, Any], out: Path) -> dict[str, Path]:
  return {"needle": _plot_bars("Error of the queries that look for the needle", needle["budgets"], out / "needle.png")}


def _plot_bars(title: str, budgets: list[dict[str, Any]], out: Path) -> Path:
  """A panel for each budget; a mark where an arm would be without its summary."""
  figure, panels = new_figure(title, size=(4.2 * len(budgets) + 1.5, 3.6), widths=(1,) * len(budgets))
  for axes, budget in zip(panels, budgets, strict=True):
    arms = {arm["name"]: arm for arm in budget["arms"]}
    names = [name for name in reversed(NAMES) if name in arms]
    error = np.array([arms[name]["error"] for name in names])
    low, high = np.array([arms[name]["interval"] for name in names]).T
    axes.barh(names, error, xerr=[error - low, high - error], capsize=3, color=[_style(name)[0] for name in names])
    if "without_summary" in budget["arms"][0]:
      axes.plot([arms[name]["without_summary"] for name in names], names, "k|", markersize=12, label="summary off")
      axes.legend(frameon=False, fontsize="small")
    axes.set_xlabel(f"relative error at {budget['budget']} tokens' bytes; bars: 95 %")
    axes.grid(True, axis="x", alpha=0.25)
  for axes in panels[1:]:
    axes.set_yticks([])
  return save_figure(figure, out, dpi=_DPI)


def _plot_positions(budgets: list[dict[str, Any]], out: Path) -> Path:
  figure, panels = new_figure("Error by position", size=(4.8 * len(budgets) + 1, 3.8), widths=(1,) * len(budgets))
  for axes, budget in zip(panels, budgets, strict=True):
    for arm in budget["arms"]:
      color, line = _style(arm["name"])
      axes.plot(range(len(budget["ranges"])), arm["by_position"], color=color, linestyle=line, marker="o",
                label=arm["name"])
    axes.set_xticks(range(len(budget["ranges"])), [f"{low:,}–{high - 1:,}" for low, high in budget["ranges"]])
    axes.set_xlabel(f"position (tokens), {budget['budget']} tokens' bytes")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25)
  panels[0].set_ylabel("relative error")
  panels[0].legend(frameon=False, fontsize="small")
  return save_figure(figure, out, dpi=_DPI)


def _plot_layers(budgets: list[dict[str, Any]], out: Path) -> Path:
  figure, panels = new_figure("Error by layer", size=(4.8 * len(budgets) + 1, 3.8), widths=(1,) * len(budgets))
  for axes, budget in zip(panels, budgets, strict=True):
    for arm in budget["arms"]:
      color, line = _style(arm["name"])
      axes.plot(arm["by_layer"], color=color, linestyle=line, label=arm["name"])
    axes.set_xlabel(f"layer, {budget['budget']} tokens' bytes")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25)
  panels[0].set_ylabel("relative error")
  panels[0].legend(frameon=False, fontsize="small")
  return save_figure(figure, out, dpi=_DPI)


def _style(name: str) -> tuple[str, str]:
  return line_style(NAMES.index(name))
