"""PG-19: from the bucket, a folder of books or TFDS records to the corpus that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lattice_jax.anchor_rule import parse_insert
from lattice_jax.config import AnchorsConfig, DataConfig
from lattice_jax.data.builders.pg19 import Pg19Books, check_books
from lattice_jax.data.builders.records import Records
from lattice_jax.data.corpus import corpus_command, corpus_folder, is_corpus_ready
from lattice_jax.data.corpus_writer import Documents, Recipe, write_corpus
from lattice_jax.data.prepare.bucket import fetch_books
from lattice_jax.data.prepare.download import require_space
from lattice_jax.data.prepare.records import RecordSet, get_records
from lattice_jax.data.progress import Report
from lattice_jax.data.published import BookSet, decode_text
from lattice_jax.data.source import SPLITS, Document
from lattice_jax.data.tokenizers.tokenizer import model_path
from lattice_jax.data.tokenizers.train_bpe import parse_name, train_bpe

# BPE models are trained on at most this many characters from the start of the train split, as Transformer-VQ's were.
MODEL_CHARACTERS = 1_000_000_000
# Upper bounds of the disk space for each byte of text: compressed records, and two bytes per token.
_RECORD_BYTES, _BPE_BYTES, _BYTES_BYTES = 0.7, 0.7, 2.1


def prepare_books(
    book_set: BookSet, root: str | Path, report: Report, *, tokenizer: str, insert: str = "none",
    copies: int = 1, origin: Path | None = None, use_tfds: bool = False) -> Path:
  """The folder of the corpus. Records, model and tokens that exist are not made again.

  insert, copies: as in `data.anchors`. origin: a folder of the published files or of prepared TFDS records. Without it,
  the books are downloaded.

  Raises ValueError if the files are not the published set, or the download fails.
  """
  anchors = AnchorsConfig(insert=insert, copies=copies)
  data = DataConfig(source=book_set.name, path=str(root), tokenizer=tokenizer, anchors=anchors)
  parse_insert(insert)
  if tokenizer != "bytes":
    parse_name(tokenizer)
  if is_corpus_ready(data, report):
    return corpus_folder(data)
  records = get_records(_record_set(book_set, data, report), data, report, origin, use_tfds)
  splits = {split: Records(records, split, _to_document) for split in SPLITS}
  if tokenizer != "bytes" and not model_path(data).is_file():
    report(f"training tokenizer {tokenizer} on at most {MODEL_CHARACTERS:,} characters of the train split")
    train_bpe(first_texts(splits["train"], MODEL_CHARACTERS), tokenizer, model_path(data))
  recipe = Recipe(unit="byte", are_texts=True, official_words=book_set.words, origin=str(records))
  folder = write_corpus(data, splits, recipe, report)
  report(f"training needs only {folder} and the tokenizer's model; the books and records can be deleted")
  return folder


def _record_set(book_set: BookSet, data: DataConfig, report: Report) -> RecordSet:
  ratio = _RECORD_BYTES + (_BYTES_BYTES if data.tokenizer == "bytes" else _BPE_BYTES)
  originals = Path(data.path) / data.source / "originals"

  def fetch() -> Path:
    fetch_books(book_set, originals, report, retry=corpus_command(data), extra_bytes_ratio=ratio)
    return originals

  def check(folder: Path) -> None:
    check_books(folder, book_set)
    size = sum(path.stat().st_size for path in folder.glob("*/*.txt"))
    require_space(corpus_folder(data), int(ratio * size), f"preparing {book_set.name}")

  return RecordSet(counts=book_set.books, builder=Pg19Books, official="pg19", fetch=fetch, check=check)


def _to_document(record: dict[str, Any]) -> Document:
  return Document(title=record["book_title"].decode("utf-8"), raw=record["book_text"])


def first_texts(documents: Documents, characters: int) -> Iterator[str]:
  """Texts with this many characters in all; the last one is cut."""
  for number in range(len(documents)):
    text = decode_text(documents[number].raw, repr(documents[number].title))[:characters]
    yield text
    characters -= len(text)
    if not characters:
      return
