"""A chunk of tokens in matrix products: what a decaying memory gives to every token, and what it is afterwards.

What is left of a token's write after another is a product of the decays between them, made as a product: a quotient of
cumulative products has no value where a decay is zero, and overflows long before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CumulativeDecay(NamedTuple):
  """Shares that are left when a token reads; the last axis is that of the decays, K or 1.

  before_BHCK: of the memory before the chunk. between_BHCSK: at token c of what token s ≤ c wrote, and zero for s > c.
  """

  before_BHCK: jax.Array
  between_BHCSK: jax.Array


def cumulate(decay_BHCK: jax.Array) -> CumulativeDecay:
  """Shares from the decays of the tokens of a chunk; a token decays the memory, then writes."""
  size = decay_BHCK.shape[2]
  is_after = jnp.arange(size)[:, None] > jnp.arange(-1, size)  # [c, s + 1]
  product = jnp.cumprod(jnp.where(is_after[..., None], decay_BHCK[:, :, :, None], 1), axis=2)
  is_upto = jnp.tri(size, dtype=bool)[..., None]
  return CumulativeDecay(product[:, :, :, 0], jnp.where(is_upto, product[:, :, :, 1:], 0))


def pair_scores(q_BHCK: jax.Array, k_BHSK: jax.Array, decay: CumulativeDecay) -> jax.Array:
  """[B, H, C, S]: products of a token's query with what is left of the key of a token of the same chunk."""
  between_BHCSK = decay.between_BHCSK
  if between_BHCSK.shape[-1] == 1:
    return jnp.einsum("BHCK,BHSK->BHCS", q_BHCK, k_BHSK, precision="highest") * between_BHCSK[..., 0]
  return jnp.einsum("BHCK,BHCSK->BHCS", q_BHCK, between_BHCSK * k_BHSK[:, :, None], precision="highest")


def read_before(q_BHCK: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array) -> jax.Array:
  """[B, H, C, V]: what queries read of what is left of the memory before the chunk."""
  return jnp.einsum("BHCK,BHKV->BHCV", q_BHCK * decay.before_BHCK, memory_BHKV, precision="highest")


def read(
  q_BHCK: jax.Array, k_BHCK: jax.Array, v_BHCV: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array
) -> jax.Array:
  """Outputs [B, H, C, V]; every token reads after its own write."""
  score_BHCS = pair_scores(q_BHCK, k_BHCK, decay)
  return read_before(q_BHCK, decay, memory_BHKV) + jnp.einsum(
    "BHCS,BHSV->BHCV", score_BHCS, v_BHCV, precision="highest")


def write(k_BHCK: jax.Array, v_BHCV: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array) -> jax.Array:
  """The memory after the chunk."""
  written_BHKV = jnp.einsum(
    "BHCK,BHCV->BHKV", k_BHCK * decay.between_BHCSK[:, :, -1], v_BHCV, precision="highest")
  return decay.before_BHCK[:, :, -1, :, None] * memory_BHKV + written_BHKV
