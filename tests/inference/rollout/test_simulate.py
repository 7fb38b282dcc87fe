"""The two laws of a rollout: it is rarely wrong, however often one looks, and notices what is worse in time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lattice_jax.inference.rollout import decider as verdicts
from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.simulate import (
  SCENARIOS,
  TRAFFIC,
  Scenario,
  format_summaries,
  run_scenarios,
  simulate,
  summarize,
  wilson,
)

RUNS = 200
# as by default, but for fewer stages and less evidence that canaries keep
SHORT = dataclasses.replace(TRAFFIC, stages=("replay", "5", "25"), quality_rate=1.0, canary_margin=0.05, min_served=5)


def test_few_of_equal_treatments_are_rolled_back_with_a_look_after_every_unit():
  summary = summarize(simulate(Scenario("A/A"), runs=RUNS, seed=0, config=SHORT))
  assert summary["rolled_back"]["runs"] <= 0.05 * RUNS
  assert summary["complete"]["share"] > 0.95, "a rollout that never goes on would not be wrong either"


@pytest.mark.parametrize("scenario", [
  Scenario("delta", delta=0.02), Scenario("disagree", disagree=0.03)], ids=lambda scenario: scenario.name)
def test_a_treatment_at_the_edge_of_a_gate_neither_passes_nor_falls_more_often_than_allowed(scenario):
  outcomes = simulate(scenario, runs=RUNS, seed=0, config=SHORT, max_units=800)
  assert (outcomes.verdict_R == verdicts.ROLL_BACK).mean() <= 0.05
  assert (outcomes.stage_R > 0).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)


@pytest.mark.parametrize("start", ["replay", "5"])
def test_a_loss_that_is_higher_by_a_twentieth_of_a_nat_is_rolled_back_before_a_quarter_is_served(start):
  summary = summarize(simulate(Scenario("worse", delta=0.05, start=start), runs=RUNS, seed=0, config=SHORT))
  assert summary["rolled_back_before_25"]["share"] >= 0.95 and summary["causes"] == {"delta": RUNS}
  assert summary["stages"][start] == summary["reached"][start] == RUNS and summary["reached"]["25"] == 0
  assert 60 < summary["measured_to_stop"][0] < 150


def test_guardrails_notice_errors_and_slow_units():
  for scenario, causes in (
    (Scenario("errors", errors=0.5), {"errors"}), (Scenario("slow", slow=0.5), {"slow_first", "slow_next"}),
    (Scenario("not faster", purpose="required"), {"latency"})):
    summary = summarize(simulate(scenario, runs=50, seed=0, config=SHORT))
    assert set(summary["causes"]) <= causes and summary["stages"]["replay"] == 50, summary


def test_a_run_of_one_is_one_of_many_and_seeds_differ():
  many = simulate(Scenario("worse", delta=0.05), runs=12, seed=0, config=SHORT)
  again = simulate(Scenario("worse", delta=0.05), runs=12, seed=0, config=SHORT)
  other = simulate(Scenario("worse", delta=0.05), runs=12, seed=1, config=SHORT)
  assert many.seen_R.tolist() == again.seen_R.tolist() != other.seen_R.tolist()
  assert len(set(many.seen_R.tolist())) > 5, "all runs draw the same numbers"


def test_the_table_has_a_row_for_each_scenario():
  reported = []
  summaries = run_scenarios((SCENARIOS[2], SCENARIOS[5]), runs=4, seed=0, config=SHORT, report=reported.append)
  table = format_summaries(summaries).splitlines()
  assert reported == summaries and len(table) == 4
  assert "0.05 nats from replay" in table[2] and "delta 4" in table[2] and "100.0% (51.0% to 100.0%)" in table[2]


def test_wilson_intervals_are_those_of_the_formula():
  assert wilson(0, 1000) == pytest.approx((0.0, 0.003827), abs=1e-5)
  assert wilson(50, 1000) == pytest.approx((0.03813, 0.06531), abs=1e-5)
  assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_a_scenario_of_another_stage_is_refused():
  with pytest.raises(ValueError, match=r"the scenario 'late' starts in the stage 50, which is none of replay, 5, 25;"):
    simulate(Scenario("late", start="50"), runs=1, seed=0, config=SHORT)


def test_scenarios_start_in_stages_that_there_are():
  assert all(scenario.start in RolloutConfig().stages for scenario in SCENARIOS)
  assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
