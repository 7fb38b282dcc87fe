"""The frame of recurrent memories says what a subclass lacks; what it computes is under the laws of tests/contract."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from lattice_jax.config import ModelConfig, RecurrentConfig
from lattice_jax.layers.recurrent import RecurrentMemory
from lattice_jax.types import whole_segment


class Bare(RecurrentMemory):
  """Nothing of its own."""


class Sized(RecurrentMemory):
  """Sizes alone."""

  @property
  def section(self):
    return RecurrentConfig(heads=1, value_dim=2)

  @property
  def key_dim(self):
    return 3


class Empty(Sized):
  """Sizes and a state, but no recurrence."""

  def empty(self, batch):
    return None


@pytest.mark.parametrize(("layer", "hook"), [(Bare, "section"), (Bare, "key_dim"), (Sized, "empty")])
def test_a_memory_without_its_sizes_or_its_state_is_refused(layer, hook):
  memory = layer(ModelConfig())
  with pytest.raises(TypeError, match=f"recurrent memory {layer.__name__} must define `{hook}`"):
    memory.init_state(1) if hook == "empty" else getattr(memory, hook)


def test_a_memory_without_a_recurrence_is_refused():
  x = jnp.zeros((1, 1, 1, 2))
  with pytest.raises(TypeError, match="recurrent memory Empty must define `recur`"):
    Empty(ModelConfig()).recur(x, x, x, x, None, whole_segment(1, 1))
