"""Linear attention whose memory decays: not at all, by one factor a head, or by one factor a key channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.ops.decay.chunk import cumulate, read, write
from lattice_jax.ops.decay.matrix import MatrixState, call_matrix_op, empty_state
from lattice_jax.ops.decay.tokens import Inputs

__all__ = ["MatrixState", "empty_state", "gated_linear"]


def gated_linear(
  q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"],
  decay: Float[Array, "B T H _"] | None = None, state: MatrixState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, chunk_len: int = 16, impl: str = "auto",
  start: Float[Array, "H K V"] | None = None,
) -> tuple[Float[Array, "B T H V"], MatrixState]:
  """Multiplies the memory by the token's decay, adds k vᵀ to it, and reads it with q.

  Args:
    q, k: queries and keys, already scaled.
    decay: in [0, 1]; one factor a head (linear attention with scalar decay, Mamba-2), or one a key channel (GLA). None
      is one throughout (linear attention).
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `encode_documents` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    chunk_len: tokens taken at a time; a matter of cost alone.
    impl: "reference" is the definition, token by token.
    start: the memory with which documents begin, which their first token's decay multiplies; None is an empty one.

  Returns:
    Output in the state's dtype and the next state.
  """
  return call_matrix_op(
    "gated_linear", _step, _chunk, (q, k, v), decay, state, ids, valid, chunk_len=chunk_len, impl=impl,
    start=start)


def _step(memory_BHKV: jax.Array, decay_BHK: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  q_BHK, k_BHK, v_BHV = inputs
  memory_BHKV = decay_BHK[..., None] * memory_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
  return jnp.einsum("BHK,BHKV->BHV", q_BHK, memory_BHKV, precision="highest"), memory_BHKV


def _chunk(memory_BHKV: jax.Array, decay_BHCK: jax.Array, inputs: Inputs, *beginning) -> tuple[jax.Array, jax.Array]:
  q_BHCK, k_BHCK, v_BHCV = inputs
  decay = cumulate(decay_BHCK, *beginning)
  return read(q_BHCK, k_BHCK, v_BHCV, decay, memory_BHKV), write(k_BHCK, v_BHCV, decay, memory_BHKV)
