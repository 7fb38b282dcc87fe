"""Gates: what is compared with a threshold, by a confidence sequence each, with the answers go, stop and wait."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.inference.rollout.betting import Bets
from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.recent import Reference
from lattice_jax.inference.rollout.units import CONTROL_COLUMN, TREATMENT_COLUMN, Units

GO, STOP, WAIT = "go", "stop", "wait"
_SIDE = 120  # candidates above the threshold, and below, among which the bounds are looked for
_NEAREST, _FARTHEST = 1e-4, 8.0  # of these: distances from the threshold, as a part of the range or in nats of a ratio


@dataclass(frozen=True)
class Rule:
  """What a gate asks. The figure shall be below the threshold if `is_high_bad`, else above it.

  role: "quality" may stop and must go; "guard" may stop; "purpose" may stop, which ends the rollout without blaming the
  treatment's quality, and must go; "report" decides nothing. is_per_stage: whether each stage needs its own evidence.
  alpha_stop, alpha_go: chances of a wrong stop and a wrong go, of one stage if is_per_stage.
  low, high: the range of what is averaged; of a ratio they are 0 and infinity.
  """

  name: str
  title: str
  role: str
  threshold: float
  is_high_bad: bool
  low: float
  high: float
  is_per_stage: bool
  alpha_stop: float
  alpha_go: float

  @property
  def may_stop(self) -> bool:
    return self.role != "report"

  @property
  def must_go(self) -> bool:
    return self.role in ("quality", "purpose")


class Gate(abc.ABC):
  """A rule with its evidence in R rollouts. Without `is_shown` there are no bounds to look at, only answers."""

  def __init__(self, rule: Rule, rollouts: int, *, is_shown: bool):
    self.rule = rule
    self.candidate_G = self.candidates() if is_shown else np.array([rule.threshold])
    self._place = int(np.flatnonzero(self.candidate_G == rule.threshold)[0])
    self.bets = Bets(rollouts, len(self.candidate_G))
    self.seen_R = np.zeros(rollouts, np.int64)  # units that counted

  def candidates(self) -> np.ndarray:
    """Ascending values of the figure, the threshold among them, ever denser towards it."""
    rule, far_G = self.rule, np.geomspace(_NEAREST, 1, _SIDE)
    low_G, high_G = (rule.threshold + (bound - rule.threshold) * far_G for bound in (rule.low, rule.high))
    # the bounds of the range are no candidates: a mean there would leave nothing to bet on
    return np.concatenate([low_G[-2::-1], [rule.threshold], high_G[:-1]])

  def reset(self, rows_U: np.ndarray) -> None:
    self.bets.reset(rows_U)
    self.seen_R[rows_U] = 0

  @abc.abstractmethod
  def see(self, units: Units) -> None:
    """Bets on what the units bring to this gate."""

  @abc.abstractmethod
  def estimate(self, row: int) -> float | None:
    """The figure as it is seen so far; None if nothing is known."""

  def stops(self, rows_U: np.ndarray) -> np.ndarray:
    """Whether the threshold is shown to be violated."""
    bad_RG = self.bets.above_RG if self.rule.is_high_bad else self.bets.below_RG
    return bad_RG[rows_U, self._place] >= 1 / self.rule.alpha_stop

  def goes(self, rows_U: np.ndarray) -> np.ndarray:
    """Whether the threshold is shown to be kept."""
    good_RG = self.bets.below_RG if self.rule.is_high_bad else self.bets.above_RG
    return good_RG[rows_U, self._place] >= 1 / self.rule.alpha_go

  def answer(self, row: int) -> str:
    rows_U = np.array([row])
    if self.rule.may_stop and self.stops(rows_U)[0]:
      return STOP
    return GO if self.goes(rows_U)[0] else WAIT

  def bounds(self, row: int) -> tuple[float | None, float | None]:
    """(lower, upper) one-sided bounds, valid at all times together; None where there is none yet."""
    rule = self.rule
    low_level, high_level = (
      (rule.alpha_stop, rule.alpha_go) if rule.is_high_bad else (rule.alpha_go, rule.alpha_stop))
    below_G = np.flatnonzero(self.bets.above_RG[row] >= 1 / low_level)  # the figure is above these
    above_G = np.flatnonzero(self.bets.below_RG[row] >= 1 / high_level)
    return (
      float(self.candidate_G[below_G[-1]]) if len(below_G) else None,
      float(self.candidate_G[above_G[0]]) if len(above_G) else None)

  def state(self, row: int) -> dict[str, Any]:
    """What is known of the gate, for the log and the dashboard."""
    rule, (lower, upper) = self.rule, self.bounds(row)
    return {
      "name": rule.name, "title": rule.title, "role": rule.role, "answer": self.answer(row),
      "estimate": self.estimate(row), "lower": lower, "upper": upper, "threshold": rule.threshold,
      "is_high_bad": rule.is_high_bad, "units": int(self.seen_R[row])}


class MeanGate(Gate):
  """The mean of a figure of units, clipped to the rule's range."""

  def __init__(self, rule: Rule, rollouts: int, *, is_shown: bool):
    super().__init__(rule, rollouts, is_shown=is_shown)
    self._scaled_G = (self.candidate_G - rule.low) / (rule.high - rule.low)
    self._sum_R = np.zeros(rollouts)

  def reset(self, rows_U: np.ndarray) -> None:
    super().reset(rows_U)
    self._sum_R[rows_U] = 0

  def see(self, units: Units) -> None:
    rule, value_U = self.rule, getattr(units, f"{self.rule.name}_U")
    seen_U = np.flatnonzero(units.is_counted_U & ~np.isnan(value_U))
    if not len(seen_U):
      return
    rows_U, value_U = units.rows_U[seen_U], np.clip(value_U[seen_U], rule.low, rule.high)
    self.seen_R[rows_U] += 1
    self._sum_R[rows_U] += value_U
    x_U1 = ((value_U - rule.low) / (rule.high - rule.low))[:, None]
    self.bets.add(rows_U, x_U1, self._scaled_G[None])

  def estimate(self, row: int) -> float | None:
    return float(self._sum_R[row] / self.seen_R[row]) if self.seen_R[row] else None


