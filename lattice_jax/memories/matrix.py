"""What memories of one matrix a head have in common; their rules are in the folders that use it."""

from __future__ import annotations

import flax.linen as nn
import jax

from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.memories.recurrent_config import MatrixConfig
from lattice_jax.modules import parameter
from lattice_jax.ops.decay.matrix import MatrixState, empty_state
from lattice_jax.types import SumCount

Result = tuple[jax.Array, MatrixState, dict[str, SumCount]]


class MatrixMemory(RecurrentMemory):
  """A recurrence whose state is one matrix a head.

  Parameter `start` [H, K, V] where the config asks for it: a document begins with it.
  """

  config: MatrixConfig

  @property
  def unit_eps(self) -> float:
    return self.config.unit_eps

  @property
  def has_unit_values(self) -> bool:
    return self.config.unit_values

  def empty(self, batch: int) -> MatrixState:
    return empty_state(batch, self.config.heads, self.key_dim, self.config.value_dim, dtype=self.state_dtype)

  def start(self) -> jax.Array | None:
    """With what documents begin, drawn as Lattice's slots; None = empty."""
    config = self.config
    if not config.learned_start:
      return None
    return parameter(
      self, "start", nn.initializers.normal(config.value_dim**-0.5), (config.heads, self.key_dim, config.value_dim),
      ("heads", "key", "value"))
