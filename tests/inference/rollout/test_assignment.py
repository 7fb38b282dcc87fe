"""Assignment is a function of salt and name: even, sticky, monotone, and independent between salts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lattice_jax.inference.rollout.assignment import BUCKETS, CONTROL, TREATMENT, arm_of, bucket_of, is_sampled

NAMES = [f"unit {number}" for number in range(4000)]


def test_buckets_are_even():
  counts = np.bincount([bucket_of("salt", name) // 100 for name in NAMES], minlength=100)
  chi_square = ((counts - 40) ** 2 / 40).sum()
  assert 60 < chi_square < 149  # the 0.1 % and 99.9 % quantiles with 99 degrees of freedom


def test_buckets_stay_what_they_are():
  """A released version must not move units between arms in the middle of a rollout."""
  assert [bucket_of("rollout", name) for name in ("a", "b", "")] == [7898, 3641, 2101]
  assert bucket_of("rollout", "a", "quality") == 1249


def test_a_unit_that_is_treated_stays_so_at_every_higher_percentage():
  treated = [{name for name in NAMES if arm_of("salt", name, percent) == TREATMENT} for percent in (0, 1, 5, 25, 100)]
  assert all(low < high for low, high in itertools.pairwise(treated))
  assert not treated[0] and len(treated[-1]) == len(NAMES)
  assert len(treated[2]) == pytest.approx(0.05 * len(NAMES), rel=0.2)


def test_salts_and_purposes_are_independent():
  first, second, quality = (
    np.array([fn(name) for name in NAMES])
    for fn in (lambda name: arm_of("a", name, 50) == TREATMENT, lambda name: arm_of("b", name, 50) == TREATMENT,
               lambda name: is_sampled("a", name, 0.5)))
  for other in (second, quality):
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.06


def test_the_smallest_percentage_is_one_bucket():
  # found by trying; trying here would take a second
  first, second = "8680", "738"
  assert BUCKETS == 10_000 and (bucket_of("salt", first), bucket_of("salt", second)) == (0, 1)
  assert [arm_of("salt", name, 0.01) for name in (first, second)] == [TREATMENT, CONTROL]
  assert arm_of("salt", first, 0) == CONTROL
