import dataclasses
import hashlib
import io
import json
import types
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet_resized import imagenet_resized_dataset_builder

from lattice_jax.data.builders import pg19
from lattice_jax.data.builders.enwik8 import Enwik8, record_counts
from lattice_jax.data.builders.imagenet64 import Imagenet64Npz
from lattice_jax.data.builders.pg19 import Pg19Books
from lattice_jax.data.builders.records import Records, build_official, check_prepared, find_prepared
from lattice_jax.data.corpus_writer import Document
from lattice_jax.data.published import Original
from tests.data.originals import BOOKS, SPLIT_IDS, TEXTS, TITLES, images, write_books, write_images


class Shuffled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS's own shuffling of some keys and values, in memory."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # as in `LocalBuilder`
  keys_of_split: ClassVar = {}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"value": np.int64}))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(keys) for split, keys in self.keys_of_split.items()}

  def _generate_examples(self, keys):
    for value, key in enumerate(keys):
      yield key, {"value": value}


def shuffled(tmp_path, monkeypatch, keys_of_split):
  """The values in TFDS's order, by split."""
  monkeypatch.setattr(Shuffled, "keys_of_split", keys_of_split)
  builder = Shuffled(data_dir=tmp_path / "shuffled", file_format="array_record")
  builder.download_and_prepare()
  return {split: [int(record["value"]) for record in builder.as_data_source(split)] for split in keys_of_split}


def records(folder, split):
  return list(tfds.builder_from_directory(folder).as_data_source(split))


def build_books(tmp_path, monkeypatch):
  monkeypatch.setattr(Pg19Books, "book_set", BOOKS)
  monkeypatch.setattr(pg19, "_BOOKS_A_SHARD", 2)
  return Pg19Books(data_dir=tmp_path / "tfds").prepare(write_books(tmp_path / "raw"))


def test_books_are_tfds_own_records_in_tfds_own_order(tmp_path, monkeypatch):
  folder = build_books(tmp_path, monkeypatch)
  order = shuffled(tmp_path, monkeypatch, SPLIT_IDS)
  for split, book_ids in SPLIT_IDS.items():
    expected = [book_ids[place] for place in order[split]]
    found = records(folder, split)
    assert [int(record["book_id"]) for record in found] == expected
    assert [record["book_title"].decode() for record in found] == [TITLES[book] for book in expected]
    assert [record["book_text"].decode() for record in found] == [TEXTS[book].strip() for book in expected]
    assert {record["publication_date"] for record in found} == {b"1851"}
    assert [record["book_link"].decode() for record in found] == [f"http://books/{book}" for book in expected]


def test_building_twice_does_nothing_and_what_a_kill_left_is_removed(tmp_path, monkeypatch):
  folder = build_books(tmp_path, monkeypatch)
  left = folder.parent / "incomplete.X_1.0.0"
  left.mkdir()
  before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  assert Pg19Books(data_dir=tmp_path / "tfds").prepare(tmp_path / "nowhere") == folder
  assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before and not left.exists()


def remove_a_book(raw):
  (raw / "train" / "10.txt").unlink()


WRONG_BOOKS = {
  "count": (remove_a_book, r"raw is not pg19: expected 5 train, 1 validation, 2 test books as SPLIT/ID.txt, found 4 "),
  "metadata": (lambda raw: (raw / "metadata.csv").unlink(), r"raw has no metadata.csv; fetch it to there from"),
  "line": (lambda raw: (raw / "metadata.csv").write_text("id,title\n"),
           r"metadata.csv, line 1, is not a book's id, title, year and link: 'id,title'\.$"),
  "unknown": (lambda raw: (raw / "metadata.csv").write_text("10,Plain,1851,http://books/10\n"),
              r"train/\d+.txt has no line in .*metadata.csv; fetch metadata.csv again\.$"),
  "name": (lambda raw: (raw / "train" / "10.txt").rename(raw / "train" / "emma.txt"),
           r"train/emma.txt is not a book of the set: its name is not a number; remove it\.$"),
  "latin-1": (lambda raw: (raw / "train" / "12.txt").write_bytes("Nuit d'été".encode("latin-1")),
              r"train/12.txt is not UTF-8: byte 0xe9 at offset 7; fetch the file again, or convert it with `iconv"),
}


