"""Plots of runs: the loss over updates, the loss by position, and the accuracy of answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lattice_jax.inspect.names import known_run, result_names, run_names
from lattice_jax.metrics import read_metric_lines

_SMOOTHING_SHARE = 0.02  # width of the moving average over training updates, as a share of the run
_START_SHARE = 0.05  # share of the longest run whose high losses at the start may lie outside the plot
_TITLE_WIDTH = 60  # characters of the names in a title, at most
_MOST_INSIDE = 12  # names in a legend inside the plot; a longer one stands beside it
# Colours that colour-blind readers can tell apart; DIVERGING goes from blue to orange around a middle.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DIVERGING = LinearSegmentedColormap.from_list("blue_orange", ["#0b3c5d", "#0072b2", "#f7f7f7", "#e69f00", "#a64b00"])
_ANSWER_AXES = {"pairs": "pairs in the document", "distance": "distance from the pair to its query (tokens)"}
_LINES = ("-", "--", ":", "-.")  # the second takes over where the colours have run out, and so on


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """(training lines, evaluation lines) of a metrics.jsonl; evaluation lines are those with a "split"."""
  if not path.exists():
    raise ValueError(f"{path} does not exist; give the workdir of a run that trains.")
  lines = read_metric_lines(path)
  return [line for line in lines if "split" not in line], [line for line in lines if "split" in line]


def read_result(path: Path) -> dict[str, Any]:
  """Reads a JSON file that eval.py wrote."""
  result = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else {}
  if "buckets" not in result:
    raise ValueError(f"{path} is not a file that eval.py wrote; give one, such as RUN/eval_test_cold_*.json.")
  return result


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Mean over the last `width` values, fewer at the start."""
  sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  stop = np.arange(1, len(values) + 1)
  start = np.maximum(stop - width, 0)
  return (sums[stop] - sums[start]) / (stop - start)


def plot_loss(workdirs: Sequence[Path], out: Path) -> None:
  """Draws bits per byte or dim over the updates of runs: training smoothed and raw, evaluations as points."""
  names = run_names(workdirs)
  figure, (axes,) = new_figure(_title("Loss of", names))
  worth_reading = []  # (steps, values) that the vertical axis must show
  for index, workdir in enumerate(workdirs):
    train, evaluations = read_metrics(workdir / "metrics.jsonl")
    color, line, name = *line_style(index), names[index]
    step, value = _points(train)
    if not len(value):
      raise ValueError(f"{workdir}/metrics.jsonl has no training line yet; wait for the first updates.")
    smoothed = smooth(value, max(1, round(_SMOOTHING_SHARE * len(value))))
    axes.plot(step, value, color=color, alpha=0.2, linewidth=0.8)
    axes.plot(step, smoothed, color=color, linestyle=line, linewidth=1.8, label=f"{name}: training, smoothed")
    worth_reading.append((step, smoothed))
    for marker, (label, lines) in zip("osD^v<>", _by_series(evaluations).items(), strict=False):
      eval_step, points = _points(lines)
      axes.plot(
        eval_step, points, marker=marker, linestyle="none", markersize=6, color=color, markeredgecolor="black",
        label=f"{name}: {label}, last {points[-1]:.3f}")
      worth_reading.append((eval_step, points))
  axes.set_ylim(_readable_range(*map(np.concatenate, zip(*worth_reading, strict=True))))
  axes.set_xlim(left=0)
  axes.set_xlabel("training (optimizer updates)")
  axes.set_ylabel(f"bits per {_common_unit(_unit(known_run(path)) for path in workdirs)}")
  save_with_legend(figure, axes, out)


def plot_buckets(eval_files: Sequence[Path], out: Path) -> None:
  """Draws bits per byte or dim by position, from JSON files that eval.py wrote."""
  results = [read_result(path) for path in eval_files]
  names = run_names([path.parent for path in eval_files])
  figure, (axes,) = new_figure(_title("Loss by position of", names))
  labels = result_names(names, results, "bits_per_byte", "{:.3f}")
  # older files may hold empty buckets
  filled = [[bucket for bucket in result["buckets"] if bucket["tokens"]] for result in results]
  for index, (label, buckets) in enumerate(zip(labels, filled, strict=True)):
    edges, values = [buckets[0]["start"]], []
    for bucket in buckets:
      if bucket["start"] > edges[-1]:  # nothing was evaluated in between
        edges, values = [*edges, bucket["start"]], [*values, np.nan]
      edges, values = [*edges, bucket["stop"]], [*values, bucket["bits_per_byte"]]
    color, line = line_style(index)
    axes.stairs(values, edges, baseline=None, color=color, linestyle=line, linewidth=1.8, label=label)
  axes.set_xscale("symlog", base=2, linthresh=min(buckets[0]["stop"] for buckets in filled), linscale=1)
  ticks = sorted({bucket["start"] for buckets in filled for bucket in buckets})
  axes.set_xticks(ticks, [_tokens_label(tick) for tick in ticks])
  axes.set_xlim(0, max(buckets[-1]["stop"] for buckets in filled))
  axes.set_xlabel("position in the document or window (tokens; k = 1,024)")
  axes.set_ylabel(f"bits per {_common_unit(map(_unit, results))}")
  save_with_legend(figure, axes, out)


