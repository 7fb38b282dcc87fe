"""Readers of data: published archives, prepared corpora, texts and photographs of one's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from lattice_jax.config import DataConfig
from lattice_jax.data import published
from lattice_jax.data.archives import open_zip, read_array
from lattice_jax.data.builders.records import check_prepared, find_prepared
from lattice_jax.data.corpus import DOCUMENTS, INFO, TOKENS, corpus_folder, read_corpus
from lattice_jax.data.corpus_writer import Document, Recipe, write_corpus
from lattice_jax.data.own_texts import read_own_texts
from lattice_jax.data.photos import decode_photo
from lattice_jax.data.prepare.enwik8 import prepare_original
from lattice_jax.data.published import Original
from lattice_jax.data.source import SPLITS
from tests.fuzz.harness import Reader

_RAW = b"<page><title>A &amp; B</title><text>the cat</text></page>\n" * 20
_XML = Original("tiny", len(_RAW), hashlib.sha256(_RAW).hexdigest(), "http://127.0.0.1:1/tiny.zip")
_BOOKS = {split: [Document(f"of {split}", b"the cat sat there\n" * 3), Document("b", b"a")] for split in SPLITS}


def _silent(line: str) -> None:
  del line


def make_zip(folder: Path) -> tuple[str, ...]:
  """The XML of Wikipedia in a zip, by two methods."""
  for name, method in (("deflated.zip", zipfile.ZIP_DEFLATED), ("bzip2.zip", zipfile.ZIP_BZIP2)):
    with zipfile.ZipFile(folder / name, "w", method) as archive:
      archive.writestr("folder/tiny", _RAW)
  return "deflated.zip", "bzip2.zip"


def read_zip(folder: Path) -> None:
  for number, path in enumerate(sorted(folder.glob("*.zip"))):
    target = published.prepared_path(folder / f"data_{number}", _XML)
    target.unlink(missing_ok=True)
    prepare_original(_XML, folder / f"data_{number}", _silent, origin=path)


def make_npz(folder: Path) -> tuple[str, ...]:
  arrays = {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": np.arange(2), "names": np.array(["a", "é"])}
  np.savez(folder / "plain.npz", **arrays)
  np.savez_compressed(folder / "packed.npz", **arrays)
  return "plain.npz", "packed.npz"


def read_npz(folder: Path) -> None:
  for path in sorted(folder.glob("*.npz")):
    with open_zip(path, path) as archive:
      for name in ("data", "labels", "names"):
        read_array(archive, name, path, most_bytes=1 << 20).tolist()


def _data(folder: Path) -> DataConfig:
  return DataConfig(source="books_sample", path=str(folder), tokenizer="bytes")


def make_corpus(folder: Path) -> tuple[str, ...]:
  written = write_corpus(_data(folder), _BOOKS, Recipe("byte", True, None, "a test"), _silent)
  return tuple(str((written / name).relative_to(folder)) for name in (INFO, DOCUMENTS, TOKENS))


def read_prepared(folder: Path) -> None:
  """The corpus as if corpus.json knew its files: their digests stand between a fuzzer and the reader."""
  place = corpus_folder(_data(folder))
  published._sha256_cached.cache_clear()
  info = (place / INFO).read_bytes()
  try:
    content = json.loads(info)
    content["files"] = {
      name: (len(raw), hashlib.sha256(raw).hexdigest())
      for name, raw in ((name, (place / name).read_bytes()) for name in (TOKENS, DOCUMENTS))}
    (place / INFO).write_text(json.dumps(content))
  except (ValueError, TypeError, RecursionError):
    pass  # the reader's turn
  try:
    for split in SPLITS:
      source = read_corpus(_data(folder), split)
      np.asarray(source.tokens[:]).sum()
  finally:
    (place / INFO).write_bytes(info)


def make_texts(folder: Path) -> tuple[str, ...]:
  text = "the cat sat there. É\n".encode() * 20
  (folder / "a.txt").write_bytes(text)
  (folder / "b.txt.gz").write_bytes(gzip.compress(text, mtime=0))
  (folder / "c.txt.xz").write_bytes(lzma.compress(text))
  return "a.txt", "b.txt.gz", "c.txt.xz"


def read_own(folder: Path) -> None:
  data = DataConfig(source=f"text:{folder}", tokenizer="bytes")
  for split in SPLITS:
    read_own_texts(data, split)


def make_photo(folder: Path) -> tuple[str, ...]:
  for name in ("a.png", "b.webp", "c.jpeg"):
    saved = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(saved, name.split(".")[1].upper())
    (folder / name).write_bytes(saved.getvalue())
  return "a.png", "b.webp", "c.jpeg"


def read_photos(folder: Path) -> None:
  for path in sorted(folder.iterdir()):
    decode_photo(path.read_bytes(), path.name)


def make_records(folder: Path) -> tuple[str, ...]:
  splits = [{"name": split, "shardLengths": ["3", "2"]} for split in SPLITS]
  (folder / "dataset_info.json").write_text(
    json.dumps({"name": "tiny", "fileFormat": "array_record", "splits": splits}))
  return ("dataset_info.json",)


def read_records(folder: Path) -> None:
  check_prepared(find_prepared(folder), ("tiny",), dict.fromkeys(SPLITS, 5))


_DATA = ("lattice_jax.data",)
READERS = (
  Reader("zip", make_zip, read_zip, (*_DATA, "zipfile")),
  Reader("npz", make_npz, read_npz, (*_DATA, "zipfile", "numpy.lib._format_impl")),
  Reader("corpus", make_corpus, read_prepared, _DATA),
  Reader("texts", make_texts, read_own, _DATA),
  Reader("photos", make_photo, read_photos, _DATA),
  Reader("records", make_records, read_records, _DATA),
)
