"""Transformer-VQ attention over tokens that lie on several devices (`lattice_jax.ops.sequence`).

A shard needs the window before it, the last tokens of its neighbour, and the cache of all that is older. Sums by code
are associative: every shard sums its own tokens, and a prefix scan adds up those before it that belong to its document.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.state import Tokens, VQState
from lattice_jax.memories.vq.summary import vq_memory
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.near_far import Far, FarMemory, NearFarState, close, from_runs, summarize, to_runs
from lattice_jax.ops.sequence import (
  AXIS,
  check_reach,
  documents_between,
  hand_on,
  num_shards,
  prefix_scan,
  split_tokens,
  take_from,
)


def split_vq_attention(
  op: Callable[..., tuple[jax.Array, VQState]], tokens: tuple[Any, ...], constants: tuple[Any, ...], state: VQState,
  ids: jax.Array, valid: jax.Array, *, use_cache: bool,
) -> tuple[jax.Array, VQState]:
  """op(*tokens, *constants, state, ids, valid), where tokens are queries, quantised keys and values.

  use_cache: whether the op has a cache; without, it stays empty.

  Raises:
    ValueError: a device has fewer tokens than the window.
  """
  if num_shards(ids.shape[1]) == 1:
    return op(*tokens, *constants, state, ids, valid)
  check_reach(ids.shape[1], state.id_BW.shape[1], "model.vq.window")
  out_BTQV, after, _ = split_tokens(functools.partial(_read, op, use_cache), constants, (*tokens, ids, valid), state)
  return out_BTQV, after


def _read(op, use_cache, shard, constants, tokens, state: VQState) -> tuple[jax.Array, VQState, dict[str, Any]]:
  q, key, v, ids, valid = tokens
  document_B = documents_between(ids, valid, state.document_B)[shard]
  memory, new = vq_memory(state.count_BHM.shape[2]), Tokens(key.code_BTH, key.key_BTHK, v)
  is_same_B, own = _own_end(memory, state, document_B, new, ids, valid)
  older = jax.tree.map(jnp.zeros_like, own.far.summary)
  if use_cache:
    before = _all_before(memory, state, shard, is_same_B, own)
    older = memory.merge(keep_only(is_same_B, before), own.far.summary)
  came = VQState.of(NearFarState(own.near, Far(older, own.far.document_B)))
  start = jax.tree.map(lambda first, came: jnp.where(shard == 0, first, came), state, hand_on(came))
  out_BTQV, after = op(q, key, v, *constants, start, ids, valid)
  last_B = jax.lax.pmax(jnp.where(valid.any(1), shard, 0), AXIS)
  return out_BTQV, take_from(last_B, shard, after), {}


def _all_before(memory: FarMemory, state: VQState, shard: jax.Array, is_same_B: jax.Array, own: NearFarState) -> Any:
  """The summary of all tokens before the shard, as far as they are of the document of its start; window included."""
  first = state.replace(count_BHM=jax.lax.stop_gradient(state.count_BHM)).near_far

  def then(earlier: Any, later: Any) -> Any:
    goes_on_B, summary = later
    return earlier[0] & goes_on_B, memory.merge(keep_only(goes_on_B, earlier[1]), summary)

  before, _ = prefix_scan(then, shard, (is_same_B, _everything(memory, first)), (is_same_B, _everything(memory, own)))
  return before[1]


def _own_end(memory: FarMemory, state, document_B, new, ids, valid) -> tuple[jax.Array, NearFarState]:
  """Whether the shard goes on with the document before it to its end; the state after it, of its own tokens alone.

  Of a shard with fewer tokens than the window that is wrong, but then the shards after it have none.
  """
  nothing = jax.tree.map(jnp.zeros_like, state).replace(
    id_BW=jnp.full_like(state.id_BW, EMPTY), document_B=document_B)
  before, run_BT, after_B = to_runs(nothing.near_far, ids, valid)
  stream, num_valid_B = before.near.followed_by(keep_only(valid, new), run_BT), valid.sum(1)
  has_left_BS = jnp.arange(stream.id_BS.shape[1]) < num_valid_B[:, None]
  far = summarize(memory, stream.replace(id_BS=jnp.where(has_left_BS, stream.id_BS, EMPTY)))
  end = close(stream, state.id_BW.shape[1], num_valid_B, far)
  return run_BT.max(1) <= 0, from_runs(end, after_B)


def _everything(memory: FarMemory, state: NearFarState) -> Any:
  """The summary of window and cache."""
  return memory.merge(state.far.summary, summarize(memory, state.near).summary)