def plot_answers(eval_files: Sequence[Path], out: Path) -> None:
  """Draws accuracy by each label of a task, from JSON files that eval.py wrote; a panel per label, a curve per file."""
  results = [(path, read_result(path)) for path in eval_files]
  for path, result in results:
    if "accuracy" not in result or result["accuracy"] is None:
      raise ValueError(f"{path} is not the result of a task with answers; use --what=position.")
  labels = list(dict.fromkeys(group["label"] for _, result in results for group in result["answers"]))
  names = run_names([path.parent for path in eval_files])
  figure, panels = new_figure(_title("Answers of", names), size=(5 * len(labels), 4.2), widths=(1,) * len(labels))
  series = result_names(names, [result for _, result in results], "accuracy", "{:.1%}")
  for label, axes in zip(labels, panels, strict=True):
    for index, (name, (_, result)) in enumerate(zip(series, results, strict=True)):
      groups = [group for group in result["answers"] if group["label"] == label]
      axes.plot(
        [(group["first"] * group["last"]) ** 0.5 for group in groups], [100 * group["accuracy"] for group in groups],
        marker="o", color=line_style(index)[0], linestyle=line_style(index)[1], label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-2, 102)
    axes.set_xlabel(_ANSWER_AXES[label] if label in _ANSWER_AXES else label)
    axes.set_ylabel("right answers (%)")
    axes.grid(True, alpha=0.25)
  panels[0].legend(frameon=False, fontsize="small")
  save_figure(figure, out)


def line_style(index: int) -> tuple[str, str]:
  """(colour, line) of the curve with that number."""
  return COLORS[index % len(COLORS)], _LINES[index // len(COLORS) % len(_LINES)]


def _by_series(evaluations: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  series: dict[str, list[dict[str, Any]]] = {}
  for line in evaluations:
    label = f"{line['split']}, {line['protocol']}" if "protocol" in line else line["split"]
    if line["bits_per_byte"] is not None:
      series.setdefault(label, []).append(line)
  return series


def _points(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
  """(steps, bits per byte) of the lines whose loss is finite."""
  pairs = [(line["step"], line["bits_per_byte"]) for line in lines if line["bits_per_byte"] is not None]
  return tuple(np.asarray(pairs, np.float64).reshape(-1, 2).T)


def _readable_range(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
  late = values[steps >= _START_SHARE * steps.max()]
  margin = 0.08 * max(late.max() - late.min(), 0.1)
  return late.min() - margin, late.max() + margin


def _tokens_label(tokens: int) -> str:
  return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)


def _title(what: str, names: list[str]) -> str:
  """With the names if they fit; otherwise only the legend lists them."""
  names = list(dict.fromkeys(names))
  listed = ", ".join(names)
  return f"{what} {listed if len(listed) <= _TITLE_WIDTH else f'{len(names)} runs'}"


def new_figure(
  title: str, *, size: tuple[float, float] = (8, 4.5), widths: Sequence[float] = (1,)
) -> tuple[Figure, list[Any]]:
  """A figure without pyplot (no global state, no display) with plots of relative `widths` side by side."""
  figure = Figure(figsize=size, dpi=120, layout="constrained")
  plots = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
  plots[0].set_title(title, loc="left")
  for axes in plots:
    axes.spines[["top", "right"]].set_visible(False)
  return figure, plots


def panel_grid(number: int, size: tuple[float, float]) -> tuple[Figure, list[list[Any]]]:
  """A figure with `number` plots of `size` each, in rows of three to five that leave the fewest places empty."""
  columns = number if number <= 3 else min(range(3, 6), key=lambda columns: (-number % columns, -(-number // columns)))
  rows = -(-number // columns)
  figure = Figure(figsize=(size[0] * columns + 1.2, size[1] * rows + 0.6), dpi=120, layout="constrained")
  plots = list(figure.subplots(rows, columns, squeeze=False).flat)
  for axes in plots[number:]:
    axes.set_visible(False)
  return figure, [plots[start:min(start + columns, number)] for start in range(0, number, columns)]


def save_figure(figure: Figure, out: Path, *, dpi: float | str = "figure") -> Path:
  """Writes the PNG to `out`, makes its folder if needed, and returns `out`. dpi: by default the figure's own."""
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=dpi)
  return out


def _unit(record: dict[str, Any]) -> str:
  return record["unit"] if "unit" in record else "byte"  # older files have no unit, and are of text


def _common_unit(units: Iterable[str]) -> str:
  found = sorted(set(units))
  if len(found) > 1:
    raise ValueError("bits per byte and bits per dim do not share an axis; plot texts and images apart.")
  return found[0]


def save_with_legend(figure: Figure, axes: Any, out: Path) -> None:
  """Adds a grid and a legend, which stands beside the plot if it is long, and writes the PNG."""
  axes.grid(True, alpha=0.25)
  handles, names = axes.get_legend_handles_labels()
  if len(names) > _MOST_INSIDE:
    figure.set_size_inches(figure.get_figwidth() + 3, figure.get_figheight())
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize="small")
  else:
    axes.legend(frameon=False, fontsize="small")
  save_figure(figure, out)
