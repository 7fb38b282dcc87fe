"""Transformer-VQ attention in linear time: blocks of queries, each against its window, itself, and one row per code.

Neither outputs nor gradients depend on the length of blocks (see README.md of this folder), but for those of keys where
they are asked for by blocks.
"""

from __future__ import annotations

import functools

import jax

from lattice_jax.memories.vq.block import read_block
from lattice_jax.memories.vq.summary import vq_memory
from lattice_jax.ops.near_far import Far, Stream, attend_blocks


def attend_linear(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, far: Far, rows_HMK: jax.Array, relative_HSK: jax.Array,
  id_BT: jax.Array, *, block_len: int, reduction: str, use_cache: bool, span: int,
) -> tuple[jax.Array, Far]:
  """Same result as `attend_quadratic`; fp32 output [B,T,H,G,V] and the cache after it. span: 0 or block_len."""
  read = functools.partial(read_block, rows_HMK=rows_HMK, relative_HSK=relative_HSK, by_blocks=bool(span))
  return attend_blocks(
    vq_memory(rows_HMK.shape[1], read), (qu_BTHGK, qw_BTHGK), stream, far, id_BT, block_len=block_len,
    reduction=reduction, use_far=use_cache)
