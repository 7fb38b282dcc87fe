"""TTT-Linear: the memory is a linear model with a norm that is trained on every token (arXiv 2407.04620)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.ttt.dual import ttt_dual
from lattice_jax.memories.ttt.reference import ttt_reference
from lattice_jax.memories.ttt.rule import Learner, inner_loss, output_gradient
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.chunk_grid import make_chunk_grid
from lattice_jax.ops.documents import EMPTY, document_after, document_starts, keep_only

__all__ = ["Learner", "TTTState", "empty_state", "inner_loss", "output_gradient", "ttt"]


@flax.struct.dataclass
class TTTState:
  """weight_BHKV: fp32, weights at the start of the open mini-batch, K + 1 rows, the last of which is the bias.

  total_BHKV: fp32, sum of the steps of the open mini-batch. fill_B: int32, its tokens. document_B: int32, whose all
  this is, EMPTY before the first token.
  """

  weight_BHKV: jax.Array
  total_BHKV: jax.Array
  fill_B: jax.Array
  document_B: jax.Array


def empty_state(batch: int, heads: int, dim: int, *, dtype: jnp.dtype = jnp.float32) -> TTTState:
  """A state that has seen nothing; its first token starts from the learned weights. Computations are in `dtype`."""
  weight_BHKV = jnp.zeros((batch, heads, dim + 1, dim), dtype)
  return TTTState(
    weight_BHKV, jnp.zeros_like(weight_BHKV), jnp.zeros((batch,), jnp.int32), jnp.full((batch,), EMPTY, jnp.int32))


def ttt(
  q: Float[Array, "B T H V"], k: Float[Array, "B T H V"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  learner: Learner, state: TTTState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], TTTState]:
  """Trains f(x) = x + LN(x W + b) to map k to v, and reads f(q).

  Mini-batches are counted from the document's first token. All gradients of one are taken at its start; a token is read
  with the gradients up to its own.

  Args:
    q, k, v: of the same width.
    step: size ≥ 0 of the step of each token, before the factor of its place.
    learner: where a document begins, and how steps grow; the length of `rate_C` is that of a mini-batch.
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `keep_only` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the state's dtype and the next state.
  """
  state, ids, valid = complete_call(
    "ttt", state, ids, valid, like=q, empty=lambda: empty_state(len(q), *q.shape[2:]))
  chosen = choose_impl("ttt", impl, pallas_reason="there is no Pallas kernel for it yet")
  run = ttt_reference if chosen == "reference" else ttt_dual
  dtype = state.weight_BHKV.dtype
  is_start_BT = document_starts(ids, valid, state.document_B)
  grid, fill_B = make_chunk_grid(is_start_BT, valid, state.fill_B, learner.rate_C.shape[0])
  tokens = keep_only(valid, (q, k, v, step[..., None]))
  learner = jax.tree.map(lambda x: x.astype(dtype), learner)
  out_BTHV, memory = run(learner, tokens, grid, (state.weight_BHKV, state.total_BHKV))
  return out_BTHV, TTTState(*memory, fill_B, document_after(ids, valid, state.document_B))
