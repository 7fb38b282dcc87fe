"""Sums over trained features: the maps and the reading in float64, the fold's laws, gradients, bytes."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.far_summary import FarSummary, FeatureMap, FeatureMaps, Features, summary_bytes
from lattice_jax.ops.far_summary.features import MOST
from tests.contract.harness import quick_jit
from tests.ops.far_summary.scene import (
  GROUP,
  HEADS,
  KEY,
  LEAVES,
  LENGTH,
  ROWS,
  VALUE,
  assert_close,
  evicted,
  features64,
  queries,
  stream,
)

FEATURES, HIDDEN = 3, 5
RULE = Features(FEATURES)
CUTS = {"whole": (0, LENGTH), "uneven": (0, 14, 15, 15, 29, *range(30, LENGTH + 1))}


@functools.cache
def maps():
  rng = np.random.default_rng(3)

  def one(heads):
    shapes = (heads, KEY, HIDDEN), (heads, HIDDEN), (heads, HIDDEN, FEATURES), (heads, FEATURES)
    return FeatureMap(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))

  return FeatureMaps(query=one(HEADS * GROUP), key=one(HEADS))


def mapped(start, stop, given, **options):
  """Tokens that leave, with features in the place of their keys."""
  left = evicted(start, stop, **options)
  return left.replace(key_BHSK=jnp.moveaxis(given.key(jnp.moveaxis(left.key_BHSK, 1, 2)), 2, 1))


add, read = quick_jit(RULE.add), quick_jit(RULE.read)


def folded(cuts=(0, LENGTH), **options):
  summary = RULE.init_summary(ROWS, HEADS, KEY, VALUE)
  for start, stop in itertools.pairwise(cuts):
    summary = add(summary, mapped(start, stop, maps(), **options))
  return summary


@pytest.mark.parametrize("cuts", CUTS)
def test_weights_are_products_of_features_in_float64(cuts):
  q = queries()
  out, lse = read(maps().query(q), folded(CUTS[cuts], poison=1e3))
  key, value, _ = stream()
  for row, query in np.ndindex(ROWS, HEADS * GROUP):
    head = query // GROUP
    here = np.flatnonzero(LEAVES[row, head])
    phi = features64(maps().query, query, q[row, :, query])
    weight = phi @ features64(maps().key, head, key[row, head, here]).T
    np.testing.assert_allclose(lse[row, :, query], np.log(weight.sum(1)), rtol=1e-5, atol=1e-5)
    want = weight @ np.float64(value[row, head, here]) / weight.sum(1, keepdims=True)
    np.testing.assert_allclose(out[row, :, query], want, rtol=1e-4, atol=1e-5)


def test_merging_is_exact_and_zeros_change_nothing():
  assert isinstance(RULE, FarSummary) and hash(RULE) == hash(Features(FEATURES))
  earlier, whole = folded((0, 20)), folded()
  later = add(RULE.init_summary(ROWS, HEADS, KEY, VALUE), mapped(20, LENGTH, maps()))
  assert_close(RULE.merge(earlier, later), whole)
  assert_close(RULE.merge(whole, jax.tree.map(jnp.zeros_like, whole)), whole, 0)


def test_where_nothing_is_far_nothing_is_read():
  out, lse = read(maps().query(queries()), RULE.init_summary(ROWS, HEADS, KEY, VALUE))
  assert (np.asarray(out) == 0).all() and (np.asarray(lse) == MASKED).all()


@pytest.mark.parametrize("shift", [0, 1e3, -1e3], ids=["usual", "large", "small"])
def test_gradients_reach_both_maps_and_are_finite_at_the_ends_of_their_range(shift):
  given = FeatureMaps(*(each.replace(out_bias_HR=each.out_bias_HR + shift) for each in (maps().query, maps().key)))

  def loss(given):
    summary = RULE.add(RULE.init_summary(ROWS, HEADS, KEY, VALUE), mapped(0, LENGTH, given))
    out, lse = RULE.read(given.query(queries()), summary)
    return (out**2).sum() + lse.sum(), lse

  grads, lse = jax.grad(loss, has_aux=True)(given)
  assert np.isfinite(lse).all() and np.abs(lse).max() < 2 * MOST + np.log(LENGTH)
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all()
    assert shift or np.abs(leaf).max() > 0


def test_a_summary_takes_the_bytes_of_its_sums():
  assert summary_bytes(Features(16), 3, 64, 32) == 4 * 3 * 16 * (32 + 1)


def test_keys_that_are_no_features_are_refused():
  shape = ROWS, HEADS, 1
  left = Evicted(
    jnp.zeros((*shape, KEY)), jnp.zeros((*shape, VALUE)), jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool))
  with pytest.raises(ValueError, match=r"Features\.features=3, and tokens leave with keys of width 4, which are no"):
    RULE.add(RULE.init_summary(ROWS, HEADS, KEY, VALUE), left)
