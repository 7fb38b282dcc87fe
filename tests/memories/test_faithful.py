"""Layers with `faithful=True` against the published ones, transcribed in float64 (published_frames.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory, find_section
from lattice_jax.types import make_segment, slice_time, whole_segment
from tests.contract.harness import quick_jit
from tests.memories import published_frames as published
from tests.memories.sizes import section_with
from tests.thorough import further

LENGTHS, DIM, CUT = (12, 7), 10, 9  # of two documents in a row; a call ends inside the first
SIZES = {
  "heads": 2, "key_dim": 3, "value_dim": 4, "conv_width": 3, "slots": 3, "chunk_len": 4, "mini_batch": 4,
  "inner_rate": 0.7, "norm_eps": 1e-3}
OPEN = {
  "linear": {}, "scalar_decay": {}, "gla": {"conv_width": 0}, "deltanet": {"gated": False}, "gated_deltanet": {},
  "kimi_delta": {}, "gated_slots": {"conv_width": 0}, "ttt_linear": {}}
FURTHER = (
  ("gla", {"gated": False}), ("deltanet", {"conv_width": 0, "max_step": 2.0}), ("gated_slots", {}))
RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(1, sum(LENGTHS), DIM))


def faithful(name, **changes):
  """The sections of a model with the published layer."""
  (section, config), = section_with(name, **SIZES | changes).items()
  wanted = find_section(name).published(name, config)
  return {section: type(config)(**vars(config) | wanted | {"faithful": True})}


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


@pytest.mark.parametrize(("name", "changes"), [*OPEN.items(), *further(*FURTHER)], ids=str)
def test_a_faithful_layer_is_the_published_one(name, changes):
  """Two documents in one row, in two calls: every document as if it stood alone."""
  sections = faithful(name, **changes)
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
