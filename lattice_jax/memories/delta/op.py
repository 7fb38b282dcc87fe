"""The delta rule, which overwrites the value of a key.

DeltaNet, and where the memory decays, Gated DeltaNet and Kimi delta attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.memories.delta.kernel import delta_kernel
from lattice_jax.ops.decay.chunk import cumulate, pair_scores, read, read_before, write
from lattice_jax.ops.decay.matrix import MatrixState, call_matrix_op, empty_state
from lattice_jax.ops.decay.tokens import Inputs
from lattice_jax.ops.triangular import inverse_unit_lower

__all__ = ["MatrixState", "delta", "empty_state", "gated_delta", "kimi_delta"]

# Tokens taken at a time in XLA where the caller does not say: the quickest on two cores (docs/results/bench_delta_cpu).
_CHUNK, _CHUNK_OF_CHANNELS = 32, 16


def delta(
  q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  decay: Float[Array, "B T H _"] | None = None, state: MatrixState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, chunk_len: int = 0, impl: str = "auto",
  start: Float[Array, "H K V"] | None = None,
) -> tuple[Float[Array, "B T H V"], MatrixState]:
  """Multiplies the memory S by the token's decay, takes a gradient step on ½‖Sᵀk − v‖², and reads it with q.

  Args:
    q, k: queries and keys; k of length one, where a step of one makes Sᵀk equal v.
    step: size β of the step, in [0, 1]; up to 2 is stable with keys of length at most one.
    decay: in [0, 1], one factor a head (Gated DeltaNet) or one a key channel (Kimi delta attention). None is one
      throughout (DeltaNet).
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `encode_documents` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    chunk_len: tokens taken at a time; a matter of cost alone. 0 is what is quickest: on a CPU, or in the kernel for
      TPUs, which takes 16, 32 or 64, whichever comes next, and 64 for more.
    impl: "reference" is the definition, token by token; "pallas" and "interpret" take states in fp32, and no start.
    start: the memory with which documents begin, which their first token's decay multiplies; None is an empty one.

  Returns:
    Output in the state's dtype and the next state.
  """
  is_by_channel = decay is not None and decay.shape[-1] > 1
  return call_matrix_op(
    "delta", _step, _chunk, (q, k, v, step[..., None]), decay, state, ids, valid,
    chunk_len=chunk_len or (_CHUNK_OF_CHANNELS if is_by_channel else _CHUNK), impl=impl,
    kernel=delta_kernel(chunk_len), start=start)


gated_delta = delta  # what users of the library look for where the memory decays


def kimi_delta(
  q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  decay: Float[Array, "B T H _"], state: MatrixState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, chunk_len: int = 0, impl: str = "auto",
  start: Float[Array, "H K V"] | None = None,
) -> tuple[Float[Array, "B T H V"], MatrixState]:
  """Kimi delta attention (arXiv 2510.26692): `delta` with a decay a of every key channel.

  S ← (I − β k kᵀ) diag(a) S + β k vᵀ, of which a query reads Sᵀ q.

  Args:
    q: queries, already scaled; published layers scale by K^(−1/2).
    decay: a in [0, 1], not its logarithm, one factor a key channel.
    k, v, step, state, ids, valid, chunk_len, impl, start: as of `delta`.

  Returns:
    Output in the state's dtype and the next state.

  Raises:
    ValueError: decays are not as many as key channels.
  """
  if decay.shape != k.shape:
    raise ValueError(
      f"op 'kimi_delta' was given decays of shape {decay.shape} with keys of shape {k.shape}, and takes one a key "
      "channel; for one a head, decays [batch, tokens, heads, 1], call gated_delta.")
  return call_matrix_op(
    "kimi_delta", _step, _chunk, (q, k, v, step[..., None]), decay, state, ids, valid,
    chunk_len=chunk_len or _CHUNK_OF_CHANNELS, impl=impl, kernel=delta_kernel(chunk_len), start=start)


def _step(memory_BHKV: jax.Array, decay_BHK: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  q_BHK, k_BHK, v_BHV, step_BH1 = inputs
  memory_BHKV = decay_BHK[..., None] * memory_BHKV
  held_BHV = jnp.einsum("BHK,BHKV->BHV", k_BHK, memory_BHKV, precision="highest")
  memory_BHKV += k_BHK[..., None] * (step_BH1 * (v_BHV - held_BHV))[..., None, :]
  return jnp.einsum("BHK,BHKV->BHV", q_BHK, memory_BHKV, precision="highest"), memory_BHKV


def _chunk(memory_BHKV: jax.Array, decay_BHCK: jax.Array, inputs: Inputs, *beginning) -> tuple[jax.Array, jax.Array]:
  q_BHCK, k_BHCK, v_BHCV, step_BHC1 = inputs
  decay = cumulate(decay_BHCK, *beginning)
  inverse_BHCS = inverse_unit_lower(jnp.tril(step_BHC1 * pair_scores(k_BHCK, k_BHCK, decay), -1))
  missing_BHCV = step_BHC1 * (v_BHCV - read_before(k_BHCK, decay, memory_BHKV))
  change_BHCV = jnp.einsum("BHCS,BHSV->BHCV", inverse_BHCS, missing_BHCV, precision="highest")
  return read(q_BHCK, k_BHCK, change_BHCV, decay, memory_BHKV), write(k_BHCK, change_BHCV, decay, memory_BHKV)
