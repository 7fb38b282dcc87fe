"""LagKV token by token in float64: the definition that the cache is held against."""

from __future__ import annotations

import numpy as np


def scores(z_LK: np.ndarray, next_LK: np.ndarray, epsilon: float) -> np.ndarray:
  """Softmax over a partition's tokens of the spread over channels, scaled by the next partition's range."""
  lo_K, hi_K = next_LK.min(0), next_LK.max(0)
  scaled_LK = (z_LK - lo_K) / np.maximum(hi_K - lo_K, epsilon)
  spread_L = np.sqrt(((scaled_LK - scaled_LK.mean(1, keepdims=True)) ** 2).sum(1) / (scaled_LK.shape[1] - 1))
  weight_L = np.exp(spread_L - spread_L.max())
  return weight_L / weight_L.sum()


def partition_scores(
  k_TK: np.ndarray, v_TV: np.ndarray, *, sinks: int, lag: int, value_weight: float = 1.0, epsilon: float = 1e-6,
) -> list[np.ndarray]:
  """For each partition that has a complete successor, the score of its tokens; one head."""
  k_TK, v_TV = k_TK.astype(np.float64), v_TV.astype(np.float64)
  result = []
  for start in range(sinks, len(k_TK) - 2 * lag + 1, lag):
    here, following = slice(start, start + lag), slice(start + lag, start + 2 * lag)
    result.append(
      scores(k_TK[here], k_TK[following], epsilon) + value_weight * scores(v_TV[here], v_TV[following], epsilon))
  return result


def kept_positions(k_TK: np.ndarray, v_TV: np.ndarray, *, sinks: int, lag: int, keep: int) -> list[int]:
  """Positions that stay of one head's tokens, ascending."""
  per_partition = partition_scores(k_TK, v_TV, sinks=sinks, lag=lag)
  if not per_partition:
    return list(range(len(k_TK)))
  picks = []
  for p, score_L in enumerate(per_partition):
    picks += [sinks + p * lag + offset for offset in sorted(np.argsort(-score_L)[:keep])]
  return [*range(sinks), *picks, *range(sinks + len(per_partition) * lag, len(k_TK))]
