"""Fields of linear attention and its decaying forms, `model.gated_linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import choice, positive
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class GatedLinearConfig(RecurrentConfig):
  """A head's state is key_dim × value_dim."""

  key_dim: int = positive(32, "of a head's queries and keys")
  chunk_len: int = positive(
    16, "tokens taken at a time; changes cost, not results. On matrix units 64 without channel decays")
  gate_rank: int = positive(16, "of the projection that makes the decays of gla")
  features: str = choice(
    "unit", ("unit", "silu", "none"), "of q, k and v after the convolution: unit = SiLU, and q and k of length one; "
    "silu = SiLU alone; none = as they are")
  unit_eps: float = positive(1e-4, "added to the squared lengths of q and k, by whose roots those are divided")


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "chunk_len": 8, "gate_rank": 4}


SECTION = Section(
  "gated_linear", GatedLinearConfig, "the memories \"linear\", \"scalar_decay\" and \"gla\"", _smoke)
