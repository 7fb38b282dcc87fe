"""What every policy that drops tokens has in common, and what the peers of LagKV keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lattice_jax.cache.policies.registry import COMPRESSING, POLICIES
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import make_policy
from tests.cache.streams import (
  CALL,
  HEADS,
  LAGKV,
  LENGTH,
  QUERIES,
  ROWS,
  SINKS,
  as_they_come,
  at_once,
  feed,
  fresh,
  positions_of,
  tokens,
)

WINDOW = 11
BY_PARTITION = [name for name in COMPRESSING if POLICIES[name].chooses == "partition" and name != "lagkv"]


def config_of(policy):
  return replace(LAGKV, policy=policy)


@pytest.mark.parametrize("policy", COMPRESSING)
def test_sinks_and_the_last_tokens_stay_and_all_heads_keep_as_many(policy):
  cache = as_they_come(config_of(policy), seed=4)
  for row, length in enumerate(ROWS):
    position_HS = positions_of(cache, row)
    assert position_HS.shape[1] == make_policy(config_of(policy)).length_after(length)
    assert (np.diff(position_HS, axis=1) > 0).all()
    protected = {*range(min(SINKS, length)), *range(length - (length - SINKS) % LAGKV.lag - LAGKV.lag, length)}
    for position_S in position_HS:
      assert {position for position in protected if position >= 0} <= set(position_S.tolist())


@pytest.mark.parametrize("policy", BY_PARTITION)
def test_policies_that_look_at_no_attention_do_not_mind_how_tokens_arrive(policy):
  np.testing.assert_array_equal(
    as_they_come(config_of(policy), seed=4).position_BHS, at_once(config_of(policy)).position_BHS)


@pytest.mark.parametrize("policy", ["h2o", "snapkv", *BY_PARTITION])
def test_a_ragged_row_is_the_row_alone(policy):
  config = config_of(policy)
  together, alone = fresh(make_policy(config)), fresh(make_policy(config))
  for start in range(0, LENGTH, CALL):
    start_B = np.full(len(ROWS), start)
    count_B = np.clip(np.array(ROWS) - start, 0, CALL)
    _, together = feed(make_policy(config), together, start_B, count_B, CALL)
    _, alone = feed(make_policy(config), alone, start_B, count_B * (np.arange(len(ROWS)) == 1), CALL)
  for name in ("key_BHSK", "position_BHS", "mass_BHS", "mark_BHS", "length_B"):
    np.testing.assert_array_equal(getattr(together, name)[1], getattr(alone, name)[1], err_msg=name)


def attention(row):
  """Weights [H·G, T, S] of a row's tokens among themselves."""
  q, k, _ = tokens()
  length = ROWS[row]
  q_TQK, k_SHK = q[row, :length].astype(np.float64), k[row, :length].astype(np.float64)
  score = np.einsum("tqk,sqk->qts", q_TQK, np.repeat(k_SHK, QUERIES // HEADS, axis=1)) * q.shape[-1] ** -0.5
  weight = np.exp(np.where(np.tri(length, dtype=bool), score, -np.inf))
  return weight / weight.sum(-1, keepdims=True)


def by_group(weight_QS):
  return weight_QS.reshape(HEADS, QUERIES // HEADS, -1).sum(1)


def pooled(weight_HS):
  """Three neighbours; as `LAGKV.snapkv.pool` says."""
  padded = np.pad(weight_HS, ((0, 0), (1, 1)))
  return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


WANTED = {
  "h2o": lambda weight: by_group(weight.sum(1)),
  "snapkv": lambda weight: pooled(by_group(weight[:, -LAGKV.snapkv.observe:].sum(1))),
  "tova": lambda weight: np.tile(weight[:, -1].mean(0), (HEADS, 1)),
}


@pytest.mark.parametrize("policy", WANTED)
def test_peers_that_look_at_attention_keep_the_best_of_all(policy):
  cache = at_once(config_of(policy))
  for row, length in enumerate(ROWS):
    score_HS, position_HS = WANTED[policy](attention(row)), positions_of(cache, row)
    first_of_window = length - (length - SINKS) % LAGKV.lag - LAGKV.lag
    for head in range(HEADS):
      chosen = [p for p in position_HS[head] if SINKS <= p < first_of_window]
      best = SINKS + np.argsort(-score_HS[head, SINKS:first_of_window])[:len(chosen)]
      assert chosen == sorted(best.tolist())


class OneByOne:
  """One row under a peer that looks at attention, token by token in float64: what is dropped is never seen again."""

  def __init__(self):
    self.kept = [[] for _ in range(HEADS)]
    self.mass = np.zeros((HEADS, LENGTH))
    self.base = SINKS

  def read(self, policy, row, place):
    self.kept = [[*kept_S, place] for kept_S in self.kept]
    for head, weight_GS in enumerate(self.weights(row, place)):
      self.mass[head, self.kept[head]] += weight_GS.sum(0)
    due = (len(self.kept[0]) - self.base) // LAGKV.lag - 1
    if due > 0:
      self.drop(self.scores(policy, row, place), due)

  def weights(self, row, query):
    """Of the heads that share each key, over the slots; none of what came after the query."""
    q, k, _ = (x[row].astype(np.float64) for x in tokens())
    for head, kept_S in enumerate(self.kept):
      group = q[query].reshape(HEADS, -1, q.shape[-1])[head]
      score_GS = group @ k[kept_S, head].T * q.shape[-1] ** -0.5
      weight_GS = np.where(np.array(kept_S) <= query, np.exp(score_GS), 0.0)
      yield weight_GS / weight_GS.sum(-1, keepdims=True)

  def scores(self, policy, row, place):
    if policy == "h2o":
      return [self.mass[head, kept_S] for head, kept_S in enumerate(self.kept)]
    if policy == "tova":
      return [np.concatenate(list(self.weights(row, place))).mean(0)] * HEADS
    last = range(place + 1 - LAGKV.snapkv.observe, place + 1)
    return pooled(sum(np.stack([weight_GS.sum(0) for weight_GS in self.weights(row, query)]) for query in last))

  def drop(self, score_HS, due):
    end, places = self.base + due * LAGKV.lag, self.base - SINKS + due * LAGKV.keep
    for head, kept_S in enumerate(self.kept):
      best = SINKS + np.argsort(-score_HS[head][SINKS:end], kind="stable")[:places]
      self.kept[head] = [kept_S[slot] for slot in (*range(SINKS), *sorted(best), *range(end, len(kept_S)))]
    self.base += due * LAGKV.keep


@pytest.mark.parametrize("policy", WANTED)
def test_peers_that_look_at_attention_go_on_from_what_they_kept(policy):
  config, rows = config_of(policy), [OneByOne() for _ in ROWS]
  cache = fresh(make_policy(config))
  for place in range(LENGTH):
    start_B = np.full(len(ROWS), place)
    _, cache = feed(make_policy(config), cache, start_B, (start_B < ROWS).astype(np.int64), CALL)
    for row, length in enumerate(ROWS):
      if place < length:
        rows[row].read(policy, row, place)
  for row, one in enumerate(rows):
    np.testing.assert_array_equal(positions_of(cache, row), one.kept)
  once = at_once(config)
  assert (positions_of(once, 0) != positions_of(cache, 0)).any()


def test_window_keeps_sinks_and_the_last_tokens_wherever_they_lie():
  config = replace(LAGKV, policy="window", window=WindowConfig(window=WINDOW), keep=0)
  once, streamed = at_once(config), as_they_come(config, seed=5)
  np.testing.assert_array_equal(streamed.position_BHS, once.position_BHS)
  for row, length in enumerate(ROWS):
    want = {*range(min(SINKS, length)), *range(max(0, length - WINDOW), length)}
    assert set(positions_of(once, row)[0].tolist()) == want
    assert int(once.length_B[row]) == make_policy(config).length_after(length) == len(want)
