"""Bootstrap confidence intervals of means, with a fixed seed."""

from __future__ import annotations

import numpy as np

_SAMPLES, _SEED = 2000, 0


def interval_of_mean(values: np.ndarray, *, block: int = 1, level: float = 0.95) -> tuple[float, float]:
  """The percentile interval of the mean. Correlated values are resampled in blocks of `block` neighbours.

  The last block may be shorter; it counts in proportion to its length.
  """
  starts = np.arange(0, len(values), block)
  sums, sizes = np.add.reduceat(values.astype(np.float64), starts), np.diff([*starts, len(values)])
  return interval_of_ratio(sums, sizes, level=level)


def interval_of_ratio(sums: np.ndarray, sizes: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
  """The percentile interval of Σ sums / Σ sizes, from resampling the pairs; samples whose sizes are all 0 are left out.

  Raises:
    ValueError: all sizes are 0.
  """
  if not np.any(sizes):
    raise ValueError("a ratio of nothing to nothing has no interval; give sizes of which at least one is not 0.")
  random = np.random.default_rng(_SEED)
  drawn = random.integers(len(sums), size=(_SAMPLES, len(sums)))
  total, size = np.asarray(sums, np.float64)[drawn].sum(axis=1), np.asarray(sizes)[drawn].sum(axis=1)
  means = total[size > 0] / size[size > 0]
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
  return low, high
