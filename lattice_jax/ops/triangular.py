"""Inverses of triangular matrices in matrix products: LAPACK's solver is slow in batches on CPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def filled_size(size: int) -> int:
  """The next power of two: what is taken by halves is filled up to it."""
  return 1 << (size - 1).bit_length()


@jax.custom_jvp
def inverse_unit_lower(strict: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
  """(I + strict)⁻¹ for a strictly lower [..., C, C], from the inverses of its halves."""
  size = strict.shape[-1]
  missing = filled_size(size) - size
  filled = jnp.pad(strict, (*((0, 0),) * (strict.ndim - 2), (0, missing), (0, missing))) if missing else strict
  return _invert(filled)[..., :size, :size]


@inverse_unit_lower.defjvp
def _inverse_unit_lower_jvp(primals, tangents):
  # Two products of whole matrices, where the derivative of the halving would take four in every one of its rounds.
  inverse = inverse_unit_lower(*primals)
  return inverse, -_product(inverse, _product(jnp.tril(*tangents, -1), inverse))


def _invert(strict: jax.Array) -> jax.Array:
  size = strict.shape[-1]
  if size == 1:
    return jnp.ones_like(strict)
  first, second = slice(size // 2), slice(size // 2, size)
  upper, lower = _invert(jnp.stack([strict[..., first, first], strict[..., second, second]]))
  lower_left = -_product(lower, _product(strict[..., second, first], upper))
  return jnp.concatenate([
    jnp.concatenate([upper, jnp.zeros_like(upper)], -1), jnp.concatenate([lower_left, lower], -1)], -2)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.matmul(left, right, precision="highest")
