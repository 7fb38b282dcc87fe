"""Plots of runs: the loss over updates, and the loss by position."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lattice_jax.metrics import read_metric_lines

_SMOOTHING_SHARE = 0.02  # of the run: the width of the moving average over training updates
_START_SHARE = 0.05  # of the longest run: updates that stand far above what is worth reading, and may leave the plot
_TITLE_WIDTH = 60  # letters of names over a plot
_MOST_INSIDE = 12  # names of a legend inside its plot
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """(training lines, evaluation lines) of a metrics.jsonl; evaluation lines are those with a "split"."""
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist; give the workdir of a run that has begun to train.")
  lines = read_metric_lines(path)
  return [line for line in lines if "split" not in line], [line for line in lines if "split" in line]


def read_result(path: Path) -> dict[str, Any]:
  """What eval.py wrote into a JSON file."""
  result = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else {}
  if "buckets" not in result:
    raise ValueError(f"{path} is not a file that eval.py wrote; give one, such as RUN/eval_test_cold.json.")
  return result


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Mean over the last `width` values, fewer at the start."""
  sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  stop = np.arange(1, len(values) + 1)
  start = np.maximum(stop - width, 0)
  return (sums[stop] - sums[start]) / (stop - start)
_TITLE_WIDTH = 60  # letters


def plot_loss(workdirs: Sequence[Path], out: Path) -> None:
  """Bits per byte or dim over updates of one or several runs: training smoothed and raw, evaluations as points."""
  figure, (axes,) = new_figure(_title("Loss of", [path.resolve().name for path in workdirs]))
  worth_reading = []  # (step, value) of every point that the vertical axis is chosen for
  for index, workdir in enumerate(workdirs):
    train, evaluations = read_metrics(workdir / "metrics.jsonl")
    color, name = COLORS[index % len(COLORS)], workdir.resolve().name
    step, value = _points(train)
    if not len(value):
      raise ValueError(f"{workdir}/metrics.jsonl has no training line yet; wait for the first updates.")
    smoothed = smooth(value, max(1, round(_SMOOTHING_SHARE * len(value))))
    axes.plot(step, value, color=color, alpha=0.2, linewidth=0.8)
    axes.plot(step, smoothed, color=color, linewidth=1.8, label=f"{name}: training, smoothed")
    worth_reading.append((step, smoothed))
    for marker, (label, lines) in zip("osD^v<>", _by_series(evaluations).items(), strict=False):
      eval_step, points = _points(lines)
      axes.plot(
        eval_step, points, marker=marker, linestyle="none", markersize=6, color=color, markeredgecolor="black",
        label=f"{name}: {label}, last {points[-1]:.3f}")
      worth_reading.append((eval_step, points))
  axes.set_ylim(_readable_range(*map(np.concatenate, zip(*worth_reading, strict=True))))
  axes.set_xlim(left=0)
  axes.set_xlabel("optimizer updates")
  axes.set_ylabel(f"bits per {_common_unit(_run_unit(path) for path in workdirs)}")
  save_with_legend(figure, axes, out)


def plot_buckets(eval_files: Sequence[Path], out: Path) -> None:
  """Bits per byte or dim by position, from the JSON files that eval.py writes."""
  results = [(path, read_result(path)) for path in eval_files]
  figure, (axes,) = new_figure(_title("Loss by position of", [path.resolve().parent.name for path, _ in results]))
  for index, (path, result) in enumerate(results):
    filled = [bucket for bucket in result["buckets"] if bucket["tokens"]]
    edges = [bucket["start"] for bucket in filled] + [filled[-1]["stop"]]
    values = [bucket["bits_per_byte"] for bucket in filled]
    overrides = "".join(f", {override}" for override in result["overrides"])
    axes.stairs(
      values, edges, baseline=None, color=COLORS[index % len(COLORS)], linewidth=1.8,
      label=f"{path.resolve().parent.name}: {result['split']}, {result['protocol']}{overrides}, "
            f"{result['bits_per_byte']:.3f}")
  linear_up_to = min(result["buckets"][0]["stop"] for _, result in results)
  axes.set_xscale("symlog", base=2, linthresh=linear_up_to, linscale=1)
  ticks = sorted({bucket["start"] for _, result in results for bucket in result["buckets"]})
  axes.set_xticks(ticks, [_tokens_label(tick) for tick in ticks])
  axes.set_xlim(0, max(result["buckets"][-1]["stop"] for _, result in results))
  axes.set_xlabel("position in the document or window (tokens; k = 1,024)")
  axes.set_ylabel(f"bits per {_common_unit(_unit(result) for _, result in results)}")
  save_with_legend(figure, axes, out)


