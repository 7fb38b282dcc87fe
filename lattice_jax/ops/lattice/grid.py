"""Where the chunks of approximate forms begin and end: they are counted from the first token of the document."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Grid:
  """Bool, of every token: whether it is the first of a document, the first of a further chunk, the last of a chunk."""

  is_start_BT: jax.Array
  is_begin_BT: jax.Array
  is_end_BT: jax.Array


def make_grid(
  is_start_BT: jax.Array, is_valid_BT: jax.Array, fill_B: jax.Array, chunk_len: int
) -> tuple[Grid, jax.Array]:
  """The grid of a call, and how full the last chunk is after it. fill: as `OpenChunk.fill_B`."""
  time_T = jnp.arange(is_start_BT.shape[1])
  start_BT = jax.lax.cummax(jnp.where(is_start_BT, time_T, -fill_B[:, None]), axis=1)
  place_BT = (time_T - start_BT) % chunk_len
  is_begin_BT = is_valid_BT & ~is_start_BT & (place_BT == 0)
  num_valid_B = is_valid_BT.sum(1)
  last_B = jnp.take_along_axis(place_BT, jnp.maximum(num_valid_B - 1, 0)[:, None], 1)[:, 0]
  after_B = jnp.where(num_valid_B > 0, (last_B + 1) % chunk_len, fill_B).astype(jnp.int32)
  return Grid(is_start_BT, is_begin_BT, is_valid_BT & (place_BT == chunk_len - 1)), after_B
