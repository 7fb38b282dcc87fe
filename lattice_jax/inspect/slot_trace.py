"""What every token does to every slot of a Lattice layer, from a replay of the layer's inputs token by token."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lattice_jax.memories.lattice.op import LatticeSlots, Rule
from lattice_jax.memories.lattice.sphere import TINY, unit
from lattice_jax.memories.lattice.step import Move, find, move
from lattice_jax.memories.lattice.tokens import Tokens


@flax.struct.dataclass
class SlotInputs:
  """What a Lattice layer passes to its op for one document of T tokens. forget: None stands for gates of one."""

  k_THM: Float[Array, "T H M"]
  v_THV: Float[Array, "T H V"]
  step_TH: Float[Array, "T H"]
  forget_TH: Float[Array, "T H"] | None
  start_HMV: Float[Array, "H M V"]


@dataclass(frozen=True, eq=False)
class SlotTrace:
  """Numpy arrays over tokens, heads and slots.

  turn_THM: radians by which the token turned the slot, that is, how much it wrote.
  keep_THM: factor a·ρ on the slot's previous direction; above one if the write points away from the slot.
  novel_THM: share of the token's value that is orthogonal to the slot before the token; the slot already held the rest.
  norm_THM: the slot's length after the token; 1 unless lengths are accumulated.
  share_THM: c², the share of its write that the token offers the slot; sums to one over the slots (0 without a write).
  step_TH, forget_TH: the gates of the token.
  rank_TH: effective number of directions that the slots span after the token, (Σλ)² / Σλ² of their Gram matrix.
  overlap_TH: mean |cosine| between two different slots after the token; 0 for a single slot.
  similarity_HMM: cosines of the slots after the last token.
  """

  turn_THM: np.ndarray
  keep_THM: np.ndarray
  novel_THM: np.ndarray
  norm_THM: np.ndarray
  share_THM: np.ndarray
  step_TH: np.ndarray
  forget_TH: np.ndarray
  rank_TH: np.ndarray
  overlap_TH: np.ndarray
  similarity_HMM: np.ndarray

  @property
  def novel_TH(self) -> np.ndarray:
    """The novel share of each value, averaged over the slots that are offered it."""
    return (self.novel_THM * self.share_THM).sum(-1)


def trace_slots(inputs: SlotInputs, rule: Rule) -> SlotTrace:
  """Runs the exact recurrence from the document's first token on and records every step."""
  by_token, similarity_HMM = jax.jit(_replay, static_argnums=1)(inputs, rule)
  by_token = {name: np.asarray(value) for name, value in by_token.items()}
  ones_TH = np.ones_like(by_token["rank_TH"])
  return SlotTrace(
    **by_token, step_TH=np.asarray(inputs.step_TH), similarity_HMM=np.asarray(similarity_HMM),
    forget_TH=ones_TH if inputs.forget_TH is None else np.asarray(inputs.forget_TH))


def _replay(inputs: SlotInputs, rule: Rule) -> tuple[dict[str, jax.Array], jax.Array]:
  forget_TH = jnp.ones_like(inputs.step_TH) if inputs.forget_TH is None else inputs.forget_TH
  # The query is never used, so the key stands in for it. The op's functions have a batch axis, which is 1 here.
  tokens = Tokens(inputs.k_THM, inputs.k_THM, inputs.v_THV, inputs.step_TH, forget_TH)
  tokens = jax.tree.map(lambda x_T: x_T.astype(jnp.float32)[:, None], tokens)
  start_HMV, length_HM = unit(inputs.start_HMV.astype(jnp.float32))
  start = LatticeSlots(start_HMV[None], jnp.ones_like(length_HM)[None] if rule.state == "accumulated" else None)

  def one_token(slots: LatticeSlots, token: Tokens) -> tuple[LatticeSlots, dict[str, jax.Array]]:
    after, moved = move(rule, slots, token, start, find(rule, slots, token, start))
    return after, jax.tree.map(lambda x_B: x_B[0], _describe(rule, slots, token, after, moved))

  slots, by_token = jax.lax.scan(one_token, start, tokens)
  return by_token, _cosines(slots.unit_BHMV)[0]


def _describe(
  rule: Rule, before: LatticeSlots, token: Tokens, after: LatticeSlots, moved: Move
) -> dict[str, jax.Array]:
  energy_BH1 = (moved.found.h_BHV**2).sum(-1, keepdims=True)
  across_BHM = jnp.sqrt(jnp.maximum(energy_BH1 - moved.found.along_BHM**2, 0))
  code_BHM = token.k_BTHM
  if rule.objective == "encoding":
    code_BHM = code_BHM - moved.found.along_BHM
  cosine_BHMM = _cosines(after.unit_BHMV)
  num_slots = cosine_BHMM.shape[-1]
  value_BHV, _ = unit(token.v_BTHV)
  in_slot_BHM = jnp.einsum("BHMV,BHV->BHM", before.unit_BHMV, value_BHV, precision="highest")
  turn_BHM = jnp.arctan2(jnp.abs(moved.b_BHM) * across_BHM, moved.a_BHM + moved.b_BHM * moved.found.along_BHM)
  if rule.state == "returning":  # not in the plane of slot and direction: twice the angle of half the chord
    chord_BHM = jnp.linalg.norm(after.unit_BHMV - before.unit_BHMV, axis=-1)
    turn_BHM = 2 * jnp.arcsin(jnp.minimum(chord_BHM / 2, 1))
  is_value_BH1 = (token.v_BTHV**2).sum(-1, keepdims=True) > TINY
  return {
    "turn_THM": turn_BHM,
    "keep_THM": moved.keep_BHM,
    "novel_THM": jnp.where(is_value_BH1, jnp.clip(1 - in_slot_BHM**2, 0, 1), 0),
    "norm_THM": jnp.ones_like(moved.a_BHM) if after.norm_BHM is None else after.norm_BHM,
    "share_THM": code_BHM**2 / jnp.maximum((code_BHM**2).sum(-1, keepdims=True), TINY),
    "rank_TH": num_slots**2 / (cosine_BHMM**2).sum((-1, -2)),
    "overlap_TH": (jnp.abs(cosine_BHMM).sum((-1, -2)) - num_slots) / max(num_slots * (num_slots - 1), 1),
  }


def _cosines(unit_BHMV: jax.Array) -> jax.Array:
  return jnp.einsum("BHMV,BHNV->BHMN", unit_BHMV, unit_BHMV, precision="highest")
