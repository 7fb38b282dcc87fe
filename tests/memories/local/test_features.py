"""Trained features in the layer: the definition in float64, how maps start, and who must have some."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig, SummaryConfig, check
from lattice_jax.memories.local.convert import check_choice
from lattice_jax.memories.local.layer import LocalAttention
from lattice_jax.memories.local.maps import from_arrays, map_shapes, to_arrays
from lattice_jax.memories.local.op import local_attention
from lattice_jax.ops.far_summary import Features
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import whole_segment
from tests.memories.local import float64
from tests.memories.local.scene import HEADS, KEY, LENGTH, QUERIES, SINKS, VALUE, WINDOWS, tokens
from tests.memories.local.test_far import PIECES, run
from tests.ops.far_summary.scene import features64

SUMMARY = SummaryConfig(features=3, hidden=5)
CONFIG = LocalConfig(sinks=SINKS, rungs=(3, 7), windows=WINDOWS, far="features", summary=SUMMARY)
ATTENTION = AttentionConfig(heads=QUERIES, kv_heads=HEADS, key_dim=KEY, value_dim=VALUE)
MODEL = ModelConfig(layers=2, pattern=("local",), attention=ATTENTION, local=CONFIG)


def make_maps(seed=0):
  rng = np.random.default_rng(seed)
  return from_arrays({
    name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in map_shapes(ATTENTION, SUMMARY).items()})


def test_each_query_reads_the_features_of_what_is_older_than_its_window_in_float64():
  maps = make_maps()
  q_TQK, k_THK, v_THV = (np.float64(x[0]) for x in tokens())
  out, state = run(PIECES, config=CONFIG, maps=maps)
  near_TQV, near_TQ = float64.attend(q_TQK, k_THK, v_THV, WINDOWS, SINKS)
  want_TQV = near_TQV.copy()
  for t, query in np.ndindex(near_TQ.shape):
    head = query // 2
    far = [j for j in range(SINKS, t + 1) if j not in float64.seen(t, WINDOWS[head], SINKS)]
    if far:
      weight = features64(maps.key, head, k_THK[far, head]) @ features64(maps.query, query, q_TQK[t, query])
      near = np.exp(near_TQ[t, query])
      want_TQV[t, query] = (near * near_TQV[t, query] + weight @ v_THV[far, head]) / (near + weight.sum())
  np.testing.assert_allclose(out[0], want_TQV, rtol=0, atol=1e-5)
  assert tree_bytes(state.summary) == 4 * HEADS * 3 * (VALUE + 1)


def test_maps_start_as_if_every_far_token_had_a_score_of_about_zero():
  attention = dataclasses.replace(ATTENTION, key_dim=16)
  layer = LocalAttention(attention, dataclasses.replace(CONFIG, summary=SummaryConfig()))
  x_BTD = jax.random.normal(jax.random.key(1), (1, LENGTH, 32))
  params = unbox(jax.jit(lambda: layer.init(
    jax.random.key(0), x_BTD, layer.init_state(1, 0), whole_segment(1, LENGTH)))())["params"]
  assert {name: params[name].shape for name in to_arrays(from_arrays(params))} == map_shapes(attention, SummaryConfig())
  maps = from_arrays(params)
  q_BTQK, k_BTHK = (jnp.einsum("BTD,DHK->BTHK", x_BTD, params[name]) for name in ("query", "key"))
  fold = Features(16)
  summary = fold.init_summary(1, HEADS, 16, 1)
  summary = summary.replace(weight_BHR=maps.key(k_BTHK).sum(1))
  _, lse_BTQ = fold.read(maps.query(q_BTQK), summary)
  off_BTQ = np.asarray(lse_BTQ) - np.log(LENGTH)
  assert abs(off_BTQ.mean()) < 0.5 and np.abs(off_BTQ).max() < 2


def test_maps_belong_to_features_and_to_nothing_else():
  with pytest.raises(ValueError, match=r"given no maps, and config\.far=features; maps belong to far=features"):
    local_attention(*tokens(), config=CONFIG)
  with pytest.raises(ValueError, match=r"given maps, and config\.far=mean; maps belong to far=features"):
    local_attention(*tokens(), config=dataclasses.replace(CONFIG, far="mean"), maps=make_maps())
  with pytest.raises(ValueError, match=r"model\.local\.maps=a\.safetensors holds maps for .* model\.local\.far=mean"):
    check(dataclasses.replace(CONFIG, far="mean", maps="a.safetensors"))
  with pytest.raises(ValueError, match=r"far=features is made by maps that are parameters .*; use mean, moments"):
    check_choice(MODEL)
