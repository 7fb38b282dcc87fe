"""Caches on the same text: against plain losses, and what the first cache means for the others."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lattice_jax.cache.convert import uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.evaluation.compare import _by_position, compare, format_comparisons, write_comparisons
from lattice_jax.inference.session import Session
from lattice_jax.inspect.retrieval_plots import plot_retrieval
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  dim=16, layers=2, pattern=("attention",), block="mlp", mlp_dim=16,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=8, value_dim=8))
LAGKV = CacheConfig(policy="lagkv", sinks=2, lag=8, keep=2)
CACHES = {"full": CacheConfig(), "lagkv": LAGKV}
PROMPT_LEN, LENGTH = 30, 60


@functools.lru_cache
def case():
  variables = jax.jit(lambda: jax.tree.map(lambda leaf: 2 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()
  tokens_BT = np.random.default_rng(0).integers(3, 259, (2, LENGTH))
  told = []
  return variables, tokens_BT, compare(MODEL, variables, CACHES, tokens_BT, PROMPT_LEN, report=told.append), told


def test_losses_are_those_of_one_call_and_the_first_cache_is_beside_itself():
  variables, tokens_BT, (full, lagkv), told = case()

  @jax.jit
  def nats(variables, tokens_BT):
    targets_BT = jax.numpy.roll(tokens_BT, -1, axis=1)
    return Decoder(MODEL).apply(
      variables, tokens_BT, targets_BT, init_state(MODEL, 2), whole_segment(2, LENGTH), method=Decoder.score)[0]

  nll_BT = np.asarray(nats(variables, tokens_BT))[:, PROMPT_LEN - 1:-1]
  np.testing.assert_allclose(full.nll, nll_BT.mean(), rtol=1e-5)
  assert list(full.nll_by_position) == ["30–59"]
  assert (full.delta_nll, full.delta_low, full.kl, full.agreement, full.tokens) == (0, 0, 0, 1, 60)
  np.testing.assert_allclose(lagkv.nll - full.nll, lagkv.delta_nll, atol=1e-6)
  assert lagkv.kl_low <= lagkv.kl <= lagkv.kl_high and lagkv.kl > 1e-4
  assert lagkv.delta_low <= lagkv.delta_nll <= lagkv.delta_high
  assert (full.kept, lagkv.kept) == (LENGTH, make_policy(LAGKV).length_after(LENGTH))
  assert full.cache_bytes / full.kept == lagkv.cache_bytes / lagkv.kept == 2 * (2 * 8 * 4 + 4)
  assert 0 < full.p50_ms <= full.p95_ms
  assert told == ["token 1 of 30"]


def test_divergence_and_agreement_are_those_of_the_two_predictions():
  variables, tokens_BT, (_, lagkv), _ = case()
  caches = {name: dataclasses.replace(cache, call_len=1) for name, cache in CACHES.items()}
  prompt = Session(uncompressed(MODEL, list(caches.values())), variables, batch=2, max_len=LENGTH)
  prompt.read(list(tokens_BT[:, :PROMPT_LEN]))
  predictions = []
  for cache in caches.values():
    session, logits = prompt.compress(cache), []
    for token_B in tokens_BT[:, PROMPT_LEN:].T:
      logits.append(np.asarray(session.state.logits_BA, np.float64))
      session.step(token_B.astype(np.int32))
    predictions.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
  full_TBA, other_TBA = predictions
  np.testing.assert_allclose(lagkv.kl, (full_TBA * np.log(full_TBA / other_TBA)).sum(-1).mean(), rtol=1e-4)
  assert lagkv.agreement == pytest.approx((full_TBA.argmax(-1) == other_TBA.argmax(-1)).mean()) and lagkv.agreement < 1


def test_stretches_of_positions_double():
  nll_BT = np.arange(600.0).reshape(2, 300)
  assert dict(_by_position(nll_BT, 10)) == {
    "10–73": 181.5, "74–137": 245.5, "138–265": 341.5, "266–309": 427.5}


def test_the_table_and_the_plot_hold_every_cache(tmp_path):
  comparisons = case()[2]
  assert [path.name for path in write_comparisons(tmp_path, comparisons)] == ["compare.md", "compare.jsonl"]
  assert (tmp_path / "compare.md").read_text() == format_comparisons(comparisons)
  assert [json.loads(line)["cache"] for line in (tmp_path / "compare.jsonl").read_text().splitlines()] == list(CACHES)
  (plot,) = plot_retrieval(tmp_path, tmp_path / "a.png")
  assert plot.stat().st_size > 5000


def test_a_comparison_without_text_or_with_one_cache_is_refused():
  tokens_BT = np.zeros((1, 10), np.int32)
  with pytest.raises(ValueError, match="needs at least two caches"):
    compare(MODEL, {}, {"full": CacheConfig()}, tokens_BT, 5)
  with pytest.raises(ValueError, match="a prompt of 9 tokens leaves too little of a text of 10"):
    compare(MODEL, {}, CACHES, tokens_BT, 9)
