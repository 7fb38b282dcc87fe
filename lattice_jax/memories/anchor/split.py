"""Anchor attention over tokens that lie on several devices (`lattice_jax.ops.sequence`): the cache is handed on."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax

from lattice_jax.cache.stack_view import refuse_split
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.op import anchor_attention
from lattice_jax.memories.anchor.state import AnchorCache, AnchorView, empty_cache
from lattice_jax.ops.sequence import num_shards, relay_call
from lattice_jax.types import Segment


def split_anchor_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, state: AnchorCache | AnchorView, segment: Segment, *, config: AnchorConfig,
  impl: str,
) -> tuple[jax.Array, AnchorCache | AnchorView]:
  """As `anchor_attention`. Of a state without room, shards hand on a cache with room for the call's tokens.

  What that holds is anchors, protected tokens and the open segment: with `reach` or `fanout` its size is bounded.

  Raises:
    ValueError: tokens are split, and the state is one layer of a stack of caches.
  """
  if num_shards(q.shape[1]) == 1:
    return _attend(config, impl, q, k, v, segment.marks_BT, state, segment.ids_BT, segment.valid_BT)
  if isinstance(state, AnchorView):
    refuse_split()
  before = state
  if not state.num_slots:
    config = replace(config, open_lag=0)  # a call without a cache sees whole segments
    before = empty_cache(
      config, len(q), q.shape[1], heads=k.shape[2], key_dim=k.shape[3], value_dim=v.shape[3], dtype=k.dtype)
  tokens = q, k, v, segment.marks_BT
  out_BTQV, after, _ = relay_call(
    functools.partial(_attend, config, impl), tokens, before, segment.ids_BT, segment.valid_BT)
  return out_BTQV, after if state.num_slots else state


def _attend(config, impl, q, k, v, marks, state, ids, valid):
  return anchor_attention(q, k, v, state, ids, valid, marks=marks, config=config, impl=impl)
