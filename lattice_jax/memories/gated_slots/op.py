"""Gated slot attention: softmax over slots, each a decaying average of keys and one of values (arXiv 2409.07146)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.decay.chunk import cumulate, mix, read, write
from lattice_jax.ops.decay.tokens import Inputs, by_chunk, by_token, encode_documents
from lattice_jax.ops.documents import EMPTY, document_after

__all__ = ["SlotState", "empty_state", "gated_slots"]

# Of all slots: [B, H, M, K] and [B, H, M, V].
KeysAndValues = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class SlotState:
  """key_BHMK, value_BHMV: of every slot, fp32. document_B: int32, whose they are, EMPTY before the first token."""

  key_BHMK: jax.Array
  value_BHMV: jax.Array
  document_B: jax.Array


def empty_state(
  batch: int, heads: int, slots: int, key_dim: int, value_dim: int, *, dtype: jnp.dtype = jnp.float32
) -> SlotState:
  """A state that has seen nothing. Computations are in `dtype`."""
  return SlotState(
    jnp.zeros((batch, heads, slots, key_dim), dtype), jnp.zeros((batch, heads, slots, value_dim), dtype),
    jnp.full((batch,), EMPTY, jnp.int32))


def gated_slots(
  q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"], share: Float[Array, "B T H M"],
  decay: Float[Array, "B T H M"], state: SlotState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, chunk_len: int = 16, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], SlotState]:
  """Multiplies every slot by its decay, adds its share of key and value, and attends with q to the slots.

  Args:
    q, k: queries and keys, already scaled.
    share: of the token that a slot takes; 1 − decay makes slots averages.
    decay: of every slot, in [0, 1].
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `encode_documents` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    chunk_len: tokens taken at a time; a matter of cost alone.
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the state's dtype and the next state.
  """
  state, ids, valid = complete_call(
    "gated_slots", state, ids, valid, like=q,
    empty=lambda: empty_state(len(q), q.shape[2], share.shape[-1], q.shape[-1], v.shape[-1]))
  chosen = choose_impl("gated_slots", impl, pallas_reason="there is no Pallas kernel for it yet")
  decay, inputs, _ = encode_documents((q, k, v, share), decay, ids, valid, state.document_B)
  slots = state.key_BHMK, state.value_BHMV
  if chosen == "reference":
    out_BTHV, slots = by_token(_step, decay, inputs, slots)
  else:
    out_BTHV, slots = by_chunk(_chunk, decay, inputs, slots, chunk_len)
  return out_BTHV, SlotState(*slots, document_after(ids, valid, state.document_B))


def _step(slots: KeysAndValues, decay_BHM: jax.Array, inputs: Inputs) -> tuple[jax.Array, KeysAndValues]:
  q_BHK, k_BHK, v_BHV, share_BHM = inputs

  def move(slot_BHMV, new_BHV):
    return decay_BHM[..., None] * slot_BHMV + share_BHM[..., None] * new_BHV[..., None, :]

  key_BHMK, value_BHMV = move(slots[0], k_BHK), move(slots[1], v_BHV)
  weight_BHM = jax.nn.softmax(jnp.einsum("BHMK,BHK->BHM", key_BHMK, q_BHK, precision="highest"))
  return jnp.einsum("BHM,BHMV->BHV", weight_BHM, value_BHMV, precision="highest"), (key_BHMK, value_BHMV)


def _chunk(slots: KeysAndValues, decay_BHCM: jax.Array, inputs: Inputs) -> tuple[jax.Array, KeysAndValues]:
  q_BHCK, k_BHCK, v_BHCV, share_BHCM = inputs
  key_BHMK, value_BHMV = slots
  decay = cumulate(decay_BHCM)
  score_BHCM = decay.before_BHCK * jnp.einsum("BHCK,BHMK->BHCM", q_BHCK, key_BHMK, precision="highest")
  score_BHCM += mix(q_BHCK, k_BHCK, share_BHCM, decay)
  out_BHCV = read(jax.nn.softmax(score_BHCM), share_BHCM, v_BHCV, decay, value_BHMV)
  return out_BHCV, (write(share_BHCM, k_BHCK, decay, key_BHMK), write(share_BHCM, v_BHCV, decay, value_BHMV))
