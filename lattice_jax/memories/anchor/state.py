"""The two regions of an anchor cache, kept anchors and the open segment, and how a call's tokens enter them.

A segment that ends collapses into its anchor: the anchor's key and value go to the slot that its number says, and the
open segment is empty again. Nothing is gathered or moved.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.stack_view import StackView
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.open_segment import open_slots
from lattice_jax.memories.anchor.places import Places, group_size, level, num_levels
from lattice_jax.ops.documents import EMPTY


@flax.struct.dataclass
class Region:
  """Slots of a row. position_BHS: the index in its document of the token in a slot, EMPTY for none.

  Positions are the same for all heads, [B, 1, S], but in an open segment that is compressed.
  """

  key_BHSK: jax.Array
  value_BHSV: jax.Array
  position_BHS: jax.Array


@flax.struct.dataclass
class AnchorCache:
  """What a row remembers of its document. Keys are as they were computed, rotary embedding included.

  anchors: kept anchors; number_BS: their numbers (`Places.number_BT`), EMPTY for none.
  open: the tokens since the last anchor, in order, without protected ones. protected: those, in order.
  open_len_B, num_protected_B: slots in use. open_base_B: those of compressed partitions (`open_segment`).
  age_B: tokens since the last anchor, protected ones included.
  num_anchors_B: anchors so far, without that of the first token. seen_B, document_B: as in `cache.kv_cache.KVCache`.
  stale_B: whether slots without a token may hold numbers still, until `clear`.
  """

  anchors: Region
  number_BS: jax.Array
  open: Region
  protected: Region
  open_len_B: jax.Array
  open_base_B: jax.Array
  num_protected_B: jax.Array
  age_B: jax.Array
  num_anchors_B: jax.Array
  seen_B: jax.Array
  document_B: jax.Array
  stale_B: jax.Array

  @property
  def num_slots(self) -> int:
    """Room for anchors; with 0 nothing is remembered."""
    return self.number_BS.shape[-1]


@flax.struct.dataclass
class AnchorView(StackView):
  """One layer of a stack of `AnchorCache`."""


def empty_cache(
  config: AnchorConfig, batch: int, max_len: int, *, heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype,
) -> AnchorCache:
  """A cache without tokens, for documents of at most `max_len` tokens; 0 = one without room."""

  def region(num_slots: int, *, position_heads: int = 1) -> Region:
    return Region(
      key_BHSK=jnp.zeros((batch, heads, num_slots, key_dim), dtype),
      value_BHSV=jnp.zeros((batch, heads, num_slots, value_dim), dtype),
      position_BHS=jnp.full((batch, position_heads, num_slots), EMPTY, jnp.int32))

  def numbers(start: int) -> jax.Array:
    return jnp.full((batch,), start, jnp.int32)

  num_anchors = anchor_slots(config, max_len)
  return AnchorCache(
    anchors=region(num_anchors), number_BS=jnp.full((batch, num_anchors), EMPTY, jnp.int32),
    open=region(open_slots(config, max_len), position_heads=heads if config.open_lag else 1),
    protected=region(min(max_len, config.protected)),
    open_len_B=numbers(0), open_base_B=numbers(0), num_protected_B=numbers(0), age_B=numbers(0),
    num_anchors_B=numbers(0), seen_B=numbers(0), document_B=numbers(EMPTY), stale_B=jnp.zeros((batch,), bool))


def anchor_slots(config: AnchorConfig, max_len: int) -> int:
  """Anchors that a document of at most `max_len` tokens can have in sight."""
  if not max_len:
    return 0
  if config.fanout:
    return config.keep_bos + (config.fanout - 1) * num_levels(config, max_len)
  return min(max_len, config.keep_bos + config.reach) if config.reach else max_len


def write(
  config: AnchorConfig, view: AnchorView, k_BTHK: jax.Array, v_BTHV: jax.Array, places: Places) -> AnchorView:
  """Takes in the tokens of each row's last document."""
  stack, before, arriving = view.stack, view.counts, places.arriving
  is_new_B1, is_last_BT = arriving.is_new_B[:, None], arriving.is_last_BT
  num_anchors_B, num_protected_B = (
    jnp.where(arriving.is_new_B, 0, count_B) for count_B in (before.num_anchors_B, before.num_protected_B))
  is_anchor_BT = is_last_BT & places.is_anchor_BT
  num_anchors_B = num_anchors_B + (is_anchor_BT & ~places.is_bos_BT).sum(1, dtype=jnp.int32)
  anchor_slot_BT = jnp.where(
    is_anchor_BT, _anchor_slot(config, places.number_BT, num_anchors_B[:, None], stack.num_slots), stack.num_slots)

  is_protected_BT = is_last_BT & places.is_protected_BT
  protected_slot_BT = _append(is_protected_BT, num_protected_B, before.protected.position_BHS.shape[-1])

  # the segment that is open after the call, if one is
  last_segment_B1 = jnp.where(is_last_BT, places.segment_BT, EMPTY).max(1, keepdims=True)
  is_closed_B = (is_anchor_BT & (places.segment_BT == last_segment_B1)).any(1)
  is_tail_BT = is_last_BT & (places.segment_BT == last_segment_B1) & ~is_closed_B[:, None]
  goes_on_B = (last_segment_B1[:, 0] <= 0) & ~arriving.is_new_B & ~is_closed_B
  is_open_BT = is_tail_BT & ~places.is_protected_BT
  open_start_B = jnp.where(goes_on_B, before.open_len_B, 0)
  open_slot_BT = _append(is_open_BT, open_start_B, before.open.position_BHS.shape[-1])

  def put(region: Region, here: Region, slot_BT: jax.Array, is_kept_B: jax.Array) -> Region:
    return _put(region, here, view.layer, slot_BT, is_kept_B, k_BTHK, v_BTHV, arriving.index_BT)

  leaves_tokens_B = arriving.is_new_B & (before.seen_B > 0) | ~goes_on_B & (before.open_len_B > 0)
  number_BS = jnp.where(is_new_B1, EMPTY, before.number_BS)
  number_BS = number_BS.at[jnp.arange(len(number_BS))[:, None], anchor_slot_BT].set(places.number_BT, mode="drop")
  small = {
    "number_BS": number_BS, "open_len_B": open_start_B + is_open_BT.sum(1, dtype=jnp.int32),
    "open_base_B": jnp.where(goes_on_B, before.open_base_B, 0),
    "num_protected_B": num_protected_B + is_protected_BT.sum(1, dtype=jnp.int32),
    "age_B": jnp.where(goes_on_B, before.age_B, 0) + is_tail_BT.sum(1, dtype=jnp.int32), "num_anchors_B": num_anchors_B,
    "seen_B": arriving.seen_B, "document_B": arriving.document_B, "stale_B": before.stale_B | leaves_tokens_B}
  return view.replace(stack=stack.replace(
    anchors=put(stack.anchors, before.anchors, anchor_slot_BT, ~arriving.is_new_B),
    open=put(stack.open, before.open, open_slot_BT, goes_on_B),
    protected=put(stack.protected, before.protected, protected_slot_BT, ~arriving.is_new_B),
    **{name: _put_layer(getattr(stack, name), view.layer, value) for name, value in small.items()}))


