"""Softmax attention: the blockwise form against the definition, and the exact merge of partial results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.attention import MASKED, Order, attend, attend_itself, merge
from lattice_jax.ops.attention.keys import block_reach
from lattice_jax.ops.documents import EMPTY, document_runs
from tests.contract.harness import quick_jit

BATCH, LENGTH, HEADS, QUERIES, KEY, VALUE = 2, 37, 2, 4, 8, 6


def inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (BATCH, LENGTH, QUERIES, KEY), (BATCH, LENGTH, HEADS, KEY), (BATCH, LENGTH, HEADS, VALUE)
  return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def packed_order():
  """Row 0: two documents. Row 1: one document and seven invalid tokens."""
  index = np.arange(LENGTH)
  ids = np.stack([np.where(index < 11, 0, 1), np.where(index < 30, 3, EMPTY)])
  return Order(index_BT=jnp.broadcast_to(index, (BATCH, LENGTH)), id_BT=jnp.asarray(ids))


@pytest.mark.parametrize(("window", "block"), [(0, 8), (0, 64), (1, 8), (5, 8), (5, 1)])
def test_blockwise_equals_the_definition_with_all_gradients(window, block):
  order = packed_order()

  def run(impl):
    def loss(q, k, v):
      out, lse = attend(q, k, v, order, order, window=window, block=block, impl=impl)
      lse = jnp.where(lse > MASKED / 2, lse, 0.0)
      return jnp.sin(out).sum() + (lse**2).sum(), (out, lse)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs())

  def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

  jax.tree.map(close, run("xla"), run("reference"))


@pytest.mark.parametrize("impl", ["xla", "reference"])
def test_what_stands_where_there_is_no_token_changes_nothing(impl):
  order = packed_order()
  is_token = (order.id_BT != EMPTY)[..., None, None]
  clean = tuple(jnp.where(is_token, x, 0.5) for x in inputs())

  def loss(inputs):
    out, lse = attend(*inputs, order, order, window=5, block=8, impl=impl)
    alone = attend_itself(*inputs, is_token[..., 0, 0])
    total = sum(jnp.where(is_token, jnp.sin(out), 0).sum() for out in (out, alone[0]))
    return total + sum(jnp.where(is_token[..., 0], lse, 0).sum() for lse in (lse, alone[1])), (out, lse, alone)

  run = quick_jit(jax.grad(loss, has_aux=True))
  dirty = run(tuple(jnp.where(is_token, x, jnp.nan) for x in clean))
  jax.tree.map(np.testing.assert_array_equal, dirty, run(clean))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))


def test_a_query_that_sees_nothing_reads_zero_and_counts_nothing_in_a_merge():
  q, k, v = inputs()
  order = packed_order()
  unseen = Order(index_BT=order.index_BT, id_BT=jnp.full_like(order.id_BT, EMPTY))
  out, lse = attend(q, k, v, order, unseen)
  assert (np.asarray(out) == 0).all() and (np.asarray(lse) == MASKED).all()
  seen = attend(q, k, v, order, order)
  merged_out, merged_lse = merge(*seen, out, lse)
  np.testing.assert_array_equal(merged_out[0], seen[0][0])
  np.testing.assert_array_equal(merged_lse[0], seen[1][0])


def test_merging_two_sets_of_keys_equals_attention_to_their_union():
  q, k, v = inputs()
  order = Order(index_BT=packed_order().index_BT, id_BT=jnp.zeros((BATCH, LENGTH), jnp.int32))
  parts = [
    attend(q, k[:, cut], v[:, cut], order, Order(order.index_BT[:, cut], order.id_BT[:, cut]))
    for cut in (slice(0, 13), slice(13, None))]
  out, lse = merge(*parts[0], *parts[1])
  want_out, want_lse = attend(q, k, v, order, order)
  np.testing.assert_allclose(out, want_out, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-6)


def test_blocks_that_nobody_sees_are_not_visited():
  index = jnp.arange(32)[None]
  whole = Order(index_BT=index, id_BT=jnp.zeros((1, 32), jnp.int32))
  first, stop = block_reach(whole, whole, query_block=8, key_block=8, window=0)
  assert (first.tolist(), stop.tolist()) == ([0, 0, 0, 0], [1, 2, 3, 4])
  first, stop = block_reach(whole, whole, query_block=8, key_block=8, window=9)
  assert (first.tolist(), stop.tolist()) == ([0, 0, 1, 2], [1, 2, 3, 4])
  first, stop = block_reach(whole, whole, query_block=8, key_block=8, window=2)
  assert (first.tolist(), stop.tolist()) == ([0, 0, 1, 2], [1, 2, 3, 4])
  two = Order(index_BT=index, id_BT=(index >= 16).astype(jnp.int32))
  first, stop = block_reach(two, two, query_block=8, key_block=8, window=0)
  assert (first.tolist(), stop.tolist()) == ([0, 0, 2, 2], [1, 2, 3, 4])


def test_documents_are_counted_by_changes_of_id():
  ids = jnp.array([[7, 7, 3, 7], [5, 5, 5, 5]])
  valid = jnp.array([[True] * 4, [True, True, False, False]])
  runs = document_runs(ids, valid, jnp.array([7, EMPTY]))
  assert runs.tolist() == [[0, 0, 1, 2], [1, 1, EMPTY, EMPTY]]
