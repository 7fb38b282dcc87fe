"""The windows of a model's layers."""

from __future__ import annotations

from dataclasses import replace

from lattice_jax.config import ModelConfig
from lattice_jax.memories.local.config import flat, window_rows


def rows(model: ModelConfig) -> tuple[tuple[int, ...], ...]:
  """The window of every key/value head, layer by layer. Raises ValueError as `window_rows`."""
  return window_rows(model.local, model.layers, model.attention.kv_heads)


def at_block(model: ModelConfig, block: int) -> ModelConfig:
  """The model with the windows of the layers that are this block of the pattern."""
  if len(model.local.windows) <= model.attention.kv_heads:
    return model
  return replace(model, local=replace(model.local, windows=flat(rows(model)[block::len(model.pattern)])))
