"""Budgets decided partition by partition: the definition, the two targets, and what holds of every cache."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.kv_cache import empty_cache
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import check_cache, make_policy
from lattice_jax.config import CacheConfig
from tests.cache.lagkv_numpy import kept_positions, partition_scores
from tests.cache.streams import (
  HEADS,
  KEEP,
  LAG,
  LAGKV,
  LENGTH,
  MODEL,
  ROWS,
  SINKS,
  as_they_come,
  at_once,
  feed,
  fresh,
  positions_of,
  tokens,
)

MEMORY = replace(LAGKV, budget="memory")
DRIFT = replace(LAGKV, budget="drift", drift=0.5, keep=0)
BOTH = replace(DRIFT, keep=KEEP)
CONFIGS = {"memory": MEMORY, "drift": DRIFT, "both": BOTH}
FIELDS = ("key_BHSK", "value_BHSV", "position_BHS", "base_B", "length_B", "filled_B", "seen_B")
each_config = pytest.mark.parametrize("name", CONFIGS)
each_target = pytest.mark.parametrize("name", ["memory", "drift"])


@functools.cache
def uneven():
  """In some partitions a few tokens carry all that deviates, in others every token does."""
  q, k, v = (x.copy() for x in tokens())
  mean_B1HV = v.mean(1, keepdims=True)
  for first in range(SINKS, LENGTH, 3 * LAG):
    quiet = [first + offset for offset in range(LAG) if offset not in (1, 4) and first + offset < LENGTH]
    k[:, quiet] *= 0.1
    v[:, quiet] = v[:, quiet] * 0.1 + mean_B1HV * 0.9
  return q, k, v


def share(z_LK):
  deviation_L = ((z_LK - z_LK.mean(0)) ** 2).sum(1)
  return deviation_L / deviation_L.sum()


def drift_of(k_LK, v_LV, order_L):
  """D(0) … D(L) in float64."""
  share_L = (share(k_LK.astype(np.float64)) + share(v_LV.astype(np.float64))) / 2
  return np.append(np.cumsum(share_L[order_L][::-1])[::-1], 0.0)


def definition(config, row, stream):
  """Positions that each head of a row keeps, from the formulas of `cache.online`."""
  _, k, v = (x[row, :ROWS[row]] for x in stream)
  keep, saved = make_policy(config).keep, 0
  scores = [partition_scores(k[:, head], v[:, head], sinks=SINKS, lag=LAG) for head in range(HEADS)]
  picks = [[] for _ in range(HEADS)]
  for p in range(len(scores[0])):
    here = slice(SINKS + p * LAG, SINKS + (p + 1) * LAG)
    orders = [np.argsort(-scores[head][p], kind="stable") for head in range(HEADS)]
    drift = np.max([drift_of(k[here, head], v[here, head], orders[head]) for head in range(HEADS)], axis=0)
    limit = config.drift or (1 - keep / LAG) * 2 ** (-saved / keep)
    chosen = min(max(1, int((drift > limit).sum())), keep + saved)
    saved += keep - chosen
    for head in range(HEADS):
      picks[head] += sorted(here.start + orders[head][:chosen])
  rest = range(SINKS + len(scores[0]) * LAG, ROWS[row])
  return [[*range(min(SINKS, ROWS[row])), *map(int, picks[head]), *rest] for head in range(HEADS)]


@each_config
def test_what_stays_is_what_the_formulas_say(name):
  cache = at_once(CONFIGS[name], uneven())
  for row in range(len(ROWS) - 1):
    assert positions_of(cache, row).tolist() == definition(CONFIGS[name], row, uneven())
  _, k, v = uneven()
  assert positions_of(cache, 0)[0].tolist() != kept_positions(k[0, :, 0], v[0, :, 0], sinks=SINKS, lag=LAG, keep=KEEP)


@each_target
@pytest.mark.parametrize("seed", range(2))
def test_what_is_kept_does_not_depend_on_how_tokens_arrive(name, seed):
  once, streamed = at_once(CONFIGS[name]), as_they_come(CONFIGS[name], seed)
  for field in FIELDS:
    np.testing.assert_array_equal(getattr(streamed, field), getattr(once, field), err_msg=field)


@each_target
def test_a_ragged_row_is_the_row_alone(name):
  policy, together = make_policy(CONFIGS[name]), at_once(CONFIGS[name])
  for row in range(2):
    count_B = np.array(ROWS) * (np.arange(len(ROWS)) == row)
    _, alone = feed(policy, fresh(policy), np.zeros(len(ROWS), np.int64), count_B, LENGTH)
    for field in FIELDS:
      np.testing.assert_array_equal(getattr(together, field)[row], getattr(alone, field)[row], err_msg=field)


def test_memory_is_never_exceeded_and_its_bound_is_room_enough():
  small = make_policy(replace(MEMORY, call_len=1))
  cache, lengths = empty_cache(MODEL.attention, small, len(ROWS), small.num_slots(LENGTH), jnp.dtype("float32")), []
  for start in range(LENGTH):
    start_B = np.full(len(ROWS), start)
    _, cache = feed(small, cache, start_B, (start_B < ROWS).astype(np.int64), 1, uneven())
    lengths.append(cache.length_B)
  most = np.array([[small.length_after(min(start + 1, row)) for row in ROWS] for start in range(LENGTH)])
  assert (lengths <= most).all() and (lengths < most).any()
  # what is saved is spent: never more than one partition's budget waits
  assert (lengths > most - KEEP).all()
  roomy = at_once(MEMORY, uneven())
  assert cache.num_slots < roomy.num_slots
  np.testing.assert_array_equal(cache.position_BHS, roomy.position_BHS[:, :, :cache.num_slots])


def dropped_share(cache, row, stream):
  """The largest part of a partition's deviation that any head dropped."""
  _, k, v = stream
  largest = 0.0
  for head, position_S in enumerate(positions_of(cache, row)):
    for first in range(SINKS, ROWS[row] - 2 * LAG + 1, LAG):
      here = slice(first, first + LAG)
      is_dropped_L = ~np.isin(np.arange(here.start, here.stop), position_S)
      share_L = (share(k[row, here, head]) + share(v[row, here, head])) / 2
      largest = max(largest, float(share_L[is_dropped_L].sum()))
  return largest


