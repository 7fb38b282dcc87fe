"""What Lattice remembers between calls: the slots of every head, and whose they are."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.ops.documents import EMPTY

# A slot turns by step/length², so one that a forget gate could shrink without end would turn without bounds. A little
# below the length of the start, so that rounding does not cut the gradient of a slot that nothing was written to.
NORM_FLOOR = 0.99


@flax.struct.dataclass
class LatticeSlots:
  """Directions and lengths of the slots of every head.

  unit_BHMV: one slot a row, of length one; inside an open chunk of an approximate form, of about one. norm_BHM: its
  length where lengths are accumulated, None where they are all one. Starts lack the axis B.
  """

  unit_BHMV: jax.Array
  norm_BHM: jax.Array | None


@flax.struct.dataclass
class OpenChunk:
  """The chunk of an approximate form that is not full yet. anchor_BHMV: slots at its start. fill_B: its tokens."""

  anchor_BHMV: jax.Array
  fill_B: jax.Array


@flax.struct.dataclass
class LatticeState:
  """slots: fp32. document_B: int32, the document they have read, EMPTY before the first token. open: None if exact."""

  slots: LatticeSlots
  document_B: jax.Array
  open: OpenChunk | None


def empty_state(
  batch: int, heads: int, slots: int, value_dim: int, *, rule: Rule, form: Form, dtype: jnp.dtype = jnp.float32,
) -> LatticeState:
  """A state that has seen nothing; its first token starts from the learned slots. Computations are in `dtype`."""
  unit_BHMV = jnp.zeros((batch, heads, slots, value_dim), dtype)
  norm_BHM = jnp.zeros((batch, heads, slots), dtype) if rule.state == "accumulated" else None
  chunk = OpenChunk(jnp.zeros_like(unit_BHMV), jnp.zeros((batch,), jnp.int32)) if form.is_approximate else None
  return LatticeState(LatticeSlots(unit_BHMV, norm_BHM), jnp.full((batch,), EMPTY, jnp.int32), chunk)
