"""Transformer-VQ attention by its quadratic definition over quantised keys, float32, state token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.block import read_block
from lattice_jax.memories.vq.summary import vq_memory
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.near_far import Far, Stream, fold_by_token


def attend_quadratic(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, far: Far, rows_HMK: jax.Array, relative_HSK: jax.Array,
  id_BT: jax.Array, *, use_cache: bool, span: int,
) -> tuple[jax.Array, Far]:
  """Every score of every query against all stream slots and the incoming cache; output [B,T,H,G,V] and last cache.

  span: tokens of the blocks that say which queries give a key its gradient; 0 = those at most W later.
  """
  qu_BTHGK, qw_BTHGK = qu_BTHGK.astype(jnp.float32), qw_BTHGK.astype(jnp.float32)
  tokens, cache = stream.tokens, far.summary
  key_BSHK, value_BSHV = tokens.key_BSHK.astype(jnp.float32), tokens.value_BSHV.astype(jnp.float32)
  length, slots = id_BT.shape[1], stream.id_BS.shape[1]
  window = slots - length
  distance_TS = window + jnp.arange(length)[:, None] - jnp.arange(slots)
  is_near_TS = (distance_TS >= 0) & (distance_TS <= window)
  is_moved_TS = is_near_TS
  if span:
    is_moved_TS = jnp.arange(slots) >= (jnp.arange(length) // span * span)[:, None]

  def scores(key):
    return jnp.einsum("BTHGK,BSHK->BHGTS", qu_BTHGK, key, precision="highest")

  content = jnp.where(is_moved_TS, scores(key_BSHK), scores(jax.lax.stop_gradient(key_BSHK)))
  distance_HTSK = relative_HSK.astype(jnp.float32)[:, jnp.clip(distance_TS, 0, window)]
  bias = jnp.einsum("BTHGK,HTSK->BHGTS", qw_BTHGK, distance_HTSK, precision="highest")
  is_seen_BTS = (distance_TS >= 0) & (id_BT[:, :, None] == stream.id_BS[:, None]) & (stream.id_BS != EMPTY)[:, None]
  if not use_cache:
    is_seen_BTS &= distance_TS <= window
  score_BHGTS = jnp.where(is_seen_BTS[:, None, None], content + jnp.where(is_near_TS, bias, 0.0), MASKED)

  cached = jnp.einsum("BTHGK,HMK->BHGTM", qu_BTHGK, rows_HMK, precision="highest")
  is_used_BHGTM = (cache.count_BHM > 0)[:, :, None, None] & (id_BT == far.document_B[:, None])[:, None, None, :, None]
  is_used_BHGTM &= use_cache
  log_count_BHM = jnp.log(jnp.maximum(cache.count_BHM, 1.0))
  score_BHGTM = jnp.where(is_used_BHGTM, cached + log_count_BHM[:, :, None, None], MASKED)

  weight = jax.nn.softmax(jnp.concatenate([score_BHGTM, score_BHGTS], -1), axis=-1)
  out_BTHGV = jnp.einsum("BHGTM,BHMV->BTHGV", weight[..., :rows_HMK.shape[1]], cache.mean_BHMV, precision="highest")
  out_BTHGV += jnp.einsum("BHGTS,BSHV->BTHGV", weight[..., rows_HMK.shape[1]:], value_BSHV, precision="highest")
  memory = vq_memory(rows_HMK.shape[1], read_block)
  return out_BTHGV, fold_by_token(memory, stream, far, (id_BT != EMPTY).sum(1), length if use_cache else 0)
