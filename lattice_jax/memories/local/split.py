"""Local attention over tokens that lie on several devices (`lattice_jax.ops.sequence`): what is kept is handed on."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax

from lattice_jax.cache.stack_view import refuse_split
from lattice_jax.memories.local.config import LocalConfig, window_rows
from lattice_jax.memories.local.far import find_fold
from lattice_jax.memories.local.op import local_attention
from lattice_jax.memories.local.state import LocalCache, LocalView, empty_cache
from lattice_jax.ops.far_summary import FeatureMaps
from lattice_jax.ops.local import group_heads
from lattice_jax.ops.sequence import num_shards, relay_call
from lattice_jax.types import Segment


def split_local_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, state: LocalCache | LocalView, segment: Segment, *, config: LocalConfig,
  maps: FeatureMaps | None, impl: str,
) -> tuple[jax.Array, LocalCache | LocalView]:
  """As `local_attention`. Of a state without room, shards hand on one with room for the call's tokens.

  What that holds is windows, sinks, picks and summaries: its size depends on the tokens where a window is 0 alone.

  Raises:
    ValueError: tokens are split, and the state is one layer of a stack with room, or of layers with other windows.
  """
  if num_shards(q.shape[1]) == 1:
    return _attend(config, impl, q, k, v, maps, state, segment.ids_BT, segment.valid_BT)
  has_room = (state.stack if isinstance(state, LocalView) else state).num_slots > 0
  if isinstance(state, LocalView) and has_room:
    refuse_split()
  before = state
  if not has_room:
    config = _of_one_layer(config, state, k.shape[2])
    before = empty_cache(
      config, group_heads(window_rows(config, 1, k.shape[2])), len(q), q.shape[1], key_dim=k.shape[3],
      value_dim=v.shape[3], dtype=k.dtype, fold=find_fold(config, q.shape[2] // k.shape[2]))
  out_BTQV, after, _ = relay_call(
    functools.partial(_attend, config, impl), (q, k, v), before, segment.ids_BT, segment.valid_BT, (maps,))
  return out_BTQV, after if has_room else state


def _of_one_layer(config: LocalConfig, state: LocalCache | LocalView, kv_heads: int) -> LocalConfig:
  layers = len(state.stack.seen_B) if isinstance(state, LocalView) else 1
  first, *others = window_rows(config, layers, kv_heads)
  if any(row != first for row in others):
    raise ValueError(
      f"model.local.windows={','.join(map(str, config.windows))} gives layers of one block other windows, which tokens "
      "that lie on several devices cannot have; use mesh.seq=1, or name each layer in model.pattern.")
  return replace(config, windows=first)


def _attend(config, impl, q, k, v, maps, state, ids, valid):
  return local_attention(q, k, v, state, ids, valid, config=config, maps=maps, impl=impl)
