"""A rollout in production: it assigns units to arms, is told what was observed, decides, and writes its log."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.files import Record
from lattice_jax.inference.rollout import decider as verdicts
from lattice_jax.inference.rollout.assignment import CONTROL, TREATMENT, Assignment, arm_of, is_sampled
from lattice_jax.inference.rollout.config import REPLAY, SHADOW, RolloutConfig, config_hash
from lattice_jax.inference.rollout.decider import STATUSES, VERDICTS, Decider
from lattice_jax.inference.rollout.history import History
from lattice_jax.inference.rollout.log import DecisionLog
from lattice_jax.inference.rollout.observation import Observation
from lattice_jax.inference.rollout.units import unit_of
from lattice_jax.shown import shown

_FORMAT = "lattice_jax rollout 1"


@dataclass(frozen=True)
class RolloutState:
  """Where a rollout stands. percent: of the units that the treatment serves now. units: recorded so far.

  status: "running", "watching" (it fell back, and may fall further, never rise), "complete", "rolled back" or
  "no purpose".
  """

  status: str
  stage: str
  percent: float
  visit: int
  units: int

  @property
  def is_ended(self) -> bool:
    return self.status not in (STATUSES[verdicts.RUNNING], STATUSES[verdicts.WATCHING])


class Rollout:
  """A staged rollout. Its methods may be called from several threads.

  It does nothing but think and append to its log: whoever owns it runs the arms, and says what time it is.
  """

  def __init__(self, config: RolloutConfig, *, log: Path | None = None, facts: Mapping[str, Any] | None = None):
    """Starts, or goes on where the log ends.

    facts: what else decides the outcome, such as models and prompts, as JSON; a log of other facts is refused.

    Raises:
      ValueError: the log is of another config or other facts, was damaged, or is in use.
    """
    self.config, self.facts = config, dict(facts or {})
    self.key = config_hash(config, self.facts)
    self._decider, self._history = Decider(config), History()
    self._seen: set[bytes] = set()
    self._units, self._at = 0, 0.0
    self._unwritten: Record | None = None  # a decision that the system would not write; no later line may come before
    self._lock = threading.RLock()
    self._state = self._current()
    self._log = None if log is None else DecisionLog(log)
    if self._log is not None:
      try:
        self._resume(self._log)
      except BaseException:
        self.close()
        raise

  def assign(self, unit: str) -> Assignment:
    """Which arm serves the unit, and whether the other shall read it too; always the same within a stage.

    It waits for no other method, not even for one that writes.
    """
    state, config = self._state, self.config
    arm = arm_of(config.salt, unit, state.percent)
    is_compared = not state.is_ended and (
      state.stage in (REPLAY, SHADOW) or is_sampled(config.salt, unit, config.quality_rate))
    return Assignment(unit=unit, arm=arm, is_compared=is_compared, stage=state.stage, visit=state.visit)

  def record(self, assignment: Assignment, observation: Observation, *, at: float) -> RolloutState:
    """Takes in what was observed of a unit, and decides. `at`: seconds since 1970, from any clock.

    A unit counts for the gates once in a rollout, and only if the rollout is still in the stage in which it was
    assigned: a second observation of it, or one of a unit that was chosen by other odds, would not be independent.
    Guardrails look at all. Once the rollout has ended nothing is taken in any more.

    Raises:
      ValueError: the observation lacks the arm that served, or the log cannot be written; nothing has changed then.
    """
    with self._lock:
      if self.state.is_ended:
        return self.state
      _check(assignment, observation)
      if self._log is not None:
        self._write_decision()
        self._log.append({
          "kind": "unit", "n": self._units + 1, "at": at, **dataclasses.asdict(assignment),
          "observation": observation.to_record()})
      self._unwritten = self._take_in(assignment, observation, at)
      self._write_decision()
      return self.state

  def has(self, unit: str) -> bool:
    """Whether something was recorded of the unit; as quick as `assign`."""
    return _digest(unit) in self._seen

  @property
  def state(self) -> RolloutState:
    return self._state

  def snapshot(self) -> dict[str, Any]:
    """All that a dashboard shows, as JSON: state, gates with their bounds, latencies, bytes, decisions."""
    with self._lock:
      decider = self._decider
      return {
        **dataclasses.asdict(self.state), "is_ended": self.state.is_ended, "at": self._at, "key": self.key,
        "facts": self.facts, "config": dataclasses.asdict(self.config),
        "plan": [{"name": stage.name, "title": stage.title, "percent": stage.percent} for stage in decider.plan],
        "needs": self._needs(), "gates": [gate.state(0) for gate in decider.gates],
        "kl_run": int(decider.kl_run_R[0]), **self._history.snapshot()}

  def close(self) -> None:
    """Lets another process go on with the log."""
    if self._log is not None:
      self._log.close()

  def _write_decision(self) -> None:
    if self._unwritten is not None and self._log is not None:
      self._log.append(self._unwritten, is_safe=True)
    self._unwritten = None

  def _take_in(self, assignment: Assignment, observation: Observation, at: float) -> Record | None:
    """Decides on a unit, and returns the line of the decision if there is one."""
    decider, state = self._decider, self._state
    stage = decider.plan[decider.stage_R[0]]
    digest = _digest(assignment.unit)
    is_counted = assignment.visit == state.visit and digest not in self._seen
    self._seen.add(digest)
    self._units, self._at = self._units + 1, max(self._at, at)
    verdict, cause = (int(code_U[0]) for code_U in decider.decide(
      unit_of(observation, assignment, stage, is_counted=is_counted), self._at))
    if verdict == verdicts.NOTHING:
      self._state = self._current()
      self._history.see(observation, decider.gates[0], is_counted=is_counted)
      return None
    gates = [gate.state(0) for gate in decider.gates]
    needs = self._needs()
    self._history.see(observation, decider.gates[0], is_counted=is_counted)
    decider.move(np.zeros(1, np.int64), np.array([verdict]))
    self._state = after = self._current()
    decision = {
      "kind": "decision", "after": self._units, "at": self._at, "verdict": VERDICTS[verdict],
      "cause": decider.causes[cause] if cause >= 0 else "", "from": stage.name, "to": after.stage,
      "percent": after.percent, "status": after.status, "config": self.key, "stood": needs, "gates": gates}
    self._history.decide(decision, is_new_stage=not after.is_ended)
    return decision

  def _current(self) -> RolloutState:
    decider = self._decider
    return RolloutState(
      status=STATUSES[decider.status_R[0]], stage=decider.plan[decider.stage_R[0]].name, percent=decider.percent(0),
      visit=int(decider.visit_R[0]), units=self._units)

  def _needs(self) -> dict[str, Any]:
    """What the stage has, besides its gates, of what it needs."""
    decider = self._decider
    since = float(decider.since_R[0])
    return {
      "units": int(decider.units_R[0]), "served": int(decider.served_R[0]),
      "seconds": 0.0 if np.isnan(since) else self._at - since}

  def _resume(self, log: DecisionLog) -> None:
    """Takes in the units of the log again, and checks that they lead to the decisions that it holds."""
    if not log.records:
      log.append({
        "kind": "start", "format": _FORMAT, "config": self.key, "fields": dataclasses.asdict(self.config),
        "facts": self.facts}, is_safe=True)
      return
    start, *lines = log.records
    log.records = []
    self._check_start(start, log.path)
    decision: Record | None = None
    for line in lines:
      if line["kind"] == "decision":
        told = ("verdict", "cause", "from", "to", "after")
        if decision is None or any(decision[name] != line[name] for name in told):
          raise ValueError(
            f"the log {log.path} says that unit {line['after']} led to «{line['verdict']}», which its units do not: it "
            "was written by another version; go on with that one, or start anew with another log.")
        decision = None
      elif decision is None:
        names = ("unit", "arm", "is_compared", "stage", "visit")
        decision = self._take_in(
          Assignment(**{name: line[name] for name in names}), Observation.from_record(line["observation"]), line["at"])
      else:
        raise ValueError(f"the log {log.path} lacks the decision after unit {decision['after']}; restore the file, or "
                         "start anew with another log.")
    self._unwritten = decision  # the process was killed between a unit and its decision
    self._write_decision()

  def _check_start(self, start: Record, path: Path) -> None:
    if start["kind"] != "start" or start["format"] != _FORMAT:
      raise ValueError(f"{path} is no log of a rollout, or one of another version; choose another --log.")
    if start["config"] == self.key:
      return
    ours, theirs = ({**one["fields"], **one["facts"]} for one in (
      {"fields": dataclasses.asdict(self.config), "facts": self.facts}, start))
    name = next((
      name for name in {**theirs, **ours} if _as_logged(ours.get(name)) != _as_logged(theirs.get(name))), "config")
    raise ValueError(
      f"the log {path} is of a rollout with {name}={shown(theirs.get(name))}, not {shown(ours.get(name))}; give the "
      "same, or start anew with another log.")


def _check(assignment: Assignment, observation: Observation) -> None:
  served = {CONTROL: observation.control, TREATMENT: observation.treatment}[assignment.arm]
  if observation.canary is None and served is None:
    raise ValueError(
      f"unit {shown(assignment.unit)} was assigned to the {assignment.arm}, and its reading is missing; record what "
      "that arm did, with is_error=True if it gave no answer.")


def _digest(unit: str) -> bytes:
  return hashlib.sha256(unit.encode("utf-8", "surrogatepass")).digest()[:12]


def _as_logged(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
