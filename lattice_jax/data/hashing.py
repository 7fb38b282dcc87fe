"""Random numbers and permutations that depend on a key alone, not on the NumPy version or on earlier draws."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6


def hashed_integers(count: int, *key: int) -> np.ndarray:
  """`count` independent uniform uint64 numbers that depend on the key alone (SplitMix64)."""
  return hashed_at(np.arange(count), *key)


def hashed_at(places: np.ndarray, *key: int) -> np.ndarray:
  """The numbers at the places ≥ 0 of an endless `hashed_integers`; no others are computed."""
  state = np.zeros(1, np.uint64)
  for part in key:
    state = _mix(state + np.array([part % 2**64], np.uint64) + _GOLDEN)
  return _mix(state + (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def permutation(count: int, *key: int) -> np.ndarray:
  """A permutation of range(count) that depends on the key alone."""
  return np.argsort(hashed_integers(count, *key), kind="stable")


def permuted(places: np.ndarray, count: int, *key: int) -> np.ndarray:
  """The images of `places` under a permutation of range(count) that depends on the key alone; no others are computed.

  A Feistel network on the smallest even number of bits that holds `count`; a result outside goes through it again.
  """
  half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
  mask = (np.uint64(1) << half) - np.uint64(1)
  round_keys = hashed_integers(_FEISTEL_ROUNDS, *key)
  result = np.asarray(places).astype(np.uint64)
  outside = np.ones(result.shape, bool)
  while outside.any():
    left, right = result[outside] >> half, result[outside] & mask
    for round_key in round_keys:
      left, right = right, left ^ (_mix(right + round_key) & mask)
    result[outside] = left << half | right
    outside = result >= count
  return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
  value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return value ^ (value >> np.uint64(31))
