"""The models that a report on anchors compares, and the tokens that they read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.inspect.anchors.readers import is_trained, load_model, make_readers, score
from lattice_jax.inspect.anchors.texts import Row, spots, to_batch, window_rows, windows
from lattice_jax.marks import Marker
from lattice_jax.models.decoder import Decoder, init_state
from tests.inspect.anchors import tiny

EVERY = Marker(class_A=np.zeros(1, np.uint8), every=5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tiny.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def variables():
  return tiny.make_variables()


def load(workdir, rule=None, overrides=()):
  return load_model(pretrained=None, workdir=workdir, rule=rule, overrides=overrides)


def with_pattern(loaded, *pattern):
  model = dataclasses.replace(loaded.config.model, pattern=pattern)
  return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, model=model))


def test_full_attention_and_the_mask_have_the_same_weights(workdir):
  loaded = load(workdir)
  readers = make_readers(loaded, loaded)
  assert [(reader.name, reader.model.pattern, reader.is_masked) for reader in readers] == [
    (prefix + name, (memory,), memory == "anchor") for prefix in ("", "after: ")
    for name, memory in (("full", "attention"), ("masked", "anchor"))]
  assert is_trained(loaded) and not is_trained(with_pattern(loaded, "attention"))
  mixed = make_readers(with_pattern(loaded, "anchor", "attention"))
  assert [reader.model.pattern for reader in mixed] == [("attention", "attention"), ("anchor", "attention")]
  causal = make_readers(with_pattern(loaded, "attention", "window"))
  assert [reader.model.pattern for reader in causal] == [("attention", "window"), ("anchor", "window")]


def test_the_rule_is_the_one_given_or_the_runs_own_or_punctuation(workdir):
  assert load(workdir).config.data.anchors.rule == "every:5"
  assert load(workdir, "line").config.data.anchors.rule == "line"
  assert load(workdir, None, ["data.anchors.rule=none"]).config.data.anchors.rule == "punctuation"
  assert load(workdir, None, ["model.dtype=bfloat16"]).config.model.dtype == "bfloat16"


def test_what_has_nothing_to_compare_is_refused(workdir):
  with pytest.raises(ValueError, match="--anchors=none marks no token"):
    load(workdir, "none")
  with pytest.raises(ValueError, match="--anchors='punctation' is none of none, punctuation"):
    load(workdir, "punctation")
  loaded = load(workdir)
  with pytest.raises(ValueError, match=r"model\.pattern=vq,window has no attention that anchors could stand for"):
    make_readers(with_pattern(loaded, "vq", "window"))
  data = dataclasses.replace(loaded.config.data, tokenizer="symbols:20")
  other = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
  with pytest.raises(ValueError, match="tiny reads other tokens than tiny; give --after a run"):
    make_readers(loaded, other)


@pytest.mark.parametrize("memory", ["anchor", "attention"])
def test_calls_and_rows_of_any_size_score_what_one_call_does(variables, memory):
  reader = tiny.make_reader(variables, memory)
  batch = to_batch(window_rows(tiny.random_ids(3, 33)), ByteTokenizer(), EVERY)
  whole_BT, right_BT = score(reader, batch, rows=3, has_answers=True)
  for chunk_len, rows in ((7, 2), (1, 3)):
    part_BT, none = score(reader, batch, rows=rows, chunk_len=chunk_len)
    assert none is None
    np.testing.assert_allclose(part_BT, whole_BT, atol=1e-4)
  tokens_BT, segment = jax.tree.map(jnp.asarray, (batch.tokens_BT, batch.segment))

  @jax.jit
  def read(variables):
    output = Decoder(reader.model).apply(variables, tokens_BT, init_state(reader.model, 3), segment)
    return Decoder(reader.model).apply(variables, output.features_BTD, method=Decoder.logits)

  logits_BTA = np.asarray(read(variables))
  log_BTA = np.asarray(jax.nn.log_softmax(logits_BTA))
  np.testing.assert_allclose(
    whole_BT, -np.take_along_axis(log_BTA, batch.targets_BT[..., None], axis=-1)[..., 0], atol=1e-4)
  np.testing.assert_array_equal(right_BT, logits_BTA.argmax(-1) == batch.targets_BT)


def test_the_mask_matters(variables):
  batch = to_batch(window_rows(tiny.random_ids(1, 33)), ByteTokenizer(), EVERY)
  full_T, masked_T = (
    score(tiny.make_reader(variables, memory), batch, rows=1)[0][0] for memory in ("attention", "anchor"))
  # the inputs are the end of text, an anchor of its own, and four letters up to the first anchor
  np.testing.assert_allclose(full_T[:4], masked_T[:4], atol=1e-5)
  assert np.abs(full_T[5:] - masked_T[5:]).min() > 1e-4


def test_windows_are_spread_over_the_split_and_stay_inside_documents():
  source = load_source(DataConfig(source="synthetic"), "test")
  ids_BT = windows(source, 100, 6)
  starts = [start for first, stop in zip(source.offsets, source.offsets[1:], strict=False)
            for start in range(int(first), int(stop) - 99, 100)]
  chosen = [starts[index] for index in np.linspace(0, len(starts) - 1, 6).round().astype(int)]
  np.testing.assert_array_equal(ids_BT, [source.tokens[start:start + 100] for start in chosen])
  assert len(windows(source, 100, 10**6)) == len(starts)
  with pytest.raises(ValueError, match=r"no document of synthetic has 1,778 tokens; the longest has 1,777: use a"):
    windows(source, 1778, 1)
  with pytest.raises(ValueError, match=r"data\.source=synthetic is no text"):
    windows(dataclasses.replace(source, unit="dim"), 10, 1)


def test_marks_of_a_row_stand_at_the_inputs_that_they_belong_to():
  marks = np.array([0, 1, 0, 0, 1], np.int8)
  rows = [Row(np.arange(5) + 10, (3, 5), marks), Row(np.arange(3) + 20, (0, 1))]
  batch = to_batch(rows, ByteTokenizer(), Marker(class_A=np.zeros(1, np.uint8), every=3))
  assert batch.tokens_BT[:, :6].tolist() == [[1, 10, 11, 12, 13, 0], [1, 20, 21, 0, 0, 0]]
  assert batch.targets_BT[:, :5].tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]]
  assert batch.segment.marks_BT[:, :6].tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
  assert batch.weights_BT.sum(1).tolist() == [2, 1] and batch.weights_BT[0, 3:5].tolist() == [1, 1]
  assert batch.segment.valid_BT.sum(1).tolist() == [5, 3]


def test_spots_count_forced_anchors_as_the_memory_does():
  model = dataclasses.replace(tiny.MODEL, anchor=dataclasses.replace(tiny.MODEL.anchor, max_segment=4))
  marks = np.array([0, 1, 0, 0, 0, 0, 0, 1, 0], np.int8)
  where = spots(model, to_batch([Row(np.arange(9) + 10, (0, 9), marks)], ByteTokenizer(), None), None)
  assert where.segment_BT[0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 3]
  assert where.place_BT[0].tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 0]
  assert np.flatnonzero(where.is_anchor_BT[0]).tolist() == [1, 5, 7]


def test_the_last_target_may_be_an_anchor():
  batch = to_batch(window_rows(tiny.random_ids(1, 9)), ByteTokenizer(), EVERY)
  assert np.flatnonzero(spots(tiny.MODEL, batch, EVERY).is_anchor_BT[0]).tolist() == [3, 8]
