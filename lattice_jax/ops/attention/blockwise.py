"""Blockwise softmax attention in XLA that visits only the key blocks a query block can see.

Forward is the online softmax over key blocks; backward recomputes each block's weights from the saved log-sum-exp, so
memory is linear in the lengths. The ranges of key blocks are data, hence loops with dynamic bounds and a `custom_vjp`.

Inside, heads come before tokens, and the C tokens of a query block and the G heads that share a key are one axis M:
then every product comes out in the order in which the next one takes it, and XLA transposes no scores.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.ops.attention.keys import Order, allowed, block_reach
from lattice_jax.ops.attention.reference import MASKED, exp_masked
from lattice_jax.ops.documents import EMPTY, pad_time, to_chunks
from lattice_jax.ops.products import inner
from lattice_jax.types import MEMORY_BOUNDARY


def attend_blockwise(
  q_BTHGK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, query_order: Order, key_order: Order, *,
  window: int | jax.Array, block: int, skip: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
  """As `attend_reference`: fp32 output [B,T,H,G,V] and log-sum-exp [B,T,H,G]."""
  length = q_BTHGK.shape[1]
  query_block, key_block = min(block, length), min(block, k_BSHK.shape[1])
  num_query, num_key = -length % query_block, -k_BSHK.shape[1] % key_block
  q_BTHGK = pad_time(q_BTHGK, num_query) * jnp.asarray(q_BTHGK.shape[-1] ** -0.5, q_BTHGK.dtype)
  k_BSHK, v_BSHV = pad_time((k_BSHK, v_BSHV), num_key)
  # limits that are data are arguments; numbers stay numbers of the program
  static = tuple(limit if isinstance(limit, int) else None for limit in (window, skip))
  given = tuple(None if isinstance(limit, int) else limit for limit in (window, skip))
  out_BTHGV, lse_BTHG = _attend(
    query_block, key_block, static, q_BTHGK, k_BSHK, v_BSHV, pad_time(query_order, num_query, EMPTY),
    pad_time(key_order, num_key, EMPTY), given)
  return out_BTHGV[:, :length], lse_BTHG[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(query_block, key_block, static, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, given):
  return _forward(query_block, key_block, static, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, given)[0]


def _forward(query_block, key_block, static, q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, given):
  window, skip = _limits(static, given)
  first_N, stop_N = block_reach(query_order, key_order, query_block=query_block, key_block=key_block, window=window)
  keys = *_heads_first(k_BSHK, v_BSHV), key_order

  def one_query_block(_, xs):
    q_BHMK, query_C, first, stop = xs

    def one_key_block(n, carry):
      top, total, acc = carry
      k_BHSK, v_BHSV, key_S = _take(keys, n, key_block)
      score = _scores(q_BHMK, k_BHSK, query_C, key_S, window, skip)
      new_top = jnp.maximum(top, score.max(-1))
      weight = exp_masked(score, new_top[..., None])
      shrink = jnp.exp(top - new_top)
      update = jnp.einsum("BHMS,BHSV->BHMV", weight.astype(v_BHSV.dtype), v_BHSV, preferred_element_type=jnp.float32)
      return new_top, total * shrink + weight.sum(-1), acc * shrink[..., None] + update

    shape = q_BHMK.shape[:3]
    start = jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, v_BSHV.shape[-1]))
    top, total, acc = jax.lax.fori_loop(first, stop, one_key_block, start)
    sees = total > 0
    safe = jnp.where(sees, total, 1.0)
    return None, (acc / safe[..., None], jnp.where(sees, top + jnp.log(safe), MASKED))

  xs = _query_blocks(q_BTHGK, query_block), to_chunks(query_order, query_block), first_N, stop_N
  _, (out, lse) = jax.lax.scan(one_query_block, None, xs)
  group = q_BTHGK.shape[3]
  out_BTHGV, lse_BTHG = checkpoint_name(
    (_by_token(out, group), _by_token(lse[..., None], group)[..., 0]), MEMORY_BOUNDARY)
  return (out_BTHGV, lse_BTHG), (
    q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, given, out_BTHGV, lse_BTHG)


def _backward(query_block, key_block, static, saved, cotangents):
  q_BTHGK, k_BSHK, v_BSHV, query_order, key_order, given, out_BTHGV, lse_BTHG = saved
  window, skip = _limits(static, given)
  d_out_BTHGV, d_lse_BTHG = cotangents
  first_N, stop_N = block_reach(query_order, key_order, query_block=query_block, key_block=key_block, window=window)
  # d score = weight · (d weight − Σ weight·d weight + d lse); the sum is out · d out.
  shift_BTHG = d_lse_BTHG - inner(out_BTHGV, d_out_BTHGV)
  keys = *_heads_first(k_BSHK, v_BSHV), key_order

  def one_query_block(carry, xs):
    q_BHMK, d_out_BHMV, shift_BHM1, lse_BHM1, query_C, first, stop = xs

    def one_key_block(n, carry):
      d_q, d_k, d_v = carry
      k_BHSK, v_BHSV, key_S = _take(keys, n, key_block)
      weight = exp_masked(_scores(q_BHMK, k_BHSK, query_C, key_S, window, skip), lse_BHM1)
      d_weight = jnp.einsum("BHMV,BHSV->BHMS", d_out_BHMV, v_BHSV, preferred_element_type=jnp.float32)
      d_score = (weight * (d_weight + shift_BHM1)).astype(k_BHSK.dtype)
      d_v_n = jnp.einsum(
        "BHMS,BHMV->BHSV", weight.astype(d_out_BHMV.dtype), d_out_BHMV, preferred_element_type=jnp.float32)
      d_k_n = jnp.einsum("BHMS,BHMK->BHSK", d_score, q_BHMK, preferred_element_type=jnp.float32)
      d_q += jnp.einsum("BHMS,BHSK->BHMK", d_score, k_BHSK, preferred_element_type=jnp.float32)
      return d_q, _add_block(d_k, d_k_n, n), _add_block(d_v, d_v_n, n)

    d_k, d_v = carry
    d_q, d_k, d_v = jax.lax.fori_loop(first, stop, one_key_block, (jnp.zeros(q_BHMK.shape), d_k, d_v))
    return (d_k, d_v), d_q

  by_query = q_BTHGK, d_out_BTHGV.astype(v_BSHV.dtype), shift_BTHG[..., None], lse_BTHG[..., None]
  xs = *(_query_blocks(x, query_block) for x in by_query), to_chunks(query_order, query_block), first_N, stop_N
  start = tuple(jnp.zeros(x.shape) for x in keys[:2])
  (d_k, d_v), d_q = jax.lax.scan(one_query_block, start, xs)
  d_k_BSHK, d_v_BSHV = _heads_first(d_k, d_v)
  return (
    _by_token(d_q, q_BTHGK.shape[3]).astype(q_BTHGK.dtype), d_k_BSHK.astype(k_BSHK.dtype),
    d_v_BSHV.astype(v_BSHV.dtype), None, None, None)


_attend.defvjp(_forward, _backward)


def _limits(static, given):
  """(window, skip)."""
  return tuple(limit if data is None else data for limit, data in zip(static, given, strict=True))


def _scores(q_BHMK, k_BHSK, query_order, key_order, window, skip):
  score_BHMS = jnp.einsum("BHMK,BHSK->BHMS", q_BHMK, k_BHSK, preferred_element_type=jnp.float32)
  allowed_BCS = allowed(query_order, key_order, window=window, skip=skip)
  allowed_B1MS = jnp.repeat(allowed_BCS, q_BHMK.shape[2] // allowed_BCS.shape[1], axis=1)[:, None]
  return jnp.where(allowed_B1MS, score_BHMS, MASKED)


def _heads_first(*arrays):
  """[B, S, H, …] → [B, H, S, …], and back."""
  return tuple(jnp.swapaxes(x, 1, 2) for x in arrays)


def _query_blocks(x_BTHGK, query_block):
  """[B, T, H, G, K] → [N, B, H, M, K]."""
  x_NBHCGK = jnp.moveaxis(to_chunks(x_BTHGK, query_block), 3, 2)
  return x_NBHCGK.reshape(*x_NBHCGK.shape[:3], -1, x_NBHCGK.shape[-1])


def _by_token(x_NBHMK, group):
  """[N, B, H, M, K] → [B, T, H, G, K]."""
  num, batch, heads, _, dim = x_NBHMK.shape
  return x_NBHMK.reshape(num, batch, heads, -1, group, dim).transpose(1, 0, 3, 2, 4, 5).reshape(
    batch, -1, heads, group, dim)


def _take(keys, n, block):
  k_BHSK, v_BHSV, key_order = keys
  return (*_slice((k_BHSK, v_BHSV), n, block, axis=2), _slice(key_order, n, block, axis=1))


def _slice(tree, n, block, axis):
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, n * block, block, axis), tree)


def _add_block(total, block_sum, n):
  start = n * block_sum.shape[2]
  current = jax.lax.dynamic_slice_in_dim(total, start, block_sum.shape[2], axis=2)
  return jax.lax.dynamic_update_slice_in_dim(total, current + block_sum, start, axis=2)
