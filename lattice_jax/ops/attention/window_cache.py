"""Keys and values of the last W tokens, as an explicit state."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import Order
from lattice_jax.ops.documents import EMPTY, relabel


@flax.struct.dataclass
class WindowCache:
  """The last tokens of each row in order, newest in the last slot; all of one document.

  key_BSHK, value_BSHV: as they were computed, rotary embedding included. id_BS: document of the slot, EMPTY if none.
  document_B: EMPTY before any token.
  """

  key_BSHK: jax.Array
  value_BSHV: jax.Array
  id_BS: jax.Array
  document_B: jax.Array

  @property
  def order(self) -> Order:
    """Slots as keys: the token before the first new one has index -1, the state's document is run 0."""
    index_S = jnp.arange(-self.id_BS.shape[1], 0)
    return Order(index_BT=jnp.broadcast_to(index_S, self.id_BS.shape), id_BT=relabel(self.id_BS, 0))


def empty_window(
  batch: int, window: int, kv_heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype,
) -> WindowCache:
  """A window without tokens."""
  return WindowCache(
    key_BSHK=jnp.zeros((batch, window, kv_heads, key_dim), dtype),
    value_BSHV=jnp.zeros((batch, window, kv_heads, value_dim), dtype),
    id_BS=jnp.full((batch, window), EMPTY, jnp.int32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
  )


def shift_tokens(
  cache: WindowCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, document_B: jax.Array) -> WindowCache:
  """Keeps the last W tokens of each row's last document.

  run_BT: from `document_runs`. document_B: from `document_after`.
  """
  num_slots = cache.id_BS.shape[1]
  slot_BS = (run_BT != EMPTY).sum(1)[:, None] + jnp.arange(num_slots)

  def shift(buffer_BS, new_BT):
    joined_BS = jnp.concatenate([buffer_BS, new_BT.astype(buffer_BS.dtype)], 1)
    return jax.vmap(lambda joined_S, slot_S: joined_S[slot_S])(joined_BS, slot_BS)

  kept_run_BS = shift(relabel(cache.id_BS, 0), run_BT)
  is_used_BS = (kept_run_BS != EMPTY) & (kept_run_BS == kept_run_BS[:, -1:])
  return WindowCache(
    key_BSHK=_where_used(is_used_BS, shift(cache.key_BSHK, k_BTHK)),
    value_BSHV=_where_used(is_used_BS, shift(cache.value_BSHV, v_BTHV)),
    id_BS=jnp.where(is_used_BS, document_B[:, None], EMPTY), document_B=document_B)


def _where_used(is_used_BS: jax.Array, x_BS: jax.Array) -> jax.Array:
  mask = is_used_BS.reshape(*is_used_BS.shape, *(1,) * (x_BS.ndim - 2))
  return jnp.where(mask, x_BS, jnp.zeros((), x_BS.dtype))
