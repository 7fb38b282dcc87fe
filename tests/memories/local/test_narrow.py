"""A text that was read under wide windows goes on under smaller ones as if it had been read under these."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig, window_rows
from lattice_jax.memories.local.far import find_fold
from lattice_jax.memories.local.narrow import narrow, narrow_state
from lattice_jax.memories.local.op import local_attention
from lattice_jax.memories.local.state import LocalView, empty_cache
from lattice_jax.models.decoder import init_state
from lattice_jax.ops.local import group_heads
from tests.contract.harness import quick_jit
from tests.memories.local.scene import HEADS, KEY, LENGTH, VALUE, cut, tokens
from tests.thorough import further

BEFORE = LocalConfig(sinks=2, rungs=(3, 7, 20), windows=(7, 0, 3, 20, 0, 0, 20, 7), far="mean")
PICKED = replace(
  BEFORE, rungs=(5, 7, 20), windows=(7, 0, 5, 20, 0, 0, 20, 7), picks=3, pick_lag=2, far="moments")
step = quick_jit(local_attention, "config")


def stack_under(config, length=30):
  """Two layers, each of which has read tokens."""
  groups = group_heads(window_rows(config, 2, HEADS))
  stack = empty_cache(
    config, groups, 1, LENGTH, key_dim=KEY, value_dim=VALUE, dtype=jnp.dtype("float32"), fold=find_fold(config, 2),
    layers=2)
  for layer in range(2):
    stack = step(*cut(tokens(), layer, layer + length), LocalView(stack, jnp.int32(layer)), config=config)[1].stack
  return stack


@pytest.mark.parametrize(("before", "windows"), [
  *further((BEFORE, (3, 7, 3, 20, 7, 0, 3, 7))), (PICKED, (5, 7, 5, 20, 7, 0, 5, 7))], ids=["mean", "moments-picks"])
def test_what_is_kept_and_summarised_is_as_if_the_smaller_windows_had_always_been(before, windows):
  after = replace(before, windows=windows)
  narrowed = quick_jit(narrow, "before", "after", "kv_heads", "group", "max_len")
  got = narrowed(before=before, after=after, stack=stack_under(before), kv_heads=HEADS, group=2, max_len=LENGTH)
  want = stack_under(after)
  jax.tree.map(np.testing.assert_array_equal, got.rings, want.rings)
  jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-6), got.picks, want.picks)
  jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-6), got.summary, want.summary)
  assert jax.tree.structure(got) == jax.tree.structure(want)


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"windows": (7, 0, 7, 20) * 2}, r"a head of layer 0 has kept a window of 3 tokens and cannot go on with 7, for"),
  ({"windows": (0,)}, r"a head of layer 0 has kept a window of 7 tokens and cannot go on with all, for the others"),
  ({"windows": (3,), "sinks": 1}, r"read with model\.local\.sinks=2 and cannot go on with 1; keep it"),
  ({"windows": (3,), "far": "none"}, r"read with model\.local\.far=mean and cannot go on with none; keep it"),
  ({"windows": (3,), "picks": 2, "pick_lag": 1}, r"read with model\.local\.picks=0 and cannot go on with 2; keep it"),
], ids=str)
def test_what_is_gone_does_not_come_back(changes, sentence):
  model = ModelConfig(
    layers=2, pattern=("local",), local=BEFORE,
    attention=AttentionConfig(heads=HEADS, kv_heads=HEADS, key_dim=KEY, value_dim=VALUE))
  with pytest.raises(ValueError, match=sentence):
    narrow_state(model, replace(BEFORE, **changes), init_state(model, 1, LENGTH), LENGTH)


def test_each_block_of_a_pattern_gets_its_own_windows():
  model = ModelConfig(
    layers=2, pattern=("attention", "local"), local=LocalConfig(rungs=(3, 7), windows=(0, 0, 7, 0)),
    attention=AttentionConfig(heads=2, kv_heads=2, key_dim=KEY, value_dim=VALUE))
  after, state = replace(model.local, windows=(0, 0, 3, 7)), init_state(model, 1, LENGTH)
  got = narrow_state(model, after, state, LENGTH)
  want = jax.eval_shape(lambda: init_state(replace(model, local=after), 1, LENGTH))
  assert jax.tree.map(lambda x: x.shape, got) == jax.tree.map(lambda x: x.shape, want)
  assert got["block_0"] is state["block_0"]