@pytest.mark.parametrize("wrong", WRONG_BOOKS)
def test_a_folder_that_is_not_the_published_one_is_refused_in_a_sentence(tmp_path, monkeypatch, wrong):
  change, message = WRONG_BOOKS[wrong]
  monkeypatch.setattr(Pg19Books, "book_set", BOOKS)
  change(write_books(tmp_path / "raw"))
  with pytest.raises(ValueError, match=message):
    Pg19Books(data_dir=tmp_path / "tfds").prepare(tmp_path / "raw")
  assert find_prepared(tmp_path / "tfds") is None


def official_keys_and_records(zips):
  """What TFDS's builder of resized ImageNet yields for these zips."""
  builder = imagenet_resized_dataset_builder.Builder
  size = types.SimpleNamespace(builder_config=builder.BUILDER_CONFIGS[-1])
  archive = [
    member for path in zips
    for member in tfds.download.iter_archive(io.BytesIO(path.read_bytes()), tfds.download.ExtractMethod.ZIP)]
  return list(builder._generate_examples(size, archive))


def test_images_are_tfds_own_records_in_tfds_own_order(tmp_path, monkeypatch):
  image_set = write_images(tmp_path / "raw")
  monkeypatch.setattr(Imagenet64Npz, "image_set", image_set)
  folder = Imagenet64Npz(data_dir=tmp_path / "tfds").prepare(tmp_path / "raw")
  official = {
    split: official_keys_and_records([tmp_path / "raw" / original.name for original in originals])
    for split, originals in image_set.zips.items()}
  order = shuffled(tmp_path, monkeypatch, {split: [key for key, _ in found] for split, found in official.items()})
  for split, examples in official.items():
    found = records(folder, split)
    assert len(found) == image_set.images[split]
    for record, place in zip(found, order[split], strict=True):
      assert np.array_equal(record["image"], examples[place][1]["image"])
      assert record["label"] == examples[place][1]["label"]
  assert sorted(path.suffix for path in folder.iterdir() if "array_record" not in path.name) == [".json", ".json"]


def test_pixels_are_planar_in_the_zips_and_interleaved_in_the_records(tmp_path, monkeypatch):
  monkeypatch.setattr(Imagenet64Npz, "image_set", write_images(tmp_path / "raw"))
  folder = Imagenet64Npz(data_dir=tmp_path / "tfds").prepare(tmp_path / "raw")
  published, labels = images(4, 3)
  found = {record["image"][0, 1].tobytes(): record for record in records(folder, "validation")}
  for pixels, label in zip(published, labels, strict=True):
    record = found[bytes([pixels[1], pixels[64 * 64 + 1], pixels[2 * 64 * 64 + 1]])]
    assert record["label"] == label - 1


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


@pytest.mark.parametrize(("damage", "message"), [
  (cut, r"raw is not imagenet64: expected Imagenet64_val_npz.zip of [\d,]+ bytes, found [\d,]+ bytes; fetch it from"),
  (lambda path: path.unlink(), r"raw is not imagenet64: expected .* bytes, found none; fetch it from http"),
  (flip, r"Imagenet64_val_npz.zip is not Imagenet64_val_npz.zip: expected sha256 \w{64}, found \w{64}\.$"),
], ids=["short", "missing", "flipped"])
def test_other_zips_are_refused(tmp_path, monkeypatch, damage, message):
  monkeypatch.setattr(Imagenet64Npz, "image_set", write_images(tmp_path / "raw"))
  damage(tmp_path / "raw" / "Imagenet64_val_npz.zip")
  with pytest.raises(ValueError, match=message):
    Imagenet64Npz(data_dir=tmp_path / "tfds").prepare(tmp_path / "raw")


