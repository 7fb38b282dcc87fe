"""Fields of the memories that attend, `model.attention`: heads, their widths, biases, norms and rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.fields import at_least, choice, free, positive, section, switch
from lattice_jax.memories.section import check_heads
from lattice_jax.ops.rotary_config import RopeScalingConfig


@dataclass(frozen=True)
class AttentionConfig:
  """Softmax attention. `key_dim` and `value_dim` are per head; `heads` must be a multiple of `kv_heads`."""

  heads: int = positive(4, "of queries")
  kv_heads: int = positive(4, "of keys and values")
  key_dim: int = positive(32, "of a head's queries and keys")
  value_dim: int = positive(32, "of a head's values")
  window: int = at_least(
    0, 0, "tokens a query sees, itself included; used by the pattern entry \"window\", 0 elsewhere")
  rope_theta: float = at_least(0, 10_000.0, "base of the rotary embedding; 0 = none")
  rope_scaling: RopeScalingConfig = section(RopeScalingConfig, "rotary frequencies of a model made for longer texts")
  bias: str = choice(
    "none", ("none", "qkv", "all"), "qkv: of queries, keys and values; all: of the output projection too")
  qk_norm: bool = switch(False, "RMS-normalise queries and keys, as VQ does")
  exchange: str = free(choice(
    "gather", ("gather", "ring"), "of the memory \"attention\" where mesh.seq splits tokens. gather: every device has "
    "the keys and values of all; ring: those of one device at a time, which go round"))
  gated: bool = switch(False, "value SiLU and output gate: the attention of a gated attention unit")


def check(config: AttentionConfig) -> None:
  """Raises ValueError where fields contradict one another."""
  check_heads("model.attention", config.heads, config.kv_heads)
  if config.rope_theta and config.key_dim % 2:
    raise ValueError(
      f"model.attention.key_dim={config.key_dim} must be even for the rotary embedding; "
      f"use {config.key_dim + 1}, or model.attention.rope_theta=0.")
  scaling = config.rope_scaling
  for slow, fast in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
    if not getattr(scaling, slow) < getattr(scaling, fast):
      raise ValueError(
        f"model.attention.rope_scaling.{slow}={getattr(scaling, slow)} must be below {fast}="
        f"{getattr(scaling, fast)}.")
  if scaling.kind == "yarn" and 0 < config.rope_theta <= 1:
    raise ValueError(
      f"model.attention.rope_theta={config.rope_theta} must be above 1 for rope_scaling.kind='yarn', which "
      "counts turns by its logarithm.")
