"""Where the kernels of windowed and of VQ attention run, and where `auto` prefers XLA."""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels import flash_hopper

SHORTEST = 128  # queries; below it a tile is mostly padding


def supports_backend(backend: str, *, dtype: jnp.dtype, key_dim: int, value_dim: int) -> str | None:
  """Why no kernel runs such heads on this backend; None if one does."""
  if backend == "tpu":
    return None
  if backend != "gpu":
    return f"there is no Pallas kernel of it for {backend}"
  return flash_hopper.supports(dtype=dtype, key_dim=key_dim, value_dim=value_dim)


def prefers_xla(backend: str, length: int) -> str | None:
  """Why a kernel would not be faster on this backend; None if it should be."""
  if backend == "gpu":
    return flash_hopper.AUTO_REASON
  return f"{length} queries fill less than one tile of {SHORTEST}" if length < SHORTEST else None
