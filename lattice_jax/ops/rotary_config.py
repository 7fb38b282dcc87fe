"""Fields of the rotary embedding of models that were stretched to longer texts."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.fields import choice, positive, switch


@dataclass(frozen=True)
class RopeScalingConfig:
  """How the rotary frequencies of a model that was stretched to longer texts differ; as Llama-family configs say it."""

  kind: str = choice(
    "none", ("none", "linear", "llama3", "yarn"),
    "linear: all frequencies divided by factor; llama3, yarn: slow ones divided, fast ones kept")
  factor: float = positive(1.0, "how much longer texts may be")
  original_len: int = positive(
    8192, "context before stretching; by it turns and wavelengths are called fast or slow")
  low_freq_factor: float = positive(1.0, "llama3: wavelengths above original_len / low_freq_factor are slow")
  high_freq_factor: float = positive(4.0, "llama3: wavelengths below original_len / high_freq_factor are fast")
  beta_fast: float = positive(32.0, "yarn: more turns over original_len than this are fast")
  beta_slow: float = positive(1.0, "yarn: fewer turns are slow")
  truncate: bool = switch(True, "yarn: both ends of the rise are whole pairs, rounded outwards")
  gain: float = positive(1.0, "yarn: of rotated queries and keys")
