"""Layers with `faithful=True` against the published ones, transcribed in float64 (published_frames.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.types import make_segment, slice_time, whole_segment
from tests.contract.harness import quick_jit
from tests.memories import published_frames as published
from tests.memories.sizes import faithful_section, section_with
from tests.thorough import further

LENGTHS, DIM, CUT = (12, 7), 10, 9  # of two documents in a row; a call ends inside the first
SIZES = {
  "heads": 2, "key_dim": 3, "value_dim": 4, "conv_width": 3, "slots": 3, "chunk_len": 4, "mini_batch": 4,
  "inner_rate": 0.7, "norm_eps": 1e-4}
# What the published layers leave open.
CASES = {
  "linear": {}, "scalar_decay": {}, "gla": {"conv_width": 0}, "deltanet": {"gated": False}, "gated_deltanet": {},
  "kimi_delta": {}, "gated_slots": {}, "ttt_linear": {}}
FURTHER = {
  "gla-convolved": {"gated": False}, "deltanet-long": {"conv_width": 0, "max_step": 2.0},
  "gated_slots-plain": {"conv_width": 0}}
RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(1, sum(LENGTHS), DIM))


def make_layer(name, sections, dtype="float64"):
  return find_memory(name).make(ModelConfig(dim=DIM, layers=1, pattern=(name,), dtype=dtype, **sections))


def shapes_of(layer):
  def init(rng):
    return layer.init(rng, jnp.zeros((1, 2, DIM)), layer.init_state(1), whole_segment(1, 2), train=False)

  return meta.unbox(jax.eval_shape(init, jax.random.key(0))["params"])


def numbers_like(shapes):
  """No parameter is at its start; one rate of a place falls below zero, where it is cut."""
  params = {name: 0.5 * RNG.normal(size=shapes[name].shape) for name in sorted(shapes)}
  if "place_rate" in params:
    params["place_rate"][2] = -0.5
  return params


@pytest.mark.parametrize("case", [*CASES, *further(*FURTHER)])
def test_a_faithful_layer_is_the_published_one(case):
  """Two documents in one row, in two calls: every document as if it stood alone."""
  name = case.split("-")[0]
  sections = faithful_section(name, **SIZES | (CASES | FURTHER)[case])
  (config,) = sections.values()
  positions_BT = np.concatenate([np.arange(length, dtype=np.int32) for length in LENGTHS])[None]
  segment = make_segment(positions_BT, ids_BT=np.repeat(np.int32([4, 7]), LENGTHS)[None])
  with jax.enable_x64(True):
    layer = make_layer(name, sections)
    params = numbers_like(shapes_of(layer))

    def run(params, x_BTD, segment):
      first = layer.apply({"params": params}, x_BTD[:, :CUT], layer.init_state(1), slice_time(segment, 0, CUT))
      last = layer.apply({"params": params}, x_BTD[:, CUT:], first.state, slice_time(segment, CUT, x_BTD.shape[1]))
      return jnp.concatenate([first.y_BTD, last.y_BTD], 1)[0]

    got = np.asarray(quick_jit(run)(params, X_BTD, segment))
  assert got.dtype == np.float64
  want = np.concatenate([
    published.LAYERS[name](params, x_TD, config) for x_TD in np.split(X_BTD[0], np.cumsum(LENGTHS)[:-1])])
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(("name", "changes", "message"), [
  ("linear", {"features": "elu", "gated": False}, "has no conv_width=3; set model.gated_linear.conv_width=0, or"),
  ("linear", {"conv_width": 0}, "no gated=True and features=unit; set .*gated=False and .*features=elu, or"),
  ("scalar_decay", {"conv_width": 0}, "no conv_width=0 and features=unit; set .*conv_width=4 and"),
  ("gla", {"features": "silu", "conv_width": 0}, "no features=silu; set model.gated_linear.features=none"),
  ("gla", {}, "no features=unit; set model.gated_linear.features=silu"),
  ("deltanet", {"max_step": 1.5}, "no unit_eps=0.0001 and max_step=1.5; set model.delta.unit_eps=1e-06 and .*=1.0"),
  ("gated_deltanet", {}, "has no unit_eps=0.0001; set"),
  ("gated_deltanet", {"unit_eps": 1e-6, "learned_start": True}, "has no learned_start=True; set"),
  ("scalar_decay", {"features": "silu", "unit_values": True}, "has no unit_values=True; set"),
  ("kimi_delta", {"unit_eps": 1e-6, "gated": False, "gate_rank": 3}, "no gated=False and gate_rank=3; set"),
  ("gated_slots", {"norm_eps": 1e-5}, "'gated_slots' as it was published, which has no gated=True; set"),
  ("gated_slots", {"gated": False}, "no norm_eps=0.0001; set model.gated_slots.norm_eps=1e-05, or"),
  ("ttt_linear", {"conv_width": 0, "gated": False}, "no conv_width=0 and gated=False and norm_eps=0.0001; set"),
])
def test_what_the_published_layer_does_not_have_is_refused(name, changes, message):
  sections = section_with(name, **SIZES | {"faithful": True} | changes)
  with pytest.raises(ValueError, match=message):
    shapes_of(make_layer(name, sections, "float32"))
  with pytest.raises(ValueError, match=message):
    find_memory(name).check(ModelConfig(dim=DIM, layers=1, pattern=(name,), **sections))


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_those_of_the_parameters_and_of_the_recurrence(name):
  """A weight is met once a token; what is left over is what the memory itself takes, as without `faithful`."""
  sections = faithful_section(name, **SIZES)
  (config,) = sections.values()
  model = ModelConfig(dim=DIM, layers=1, pattern=(name,), **sections)
  shapes = shapes_of(make_layer(name, sections, "float32"))
  others = ("gain", "bias", "rate", "skip", "inner")
  weights = sum(shape.size for key, shape in shapes.items() if not any(word in key for word in others))
  width = {"ttt_linear": config.value_dim, "linear": config.value_dim + 1}.get(name, config.value_dim)
  per_head = {
    "gated_slots": 2 * SIZES["slots"] * (SIZES["key_dim"] + width), "ttt_linear": 4 * width**2,
    **dict.fromkeys(("linear", "scalar_decay", "gla"), 2 * SIZES["key_dim"] * width)
  }.get(name, 3 * SIZES["key_dim"] * width)
  assert find_memory(name).multiply_adds(model, 1) == weights + config.heads * per_head
