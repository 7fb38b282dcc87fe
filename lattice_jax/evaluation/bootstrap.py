"""Bootstrap confidence intervals of means, with a fixed seed."""

from __future__ import annotations

import numpy as np

_SAMPLES, _SEED = 2000, 0


def interval_of_mean(values: np.ndarray, *, block: int = 1, level: float = 0.95) -> tuple[float, float]:
  """The percentile interval of the mean. Correlated values are resampled in blocks of `block` neighbours.

  The last block may be shorter; it counts in proportion to its length.
  """
  random = np.random.default_rng(_SEED)
  starts = np.arange(0, len(values), block)
  sums, sizes = np.add.reduceat(values.astype(np.float64), starts), np.diff([*starts, len(values)])
  drawn = random.integers(len(starts), size=(_SAMPLES, len(starts)))
  means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
  return low, high
