"""The runs of which measurements consist: one a seed, or one command; each in a folder named by its fingerprint."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lattice_jax.files import replace_json
from lattice_jax.reproduce import fingerprint as fingerprints
from lattice_jax.reproduce.fingerprint import Fingerprint
from lattice_jax.reproduce.readers import ONCE
from lattice_jax.reproduce.rows import Measurement, Train

FILE = "reproduce.json"
STARTED, DONE, FAILED = "started", "done", "failed"


@dataclass(frozen=True)
class Unit:
  """One run. name: its seed, or ONCE. folder: its own, where a run of the same fingerprint goes on."""

  measurement: Measurement
  name: str
  fingerprint: Fingerprint
  folder: Path

  def __str__(self) -> str:
    return self.measurement.name if self.name == ONCE else f"{self.measurement.name}, seed {self.name}"

  def words(self, runs: Sequence[Path] = ()) -> list[str]:
    """Its command behind `python`. runs: the folders of the runs that it reads."""
    make = self.measurement.make
    if isinstance(make, Train):
      start = [f"--init_from={make.init_from}"] if make.init_from else []
      fields = [f"--config.{text}" for text in fingerprints.seeded(make, int(self.name))]
      return ["train.py", f"--config={make.config}", *fields, *start, f"--workdir={self.folder}"]
    found: list[str] = []
    for word in make.words:
      folders = [word.replace("{runs}", str(run)) for run in runs] if "{runs}" in word else [word]
      found += [folder.replace("{out}", str(self.folder)) for folder in folders]
    return found

  def command(self, runs: Sequence[Path] = ()) -> str:
    return shlex.join(["python", *self.words(runs)])


@dataclass(frozen=True)
class UnitRecord:
  """What became of a unit. seconds: of all its processes so far. error: why it failed, in one line."""

  measurement: str
  unit: str
  command: str
  fingerprint: dict[str, str]
  state: str
  seconds: float
  commit: str | None
  machine: str
  error: str = ""

  def write(self, folder: Path) -> None:
    replace_json(folder / FILE, asdict(self))


def read_record(folder: Path) -> UnitRecord | None:
  """The record in a unit's folder; None if nothing was started there."""
  path = folder / FILE
  return UnitRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


class Units:
  """The units of measurements, their fingerprints those of today's code, computed when first asked for."""

  def __init__(self, measurements: Mapping[str, Measurement], workdir: Path):
    self._measurements, self._workdir = measurements, workdir
    self._found: dict[str, tuple[Unit, ...]] = {}

  def of(self, name: str) -> tuple[Unit, ...]:
    """Raises ValueError where a config, data or weights cannot be read."""
    if name not in self._found:
      self._found[name] = self._make(self._measurements[name])
    return self._found[name]

  def needed(self, unit: Unit) -> list[Unit]:
    """The units that this one reads."""
    return [other for name in unit.measurement.needs for other in self.of(name)]

  def _make(self, measurement: Measurement) -> tuple[Unit, ...]:
    make = measurement.make
    if isinstance(make, Train):
      prints = {seed: fingerprints.fingerprint(measurement, seed) for seed in make.seeds}
      # scripts/lengths.py reads memory and seed from the folder's name
      return tuple(
        Unit(measurement, str(seed), of,
             self._workdir / measurement.name / of.key / f"{measurement.name}_seed={seed}")
        for seed, of in prints.items())
    needed = [unit.fingerprint for name in measurement.needs for unit in self.of(name)]
    of = fingerprints.fingerprint(measurement, 0, needed)
    return (Unit(measurement, ONCE, of, self._workdir / measurement.name / of.key),)
