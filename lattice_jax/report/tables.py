"""The tables of a report, as cells with the values by which they are sorted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from lattice_jax.report.curves import evaluations_of, seconds_of, values_of
from lattice_jax.report.workdir import Run

_LATE_SHARE = 0.05  # of the updates, over which the training loss is averaged
_MOST_FIELDS = 6  # that differ, for columns among the results


@dataclass(frozen=True)
class Cell:
  """A cell. key: what it is sorted by, by default its text; run: the number of the run that it is about."""

  text: str
  key: float | None = None
  run: int | None = None


@dataclass(frozen=True)
class Table:
  """head: the columns; rows of as many cells. runs: the run that each row is about, or None."""

  head: list[Cell]
  rows: list[list[Cell]]
  runs: list[int | None]

  @property
  def _columns(self) -> list[list[Cell]]:
    return [[row[column] for row in self.rows] for column in range(len(self.head))]

  def without_empty(self) -> Table:
    """Without columns of which no row has anything."""
    kept = [number for number, column in enumerate(self._columns) if any(cell.text for cell in column)]
    return Table([self.head[n] for n in kept], [[row[n] for n in kept] for row in self.rows], self.runs)

  def html(self, name: str, *, is_runs: bool = False) -> str:
    """is_runs: each row gets a box that shows or hides its run."""
    heads = "<th></th>" * is_runs + "".join(
      f'<th{_about(cell)}{_number_class(column)} aria-sort="none"><button type="button">{escape(cell.text)}</button>'
      "</th>" for cell, column in zip(self.head, self._columns, strict=True))
    lines = []
    for cells, run in zip(self.rows, self.runs, strict=True):
      box = (f'<td><input type="checkbox" checked aria-label="show {escape(cells[0].text)}"><svg class="swatch" '
             'viewBox="0 0 28 8"></svg></td>') if is_runs else ""
      about = "" if run is None else f' data-run="{run}"'
      lines.append(f"<tr{about}>{box}{''.join(map(_cell, cells))}</tr>")
    return (
      f'<div class="wide"><table class="sortable" id="{name}"><thead><tr>{heads}</tr></thead>'
      f"<tbody>{''.join(lines)}</tbody></table></div>")


def differing_fields(runs: Sequence[Run]) -> list[str]:
  """The fields of the config in which the runs differ, where a run may also lack one."""
  with_config = [run for run in runs if run.config]
  names = dict.fromkeys(name for run in with_config for name in run.config)
  return [name for name in names if len({_field(run, name) for run in with_config}) > 1]


def results_table(runs: Sequence[Run]) -> Table:
  """A row for each run: what distinguishes it, how far it is, and how good and fast it was."""
  fields = differing_fields(runs)
  fields = fields if len(fields) <= _MOST_FIELDS else []
  columns = list(dict.fromkeys(
    (label, metric, unit) for run in runs for unit, metric in _units(run).items()
    for label in evaluations_of(run, metric)))
  shown = {name: name.rpartition(".")[2] for name in fields}
  shown = {name: short if list(shown.values()).count(short) == 1 else name for name, short in shown.items()}
  head = ["run", *shown.values(), "update", "training loss"]
  head += [f"{label}: {which} {unit}" for label, _, unit in columns for which in ("last", "best")]
  head += ["tokens/s", "minutes", "parameters"]
  rows = [[Cell(run.name), *(_value(_field(run, name)) for name in fields), *_figures(run, columns)] for run in runs]
  return Table(list(map(Cell, head)), rows, list(range(len(runs))))


def _units(run: Run) -> dict[str, str]:
  """The figures of an evaluation: their names in `metrics.jsonl` by what they count."""
  return {f"bits/{run.unit}": "bits_per_byte", "right answers": "accuracy"}


def _figures(run: Run, columns: Sequence[tuple[str, str, str]]) -> list[Cell]:
  cells = [_progress(run), _float(late_loss(run), ".4f")]
  for label, metric, unit in columns:
    series = evaluations_of(run, metric) if unit in _units(run) else {}
    values = [line[metric] for line in series[label]] if label in series else []
    best = (max if metric == "accuracy" else min)(values) if values else None
    form = ".1%" if metric == "accuracy" else ".4f"
    cells += [_float(values[-1] if values else None, form), _float(best, form)]
  parameters = run.description["parameters"] if "parameters" in run.description else None
  seconds = seconds_of(run)
  return [*cells, _float(median_speed(run), ",.0f"), _float(seconds / 60 if seconds else None, ",.1f"),
          _float(parameters, ",.0f")]


def late_loss(run: Run) -> float | None:
  """The mean training loss of the last updates."""
  values_T = values_of(run.updates, "loss")[-max(1, round(_LATE_SHARE * len(run.updates))):]
  return float(np.nanmean(values_T)) if np.isfinite(values_T).any() else None


def median_speed(run: Run) -> float | None:
  """Tokens per second, the median of updates."""
  values_T = values_of(run.updates, "tokens_per_second")
  return float(np.nanmedian(values_T)) if np.isfinite(values_T).any() else None


def _progress(run: Run) -> Cell:
  step = run.updates[-1]["step"] if run.updates else 0
  total = run.config["train.steps"] if "train.steps" in run.config else None
  return Cell(f"{step:,} of {total:,}" if total else f"{step:,}", step)


def config_table(runs: Sequence[Run]) -> Table | None:
  """The fields that differ, with runs beside them, or below one another where they are more; None if none differs."""
  fields = differing_fields(runs)
  if not fields:
    return None
  if len(runs) > len(fields):
    rows = [[Cell(run.name), *(_value(_field(run, name)) for name in fields)] for run in runs]
    return Table([Cell("run"), *map(Cell, fields)], rows, list(range(len(runs))))
  head = [Cell("field"), *(Cell(run.name, run=index) for index, run in enumerate(runs))]
  rows = [[Cell(name), *(_value(_field(run, name), index) for index, run in enumerate(runs))] for name in fields]
  return Table(head, rows, [None] * len(rows))


def common_config(runs: Sequence[Run]) -> Table:
  """The fields that have one value in all runs."""
  differing = set(differing_fields(runs))
  known = next((run.config for run in runs if run.config), {})
  rows = [[Cell(name), _value(value)] for name, value in known.items() if name not in differing]
  return Table([Cell("field"), Cell("value")], rows, [None] * len(rows))


def evaluations_table(runs: Sequence[Run]) -> Table:
  """The last evaluation of each kind during training, and what eval.py wrote."""
  head = ["run", "where", "split", "protocol", "update", "window", "settings", "bits per unit", "words: perplexity",
          "right answers", "targets", "tokens/s"]
  rows, about = [], []
  for index, run in enumerate(runs):
    last = {(line["split"], line["protocol"] if "protocol" in line else ""): line for line in run.evaluations}
    for where, line in [*(("training", line) for line in last.values()), *run.results]:
      if "split" in line and "bits_per_byte" in line:
        rows.append([Cell(run.name), Cell(where), *_evaluation(line)])
        about.append(index)
  return Table(list(map(Cell, head)), rows, about).without_empty()


def _evaluation(line: dict[str, Any]) -> list[Cell]:
  def get(name: str) -> Any:
    return line[name] if name in line else None

  return [
    Cell(line["split"]), Cell(get("protocol") or ""), _float(get("step"), ",.0f"), _float(get("seq_len"), ",.0f"),
    Cell(", ".join(get("overrides") or [])), _float(line["bits_per_byte"], ".4f"),
    _float(get("word_perplexity"), ",.2f"), _float(get("accuracy"), ".1%"), _float(get("tokens"), ",.0f"),
    _float(get("tokens_per_second"), ",.0f")]


def environment_table(runs: Sequence[Run]) -> Table:
  """A row for each fact that is the same in all runs, and one for each value of those that are not."""
  rows, about = [], []
  facts = [_facts(run) for run in runs]
  for name in dict.fromkeys(name for fact in facts for name in fact):
    values: dict[str, list[int]] = {}
    for index, fact in enumerate(facts):
      if name in fact:
        values.setdefault(fact[name], []).append(index)
    for value, which in values.items():
      is_all = len(which) == len(runs)
      whose = "all" if is_all and len(runs) > 1 else ", ".join(runs[index].name for index in which)
      rows.append([Cell(name), Cell(value), Cell(whose)])
      about.append(which[0] if len(which) == 1 and not is_all else None)
  return Table([Cell("what"), Cell("value"), Cell("run")], rows, about)


def _facts(run: Run) -> dict[str, str]:
  known = run.description
  facts = {name: str(known[key]) for name, key in (
    ("commit", "git_commit"), ("fingerprint of the data", "data_fingerprint"), ("checkpoints", "checkpoints"))
    if known.get(key)}
  facts |= {name: ", ".join(f"{part} {value}" for part, value in known[name].items())
            for name in ("versions", "mesh") if name in known}
  if "devices" in known:
    facts["devices"] = ", ".join(map(str, known["devices"]))
  if "command" in known:
    facts["command"] = " ".join(["python", *map(str, known["command"])])
  for number, change in enumerate(known["history"] if "history" in known else [], start=1):
    facts[f"change {number}"] = json.dumps(change, ensure_ascii=False)
  return facts | {"folder": str(run.path)}


def _field(run: Run, name: str) -> str:
  if name not in run.config:
    return "–"
  value = run.config[name]
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(value: Any, run: int | None = None) -> Cell:
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
  try:
    return Cell(text, float(text), run)
  except ValueError:
    return Cell(text, None, run)


def _float(value: float | None, form: str) -> Cell:
  return Cell("") if value is None else Cell(f"{value:{form}}", float(value))


def _cell(cell: Cell) -> str:
  key = f' data-key="{cell.key!r}" class="number"' if cell.key is not None else ""
  return f"<td{key}{_about(cell)}>{escape(cell.text)}</td>"


def _number_class(column: Sequence[Cell]) -> str:
  return ' class="number"' if any(cell.key is not None for cell in column) else ""


def _about(cell: Cell) -> str:
  return "" if cell.run is None else f' data-run="{cell.run}"'