def clear(stacks: dict[str, AnchorCache]) -> dict[str, AnchorCache]:
  """Blanks the keys and values of slots that hold no token, where some may still be there.

  There is one branch, and its other side is the identity; in any other form XLA copies the stacks at every step.
  """

  def blank(region: Region) -> Region:
    is_used_LBHS1 = (region.position_BHS != EMPTY)[..., None]
    return region.replace(
      key_BHSK=jnp.where(is_used_LBHS1, region.key_BHSK, 0), value_BHSV=jnp.where(is_used_LBHS1, region.value_BHSV, 0))

  def clear_all(stacks):
    return {
      name: stack.replace(
        anchors=blank(stack.anchors), open=blank(stack.open), protected=blank(stack.protected),
        stale_B=jnp.zeros_like(stack.stale_B))
      for name, stack in stacks.items()}

  is_due = jnp.stack([stack.stale_B.any() for stack in stacks.values()]).any()
  return jax.lax.cond(is_due, clear_all, dict, dict(stacks))


def _anchor_slot(config: AnchorConfig, number_BT: jax.Array, newest_B1: jax.Array, num_slots: int) -> jax.Array:
  """The slot of an anchor, `num_slots` where a newer one of the call takes the same."""
  bos = int(config.keep_bos)
  if config.fanout:
    own_level = jnp.minimum(level(config, number_BT), (num_slots - bos) // (config.fanout - 1) - 1)
    size = group_size(config, own_level)
    unit = size // config.fanout
    slot_BT = own_level * (config.fanout - 1) + number_BT // unit % config.fanout - 1
    stays_BT = number_BT + size > newest_B1
  else:
    ring = num_slots - bos
    slot_BT = (number_BT - 1) % max(ring, 1)
    stays_BT = number_BT + ring > newest_B1
  slot_BT = jnp.where(stays_BT, slot_BT + bos, num_slots)
  return jnp.where(number_BT == 0, 0, slot_BT)


def _append(is_BT: jax.Array, start_B: jax.Array, num_slots: int) -> jax.Array:
  """The next free slots for the tokens that `is_BT`, `num_slots` for the others."""
  slot_BT = start_B[:, None] + jnp.cumsum(is_BT, axis=1, dtype=jnp.int32) - is_BT
  return jnp.where(is_BT, slot_BT, num_slots)


def _put(
  stack: Region, here: Region, layer: jax.Array, slot_BT: jax.Array, is_kept_B: jax.Array, k_BTHK: jax.Array,
  v_BTHV: jax.Array, index_BT: jax.Array,
) -> Region:
  """The region with those tokens in those slots; where it is not kept, nothing else stays in it."""
  if not stack.position_BHS.shape[-1]:
    return stack
  row_B1 = jnp.arange(slot_BT.shape[0])[:, None]

  def write_in(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
    return x_LBHS.at[layer, row_B1, :, slot_BT].set(new_BTH.astype(x_LBHS.dtype), mode="drop")

  position_BHS = jnp.where(is_kept_B[:, None, None], here.position_BHS, EMPTY)
  position_BHS = position_BHS.at[row_B1, :, slot_BT].set(index_BT[..., None], mode="drop")
  return Region(
    key_BHSK=write_in(stack.key_BHSK, k_BTHK), value_BHSV=write_in(stack.value_BHSV, v_BTHV),
    position_BHS=_put_layer(stack.position_BHS, layer, position_BHS))


def _put_layer(x_L: Any, layer: jax.Array, x: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(x_L, x.astype(x_L.dtype), layer, 0)
