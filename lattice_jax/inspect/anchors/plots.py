"""Pictures of a report on anchors, drawn from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure

from lattice_jax.inspect.plots import line_style, new_figure, save_figure

_DPI = 72
_LEAST_MASS = 1e-3  # smaller attention mass has the colour of this one


def draw_report(report: dict[str, Any], out: Path) -> dict[str, Path]:
  """Draws what the report has; name → PNG."""
  drawn = {}
  if "text" in report:
    drawn["loss"] = _plot_losses(report["text"], out / "loss.png")
  if "cache" in report:
    drawn["cache"] = _plot_caches(report["cache"], out / "cache.png")
  if "recall" in report:
    drawn["recall"] = _plot_answers(
      report["recall"], "kind", "distance", "sentences since the code word (0: never shown)", "nats per token",
      out / "recall.png")
  if "demonstrations" in report:
    drawn["demonstrations"] = _plot_answers(
      report["demonstrations"], "task", "shots", "demonstrations", "nats per token of the answer",
      out / "demonstrations.png")
  if "attention" in report:
    drawn["layers"] = _plot_layers(report["attention"], out / "attention_layers.png")
    drawn["picture"] = _plot_text(report["attention"]["text"], out / "attention_text.png")
  return drawn


def _plot_losses(text: dict[str, Any], out: Path) -> Path:
  """Loss above full attention by place in the segment, by segments before the token, and by position."""
  labels = {
    "by_place": "tokens of its segment before the token", "by_segment": "closed segments before the token",
    "by_position": "position (tokens)"}
  figure, panels = new_figure("Loss above full attention", size=(14, 4), widths=(1,) * len(labels))
  for axes, (key, label) in zip(panels, labels.items(), strict=True):
    names = [group["bucket"] for group in text[key]]
    for index, reader in enumerate(text[key][0]["above_full"]):
      mean, low, high = np.array([group["above_full"][reader] for group in text[key]]).T
      color, line = line_style(index)
      axes.errorbar(
        range(len(names)), mean, [mean - low, high - mean], color=color, linestyle=line, marker="o", capsize=3,
        label=reader)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(True, alpha=0.25)
  panels[0].set_ylabel("nats per token (bars: 95 %)")
  panels[0].legend(frameon=False, fontsize="small")
  return save_figure(figure, out, dpi=_DPI)


def _plot_caches(cache: dict[str, Any], out: Path) -> Path:
  """Bytes of the live arrays, and of the tokens kept."""
  figure, (axes,) = new_figure("Cache of one row", size=(8, 3.6))
  bars = [("full cache", cache["rules"][0]["full_bytes"])]
  for rule in cache["rules"]:
    bars += [
      (f"{rule['rule']}: as configured", rule["configured_bytes"]),
      (f"{rule['rule']}: sized to the text", rule["live_bytes"]),
      (f"{rule['rule']}: tokens kept, by formula", rule["kept_bytes"])]
  bars = bars[::-1]
  drawn = axes.barh([name for name, _ in bars], [size / 2**20 for _, size in bars], color=line_style(0)[0])
  axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize="small")
  axes.set_xlabel(f"MiB with room for {cache['room']:,} tokens")
  axes.margins(x=0.12)
  return save_figure(figure, out, dpi=_DPI)


def _plot_answers(
  records: Sequence[dict[str, Any]], panel: str, along: str, label: str, unit: str, out: Path) -> Path:
  """Above the loss, below the share of answers without a mistake; a panel for each value of `panel`."""
  panels = list(dict.fromkeys(record[panel] for record in records))
  readers = list(dict.fromkeys(record["reader"] for record in records))
  figure = Figure(figsize=(3.2 * len(panels) + 1, 5.6), layout="constrained")
  grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
  for column, name in enumerate(panels):
    grid[0, column].set_title(name, loc="left", fontsize="medium")
    for index, reader in enumerate(readers):
      chosen = [record for record in records if (record[panel], record["reader"]) == (name, reader)]
      ticks = [record[along] for record in chosen]
      color, line = line_style(index)
      for axes, value, interval, scale in (
        (grid[0, column], "nats_per_token", "nats_interval", 1), (grid[1, column], "exact", "exact_interval", 100)):
        mean = scale * np.array([record[value] for record in chosen])
        low, high = scale * np.array([record[interval] for record in chosen]).T
        around = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
        axes.errorbar(
          range(len(ticks)), mean, around, color=color, linestyle=line, marker="o", capsize=2, label=reader)
    grid[1, column].set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    grid[1, column].set_ylim(-4, 104)
  for axes in grid.flat:
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
  grid[0, 0].set_ylabel(unit)
  grid[1, 0].set_ylabel("answers without a mistake (%)")
  figure.supxlabel(f"{label}; bars: 95 %", fontsize="medium")
  handles, names = grid[0, 0].get_legend_handles_labels()
  figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
  return save_figure(figure, out, dpi=_DPI)


def _plot_layers(attention: dict[str, Any], out: Path) -> Path:
  mass_LN = np.array(attention["by_layer"])
  figure, (axes,) = new_figure("Attention mass by layer", size=(max(6, 1.6 + 0.6 * mass_LN.shape[1]), 5.2))
  image = axes.imshow(
    np.maximum(mass_LN, _LEAST_MASS), norm=LogNorm(_LEAST_MASS, 1), cmap="magma", aspect="auto",
    interpolation="nearest")
  axes.set_xticks(range(mass_LN.shape[1]), attention["columns"], rotation=45, ha="right")
  step = max(1, len(mass_LN) // 10)
  axes.set_yticks(range(0, len(mass_LN), step), attention["layers"][::step])
  axes.set_ylabel("layer")
  axes.set_xlabel("own segment, first token, and anchors by segments back")
  figure.colorbar(image, ax=axes, label="mean mass of a token that has such keys")
  return save_figure(figure, out, dpi=_DPI)


def _plot_text(text: dict[str, Any], out: Path) -> Path:
  """One text downwards, its anchors to the right."""
  mass_TN = np.array(text["mass"])
  figure, (axes,) = new_figure("Which anchors a text reads", size=(max(6, 2.5 + 0.3 * mass_TN.shape[1]), 6))
  image = axes.imshow(
    mass_TN, norm=PowerNorm(0.4, 0, 1), cmap="magma", aspect="auto", interpolation="nearest",
    extent=(-0.5, mass_TN.shape[1] - 0.5, text["tokens"], 0))
  axes.set_xticks(range(mass_TN.shape[1]), text["names"], rotation=90, fontsize=7)
  axes.set_ylabel("position of the reading token")
  axes.set_xlabel("anchor, by the text that it ends")
  figure.colorbar(image, ax=axes, label="attention mass, mean of layers and heads")
  return save_figure(figure, out, dpi=_DPI)
