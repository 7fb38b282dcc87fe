"""The decoder with the details of the published Transformer-VQ against a float64 transcription of it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from configs import vq_imagenet64
from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import parse_config
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.types import whole_segment
from tests.contract.harness import normal_like, quick_jit
from tests.models import numpy_transformer_vq as published
from tests.thorough import further

BATCH, LENGTH, LAYERS = 2, 12, 2
MODEL = ModelConfig(
  vocab=13, dim=8, layers=LAYERS, impl="xla", norm_bias=True, position_wavelength=1e5, tied_embeddings=True,
  tied_bias=True, float32_head=True, logit_scale=0.3,
  vq=VQConfig(key_dim=6, value_dim=10, codes=5, block_len=4, joined=True, key_gradient="blocks", stale_rows=True))
UNTIED = replace(MODEL, tied_embeddings=False, final_norm=False, position_wavelength=0.0, vq=replace(
  MODEL.vq, window=6))
CHANGES = {
  "stale_rows": replace(MODEL, vq=replace(MODEL.vq, stale_rows=False)), "tied_bias": replace(MODEL, tied_bias=False),
  "norm_bias": replace(MODEL, norm_bias=False), "positions": replace(MODEL, position_wavelength=0.0)}


def make_variables(config):
  """Values with noise, so that no parameter is at zero; a codebook whose rows are as long as keys."""
  variables = meta.unbox(quick_jit(lambda rng: init_variables(config, rng))(jax.random.key(0)))
  noise = normal_like(7, variables["params"])
  return {**variables, "params": jax.tree.map(lambda param, noise: param + 0.3 * noise, variables["params"], noise)}


def new_codebooks(buffers, seed):
  """Buffers as after some updates."""
  random = np.random.default_rng(seed)
  sums = buffers["groups"]["block_0"]["memory"]
  count = random.uniform(0.5, 3, sums["codebook_count"].shape).astype(np.float32)
  total = random.normal(size=sums["codebook_sum"].shape).astype(np.float32) * count[..., None]
  return {"groups": {"block_0": {"memory": {"codebook_count": count, "codebook_sum": total}}}}


def rows_of(buffers):
  sums = jax.tree.map(np.float64, buffers["groups"]["block_0"]["memory"])
  return (sums["codebook_sum"] / np.maximum(sums["codebook_count"], 0.01)[..., None])[:, 0]


def logits_of_updates(config, variables, codebooks, tokens_BT):
  """Logits of updates of LENGTH tokens with memory carried between them, each with the codebook of its own."""
  @quick_jit
  def update(buffers, tokens_BT, state, start):
    segment = whole_segment(BATCH, LENGTH)
    segment = segment.replace(positions_BT=segment.positions_BT + start)
    bound = Decoder(config).bind({"params": variables["params"], "buffers": buffers})
    output = bound(tokens_BT, state, segment)
    return bound.logits(output.features_BTD), output.state

  state, logits = init_state(config, BATCH), []
  for number, buffers in enumerate(codebooks):
    start = number * LENGTH
    out, state = update(buffers, tokens_BT[:, start:start + LENGTH], state, start)
    logits.append(out)
  return np.concatenate(logits, 1)


def published_logits(config, variables, codebooks, tokens_BT):
  params = jax.tree.map(np.float64, variables["params"])
  group = params.pop("groups")["block_0"]
  params["units"] = [jax.tree.map(lambda leaf, n=n: leaf[n], group) for n in range(LAYERS)]
  vq = config.vq
  states = [[published.empty_state(vq.reach, vq.codes, vq.key_dim, vq.value_dim)] * BATCH for _ in range(LAYERS)]
  logits = []
  for number, buffers in enumerate(codebooks):
    start = number * LENGTH
    out, states = published.read_update(
      params, rows_of(buffers), tokens_BT[:, start:start + LENGTH], states, start, config)
    logits.append(out)
  return np.concatenate(logits, 1)


@functools.cache
def scene(config):
  """(variables, codebooks of two updates, tokens) and the published logits."""
  variables = make_variables(config)
  codebooks = [new_codebooks(variables["buffers"], seed) for seed in (1, 2)]
  tokens_BT = np.random.default_rng(3).integers(0, config.vocab, (BATCH, 2 * LENGTH), dtype=np.int32)
  inputs = variables, codebooks, tokens_BT
  return inputs, published_logits(config, *inputs)


def error(got, want):
  return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_two_updates_give_the_published_logits(config):
  inputs, want = scene(config)
  assert error(logits_of_updates(config, *inputs), want) < 2e-6


@pytest.mark.parametrize("name", CHANGES)
def test_every_detail_is_seen(name):
  """What the test above would not notice the lack of, it would not check."""
  inputs, want = scene(MODEL)
  got = logits_of_updates(CHANGES[name], *inputs)
  assert error(got, want) > 1e-3
  # window keys are older than their codebook in the second update only
  assert (error(got[:, :LENGTH], want[:, :LENGTH]) < 2e-6) == (name == "stale_rows")


def test_the_position_scale_begins_at_zero_and_is_one_number():
  params = meta.unbox(quick_jit(lambda rng: init_variables(MODEL, rng))(jax.random.key(0)))["params"]
  assert params["position_scale"].shape == () and params["position_scale"] == 0
  assert not params["head_bias"].any() and not params["final_norm"]["bias"].any()


def test_joined_projection_starts_like_the_parts_that_it_joins():
  config = replace(MODEL, dim=256, vq=replace(MODEL.vq, key_dim=64, value_dim=128))
  params = meta.unbox(quick_jit(lambda rng: init_variables(config, rng))(jax.random.key(0)))["params"]
  memory = params["groups"]["block_0"]["memory"]
  assert memory["joined"].shape == (LAYERS, 256, 64 + 128 + 128) and not {"key", "value", "gate"} & set(memory)
  np.testing.assert_allclose(memory["joined"].std((1, 2)), 256**-0.5, rtol=0.02)


@pytest.mark.parametrize("gated", [True, *further(False)], ids=["gated", "no-gate"])
def test_joined_projection_equals_its_parts(gated):
  """Keys, then values, then the gate, head by head."""
  vq = replace(MODEL.vq, heads=4, kv_heads=2, gated=gated, joined=False)
  config = replace(MODEL, layers=1, vq=vq)
  variables = make_variables(config)
  apart = variables["params"]["groups"]["block_0"]["memory"]
  names = ("key", "value", "gate") if gated else ("key", "value")
  joined = np.concatenate([np.asarray(apart[name]).reshape(1, MODEL.dim, -1) for name in names], -1)
  memory = {name: leaf for name, leaf in apart.items() if name not in names} | {"joined": joined}
  block = variables["params"]["groups"]["block_0"] | {"memory": memory}
  both = variables | {"params": variables["params"] | {"groups": {"block_0": block}}}
  tokens_BT = np.random.default_rng(3).integers(0, MODEL.vocab, (BATCH, LENGTH), dtype=np.int32)
  want = logits_of_updates(config, variables, [variables["buffers"]], tokens_BT)
  got = logits_of_updates(replace(config, vq=replace(vq, joined=True)), both, [variables["buffers"]], tokens_BT)
  assert error(got, want) < 1e-6


def test_a_float32_head_multiplies_float32_numbers_in_a_bfloat16_model():
  config = replace(MODEL, layers=1, dtype="bfloat16", logit_scale=0.25)
  variables = make_variables(config)
  tokens_BT = np.random.default_rng(3).integers(0, MODEL.vocab, (BATCH, LENGTH), dtype=np.int32)
  segment, params = whole_segment(BATCH, LENGTH), variables["params"]
  head_DA = np.float64(params["embedding"]).T
  errors = {}
  for float32_head in (True, False):
    bound = Decoder(replace(config, float32_head=float32_head)).bind(variables)
    nll_BT, output = quick_jit(lambda tokens_BT, bound=bound: bound.score(
      tokens_BT, tokens_BT, init_state(config, BATCH), segment))(tokens_BT)
    features_BTD = output.features_BTD
    assert features_BTD.dtype == (jnp.float32 if float32_head else jnp.bfloat16)
    want = np.float64(features_BTD) @ head_DA + 0.25 * np.float64(params["head_bias"])
    errors[float32_head] = error(np.float64(bound.logits(features_BTD)), want)
    if float32_head:
      logsum_BT = np.log(np.exp(want).sum(-1))
      want_BT = logsum_BT - np.take_along_axis(want, tokens_BT[..., None], -1)[..., 0]
      np.testing.assert_allclose(nll_BT, want_BT, rtol=1e-5, atol=1e-5)
  assert errors[True] < 1e-6 < 1e-4 < errors[False]


def test_tests_use_every_field_that_differs_from_the_defaults():
  """A detail that a paper config has and this file's model lacks would go unchecked."""
  paper = parse_config(vq_imagenet64.get_config()).model
  for section, ours, default in ((paper, MODEL, ModelConfig()), (paper.vq, MODEL.vq, VQConfig())):
    for field in dataclasses.fields(section):
      value = getattr(section, field.name)
      if isinstance(value, bool) and value != getattr(default, field.name):
        assert value == getattr(ours, field.name), field.name
