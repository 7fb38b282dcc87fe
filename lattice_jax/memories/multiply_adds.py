"""Multiply-adds of what memories have in common, per token."""

from __future__ import annotations

from typing import Any

from lattice_jax.memories.recurrent_config import RecurrentConfig


def attention_projections(dim: int, config: Any) -> int:
  """Queries, keys, values, output and, where there is one, the gate of an attention layer."""
  queries = config.heads * (config.key_dim + config.value_dim * (2 if config.gated else 1))
  return dim * (queries + config.kv_heads * (config.key_dim + config.value_dim))


def recurrent_frame(dim: int, config: RecurrentConfig, key_dim: int) -> int:
  """Projections, but that of the output's gate, and convolutions around a recurrence."""
  inputs = 2 * key_dim + config.value_dim
  return config.heads * (dim * (inputs + config.value_dim) + config.conv_width * inputs)


def full_rank_gate(dim: int, config: RecurrentConfig) -> int:
  """The gate that a recurrence's output has in the frame, if any."""
  return dim * config.heads * config.value_dim * config.gated
