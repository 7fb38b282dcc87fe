"""Simulated rollouts: how often the decider is wrong, and how soon it notices a treatment that got worse.

The traffic is invented; the decider is the one of production, with a row for each simulated rollout.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.inference.rollout import decider as verdicts
from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.decider import Decider
from lattice_jax.inference.rollout.units import Units
from lattice_jax.markdown import markdown_table

# A busy service, so that a simulation is not mostly units on which nothing is measured.
TRAFFIC = RolloutConfig(quality_rate=0.25, purpose="reported")


@dataclass(frozen=True)
class Scenario:
  """What the treatment is like. Before unit `start_unit` of the stage `start` it is as the control.

  delta: nats added to the loss difference of every unit, besides the noise: Student's t with 3 degrees of freedom,
  scaled to the standard deviation `spread`. errors: rate of errors (the control: 0.5 %). times: factor of all times.
  slow: share of units that take twenty times as long; of both arms 2 % take five times as long. disagree: share of top
  tokens that differ, on average.
  """

  name: str
  delta: float = 0.0
  start: str = "replay"
  start_unit: int = 0
  spread: float = 0.08
  errors: float = 0.005
  times: float = 1.0
  slow: float = 0.0
  disagree: float = 0.01
  purpose: str = "reported"


SCENARIOS = (
  Scenario("A/A"),
  Scenario("at the margin", delta=0.02),
  *(Scenario(f"0.05 nats from {start}", delta=0.05, start=start) for start in ("replay", "shadow", "1", "5", "25")),
  Scenario("0.05 nats amid 5", delta=0.05, start="5", start_unit=200),
  Scenario("0.05 nats, noise of 0.2 nats", delta=0.05, spread=0.2),
  Scenario("errors 20 % from 1", start="1", errors=0.2),
  Scenario("one in ten slow from 1", start="1", slow=0.1),
  Scenario("40 % faster", times=0.6, purpose="required"),
  Scenario("10 % faster", times=0.9, purpose="required"),
)


@dataclass
class Outcomes:
  """How each of R rollouts ended. stage_R: where the last verdict fell. verdict_R: NOTHING if it still waits.

  seen_R: units with a measured quality since the treatment was as the scenario says. units_R: all units.
  """

  scenario: Scenario
  config: RolloutConfig
  verdict_R: np.ndarray
  cause_R: np.ndarray
  stage_R: np.ndarray
  seen_R: np.ndarray
  units_R: np.ndarray
  causes: tuple[str, ...]


def simulate(
  scenario: Scenario, *, runs: int, seed: int, config: RolloutConfig = TRAFFIC, max_units: int = 30_000) -> Outcomes:
  """Rollouts up to their first step back or their end; one that waits after max_units units is left there.

  Raises:
    ValueError: the scenario starts in a stage that the config does not have.
  """
  if scenario.start not in config.stages:
    raise ValueError(
      f"the scenario {scenario.name!r} starts in the stage {scenario.start}, which is none of "
      f"{', '.join(config.stages)}; choose one of these.")
  config = dataclasses.replace(config, purpose=scenario.purpose)
  decider, random = Decider(config, runs, is_shown=False), np.random.default_rng([seed, *scenario.name.encode()])
  result = Outcomes(
    scenario, config, *np.full((2, runs), verdicts.NOTHING), *np.zeros((3, runs), np.int64), causes=decider.causes)
  start = config.stages.index(scenario.start)
  rows_U = np.arange(runs)
  for unit in range(1, max_units + 1):
    stage_U = decider.stage_R[rows_U]
    is_on_U = (stage_U > start) | ((stage_U == start) & (decider.units_R[rows_U] >= scenario.start_unit))
    units = _draw(scenario, config, random, rows_U, decider.percent_S[stage_U], is_on_U)
    result.seen_R[rows_U] += is_on_U & ~np.isnan(units.delta_U)
    result.units_R[rows_U], result.stage_R[rows_U] = unit, stage_U
    verdict_U, cause_U = decider.step(units, float(unit))
    is_over_U = (verdict_U != verdicts.NOTHING) & (verdict_U != verdicts.ADVANCE)
    result.verdict_R[rows_U[is_over_U]] = verdict_U[is_over_U]
    result.cause_R[rows_U[is_over_U]] = cause_U[is_over_U]
    rows_U = rows_U[~is_over_U]
    if not len(rows_U):
      break
  return result


def _draw(
  scenario: Scenario, config: RolloutConfig, random: np.random.Generator, rows_U: np.ndarray, percent_U: np.ndarray,
  is_on_U: np.ndarray,
) -> Units:
  """One unit of each rollout, as the stage has it measured, and with each measured quality a canary."""
  size, is_paired_U = len(rows_U), (percent_U == 0) | (percent_U == 100)
  is_compared_U = (percent_U == 0) | (random.random(size) < config.quality_rate)
  is_served_U = random.random(size) < percent_U / 100
  is_read_U2 = np.stack([~is_served_U, is_served_U], 1) | (is_paired_U & is_compared_U)[:, None]

  is_on_U2 = np.stack([np.zeros(size, bool), is_on_U], 1)  # the treatment's column
  error_U2 = (random.random((size, 2)) < np.where(is_on_U2, scenario.errors, 0.005)).astype(np.float64)
  time_U2 = np.exp(0.2 * random.standard_normal((2, size, 2))) * np.where(is_on_U2, scenario.times, 1)
  time_U2[random.random((2, size, 2)) < 0.02] *= 5
  time_U2[is_on_U2 & (random.random((2, size, 2)) < scenario.slow)] *= 20
  time_U2[:, error_U2 == 1] = np.nan
  error_U2[~is_read_U2] = time_U2[:, ~is_read_U2] = np.nan
  noise_U = random.standard_t(3, size) * scenario.spread / np.sqrt(3)
  measured_U = np.where(is_compared_U, 1.0, np.nan)
  return Units(
    rows_U=rows_U, is_counted_U=np.ones(size, bool), is_paired_U=is_paired_U,
    share_U=np.where(is_paired_U, 0.5, percent_U / 100), delta_U=measured_U * (noise_U + scenario.delta * is_on_U),
    kl_U=measured_U * 0.02 * random.random(size),
    agreement_U=measured_U * (1 - 2 * np.where(is_on_U, scenario.disagree, 0.01) * random.random(size)),
    canary_U=measured_U * random.choice([-1.0, 0.0, 1.0], size, p=[0.002, 0.996, 0.002]), error_U2=error_U2,
    first_U2=200 * time_U2[0], next_U2=20 * time_U2[1], length_U=np.full(size, 1024), is_finite_U=np.ones(size, bool),
    is_served_U=is_served_U)


def summarize(outcomes: Outcomes) -> dict[str, Any]:
  """Rates with 95 % intervals, where the steps back fell, and how many units they took."""
  runs, stages = len(outcomes.verdict_R), outcomes.config.stages
  is_back_R = np.isin(outcomes.verdict_R, (verdicts.ROLL_BACK, verdicts.HALT))
  early_R = is_back_R & np.isin(outcomes.stage_R, [
    place for place, stage in enumerate(outcomes.config.plan) if stage.percent < 25])
  rates = {
    name: {"runs": int(is_R.sum()), "share": float(is_R.mean()), "interval": wilson(int(is_R.sum()), runs)}
    for name, is_R in (
      ("rolled_back", is_back_R), ("rolled_back_before_25", early_R),
      ("complete", outcomes.verdict_R == verdicts.FINISH), ("no_purpose", outcomes.verdict_R == verdicts.REFUSE),
      ("waiting", outcomes.verdict_R == verdicts.NOTHING))}
  stopped_R = is_back_R | (outcomes.verdict_R == verdicts.REFUSE)
  return {
    "scenario": dataclasses.asdict(outcomes.scenario), "runs": runs, **rates,
    "stages": {stage: int((stopped_R & (outcomes.stage_R == place)).sum()) for place, stage in enumerate(stages)},
    "reached": {stage: int((outcomes.stage_R >= place).sum()) for place, stage in enumerate(stages)},
    "causes": dict(Counter(outcomes.causes[cause] for cause in outcomes.cause_R[stopped_R].tolist())),
    "measured_to_stop": _quantiles(outcomes.seen_R[stopped_R]),
    "units_to_stop": _quantiles(outcomes.units_R[stopped_R]),
    "units_to_complete": _quantiles(outcomes.units_R[outcomes.verdict_R == verdicts.FINISH])}


def run_scenarios(
  scenarios: Sequence[Scenario], *, runs: int, seed: int, config: RolloutConfig = TRAFFIC,
  report: Callable[[dict[str, Any]], None] = lambda summary: None,
) -> list[dict[str, Any]]:
  """The summary of each scenario; `report` gets them as they are finished."""
  summaries = []
  for scenario in scenarios:
    start = time.perf_counter()
    summary = summarize(simulate(scenario, runs=runs, seed=seed, config=config))
    summaries.append(summary | {"seed": seed, "seconds": time.perf_counter() - start})
    report(summaries[-1])
  return summaries


def format_summaries(summaries: Sequence[dict[str, Any]]) -> str:
  """A Markdown table with a row for each scenario."""
  def share(rate: dict[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['share']:.1%} ({low:.1%} to {high:.1%})"

  def units(quantiles: list[float] | None) -> str:
    return "" if quantiles is None else f"{quantiles[0]:,.0f}; {quantiles[1]:,.0f}"

  rows = [("treatment", "rolled back", "before 25 %", "no purpose", "complete", "still waits", "passed the first stage",
           "ended in stage", "because", "measured units to that: median; 95 %", "all units to complete: median; 95 %")]
  for summary in summaries:
    rows.append((
      summary["scenario"]["name"], share(summary["rolled_back"]), f"{summary['rolled_back_before_25']['share']:.1%}",
      *(f"{summary[name]['share']:.1%}" for name in ("no_purpose", "complete", "waiting")),
      f"{[*summary['reached'].values(), 0][1] / summary['runs']:.1%}",
      ", ".join(f"{stage}: {runs}" for stage, runs in summary["stages"].items() if runs),
      ", ".join(f"{cause} {runs}" for cause, runs in summary["causes"].items()),
      units(summary["measured_to_stop"]), units(summary["units_to_complete"])))
  return markdown_table(rows)


def wilson(hits: int, runs: int) -> tuple[float, float]:
  """Wilson's 95 % interval of a share."""
  z, share = 1.959964, hits / runs
  middle, spread = share + z * z / (2 * runs), z * np.sqrt(share * (1 - share) / runs + z * z / (4 * runs * runs))
  low, high = ((middle + sign * spread) / (1 + z * z / runs) for sign in (-1, 1))
  return max(0.0, float(low)), min(1.0, float(high))


def _quantiles(values: np.ndarray) -> list[float] | None:
  """The median and the 95 % quantile."""
  return np.quantile(values, [0.5, 0.95]).tolist() if len(values) else None
