"""What a rule marks in the tokens of real tokenizers, and how training departs from it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lattice_jax.config import AnchorsConfig, Config, DataConfig
from lattice_jax.config_checks import check_config
from lattice_jax.config_text import apply_overrides
from lattice_jax.data.anchors import make_marker, token_texts
from lattice_jax.data.loader import eval_batches, train_batches
from lattice_jax.data.sources import load_source, read_raw
from lattice_jax.data.tokenizers.backend import FastBackend
from lattice_jax.data.tokenizers.pretrained import PretrainedTokenizer
from lattice_jax.data.tokenizers.special_tokens import SpecialTokens
from lattice_jax.data.tokenizers.tokenizer import SymbolTokenizer, get_tokenizer
from lattice_jax.data.training_marks import TrainingMarks
from lattice_jax.marks import ENDS, Marker, mark_tokens, nothing_read
from lattice_jax.types import MARK_ANCHOR, make_segment

BOOKS = DataConfig(source="books_sample", tokenizer="bpe_lossless:2048")
PUNCTUATION = AnchorsConfig(rule="punctuation")


@functools.lru_cache
def byte_level():
  """Byte-level BPE that splits text as GPT-2 and SmolLM2 do, with an added token."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=1200, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False)
  text = read_raw(BOOKS, "validation")[0][:300_000].decode("utf-8")
  tokenizer.train_from_iterator([text, "e.g. Mr. Dr. www.a.org etc. 'so...' (so.) (so?)" * 400], trainer)
  tokenizer.add_special_tokens(["<AC>"])
  return PretrainedTokenizer("small", FastBackend(tokenizer), SpecialTokens({"eos_token": "<eos>"}))


def tokenizer_of(name):
  return byte_level() if name == "byte_level" else get_tokenizer(dataclasses.replace(BOOKS, tokenizer=name))


def shown(name, text, **fields):
  """The text with | behind every anchor."""
  tokenizer = tokenizer_of(name)
  marker = make_marker(dataclasses.replace(PUNCTUATION, **fields), tokenizer)
  ids_BT = tokenizer.encode(text.encode()).astype(np.int32)[None]
  marks_BT = mark_tokens(marker, ids_BT, nothing_read(marker, 1), np.arange(ids_BT.shape[1])[None])
  texts = token_texts(tokenizer)
  return b"".join(
    texts[id] + b"|" * int(mark & MARK_ANCHOR) for id, mark in zip(ids_BT[0], marks_BT[0], strict=True)).decode()


@pytest.mark.parametrize("name", ["bytes", "bpe_lossless:2048", "byte_level"])
def test_token_texts_are_the_text(name):
  tokenizer, text = tokenizer_of(name), "The cats of 3.14\n\nMr. went. "
  texts = token_texts(tokenizer)
  assert b"".join(texts[id] for id in tokenizer.encode(text.encode())).decode() == text
  assert len(texts) == tokenizer.vocab_size and texts[tokenizer.eos_id] == b""


@pytest.mark.parametrize("name", ["bpe_lossless:2048", "byte_level"])
@pytest.mark.parametrize("marked", [
  "it went.| It came.|\nIt", "pi is 3.14 or 3.1. No", "e.g. this, i.e. that", "Is it?| So!| No",
  "in the U.S. of J. R. Oz", "go.|\n\nNow, then: so; it is"], ids=str)
def test_sentences_of_words_end_at_their_stop(name, marked):
  assert shown(name, marked.replace("|", "")) == marked


def test_merged_stops_and_abbreviations_of_one_token_are_known_by_their_text():
  marker, texts = make_marker(PUNCTUATION, byte_level()), token_texts(byte_level())
  ends = {texts[id] for id in np.flatnonzero(marker.class_A & ENDS)}
  assert {b"?", b"!", b".)", b"?)", b".\""} <= ends
  assert not {b".", b",", b" the", b"e"} & ends
  assert shown("byte_level", "so Mr. and www.a.org etc. (so.) he? on") == "so Mr. and www.a.org etc. (so.)| he?| on"


def test_words_with_their_stop_in_one_token_are_scored_by_the_word():
  class Words(SymbolTokenizer):
    texts = (b"0", b" end.", b" Mr.", b" it.\n", b"a.b", b"3.", b" s.")

    def encode(self, raw):
      return np.array([0])

    def decode(self, ids):
      return b"".join(self.texts[id] for id in ids.tolist())

  assert np.flatnonzero(make_marker(PUNCTUATION, Words(4)).class_A & ENDS).tolist() == [1, 3]


@pytest.mark.parametrize("marked", [
  "pi is 3.14. |So e.g. the site www.example.org/a?b=cd. |\nThen", "J. R. went! |\"Why?\" |(it ended.) |Really?!\n|a",
  "1. Item\n2. Item", "U.S. law.. |So", "so... | and it ended."], ids=str)
