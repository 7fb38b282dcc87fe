"""What the rest of the code knows of DeltaNet, Gated DeltaNet and Kimi delta attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lattice_jax.memories.delta.cases import make_cases
from lattice_jax.memories.delta.config import DeltaConfig, check
from lattice_jax.memories.delta.fla import from_deltanet, from_gated_deltanet, from_kimi_delta
from lattice_jax.memories.delta.layer import DeltaNet, GatedDeltaNet, KimiDelta
from lattice_jax.memories.memory import Memory, recurrent_memory

_PASSES = 3  # of a token over a head's state: look-up, write, read


def _state_passes(config: DeltaConfig) -> int:
  return _PASSES * config.heads * config.key_dim * config.value_dim


def _memory(layer: type[nn.Module], num_gates: int, from_fla: Callable[..., Any]) -> Memory:
  return recurrent_memory(
    layer, "delta", cases=make_cases, gates=lambda dim, config: num_gates * dim * config.heads, passes=_state_passes,
    check=lambda model: check(layer.published, model.delta), from_fla=from_fla, exchange="prefix")


def _low_rank(dim: int, config: DeltaConfig, width: int) -> int:
  return config.rank * (dim + config.heads * width)


MEMORIES = {
  "deltanet": _memory(DeltaNet, 1, from_deltanet),
  "gated_deltanet": _memory(GatedDeltaNet, 2, from_gated_deltanet),
  "kimi_delta": recurrent_memory(
    KimiDelta, "delta", cases=make_cases, passes=_state_passes, from_fla=from_kimi_delta, exchange="prefix",
    check=lambda model: check("kimi_delta", model.delta),
    gates=lambda dim, config: dim * config.heads + _low_rank(dim, config, config.key_dim),
    output_gate=lambda dim, config: _low_rank(dim, config, config.value_dim) * config.gated),
}
