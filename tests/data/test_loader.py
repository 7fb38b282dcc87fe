import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.config import Config, DataConfig
from lattice_jax.data.loader import EvalBatch, UpdateReader, eval_batches, train_batches
from lattice_jax.data.plan import Plan
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from tests.data.builders import FIRST_TOKEN, numbered_source

EOS = 1
LENGTHS = (1, 17, 4, 33, 1, 8)
ROW_MODES = ("sequences", "packed", "documents")
TOKENIZER = get_tokenizer(DataConfig())


def config(rows="sequences", batch=4, workers=0):
  return Config(data=DataConfig(rows=rows, seq_len=8, update_len=4, batch=batch, workers=workers))


def take(number, *args, **options):
  return list(itertools.islice(train_batches(*args, **options), number))


def assert_same(ours, theirs):
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rows", ROW_MODES)
def test_inputs_are_targets_shifted_with_eos_at_every_start(rows):
  for batch in take(9, config(rows), numbered_source(*LENGTHS), start_step=0):
    starts_BT = batch.segment.positions_BT == 0
    np.testing.assert_array_equal(
      batch.tokens_BT, np.where(starts_BT, EOS, batch.targets_BT - 1), "an input is not the token before its target")
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int32
    assert batch.weights_BT.dtype == np.float32 and (batch.weights_BT == 1).all()
    assert batch.segment.valid_BT.all() and not batch.segment.marks_BT.any()
    assert batch.segment.marks_BT.dtype == np.int8


