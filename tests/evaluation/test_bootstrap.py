"""Intervals of means: they are as wide as theory says, and wider if neighbours are correlated."""

from __future__ import annotations

import numpy as np

from lattice_jax.evaluation.bootstrap import interval_of_mean


def test_the_interval_is_as_wide_as_the_standard_error_says():
  values = np.random.default_rng(0).normal(3.0, 2.0, 400)
  low, high = interval_of_mean(values)
  np.testing.assert_allclose([low, high], values.mean() + np.array([-1.96, 1.96]) * 2 / 20, atol=0.05)
  assert interval_of_mean(values) == (low, high)


def test_stretches_of_equal_values_count_once_when_they_are_drawn_as_one():
  values = np.repeat(np.random.default_rng(0).normal(0.0, 1.0, 50), 8)
  narrow, wide = (np.ptp(interval_of_mean(values, block=block)) for block in (1, 8))
  np.testing.assert_allclose(wide / narrow, 8**0.5, rtol=0.15)


def test_a_short_last_stretch_weighs_as_much_as_it_is_long():
  low, high = interval_of_mean(np.array([1.0] * 30 + [5.0]), block=30)
  assert (low, high) == (1.0, 5.0)
  assert interval_of_mean(np.ones(3), block=8) == (1.0, 1.0)
  # one of each stretch, which half of the draws are, has the mean of all values
  np.testing.assert_allclose(
    interval_of_mean(np.array([1.0] * 30 + [5.0]), block=30, level=0.2), [35 / 31] * 2, rtol=1e-12)
