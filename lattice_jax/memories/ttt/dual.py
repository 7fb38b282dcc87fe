"""TTT-Linear a mini-batch at a time in matrix products: its dual form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.ttt.reference import Memory
from lattice_jax.memories.ttt.rule import Learner, layer_norm, output_gradient, with_one
from lattice_jax.ops.chunk_grid import Grid, in_two_passes
from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import from_chunks, keep_only, select, to_chunks


def ttt_dual(
  learner: Learner, tokens: tuple[jax.Array, ...], grid: Grid, memory: Memory
) -> tuple[jax.Array, Memory]:
  """As `ttt_reference`; the backward pass keeps one memory a mini-batch."""
  length = grid.place_BT.shape[1]
  chunks = to_chunks((tokens, grid), min(length, learner.rate_C.shape[0]))
  out_NBCHV, memory = scan_chunks(_block, *chunks, learner, memory)
  return from_chunks(out_NBCHV, length), memory


def _block(tokens_BC: tuple[jax.Array, ...], grid: Grid, learner: Learner, memory: Memory):
  def close(is_full_B, memory):
    weight, total = memory
    return select(is_full_B, (weight - learner.rate_C[-1] * total, jnp.zeros_like(total)), memory)

  def mask(tokens_BC, is_kept_BC):
    return keep_only(is_kept_BC, tokens_BC)

  return in_two_passes(functools.partial(_take, learner), close, mask, tokens_BC, grid, memory)


def _take(learner: Learner, tokens_BC: tuple[jax.Array, ...], grid: Grid, memory: Memory) -> tuple[jax.Array, Memory]:
  """Tokens that all belong to the open mini-batch, or to documents that begin here."""
  weight, total = memory
  q, k, v, step = (jnp.moveaxis(x.astype(weight.dtype), 1, 2) for x in tokens_BC)
  start, norm = learner.start_HKV, (learner.scale_HV[:, None], learner.shift_HV[:, None])
  run_BC = jnp.cumsum(grid.is_start_BT, 1)
  goes_on = (run_BC == 0)[:, None, :, None]
  is_seen = (run_BC[:, :, None] == run_BC[:, None])[:, None] & jnp.tri(run_BC.shape[1], dtype=bool)

  def at_start(x):
    old = jnp.einsum("bhck,bhkv->bhcv", x, weight, precision="highest")
    return jnp.where(goes_on, old, jnp.einsum("bhck,hkv->bhcv", x, start, precision="highest"))

  q_one, k_one = with_one(q), with_one(k)
  move = step * output_gradient(at_start(k_one), v - k, *norm)
  pair = jnp.where(is_seen, jnp.einsum("bhjk,bhlk->bhjl", q_one, k_one, precision="highest"), 0)
  moved = jnp.where(goes_on, jnp.einsum("bhck,bhkv->bhcv", q_one, total, precision="highest"), 0)
  moved += jnp.einsum("bhjl,bhlv->bhjv", pair, move, precision="highest")
  rate = learner.rate_C[grid.place_BT][:, None, :, None]
  out = q + layer_norm(at_start(q_one) - rate * moved, *norm)

  is_last = jnp.swapaxes(is_seen[:, :, -1:], 2, 3)
  total = jnp.where(goes_on[:, :, -1:], total, 0)
  total += jnp.einsum("bhck,bhcv->bhkv", jnp.where(is_last, k_one, 0), move, precision="highest")
  weight = select(grid.is_start_BT.any(1), start, weight)
  return jnp.moveaxis(out, 1, 2), (weight, total)
