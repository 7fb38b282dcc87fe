"""Results of rows at sample scale: from the folders of this machine, from other runs, and stored ones.

A result counts where its fingerprint is that of today's config, code and data, whoever made it and when; any other is
kept and shown as what it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lattice_jax.domains import did_you_mean
from lattice_jax.files import replace_json
from lattice_jax.reproduce.fingerprint import Fingerprint, of_run
from lattice_jax.reproduce.readers import Values
from lattice_jax.reproduce.rows import Row, Train
from lattice_jax.reproduce.runner import is_done
from lattice_jax.reproduce.units import Unit, Units, read_record
from lattice_jax.run_file import FILE, read_run
from lattice_jax.source_code import commit_sources

RESULTS = "results.json"


@dataclass(frozen=True)
class Result:
  """What one unit says of one row. readings: by repetition. minutes: of all processes that made it."""

  unit: str
  fingerprint: dict[str, str]
  readings: Values
  command: str
  commit: str | None
  machine: str
  minutes: float


@dataclass(frozen=True)
class RowResult:
  """of_today: the results whose fingerprint is today's. earlier: stored ones of other fingerprints. units: wanted."""

  of_today: tuple[Result, ...]
  earlier: tuple[Result, ...]
  units: int

  @property
  def readings(self) -> Values:
    """Of today's results; {} where there is none."""
    return {name: value for result in self.of_today for name, value in result.readings.items()}

  @property
  def is_whole(self) -> bool:
    return len(self.of_today) == self.units


class Store:
  """The stored results of a folder, results.json, by table and row."""

  def __init__(self, folder: Path):
    self._path = folder / RESULTS
    self._rows: dict[str, list[dict[str, Any]]] = {}
    if self._path.exists():
      self._rows = json.loads(self._path.read_text(encoding="utf-8"))

  def results(self, table: str, row: str) -> tuple[Result, ...]:
    key = f"{table}/{row}"
    return tuple(Result(**fields) for fields in self._rows[key]) if key in self._rows else ()

  def put(self, table: str, row: str, result: RowResult) -> None:
    """Today's results, and those of other fingerprints for units that have none of today's."""
    new = {one.unit for one in result.of_today}
    kept = [*result.of_today, *(one for one in result.earlier if one.unit not in new)]
    if kept:
      self._rows[f"{table}/{row}"] = [asdict(one) for one in kept]

  def write(self) -> None:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(self._path, dict(sorted(self._rows.items())))


class Collector:
  """Finds the results of rows. others: folders of runs that train.py made by itself.

  problems: sentences about finished runs in which a row's figure is not there.
  """

  def __init__(self, units: Units, store: Store, others: Sequence[Path] = ()):
    self._units, self._store = units, store
    needed = ("config", "data_fingerprint", "git_commit", "history")
    self._others = {folder: read_run(folder, *needed) for folder in find_runs(others)}
    self._prints: dict[tuple[Path, str], Fingerprint | None] = {}
    self.problems: list[str] = []

  def missing(self, unit: Unit, rows: Sequence[tuple[str, Row]]) -> bool:
    """Whether one of the rows, each with its table's name, has no result of this unit yet."""
    return any(
      not any(one.unit == unit.name for one in self.row(table, row).of_today)
      for table, row in rows if row.sample and row.sample.measurement == unit.measurement.name)

  def row(self, table: str, row: Row) -> RowResult:
    """Raises ValueError where the unit's config or data cannot be read."""
    stored = self._store.results(table, row.name)
    if row.sample is None:
      return RowResult((), stored, 0)
    units = self._units.of(row.sample.measurement)
    found = []
    for unit in units:
      same = [one for one in stored if one.unit == unit.name and one.fingerprint == asdict(unit.fingerprint)]
      result = self._from_folder(unit, row) or self._from_others(unit, row) or (same[0] if same else None)
      if result is not None:
        found.append(result)
    todays = {unit.name: asdict(unit.fingerprint) for unit in units}
    earlier = tuple(one for one in stored if one.unit not in todays or one.fingerprint != todays[one.unit])
    return RowResult(tuple(found), earlier, len(units))

  def _from_folder(self, unit: Unit, row: Row) -> Result | None:
    if not is_done(unit):
      return None
    record = read_record(unit.folder)
    try:
      readings = row.sample.reader.read({unit.name: unit.folder})
    except (ValueError, LookupError) as error:
      self.problems.append(f"row {row.name}, {unit}: {error}")
      return None
    return Result(
      unit.name, record.fingerprint, readings, record.command, record.commit, record.machine, record.seconds / 60)

  def _from_others(self, unit: Unit, row: Row) -> Result | None:
    make = unit.measurement.make
    if not isinstance(make, Train):
      return None
    for folder, run in self._others.items():
      if self._print_of(folder, make.init_from) != unit.fingerprint:
        continue
      try:
        readings = row.sample.reader.read({unit.name: folder})
      except ValueError:
        continue  # it has not been evaluated
      return Result(
        unit.name, asdict(unit.fingerprint), readings, " ".join(["python", *run["command"]]), run["git_commit"],
        ", ".join(run["devices"]), 0.0)
    return None

  def _print_of(self, folder: Path, start: str) -> Fingerprint | None:
    """None where the code of the run's commit is not known."""
    if (folder, start) not in self._prints:
      run = self._others[folder]
      is_of_one_code = not any("git_commit" in start["changes"] for start in run["history"])
      sources = commit_sources(run["git_commit"] or "") if is_of_one_code else None
      try:
        found = of_run(run, start, sources) if sources is not None else None
      except ValueError:  # a module of today's was not there, or the config is of another time
        found = None
      self._prints[folder, start] = found
    return self._prints[folder, start]


def find_runs(folders: Sequence[Path]) -> list[Path]:
  """The workdirs in these folders, which may be workdirs themselves. Raises ValueError where a folder holds none."""
  found = []
  for folder in folders:
    runs = sorted({path.parent for pattern in (FILE, f"*/{FILE}", f"*/*/{FILE}") for path in folder.glob(pattern)})
    if not runs:
      near = did_you_mean(folder.name, [path.name for path in folder.parent.glob("*")])
      raise ValueError(f"--workdirs={folder} holds no run of train.py.{near}")
    found += runs
  return found
