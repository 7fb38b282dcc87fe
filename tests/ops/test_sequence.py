"""The door through which ops go where tokens lie on several devices; what memories do behind it, law L14 says."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lattice_jax.ops.attention import MASKED, Order, attend
from lattice_jax.ops.sequence import (
  attend_some,
  each_alone,
  prefix_scan,
  relay,
  split_tokens,
  with_halo,
  with_ring_of_keys,
  with_those_before,
)

MESH = {"data": 2, "seq": 4}


def on_mesh(function, *args, **shape):
  mesh = jax.make_mesh(tuple((shape or MESH).values()), tuple(shape or MESH), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    return jax.jit(function)(*args)


def running_sum(constants, tokens, state):
  out_BT = state[:, None] + jnp.cumsum(tokens, 1)
  return out_BT, out_BT[:, -1], {"tokens": jnp.float32(tokens.size), "total": tokens.sum()}


@pytest.mark.parametrize("rows", [4, 6, 3], ids=["even", "three-a-device", "rows-that-the-mesh-does-not-split"])
def test_sums_are_those_of_all_rows_and_tokens(rows):
  tokens, state = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8), np.arange(rows, dtype=np.float32)
  got = on_mesh(lambda *args: relay(running_sum, (), *args), tokens, state)
  jax.tree.map(np.testing.assert_array_equal, got, running_sum((), tokens, state))


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_a_prefix_scan_applies_in_order_what_shards_do(shards):
  """Whole numbers, of which no rounding hides another order: x ← a x + b of every shard, one after the other."""
  update_T = np.random.default_rng(0).integers(1, 4, (shards, 2)).astype(np.float32)
  first = np.array([[5.0]], np.float32)

  def body(shard, constants, tokens, state):
    own = tokens[:, 0, 0], tokens[:, 0, 1]
    def then(earlier, later):
      return earlier[0] * later[0], later[0] * earlier[1] + later[1]
    before, after = prefix_scan(then, shard, (jnp.ones(1), state[:, 0]), own)
    return jnp.stack([before[1], after[1]], -1)[:, None], state, ()

  got_TS = on_mesh(lambda *args: split_tokens(body, (), *args)[0], update_T[None], first, data=1, seq=shards)[0]
  x = 5.0
  for (a, b), (before, after) in zip(update_T, got_TS, strict=True):
    assert before == x
    x = a * x + b
    assert after == x


@pytest.mark.parametrize("wanted", [
  range(0), (0, 5, 17, 18, 43), range(22, 44), range(44)], ids=["none", "few", "all-of-two-shards", "all"])
def test_tokens_that_are_wanted_are_attended_to_as_if_all_lay_together(wanted):
  """Eleven tokens on each of four shards, of which a round takes two."""
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(2, 44, 1, 3)).astype(np.float32) for _ in range(3))
  is_wanted_BT = np.zeros((2, 44), bool)
  is_wanted_BT[0, list(wanted)] = True
  weight_BTQV = rng.normal(size=(2, 44, 1, 3)).astype(np.float32)

  def attend_at(q_BTQK, query_T, keys, key_BS, others):
    query = Order(jnp.broadcast_to(query_T, q_BTQK.shape[:2]), jnp.zeros(q_BTQK.shape[:2], int))
    return attend(q_BTQK, *keys, query, Order(key_BS, jnp.where(key_BS < 0, -1, 0)))

  def score(read, tensors):
    out, lse = read(*tensors)
    return (out * weight_BTQV).sum() + jnp.where(lse > MASKED / 2, lse, 0).sum(), (out, lse)

  def whole(q, k, v):
    return attend_at(q, np.arange(44), (k, v), np.where(is_wanted_BT, np.arange(44), -1), None)

  def body(shard, constants, tokens, state):
    return attend_some(attend_at, shard, tokens[0], tokens[1:3], tokens[3], None), state, ()

  def on_shards(q, k, v):
    return split_tokens(body, (), (q, k, v, is_wanted_BT), ())[0]

  want, got = (
    on_mesh(jax.value_and_grad(functools.partial(score, read), has_aux=True), (q, k, v)) for read in (whole, on_shards))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), got, want)


@pytest.mark.parametrize(("count", "got"), [(0, 0), (2, 2), (3, 3), (7, 7), (20, 9)])
def test_tokens_before_a_shard_come_from_as_many_shards_as_it_takes(count, got):
  """Three tokens on each of four shards; nothing is before the first."""
  def body(shard, constants, tokens, state):
    behind, place_S = with_those_before(count, shard, tokens)
    return jnp.stack([behind, jnp.broadcast_to(place_S, behind.shape)], 2)[:, None], state, ()

  tokens = np.arange(1, 13)[None]
  found = on_mesh(lambda x: split_tokens(body, (), x, ())[0], tokens, data=1, seq=4)
  place_NS = 3 * np.arange(4)[:, None] - got + np.arange(got + 3)
  np.testing.assert_array_equal(found[0], np.stack([np.where(place_NS < 0, 0, place_NS + 1), place_NS], 2))


def test_a_ring_needs_halves():
  x = np.zeros((2, 12, 1), np.float32)
  with pytest.raises(ValueError, match=r"a call of 12 over mesh\.seq=4 devices gives each 3; give a multiple of 8"):
    on_mesh(lambda x: with_ring_of_keys(lambda *args: (x, x), x, x, (), ()), x)


def test_a_mesh_that_splits_more_than_rows_and_tokens_gives_the_same():
  tokens, state = np.arange(16, dtype=np.float32).reshape(2, 8), np.zeros(2, np.float32)
  got = on_mesh(lambda *args: relay(running_sum, (), *args), tokens, state, seq=4, model=2)
  jax.tree.map(np.testing.assert_array_equal, got, running_sum((), tokens, state))


def test_no_shard_asks_for_its_own_number():
  """XLA refuses a program that does where the mesh splits heads as well, unless it happens to simplify the question."""
  def call(x):
    return relay(running_sum, (), x, x[:, 0]), with_halo(running_sum, (), x, x > 0, x[:, 0], reach=1, name="reach")
  with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "seq", "model"), axis_types=(AxisType.Auto,) * 3)):
    program = jax.jit(call).lower(np.zeros((2, 8), np.float32)).as_text()
  assert "manual_computation" in program and "partition_id" not in program


def test_a_call_of_one_token_is_whole():
  assert on_mesh(lambda x: each_alone(lambda _, x: x + x.shape[1], (), x), np.zeros((2, 1)))[0, 0] == 1
  assert on_mesh(lambda x: each_alone(lambda _, x: x + x.shape[1], (), x), np.zeros((2, 8)))[0, 0] == 2


def test_tokens_that_cannot_be_split_are_refused():
  with pytest.raises(ValueError, match=r"a call of 6 tokens cannot be split over mesh\.seq=4 devices"):
    on_mesh(lambda *args: relay(running_sum, (), *args), np.zeros((2, 6)), np.zeros(2))


def test_a_stretch_shorter_than_the_reach_is_refused():
  with pytest.raises(ValueError, match=r"a filter reaches back 3 tokens, and a call of 8 tokens .* gives each 2; use"):
    on_mesh(
      lambda x: with_halo(running_sum, (), x, x == 0, x[:, 0], reach=3, name="a filter"), np.zeros((2, 8), np.float32))
