"""LagKV inside the open segment: what stays, what is read, and the room that it takes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import lattice_jax as lj
from lattice_jax.memories.anchor.config import AnchorConfig, check
from lattice_jax.memories.anchor.open_segment import open_slots
from lattice_jax.memories.anchor.state import empty_cache
from lattice_jax.ops.documents import EMPTY
from tests.memories.anchor.test_op import HEADS, KEY, VALUE, marks, step, tokens
from tests.thorough import further

LENGTH, LAG, KEEP = 42, 4, 1
CONFIG = AnchorConfig(keep_bos=False, max_segment=64, open_lag=LAG, open_keep=KEEP)
ANCHORS = (2, 19)


def start(config=CONFIG):
  return empty_cache(config, 1, LENGTH, heads=HEADS, key_dim=KEY, value_dim=VALUE, dtype=jnp.dtype("float32"))


def read(q, k, v, cuts, config=CONFIG):
  """The outputs of all calls, and the state after each."""
  marks_BT, state, outs, states = marks(np.isin(np.arange(LENGTH), ANCHORS)), start(config), [], []
  for first, stop in itertools.pairwise(cuts):
    here = slice(first, stop)
    out, state = step(q[:, here], k[:, here], v[:, here], state, marks=marks_BT[:, here], config=config, impl="xla")
    outs.append(out)
    states.append(state)
  return np.concatenate(outs, axis=1), states


def kept(k, v, first, stop):
  """(keys, values, places) of what LagKV keeps of these tokens, as a document of their own."""
  k, v, place_BSH = lj.compress_kv(k[:, first:stop], v[:, first:stop], f"lagkv:lag={LAG},keep={KEEP},sinks=0")
  return np.asarray(k)[0], np.asarray(v)[0], np.asarray(place_BSH)[0] + first


@pytest.mark.parametrize("cuts", [
  range(LENGTH + 1), *further(((0, 12, 24, 25, 37, *range(38, LENGTH + 1)),), ((0, LENGTH),))], ids=str)
def test_the_open_segment_keeps_what_lagkv_keeps_of_it_however_it_arrives(cuts):
  q, k, v = tokens(LENGTH)
  _, states = read(q, k, v, tuple(cuts))
  want_k, want_v, place_SH = kept(k, v, ANCHORS[-1] + 1, LENGTH)
  region, num = states[-1].open, len(place_SH)
  assert num == 4 * KEEP + LAG + 2 == states[-1].open_len_B[0], "of five partitions and two tokens"
  np.testing.assert_array_equal(np.asarray(region.position_BHS)[0, :, :num].T, place_SH)
  np.testing.assert_array_equal(np.asarray(region.key_BHSK)[0, :, :num].swapaxes(0, 1), want_k)
  np.testing.assert_array_equal(np.asarray(region.value_BHSV)[0, :, :num].swapaxes(0, 1), want_v)
  assert (np.asarray(region.position_BHS)[0, :, num:] == EMPTY).all()
  assert not np.asarray(region.key_BHSK)[0, :, num:].any(), "what was dropped is still there"
  assert len({tuple(places) for places in place_SH.T}) > 1, "heads keep the same tokens: the case shows little"


def test_a_token_reads_anchors_what_is_kept_and_itself():
  q, k, v = tokens(LENGTH)
  out, _ = read(q, k, v, range(LENGTH + 1))
  last = LENGTH - 1
  kept_k, kept_v, _ = kept(k, v, ANCHORS[-1] + 1, last)
  k64, v64 = np.asarray(k, np.float64)[0], np.asarray(v, np.float64)[0]
  others = [*ANCHORS, last]
  seen_k, seen_v = np.concatenate([k64[others], kept_k]), np.concatenate([v64[others], kept_v])
  group = q.shape[2] // HEADS
  for head in range(q.shape[2]):
    score_S = seen_k[:, head // group] @ np.asarray(q, np.float64)[0, last, head] / KEY ** 0.5
    weight_S = np.exp(score_S - score_S.max())
    want_V = weight_S / weight_S.sum() @ seen_v[:, head // group]
    np.testing.assert_allclose(out[0, last, head], want_V, rtol=1e-5, atol=1e-6)


def test_nothing_changes_while_nothing_is_due():
  q, k, v = tokens(LENGTH)
  out, _ = read(q, k, v, range(LENGTH + 1))
  whole, _ = read(q, k, v, range(LENGTH + 1), replace(CONFIG, open_lag=0, open_keep=0))
  difference_T = np.abs(out - whole)[0].max((1, 2))
  first_due = ANCHORS[0] + 1 + 2 * LAG
  short = [t for t in range(LENGTH) if not any(a < t - 2 * LAG + 1 <= t and t > a + 2 * LAG for a in ANCHORS)]
  assert not difference_T[:first_due].any() and difference_T[first_due] > 1e-4
  assert not difference_T[[t for t in short if ANCHORS[1] < t]].any()


def test_the_room_is_that_of_the_compressed_segment():
  config = replace(CONFIG, open_call_len=3)
  q, k, v = tokens(LENGTH)
  cuts = range(0, LENGTH + 1, 3)
  state = start(config)
  assert state.open.key_BHSK.shape[2] == open_slots(config, LENGTH) < start().open.key_BHSK.shape[2] == LENGTH
  small, _ = read(q, k, v, cuts, config)
  np.testing.assert_allclose(small, read(q, k, v, cuts)[0], rtol=0, atol=1e-6)
  with pytest.raises(ValueError, match=r"a call of 4 tokens is longer than model\.anchor\.open_call_len=3"):
    read(q, k, v, (0, 4), config)


@pytest.mark.parametrize(("change", "sentence"), [
  ({"open_lag": 4, "open_keep": 0}, "use an open_keep from 1 to 3"),
  ({"open_lag": 4, "open_keep": 4}, "use an open_keep from 1 to 3"),
  ({"open_lag": 0, "open_keep": 2}, "open_keep=2 means nothing without model.anchor.open_lag"),
  ({"open_lag": 0, "open_keep": 0, "open_call_len": 2}, "open_call_len=2 means nothing without model.anchor.open_lag"),
])
def test_fields_that_contradict_one_another_are_refused(change, sentence):
  with pytest.raises(ValueError, match=sentence):
    check(replace(CONFIG, **change))
