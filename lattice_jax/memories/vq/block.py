"""One block of queries against all that it can see: window and block slot by slot, the far past per code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.cache import Cache
from lattice_jax.memories.vq.state import Stream
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY


def attend_block(
  qu_BCHGK: jax.Array, qw_BCHGK: jax.Array, id_BC: jax.Array, near: Stream, cache: Cache | None,
  rows_HMK: jax.Array, relative_HSK: jax.Array, *, by_blocks: bool,
) -> jax.Array:
  """fp32 output [B, C, H, G, V] of C queries.

  near: the W slots before the block and the block itself. cache: everything older; None forgets what lies further back
  than W tokens. relative: distances 0 … W. by_blocks: keys get the gradient of all queries of the block, not only of
  those at most W later.
  """
  chunk, slots = id_BC.shape[1], near.id_BS.shape[1]
  window = slots - chunk
  back_CS = window + jnp.arange(chunk)[:, None] - jnp.arange(slots)
  is_seen_BCS = (back_CS >= 0) & (id_BC[..., None] == near.id_BS[:, None]) & (near.id_BS != EMPTY)[:, None]
  if cache is None:
    is_seen_BCS &= back_CS <= window
  score = _content_scores(by_blocks, qu_BCHGK, near.key_BSHK) + _position_bias(qw_BCHGK, relative_HSK, chunk)
  scores, values = [jnp.where(is_seen_BCS[:, None, None], score, MASKED)], [near.value_BSHV]
  if cache is not None:
    scores.append(_cache_scores(qu_BCHGK, rows_HMK, cache, id_BC))
    values.append(jnp.swapaxes(cache.mean_BHMV, 1, 2).astype(near.value_BSHV.dtype))
  return _softmax_read(scores, values)


def _softmax_read(scores: list[jax.Array], values: list[jax.Array]) -> jax.Array:
  """One softmax over all groups of keys; weights are normalised before they meet the values."""
  top = jax.lax.stop_gradient(jnp.stack([score.max(-1) for score in scores]).max(0))[..., None]
  weights = [jnp.exp(score - top) for score in scores]
  total = sum(weight.sum(-1) for weight in weights)[..., None]
  return sum(
    jnp.einsum("BHGCS,BSHV->BCHGV", (weight / total).astype(value.dtype), value, preferred_element_type=jnp.float32)
    for weight, value in zip(weights, values, strict=True))


def _cache_scores(qu_BCHGK, rows_HMK, cache, id_BC):
  score = jnp.einsum("BCHGK,HMK->BHGCM", qu_BCHGK, rows_HMK.astype(qu_BCHGK.dtype), preferred_element_type=jnp.float32)
  count = cache.count_BHM[:, :, None, None]
  is_same = (id_BC == cache.document_B[:, None])[:, None, None, :, None]
  return jnp.where((count > 0) & is_same, score + jnp.log(jnp.maximum(count, 1.0)), MASKED)


def _position_bias(qw_BCHGK, relative_HSK, chunk):
  """q·r at the slots of distances 0 … W, and 0 beyond."""
  far_first_HSK = relative_HSK[:, ::-1].astype(qw_BCHGK.dtype)
  by_distance = jnp.einsum("BCHGK,HSK->BHGCS", qw_BCHGK, far_first_HSK, preferred_element_type=jnp.float32)
  # Row a must move right by a: a row padded to one more than its final width slides by one per row when re-cut.
  width = relative_HSK.shape[1] - 1 + chunk
  slid = jnp.pad(by_distance, ((0, 0),) * 4 + ((0, chunk),))
  return slid.reshape(*slid.shape[:3], -1)[..., :chunk * width].reshape(*slid.shape[:3], chunk, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _content_scores(by_blocks, qu_BCHGK, key_BSHK):
  """Scores of the slots; keys further back than W get no gradient, as in the definition, unless it is by blocks."""
  return jnp.einsum("BCHGK,BSHK->BHGCS", qu_BCHGK, key_BSHK, preferred_element_type=jnp.float32)


def _content_scores_fwd(by_blocks, qu_BCHGK, key_BSHK):
  return _content_scores(by_blocks, qu_BCHGK, key_BSHK), (qu_BCHGK, key_BSHK)


def _content_scores_bwd(by_blocks, saved, d_score):
  qu_BCHGK, key_BSHK = saved
  d_score = d_score.astype(qu_BCHGK.dtype)
  chunk, slots = d_score.shape[-2:]
  d_qu = jnp.einsum("BHGCS,BSHK->BCHGK", d_score, key_BSHK, preferred_element_type=jnp.float32)
  if not by_blocks:
    is_near_CS = jnp.arange(slots) >= jnp.arange(chunk)[:, None]
    d_score = jnp.where(is_near_CS, d_score, 0)
  d_key = jnp.einsum("BHGCS,BCHGK->BSHK", d_score, qu_BCHGK, preferred_element_type=jnp.float32)
  return d_qu.astype(qu_BCHGK.dtype), d_key.astype(key_BSHK.dtype)


_content_scores.defvjp(_content_scores_fwd, _content_scores_bwd)
