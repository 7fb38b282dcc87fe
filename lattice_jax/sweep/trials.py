"""A trial, and its record `trial.json` in its workdir."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lattice_jax.files import Record, read_object, replace_json
from lattice_jax.metrics import read_metric_lines
from lattice_jax.run_file import read_run
from lattice_jax.sweep.parameters import Value
from lattice_jax.writers.base import series

STARTED, DONE, FAILED = "started", "done", "failed"


@dataclass(frozen=True)
class Trial:
  """One setting of all parameters; `id` is its folder and WANDB_RUN_ID."""

  index: int
  id: str
  values: dict[str, Value]


@dataclass(frozen=True)
class TrialRecord(Trial):
  """What became of a trial. error: why it failed, in one line. seconds: how long its last process took."""

  arguments: list[str]
  state: str
  error: str | None = None
  seconds: float | None = None

  def write(self, folder: Path) -> None:
    replace_json(folder / "trial.json", asdict(self))


def read_record(folder: Path) -> TrialRecord | None:
  """The record in a trial's folder, or None if the trial was not started. Raises ValueError if it is damaged."""
  path = folder / "trial.json"
  if not path.exists():
    return None
  record = read_object(path)
  optional = ("error", "seconds")  # younger than the others
  if {*record, *optional} != set(_FIELDS) or not all(_FIELDS[name](value) for name, value in record.items()):
    raise ValueError(f"{path} is not the record of a trial; remove {folder}, and the trial starts anew.")
  return TrialRecord(**record)


_FIELDS: dict[str, Callable[[Any], bool]] = {
  "index": lambda value: type(value) is int and value >= 0,
  "id": lambda value: isinstance(value, str),
  "values": lambda value: isinstance(value, dict),
  "arguments": lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value),
  "state": lambda value: value in (STARTED, DONE, FAILED),
  "error": lambda value: value is None or isinstance(value, str),
  "seconds": lambda value: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)),
}


def read_records(workdir: Path) -> list[TrialRecord]:
  """The records of all started trials, in order."""
  records = [read_record(path.parent) for path in workdir.glob("*/trial.json")]
  return sorted(records, key=lambda record: record.index)


def check_arguments(record: TrialRecord | None, arguments: list[str], folder: Path) -> None:
  """Raises ValueError if the folder holds a trial with other arguments."""
  if record is None or record.arguments == arguments:
    return
  old = [part for part in record.arguments if part not in arguments]
  new = [part for part in arguments if part not in record.arguments]
  raise ValueError(
    f"{folder} holds a trial with other arguments ({' '.join(old) or 'fewer'} → {' '.join(new) or 'fewer'}); "
    "choose another --workdir, or remove that folder.")


def read_evaluation(folder: Path, metric: str) -> tuple[float, Record]:
  """(metric, its line of metrics.jsonl) of a trial's last evaluation. Raises ValueError if there is none."""
  run = read_run(folder, "unit")
  known: dict[str, tuple[float, Record]] = {}
  for line in read_metric_lines(folder / "metrics.jsonl"):
    if "split" in line:
      known |= {name: (value, line) for name, value in series(line, run["unit"]).items()}
  if metric not in known:
    raise ValueError(
      f"{folder}/metrics.jsonl has no {metric}; it has {', '.join(sorted(known)) or 'no evaluation'}.")
  return known[metric]
