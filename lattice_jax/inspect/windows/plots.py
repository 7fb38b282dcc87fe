"""Pictures of a comparison of windows, drawn from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inspect.local.plots import draw_errors
from lattice_jax.inspect.plots import line_style, new_figure, save_figure

_DPI = 72


def draw_report(report: dict[str, Any], out: Path) -> dict[str, Path]:
  """Draws what the report has; name → PNG."""
  drawn = {"windows of the heads": _plot_windows(report["windows"], report["facts"]["context"], out / "windows.png")}
  if "loss" in report:
    drawn["loss above full attention"] = _plot_losses(report["loss"], out / "loss.png")
  if "bound" in report:
    drawn["time saved by length"] = _plot_crossover(
      report["bound"], report["latency"] if "latency" in report else [], out / "crossover.png")
  if "loss" in report and "ranges" in report["loss"]:
    drawn["loss by position"] = _plot_positions(report["loss"], out / "loss_position.png")
  if "errors" in report:
    drawn |= draw_errors(report["errors"], out)
  return drawn


def _plot_windows(windows: dict[str, Any], context: int, out: Path) -> Path:
  """Rows of layers, columns of key/value heads, one panel for each choice."""
  count = len(windows)
  figure, panels = new_figure("Window of every key/value head", size=(3 * count + 2, 6), widths=(1,) * count)
  for axes, (name, rows) in zip(panels, windows.items(), strict=True):
    shown = np.log2(np.where(np.array(rows) == 0, context, rows))
    image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=5, vmax=np.log2(context))
    axes.set_xticks(range(len(rows[0])))
    axes.set_xlabel(f"{name}, head")
  panels[0].set_ylabel("layer")
  figure.colorbar(image, ax=list(panels), label="log₂ tokens")
  return save_figure(figure, out, dpi=_DPI)


def _plot_losses(loss: dict[str, Any], out: Path) -> Path:
  figure, (axes,) = new_figure("Loss above full attention", size=(8, 4))
  arms = loss["arms"][1:]
  mean, low, high = np.array([arm["above_full"] for arm in arms]).T
  axes.errorbar(mean, range(len(arms)), xerr=[mean - low, high - mean], fmt="o", capsize=3, color=line_style(0)[0])
  axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
  axes.axvline(0, color="black", linewidth=0.8)
  axes.set_xlabel("nats per token (bars: 95 %)")
  axes.grid(True, alpha=0.25)
  return save_figure(figure, out, dpi=_DPI)


def _plot_crossover(bound: dict[str, Any], latency: list[dict[str, Any]], out: Path) -> Path:
  """The bound by length as lines, a panel for each batch, and what was measured as points."""
  count = len(bound["batches"])
  figure, panels = new_figure("Time saved of a decode step", size=(5.5 * count + 1, 4), widths=(1,) * count)
  for axes, batch in zip(panels, bound["batches"], strict=True):
    for index, arm in enumerate(batch["arms"][1:]):
      color, line = line_style(index)
      axes.plot(bound["lengths"], [100 * share for share in arm["saved"]], color=color, linestyle=line,
                label=arm["name"])
      points = [(record["length"], 100 * other["saved_p50"]) for record in latency if record["batch"] == batch["batch"]
                for other in record["arms"] if other["name"] == arm["name"]]
      if points:
        axes.plot(*zip(*points, strict=True), color=color, marker="o", linestyle="none")
    axes.axhline(100 * bound["goal"], color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"tokens before the step, batch {batch['batch']}")
    axes.grid(True, alpha=0.25)
  panels[0].set_ylabel("% saved (lines: at most, by bytes; points: measured)")
  panels[0].legend(frameon=False, fontsize="small")
  return save_figure(figure, out, dpi=_DPI)


def _plot_positions(loss: dict[str, Any], out: Path) -> Path:
  figure, (axes,) = new_figure("Loss above full attention by position", size=(8, 4))
  for index, arm in enumerate(loss["arms"][1:]):
    color, line = line_style(index)
    axes.plot([mean for mean, _, _ in arm["by_position"]], color=color, linestyle=line, marker="o", label=arm["name"])
  axes.set_xticks(range(len(loss["ranges"])), [f"{low:,}–{high - 1:,}" for low, high in loss["ranges"]])
  axes.axhline(0, color="black", linewidth=0.8)
  axes.set_xlabel("position (tokens)")
  axes.set_ylabel("nats per token")
  axes.legend(frameon=False, fontsize="small")
  axes.grid(True, alpha=0.25)
  return save_figure(figure, out, dpi=_DPI)
