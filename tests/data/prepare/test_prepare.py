import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lattice_jax.config import AnchorsConfig, DataConfig
from lattice_jax.data import corpus_writer
from lattice_jax.data.builders.imagenet64 import Imagenet64Npz
from lattice_jax.data.builders.pg19 import Pg19Books
from lattice_jax.data.builders.records import find_prepared
from lattice_jax.data.corpus import corpus_folder, read_corpus
from lattice_jax.data.corpus_writer import Document
from lattice_jax.data.prepare import books as prepare_books
from lattice_jax.data.prepare import bucket
from lattice_jax.data.prepare.images import prepare_images
from lattice_jax.data.prepare.samples import prepare_sample
from lattice_jax.data.published import PG19, SAMPLES
from lattice_jax.data.source import SPLITS
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer, model_path
from tests.data.originals import BOOKS, SPLIT_IDS, TEXTS, TITLES, book_files, images, write_books, write_images
from tests.data.prepare.server import bucket as bucket_answers
from tests.data.prepare.server import serve

BPE = "bpe_lossless:300"


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
  monkeypatch.setattr(Pg19Books, "book_set", BOOKS)
  monkeypatch.setattr(bucket, "RETRY_PAUSE", 0.0)
  monkeypatch.setattr(corpus_writer, "_BATCH_BYTES", 0)


def books(root, tokenizer=BPE):
  return DataConfig(source="pg19", path=str(root), tokenizer=tokenizer)


def make_books(root, report=lambda line: None, tokenizer=BPE, **options):
  return prepare_books.prepare_books(BOOKS, root, report, tokenizer=tokenizer, **options)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tokenizer", [BPE, "bytes"])
def test_books_of_a_folder_become_sources(tmp_path, tokenizer):
  lines = []
  folder = make_books(tmp_path / "data", lines.append, tokenizer, origin=write_books(tmp_path / "raw"))
  data = books(tmp_path / "data", tokenizer)
  assert folder == corpus_folder(data) and not (tmp_path / "data/pg19/originals").exists()
  for split in SPLITS:
    source = load_source(data, split)
    kept = {TITLES[book]: TEXTS[book].strip() for book in SPLIT_IDS[split] if TEXTS[book].strip()}
    assert set(source.texts.titles) == set(kept) and source.texts.total_words == BOOKS.words[split]
    for number, title in enumerate(source.texts.titles):
      tokens = source.tokens[source.offsets[number]:source.offsets[number + 1]]
      assert get_tokenizer(data).decode(tokens).decode() == kept[title] and tokens[-1] == 1
  assert "pg19 train: 1 documents without text are left out" in lines
  assert lines[-2].endswith(f"at {folder}") and lines[-1].startswith(f"training needs only {folder}")


def test_books_with_several_anchors_behind_each_sentence_are_kept_apart(tmp_path):
  plain = make_books(tmp_path / "data", origin=write_books(tmp_path / "raw"), tokenizer="bytes")
  folder = make_books(tmp_path / "data", tokenizer="bytes", insert="sentence", copies=2)
  anchors = AnchorsConfig(insert="sentence", copies=2)
  data = dataclasses.replace(books(tmp_path / "data", "bytes"), anchors=anchors)
  assert folder == corpus_folder(data) != plain
  tokens = load_source(data, "train").tokens[:]
  assert (tokens[np.flatnonzero(tokens == 259)[::2] + 1] == 259).all() and (tokens == 259).sum() % 2 == 0 < tokens.sum()


def test_doing_it_again_does_nothing(tmp_path):
  folder = make_books(tmp_path / "data", origin=write_books(tmp_path / "raw"))
  before = contents(folder)
  shutil.rmtree(tmp_path / "raw")
  shutil.rmtree(tmp_path / "data/pg19/tfds")
  lines = []
  assert make_books(tmp_path / "data", lines.append) == folder and contents(folder) == before
  assert len(lines) == 1 and lines[0].endswith(f"tokens, verified, already at {folder}")


