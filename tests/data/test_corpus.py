import json
import pickle

import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data import corpus_writer
from lattice_jax.data.corpus import DOCUMENTS, INFO, TOKENS, corpus_folder, read_corpus
from lattice_jax.data.corpus_writer import Document, Recipe, write_corpus
from lattice_jax.data.source import SPLITS
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer, model_path

TEXTS = Recipe(unit="byte", are_texts=True, official_words=None, origin="a test")
IMAGES = Recipe(unit="dim", are_texts=False, official_words=None, origin="a test")
BPE = "bpe_lossless:2048"
BOOKS = {
  "train": [Document("first", "It was a dark and stormy night.\n\nÉmile!".encode()), Document("one", b"a"),
            Document("nothing", b""), Document("last", b"the end\n" * 40)],
  "validation": [Document("held out", b"Call me Ishmael.")],
  "test": [Document("nothing", b""), Document("test", b"It is a truth")]}
PICTURES = {
  split: [Document("", bytes((first + i) % 256 for i in range(12))) for first in range(0, 50, 7)] for split in SPLITS}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  monkeypatch.setattr(corpus_writer, "_BATCH_BYTES", 0)


def books(tmp_path, tokenizer=BPE):
  """The sample's name, because its model is shipped; the tokens are these tests'."""
  return DataConfig(source="books_sample", path=str(tmp_path), tokenizer=tokenizer)


def silent(line):
  del line


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupted(list):
  """Documents of which some cannot be had."""

  def __init__(self, documents, at):
    super().__init__(documents)
    self.at = at

  def __getitem__(self, index):
    if index == self.at:
      raise KeyboardInterrupt
    return super().__getitem__(index)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_texts_come_back_with_eos_words_and_titles(tmp_path, tokenizer):
  data = books(tmp_path, tokenizer)
  lines = []
  folder = write_corpus(data, BOOKS, TEXTS, lines.append)
  assert folder == corpus_folder(data) and sorted(contents(folder)) == [INFO, DOCUMENTS, TOKENS]
  for split in SPLITS:
    source = read_corpus(data, split)
    kept = [document for document in BOOKS[split] if document.raw]
    assert source.num_documents == len(kept) and source.num_bytes == sum(len(document.raw) for document in kept)
    assert source.texts.titles == tuple(document.title for document in kept)
    assert source.texts.num_words.tolist() == [len(document.raw.decode().split()) for document in kept]
    assert source.texts.total_words == source.texts.num_words.sum()
    assert (source.tokenizer, source.unit, source.name, source.split) == (tokenizer, "byte", "books_sample", split)
    for number, document in enumerate(kept):
      tokens = source.tokens[source.offsets[number]:source.offsets[number + 1]]
      assert tokens[-1] == 1 and get_tokenizer(data).decode(tokens[:-1]) == document.raw
  assert "books_sample train: 1 documents without text are left out" in lines
  assert "6 documents" not in lines[-1] and "5 documents" in lines[-1] and lines[-1].endswith(f"at {folder}")


def test_a_document_of_one_token_is_kept(tmp_path):
  write_corpus(books(tmp_path), BOOKS, TEXTS, silent)
  source = read_corpus(books(tmp_path), "train")
  assert np.diff(source.offsets)[1] == 2, "one token and eos"


def test_images_are_stored_as_bytes_and_read_as_tokens(tmp_path):
  data = DataConfig(source="imagenet64", path=str(tmp_path))
  folder = write_corpus(data, PICTURES, IMAGES, silent)
  assert (folder / TOKENS).stat().st_size == sum(len(picture.raw) for split in SPLITS for picture in PICTURES[split])
  source = read_corpus(data, "test")
  assert source.unit == "dim" and source.texts is None and source.num_bytes == len(source.tokens) == 8 * 12
  expected = np.frombuffer(b"".join(picture.raw for picture in PICTURES["test"]), np.uint8) + np.uint16(3)
  index = np.array([[0, 5], [-1, 95]])
  assert np.array_equal(source.tokens[:], expected) and np.array_equal(source.tokens[index], expected[index])


def test_tokens_on_disk_are_opened_again_in_another_process(tmp_path):
  write_corpus(books(tmp_path), BOOKS, TEXTS, silent)
  tokens = read_corpus(books(tmp_path), "train").tokens
  pickled = pickle.dumps(tokens)
  assert len(pickled) < 500, "the tokens travel, not their place"
  assert np.array_equal(pickle.loads(pickled)[:], tokens[:])


def test_published_word_counts_are_the_denominator(tmp_path):
  words = {"train": 100, "validation": 10, "test": 1}
  write_corpus(books(tmp_path), BOOKS, Recipe("byte", True, words, "a test"), silent)
  assert read_corpus(books(tmp_path), "validation").texts.total_words == 10


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("at", [0, 1])
def test_an_interruption_anywhere_changes_nothing(tmp_path, split, at):
  write_corpus(books(tmp_path / "whole"), BOOKS, TEXTS, silent)
  data = books(tmp_path / "broken")
  at = min(at, len(BOOKS[split]) - 1)
  with pytest.raises(KeyboardInterrupt):
    write_corpus(data, {**BOOKS, split: Interrupted(BOOKS[split], at)}, TEXTS, silent)
  assert not corpus_folder(data).exists()
  lines = []
  write_corpus(data, BOOKS, TEXTS, lines.append)
  done = sum(len(BOOKS[other]) for other in SPLITS[:SPLITS.index(split)]) + at
  assert lines[0] == f"continuing after {done} finished documents"
  assert contents(corpus_folder(data)) == contents(corpus_folder(books(tmp_path / "whole")))


