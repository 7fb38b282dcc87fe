"""Online vector-quantised attention: a softmax over a dictionary that is learned while reading (arXiv 2602.03922)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.online_vq.chunk import attend_by_chunk
from lattice_jax.memories.online_vq.reference import attend_by_token
from lattice_jax.memories.online_vq.rule import Codes
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.chunk_grid import make_chunk_grid
from lattice_jax.ops.documents import EMPTY, document_after, document_starts, keep_only

__all__ = ["OnlineVQState", "empty_state", "online_vq"]


@flax.struct.dataclass
class OnlineVQState:
  """key_BHMK, value_BHMV: fp32, mean key and value of each code. count_BHM: fp32, its tokens; 0 = not begun.

  open_key_BHCK, open_value_BHCV: tokens of the open chunk, zeros after them. fill_B: int32, how many these are.
  document_B: int32, whose all this is, EMPTY before the first token.
  """

  key_BHMK: jax.Array
  value_BHMV: jax.Array
  count_BHM: jax.Array
  open_key_BHCK: jax.Array
  open_value_BHCV: jax.Array
  fill_B: jax.Array
  document_B: jax.Array


def empty_state(
  batch: int, heads: int, codes: int, chunk_len: int, key_dim: int, value_dim: int, *,
  token_dtype: jnp.dtype = jnp.float32, dtype: jnp.dtype = jnp.float32,
) -> OnlineVQState:
  """A state that has seen nothing. Tokens of the open chunk are kept in `token_dtype`, computations are in `dtype`."""
  return OnlineVQState(
    jnp.zeros((batch, heads, codes, key_dim), dtype), jnp.zeros((batch, heads, codes, value_dim), dtype),
    jnp.zeros((batch, heads, codes), dtype), jnp.zeros((batch, heads, chunk_len, key_dim), token_dtype),
    jnp.zeros((batch, heads, chunk_len, value_dim), token_dtype), jnp.zeros((batch,), jnp.int32),
    jnp.full((batch,), EMPTY, jnp.int32))


def online_vq(
  q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"],
  state: OnlineVQState | None = None, ids: Int[Array, "B T"] | None = None, valid: Bool[Array, "B T"] | None = None, *,
  codes: int = 64, chunk_len: int = 32, growth: str = "plateau", impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], OnlineVQState]:
  """Attends to the tokens of the open chunk, and to older ones by the mean keys and values of their codes.

  Chunks are counted from the document's first token. A full one joins the dictionary: its tokens that are least like
  any code become new ones, as many as `growth` says, and the others move the means of the code nearest to them.
  Gradients reach keys and values through the means; which code a token joins is a constant to them, as are counts.

  Args:
    q: queries, already scaled.
    k: keys, of length one; a code is nearest by its product with a key.
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `keep_only` makes invalid tokens (a suffix) leave the state alone and read
      zeros. None: one document, all valid.
    codes, chunk_len: size of the dictionary and of a chunk, as the state has them.
    growth: codes after t tokens, "plateau": t codes/(t + codes), or "full": t until there are no more.
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the dtype of the state's means, and the next state.

  Raises:
    ValueError: the state has other shapes, or `growth` or `impl` is unknown.
  """
  state, ids, valid = complete_call(
    "online_vq", state, ids, valid, like=q,
    empty=lambda: empty_state(len(q), q.shape[2], codes, chunk_len, q.shape[-1], v.shape[-1]))
  chosen = choose_impl("online_vq", impl, pallas_reason="there is no Pallas kernel for it yet")
  attend = attend_by_token if chosen == "reference" else attend_by_chunk
  is_start_BT = document_starts(ids, valid, state.document_B)
  grid, fill_B = make_chunk_grid(is_start_BT, valid, state.fill_B, chunk_len)
  tokens = q, k.astype(state.open_key_BHCK.dtype), v.astype(state.open_value_BHCV.dtype)
  # A number of tokens is data like the tokens themselves.
  dictionary = Codes(state.key_BHMK, state.value_BHMV, jax.lax.stop_gradient(state.count_BHM))
  out_BTHV, (dictionary, *chunk) = attend(
    keep_only(valid, tokens), valid, grid, (dictionary, state.open_key_BHCK, state.open_value_BHCV), growth)
  return keep_only(valid, out_BTHV), OnlineVQState(
    dictionary.key_BHMK, dictionary.value_BHMV, dictionary.count_BHM, *chunk, fill_B,
    document_after(ids, valid, state.document_B))
