"""Runs trials as processes, one after another or several at a time, each in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.files import lock_folder
from lattice_jax.sweep.search import Search
from lattice_jax.sweep.sweep_file import Sweep
from lattice_jax.sweep.trials import (
  DONE,
  FAILED,
  STARTED,
  Trial,
  TrialRecord,
  check_arguments,
  read_evaluation,
  read_record,
)
from lattice_jax.training.signals import StopRequest, stop_request

_LOOK_EVERY = 0.05  # seconds


@dataclass
class Process:
  """A running trial. slot: its number among the jobs. error_start: where its part of stderr.txt begins."""

  trial: Trial
  process: subprocess.Popen
  slot: int
  started: float
  error_start: int


class Runner:
  """Runs the unfinished trials of a sweep.

  A trial that was stopped or failed is run again and resumes from its checkpoint; one that is done is not.
  """

  def __init__(self, sweep: Sweep, search: Search, workdir: Path, *, jobs: int, say: Callable[[str], None]):
    self._sweep, self._search, self._workdir, self._jobs, self._say = sweep, search, workdir, jobs, say
    self._running: list[Process] = []
    self._next = 0
    self._told = False
    self.failed = 0

  def run(self) -> int:
    """The number of the signal that stopped the sweep, or 0 when every trial was tried."""
    with locked(self._workdir), stop_request(lambda name: None) as request:
      while True:
        while not request.received and len(self._running) < self._jobs and self._next < self._search.total:
          self._begin(self._search.trial(self._next))
          self._next += 1
        if not self._running:
          return request.received
        self._wait(request)

  def _begin(self, trial: Trial) -> None:
    folder = self._workdir / trial.id
    arguments = self._sweep.arguments(trial.values)
    record = read_record(folder)
    check_arguments(record, arguments, folder)
    if record is not None and record.state == DONE:
      self._search.tell(trial.index, read_evaluation(folder, self._sweep.metric)[0])
      return
    folder.mkdir(parents=True, exist_ok=True)
    TrialRecord(**vars(trial), arguments=arguments, state=STARTED).write(folder)
    self._say(f"{self._place(trial)} {'begins' if record is None else 'resumes'}")
    slot = min(set(range(self._jobs)) - {running.slot for running in self._running})
    with (folder / "stdout.txt").open("ab") as output, (folder / "stderr.txt").open("ab") as errors:
      error_start = errors.tell()  # the process shares the place, and moves it
      process = subprocess.Popen(
        self._command(arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
        env=trial_environment(trial))
      pin(process.pid, slot, self._jobs)
      self._running.append(Process(trial, process, slot, time.perf_counter(), error_start))

  def _command(self, arguments: Sequence[str]) -> list[str]:
    words = {"${env}": "/usr/bin/env", "${interpreter}": sys.executable}
    return [words[part] if part in words else part for part in arguments] + [f"--workdir={self._workdir}/{{run_id}}"]

  def _wait(self, request: StopRequest) -> None:
    """Waits until a process ends. Passes a signal on, once, as SIGTERM, on which training saves and stops."""
    def tell() -> None:
      if not self._told:
        self._say(f"{signal.Signals(request.received).name}: {len(self._running)} trial(s) save and stop")
        pass_on(self._running)
        self._told = True

    for running in take_ended(self._running, request, tell):
      self._end(running, stopping=bool(request.received))

  def _end(self, running: Process, *, stopping: bool) -> None:
    trial, seconds = running.trial, time.perf_counter() - running.started
    folder, status = self._workdir / trial.id, running.process.returncode
    if status and stopping:
      self._say(f"{self._place(trial)} stopped; the same command resumes it")
      return
    value, error = None, None
    if status:
      error = f"{last_line(folder / 'stderr.txt', running.error_start) or 'no message'} ({ending(status)})"
    else:
      try:
        value = read_evaluation(folder, self._sweep.metric)[0]
      except ValueError as problem:
        error = str(problem)
    state = DONE if error is None else FAILED
    TrialRecord(**vars(trial), arguments=self._sweep.arguments(trial.values), state=state, error=error,
                seconds=seconds).write(folder)
    if error is None:
      self._search.tell(trial.index, value)
      self._say(f"{self._place(trial)} {value:.4f} in {seconds:.0f} s")
    else:
      self.failed += 1
      self._say(f"{self._place(trial)} failed: {error}")

  def _place(self, trial: Trial) -> str:
    return f"[{trial.index + 1}/{self._search.total}] {trial.id}:"


def take_ended(running: list[Any], request: StopRequest, tell: Callable[[], None]) -> list[Any]:
  """Waits until some of what runs has ended and takes that out of the list. tell: called while a signal has come."""
  while all(one.process.poll() is None for one in running):
    if request.received:
      tell()
    time.sleep(_LOOK_EVERY)
  ended = [one for one in running if one.process.poll() is not None]
  for one in ended:
    running.remove(one)
  return ended


def pass_on(running: Sequence[Any]) -> None:
  """Sends SIGTERM to what runs."""
  for one in running:
    one.process.send_signal(signal.SIGTERM)


def locked(workdir: Path) -> contextlib.AbstractContextManager[None]:
  """Holds the folder for one sweep at a time."""
  return lock_folder(
    workdir, f"another sweep runs in --workdir={workdir}; stop it first, or choose another workdir.")


def trial_environment(trial: Trial) -> dict[str, str]:
  """The environment that `wandb agent` would set. Trials send nothing to W&B unless WANDB_MODE is set."""
  return {"WANDB_MODE": "disabled"} | os.environ | {"WANDB_RUN_ID": trial.id}


def pin(process: int, slot: int, jobs: int) -> None:
  """Gives each of several jobs cores of its own, if the system can."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
  if 1 < jobs <= len(cores):
    with contextlib.suppress(ProcessLookupError):  # it has ended already
      os.sched_setaffinity(process, cores[slot::jobs])


def last_line(path: Path, start: int) -> str:
  """The last line that is not empty after byte `start`."""
  lines = path.read_bytes()[start:].decode("utf-8", "replace").split("\n")
  return next((line.strip() for line in reversed(lines) if line.strip()), "")


def ending(status: int) -> str:
  """How a process ended, in words."""
  return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
