"""Blockwise softmax attention in XLA that visits only the key blocks a query block can see.

Forward is the online softmax over key blocks; backward recomputes each block's weights from the saved log-sum-exp, so
memory is linear in the lengths. The ranges of key blocks are data, hence loops with dynamic bounds and a `custom_vjp`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.ops.attention.keys import Order, allowed, block_reach
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY, from_chunks, pad_time, to_chunks
from lattice_jax.types import MEMORY_BOUNDARY


def attend_blockwise(
  q_BTHGK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, query_order: Order, key_order: Order, *,
  window: int, block: int, skip: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """As `attend_reference`: fp32 output [B,T,H,G,V] and log-sum-exp [B,T,H,G]."""
  length = q_BTHGK.shape[1]
  query_block, key_block = min(block, length), min(block, k_BSHK.shape[1])
  num_query, num_key = -length % query_block, -k_BSHK.shape[1] % key_block
  q_BTHGK = pad_time(q_BTHGK, num_query) * jnp.asarray(q_BTHGK.shape[-1] ** -0.5, q_BTHGK.dtype)
  k_BSHK, v_BSHV = pad_time((k_BSHK, v_BSHV), num_key)
  out_BTHGV, lse_BTHG = _attend(
    query_block, key_block, window, skip, q_BTHGK, k_BSHK, v_BSHV, pad_time(query_order, num_query, EMPTY),
    pad_time(key_order, num_key, EMPTY))
  return out_BTHGV[:, :length], lse_BTHG[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(query_block, key_block, window, skip, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order):
  return _forward(query_block, key_block, window, skip, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order)[0]


def _forward(query_block, key_block, window, skip, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order):
  first_N, stop_N = block_reach(query_order, key_order, query_block=query_block, key_block=key_block, window=window)
  batch, _, heads, group, _ = q_BTHGK.shape
  value_dim = v_BSHV.shape[-1]

  def one_query_block(_, xs):
    q_BCHGK, query_C, first, stop = xs

    def one_key_block(n, carry):
      top, total, acc = carry
      k_BCHK, v_BCHV, key_C = (_take(x, n, key_block) for x in (k_BSHK, v_BSHV, key_order))
      score, is_allowed = _scores(q_BCHGK, k_BCHK, query_C, key_C, window, skip)
      new_top = jnp.maximum(top, score.max(-1))
      weight = jnp.where(is_allowed, jnp.exp(score - new_top[..., None]), 0.0)
      shrink = jnp.exp(top - new_top)
      update = jnp.einsum("BHGCS,BSHV->BHGCV", weight.astype(v_BCHV.dtype), v_BCHV, preferred_element_type=jnp.float32)
      return new_top, total * shrink + weight.sum(-1), acc * shrink[..., None] + update

    shape = (batch, heads, group, query_block)
    start = jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, value_dim))
    top, total, acc = jax.lax.fori_loop(first, stop, one_key_block, start)
    sees = total > 0
    safe = jnp.where(sees, total, 1.0)
    return None, (acc / safe[..., None], jnp.where(sees, top + jnp.log(safe), MASKED))

  xs = *to_chunks((q_BTHGK, query_order), query_block), first_N, stop_N
  _, (out, lse) = jax.lax.scan(one_query_block, None, xs)
  out_BTHGV, lse_BTHG = checkpoint_name((_unblock(out), _unblock(lse[..., None])[..., 0]), MEMORY_BOUNDARY)
  return (out_BTHGV, lse_BTHG), (q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, out_BTHGV, lse_BTHG)


def _backward(query_block, key_block, window, skip, saved, cotangents):
  q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, out_BTHGV, lse_BTHG = saved
  d_out_BTHGV, d_lse_BTHG = cotangents
  first_N, stop_N = block_reach(query_order, key_order, query_block=query_block, key_block=key_block, window=window)
  # d score = weight · (d weight − Σ weight·d weight + d lse); the sum is out · d out.
  shift_BTHG = d_lse_BTHG - (out_BTHGV * d_out_BTHGV).sum(-1)

  def one_query_block(carry, xs):
    q_BCHGK, query_C, d_out_BCHGV, shift_BCHG, lse_BCHG, first, stop = xs
    d_out = d_out_BCHGV.astype(v_BSHV.dtype)
    shift, lse = (jnp.moveaxis(x, 1, 3)[..., None] for x in (shift_BCHG, lse_BCHG))

    def one_key_block(n, carry):
      d_q, d_k, d_v = carry
      k_BCHK, v_BCHV, key_C = (_take(x, n, key_block) for x in (k_BSHK, v_BSHV, key_order))
      score, is_allowed = _scores(q_BCHGK, k_BCHK, query_C, key_C, window, skip)
      weight = jnp.where(is_allowed, jnp.exp(score - lse), 0.0)
      d_weight = jnp.einsum("BCHGV,BSHV->BHGCS", d_out, v_BCHV, preferred_element_type=jnp.float32)
      d_score = (weight * (d_weight + shift)).astype(k_BSHK.dtype)
      d_v_n = jnp.einsum("BHGCS,BCHGV->BSHV", weight.astype(d_out.dtype), d_out, preferred_element_type=jnp.float32)
      d_k_n = jnp.einsum("BHGCS,BCHGK->BSHK", d_score, q_BCHGK, preferred_element_type=jnp.float32)
      d_q += jnp.einsum("BHGCS,BSHK->BCHGK", d_score, k_BCHK, preferred_element_type=jnp.float32)
      return d_q, _add_block(d_k, d_k_n, n), _add_block(d_v, d_v_n, n)

    d_k, d_v = carry
    d_q, d_k, d_v = jax.lax.fori_loop(first, stop, one_key_block, (jnp.zeros(q_BCHGK.shape), d_k, d_v))
    return (d_k, d_v), d_q

  xs = to_chunks((q_BTHGK, query_order, d_out_BTHGV, shift_BTHG, lse_BTHG), query_block)
  start = jnp.zeros(k_BSHK.shape), jnp.zeros(v_BSHV.shape)
  (d_k, d_v), d_q = jax.lax.scan(one_query_block, start, (*xs, first_N, stop_N))
  d_q_BTHGK = from_chunks(d_q, q_BTHGK.shape[1])
  return d_q_BTHGK.astype(q_BTHGK.dtype), d_k.astype(k_BSHK.dtype), d_v.astype(v_BSHV.dtype), None, None


_attend.defvjp(_forward, _backward)


def _scores(q_BCHGK, k_BSHK, query_order, key_order, window, skip):
  score_BHGCS = jnp.einsum("BCHGK,BSHK->BHGCS", q_BCHGK, k_BSHK, preferred_element_type=jnp.float32)
  is_allowed = allowed(query_order, key_order, window=window, skip=skip)[:, None, None]
  return jnp.where(is_allowed, score_BHGCS, MASKED), is_allowed


def _unblock(x_NBHGCV):
  """[N, B, H, G, C, V] → [B, T, H, G, V]."""
  num, batch, heads, group, chunk, dim = x_NBHGCV.shape
  return x_NBHGCV.transpose(1, 0, 4, 2, 3, 5).reshape(batch, num * chunk, heads, group, dim)


def _take(tree, n, block):
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, n * block, block, axis=1), tree)


def _add_block(total, block_sum, n):
  start = n * block_sum.shape[1]
  current = jax.lax.dynamic_slice_in_dim(total, start, block_sum.shape[1], axis=1)
  return jax.lax.dynamic_update_slice_in_dim(total, current + block_sum, start, axis=1)
