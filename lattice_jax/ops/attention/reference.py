"""Softmax attention as its definition: every score at once, float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import Order, allowed

MASKED = -1e30


def exp_masked(score: jax.Array, top: jax.Array) -> jax.Array:
  """exp(score − top), and 0 where the score is MASKED, also if the top is."""
  return jnp.exp(score - jnp.maximum(top, MASKED / 2))


def attend_reference(
  q_BTHGK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, query_order: Order, key_order: Order, *,
  window: int | jax.Array, skip: int | jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Output [B,T,H,G,V] and log-sum-exp [B,T,H,G]; a query that sees nothing gives 0 and MASKED."""
  q_BTHGK, k_BSHK, v_BSHV = (x.astype(jnp.float32) for x in (q_BTHGK, k_BSHK, v_BSHV))
  score_BHGTS = jnp.einsum("BTHGK,BSHK->BHGTS", q_BTHGK, k_BSHK, precision="highest") * q_BTHGK.shape[-1] ** -0.5
  allowed_BTS = allowed(query_order, key_order, window=window, skip=skip)[:, None, None]
  score_BHGTS = jnp.where(allowed_BTS, score_BHGTS, MASKED)
  top_BHGT = jax.lax.stop_gradient(score_BHGTS.max(-1))
  weight_BHGTS = jnp.where(allowed_BTS, jnp.exp(score_BHGTS - top_BHGT[..., None]), 0.0)
  total_BHGT = weight_BHGTS.sum(-1)
  sees_BHGT = total_BHGT > 0
  safe_BHGT = jnp.where(sees_BHGT, total_BHGT, 1.0)
  out_BTHGV = jnp.einsum("BHGTS,BSHV->BTHGV", weight_BHGTS / safe_BHGT[..., None], v_BSHV, precision="highest")
  lse_BHGT = jnp.where(sees_BHGT, top_BHGT + jnp.log(safe_BHGT), MASKED)
  return out_BTHGV, jnp.moveaxis(lse_BHGT, 3, 1)
