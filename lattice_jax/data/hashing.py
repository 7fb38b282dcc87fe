"""Numbers and permutations that depend on their key alone, not on the numpy version or what was drawn before."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed_integers(count: int, *key: int) -> np.ndarray:
  """`count` uint64 numbers, uniform and independent, that depend on the key alone (SplitMix64)."""
  state = np.zeros(1, np.uint64)
  for part in key:
    state = _mix(state + np.array([part % 2**64], np.uint64) + _GOLDEN)
  return _mix(state + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)


def permutation(count: int, *key: int) -> np.ndarray:
  """A permutation of range(count) that depends on the key alone."""
  return np.argsort(hashed_integers(count, *key), kind="stable")


def _mix(value: np.ndarray) -> np.ndarray:
  value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return value ^ (value >> np.uint64(31))
