"""A trial, and its record `trial.json` in its workdir."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lattice_jax.files import Record, replace_json
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
  """The record in a trial's folder, or None if the trial was not started."""
  path = folder / "trial.json"
  return TrialRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


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
