"""Attention of every shard's queries to keys that go round all shards, one shard's at a time (arXiv 2310.01889).

The 2 N halves of stretches lie as in `gather`: shard i has the i-th and the i-th from the end, of queries and of keys.
Then every step is the same work for all: of the four pairs of a query's and a key's half, two are seen. The backward
pass sends keys round once more, with their gradients, so that no shard ever holds those of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import merge
from lattice_jax.ops.sequence.axis import AXIS, num_shards, num_tokens, split_tokens
from lattice_jax.ops.sequence.gather import exchange, halves_of, joined

# (queries [B, S, …], their places [S], keys, their places, others) → output and log-sum-exp, float32
Attend = Callable[[jax.Array, jax.Array, Any, jax.Array, Any], tuple[jax.Array, jax.Array]]


def with_ring_of_keys(attend: Attend, queries: jax.Array, keys: Any, facts: Any, state: Any) -> jax.Array:
  """Outputs [B, T, …] of queries [B, T, …].

  Args:
    attend: takes queries that follow one another and keys that do, their places in the rows, and `others`: all of
      `facts` and `state`. Differentiated with respect to queries and keys alone.
    keys: tree of arrays [B, T, …].
    facts: tree of arrays [B, T], few enough that each shard has all of them.
    state: tree of arrays [B, …].

  Raises:
    ValueError: stretches have no halves.
  """
  length = num_tokens(queries)
  shards = num_shards(length)
  if length % (2 * shards):
    raise ValueError(
      f"a ring halves the tokens of each device, and a call of {length} over mesh.seq={shards} devices gives each "
      f"{length // shards}; give a multiple of {2 * shards} tokens, or use model.attention.exchange='gather'.")

  def body(shard: jax.Array, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    queries, keys, facts = tokens
    facts = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True), facts)
    queries_P, keys_P = _early_first(shard, exchange(halves_of((queries, keys), 2)))
    outputs_P = _ring(attend, shard, queries_P, keys_P, (facts, state))
    return joined(exchange(_early_first(shard, outputs_P), is_back=True)), state, ()

  return split_tokens(body, (), (queries, keys, facts), state)[0]


def _early_first(shard: jax.Array, tree: Any) -> Any:
  """Swaps the halves on odd shards, where `exchange` puts the late one first; undoes itself."""
  return jax.tree.map(lambda x_P: jnp.where(shard % 2 == 0, x_P, x_P[::-1]), tree)


def _places(shard: jax.Array, half: int) -> jax.Array:
  """[2, S]: of the early and of the late half of a shard."""
  number_P = jnp.stack([shard, 2 * jax.lax.axis_size(AXIS) - 1 - shard])
  return number_P[:, None] * half + jnp.arange(half)


def _pairs(shard: jax.Array, step: jax.Array | int) -> tuple[jax.Array, tuple[tuple[Any, Any], ...]]:
  """The shard whose keys are here in a step, and which halves (of queries, of keys) meet in it; 0 = early, 1 = late."""
  owner = (shard - step) % jax.lax.axis_size(AXIS)
  if isinstance(step, int) and step == 0:
    return owner, ((0, 0), (1, 0), (1, 1))
  half = jnp.where(owner < shard, 0, 1)
  return owner, ((1, 0), (half, half))


def _rotate(tree: Any) -> Any:
  shards = jax.lax.axis_size(AXIS)
  pairs = [(shard, (shard + 1) % shards) for shard in range(shards)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), tree)


def _take(tree: Any, half: jax.Array | int) -> Any:
  return jax.tree.map(lambda x_P: jax.lax.dynamic_index_in_dim(x_P, half, keepdims=False), tree)


def _put(tree: Any, half: jax.Array | int, value: Any) -> Any:
  return jax.tree.map(lambda x_P, x: jax.lax.dynamic_update_index_in_dim(x_P, x, half, 0), tree, value)


def part_gradient(
  part: Callable[[Any, Any], tuple[jax.Array, jax.Array]], queries: Any, keys: Any, found: tuple[jax.Array, jax.Array],
  d_found: tuple[jax.Array, jax.Array | float],
) -> tuple[Any, Any]:
  """Gradients that go to queries and keys by part(queries, keys) → output and log-sum-exp over some of all keys.

  found, d_found: output and log-sum-exp over all keys, and their cotangents.
  """
  (out, lse), pull = jax.vjp(part, queries, keys)
  (whole_out, whole_lse), (d_out, d_lse) = found, d_found
  # what of the whole is this part's, and how the whole moves with the part's log-sum-exp
  share = jnp.exp(lse - whole_lse)
  return pull((d_out * share[..., None], share * ((d_out * (out - whole_out)).sum(-1) + d_lse)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(attend: Attend, shard: jax.Array, queries_P: jax.Array, keys_P: Any, others: Any) -> jax.Array:
  return _forward(attend, shard, queries_P, keys_P, others)[0]


def _forward(
  attend: Attend, shard: jax.Array, queries_P: jax.Array, keys_P: Any, others: Any) -> tuple[jax.Array, jax.Array]:
  """Output and log-sum-exp of both halves."""
  half = queries_P.shape[2]
  place_PS = _places(shard, half)

  def read(owner: jax.Array, keys_P: Any, query: Any, key: Any) -> tuple[jax.Array, jax.Array]:
    return attend(
      _take(queries_P, query), _take(place_PS, query), _take(keys_P, key), _take(_places(owner, half), key), others)

  owner, (early, *late) = _pairs(shard, 0)
  parts = [read(owner, keys_P, *early), merge(*read(owner, keys_P, *late[0]), *read(owner, keys_P, *late[1]))]
  found_P = jax.tree.map(lambda *x: jnp.stack(x), *parts)

  def one_step(carry: Any, step: jax.Array) -> tuple[Any, None]:
    keys_P, found_P = carry
    keys_P = _rotate(keys_P)
    owner, pairs = _pairs(shard, step)
    for query, key in pairs:
      both = merge(*_take(found_P, query), *read(owner, keys_P, query, key))
      found_P = _put(found_P, query, both)
    return (keys_P, found_P), None

  (_, found_P), _ = jax.lax.scan(one_step, (keys_P, found_P), jnp.arange(1, jax.lax.axis_size(AXIS)))
  return found_P


def _ring_fwd(
  attend: Attend, shard: jax.Array, queries_P: jax.Array, keys_P: Any, others: Any) -> tuple[jax.Array, Any]:
  found_P = _forward(attend, shard, queries_P, keys_P, others)
  return found_P[0], (shard, queries_P, keys_P, others, found_P)


def _ring_bwd(attend: Attend, saved: Any, d_out_P: jax.Array) -> tuple[None, Any, Any, None]:
  shard, queries_P, keys_P, others, found_P = saved
  half = queries_P.shape[2]
  place_PS = _places(shard, half)

  def add(owner: jax.Array, keys_P: Any, sums: Any, query: Any, key: Any) -> Any:
    """The gradients that a pair of halves adds to those of queries and keys."""
    def part(queries: jax.Array, keys: Any) -> tuple[jax.Array, jax.Array]:
      return attend(queries, _take(place_PS, query), keys, _take(_places(owner, half), key), others)

    more = part_gradient(
      part, _take(queries_P, query), _take(keys_P, key), _take(found_P, query), (_take(d_out_P, query), 0.0))
    return tuple(
      _put(total_P, place, jax.tree.map(jnp.add, _take(total_P, place), one))
      for total_P, place, one in zip(sums, (query, key), more, strict=True))

  def all_pairs(keys_P: Any, sums: Any, step: jax.Array | int) -> Any:
    owner, pairs = _pairs(shard, step)
    for pair in pairs:
      sums = add(owner, keys_P, sums, *pair)
    return sums

  def one_step(carry: Any, step: jax.Array) -> tuple[Any, None]:
    keys_P, (d_queries_P, d_keys_P) = carry
    keys_P, d_keys_P = _rotate((keys_P, d_keys_P))
    return (keys_P, all_pairs(keys_P, (d_queries_P, d_keys_P), step)), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (queries_P, keys_P))
  carry = keys_P, all_pairs(keys_P, zeros, 0)
  (_, (d_queries_P, d_keys_P)), _ = jax.lax.scan(one_step, carry, jnp.arange(1, jax.lax.axis_size(AXIS)))
  d_queries_P, d_keys_P = jax.tree.map(
    lambda d_x, x: d_x.astype(x.dtype), (d_queries_P, _rotate(d_keys_P)), (queries_P, keys_P))
  return None, d_queries_P, d_keys_P, None


_ring.defvjp(_ring_fwd, _ring_bwd)
