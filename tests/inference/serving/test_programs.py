"""A row is admitted alone: it gets all of its prompt's memory, of whatever kind, and no other row changes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.policies.registry import NAMES
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.inference.serving import programs
from lattice_jax.inference.session import start_state
from lattice_jax.marks import Marker
from lattice_jax.memories.registry import FOLDERS
from tests.contract.harness import quick_jit
from tests.memories.sizes import section_with

SIZES = {
  "heads": 2, "kv_heads": 1, "key_dim": 4, "value_dim": 4, "slots": 6, "codes": 5, "block_len": 4, "conv_width": 2,
  "gate_rank": 2, "mini_batch": 4, "chunk_len": 4, "window": 6}
BATCH, ROW, MAX_LEN = 3, 1, 16
assert BATCH not in SIZES.values()


def of_memory(name):
  return ModelConfig(vocab=11, dim=8, layers=2, pattern=(name,), block="gau", **section_with(name, **SIZES))


def of_policy(name):
  budget = {"full": {}, "window": {"tokens": 6}}.get(name, {"lag": 4, "keep": 1})
  return dataclasses.replace(of_memory("attention"), cache=CacheConfig(policy=name, sinks=1, **budget))


def numbers_like(tree, seed):
  """No two the same, whatever the type of the arrays."""
  start = seed * 10_000

  def fill(leaf):
    return jnp.asarray((start + np.arange(leaf.size).reshape(leaf.shape)).astype(leaf.dtype))

  return jax.tree.map(fill, tree)


@pytest.mark.parametrize(
  "model", [*map(of_memory, FOLDERS), *map(of_policy, NAMES)], ids=[*FOLDERS, *(f"cache-{name}" for name in NAMES)])
def test_a_row_takes_its_prompt_and_the_others_stay(model):
  marker = Marker(class_A=np.zeros(model.vocab, np.uint8))
  rows = numbers_like(jax.eval_shape(lambda: programs._start(model, BATCH, MAX_LEN, marker)), 1)
  prompt = numbers_like(jax.eval_shape(lambda: start_state(model, 1, MAX_LEN, marker)), 2)
  given = jax.tree.map(
    jnp.asarray, programs.admission(row=ROW, seed=7, allowed=5, temperature=0.5, top_k=3, top_p=0.25))
  after = jax.tree.map(np.asarray, quick_jit(functools.partial(programs._admit, None, MAX_LEN))(prompt, given, rows))
  rows, prompt = jax.tree.map(np.asarray, (rows, prompt))

  for new, old, one in zip(*map(jax.tree.leaves, (after.session, rows.session, prompt)), strict=True):
    axis = new.shape.index(BATCH)  # of no other axis the size
    np.testing.assert_array_equal(new.take([ROW], axis), one)
    np.testing.assert_array_equal(new.take([0, 2], axis), old.take([0, 2], axis))
  assert (after.open_B[ROW], after.index_B[ROW], after.allowed_B[ROW]) == (True, 0, 5)
  assert after.sampling.top_k_B.tolist()[ROW] == 3 and after.sampling.top_p_B.tolist()[ROW] == 0.25
  assert after.sampling.temperature_B.tolist()[ROW] == 0.5
  np.testing.assert_array_equal(after.key_data_BW[ROW], jax.random.key_data(jax.random.key(7)))
  np.testing.assert_array_equal(after.key_data_BW[[0, 2]], rows.key_data_BW[[0, 2]])
