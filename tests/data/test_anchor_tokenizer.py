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
from lattice_jax.evaluation.evaluator import evaluate
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED
from tests.data.test_anchors import BOOKS, byte_level, tokenizer_of

SENTENCES = AnchorsConfig(rule="token:<AC>", insert="sentence")
SEVERAL = dataclasses.replace(SENTENCES, copies=3)


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
  inserted, several = (dataclasses.replace(data, anchors=anchors) for anchors in (SENTENCES, SEVERAL))
  texts = {split: [Document("a", b"It went. So it did. ")] for split in SPLITS}
  for some in (data, inserted, several):
    write_corpus(some, texts, Recipe(unit="byte", are_texts=True, official_words=None, origin=""), lambda line: None)
  assert len({corpus_folder(some) for some in (data, inserted, several)}) == 3
  assert corpus_command(inserted).endswith("--tokenizer=bytes --insert=sentence")
  assert corpus_command(several).endswith("--insert=sentence --copies=3")
  plain, source, three = (read_corpus(some, "test") for some in (data, inserted, several))
  assert len(source.tokens) == len(plain.tokens) + 2 and source.fingerprint != plain.fingerprint
  assert len(three.tokens) == len(plain.tokens) + 6 and three.fingerprint != source.fingerprint
  assert (plain.tokenizer, source.tokenizer, three.tokenizer) == ("bytes", "bytes+sentence", "bytes+sentence:3")


def test_several_stand_behind_a_sentence_and_training_marks_the_last_alone_as_its_end():
  data = DataConfig(source="books_sample", seq_len=256, update_len=64, batch=4, anchors=SEVERAL)
  one, three = load_source(dataclasses.replace(data, anchors=SENTENCES), "validation"), load_source(data, "validation")
  np.testing.assert_array_equal(
    three.tokens, np.concatenate([[id] * (3 if id == 259 else 1) for id in one.tokens[:].tolist()]))
  assert get_tokenizer(data).name == "bytes+<AC>:sentence:3"
  assert make_marker(dataclasses.replace(SEVERAL, insert="every:9"), get_tokenizer(data)).apart == 9
  assert make_marker(dataclasses.replace(SEVERAL, rule="ids:259"), get_tokenizer(data)).copies == 1
  found = []
  for batch, _ in zip(train_batches(Config(data=data), three, start_step=0), range(8), strict=False):
    found.append((batch.tokens_BT, batch.segment.marks_BT))
  for group in (found[:4], found[4:]):
    tokens_BT, marks_BT = (np.concatenate(parts, axis=1) for parts in zip(*group, strict=True))
    is_copy_BT = tokens_BT == 259
    is_last_BT = is_copy_BT.copy()
    is_last_BT[:, 2:] &= is_copy_BT[:, 1:-1] & is_copy_BT[:, :-2]
    is_last_BT[:, :2] = False
    np.testing.assert_array_equal(marks_BT == MARK_ANCHOR, is_last_BT)
    np.testing.assert_array_equal(marks_BT == MARK_PROTECTED, is_copy_BT & ~is_last_BT)
    assert is_last_BT.sum() > 4
  random = dataclasses.replace(data, anchors=dataclasses.replace(SEVERAL, random_every=4))
  marks_BT = next(train_batches(Config(data=random), three, start_step=0)).segment.marks_BT
  assert marks_BT.any() and not (marks_BT & MARK_PROTECTED).any(), "the rule marks nothing then"


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
  ("copies=2", "copies=2 has no effect with data.anchors.insert=none and data.anchors.rule=none, which add and mark"),
  ("start=.", "data.anchors.start=. has no effect with data.anchors.insert=none")])
def test_an_insertion_without_sense_is_refused(override, message):
  with pytest.raises(ValueError, match=message):
    apply_overrides(Config(), [f"data.anchors.{override}"])
  assert parse_insert("every:3").every == 3 and parse_insert("none").name == "none"


def with_copies(copies, protected, insert="sentence", **fields):
  overrides = {
    "model.pattern": "anchor", "model.anchor.protected": protected, "data.anchors.rule": "token:<AC>",
    "data.anchors.insert": insert, "data.anchors.copies": copies, "data.seq_len": 64, "data.update_len": 64, **fields}
  return apply_overrides(Config(), [f"{name}={value}" for name, value in overrides.items()])


def test_a_config_needs_room_for_the_copies_of_its_longest_text():
  with_copies(2, 22)
  with_copies(4, 18, insert="every:8")
  with_copies(1, 0)
  with_copies(2, 0, **{"model.pattern": "attention"})
  with_copies(2, 0, **{"data.anchors.rule": "none"})
  with pytest.raises(ValueError, match="of 64 tokens up to 22; set it to at least 22, or"):
    with_copies(2, 21)
  with pytest.raises(ValueError, match=r"^model.anchor.protected=22 is too little .* of 128 tokens up to 43; set"):
    with_copies(2, 22, **{"eval.seq_len": 128})
  with pytest.raises(ValueError, match="of 64 tokens up to 18"):
    with_copies(4, 17, insert="every:8")


def test_whole_documents_are_evaluated_only_with_room_for_their_copies():
  config = with_copies(2, 22, **{"data.source": "books_sample"})
  source = dataclasses.replace(
    load_source(config.data, "validation"), tokens=np.full(70, 5, np.uint16), offsets=np.array([0, 70]))
  with pytest.raises(ValueError, match="of 70 tokens up to 24; set it to at least 24"):
    evaluate(
      config.model, {}, {}, source, get_tokenizer(config.data), data=config.data,
      eval=dataclasses.replace(config.eval, protocol="carried"))
