"""flash-linear-attention's GatedSlotAttention as our layer."""

from __future__ import annotations

from lattice_jax.memories.fla import FlaWeights, Params, refuse_steps, take_frame
from lattice_jax.memories.gated_slots.config import NORM_EPS, GatedSlotsConfig
from lattice_jax.memories.gated_slots.layer import GatedSlots


def from_gated_slots(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[GatedSlots, Params]:
  refuse_steps(allow_neg_eigval, "gated slot attention")
  if norm_eps != NORM_EPS:
    raise ValueError(
      f"norm_eps={norm_eps} has no effect in GatedSlotAttention, whose norm has {NORM_EPS:g} whatever its config says; "
      "leave it out.")
  share = weights.share()
  fields, params = take_frame(weights, "g_norm.weight", share=share, is_norm_joint=True)
  params["decay"] = weights.take_up("f_proj.weight", share)
  return GatedSlots(GatedSlotsConfig(
    **fields, gated=False, slots=params["decay"].shape[-1], norm_eps=NORM_EPS)), params
