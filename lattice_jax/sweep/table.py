"""The results of a sweep for each setting: mean and spread over seeds, best first."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config_checks import parse_config
from lattice_jax.files import Record
from lattice_jax.metrics import read_metric_lines
from lattice_jax.models.state_size import StateBytes, describe_state, state_bytes
from lattice_jax.run_file import read_run
from lattice_jax.sweep.labels import is_seed, short_names, short_values
from lattice_jax.sweep.parameters import Choice, Value
from lattice_jax.sweep.sweep_file import Sweep
from lattice_jax.sweep.trials import DONE, FAILED, TrialRecord, read_evaluation, read_records

Setting = tuple[tuple[str, Value], ...]
_FIRST = "first"  # the name of the best row


@dataclass(frozen=True)
class TrialResult:
  """The result of a finished trial. beyond: bits per byte or dim at the positions from the key on.

  memory: its name, as in lattice or window+lattice; state: the numbers that a layer holds. Both are "" for a program
  that is not ours, whose `bytes` are None.
  """

  seeds: Setting
  metric: float
  beyond: dict[int, float]
  parameters: int
  memory: str
  state: str
  bytes: StateBytes | None
  tokens_per_second: float
  commit: str | None


@dataclass(frozen=True)
class SettingRow:
  """All results of one setting of the parameters other than seeds."""

  setting: Setting
  results: tuple[TrialResult, ...]

  def values(self, of: Callable[[TrialResult], float]) -> dict[Setting, float]:
    """The values of a quantity by seeds."""
    return {result.seeds: of(result) for result in self.results}

  def spread(self, of: Callable[[TrialResult], float]) -> Spread:
    return spread(list(self.values(of).values()))

  @property
  def tokens_per_second(self) -> float:
    return statistics.median(result.tokens_per_second for result in self.results)


@dataclass(frozen=True)
class Spread:
  """Mean and sample standard deviation; None for a single value."""

  mean: float
  sd: float | None

  def text(self, sign: str = "-") -> str:
    """sign: "+" shows the sign of positive numbers too."""
    mean = f"{round(self.mean, 4) + 0.0:{sign}.4f}"  # + 0.0 turns -0.0 into 0.0
    return mean if self.sd is None else f"{mean} ± {self.sd:.4f}"


def spread(values: Sequence[float]) -> Spread:
  """The spread of at least one value."""
  return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class SweepTable:
  """The results of a sweep so far.

  reference: the row to which differences are taken, between trials of equal seeds. foreign: the number of trials in the
  folder that do not belong to the sweep's present file; they are left out.
  """

  sweep: Sweep
  command: str
  rows: tuple[SettingRow, ...]
  beyond: tuple[int, ...]
  reference: SettingRow | None
  failed: tuple[TrialRecord, ...]
  unfinished: int
  foreign: int

  @property
  def columns(self) -> dict[str, Callable[[TrialResult], float]]:
    """The measured quantities by name."""
    return {self.sweep.metric: lambda result: result.metric} | {
      f"bits beyond {start}": lambda result, start=start: result.beyond[start] for start in self.beyond}

  @property
  def varying(self) -> dict[str, dict[Value, str]]:
    """The parameters by which rows differ: their values, in the file's order or ascending, and the text of each.

    All values of the file where it lists them, so that a row is called the same from the first trial to the last.
    """
    shown = {}
    for parameter in self.sweep.parameters:
      if is_seed(parameter.name):
        continue
      found = parameter.values if isinstance(parameter, Choice) else sorted(
        {dict(row.setting)[parameter.name] for row in self.rows})
      if len(found) > 1:
        shown[parameter.name] = short_values(found)
    return shown

  @property
  def names(self) -> dict[str, str]:
    """Short names of the varying parameters."""
    return short_names(list(self.varying))

  @property
  def commits(self) -> list[str]:
    """The commits of the code that trained."""
    return sorted({str(result.commit) for row in self.rows for result in row.results})

  @property
  def shown(self) -> dict[str, dict[Value, str]]:
    """`varying`, with the memory's name added to a value called base."""
    return {name: {value: self._with_memory(name, value, text) for value, text in texts.items()}
            for name, texts in self.varying.items()}

  def _with_memory(self, name: str, value: Value, text: str) -> str:
    memories = {row.results[0].memory for row in self.rows if dict(row.setting)[name] == value}
    return f"{memories.pop()} (base)" if text == "base" and len(memories) == 1 and "" not in memories else text

  def label(self, setting: Setting) -> str:
    """A row's setting, as in codes=256,window=64."""
    return ",".join(f"{self.names[name]}={shown[dict(setting)[name]]}" for name, shown in self.varying.items())

  def difference(self, row: SettingRow, of: Callable[[TrialResult], float]) -> Spread | None:
    """The difference to the reference over common seeds; None for the reference itself or without common seeds."""
    if self.reference is None or row is self.reference:
      return None
    ours, theirs = row.values(of), self.reference.values(of)
    pairs = [ours[seeds] - theirs[seeds] for seeds in ours if seeds in theirs]
    return spread(pairs) if pairs else None


