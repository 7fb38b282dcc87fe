"""What Lattice has and memories of one matrix a head may be given: a learned start, and values of length one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.types import make_segment, whole_segment
from tests.contract.harness import quick_jit
from tests.memories.sizes import section_with
from tests.thorough import further

SIZES = {"heads": 2, "key_dim": 3, "value_dim": 4, "conv_width": 2, "chunk_len": 4}
LENGTH, DIM = 7, 5  # of a document: the second in a row begins inside a chunk


def make_layer(name, **changes):
  return find_memory(name).make(
    ModelConfig(dim=DIM, layers=1, pattern=(name,), dtype="float64", **section_with(name, **SIZES | changes)))


@pytest.mark.parametrize(
  "name", ["scalar_decay", "gated_deltanet", *further("linear", "gla", "deltanet", "kimi_delta")])
def test_every_document_begins_with_the_start_and_teaches_it(name):
  with jax.enable_x64(True):
    layer, rng = make_layer(name, learned_start=True), np.random.default_rng(0)
    x_BTD, d_y_BTD = (jnp.asarray(rng.normal(size=(2, LENGTH, DIM))) for _ in range(2))
    apart = whole_segment(2, LENGTH)
    packed = make_segment(apart.positions_BT.reshape(1, -1), ids_BT=jnp.repeat(jnp.arange(2), LENGTH)[None])

    def project(params, x_BTD, segment):
      output = layer.apply({"params": params}, x_BTD, layer.init_state(len(x_BTD)), segment, train=False)
      return (output.y_BTD * d_y_BTD.reshape(output.y_BTD.shape)).sum(), output

    init = quick_jit(functools.partial(layer.init, train=False))(
      jax.random.key(0), x_BTD[:, :1], layer.init_state(2), whole_segment(2, 1))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), meta.unbox(init)["params"])
    grad = quick_jit(jax.grad(project, has_aux=True))
    d_params, alone = grad(params, x_BTD, apart)
    d_row, row = grad(params, x_BTD.reshape(1, -1, DIM), packed)
    np.testing.assert_allclose(row.y_BTD.reshape(alone.y_BTD.shape), alone.y_BTD, rtol=0, atol=1e-12)
    np.testing.assert_allclose(row.state.memory.memory_BHKV[0], alone.state.memory.memory_BHKV[1], rtol=0, atol=1e-12)
    assert (np.abs(d_row["start"]) > 1e-9).all(), "part of the start learns nothing"
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-11), d_row, d_params)


@pytest.mark.parametrize(("name", "changes"), [
  ("deltanet", {}), ("scalar_decay", {}), ("linear", {"features": "elu"}), ("gla", {"features": "silu"}),
  ("gla", {"features": "none"})], ids=["deltanet", "unit", "elu", "silu", "none"])
def test_values_have_length_one_where_they_are_asked_to(name, changes):
  x_BTHV = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 2, 4)) + 1.0, jnp.float32)
  free, unit = (
    np.asarray(make_layer(name, unit_values=is_unit, **changes).feature("value", x_BTHV)) for is_unit in (False, True))
  length = np.linalg.norm(unit, axis=-1)
  np.testing.assert_allclose(length, 1, atol=1e-3)
  np.testing.assert_allclose(unit, free / np.linalg.norm(free, axis=-1, keepdims=True), atol=1e-3)
  assert np.ptp(np.linalg.norm(free, axis=-1)) > 0.1

