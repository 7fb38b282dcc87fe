"""Decode steps after a text that was not read: the states are those of reading, and their bytes are counted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.bench.local_decode import cache_bytes, decode_bound, filled, measure_decoding
from lattice_jax.config import ModelConfig
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import whole_segment
from tests.thorough import further

FULL = ModelConfig(
  dim=8, layers=2, vocab=32, pattern=("attention",), block="mlp", mlp_dim=8,
  attention=dataclasses.replace(ModelConfig().attention, heads=2, kv_heads=2, key_dim=8, value_dim=8))
LOCAL = dataclasses.replace(
  FULL, pattern=("local",), local=LocalConfig(sinks=2, rungs=(4,), windows=(4, 0, 4, 4), far="mean"))


@pytest.fixture(scope="module")
def variables():
  return jax.jit(lambda: unbox(init_variables(FULL, jax.random.key(0))))()


def test_bytes_read_are_those_of_the_slots():
  number = 2 * 8 * 4  # bytes of a token in one head
  assert cache_bytes(FULL, 3, 20) == 3 * 2 * 2 * 20 * number
  summary, share = 2 * 2 * (8 + 8 + 1) * 4, 2 * 4  # of each layer how much of the attention was far
  assert cache_bytes(LOCAL, 1, 20) == (3 * 6 + 20) * number + summary + share


@pytest.mark.parametrize("model", [*further(FULL), LOCAL], ids=["full", "local"])
def test_a_filled_state_is_as_after_reading(model, variables):
  tokens_BT = jnp.zeros((2, 9), jnp.int32)
  read = Decoder(model).apply(variables, tokens_BT, init_state(model, 2, 16), whole_segment(2, 9)).state
  made = filled(model, 2, 9, 16)
  assert jax.tree.structure(read) == jax.tree.structure(made)
  for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(read), jax.tree.leaves(made), strict=True):
    assert (old.shape, old.dtype) == (new.shape, new.dtype)
    if any(name in jax.tree_util.keystr(path) for name in (".summary", ".far_share")):  # made up, or nothing
      continue
    if old.dtype != jnp.float32:
      np.testing.assert_array_equal(old, new)
    else:  # keys and values: the same slots are in use
      np.testing.assert_array_equal(jnp.any(old != 0, -1), jnp.any(new != 0, -1))


def test_the_bound_is_that_of_the_bytes_and_says_from_which_length_on_it_is_enough():
  bound = decode_bound({"full": FULL, "windows": LOCAL}, 10**5, lengths=(64, 1024), batches=(1, 4), goal=0.3)
  for batch, arms in ((each["batch"], each["arms"]) for each in bound["batches"]):
    full, windows = arms
    assert full["saved"] == [0, 0] and full["from"] is None

    def saved(length, batch=batch):
      whole, kept = cache_bytes(FULL, batch, length), cache_bytes(LOCAL, batch, length)
      return (whole - kept) / (10**5 + whole)

    assert windows["saved"] == pytest.approx([saved(64), saved(1024)])
    assert windows["from"] % 64 == 0 and saved(windows["from"]) >= 0.3 > saved(windows["from"] - 64)
  assert bound["batches"][1]["arms"][1]["from"] < bound["batches"][0]["arms"][1]["from"]


def test_another_memory_is_refused():
  with pytest.raises(ValueError, match="cannot be filled with random tokens"):
    filled(dataclasses.replace(FULL, pattern=("deltanet",)), 1, 4, 8)


def test_every_arm_has_its_steps_and_the_first_saves_nothing(variables):
  found = measure_decoding({"full": FULL, "windows": LOCAL}, variables, length=12, batch=2, steps=3)
  full, windows = found["arms"]
  assert [len(arm["ms"]) for arm in (full, windows)] == [3, 3]
  assert full["predicted"] == full["saved_p50"] == full["saved_paired"] == 0
  assert found["weight_bytes"] == tree_bytes(variables)
  weights, large, small = found["weight_bytes"], cache_bytes(FULL, 2, 12), cache_bytes(LOCAL, 2, 12)
  assert windows["cache_bytes"] == small
  assert windows["predicted"] == pytest.approx(1 - (weights + small) / (weights + large))
