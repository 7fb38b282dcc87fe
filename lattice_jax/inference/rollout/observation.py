"""What is observed of a unit, and how it stands in the log."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lattice_jax.shown import shown


@dataclass(frozen=True)
class Reading:
  """How one arm read a unit. Times in milliseconds; None where nothing was measured, as after an error.

  first_ms: to the first token. next_ms: to each next one, the median. longest_ms: the longest of these gaps.
  cache_bytes: held at the end. is_error: no answer, or too late. is_finite: no logit was NaN or infinite.
  """

  first_ms: float | None = None
  next_ms: float | None = None
  longest_ms: float | None = None
  cache_bytes: int | None = None
  is_error: bool = False
  is_finite: bool = True

  def __post_init__(self) -> None:
    for name in ("first_ms", "next_ms", "longest_ms", "cache_bytes"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name}={shown(value)} of a reading must be positive and finite, or None if unknown.")


@dataclass(frozen=True)
class Quality:
  """The treatment beside the control on the same tokens, each predicted from all true tokens before: means over them.

  delta_nll: the treatment's loss minus the control's, in nats. kl: divergence of the control's predictions from the
  treatment's. agreement: share of tokens for which both have the same most likely token.
  """

  delta_nll: float
  kl: float
  agreement: float
  tokens: int

  def __post_init__(self) -> None:
    for name, value, low, high in (
      ("delta_nll", self.delta_nll, -math.inf, math.inf), ("kl", self.kl, -1e-3, math.inf),
      ("agreement", self.agreement, 0, 1)):
      if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(
          f"{name}={shown(value)} is no such figure of a unit; where an arm's logits are not finite, give its reading "
          "with is_finite=False and no quality.")
    if self.tokens < 1:
      raise ValueError(f"the quality of a unit was measured on tokens={self.tokens}; it needs at least one.")


@dataclass(frozen=True)
class Canary:
  """Whether each arm answered a question right to which the answer is known."""

  control: bool
  treatment: bool


@dataclass(frozen=True)
class Observation:
  """All that is known of a unit once it is finished. length: tokens of its prompt.

  A reading for each arm that ran; a quality where both did; a canary alone, for it is no unit of the traffic.
  """

  length: int = 0
  control: Reading | None = None
  treatment: Reading | None = None
  quality: Quality | None = None
  canary: Canary | None = None

  def __post_init__(self) -> None:
    if self.canary is not None and (self.control or self.treatment or self.quality):
      raise ValueError("a canary is observed by itself: give its readings and its quality to no unit.")
    if self.canary is None and self.control is None and self.treatment is None:
      raise ValueError("an observation needs the reading of an arm, or a canary.")
    if self.quality is not None and (self.control is None or self.treatment is None):
      raise ValueError("a quality compares both arms, so the observation needs the readings of both.")

  def to_record(self) -> dict[str, Any]:
    """Without what is None or a default, so that lines are short."""
    record: dict[str, Any] = {"length": self.length} if self.length else {}
    for name in ("control", "treatment", "quality", "canary"):
      part = getattr(self, name)
      if part is not None:
        record[name] = {
          field.name: value for field in dataclasses.fields(part)
          if (value := getattr(part, field.name)) != field.default}
    return record

  @classmethod
  def from_record(cls, record: dict[str, Any]) -> Observation:
    """Raises TypeError or ValueError for anything but what `to_record` gives."""
    kinds = {"control": Reading, "treatment": Reading, "quality": Quality, "canary": Canary}
    return cls(**{name: kinds[name](**part) if name in kinds else part for name, part in record.items()})
