"""The token scan of slots that go back to where they began as they are forgotten.

Each token adds a share of the start to each slot, so lengths have no closed form and the adjoint is the one that JAX
derives. One state a chunk is kept for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.step import move, read
from lattice_jax.memories.lattice.tokens import Tokens, to_chunks
from lattice_jax.ops.documents import from_chunks, select

_LEAST_CHUNK = 16


def lattice_returning(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots]:
  """As `lattice_reference`; keeps about √T states for the backward pass, and makes √T again."""
  length = is_start_BT.shape[1]
  chunk = min(length, max(_LEAST_CHUNK, 1 << (length.bit_length() - 1) // 2))

  def one_token(slots, xs):
    token, is_start_B = xs
    slots, _ = move(rule, select(is_start_B, start, slots), token, start)
    return slots, read(slots, token)

  @jax.checkpoint
  def one_chunk(slots, xs):
    by_token = jax.tree.map(lambda x_BC: jnp.moveaxis(x_BC, 1, 0), xs)
    slots, out_CBHV = jax.lax.scan(one_token, slots, by_token)
    return slots, jnp.moveaxis(out_CBHV, 0, 1)

  tokens = jax.tree.map(lambda x_BT: x_BT.astype(slots.unit_BHMV.dtype), tokens)
  slots, out_NBCHV = jax.lax.scan(one_chunk, slots, to_chunks(tokens, is_start_BT, chunk))
  return from_chunks(out_NBCHV, length), slots