def test_sentences_of_bytes_end_at_the_white_space_behind(marked):
  assert shown("bytes", marked.replace("|", "")) == marked


def test_lines_characters_and_tokens_by_name():
  assert shown("bytes", "a\n\nb. c", rule="line") == "a\n|\n|b. c"
  assert shown("bpe_lossless:2048", "so, it went. I", characters=",") == "so,| it went. I"
  assert shown("bytes", "so, it 1,000 ends. I", characters=".,") == "so, |it 1,000 ends. |I"
  assert shown("bytes", "abc", rule=f"ids:{3 + ord('b')}") == "ab|c"
  id = byte_level().pieces.id_of("<AC>")
  assert np.flatnonzero(make_marker(AnchorsConfig(rule="token:<AC>"), byte_level()).class_A).tolist() == [id]
  assert make_marker(AnchorsConfig(rule="every:7"), byte_level()).every == 7
  assert make_marker(AnchorsConfig(), byte_level()) is None


@pytest.mark.parametrize(("name", "fields", "message"), [
  ("bytes", {"rule": "token:<AC>"}, "data.tokenizer=bytes has no such token; use one that has it"),
  ("byte_level", {"rule": "token:<no>"}, "data.tokenizer=small has no such token"),
  ("bytes", {"rule": "ids:4,300"}, "names the id 300, and data.tokenizer=bytes has 259 tokens; use ids below 259"),
  ("symbols:8", {"rule": "line"}, "marks nothing: no token of data.tokenizer=symbols:8 is a line end"),
  ("symbols:8", {"rule": "punctuation"}, r"marks nothing: no token of data.tokenizer=symbols:8 is one of .\?!"),
  ("bytes", {"characters": ".a"}, "data.anchors.characters='.a' must be punctuation"),
  ("bytes", {"characters": ""}, "data.anchors.characters='' must be punctuation"),
  ("bytes", {"rule": "lines"}, "Did you mean 'line'")], ids=str)
def test_a_rule_that_does_not_fit_is_refused_in_one_sentence(name, fields, message):
  with pytest.raises(ValueError, match=message):
    make_marker(dataclasses.replace(PUNCTUATION, **fields), tokenizer_of(name))


@pytest.mark.parametrize(("override", "message"), [
  ("rule=sentence", "data.anchors.rule='sentence' is none of none, punctuation"),
  ("dropout=0.5", "data.anchors.dropout=0.5 has no effect with data.anchors.rule=none"),
  ("random_every=8", "data.anchors.random_every=8 has no effect"),
  ("causal_share=1", "data.anchors.causal_share=1.0 has no effect"),
  ("repeat_share=0.5", "data.anchors.repeat_share=0.5 has no effect"),
  ("random_every=1", "would make every token an anchor; use 2 or more")])
def test_a_config_of_anchors_without_sense_is_refused(override, message):
  with pytest.raises(ValueError, match=message):
    apply_overrides(Config(), [f"data.anchors.{override}"])


def of_text(rows, **fields):
  return Config(data=DataConfig(
    source="enwiki_sample", rows=rows, seq_len=64, update_len=16, batch=4,
    anchors=AnchorsConfig(**{"rule": "punctuation"} | fields)))


@pytest.mark.parametrize("rows", ["sequences", "packed", "documents"])
def test_marks_of_training_are_those_of_each_piece_read_at_once(rows):
  config = of_text(rows)
  source = load_source(config.data, "test")
  batches = [batch for batch, _ in zip(train_batches(config, source, start_step=0), range(64), strict=False)]
  marker, found = make_marker(config.data.anchors, get_tokenizer(config.data)), 0
  for row in range(4):
    tokens_T, positions_T, marks_T = (
      np.concatenate([pick(batch)[row] for batch in batches]) for pick in (
        lambda batch: batch.tokens_BT, lambda batch: batch.segment.positions_BT, lambda batch: batch.segment.marks_BT))
    for start in np.flatnonzero(positions_T == 0):
      stop = start + 1 + np.argmax(np.append(positions_T[start + 1:] == 0, True))
      piece_BT = tokens_T[None, start:stop]
      expected_BT = mark_tokens(marker, piece_BT, nothing_read(marker, 1), np.arange(stop - start)[None])
      np.testing.assert_array_equal(marks_T[start:stop], expected_BT[0])
      found += int(expected_BT.sum())
  assert found > 3


