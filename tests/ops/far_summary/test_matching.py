"""Attention matching: the fit's laws, the fit in float64, and the fold over spans."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.attention import MASKED, merge
from lattice_jax.ops.far_summary import FarSummary, Matching, summary_bytes
from lattice_jax.ops.far_summary.compact import Slots, attend_slots, compact
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
from tests.thorough import further

RULE = Matching(group=GROUP, blocks=3, slots=3, span=4, stride=2)
THIRDS = (0, 14, 28, LENGTH)
CUTS = {"whole": (0, LENGTH), "uneven": (0, 14, 15, 15, 29, *range(30, LENGTH + 1))}
# without picks and sinks, so that spans are full
ALL = np.ones_like(LEAVES)


@functools.cache
def fit(num, ridge=0.1):
  return quick_jit(functools.partial(compact, num=num, ridge=ridge))


def scene(items, count=12, seed=0):
  """(slots, scaled queries) of one row and head, weights of one to three."""
  rng = np.random.default_rng(seed)
  slots = Slots(*(jnp.asarray(x, jnp.float32)[None, None] for x in (
    rng.normal(size=(items, KEY)), rng.normal(size=(items, VALUE)), rng.uniform(1, 3, items))))
  return slots, jnp.asarray(rng.normal(0, 1.5, (1, 1, count, KEY)), jnp.float32)


def all_of(q):
  return jnp.ones(q.shape[:3], bool)


def numbers(slots):
  return tuple(np.float64(x[0, 0]) for x in (slots.key_BHMK, slots.value_BHMV, slots.weight_BHM))


def shares(key, weight, q):
  score = q @ key.T + np.log(weight)
  score -= score.max(1, keepdims=True)
  return np.exp(score) / np.exp(score).sum(1, keepdims=True)


def by_definition(key, value, weight, q, num, ridge):
  """float64: the steps of the derivation."""
  share = shares(key, weight, q)
  chosen = np.sort(np.argsort(-(share**2).sum(0), kind="stable")[:num])
  own = share[:, chosen]
  gram = own.T @ own
  penalty = 0.01 * np.trace(gram) / num + 1e-9
  matrix, target = gram + penalty * np.eye(num), own.sum(0) + penalty * weight.sum() / weight[chosen].sum()
  growth = np.clip(np.linalg.solve(matrix, target), np.exp(-7), np.exp(7))
  for _ in range(2):
    growth = np.clip(growth - (matrix @ growth - target) / matrix.sum(1).max(), np.exp(-7), np.exp(7))
  new = own * growth / (own * growth).sum(1, keepdims=True)
  gram = new.T @ new
  change = np.linalg.solve(
    gram + (ridge * np.trace(gram) / num + 1e-9) * np.eye(num), new.T @ (share @ value - new @ value[chosen]))
  return key[chosen], value[chosen] + change, weight[chosen] * growth


@pytest.mark.parametrize(("items", "num", "count"), [(9, 4, 12), (20, 6, 3), (5, 1, 7)], ids=str)
def test_the_fit_is_its_derivation_in_float64(items, num, count):
  slots, q = scene(items, count)
  got = fit(num)(slots, q, all_of(q))
  want = by_definition(*numbers(slots), np.float64(q[0, 0]), num, 0.1)
  for one, other in zip(numbers(got), want, strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_as_many_slots_as_there_are_stay_as_they_are():
  slots, q = scene(6)
  for num in (6,):
    jax.tree.map(np.testing.assert_array_equal, fit(num)(slots, q, all_of(q)), slots)
  holes = jax.tree.map(lambda x: jnp.concatenate([0 * x, x], 2), slots)
  jax.tree.map(np.testing.assert_array_equal, fit(6)(holes, q, all_of(q)), slots)
  more = fit(8)(holes, q, all_of(q))
  jax.tree.map(lambda got, want: np.testing.assert_array_equal(got[:, :, :6], want), more, slots)
  assert all(not np.any(leaf[:, :, 6:]) for leaf in jax.tree.leaves(more))


@pytest.mark.parametrize("copies", [2, 20, 64])
def test_copies_of_a_key_become_one_slot_that_counts_as_often_with_their_mean(copies):
  slots, q = scene(copies)
  slots = slots.replace(key_BHMK=slots.key_BHMK[:, :, :1] + 0 * slots.key_BHMK, weight_BHM=0 * slots.weight_BHM + 1)
  got = fit(1, 1e-5)(slots, q, all_of(q))
  np.testing.assert_allclose(np.log(got.weight_BHM[0, 0, 0]), np.log(copies), rtol=1e-5)
  np.testing.assert_allclose(got.value_BHMV[0, 0, 0], slots.value_BHMV[0, 0].mean(0), atol=1e-4)


def test_fitted_weights_and_values_answer_better_than_those_of_the_tokens():
  slots, q = scene(24)
  got = fit(5, 1e-3)(slots, q, all_of(q))
  key, value, weight = numbers(slots)
  kept_key, kept_value, kept_weight = numbers(got)
  q = np.float64(q[0, 0])
  chosen = [int(np.flatnonzero((key == one).all(1))[0]) for one in kept_key]
  share = shares(key, weight, q)
  growth = kept_weight / weight[chosen]
  plain, fitted = (np.linalg.norm(share[:, chosen] @ ratio - 1) for ratio in (np.ones(5), growth))
  assert fitted < 0.8 * plain
  new = shares(kept_key, kept_weight, q)
  assert np.linalg.norm(new @ kept_value - share @ value) < 0.5 * np.linalg.norm(new @ value[chosen] - share @ value)


def test_the_order_of_tokens_does_not_matter():
  slots, q = scene(9)
  order = np.random.default_rng(3).permutation(9)
  mixed = fit(4)(jax.tree.map(lambda x: x[:, :, order], slots), q, all_of(q))
  want, got = (numbers(each) for each in (fit(4)(slots, q, all_of(q)), mixed))
  place = [int(np.flatnonzero((got[0] == key).all(1))[0]) for key in want[0]]
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one[place], other, rtol=1e-4, atol=1e-5)


def test_what_is_no_query_and_what_is_no_slot_count_for_nothing():
  slots, q = scene(9)
  poison = jnp.full((1, 1, 3, KEY), jnp.nan)
  q_more = jnp.concatenate([q, poison], 2)
  is_query = jnp.arange(q_more.shape[2])[None, None] < q.shape[2]
  empty = Slots(poison, jnp.full((1, 1, 3, VALUE), jnp.nan), jnp.zeros((1, 1, 3)))
  more = jax.tree.map(lambda *x: jnp.concatenate(x, 2), empty, slots)
  assert_close(fit(4)(more, q_more, is_query), fit(4)(slots, q, all_of(q)), 1e-5)


def test_without_a_query_the_first_slots_stay_and_grow_alike():
  slots, q = scene(6)
  got = fit(2)(slots, q, ~all_of(q))
  np.testing.assert_array_equal(got.value_BHMV, slots.value_BHMV[:, :, :2])
  np.testing.assert_allclose(got.weight_BHM.sum(), slots.weight_BHM.sum(), rtol=1e-5)
  np.testing.assert_allclose(
    got.weight_BHM[0, 0, 0] / got.weight_BHM[0, 0, 1], slots.weight_BHM[0, 0, 0] / slots.weight_BHM[0, 0, 1], rtol=1e-5)


def test_slots_are_read_as_keys_whose_scores_are_moved():
  slots, _ = scene(7)
  q = queries()[:1, :, :2]
  summary = RULE.init_summary(1, 1, KEY, VALUE)
  summary = summary.replace(slots=jax.tree.map(
    lambda empty, x: empty.at[:, :, 1:8].set(x), summary.slots, slots))
  out, lse = reader(RULE)(q, summary)
  key, value, weight = numbers(slots)
  tail = np.random.default_rng(0).normal(size=(3, KEY + VALUE))
  for head in range(2):
    want = attention(q[0, :, head], key, value, np.log(weight))
    assert_close((out[0, :, head], lse[0, :, head]), want, 1e-5)
    near = attention(q[0, :, head], tail[:, :KEY], tail[:, KEY:])
    both = attention(
      q[0, :, head], np.concatenate([key, tail[:, :KEY]]), np.concatenate([value, tail[:, KEY:]]),
      np.append(np.log(weight), [0, 0, 0]))
    assert_close(merge(*map(jnp.asarray, near), out[0, :, head], lse[0, :, head]), both, 1e-5)


def by_spans(rule, row, head, leaves):
  """The fold with one fit after another in float64: blocks of slots, each with how many spans it holds."""
  key, value, query = (np.float64(x[row, head]) for x in stream())
  position, record, blocks = np.flatnonzero(leaves[row, head]), {}, []
  number = (position[-1] + 1) // rule.span

  def fitted(items):
    if len(items[2]) <= rule.slots:
      return items
    q = np.concatenate(list(record.values())) * KEY**-0.5
    return by_definition(*items, q, rule.slots, rule.ridge)

  for span in range(number):
    here = position[position // rule.span == span]
    record.update({p % rule.span: query[p] for p in here[here % rule.stride == 0]})
    new = fitted((key[here], value[here], np.ones(len(here))))
    # capacity, spans, slots: as in the test of blocks
    if len(blocks) == rule.blocks and blocks[-1][1] < blocks[-1][0]:
      blocks[-1][1:] = [blocks[-1][1] + 1, fitted(tuple(map(np.concatenate, zip(blocks[-1][2], new, strict=True))))]
      continue
    capacity = min((block[0] for block in blocks), default=1)
    blocks.append([capacity, 1, new])
    if len(blocks) > rule.blocks:
      place = next(i for i, block in enumerate(blocks) if block[0] == capacity)
      first, second = blocks[place:place + 2]
      pair = fitted(tuple(map(np.concatenate, zip(first[2], second[2], strict=True))))
      blocks[place:place + 2] = [[2 * capacity, first[1] + second[1], pair]]
  rest = position[position >= number * rule.span]
  return [block[2] for block in blocks], (key[rest], value[rest])


@pytest.mark.parametrize("leaves", [*further(ALL), LEAVES], ids=["all", "holes"])
@pytest.mark.parametrize("cuts", CUTS)
def test_spans_are_fitted_one_after_another_however_they_come(cuts, leaves):
  summary = fold(RULE, CUTS[cuts], leaves=leaves)
  for row, head in np.ndindex(ROWS, HEADS):
    blocks, rest = by_spans(RULE, row, head, leaves)
    for number, want in enumerate(blocks):
      here = slice(number * RULE.slots, number * RULE.slots + len(want[2]))
      for got, wanted in zip(
        (summary.slots.key_BHMK, summary.slots.value_BHMV, summary.slots.weight_BHM), want, strict=True):
        np.testing.assert_allclose(got[row, head, here], wanted, rtol=2e-3, atol=2e-4)
    assert np.count_nonzero(summary.slots.weight_BHM[row, head]) == sum(len(want[2]) for want in blocks)
    held = np.asarray(summary.open.weight_BHM[row, head]) > 0
    np.testing.assert_array_equal(summary.open.key_BHMK[row, head][held], rest[0].astype(np.float32))
    np.testing.assert_array_equal(summary.open.value_BHMV[row, head][held], rest[1].astype(np.float32))


def test_until_a_span_is_complete_its_tokens_are_read_exactly():
  rule, q = dataclasses.replace(RULE, span=LENGTH + 2, stride=1), queries()
  out, lse = reader(rule)(q, fold(rule, THIRDS))
  key, value, _ = stream()
  for row, number in np.ndindex(ROWS, HEADS * GROUP):
    left = LEAVES[row, number // GROUP]
    want = attention(q[row, :, number], key[row, number // GROUP][left], value[row, number // GROUP][left])
    assert_close((out[row, :, number], lse[row, :, number]), want, 1e-5)


def test_slots_answer_later_queries_better_than_the_mean_of_their_tokens():
  from lattice_jax.ops.far_summary import Mean  # only to be compared with

  rule, q = Matching(group=GROUP, blocks=2, slots=8, span=16, stride=1), queries(20, scale=2.0, seed=9)
  off = {}
  for name, each in {"matching": rule, "mean": Mean()}.items():
    out, lse = reader(each)(q, fold(each, leaves=ALL))
    off[name] = np.zeros(2)
    for row, number in np.ndindex(ROWS, HEADS * GROUP):
      key, value, _ = (x[row, number // GROUP] for x in stream())
      want, want_lse = attention(q[row, :, number], key, value)
      off[name] += np.linalg.norm(out[row, :, number] - want), np.linalg.norm(lse[row, :, number] - want_lse)
  assert (off["matching"] < 0.35 * off["mean"]).all()


def test_nothing_far_is_not_read_and_changes_nothing():
  summary, q = RULE.init_summary(ROWS, HEADS, KEY, VALUE), queries()
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(summary))
  out, lse = reader(RULE)(q, summary)
  assert (np.asarray(out) == 0).all() and (np.asarray(lse) == np.float32(MASKED)).all()
  before = fold(RULE)
  nothing = adder(RULE)(before, evicted(0, LENGTH, leaves=LEAVES & False, poison=np.nan))
  jax.tree.map(np.testing.assert_array_equal, nothing, before)
  merged = quick_jit(RULE.merge)
  for one, other in ((before, summary), (summary, before)):
    jax.tree.map(np.testing.assert_array_equal, merged(one, other), before)


def test_what_stands_at_tokens_that_stay_changes_nothing():
  jax.tree.map(np.testing.assert_array_equal, fold(RULE, poison=np.nan), fold(RULE))


def test_rows_and_heads_are_independent():
  key = stream()[0].copy()
  key[1, 0] += 1
  changed, plain = fold(RULE, tokens=(key, *stream()[1:])), fold(RULE)
  is_other = np.ones((ROWS, HEADS), bool)
  is_other[1, 0] = False
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[is_other], b[is_other]), changed, plain)
  assert (np.asarray(changed.slots.key_BHMK)[1, 0] != np.asarray(plain.slots.key_BHMK)[1, 0]).any()


def total_weight(summary):
  return np.asarray(summary.slots.weight_BHM.sum(2) + summary.open.weight_BHM.sum(2))


def test_merging_is_exact_while_blocks_have_room():
  """Three tokens of each span leave, and a block has as many slots."""
  rule, leaves = dataclasses.replace(RULE, blocks=12), ALL & (np.arange(LENGTH) % 4 != 1)
  merged = quick_jit(rule.merge)
  first, second, third = (fold(rule, pair, leaves=leaves) for pair in itertools.pairwise(THIRDS))
  left, right = merged(merged(first, second), third), merged(first, merged(second, third))
  q, whole = queries(), fold(rule, THIRDS, leaves=leaves)
  for each in (left, right):
    assert_close(reader(rule)(q, each), reader(rule)(q, whole), 1e-5)
    np.testing.assert_array_equal(total_weight(each), leaves.sum(2))
  # where they have not, still no token is lost
  first, second = (fold(RULE, cuts) for cuts in ((0, 14), (14, 28, LENGTH)))
  _, lse = reader(RULE)(q, quick_jit(RULE.merge)(first, second))
  _, want = reader(RULE)(q, fold(RULE))
  assert np.abs(lse - want).mean() < 0.3


def test_tokens_that_leave_after_their_span_are_fitted_into_its_block():
  """As from a cache whose old tokens compete anew."""
  rule = dataclasses.replace(RULE, blocks=12)
  late = np.zeros_like(LEAVES)
  late[:, :, [6, 7, 21]] = True
  leaves = ALL & (np.arange(LENGTH) % 4 == 0) & ~late
  after = fold(rule, THIRDS, leaves=leaves)
  for start in (0, 14):
    after = adder(rule)(after, evicted(start, start + 14, leaves=late))
  np.testing.assert_array_equal(total_weight(after), (leaves | late).sum(2))
  assert_close(reader(rule)(queries(), after), reader(rule)(queries(), fold(rule, THIRDS, leaves=leaves | late)), 1e-5)


def test_gradients_reach_queries_and_stop_at_what_is_kept():
  def total(q, key):
    summary = RULE.init_summary(ROWS, HEADS, KEY, VALUE)
    tokens = evicted(0, LENGTH)
    out, lse = RULE.read(q, RULE.add(summary, tokens.replace(key_BHSK=key)))
    return jnp.sin(out).sum() + jnp.sin(lse).sum()

  d_q, d_key = quick_jit(jax.grad(total, argnums=(0, 1)))(queries(), jnp.asarray(stream()[0]))
  assert np.isfinite(d_q).all() and (np.asarray(d_q) != 0).all() and not np.any(d_key)


def test_attention_to_slots_ignores_those_that_are_not_used():
  slots, q = scene(4)
  holes = jax.tree.map(lambda x: jnp.concatenate([x, jnp.ones_like(x)], 2), slots)
  holes = holes.replace(weight_BHM=holes.weight_BHM.at[:, :, 4:].set(0))
  weight, out, lse = attend_slots(q, holes)
  assert not np.any(weight[..., 4:])
  assert_close((out, lse), attend_slots(q, slots)[1:], 1e-6)


def test_bytes_are_slots_open_span_and_queries():
  rule = Matching(group=3, blocks=4, slots=16, span=64, stride=4)
  floats = (4 * 16 + 64) * (64 + 32 + 1) + 16 * 3 * 64 + 1
  assert summary_bytes(rule, 5, 64, 32) == 5 * 4 * floats


@pytest.mark.parametrize(("fields", "message"), [
  ({"stride": 3}, "Matching.stride=3 does not divide Matching.span=64"),
  ({"slots": 65}, "Matching.slots=65 are more than the 64 tokens of Matching.span"),
  ({"ridge": 0.0}, "Matching.ridge=0.0 must be positive")], ids=str)
def test_fields_that_contradict_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Matching(**fields)


def test_a_cache_without_queries_is_refused():
  assert isinstance(RULE, FarSummary)
  summary, tokens = RULE.init_summary(ROWS, HEADS, KEY, VALUE), evicted(0, 3)
  with pytest.raises(ValueError, match="attention matching fits slots to queries, and this cache hands over none"):
    RULE.add(summary, tokens.replace(query_BHSGK=None))
  with pytest.raises(ValueError, match=r"Matching.group=2 query heads share a key, and tokens leave with .* of 1"):
    RULE.add(summary, tokens.replace(query_BHSGK=tokens.query_BHSGK[:, :, :, :1]))
