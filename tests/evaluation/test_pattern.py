"""A model under patterns of other lengths: the same numbers in other stacks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import MeshConfig, ModelConfig
from lattice_jax.evaluation.pattern import restack, shortest_pattern
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.models.parameters import named_leaves
from lattice_jax.sharding import make_mesh, unbox
from lattice_jax.types import whole_segment
from tests.contract.harness import quick_jit

MODEL = ModelConfig(
  vocab=11, dim=8, layers=4, block="mlp", mlp_dim=8,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4, window=64))
TOKENS = jnp.arange(10, dtype=jnp.int32)[None] % 11


def make(*pattern):
  return dataclasses.replace(MODEL, pattern=pattern)


def features(model, variables):
  apply = quick_jit(lambda variables: Decoder(model).apply(
    variables, TOKENS, init_state(model, 1), whole_segment(*TOKENS.shape)).features_BTD)
  return np.asarray(apply(variables))


@pytest.mark.parametrize(("pattern", "shortest"), [
  (("attention",) * 4, ("attention",)), (("attention", "vq") * 2, ("attention", "vq")),
  (("attention", "vq", "vq", "attention"),) * 2, (("vq",),) * 2])
def test_the_shortest_pattern_repeats_to_the_same_layers(pattern, shortest):
  assert shortest_pattern(make(*pattern)).pattern == shortest
  unrolled = dataclasses.replace(make(*pattern), scan_layers=False)
  assert shortest_pattern(unrolled) == unrolled


@pytest.mark.parametrize(("before", "after"), [
  (("attention",) * 2, ("attention",)), (("vq", "attention") * 2, ("vq", "attention")),
  (("attention",) * 2, ("window", "attention"))], ids=str)
def test_another_stack_of_the_same_layers_computes_the_same(before, after):
  before, after = (dataclasses.replace(make(*pattern), layers=len(before)) for pattern in (before, after))
  variables = quick_jit(lambda: unbox(init_variables(before, jax.random.key(0))))()
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  changed = restack(variables, before, after, mesh, MeshConfig())
  wanted = jax.eval_shape(lambda: unbox(init_variables(after, jax.random.key(0))))
  shapes = {name: leaf.shape for name, leaf in named_leaves(wanted).items()}
  assert {name: leaf.shape for name, leaf in named_leaves(changed).items()} == shapes
  np.testing.assert_allclose(features(before, variables), features(after, changed), rtol=0, atol=1e-6)
  back = named_leaves(restack(changed, after, before, mesh, MeshConfig()))
  for name, leaf in named_leaves(variables).items():
    np.testing.assert_array_equal(back[name], leaf)


def test_a_pattern_that_cannot_have_these_layers_leaves_them_alone():
  before = make("vq", "attention", "attention", "vq")
  variables = jax.eval_shape(lambda: unbox(init_variables(before, jax.random.key(0))))
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  assert restack(variables, before, make("attention"), mesh, MeshConfig()) is variables
