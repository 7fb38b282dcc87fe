"""Fields of Transformer-VQ attention, `model.vq`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import at_least, choice, finite, fraction, free, positive, switch
from lattice_jax.memories.section import Section, check_heads

KEY_GRADIENTS = ("window", "blocks")
REDUCTIONS = ("auto", "serial", "matmul", "associative", "input_scan")


@dataclass(frozen=True)
class VQConfig:
  """Transformer-VQ attention (arXiv 2309.16354). `key_dim` and `value_dim` are per head."""

  heads: int = positive(1, "of queries")
  kv_heads: int = positive(1, "of keys and values; one codebook each")
  key_dim: int = positive(128, "of a head's queries and keys")
  value_dim: int = positive(1536, "of a head's values")
  codes: int = positive(512, "S of the paper")
  block_len: int = positive(512, "L of the paper: queries read at a time; changes cost, not results")
  window: int = at_least(
    0, 0, "uncompressed tokens and reach of the position bias; 0 = block_len, as in the paper")
  reduction: str = free(choice("auto", REDUCTIONS, "how blocks get their caches; changes cost only"))
  gated: bool = switch(True, "SHGA: value SiLU and output gate")
  joined: bool = switch(
    False, "keys, values and gate are one projection: one tensor to Adafactor, the same to other optimizers")
  key_gradient: str = choice(
    "window", KEY_GRADIENTS,
    "window: from all queries in reach; blocks: from those of its own block and while in a block's window")
  stale_rows: bool = switch(False, "keys of the window stay the codebook rows that they were when read")
  cache: bool = switch(True, "False masks the compressive cache; the window stays")
  commit_weight: float = at_least(0, 1e-4, "of the commitment loss")
  ema_rate: float = fraction(0.99, "of the codebook's moving averages: share of the old one that stays")
  data_start: bool = switch(False, "the first update's keys replace the random codebook; not in the paper")
  near_start: float = finite(0.0, "start of a learned score for all of the window; 0 = none, as in the paper")
  revive_below: float = fraction(
    0.0, "codes used less than this share of the average restart; 0 = never, as in the paper")
  max_wavelength: float = positive(1e5, "of the position sinusoids")
  sinusoid_dropout: float = fraction(0.0, "of the position sinusoids")

  @property
  def reach(self) -> int:
    """Tokens of the window."""
    return self.window or self.block_len


def check(config: VQConfig, dim: int) -> None:
  """Raises ValueError where fields contradict one another, or the width `dim` of the model."""
  check_heads("model.vq", config.heads, config.kv_heads)
  if dim % 2:
    raise ValueError(f"model.dim={dim} must be even: the position sinusoids of 'vq' have model.dim columns.")


def _smoke(config: Any) -> dict[str, Any]:
  heads = min(4, config.heads)
  return {
    "heads": heads, "kv_heads": math.gcd(heads, config.kv_heads), "key_dim": 16, "value_dim": 32, "codes": 16,
    "block_len": 16}


SECTION = Section("vq", VQConfig, "the memory \"vq\"", _smoke)
