"""Inverses of triangular matrices in matrix products: LAPACK's solver is slow in batches on CPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def inverse_unit_lower(strict: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
  """(I + strict)⁻¹ for a strictly lower [..., C, C], by doubling the blocks whose inverse is known."""
  size = strict.shape[-1]
  row = jnp.arange(size)
  inverse = jnp.broadcast_to(jnp.eye(size, dtype=strict.dtype), strict.shape)
  block = 1
  while block < size:
    # Within blocks twice as large, the lower left quarter is what the inverse lacks: -X L X.
    pair, side = row // (2 * block), row // block % 2
    is_new = (pair[:, None] == pair) & (side[:, None] > side)
    inverse = inverse - _product(inverse, jnp.where(is_new, strict, 0), inverse)
    block *= 2
  return inverse


@inverse_unit_lower.defjvp
def _inverse_unit_lower_jvp(primals, tangents):
  # Two products, where the derivative of the doubling would take four in every one of its rounds.
  inverse = inverse_unit_lower(*primals)
  return inverse, -_product(inverse, jnp.tril(*tangents, -1), inverse)


def _product(left: jax.Array, middle: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.matmul(left, jnp.matmul(middle, right, precision="highest"), precision="highest")
