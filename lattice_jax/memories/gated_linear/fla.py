"""flash-linear-attention's GatedLinearAttention as our GLA."""

from __future__ import annotations

from lattice_jax.memories.fla import FlaWeights, Params, scaled_eps, take_frame
from lattice_jax.memories.gated_linear.config import GatedLinearConfig
from lattice_jax.memories.gated_linear.layer import GLA


def from_gla(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[GLA, Params]:
  if allow_neg_eigval:
    raise ValueError("allow_neg_eigval is of the delta rule; gated linear attention has no step.")
  is_fused = weights.has("g_norm_swish_gate.weight")
  fields, params = take_frame(weights, "g_norm_swish_gate.weight" if is_fused else "g_norm.weight")
  if weights.has("g_proj.weight"):
    params["gate"] = weights.take_up("g_proj.weight")
  params["decay_down"], params["decay_up"] = weights.take_low_rank("gk_proj")
  params["decay_bias"] = weights.take_bias("gk_proj.1.bias")
  return GLA(GatedLinearConfig(
    **fields, gated="gate" in params, features="silu" if fields["conv_width"] else "none",
    gate_rank=params["decay_down"].shape[1], norm_eps=scaled_eps(norm_eps, fields["key_dim"]))), params
