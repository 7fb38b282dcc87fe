"""What every policy that drops tokens has in common, and what the peers of LagKV keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lattice_jax.cache import POLICIES, make_policy
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
  kept,
  tokens,
)

DROPPING = [policy for policy in POLICIES if policy not in ("full", "window")]
WINDOW = 11


def config_of(policy):
  return replace(LAGKV, policy=policy)


@pytest.mark.parametrize("policy", DROPPING)
def test_sinks_and_the_last_tokens_stay_and_all_heads_keep_as_many(policy):
  cache = as_they_come(config_of(policy), seed=4)
  for row, length in enumerate(ROWS):
    position_HS = kept(cache, row)
    assert position_HS.shape[1] == make_policy(config_of(policy)).kept_length(length)
    assert (np.diff(position_HS, axis=1) > 0).all()
    protected = {*range(min(SINKS, length)), *range(length - (length - SINKS) % LAGKV.lag - LAGKV.lag, length)}
    for position_S in position_HS:
      assert {position for position in protected if position >= 0} <= set(position_S.tolist())


@pytest.mark.parametrize("policy", ["local", "knorm", "keydiff", "random"])
def test_policies_that_look_at_keys_alone_do_not_mind_how_tokens_arrive(policy):
  np.testing.assert_array_equal(
    as_they_come(config_of(policy), seed=4).position_BHS, at_once(config_of(policy)).position_BHS)


@pytest.mark.parametrize("policy", ["h2o", "snapkv"])
def test_a_ragged_row_is_the_row_alone(policy):
  config = config_of(policy)
  together, alone = fresh(make_policy(config)), fresh(make_policy(config))
  for start in range(0, LENGTH, CALL):
    start_B = np.full(len(ROWS), start)
    count_B = np.clip(np.array(ROWS) - start, 0, CALL)
    _, together = feed(make_policy(config), together, start_B, count_B, CALL)
    _, alone = feed(make_policy(config), alone, start_B, count_B * (np.arange(len(ROWS)) == 1), CALL)
  for name in ("key_BHSK", "position_BHS", "mass_BHS", "length_B"):
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
  """Three neighbours; as `LAGKV.pool` says."""
  padded = np.pad(weight_HS, ((0, 0), (1, 1)))
  return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


WANTED = {
  "h2o": lambda weight: by_group(weight.sum(1)),
  "snapkv": lambda weight: pooled(by_group(weight[:, -LAGKV.observe:].sum(1))),
  "tova": lambda weight: np.tile(weight[:, -1].mean(0), (HEADS, 1)),
}


@pytest.mark.parametrize("policy", WANTED)
def test_peers_that_look_at_attention_keep_the_best_of_all(policy):
  cache = at_once(config_of(policy))
  for row, length in enumerate(ROWS):
    score_HS, position_HS = WANTED[policy](attention(row)), kept(cache, row)
    first_of_window = length - (length - SINKS) % LAGKV.lag - LAGKV.lag
    for head in range(HEADS):
      chosen = [p for p in position_HS[head] if SINKS <= p < first_of_window]
      best = SINKS + np.argsort(-score_HS[head, SINKS:first_of_window])[:len(chosen)]
      assert chosen == sorted(best.tolist())


def test_window_keeps_sinks_and_the_last_tokens_wherever_they_lie():
  config = replace(LAGKV, policy="window", window=WINDOW, keep=0)
  once, streamed = at_once(config), as_they_come(config, seed=5)
  np.testing.assert_array_equal(streamed.position_BHS, once.position_BHS)
  for row, length in enumerate(ROWS):
    want = {*range(min(SINKS, length)), *range(max(0, length - WINDOW), length)}
    assert set(kept(once, row)[0].tolist()) == want
    assert int(once.length_B[row]) == make_policy(config).kept_length(length) == len(want)
