"""Bytes of a compressed cache: of the slots in use, and of what a policy keeps beside them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.cache.kv_cache import caches_of
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.evaluation.cache_contents import row_bytes
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import init_state
from lattice_jax.ops.far_summary import Features

ATTENTION = AttentionConfig(heads=4, kv_heads=2, key_dim=8, value_dim=6)
SLOT = 4 * (8 + 6) + 4  # keys, values and the position of one head


@pytest.mark.parametrize(("policy", "slot", "queries"), [
  ("lagkv", SLOT, 0), ("h2o", SLOT + 4, 0),  # and what attention it received
  ("snapkv", SLOT, 32)])
def test_bytes_of_a_row_count_what_a_policy_records(policy, slot, queries):
  model = ModelConfig(layers=3, pattern=("attention",), attention=ATTENTION, cache=CacheConfig(policy=policy, keep=8))
  caches = [
    dataclasses.replace(stack, length_B=jnp.array([[3, 5]] * 3))
    for stack in caches_of(init_state(model, 2, 32)).values()]
  assert row_bytes(caches) == 3 * (4 * 2 * slot + queries * 4 * 8 * 4)


def test_a_summary_counts_whole():
  """Of 5 features in 2 heads: sums of values of width 6, and of the features themselves."""
  model = ModelConfig(layers=3, pattern=("attention",), attention=ATTENTION)
  (stack,) = caches_of(init_state(model, 2, 32)).values()
  stack = dataclasses.replace(stack, length_B=jnp.array([[4, 4]] * 3))
  summary = jax.tree.map(lambda x: jnp.stack([x] * 3), Features(5).init_summary(2, 2, 8, 6))
  assert row_bytes([dataclasses.replace(stack, summary=summary)]) - row_bytes([stack]) == 3 * 2 * 5 * (6 + 1) * 4
