"""Means and moments of what is far: against float64 over all tokens at once, however they came."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.attention import merge as merge_attention
from lattice_jax.ops.attention.fold import Evicted, Fold
from lattice_jax.ops.far_summary import FarSummary, Mean, Moments, join, summary_bytes
from lattice_jax.ops.far_summary.spans import block_of, first_span
from tests.contract.harness import quick_jit
from tests.ops.far_summary.scene import (
  GROUP,
  HEADS,
  KEY,
  LEAVES,
  LENGTH,
  ROWS,
  VALUE,
  adder,
  assert_close,
  attention,
  evicted,
  fold,
  queries,
  reader,
  stream,
)

MOST = 1.5
RULES = {
  "mean": Mean(blocks=3, span=4), "diagonal": Moments(blocks=3, span=4, cross=False, most=MOST),
  "cross": Moments(blocks=3, span=4, most=MOST), "one block": Moments(curvature=0.7, most=MOST)}
CUTS = {"whole": (0, LENGTH), "uneven": (0, 14, 15, 15, 29, *range(30, LENGTH + 1))}


def by_hand(count, blocks):
  """Blocks of spans: the two oldest of the smallest capacity become one where a span finds none free."""
  held = []  # [capacity, spans]
  for span in range(count):
    if held and len(held[-1][1]) < held[-1][0]:
      held[-1][1].append(span)
      continue
    capacity = min((block[0] for block in held), default=1)
    held.append([capacity, [span]])
    if len(held) > blocks:
      place = next(i for i, block in enumerate(held) if block[0] == capacity)
      first, second = held[place:place + 2]
      held[place:place + 2] = [[2 * capacity, first[1] + second[1]]]
  return [block[1] for block in held]


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_spans_share_blocks_as_if_the_oldest_of_the_smallest_were_joined_one_by_one(blocks):
  count_N1 = jnp.arange(1, 45)[:, None]
  place_NS = np.asarray(block_of(jnp.arange(44), count_N1, blocks))
  first_NJ = np.asarray(first_span(jnp.arange(blocks), count_N1, blocks))
  for count, place_S, first_J in zip(range(1, 45), place_NS, first_NJ, strict=True):
    held = by_hand(count, blocks)
    np.testing.assert_array_equal(
      place_S[:count], [number for number, spans in enumerate(held) for _ in spans])
    np.testing.assert_array_equal(first_J[:len(held)], [spans[0] for spans in held])
  big = jnp.array([0, 2**26 - 1, 2**26])
  assert block_of(big, jnp.array(2**26 + 1), 4).tolist() == [0, 2, 3]


def definition(rule, row, head, leaves=LEAVES):
  """float64 moments of the tokens of every block: count, means, variance, covariance."""
  key, value, _ = (np.float64(x[row, head]) for x in stream())
  position = np.flatnonzero(leaves[row, head])
  blocks = by_hand(-(-(position[-1] + 1) // rule.span), rule.blocks) if len(position) else []
  for spans in blocks + [[]] * (rule.blocks - len(blocks)):
    here = position[np.isin(position // rule.span, spans)]
    if not len(here):
      yield 0, np.zeros(KEY), np.zeros(VALUE), np.zeros(KEY), np.zeros((KEY, VALUE))
      continue
    key_mean, value_mean = key[here].mean(0), value[here].mean(0)
    off = key[here] - key_mean
    yield len(here), key_mean, value_mean, (off**2).mean(0), off.T @ (value[here] - value_mean) / len(here)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", RULES)
def test_moments_in_any_calls_are_those_of_all_tokens_at_once(name, cuts):
  rule = RULES[name]
  summary = fold(rule, CUTS[cuts])
  parts = (summary.count_BHJ, summary.key_BHJK, summary.value_BHJV, summary.variance_BHJK, summary.cross_BHJKV)
  for row, head in np.ndindex(ROWS, HEADS):
    for number, want in enumerate(definition(rule, row, head)):
      for got, wanted in zip(parts, want, strict=True):
        if got is not None:
          np.testing.assert_allclose(got[row, head, number], wanted, rtol=1e-5, atol=1e-6)
    assert summary.seen_BH[row, head] == np.flatnonzero(LEAVES[row, head])[-1] + 1
  assert (summary.variance_BHJK is None, summary.cross_BHJKV is None) == (name == "mean", name in ("mean", "diagonal"))


def test_tokens_may_come_in_any_order():
  rule, order = RULES["cross"], np.random.default_rng(0).permutation(LENGTH)
  mixed = jax.tree.map(lambda x: x[:, :, order], evicted(0, LENGTH))
  assert_close(adder(rule)(rule.init_summary(ROWS, HEADS, KEY, VALUE), mixed), fold(rule), 1e-5)


def test_a_million_tokens_lose_nothing_of_the_next_one():
  """A mean and its share in float32: a running sum would no longer feel a token."""
  rule, count = Moments(), 2.0**21
  start = rule.init_summary(1, 1, 1, 1)
  start = start.replace(
    count_BHJ=start.count_BHJ + count, key_BHJK=start.key_BHJK + 3, variance_BHJK=start.variance_BHJK + 5,
    cross_BHJKV=start.cross_BHJKV + 7, value_BHJV=start.value_BHJV + 2)
  ones = jnp.ones((1, 1, 1, 1))
  token = Evicted(1003 * ones, 502 * ones, jnp.zeros((1, 1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))
  after = adder(rule)(start, token)
  for name, before, change in (
    ("key_BHJK", 3, 1000), ("value_BHJV", 2, 500), ("variance_BHJK", 5, 1e6), ("cross_BHJKV", 7, 5e5)):
    grown = float(getattr(after, name).ravel()[0]) - before
    np.testing.assert_allclose(grown, change / count, rtol=2e-3)


def test_a_token_equal_to_the_mean_leaves_it_as_it_is():
  rule, counts = Moments(), jnp.arange(1, 65, dtype=jnp.float32)
  start = rule.init_summary(64, 1, 1, 1)
  start = start.replace(
    count_BHJ=start.count_BHJ + counts[:, None, None], key_BHJK=start.key_BHJK + 3.3, value_BHJV=start.value_BHJV - 0.7)
  shape = 64, 1, 1
  after = adder(rule)(start, Evicted(
    start.key_BHJK, start.value_BHJV, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)))
  np.testing.assert_array_equal(after.key_BHJK, start.key_BHJK)
  np.testing.assert_array_equal(after.value_BHJV, start.value_BHJV)


@pytest.mark.parametrize("name", RULES)
def test_merging_is_exact_associative_and_zeros_change_nothing(name):
  rule = RULES[name]
  merge = quick_jit(rule.merge)
  empty = rule.init_summary(ROWS, HEADS, KEY, VALUE)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(empty))
  first, second, third = (fold(rule, pair) for pair in itertools.pairwise((0, 9, 28, LENGTH)))
  left, right = merge(merge(first, second), third), merge(first, merge(second, third))
  assert_close(left, right, 1e-5)
  assert_close(left, fold(rule), 1e-5)
  for one, other in ((first, empty), (empty, first)):
    jax.tree.map(np.testing.assert_array_equal, merge(one, other), first)
  nothing = adder(rule)(third, evicted(0, LENGTH, leaves=LEAVES & False, poison=np.nan))
  jax.tree.map(np.testing.assert_array_equal, nothing, third)


@pytest.mark.parametrize("name", ["mean", "cross"])
def test_what_stands_at_tokens_that_stay_changes_nothing(name):
  rule = RULES[name]
  jax.tree.map(np.testing.assert_array_equal, fold(rule, poison=np.nan), fold(rule))


def test_rows_and_heads_are_independent():
  rule, key = RULES["cross"], stream()[0].copy()
  key[1, 0] += 1
  changed, plain = fold(rule, tokens=(key, *stream()[1:])), fold(rule)
  is_other = np.ones((ROWS, HEADS), bool)
  is_other[1, 0] = False
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[is_other], b[is_other]), changed, plain)
  assert (np.asarray(changed.key_BHJK)[1, 0] != np.asarray(plain.key_BHJK)[1, 0]).any()


def read_by_definition(rule, q_TK, row, head):
  u, has = np.float64(q_TK) * KEY**-0.5, []
  for count, key, value, variance, cross in definition(rule, row, head):
    if not count:
      continue
    curve = 0.5 * rule.curvature * u**2 @ variance if isinstance(rule, Moments) else 0
    score, out = np.log(count) + u @ key, np.tile(value, (len(u), 1))
    if isinstance(rule, Moments):
      score = score + np.minimum(curve, rule.most)
      if rule.cross:
        out = out + np.sqrt(np.minimum(1, rule.most / curve))[:, None] * (u @ cross)
    has.append((score, out))
  lse = np.logaddexp.reduce([score for score, _ in has])
  return sum(np.exp(score - lse)[:, None] * out for score, out in has), lse


@pytest.mark.parametrize("scale", [0.3, 3.0], ids=["long", "cut"])
@pytest.mark.parametrize("name", RULES)
def test_reading_is_its_formula_in_float64(name, scale):
  rule, q = RULES[name], queries(scale=scale)
  out, lse = reader(rule)(q, fold(rule))
  assert out.dtype == lse.dtype == jnp.float32
  for row, number in np.ndindex(ROWS, HEADS * GROUP):
    want, want_lse = read_by_definition(rule, q[row, :, number], row, number // GROUP)
    np.testing.assert_allclose(out[row, :, number], want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(lse[row, :, number], want_lse, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", RULES)
def test_one_token_is_attended_to_exactly_and_none_not_at_all(name):
  rule, q = RULES[name], queries()
  leaves = LEAVES & False
  leaves[0, :, 13] = True
  out, lse = reader(rule)(q, fold(rule, CUTS["uneven"], leaves=leaves))
  key, value, _ = stream()
  for number in range(HEADS * GROUP):
    head = number // GROUP
    want, want_lse = attention(q[0, :, number], key[0, head, 13:14], value[0, head, 13:14])
    np.testing.assert_allclose(out[0, :, number], want, rtol=1e-6)
    np.testing.assert_allclose(lse[0, :, number], want_lse, rtol=1e-6, atol=1e-6)
  assert (np.asarray(out[1]) == 0).all() and (np.asarray(lse[1]) == np.float32(MASKED)).all()


def test_moments_are_exact_for_many_tokens_of_a_gaussian():
  rng, count = np.random.default_rng(0), 60_000
  key = rng.normal(0.3, [0.5, 1.0, 0.8, 0.2], (count, KEY))
  value = key[:, :VALUE] @ np.array([[1, 0, 2], [0, -1, 0], [0.5, 0, 1]]) + rng.normal(0, 0.1, (count, VALUE))
  tokens = Evicted(
    jnp.asarray(key[None, None]), jnp.asarray(value[None, None]), jnp.arange(count)[None, None],
    jnp.ones((1, 1, count), bool))
  q = jnp.asarray(rng.normal(0, 1, (1, 6, 1, KEY)), jnp.float32)
  want, want_lse = attention(np.asarray(q[0, :, 0]), key, value)
  off = {}
  for name, rule in {"mean": Mean(), "diagonal": Moments(cross=False, most=50.0), "cross": Moments(most=50.0)}.items():
    out, lse = reader(rule)(q, adder(rule)(rule.init_summary(1, 1, KEY, VALUE), tokens))
    off[name] = np.abs(out[0, :, 0] - want).max(), np.abs(lse[0, :, 0] - want_lse).max()
  assert off["cross"][0] < 0.02 and off["cross"][1] < 0.01
  assert off["diagonal"][1] < 0.01 and off["mean"][1] > 0.2 and off["diagonal"][0] > 0.2


def toy(sharp):
  """Diffuse attention over clusters of keys that say something of their values; or one key that stands out."""
  rng, count = np.random.default_rng(2), 600
  topic = np.repeat(rng.normal(0, 0.8, (12, 16)), count // 12, axis=0)
  key = topic + rng.normal(0, 0.6, (count, 16))
  value = key[:, :8] @ rng.normal(0, 0.4, (8, 8)) + rng.normal(0, 0.5, (count, 8))
  q = rng.normal(0, 1, (40, 16))
  if sharp:
    key[100] = 0
    key[100, 0], q[:, 0] = 12, 12
  return key, value, q


def errors(key, value, q, far=500):
  """Relative error of the output under each treatment of all tokens but the last."""
  exact, _ = attention(q, key, value)
  near = attention(q, key[far:], value[far:])
  tokens = Evicted(
    *(jnp.asarray(x[None, None, :far], jnp.float32) for x in (key, value)), jnp.arange(far)[None, None],
    jnp.ones((1, 1, far), bool))
  found = {"window": near[0]}
  for name, rule in {"mean": Mean(), "moments": Moments(), "8 blocks": Moments(blocks=8)}.items():
    summary = adder(rule)(rule.init_summary(1, 1, 16, 8), tokens)
    out, lse = reader(rule)(jnp.asarray(q, jnp.float32)[None, :, None], summary)
    found[name] = merge_attention(*map(jnp.asarray, near), out[0, :, 0], lse[0, :, 0])[0]
  return {name: np.linalg.norm(out - exact) / np.linalg.norm(exact) for name, out in found.items()}


def test_moments_are_better_than_a_mean_and_a_mean_better_than_a_window_where_attention_is_diffuse():
  off = errors(*toy(sharp=False))
  assert off["8 blocks"] < off["moments"] < 0.5 * off["mean"] < off["mean"] < 0.8 * off["window"]


def test_a_single_key_that_stands_out_is_lost_to_every_moment():
  """The case for which tokens have to be kept as they are."""
  off = errors(*toy(sharp=True))
  assert min(off.values()) > 0.5


@pytest.mark.parametrize("name", RULES)
def test_gradients_are_finite_and_those_of_differences(name):
  rule, q = RULES[name], queries(3)
  key, value = (x[:1, :1].astype(np.float32) for x in stream()[:2])
  leaves, position = jnp.asarray(LEAVES[:1, :1]), jnp.arange(LENGTH)[None, None]

  def total(q, key, value):
    summary = rule.init_summary(1, 1, KEY, VALUE)
    for start, stop in ((0, 20), (20, LENGTH)):
      cut = (x[:, :, start:stop] for x in (key, value, position, leaves))
      summary = rule.add(summary, Evicted(*cut))
    out, lse = rule.read(q[:1, :, :2], summary)
    return jnp.sin(out).sum() + jnp.sin(lse).sum()

  given = q, jnp.asarray(key), jnp.asarray(value)
  evaluate = quick_jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
  grads = evaluate(*given)[1]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  rng = np.random.default_rng(0)
  for place in range(3):
    step = [rng.normal(size=x.shape).astype(np.float32) * (number == place) for number, x in enumerate(given)]
    up, down = (
      evaluate(*(x + amount * d for x, d in zip(given, step, strict=True)))[0] for amount in (1e-2, -1e-2))
    slope = sum((np.float64(g) * d).sum() for g, d in zip(grads, step, strict=True))
    np.testing.assert_allclose(slope, (up - down) / 2e-2, rtol=2e-2, atol=2e-2)


def test_gradients_of_an_empty_summary_are_finite():
  rule, q = RULES["cross"], queries(2)

  def total(q, summary):
    out, lse = join(jnp.zeros((*q.shape[:3], VALUE)), jnp.zeros(q.shape[:3]), *rule.read(q, summary))
    return out.sum() + lse.sum()

  summary = rule.init_summary(ROWS, HEADS, KEY, VALUE)
  grads = quick_jit(jax.grad(total, argnums=(0, 1), allow_int=True))(q, summary)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads) if leaf.dtype == jnp.float32)


def test_the_far_part_has_at_most_the_share_that_it_is_given():
  near, far = (jnp.zeros((3, 2)), jnp.array([0.0, 0.0, MASKED])), (jnp.ones((3, 2)), jnp.array([-1.0, 9.0, 9.0]))
  assert_close(join(*near, *far), merge_attention(*near, *far), 1e-7)
  out, lse = join(*near, *far, most_share=0.9)
  np.testing.assert_allclose(out[:, 0], [1 / (1 + np.e), 0.9, 1.0], rtol=1e-6)
  np.testing.assert_allclose(lse[1:], [np.log(10), 9], rtol=1e-6)
  with pytest.raises(ValueError, match=r"most_share=1.5 must be above 0 and at most 1"):
    join(*near, *far, most_share=1.5)


def test_bytes_are_all_floats_of_a_summary():
  assert summary_bytes(Mean(blocks=5), 3, 64, 64) == 3 * 4 * (5 * (1 + 2 * 64) + 1)
  assert summary_bytes(Moments(blocks=5, cross=False), 3, 64, 32) == 3 * 4 * (5 * (1 + 2 * 64 + 32) + 1)
  assert summary_bytes(Moments(), 1, 64, 64) == 4 * (64 * 64 + 3 * 64 + 1 + 1)


def test_rules_are_hashable_folds_with_checked_fields():
  for rule in RULES.values():
    assert isinstance(rule, Fold) and isinstance(rule, FarSummary) and hash(rule) == hash(dataclasses.replace(rule))
  with pytest.raises(ValueError, match=r"Mean.blocks=0 must be positive"):
    Mean(blocks=0)
  with pytest.raises(ValueError, match=r"Moments.most=-1"):
    Moments(most=-1.0)
  with pytest.raises(ValueError, match=r"3 query heads cannot share the summaries of 2 heads evenly"):
    Mean().read(jnp.zeros((1, 1, 3, KEY)), Mean().init_summary(1, 2, KEY, VALUE))
