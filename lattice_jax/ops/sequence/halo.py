"""States that know only the last tokens: what a shard needs is made of the last tokens of the shard before it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lattice_jax.ops.sequence.axis import (
  AXIS,
  Op,
  check_reach,
  hand_on,
  num_shards,
  num_tokens,
  split_tokens,
  take_from,
)


def with_halo(
  op: Op, constants: Any, tokens: Any, valid: Bool[Array, "B T"], state: Any, *, reach: int, name: str,
) -> tuple[Any, Any, Any]:
  """The op over all tokens, on all shards at once. See the package's docstring.

  Args:
    valid: which tokens are valid, a prefix of every row; nothing is asked of outputs at others.
    reach: after so many valid tokens the state does not depend on what it was before.
    name: of what reaches so far, for messages.

  Raises:
    ValueError: a shard has fewer tokens.
  """
  shards = num_shards(num_tokens(tokens))
  if shards == 1:
    return op(constants, tokens, state)
  check_reach(num_tokens(tokens), reach, name)
  outputs, after, sums = split_tokens(
    functools.partial(_with_halo, op, max(reach, 1)), constants, (tokens, valid), state)
  return outputs, after, sums


def _with_halo(
  op: Op, reach: int, shard: jax.Array, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
  tokens, valid_BT = tokens
  # Of a shard with fewer valid tokens this is wrong, but then the shards after it have none.
  _, own_end, _ = op(constants, jax.tree.map(lambda x: x[:, -reach:], tokens), state)
  start = jax.tree.map(lambda first, came: jnp.where(shard == 0, first, came), state, hand_on(own_end))
  outputs, after, sums = op(constants, tokens, start)
  last_B = jax.lax.pmax(jnp.where(valid_BT.any(1), shard, 0), AXIS)
  return outputs, take_from(last_B, shard, after), sums


def with_those_before(count: int, shard: jax.Array, tree: Any) -> tuple[Any, jax.Array]:
  """Within a shard, arrays [B, S + T, …] for [B, T, …], behind the S ≤ `count` tokens before its own.

  S is less where all shards before the last have fewer tokens. Also the places of all in the rows, [S + T]; before the
  rows begin they are negative, and the arrays are zeros.

  shard: the number of the shard that this runs on.
  """
  length = num_tokens(tree)
  count = min(count, length * (jax.lax.axis_size(AXIS) - 1))
  parts = [tree]
  for by in range(1, -(-count // length) + 1):
    size = min(length, count - (by - 1) * length)
    parts.insert(0, hand_on(jax.tree.map(lambda x: x[:, length - size:], tree), by=by))  # noqa: B023
  joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
  return joined, shard * length - count + jnp.arange(count + length)