@pytest.mark.parametrize("protocol", ["cold", "carried"])
@pytest.mark.parametrize("rule", ["punctuation", "every:5"])
def test_evaluation_marks_the_same_whatever_the_chunks(protocol, rule):
  source, tokenizer = load_source(DataConfig(source="synthetic"), "test"), get_tokenizer(DataConfig())
  text = "e.g. it went. \"So?\" J. came! Is 3.14. so\n" * 12
  tokens = tokenizer.encode(text.encode())
  source = dataclasses.replace(source, tokens=tokens, offsets=np.array([0, 7, 130, len(tokens)]))
  marker = make_marker(AnchorsConfig(rule=rule), tokenizer)
  options = {"protocol": protocol, "seq_len": 60, "batch": 2}

  def marked(chunk_len, **more):
    chunks = eval_batches(source, tokenizer, chunk_len=chunk_len, **options, **more)
    found = {}
    for chunk in chunks:
      segment, valid_BT = chunk.batch.segment, chunk.batch.segment.valid_BT
      places = zip(
        segment.ids_BT[valid_BT].tolist(), segment.positions_BT[valid_BT].tolist(), segment.marks_BT[valid_BT].tolist(),
        strict=True)
      assert not segment.marks_BT[~valid_BT].any()
      found |= {(id, position): mark for id, position, mark in places}
    return found

  whole = marked(60, marker=marker)
  assert whole == marked(3, marker=marker) == marked(1, marker=marker)
  assert 0.01 < np.mean(list(whole.values())) < 0.3
  assert not any(marked(60).values())


def marks_of(step, **fields):
  config = of_text("sequences", **fields)
  return next(train_batches(config, load_source(config.data, "test"), start_step=step)).segment.marks_BT


def test_random_lengths_are_one_a_sequence_and_a_function_of_the_step():
  rows = [np.concatenate([marks_of(4 * group + update, random_every=9) for update in range(4)], axis=1)
          for group in range(3)]
  lengths = []
  for marks_T in np.concatenate(rows):
    places = np.flatnonzero(marks_T)
    assert set(np.diff(places)) == {places[0] + 1}, "a sequence has segments of one length"
    lengths.append(int(places[0]) + 1)
  assert len(set(lengths)) > 3 and min(lengths) >= 2 and max(lengths) <= 9
  np.testing.assert_array_equal(marks_of(5, random_every=9), rows[1][:, 16:32])


def test_dropout_leaves_out_its_share_of_anchors_and_adds_none():
  whole, kept = (np.concatenate([marks_of(step, rule="every:2", **more) for step in range(24)])
                 for more in ({}, {"dropout": 0.25}))
  assert not (kept & ~whole).any()
  assert 0.7 < kept.sum() / whole.sum() < 0.8
  assert len({row.tobytes() for row in kept}) > 40, "every place is drawn anew"


def test_a_share_of_the_sequences_has_no_marks_at_all():
  groups = [np.concatenate([marks_of(4 * group + u, rule="every:4", causal_share=0.5) for u in range(4)], axis=1)
            for group in range(16)]
  is_causal = ~np.concatenate(groups).any(axis=1)
  assert 0.3 < is_causal.mean() < 0.7
  assert (np.concatenate(groups)[~is_causal].sum(axis=1) == 16).all()
  assert not marks_of(3, rule="every:4", causal_share=1.0).any()


def test_what_is_drawn_follows_the_row_not_the_host():
  marks = TrainingMarks(of_text("sequences", rule="every:2", dropout=0.5, random_every=9).data, Marker(np.zeros(1)))
  segment = make_segment(np.tile(np.arange(16, dtype=np.int32), (4, 1)))
  whole = marks.of_update(4, (0, 4), segment)
  part = marks.of_update(4, (2, 4), make_segment(segment.positions_BT[2:]))
  np.testing.assert_array_equal(whole[2:], part)


def test_repeated_sequences_say_their_first_half_again():
  data = DataConfig(
    source="enwiki_sample", seq_len=32, update_len=32, batch=8,
    anchors=AnchorsConfig(rule="punctuation", repeat_share=0.5))
  source, repeated = load_source(data, "test"), []
  for batch, _ in zip(train_batches(Config(data=data), source, start_step=3), range(8), strict=False):
    is_again_B = (batch.targets_BT[:, :16] == batch.targets_BT[:, 16:]).all(1)
    np.testing.assert_array_equal(batch.tokens_BT[is_again_B, 16], batch.targets_BT[is_again_B, 15])
    np.testing.assert_array_equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
    repeated.extend(is_again_B)
  assert 20 < sum(repeated) < 44
  plain = dataclasses.replace(data, anchors=AnchorsConfig(rule="punctuation"))
  with_share, without = (
    next(iter(train_batches(Config(data=here), source, start_step=3))) for here in (data, plain))
  np.testing.assert_array_equal(with_share.targets_BT[:, :16], without.targets_BT[:, :16])
  with pytest.raises(ValueError, match=r"repeats halves of sequences .*, and data.rows='packed'"):
    check_config(Config(data=dataclasses.replace(data, rows="packed", seq_len=512, update_len=512)))
