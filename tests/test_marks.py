"""Marks are one function of the tokens so far, however these are cut into calls, in numpy and in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.anchor_rule import most_protected, parse_rule
from lattice_jax.marks import (
  CLOSER,
  DOT,
  ENDS,
  FORBIDS,
  LETTER,
  PROTECTED,
  SPACE,
  WORD,
  Marker,
  last_read,
  mark_tokens,
  nothing_read,
)
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED

CLASSES = np.array([0, ENDS, DOT, FORBIDS, LETTER | WORD, LETTER, SPACE, CLOSER, PROTECTED], np.uint8)
OTHER, END, STOP, NUMBER, SHORT, LONG, BLANK, QUOTE, WHOLE = range(9)
WORDS, BYTES = Marker(class_A=CLASSES), Marker(class_A=CLASSES, spelled=True)


def anchors(marker, *tokens, positions=None):
  ids_BT = np.array([tokens], np.int32)
  positions_BT = np.arange(len(tokens))[None] if positions is None else np.array([positions])
  marks_BT = mark_tokens(marker, ids_BT, nothing_read(marker, 1), positions_BT)
  assert marks_BT.dtype == np.int8 and marks_BT.shape == ids_BT.shape
  return np.flatnonzero(marks_BT[0] & MARK_ANCHOR).tolist()


@pytest.mark.parametrize(("tokens", "expected"), [
  ((LONG, STOP), [1]), ((LONG, END, END), [1, 2]), ((NUMBER, STOP, NUMBER), []), ((STOP, STOP), [0, 1]),
  ((OTHER, SHORT, STOP), []), ((LONG, SHORT, STOP), [2]), ((SHORT, STOP, SHORT, STOP), []), ((NUMBER, END), [1]),
  ((99, STOP), [1]), ((LONG, BLANK, QUOTE), []), ((-1, STOP), [1])], ids=str)
def test_a_stop_closes_unless_what_stands_before_forbids_it(tokens, expected):
  assert anchors(WORDS, *tokens) == expected


def test_ids_outside_the_table_are_as_those_without_bits():
  marker = Marker(class_A=np.array([FORBIDS, DOT, FORBIDS], np.uint8))
  assert anchors(marker, -1, 1, 3, 1, 0, 1) == [1, 3]


@pytest.mark.parametrize(("tokens", "expected"), [
  ((SHORT, SHORT, STOP, SHORT), []), ((SHORT, SHORT, STOP, BLANK, BLANK), [3]), ((END, BLANK), [1]), ((END, SHORT), []),
  ((BLANK, SHORT, STOP, SHORT, STOP, BLANK), []), ((SHORT, SHORT, STOP, QUOTE, BLANK), [4]),
  ((SHORT, SHORT, STOP, QUOTE, QUOTE, BLANK), [5]), ((SHORT, STOP, QUOTE, QUOTE, QUOTE, BLANK), []),
  ((LONG, STOP, BLANK), [2]), ((SHORT, QUOTE, BLANK), [])], ids=str)
def test_in_bytes_the_white_space_behind_a_stop_closes(tokens, expected):
  assert anchors(BYTES, *tokens) == expected


def test_nothing_before_the_start_of_a_document_is_looked_at():
  assert anchors(WORDS, NUMBER, STOP, positions=[4, 0]) == [1]
  assert anchors(WORDS, OTHER, LONG, SHORT, STOP, positions=[7, 8, 0, 1]) == []
  assert anchors(BYTES, END, BLANK, positions=[4, 0]) == []


def test_every_nth_token_of_a_document_is_an_anchor_and_protected_ids_are_marked():
  marker = Marker(class_A=CLASSES, every=3)
  assert anchors(marker, *[OTHER] * 8) == [2, 5]
  assert anchors(marker, *[OTHER] * 6, positions=[4, 5, 0, 1, 2, 3]) == [1, 4]
  marks_BT = mark_tokens(marker, np.array([[WHOLE, OTHER, WHOLE]]), nothing_read(marker, 1), np.arange(3)[None])
  assert marks_BT.tolist() == [[MARK_PROTECTED, 0, MARK_PROTECTED | MARK_ANCHOR]]


@pytest.mark.parametrize(("tokens", "marks"), [
  ((OTHER, END, END, END, OTHER), "-ppa-"), ((END, OTHER, END, END, OTHER, END), "p-pp-p"),
  ((OTHER, END, END, END, END, END), "-ppaaa"), ((OTHER, WHOLE, END, END), "-ppp")], ids=str)
def test_of_several_copies_the_last_closes_and_those_before_it_are_protected(tokens, marks):
  marker = Marker(class_A=CLASSES, copies=3)
  found_BT = mark_tokens(marker, np.array([tokens]), nothing_read(marker, 1), np.arange(len(tokens))[None])
  assert found_BT[0].tolist() == [{"-": 0, "p": MARK_PROTECTED, "a": MARK_ANCHOR}[mark] for mark in marks]
  assert anchors(marker, END, END, END, END, positions=[7, 8, 0, 1]) == [], "no run reaches over a document's start"


@pytest.mark.parametrize("apart", [1, 3])
@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_the_most_that_copies_protect_is_found_where_a_text_is_cut(copies, apart):
  marker = Marker(class_A=CLASSES, copies=copies)
  text = ([END] * copies + [OTHER] * apart) * 30
  for length in range(1, 30):
    ids_BT = np.array([[OTHER, *text[start:start + length - 1]] for start in range(copies + apart)])
    positions_BT = np.tile(np.arange(length), (len(ids_BT), 1))
    marks_BT = mark_tokens(marker, ids_BT, nothing_read(marker, len(ids_BT)), positions_BT)
    most = (marks_BT & MARK_PROTECTED > 0).sum(1).max()
    assert most <= most_protected(copies, apart, length)
    if length % (copies + apart) == 0:
      assert most == most_protected(copies, apart, length)


@given(data=st.data(), spelled=st.booleans(), every=st.integers(0, 4), copies=st.integers(1, 5))
def test_any_split_into_calls_gives_the_same_marks_and_later_tokens_change_none(data, spelled, every, copies):
  marker = Marker(class_A=CLASSES, every=every, spelled=spelled, copies=1 if spelled else copies)
  num_tokens = data.draw(st.integers(1, 20))
  ids_BT = np.array(data.draw(st.lists(
    st.lists(st.sampled_from([*range(-1, 11), *[END] * 8]), min_size=num_tokens, max_size=num_tokens),
    min_size=2, max_size=2)), np.int32)
  positions_BT = np.tile(np.arange(num_tokens), (2, 1))
  whole_BT = mark_tokens(marker, ids_BT, nothing_read(marker, 2), positions_BT)
  previous_BW, parts, start = nothing_read(marker, 2), [], 0
  while start < num_tokens:
    stop = start + data.draw(st.integers(1, num_tokens - start))
    part_BT = ids_BT[:, start:stop]
    parts.append(mark_tokens(marker, part_BT, previous_BW, positions_BT[:, start:stop]))
    previous_BW, start = last_read(previous_BW, part_BT, np.full(2, stop - start)), stop
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole_BT)


def test_rows_go_on_behind_their_own_valid_tokens():
  ids_BT = np.array([[NUMBER, LONG, LONG], [LONG, LONG, NUMBER]], np.int32)
  for xnp in (np, jnp):
    previous_BW = last_read(xnp.asarray(nothing_read(WORDS, 2)), xnp.asarray(ids_BT), xnp.array([1, 3]))
    assert previous_BW.tolist() == [[-1, NUMBER], [LONG, NUMBER]]
  assert last_read(np.array([[7, 8]]), ids_BT[:1], np.array([0])).tolist() == [[7, 8]]


@pytest.mark.parametrize("marker", [
  WORDS, BYTES, Marker(class_A=CLASSES, every=3), Marker(class_A=CLASSES, copies=4)],
  ids=["words", "bytes", "every", "copies"])
def test_a_compiled_program_marks_as_numpy_does(marker):
  ids_BT = np.random.default_rng(0).integers(-1, 11, (3, 200)).astype(np.int32)
  positions_BT = np.tile(np.arange(200, dtype=np.int32) % 17, (3, 1))
  given_ = ids_BT, nothing_read(marker, 3), positions_BT
  compiled = jax.jit(mark_tokens)(marker, *given_)
  assert compiled.dtype == jnp.int8
  np.testing.assert_array_equal(compiled, mark_tokens(marker, *given_))


def test_rules_are_read():
  assert parse_rule("none").name == "none" and parse_rule("every:16").every == 16
  assert parse_rule("ids:13,29889").ids == (13, 29889) and parse_rule("token:<A:C>").token == "<A:C>"


@pytest.mark.parametrize("text", [
  "", "punctation", "every", "every:0", "every:x", "every:²", "ids:", "ids:3,", "ids:-1", "token:", "none:", "line:3"])
def test_what_is_no_rule_is_refused(text):
  with pytest.raises(ValueError, match=r"^data.anchors.rule='.*' is none of none, punctuation, .*as in every:16"):
    parse_rule(text)


def test_the_nearest_rule_is_suggested():
  with pytest.raises(ValueError, match=r"^--anchors=.* Did you mean 'punctuation'\?$"):
    parse_rule("punctation", "--anchors")
