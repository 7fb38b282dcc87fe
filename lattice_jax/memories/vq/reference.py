"""Transformer-VQ attention by its quadratic definition over quantised keys, float32, state token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.cache import Cache, merge, summarize
from lattice_jax.memories.vq.state import Stream, VQState, close_state
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY


def attend_quadratic(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, state: VQState, rows_HMK: jax.Array,
  relative_HSK: jax.Array, id_BT: jax.Array, *, use_cache: bool, span: int,
) -> tuple[jax.Array, VQState]:
  """Every score of every query against all stream slots and the incoming cache; output [B,T,H,G,V] and final state.

  span: tokens of the blocks that say which queries give a key its gradient; 0 = those at most W later.
  """
  qu_BTHGK, qw_BTHGK = qu_BTHGK.astype(jnp.float32), qw_BTHGK.astype(jnp.float32)
  key_BSHK, value_BSHV = stream.key_BSHK.astype(jnp.float32), stream.value_BSHV.astype(jnp.float32)
  window, length, slots = state.id_BW.shape[1], id_BT.shape[1], stream.id_BS.shape[1]
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
  is_used_BHGTM = (state.count_BHM > 0)[:, :, None, None] & (id_BT == state.document_B[:, None])[:, None, None, :, None]
  is_used_BHGTM &= use_cache
  log_count_BHM = jnp.log(jnp.maximum(state.count_BHM, 1.0))
  score_BHGTM = jnp.where(is_used_BHGTM, cached + log_count_BHM[:, :, None, None], MASKED)

  weight = jax.nn.softmax(jnp.concatenate([score_BHGTM, score_BHGTS], -1), axis=-1)
  out_BTHGV = jnp.einsum("BHGTM,BHMV->BTHGV", weight[..., :rows_HMK.shape[1]], state.mean_BHMV, precision="highest")
  out_BTHGV += jnp.einsum("BHGTS,BSHV->BTHGV", weight[..., rows_HMK.shape[1]:], value_BSHV, precision="highest")
  return out_BTHGV, _roll_state(stream, state, id_BT, use_cache=use_cache)


def _roll_state(stream: Stream, state: VQState, id_BT: jax.Array, *, use_cache: bool) -> VQState:
  """Folds the oldest slot of the window into the cache once per valid token."""
  num_valid_B = (id_BT != EMPTY).sum(1)
  length = id_BT.shape[1] if use_cache else 0

  def one_token(cache, slot):
    id_B = jnp.where(slot < num_valid_B, stream.id_BS[:, slot], EMPTY)
    code_BTH, value_BTHV = stream.code_BSH[:, slot][:, None], stream.value_BSHV[:, slot][:, None]
    return merge(cache, summarize(code_BTH, value_BTHV, id_B[:, None], state.count_BHM.shape[-1])), None

  cache = Cache(state.count_BHM, state.mean_BHMV, state.document_B)
  cache, _ = jax.lax.scan(one_token, cache, jnp.arange(length))
  return close_state(
    stream, state.id_BW.shape[1], num_valid_B, cache.count_BHM, cache.mean_BHMV, cache.document_B)
