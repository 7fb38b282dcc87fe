"""Which arm serves a unit, and which units are compared: by hashes of their names, so that nothing need be stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

CONTROL, TREATMENT = "control", "treatment"
BUCKETS = 10_000


@dataclass(frozen=True)
class Assignment:
  """What to do with a unit. Give it back to `Rollout.record` together with what was observed.

  arm: whose answer is served. is_compared: whether the other arm shall read the same tokens too. stage: its name.
  visit: which stay in a stage this was; what is recorded after the rollout has moved on does not count for the gates.
  """

  unit: str
  arm: str
  is_compared: bool
  stage: str
  visit: int


def bucket_of(salt: str, unit: str, what: str = "arm") -> int:
  """0 to 9,999, evenly; independent for each `what` and salt, neither of which may hold a zero byte."""
  digest = hashlib.sha256(f"{what}\0{salt}\0{unit}".encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8], "big") % BUCKETS


def arm_of(salt: str, unit: str, percent: float) -> str:
  """Sticky and monotone: a unit that is treated at some percentage is treated at every higher one."""
  return TREATMENT if bucket_of(salt, unit) < round(percent * BUCKETS / 100) else CONTROL


def is_sampled(salt: str, unit: str, rate: float) -> bool:
  """Whether the unit is among the share `rate` on which both arms are run, whichever arm serves it."""
  return bucket_of(salt, unit, "quality") < round(rate * BUCKETS)