def test_a_damaged_corpus_is_made_again_from_the_records(tmp_path):
  folder = make_books(tmp_path / "data", origin=write_books(tmp_path / "raw"))
  before = contents(folder)
  (folder / "tokens.bin").write_bytes(b"")
  shutil.rmtree(tmp_path / "raw")
  lines = []
  make_books(tmp_path / "data", lines.append)
  assert contents(folder) == before and "is damaged" in lines[0] and lines[0].endswith("It will be replaced.")


def test_books_are_downloaded_from_the_bucket(tmp_path, monkeypatch):
  local = make_books(tmp_path / "local", origin=write_books(tmp_path / "raw"))
  with serve(bucket_answers("books", book_files())) as (url, _):
    monkeypatch.setattr(bucket, "STORAGE_URL", url)
    folder = make_books(tmp_path / "data")
  assert contents(folder)["tokens.bin"] == contents(local)["tokens.bin"]


@pytest.mark.parametrize("official", [True, False], ids=["official", "ours"])
def test_prepared_records_are_taken_as_they_are(tmp_path, official):
  local = make_books(tmp_path / "local", origin=write_books(tmp_path / "raw"))
  given = tmp_path / "local/pg19/tfds"
  if official:
    info = given / "pg19_books/1.0.0/dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "name": "pg19"}))
    for path in info.parent.glob("pg19_books-*"):
      path.rename(path.with_name(path.name.replace("pg19_books-", "pg19-")))
  folder = make_books(tmp_path / "data", origin=given)
  assert contents(folder)["tokens.bin"] == contents(local)["tokens.bin"]
  assert not (tmp_path / "data/pg19/tfds").exists()


@pytest.mark.parametrize("stopped_at", [0, 2, 3])
def test_interrupted_tokenizing_ends_in_the_same_bytes(tmp_path, monkeypatch, stopped_at):
  whole = make_books(tmp_path / "whole", origin=write_books(tmp_path / "raw"))
  shutil.copytree(tmp_path / "whole/pg19", tmp_path / "data/pg19", ignore=lambda *_: {whole.name})
  convert = prepare_books._to_document
  seen = []

  def stop(record):
    if len(seen) == stopped_at:
      raise KeyboardInterrupt
    seen.append(record)
    return convert(record)

  monkeypatch.setattr(prepare_books, "_to_document", stop)
  with pytest.raises(KeyboardInterrupt):
    make_books(tmp_path / "data")
  monkeypatch.setattr(prepare_books, "_to_document", convert)
  lines = []
  folder = make_books(tmp_path / "data", lines.append)
  assert f"continuing after {stopped_at} finished documents" in lines
  for name in ("tokens.bin", "documents.npz"):
    assert contents(folder)[name] == contents(whole)[name]


def test_nine_novels_are_not_pg19(tmp_path):
  message = r"raw is not pg19: expected 28,602 train, 50 validation, 100 test books as SPLIT/ID.txt, found 5 train, 1 "
  with pytest.raises(ValueError, match=message):
    prepare_books.prepare_books(
      PG19, tmp_path / "data", lambda line: None, tokenizer=BPE, origin=write_books(tmp_path / "raw"))
  assert not list((tmp_path / "data").rglob("*.json"))


@pytest.mark.parametrize(("options", "message"), [
  ({"origin": "x.txt"}, r"^--from .*/x.txt is not a folder; give the one that holds the published files, or prepared"),
  ({"origin": "", "use_tfds": True}, r"^with --tfds TFDS downloads the data itself; leave out --tfds or --from\.$"),
  ({"tokenizer": "bpe:32000"}, r"^data.tokenizer='bpe:32000' is unknown; use 'bytes', 'bpe_lossless:VOCAB' or "),
  ({"use_tfds": True}, r"^--tfds makes the records with TFDS's own pg19, which needs TensorFlow"),
], ids=["file", "both", "tokenizer", "no-tensorflow"])
def test_a_wrong_request_is_one_sentence(tmp_path, options, message):
  if "origin" in options:
    options = {**options, "origin": tmp_path / options["origin"]}
  with pytest.raises(ValueError, match=message):
    make_books(tmp_path / "data", **options)


