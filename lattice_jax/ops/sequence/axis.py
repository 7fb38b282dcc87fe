"""The axes of the mesh that split tokens and rows, and what shards hand to one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "seq"
_ROWS = "data"  # the axis that splits rows

# (constants, tokens, state) → (outputs, next state, sums): see the package's docstring
Op = Callable[[Any, Any, Any], tuple[Any, Any, Any]]
# the same of one shard's tokens, behind the shard's number, an int32 scalar
ShardOp = Callable[[jax.Array, Any, Any, Any], tuple[Any, Any, Any]]


def num_shards(length: int) -> int:
  """Over how many devices the tokens of a call are split; 1 = not at all, as one token never is.

  Raises:
    ValueError: they cannot be split evenly.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if AXIS not in mesh.axis_names or AXIS in mesh.manual_axes or length == 1:
    return 1
  count = mesh.shape[AXIS]
  if length % count:
    raise ValueError(
      f"a call of {length} tokens cannot be split over mesh.seq={count} devices; give a multiple of {count} tokens, or "
      "use mesh.seq=1.")
  return count


def check_reach(length: int, reach: int, name: str) -> None:
  """Raises ValueError where a shard of a call of so many tokens has fewer than `name` reaches back."""
  shards = num_shards(length)
  if shards > 1 and length < reach * shards:
    raise ValueError(
      f"{name} reaches back {reach} tokens, and a call of {length} tokens over mesh.seq={shards} devices gives each "
      f"{length // shards}; use at least {reach * shards} tokens, or a smaller mesh.seq.")


def rows_of_a_device(batch: int) -> int:
  """Of so many rows, those that one device has."""
  mesh = jax.sharding.get_abstract_mesh()
  is_split = _ROWS in mesh.axis_names and _ROWS not in mesh.manual_axes and batch % mesh.shape[_ROWS] == 0
  return batch // mesh.shape[_ROWS] if is_split else batch


def lay_out(x_BTD: jax.Array) -> jax.Array:
  """The same numbers, with rows and tokens on the devices that they are split over.

  Left to itself, XLA may split the width instead, as the parameters are (`mesh.fsdp`), and gather activations.
  """
  batch, length, _ = x_BTD.shape
  rows, tokens = rows_of_a_device(batch) < batch, num_shards(length) > 1
  if not rows and not tokens:
    return x_BTD
  free = PartitionSpec.UNCONSTRAINED
  return jax.lax.with_sharding_constraint(
    x_BTD, PartitionSpec(_ROWS if rows else free, AXIS if tokens else free, free))


def num_rows(tokens: Any) -> int:
  """B of a tree of arrays [B, T, …]."""
  return jax.tree.leaves(tokens)[0].shape[0]


def num_tokens(tokens: Any) -> int:
  """T of a tree of arrays [B, T, …]."""
  return jax.tree.leaves(tokens)[0].shape[1]


def split_tokens(body: ShardOp, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
  """Runs `body` on every shard's own tokens; the state that it returns must be the same on all. Sums are added up.

  Rows that the mesh splits are split here too, so that XLA puts no collective among them where shards take turns.
  """
  rows = _ROWS if rows_of_a_device(num_rows(tokens)) < num_rows(tokens) else None
  return _shard(body, rows, AXIS, constants, tokens, state)


def split_rows(op: Op, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
  """Runs the op on the rows of each device. Sums are added up.

  What rows share gets its gradients from all devices once, after the call; left to itself, XLA sums at every token.
  """
  if rows_of_a_device(num_rows(tokens)) == num_rows(tokens):
    return op(constants, tokens, state)
  return _shard(lambda _, *call: op(*call), _ROWS, None, constants, tokens, state)


def _shard(
  body: ShardOp, rows: str | None, stretches: str | None, constants: Any, tokens: Any, state: Any
) -> tuple[Any, Any, Any]:
  """rows, stretches: the axes that split rows and tokens; None = not split. Without stretches all have number 0."""
  axes = tuple(filter(None, (rows, stretches)))
  dtypes = jax.tree.map(lambda x: x.dtype, constants)

  def run(shard_1: jax.Array, constants: Any, tokens: Any, state: Any) -> tuple[Any, Any, Any]:
    constants = jax.tree.map(lambda x, dtype: x.astype(dtype), constants, dtypes)
    outputs, state, sums = body(shard_1[0], constants, tokens, state)
    return outputs, state, jax.tree.map(lambda x: jax.lax.psum(x, axes), sums)

  by_token, by_row, whole = PartitionSpec(rows, stretches), PartitionSpec(rows), PartitionSpec()
  split = jax.shard_map(
    run, axis_names=set(axes), in_specs=(PartitionSpec(stretches), whole, by_token, by_row),
    out_specs=(by_token, by_row, whole), check_vma=False)
  # numbers as data: XLA refuses some programs in which a shard asks for its own, where the mesh splits heads as well
  number_N = jnp.arange(jax.sharding.get_abstract_mesh().shape[stretches] if stretches else 1)
  # a gradient with respect to what all shards share is a sum over them
  return split(number_N, jax.tree.map(lambda x: x.astype(_sum_dtype(x)), constants), tokens, state)


def each_alone(function: Callable[[Any, Any], Any], constants: Any, tokens: Any) -> Any:
  """Outputs of (constants, tokens) → outputs [B, T, …], in which no token depends on another."""
  if num_shards(num_tokens(tokens)) == 1:
    return function(constants, tokens)
  return _shard(
    lambda shard, constants, tokens, state: (function(constants, tokens), state, ()),
    None, AXIS, constants, tokens, ())[0]


def splits_more() -> bool:
  """Within a shard: whether XLA may split arrays over further axes of the mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return any(mesh.shape[name] > 1 for name in mesh.axis_names if name not in mesh.manual_axes)


def hand_on(tree: Any, by: int = 1) -> Any:
  """What the shard before has, or `by` before; the first, which have none so far before them, get zeros."""
  pairs = [(shard, shard + by) for shard in range(jax.lax.axis_size(AXIS) - by)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), tree)


def take_from(shard_B: jax.Array | int, shard: jax.Array, tree: Any) -> Any:
  """Row by row, on all shards, what the shard of that number has in arrays [B, …]; a number alone is for all rows.

  shard: the number of the shard that this runs on.
  """

  def take(x: jax.Array) -> jax.Array:
    is_mine = shard == shard_B
    mine = jnp.where(is_mine.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
    return jax.lax.psum(mine.astype(_sum_dtype(x)), AXIS).astype(x.dtype)

  return jax.tree.map(take, tree)


def _sum_dtype(x: jax.Array) -> jnp.dtype:
  """In which arrays of several shards are added."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.promote_types(x.dtype, jnp.float32)
  return jnp.dtype(jnp.int32) if x.dtype == bool else x.dtype
