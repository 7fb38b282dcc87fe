"""What a model reads as anchors: the marks of prompts in any pieces, of drawn texts, forks, and protected spans."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.retrieval import run
from lattice_jax.inference import blocks, session
from lattice_jax.inference.generate import GenerateOptions, TokenStream, generate
from lattice_jax.inference.session import Session
from lattice_jax.marks import CLOSER, DOT, ENDS, FORBIDS, LETTER, SPACE, WORD, Marker, mark_tokens, nothing_read
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED
from tests.inference.test_generate import compilations

PLACES = 64
MODEL = ModelConfig(vocab=12, layers=1, pattern=("anchor",), anchor=AnchorConfig(protected=5))
CLASSES = [0, 0, 0, ENDS, DOT, DOT, DOT, FORBIDS, FORBIDS, LETTER | WORD, LETTER, SPACE]
BYTE_CLASSES = [0, 0, 0, ENDS, ENDS, DOT, CLOSER, SPACE, SPACE, SPACE, LETTER | WORD, LETTER]
MARKER = Marker(class_A=np.array(CLASSES, np.uint8))
VARIABLES = {"params": jnp.zeros(3)}
ROWS = np.random.default_rng(1).integers(3, 12, (2, 40)).astype(np.int32)


class MarkRecorder:
  """In place of the decoder: its memory is the mark of every place, 100 where nothing was read; all logits are 0."""

  def __init__(self, model):
    self.model = model

  logits = None

  def apply(self, variables, tokens_BT, memory=None, segment=None, method="read"):
    if method is None:
      return jnp.zeros((*tokens_BT.shape[:2], self.model.vocab))
    row_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    place_BT = jnp.where(segment.valid_BT, segment.positions_BT, PLACES)
    seen_BS = memory["seen_BS"].at[row_B1, place_BT].set(segment.marks_BT, mode="drop")
    return SimpleNamespace(features_BTD=jnp.zeros((*tokens_BT.shape, 1)), state={"seen_BS": seen_BS})


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
  compiled = (session.compile_start, session._compile_chunk, session._compile_token, blocks._compile)
  for module in (session, run):
    monkeypatch.setattr(module, "Decoder", MarkRecorder)
  monkeypatch.setattr(
    session, "init_state", lambda model, batch, max_len: {"seen_BS": jnp.full((batch, PLACES), 100, jnp.int8)})
  for program in compiled:
    program.cache_clear()
  yield
  for program in compiled:
    program.cache_clear()


def make_session(marker=MARKER, **options):
  return Session(MODEL, VARIABLES, batch=2, max_len=0, chunk_len=4, marker=marker, **options)


def seen(session_):
  seen_BS = np.asarray(session_.state.memory["seen_BS"])
  return [row[row != 100].tolist() for row in seen_BS]


def expected(*rows, marker=MARKER):
  return [
    mark_tokens(marker, np.asarray(row, np.int32)[None], nothing_read(marker, 1), np.arange(len(row))[None])[0].tolist()
    for row in rows]


@pytest.mark.parametrize("marker", [
  MARKER, Marker(MARKER.class_A, every=5), Marker(np.array(BYTE_CLASSES, np.uint8), spelled=True),
  Marker(ENDS * (np.arange(12) > 6).astype(np.uint8), copies=4)], ids=["words", "every", "bytes", "copies"])
def test_pieces_and_single_tokens_are_marked_as_the_whole_row(marker):
  pieces = make_session(marker)
  pieces.read([ROWS[0, :9], ROWS[1, :2]])
  pieces.read([ROWS[0, 9:10], ROWS[1, 2:8]])
  fork = pieces.fork()
  for place in range(10):
    pieces.step(np.array([ROWS[0, 10 + place], ROWS[1, 8 + place]]))
  whole = expected(ROWS[0, :20], ROWS[1, :18], marker=marker)
  marks = [mark for row in whole for mark in row]
  assert seen(pieces) == whole and MARK_ANCHOR in marks and 2 < len(marks) - marks.count(0) < 30
  fork.read([ROWS[0, 10:20], ROWS[1, 8:18]])
  assert seen(fork) == whole


def test_a_text_that_may_protect_more_tokens_than_there_is_room_for_is_refused():
  marker = Marker(MARKER.class_A, copies=2, apart=4)
  Session(MODEL, VARIABLES, batch=1, max_len=30, marker=marker)
  with pytest.raises(ValueError, match=r"^model.anchor.protected=5 is too little for data.anchors.copies=2: .* a text "
                     r"of 31 tokens up to 6; set it to at least 6"):
    Session(MODEL, VARIABLES, batch=1, max_len=31, marker=marker)


def test_a_short_row_goes_on_behind_its_own_last_token():
  session_ = make_session()
  session_.read([np.array([10, 7], np.int32), np.array([7, 7, 10], np.int32)])
  session_.step(np.array([4, 4]))
  assert seen(session_) == expected([10, 7, 4], [7, 7, 10, 4]) == [[0, 0, 0], [0, 0, 0, 1]]


def test_a_session_without_marker_marks_nothing_and_carries_no_ids():
  plain = make_session(None)
  plain.read(list(ROWS[:, :9]))
  plain.step(ROWS[:, 9])
  assert seen(plain) == [[0] * 10] * 2
  assert plain.state.previous_BW is None and plain.marker is None


def test_another_table_of_the_same_size_compiles_nothing():
  make_session().read(list(ROWS))
  with compilations() as compiled:
    other = make_session(Marker(np.full(12, ENDS, np.uint8)))
    other.read(list(ROWS))
  assert compiled == [] and seen(other) == [[1] * 40] * 2


@pytest.mark.parametrize("options", [{"prefill_len": 3, "block_len": 4}, {"prefill_len": 16, "block_len": 1}], ids=str)
def test_a_drawn_text_is_marked_like_its_prompt(options):
  stream = TokenStream(
    MODEL, VARIABLES, [ROWS[0, :7], ROWS[1, :2]], length=20, options=GenerateOptions(marker=MARKER, seed=3, **options))
  for _ in stream:
    pass
  rows = [[1, *prompt, *text.ids] for prompt, text in zip([ROWS[0, :7], ROWS[1, :2]], stream.texts, strict=True)]
  marks = expected(*rows)
  assert [row[:len(mark)] for row, mark in zip(seen(stream._session), marks, strict=True)] == marks
  assert sum(map(sum, marks)) > 8


def test_answers_that_are_scored_in_one_call_are_marked_too(monkeypatch):
  marked, given = run.marked, []
  monkeypatch.setattr(run, "marked", lambda *args: given.append(marked(*args)) or given[-1])
  prompt = make_session()
  prompt.read(list(ROWS[:, :9]))
  with run.jax.disable_jit():
    run.score_answers(prompt, list(ROWS[:, 9:16]))
  assert given[0][0].marks_BT.tolist() == [row[9:15] for row in expected(*ROWS[:, :15])]


def test_protected_spans_are_marked_where_they_stand_beside_the_anchors():
  spans = [[(0, 2), (5, 8)], []]
  session_ = make_session()
  session_.read([ROWS[0, :10], ROWS[1, :3]], spans)
  session_.read([ROWS[0, 10:12], ROWS[1, 3:12]], [[], [(0, 1), (8, 9)]])
  protected = np.zeros((2, 12), int)
  protected[0, [0, 1, 5, 6, 7]] = protected[1, [3, 11]] = MARK_PROTECTED
  assert seen(session_) == (np.array(expected(*ROWS[:, :12])) | protected).tolist()
  alone = make_session(None)
  alone.read([ROWS[0, :10]], [[(2, 3)]])
  assert seen(alone) == [[0, 0, MARK_PROTECTED] + [0] * 7] * 2


def test_protected_spans_of_prompts_do_not_count_what_stands_before_the_prompt():
  stream = TokenStream(MODEL, VARIABLES, [ROWS[0, :6]], length=1, options=GenerateOptions(protected=[[(2, 6)]]))
  list(stream)
  assert seen(stream._session)[0][:7] == [0, 0, 0] + [MARK_PROTECTED] * 4


@pytest.mark.parametrize(("spans", "message"), [
  ([[(0, 1)]], "protected spans were given for 1 of 2 prompts; give each its list, which may be empty"),
  ([[], [(2, 4)]], r"the protected span \[2, 4\) of row 1 lies outside its prompt of 3 tokens"),
  ([[(-1, 1)], []], r"the protected span \[-1, 1\) of row 0 lies outside its prompt of 6 tokens"),
  ([[(3, 3)], []], r"the protected span \[3, 3\) of row 0"),
  ([[(0, 6)], []], r"spans of row 0 hold 6 tokens, and the model's memories have room for 5 \(model.anchor.protected")],
  ids=str)
def test_spans_outside_their_prompts_are_refused(spans, message):
  with pytest.raises(ValueError, match=message):
    make_session().read([ROWS[0, :6], ROWS[1, :3]], spans)
  with pytest.raises(ValueError, match=message):
    generate(MODEL, VARIABLES, [ROWS[0, :6], ROWS[1, :3]], length=1, protected=spans)
