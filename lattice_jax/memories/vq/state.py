"""What Transformer-VQ attention remembers between calls: a window of tokens and one (count, mean) per code."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY


@flax.struct.dataclass
class VQState:
  """The last W tokens as they are, everything older summed per code; all of one document.

  code_BWH: int32 code of each window token. key_BWHK: its codebook row at the time, kept for the straight-through
  gradient across calls and where `stale_rows` asks for it; else scores use today's row of the same code. value_BWHV.
  id_BW: its document, EMPTY if none. count_BHM: fp32 tokens per code in the cache; mean_BHMV: fp32 mean of their
  values, not the sum, which would lose precision after many tokens. document_B: int32 document of window and cache,
  EMPTY before the first token.
  """

  code_BWH: jax.Array
  key_BWHK: jax.Array
  value_BWHV: jax.Array
  id_BW: jax.Array
  count_BHM: jax.Array
  mean_BHMV: jax.Array
  document_B: jax.Array


def empty_state(
  batch: int, window: int, kv_heads: int, codes: int, key_dim: int, value_dim: int, dtype: jnp.dtype) -> VQState:
  """A state that has seen nothing; window keys and values in `dtype`, counts and means in fp32."""
  return VQState(
    code_BWH=jnp.zeros((batch, window, kv_heads), jnp.int32),
    key_BWHK=jnp.zeros((batch, window, kv_heads, key_dim), dtype),
    value_BWHV=jnp.zeros((batch, window, kv_heads, value_dim), dtype),
    id_BW=jnp.full((batch, window), EMPTY, jnp.int32),
    count_BHM=jnp.zeros((batch, kv_heads, codes), jnp.float32),
    mean_BHMV=jnp.zeros((batch, kv_heads, codes, value_dim), jnp.float32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
  )


@flax.struct.dataclass
class Stream:
  """The window of the state followed by the new tokens: S = W + T slots a row."""

  code_BSH: jax.Array
  key_BSHK: jax.Array
  value_BSHV: jax.Array
  id_BS: jax.Array


def join_stream(
  state: VQState, k_hat_BTHK: jax.Array, v_BTHV: jax.Array, code_BTH: jax.Array, id_BT: jax.Array,
  codebook_HMK: jax.Array | None,
) -> Stream:
  """Window and new tokens in one row; window keys take the value of today's codebook and keep their own gradient.

  codebook: None leaves window keys the values that they have.
  """
  window_BWHK = state.key_BWHK
  if codebook_HMK is not None:
    row_BWHK = rows_of(codebook_HMK, state.code_BWH).astype(state.key_BWHK.dtype)
    window_BWHK = row_BWHK + (state.key_BWHK - jax.lax.stop_gradient(state.key_BWHK))
  return Stream(
    code_BSH=jnp.concatenate([state.code_BWH, code_BTH], 1),
    key_BSHK=jnp.concatenate([window_BWHK, k_hat_BTHK], 1),
    value_BSHV=jnp.concatenate([state.value_BWHV, v_BTHV], 1),
    id_BS=jnp.concatenate([state.id_BW, id_BT], 1),
  )


def rows_of(codebook_HMK: jax.Array, code_BTH: jax.Array) -> jax.Array:
  """The codebook row of every code, [B, T, H, K], without gradient."""
  heads_H = jnp.arange(codebook_HMK.shape[0])
  return jax.lax.stop_gradient(codebook_HMK)[heads_H, code_BTH]


def pad_slots(x_BT: jax.Array, padding: int, value: int = 0) -> jax.Array:
  """`padding` more slots at the end."""
  pads = ((0, 0), (0, padding), *((0, 0),) * (x_BT.ndim - 2))
  return jnp.pad(x_BT, pads, constant_values=value) if padding else x_BT


def close_state(
  stream: Stream, window: int, num_valid_B: jax.Array, count_BHM: jax.Array, mean_BHMV: jax.Array,
  cache_document_B: jax.Array,
) -> VQState:
  """The state after `num_valid_B` new tokens a row, given the cache of all older stream slots.

  Slots and sums of documents other than the last one are emptied, so that equal histories give equal states.
  """
  slot_BW = num_valid_B[:, None] + jnp.arange(window)
  kept = jax.tree.map(lambda x_BS: jax.vmap(lambda x_S, slot_W: x_S[slot_W])(x_BS, slot_BW), stream)
  # ids along a row are a run of EMPTY, then documents in order, so the window's last slot holds the newest token.
  document_B = kept.id_BS[:, -1]
  is_old_BW = kept.id_BS != document_B[:, None]
  is_old_cache_B = cache_document_B != document_B

  def clear(x_BW):
    return jnp.where(is_old_BW.reshape(is_old_BW.shape + (1,) * (x_BW.ndim - 2)), jnp.zeros((), x_BW.dtype), x_BW)

  return VQState(
    code_BWH=clear(kept.code_BSH), key_BWHK=clear(kept.key_BSHK), value_BWHV=clear(kept.value_BSHV),
    id_BW=jnp.where(is_old_BW, EMPTY, kept.id_BS),
    count_BHM=jnp.where(is_old_cache_B[:, None, None], 0.0, count_BHM),
    mean_BHMV=jnp.where(is_old_cache_B[:, None, None, None], 0.0, mean_BHMV),
    document_B=document_B,
  )