class _RatioGate(Gate):
  """How many times more of something the treatment has. Candidates s are factors.

  Both arms have events, which `s` makes equally frequent if it is the ratio. Where each unit is read by one arm, an
  event is then the treatment's with the known chance with which a unit is; where both arms read it, events of both tell
  nothing, and one of either arm is the treatment's with a chance of a half.
  """

  def candidates(self) -> np.ndarray:
    far_G = np.geomspace(_NEAREST, _FARTHEST, _SIDE)
    return self.rule.threshold * np.concatenate([np.exp(-far_G[::-1]), [1.0], np.exp(far_G)])

  def _bet(
    self, rows_U: np.ndarray, mine_UG: np.ndarray, theirs_UG: np.ndarray, mean_UG: np.ndarray) -> None:
    is_event_UG = mine_UG != theirs_UG
    some_U = np.flatnonzero(is_event_UG.any(axis=1))
    if len(some_U):
      self.bets.add(rows_U[some_U], mine_UG[some_U].astype(np.float64), mean_UG[some_U], is_event_UG[some_U])


class ErrorGate(_RatioGate):
  """The treatment's rate of errors as a multiple of the control's."""

  def __init__(self, rule: Rule, rollouts: int, *, is_shown: bool):
    super().__init__(rule, rollouts, is_shown=is_shown)
    self.errors_R2, self.units_R2 = np.zeros((rollouts, 2)), np.zeros((rollouts, 2))

  def reset(self, rows_U: np.ndarray) -> None:
    super().reset(rows_U)
    self.errors_R2[rows_U] = self.units_R2[rows_U] = 0

  def see(self, units: Units) -> None:
    seen_U = _seen(units, units.error_U2)
    rows_U, error_U2 = units.rows_U[seen_U], np.nan_to_num(units.error_U2[seen_U])
    self.seen_R[rows_U] += 1
    self.errors_R2[rows_U] += error_U2
    self.units_R2[rows_U] += ~np.isnan(units.error_U2[seen_U])
    if error_U2.any():
      share_U1 = units.share_U[seen_U, None]
      mean_UG = self.candidate_G * share_U1 / (self.candidate_G * share_U1 + 1 - share_U1)
      mine_U1, theirs_U1 = (error_U2[:, [column]] > 0 for column in (TREATMENT_COLUMN, CONTROL_COLUMN))
      self._bet(rows_U, mine_U1, theirs_U1, mean_UG)

  def estimate(self, row: int) -> float | None:
    if not self.units_R2[row].all() or not self.errors_R2[row, CONTROL_COLUMN]:
      return None
    control, treatment = (self.errors_R2[row] / self.units_R2[row]).tolist()
    return treatment / control


