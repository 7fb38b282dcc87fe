"""Attention under a policy: reads what is kept as if the rest were masked; nothing changes before it is dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lattice_jax.cache.policies.registry import COMPRESSING, POLICIES
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig
from tests.cache.streams import (
  CALL,
  HEADS,
  LAG,
  LAGKV,
  LENGTH,
  QUERIES,
  ROWS,
  SINKS,
  at_once,
  feed,
  fresh,
  positions_of,
  tokens,
)

FIRST = SINKS + 2 * LAG  # tokens at which the first partition is compressed


def test_attention_to_kept_slots_is_full_attention_with_the_dropped_keys_masked():
  cache, (q, k, v) = at_once(LAGKV), tokens(1)
  rows = np.arange(len(ROWS))
  out, _ = feed(make_policy(LAGKV), cache, np.zeros(len(ROWS), np.int64), np.ones(len(ROWS), np.int64), CALL, (q, k, v))
  _, k_past, v_past = tokens()
  for row in rows:
    for query in range(QUERIES):
      head = query // (QUERIES // HEADS)
      is_kept_T = np.isin(np.arange(ROWS[row] + 1), [*positions_of(cache, row)[head], ROWS[row]])
      key_TK, value_TV = (
        np.concatenate([past[row, :ROWS[row], head], new[row, :1, head]]) for past, new in ((k_past, k), (v_past, v)))
      score_T = np.where(is_kept_T, key_TK @ q[row, 0, query] * q.shape[-1] ** -0.5, -np.inf)
      weight_T = np.exp(score_T - score_T.max())
      np.testing.assert_allclose(out[row, 0, query], weight_T @ value_TV / weight_T.sum(), rtol=2e-5, atol=2e-5)


def test_nothing_changes_until_the_step_after_the_first_compression():
  def run(config):
    policy = make_policy(config)
    cache, outputs, lengths = fresh(policy), [], []
    for start in range(FIRST + 1):
      start_B = np.full(len(ROWS), start)
      out, cache = feed(policy, cache, start_B, np.ones(len(ROWS), np.int64), CALL)
      outputs.append(out[:, 0])
      lengths.append(cache.length_B.tolist())
    return np.stack(outputs), lengths

  (got, got_lengths), (want, _) = run(LAGKV), run(CacheConfig())
  np.testing.assert_array_equal(got[:FIRST], want[:FIRST])
  assert got_lengths[FIRST - 2] == [FIRST - 1] * len(ROWS)
  assert got_lengths[FIRST - 1] == [SINKS + LAGKV.keep + LAG] * len(ROWS)
  assert (got[FIRST] != want[FIRST]).any()


@pytest.mark.parametrize("name", [name for name in COMPRESSING if POLICIES[name].chooses == "partition"])
def test_a_document_that_ends_leaves_nothing_behind(name):
  config = replace(LAGKV, policy=name)
  policy, cache = make_policy(config), at_once(config)
  ended = cache.replace(document_B=cache.document_B + 1)  # the next call's document is another
  count_B = np.array([5, 0, 9, 3])
  zero_B = np.zeros(len(ROWS), np.int64)
  _, after = feed(policy, ended, zero_B, count_B, CALL)
  _, new = feed(policy, fresh(policy), zero_B, count_B, CALL)
  for row in (0, 2, 3):
    for field in ("key_BHSK", "value_BHSV", "position_BHS", "base_B", "length_B", "filled_B", "seen_B", "mass_BHS",
                  "mark_BHS"):
      np.testing.assert_array_equal(getattr(after, field)[row], getattr(new, field)[row], err_msg=field)
  np.testing.assert_array_equal(after.key_BHSK[1], cache.key_BHSK[1])


def test_tokens_beyond_the_room_are_lost_and_the_rest_stays():
  policy = make_policy(replace(LAGKV, policy="full", keep=0))
  _, cache = feed(policy, fresh(policy), np.zeros(4, np.int64), np.array(ROWS), LENGTH)
  _, after = feed(policy, cache, np.array(ROWS), np.full(4, CALL), CALL)
  assert after.length_B.tolist() == [min(LENGTH, row + CALL) for row in ROWS]
  np.testing.assert_array_equal(after.key_BHSK[0], cache.key_BHSK[0])
