"""The state of memories that are one matrix a head."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY


@flax.struct.dataclass
class MatrixState:
  """memory_BHKV: a matrix of every head, fp32. document_B: int32, whose it is, EMPTY before the first token."""

  memory_BHKV: jax.Array
  document_B: jax.Array


def empty_state(
  batch: int, heads: int, key_dim: int, value_dim: int, *, dtype: jnp.dtype = jnp.float32
) -> MatrixState:
  """A state that has seen nothing. Computations are in `dtype`."""
  return MatrixState(jnp.zeros((batch, heads, key_dim, value_dim), dtype), jnp.full((batch,), EMPTY, jnp.int32))
