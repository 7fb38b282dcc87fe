"""Sums of an evaluation by position and by document, on the host in float64."""

from __future__ import annotations

import numpy as np

from lattice_jax.data.loader import EvalBatch


class Totals:
  """Accumulates nats chunk by chunk. Every host adds the same chunks, whichever rows it computed.

  by_bucket, by_document: [2, buckets] and [2, documents], the nats and the number of targets. In fp32, sums over 100k
  tokens would already differ by 1e-6 between batch sizes. end: one past the last position of a target.
  """

  def __init__(self, starts: np.ndarray, num_documents: int):
    self.starts = starts
    self.by_bucket = np.zeros((2, len(starts)))
    self.by_document = np.zeros((2, num_documents))
    self.end = 0

  def add(self, nll_BT: np.ndarray, chunk: EvalBatch) -> None:
    """Ignores the losses where there is no target, even NaN."""
    is_target_BT = chunk.documents_BT >= 0
    nats = nll_BT[is_target_BT].astype(np.float64)
    positions = chunk.positions_BT[is_target_BT]
    self.end = max(self.end, int(positions.max(initial=-1)) + 1)
    bucket = np.searchsorted(self.starts, positions, side="right") - 1
    for sums, index in ((self.by_bucket, bucket), (self.by_document, chunk.documents_BT[is_target_BT])):
      size = sums.shape[1]
      sums += np.bincount(index, nats, size), np.bincount(index, minlength=size)
