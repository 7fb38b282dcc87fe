"""Dropout in real blocks at rates above zero: where it is on, what it leaves and how large, and what its masks obey."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.inference.generate import generate
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.block import Block
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.modules import sinusoids
from lattice_jax.types import whole_segment
from tests.contract.harness import normal_like, quick_jit

ROWS, LENGTH, RATE = 64, 5, 0.25
MODEL = ModelConfig(
  vocab=31, dim=8, layers=1, pattern=("vq",), block="mlp", mlp_dim=6, xent_chunk=1000, impl="xla",
  vq=VQConfig(heads=1, kv_heads=1, key_dim=4, value_dim=6, codes=3, block_len=4, reduction="serial"))
DROPPED = replace(
  MODEL, dropout=RATE, layer_drop=RATE, vq=replace(MODEL.vq, sinusoid_dropout=RATE))


def noisy(variables):
  """No parameter at its start."""
  variables = meta.unbox(variables)
  noise = normal_like(1, variables["params"])
  return {**variables, "params": jax.tree.map(lambda a, b: a + 0.3 * b, variables["params"], noise)}


def block_inputs(model):
  x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, MODEL.dim)), jnp.float32)
  state = jax.tree.map(lambda leaf: leaf[0], init_state(model, ROWS)["block_0"])
  return x_BTD, state, whole_segment(ROWS, LENGTH)


@functools.cache
def block_variables():
  return noisy(quick_jit(functools.partial(Block(MODEL, "vq").init, train=False))(
    jax.random.key(0), *block_inputs(MODEL)))


@functools.cache
def captured(dropout=1, sequence=2):
  """What every part of the block of `DROPPED` gave in training, under two random keys; arrays by name."""
  output, kept = compiled_block()(block_variables(), {
    "dropout": jax.random.key(dropout), "sequence": jax.random.key(sequence)})
  kept = kept["intermediates"]
  (memory,), (mlp,) = kept["memory"]["__call__"], kept["mlp"]["__call__"]
  parts = {"memory": memory.y_BTD, "mlp": mlp, "table": kept["memory"]["Dropout_0"]["__call__"][0]}
  for n, name in enumerate(("memory_dropout", "memory_layer_drop", "mlp_dropout", "mlp_layer_drop")):
    parts[name] = kept[f"Dropout_{n}"]["__call__"][0]
  return {name: np.asarray(part) for name, part in parts.items()} | {"block": np.asarray(output.y_BTD)}


@functools.cache
def compiled_block():
  return quick_jit(lambda variables, rngs: Block(DROPPED, "vq").apply(
    variables, *block_inputs(DROPPED), train=True, rngs=rngs, capture_intermediates=True, mutable=["intermediates"]))


def mask_of(got, plain):
  """Where something was left, divided by the share that is; NaN where there was nothing to leave."""
  np.testing.assert_allclose(got, np.where(got != 0, plain / (1 - RATE), 0), rtol=2e-5, atol=1e-6)
  return np.where(plain == 0, np.nan, got != 0)


def mask(parts, name):
  before = {
    "memory_dropout": "memory", "mlp_dropout": "mlp", "memory_layer_drop": "memory_dropout",
    "mlp_layer_drop": "mlp_dropout"}
  if name == "table":
    return mask_of(parts[name], np.asarray(sinusoids(jnp.arange(5), MODEL.dim, max_wavelength=MODEL.vq.max_wavelength)))
  return mask_of(parts[name], parts[before[name]])


ALL = ("memory_dropout", "mlp_dropout", "memory_layer_drop", "mlp_layer_drop", "table")


@pytest.mark.parametrize("name", ALL)
def test_what_is_left_is_the_stated_share_and_has_the_right_mean(name):
  found = mask(captured(), name)
  if name.endswith("layer_drop"):
    found = np.nanmax(found, axis=(1, 2))
  deviation = np.sqrt(RATE * (1 - RATE) / np.isfinite(found).sum())
  assert abs(np.nanmean(found) - (1 - RATE)) < 4 * deviation


@pytest.mark.parametrize("name", ["memory_layer_drop", "mlp_layer_drop"])
def test_a_branch_is_dropped_for_all_tokens_of_a_row(name):
  found = mask(captured(), name)
  np.testing.assert_array_equal(np.nanmax(found, axis=(1, 2)), np.nanmin(found, axis=(1, 2)))


def test_both_branches_are_added_as_they_were_left():
  parts = captured()
  total = np.asarray(block_inputs(MODEL)[0]) + parts["memory_layer_drop"] + parts["mlp_layer_drop"]
  np.testing.assert_allclose(parts["block"], total, rtol=1e-5, atol=1e-5)


def test_masks_follow_their_own_key():
  masks = {keys: {name: mask(captured(*keys), name) for name in ALL} for keys in ((1, 2), (1, 3), (4, 2))}
  for name in ALL:
    of_update, of_sequence = ((4, 2), (1, 3)) if name.endswith("_dropout") else ((1, 3), (4, 2))
    changes, stays = masks[of_update][name], masks[of_sequence][name]
    here = masks[1, 2][name]
    both = np.isfinite(here) & np.isfinite(stays)  # a branch that LayerDrop left out shows no mask
    np.testing.assert_array_equal(here[both], stays[both], err_msg=name)
    both = np.isfinite(here) & np.isfinite(changes)
    assert (here[both] != changes[both]).mean() > 0.1, name
  for kind in ("dropout", "layer_drop"):
    memory, mlp = (masks[1, 2][f"{branch}_{kind}"] for branch in ("memory", "mlp"))
    both = np.isfinite(memory) & np.isfinite(mlp)
    assert (memory[both] != mlp[both]).mean() > 0.1, kind


STACK = ModelConfig(
  vocab=31, dim=8, layers=2, pattern=("window",), block="gau", final_norm=False, xent_chunk=1000, impl="xla",
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4, window=3))
TOKENS = jnp.asarray(np.random.default_rng(2).integers(3, 31, (ROWS, LENGTH)), jnp.int32)


@functools.cache
def decoder_variables(model):
  return noisy(quick_jit(lambda rng: init_variables(model, rng))(jax.random.key(0)))


def test_layers_of_a_stack_have_masks_of_their_own():
  variables = decoder_variables(STACK)

  @quick_jit
  def read(variables, kept_L):
    """What the layers added to the embedding of each token: without dropout, and with either kind."""
    group = variables["params"]["groups"]["block_0"]
    memory = group["memory"] | {"out": group["memory"]["out"] * kept_L[:, None, None, None]}
    params = variables["params"] | {"groups": {"block_0": group | {"memory": memory}}}
    rngs = {"dropout": jax.random.key(0), "sequence": jax.random.key(1)}

    def added(model, **options):
      output = Decoder(model).apply(
        {"params": params}, TOKENS, init_state(model, ROWS), whole_segment(ROWS, LENGTH), **options)
      return output.features_BTD - params["embedding"][TOKENS]

    return added(STACK), *(
      added(replace(STACK, **{kind: RATE}), train=True, rngs=rngs) for kind in ("dropout", "layer_drop"))

  masks = []
  for layer in range(2):  # the other one adds nothing
    plain, *left = map(np.asarray, read(variables, jnp.eye(2)[layer]))
    masks.append([np.abs(kind) > 0.5 * np.abs(plain) for kind in left])
    for mask_of_kind, kind in zip(masks[-1], left, strict=True):
      np.testing.assert_allclose(kind, np.where(mask_of_kind, plain / (1 - RATE), 0), rtol=1e-4, atol=1e-5)
  for first, second in zip(*masks, strict=True):
    assert (first != second).mean() > 0.1


def test_evaluation_and_generation_know_nothing_of_the_rates():
  @quick_jit
  def evaluate(variables):
    return [Block(model, "vq").apply(variables, *block_inputs(model), train=False) for model in (MODEL, DROPPED)]

  jax.tree.map(np.testing.assert_array_equal, *evaluate(block_variables()))
  dropped, variables = replace(STACK, dropout=RATE, layer_drop=RATE), decoder_variables(STACK)

  @quick_jit
  def score(variables):
    return [Decoder(model).apply(
      variables, TOKENS, TOKENS, init_state(model, ROWS), whole_segment(ROWS, LENGTH), method=Decoder.score)[0]
      for model in (STACK, dropped)]

  np.testing.assert_array_equal(*score(variables))
  texts = [generate(model, variables, [[3, 4, 5], [6]], length=4, temperature=0.0, prefill_len=4, block_len=4)
           for model in (STACK, dropped)]
  np.testing.assert_array_equal(*texts)
