"""Attention of every shard's queries to some of the tokens of all shards, whose keys are gathered a few at a time.

The tokens that are wanted lie first on their shard. In round r all shards gather the r-th part of each other's, until
none has more, and no round moves what nobody wants. The backward pass gathers the same parts once more.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import merge
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.sequence.axis import AXIS, num_tokens
from lattice_jax.ops.sequence.ring import Attend, part_gradient

_PARTS = 8  # of a shard's tokens at most one part goes in a round


def attend_some(
  attend: Attend, shard: jax.Array, queries: jax.Array, keys: Any, is_wanted_BT: jax.Array, others: Any,
) -> tuple[jax.Array, jax.Array]:
  """Output and log-sum-exp of the shard's queries [B, T, …].

  Args:
    attend: (queries, their places [T] in the rows, keys [B, S, …], their places [B, S], others) → output and
      log-sum-exp, float32; a place of EMPTY holds no key. Differentiated with respect to queries and keys alone.
    shard: the number of the shard that this runs on.
    keys: tree of arrays [B, T, …] of the shard's tokens.
    is_wanted_BT: which of them are wanted.
  """
  length = num_tokens(queries)
  order_BT = jnp.argsort(~is_wanted_BT, axis=1, stable=True)
  place_BT = jnp.where(jnp.take_along_axis(is_wanted_BT, order_BT, 1), shard * length + order_BT, EMPTY)
  most = jax.lax.pmax(is_wanted_BT.sum(1).max(), tuple(jax.sharding.get_abstract_mesh().manual_axes))
  size = -(-length // _PARTS)
  pad = -length % size

  def front(x_BT: jax.Array) -> jax.Array:
    x_BT = jnp.take_along_axis(x_BT, order_BT.reshape(*order_BT.shape, *(1,) * (x_BT.ndim - 2)), 1)
    return jnp.pad(x_BT, ((0, 0), (0, pad), *((0, 0),) * (x_BT.ndim - 2)))

  place_BT = jnp.pad(place_BT, ((0, 0), (0, pad)), constant_values=EMPTY)
  query_T = shard * length + jnp.arange(length)
  return _in_rounds(attend, size, queries, jax.tree.map(front, keys), (query_T, place_BT, most, others))


def _gathered(tree: Any, first: jax.Array, size: int) -> Any:
  return jax.tree.map(
    lambda x: jax.lax.all_gather(
      jax.lax.dynamic_slice_in_dim(x, first, size, axis=1), AXIS, axis=1, tiled=True), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_rounds(attend: Attend, size: int, queries: jax.Array, keys: Any, facts: Any) -> tuple[jax.Array, jax.Array]:
  return _forward(attend, size, queries, keys, facts)


def _forward(attend: Attend, size: int, queries: jax.Array, keys: Any, facts: Any) -> tuple[jax.Array, jax.Array]:
  query_T, place_BT, most, others = facts

  def read(first: jax.Array) -> tuple[jax.Array, jax.Array]:
    part, place_BS = _gathered((keys, place_BT), first, size)
    return attend(queries, query_T, part, place_BS, others)

  def one_round(found: Any, first: jax.Array) -> tuple[Any, None]:
    return jax.lax.cond(first < most, lambda found: merge(*found, *read(first)), lambda found: found, found), None

  return jax.lax.scan(one_round, read(jnp.int32(0)), _firsts(keys, size)[1:])[0]


def _firsts(keys: Any, size: int) -> jax.Array:
  return jnp.arange(0, num_tokens(keys), size, dtype=jnp.int32)


def _rounds_fwd(attend: Attend, size: int, queries: jax.Array, keys: Any, facts: Any) -> Any:
  found = _forward(attend, size, queries, keys, facts)
  return found, (queries, keys, facts, found)


def _rounds_bwd(attend: Attend, size: int, saved: Any, d_found: Any) -> tuple[Any, Any, None]:
  queries, keys, facts, found = saved
  query_T, place_BT, most, others = facts

  def add(sums: Any, first: jax.Array) -> Any:
    part, place_BS = _gathered((keys, place_BT), first, size)
    d_queries, d_part = part_gradient(
      lambda queries, keys: attend(queries, query_T, keys, place_BS, others), queries, part, found, d_found)

    def put(total: jax.Array, more: jax.Array) -> jax.Array:
      own = jax.lax.psum_scatter(more.astype(total.dtype), AXIS, scatter_dimension=1, tiled=True)
      return jax.lax.dynamic_update_slice_in_dim(total, own, first, axis=1)

    return sums[0] + d_queries, jax.tree.map(put, sums[1], d_part)

  def one_round(sums: Any, first: jax.Array) -> tuple[Any, None]:
    return jax.lax.cond(first < most, lambda sums: add(sums, first), lambda sums: sums, sums), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (queries, keys))
  sums, _ = jax.lax.scan(one_round, zeros, _firsts(keys, size))
  return *jax.tree.map(lambda d_x, x: d_x.astype(x.dtype), sums, (queries, keys)), None


_in_rounds.defvjp(_rounds_fwd, _rounds_bwd)
