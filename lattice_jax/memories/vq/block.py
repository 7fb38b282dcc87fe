"""One block of queries against all that it can see: window and block slot by slot, the far past per code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.state import Tokens
from lattice_jax.memories.vq.summary import Summary
from lattice_jax.ops.attention.reference import MASKED


def read_block(
  queries: tuple[jax.Array, jax.Array], near: Tokens, is_seen_BCS: jax.Array, cache: Summary | None,
  sees_cache_BC: jax.Array | None, *, rows_HMK: jax.Array, relative_HSK: jax.Array, by_blocks: bool,
) -> jax.Array:
  """fp32 output [B, C, H, G, V] of C queries; see `read` of `near_far.FarMemory`.

  queries: q + u and q + w. relative: distances 0 … W. by_blocks: keys get the gradient of all queries of the block, not
  only of those at most W later.
  """
  qu_BCHGK, qw_BCHGK = queries
  score = _content_scores(by_blocks, qu_BCHGK, near.key_BSHK)
  score += _position_bias(qw_BCHGK, relative_HSK, qu_BCHGK.shape[1])
  scores, values = [jnp.where(is_seen_BCS[:, None, None], score, MASKED)], [near.value_BSHV]
  if cache is not None:
    scores.append(_cache_scores(qu_BCHGK, rows_HMK, cache, sees_cache_BC))
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


def _cache_scores(qu_BCHGK, rows_HMK, cache, sees_cache_BC):
  score = jnp.einsum("BCHGK,HMK->BHGCM", qu_BCHGK, rows_HMK.astype(qu_BCHGK.dtype), preferred_element_type=jnp.float32)
  count = cache.count_BHM[:, :, None, None]
  is_seen = (count > 0) & sees_cache_BC[:, None, None, :, None]
  return jnp.where(is_seen, score + jnp.log(jnp.maximum(count, 1.0)), MASKED)


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
