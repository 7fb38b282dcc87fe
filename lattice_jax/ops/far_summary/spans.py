"""Which tokens share a block: consecutive spans of a document, the older ones longer.

A document is cut into spans of equal length, counted from its first token, and J blocks hold all spans so far. When a
span finds no block free, the two oldest of the smallest blocks become one. Which block a token is in depends on its
position and on how many spans there are, never on when it came; and what shares a block stays together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LEVELS = 30  # doublings of a span, more than positions in int32 can need


def block_of(span: jax.Array, num_spans: jax.Array, blocks: int) -> jax.Array:
  """The block that holds a span, int32; `num_spans` broadcasts against `span`. Beyond the last span: the last block."""
  unit, doubled = _layout(num_spans, blocks)
  place = jnp.where(span < 2 * unit * doubled, span // (2 * unit), doubled + span // unit - 2 * doubled)
  return jnp.clip(place, 0, blocks - 1)


def first_span(block: jax.Array, num_spans: jax.Array, blocks: int) -> jax.Array:
  """The first span that a block holds, int32; `num_spans` broadcasts against `block`."""
  unit, doubled = _layout(num_spans, blocks)
  return unit * (block + jnp.minimum(block, doubled))


def _layout(num_spans: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
  """(spans of a block, how many of the oldest blocks hold twice as many)."""
  level = jnp.arange(_LEVELS)
  # rounded up
  units_at_level = -(-num_spans[..., None] >> level)
  unit = 1 << (units_at_level > 2 * blocks).sum(-1)
  return unit, jnp.maximum(-(-num_spans // unit) - blocks, 0)
