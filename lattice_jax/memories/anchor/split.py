"""Anchor attention over tokens that lie on several devices (`lattice_jax.ops.sequence`).

A call without a cache takes the tokens that a segment may reach back from the devices before, and of closed segments
what they leave from all; a cache is handed on from device to device.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.cache.stack_view import refuse_split
from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.anchor.attend import attend_closed, segment_order
from lattice_jax.memories.anchor.config import AnchorConfig, check
from lattice_jax.memories.anchor.op import anchor_attention
from lattice_jax.memories.anchor.places import find_places, num_levels
from lattice_jax.memories.anchor.state import AnchorCache, AnchorView
from lattice_jax.ops.attention import MASKED, Order, attend, merge
from lattice_jax.ops.attention.kernel import reasons_against
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.sequence import AXIS, attend_some, num_shards, relay_call, split_tokens, with_those_before
from lattice_jax.types import Segment


def split_anchor_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, state: AnchorCache | AnchorView, segment: Segment, *, config: AnchorConfig,
  impl: str,
) -> tuple[jax.Array, AnchorCache | AnchorView]:
  """As `anchor_attention`.

  Raises:
    ValueError: tokens are split, and the state is one layer of a stack of caches.
  """
  if num_shards(q.shape[1]) == 1:
    return _attend(config, impl, q, k, v, segment.marks_BT, state, segment.ids_BT, segment.valid_BT)
  if isinstance(state, AnchorView):
    refuse_split()
  check(config)
  if state.num_slots:
    tokens = q, k, v, segment.marks_BT
    return relay_call(
      functools.partial(_attend, config, impl), tokens, state, segment.ids_BT, segment.valid_BT)[:2]
  impl = choose_impl("anchor_attention", impl, **reasons_against(q, k, v))
  return split_tokens(functools.partial(_read, config, impl), (), (q, k, v, segment), state)[:2]


def _attend(config, impl, q, k, v, marks, state, ids, valid):
  return anchor_attention(q, k, v, state, ids, valid, marks=marks, config=config, impl=impl)


def _read(config: AnchorConfig, impl: str, shard: jax.Array, constants: Any, tokens: Any, state: AnchorCache) -> Any:
  q, k, v, segment = tokens
  length = q.shape[1]
  segment = jax.tree.map(lambda x_BT: jax.lax.all_gather(x_BT, AXIS, axis=1, tiled=True), segment)
  places = find_places(config, state, segment)
  query_T = shard * length + jnp.arange(length)
  order = segment_order(places)
  (k_BSHK, v_BSHV), place_S = with_those_before(config.max_segment - 1, shard, (k, v))
  own = attend(q, k_BSHK, v_BSHV, _at(order, query_T), _at(order, place_S), window=config.max_segment, impl=impl)
  stays_BT = places.is_anchor_BT | places.is_protected_BT
  left = attend_some(
    functools.partial(_attend_left, config, impl), shard, q, (k, v),
    jax.lax.dynamic_slice_in_dim(stays_BT, shard * length, length, axis=1), places)
  return merge(*own, *left)[0], state, ()


def _at(order: Order, place_S: jax.Array) -> Order:
  """Order of the tokens at places of the rows, of which negative ones hold none."""
  index_BS, id_BS = order.index_BT[:, place_S], order.id_BT[:, place_S]
  return Order(index_BT=index_BS, id_BT=jnp.where(place_S < 0, EMPTY, id_BS))


def _attend_left(config, impl, q_BTQK, query_T, keys, key_BS, places):
  out_BTQV = jnp.zeros((*q_BTQK.shape[:3], keys[1].shape[3]), jnp.float32)
  nothing = out_BTQV, jnp.full(q_BTQK.shape[:3], MASKED, jnp.float32)
  return attend_closed(
    config, q_BTQK, *keys, places, nothing, levels=num_levels(config, places.segment_BT.shape[1]), impl=impl,
    query_T=query_T, key_BS=key_BS)
