"""A model of anchor attention: one program in place a step, the same logits however it reads, and what it costs."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.inference.session import Session
from lattice_jax.marks import ENDS, Marker, mark_tokens, nothing_read
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.state import anchor_slots
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, make_segment, whole_segment
from tests.contract.harness import quick_jit
from tests.memories.anchor import published

BATCH, LENGTH, VOCAB, STOP = 2, 60, 31, 7
MODEL = ModelConfig(
  vocab=VOCAB, dim=16, layers=3, pattern=("anchor",), block="mlp", mlp_dim=8, anchor=AnchorConfig(max_segment=16),
  attention=AttentionConfig(heads=4, kv_heads=2, key_dim=8, value_dim=6))
MARKER = Marker(class_A=np.where(np.arange(VOCAB) % STOP == 0, ENDS, 0).astype(np.uint8))
SEVERAL = replace(MARKER, copies=2)
SEVERAL_MODEL = replace(MODEL, anchor=replace(MODEL.anchor, protected=LENGTH // 3))


@functools.cache
def variables():
  """As a trained model has them: the same rows do not give the same logits at other places."""
  return quick_jit(lambda: jax.tree.map(lambda leaf: 2 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()


def text(seed=0):
  return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def text_of_runs():
  """Every end of a segment stands twice, but for some at which the model wrote one alone."""
  tokens_BT = text(1)
  for row in tokens_BT:
    is_end_T = row % STOP == 0
    row[1:][is_end_T[:-1]] = row[:-1][is_end_T[:-1]]
    row[10:13] = 1, STOP, 1
  return tokens_BT


def marked(tokens_BT, segment, marker=MARKER):
  marks_BT = mark_tokens(marker, tokens_BT, nothing_read(marker, len(tokens_BT)), np.asarray(segment.positions_BT))
  return segment.replace(marks_BT=marks_BT)


def call(model, variables, tokens_BT, state, segment):
  decoder = Decoder(model)
  output = decoder.apply(variables, tokens_BT, state, segment)
  return decoder.apply(variables, output.features_BTD, method=Decoder.logits), output.state


@functools.cache
def whole_logits():
  """Of a text in one call, which needs no cache."""
  segment = marked(text(), whole_segment(BATCH, LENGTH))
  return np.asarray(quick_jit(functools.partial(call, MODEL))(
    variables(), text(), init_state(MODEL, BATCH), segment)[0])


def assert_logits(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_the_papers_model_in_float64_and_ours():
  """Three layers, grouped queries, rotary embedding: deleting what the mask hides changes nothing, in any calls."""
  model, tokens_T = replace(MODEL, anchor=AnchorConfig(max_segment=LENGTH, keep_bos=False)), text()[0]
  is_anchor_T = tokens_T % STOP == 0
  ends = np.flatnonzero(is_anchor_T) + 1
  params = jax.device_get(variables()["params"])
  whole, _ = published.read(params, model, tokens_T, is_anchor_T, (0, LENGTH), reduce=False)
  for cuts in (range(LENGTH + 1), (0, 7, 16, 19, 40, LENGTH), (0, *ends, LENGTH)):
    reduced, kept = published.read(params, model, tokens_T, is_anchor_T, tuple(cuts), reduce=True)
    np.testing.assert_allclose(reduced, whole, rtol=0, atol=1e-10)
    assert kept == [*(ends - 1), *range(ends[-1], LENGTH)]
  segment = marked(text(), whole_segment(BATCH, LENGTH))
  ours, _ = quick_jit(functools.partial(call, model))(variables(), text(), init_state(model, BATCH), segment)
  assert_logits(ours[0], whole)


def assert_a_session_gives(whole_BTA, model, rows, marker):
  """Read in chunks, ragged rows, and one by one."""
  session = Session(model, variables(), batch=BATCH, max_len=LENGTH, chunk_len=9, marker=marker)
  session.read([rows[0, :40], rows[1, :23]])
  assert_logits(session.state.logits_BA[0], whole_BTA[0, 39])
  assert_logits(session.state.logits_BA[1], whole_BTA[1, 22])
  for step in range(20):
    session.step(np.array([rows[0, 40 + step], rows[1, 23 + step]]))
    assert_logits(session.state.logits_BA[0], whole_BTA[0, 40 + step])
    assert_logits(session.state.logits_BA[1], whole_BTA[1, 23 + step])


def test_a_session_gives_the_logits_of_the_masked_forward_pass():
  assert_a_session_gives(whole_logits(), MODEL, text(), MARKER)


def test_several_anchors_of_a_segment_stay_in_training_chunks_and_single_tokens_alike():
  tokens_BT = text_of_runs()
  segment = marked(tokens_BT, whole_segment(BATCH, LENGTH), SEVERAL)
  assert {0, MARK_ANCHOR, MARK_PROTECTED} == set(segment.marks_BT.ravel().tolist())
  assert (segment.marks_BT[:, 11] == MARK_PROTECTED).all(), "one alone is protected and ends nothing"

  def whole(model, tokens_BT):
    return np.asarray(quick_jit(functools.partial(call, model))(
      variables(), tokens_BT, init_state(model, BATCH), segment)[0])

  whole_BTA = whole(SEVERAL_MODEL, tokens_BT)
  assert_logits(whole_BTA, whole(replace(SEVERAL_MODEL, impl="reference"), tokens_BT))
  assert_a_session_gives(whole_BTA, SEVERAL_MODEL, tokens_BT, SEVERAL)
  last = np.flatnonzero(segment.marks_BT[0] == MARK_ANCHOR)[-1]
  num_protected = int((segment.marks_BT[0, 1:last] == MARK_PROTECTED).sum())  # the first token is an anchor
  one_less = replace(MODEL, anchor=replace(MODEL.anchor, protected=num_protected - 1))
  difference_T = np.abs(whole_BTA - whole(one_less, tokens_BT))[0].max(-1)
  assert difference_T[:last].max() < 1e-5 < 1e-2 < difference_T[last + 1:].max(), "the last pair is seen whole too"


def test_a_second_prompt_in_the_same_memory_is_as_the_first():
  tokens = text()[:, :30]
  state, step = init_state(MODEL, BATCH, LENGTH), quick_jit(functools.partial(call, MODEL))
  places_BT = np.broadcast_to(np.arange(30, dtype=np.int32), tokens.shape)
  found = []
  for document in range(2):
    segment = marked(tokens, make_segment(places_BT, ids_BT=np.full(tokens.shape, document, np.int32)))
    logits, state = step(variables(), tokens, state, segment)
    found.append((np.asarray(logits), jax.tree.leaves(jax.device_get(state))))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  different = [not np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)]
  assert sum(different) == 1, "only the document's id has changed"


@pytest.mark.parametrize(("compressed", "branches"), [({}, 1), ({"open_lag": 4, "open_keep": 2}, 2)], ids=str)
def test_a_decode_step_writes_in_place_and_has_one_branch_or_one_more_to_compress(compressed, branches):
  model = replace(MODEL, layers=8, anchor=replace(MODEL.anchor, protected=8, **compressed))
  state = jax.eval_shape(lambda: init_state(model, BATCH, 1024))
  segment = jax.eval_shape(lambda: whole_segment(BATCH, 1))
  shapes = jax.eval_shape(lambda: unbox(init_variables(model, jax.random.key(0))))
  tokens = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)
  program = jax.jit(functools.partial(call, model), donate_argnums=2).lower(shapes, tokens, state, segment).compile()
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes == tree_bytes(state)
  assert memory.temp_size_in_bytes < tree_bytes(state) / 3
  assert program.as_text().count(" conditional(") == branches


def test_bytes_are_the_formula_and_a_ninth_of_the_full_cache_at_segments_of_ten():
  max_len, attention = 4096, MODEL.attention
  model = replace(MODEL, anchor=AnchorConfig(max_segment=32, reach=max_len // 10))
  state = init_state(model, BATCH, max_len)
  numbers = attention.kv_heads * (attention.key_dim + attention.value_dim)
  slots = anchor_slots(model.anchor, max_len)
  assert slots == 1 + max_len // 10
  row = slots * (4 * numbers + 8) + 32 * (4 * numbers + 4) + 7 * 4 + 1
  live = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert live == model.layers * BATCH * row
  full = init_state(replace(MODEL, pattern=("attention",)), BATCH, max_len)
  assert live <= 0.11 * sum(leaf.nbytes for leaf in jax.tree.leaves(full))
