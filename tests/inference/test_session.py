"""A session is one text read in pieces: whatever the pieces, its forks apart, and under a cache that drops tokens."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lattice_jax.cache.convert import uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.inference.session import Session
from lattice_jax.marks import ENDS, Marker
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox
from tests.cache.sep_numpy import kept_positions
from tests.inference.test_generate import compilations

LAGKV = CacheConfig(policy="lagkv", sinks=1, lag=4, keep=1, call_len=1)
MODEL = uncompressed(ModelConfig(
  vocab=40, dim=16, layers=1, pattern=("attention",), block="mlp", mlp_dim=8, cache=LAGKV,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4)))
ROWS = np.random.default_rng(0).integers(3, 40, (2, 24)).astype(np.int32)


@functools.lru_cache
def make_variables():
  return jax.jit(lambda: unbox(init_variables(MODEL, jax.random.key(0))))()


def read(length):
  session = Session(MODEL, make_variables(), batch=2, max_len=32, chunk_len=8)
  session.read(list(ROWS[:, :length]))
  return session


def assert_same(one, other):
  np.testing.assert_allclose(one.state.logits_BA, other.state.logits_BA, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(one.state.position_B, other.state.position_B)


def test_pieces_and_tokens_read_what_one_call_reads():
  whole, pieces = read(24), read(3)
  pieces.read(list(ROWS[:, 3:20]))
  for token_B in ROWS[:, 20:].T:
    pieces.step(token_B)
  assert_same(pieces, whole)


def test_fewer_rows_are_read_as_if_the_last_stood_in_the_others():
  session = Session(MODEL, make_variables(), batch=2, max_len=32, chunk_len=8)
  session.read([ROWS[0, :9]])
  np.testing.assert_array_equal(session.state.logits_BA[0], session.state.logits_BA[1])
  np.testing.assert_allclose(session.state.logits_BA[0], read(9).state.logits_BA[0], rtol=1e-5)


def test_a_fork_goes_its_own_way_and_each_call_gives_its_own_state_away():
  session = read(8)
  fork, before = session.fork(), session.state
  session.step(ROWS[:, 9])
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.memory))
  fork.step(ROWS[:, 8])
  assert_same(fork, read(9))
  assert np.abs(fork.state.logits_BA - session.state.logits_BA).max() > 1e-3


@pytest.mark.parametrize("call_len", [0, 8], ids=["compressed", "streamed"])
def test_separators_stay_by_the_marks_of_what_was_read(call_len):
  sep = CacheConfig(policy="sep", sinks=1, lag=4, keep=2, call_len=call_len)
  marker = Marker(class_A=(np.arange(40) % 3 == 0).astype(np.uint8) * ENDS)
  model = dataclasses.replace(MODEL, cache=sep)
  session = Session(
    model if call_len else uncompressed(model), make_variables(), batch=2, max_len=32, chunk_len=8, marker=marker)
  session.read([ROWS[0, :20], ROWS[1, :9]])
  if not call_len:
    session = session.compress(dataclasses.replace(sep, call_len=1))
  for place in range(4):
    session.step(ROWS[:, 20 + place])
  (cache,) = session.caches
  for row, text in enumerate((ROWS[0], [*ROWS[1, :9], *ROWS[1, 20:24]])):
    want = kept_positions([token % 3 == 0 for token in text], sinks=1, lag=4, keep=2)
    assert cache.position_BHS[0, row, 0, :len(want)].tolist() == want
    assert int(cache.length_B[0, row]) == len(want)


def test_a_session_that_nothing_marks_is_refused_for_a_cache_of_separators():
  for model in (dataclasses.replace(MODEL, cache=CacheConfig(policy="sep", sinks=1, lag=4, keep=2)),
                uncompressed(MODEL, [CacheConfig(policy="sep", keep=2)])):
    with pytest.raises(ValueError, match=r"and nothing marks them: .* needs a Session with a marker"):
      Session(model, make_variables(), batch=2, max_len=32)


def test_a_compressed_session_keeps_fewer_tokens_and_the_other_goes_on_with_all():
  session = read(20)
  compressed = session.compress(LAGKV)
  session.step(ROWS[:, 20])
  assert_same(session, read(21))
  kept = make_policy(LAGKV).length_after(20)
  assert [cache.length_B.tolist() for cache in compressed.caches] == [[[kept, kept]]] and kept < 20
  assert compressed.caches[0].num_slots < session.caches[0].num_slots
  compressed.step(ROWS[:, 20])
  assert compressed.state.position_B.tolist() == [21, 21]
  pieces = read(20).compress(LAGKV)
  pieces.read(list(ROWS[:, 20:21]))
  assert_same(pieces, compressed)


def test_what_was_compiled_serves_every_further_session():
  def work():
    session = read(20)
    for other in (session.fork(), session.compress(LAGKV)):
      for token_B in ROWS[:, 20:].T:
        other.step(token_B)

  work()
  with compilations() as compiled:
    work()
  assert compiled == []


def test_a_cache_that_needs_records_which_were_not_made_is_refused():
  with pytest.raises(ValueError, match="needs the attention that each token received, which was not recorded"):
    read(8).compress(dataclasses.replace(LAGKV, policy="h2o"))
