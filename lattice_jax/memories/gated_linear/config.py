"""Fields of linear attention and its decaying forms, `model.gated_linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import choice, positive
from lattice_jax.memories.recurrent_config import NO_ABLATION, MatrixConfig, check_faithful
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class GatedLinearConfig(MatrixConfig):
  """A head's state is key_dim × value_dim, where linear is faithful key_dim × (value_dim + 1)."""

  key_dim: int = positive(32, "of a head's queries and keys")
  chunk_len: int = positive(
    16, "tokens taken at a time; changes cost, not results. On matrix units 64 without channel decays")
  gate_rank: int = positive(16, "of the projection that makes the decays of gla")
  features: str = choice(
    "unit", ("unit", "silu", "elu", "none"), "of q, k and v after the convolution: unit = SiLU, and q and k of length "
    "one; silu = SiLU alone; elu = ELU + 1 of q and k, v as it is; none = as they are")
  unit_eps: float = positive(1e-4, "added to the squared lengths of q and k, by whose roots those are divided")


def published(memory: str, config: Any) -> dict[str, Any]:
  """Fields as the published layer has them, with those of the config that it leaves open."""
  return {
    "linear": {"conv_width": 0, "gated": False, "features": "elu"},
    "scalar_decay": {"conv_width": config.conv_width or 4, "gated": True, "features": "silu"},
    "gla": {"features": "silu" if config.conv_width else "none"},
  }[memory] | NO_ABLATION


def check(memory: str, config: GatedLinearConfig) -> None:
  """Raises ValueError where the published layer is asked for with what it has not."""
  check_faithful("gated_linear", memory, config, published(memory, config))


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "chunk_len": 8, "gate_rank": 4}


SECTION = Section(
  "gated_linear", GatedLinearConfig, "the memories \"linear\", \"scalar_decay\" and \"gla\"", _smoke, published)
