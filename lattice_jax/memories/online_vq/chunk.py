"""Online vector-quantised attention a chunk at a time in matrix products."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.online_vq.rule import Memory, close, read
from lattice_jax.ops.chunk_grid import ChunkGrid, in_two_passes
from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import from_chunks, keep_only, to_chunks


def attend_by_chunk(
  tokens: tuple[jax.Array, ...], is_valid_BT: jax.Array, grid: ChunkGrid, memory: Memory, growth: str
) -> tuple[jax.Array, Memory]:
  """As `attend_by_token`; the backward pass keeps one memory a chunk."""
  length = grid.place_BT.shape[1]
  chunks = to_chunks((tokens, (is_valid_BT, grid)), min(length, memory[1].shape[2]))
  out_NBCHV, memory = scan_chunks(functools.partial(_block, growth), *chunks, (), memory)
  return from_chunks(out_NBCHV, length), memory


def _block(growth: str, tokens_BC: tuple[jax.Array, ...], flags: tuple[jax.Array, ChunkGrid], _: tuple, memory: Memory):
  is_valid_BC, grid = flags

  def mask(tokens_BC, is_kept_BC):
    return keep_only(is_kept_BC, tokens_BC)

  return in_two_passes(
    _take, lambda is_full_B, memory: close(is_full_B, memory, growth), mask, (tokens_BC, is_valid_BC), grid, memory)


def _take(
  tokens_BC: tuple[tuple[jax.Array, ...], jax.Array], grid: ChunkGrid, memory: Memory
) -> tuple[jax.Array, Memory]:
  """Tokens that all belong to the open chunk, or to documents that begin here; the others are not valid."""
  codes, *old = memory
  dtype, chunk = codes.key_BHMK.dtype, old[0].shape[2]
  tokens_BC, is_valid_BC = tokens_BC
  q_BHCK, *new = (jnp.moveaxis(x.astype(dtype), 1, 2) for x in tokens_BC)
  run_BC = jnp.cumsum(grid.is_start_BT, 1)
  goes_on_BC = is_valid_BC & (run_BC == 0)
  fill_B = jnp.where(goes_on_BC, grid.place_BT, chunk).min(1)
  is_old_BCS = goes_on_BC[..., None] & (jnp.arange(chunk) < fill_B[:, None])[:, None]
  is_new_BCS = (run_BC[..., None] == run_BC[:, None]) & is_valid_BC[:, None] & jnp.tri(run_BC.shape[1], dtype=bool)
  key_BHSK, value_BHSV = (
    jnp.concatenate([before.astype(dtype), now], 2) for before, now in zip(old, new, strict=True))
  out_BHCV = read(
    q_BHCK, codes, goes_on_BC, key_BHSK, value_BHSV, jnp.concatenate([is_old_BCS, is_new_BCS], -1))

  # A document that begins here has nothing of what was before.
  codes, old = keep_only(run_BC[:, -1] == 0, (codes, old))
  is_last_BC = is_valid_BC & (run_BC == run_BC[:, -1:])
  goes_to_BSC = is_last_BC[:, None] & (grid.place_BT[:, None] == jnp.arange(chunk)[:, None])
  is_taken_B1S1 = goes_to_BSC.any(2)[:, None, :, None]

  def write(open_BHSK, new_BHCK):
    put_BHSK = jnp.einsum("BSC,BHCK->BHSK", goes_to_BSC.astype(dtype), new_BHCK, precision="highest")
    return jnp.where(is_taken_B1S1, put_BHSK.astype(open_BHSK.dtype), open_BHSK)

  return jnp.moveaxis(out_BHCV, 1, 2), (codes, *map(write, old, new))
