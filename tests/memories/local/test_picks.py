"""The middle region: of what has left the windows, the best tokens by LagKV's score stay as they are."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.local.config import LocalConfig, SummaryConfig, check
from lattice_jax.memories.local.far import far_block_len, find_fold
from lattice_jax.memories.local.op import local_attention
from lattice_jax.memories.local.reference import read_picks
from lattice_jax.memories.local.state import empty_cache
from lattice_jax.ops.far_summary import Matching
from lattice_jax.ops.local import (
  Leaving,
  Scores,
  attend_picks,
  empty_picks,
  empty_ring,
  group_heads,
  held,
  leaving,
  num_slots,
  score_leaving_ring,
  write_ring,
)
from tests.contract.harness import quick_jit
from tests.memories.local import float64
from tests.memories.local.scene import HEADS, KEY, LENGTH, SINKS, VALUE, cut, tokens
from tests.memories.local.test_far import Everything

PICKS, LAG, WINDOWS, PIECES = 3, 2, (7, 0, 4, 7), (20, 20)
CONFIG = LocalConfig(sinks=SINKS, rungs=(4, 7), windows=WINDOWS, picks=PICKS, pick_lag=LAG, far="mean")
step = quick_jit(local_attention, "config", "fold", "impl")


def run(pieces, **given):
  """Outputs, and the states after each call."""
  fold = given.get("fold") or find_fold(CONFIG, 2)
  states, outs, start = [empty_cache(
    CONFIG, group_heads((WINDOWS,)), 1, LENGTH, key_dim=KEY, value_dim=VALUE, dtype=jnp.dtype("float32"),
    fold=fold)], [], 0
  for length in pieces:
    out, state = step(*cut(tokens(), start, start + length), states[-1], config=CONFIG, **given)
    outs, states, start = [*outs, out[0]], [*states, state], start + length
  return jnp.concatenate(outs), states[1:]


@functools.cache
def scores(head):
  _, k, v = tokens()
  return float64.token_scores(k[0, :, head], v[0, :, head], SINKS, LAG)


def picked(head, index):
  return float64.picked(scores(head), index, WINDOWS[head], SINKS, PICKS)


def attention(q_K, k_SK, v_SV, count_S):
  """(output, log-sum-exp) in float64 of keys that count so many times."""
  score_S = k_SK @ q_K / np.sqrt(len(q_K)) + np.log(count_S)
  lse = np.log(np.exp(score_S).sum())
  return np.exp(score_S - lse) @ v_SV, lse


@functools.cache
def wanted():
  """By the definition: sinks, window and picks as they are, all other earlier tokens as their mean."""
  q_TQK, k_THK, v_THV = (np.float64(x[0]) for x in tokens())
  out_TQV = np.zeros((LENGTH, q_TQK.shape[1], VALUE))
  for t, query in np.ndindex(out_TQV.shape[:2]):
    head = query // 2
    near = [*float64.seen(t, WINDOWS[head], SINKS), *picked(head, t)]
    far = [j for j in range(t + 1) if j not in near]
    keys, values = ([x[near, head], *([x[far, head].mean(0, keepdims=True)] if far else [])] for x in (k_THK, v_THV))
    counts = [*[1] * len(near), *[len(far)] * bool(far)]
    out_TQV[t, query], _ = attention(q_TQK[t, query], np.concatenate(keys), np.concatenate(values), np.array(counts))
  return out_TQV


@pytest.mark.parametrize(("impl", "pieces"), [("reference", (LENGTH,)), ("xla", PIECES)], ids=str)
def test_outputs_and_picks_are_those_of_the_definition_in_float64(impl, pieces):
  out, states = run(pieces, impl=impl)
  np.testing.assert_allclose(out, wanted(), rtol=0, atol=1e-5)
  _, k, v = tokens()
  for head, position_P in enumerate(np.asarray(states[-1].picks.position_BHP)[0]):
    want = picked(head, LENGTH - 1)
    assert position_P.tolist() == want + [-1] * (PICKS - len(want))
    for kept_P, all_TH in ((states[-1].picks.key_BHPK, k), (states[-1].picks.value_BHPV, v)):
      np.testing.assert_array_equal(kept_P[0, head, :len(want)], all_TH[0, want, head])


def test_a_call_without_room_reads_the_same():
  """As in training, where nothing is carried to the next one."""
  np.testing.assert_allclose(step(*tokens(), config=CONFIG)[0][0], wanted(), rtol=0, atol=1e-5)


def test_a_token_is_in_exactly_one_of_sinks_window_picks_and_far():
  """After calls of any length; and a summary that loses nothing gives full attention, so the parts merge exactly."""
  out, states = run(PIECES, fold=Everything())
  full, _ = float64.attend(*(x[0] for x in tokens()), (0,) * HEADS, SINKS)
  np.testing.assert_allclose(out, full, rtol=0, atol=1e-5)
  for seen, state in zip(np.cumsum(PIECES), states, strict=True):
    for head, window in enumerate(WINDOWS):
      times_S = np.asarray(state.summary["times_BHS"])[0, head]
      assert times_S.max(initial=0) <= 1, "no token twice"
      kept = np.asarray(held(jnp.array([seen]), num_slots(SINKS, window, LENGTH), sinks=SINKS, window=window))[0]
      parts = [*np.flatnonzero(times_S), *kept[kept >= 0], *picked(head, seen - 1)]
      assert sorted(parts) == list(range(seen)), (head, seen)


def test_calls_of_any_length_give_the_picks_of_the_definition_in_float64_numbers():
  """In numbers of 64 bits, which attention to the window does not have: the middle region alone."""
  window = 7

  def one_call(carry, call):
    (ring, picks), (q, k, v, index_BT) = carry, call
    came = ring, jnp.int32(0), k, v, index_BT, jnp.ones_like(index_BT, bool)
    limits = {"sinks": SINKS, "window": window}
    read, picks, _ = attend_picks(
      q, picks, leaving(*came, **limits), score_leaving_ring(*came, picks.partition_BCH, **limits), index_BT == 0,
      came[-1])
    seen_B = index_BT[:, -1] + 1
    return (write_ring(*came[:-1], came[-1], seen_B, **limits), picks), read

  with jax.enable_x64(True):
    q, k, v = (jnp.asarray(np.float64(x)) for x in tokens())
    index_BT = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    start = (empty_ring(1, HEADS, SINKS + window, KEY, VALUE, k.dtype, layers=1),
             empty_picks(1, HEADS, PICKS, LAG, KEY, VALUE, k.dtype))
    for pieces in ((LENGTH,), (20, 20), (1,) * LENGTH):
      carry, found, at, program = start, [], 0, quick_jit(one_call)
      for length in pieces:
        carry, read = program(carry, cut((q, k, v, index_BT), at, at + length))
        found, at = [*found, read], at + length
      out_TQV, lse_TQ = (np.concatenate([part[n][0] for part in found]) for n in (0, 1))
      q_TQK, k_THK, v_THV = (np.asarray(x[0]) for x in (q, k, v))
      for t, query in np.ndindex(lse_TQ.shape):
        head = query // 2
        mine = float64.picked(scores(head), t, window, SINKS, PICKS)
        if mine:
          want = attention(q_TQK[t, query], k_THK[mine, head], v_THV[mine, head], np.ones(len(mine)))
          np.testing.assert_allclose(out_TQV[t, query], want[0], rtol=0, atol=1e-10)
          np.testing.assert_allclose(lse_TQ[t, query], want[1], rtol=0, atol=1e-10)
        else:
          assert not out_TQV[t, query].any() and lse_TQ[t, query] < -1e29


@pytest.mark.parametrize("read", [attend_picks, read_picks])
def test_where_there_is_no_room_the_lowest_leaves_and_of_equal_scores_the_last(read):
  score_T = np.array([1, 3, 0, 1, 2, 1, 3, 0.5])
  key_BTHK = jnp.arange(8.0)[None, :, None, None]
  left = Leaving(key_BTHK, key_BTHK, jnp.arange(8)[None, :, None] + SINKS, jnp.ones((1, 8, 1), bool))
  picks = empty_picks(1, 1, PICKS, 1, 1, 1, jnp.dtype("float32"))
  scores = Scores(jnp.asarray(score_T, jnp.float32)[None, :, None], picks.partition_BCH)
  starts_BT = jnp.arange(8)[None] == 0
  _, picks, gone = quick_jit(read)(jnp.ones((1, 8, 1, 1)), picks, left, scores, starts_BT, jnp.ones((1, 8), bool))
  assert np.asarray(picks.position_BHP).ravel().tolist() == [3, 8, 6] and picks.key_BHPK.ravel().tolist() == [1, 6, 4]
  assert np.asarray(picks.score_BHP).ravel().tolist() == [3, 3, 2]
  # none, none, none, the lowest; then of the two with 1 the later; itself; the other one; itself
  assert np.asarray(gone.position_BTH).ravel().tolist() == [-1, -1, -1, 4, 5, 7, 2, 9]
  assert np.asarray(gone.leaves_BTH).ravel().tolist() == [False] * 3 + [True] * 5


def test_attention_matching_takes_what_picks_let_go_late_one_by_one():
  """So the order in which tokens come, which its fit depends on, is that of decoding."""
  config = replace(CONFIG, far="matching", summary=SummaryConfig(span=4, slots=2, stride=2))
  fold = find_fold(config, 2)
  assert isinstance(fold, Matching) and far_block_len(fold, config, 9) == 9
  assert far_block_len(fold, replace(config, picks=0), 9) == far_block_len(find_fold(CONFIG, 2), CONFIG, 9) == 0


@pytest.mark.parametrize("windows", [(4, 3), (3,)], ids=str)
def test_windows_that_do_not_hold_two_partitions_are_refused(windows):
  with pytest.raises(ValueError, match=r"model\.local\.picks=3 with model\.local\.pick_lag=2 needs windows of at least "
                                       r"4 tokens, .* model\.local\.windows holds 3; use pick_lag=1 or less") as caught:
    check(replace(CONFIG, rungs=(3, 4), windows=windows))
  assert "\n" not in str(caught.value)
  check(replace(CONFIG, rungs=(3, 4), windows=windows, picks=0))