class TimeGate(_RatioGate):
  """A quantile of the treatment's latency as a multiple of the control's.

  With r the control's quantile so far, the control's event is a latency above r, the treatment's one above s · r. Were
  the treatment's latencies s times the control's or more, its events would be at least as frequent.
  """

  def __init__(
    self, rule: Rule, rollouts: int, *, is_shown: bool, times: str, quantile: float, bucket: tuple[int, int]):
    super().__init__(rule, rollouts, is_shown=is_shown)
    self._times, self._bucket = f"{times}_U2", bucket
    self._control = Reference(rollouts, quantile)
    self._treatment = Reference(rollouts, quantile) if is_shown else None

  def reset(self, rows_U: np.ndarray) -> None:
    super().reset(rows_U)
    self._control.reset(rows_U)
    if self._treatment is not None:
      self._treatment.reset(rows_U)

  def see(self, units: Units) -> None:
    times_U2, (low, high) = getattr(units, self._times), self._bucket
    is_inside_U = (units.length_U >= low) & ((units.length_U <= high) | (high == 0))
    seen_U = _seen(units, times_U2, is_inside_U)
    rows_U, times_U2 = units.rows_U[seen_U], times_U2[seen_U]
    self.seen_R[rows_U] += 1
    r_U1 = self._control.value_R[rows_U, None]
    known_U = np.flatnonzero(~np.isnan(r_U1[:, 0]))
    if len(known_U):
      # comparisons with NaN, an arm that did not read the unit, are false
      mine_UG = times_U2[known_U, TREATMENT_COLUMN, None] > self.candidate_G * r_U1[known_U]
      theirs_U1 = times_U2[known_U, CONTROL_COLUMN, None] > r_U1[known_U]
      self._bet(rows_U[known_U], mine_UG, theirs_U1, units.share_U[seen_U][known_U, None])
    for reference, column in ((self._control, CONTROL_COLUMN), (self._treatment, TREATMENT_COLUMN)):
      if reference is not None:
        is_read_U = ~np.isnan(times_U2[:, column])
        reference.add(rows_U[is_read_U], times_U2[is_read_U, column])

  def estimate(self, row: int) -> float | None:
    if self._treatment is None or np.isnan(ratio := self._treatment.value_R[row] / self._control.value_R[row]):
      return None
    return float(ratio)


def _seen(units: Units, value_U2: np.ndarray, is_inside_U: np.ndarray | None = None) -> np.ndarray:
  """Which units count: those that the arm that served them has read, or both arms where they are paired."""
  is_read_U2 = ~np.isnan(value_U2)
  is_read_U = np.where(units.is_paired_U, is_read_U2.all(1), is_read_U2.any(1))
  return np.flatnonzero(units.is_counted_U & is_read_U & (True if is_inside_U is None else is_inside_U))


def make_gates(config: RolloutConfig, rollouts: int, *, is_shown: bool) -> list[Gate]:
  """All gates of a rollout; those that may stop share alpha evenly, and among the stages if each needs evidence."""
  purpose = "purpose" if config.purpose == "required" else "report"
  asked = [
    ("delta", "loss difference", "quality", config.delta_margin, True, config.delta_low, config.delta_high, True),
    ("agreement", "top-1 agreement", "quality", config.agreement, False, 0.0, 1.0, True),
    ("canary", "canaries lost", "quality", config.canary_margin, True, -1.0, 1.0, False),
    ("errors", "errors", "guard", config.error_ratio, True, 0.0, np.inf, True),
    ("slow_first", "p99 to the first token", "guard", config.slow_ratio, True, 0.0, np.inf, True),
    ("slow_next", "p99 between tokens", "guard", config.slow_ratio, True, 0.0, np.inf, True),
    ("latency", f"median latency, {config.latency} token", purpose, 1 - config.reduction, True, 0.0, np.inf, True)]
  alpha = config.alpha / sum(role != "report" for _, _, role, *_ in asked)
  rules = {name: Rule(
    name, *rest, is_per_stage=is_per_stage, alpha_stop=alpha / (len(config.stages) if is_per_stage else 1),
    alpha_go=config.alpha_go) for name, *rest, is_per_stage in asked}
  common = {"rollouts": rollouts, "is_shown": is_shown}
  return [
    *(MeanGate(rules[name], **common) for name in ("delta", "agreement", "canary")),
    ErrorGate(rules["errors"], **common),
    *(TimeGate(rules[f"slow_{times}"], **common, times=times, quantile=0.99, bucket=(0, 0))
      for times in ("first", "next")),
    TimeGate(rules["latency"], **common, times=config.latency, quantile=0.5,
             bucket=(config.bucket_from, config.bucket_to))]
