"""What training with anchors changes: marks that depart from the marker's, and sequences that repeat themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.hashing import hashed_at
from lattice_jax.data.plan import Placement
from lattice_jax.marks import Marker
from lattice_jax.types import MARK_ANCHOR, Segment

_LENGTHS, _DROPOUT, _CAUSAL, _REPEAT = range(4)  # streams of random numbers


@dataclass(frozen=True)
class TrainingMarks:
  """The marks of training: those of the marker, changed as `data.anchors` says, as a function of the step and the row.

  What is drawn depends on `data.seed` and on the sequence, or the place in it, alone.
  """

  data: DataConfig
  marker: Marker

  def placed(self, step: int, rows: tuple[int, int], placement: Placement) -> Placement:
    """The tokens of rows [first, last) of update `step`: in some rows the second half is the first half again."""
    share, half = self.data.anchors.repeat_share, self.data.seq_len // 2
    if not share:
      return placement
    sequence_B1 = step * self.data.batch + np.arange(*rows)[:, None]
    is_repeated_B1 = _uniform(sequence_B1, self.data.seed, _REPEAT) < share
    again_BT = np.concatenate([placement.index_BT[:, :half], placement.index_BT[:, :half]], axis=1)
    return placement._replace(index_BT=np.where(is_repeated_B1, again_BT, placement.index_BT))

  def of_update(self, step: int, rows: tuple[int, int], segment: Segment) -> np.ndarray:
    """int8 [B, T] of rows [first, last) of update `step`; `segment` has the marks of the marker."""
    data, anchors, marks_BT = self.data, self.data.anchors, segment.marks_BT
    group, update = divmod(step, data.seq_len // data.update_len)
    sequence_B1 = group * data.batch + np.arange(*rows)[:, None]
    if anchors.random_every:
      every_B1 = 2 + hashed_at(sequence_B1, data.seed, _LENGTHS) % np.uint64(anchors.random_every - 1)
      is_anchor_BT = (segment.positions_BT + 1) % every_B1.astype(np.int64) == 0
      marks_BT = np.where(segment.valid_BT & is_anchor_BT, np.int8(MARK_ANCHOR), np.int8(0))
    if anchors.dropout:
      place_BT = sequence_B1 * data.seq_len + update * data.update_len + np.arange(data.update_len)
      is_dropped_BT = _uniform(place_BT, data.seed, _DROPOUT) < anchors.dropout
      marks_BT = np.where(is_dropped_BT, marks_BT & ~np.int8(MARK_ANCHOR), marks_BT)
    if anchors.causal_share:
      is_causal_B1 = _uniform(sequence_B1, data.seed, _CAUSAL) < anchors.causal_share
      marks_BT = np.where(is_causal_B1, np.int8(0), marks_BT)
    return marks_BT


def _uniform(places: np.ndarray, *key: int) -> np.ndarray:
  """Numbers in [0, 1) that depend on place and key alone."""
  return (hashed_at(places, *key) >> np.uint64(11)).astype(np.float64) / 2.0**53
