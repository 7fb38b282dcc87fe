"""Windows for a number of bytes: every step is the best one that fits, and none is wasted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lattice_jax.inspect.windows.choice import Ladder, alike, choose_windows, keep_retrieval_heads

LADDER = Ladder(rungs=(4, 8, 16, 0), sinks=2, context=40, token_bytes=10)


def errors(*heads):
  """[R, L, H] of one layer from each head's errors by rung."""
  return np.array(heads, float).T[:, None]


def test_bytes_are_those_of_the_slots_that_a_head_keeps():
  assert [LADDER.bytes_of(rung) for rung in LADDER.rungs] == [60, 100, 180, 400]
  assert LADDER.total(((4, 0), (8, 16))) == 60 + 400 + 100 + 180
  assert Ladder((4, 64), 2, 40, 10).bytes_of(64) == 400


def test_the_head_that_gains_most_for_a_byte_grows_first():
  rows, steps = choose_windows(errors([10, 2, 1, 0], [5, 4, 3, 0]), LADDER, 60 + 100)
  assert rows == ((8, 4),)
  assert [(step.head, step.before, step.after, step.gain, step.added, step.spent) for step in steps] == [
    (0, 4, 8, 8.0, 40, 160)]


def test_the_rate_decides_and_not_the_gain():
  """The whole document gains most, and the next rung most for a byte, which leaves bytes for the other head."""
  rows, steps = choose_windows(errors([10, 2, 1, 0], [9, 3, 3, 3]), LADDER, 60 + 400)
  assert [(step.head, step.after, step.gain) for step in steps] == [(0, 8, 8.0), (1, 8, 6.0), (0, 16, 1.0)]
  assert rows == ((16, 8),)


def test_a_plateau_does_not_hide_what_lies_beyond_it():
  rows, steps = choose_windows(errors([9, 9, 9, 0], [9, 8.9, 8.9, 8.9]), LADDER, 60 + 400)
  assert rows == ((0, 4),)
  assert [(step.before, step.after) for step in steps] == [(4, 0)]


def test_what_does_not_fit_is_passed_over_for_what_does():
  rows, _ = choose_windows(errors([9, 9, 9, 0], [1, 0.9, 0.8, 0]), LADDER, 60 + 180)
  assert rows == ((4, 16),)


def test_no_byte_is_spent_where_nothing_is_gained():
  rows, steps = choose_windows(errors([3, 3, 3, 3], [1, 2, 1, 1]), LADDER, 10**6)
  assert rows == ((4, 4),)
  assert not steps


def test_with_all_bytes_every_head_that_gains_sees_everything():
  error_RLH = np.sort(np.random.default_rng(0).random((4, 3, 2)), axis=0)[::-1]
  rows, steps = choose_windows(error_RLH, LADDER, 400 * 6)
  assert rows == alike(0, 3, 2)
  assert steps[-1].spent == LADDER.total(rows) == 2400


def test_choices_never_exceed_their_bytes_and_are_near_the_best():
  error_RLH = np.sort(np.random.default_rng(1).random((4, 2, 2)), axis=0)[::-1]
  every = list(itertools.product(range(4), repeat=4))
  for budget in (240, 400, 700, 1000):
    rows, _ = choose_windows(error_RLH, LADDER, budget)
    assert LADDER.total(rows) <= budget

    def total(choice):
      return sum(error_RLH[rung].reshape(-1)[n] for n, rung in enumerate(choice))

    fits = [choice for choice in every if sum(LADDER.bytes_of(LADDER.rungs[rung]) for rung in choice) <= budget]
    found = total([LADDER.rungs.index(window) for row in rows for window in row])
    worst, best = max(map(total, fits)), min(map(total, fits))
    assert found <= best + 0.35 * (worst - best)


def test_heads_with_most_far_mass_keep_everything():
  mass_LH = np.array([[0.1, 0.9], [0.5, 0.2]])
  assert keep_retrieval_heads(mass_LH, LADDER, 4 * 60 + 2 * 340) == ((4, 0), (0, 4))
  assert keep_retrieval_heads(mass_LH, LADDER, 4 * 60 + 2 * 340 - 1) == ((4, 0), (4, 4))
  assert keep_retrieval_heads(mass_LH, LADDER, 10**6) == alike(0, 2, 2)


def test_bytes_that_hold_no_window_are_refused():
  with pytest.raises(ValueError, match="do not hold the smallest window"):
    choose_windows(errors([1, 1, 1, 0]), LADDER, 59)
  with pytest.raises(ValueError, match="do not hold the smallest window"):
    keep_retrieval_heads(np.ones((1, 1)), LADDER, 59)
  with pytest.raises(ValueError, match="errors of 1 rungs"):
    choose_windows(np.zeros((1, 1, 1)), LADDER, 100)
