"""What Lattice remembers between calls: the slots of every head, and whose they are."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.keys import EMPTY

# Lengths below it are not divided by: the direction of a vector of no length is then a vector of no length.
TINY = 1e-12
# A slot turns by step/length², so one that a forget gate could shrink without end would turn without bounds. A little
# below the length of the start, so that rounding does not cut the gradient of a slot that nothing was written to.
NORM_FLOOR = 0.99


@flax.struct.dataclass
class Slots:
  """Directions and lengths of the slots of every head.

  unit_BHMV: one slot a row, of length one. norm_BHM: its length where lengths are accumulated, None where they are all
  one. Starts lack the axis B.
  """

  unit_BHMV: jax.Array
  norm_BHM: jax.Array | None


@flax.struct.dataclass
class LatticeState:
  """slots: fp32. document_B: int32, the document they have read, EMPTY before the first token."""

  slots: Slots
  document_B: jax.Array


def empty_state(
  batch: int, heads: int, slots: int, value_dim: int, *, is_accumulated: bool = False, dtype: jnp.dtype = jnp.float32,
) -> LatticeState:
  """A state that has seen nothing; its first token starts from the learned slots. Computations are in `dtype`."""
  norm_BHM = jnp.zeros((batch, heads, slots), dtype) if is_accumulated else None
  return LatticeState(
    Slots(jnp.zeros((batch, heads, slots, value_dim), dtype), norm_BHM), jnp.full((batch,), EMPTY, jnp.int32))


def unit(slot_MV: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows as directions and lengths."""
  length_M = jnp.sqrt(jnp.maximum((slot_MV * slot_MV).sum(-1), TINY**2))
  return slot_MV / length_M[..., None], length_M


def select(is_B: jax.Array, chosen: Slots, other: Slots) -> Slots:
  """`chosen` in the rows where `is_B`, `other` elsewhere; a start is broadcast over rows."""
  return jax.tree.map(lambda a, b: jnp.where(is_B.reshape(-1, *(1,) * (b.ndim - 1)), a, b), chosen, other)
