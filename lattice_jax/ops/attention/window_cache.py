"""Keys and values of the last W tokens, as an explicit state."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.fold import Evicted, Fold, fold_in
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


@flax.struct.dataclass
class FoldingWindow(WindowCache):
  """A window with a fold. seen_B: tokens of the document so far. summary: what the fold has made of those that left."""

  seen_B: jax.Array
  summary: Any


def empty_window(
  batch: int, window: int, kv_heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype, *, fold: Fold | None = None,
) -> WindowCache:
  """A window without tokens."""
  cache = WindowCache(
    key_BSHK=jnp.zeros((batch, window, kv_heads, key_dim), dtype),
    value_BSHV=jnp.zeros((batch, window, kv_heads, value_dim), dtype),
    id_BS=jnp.full((batch, window), EMPTY, jnp.int32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
  )
  return cache if fold is None else FoldingWindow(
    **vars(cache), seen_B=jnp.zeros((batch,), jnp.int32),
    summary=fold.init_summary(batch, kv_heads, key_dim, value_dim))


def shift_tokens(
  cache: WindowCache, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, document_B: jax.Array, *,
  fold: Fold | None = None,
) -> WindowCache:
  """Keeps the last W tokens of each row's last document; those of it that leave are handed to the fold.

  run_BT: from `document_runs`. document_B: from `document_after`.
  """
  old = relabel(cache.id_BS, 0), cache.key_BSHK, cache.value_BSHV
  joined = jax.tree.map(
    lambda old_BS, new_BT: jnp.concatenate([old_BS, new_BT.astype(old_BS.dtype)], 1), old, (run_BT, k_BTHK, v_BTHV))
  num_new_B = (run_BT != EMPTY).sum(1)
  run_BS, key_BSHK, value_BSHV = last_slots(joined, num_new_B, cache.id_BS.shape[1])
  if fold is not None:
    cache = _evict(fold, cache, joined, num_new_B, run_BS[:, -1:])
  is_used_BS = (run_BS != EMPTY) & (run_BS == run_BS[:, -1:])
  key_BSHK, value_BSHV = keep_only(is_used_BS, (key_BSHK, value_BSHV))
  id_BS = jnp.where(is_used_BS, document_B[:, None], EMPTY)
  return cache.replace(key_BSHK=key_BSHK, value_BSHV=value_BSHV, id_BS=id_BS, document_B=document_B)


def _evict(
  fold: Fold, cache: FoldingWindow, joined: tuple[jax.Array, ...], num_new_B: jax.Array, last_run_B1: jax.Array,
) -> FoldingWindow:
  """The cache with `seen_B` and `summary` after the call. joined: runs, keys and values, old ones before new ones."""
  run_BS, key_BSHK, value_BSHV = joined
  window = cache.id_BS.shape[1]
  is_new_B1, is_last_BS = last_run_B1 > 0, (run_BS == last_run_B1) & (run_BS != EMPTY)
  first_B1 = jnp.where(is_new_B1, is_last_BS.argmax(1)[:, None], window - cache.seen_B[:, None])
  # T new tokens move out the first T at most.
  key_BTHK, value_BTHV, is_last_BT = (x[:, :run_BS.shape[1] - window] for x in (key_BSHK, value_BSHV, is_last_BS))
  place_T = jnp.arange(is_last_BT.shape[1])
  leaves_BT = is_last_BT & (place_T < num_new_B[:, None])
  shape_BHT = key_BTHK.shape[0], key_BTHK.shape[2], len(place_T)
  evicted = Evicted(
    key_BHSK=jnp.moveaxis(key_BTHK, 2, 1), value_BHSV=jnp.moveaxis(value_BTHV, 2, 1),
    position_BHS=jnp.broadcast_to((place_T - first_B1)[:, None], shape_BHT),
    leaves_BHS=jnp.broadcast_to(leaves_BT[:, None], shape_BHT))
  num_arrived_B = is_last_BS[:, window:].sum(1, dtype=jnp.int32)
  return cache.replace(
    seen_B=jnp.where(is_new_B1[:, 0], 0, cache.seen_B) + num_arrived_B,
    summary=fold_in(fold, cache.summary, evicted, is_new_B1[:, 0]))
