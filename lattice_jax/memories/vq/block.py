"""One block of queries against all that it can see: window and block slot by slot, the far past per code.

Inside, heads come first, and the G heads that share keys and the C tokens are one axis N: every product then comes out
in the order in which the next one takes it, and XLA transposes neither scores nor values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.state import Tokens
from lattice_jax.memories.vq.summary import Summary
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.products import inner


def read_block(
  queries: tuple[jax.Array, jax.Array], near: Tokens, is_seen_BCS: jax.Array, cache: Summary | None,
  sees_cache_BC: jax.Array | None, *, rows_HMK: jax.Array, relative_HSK: jax.Array, by_blocks: bool,
) -> jax.Array:
  """fp32 output [B, C, H, G, V] of C queries; see `read` of `near_far.FarMemory`.

  queries: q + u and q + w. relative: distances 0 … W. by_blocks: keys get the gradient of all queries of the block, not
  only of those at most W later.
  """
  batch, chunk, heads, group, _ = queries[0].shape
  qu_BHNK, qw_BHNK = (
    x_BCHGK.transpose(0, 2, 3, 1, 4).reshape(batch, heads, group * chunk, -1) for x_BCHGK in queries)
  key_BHSK, value_BHSV = (jnp.swapaxes(x_BSHK, 1, 2) for x_BSHK in (near.key_BSHK, near.value_BSHV))
  score_BHNS = _content_scores(by_blocks, group, qu_BHNK, key_BHSK)
  score_BHNS += _position_bias(qw_BHNK, relative_HSK, chunk)
  scores, values = [_mask(score_BHNS, is_seen_BCS)], [value_BHSV]
  if cache is not None:
    scores.append(_cache_scores(qu_BHNK, rows_HMK, cache, sees_cache_BC))
    values.append(cache.mean_BHMV.astype(near.value_BSHV.dtype))
  out_BHNV = _softmax_read(scores, values)
  return out_BHNV.reshape(batch, heads, group, chunk, -1).transpose(0, 3, 1, 2, 4)


def _mask(score_BHNS, is_seen_BCS):
  """Scores of what is seen; MASKED elsewhere."""
  by_head = (*score_BHNS.shape[:2], -1, *is_seen_BCS.shape[1:])
  return jnp.where(is_seen_BCS[:, None, None], score_BHNS.reshape(by_head), MASKED).reshape(score_BHNS.shape)


@jax.custom_vjp
def _softmax_read(scores: list[jax.Array], values: list[jax.Array]) -> jax.Array:
  """One softmax over all groups of keys; weights are normalised before they meet the values."""
  return _softmax_read_fwd(scores, values)[0]


def _softmax_read_fwd(scores, values):
  top = jnp.stack([score.max(-1) for score in scores]).max(0)[..., None]
  weights = [jnp.exp(score - top) for score in scores]
  total = sum(weight.sum(-1) for weight in weights)[..., None]
  shares = [weight / total for weight in weights]
  out = sum(
    jnp.einsum("BHNS,BHSV->BHNV", share.astype(value.dtype), value, preferred_element_type=jnp.float32)
    for share, value in zip(shares, values, strict=True))
  return out, (shares, values, out)


def _softmax_read_bwd(saved, d_out):
  """By hand, as XLA would make the gradient of values in the other order and transpose it."""
  shares, values, out = saved
  d_total = inner(d_out, out)[..., None]
  d_scores, d_values = [], []
  for share, value in zip(shares, values, strict=True):
    d_out_V, share_V = d_out.astype(value.dtype), share.astype(value.dtype)
    d_share = jnp.einsum("BHNV,BHSV->BHNS", d_out_V, value, preferred_element_type=jnp.float32)
    d_scores.append(share * (d_share - d_total))
    d_value = jnp.einsum("BHNS,BHNV->BHSV", share_V, d_out_V, preferred_element_type=jnp.float32)
    d_values.append(d_value.astype(value.dtype))
  return d_scores, d_values


_softmax_read.defvjp(_softmax_read_fwd, _softmax_read_bwd)


def _cache_scores(qu_BHNK, rows_HMK, cache, sees_cache_BC):
  score_BHNM = _products(qu_BHNK, rows_HMK)
  count_BH1M = cache.count_BHM[:, :, None]
  score_BHNM = jnp.where(count_BH1M > 0, score_BHNM + jnp.log(jnp.maximum(count_BH1M, 1.0)), MASKED)
  return _mask(score_BHNM, jnp.broadcast_to(sees_cache_BC[..., None], (*sees_cache_BC.shape, rows_HMK.shape[1])))


def _position_bias(qw_BHNK, relative_HSK, chunk):
  """q·r at the slots of distances 0 … W, and 0 beyond."""
  by_distance = _products(qw_BHNK, relative_HSK[:, ::-1])
  # Row a must move right by a: a row padded to one more than its final width slides by one per row when re-cut.
  width = relative_HSK.shape[1] - 1 + chunk
  by_head = by_distance.reshape(*by_distance.shape[:2], -1, chunk, by_distance.shape[-1])
  slid = jnp.pad(by_head, ((0, 0),) * 4 + ((0, chunk),)).reshape(*by_head.shape[:3], -1)
  return slid[..., :chunk * width].reshape(*by_distance.shape[:3], width)


def _products(q_BHNK, rows_HSK):
  """[B, H, N, S] of queries and rows that all batches share, in the order of a product whose batches are heads."""
  score_HBNS = jnp.einsum("BHNK,HSK->HBNS", q_BHNK, rows_HSK.astype(q_BHNK.dtype), preferred_element_type=jnp.float32)
  return jnp.swapaxes(score_HBNS, 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _content_scores(by_blocks, group, qu_BHNK, key_BHSK):
  """Scores of the slots; keys further back than W get no gradient, as in the definition, unless it is by blocks."""
  return jnp.einsum("BHNK,BHSK->BHNS", qu_BHNK, key_BHSK, preferred_element_type=jnp.float32)


def _content_scores_fwd(by_blocks, group, qu_BHNK, key_BHSK):
  return _content_scores(by_blocks, group, qu_BHNK, key_BHSK), (qu_BHNK, key_BHSK)


def _content_scores_bwd(by_blocks, group, saved, d_score):
  qu_BHNK, key_BHSK = saved
  d_score = d_score.astype(qu_BHNK.dtype)
  d_qu = jnp.einsum("BHNS,BHSK->BHNK", d_score, key_BHSK, preferred_element_type=jnp.float32)
  if not by_blocks:
    chunk = d_score.shape[2] // group
    is_near_CS = jnp.arange(d_score.shape[3]) >= jnp.arange(chunk)[:, None]
    d_score = jnp.where(jnp.tile(is_near_CS, (group, 1)), d_score, 0)
  d_key = jnp.einsum("BHNS,BHNK->BHSK", d_score, qu_BHNK, preferred_element_type=jnp.float32)
  return d_qu.astype(qu_BHNK.dtype), d_key.astype(key_BHSK.dtype)


_content_scores.defvjp(_content_scores_fwd, _content_scores_bwd)
