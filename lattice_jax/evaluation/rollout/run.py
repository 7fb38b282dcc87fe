"""Drives a rollout over recorded units: each is read by the arms that its stage asks for, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.evaluation.rollout.arms import ARMS, Arm, ask_canary, read_unit
from lattice_jax.evaluation.rollout.recorded import RecordedCanary, RecordedUnit, Recording
from lattice_jax.inference.rollout.assignment import bucket_of
from lattice_jax.inference.rollout.dashboard import render_dashboard
from lattice_jax.inference.rollout.rollout import Rollout, RolloutState

DASHBOARD_SECONDS = 2.0  # at least, between two versions of the page
_REPORT_EVERY = 20  # units


def run_recorded(
  rollout: Rollout, arms: dict[str, Arm], recording: Recording, *, units: int, canary_every: int,
  dashboard: Path | None, report: Callable[[str], None], clock: Callable[[], float] = time.time,
) -> RolloutState:
  """Reads up to so many units, without those that were recorded before, and stops where the rollout ends.

  canary_every: a canary before every so many units; 0 = none. Both arms read one unit beforehand, which counts for
  nothing, so that no time includes compiling.
  """
  state, shown_at = rollout.state, -DASHBOARD_SECONDS
  is_warm = False
  for index in range(units if recording.count is None else min(units, recording.count)):
    if state.is_ended:
      break
    before = state
    if canary_every and index % canary_every == 0:
      state = record_canary(rollout, arms, recording.canary_at(index // canary_every), clock=clock)
    unit = recording.unit_at(index)
    if not rollout.has(unit.name) and not state.is_ended:
      if not is_warm:
        read_unit(arms, unit.prompt_T, unit.answer_T)
        is_warm = True
      state = record_unit(rollout, arms, unit, clock=clock)
    if (state.visit, state.status) != (before.visit, before.status):
      report(f"unit {state.units:,}: {describe(state)} {last_reason(rollout)}")
    elif state.units % _REPORT_EVERY == 0 and state.units != before.units:
      report(f"unit {state.units:,}: {describe(state)} {_waiting_for(rollout)}")
    if dashboard is not None and time.monotonic() - shown_at > DASHBOARD_SECONDS:
      write_text(dashboard, render_dashboard(rollout.snapshot()))
      shown_at = time.monotonic()
  if dashboard is not None:
    write_text(dashboard, render_dashboard(rollout.snapshot()))
  return state


def record_canary(
  rollout: Rollout, arms: dict[str, Arm], canary: RecordedCanary, *, clock: Callable[[], float]) -> RolloutState:
  """Asks both arms, unless that was done before."""
  if rollout.has(canary.name):
    return rollout.state
  observation = ask_canary(arms, canary.prompt_T, canary.answer_T, canary.scored_T)
  return rollout.record(rollout.assign(canary.name), observation, at=clock())


def record_unit(
  rollout: Rollout, arms: dict[str, Arm], unit: RecordedUnit, *, clock: Callable[[], float]) -> RolloutState:
  """Reads a unit under the arms that its stage asks for, unless that was done before."""
  if rollout.has(unit.name):
    return rollout.state
  assignment = rollout.assign(unit.name)
  order = reading_order(rollout.config.salt, unit.name) if assignment.is_compared else (assignment.arm,)
  return rollout.record(assignment, read_unit(arms, unit.prompt_T, unit.answer_T, order=order), at=clock())


def reading_order(salt: str, unit: str) -> tuple[str, ...]:
  """Both arms. Whichever is first finds the machine as the unit before left it, so it is not always the same."""
  return ARMS if bucket_of(salt, unit, "order") % 2 else ARMS[::-1]


def describe(state: RolloutState) -> str:
  """As in "running, stage 5, treatment serves 5 % of the units;"."""
  return f"{state.status}, stage {state.stage}, the treatment serves {state.percent:g} % of the units;"


def last_reason(rollout: Rollout) -> str:
  """The verdict of the last decision, with its cause if it has one."""
  decision = rollout.snapshot()["decisions"][-1]
  return decision["verdict"] + (f" because of {decision['cause']}" if decision["cause"] else "")


def _waiting_for(rollout: Rollout) -> str:
  waiting = [gate["name"] for gate in rollout.snapshot()["gates"] if gate["role"] in ("quality", "purpose")
             and gate["answer"] == "wait"]
  return f"waits for {', '.join(waiting)}" if waiting else "all gates say go"
