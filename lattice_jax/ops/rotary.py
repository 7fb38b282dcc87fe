"""Rotary position embedding, with the frequencies of models that were stretched to longer texts."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lattice_jax.ops.rotary_config import RopeScalingConfig


def rotate(
  x: Float[Array, "B T H K"], positions: Int[Array, "B T"], *, theta: float, scaling: RopeScalingConfig | None = None,
) -> Float[Array, "B T H K"]:
  """Queries or keys turned by their positions; halves convention (Llama): pairs are (k, k + K/2)."""
  half, wide = x.shape[-1] // 2, jnp.promote_types(x.dtype, jnp.float32)
  frequency_K = theta ** (-jnp.arange(half, dtype=wide) / half)
  gain = 1.0
  if scaling is not None and scaling.kind != "none":
    frequency_K = jnp.asarray(scaled_frequencies(scaling, theta, half), wide)
    gain = scaling.gain
  angle_BTK = positions[..., None].astype(wide) * frequency_K
  cos, sin = gain * jnp.cos(angle_BTK)[:, :, None], gain * jnp.sin(angle_BTK)[:, :, None]
  first, second = jnp.split(x.astype(wide), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def scaled_frequencies(scaling: RopeScalingConfig, theta: float, half: int) -> np.ndarray:
  """Radians a token of each pair [half], float64, by the rules of the published models."""
  frequency_K = theta ** (-np.arange(half) / half)
  slow_K = {"linear": _all_slow, "llama3": _slow_llama3, "yarn": _slow_yarn}[scaling.kind](scaling, theta, frequency_K)
  return frequency_K * (1 - slow_K) + frequency_K / scaling.factor * slow_K


def _all_slow(scaling: RopeScalingConfig, theta: float, frequency_K: np.ndarray) -> np.ndarray:
  del scaling, theta
  return np.ones_like(frequency_K)


def _slow_llama3(scaling: RopeScalingConfig, theta: float, frequency_K: np.ndarray) -> np.ndarray:
  """1 for wavelengths above original_len / low_freq_factor, 0 below original_len / high_freq_factor."""
  del theta
  turns_K = scaling.original_len * frequency_K / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  return 1 - np.clip((turns_K - low) / (high - low), 0, 1)


def _slow_yarn(scaling: RopeScalingConfig, theta: float, frequency_K: np.ndarray) -> np.ndarray:
  """0 up to the pair that makes beta_fast turns over original_len, rising to 1 at the one that makes beta_slow."""
  half = len(frequency_K)

  def pair_with(turns: float) -> float:
    return half * math.log(scaling.original_len / (turns * 2 * math.pi)) / math.log(theta)

  first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  # the published rule clips to the head's width, not to the number of pairs
  first, last = max(first, 0), min(last, 2 * half - 1)
  return np.clip((np.arange(half) - first) / (last - first or 1e-3), 0, 1)
