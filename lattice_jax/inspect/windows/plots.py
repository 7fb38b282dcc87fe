"""Pictures of a comparison of windows, drawn from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inspect.plots import line_style, new_figure, save_figure

_DPI = 72


def draw_report(report: dict[str, Any], out: Path) -> dict[str, Path]:
  """Draws what the report has; name → PNG."""
  drawn = {"windows of the heads": _plot_windows(report["windows"], report["facts"]["context"], out / "windows.png")}
  if "loss" in report:
    drawn["loss above full attention"] = _plot_losses(report["loss"], out / "loss.png")
  if "latency" in report and len(report["latency"]) > 1:
    drawn["time saved by length"] = _plot_crossover(report["latency"], out / "crossover.png")
  return drawn


def _plot_windows(windows: dict[str, Any], context: int, out: Path) -> Path:
  """Rows of layers, columns of key/value heads, one panel for each choice."""
  count = len(windows)
  figure, panels = new_figure("Window of every key/value head", size=(3 * count + 2, 6), widths=(1,) * count)
  for axes, (name, rows) in zip(panels, windows.items(), strict=True):
    shown = np.log2(np.where(np.array(rows) == 0, context, rows))
    image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=5, vmax=np.log2(context))
    axes.set_title(name, fontsize="small")
    axes.set_xticks(range(len(rows[0])))
    axes.set_xlabel("head")
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


def _plot_crossover(latency: list[dict[str, Any]], out: Path) -> Path:
  """Time saved by length for one row, as fewer bytes predict (dashed) and as measured."""
  figure, (axes,) = new_figure("Time saved of a decode step, batch 1", size=(8, 4))
  records = [record for record in latency if record["batch"] == 1]
  for index, name in enumerate(arm["name"] for arm in records[0]["arms"][1:]):
    arms = [next(arm for arm in record["arms"] if arm["name"] == name) for record in records]
    color = line_style(index)[0]
    lengths = [record["length"] for record in records]
    axes.plot(lengths, [100 * arm["saved_p50"] for arm in arms], color=color, marker="o", label=name)
    axes.plot(lengths, [100 * arm["predicted"] for arm in arms], color=color, linestyle="--")
  axes.axhline(30, color="black", linewidth=0.8)
  axes.set_xscale("log", base=2)
  axes.set_xlabel("tokens before the step")
  axes.set_ylabel("% saved (dashed: predicted)")
  axes.legend(frameon=False, fontsize="small")
  axes.grid(True, alpha=0.25)
  return save_figure(figure, out, dpi=_DPI)
