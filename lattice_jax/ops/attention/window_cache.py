"""Keys and values of the last W tokens, as an explicit state."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import Order
from lattice_jax.ops.documents import EMPTY, keep_only, last_slots, relabel


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
  old = relabel(cache.id_BS, 0), cache.key_BSHK, cache.value_BSHV
  joined = jax.tree.map(
    lambda old_BS, new_BT: jnp.concatenate([old_BS, new_BT.astype(old_BS.dtype)], 1), old, (run_BT, k_BTHK, v_BTHV))
  run_BS, key_BSHK, value_BSHV = last_slots(joined, (run_BT != EMPTY).sum(1), cache.id_BS.shape[1])
  is_used_BS = (run_BS != EMPTY) & (run_BS == run_BS[:, -1:])
  key_BSHK, value_BSHV = keep_only(is_used_BS, (key_BSHK, value_BSHV))
  id_BS = jnp.where(is_used_BS, document_B[:, None], EMPTY)
  return WindowCache(key_BSHK=key_BSHK, value_BSHV=value_BSHV, id_BS=id_BS, document_B=document_B)
