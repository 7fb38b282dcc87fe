"""Local attention against its definition in float64, and what its rings promise."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import default_config, parse_config
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig, check, window_rows
from lattice_jax.memories.local.op import local_attention
from lattice_jax.memories.local.reference import visible
from lattice_jax.memories.registry import find_memory
from lattice_jax.ops.attention import Order, attend, merge
from lattice_jax.ops.attention.keys import block_reach
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.local import attend_band, group_heads, held, num_slots, slot_of
from tests.contract.harness import quick_jit
from tests.memories.local import float64
from tests.memories.local.scene import CONFIG, HEADS, LENGTH, SINKS, WINDOWS, cut, tokens

step = quick_jit(local_attention, "config", "max_len", "impl")


@functools.cache
def wanted(windows=WINDOWS, sinks=SINKS):
  return float64.attend(*(x[0] for x in tokens()), windows, sinks)


@pytest.mark.parametrize(("impl", "pieces"), [("reference", (40,)), ("xla", (13, 13, 13, 1))], ids=str)
def test_outputs_are_those_of_the_definition_in_float64(impl, pieces):
  state, outs, start = None, [], 0
  for length in pieces:
    out, state = step(*cut(tokens(), start, start + length), state, config=CONFIG, max_len=LENGTH, impl=impl)
    outs, start = [*outs, out], start + length
  np.testing.assert_allclose(jnp.concatenate(outs, 1)[0], wanted()[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", [0, LENGTH])
def test_a_window_that_holds_the_document_is_full_attention(window):
  config = LocalConfig(sinks=SINKS, rungs=(LENGTH,), windows=(window,))
  order = Order(jnp.arange(LENGTH)[None], jnp.zeros((1, LENGTH), jnp.int32))
  full, _ = attend(*tokens(), order, order)
  np.testing.assert_allclose(step(*tokens(), config=config)[0], full, rtol=0, atol=1e-6)


def test_near_and_exact_far_parts_merge_into_full_attention():
  """Each head's complement is attended to by itself; together they are what float64 gives for all tokens."""
  q, k, v = tokens()
  run_BT, index_BT = jnp.zeros((1, LENGTH), jnp.int32), jnp.arange(LENGTH, dtype=jnp.int32)[None]
  groups = group_heads((WINDOWS,))
  near = attend_band(q, k, v, run_BT, index_BT, groups, jnp.int32(0), sinks=SINKS, impl="xla")
  full_TQV, full_TQ = float64.attend(q[0], k[0], v[0], (0,) * HEADS, SINKS)
  for group, part in zip(groups, near, strict=True):
    heads, (window,) = np.array(group.heads), group.windows
    own = np.concatenate([2 * heads[:, None], 2 * heads[:, None] + 1], 1).ravel()
    if window:
      order, far = Order(index_BT, run_BT), Order(index_BT, jnp.where(index_BT < SINKS, EMPTY, run_BT))
      part = merge(*part, *attend(q[:, :, own], k[:, :, heads], v[:, :, heads], order, far, skip=window))
    np.testing.assert_allclose(part[0][0], full_TQV[:, own], rtol=0, atol=1e-5)
    np.testing.assert_allclose(part[1][0], full_TQ[:, own], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("optimized")
def test_a_ring_is_a_shifted_cache_for_ten_thousand_steps():
  """Both in one loop: the ring's tokens in their order are, bit for bit, those of a cache that moves at every step."""
  window, steps, width = 7, 10_000, 4
  config = LocalConfig(sinks=SINKS, rungs=(window,), windows=(window,))
  rows = jnp.asarray(np.random.default_rng(1).normal(size=(steps, 3, width)), jnp.float32)
  _, empty = local_attention(*(jnp.zeros((1, 1, 1, width)),) * 3, config=config, max_len=steps)
  start = jax.tree.map(jnp.zeros_like, empty), jnp.zeros((window, 2, width)), jnp.zeros((SINKS, 2, width))

  def one_token(carry, xs):
    t, row = xs
    state, shifted_W, first_S = carry
    q, k, v = (x[None, None, None] for x in row)
    out, state = local_attention(q, k, v, state, config=config)
    first_S = jnp.where((jnp.arange(SINKS) == t)[:, None, None], row[1:], first_S)
    shifted_W = jnp.concatenate([shifted_W[1:], row[None, 1:]])
    seen_B = state.seen_B
    index_W = t - window + 1 + jnp.arange(window)
    (ring,) = state.rings
    slot_W = jnp.where(index_W >= 0, slot_of(index_W, sinks=SINKS, window=window), ring.num_slots)
    kept_W = jnp.stack([x.at[0, 0, slot_W].get(mode="fill", fill_value=0) for x in (ring.key_BHSK, ring.value_BHSV)], 1)
    is_same = (kept_W == jnp.where((index_W >= 0)[:, None, None], shifted_W, 0)).all()
    held_S = held(seen_B, ring.num_slots, sinks=SINKS, window=window)[0]
    is_same &= (jnp.where((held_S >= 0) & (held_S < SINKS), 1, 0).sum() == jnp.minimum(t + 1, SINKS))
    # attention to the shifted cache and to the sinks that have left it
    keys = jnp.concatenate([first_S, shifted_W])
    is_seen = jnp.concatenate([jnp.arange(SINKS) <= t - window, index_W >= 0])
    score = jnp.where(is_seen, keys[:, 0] @ row[0] * width**-0.5, -jnp.inf)
    return (state, shifted_W, first_S), (is_same, jnp.abs(out.ravel() - jax.nn.softmax(score) @ keys[:, 1]).max())

  _, (is_same_T, error_T) = jax.jit(lambda xs: jax.lax.scan(one_token, start, xs))((jnp.arange(steps), rows))
  assert bool(is_same_T.all()) and float(error_T.max()) < 1e-5


def test_a_token_is_in_exactly_one_of_sinks_window_and_far():
  """By the mask, and by what rings hold after calls of any length."""
  index_BT = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  for window in (1, 3, 7):
    mask_TS = np.asarray(visible(jnp.zeros_like(index_BT), index_BT, window, sinks=SINKS))[0]
    back_TS = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    is_sink_TS = (np.arange(LENGTH) < SINKS) & (back_TS >= window)
    is_near_TS = (back_TS >= 0) & (back_TS < window)
    np.testing.assert_array_equal(mask_TS, is_sink_TS ^ is_near_TS)
    assert [np.flatnonzero(row).tolist() for row in mask_TS] == [
      float64.seen(t, window, SINKS) for t in range(LENGTH)]
    for seen in range(LENGTH):
      held_S = np.asarray(held(jnp.array([seen]), num_slots(SINKS, window, LENGTH), sinks=SINKS, window=window))[0]
      kept = sorted(held_S[held_S != EMPTY].tolist())
      far = list(range(SINKS, seen - window))
      assert sorted(kept + far) == list(range(seen)), "once each"


def test_a_query_block_visits_the_keys_of_its_window_and_no_others():
  length, block, window = 4096, 64, 128
  order = Order(jnp.arange(length)[None], jnp.zeros((1, length), jnp.int32))
  sink = order.replace(id_BT=jnp.where(order.index_BT < SINKS, 0, EMPTY))
  for keys, limit, most in ((order, window, window // block + 1), (sink, 0, 1)):
    for given in (limit, jnp.int32(limit)) if limit else (limit,):
      first_N, stop_N = block_reach(order, keys, query_block=block, key_block=block, window=given)
      assert int((stop_N - first_N).max()) == most


@pytest.mark.parametrize("picks", [0, 2])
def test_padding_and_the_document_before_leave_no_trace(picks):
  config = LocalConfig(sinks=1, rungs=(4, 6), windows=(4, 0, 6, 0), picks=picks, pick_lag=2)
  ids, valid = jnp.array([[3] * 9 + [5] * 31]), jnp.arange(LENGTH)[None] < 33
  whole = tuple(jnp.where(valid[..., None, None], x, jnp.nan) for x in tokens())
  out, state = step(*whole, None, ids, valid, config=config, max_len=LENGTH)
  alone, alone_state = step(*cut(tokens(), 9, 33), None, ids[:, 9:33], config=config, max_len=LENGTH)
  np.testing.assert_allclose(out[:, 9:33], alone, rtol=0, atol=1e-6)
  assert not np.asarray(out[:, 33:]).any()
  jax.tree.map(np.testing.assert_array_equal, state, alone_state)


BAD = (
  ({"rungs": (4, 4), "windows": (4,)}, r"model\.local\.rungs=4,4 must ascend, and 4 follows 4; sort them"),
  ({"rungs": (8, 4), "windows": (4,)}, r"model\.local\.rungs=8,4 must ascend"),
  ({"rungs": (4, 8), "windows": (5,)}, r"model\.local\.windows holds 5, which is none of model\.local\.rungs=4,8; use"),
  ({"rungs": (4,), "windows": (4, 0)}, r"model\.local\.windows holds 2 numbers, .* 2 layers of 3 .* 6"),
  ({"rungs": (4,), "windows": ()}, r"model\.local\.windows=\(\) must hold at least 1 number"),
  ({"rungs": (0, 4), "windows": (4,)}, r"model\.local\.rungs=\(0, 4\) holds 0, and its numbers must lie in \[1"),
  ({"sinks": -1}, r"model\.local\.sinks=-1 must be 0 or more"))


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_in_one_sentence(fields, sentence):
  raw = default_config().to_dict()
  raw["model"].update({"pattern": ("local",), "layers": 2})
  raw["model"]["attention"].update({"heads": 6, "kv_heads": 3})
  raw["model"]["local"].update({"rungs": (4, 256)} | fields)
  with pytest.raises(ValueError, match=sentence) as caught:
    parse_config(raw)
  assert "\n" not in str(caught.value)


def test_layers_that_are_not_local_have_no_windows():
  raw = default_config().to_dict()
  raw["model"].update({"pattern": ("attention", "local"), "layers": 2})
  raw["model"]["attention"].update({"heads": 2, "kv_heads": 2})
  raw["model"]["local"].update({"rungs": (4, 8), "windows": (0, 0, 4, 8)})
  assert parse_config(raw).model.local.windows == (0, 0, 4, 8)
  raw["model"]["local"]["windows"] = (0, 8, 4, 8)
  with pytest.raises(ValueError, match=r"gives layer 0 the windows 0,8, and .* makes it 'attention'; give 0"):
    parse_config(raw)


def test_a_state_or_windows_that_do_not_fit_are_refused():
  _, state = step(*tokens(), config=CONFIG, max_len=LENGTH)
  with pytest.raises(ValueError, match=r"given a state whose rings\.0\.key_BHSK has shape \(1, 2, .* needs \(1, 3,"):
    local_attention(*tokens(), state, config=LocalConfig(sinks=SINKS, rungs=(3, 7), windows=(7, 7, 3, 7)))
  with pytest.raises(ValueError, match="1 layers of 3 key/value heads"):
    window_rows(LocalConfig(rungs=(3,), windows=(3, 3)), 1, 3)
  with pytest.raises(ValueError, match=r"model\.local\.profile=x\.json is read where a config is read"):
    check(LocalConfig(profile="x.json"))
  with pytest.raises(ValueError, match="takes windows as numbers, not as data"):
    attend(*tokens(), *[Order(jnp.arange(LENGTH)[None], jnp.zeros((1, LENGTH), jnp.int32))] * 2,
           window=jnp.int32(3), impl="pallas")


@pytest.mark.parametrize("picks", [0, 5])
def test_multiply_adds_count_what_is_seen(picks):
  model = ModelConfig(
    dim=16, layers=1, pattern=("local",), local=dataclasses.replace(CONFIG, picks=picks),
    attention=AttentionConfig(heads=4, kv_heads=4, key_dim=6, value_dim=5))
  memory = find_memory("local")
  # picks are tokens that have left a window, as many as have
  seen = np.mean([
    len(float64.seen(t, window + picks * (window > 0), SINKS)) for t in range(LENGTH) for window in WINDOWS])
  nothing = memory.multiply_adds(model, 1) - 4 * 11
  assert memory.multiply_adds(model, LENGTH) - nothing == pytest.approx(4 * seen * 11)