def tiny_enwik8(tmp_path):
  raw = np.random.default_rng(0).integers(0, 256, 1_400_000, np.uint8).tobytes()
  (tmp_path / "enwik8").write_bytes(raw)
  return Original("enwik8", len(raw), hashlib.sha256(raw).hexdigest(), "http://127.0.0.1:1/enwik8.zip"), raw


def test_enwik8_records_are_the_file_in_order(tmp_path, monkeypatch):
  original, raw = tiny_enwik8(tmp_path)
  monkeypatch.setattr(Enwik8, "original", original)
  folder = Enwik8(data_dir=tmp_path / "tfds").prepare(tmp_path)
  joined = [record for split in ("train", "validation", "test") for record in records(folder, split)]
  assert b"".join(record["bytes"].tobytes() for record in joined) == raw
  assert [int(record["offset"]) for record in joined][:3] == [0, 65536, 131072]
  check_prepared(folder, ("enwik8",), record_counts(original))


def test_enwik8_of_another_file_is_refused(tmp_path, monkeypatch):
  original, raw = tiny_enwik8(tmp_path)
  monkeypatch.setattr(Enwik8, "original", original)
  (tmp_path / "enwik8").write_bytes(raw[:-1])
  with pytest.raises(ValueError, match=r"enwik8 is not enwik8: expected 1,400,000 bytes, found 1,399,999\.$"):
    Enwik8(data_dir=tmp_path / "tfds").prepare(tmp_path)


def to_document(record):
  return Document(record["book_title"].decode(), record["book_text"])


def test_records_are_documents_and_parts_of_a_split(tmp_path, monkeypatch):
  folder = build_books(tmp_path, monkeypatch)
  whole = Records(folder, "train", to_document)
  assert len(whole) == 5 and whole[0].raw.decode() in {text.strip() for text in TEXTS.values()}
  parts = [Records(folder, "train", to_document, 0, 3), Records(folder, "train", to_document, 3)]
  assert [part[i] for part in parts for i in range(len(part))] == [whole[i] for i in range(5)]


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()], ids=["short", "flipped", "missing"])
def test_a_damaged_record_is_named(tmp_path, monkeypatch, damage):
  folder = build_books(tmp_path, monkeypatch)
  damage(sorted(folder.glob("*train*"))[1])
  found = Records(folder, "train", to_document)
  assert found[1].raw is not None
  with pytest.raises(ValueError, match=r"^record 2 of train in .*/pg19_books/1.0.0 cannot be read \(.*\); remove that "
                                       r"folder and make the records again\.$"):
    found.__getitem__(2)


def test_records_of_another_data_set_size_or_format_are_refused(tmp_path, monkeypatch):
  folder = build_books(tmp_path, monkeypatch)
  check_prepared(folder, ("pg19_books", "pg19"), BOOKS.books)
  with pytest.raises(ValueError, match=r"holds the TFDS data set pg19_books, not imagenet64_npz or other\.$"):
    check_prepared(folder, ("imagenet64_npz", "other"), BOOKS.books)
  more = dataclasses.replace(BOOKS, books={**BOOKS.books, "train": 28_602}).books
  with pytest.raises(ValueError, match=r"is not the published pg19_books: expected 28,602 train, .* found 5 train, 1 "):
    check_prepared(folder, ("pg19_books", "pg19"), more)
  info = json.loads((folder / "dataset_info.json").read_text())
  (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match=r"holds tfrecord files, which only TensorFlow reads; build them again with"):
    check_prepared(folder, ("pg19_books", "pg19"), BOOKS.books)


def test_prepared_records_are_found_from_the_folder_above(tmp_path, monkeypatch):
  folder = build_books(tmp_path, monkeypatch)
  assert find_prepared(folder) == find_prepared(tmp_path / "tfds") == folder
  assert find_prepared(tmp_path / "raw") is None


def test_tfds_own_builder_without_tensorflow_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r"^--tfds makes the records with TFDS's own pg19, which needs TensorFlow, and "
                                       r"that is not installed; run `pip install tensorflow-cpu import.*`, or "):
    build_official("pg19", tmp_path)
