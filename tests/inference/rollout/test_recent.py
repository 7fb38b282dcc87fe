"""Quantiles of what was measured lately, made anew as numbers come and never while one of them is scored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lattice_jax.inference.rollout.recent import RECENT, Recent, Reference


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_a_reference_is_the_quantile_of_the_last_numbers(quantile):
  """Against the definition at every time when it is made: after 16 numbers, then after a quarter more, or 16."""
  reference, numbers, due = Reference(2, quantile), np.random.default_rng(0).random(3000), 16
  for count in range(1, len(numbers) + 1):
    before = reference.value_R.copy()
    reference.add(np.array([1]), numbers[count - 1:count])
    if count == due:
      held = sorted(numbers[max(0, count - RECENT):count].tolist())
      assert reference.value_R[1] == held[math.ceil(quantile * len(held)) - 1]
      due = max(count + 16, int(1.25 * count))
    else:
      assert np.array_equal(reference.value_R, before, equal_nan=True)
  assert np.isnan(reference.value_R[0]), "another rollout's numbers"


def test_a_reference_starts_anew():
  reference = Reference(2, 0.5)
  for x in range(16):
    reference.add(np.array([0, 1]), np.array([x, 100.0 + x]))
  reference.reset(np.array([0]))
  assert np.isnan(reference.value_R[0]) and reference.value_R[1] == 107
  for x in range(16):
    reference.add(np.array([0]), np.array([50.0 + x]))
  assert reference.value_R[0] == 57


def test_a_summary_counts_all_and_shows_the_last():
  recent = Recent()
  assert recent.summary() is None
  for x in [1e9, *range(1, RECENT + 1), None]:
    recent.add(None if x is None else float(x))
  assert recent.summary() == {"count": RECENT + 1, "p50": 512, "p95": 973, "p99": 1014, "largest": 1024}
