"""Where tokens stand: what a segment says by itself, and marks made from token ids."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, make_marks, make_segment


@pytest.mark.parametrize("xnp", [np, jnp], ids=["numpy", "jax"])
def test_a_segment_is_one_document_of_valid_tokens_unless_told_otherwise(xnp):
  positions = xnp.arange(6, dtype=xnp.int32).reshape(2, 3)
  segment = make_segment(positions)
  assert all(type(field) is type(positions) for field in (segment.ids_BT, segment.valid_BT, segment.marks_BT))
  assert (segment.ids_BT.dtype, segment.valid_BT.dtype, segment.marks_BT.dtype) == (np.int32, bool, np.int8)
  assert not np.any(segment.ids_BT) and np.all(segment.valid_BT) and not np.any(segment.marks_BT)
  valid, marks = positions < 4, make_marks(positions, anchors=(1,))
  told = make_segment(positions, ids_BT=positions + 7, valid_BT=valid, marks_BT=marks)
  assert told.ids_BT[1, 2] == 12 and told.valid_BT.sum() == 4 and told.marks_BT.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("xnp", [np, jnp], ids=["numpy", "jax"])
def test_marks_are_bits_and_a_token_may_carry_both(xnp):
  tokens = xnp.asarray([[5, 9, 7, 5]], xnp.int32)
  marks = make_marks(tokens, anchors=(5, 9), protected=(9,))
  assert marks.dtype == np.int8
  assert marks.tolist() == [[MARK_ANCHOR, MARK_ANCHOR | MARK_PROTECTED, 0, MARK_ANCHOR]]
