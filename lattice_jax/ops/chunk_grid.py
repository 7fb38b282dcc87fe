"""Chunks counted from the first token of their document: where they begin and end, and how a call takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ChunkGrid:
  """Of every token: whether it is the first of a document, the first of a further chunk, the last of a chunk.

  place_BT: int32, how many tokens of its chunk are before it.
  """

  is_start_BT: jax.Array
  is_chunk_start_BT: jax.Array
  is_chunk_end_BT: jax.Array
  place_BT: jax.Array


def make_chunk_grid(
  is_start_BT: jax.Array, is_valid_BT: jax.Array, fill_B: jax.Array, chunk_len: int
) -> tuple[ChunkGrid, jax.Array]:
  """The grid of a call, and how many tokens its last chunk has after it. fill_B: how many the open one has before."""
  time_T = jnp.arange(is_start_BT.shape[1])
  start_BT = jax.lax.cummax(jnp.where(is_start_BT, time_T, -fill_B[:, None]), axis=1)
  place_BT = (time_T - start_BT) % chunk_len
  is_chunk_start_BT = is_valid_BT & ~is_start_BT & (place_BT == 0)
  num_valid_B = is_valid_BT.sum(1)
  last_B = jnp.take_along_axis(place_BT, jnp.maximum(num_valid_B - 1, 0)[:, None], 1)[:, 0]
  after_B = jnp.where(num_valid_B > 0, (last_B + 1) % chunk_len, fill_B).astype(jnp.int32)
  is_chunk_end_BT = is_valid_BT & (place_BT == chunk_len - 1)
  return ChunkGrid(is_start_BT, is_chunk_start_BT, is_chunk_end_BT, place_BT.astype(jnp.int32)), after_B


def in_two_passes(
  take: Callable[[Any, ChunkGrid, Any], tuple[jax.Array, Any]], close: Callable[[jax.Array, Any], Any],
  mask: Callable[[Any, jax.Array], Any], tokens_BC: Any, grid: ChunkGrid, memory: Any,
) -> tuple[jax.Array, Any]:
  """A block of at most one chunk's length: first the rest of each row's open chunk, then chunks that begin in it.

  There is at most one end of a chunk in each pass. The second runs only in blocks where some row needs it: none does
  while rows are aligned with blocks.

  Args:
    take: (tokens, grid, memory) → outputs [B, C, …] and memory, for tokens of the open chunk, or of documents that
      begin where the grid says so.
    close: (is_full_B, memory) → memory in which a full chunk has ended.
    mask: (tokens, is_kept_BC) → tokens, the others replaced by those that change nothing.
  """
  further_BC = grid.is_chunk_start_BT.at[:, 0].set(False)
  is_new_BC = (jnp.cumsum(further_BC, 1) > 0) | (jnp.cumsum(grid.is_start_BT, 1) > 0)

  def one_pass(is_mine_BC, memory):
    mine = grid.replace(is_start_BT=grid.is_start_BT & is_mine_BC)
    out_BC, memory = take(mask(tokens_BC, is_mine_BC), mine, memory)
    return out_BC, close((grid.is_chunk_end_BT & is_mine_BC).any(1), memory)

  old_BC, memory = one_pass(~is_new_BC, memory)
  new_BC, memory = jax.lax.cond(
    is_new_BC.any(), lambda memory: one_pass(is_new_BC, memory), lambda memory: (old_BC, memory), memory)
  return jnp.where(is_new_BC.reshape(*is_new_BC.shape, *(1,) * (old_BC.ndim - 2)), new_BC, old_BC), memory
