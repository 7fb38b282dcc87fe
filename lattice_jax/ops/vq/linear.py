"""Transformer-VQ attention in linear time: blocks of queries against block, previous window, and one row per code.

The three groups of scores share one softmax. Blocks are counted from the first token of the call, not of the document:
the definition does not depend on the grid, so neither outputs nor gradients do (see README.md of this folder).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import EMPTY
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.vq.state import Stream, VQState, close_state, fold_block


def attend_linear(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, state: VQState, rows_HMK: jax.Array,
  relative_HSK: jax.Array, id_BT: jax.Array, *, use_cache: bool,
) -> tuple[jax.Array, VQState]:
  """Same result as `attend_quadratic`; fp32 output [B,T,H,G,V] and final state."""
  batch, length = id_BT.shape
  window = state.id_BW.shape[1]
  chunk = min(length, window)
  num_valid_B = (id_BT != EMPTY).sum(1)
  padding = -length % chunk
  qu, qw, id_BNC = (_to_blocks(_pad(x, padding), chunk) for x in (qu_BTHGK, qw_BTHGK, id_BT))
  id_BNC = id_BNC.at[:, -1, chunk - padding:].set(EMPTY) if padding else id_BNC
  padded = jax.tree.map(lambda x_BS: _pad(x_BS, padding), stream)
  present = jax.tree.map(lambda x_BS: _to_blocks(x_BS[:, window:], chunk), padded)
  previous = jax.tree.map(lambda x_BS: _previous_windows(x_BS, window, id_BNC.shape[1]), padded)

  bias_prv, bias_pre = _position_bias(qw, relative_HSK, window)
  score_prv = _near_scores(qu, previous.key_BSHK) + bias_prv
  score_pre = jnp.einsum("BNCHGK,BNSHK->BNHGCS", qu, present.key_BSHK, preferred_element_type=jnp.float32) + bias_pre
  row_C, col_C = jnp.arange(chunk)[:, None], jnp.arange(chunk)
  sees_prv = _same(id_BNC, previous.id_BS)
  if not use_cache:
    sees_prv &= jnp.arange(window) >= row_C
  score_prv = jnp.where(sees_prv, score_prv, MASKED)
  score_pre = jnp.where(_same(id_BNC, present.id_BS) & (col_C <= row_C), score_pre, MASKED)
  scores, values = [score_prv, score_pre], [previous.value_BSHV, present.value_BSHV]

  cache = state.count_BHM, state.mean_BHMV, state.document_B
  if use_cache:
    cache, (count_NBHM, mean_NBHMV, document_NB) = _scan_cache(cache, padded, num_valid_B, id_BNC.shape[1], chunk)
    scores.append(_cache_scores(qu, rows_HMK, count_NBHM, document_NB, id_BNC))
    values.append(jnp.moveaxis(mean_NBHMV, (0, 3), (1, 2)).astype(values[0].dtype))
  out_BTHGV = _softmax_read(scores, values).reshape(batch, length + padding, *qu.shape[3:5], -1)[:, :length]
  return out_BTHGV, close_state(stream, window, num_valid_B, *cache)


def _softmax_read(scores: list[jax.Array], values: list[jax.Array]) -> jax.Array:
  """One softmax over all groups of keys, [B,N,C,H,G,V]; weights are normalised before they meet the values."""
  top = jax.lax.stop_gradient(jnp.stack([score.max(-1) for score in scores]).max(0))[..., None]
  weights = [jnp.exp(score - top) for score in scores]
  total = sum(weight.sum(-1) for weight in weights)[..., None]
  return sum(
    jnp.einsum("BNHGCS,BNSHV->BNCHGV", (weight / total).astype(value.dtype), value, preferred_element_type=jnp.float32)
    for weight, value in zip(weights, values, strict=True))


def _scan_cache(cache, stream, num_valid_B, num_blocks, chunk):
  """The cache as each block finds it, and after the last; block n finds all slots before its previous window."""
  slots = num_blocks * chunk
  is_used_BS = jnp.arange(slots) < num_valid_B[:, None]
  id_BS = jnp.where(is_used_BS, stream.id_BS[:, :slots], EMPTY)
  xs = tuple(jnp.moveaxis(_to_blocks(x_BS, chunk), 1, 0)
             for x_BS in (stream.code_BSH[:, :slots], stream.value_BSHV[:, :slots], id_BS))
  return jax.lax.scan(lambda carry, x: (fold_block(carry, *x), carry), cache, xs)


def _cache_scores(qu, rows_HMK, count_NBHM, document_NB, id_BNC):
  score = jnp.einsum("BNCHGK,HMK->BNHGCM", qu, rows_HMK.astype(qu.dtype), preferred_element_type=jnp.float32)
  count = jnp.moveaxis(count_NBHM, 0, 1)[:, :, :, None, None]
  is_same = (id_BNC == document_NB.T[..., None])[:, :, None, None, :, None]
  return jnp.where((count > 0) & is_same, score + jnp.log(jnp.maximum(count, 1.0)), MASKED)


def _same(id_BNC, id_BNS):
  same = (id_BNC[..., None] == id_BNS[:, :, None]) & (id_BNS != EMPTY)[:, :, None]
  return same[:, :, None, None]


def _position_bias(qw, relative_HSK, window):
  """q·r of distances 0…W, laid under the previous window and the present block; 0 beyond W."""
  chunk = qw.shape[2]
  far_first_HSK = relative_HSK[:, ::-1].astype(qw.dtype)
  by_distance = jnp.einsum("BNCHGK,HSK->BNHGCS", qw, far_first_HSK, preferred_element_type=jnp.float32)
  # Row a must move right by a: a row padded to one more than its final width slides by one per row when re-cut.
  width = window + chunk
  slid = jnp.pad(by_distance, ((0, 0),) * 5 + ((0, width - window),))
  slid = slid.reshape(*slid.shape[:4], -1)[..., :chunk * width].reshape(*slid.shape[:4], chunk, width)
  return slid[..., :window], slid[..., window:]


@jax.custom_vjp
def _near_scores(qu, key_BNWHK):
  """Content scores against the previous window; keys further back than W get no gradient, as in the definition."""
  return jnp.einsum("BNCHGK,BNSHK->BNHGCS", qu, key_BNWHK, preferred_element_type=jnp.float32)


def _near_scores_fwd(qu, key_BNWHK):
  return _near_scores(qu, key_BNWHK), (qu, key_BNWHK)


def _near_scores_bwd(saved, d_score):
  qu, key_BNWHK = saved
  d_score = d_score.astype(qu.dtype)
  d_qu = jnp.einsum("BNHGCS,BNSHK->BNCHGK", d_score, key_BNWHK, preferred_element_type=jnp.float32)
  is_near = jnp.arange(d_score.shape[-1]) >= jnp.arange(d_score.shape[-2])[:, None]
  d_key = jnp.einsum("BNHGCS,BNCHGK->BNSHK", d_score * is_near, qu, preferred_element_type=jnp.float32)
  return d_qu.astype(qu.dtype), d_key.astype(key_BNWHK.dtype)


_near_scores.defvjp(_near_scores_fwd, _near_scores_bwd)


def _previous_windows(x_BS, window, num_blocks):
  """For block n the `window` slots before it; with more than one block, block and window are equally long."""
  return _to_blocks(x_BS[:, :num_blocks * window], window)


def _to_blocks(x_BT, chunk):
  return x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:])


def _pad(x_BT, padding):
  return jnp.pad(x_BT, ((0, 0), (0, padding), *((0, 0),) * (x_BT.ndim - 2)))
