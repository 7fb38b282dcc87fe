"""TTT-Linear by its definition, token by token: gradients at the weights of the mini-batch's start, summed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.ttt.rule import Learner, layer_norm, output_gradient, with_one
from lattice_jax.ops.chunk_grid import ChunkGrid
from lattice_jax.ops.documents import select

# Weights at the start of the open mini-batch, and the sum of its steps so far; both [B, H, K + 1, V].
Memory = tuple[jax.Array, jax.Array]


def ttt_reference(
  learner: Learner, tokens: tuple[jax.Array, ...], grid: ChunkGrid, memory: Memory
) -> tuple[jax.Array, Memory]:
  """Output [B, T, H, V] and the memory after the last token."""
  start_HKV = learner.start_HKV
  norm = learner.scale_HV, learner.shift_HV

  def one_token(memory, xs):
    (q_BHV, k_BHV, v_BHV, step_BH1), flags = xs
    weight_BHKV, total_BHKV = select(flags.is_start_BT, (start_HKV, jnp.zeros_like(start_HKV)), memory)
    gradient_BHV = output_gradient(_apply(weight_BHKV, k_BHV), v_BHV - k_BHV, *norm)
    total_BHKV += with_one(k_BHV)[..., None] * (step_BH1 * gradient_BHV)[..., None, :]
    now_BHKV = weight_BHKV - learner.rate_C[flags.place_BT][:, None, None, None] * total_BHKV
    out_BHV = q_BHV + layer_norm(_apply(now_BHKV, q_BHV), *norm)
    closed = now_BHKV, jnp.zeros_like(total_BHKV)
    return select(flags.is_chunk_end_BT, closed, (weight_BHKV, total_BHKV)), out_BHV

  tokens_T = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(memory[0].dtype), 1, 0), tokens)
  memory, out_TBHV = jax.lax.scan(one_token, memory, (tokens_T, jax.tree.map(jnp.transpose, grid)))
  return jnp.moveaxis(out_TBHV, 0, 1), memory


def _apply(weight_BHKV: jax.Array, x_BHV: jax.Array) -> jax.Array:
  return jnp.einsum("BHKV,BHK->BHV", weight_BHKV, with_one(x_BHV), precision="highest")
