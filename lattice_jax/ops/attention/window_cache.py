"""Keys and values of the last W tokens, as an explicit state."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.fold import Evicted, Fold, fold_in
from lattice_jax.ops.attention.keys import Order
from lattice_jax.ops.documents import EMPTY, relabel


@flax.struct.dataclass
class WindowCache:
  """The last tokens of each row in order, newest in the last slot; all of one document.

  key_BSHK, value_BSHV: as they were computed, rotary embedding included. id_BS: document of the slot, EMPTY if none.
  document_B: EMPTY before any token.
  seen_B, summary: tokens of the document so far, and what the fold has made of those that left; None without a fold.
  """

  key_BSHK: jax.Array
  value_BSHV: jax.Array
  id_BS: jax.Array
  document_B: jax.Array
  seen_B: jax.Array | None = None
  summary: Any = None

  @property
  def order(self) -> Order:
    """Slots as keys: the token before the first new one has index -1, the state's document is run 0."""
    index_S = jnp.arange(-self.id_BS.shape[1], 0)
    return Order(index_BT=jnp.broadcast_to(index_S, self.id_BS.shape), id_BT=relabel(self.id_BS, 0))


def empty_window(
  batch: int, window: int, kv_heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype, *, fold: Fold | None = None,
) -> WindowCache:
  """A window without tokens."""
  return WindowCache(
    key_BSHK=jnp.zeros((batch, window, kv_heads, key_dim), dtype),
    value_BSHV=jnp.zeros((batch, window, kv_heads, value_dim), dtype),
    id_BS=jnp.full((batch, window), EMPTY, jnp.int32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
    seen_B=None if fold is None else jnp.zeros((batch,), jnp.int32),
    summary=None if fold is None else fold.init_summary(batch, kv_heads, key_dim, value_dim),
  )


def shift_tokens(
  cache: WindowCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, document_B: jax.Array, *,
  fold: Fold | None = None,
) -> WindowCache:
  """Keeps the last W tokens of each row's last document; those of it that leave are handed to the fold.

  run_BT: from `document_runs`. document_B: from `document_after`.
  """
  num_slots = cache.id_BS.shape[1]
  slot_BS = (run_BT != EMPTY).sum(1)[:, None] + jnp.arange(num_slots)

  def shift(buffer_BS, new_BT):
    joined_BS = jnp.concatenate([buffer_BS, new_BT.astype(buffer_BS.dtype)], 1)
    return jax.vmap(lambda joined_S, slot_S: joined_S[slot_S])(joined_BS, slot_BS)

  kept_run_BS = shift(relabel(cache.id_BS, 0), run_BT)
  if fold is not None:
    cache = _evict(fold, cache, k_BTHK, v_BTHV, run_BT, kept_run_BS[:, -1:])
  is_used_BS = (kept_run_BS != EMPTY) & (kept_run_BS == kept_run_BS[:, -1:])
  return cache.replace(
    key_BSHK=_where_used(is_used_BS, shift(cache.key_BSHK, k_BTHK)),
    value_BSHV=_where_used(is_used_BS, shift(cache.value_BSHV, v_BTHV)),
    id_BS=jnp.where(is_used_BS, document_B[:, None], EMPTY), document_B=document_B)


def _evict(
  fold: Fold, cache: WindowCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, last_run_B1: jax.Array,
) -> WindowCache:
  """The cache with `seen_B` and `summary` after the call."""
  def both(old_BSHK: jax.Array, new_BTHK: jax.Array) -> jax.Array:
    return jnp.moveaxis(jnp.concatenate([old_BSHK, new_BTHK.astype(old_BSHK.dtype)], 1), 1, 2)

  joined_run_BS = jnp.concatenate([relabel(cache.id_BS, 0), run_BT], 1)
  is_new_B1 = last_run_B1 > 0
  is_last_BS = (joined_run_BS == last_run_B1) & (joined_run_BS != EMPTY)
  place_S = jnp.arange(joined_run_BS.shape[1])
  first_B1 = jnp.where(is_new_B1, is_last_BS.argmax(1)[:, None], cache.id_BS.shape[1] - cache.seen_B[:, None])
  leaves_BS = is_last_BS & (place_S < (run_BT != EMPTY).sum(1)[:, None])
  key_BHSK = both(cache.key_BSHK, k_BTHK)
  evicted = Evicted(
    key_BHSK=key_BHSK, value_BHSV=both(cache.value_BSHV, v_BTHV),
    position_BHS=jnp.broadcast_to((place_S - first_B1)[:, None], key_BHSK.shape[:3]),
    leaves_BHS=jnp.broadcast_to(leaves_BS[:, None], key_BHSK.shape[:3]))
  is_now_BT = (run_BT == last_run_B1) & (run_BT != EMPTY)
  return cache.replace(
    seen_B=jnp.where(is_new_B1[:, 0], 0, cache.seen_B) + is_now_BT.sum(1, dtype=jnp.int32),
    summary=fold_in(fold, cache.summary, evicted, is_new_B1[:, 0]))


def _where_used(is_used_BS: jax.Array, x_BS: jax.Array) -> jax.Array:
  mask = is_used_BS.reshape(*is_used_BS.shape, *(1,) * (x_BS.ndim - 2))
  return jnp.where(mask, x_BS, jnp.zeros((), x_BS.dtype))