def test_sequence_counts_groups_of_updates():
  batches = take(5, config(), numbered_source(64), start_step=3)
  assert [int(batch.sequence) for batch in batches] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("rows", ROW_MODES)
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_any_number_of_hosts_reads_the_same_stream(rows, num_hosts):
  source = numbered_source(*LENGTHS)
  whole = take(6, config(rows), source, start_step=0)
  hosts = [take(6, config(rows), source, start_step=0, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
  for step, batch in enumerate(whole):
    parts = [host[step].replace(sequence=None) for host in hosts]
    assert_same(batch.replace(sequence=None), jax.tree.map(lambda *rows_bt: np.concatenate(rows_bt), *parts))
    assert all(host[step].sequence == batch.sequence for host in hosts)


@pytest.mark.parametrize("rows", ROW_MODES)
def test_a_restart_at_any_step_goes_on_with_the_same_stream(rows):
  source = numbered_source(*LENGTHS)
  unbroken = take(12, config(rows), source, start_step=0)
  for start in (1, 5, 11):
    assert_same(unbroken[start:], take(12 - start, config(rows), source, start_step=start))


@pytest.mark.slow
def test_reader_processes_give_the_stream_of_threads():
  source = numbered_source(*LENGTHS)
  assert_same(
    take(6, config("packed"), source, start_step=2), take(6, config("packed", workers=1), source, start_step=2))


def test_a_batch_that_hosts_cannot_share_is_refused():
  with pytest.raises(ValueError, match="batch of 4 rows cannot be divided among 3 hosts; use a multiple of 3"):
    train_batches(config(batch=4), numbered_source(64), start_step=0, num_hosts=3)


def flat_targets(chunks: list[EvalBatch]) -> list[int]:
  return sorted(np.concatenate([c.batch.targets_BT[c.batch.weights_BT > 0] for c in chunks]).tolist())


@given(
  protocol=st.sampled_from(["cold", "carried"]), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
  seq_len=st.integers(1, 64), chunk_len=st.integers(0, 9), batch=st.integers(1, 17))
def test_evaluation_counts_every_token_once_with_padding_behind(protocol, lengths, seq_len, chunk_len, batch):
  source = numbered_source(*lengths)
  chunks = list(eval_batches(source, TOKENIZER, protocol=protocol, seq_len=seq_len, chunk_len=chunk_len, batch=batch))
  assert flat_targets(chunks) == source.tokens.tolist()
  for chunk in chunks:
    fields, segment = chunk.batch, chunk.batch.segment
    assert fields.tokens_BT.shape == (batch, chunk_len or seq_len)
    np.testing.assert_array_equal(segment.valid_BT, fields.weights_BT == 1)
    assert (np.diff(segment.valid_BT.astype(int), axis=1) <= 0).all(), "a valid token follows padding"
    before_BT = np.where(segment.positions_BT == 0, EOS, fields.targets_BT - 1)
    np.testing.assert_array_equal(fields.tokens_BT, np.where(segment.valid_BT, before_BT, TOKENIZER.pad_id))


@given(
  protocol=st.sampled_from(["cold", "carried"]), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
  num_hosts=st.integers(1, 4), rows=st.integers(1, 3), seq_len=st.integers(1, 16), chunk_len=st.integers(1, 5))
def test_evaluation_hosts_read_the_rows_of_one(protocol, lengths, num_hosts, rows, seq_len, chunk_len):
  source = numbered_source(*lengths)
  options = {"protocol": protocol, "seq_len": seq_len, "chunk_len": chunk_len, "batch": rows * num_hosts}
  whole = list(eval_batches(source, TOKENIZER, **options))
  hosts = [
    list(eval_batches(source, TOKENIZER, **options, host=host, num_hosts=num_hosts)) for host in range(num_hosts)]
  assert {len(chunks) for chunks in hosts} == {len(whole)}, "a host would wait for the others for ever"
  for chunk, *parts in zip(whole, *hosts, strict=True):
    joined = jax.tree.map(
      lambda *rows_bt: np.concatenate(rows_bt), *[part.batch.replace(sequence=None) for part in parts])
    assert_same(chunk.batch.replace(sequence=None), joined)
    for part in parts:
      assert part.fresh == chunk.fresh
      np.testing.assert_array_equal(part.positions_BT, chunk.batch.segment.positions_BT)
      np.testing.assert_array_equal(part.documents_BT, chunk.documents_BT)


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_every_target_names_its_document(protocol):
  source = numbered_source(*LENGTHS)
  for chunk in eval_batches(source, TOKENIZER, protocol=protocol, seq_len=8, chunk_len=3, batch=4):
    document_BT = source.document_of(chunk.batch.targets_BT - FIRST_TOKEN)
    np.testing.assert_array_equal(chunk.documents_BT, np.where(chunk.batch.segment.valid_BT, document_BT, -1))


class ReadOnce:
  """A token array that counts what is read of it and knows no negative places."""

  def __init__(self, tokens):
    self.tokens, self.num_read = tokens, 0

  def __len__(self):
    return len(self.tokens)

  def __getitem__(self, index):
    assert index.min() >= 0
    self.num_read += index.size
    return self.tokens[index]


@pytest.mark.parametrize("rows", ROW_MODES)
def test_a_token_is_read_once_and_none_before_the_first(rows):
  source = numbered_source(*LENGTHS)
  tokens = ReadOnce(source.tokens)
  reader = UpdateReader(Plan(config(rows).data, source), dataclasses.replace(source, tokens=tokens), EOS, (0, 4))
  for step in range(8):
    assert_same(reader[step], take(1, config(rows), source, start_step=step)[0])
  assert tokens.num_read == 8 * 4 * (4 + 1)


def follow(chunks: list[EvalBatch], row: int) -> list[tuple[int, int, int]]:
  """The (target index, position, id) of the valid tokens of one row."""
  found = []
  for chunk in chunks:
    fields, valid_T = chunk.batch, chunk.batch.segment.valid_BT[row]
    found += zip(
      (fields.targets_BT[row, valid_T] - FIRST_TOKEN).tolist(), fields.segment.positions_BT[row, valid_T].tolist(),
      fields.segment.ids_BT[row, valid_T].tolist(), strict=True)
  return found


def test_cold_windows_by_hand():
  """Documents of five and two tokens in windows of three: 0-2, 3-4 and 5-6, the full one first."""
  chunks = list(eval_batches(numbered_source(5, 2), TOKENIZER, protocol="cold", seq_len=3, chunk_len=2, batch=2))
  assert [chunk.fresh for chunk in chunks] == [True, False, True]
  index_BT = [np.where(c.batch.segment.valid_BT, c.batch.targets_BT - FIRST_TOKEN, -1).tolist() for c in chunks]
  assert index_BT == [[[0, 1], [3, 4]], [[2, -1], [-1, -1]], [[5, 6], [-1, -1]]]
  assert [c.batch.segment.positions_BT[0].tolist() for c in chunks] == [[0, 1], [2, 2], [0, 1]]
  assert [int(c.batch.sequence) for c in chunks] == [0, 0, 1]


def test_carried_documents_by_hand():
  """Documents of 4, 2 and 3 tokens on two rows: the longest on the first, the others after one another."""
  chunks = list(eval_batches(numbered_source(4, 2, 3), TOKENIZER, protocol="carried", seq_len=2, chunk_len=0, batch=2))
  assert [chunk.fresh for chunk in chunks] == [True, False, False]
  assert follow(chunks, row=0) == [(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 3, 0)]
  assert follow(chunks, row=1) == [(6, 0, 2), (7, 1, 2), (8, 2, 2), (4, 0, 1), (5, 1, 1)]
  assert not chunks[2].batch.segment.valid_BT[0].any()


def test_padding_never_looks_like_a_new_document():
  """An id that changed under padding would reset the memory of a row that goes on."""
  chunks = list(eval_batches(
    numbered_source(*LENGTHS), TOKENIZER, protocol="carried", seq_len=3, chunk_len=3, batch=3))
  ids_BT = np.concatenate([chunk.batch.segment.ids_BT for chunk in chunks], axis=1)
  valid_BT = np.concatenate([chunk.batch.segment.valid_BT for chunk in chunks], axis=1)
  assert not (np.diff(ids_BT, axis=1)[~valid_BT[:, 1:]]).any()


def test_unknown_protocol_is_refused():
  with pytest.raises(ValueError, match="protocol 'warm' is not one of cold, carried"):
    next(eval_batches(numbered_source(5), TOKENIZER, protocol="warm", seq_len=2, chunk_len=0, batch=1))


def test_real_text_reads_back_as_itself():
  data = dataclasses.replace(DataConfig(), source="enwiki_sample")
  source = load_source(data, "test")
  chunks = eval_batches(source, TOKENIZER, protocol="cold", seq_len=4096, chunk_len=1024, batch=8)
  windows: dict[int, list] = {}
  for chunk in chunks:
    for row in range(8):
      key = int(chunk.batch.sequence) * 8 + row
      windows.setdefault(key, []).append(chunk.batch.targets_BT[row])
  text = b"".join(TOKENIZER.decode(np.concatenate(windows[key])) for key in sorted(windows))
  assert text == TOKENIZER.decode(source.tokens)
  assert len(text) == 304_488
