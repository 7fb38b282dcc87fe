"""Fields of the delta rule, `model.delta`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import at_least, positive, within
from lattice_jax.memories.recurrent_config import NO_ABLATION, MatrixConfig, check_faithful
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class DeltaConfig(MatrixConfig):
  """A head's state is key_dim × value_dim."""

  key_dim: int = positive(32, "of a head's queries and keys")
  chunk_len: int = at_least(
    0, 0, "tokens taken at a time; changes cost, not results. 0 = 64 in the kernel for TPUs, which has chunks of 16, "
    "32 and 64; in XLA what is quickest on a CPU, 32, or 16 with decays of channels; without these, 64 suits matrix "
    "units there too")
  max_step: float = within(
    0, 2, 1.0, "of the delta rule, whose share of it each token and head chooses; beyond 2 it overshoots by more "
    "than it corrects", is_low_open=True)
  unit_eps: float = positive(1e-4, "added to the squared lengths of q and k, by whose roots those are divided")
  gate_rank: int = at_least(
    0, 0, "of the projections that make the decays and the output's gate, a sigmoid, of kimi_delta; 0 = value_dim")

  @property
  def rank(self) -> int:
    """`gate_rank`, where 0 has been replaced by what it stands for."""
    return self.gate_rank or self.value_dim


def published(memory: str, config: Any) -> dict[str, Any]:
  """Fields as the published layer has them, with those of the config that it leaves open."""
  step = {"unit_eps": 1e-6, "max_step": 2.0 if config.max_step == 2 else 1.0, **NO_ABLATION}
  if memory != "kimi_delta":
    return step
  return step | {"gated": True, "gate_rank": config.gate_rank if config.gate_rank == config.value_dim else 0}


def check(memory: str, config: DeltaConfig) -> None:
  """Raises ValueError where the published layer is asked for with what it has not."""
  check_faithful("delta", memory, config, published(memory, config))


def _smoke(config: Any) -> dict[str, Any]:
  rank = 0 if config.faithful else 4
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "chunk_len": 8, "gate_rank": rank}


SECTION = Section(
  "delta", DeltaConfig, "the memories \"deltanet\", \"gated_deltanet\" and \"kimi_delta\"", _smoke, published)
