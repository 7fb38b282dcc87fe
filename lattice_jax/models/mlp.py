"""The feed-forward sub-layer: SwiGLU, or squared ReLU as in Transformer-VQ's multi-head models."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.modules import weight


class MLP(nn.Module):
  """D → F → D without biases."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    dim, hidden, dtype = x_BTD.shape[-1], self.config.mlp_dim, jnp.dtype(self.config.dtype)

    def widen(name):
      return x_BTD @ weight(self, name, (dim, hidden), ("embed", "mlp"), fan_in=dim).astype(dtype)

    if self.config.mlp == "swiglu":
      hidden_BTF = nn.silu(widen("gate")) * widen("up")
    else:
      hidden_BTF = nn.relu(widen("up")) ** 2
    return hidden_BTF @ weight(self, "down", (hidden, dim), ("mlp", "embed"), fan_in=hidden).astype(dtype)