def test_tfds_own_records_are_used_where_asked_for(tmp_path, monkeypatch):
  local = make_books(tmp_path / "local", origin=write_books(tmp_path / "raw"))
  made = tmp_path / "local/pg19/tfds/pg19_books/1.0.0"
  monkeypatch.setattr("lattice_jax.data.prepare.records.build_official", lambda name, data_dir: made)
  folder = make_books(tmp_path / "data", use_tfds=True)
  assert contents(folder)["tokens.bin"] == contents(local)["tokens.bin"]


def test_the_model_is_trained_on_the_first_characters():
  documents = [Document("", "äb".encode()), Document("", b"cdef"), Document("", b"g")]
  assert list(prepare_books.first_texts(documents, 4)) == ["äb", "cd"]
  assert list(prepare_books.first_texts(documents, 100)) == ["äb", "cdef", "g"]


@pytest.fixture
def image_set(tmp_path, monkeypatch):
  made = write_images(tmp_path / "raw")
  monkeypatch.setattr(Imagenet64Npz, "image_set", made)
  return made


def assert_holds(record_images, data, split):
  source = read_corpus(data, split)
  assert source.unit == "dim" and set(np.diff(source.offsets)) == {64 * 64 * 3}
  expected = np.concatenate([record.reshape(-1) for record in record_images])
  assert np.array_equal(source.tokens[:], expected + np.uint16(3))


def test_images_become_rasters_split_as_in_the_paper(tmp_path, image_set):
  folder = prepare_images(image_set, tmp_path / "data", lambda line: None, origin=tmp_path / "raw")
  data = DataConfig(source="imagenet64", path=str(tmp_path / "data"))
  assert folder == corpus_folder(data)
  made = tfds.builder_from_directory(find_prepared(tmp_path / "data/imagenet64/tfds"))
  train = [record["image"] for record in made.as_data_source("train")]
  assert_holds(train[:9], data, "train")
  assert_holds(train[9:], data, "validation")
  assert_holds([record["image"] for record in made.as_data_source("validation")], data, "test")
  first = load_source(data, "test").tokens[:64 * 64 * 3].reshape(64, 64, 3) - 3
  assert any(np.array_equal(image.reshape(3, 64, 64)[1], first[:, :, 1]) for image in images(4, 3)[0])


def test_zips_are_downloaded_where_none_are_given(tmp_path, image_set):
  raw = {original.name: (tmp_path / "raw" / original.name).read_bytes()
         for originals in image_set.zips.values() for original in originals}
  with pytest.raises(ValueError, match=r"part1_npz.zip cannot be downloaded \(.*\); fetch it on another machine and "
                                       r"run `python scripts/prepare_data.py imagenet64 --path .* --from PATH`, or"):
    prepare_images(image_set, tmp_path / "data", lambda line: None)
  originals = tmp_path / "data/imagenet64/originals"
  for name, content in raw.items():
    (originals / name).write_bytes(content)
  prepare_images(image_set, tmp_path / "data", lambda line: None)
  assert read_corpus(DataConfig(source="imagenet64", path=str(tmp_path / "data")), "train").num_documents == 9


@pytest.mark.parametrize("name", ["enwiki_sample", "books_sample", "photos_sample"])
def test_samples_are_checked_and_located(tmp_path, name):
  lines = []
  prepare_sample(name, tmp_path, lines.append)
  assert len(lines) == 1 and lines[0].endswith(f" bytes, verified, shipped at {SAMPLES / name}")
  assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_is_not_shipped_is_trained_once(tmp_path):
  data = DataConfig(source="books_sample", path=str(tmp_path), tokenizer="bpe_paper:400")
  lines = []
  prepare_sample("books_sample", tmp_path, lines.append, tokenizer=data.tokenizer)
  assert lines[1] == f"the model of bpe_paper:400 is at {model_path(data)}"
  modified = model_path(data).stat().st_mtime_ns
  prepare_sample("books_sample", tmp_path, lines.append, tokenizer=data.tokenizer)
  assert model_path(data).stat().st_mtime_ns == modified and get_tokenizer(data).vocab_size == 400
