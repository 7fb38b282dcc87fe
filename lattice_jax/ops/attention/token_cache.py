"""Keys and values of past tokens, as an explicit state: all of them up to a length, or the last W."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import EMPTY, Order, relabel


@flax.struct.dataclass
class TokenCache:
  """Slots [0, length) of a row hold its tokens in order; all of one document.

  key_BSHK, value_BSHV: as they were computed, rotary embedding included. id_BS: document of the slot, EMPTY if none.
  length_B: int32 slots in use (S for a window, which is filled from the right). document_B: EMPTY before any token.
  """

  key_BSHK: jax.Array
  value_BSHV: jax.Array
  id_BS: jax.Array
  length_B: jax.Array
  document_B: jax.Array

  @property
  def order(self) -> Order:
    """Slots as keys: the token before the first new one has index -1, the state's document is run 0."""
    return Order(index_BT=jnp.arange(self.id_BS.shape[1]) - self.length_B[:, None], id_BT=relabel(self.id_BS, 0))


def empty_cache(
  batch: int, slots: int, kv_heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype, *, is_window: bool,
) -> TokenCache:
  """A cache without tokens."""
  return TokenCache(
    key_BSHK=jnp.zeros((batch, slots, kv_heads, key_dim), dtype),
    value_BSHV=jnp.zeros((batch, slots, kv_heads, value_dim), dtype),
    id_BS=jnp.full((batch, slots), EMPTY, jnp.int32),
    length_B=jnp.full((batch,), slots if is_window else 0, jnp.int32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
  )


def append_tokens(
  cache: TokenCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, document_B: jax.Array) -> TokenCache:
  """Appends the tokens of each row's last document; a new document starts at slot 0. What does not fit is lost.

  run_BT: from `document_runs`. document_B: from `document_after`.
  """
  num_slots = cache.id_BS.shape[1]
  last_run_B = run_BT.max(1)
  is_last_BT = (run_BT == last_run_B[:, None]) & (run_BT != EMPTY)
  base_B = jnp.where(last_run_B > 0, 0, cache.length_B)
  first_B = (run_BT != EMPTY).sum(1) - is_last_BT.sum(1)
  slot_BT = jnp.where(is_last_BT, base_B[:, None] + jnp.arange(run_BT.shape[1]) - first_B[:, None], num_slots)
  length_B = jnp.minimum(base_B + is_last_BT.sum(1), num_slots)
  is_used_BS = jnp.arange(num_slots) < length_B[:, None]

  def write(buffer_BS, new_BT):
    row_B1 = jnp.arange(buffer_BS.shape[0])[:, None]
    written_BS = buffer_BS.at[row_B1, slot_BT].set(new_BT.astype(buffer_BS.dtype), mode="drop")
    return _where_used(is_used_BS, written_BS)

  return TokenCache(
    key_BSHK=write(cache.key_BSHK, k_BTHK), value_BSHV=write(cache.value_BSHV, v_BTHV),
    id_BS=jnp.where(is_used_BS, document_B[:, None], EMPTY), length_B=length_B, document_B=document_B)


def shift_tokens(
  cache: TokenCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, document_B: jax.Array) -> TokenCache:
  """Keeps the last W tokens of each row's last document, newest in the last slot. Arguments as in `append_tokens`."""
  num_slots = cache.id_BS.shape[1]
  slot_BS = (run_BT != EMPTY).sum(1)[:, None] + jnp.arange(num_slots)

  def shift(buffer_BS, new_BT):
    joined_BS = jnp.concatenate([buffer_BS, new_BT.astype(buffer_BS.dtype)], 1)
    return jax.vmap(lambda joined_S, slot_S: joined_S[slot_S])(joined_BS, slot_BS)

  kept_run_BS = shift(relabel(cache.id_BS, 0), run_BT)
  is_used_BS = (kept_run_BS != EMPTY) & (kept_run_BS == kept_run_BS[:, -1:])
  return TokenCache(
    key_BSHK=_where_used(is_used_BS, shift(cache.key_BSHK, k_BTHK)),
    value_BSHV=_where_used(is_used_BS, shift(cache.value_BSHV, v_BTHV)),
    id_BS=jnp.where(is_used_BS, document_B[:, None], EMPTY), length_B=cache.length_B, document_B=document_B)


def _where_used(is_used_BS: jax.Array, x_BS: jax.Array) -> jax.Array:
  mask = is_used_BS.reshape(*is_used_BS.shape, *(1,) * (x_BS.ndim - 2))
  return jnp.where(mask, x_BS, jnp.zeros((), x_BS.dtype))
