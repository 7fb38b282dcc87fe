"""Writes new tokens into their slots, in place: one write a token, whatever the size of the stack."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.evict import evict
from lattice_jax.cache.kv_cache import CacheView, KVCache
from lattice_jax.cache.policy import Policy
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import EMPTY, document_after, document_runs, last_slots
from lattice_jax.types import Segment


@flax.struct.dataclass
class Arrivals:
  """Where a call's tokens stand in their documents.

  run_BT: number of document changes up to the token, EMPTY where it is invalid; run 0 continues the cache's document.
  index_BT: the token's index in its document. is_last_BT: whether it belongs to the row's last document, which stays.
  is_new_B: whether that document began in this call. seen_B, document_B: as in `KVCache`, after the call.
  """

  run_BT: jax.Array
  index_BT: jax.Array
  is_last_BT: jax.Array
  is_new_B: jax.Array
  seen_B: jax.Array
  document_B: jax.Array


def arrivals(seen_B: jax.Array, document_B: jax.Array, segment: Segment) -> Arrivals:
  """Places the call's tokens behind those of one layer's cache, whose counts before the call are given."""
  run_BT = document_runs(segment.ids_BT, segment.valid_BT, document_B)
  time_T = jnp.arange(run_BT.shape[1], dtype=jnp.int32)
  before_BT = jnp.concatenate([jnp.zeros_like(run_BT[:, :1]), run_BT[:, :-1]], axis=1)
  start_BT = jax.lax.cummax(jnp.where(run_BT != before_BT, time_T, 0), axis=1)
  index_BT = jnp.where(run_BT == 0, seen_B[:, None] + time_T, time_T - start_BT)
  last_run_B = run_BT.max(1)
  is_last_BT = (run_BT == last_run_B[:, None]) & (run_BT != EMPTY)
  is_new_B = last_run_B > 0
  return Arrivals(
    run_BT=run_BT, index_BT=index_BT, is_last_BT=is_last_BT, is_new_B=is_new_B,
    seen_B=jnp.where(is_new_B, 0, seen_B) + is_last_BT.sum(1, dtype=jnp.int32),
    document_B=document_after(segment.ids_BT, segment.valid_BT, document_B))


def append(
  policy: Policy, view: CacheView, k_BTHK: jax.Array, v_BTHV: jax.Array, arriving: Arrivals, *,
  mass_BTH: jax.Array | None = None, query_BTQK: jax.Array | None = None, mark_BT: jax.Array | None = None,
) -> CacheView:
  """Appends the tokens of each row's last document; a new document starts at slot 0.

  A window overwrites its oldest tokens, and any other cache loses those for which it has no room; both are handed to
  the fold. mass_BTH, query_BTQK, mark_BT: given where the policy records them.
  """
  stack, layer, before = view.stack, view.layer, view.counts
  slot_BT, length_B = _places(policy, before, arriving, stack.num_slots)
  row_B1 = jnp.arange(slot_BT.shape[0])[:, None]
  if policy.fold is not None:
    stack = evict(policy, stack, layer, _leaving(view, slot_BT, k_BTHK, v_BTHV, arriving), arriving.is_new_B)
  # also a document that began and ended within the call: clearing must not depend on how tokens arrive
  had_tokens_B = (before.length_B > 0) | ((arriving.run_BT != EMPTY) & ~arriving.is_last_BT).any(1)
  filled_B = jnp.where(
    arriving.is_new_B & had_tokens_B, stack.num_slots, jnp.maximum(before.filled_B, length_B))

  def write(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
    return x_LBHS.at[layer, row_B1, :, slot_BT].set(new_BTH.astype(x_LBHS.dtype), mode="drop")

  def note(x_LB: jax.Array, new_B: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x_LB, new_B.astype(x_LB.dtype), layer, 0)

  position_BTH = jnp.broadcast_to(arriving.index_BT[..., None], k_BTHK.shape[:3])
  stack = stack.replace(
    key_BHSK=write(stack.key_BHSK, k_BTHK), value_BHSV=write(stack.value_BHSV, v_BTHV),
    position_BHS=write(stack.position_BHS, position_BTH),
    base_B=note(stack.base_B, jnp.where(arriving.is_new_B, policy.sinks, before.base_B)),
    length_B=note(stack.length_B, length_B), filled_B=note(stack.filled_B, filled_B),
    seen_B=note(stack.seen_B, arriving.seen_B), document_B=note(stack.document_B, arriving.document_B))
  if mass_BTH is not None:
    stack = stack.replace(mass_BHS=write(stack.mass_BHS, mass_BTH))
  if mark_BT is not None:
    mark_BTH = jnp.broadcast_to(mark_BT[..., None], k_BTHK.shape[:3])
    stack = stack.replace(mark_BHS=write(stack.mark_BHS, mark_BTH))
  if query_BTQK is not None:
    stack = stack.replace(query_BWQK=note(stack.query_BWQK, _shift(before.query_BWQK, query_BTQK, arriving)))
  return view.replace(stack=stack)


def _places(policy: Policy, before: KVCache, arriving: Arrivals, num_slots: int) -> tuple[jax.Array, jax.Array]:
  """The slot of each token, or `num_slots` if it is not kept, and how many slots are in use afterwards."""
  if policy.window:
    is_kept_BT = arriving.index_BT >= arriving.seen_B[:, None] - policy.window
    is_kept_BT = arriving.is_last_BT & (is_kept_BT | (arriving.index_BT < policy.sinks))
    beyond_BT = arriving.index_BT - policy.sinks
    slot_BT = jnp.where(beyond_BT < 0, arriving.index_BT, policy.sinks + beyond_BT % policy.window)
    length_B = jnp.minimum(arriving.seen_B, policy.sinks + policy.window)
  else:
    is_kept_BT = arriving.is_last_BT
    dropped_B = jnp.where(arriving.is_new_B, 0, before.seen_B - before.length_B)
    slot_BT = arriving.index_BT - dropped_B[:, None]
    length_B = arriving.seen_B - dropped_B
  # beyond the array there is no slot to write: such a token is lost
  return jnp.where(is_kept_BT, slot_BT, num_slots), jnp.minimum(length_B, num_slots)


def _leaving(
  view: CacheView, slot_BT: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, arriving: Arrivals) -> Evicted:
  """The tokens of each row's last document that are overwritten at `slot_BT`, and new ones that get no slot."""
  stack, row_B1 = view.stack, jnp.arange(slot_BT.shape[0])[:, None]
  is_written_BT = slot_BT < stack.num_slots

  def both(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
    old_BTH = x_LBHS.at[view.layer, row_B1, :, slot_BT].get(mode="clip")
    return jnp.moveaxis(jnp.concatenate([old_BTH, new_BTH.astype(old_BTH.dtype)], axis=1), 1, 2)

  position_BHS = both(stack.position_BHS, jnp.broadcast_to(arriving.index_BT[..., None], k_BTHK.shape[:3]))
  leaves_BS = jnp.concatenate(
    [is_written_BT & ~arriving.is_new_B[:, None], arriving.is_last_BT & ~is_written_BT], axis=1)
  return Evicted(
    key_BHSK=both(stack.key_BHSK, k_BTHK), value_BHSV=both(stack.value_BHSV, v_BTHV), position_BHS=position_BHS,
    leaves_BHS=leaves_BS[:, None] & (position_BHS != EMPTY))


def _shift(query_BWQK: jax.Array, query_BTQK: jax.Array, arriving: Arrivals) -> jax.Array:
  """The newest queries of each row; those of earlier documents are never used."""
  num_new_B = (arriving.run_BT != EMPTY).sum(1)
  joined_BSQK = jnp.concatenate([query_BWQK, query_BTQK.astype(query_BWQK.dtype)], axis=1)
  return last_slots(joined_BSQK, num_new_B, query_BWQK.shape[1])
