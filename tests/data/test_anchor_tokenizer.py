"""Anchors that are inserted: where they stand, that they decode to nothing, and corpora that are kept apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lattice_jax.anchor_rule import parse_insert
from lattice_jax.config import AnchorsConfig, Config, DataConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.data.anchors import AnchorTokenizer, insert_anchors, make_marker
from lattice_jax.data.corpus import corpus_command, corpus_folder, read_corpus
from lattice_jax.data.corpus_writer import Recipe, write_corpus
from lattice_jax.data.loader import train_batches
from lattice_jax.data.source import SPLITS, Document
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from tests.data.test_anchors import BOOKS, byte_level, tokenizer_of

SENTENCES = AnchorsConfig(rule="token:<AC>", insert="sentence")


def shown(name, text, insert):
  """The text with | where an anchor was inserted."""
  tokenizer = AnchorTokenizer(tokenizer_of(name), insert)
  ids = tokenizer.encode(text.encode())
  assert tokenizer.decode(ids).decode() == text
  return "|".join(tokenizer.decode(part).decode() for part in np.split(ids, np.flatnonzero(ids == tokenizer.anchor_id)))


@pytest.mark.parametrize("name", ["bpe_lossless:2048", "byte_level"])
@pytest.mark.parametrize("marked", [
  "It went.| So.|\nBut 3.14 e.g. no", "\"Is it?\"| (So.)| No", "at some.site.org or here.|", "the end", "",
  "it...| on"], ids=str)
def test_sentences_of_words_get_one_behind_them_and_words_are_whole(name, marked):
  assert shown(name, marked.replace("|", ""), "sentence") == marked


def test_sentences_of_bytes_get_one_behind_their_white_space():
  assert shown("bytes", "It went. So? www.a.org 3.14\nno", "sentence") == "It went. |So? |www.a.org 3.14\nno"


@pytest.mark.parametrize("name", ["bytes", "bpe_lossless:2048", "byte_level"])
def test_every_n_tokens_means_at_the_next_end_of_a_word(name):
  text = "a wonderful-long-word and some others, so it goes on and on."
  tokenizer = AnchorTokenizer(tokenizer_of(name), "every:4")
  ids = tokenizer.encode(text.encode())
  parts = np.split(ids, np.flatnonzero(ids == tokenizer.anchor_id) + 1)
  texts = [tokenizer.decode(part).decode() for part in parts]
  assert "".join(texts) == text and len(texts) > 3
  for part, before, behind in zip(parts, texts, texts[1:], strict=False):
    assert len(part) > 4 and (before[-1:].isspace() or behind[:1].isspace() or not behind)
  assert "wonderful-long-word" in " ".join(texts) and shown(name, "ab", "every:1").rstrip("|") == "ab"


def test_the_token_has_the_id_that_the_tokenizer_gives_it_or_the_next():
  own = byte_level().pieces.id_of("<AC>")
  assert AnchorTokenizer(byte_level(), "sentence").anchor_id == own
  assert AnchorTokenizer(byte_level(), "sentence").vocab_size == byte_level().vocab_size
  added = get_tokenizer(DataConfig(anchors=SENTENCES))
  assert (added.anchor_id, added.vocab_size, added.name) == (259, 260, "bytes+<AC>:sentence")
  assert make_marker(SENTENCES, added).class_A.nonzero()[0].tolist() == [259]
  assert get_tokenizer(DataConfig()).name == "bytes"


def test_a_source_holds_the_tokens_and_the_rule_marks_them_alone():
  data = DataConfig(source="books_sample", seq_len=256, update_len=256, batch=4, anchors=SENTENCES)
  plain = load_source(dataclasses.replace(data, anchors=AnchorsConfig()), "validation")
  source = load_source(data, "validation")
  assert source.fingerprint != plain.fingerprint and source.num_bytes == plain.num_bytes
  np.testing.assert_array_equal(source.tokens[source.tokens != 259], plain.tokens)
  assert (source.tokens == 259).sum() > 100
  batch = next(train_batches(Config(data=data), source, start_step=0))
  np.testing.assert_array_equal(batch.segment.marks_BT, batch.tokens_BT == 259)
  assert batch.segment.marks_BT.any()


def test_a_prepared_corpus_is_kept_under_a_name_of_its_own(tmp_path):
  data = DataConfig(source="pg19", path=str(tmp_path), tokenizer="bytes")
  inserted = dataclasses.replace(data, anchors=SENTENCES)
  texts = {split: [Document("a", b"It went. So it did. ")] for split in SPLITS}
  for some in (data, inserted):
    write_corpus(some, texts, Recipe(unit="byte", are_texts=True, official_words=None, origin=""), lambda line: None)
  assert corpus_folder(data) != corpus_folder(inserted)
  assert corpus_command(inserted).endswith("--tokenizer=bytes --insert=sentence")
  plain, source = (read_corpus(some, "test") for some in (data, inserted))
  assert len(source.tokens) == len(plain.tokens) + 2 and source.fingerprint != plain.fingerprint
  assert source.tokenizer == "bytes+sentence" and plain.tokenizer == "bytes"


def test_given_places_get_an_anchor():
  assert insert_anchors(np.array([5, 6, 7]), [0, 2, 3], 9).tolist() == [9, 5, 6, 9, 7, 9]
  assert insert_anchors(np.array([5], np.uint16), [], 9).dtype == np.uint16
  for place in (-1, 4):
    with pytest.raises(ValueError, match=f"an anchor at place {place} lies outside a sequence of 3 tokens"):
      insert_anchors(np.array([5, 6, 7]), [place], 9)


@pytest.mark.parametrize("source", ["recall", "photos_sample", "imagenet64"])
def test_what_has_no_words_takes_no_anchors_between_them(source):
  with pytest.raises(ValueError, match=f"puts a token between words, and data.source={source} has none"):
    load_source(dataclasses.replace(BOOKS, source=source, anchors=SENTENCES), "test")


@pytest.mark.parametrize(("override", "message"), [
  ("insert=sentences", "data.anchors.insert='sentences' is none of none, sentence, every:N.* Did you mean 'sentence'"),
  ("insert=every:0", "data.anchors.insert='every:0' is none of"),
  ("start=.", "data.anchors.start=. has no effect with data.anchors.insert=none")])
def test_an_insertion_without_sense_is_refused(override, message):
  with pytest.raises(ValueError, match=message):
    apply_overrides(Config(), [f"data.anchors.{override}"])
  assert parse_insert("every:3").every == 3 and parse_insert("none").name == "none"
