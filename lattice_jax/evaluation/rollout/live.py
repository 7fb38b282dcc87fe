"""Drives a rollout by the requests of a server: routes them, compares both arms on a share of them, and records all."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.evaluation.rollout.arms import Arm, ask_canary, read_unit
from lattice_jax.evaluation.rollout.recorded import Recording
from lattice_jax.evaluation.rollout.run import (
  DASHBOARD_SECONDS,
  describe,
  last_reason,
  reading_order,
  record_canary,
  record_unit,
)
from lattice_jax.inference.rollout.assignment import CONTROL, TREATMENT, Assignment
from lattice_jax.inference.rollout.config import REPLAY
from lattice_jax.inference.rollout.dashboard import render_dashboard
from lattice_jax.inference.rollout.observation import Observation, Quality, Reading
from lattice_jax.inference.rollout.rollout import Rollout
from lattice_jax.inference.serving.request import FAILED, NOT_FINITE
from lattice_jax.inference.serving.routing import REFUSED, Answered, Outcome, Route

_TICK = 0.5  # seconds after which an idle thread looks around
_PREFIX = "live/"  # so that no client's name is that of a recorded unit or a canary

_log = logging.getLogger(__name__)


class LiveRollout:
  """A `Router` by whose answers a rollout goes on, or falls back, by itself.

  Where the rollout compares a unit, the arm that does not answer writes a text of its own in the background. Then both
  arms read the prompt and the first `scored_len` tokens of the control's text, whichever was served, and the
  differences of their predictions are the unit's quality: tokens that the treatment drew itself would flatter it.
  This is done by one thread, one unit after another; `room` units may wait, and further ones are recorded without a
  quality and counted. Before every `canary_every`th of them a canary is asked. In the stage `replay` the thread reads
  units of `recording`, and requests count for nothing.

  arms: read beside the engines, with the same weights. dashboard: page that is kept up to date. report: takes a line
  for each change of the rollout.
  """

  def __init__(
    self, rollout: Rollout, arms: dict[str, Arm], recording: Recording, *, scored_len: int, canary_every: int,
    room: int, dashboard: Path, report: Callable[[str], Any] = lambda line: None,
    clock: Callable[[], float] = time.time):
    self.rollout, self._arms, self._recording = rollout, arms, recording
    self._scored_len, self._canary_every, self._room = scored_len, canary_every, room
    self._dashboard, self._report, self._clock = dashboard, report, clock
    self._waiting: collections.deque[Answered] = collections.deque()
    self._changed, self._is_closing = threading.Condition(), False
    self._counts = dict.fromkeys(("shadows_dropped", "comparisons_dropped", "not_recorded"), 0)
    self._unwritten: tuple[Assignment, Observation] | None = None  # what the log would not take
    self._replayed = self._compared = 0
    self._canaries = rollout.snapshot()["canaries"]["asked"]
    self._shown_at, self._told = -DASHBOARD_SECONDS, (rollout.state.visit, rollout.state.status)
    self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

  def start(self) -> None:
    """Runs every program once, so that none is compiled between requests, and then compares what comes."""
    unit, canary = self._recording.unit_at(0), self._recording.canary_at(0)
    read_unit(self._arms, unit.prompt_T, unit.answer_T)
    ask_canary(self._arms, canary.prompt_T, canary.answer_T, canary.scored_T)
    self._thread.start()

  def route(self, unit: str) -> Route:
    """The arm that the rollout assigns; the control for everybody while the log cannot be written."""
    assignment = self.rollout.assign(_PREFIX + unit)
    if assignment.stage == REPLAY or self._unwritten is not None:
      return Route(CONTROL)
    is_compared = assignment.is_compared and not self.rollout.has(assignment.unit)
    other = TREATMENT if assignment.arm == CONTROL else CONTROL
    return Route(assignment.arm, (other,) if is_compared else (), note=assignment)

  def record(self, answered: Answered) -> None:
    """Records the request, or has it compared first."""
    assignment, outcomes = answered.route.note, answered.outcomes
    if assignment is None:
      return
    is_whole = len(outcomes) > len(answered.route.shadows) > 0
    if answered.route.shadows and not is_whole and outcomes[assignment.arm].finish != REFUSED:
      self._count("shadows_dropped")
    if is_whole and outcomes[CONTROL].ids:
      with self._changed:
        if len(self._waiting) < self._room:
          self._waiting.append(answered)
          self._changed.notify_all()
          return
      self._count("comparisons_dropped")
    self._record(assignment, _observation(answered, _readings(outcomes), None))

  def snapshot(self) -> dict[str, Any]:
    """That of the rollout, with what became of requests in `traffic`."""
    with self._changed:
      traffic = {"waiting": len(self._waiting), **self._counts}
    return self.rollout.snapshot() | {"traffic": traffic}

  def page(self) -> str:
    """The dashboard as it is now."""
    return render_dashboard(self.snapshot())

  def close(self) -> None:
    """Ends the thread, records what waits without a quality, and lets another process have the log."""
    with self._changed:
      self._is_closing = True
      self._changed.notify_all()
    if self._thread.ident is not None:
      self._thread.join()
    for answered in self._waiting:
      self._count("comparisons_dropped")
      self._record(answered.route.note, _observation(answered, _readings(answered.outcomes), None))
    self._waiting.clear()
    write_text(self._dashboard, self.page())
    self.rollout.close()

  def _run(self) -> None:
    while not self._is_closing:
      try:
        self._step()
      except Exception:
        _log.exception("the rollout's thread failed at a unit, and goes on with the next")
        self._count("not_recorded")
        with self._changed:
          self._changed.wait_for(lambda: self._is_closing, _TICK)

  def _step(self) -> None:
    state = self.rollout.state
    if self._unwritten is not None:
      self._record(*self._unwritten)
    is_replay = state.stage == REPLAY and not state.is_ended
    if is_replay and self._replayed != self._recording.count:
      self._replay()
    else:
      with self._changed:
        self._changed.wait_for(lambda: self._waiting or self._is_closing, _TICK)
        answered = self._waiting.popleft() if self._waiting and not self._is_closing else None
      if answered is not None:
        self._compare(answered)
    self._tell()
    if time.monotonic() - self._shown_at > DASHBOARD_SECONDS:
      write_text(self._dashboard, self.page())
      self._shown_at = time.monotonic()

  def _replay(self) -> None:
    number, self._replayed = self._replayed, self._replayed + 1
    self._ask_canary(number)
    state = record_unit(self.rollout, self._arms, self._recording.unit_at(number), clock=self._clock)
    if self._replayed == self._recording.count and state.stage == REPLAY and not state.is_ended:
      self._report(
        f"rollout, unit {state.units:,}: all {self._replayed:,} recorded units were read, and they do not decide the "
        "stage replay, in which the rollout stays; give more --prompts.")

  def _compare(self, answered: Answered) -> None:
    assignment, readings = answered.route.note, _readings(answered.outcomes)
    quality = None
    if not self.rollout.state.is_ended and not any(reading.is_error for reading in readings.values()):
      self._ask_canary(self._compared)
      self._compared += 1
      seen = read_unit(
        self._arms, np.array(answered.prompt_ids, np.int32),
        np.array(answered.outcomes[CONTROL].ids[:self._scored_len], np.int32),
        order=reading_order(self.rollout.config.salt, assignment.unit))
      quality = seen.quality
      readings = {
        arm: dataclasses.replace(reading, is_finite=reading.is_finite and getattr(seen, arm).is_finite)
        for arm, reading in readings.items()}
    self._record(assignment, _observation(answered, readings, quality))

  def _ask_canary(self, number: int) -> None:
    if number % self._canary_every == 0:
      record_canary(self.rollout, self._arms, self._recording.canary_at(self._canaries), clock=self._clock)
      self._canaries += 1

  def _record(self, assignment: Assignment, observation: Observation) -> None:
    try:
      self.rollout.record(assignment, observation, at=self._clock())
    except ValueError as error:
      if self._unwritten is None:
        _log.error("%s Until then the control answers everybody.", error)
        self._unwritten = assignment, observation
      elif self._unwritten[0] is not assignment:
        self._count("not_recorded")
      return
    if self._unwritten is not None and self._unwritten[0] is assignment:
      self._unwritten = None

  def _count(self, name: str) -> None:
    with self._changed:
      self._counts[name] += 1

  def _tell(self) -> None:
    state = self.rollout.state
    if (state.visit, state.status) != self._told:
      self._told = state.visit, state.status
      self._report(f"rollout, unit {state.units:,}: {describe(state)} {last_reason(self.rollout)}")


def _observation(answered: Answered, readings: dict[str, Reading], quality: Quality | None) -> Observation:
  return Observation(length=len(answered.prompt_ids), **readings, quality=quality)


def _readings(outcomes: Mapping[str, Outcome]) -> dict[str, Reading]:
  """What is known of a text whose client left, or that the server's end cut off, is what was measured until then."""
  return {arm: _reading(outcome) for arm, outcome in outcomes.items()}


def _reading(outcome: Outcome) -> Reading:
  def milliseconds(seconds: float | None) -> float | None:
    return 1000 * seconds if seconds else None

  return Reading(
    first_ms=milliseconds(outcome.first_seconds), next_ms=milliseconds(outcome.next_seconds),
    longest_ms=milliseconds(outcome.longest_seconds), cache_bytes=outcome.cache_bytes or None,
    is_error=outcome.finish in (FAILED, REFUSED), is_finite=outcome.finish != NOT_FINITE)
