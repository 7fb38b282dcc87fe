"""What the rest of the code knows of linear attention and its decaying forms."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from lattice_jax.config import ModelConfig
from lattice_jax.memories.gated_linear.cases import make_cases
from lattice_jax.memories.gated_linear.layer import GLA, LinearAttention, ScalarDecay
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import recurrent_frame

_PASSES = 2  # of a token over a head's state: write, read


def _memory(layer: type[nn.Module], gates: Callable[[ModelConfig], int]) -> Memory:
  def multiply_adds(model: ModelConfig, length: int) -> float:
    del length
    config = model.gated_linear
    passes = _PASSES * config.heads * config.key_dim * config.value_dim
    return recurrent_frame(model.dim, config, config.key_dim) + gates(model) + passes

  return Memory(make=maker(layer, "gated_linear"), multiply_adds=multiply_adds, cases=make_cases)


def _channel_gates(model: ModelConfig) -> int:
  config = model.gated_linear
  return config.gate_rank * (model.dim + config.heads * config.key_dim)


MEMORIES = {
  "linear": _memory(LinearAttention, lambda model: 0),
  "scalar_decay": _memory(ScalarDecay, lambda model: model.dim * model.gated_linear.heads),
  "gla": _memory(GLA, _channel_gates),
}
