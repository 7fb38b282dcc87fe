"""A state that goes from shard to shard: exact for every memory whose calls may be cut anywhere.

Rows are cut into groups. In step s shard i reads its tokens of group s − i, from the state with which the shard before
left that group in step s − 1. So all shards are busy but for the first and the last N − 1 of G + N − 1 steps, and what
is exchanged is one state a row, whatever the number of tokens.

Shards without a group do no work, unless the mesh splits heads or widths as well: then XLA may put a collective into
the op, for which all devices must come, so that shards without a group read one for nothing. It takes no longer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.sequence.axis import (
  AXIS,
  Op,
  hand_on,
  num_shards,
  num_tokens,
  split_rows,
  split_tokens,
  splits_more,
  take_from,
)

_GROUPS_A_SHARD = 4  # more would make calls small: with so many, a fifth of the time is idle at most


def relay(op: Op, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
  """The op over all tokens, shard after shard. See the package's docstring."""
  shards = num_shards(num_tokens(tokens))
  if shards == 1:
    return split_rows(op, constants, tokens, state)
  return split_tokens(functools.partial(_relay, op), constants, tokens, state)


def relay_call(
  op: Callable[..., tuple[Any, ...]], tokens: tuple[Any, ...], state: Any, ids: jax.Array, valid: jax.Array,
  constants: tuple[Any, ...] = (),
) -> tuple[Any, Any, Any]:
  """`relay` of op(*tokens, *constants, state, ids, valid) → outputs, next state and, where it has them, sums."""

  def run(constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    *arrays, ids, valid = tokens
    outputs, state, *sums = op(*arrays, *constants, state, ids, valid)
    return outputs, state, sums

  outputs, state, sums = relay(run, constants, (*tokens, ids, valid), state)
  return outputs, state, sums[0] if sums else {}


def num_groups(rows: int, shards: int) -> int:
  """Into how many groups the rows of a device are cut."""
  return max(count for count in range(1, min(rows, _GROUPS_A_SHARD * shards) + 1) if rows % count == 0)


def _relay(op: Op, shard: jax.Array, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
  shards = jax.lax.axis_size(AXIS)
  groups = num_groups(jax.tree.leaves(tokens)[0].shape[0], shards)
  tokens_G, state_G = jax.tree.map(lambda x: x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), (tokens, state))
  first = jax.tree.map(lambda x: x[0], (tokens_G, state_G))
  must_meet = splits_more()
  shapes = jax.eval_shape(op, constants, *first)

  def read(tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    return op(constants, tokens, state)

  def rest(tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

  def one_step(came: Any, step: jax.Array) -> tuple[Any, tuple[Any, Any, Any]]:
    group = step - shard
    tokens, start = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, jnp.clip(group, 0, groups - 1), keepdims=False), (tokens_G, state_G))
    is_due = (group >= 0) & (group < groups)
    # what is read for nothing is read from a state that may be read
    start = jax.tree.map(lambda own, came: jnp.where((shard == 0) | ~is_due, own, came), start, came)
    if must_meet:
      done = jax.tree.map(lambda x: jnp.where(is_due, x, jnp.zeros_like(x)), read(tokens, start))
    else:
      done = jax.lax.cond(is_due, read, rest, tokens, start)
    return hand_on(done[1]), done

  _, (outputs_S, after_S, sums_S) = jax.lax.scan(one_step, first[1], jnp.arange(groups + shards - 1))
  # the shard's own groups came one after another, the first of them in the step of its number
  own_S = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, shard, groups), (outputs_S, after_S))
  outputs, after = jax.tree.map(lambda x: x.reshape(groups * x.shape[1], *x.shape[2:]), own_S)
  return outputs, take_from(shards - 1, shard, after), jax.tree.map(lambda x: x.sum(0), sums_S)

