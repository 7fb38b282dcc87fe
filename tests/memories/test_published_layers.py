"""Every memory layer against its paper's equations, transcribed in float64 (published_layers.py)."""

from __future__ import annotations

import functools
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.types import whole_segment
from tests.contract.harness import normal_like, quick_jit
from tests.memories import published_layers as published
from tests.memories.sizes import section_with

ROWS, LENGTH, DIM = 2, 19, 12
X_BTD = np.random.default_rng(0).normal(size=(ROWS, LENGTH, DIM)).astype(np.float32)
SIZES = {
  "heads": 2, "key_dim": 5, "value_dim": 6, "conv_width": 3, "slots": 3, "chunk_len": 4, "gate_rank": 3,
  "max_step": 1.5, "mini_batch": 4, "inner_rate": 0.7, "codes": 5}
LATTICE = LatticeConfig(heads=2, slots=5, value_dim=6, conv_width=3, max_step=0.8)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=5, window=6, rope_theta=100.0)
VQ = VQConfig(heads=4, kv_heads=2, key_dim=6, value_dim=5, codes=7, block_len=4, window=3, commit_weight=0.5)
RECURRENCES = (
  "linear", "scalar_decay", "gla", "deltanet", "gated_deltanet", "kimi_delta", "gated_slots", "ttt_linear", "gru",
  "online_vq")


def run(model):
  """(variables, y_BTD, the layer's output) of the model's only memory; no parameter is at its start."""
  layer = find_memory(model.pattern[0]).make(model)
  segment, state = whole_segment(ROWS, LENGTH), layer.init_state(ROWS)

  def init(rng):
    return layer.init(rng, jnp.asarray(X_BTD), state, segment, train=False)

  variables = jax.device_get(meta.unbox(quick_jit(init)(jax.random.key(0))))
  noise = normal_like(3, variables["params"])
  params = jax.tree.map(lambda param, noise: param + np.float32(0.3) * noise, variables["params"], noise)
  variables = {**variables, "params": params}
  variables, x_BTD = jax.tree.map(lambda x: np.asarray(x, model.dtype), (variables, X_BTD))
  output = quick_jit(functools.partial(layer.apply, train=False))(variables, x_BTD, state, segment)
  return jax.tree.map(np.float64, variables), np.asarray(output.y_BTD), output


def assert_rows_close(got_BTD, equation, limit=2e-5):
  for row in range(ROWS):
    want_TD = equation(np.float64(X_BTD[row]))
    np.testing.assert_allclose(got_BTD[row], want_TD, rtol=0, atol=limit * np.abs(want_TD).max())


@pytest.mark.parametrize("name", RECURRENCES)
def test_a_recurrence_that_lattice_is_compared_with_is_the_papers(name):
  with jax.enable_x64(True):
    variables, y_BTD, _ = run(
      ModelConfig(dim=DIM, layers=1, pattern=(name,), dtype="float64", **section_with(name, **SIZES)))
  assert y_BTD.dtype == np.float64
  assert_rows_close(
    y_BTD, lambda x_TD: published.recurrent(name, variables["params"], x_TD, types.SimpleNamespace(**SIZES)), 1e-12)


@pytest.mark.parametrize(
  "changes", [{}, {"objective": "similarity", "forget": True}, {"objective": "encoding"}], ids=str)
def test_lattice_is_the_papers(changes):
  config = replace(LATTICE, **changes)
  variables, y_BTD, _ = run(ModelConfig(dim=DIM, layers=1, pattern=("lattice",), lattice=config))
  assert_rows_close(y_BTD, lambda x_TD: published.recurrent("lattice", variables["params"], x_TD, config))


@pytest.mark.parametrize(("memory", "changes"), [
  ("attention", {}), ("attention", {"bias": "all"}), ("window", {"gated": True, "qk_norm": True, "bias": "qkv"})],
  ids=str)
def test_softmax_attention_is_the_papers(memory, changes):
  config = replace(ATTENTION, **changes)
  variables, y_BTD, _ = run(ModelConfig(dim=DIM, layers=1, pattern=(memory,), attention=config))
  window = config.window if memory == "window" else 0
  assert_rows_close(y_BTD, lambda x_TD: published.attention(variables["params"], x_TD, config, window))


@pytest.mark.parametrize("gated", [True, False])
def test_transformer_vq_is_the_papers(gated):
  config = replace(VQ, gated=gated)
  variables, y_BTD, output = run(ModelConfig(dim=DIM, layers=1, pattern=("vq",), vq=config))
  sums = variables["buffers"]
  rows_HMK = sums["codebook_sum"] / np.maximum(sums["codebook_count"], 0.01)[..., None]
  equation = functools.partial(published.transformer_vq, variables["params"], rows_HMK, config=config)
  assert_rows_close(y_BTD, lambda x_TD: equation(x_TD)[0])
  _, errors, codes = zip(*(equation(np.float64(x_TD)) for x_TD in X_BTD), strict=True)
  total, count = output.losses["commit"]
  np.testing.assert_allclose([total, count], [0.5 * sum(errors), ROWS * LENGTH], rtol=1e-5)
  code_NH = np.concatenate(codes)
  used_HM = np.stack([np.bincount(code_NH[:, h], minlength=config.codes) for h in range(config.kv_heads)])
  np.testing.assert_array_equal(output.statistics["codebook_count"], used_HM)
  share_HM = used_HM / len(code_NH)
  entropy_H = -np.where(share_HM > 0, share_HM * np.log(np.maximum(share_HM, 1e-30)), 0).sum(-1)
  metrics = {name: float(total / count) for name, (total, count) in output.metrics.items()}
  # keys have the squared length √K: an error is told as a share of it
  assert metrics["codebook_perplexity"] == pytest.approx(np.exp(entropy_H).mean(), rel=1e-5)
  assert metrics["quantization_error"] == pytest.approx(
    sum(errors) / len(code_NH) / config.kv_heads / np.sqrt(config.key_dim), rel=1e-5)
