"""Prompts at the door: padding on either side, and pieces of ragged rows."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.inference.prompts import check_room, prompt_chunk, unpad

ROWS = [[7, 8, 9], [], [5, 6]]


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_on_either_side_is_cut_off(side):
  before = {"left": lambda row: 5 - len(row), "right": lambda row: 0, "both": lambda row: 1}[side]
  tokens, valid = np.zeros((3, 5), np.int32), np.zeros((3, 5), bool)
  for index, row in enumerate(ROWS):
    place = slice(before(row), before(row) + len(row))
    tokens[index, place], valid[index, place] = row, True
  assert [row.tolist() for row in unpad(tokens, valid)] == ROWS


def test_padding_between_tokens_and_masks_of_another_shape_are_refused():
  with pytest.raises(ValueError, match="row 1 has padding between its tokens; pad it on the left or on the right"):
    unpad(np.ones((2, 3), np.int32), np.array([[1, 1, 0], [1, 0, 1]]))
  with pytest.raises(ValueError, match=r"\(2, 3\) and their mask \(3,\) must be alike"):
    unpad(np.ones((2, 3), np.int32), np.ones(3))


def test_pieces_of_rows_are_their_tokens_with_their_positions():
  tokens, segment = prompt_chunk([np.array(row, np.int32) for row in ROWS], 2, 2)
  np.testing.assert_array_equal(segment.valid_BT, [[True, False], [False, False], [False, False]])
  np.testing.assert_array_equal(tokens, [[9, 0], [0, 0], [0, 0]])
  np.testing.assert_array_equal(segment.positions_BT, [[2, 3]] * 3)


def test_a_prompt_that_fills_the_context_is_refused():
  rows = [np.zeros(2, np.int32), np.zeros(4, np.int32)]
  check_room(rows, None)
  check_room(rows, 5)
  with pytest.raises(ValueError, match="the prompt of row 1 has 4 tokens, and the context holds 4"):
    check_room(rows, 4)
