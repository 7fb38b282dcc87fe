"""The frame of recurrent memories says what a subclass lacks; what it computes is under the laws of tests/contract."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.types import whole_segment
from tests.contract.harness import quick_jit
from tests.memories.sizes import faithful_section, section_with

CONFIG = RecurrentConfig(heads=1, value_dim=2)


class Sized(RecurrentMemory):
  """Sizes alone."""

  @property
  def key_dim(self):
    return 3


class Empty(Sized):
  """Sizes and a state, but no recurrence."""

  def empty(self, batch):
    return None


def test_a_memory_without_a_state_is_refused():
  with pytest.raises(TypeError, match="recurrent memory Sized must define `empty`"):
    Sized(CONFIG).init_state(1)


def test_a_memory_without_a_recurrence_is_refused():
  x = jnp.zeros((1, 1, 1, 2))
  with pytest.raises(TypeError, match="recurrent memory Empty must define `recur`"):
    Empty(CONFIG).recur(x, x, x, x, None, whole_segment(1, 1))


HEADS = 400
SMALL = {"heads": HEADS, "key_dim": 2, "value_dim": 2, "mini_batch": 3}
LATTICE = {"heads": HEADS, "slots": 3, "value_dim": 16, "forget": True}


def start_of(memory, make_section=section_with):
  """Parameters of a layer of many narrow heads."""
  model = ModelConfig(
    dim=4, layers=1, pattern=(memory,), **make_section(memory, **(LATTICE if memory == "lattice" else SMALL)))
  layer = find_memory(memory).make(model)
  init = functools.partial(layer.init, train=False)
  variables = quick_jit(init)(jax.random.key(0), jnp.zeros((1, 1, 4)), layer.init_state(1), whole_segment(1, 1))
  return {name: np.asarray(value) for name, value in meta.unbox(variables)["params"].items()}


def assert_uniform(values, low, high):
  """Within the range, and as evenly spread as so many draws are."""
  assert low <= values.min() and values.max() <= high
  np.testing.assert_allclose(
    np.quantile(values, [0.25, 0.5, 0.75]), low + (high - low) * np.array([0.25, 0.5, 0.75]), atol=0.12 * (high - low))


@pytest.mark.parametrize(("memory", "make_section", "bias", "lowest"), [
  ("scalar_decay", section_with, "width_bias", 1), ("scalar_decay", faithful_section, "width_bias", 0),
  ("gated_deltanet", faithful_section, "width_bias", 0), ("kimi_delta", faithful_section, "decay_bias", 1)],
  ids=["scalar_decay", "scalar_decay-faithful", "gated_deltanet-faithful", "kimi_delta-faithful"])
def test_gates_of_mamba_2_start_where_its_paper_lets_them(memory, make_section, bias, lowest):
  params = start_of(memory, make_section)
  assert_uniform(np.log(np.log1p(np.exp(np.float64(params[bias])))), np.log(1e-3), np.log(1e-1))
  assert_uniform(np.exp(params["log_rate"]), lowest, 16)
  assert lowest or np.exp(params["log_rate"]).min() < 1
  assert (params.get("skip", 1) == np.ones(1)).all()


def test_memories_that_learn_start_from_spread_weights_and_gates_half_open():
  inner = start_of("ttt_linear")
  assert inner["inner_start"].std() == pytest.approx(0.02, rel=0.1) and not inner["place_rate"].any()
  lattice = start_of("lattice")
  assert np.linalg.norm(lattice["start"], axis=-1).mean() == pytest.approx(1, rel=0.1)
  assert (lattice["forget_bias"] == 4).all() and not lattice["step_bias"].any()
