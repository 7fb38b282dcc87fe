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
