"""What the rest of the code knows of DeltaNet and Gated DeltaNet."""

from __future__ import annotations

import flax.linen as nn

from lattice_jax.memories.delta.cases import make_cases
from lattice_jax.memories.delta.layer import DeltaNet, GatedDeltaNet
from lattice_jax.memories.memory import Memory, recurrent_memory

_PASSES = 3  # of a token over a head's state: look-up, write, read


def _memory(layer: type[nn.Module], num_gates: int) -> Memory:
  return recurrent_memory(
    layer, "delta", cases=make_cases, gates=lambda dim, config: num_gates * dim * config.heads,
    passes=lambda config: _PASSES * config.heads * config.key_dim * config.value_dim)


MEMORIES = {"deltanet": _memory(DeltaNet, 1), "gated_deltanet": _memory(GatedDeltaNet, 2)}
