"""TTT-Linear a mini-batch at a time in matrix products: its dual form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.ttt.reference import Memory
from lattice_jax.memories.ttt.rule import Learner, layer_norm, output_gradient, with_one
from lattice_jax.ops.chunk_grid import ChunkGrid, in_two_passes
from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import from_chunks, keep_only, select, to_chunks


def ttt_dual(
  learner: Learner, tokens: tuple[jax.Array, ...], grid: ChunkGrid, memory: Memory
) -> tuple[jax.Array, Memory]:
  """As `ttt_reference`; the backward pass keeps one memory a mini-batch."""
  length = grid.place_BT.shape[1]
  chunks = to_chunks((tokens, grid), min(length, learner.rate_C.shape[0]))
  out_NBCHV, memory = scan_chunks(_block, *chunks, learner, memory)
  return from_chunks(out_NBCHV, length), memory


def _block(tokens_BC: tuple[jax.Array, ...], grid: ChunkGrid, learner: Learner, memory: Memory):
  def close(is_full_B, memory):
    weight, total = memory
    return select(is_full_B, (weight - learner.rate_C[-1] * total, jnp.zeros_like(total)), memory)

  def mask(tokens_BC, is_kept_BC):
    return keep_only(is_kept_BC, tokens_BC)

  return in_two_passes(functools.partial(_take, learner), close, mask, tokens_BC, grid, memory)


def _take(
  learner: Learner, tokens_BC: tuple[jax.Array, ...], grid: ChunkGrid, memory: Memory
) -> tuple[jax.Array, Memory]:
  """Tokens that all belong to the open mini-batch, or to documents that begin here."""
  weight_BHKV, total_BHKV = memory
  q_BHCV, k_BHCV, v_BHCV, step_BHC1 = (jnp.moveaxis(x.astype(weight_BHKV.dtype), 1, 2) for x in tokens_BC)
  start_HKV, norm = learner.start_HKV, (learner.scale_HV[:, None], learner.shift_HV[:, None])
  run_BC = jnp.cumsum(grid.is_start_BT, 1)
  goes_on_BHC1 = (run_BC == 0)[:, None, :, None]
  is_seen_BHCS = (run_BC[:, :, None] == run_BC[:, None])[:, None] & jnp.tri(run_BC.shape[1], dtype=bool)

  def at_start(x_BHCK):
    old_BHCV = jnp.einsum("BHCK,BHKV->BHCV", x_BHCK, weight_BHKV, precision="highest")
    return jnp.where(goes_on_BHC1, old_BHCV, jnp.einsum("BHCK,HKV->BHCV", x_BHCK, start_HKV, precision="highest"))

  q_BHCK, k_BHCK = with_one(q_BHCV), with_one(k_BHCV)
  step_BHCV = step_BHC1 * output_gradient(at_start(k_BHCK), v_BHCV - k_BHCV, *norm)
  pair_BHCS = jnp.where(is_seen_BHCS, jnp.einsum("BHCK,BHSK->BHCS", q_BHCK, k_BHCK, precision="highest"), 0)
  moved_BHCV = jnp.where(goes_on_BHC1, jnp.einsum("BHCK,BHKV->BHCV", q_BHCK, total_BHKV, precision="highest"), 0)
  moved_BHCV += jnp.einsum("BHCS,BHSV->BHCV", pair_BHCS, step_BHCV, precision="highest")
  rate_BHC1 = learner.rate_C[grid.place_BT][:, None, :, None]
  out_BHCV = q_BHCV + layer_norm(at_start(q_BHCK) - rate_BHC1 * moved_BHCV, *norm)

  is_last_BHC1 = jnp.swapaxes(is_seen_BHCS[:, :, -1:], 2, 3)
  total_BHKV = jnp.where(goes_on_BHC1[:, :, -1:], total_BHKV, 0)
  total_BHKV += jnp.einsum(
    "BHCK,BHCV->BHKV", jnp.where(is_last_BHC1, k_BHCK, 0), step_BHCV, precision="highest")
  weight_BHKV = select(grid.is_start_BT.any(1), start_HKV, weight_BHKV)
  return jnp.moveaxis(out_BHCV, 1, 2), (weight_BHKV, total_BHKV)