def make_table(
    sweep: Sweep, workdir: Path, *, total: int, command: str, beyond: Sequence[int], against: str) -> SweepTable:
  """against: "" for no differences, "first" for those to the best row, or the label of a row, as in codes=256.

  There are none either while no trial of that row is done.
  """
  found = read_records(workdir)
  records = [record for record in found if _is_of(sweep, record)]
  done = [record for record in records if record.state == DONE]
  by_setting: dict[Setting, list[TrialResult]] = {}
  for record in done:
    setting = tuple(item for item in record.values.items() if not is_seed(item[0]))
    by_setting.setdefault(setting, []).append(_read_result(record, workdir / record.id, sweep, beyond))
  rows = sorted(
    (SettingRow(setting, tuple(results)) for setting, results in by_setting.items()),
    key=lambda row: statistics.fmean(row.values(lambda result: result.metric).values()), reverse=sweep.maximize)
  failed = tuple(record for record in records if record.state == FAILED)
  table = SweepTable(
    sweep, command, tuple(rows), tuple(beyond), None, failed, unfinished=total - len(done) - len(failed),
    foreign=len(found) - len(records))
  check_against(sweep, against, table)
  labels = {table.label(row.setting): row for row in reversed(rows)} | {_FIRST: rows[0] if rows else None}
  return SweepTable(**vars(table) | {"reference": labels[against] if against in labels else None})


def check_against(sweep: Sweep, against: str, table: SweepTable | None = None) -> None:
  """Raises ValueError if no row is called so, nor will be; a search without a list of values is known by its table."""
  table = table or SweepTable(sweep, "", (), (), None, (), 0, 0)
  settings = [row.setting for row in table.rows]
  varied = [parameter for parameter in sweep.parameters if not is_seed(parameter.name)]
  if all(isinstance(parameter, Choice) for parameter in varied):
    settings = [
      tuple(zip([parameter.name for parameter in varied], values, strict=True))
      for values in itertools.product(*(parameter.values for parameter in varied))]
  elif not settings:
    return
  labels = [table.label(setting) for setting in settings]
  if against not in ("", _FIRST, *labels):
    raise ValueError(f"--against={against} is not one of {', '.join(filter(None, [*labels, _FIRST]))}.")


def _is_of(sweep: Sweep, record: TrialRecord) -> bool:
  """Whether the trial belongs to the sweep's present file; a folder may hold trials of an older one."""
  parameters = {parameter.name: parameter for parameter in sweep.parameters}
  return (
    parameters.keys() == record.values.keys() and record.arguments == sweep.arguments(record.values)
    and all(record.values[name] in parameter.values for name, parameter in parameters.items()
            if isinstance(parameter, Choice)))


def _read_result(record: TrialRecord, folder: Path, sweep: Sweep, beyond: Sequence[int]) -> TrialResult:
  metric, line = read_evaluation(folder, sweep.metric)
  run = read_run(folder, "parameters", "git_commit")
  memory, state, num_bytes = _memory_of(run)
  speeds = [line["tokens_per_second"] for line in read_metric_lines(folder / "metrics.jsonl") if "split" not in line]
  return TrialResult(
    seeds=tuple(item for item in record.values.items() if is_seed(item[0])), metric=metric,
    beyond={start: bits_beyond(line, start, folder) for start in beyond}, parameters=run["parameters"],
    memory=memory, state=state, bytes=num_bytes, tokens_per_second=statistics.median(speeds),
    commit=run["git_commit"])


def _memory_of(run: dict[str, Any]) -> tuple[str, str, StateBytes | None]:
  if "config" not in run:
    return "", "", None
  config = parse_config(run["config"])
  sizes = config.model, config.data.seq_len
  return "+".join(config.model.pattern), describe_state(*sizes), state_bytes(*sizes)


def bits_beyond(line: Record, start: int, folder: Path) -> float:
  """Bits per byte of all targets of an evaluation whose input has position `start` or a later one."""
  starts = [bucket["start"] for bucket in line["buckets"]]
  if start not in starts:
    raise ValueError(f"--beyond={start}: the loss of {folder} is known by position from {', '.join(map(str, starts))}; "
                     "use one of them.")
  later = [bucket for bucket in line["buckets"] if bucket["start"] >= start and bucket["tokens"]]
  tokens = sum(bucket["tokens"] for bucket in later)
  if not tokens:
    raise ValueError(f"--beyond={start}: {folder} has no target at position {start} or later.")
  return sum(bucket["bits_per_byte"] * bucket["tokens"] for bucket in later) / tokens