def plot_answers(eval_files: Sequence[Path], out: Path) -> None:
  """Accuracy by each label of a task, from the JSON files that eval.py writes; a panel a label, a curve a run."""
  results = [(path, read_result(path)) for path in eval_files]
  for path, result in results:
    if "accuracy" not in result or result["accuracy"] is None:
      raise ValueError(f"{path} is not of a task with answers; use --what=position.")
  labels = list(dict.fromkeys(group["label"] for _, result in results for group in result["answers"]))
  names = [path.resolve().parent.name for path, _ in results]
  figure, panels = new_figure(_title("Answers of", names), size=(5 * len(labels), 4.2), widths=(1,) * len(labels))
  for label, axes in zip(labels, panels, strict=True):
    for index, (name, (_, result)) in enumerate(zip(names, results, strict=True)):
      groups = [group for group in result["answers"] if group["label"] == label]
      axes.plot(
        [(group["first"] * group["last"]) ** 0.5 for group in groups], [100 * group["accuracy"] for group in groups],
        marker="o", color=COLORS[index % len(COLORS)], label=f"{name}: {result['accuracy']:.1%}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-2, 102)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%)")
    axes.grid(True, alpha=0.25)
  panels[0].legend(frameon=False, fontsize="small")
  save_figure(figure, out)


def _by_series(evaluations: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  series: dict[str, list[dict[str, Any]]] = {}
  for line in evaluations:
    label = f"{line['split']}, {line['protocol']}" if "protocol" in line else line["split"]
    if line["bits_per_byte"] is not None:
      series.setdefault(label, []).append(line)
  return series


def _points(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
  """(steps, bits per byte) without the updates whose loss was not finite."""
  pairs = [(line["step"], line["bits_per_byte"]) for line in lines if line["bits_per_byte"] is not None]
  return tuple(np.asarray(pairs, np.float64).reshape(-1, 2).T)


def _readable_range(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
  late = values[steps >= _START_SHARE * steps.max()]
  margin = 0.08 * max(late.max() - late.min(), 0.1)
  return late.min() - margin, late.max() + margin


def _tokens_label(tokens: int) -> str:
  return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)


def _title(what: str, names: list[str]) -> str:
  """Names that do not fit are left to the legend."""
  names = list(dict.fromkeys(names))
  listed = ", ".join(names)
  return f"{what} {listed if len(listed) <= _TITLE_WIDTH else f'{len(names)} runs'}"


def new_figure(
  title: str, *, size: tuple[float, float] = (8, 4.5), widths: Sequence[float] = (1,)
) -> tuple[Figure, list[Any]]:
  """A figure of its own, without pyplot (nothing global, no display), and plots side by side of relative `widths`."""
  figure = Figure(figsize=size, dpi=120, layout="constrained")
  FigureCanvasAgg(figure)
  plots = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
  plots[0].set_title(title, loc="left")
  for axes in plots:
    axes.spines[["top", "right"]].set_visible(False)
  return figure, plots


def save_figure(figure: Figure, out: Path) -> None:
  """Writes the PNG, and the folder it lies in."""
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out)


def _unit(record: dict[str, Any]) -> str:
  return record["unit"] if "unit" in record else "byte"  # files from before images were known


def _run_unit(workdir: Path) -> str:
  path = workdir / "run.json"
  return _unit(json.loads(path.read_text())) if path.exists() else "byte"


def _common_unit(units: Iterable[str]) -> str:
  found = sorted(set(units))
  if len(found) > 1:
    raise ValueError("bits per byte and bits per dim do not share an axis; plot texts and images apart.")
  return found[0]


def save_with_legend(figure: Figure, axes: Any, out: Path) -> None:
  """One plot with a grid and its legend, a long one beside it."""
  axes.grid(True, alpha=0.25)
  handles, names = axes.get_legend_handles_labels()
  if len(names) > _MOST_INSIDE:
    figure.set_size_inches(figure.get_figwidth() + 3, figure.get_figheight())
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize="small")
  else:
    axes.legend(frameon=False, fontsize="small")
  save_figure(figure, out)
