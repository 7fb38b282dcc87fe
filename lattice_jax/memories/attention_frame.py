"""The frame of memories that attend: everything around the attention, which each of them brings.

Projections to queries, keys and values, biases, norms and rotary embedding, the attention, gate, projection back: the
parameters of a pretrained model fit every memory of this frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.attention_config import AttentionConfig, check
from lattice_jax.modules import join_heads, offset, rms_normalize, split_heads
from lattice_jax.ops.rotary import rotate
from lattice_jax.types import LayerOutput, Segment


def attention_layer(
  layer: nn.Module, config: AttentionConfig, x_BTD: jax.Array, segment: Segment,
  attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
) -> LayerOutput:
  """The output of a layer, inside its compact call. Invalid tokens are replaced by zeros at the door.

  attend: (queries [B, T, Q, K], keys [B, T, H, K], values [B, T, H, V]) → output [B, T, Q, V] in float32, next state.

  Raises:
    ValueError: fields of the config contradict one another.
  """
  check(config)
  dtype, dim = jnp.dtype(layer.dtype), x_BTD.shape[-1]
  x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(dtype)

  def project(name, heads, width, axes):
    x_BTHK = split_heads(layer, name, x_BTD, heads, width, axes)
    return x_BTHK if config.bias == "none" else x_BTHK + offset(
      layer, f"{name}_bias", (heads, width), axes).astype(dtype)

  q_BTQK = project("query", config.heads, config.key_dim, ("heads", "key"))
  k_BTHK = project("key", config.kv_heads, config.key_dim, ("kv_heads", "key"))
  v_BTHV = project("value", config.kv_heads, config.value_dim, ("kv_heads", "value"))
  if config.qk_norm:
    q_BTQK, k_BTHK = rms_normalize(q_BTQK).astype(dtype), rms_normalize(k_BTHK).astype(dtype)
  if config.rope_theta:
    q_BTQK, k_BTHK = (
      rotate(x_BTHK, segment.positions_BT, theta=config.rope_theta, scaling=config.rope_scaling)
      for x_BTHK in (q_BTQK, k_BTHK))
  if config.gated:
    v_BTHV = nn.silu(v_BTHV)
  out_BTQV, state = attend(q_BTQK, k_BTHK, v_BTHV)
  out_BTQV = out_BTQV.astype(dtype)
  if config.gated:
    out_BTQV *= nn.silu(split_heads(layer, "gate", x_BTD, config.heads, config.value_dim, ("heads", "value")))
  y_BTD = join_heads(layer, out_BTQV, dim)
  if config.bias == "all":
    y_BTD += offset(layer, "out_bias", (dim,), ("embed",)).astype(dtype)
  return LayerOutput(y_BTD=y_BTD, state=state, losses={}, metrics={}, statistics={})
