"""Every gate answers go, stop and wait as its figure asks, and counts no unit that tells it nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.gates import GO, STOP, WAIT, make_gates
from tests.inference.rollout.scenes import QUICK, quick, units

ROW = np.array([0])


def gate_of(name, config=QUICK, is_shown=True):
  gate, = (gate for gate in make_gates(config, 1, is_shown=is_shown) if gate.rule.name == name)
  return gate


def show(gate, number, draw, seed=0):
  """Answers after each unit; `draw(random)` gives what is measured of it."""
  random, answers = np.random.default_rng(seed), []
  for _ in range(number):
    gate.see(units(**draw(random)))
    answers.append(gate.answer(0))
  return answers


def delta(value, spread=0.05):
  return lambda random: {"delta_U": [value + spread * random.standard_normal()]}


def agreement(value):
  return lambda random: {"agreement_U": [value + 0.02 * (2 * random.random() - 1)]}


def canary(lost):
  return lambda random: {"canary_U": [float(random.random() < lost)]}


def errors(control, treatment):
  return lambda random: {"error_U2": [[float(random.random() < control), float(random.random() < treatment)]]}


def times(name, factor, spread=0.2):
  return lambda random: {f"{name}_U2": (20 * np.exp(spread * random.standard_normal((1, 2))) * [1, factor])}


@pytest.mark.parametrize(("name", "draw", "answer"), [
  ("delta", delta(0.0), GO), ("delta", delta(0.25), STOP), ("delta", delta(0.1), WAIT),
  ("agreement", agreement(0.97), GO), ("agreement", agreement(0.7), STOP), ("agreement", agreement(0.85), WAIT),
  ("canary", canary(0.0), GO), ("canary", canary(0.6), STOP), ("canary", canary(0.2), WAIT),
  ("errors", errors(0.01, 0.3), STOP), ("errors", errors(0.05, 0.05), WAIT), ("errors", errors(0.0, 0.0), WAIT),
  ("slow_first", times("first", 3.0), STOP), ("slow_first", times("first", 1.0), GO),
  ("slow_first", times("first", 1.5), WAIT),
  ("slow_next", times("next", 3.0), STOP), ("slow_next", times("next", 1.5), WAIT),
  ("latency", times("next", 0.5), GO), ("latency", times("next", 1.0), STOP), ("latency", times("next", 0.7), WAIT),
], ids=lambda value: value if isinstance(value, str) else "")
def test_each_gate_has_three_answers(name, draw, answer):
  config = dataclasses.replace(QUICK, purpose="required")
  answers = show(gate_of(name, config), 200, draw)
  assert answers[-1] == answer and answers[0] == WAIT
  decided = next((place for place, found in enumerate(answers) if found != WAIT), len(answers))
  assert all(found == answer for found in answers[decided:]), "an answer was taken back"


@pytest.mark.parametrize("name", ["delta", "agreement", "canary", "errors", "slow_next", "latency"])
def test_answers_and_bounds_agree_and_need_no_candidates(name):
  """With candidates for the bounds, or with the threshold alone, the same evidence answers alike."""
  draws = {"delta": delta(0.25), "agreement": agreement(0.98), "canary": canary(0.5), "errors": errors(0.02, 0.4),
           "slow_next": times("next", 3.0), "latency": times("next", 0.6)}
  config = dataclasses.replace(QUICK, purpose="required")
  shown, bare = gate_of(name, config), gate_of(name, config, is_shown=False)
  random = [np.random.default_rng(3), np.random.default_rng(3)]
  for _ in range(150):
    for gate, draw in zip((shown, bare), random, strict=True):
      gate.see(units(**draws[name](draw)))
    (lower, upper), rule = shown.bounds(0), shown.rule
    assert shown.stops(ROW)[0] == bare.stops(ROW)[0] and shown.goes(ROW)[0] == bare.goes(ROW)[0]
    bad, good = (lower, upper) if rule.is_high_bad else (upper, lower)
    is_beyond = (lambda bound, low: bound >= low) if rule.is_high_bad else (lambda bound, low: bound <= low)
    assert shown.stops(ROW)[0] == (bad is not None and is_beyond(bad, rule.threshold))
    assert shown.goes(ROW)[0] == (good is not None and not is_beyond(good, rule.threshold + (
      1e-12 if rule.is_high_bad else -1e-12)))
    assert None in (lower, upper) or lower < upper
  assert shown.stops(ROW)[0] or shown.goes(ROW)[0]


def test_a_difference_is_clipped_to_its_range():
  gate = gate_of("delta")
  for value in (100.0, -100.0):
    gate.see(units(delta_U=[value]))
  assert gate.estimate(0) == pytest.approx((QUICK.delta_high + QUICK.delta_low) / 2)


@pytest.mark.parametrize(("name", "unit"), [
  ("delta", {"agreement_U": [0.5]}), ("delta", {"delta_U": [0.5], "is_counted_U": [False]}),
  ("canary", {"delta_U": [0.5]}), ("errors", {"error_U2": [[0.0, np.nan]]}),
  ("slow_next", {"next_U2": [[1.0, np.nan]]}), ("slow_next", {"first_U2": [[1.0, 2.0]]}),
], ids=["unmeasured", "not counted", "no canary", "one arm of a pair", "one time of a pair", "other time"])
def test_what_tells_a_gate_nothing_does_not_count(name, unit):
  gate = gate_of(name)
  gate.see(units(**unit))
  assert gate.seen_R[0] == 0 and (gate.bets.above_RG == 1).all()


def test_errors_are_compared_by_the_share_of_units_that_each_arm_serves():
  """At 5 %, one error of the treatment among twenty is what equal rates give; at a half it is few."""
  def unit(is_treated):
    return {"is_paired_U": [False], "share_U": [0.05], "error_U2": [[np.nan, 1.0] if is_treated else [1.0, np.nan]]}

  fair, unfair = gate_of("errors"), gate_of("errors")
  for number in range(200):
    fair.see(units(**unit(number % 20 == 0)))
    unfair.see(units(**unit(number % 4 == 0)))
  assert (fair.answer(0), unfair.answer(0)) == (WAIT, STOP)
  lower, upper = unfair.bounds(0)
  assert 1.5 <= lower < (1 / 4) / (3 / 4) * 19 < (upper or np.inf)


def test_a_time_gate_waits_for_the_controls_quantile_and_does_not_look_ahead():
  gate = gate_of("latency", quick(purpose="required"))
  fast = {"next_U2": [[10.0, 1.0]]}
  for _ in range(16):
    gate.see(units(**fast))
    assert (gate.bets.below_RG == 1).all()
  gate.see(units(next_U2=[[11.0, 1.0]]))
  assert gate.bets.below_RG[0, gate._place] > 1


def test_only_prompts_of_the_bucket_count_for_the_reduction():
  config = quick(purpose="required", bucket_from=64, bucket_to=128)
  gate, guard = gate_of("latency", config), gate_of("slow_next", config)
  for length in (63, 64, 128, 129):
    for each in (gate, guard):
      each.see(units(next_U2=[[1.0, 1.0]], length_U=[length]))
  assert (gate.seen_R[0], guard.seen_R[0]) == (2, 4)
  whole = gate_of("latency", quick(bucket_from=64))
  whole.see(units(next_U2=[[1.0, 1.0]], length_U=[10**6]))
  assert whole.seen_R[0] == 1


def test_alpha_is_shared_by_what_can_stop():
  for purpose, parts in (("required", 7), ("reported", 6)):
    config = RolloutConfig(purpose=purpose)
    rules = [gate.rule for gate in make_gates(config, 1, is_shown=False)]
    spent = sum(rule.alpha_stop * (len(config.stages) if rule.is_per_stage else 1) for rule in rules if rule.may_stop)
    assert spent == pytest.approx(config.alpha) and sum(rule.may_stop for rule in rules) == parts
