"""What the rest of the code knows of linear attention and its decaying forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lattice_jax.memories.gated_linear.cases import make_cases
from lattice_jax.memories.gated_linear.config import GatedLinearConfig, check
from lattice_jax.memories.gated_linear.fla import from_gla, from_mamba2
from lattice_jax.memories.gated_linear.layer import GLA, LinearAttention, ScalarDecay
from lattice_jax.memories.memory import Memory, recurrent_memory

_PASSES = 2  # of a token over a head's state: write, read


def _memory(
  layer: type[nn.Module], gates: Callable[[int, Any], int], from_fla: Callable[..., Any] | None = None) -> Memory:
  def passes(config: GatedLinearConfig) -> int:
    is_normalized = config.faithful and layer is LinearAttention
    return _PASSES * config.heads * config.key_dim * (config.value_dim + is_normalized)

  return recurrent_memory(
    layer, "gated_linear", cases=make_cases, gates=gates, passes=passes, from_fla=from_fla, exchange="prefix",
    check=lambda model: check(layer.published, model.gated_linear), shared=_shared if layer is ScalarDecay else None)


def _shared(dim: int, config: GatedLinearConfig) -> int:
  """Of Mamba-2's layer, whose heads have the same keys and queries."""
  return (config.heads - 1) * 2 * config.key_dim * (dim + config.conv_width)


MEMORIES = {
  "linear": _memory(LinearAttention, lambda dim, config: 0),
  "scalar_decay": _memory(ScalarDecay, lambda dim, config: dim * config.heads, from_mamba2),
  "gla": _memory(GLA, lambda dim, config: config.gate_rank * (dim + config.heads * config.key_dim), from_gla),
}
