"""A chunk of tokens in matrix products: what a decaying memory gives to every token, and what it is afterwards.

What is left of a token's write after another is a product of the decays between them, made as a product: a quotient of
cumulative products has no value where a decay is zero, and overflows long before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Kept(NamedTuple):
  """Shares that are left when a token reads; the last axis is that of the decays, K or 1.

  before: [B, H, C, K], of the memory before the chunk. between: [B, H, C, C, K], at token j of what token l ≤ j wrote,
  and zero for l > j.
  """

  before: jax.Array
  between: jax.Array


def keep(decay: jax.Array) -> Kept:
  """Shares from the decays [B, H, C, K or 1] of the tokens of a chunk; a token decays the memory, then writes."""
  size = decay.shape[2]
  is_after = jnp.arange(size)[:, None] > jnp.arange(-1, size)  # [j, l + 1]
  product = jnp.cumprod(jnp.where(is_after[..., None], decay[:, :, :, None], 1), axis=2)
  is_upto = jnp.tri(size, dtype=bool)[..., None]
  return Kept(product[:, :, :, 0], jnp.where(is_upto, product[:, :, :, 1:], 0))


def pairs(left: jax.Array, right: jax.Array, kept: Kept) -> jax.Array:
  """[B, H, C, C]: products of a token's `left` with what is left of an earlier token's `right`, both [B, H, C, K]."""
  if kept.between.shape[-1] == 1:
    return jnp.einsum("bhjk,bhlk->bhjl", left, right, precision="highest") * kept.between[..., 0]
  return jnp.einsum("bhjk,bhjlk->bhjl", left, kept.between * right[:, :, None], precision="highest")


def recall(left: jax.Array, kept: Kept, memory: jax.Array) -> jax.Array:
  """[B, H, C, V]: products of `left` with what is left of the memory [B, H, K, V] before the chunk."""
  return jnp.einsum("bhck,bhkv->bhcv", left * kept.before, memory, precision="highest")


def read(q: jax.Array, k: jax.Array, v: jax.Array, kept: Kept, memory: jax.Array) -> jax.Array:
  """Outputs [B, H, C, V]; every token reads after its own write."""
  here = jnp.einsum("bhjl,bhlv->bhjv", pairs(q, k, kept), v, precision="highest")
  return recall(q, kept, memory) + here


def write(k: jax.Array, v: jax.Array, kept: Kept, memory: jax.Array) -> jax.Array:
  """The memory after the chunk."""
  written = jnp.einsum("bhck,bhcv->bhkv", k * kept.between[:, :, -1], v, precision="highest")
  return kept.before[:, :, -1, :, None] * memory + written
