"""The results of a sweep for each setting: mean and spread over seeds, best first."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config_checks import parse_config
from lattice_jax.files import Record, to_jsonl
from lattice_jax.markdown import markdown_table
from lattice_jax.metrics import read_metric_lines
from lattice_jax.models.state_size import StateBytes, describe_state, state_bytes
from lattice_jax.run_file import read_run
from lattice_jax.sweep.labels import is_seed, short_names, short_values
from lattice_jax.sweep.parameters import Choice, Value
from lattice_jax.sweep.sweep_file import Sweep
from lattice_jax.sweep.trials import DONE, FAILED, TrialRecord, read_evaluation, read_records

Setting = tuple[tuple[str, Value], ...]


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
    """The parameters by which rows differ: their values, in the file's order or ascending, and the text of each."""
    shown = {}
    for parameter in self.sweep.parameters:
      found = {dict(row.setting)[parameter.name] for row in self.rows if not is_seed(parameter.name)}
      if len(found) > 1:
        ordered = [value for value in parameter.values if value in found] if isinstance(parameter, Choice) \
          else sorted(found)
        shown[parameter.name] = short_values(ordered)
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

  def label(self, row: SettingRow) -> str:
    """The row's setting, as in codes=256,window=64."""
    return ",".join(f"{self.names[name]}={shown[dict(row.setting)[name]]}" for name, shown in self.varying.items())

  def difference(self, row: SettingRow, of: Callable[[TrialResult], float]) -> Spread | None:
    """The difference to the reference over common seeds; None for the reference itself or without common seeds."""
    if self.reference is None or row is self.reference:
      return None
    ours, theirs = row.values(of), self.reference.values(of)
    pairs = [ours[seeds] - theirs[seeds] for seeds in ours if seeds in theirs]
    return spread(pairs) if pairs else None


def make_table(
    sweep: Sweep, workdir: Path, *, total: int, command: str, beyond: Sequence[int], against: str) -> SweepTable:
  """against: "" for no differences, "first" for those to the best row, or the label of a row, as in codes=256."""
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
  if not against or not rows:
    return table
  return SweepTable(**vars(table) | {"reference": _find(table, against)})


def _is_of(sweep: Sweep, record: TrialRecord) -> bool:
  """Whether the trial belongs to the sweep's present file; a folder may hold trials of an older one."""
  parameters = {parameter.name: parameter for parameter in sweep.parameters}
  return (
    parameters.keys() == record.values.keys() and record.arguments == sweep.arguments(record.values)
    and all(record.values[name] in parameter.values for name, parameter in parameters.items()
            if isinstance(parameter, Choice)))


def _find(table: SweepTable, against: str) -> SettingRow:
  labels = {table.label(row): row for row in table.rows} | {"first": table.rows[0]}
  if against not in labels:
    raise ValueError(f"--against={against} is not one of {', '.join(labels)}.")
  return labels[against]


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


def records(table: SweepTable) -> list[dict[str, Any]]:
  """One record per row, flat except for the list of results by seed."""
  return [_record(table, row) for row in table.rows]


def _record(table: SweepTable, row: SettingRow) -> dict[str, Any]:
  record: dict[str, Any] = dict(row.setting) | {"trials": len(row.results)}
  for name, of in table.columns.items():
    record |= _fields(name, row.spread(of))
    if table.reference is not None:
      record |= _fields(f"{name} difference", table.difference(row, of))
  return record | {
    "parameters": row.results[0].parameters, "state": row.results[0].state,
    "state_bytes": row.results[0].bytes and row.results[0].bytes.memory,
    "tail_bytes": row.results[0].bytes and row.results[0].bytes.tail,
    "tokens_per_second": row.tokens_per_second,
    "commit": ", ".join(sorted({str(result.commit) for result in row.results})), "command": table.command,
    "by_seed": [
      dict(result.seeds) | {name: of(result) for name, of in table.columns.items()} for result in row.results]}


def _fields(name: str, value: Spread | None) -> dict[str, float | None]:
  return {f"{name} mean": value.mean if value else None, f"{name} sd": value.sd if value else None}


def format_table(table: SweepTable) -> str:
  """The table in Markdown, how it was made, and what is missing."""
  head = [*table.names.values(), "trials"]
  for name in table.columns:
    head += [name] if table.reference is None else [name, f"Δ to {table.label(table.reference)}"]
  has_state = any(row.results[0].state for row in table.rows)
  head += ["parameters", *["state of a layer", "bytes between tokens"] * has_state, "tokens/s"]
  lines = [head]
  for row in table.rows:
    cells = [shown[dict(row.setting)[name]] for name, shown in table.shown.items()] + [str(len(row.results))]
    for of in table.columns.values():
      cells.append(row.spread(of).text())
      if table.reference is not None:
        difference = table.difference(row, of)
        cells.append(difference.text("+") if difference else "–")
    first = row.results[0]
    state = [first.state, first.bytes.text() if first.bytes else ""] * has_state
    cells += [f"{first.parameters:,}", *state, f"{row.tokens_per_second:,.0f}"]
    lines.append(cells)
  origin = (f"Trained at commit {', '.join(table.commits) or 'none yet'}. Mean ± sample standard deviation over seeds; "
            "tokens/s: median over updates.")
  if has_state:
    origin += (" State of a layer: floating-point numbers of a row by part, heads together; bytes between tokens: of "
               "all that a layer keeps of a row from one token to the next; «tail»: of the convolutions.")
  text = [f"# {table.sweep.title}", "", f"    {table.command}", "", origin, "",
          markdown_table(lines, "l" * len(table.varying) + "r" * (len(head) - len(table.varying)))]
  if table.failed or table.unfinished:
    text += ["", f"{table.unfinished} trial(s) not finished, {len(table.failed)} failed."]
    text += [f"- {record.id}: {record.error}" for record in table.failed]
  if table.foreign:
    text += ["", f"{table.foreign} trial(s) in the folder are not of this sweep file and are left out."]
  return "\n".join(text) + "\n"


def write_table(table: SweepTable, folder: Path) -> None:
  """Writes table.md, table.jsonl and table.csv."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = records(table)
  (folder / "table.md").write_text(format_table(table), encoding="utf-8")
  (folder / "table.jsonl").write_text(to_jsonl(rows), encoding="utf-8")
  text = io.StringIO()
  if rows:
    names = [name for name in rows[0] if name != "by_seed"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  (folder / "table.csv").write_text(text.getvalue(), encoding="utf-8")
