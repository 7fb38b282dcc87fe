"""flash-linear-attention's DeltaNet, GatedDeltaNet and KimiDeltaAttention as our layers."""

from __future__ import annotations

from lattice_jax.memories.delta.config import DeltaConfig
from lattice_jax.memories.delta.layer import DeltaNet, GatedDeltaNet, KimiDelta
from lattice_jax.memories.fla import FlaWeights, Params, take_frame

_UNIT_EPS = 1e-6  # of its norm of queries and keys


def from_deltanet(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[DeltaNet, Params]:
  config, params = _common(weights, norm_eps, allow_neg_eigval)
  return DeltaNet(config), params


def from_gated_deltanet(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[GatedDeltaNet, Params]:
  config, params = _common(weights, norm_eps, allow_neg_eigval)
  params |= {
    "width": weights.take("a_proj.weight").T, "width_bias": weights.take_heads("dt_bias"),
    "log_rate": weights.take_heads("A_log")}
  return GatedDeltaNet(config), params


def from_kimi_delta(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[KimiDelta, Params]:
  down_DR, up_RHK = weights.take_low_rank("f_proj")
  gate_down_DR, gate_up_RHV = weights.take_low_rank("g_proj")
  if down_DR.shape != gate_down_DR.shape:
    raise ValueError(
      f"f_proj has rank {down_DR.shape[1]} and g_proj rank {gate_down_DR.shape[1]}; ours has one rank for both.")
  params = {
    "decay_down": down_DR, "decay_up": up_RHK, "decay_bias": weights.take_bias("dt_bias"),
    "log_rate": weights.take_heads("A_log"), "gate_down": gate_down_DR, "gate_up": gate_up_RHV,
    "gate_bias": weights.take_bias("g_proj.1.bias")}
  config, common = _common(weights, norm_eps, allow_neg_eigval, gated=True)
  if down_DR.shape[1] != config.value_dim:
    raise ValueError(
      f"f_proj and g_proj have rank {down_DR.shape[1]}, and in the published layer that of a head's values, "
      f"{config.value_dim}.")
  return KimiDelta(config), params | common


def _common(
  weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool, *, gated: bool | None = None,
) -> tuple[DeltaConfig, Params]:
  fields, params = take_frame(weights, "o_norm.weight")
  if gated is None and weights.has("g_proj.weight"):
    params["gate"] = weights.take_up("g_proj.weight")
  params["step"] = weights.take("b_proj.weight").T
  return DeltaConfig(
    **fields, gated=gated or "gate" in params, max_step=2.0 if allow_neg_eigval else 1.0, unit_eps=_UNIT_EPS,
    norm_eps=norm_eps), params
