"""Softmax attention over tokens that lie on several devices (`lattice_jax.ops.sequence`)."""

from __future__ import annotations

import functools

import jax

from lattice_jax.cache.append import arrivals
from lattice_jax.cache.attend import attend_new, order_of
from lattice_jax.cache.kv_cache import CacheView, KVCache
from lattice_jax.cache.policy import make_policy
from lattice_jax.cache.stack_view import refuse_split
from lattice_jax.config import CacheConfig
from lattice_jax.memories.softmax.op import softmax_attention
from lattice_jax.ops.attention.window_cache import WindowCache
from lattice_jax.ops.sequence import num_shards, relay_call, with_all_keys, with_halo, with_ring_of_keys
from lattice_jax.types import Segment

State = WindowCache | KVCache | CacheView


def split_softmax_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, state: State, segment: Segment, *, window: int, cache: CacheConfig,
  impl: str, marks: jax.Array | None, exchange: str,
) -> tuple[jax.Array, State]:
  """As `softmax_attention`. Where tokens are split, a window comes from the neighbour, a call without a cache gathers
  keys and values or sends them round, as `exchange` says, and a cache goes from shard to shard.

  Raises:
    ValueError: tokens are split, and the state is one layer of a stack of caches.
  """
  op = functools.partial(_attend, window, cache, impl)
  tokens = q, k, v, marks
  if num_shards(q.shape[1]) == 1:
    return op(*tokens, state, segment.ids_BT, segment.valid_BT)
  if isinstance(state, CacheView):
    refuse_split()
  if window:
    def run(constants, tokens, state):
      return *op(*tokens[:4], state, *tokens[4:]), ()

    tokens = *tokens, segment.ids_BT, segment.valid_BT
    return with_halo(run, (), tokens, segment.valid_BT, state, reach=window, name="model.attention.window")[:2]
  if state.num_slots:
    return relay_call(op, tokens, state, segment.ids_BT, segment.valid_BT)[:2]
  counts = state.seen_B, state.document_B
  if exchange == "ring":
    return with_ring_of_keys(functools.partial(_attend_some, cache, impl), q, (k, v), segment, counts), state
  return with_all_keys(
    functools.partial(_attend_all, cache, impl), q, (k, v, segment), counts), state


def _attend(window, cache, impl, q, k, v, marks, state, ids, valid):
  return softmax_attention(q, k, v, state, ids, valid, marks=marks, window=window, cache=cache, impl=impl)


def _attend_all(cache, impl, q_BSQK, place_S, keys, counts):
  """Queries at those places of a call without a cache."""
  k_BTHK, v_BTHV, segment = keys
  arriving = arrivals(*counts, segment)
  query = jax.tree.map(lambda x_BT: x_BT[:, place_S], order_of(arriving))
  return attend_new(make_policy(cache), q_BSQK, k_BTHK, v_BTHV, arriving, query=query, impl=impl)[0]


def _attend_some(cache, impl, q_BSQK, query_S, keys, key_S, others):
  """Queries and keys at those places of a call without a cache: output and log-sum-exp."""
  segment, counts = others
  arriving = arrivals(*counts, segment)

  def at(tree, place_S):
    first, length = place_S[0], place_S.shape[0]
    return jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, first, length, axis=1) if x.ndim > 1 else x, tree)

  order = order_of(arriving)
  return attend_new(
    make_policy(cache), q_BSQK, *keys, at(arriving, key_S), query=at(order, query_S), key=at(order, key_S), impl=impl)
