"""flash-linear-attention's GatedLinearAttention and Mamba2 as our layers; the latter is also that of mamba_ssm."""

from __future__ import annotations

import jax.numpy as jnp

from lattice_jax.memories.fla import FlaWeights, Params, newest_first, refuse_steps, take_frame
from lattice_jax.memories.gated_linear.config import GatedLinearConfig
from lattice_jax.memories.gated_linear.layer import GLA, ScalarDecay


def from_gla(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[GLA, Params]:
  refuse_steps(allow_neg_eigval, "gated linear attention")
  share = weights.share()
  is_fused = weights.has("g_norm_swish_gate.weight")
  fields, params = take_frame(weights, "g_norm_swish_gate.weight" if is_fused else "g_norm.weight", share=share)
  if weights.has("g_proj.weight"):
    params["gate"] = weights.take_up("g_proj.weight")
  params["decay_down"], params["decay_up"] = weights.take_low_rank("gk_proj", share)
  params["decay_bias"] = weights.take_bias("gk_proj.1.bias", share)
  return GLA(GatedLinearConfig(
    **fields, gated="gate" in params, features="silu" if fields["conv_width"] else "none",
    gate_rank=params["decay_down"].shape[1], norm_eps=norm_eps)), params


def from_mamba2(weights: FlaWeights, norm_eps: float, allow_neg_eigval: bool) -> tuple[ScalarDecay, Params]:
  """One group of B and C, which no tensor shows. Raises ValueError as `FlaWeights`, and where in_proj has other parts.

  in_proj makes gates, values, B, C and widths, one after another; conv1d takes values, B and C.
  """
  refuse_steps(allow_neg_eigval, "Mamba-2")
  heads = weights.heads
  params = {
    "out": weights.take_down("out_proj.weight"), "gain": weights.take_bias("norm.weight"),
    "log_rate": weights.take_heads("A_log"), "skip": weights.take_heads("D"),
    "width_bias": weights.take_heads("dt_bias")}
  value_dim = params["gain"].shape[1]
  inner = heads * value_dim
  tap_WC = newest_first(weights.take("conv1d.weight"))
  channels = tap_WC.shape[1]
  bias_C = weights.take("conv1d.bias") if weights.has("conv1d.bias") else jnp.zeros(channels)
  projection_DC = weights.take("in_proj.weight").T
  key_dim = (channels - inner) // 2
  parts = {"gate": inner, "value": inner, "key": key_dim, "query": key_dim, "width": heads}
  if sum(parts.values()) != projection_DC.shape[1] or key_dim < 1 or params["out"].shape[1] != value_dim:
    raise ValueError(
      f"in_proj makes {projection_DC.shape[1]} numbers, and {sum(parts.values())} are needed for {heads} heads of "
      f"{value_dim} values by norm.weight and for B and C of {key_dim} by conv1d; layers that have an MLP beside the "
      "recurrence (d_ssm) have no place in ours.")

  def cut(x, names):
    """By name, [..., heads or 1, width]."""
    pieces = jnp.split(x, [sum(parts[name] for name in names[:n]) for n in range(1, len(names))], axis=-1)
    counts = [1 if name in ("key", "query") else heads for name in names]
    return {
      name: piece.reshape(*piece.shape[:-1], count, -1)
      for name, piece, count in zip(names, pieces, counts, strict=True)}

  params |= cut(projection_DC, list(parts))
  params["width"] = params["width"][..., 0]
  params |= {f"{name}_taps": x for name, x in cut(tap_WC, ["value", "key", "query"]).items()}
  params |= {f"{name}_taps_bias": x for name, x in cut(bias_C, ["value", "key", "query"]).items()}
  return ScalarDecay(GatedLinearConfig(
    heads=heads, key_dim=key_dim, value_dim=value_dim, conv_width=len(tap_WC), features="silu", faithful=True,
    norm_eps=norm_eps)), params
