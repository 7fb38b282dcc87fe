"""What the rest of the code knows of linear attention and its decaying forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lattice_jax.memories.gated_linear.cases import make_cases
from lattice_jax.memories.gated_linear.fla import from_gla
from lattice_jax.memories.gated_linear.layer import GLA, LinearAttention, ScalarDecay
from lattice_jax.memories.memory import Memory, recurrent_memory

_PASSES = 2  # of a token over a head's state: write, read


def _memory(
  layer: type[nn.Module], gates: Callable[[int, Any], int], from_fla: Callable[..., Any] | None = None) -> Memory:
  return recurrent_memory(
    layer, "gated_linear", cases=make_cases, gates=gates, from_fla=from_fla,
    passes=lambda config: _PASSES * config.heads * config.key_dim * config.value_dim)


MEMORIES = {
  "linear": _memory(LinearAttention, lambda dim, config: 0),
  "scalar_decay": _memory(ScalarDecay, lambda dim, config: dim * config.heads),
  "gla": _memory(GLA, lambda dim, config: config.gate_rank * (dim + config.heads * config.key_dim), from_gla),
}
