"""PG-19 as a TFDS data set, from a local folder of books."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from lattice_jax.data.builders.base import LocalBuilder
from lattice_jax.data.progress import ProgressLines
from lattice_jax.data.published import PG19, BookSet, counts_in_words, decode_text

_BOOKS_A_SHARD = 128  # about 50 MB of text, held in memory


class _About(NamedTuple):
  title: str
  date: str
  link: str


class Pg19Books(LocalBuilder):
  """Makes the records of TFDS's `pg19`, with the same features in the same order, from local files."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put {train,validation,test}/ID.txt and metadata.csv in the manual folder."
  book_set: BookSet = PG19

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
      "book_text": tfds.features.Text(),
      "book_id": np.int32,
      "book_title": tfds.features.Text(),
      "publication_date": tfds.features.Text(),
      "book_link": tfds.features.Text()}))

  def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
    folder = Path(dl_manager.manual_dir)
    check_books(folder, self.book_set)
    about = _read_metadata(folder / "metadata.csv")
    return {split: self._shards(folder / split, split, about) for split in self.book_set.books}

  def _shards(self, folder: Path, split: str, about: dict[int, _About]) -> list[Any]:
    paths = {_book_id(path): path for path in folder.glob("*.txt")}
    for book_id, path in paths.items():
      if book_id not in about:
        raise ValueError(f"{path} has no line in {folder.parent / 'metadata.csv'}; fetch metadata.csv again.")
    # TFDS's shuffled order of these keys, so that official records and these make the same corpus.
    hasher = hashing.Hasher(split)
    order = sorted(paths, key=hasher.hash_key)
    progress = ProgressLines(self.report, f"reading {split}", len(order), "books")
    return [
      functools.partial(_read_books, order[first:first + _BOOKS_A_SHARD], paths, about, progress, first)
      for first in range(0, len(order), _BOOKS_A_SHARD)]


def check_books(folder: Path, book_set: BookSet) -> None:
  """Raises ValueError if the folder has another number of books than were published, or no metadata."""
  found = {split: sum(1 for _ in (folder / split).glob("*.txt")) for split in book_set.books}
  if found != book_set.books:
    raise ValueError(
      f"{folder} is not {book_set.name}: expected {counts_in_words(book_set.books)} books as SPLIT/ID.txt, found "
      f"{counts_in_words(found)}.")
  if not (folder / "metadata.csv").is_file():
    raise ValueError(f"{folder} has no metadata.csv; fetch it to there from the same place as the books.")


def _book_id(path: Path) -> int:
  number = _parse_id(path.stem)
  if number is None:
    raise ValueError(f"{path} is not a book of the set: its name is not a number; remove it.")
  return number


def _parse_id(text: str) -> int | None:
  """A number that fits into the records, or None."""
  return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _read_metadata(path: Path) -> dict[int, _About]:
  """Reads lines of id, title, year and link. Titles with commas may be quoted or not."""
  about = {}
  # only "\n" ends a line: titles may contain other characters that Python takes for line ends
  for number, line in enumerate(decode_text(path.read_bytes(), path).removesuffix("\n").split("\n"), start=1):
    row = _read_row(line)
    book_id = _parse_id(row[0]) if len(row) >= 4 else None
    if book_id is None:
      raise ValueError(f"{path}, line {number}, is not a book's id, title, year and link: {line[:80]!r}.")
    if book_id in about:
      raise ValueError(f"{path}, line {number}, describes book {book_id} a second time; fetch the file again.")
    about[book_id] = _About(title=",".join(row[1:-2]), date=row[-2], link=row[-1])
  return about


def _read_row(line: str) -> list[str]:
  """The fields of a line; none if it cannot be read."""
  try:
    return next(csv.reader([line.removesuffix("\r")]), [])
  except csv.Error:
    return []


def _read_books(
    book_ids: list[int], paths: dict[int, Path], about: dict[int, _About], progress: ProgressLines, done: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, book_id in enumerate(book_ids, start=done + 1):
    yield book_id, {
      "book_text": decode_text(paths[book_id].read_bytes(), paths[book_id]).strip(),
      "book_id": book_id,
      "book_title": about[book_id].title,
      "publication_date": about[book_id].date,
      "book_link": about[book_id].link}
    progress.at(number)
