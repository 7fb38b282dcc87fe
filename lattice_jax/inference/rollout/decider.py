"""Decides after every unit whether a rollout goes on to the next stage, falls back, ends, or waits.

It holds R rollouts side by side: the simulation runs what decides in production.
"""

from __future__ import annotations

import numpy as np

from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.gates import Gate, make_gates
from lattice_jax.inference.rollout.units import Units

# What a rollout is doing. Watching: it fell back to a stage that serves some units; it may fall further, never rise.
RUNNING, WATCHING, COMPLETE, ROLLED_BACK, NO_PURPOSE = range(5)
STATUSES = ("running", "watching", "complete", "rolled back", "no purpose")
# What a unit decided.
NOTHING, ADVANCE, FINISH, ROLL_BACK, HALT, REFUSE = range(6)
VERDICTS = ("", "advance", "complete", "roll back", "halt", "no purpose")
GUARDS = ("not_finite", "kl")  # causes of a halt, numbered from the last gate on


class Decider:
  """Stage, status and evidence of R rollouts. `candidates`: whether gates have bounds to be shown."""

  def __init__(self, config: RolloutConfig, rollouts: int = 1, *, is_shown: bool = True):
    self.config, self.plan = config, config.plan
    self.gates: list[Gate] = make_gates(config, rollouts, is_shown=is_shown)
    self.causes = (*(gate.rule.name for gate in self.gates), *GUARDS)
    self.percent_S = np.array([stage.percent for stage in self.plan])
    self.stage_R, self.status_R, self.visit_R, self.units_R, self.served_R, self.kl_run_R = np.zeros(
      (6, rollouts), np.int64)
    self.since_R = np.full(rollouts, np.nan)  # when the first unit of the stage was recorded

  def step(self, units: Units, at: float) -> tuple[np.ndarray, np.ndarray]:
    """(verdict, cause or -1) of each unit's rollout, which has moved on accordingly."""
    verdict_U, cause_U = self.decide(units, at)
    self.move(units.rows_U, verdict_U)
    return verdict_U, cause_U

  def decide(self, units: Units, at: float) -> tuple[np.ndarray, np.ndarray]:
    """(verdict, cause or -1) of each unit's rollout, which must then `move`. `at`: seconds, never falling.

    Guardrails look at every unit, gates only at those that count. A stop is stronger than a go.
    """
    rows_U = units.rows_U
    self.since_R[rows_U] = np.where(np.isnan(self.since_R[rows_U]), at, self.since_R[rows_U])
    self.units_R[rows_U] += units.is_counted_U & ~np.isnan(units.delta_U)
    self.served_R[rows_U] += units.is_counted_U & units.is_served_U
    for gate in self.gates:
      gate.see(units)
    verdict_U, cause_U = self._answers(rows_U, at)
    for guard, is_broken_U in enumerate(self._guard(units)):
      verdict_U[is_broken_U], cause_U[is_broken_U] = HALT, len(self.gates) + guard
    return verdict_U, cause_U

  def is_ended(self, rows_U: np.ndarray) -> np.ndarray:
    return self.status_R[rows_U] >= COMPLETE

  def percent(self, row: int) -> float:
    """Of the units that the treatment serves now."""
    return 0.0 if self.status_R[row] in (ROLLED_BACK, NO_PURPOSE) else float(self.percent_S[self.stage_R[row]])

  def _answers(self, rows_U: np.ndarray, at: float) -> tuple[np.ndarray, np.ndarray]:
    config, stage_U = self.config, self.stage_R[rows_U]
    verdict_U, cause_U = np.full((2, len(rows_U)), NOTHING)
    cause_U[:] = -1
    is_passed_U = (
      (self.units_R[rows_U] >= config.min_units) & (at - self.since_R[rows_U] >= config.min_seconds)
      & ((self.served_R[rows_U] >= config.min_served) | (self.percent_S[stage_U] == 0))
      & (self.status_R[rows_U] == RUNNING))
    for gate in self.gates:
      if gate.rule.must_go:
        is_passed_U &= gate.goes(rows_U)
    is_last_U = stage_U == len(self.plan) - 1
    verdict_U[is_passed_U] = np.where(is_last_U, FINISH, ADVANCE)[is_passed_U]
    # the treatment's quality is to blame before its purpose, so it comes later and prevails
    for role, verdict in (("purpose", REFUSE), ("guard", ROLL_BACK), ("quality", ROLL_BACK)):
      for index, gate in enumerate(self.gates):
        if gate.rule.role == role:
          is_stopped_U = gate.stops(rows_U)
          verdict_U[is_stopped_U], cause_U[is_stopped_U] = verdict, index
    return verdict_U, cause_U

  def _guard(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Of each guardrail, whether it was broken."""
    rows_U, is_known_U = units.rows_U, ~np.isnan(units.kl_U)
    run_U = np.where(units.kl_U > self.config.kl_limit, self.kl_run_R[rows_U] + 1, 0)
    self.kl_run_R[rows_U] = np.where(is_known_U, run_U, self.kl_run_R[rows_U])
    return ~units.is_finite_U, self.kl_run_R[rows_U] >= self.config.kl_run

  def move(self, rows_U: np.ndarray, verdict_U: np.ndarray) -> None:
    """Carries out the verdicts; a rollout that enters a stage starts to collect evidence anew."""
    moved_U = rows_U[verdict_U != NOTHING]
    if not len(moved_U):
      return
    for verdict, status in ((FINISH, COMPLETE), (HALT, ROLLED_BACK), (REFUSE, NO_PURPOSE)):
      self.status_R[rows_U[verdict_U == verdict]] = status
    self.stage_R[rows_U[verdict_U == ADVANCE]] += 1
    back_U = rows_U[verdict_U == ROLL_BACK]
    self.stage_R[back_U] = np.maximum(self.stage_R[back_U] - 1, 0)
    self.status_R[back_U] = np.where(self.percent_S[self.stage_R[back_U]] > 0, WATCHING, ROLLED_BACK)
    # an ended rollout keeps its evidence, for people to look at
    fresh_U = moved_U[~self.is_ended(moved_U)]
    self.visit_R[fresh_U] += 1
    self.units_R[fresh_U] = self.served_R[fresh_U] = self.kl_run_R[fresh_U] = 0
    self.since_R[fresh_U] = np.nan
    for gate in self.gates:
      if gate.rule.is_per_stage:
        gate.reset(fresh_U)
