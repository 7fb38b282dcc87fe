"""After every unit: on to the next stage, back, to an end, or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.inference.rollout import decider as verdicts
from lattice_jax.inference.rollout.decider import Decider
from tests.inference.rollout.scenes import quick, units

GOOD = {"delta_U": [0.0], "kl_U": [0.01], "agreement_U": [1.0], "canary_U": [0.0], "error_U2": [[0.0, 0.0]]}


def feed(decider, number, at=0.0, **unit):
  """(verdict, cause) of the last unit, after as many as it takes to decide something, at most `number`."""
  for _ in range(number):
    verdict, cause = (int(code[0]) for code in decider.step(units(**GOOD | unit), at))
    if verdict != verdicts.NOTHING:
      return verdict, decider.causes[cause] if cause >= 0 else ""
  return verdicts.NOTHING, ""


def served(stage_percent):
  return {"is_paired_U": [False], "share_U": [stage_percent / 100], "error_U2": [[np.nan, 0.0]], "is_served_U": [True]}


def at_stage(name, **changes):
  """A decider that good units have brought to this stage."""
  decider = Decider(quick(**changes), is_shown=False)
  while decider.plan[decider.stage_R[0]].name != name:
    percent = decider.plan[decider.stage_R[0]].percent
    assert feed(decider, 300, **served(percent) if percent else {}) == (verdicts.ADVANCE, "")
  return decider


def test_a_good_treatment_passes_every_stage_and_is_complete():
  decider = at_stage("50")
  assert decider.percent(0) == 50 and decider.visit_R[0] == 3
  assert feed(decider, 300, **served(50)) == (verdicts.FINISH, "")
  assert verdicts.STATUSES[decider.status_R[0]] == "complete" and decider.percent(0) == 50


def test_every_stage_needs_evidence_of_its_own_but_canaries_stand():
  decider = at_stage("shadow")
  seen = {gate.rule.name: int(gate.seen_R[0]) for gate in decider.gates}
  assert seen["delta"] == seen["agreement"] == seen["errors"] == 0 < seen["canary"]
  assert (decider.units_R[0], decider.served_R[0]) == (0, 0)


@pytest.mark.parametrize(("changes", "unit", "missing"), [
  ({"min_units": 60}, {}, "units"), ({"min_seconds": 5.0}, {}, "seconds"), ({}, {"canary_U": [np.nan]}, "canaries"),
  ({}, {"agreement_U": [np.nan]}, "agreement"), ({"purpose": "required"}, {}, "latency")],
  ids=lambda value: value if isinstance(value, str) else "")
def test_a_stage_is_not_passed_while_something_is_missing(changes, unit, missing):
  decider = Decider(quick(**changes), is_shown=False)
  assert feed(decider, 59, **unit) == (verdicts.NOTHING, "")
  if missing == "seconds":
    assert feed(decider, 1, at=4.9) == (verdicts.NOTHING, "")
    assert feed(decider, 1, at=5.0) == (verdicts.ADVANCE, "")
  elif missing == "units":
    assert feed(decider, 1) == (verdicts.ADVANCE, "")


def test_a_stage_that_serves_some_waits_until_it_has():
  decider = at_stage("5", min_served=3)
  assert feed(decider, 100, **served(5) | {"is_served_U": [False]}) == (verdicts.NOTHING, "")
  assert feed(decider, 2, **served(5)) == (verdicts.NOTHING, "")
  assert feed(decider, 1, **served(5)) == (verdicts.ADVANCE, "")


@pytest.mark.parametrize(("stage", "to", "status"), [
  ("replay", "replay", "rolled back"), ("5", "shadow", "rolled back"), ("50", "5", "watching")])
def test_a_bad_treatment_falls_back_by_a_stage_and_ends_where_none_is_served(stage, to, status):
  decider = at_stage(stage)
  assert feed(decider, 300, delta_U=[0.4]) == (verdicts.ROLL_BACK, "delta")
  assert (decider.plan[decider.stage_R[0]].name, verdicts.STATUSES[decider.status_R[0]]) == (to, status)
  assert decider.percent(0) == (5 if status == "watching" else 0)


def test_a_rollout_that_fell_back_never_rises_but_may_fall():
  decider = at_stage("50")
  feed(decider, 300, delta_U=[0.4])
  assert feed(decider, 300, **served(5)) == (verdicts.NOTHING, "")
  assert feed(decider, 300, **served(5), delta_U=[0.5]) == (verdicts.ROLL_BACK, "delta")
  assert verdicts.STATUSES[decider.status_R[0]] == "rolled back" and decider.percent(0) == 0


@pytest.mark.parametrize(("unit", "number", "cause"), [
  ({"is_finite_U": [False]}, 1, "not_finite"), ({"kl_U": [0.6]}, 3, "kl")], ids=["not finite", "kl"])
@pytest.mark.parametrize("is_counted", [True, False])
def test_guardrails_halt_at_once_from_any_stage_and_look_at_every_unit(unit, number, cause, is_counted):
  decider = at_stage("50")
  assert feed(decider, number, **unit, is_counted_U=[is_counted]) == (verdicts.HALT, cause)
  assert verdicts.STATUSES[decider.status_R[0]] == "rolled back" and decider.percent(0) == 0


def test_divergence_must_be_high_several_times_in_a_row():
  decider = Decider(quick(min_units=1000), is_shown=False)
  for _ in range(5):
    assert feed(decider, 2, kl_U=[9.0]) == (verdicts.NOTHING, "")
    assert feed(decider, 3, kl_U=[np.nan]) == (verdicts.NOTHING, "")  # nothing was measured, so the row goes on
    assert feed(decider, 1, kl_U=[0.5]) == (verdicts.NOTHING, "")  # the limit itself is not above it
    assert decider.kl_run_R[0] == 0


def test_a_missing_divergence_leaves_the_row_as_it_is():
  decider = Decider(quick(min_units=1000), is_shown=False)
  assert feed(decider, 2, kl_U=[9.0]) == feed(decider, 4, kl_U=[np.nan]) == (verdicts.NOTHING, "")
  assert feed(decider, 1, kl_U=[9.0]) == (verdicts.HALT, "kl")


def test_errors_and_slow_units_roll_back_too():
  decider = Decider(quick(), is_shown=False)
  assert feed(decider, 100, error_U2=[[0.0, 1.0]], delta_U=[np.nan]) == (verdicts.ROLL_BACK, "errors")
  decider, random = Decider(quick(), is_shown=False), np.random.default_rng(0)
  for _ in range(200):
    times_U2 = np.exp(0.1 * random.standard_normal((1, 2))) * [1, 3]
    verdict, cause = decider.step(units(first_U2=times_U2), 0.0)
    if verdict[0]:
      break
  assert (verdict[0], decider.causes[cause[0]]) == (verdicts.ROLL_BACK, "slow_first")


def test_a_treatment_without_purpose_ends():
  decider, random = Decider(quick(purpose="required"), is_shown=False), np.random.default_rng(0)
  for _ in range(300):
    verdict, cause = decider.step(units(**GOOD | {"next_U2": np.exp(0.1 * random.standard_normal((1, 2)))}), 0.0)
    if verdict[0]:
      break
  assert (verdict[0], decider.causes[cause[0]]) == (verdicts.REFUSE, "latency")
  assert decider.percent(0) == 0 and decider.is_ended(np.array([0]))[0]


def test_its_quality_is_blamed_before_its_purpose():
  decider = Decider(quick(purpose="required"), is_shown=False)
  for gate in decider.gates:
    if gate.rule.name in ("latency", "errors", "delta"):
      gate.bets.above_RG[:] = 1e9
  assert feed(decider, 1) == (verdicts.ROLL_BACK, "delta")


def test_a_stop_is_stronger_than_a_go():
  decider = Decider(quick(min_units=80), is_shown=False)
  assert feed(decider, 79) == (verdicts.NOTHING, "")
  canary = next(gate for gate in decider.gates if gate.rule.name == "canary")
  canary.bets.above_RG[:] = 1e9
  assert feed(decider, 1) == (verdicts.ROLL_BACK, "canary")


def test_rollouts_side_by_side_decide_as_each_alone():
  """Three treatments: good, worse by 0.4 nats, not finite at its seventh unit."""
  together, alone = Decider(quick(), 3, is_shown=False), [Decider(quick(), is_shown=False) for _ in range(3)]
  for step in range(60):
    unit = {name: np.repeat(value, 3, axis=0) for name, value in GOOD.items()} | {
      "delta_U": np.array([0.0, 0.4, 0.0]), "is_finite_U": np.array([True, True, step != 6])}
    running = np.flatnonzero(together.status_R < verdicts.COMPLETE)
    verdict, _ = together.step(units(**{
      name: value[running] for name, value in (unit | {"rows_U": np.arange(3)}).items()}), 0.0)
    for place, row in enumerate(running):
      single, _ = alone[row].step(units(**{name: value[[row]] for name, value in unit.items()}), 0.0)
      assert single[0] == verdict[place]
  assert together.stage_R.tolist() == [int(one.stage_R[0]) for one in alone]
  assert [verdicts.STATUSES[code] for code in together.status_R] == ["running", "rolled back", "rolled back"]
  assert together.stage_R[0] > 0
