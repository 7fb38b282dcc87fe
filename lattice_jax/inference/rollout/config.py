"""What a staged rollout asks of a treatment: stages, margins, and how often it may be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lattice_jax.domains import short
from lattice_jax.fields import at_least, check_fields, choice, find, finite, fraction, names, positive, text, within

REPLAY, SHADOW = "replay", "shadow"
STAGES = (REPLAY, SHADOW, "1", "5", "25", "50", "100")


@dataclass(frozen=True)
class Stage:
  """percent: of the units that get the treatment's answer; 0 in the replay of recorded units and in the shadow."""

  name: str
  percent: float

  @property
  def is_paired(self) -> bool:
    """Whether the arms are compared on the same units; otherwise each unit is read by the one arm that serves it."""
    return self.percent in (0, 100)

  @property
  def title(self) -> str:
    return self.name if self.percent == 0 else f"{self.name} %"


@dataclass(frozen=True)
class RolloutConfig:
  """Stages, gates and guardrails of a rollout. docs/serving.md explains each, and what its statistics assume.

  Raises:
    ValueError: a field lies outside its domain, or the stages do not ascend.
  """

  salt: str = text("rollout", "of the hash that assigns units; rollouts with different salts are independent")
  stages: tuple[str, ...] = names(STAGES, "replay, shadow, and ascending percentages of units", fewest=1)
  alpha: float = within(
    0, 1, 0.05, "chance of a rollback, at most, if the treatment violates no gate", is_low_open=True, is_high_open=True)
  alpha_go: float = within(
    0, 1, 0.05, "chance that a stage is passed, at most, if a gate is violated", is_low_open=True, is_high_open=True)
  min_units: int = at_least(1, 100, "units with a measured quality before a stage may be passed")
  min_served: int = at_least(0, 20, "units served by the treatment before a stage may be passed that serves some")
  min_seconds: float = at_least(0.0, 0.0, "duration of a stage")
  quality_rate: float = within(0, 1, 0.05, "share of served units on which both arms read the same tokens")
  delta_margin: float = at_least(0.0, 0.02, "nats per token by which the treatment's loss may be higher")
  delta_low: float = finite(-0.25, "a unit's loss difference counts as at least this, which must be negative")
  delta_high: float = finite(1.0, "a unit's loss difference counts as at most this")
  agreement: float = within(0, 1, 0.97, "share of top tokens that agree, at least", is_low_open=True, is_high_open=True)
  canary_margin: float = fraction(0.01, "share of canaries by which the treatment may be worse")
  kl_limit: float = positive(0.5, "divergence of a unit, in nats per token, that ends the rollout if it is repeated")
  kl_run: int = at_least(1, 3, "units in a row above kl_limit that end the rollout")
  error_ratio: float = within(1, 100, 1.5, "times the control's errors that the treatment may have")
  slow_ratio: float = within(1, 100, 1.5, "times the control's 99 % latency that the treatment's may be")
  latency: str = choice("next", ("first", "next"), "what shall be faster: the first token, or each next one")
  reduction: float = fraction(0.3, "share by which the median latency shall be lower")
  bucket_from: int = at_least(0, 0, "tokens of a prompt from which its latency counts for the reduction")
  bucket_to: int = at_least(0, 0, "tokens of a prompt up to which its latency counts so; 0 = any number")
  purpose: str = choice(
    "required", ("required", "reported"), "required: a treatment that is not faster by the reduction ends; reported: "
    "how much faster it is decides nothing")

  def __post_init__(self) -> None:
    check_fields(self)
    check_stages(self.stages)
    if not self.delta_low < 0 <= self.delta_margin < self.delta_high:
      raise ValueError(
        f"delta_low={self.delta_low:g}, delta_margin={self.delta_margin:g} and delta_high={self.delta_high:g} must "
        "ascend, with delta_low below 0: the margin lies within the range to which differences are clipped.")
    if self.bucket_to and self.bucket_to < self.bucket_from:
      raise ValueError(
        f"bucket_to={self.bucket_to} is below bucket_from={self.bucket_from}; leave it at 0 for no upper bound.")

  @property
  def plan(self) -> tuple[Stage, ...]:
    return tuple(Stage(name, 0.0 if name in (REPLAY, SHADOW) else float(name)) for name in self.stages)


def check_stages(stages: Sequence[str]) -> None:
  """Raises ValueError unless these are replay and shadow, either of which may be missing, and ascending percentages."""
  for name in stages:
    if name not in (REPLAY, SHADOW) and not re.fullmatch(r"\d{1,3}(\.\d{1,2})?", name):
      raise ValueError(f"stages names {short(name)!r}; a stage is replay, shadow or a percentage such as 5 or 0.25.")
  places = [(0.0, (REPLAY, SHADOW).index(name)) if name in (REPLAY, SHADOW) else (float(name), 2) for name in stages]
  percents = [percent for percent, kind in places if kind == 2]
  if any(not 0 < percent <= 100 for percent in percents) or any(
    before >= after for before, after in itertools.pairwise(places)):
    raise ValueError(
      f"stages={','.join(stages)} do not ascend; give replay, then shadow, then percentages from above 0 to 100, as in "
      f"{','.join(STAGES)}.")


def with_changes(config: RolloutConfig, changes: Sequence[str]) -> RolloutConfig:
  """The config after changes `field=value`. Raises ValueError for an unknown field, or a value outside its domain."""
  values = {}
  for change in changes:
    name, equals, value = change.partition("=")
    if not equals:
      raise ValueError(f"a change of the rollout's config has the form field=value, as in delta_margin=0.05, not "
                       f"{short(change)!r}.")
    try:
      domain = find(RolloutConfig, name)
      values[name] = domain.parse(value)
    except ValueError as error:
      message = str(error)
      raise ValueError(message if message.startswith("unknown") else f"{name}={short(value)} {message}") from error
  return dataclasses.replace(config, **values)


def config_hash(config: RolloutConfig, facts: Mapping[str, Any]) -> str:
  """16 hexadecimal digits that depend on every field and every fact."""
  content = json.dumps([dataclasses.asdict(config), dict(facts)], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:16]