def half_done(tmp_path):
  data = books(tmp_path / "broken")
  with pytest.raises(KeyboardInterrupt):
    write_corpus(data, {**BOOKS, "validation": Interrupted(BOOKS["validation"], 0)}, TEXTS, silent)
  return data, corpus_folder(data).with_name(corpus_folder(data).name + ".part")


def test_a_half_written_document_and_journal_line_are_dropped(tmp_path):
  write_corpus(books(tmp_path / "whole"), BOOKS, TEXTS, silent)
  data, work = half_done(tmp_path)
  with (work / TOKENS).open("ab") as tokens, (work / "journal.jsonl").open("a") as journal:
    tokens.write(b"\x07")
    journal.write('["validation", "held')
  write_corpus(data, BOOKS, TEXTS, silent)
  assert contents(corpus_folder(data)) == contents(corpus_folder(books(tmp_path / "whole")))


def test_work_that_is_not_this_corpus_or_has_lost_tokens_is_done_again(tmp_path):
  write_corpus(books(tmp_path / "whole"), BOOKS, TEXTS, silent)
  data, work = half_done(tmp_path)
  (work / TOKENS).write_bytes(b"\x07")
  lines = []
  write_corpus(data, BOOKS, TEXTS, lines.append)
  assert contents(corpus_folder(data)) == contents(corpus_folder(books(tmp_path / "whole")))
  with pytest.raises(KeyboardInterrupt):
    write_corpus(data, {**BOOKS, "test": Interrupted(BOOKS["test"], 0)}, TEXTS, silent)
  write_corpus(data, BOOKS, Recipe("byte", True, None, "another place"), lines.append)
  assert not [line for line in lines if "going on" in line]


def test_a_corpus_that_is_made_again_replaces_the_old_one(tmp_path):
  data = books(tmp_path)
  write_corpus(data, {**BOOKS, "test": BOOKS["validation"]}, TEXTS, silent)
  write_corpus(data, BOOKS, TEXTS, silent)
  assert read_corpus(data, "test").texts.titles == ("test",)


def test_a_split_without_text_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"^books_sample test holds no text; give it at least one document\.$"):
    write_corpus(books(tmp_path), {**BOOKS, "test": [Document("nothing", b"")]}, TEXTS, silent)


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


def rewrite(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES = {
  "flipped": (lambda folder: flip(folder / TOKENS), r"tokens.bin is damaged: expected sha256 \w{64}, found \w{64};"),
  "short": (lambda folder: (folder / TOKENS).write_bytes(b"xy"), r"is damaged: expected [\d,]+ bytes, found 2;"),
  "no-tokens": (lambda folder: (folder / TOKENS).unlink(), r"tokens.bin is damaged: expected [\d,]+ bytes, found 0;"),
  "documents": (lambda folder: flip(folder / DOCUMENTS), r"documents.npz is damaged: expected sha256 \w{64}, found"),
  "half-json": (lambda folder: (folder / INFO).write_text('{"format": 1,'), r"corpus.json is damaged \(.*\);"),
  "empty-json": (lambda folder: (folder / INFO).write_text("{}"), r"is damaged \(its fields are not those of a corpus"),
  "foreign-json": (lambda folder: rewrite(folder / INFO, more=1), r"is damaged \(its fields are not those of a corpus"),
  "name": (lambda folder: rewrite(folder / INFO, source="pg19"), r"corpus.json describes pg19 with .*, not books_"),
  "format": (lambda folder: rewrite(folder / INFO, format=2), r"in format 2, not books_sample with .* in format 1;"),
  "model": (lambda folder: rewrite(folder / INFO, model_sha256="x"), r"were not made with the model at "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_refused_with_the_command_that_makes_it(tmp_path, damage):
  folder = write_corpus(books(tmp_path), BOOKS, TEXTS, silent)
  damage_folder, message = DAMAGES[damage]
  damage_folder(folder)
  command = rf"run `python scripts/prepare_data.py books_sample --path {tmp_path} --tokenizer={BPE}` to make (it|them) "
  with pytest.raises(ValueError, match=rf"{message}.* {command}again\.$"):
    read_corpus(books(tmp_path), "train")


def test_a_missing_corpus_names_the_command(tmp_path):
  data = DataConfig(source="pg19", path=str(tmp_path), tokenizer="bpe_lossless:32000")
  with pytest.raises(ValueError, match=rf"^pg19 with data.tokenizer=bpe_lossless:32000 is not at {tmp_path}/pg19/"
                                       r"bpe_lossless_32000; run `python scripts/prepare_data.py pg19 --path .* "
                                       r"--tokenizer=bpe_lossless:32000` \(add --from PATH if you have the data "):
    read_corpus(data, "train")


def test_the_fingerprint_depends_on_tokens_split_and_tokenizer(tmp_path):
  folder = write_corpus(books(tmp_path), BOOKS, TEXTS, silent)
  fingerprints = [read_corpus(books(tmp_path), split).fingerprint for split in SPLITS]
  assert model_path(books(tmp_path)).is_file() and folder.is_dir()
  write_corpus(books(tmp_path), {**BOOKS, "test": BOOKS["train"]}, TEXTS, silent)
  fingerprints.append(read_corpus(books(tmp_path), "train").fingerprint)
  assert len(set(fingerprints)) == 4
