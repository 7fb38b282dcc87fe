"""Keys and values of past tokens, as an explicit state: all of them up to a length, or the last W."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import EMPTY, Order


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
    """Slots as keys: the token before the first new one has index -1."""
    return Order(index_BT=jnp.arange(self.id_BS.shape[1]) - self.length_B[:, None], id_BT=self.id_BS)


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


def append_tokens(cache: TokenCache, k_BTHK: jax.Array, v_BTHV: jax.Array, id_BT: jax.Array) -> TokenCache:
  """Appends the tokens of each row's last document; a new document starts at slot 0. What does not fit is lost."""
  num_slots = cache.id_BS.shape[1]
  document_B, num_valid_B = _last_document(cache, id_BT)
  is_last_BT = (id_BT == document_B[:, None]) & (id_BT != EMPTY)
  base_B = jnp.where(document_B == cache.document_B, cache.length_B, 0)
  first_B = num_valid_B - is_last_BT.sum(1)
  slot_BT = jnp.where(is_last_BT, base_B[:, None] + jnp.arange(id_BT.shape[1]) - first_B[:, None], num_slots)
  length_B = jnp.minimum(base_B + is_last_BT.sum(1), num_slots)

  def write(buffer_BS, new_BT):
    row_B1 = jnp.arange(buffer_BS.shape[0])[:, None]
    written_BS = buffer_BS.at[row_B1, slot_BT].set(new_BT.astype(buffer_BS.dtype), mode="drop")
    is_free_BS = (jnp.arange(num_slots) >= length_B[:, None]).reshape(*id_shape(buffer_BS))
    return jnp.where(is_free_BS, jnp.zeros((), buffer_BS.dtype), written_BS)

  return TokenCache(
    key_BSHK=write(cache.key_BSHK, k_BTHK), value_BSHV=write(cache.value_BSHV, v_BTHV),
    id_BS=jnp.where(jnp.arange(num_slots) < length_B[:, None], document_B[:, None], EMPTY),
    length_B=length_B, document_B=document_B)


def shift_tokens(cache: TokenCache, k_BTHK: jax.Array, v_BTHV: jax.Array, id_BT: jax.Array) -> TokenCache:
  """Keeps the last W tokens of each row's last document, newest in the last slot."""
  num_slots = cache.id_BS.shape[1]
  document_B, num_valid_B = _last_document(cache, id_BT)
  slot_BS = num_valid_B[:, None] + jnp.arange(num_slots)

  def shift(buffer_BS, new_BT):
    return jnp.take_along_axis(
      jnp.concatenate([buffer_BS, new_BT.astype(buffer_BS.dtype)], 1), slot_BS.reshape(*id_shape(buffer_BS)), axis=1)

  id_BS = shift(cache.id_BS, id_BT)
  is_kept_BS = id_BS == document_B[:, None]

  def clear(x_BS):
    return jnp.where(is_kept_BS.reshape(*id_shape(x_BS)), x_BS, jnp.zeros((), x_BS.dtype))

  return TokenCache(
    key_BSHK=clear(shift(cache.key_BSHK, k_BTHK)), value_BSHV=clear(shift(cache.value_BSHV, v_BTHV)),
    id_BS=jnp.where(is_kept_BS, id_BS, EMPTY), length_B=cache.length_B, document_B=document_B)


def id_shape(x_BS: jax.Array) -> tuple[int, ...]:
  """Shape that lets a [B, S] array broadcast against `x_BS` with its trailing axes."""
  return (x_BS.shape[0], -1, *(1,) * (x_BS.ndim - 2))


def _last_document(cache: TokenCache, id_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  num_valid_B = (id_BT != EMPTY).sum(1)
  newest_B = jnp.take_along_axis(id_BT, jnp.maximum(num_valid_B - 1, 0)[:, None], 1)[:, 0]
  return jnp.where(num_valid_B > 0, newest_B, cache.document_B), num_valid_B
