"""A budget is spent on as many layers as fit, evenly spaced; a byte less than the least is refused with that number."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from lattice_jax.inference.streaming.budget import Plan, Pool, Sizes, least_budget, make_plan, spread

NEEDS = {"what is outside the layers": 50, "the memory's state": 7, "temporary arrays": 0}
SIZES = Sizes(layers=[10] * 9, apart=[18] * 9, codes=25, needs=NEEDS)
PLAIN = Sizes(layers=[10, 12, 10, 30, 10], apart=[10, 12, 10, 30, 10], codes=0, needs=NEEDS)


def held(plan: Plan, sizes: Sizes) -> int:
  layers = sum((sizes.apart if layer in plan.apart else sizes.layers)[layer] for layer in plan.pinned)
  return sum(sizes.needs.values()) + layers + plan.num_buffers * plan.buffer_bytes + plan.code_bytes


@pytest.mark.parametrize("of", [1, 2, 7, 30])
def test_pinned_layers_are_evenly_spaced(of):
  for num in range(1, of + 1):
    places = sorted(spread(num, of))
    assert len(places) == num and places[-1] < of
    gaps = np.diff([*places, places[0] + of])
    assert gaps.max() - gaps.min() <= 1
  assert spread(0, of) == frozenset()


@pytest.mark.parametrize("sizes", [SIZES, PLAIN], ids=["4 bits", "floats"])
@pytest.mark.parametrize("depth", [1, 3])
def test_no_budget_is_exceeded_and_a_larger_one_pins_as_much_at_least(sizes, depth):
  least, before = least_budget(sizes, 0, depth=depth), -1
  for budget in range(least, sum(NEEDS.values()) + sum(sizes.apart) + 3):
    plan = make_plan(budget, sizes, depth=depth)
    assert held(plan, sizes) <= budget and plan.apart <= plan.pinned
    if len(plan.pinned) < len(sizes.layers):
      assert plan.num_buffers == depth + 1
      one_more = spread(len(plan.pinned) + 1, len(sizes.layers))
      if len(one_more) < len(sizes.layers):
        assert budget < held(plan, sizes) + sum(sizes.layers[n] for n in one_more) - sum(
          sizes.layers[n] for n in plan.pinned)
    assert len(plan.pinned) >= before
    before = len(plan.pinned)
    streamed = set(range(len(sizes.layers))) - plan.pinned
    assert plan.streamed_bytes == sum(sizes.layers[layer] for layer in streamed)
  assert before == len(sizes.layers) and not plan.num_buffers and not plan.code_bytes


def test_what_is_left_lets_layers_stay_taken_apart():
  left_over = make_plan(least_budget(SIZES, 4, depth=1) + 17, SIZES, depth=1)
  assert len(left_over.pinned) == 5 and not left_over.apart  # ten of the seventeen bytes pin one more
  assert len(make_plan(least_budget(SIZES, 9, depth=1) + 17, SIZES, depth=1).apart) == 2


@pytest.mark.parametrize("sizes", [SIZES, PLAIN], ids=["4 bits", "floats"])
def test_a_budget_below_two_layers_is_refused_with_the_least_one(sizes):
  least = least_budget(sizes, 0, depth=1)
  assert least == sum(NEEDS.values()) + 2 * max(sizes.layers) + sizes.codes
  assert make_plan(least, sizes, depth=1).num_buffers == 2
  with pytest.raises(ValueError, match=re.escape(
      f"a budget of {least - 1} bytes is too small: 50 bytes of what is outside the layers, 7 bytes of the memory's")):
    make_plan(least - 1, sizes, depth=1)
  with pytest.raises(ValueError, match=f"2 layers of .* give at least {least} bytes"):
    make_plan(1, sizes, depth=1)


@pytest.mark.parametrize("num", range(10))
def test_the_least_budget_for_so_many_layers_pins_them(num):
  least = least_budget(SIZES, num, depth=1)
  assert len(make_plan(least, SIZES, depth=1).pinned) >= num
  if num not in (0, 8):  # with all but one, buffers for the last take more than it does
    assert len(make_plan(least - 1, SIZES, depth=1).pinned) < num


def test_layers_used_last_would_never_be_those_that_come_next():
  """What the pinned set is for: on a cycle longer than itself, a cache of the layers used last misses every time."""
  num, of, passes = 6, 9, 4
  used_last, hits = collections.OrderedDict(), 0
  for layer in [*range(of)] * passes:
    hits += layer in used_last
    used_last.pop(layer, None)
    used_last[layer] = True
    if len(used_last) > num:
      used_last.popitem(last=False)
  assert hits == 0
  pinned = spread(num, of)
  assert sum(layer in pinned for layer in [*range(of)] * passes) == passes * num


def test_a_pool_counts_and_refuses_what_it_does_not_have():
  pool = Pool(100)
  pool.take(60, "a layer")
  pool.give(20)
  pool.take(60, "a layer")
  assert (pool.used, pool.peak) == (100, 100)
  with pytest.raises(ValueError, match="1 bytes of a fork do not fit: 100 bytes of the budget of 100 bytes are in use; "
                     "give at least 101 bytes"):
    pool.take(1, "a fork")
  assert (pool.used, pool.peak) == (100, 100)
