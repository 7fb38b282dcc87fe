"""The mask of local attention, written out for all pairs of a call's tokens and every head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.local import ALL, HeadGroup, take_heads


def visible(run_BT: jax.Array, index_BT: jax.Array, window: int | jax.Array, *, sinks: int) -> jax.Array:
  """Bool [B, T, S], query and key: a document's first tokens, and the last `window` up to the query."""
  back_BTS = index_BT[:, :, None] - index_BT[:, None]
  is_near_BTS = (index_BT < sinks)[:, None] | (back_BTS < window) | (jnp.asarray(window) == ALL)
  is_pair_BTS = (run_BT[:, :, None] == run_BT[:, None]) & (run_BT != EMPTY)[:, None]
  return is_pair_BTS & (back_BTS >= 0) & is_near_BTS


def attend_reference(
  q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, index_BT: jax.Array,
  groups: tuple[HeadGroup, ...], layer: jax.Array, *, sinks: int,
) -> list[tuple[jax.Array, jax.Array]]:
  """As `ops.local.attend_band`, from every score at once."""
  kv_heads, is_token_BT = k_BTHK.shape[2], run_BT != EMPTY
  q_BTQK, k_BTHK, v_BTHV = (
    x.astype(jnp.float32) for x in keep_only(is_token_BT, (q_BTQK, k_BTHK, v_BTHV)))
  found = []
  for group in groups:
    own_BTQK, *own = (take_heads(x, group, kv_heads) for x in (q_BTQK, k_BTHK, v_BTHV))
    k_BTQK, v_BTQV = (jnp.repeat(x, own_BTQK.shape[2] // x.shape[2], axis=2) for x in own)
    score_BQTS = jnp.einsum("BTQK,BSQK->BQTS", own_BTQK, k_BTQK, precision="highest") * q_BTQK.shape[-1] ** -0.5
    sees_BTS = visible(run_BT, index_BT, group.window(layer, 2**30), sinks=sinks)
    score_BQTS = jnp.where(sees_BTS[:, None], score_BQTS, MASKED)
    lse_BQT = jax.nn.logsumexp(score_BQTS, axis=-1)
    weight_BQTS = jnp.where(is_token_BT[:, None, :, None], jnp.exp(score_BQTS - lse_BQT[..., None]), 0.0)
    out_BTQV = jnp.einsum("BQTS,BSQV->BTQV", weight_BQTS, v_BTQV, precision="highest")
    found.append((out_BTQV, jnp.where(is_token_BT[..., None], jnp.moveaxis(lse_BQT, 1, 2), MASKED)))
  return found
