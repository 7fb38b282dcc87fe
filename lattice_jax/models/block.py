"""One residual block: a memory with its gate (gated attention unit), or a memory and then an MLP."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.models.mlp import MLP
from lattice_jax.modules import RMSNorm
from lattice_jax.types import LayerOutput, Segment


class Block(nn.Module):
  """Pre-norm residual block around the memory `memory` of the registry; same call as a memory layer."""

  config: ModelConfig
  memory: str

  @nn.compact
  def __call__(self, x_BTD: jax.Array, state: Any, segment: Segment, *, train: bool) -> LayerOutput:
    def drop(branch_BTD):
      branch_BTD = nn.Dropout(self.config.dropout, deterministic=not train)(branch_BTD)
      # A branch stays dropped for a whole sequence: its key does not change between the updates of one.
      layer_drop = nn.Dropout(
        self.config.layer_drop, broadcast_dims=(1, 2), rng_collection="sequence", deterministic=not train)
      return layer_drop(branch_BTD)

    norm = functools.partial(RMSNorm, self.config.norm_gain, self.config.norm_bias, self.config.norm_eps)
    memory = find_memory(self.memory).make(self.config, name="memory")
    output = memory(norm(name="memory_norm")(x_BTD), state, segment, train=train)
    x_BTD = x_BTD + drop(output.y_BTD)
    if self.config.block == "mlp":
      x_BTD = x_BTD + drop(MLP(self.config, name="mlp")(norm(name="mlp_norm")(x_BTD)))
    return output.replace(y_BTD=x_BTD)
