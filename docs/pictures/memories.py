"""Draws memories.svg, what memories cost and what they are worth beside softmax attention, from stored results.

python docs/pictures/memories.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "results"
OUT = Path(__file__).with_suffix(".svg")
BLUE, RED, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555"
NAMES = {
  "lattice (base)": "Lattice", "scalar_decay": "scalar decay", "gated_deltanet": "Gated DeltaNet",
  "ttt_linear": "TTT-Linear", "gated_slots": "gated slots", "deltanet": "DeltaNet", "gla": "GLA",
  "linear": "linear attention", "softmax": "softmax", "vq (base)": "VQ", "nocache": "VQ, no cache"}


def read_lines(name: str) -> list[dict]:
  return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def read_scores(file: str, chosen: list[str]) -> list[tuple[str, float, float]]:
  """(name, mean, deviation over seeds) of the chosen rows of a sweep's table, the best first."""
  scores = []
  for line in (RESULTS / file).read_text(encoding="utf-8").splitlines():
    row = re.match(r"\| (.+?) \| \d+ \| ([\d.]+) ± ([\d.]+) \|", line)
    if row and row[1] in chosen:
      scores.append((NAMES[row[1]], float(row[2]), float(row[3])))
  assert len(scores) == len(chosen), f"{file} lacks some of {chosen}"
  return sorted(scores, key=lambda score: score[1])


def draw_speed(axes: Axes) -> None:
  for folder, head, case, label, color in (
      ("bench_lattice_cpu", "m64", "scan", "Lattice, 64 slots", RED),
      ("bench_vq_cpu", "shga", "vq input_scan", "Transformer-VQ, 512 codes", BLUE)):
    seconds = {
      (line["case"], line["T"]): line["median"] for line in read_lines(f"{folder}/bench.jsonl")
      if line["head"] == head and line["mode"] == "fwd+bwd"}
    lengths = sorted(length for name, length in seconds if name == case)
    times = [seconds["softmax blockwise", length] / seconds[case, length] for length in lengths]
    axes.plot(lengths, times, "o-", color=color)
    axes.annotate(label, (lengths[-1], times[-1]), (-8, 4), textcoords="offset points", ha="right", color=color)
  axes.axhline(1, color=GREY, linewidth=1)
  axes.text(32768, 0.86, "softmax, blockwise", color=GREY, ha="right", va="top")
  axes.set(xscale="log", yscale="log", xlabel="tokens, forward and backward on two CPU cores", ylabel="times faster",
           ylim=(0.33, 11))
  axes.set_xticks(ticks := [1024, 2048, 4096, 8192, 16384, 32768], [f"{tick:,}" for tick in ticks])
  axes.set_yticks(ticks := [0.5, 1, 2, 5], [f"{tick:g}" for tick in ticks])
  axes.minorticks_off()
  axes.set_title("Speed against softmax attention (higher is better)")


def draw_scores(axes: Axes, scores: list[tuple[str, float, float]], title: str, label: str, colors: dict) -> None:
  for row, (name, mean, deviation) in enumerate(scores):
    color = colors[name] if name in colors else GREY
    axes.errorbar(mean, row, xerr=deviation, fmt="o", color=color, capsize=3)
  axes.set_yticks(range(len(scores)), [name for name, *_ in scores])
  axes.set(xlabel=label, title=title, ylim=(len(scores) - 0.5, -0.5))


def draw_caches(axes: Axes) -> None:
  """The number in the middle of the prompt: the mean of three depths of equally many prompts."""
  right: dict[tuple[str, float], list[float]] = {}
  for line in read_lines("passkey/table.jsonl"):
    if (line["length"], line["answer"]) == (2048, 16) and line["depth"] in (0.25, 0.5, 0.75):
      right.setdefault((line["cache"], line["kept"] / 2048), []).append(100 * line["token_accuracy"] / 3)
  full = sum(right["full", 1.0])
  axes.axhline(full, color=GREY, linewidth=1)
  axes.text(0.21, full + 2, "all tokens kept (softmax)", color=GREY)
  for policy, label, color in (
      ("lagkv", "LagKV", RED), ("window", "window + sinks", BLUE), ("snapkv", "SnapKV score", GREEN),
      ("knorm", "Knorm score", PINK)):
    points = sorted((kept, sum(parts)) for (cache, kept), parts in right.items() if cache.startswith(policy))
    axes.plot(*zip(*points, strict=True), "o-", color=color)
    axes.annotate(label, points[-1], (7, -3), textcoords="offset points", color=color)
  axes.set(xlabel="share of 2,048 tokens kept", ylabel="digits of a passkey right, %", ylim=(0, 112), xlim=(0.2, 0.76),
           title="Smaller caches, SmolLM2-135M (higher is better)")


def main() -> None:
  matplotlib.rcParams.update({"svg.hashsalt": "memories", "font.size": 9, "axes.titlesize": 9.5})
  figure = Figure(figsize=(9.2, 5.4), layout="constrained", facecolor="white")
  figure.get_layout_engine().set(hspace=0.06, wspace=0.04, rect=(0.01, 0.01, 0.98, 0.98))
  (speed, photos), (text, caches) = figure.subplots(2, 2)
  draw_speed(speed)
  draw_scores(
    photos, read_scores("ablation_vq/table.md", ["softmax", "vq (base)", "nocache"]),
    "Quality against softmax: photographs (lower is better)", "bits per dim, three seeds", {"VQ": BLUE})
  draw_scores(
    text, read_scores("recurrences/one_rate.md", [
      "lattice (base)", "scalar_decay", "gated_deltanet", "ttt_linear", "gated_slots", "deltanet", "gla", "linear"]),
    "Memories of one fixed size: text (lower is better)",
    "bits per byte, three seeds, one learning rate", {"Lattice": RED})
  draw_caches(caches)
  for axes in figure.axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
  FigureCanvasSVG(figure).print_svg(OUT, metadata={"Date": None})


if __name__ == "__main__":
  main()
