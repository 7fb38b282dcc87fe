"""What the rest of the code knows of online vector-quantised attention."""

from __future__ import annotations

from lattice_jax.memories.memory import recurrent_memory
from lattice_jax.memories.online_vq.cases import make_cases
from lattice_jax.memories.online_vq.config import OnlineVQConfig
from lattice_jax.memories.online_vq.layer import OnlineVQ


def _passes(config: OnlineVQConfig) -> float:
  seen = config.codes + 2 * config.chunk_len  # the open chunk has places of its own beside those of the block
  joins = (config.codes + config.chunk_len) * config.key_dim + config.codes * (config.key_dim + config.value_dim)
  return config.heads * (seen * (config.key_dim + config.value_dim) + joins)


MEMORIES = {
  "online_vq": recurrent_memory(OnlineVQ, "online_vq", cases=make_cases, gates=lambda dim, config: 0, passes=_passes),
}
