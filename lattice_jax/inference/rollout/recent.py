"""Quantiles of what was measured lately: of the control, as a reference for gates, and of both arms, to be shown."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

RECENT = 1024  # numbers that are remembered
_FIRST, _GROWTH = 16, 1.25  # a reference is made from so many numbers, and anew when there are so many times more


class Reference:
  """A quantile of the last numbers of R rollouts; NaN before there are sixteen.

  It changes only between units, so that whether a unit lies above it is a bet on what is not known yet.
  """

  def __init__(self, rollouts: int, quantile: float):
    self.quantile = quantile
    self.value_R = np.full(rollouts, np.nan)
    self._recent_RN = np.full((rollouts, RECENT), np.inf)
    self._seen_R = np.zeros(rollouts, np.int64)
    self._due_R = np.full(rollouts, _FIRST)

  def reset(self, rows_U: np.ndarray) -> None:
    self.value_R[rows_U], self._recent_RN[rows_U] = np.nan, np.inf
    self._seen_R[rows_U], self._due_R[rows_U] = 0, _FIRST

  def add(self, rows_U: np.ndarray, x_U: np.ndarray) -> None:
    """One number of each of these rollouts."""
    self._recent_RN[rows_U, self._seen_R[rows_U] % RECENT] = x_U
    self._seen_R[rows_U] += 1
    due_U = rows_U[self._seen_R[rows_U] >= self._due_R[rows_U]]
    if not len(due_U):
      return
    seen_U = self._seen_R[due_U]
    self._due_R[due_U] = np.maximum(seen_U + _FIRST, (_GROWTH * seen_U).astype(np.int64))
    held_U = np.minimum(seen_U, RECENT)
    sorted_UN = np.sort(self._recent_RN[due_U, :held_U.max()], axis=1)  # places not filled yet are infinite
    # the first number that at least this share does not exceed
    place_U = np.ceil(self.quantile * held_U).astype(np.int64) - 1
    self.value_R[due_U] = sorted_UN[np.arange(len(due_U)), place_U]


class Recent:
  """The last numbers of one series, for people to look at."""

  def __init__(self) -> None:
    self._numbers: deque[float] = deque(maxlen=RECENT)
    self.count = 0

  def add(self, x: float | None) -> None:
    if x is not None:
      self._numbers.append(x)
      self.count += 1

  def summary(self) -> dict[str, Any] | None:
    """count: of all numbers; the rest is about the last 1,024. None without numbers."""
    if not self._numbers:
      return None
    *quantiles, largest = np.quantile(self._numbers, [0.5, 0.95, 0.99, 1], method="inverted_cdf").tolist()
    return {"count": self.count, **dict(zip(("p50", "p95", "p99"), quantiles, strict=True)), "largest": largest}
