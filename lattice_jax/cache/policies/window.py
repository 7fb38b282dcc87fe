"""The sinks and the last tokens stay (StreamingLLM's frame, at the tokens' own positions)."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.cache.policies.record import PolicyRecord
from lattice_jax.fields import at_least


@dataclass(frozen=True)
class WindowConfig:
  """The size, unless `model.cache.tokens` gives it with the sinks included."""

  window: int = at_least(0, 0, "tokens that a query sees beside the sinks, itself included; 0 = what tokens leaves")


POLICY = PolicyRecord(
  doc="the policy \"window\": the sinks and the last tokens stay", chooses="recent", section=WindowConfig)
