"""Fields of TTT-Linear, `model.ttt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import positive
from lattice_jax.memories.recurrent_config import PublishedConfig, check_faithful
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class TTTConfig(PublishedConfig):
  """Queries and keys are as wide as values; a head's state is value_dim × (value_dim + 1), twice in a mini-batch."""

  mini_batch: int = positive(16, "tokens whose gradients are taken at the same weights")
  inner_rate: float = positive(1.0, "steps are at most this over value_dim")


def published(memory: str, config: Any) -> dict[str, Any]:
  """Fields as the published layer has them, with those of the config that it leaves open."""
  del memory
  return {"conv_width": config.conv_width or 4, "gated": True, "norm_eps": 1e-6}


def check(config: TTTConfig) -> None:
  """Raises ValueError where queries and keys cannot be rotated, or a published layer has not what is asked of it."""
  check_faithful("ttt", "ttt_linear", config, published("ttt_linear", config))
  if config.value_dim % 2:
    raise ValueError(
      f"model.ttt.value_dim={config.value_dim} must be even for the rotary embedding of 'ttt_linear'; "
      f"use {config.value_dim + 1}.")


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "value_dim": 16, "mini_batch": 8}


SECTION = Section("ttt", TTTConfig, "the memory \"ttt_linear\"", _smoke, published)
