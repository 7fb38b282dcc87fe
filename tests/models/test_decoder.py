"""The decoder's own part: from tokens to logits, sums over layers, and keys for the codebooks of all layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.memories.vq import record
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models import decoder
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.types import LayerOutput, whole_segment
from tests.contract.harness import normal_like, quick_jit
from tests.thorough import further

MODEL = ModelConfig(
  vocab=11, dim=6, layers=1, pattern=("window",), block="gau", logit_scale=0.3,
  attention=AttentionConfig(heads=1, kv_heads=1, key_dim=2, value_dim=3, window=2))


@pytest.mark.parametrize(("changes"), [
  {"tied_embeddings": True}, {"head_bias": False}, *further({}, {"final_norm": False})], ids=str)
def test_logits_are_those_of_the_parameters(changes):
  """Of a layer that adds nothing: head of the norm of the embedding, and the bias, times the scale."""
  model = dataclasses.replace(MODEL, **changes)
  params = meta.unbox(quick_jit(lambda rng: init_variables(model, rng))(jax.random.key(0)))["params"]
  params = jax.tree.map(lambda param, noise: param + 0.3 * noise, params, normal_like(0, params))
  params["groups"]["block_0"]["memory"]["out"] *= 0
  tokens = jnp.asarray([[1, 7, 3]])

  @quick_jit
  def logits(params):
    output = Decoder(model).apply({"params": params}, tokens, init_state(model, 1), whole_segment(1, 3))
    return Decoder(model).apply({"params": params}, output.features_BTD, method=Decoder.logits)

  x_TD = np.float64(params["embedding"])[np.asarray(tokens)[0]]
  if model.final_norm:
    x_TD = x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + model.norm_eps) * params["final_norm"]["gain"]
  head = params["embedding"].T if model.tied_embeddings else params["head"]
  has_bias = model.head_bias and not model.tied_embeddings
  want = 0.3 * (x_TD @ np.float64(head) + (np.float64(params["head_bias"]) if has_bias else 0))
  np.testing.assert_allclose(logits(params)[0], want, rtol=1e-5, atol=1e-5)


def test_losses_add_up_over_layers_and_metrics_are_averaged():
  def layers(losses, metrics):
    def pairs(numbers):
      return {"x": tuple(map(jnp.asarray, zip(*numbers, strict=True)))}

    return LayerOutput(y_BTD=None, state=None, losses=pairs(losses), metrics=pairs(metrics), statistics={})

  # two blocks of the pattern, of two layers each
  outputs = {"block_0": layers([(1.0, 4.0), (2.0, 4.0)], [(1.0, 2.0), (5.0, 3.0)]),
             "block_1": layers([(4.0, 4.0), (8.0, 4.0)], [(7.0, 1.0), (0.5, 4.0)])}
  losses, metrics = decoder._reduce_layers(outputs)
  assert tuple(map(float, losses["x"])) == (15.0, 4.0)
  assert tuple(map(float, metrics["x"])) == (13.5, 10.0)


def test_every_codebook_revives_with_a_key_of_its_own(monkeypatch):
  model = dataclasses.replace(
    MODEL, layers=4, pattern=("vq", "vq"),
    vq=VQConfig(heads=1, kv_heads=1, key_dim=2, value_dim=3, codes=2, block_len=2))
  seen = dataclasses.replace(
    find_memory("vq"), update_buffers=lambda model, buffers, statistics, rng: jax.random.uniform(rng))
  monkeypatch.setitem(record.MEMORIES, "vq", seen)
  block = {"memory": {"codebook_count": jnp.zeros((2, 1, 2))}}
  buffers = {"groups": {"block_0": block, "block_1": block}}
  drawn = decoder.update_buffers(
    model, buffers, {"block_0": jnp.zeros(2), "block_1": jnp.zeros(2)}, jax.random.key(0))
  assert len({float(number) for leaf in jax.tree.leaves(drawn) for number in leaf}) == 4
