"""What all shards up to one make of a state, where what shards do to it is associative: a prefix scan over shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.sequence.axis import AXIS, hand_on


def prefix_scan(
  then: Callable[[Any, Any], Any], shard: jax.Array, first: Any, own: Any) -> tuple[Any, Any]:
  """(what there is before the shard, what there is after it), in ⌈log₂ N⌉ rounds in which each shard gets one update.

  Args:
    then: associative (earlier, later) → both, one after the other; of zeros it may make anything finite.
    shard: the number of the shard that this runs on.
    first: what there is before the first shard, in the form of an update; the same on all shards.
    own: the shard's update, a tree of arrays.
  """
  shards = jax.lax.axis_size(AXIS)

  def where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)

  after, reach = where(shard == 0, then(first, own), own), 1  # `after` is of this shard and `reach` − 1 before it
  while reach < shards:
    after = where(shard >= reach, then(hand_on(after, by=reach), after), after)
    reach *= 2
  return where(shard == 0, first, hand_on(after)), after
