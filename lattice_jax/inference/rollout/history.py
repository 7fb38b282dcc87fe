"""What a rollout remembers only to show it: latencies, bytes, the course of the loss difference, and its decisions."""

from __future__ import annotations

from typing import Any

from lattice_jax.files import Record
from lattice_jax.inference.rollout.gates import Gate
from lattice_jax.inference.rollout.observation import Observation, Reading
from lattice_jax.inference.rollout.recent import Recent

_MOST_POINTS = 400  # of a curve; every second one is dropped when there are more
_TIMES = ("first_ms", "next_ms", "longest_ms", "cache_bytes")


class History:
  """Bounded in size, whatever the number of units."""

  def __init__(self) -> None:
    self._arms = {arm: {name: Recent() for name in _TIMES} for arm in ("control", "treatment")}
    self._units = {arm: {"units": 0, "errors": 0} for arm in ("control", "treatment")}
    self._canaries = {"asked": 0, "control": 0, "treatment": 0}
    self._curve: list[dict[str, Any]] = []
    self._stride, self._qualities, self._visit = 1, 0, 0
    self._decisions: list[Record] = []

  def see(self, observation: Observation, loss: Gate, *, is_counted: bool) -> None:
    """Takes in a unit that the gate of the loss difference has seen."""
    for arm, reading in (("control", observation.control), ("treatment", observation.treatment)):
      if reading is not None:
        self._see_reading(arm, reading)
    if observation.canary is not None and is_counted:
      for name, more in (
        ("asked", True), ("control", observation.canary.control), ("treatment", observation.canary.treatment)):
        self._canaries[name] += more
    if observation.quality is not None and is_counted:
      self._qualities += 1
      if self._qualities % self._stride == 0:
        lower, upper = loss.bounds(0)
        self._curve.append({
          "unit": self._qualities, "visit": self._visit, "estimate": loss.estimate(0), "lower": lower, "upper": upper})
      if len(self._curve) > _MOST_POINTS:
        self._curve, self._stride = self._curve[1::2], 2 * self._stride

  def decide(self, decision: Record, *, is_new_stage: bool) -> None:
    self._decisions.append({name: value for name, value in decision.items() if name not in ("kind", "config")})
    self._visit += is_new_stage

  def snapshot(self) -> dict[str, Any]:
    return {
      "arms": {arm: {**self._units[arm], **{name: recent.summary() for name, recent in series.items()}}
               for arm, series in self._arms.items()},
      "canaries": dict(self._canaries), "curve": list(self._curve), "decisions": list(self._decisions)}

  def _see_reading(self, arm: str, reading: Reading) -> None:
    self._units[arm]["units"] += 1
    self._units[arm]["errors"] += reading.is_error
    for name in _TIMES:
      self._arms[arm][name].add(getattr(reading, name))
