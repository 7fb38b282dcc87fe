"""The feed-forward sub-layer: SwiGLU, or squared ReLU as in Transformer-VQ's multi-head models."""

from __future__ import annotations

import flax.linen as nn
import jax

from lattice_jax.config import ModelConfig
from lattice_jax.modules import linear


class MLP(nn.Module):
  """D → F → D without biases."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    def widen(name):
      return linear(self, name, x_BTD, (self.config.mlp_dim,), ("embed", "mlp"))

    if self.config.mlp == "swiglu":
      hidden_BTF = nn.silu(widen("gate")) * widen("up")
    else:
      hidden_BTF = nn.relu(widen("up")) ** 2
    return linear(self, "down", hidden_BTF, x_BTD.shape[-1:], ("mlp", "embed"))
