"""Fields of the delta rule, `model.delta`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import positive, within
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class DeltaConfig(RecurrentConfig):
  """A head's state is key_dim × value_dim."""

  key_dim: int = positive(32, "of a head's queries and keys")
  chunk_len: int = positive(
    16, "tokens taken at a time; changes cost, not results. On matrix units 64 without channel decays")
  max_step: float = within(
    0, 2, 1.0, "of the delta rule, whose share of it each token and head chooses; beyond 2 it overshoots by more "
    "than it corrects", is_low_open=True)


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "chunk_len": 8}


SECTION = Section("delta", DeltaConfig, "the memories \"deltanet\" and \"gated_deltanet\"", _smoke)
