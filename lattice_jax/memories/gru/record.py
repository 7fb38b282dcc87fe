"""What the rest of the code knows of the GRU with diagonal recurrence."""

from __future__ import annotations

from lattice_jax.memories.gru.cases import make_cases
from lattice_jax.memories.gru.layer import GRU
from lattice_jax.memories.memory import recurrent_memory

_PASSES = 6  # of a token over a head's state: one product each for two gates, three for the candidate, one to move

MEMORIES = {
  "gru": recurrent_memory(
    GRU, "gru", cases=make_cases, key_dim="value_dim", gates=lambda dim, config: 0,
    passes=lambda config: _PASSES * config.heads * config.value_dim),
}
