"""Associative recall: what a document is, that it depends on its number alone, and that only answers count."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.config import Config, DataConfig, RecallConfig
from lattice_jax.data.loader import eval_batches, train_batches
from lattice_jax.data.recall import RecallDocuments
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer

DATA = DataConfig(
  source="recall", tokenizer="symbols:40", seq_len=64, update_len=64, batch=4,
  recall=RecallConfig(pairs=12, fewest_pairs=3))


def documents(recall=DATA.recall, symbols=40, length=64, split="train"):
  return RecallDocuments(recall, symbols, length, split)


@given(
  pairs=st.integers(1, 16), spare=st.integers(0, 20), spare_keys=st.integers(0, 9), power=st.floats(0.01, 2),
  number=st.integers(0, 2**22))
def test_every_key_comes_once_as_a_pair_and_once_as_a_query(pairs, spare, spare_keys, power, number):
  recall = RecallConfig(pairs=pairs, fewest_pairs=pairs, power=power)
  made = documents(recall, 2 * (pairs + spare_keys), 4 * pairs + spare)
  (symbols,), (distances,) = made.symbols(np.array([number])), made.distances(np.array([number]))
  keys, values = symbols[0:2 * pairs:2], symbols[1:2 * pairs:2]
  assert len(set(keys)) == len(set(values)) == pairs
  assert keys.max() < made.num_keys <= values.min() and symbols.max() < made.num_symbols
  places = np.flatnonzero(distances)
  value_of = dict(zip(keys.tolist(), values.tolist(), strict=True))
  assert [value_of.pop(key) for key in symbols[places - 1].tolist()] == symbols[places].tolist()
  assert not value_of, "a key is never asked for"
  for place in places:
    np.testing.assert_array_equal(symbols[place - 1 - distances[place]], symbols[place - 1])
  fillers = np.setdiff1d(np.arange(2 * pairs, len(symbols)), [*places, *places - 1])
  assert (symbols[fillers] >= made.num_keys).all(), "a filler looks like a query"


def test_a_document_depends_on_its_number_and_split_alone():
  numbers = np.array([7, 0, 4_000_000])
  together = documents().symbols(numbers)
  for row, number in enumerate(numbers):
    np.testing.assert_array_equal(together[row], documents().symbols(np.array([number]))[0])
  assert not np.array_equal(together[0], documents(split="test").symbols(numbers)[0])


def test_numbers_of_pairs_take_turns_and_weigh_the_same_in_training_alone():
  made, held = documents(), documents(split="validation")
  assert made.pairs(np.arange(4))[:, 0].tolist() == [12, 6, 3, 12]
  counted = (held.distances(np.arange(5)) > 0).sum()
  assert counted == held.count_answers(5) == held.weights(np.arange(5)).sum() == 12 + 6 + 3 + 12 + 6
  np.testing.assert_allclose(made.weights(np.arange(5)).sum(1), [(12 + 6 + 3) / 3] * 5)


def test_queries_follow_the_pairs_closely_and_evenly_with_power_one():
  """With odds of nearly 1/(g + 1), 4 of 128 places: the first key's query has a median far below the middle."""
  numbers = np.arange(600)
  for power, low, high in ((0.01, 0.03, 0.12), (1.0, 0.42, 0.58)):
    made = documents(RecallConfig(pairs=4, fewest_pairs=4, power=power), 40, 264)
    place = np.median([np.flatnonzero(row == row[0])[1] - 8 for row in made.symbols(numbers)]) / 256
    assert low < place < high


def test_the_stream_is_the_same_for_ever():
  assert documents().symbols(np.array([0]))[0, :12].tolist() == [1, 22, 3, 31, 15, 37, 6, 38, 10, 34, 4, 33]
  assert load_source(DATA, "test").fingerprint == "806a438d06272835f4d3fd35f66de600"


def test_splits_share_no_document():
  seen = [{row.tobytes() for row in documents(split=split).symbols(np.arange(1024))} for split in (
    "train", "validation", "test")]
  assert [len(split) for split in seen] == [1024] * 3 and not seen[0] & seen[1] | seen[1] & seen[2] | seen[0] & seen[2]


def test_a_batch_weighs_answers_only_and_starts_each_row_afresh():
  source = load_source(DATA, "train")
  for batch, _ in zip(train_batches(Config(data=DATA), source, start_step=0), range(3), strict=False):
    for tokens, targets, weights, positions in zip(
        batch.tokens_BT, batch.targets_BT, batch.weights_BT, batch.segment.positions_BT, strict=True):
      assert tokens[0] == 1 and positions.tolist() == list(range(64))
      np.testing.assert_array_equal(tokens[1:], targets[:-1])
      for place in np.flatnonzero(weights):
        first = np.flatnonzero(targets == tokens[place])[0]
        assert first < 2 * np.count_nonzero(weights) and targets[first + 1] == targets[place]
      pairs = np.count_nonzero(weights)
      assert pairs in (3, 6, 12) and set(weights.tolist()) == {0.0, np.float32(7 / pairs)}


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_evaluation_asks_for_every_answer_once(protocol):
  source = load_source(DATA, "validation")
  chunks = list(eval_batches(source, get_tokenizer(DATA), protocol=protocol, seq_len=64, chunk_len=24, batch=100))
  assert sum((chunk.documents_BT >= 0).sum() for chunk in chunks) == source.answers.count == source.num_targets
  assert sum(chunk.batch.weights_BT.sum() for chunk in chunks) == source.num_targets
  for chunk in chunks:
    np.testing.assert_array_equal(chunk.documents_BT >= 0, chunk.batch.weights_BT == 1)


def test_a_source_travels_to_reader_processes():
  source = load_source(DATA, "train")
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy.tokens[100:300], source.tokens[100:300])


@pytest.mark.parametrize(("changes", "message"), [
  ({"tokenizer": "bytes"}, r"made of symbols; use data\.tokenizer=symbols:256, not bytes"),
  ({"seq_len": 32}, r"need 48 tokens, more than data\.seq_len=32; use at most 8 pairs, or data\.seq_len=48"),
  ({"tokenizer": "symbols:20"}, r"more than the 10 keys of data\.tokenizer=symbols:20; use at most 10 .* symbols:24"),
  ({"recall": RecallConfig(pairs=2, fewest_pairs=3)}, r"fewest_pairs=3 is more than data\.recall\.pairs=2; use"),
  ({"tokenizer": "symbols:1"}, r"'symbols:1' must name how many symbols there are, at least 2"),
], ids=str)
def test_what_does_not_fit_is_refused_in_one_sentence(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    load_source(dataclasses.replace(DATA, **changes), "train")
  assert "\n" not in str(caught.value)


def test_symbols_are_numbers_between_white_space():
  tokenizer = get_tokenizer(DATA)
  assert tokenizer.encode(b" 0 39\n7 ").tolist() == [3, 42, 10]
  assert tokenizer.decode(np.array([0, 1, 3, 42, 10])) == b"0 39 7 "
  for text in (b"1 40", b"1 x", b"-1"):
    with pytest.raises(ValueError, match=r"is not a number below 40; data\.tokenizer=symbols:40 reads numbers"):
      tokenizer.encode(text)
