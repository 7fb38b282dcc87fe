"""Directions and lengths of slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# A smaller length is not divided by, so the direction of a zero vector is a zero vector.
TINY = 1e-12


def unit(slot_MV: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows as directions and lengths."""
  length_M = jnp.sqrt(jnp.maximum((slot_MV * slot_MV).sum(-1), TINY**2))
  return slot_MV / length_M[..., None], length_M
