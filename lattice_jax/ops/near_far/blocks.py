"""Blocks of queries, each against its window, itself, and the summary of everything older.

Blocks are counted from the first token of the call, not of the document, and their length is free: the definition
depends on neither, so neither do outputs and gradients. Inside a block, tokens leave the windows of its queries one by
one. Where a summary is lossless they may be read as they are; otherwise every query has a summary of its own.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY, from_chunks, pad_time, to_chunks
from lattice_jax.ops.near_far.far import FarMemory, far_before_blocks, foldable, merge, summarize
from lattice_jax.ops.near_far.state import Far, Stream

INPUT_SCAN = "input_scan"


def attend_blocks(
  memory: FarMemory, queries: Any, stream: Stream, far: Far, id_BT: jax.Array, *, block_len: int, reduction: str,
  use_far: bool,
) -> tuple[jax.Array, Far]:
  """Output [B, T, …] of the queries of the last T slots of the stream, and the summary after them.

  reduction: "serial", "matmul" and "associative" make the summaries before all blocks first and then read all blocks at
  once; "input_scan" goes from block to block with one summary, and reads a block again in the backward pass.
  """
  length = id_BT.shape[1]
  chunk = min(length, block_len)
  num_valid_B = (id_BT != EMPTY).sum(1)
  blocks = to_chunks(queries, chunk), to_chunks(id_BT, chunk, EMPTY)
  run = _one_after_another if reduction == INPUT_SCAN else _all_at_once
  out_NBC, far = run(
    memory, blocks, pad_time(stream, -length % chunk), far, num_valid_B, reduction=reduction, use_far=use_far)
  return from_chunks(out_NBC, length), far


def _all_at_once(memory, blocks, stream, far, num_valid_B, *, reduction, use_far):
  """All blocks in one batched computation."""
  num, _, chunk = blocks[1].shape
  near = jax.tree.map(lambda x_BS: _overlapping(x_BS, x_BS.shape[1] - (num - 1) * chunk, chunk), stream)
  before = None
  if use_far:
    far, before = far_before_blocks(memory, stream, far, num_valid_B, num, chunk, reduction=reduction)
  return jax.vmap(lambda block, near, far: _read(memory, *block, near, far))(blocks, near, before), far


def _one_after_another(memory, blocks, stream, far, num_valid_B, *, reduction, use_far):
  """A scan over blocks that carries window and summary; only these are kept for the backward pass."""
  del reduction
  num, _, chunk = blocks[1].shape
  window = stream.id_BS.shape[1] - num * chunk
  present = jax.tree.map(lambda x_BS: to_chunks(x_BS[:, window:], chunk), stream)

  @jax.checkpoint
  def one_block(carry: tuple[Stream, Far], x: Any):
    before, far = carry
    queries, block, number = x
    near = jax.tree.map(lambda old, new: jnp.concatenate([old, new], 1), before, block)
    out = _read(memory, *queries, near, far if use_far else None)
    if use_far:
      oldest = jax.tree.map(lambda x_BS: x_BS[:, :chunk], near)
      oldest = oldest.replace(id_BS=foldable(oldest.id_BS[None], num_valid_B, number[None])[0])
      far = merge(memory, far, summarize(memory, oldest))
    return (jax.tree.map(lambda x_BS: x_BS[:, chunk:], near), far), out

  start = jax.tree.map(lambda x_BS: x_BS[:, :window], stream), far
  (_, far), out = jax.lax.scan(one_block, start, (blocks, present, jnp.arange(num)))
  return out, far


def _read(memory: FarMemory, queries: Any, id_BC: jax.Array, near: Stream, far: Far | None) -> jax.Array:
  """Output of C queries. far: everything older than `near`; None forgets what lies further back than W tokens."""
  chunk, slots = id_BC.shape[1], near.id_BS.shape[1]
  window = slots - chunk
  back_CS = window + jnp.arange(chunk)[:, None] - jnp.arange(slots)
  is_seen_BCS = (back_CS >= 0) & (id_BC[..., None] == near.id_BS[:, None]) & (near.id_BS != EMPTY)[:, None]
  if far is None or not memory.is_lossless:
    is_seen_BCS &= back_CS <= window
  if far is None:
    return memory.read(queries, near.tokens, is_seen_BCS, None, None)
  if memory.is_lossless:
    return memory.read(queries, near.tokens, is_seen_BCS, far.summary, id_BC == far.document_B[:, None])
  far_C = _far_of_queries(memory, jax.tree.map(lambda x_BS: x_BS[:, :chunk], near), far)
  return memory.read(queries, near.tokens, is_seen_BCS, far_C.summary, id_BC == far_C.document_B)


def _far_of_queries(memory: FarMemory, oldest: Stream, far: Far) -> Far:
  """The summary that each query of a block has, arrays [B, C, …]: the block's and the slots that left its window."""
  place_C = jnp.arange(oldest.id_BS.shape[1])

  def of_query(query: jax.Array) -> Far:
    left = oldest.replace(id_BS=jnp.where(place_C < query, oldest.id_BS, EMPTY))
    return merge(memory, far, summarize(memory, left))

  return jax.vmap(of_query, out_axes=1)(place_C)


def _overlapping(x_BS: jax.Array, width: int, step: int) -> jax.Array:
  """[N, B, width, …]: the stretches of `width` slots that begin at 0, step, 2·step …"""
  unit = math.gcd(width, step)
  units = to_chunks(x_BS, unit)
  num = (x_BS.shape[1] - width) // step + 1
  stride = step // unit
  return jnp.concatenate([units[i:i + (num - 1) * stride + 1:stride] for i in range(width // unit)], axis=2)
