"""Online vector-quantised attention by its definition, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.online_vq.rule import Memory, close, read
from lattice_jax.ops.chunk_grid import ChunkGrid
from lattice_jax.ops.documents import keep_only


def attend_by_token(
  tokens: tuple[jax.Array, ...], is_valid_BT: jax.Array, grid: ChunkGrid, memory: Memory, growth: str
) -> tuple[jax.Array, Memory]:
  """Output [B, T, H, V] of queries, keys and values, and the memory after the last token."""
  dtype, chunk = memory[0].key_BHMK.dtype, memory[1].shape[2]

  def one_token(memory, xs):
    (q_BHK, k_BHK, v_BHV), is_valid_B, flags = xs
    codes, key_BHCK, value_BHCV = keep_only(~flags.is_start_BT, memory)
    is_here_BC = is_valid_B[:, None] & (jnp.arange(chunk) == flags.place_BT[:, None])

    def write(open_BHCK, new_BHK):
      return jnp.where(is_here_BC[:, None, :, None], new_BHK[:, :, None].astype(open_BHCK.dtype), open_BHCK)

    key_BHCK, value_BHCV = write(key_BHCK, k_BHK), write(value_BHCV, v_BHV)
    is_read_BC = jnp.arange(chunk) <= flags.place_BT[:, None]
    out_BH1V = read(
      q_BHK[:, :, None], codes, jnp.ones_like(is_valid_B)[:, None], key_BHCK.astype(dtype), value_BHCV.astype(dtype),
      is_read_BC[:, None])
    return close(flags.is_chunk_end_BT, (codes, key_BHCK, value_BHCV), growth), out_BH1V[:, :, 0]

  tokens_T = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(dtype), 1, 0), tokens)
  memory, out_TBHV = jax.lax.scan(one_token, memory, (tokens_T, is_valid_BT.T, jax.tree.map(jnp.transpose, grid)))
  return jnp.moveaxis(out_TBHV, 0, 1), memory
