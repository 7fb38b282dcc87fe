"""Where a call's tokens stand: their segments, the anchors among them, and the anchors that came before."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.append import Arrivals, arrivals
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.ops.documents import EMPTY
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, Segment

ALL_LEVELS = 2**30


@flax.struct.dataclass
class Places:
  """A segment ends with its anchor; the tokens after the last anchor of a row are its open segment.

  arriving: documents, see `cache.append.Arrivals`.
  is_anchor_BT: marked, forced, or the first token of a document under `keep_bos`.
  is_protected_BT: marked so and no anchor, while there is room.
  is_bos_BT: the anchors of `keep_bos`, which have the number 0.
  segment_BT: segments begun up to the token, 0 = the open one of the state; EMPTY where a token is invalid.
  start_BT: the place in the call at which the token's segment begins, negative where that was before the call.
  number_BT: of an anchor, its number in the document, from 1 without counting the first token's of `keep_bos`.
  passed_BT: the number of the last anchor before the token's segment, 0 = none.
  below_BT: anchors of levels below this one are seen: ALL_LEVELS, or what an anchor may see.
  """

  arriving: Arrivals
  is_anchor_BT: jax.Array
  is_protected_BT: jax.Array
  is_bos_BT: jax.Array
  segment_BT: jax.Array
  start_BT: jax.Array
  number_BT: jax.Array
  passed_BT: jax.Array
  below_BT: jax.Array


def find_places(config: AnchorConfig, state: Any, segment: Segment) -> Places:
  """state: gives the row's counts (`state.AnchorCache`) before the call."""
  arriving = arrivals(state.seen_B, state.document_B, segment)
  run_BT, is_valid_BT = arriving.run_BT, segment.valid_BT
  time_T = jnp.arange(run_BT.shape[1], dtype=jnp.int32)
  is_first_BT = is_valid_BT & (arriving.index_BT == 0)
  is_bos_BT = is_first_BT if config.keep_bos else jnp.zeros_like(is_first_BT)
  is_marked_BT = is_valid_BT & ((segment.marks_BT & MARK_ANCHOR) > 0) | is_bos_BT
  # A forced anchor falls every max_segment tokens after the last other one.
  begins_BT = is_first_BT | _before(is_marked_BT, False)
  begin_BT = jnp.maximum(_last_place(begins_BT, time_T), -state.age_B[:, None])
  place_BT = time_T - begin_BT
  is_anchor_BT = is_valid_BT & (is_marked_BT | (place_BT % config.max_segment == config.max_segment - 1))
  start_BT = begin_BT + place_BT // config.max_segment * config.max_segment
  segment_BT = jnp.where(is_valid_BT, jnp.cumsum(start_BT == time_T, axis=1, dtype=jnp.int32), EMPTY)

  def count_before(is_BT: jax.Array, before_B: jax.Array) -> jax.Array:
    """How many tokens of the document before each one are such."""
    total_BT = jnp.cumsum(is_BT, axis=1, dtype=jnp.int32) - is_BT
    at_first_BT = jax.lax.cummax(jnp.where(is_first_BT, total_BT, 0), axis=1)
    return total_BT - at_first_BT + jnp.where(run_BT == 0, before_B[:, None], 0)

  passed_BT = count_before(is_anchor_BT & ~is_bos_BT, state.num_anchors_B)
  is_protected_BT = is_valid_BT & ~is_anchor_BT & ((segment.marks_BT & MARK_PROTECTED) > 0)
  is_protected_BT &= count_before(is_protected_BT, state.num_protected_B) < config.protected
  number_BT = jnp.where(is_bos_BT, 0, passed_BT + 1)
  below_BT = jnp.full_like(number_BT, ALL_LEVELS)
  if not config.anchors_see_anchors:
    below_BT = jnp.where(is_anchor_BT, jnp.where(is_bos_BT, 0, level(config, number_BT)), below_BT)
  return Places(
    arriving=arriving, is_anchor_BT=is_anchor_BT, is_bos_BT=is_bos_BT,
    is_protected_BT=is_protected_BT,
    segment_BT=segment_BT, start_BT=start_BT, number_BT=number_BT, passed_BT=passed_BT, below_BT=below_BT)


def num_levels(config: AnchorConfig, most: int) -> int:
  """Levels of anchors in a document of at most `most` anchors."""
  levels, size = 1, config.fanout
  while config.fanout and size <= most:
    levels, size = levels + 1, size * config.fanout
  return levels


def level(config: AnchorConfig, number: jax.Array) -> jax.Array:
  """How often the fanout divides an anchor's number; 0 without anchors of anchors, and of the number 0."""
  found, size = jnp.zeros_like(number), config.fanout
  while config.fanout and size < 2**31:
    found, size = found + ((number > 0) & (number % size == 0)), size * config.fanout
  return found


def group_size(config: AnchorConfig, level: jax.Array) -> jax.Array:
  """Anchors, of all levels up to this one, of which an anchor of the next level takes the place."""
  return jnp.asarray(config.fanout, jnp.int32) ** jnp.minimum(level + 1, num_levels(config, 2**30) - 1)


def is_seen(config: AnchorConfig, number: jax.Array, passed: jax.Array, below: jax.Array) -> jax.Array:
  """Whether a query sees an anchor of a closed segment of its document; arguments broadcast.

  number: of the anchor. passed, below: of the query, as in `Places`.
  """
  of_all = below == ALL_LEVELS
  if config.fanout:
    own_level = level(config, number)
    size = group_size(config, own_level)
    seen = (own_level < below) & (number // size == passed // size)
  else:
    seen = of_all & (passed - number < config.reach) if config.reach else of_all
  return jnp.where(number == 0, of_all, seen) if config.keep_bos else seen


def _before(x_BT: jax.Array, first: Any) -> jax.Array:
  """The value at the token before."""
  return jnp.concatenate([jnp.full_like(x_BT[:, :1], first), x_BT[:, :-1]], axis=1)


def _last_place(is_BT: jax.Array, time_T: jax.Array) -> jax.Array:
  """The last place up to each token at which `is_BT`; far before the call where there is none."""
  return jax.lax.cummax(jnp.where(is_BT, time_T, -(2**30)), axis=1)
