"""What the rest of the code knows of DeltaNet and Gated DeltaNet."""

from __future__ import annotations

import flax.linen as nn

from lattice_jax.config import ModelConfig
from lattice_jax.memories.delta.cases import make_cases
from lattice_jax.memories.delta.layer import DeltaNet, GatedDeltaNet
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import recurrent_frame

_PASSES = 3  # of a token over a head's state: look-up, write, read


def _memory(layer: type[nn.Module], num_gates: int) -> Memory:
  def multiply_adds(model: ModelConfig, length: int) -> float:
    del length
    config = model.delta
    gates = num_gates * model.dim * config.heads
    passes = _PASSES * config.heads * config.key_dim * config.value_dim
    return recurrent_frame(model.dim, config, config.key_dim) + gates + passes

  return Memory(make=maker(layer, "delta"), multiply_adds=multiply_adds, cases=make_cases)


MEMORIES = {"deltanet": _memory(DeltaNet, 1), "gated_deltanet": _memory(GatedDeltaNet, 2)}
