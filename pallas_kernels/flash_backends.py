"""Where the kernels of windowed and of VQ attention and of its code search run, and where `auto` prefers XLA."""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels import on_hopper

SHORTEST = 128  # queries; below it a tile is mostly padding


def supports_backend(backend: str, *, dtype: jnp.dtype, key_dim: int, value_dim: int) -> str | None:
  """Why no kernel runs such heads on this backend; None if one does."""
  if backend == "gpu":
    return on_hopper.flash().supports(dtype=dtype, key_dim=key_dim, value_dim=value_dim)
  return _unless_tpu(backend)


def supports_search(backend: str, *, key_dim: int) -> str | None:
  """Why no kernel finds the nearest codes of such keys on this backend; None if one does."""
  return on_hopper.search().supports(key_dim=key_dim) if backend == "gpu" else _unless_tpu(backend)


def prefers_xla(backend: str, length: int) -> str | None:
  """Why a kernel would not be faster on this backend; None if it should be."""
  if backend == "gpu":
    return on_hopper.flash().AUTO_REASON
  return f"{length} queries fill less than one tile of {SHORTEST}" if length < SHORTEST else None


def _unless_tpu(backend):
  return None if backend == "tpu" else f"there is no Pallas kernel of it for {backend}"
