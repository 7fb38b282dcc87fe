"""Attention of every shard's queries to the keys of all shards, which are gathered on each.

A token sees only what is before it, so shards with early queries would wait for those with late ones. Each shard
therefore reads two halves of stretches, one from either end of the rows, for which queries and outputs change places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.sequence.axis import AXIS, num_tokens, split_tokens


def with_all_keys(
  attend: Callable[[Any, jax.Array, Any, Any], Any], queries: Any, keys: Any, state: Any) -> Any:
  """Outputs [B, T, …] of attend(queries, places, keys, state), which gets some queries at a time and all keys.

  Args:
    attend: takes queries [B, S, …] that follow one another, their places [S] in the rows, and `keys` and
      `state` as they are given here; returns outputs [B, S, …].
    queries, keys: trees of arrays [B, T, …].
    state: tree of arrays [B, …].
  """

  def body(shard: jax.Array, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    queries, keys = tokens
    keys = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True), keys)
    length = num_tokens(queries)
    parts = 2 if length % 2 == 0 else 1
    number_P = shard * parts + jnp.arange(parts)
    queries_P, number_P = exchange((halves_of(queries, parts), number_P))
    places_PT = number_P[:, None] * (length // parts) + jnp.arange(length // parts)
    outputs_P = jax.lax.map(lambda part: attend(*part, keys, state), (queries_P, places_PT))
    return joined(exchange(outputs_P, is_back=True)), state, ()

  return split_tokens(body, (), (queries, keys), state)[0]


def halves_of(tree: Any, parts: int) -> Any:
  """[parts, B, T / parts, …] of arrays [B, T, …]."""
  return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0), tree)


def joined(tree: Any) -> Any:
  """Undoes `halves_of`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def exchange(tree: Any, *, is_back: bool = False) -> Any:
  """Halves [2, …] of stretches where they are read: half h of 2 N by shard h, or by 2 N − 1 − h. One part stays."""
  shards = jax.lax.axis_size(AXIS)

  def move(x: jax.Array) -> jax.Array:
    if x.shape[0] == 1:
      return x
    halves = []
    for half in range(2):
      pairs = [(shard, min(2 * shard + half, 2 * shards - 1 - 2 * shard - half)) for shard in range(shards)]
      halves.append(jax.lax.ppermute(x[half], AXIS, [pair[::-1] for pair in pairs] if is_back else pairs))
    return jnp.stack(halves)

  return jax.tree.map(move, tree)
