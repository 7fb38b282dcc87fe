"""Answers of a task: which of them are right, by label, whatever the batch and the chunks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import DataConfig, EvalConfig, ModelConfig, RecallConfig
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.evaluation.evaluator import evaluate
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment

DATA = DataConfig(
  source="recall", tokenizer="symbols:14", seq_len=24, update_len=24, recall=RecallConfig(pairs=6, fewest_pairs=3))
MODEL = ModelConfig(
  vocab=17, dim=16, layers=1, pattern=("attention",), xent_chunk=100,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4))
DOCUMENTS = 30  # of the split that are evaluated


@pytest.fixture(scope="module")
def variables():
  return jax.jit(lambda: unbox(init_variables(MODEL, jax.random.key(0))))()


@pytest.fixture(scope="module")
def source():
  whole = load_source(DATA, "test")
  answers = dataclasses.replace(whole.answers, count=DOCUMENTS // 2 * (6 + 3))
  return dataclasses.replace(whole, tokens=whole.tokens[:DOCUMENTS * 24], offsets=whole.offsets[:DOCUMENTS + 1],
                             num_bytes=answers.count, answers=answers)


def plain(source, variables):
  """(right, nats, pairs, distance) of every answer, from all logits at once."""
  targets_BT = source.tokens.reshape(DOCUMENTS, 24)
  tokens_BT = np.pad(targets_BT, ((0, 0), (1, 0)), constant_values=1)[:, :-1]

  def logits(variables):
    output = Decoder(MODEL).apply(
      variables, jnp.asarray(tokens_BT), init_state(MODEL, DOCUMENTS), whole_segment(DOCUMENTS, 24))
    return Decoder(MODEL).apply(variables, output.features_BTD, method=Decoder.logits)

  logits_BTA = np.asarray(jax.jit(logits)(variables), np.float64)
  nats_BT = np.log(np.exp(logits_BTA).sum(-1)) - np.take_along_axis(logits_BTA, targets_BT[..., None], -1)[..., 0]
  places = np.arange(DOCUMENTS * 24)
  is_answer = source.answers.weights[places] > 0
  labels = [source.answers.labels[name][places][is_answer] for name in ("pairs", "distance")]
  return (logits_BTA.argmax(-1) == targets_BT).ravel()[is_answer], nats_BT.ravel()[is_answer], *labels


def run(source, variables, **options):
  return evaluate(
    MODEL, variables["params"], variables["buffers"], source, get_tokenizer(DATA), eval=EvalConfig(**options),
    data=DATA)


@pytest.mark.parametrize(("protocol", "batch", "chunk_len"), [("cold", 7, 0), ("carried", 4, 9)])
def test_accuracy_and_nats_are_those_of_the_answers(source, variables, protocol, batch, chunk_len):
  right, nats, pairs, distance = plain(source, variables)
  result = run(source, variables, protocol=protocol, batch=batch, chunk_len=chunk_len)
  assert result.tokens == result.split_tokens == len(right) and result.unit == "answer"
  assert result.accuracy == pytest.approx(right.mean()) and 0 < right.mean() < 1
  np.testing.assert_allclose(result.nll_per_token, nats.mean(), rtol=1e-5)
  np.testing.assert_allclose(result.bits_per_byte, nats.mean() / np.log(2), rtol=1e-5)
  assert [(group.label, group.first, group.last) for group in result.answers[:2]] == [("pairs", 3, 3), ("pairs", 6, 6)]
  assert {group.label for group in result.answers} == {"pairs", "distance"}
  for group in result.answers:
    value = pairs if group.label == "pairs" else distance
    inside = (group.first <= value) & (value <= group.last)
    assert group.answers == inside.sum() and group.first in value and group.last in value
    assert group.accuracy == pytest.approx(right[inside].mean())
    np.testing.assert_allclose(group.nll_per_answer, nats[inside].mean(), rtol=1e-5)
  for label in ("pairs", "distance"):
    octaves = [tuple(int(np.log2(end)) for end in (group.first, group.last))
               for group in result.answers if group.label == label]
    assert all(low == high for low, high in octaves) and octaves == sorted(set(octaves)), octaves
    assert sum(group.answers for group in result.answers if group.label == label) == result.tokens


def test_windows_that_separate_a_question_from_its_pair_are_refused(source, variables):
  with pytest.raises(ValueError, match=r"windows of 12 tokens cut the documents of recall, 24 .* at least 24"):
    run(source, variables, seq_len=12)


def test_text_has_no_accuracy(variables):
  data = DataConfig(source="synthetic", seq_len=64, update_len=64)
  model = dataclasses.replace(MODEL, vocab=259)
  text_variables = jax.jit(lambda: unbox(init_variables(model, jax.random.key(0))))()
  result = evaluate(
    model, text_variables["params"], text_variables["buffers"], load_source(data, "test"), get_tokenizer(data),
    eval=EvalConfig(max_batches=1), data=data)
  assert (result.accuracy, result.answers) == (None, ())
