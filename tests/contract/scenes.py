"""Inputs of the laws: documents laid out in rows, states with a past, and cotangents to pull back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np

from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, Segment, make_segment
from tests.contract.harness import Form, float_leaves, normal, normal_like
from tests.contract.memories import LENGTH, ROWS_PER_BATCH

Document = tuple[int, int, int]  # id, position of its first token here, number of tokens


@flax.struct.dataclass
class Scene:
  """One call of a layer, and a random projection of what comes out."""

  x_BTD: np.ndarray
  state: Any
  segment: Segment
  d_y_BTD: np.ndarray  # zero at invalid tokens
  d_state: dict[str, np.ndarray]


def documents(rows: Sequence[Sequence[Document]], length: int) -> Segment:
  """A segment whose rows hold these documents one after the other; what is left of a row is invalid.

  Some tokens are marked, as their positions say, also where documents go on.
  """
  positions_BT, ids_BT = np.zeros((2, len(rows), length), np.int32)
  valid_BT = np.zeros((len(rows), length), bool)
  for row, layout in enumerate(rows):
    start = 0
    for identity, position, count in layout:
      here = slice(start, start + count)
      positions_BT[row, here] = position + np.arange(count)
      ids_BT[row, here] = identity
      valid_BT[row, here] = True
      start += count
  marks_BT = np.where(positions_BT % 5 == 3, MARK_ANCHOR, 0) | np.where(positions_BT % 7 < 2, MARK_PROTECTED, 0)
  return make_segment(positions_BT, ids_BT=ids_BT, valid_BT=valid_BT, marks_BT=marks_BT.astype(np.int8))


# What every row has read before: full rows, open blocks of several lengths, an id that came before, nothing at all.
PAST = (
  [(1, 0, 23)],
  [(1, 0, 10), (2, 0, 13)],
  [(3, 0, 22)],
  [(1, 0, 7)],
  [],
  [(1, 0, 16)],
  [(4, 0, 5)],
  [(2, 0, 12), (1, 0, 1)],
)
# What it reads now: the document goes on, ends in mid-row, ends twice, is padded, is new.
PRESENT = (
  [(1, 23, 23)],
  [(2, 13, 8), (3, 0, 15)],
  [(3, 22, 3), (5, 0, 11), (6, 0, 9)],
  [(1, 7, 11)],
  [(4, 0, 22), (5, 0, 1)],
  [(9, 0, 23)],
  [(4, 5, 6), (6, 0, 11)],
  [],
)


@functools.cache
def mixed(form: Form) -> Scene:
  """PRESENT on top of PAST: resets, padding and open blocks in one batch."""
  shape = (ROWS_PER_BATCH, LENGTH, form.model.dim)
  past = form.pull(normal(1, shape), form.init_state(), documents(PAST, LENGTH))
  return scene(form, normal(2, shape), past.state, documents(PRESENT, LENGTH))


def scene(form: Form, x_BTD: np.ndarray, state: Any, segment: Segment, seed: int = 50) -> Scene:
  d_y_BTD = normal(seed, x_BTD.shape) * segment.valid_BT[..., None]
  return Scene(x_BTD, state, segment, d_y_BTD, normal_like(seed + 1, float_leaves(state)))


def keep_valid(y_BTD: np.ndarray, segment: Segment) -> np.ndarray:
  """Outputs at invalid tokens mean nothing and are compared nowhere."""
  return np.where(segment.valid_BT[..., None], y_BTD, 0)
