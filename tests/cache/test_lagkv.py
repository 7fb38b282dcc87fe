"""LagKV keeps what its definition keeps, however tokens arrive."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.policies import lagkv
from lattice_jax.cache.policies.views import Partitions
from lattice_jax.cache.policy import make_policy
from tests.cache.lagkv_numpy import kept_positions, partition_scores
from tests.cache.streams import (
  CALL,
  HEADS,
  KEEP,
  KEY,
  LAG,
  LAGKV,
  LENGTH,
  ROWS,
  SINKS,
  VALUE,
  as_they_come,
  at_once,
  feed,
  fresh,
  positions_of,
  tokens,
)


def score(k_BTHK, v_BTHV, own=LAGKV.lagkv):
  """Scores of the partitions of whole rows, [B, H, N, L]."""
  def split(x_BTH):
    num = (x_BTH.shape[1] - SINKS) // LAG
    x_BNLH = x_BTH[:, SINKS:SINKS + num * LAG].reshape(x_BTH.shape[0], num, LAG, *x_BTH.shape[2:])
    return jnp.moveaxis(jnp.asarray(x_BNLH), 3, 1)

  key_BHNLK = split(k_BTHK)
  return np.asarray(lagkv.score(own, Partitions(
    key_BHNLK=key_BHNLK, value_BHNLV=split(v_BTHV), position_BHNL=jnp.zeros(key_BHNLK.shape[:4], jnp.int32),
    layer=jnp.int32(0))))


def test_scores_and_picks_are_those_of_the_definition():
  _, k, v = tokens()
  got, cache = score(k, v), at_once(LAGKV)
  for row, length in enumerate(ROWS):
    for head in range(HEADS):
      one = k[row, :length, head], v[row, :length, head]
      for p, want_L in enumerate(partition_scores(*one, sinks=SINKS, lag=LAG)):
        np.testing.assert_allclose(got[row, head, p], want_L, atol=1e-6)
      assert positions_of(cache, row)[head].tolist() == kept_positions(*one, sinks=SINKS, lag=LAG, keep=KEEP)


def test_the_divisor_of_the_spread_and_the_values_weight_count():
  _, k, v = tokens()
  got = score(k, v, lagkv.SpreadConfig(value_weight=0.25))
  want = partition_scores(k[0, :, 0], v[0, :, 0], sinks=SINKS, lag=LAG, value_weight=0.25)
  np.testing.assert_allclose(got[0, 0, :len(want)], want, atol=1e-6)
  # with divisor d instead of d − 1 the softmax would be another
  flat = [scale * np.sqrt((KEY - 1) / KEY) for scale in want]
  assert np.abs(got[0, 0, :len(want)] - flat).max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_does_not_depend_on_how_tokens_arrive(seed):
  once, streamed = at_once(LAGKV), as_they_come(LAGKV, seed)
  for name in ("key_BHSK", "value_BHSV", "position_BHS", "base_B", "length_B", "filled_B", "seen_B"):
    np.testing.assert_array_equal(getattr(streamed, name), getattr(once, name), err_msg=name)


def test_lengths_are_the_closed_form_at_every_step():
  config = replace(LAGKV, sinks=4, lag=16, keep=4)
  policy = make_policy(config)
  cache, lengths = fresh(policy), []
  for start in range(LENGTH):
    start_B = np.full(len(ROWS), start)
    _, cache = feed(policy, cache, start_B, (start_B < ROWS).astype(np.int64), CALL)
    lengths.append(int(cache.length_B[0]))
    assert cache.length_B.tolist() == [policy.length_after(min(start + 1, row)) for row in ROWS]
  # the first compression at S + 2L = 36 tokens leaves 24; from there one more a token, to 39 and back to 28, and again
  assert lengths[35:53] == [*range(24, 40), 28, 29]
  assert max(lengths) == 43 and lengths[67] == 32


def test_channels_offset_scale_and_order_do_not_count():
  _, k, v = tokens()
  rng = np.random.default_rng(1)
  plain = score(k, v)
  scale, offset, order = rng.uniform(0.5, 4, KEY), rng.normal(size=KEY), rng.permutation(VALUE)
  changed = score((k * scale + offset).astype(np.float32), v[..., order])
  np.testing.assert_allclose(changed, plain, atol=1e-5)


def test_tokens_of_a_partition_carry_their_scores_and_what_follows_the_next_does_not_count():
  _, k, v = tokens()
  plain, here = score(k, v), slice(SINKS, SINKS + LAG)
  k, v = k.copy(), v.copy()
  k[:, here], v[:, here] = k[:, here][:, ::-1], v[:, here][:, ::-1]
  k[:, SINKS + 2 * LAG:] += 5 * np.sin(np.arange(LENGTH - SINKS - 2 * LAG))[:, None, None]
  np.testing.assert_allclose(score(k, v)[:, :, 0], plain[:, :, 0, ::-1], atol=1e-6)


def test_constant_channels_have_finite_scores_and_heads_choose_alone():
  q, k, v = tokens()
  k = k.copy()
  k[:, :, 1] = 0.0
  k[:, :, 1, 2] = np.where(np.arange(LENGTH) == SINKS + 1, 1.0, 0.0)
  assert np.isfinite(score(k, v)).all()
  changed = at_once(LAGKV, (q + 1, k, v))
  for row in range(len(ROWS)):
    np.testing.assert_array_equal(positions_of(changed, row)[0], positions_of(at_once(LAGKV), row)[0])


def test_keeping_all_of_a_partition_keeps_everything():
  cache = at_once(replace(LAGKV, keep=LAG))
  for row, length in enumerate(ROWS):
    np.testing.assert_array_equal(positions_of(cache, row), np.tile(np.arange(length), (HEADS, 1)))
