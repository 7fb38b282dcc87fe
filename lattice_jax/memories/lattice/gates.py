"""What happens to one slot at one token, given how much of the token's direction lies along it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.rule import Rule


def gates(
  rule: Rule, k: jax.Array, step: jax.Array, forget: jax.Array, along: jax.Array, norm: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """(a, b): the slot's next direction is that of a·ŝ + b·h, and its length grows by forget·‖a·ŝ + b·h‖.

  Of slots that return it is that of a·ŝ + b·h + (1 − forget)·start. along: ŝ·h. norm: length of the slot, None where
  all are one. All arrays broadcast against `k`.
  """
  code = k - along if rule.objective == "encoding" else k
  if rule.state == "returning":
    b = code * step
    return forget - b * along if rule.is_projected else jnp.broadcast_to(forget, b.shape), b
  b = code * step / forget
  if norm is not None:
    b = b / norm**2
  return 1 - b * along if rule.is_projected else jnp.ones_like(b), b
