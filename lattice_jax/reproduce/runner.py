"""Runs the units that are not done: trainings several at a time, each on its share of the cores, then commands alone.

A unit that fails is reported and the others go on, but for those that read it. A stopped one resumes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from lattice_jax.inspect.machine import describe_machine
from lattice_jax.reproduce.rows import Program
from lattice_jax.reproduce.units import DONE, FAILED, STARTED, Unit, UnitRecord, Units, read_record
from lattice_jax.runtime import git_commit
from lattice_jax.sweep.runner import ending, last_line, pass_on, pin, take_ended
from lattice_jax.training.signals import StopRequest, stop_request


@dataclass
class Process:
  """A running unit. slot: its number among the jobs. error_start: where its part of stderr.txt begins."""

  unit: Unit
  record: UnitRecord
  process: subprocess.Popen
  slot: int
  started: float
  error_start: int


class Runner:
  """failed: the units that failed, or could not begin because another one had."""

  def __init__(self, units: Units, *, jobs: int, say: Callable[[str], None]):
    self._units, self._jobs, self._say = units, jobs, say
    self._running: list[Process] = []
    self._told = False
    self._count = self._total = 0
    self.failed: list[Unit] = []

  def run(self, wanted: Sequence[Unit]) -> int:
    """The number of the signal that stopped it, or 0 when every unit was tried."""
    commands = [unit for unit in wanted if isinstance(unit.measurement.make, Program)]
    trainings = [unit for unit in wanted if unit not in commands]
    self._total = len(wanted)
    with stop_request(lambda name: None) as request:
      for waiting, jobs in ((deque(trainings), self._jobs), (deque(commands), 1)):
        while (waiting and not request.received) or self._running:
          while waiting and not request.received and len(self._running) < jobs:
            self._begin(waiting.popleft(), jobs)
          if self._running:
            self._wait(request)
      return request.received

  def _begin(self, unit: Unit, jobs: int) -> None:
    self._count += 1
    needed = self._units.needed(unit)
    if missing := [other for other in needed if not is_done(other)]:
      self.failed.append(unit)
      self._say(f"{self._place(unit)} cannot begin: {missing[0]} is not done")
      return
    earlier = read_record(unit.folder)
    unit.folder.mkdir(parents=True, exist_ok=True)
    spent = earlier.seconds if earlier else 0.0
    if isinstance(unit.measurement.make, Program) and unit.measurement.make.starts_over:
      spent = 0.0
      for name in unit.measurement.make.starts_over:
        (unit.folder / name).unlink(missing_ok=True)
    runs = [other.folder for other in needed]
    record = UnitRecord(
      unit.measurement.name, unit.name, unit.command(runs), asdict(unit.fingerprint), STARTED, spent, git_commit(),
      describe_machine())
    record.write(unit.folder)
    self._say(f"{self._place(unit)} {'resumes' if earlier else 'begins'}")
    slot = min(set(range(jobs)) - {running.slot for running in self._running})
    with (unit.folder / "stdout.txt").open("ab") as output, (unit.folder / "stderr.txt").open("ab") as errors:
      error_start = errors.tell()  # the process shares the place, and moves it
      process = subprocess.Popen(
        [sys.executable, *unit.words(runs)], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
        env={"WANDB_MODE": "disabled"} | os.environ)
      pin(process.pid, slot, jobs)
      self._running.append(Process(unit, record, process, slot, time.perf_counter(), error_start))

  def _wait(self, request: StopRequest) -> None:
    """Until a process ends. Passes a signal on, once, as SIGTERM, on which training saves and stops."""
    def tell() -> None:
      if not self._told:
        self._say(f"{signal.Signals(request.received).name}: what runs is stopped; the same command goes on")
        pass_on(self._running)
        self._told = True

    for running in take_ended(self._running, request, tell):
      self._end(running, stopping=bool(request.received))

  def _end(self, running: Process, *, stopping: bool) -> None:
    unit, status = running.unit, running.process.returncode
    spent = time.perf_counter() - running.started
    record = replace(running.record, seconds=running.record.seconds + spent)
    if not status:
      replace(record, state=DONE).write(unit.folder)
      self._say(f"{self._place(unit)} done in {record.seconds:.0f} s")
      return
    if stopping:
      record.write(unit.folder)
      return
    error = f"{last_line(unit.folder / 'stderr.txt', running.error_start) or 'no message'} ({ending(status)})"
    replace(record, state=FAILED, error=error).write(unit.folder)
    self.failed.append(unit)
    self._say(f"{self._place(unit)} failed: {error}")

  def _place(self, unit: Unit) -> str:
    return f"[{self._count}/{self._total}] {unit}:"


def is_done(unit: Unit) -> bool:
  """Whether its folder holds the finished run of its fingerprint."""
  record = read_record(unit.folder)
  return record is not None and record.state == DONE and record.fingerprint == asdict(unit.fingerprint)