@pytest.mark.parametrize(("policy", "targets"), [("lagkv", (0.2, 0.5)), ("random", (0.4,))])
def test_drift_stays_under_its_target_in_every_partition_and_head(policy, targets):
  lengths = []
  for target in targets:
    cache = at_once(replace(DRIFT, policy=policy, drift=target), uneven())
    assert 0 < max(dropped_share(cache, row, uneven()) for row in range(len(ROWS))) <= target + 1e-6
    lengths.append(int(cache.length_B[0]))
  assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == len(targets)


def test_equal_tokens_leave_one_of_a_partition_and_numbers_stay_finite():
  q, k, v = (np.ones_like(x) for x in tokens())
  cache = at_once(DRIFT, (q, k, v))
  assert int(cache.length_B[0]) == make_policy(replace(LAGKV, keep=1)).length_after(LENGTH)


def test_a_new_document_has_an_account_of_its_own():
  policy, zero_B = make_policy(MEMORY), np.zeros(len(ROWS), np.int64)
  cache = at_once(MEMORY, uneven())
  ended = cache.replace(document_B=cache.document_B + 1)  # the next call's document is another
  _, after = feed(policy, ended, zero_B, np.array(ROWS), LENGTH, uneven())
  for field in FIELDS:
    np.testing.assert_array_equal(getattr(after, field), getattr(cache, field), err_msg=field)


@pytest.mark.parametrize(("fields", "message"), [
  ({"policy": "h2o"}, "='h2o' does not choose within partitions; use lagkv, local, knorm, keydiff, random, every, sep"),
  ({"policy": "window", "window": WindowConfig(window=9), "keep": 0}, "policy='window' does not choose"),
  ({"keep": 0}, "needs its budget as one of"),
  ({"drift": 0.2}, r"drift=0\.2 is a target of model\.cache\.budget='drift', and the budget is 'memory'"),
  ({"budget": "drift"}, r"as model\.cache\.drift between 0 and 1, not 0\.0"),
  ({"budget": "drift", "drift": 1.0}, r"model\.cache\.drift=1\.0 must lie in \[0, 1\)"),
])
def test_budgets_without_a_target_or_a_choice_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    check_cache(replace(MEMORY, **fields))


def test_the_default_is_fixed():
  assert not make_policy(CacheConfig(policy="lagkv", keep=4)).is_online
