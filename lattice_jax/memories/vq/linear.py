"""Transformer-VQ attention in linear time: blocks of queries, each against its window, itself, and one row per code.

Blocks are counted from the first token of the call, not of the document, and their length is free: the definition
depends on neither, so neither do outputs and gradients (see README.md of this folder), but for those of keys where
they are asked for by blocks.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.block import attend_block
from lattice_jax.memories.vq.cache import REDUCTIONS, Cache, merge, summarize
from lattice_jax.memories.vq.state import Stream, VQState, close_state, pad_slots
from lattice_jax.ops.documents import EMPTY

INPUT_SCAN = "input_scan"
FORMS = (*REDUCTIONS, INPUT_SCAN)


def attend_linear(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, state: VQState, rows_HMK: jax.Array,
  relative_HSK: jax.Array, id_BT: jax.Array, *, block_len: int, reduction: str, use_cache: bool, span: int,
) -> tuple[jax.Array, VQState]:
  """Same result as `attend_quadratic`; fp32 output [B,T,H,G,V] and final state. span: 0 or block_len.

  reduction: "serial", "matmul" and "associative" make the caches of all blocks first and then read all blocks at once;
  "input_scan" goes from block to block with one cache, and recomputes a block's scores in the backward pass.
  """
  length, window = id_BT.shape[1], state.id_BW.shape[1]
  chunk = min(length, block_len)
  num_valid_B = (id_BT != EMPTY).sum(1)
  queries = [_to_blocks(pad_slots(x_BT, -length % chunk), chunk) for x_BT in (qu_BTHGK, qw_BTHGK)]
  id_NBC = _to_blocks(pad_slots(id_BT, -length % chunk, EMPTY), chunk)
  padded = jax.tree.map(lambda x_BS: pad_slots(x_BS, -length % chunk), stream)
  attend = _attend_in_turn if reduction == INPUT_SCAN else _attend_together
  cache = Cache(state.count_BHM, state.mean_BHMV, state.document_B)
  out_NBCHGV, cache = attend(
    (*queries, id_NBC), padded, cache, num_valid_B, rows_HMK, relative_HSK, reduction=reduction, use_cache=use_cache,
    by_blocks=bool(span))
  out_BTHGV = jnp.swapaxes(out_NBCHGV, 0, 1).reshape(id_BT.shape[0], -1, *out_NBCHGV.shape[3:])[:, :length]
  return out_BTHGV, close_state(stream, window, num_valid_B, cache.count_BHM, cache.mean_BHMV, cache.document_B)


def _attend_together(blocks, stream, cache, num_valid_B, rows_HMK, relative_HSK, *, reduction, use_cache, by_blocks):
  """All blocks in one batched computation."""
  num, _, chunk = blocks[2].shape
  near = jax.tree.map(lambda x_BS: _overlapping(x_BS, x_BS.shape[1] - (num - 1) * chunk, chunk), stream)
  caches = None
  if use_cache:
    cache, caches = caches_before(stream, cache, num_valid_B, num, chunk, reduction=reduction)
  out = jax.vmap(lambda qu, qw, ids, near, cache: attend_block(
    qu, qw, ids, near, cache, rows_HMK, relative_HSK, by_blocks=by_blocks))(*blocks, near, caches)
  return out, cache


def caches_before(
  stream: Stream, cache: Cache, num_valid_B: jax.Array, num: int, chunk: int, *, reduction: str,
) -> tuple[Cache, Cache]:
  """The cache after the first `num` blocks of `chunk` slots of a stream, and those before each, stacked."""
  id_NBC = _foldable(_to_blocks(stream.id_BS[:, :num * chunk], chunk), num_valid_B, jnp.arange(num))
  code_NBCH, value_NBCHV = (_to_blocks(x_BS[:, :num * chunk], chunk) for x_BS in (stream.code_BSH, stream.value_BSHV))
  num_codes = cache.count_BHM.shape[-1]
  summaries = jax.vmap(lambda *slots: summarize(*slots, num_codes))(code_NBCH, value_NBCHV, id_NBC)
  return REDUCTIONS[reduction](cache, summaries)


def _attend_in_turn(blocks, stream, cache, num_valid_B, rows_HMK, relative_HSK, *, reduction, use_cache, by_blocks):
  """A scan over blocks that carries window and cache; only these are kept for the backward pass."""
  del reduction
  num, _, chunk = blocks[2].shape
  window = stream.id_BS.shape[1] - num * chunk
  present = jax.tree.map(lambda x_BS: _to_blocks(x_BS[:, window:], chunk), stream)

  @jax.checkpoint
  def one_block(carry: tuple[Stream, Cache], x: Any):
    before, cache = carry
    (qu, qw, ids), block, number = x
    near = jax.tree.map(lambda old, new: jnp.concatenate([old, new], 1), before, block)
    out = attend_block(
      qu, qw, ids, near, cache if use_cache else None, rows_HMK, relative_HSK, by_blocks=by_blocks)
    if use_cache:
      oldest = jax.tree.map(lambda x_BS: x_BS[:, :chunk], near)
      id_BC = _foldable(oldest.id_BS[None], num_valid_B, number[None])[0]
      cache = merge(cache, summarize(oldest.code_BSH, oldest.value_BSHV, id_BC, rows_HMK.shape[1]))
    return (jax.tree.map(lambda x_BS: x_BS[:, chunk:], near), cache), out

  start = jax.tree.map(lambda x_BS: x_BS[:, :window], stream), cache
  (_, cache), out = jax.lax.scan(one_block, start, (blocks, present, jnp.arange(num)))
  return out, cache


def _foldable(id_NBC: jax.Array, num_valid_B: jax.Array, number_N: jax.Array) -> jax.Array:
  """EMPTY where a slot stays in the window: after v valid tokens the first v slots of the stream have left it."""
  chunk = id_NBC.shape[-1]
  slot_NC = number_N[:, None] * chunk + jnp.arange(chunk)
  return jnp.where(slot_NC[:, None] < num_valid_B[:, None], id_NBC, EMPTY)


def _overlapping(x_BS: jax.Array, width: int, step: int) -> jax.Array:
  """[N, B, width, …]: the stretches of `width` slots that begin at 0, step, 2·step …"""
  unit = math.gcd(width, step)
  units = _to_blocks(x_BS, unit)
  num = (x_BS.shape[1] - width) // step + 1
  stride = step // unit
  return jnp.concatenate([units[i:i + (num - 1) * stride + 1:stride] for i in range(width // unit)], axis=2)


def _to_blocks(x_BT: jax.Array, chunk: int) -> jax.Array:
  """[B, N·C, …] → [N, B, C, …]."""
  return jnp.swapaxes(x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]), 0, 1)
