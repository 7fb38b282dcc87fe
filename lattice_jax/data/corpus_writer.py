"""Writes prepared corpora such that an interruption loses at most a few seconds of work.

Work in progress lies in the folder `<corpus folder>.part/`. There tokens.bin grows batch by batch, and when a batch has
reached the disk, its documents are entered in journal.jsonl. The same command truncates tokens.bin to what the journal
lists and continues after the last document in it. The complete folder is renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.corpus import DOCUMENTS, FORMAT, INFO, TOKENS, CorpusInfo, corpus_folder
from lattice_jax.data.progress import ProgressLines, Report, as_gigabytes
from lattice_jax.data.published import decode_text, sha256_of_file
from lattice_jax.data.source import SPLITS, Document
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, full_name, get_tokenizer, model_sha256
from lattice_jax.files import to_jsonl

_JOURNAL = "journal.jsonl"
_BATCH_BYTES = 16 << 20


@runtime_checkable
class Documents(Protocol):
  """The documents of a split, by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Document: ...


@dataclass(frozen=True)
class Recipe:
  """How documents become a corpus.

  are_texts: titles and word counts are stored, and every document ends with eos, which is a target like any other.
  """

  unit: str
  are_texts: bool
  official_words: dict[str, int] | None
  origin: str


@dataclass(frozen=True, slots=True)  # there are a million of them
class _Entry:
  """A finished document; `tokens` is 0 if it has no text."""

  split: str
  title: str
  tokens: int
  num_bytes: int
  num_words: int


class _Encoding:
  """Encodes documents as tokens.bin stores them.

  Bytes without eos are stored unshifted and shifted when read, which halves the file.
  """

  def __init__(self, tokenizer: Tokenizer, recipe: Recipe):
    self._is_raw = tokenizer.name == "bytes" and not recipe.are_texts
    self._tokenizer = tokenizer
    self._are_texts = recipe.are_texts
    self.shift = ByteTokenizer.shift if self._is_raw else 0
    self.dtype = "|u1" if self._is_raw else "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"

  def encode(self, split: str, document: Document) -> tuple[_Entry, bytes]:
    if not document.raw:
      return _Entry(split, document.title, 0, 0, 0), b""
    if self._is_raw:
      stored = np.frombuffer(document.raw, np.uint8)
    else:
      stored = self._tokenizer.encode(document.raw)
    if self._are_texts:
      stored = np.append(stored, stored.dtype.type(self._tokenizer.eos_id))
    where = f"{document.title!r} of {split}"
    num_words = len(decode_text(document.raw, where).split()) if self._are_texts else 0
    entry = _Entry(split, document.title, len(stored), len(document.raw), num_words)
    return entry, stored.astype(self.dtype).tobytes()


def write_corpus(data: DataConfig, splits: Mapping[str, Documents], recipe: Recipe, report: Report) -> Path:
  """Tokenizes all splits into the folder that `read_corpus` reads; continues after an interruption.

  Raises ValueError if a document cannot be read, or a split has no document.
  """
  folder = corpus_folder(data)
  work = folder.with_name(folder.name + ".part")
  encoding = _Encoding(get_tokenizer(data), recipe)
  plan = {
    "format": FORMAT, "source": data.source, "tokenizer": full_name(data), "model_sha256": model_sha256(data),
    "recipe": dataclasses.asdict(recipe), "documents": {split: len(splits[split]) for split in SPLITS}}
  finished = _resume(work, plan, np.dtype(encoding.dtype).itemsize, report)
  with (work / TOKENS).open("ab") as tokens, (work / _JOURNAL).open("a", encoding="ascii") as journal:
    for split in SPLITS:
      done = sum(entry.split == split for entry in finished)
      for entries, stored in _batches(split, splits[split], done, encoding, report):
        _append(tokens, stored)
        _append(journal, to_jsonl(map(dataclasses.astuple, entries)))
        finished += entries
  _finish(work, folder, data, encoding, recipe, finished, report)
  return folder


def _resume(work: Path, plan: dict[str, Any], item_bytes: int, report: Report) -> list[_Entry]:
  """The complete documents in the work folder, which is truncated to them. Starts a new folder if it is unusable."""
  lines = _read_lines(work / _JOURNAL)
  entries = _read_entries(lines[1:]) if lines and lines[0] == json.dumps(plan) else None
  if entries is not None:
    size = sum(entry.tokens for entry in entries) * item_bytes
    if (work / TOKENS).is_file() and (work / TOKENS).stat().st_size >= size:
      os.truncate(work / TOKENS, size)
      os.truncate(work / _JOURNAL, sum(len(line) + 1 for line in lines))
      report(f"continuing after {len(entries):,} finished documents")
      return entries
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  with (work / _JOURNAL).open("w", encoding="ascii") as journal:
    _append(journal, json.dumps(plan) + "\n")
  return []


def _read_lines(path: Path) -> list[str]:
  """The complete lines of a file that may end in the middle of one."""
  if not path.is_file():
    return []
  return path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]


def _read_entries(lines: list[str]) -> list[_Entry] | None:
  """The journal's entries, or None if a line is not one."""
  try:
    entries = [_Entry(*json.loads(line)) for line in lines]
  except (ValueError, TypeError, RecursionError):
    return None
  is_whole = all(
    entry.split in SPLITS and isinstance(entry.title, str) and all(
      type(count) is int and count >= 0 for count in (entry.tokens, entry.num_bytes, entry.num_words))
    for entry in entries)
  return entries if is_whole else None


def _batches(
    split: str, documents: Documents, done: int, encoding: _Encoding, report: Report,
) -> Iterator[tuple[list[_Entry], bytes]]:
  progress = ProgressLines(report, f"tokenizing {split}", len(documents), "documents")
  entries, stored, size = [], [], 0
  for number in range(done, len(documents)):
    entry, part = encoding.encode(split, documents[number])
    entries.append(entry)
    stored.append(part)
    size += len(part)
    if size >= _BATCH_BYTES or number == len(documents) - 1:
      yield entries, b"".join(stored)
      entries, stored, size = [], [], 0
      progress.at(number + 1)


def _append(file: Any, content: bytes | str) -> None:
  """Writes the content to disk; it is there when this returns."""
  file.write(content)
  file.flush()
  os.fsync(file.fileno())


def _finish(
    work: Path, folder: Path, data: DataConfig, encoding: _Encoding, recipe: Recipe, finished: list[_Entry],
    report: Report) -> None:
  """Writes the files that describe the tokens and renames the folder."""
  kept = [entry for entry in finished if entry.tokens]
  empty = {split: sum(entry.split == split and not entry.tokens for entry in finished) for split in SPLITS}
  for split, count in empty.items():
    if count:
      report(f"{data.source} {split}: {count:,} documents without text are left out")
  _save_documents(work / DOCUMENTS, kept, recipe)
  info = CorpusInfo(
    format=FORMAT, source=data.source, tokenizer=full_name(data), model_sha256=model_sha256(data), unit=recipe.unit,
    dtype=encoding.dtype, shift=encoding.shift,
    files={name: ((work / name).stat().st_size, sha256_of_file(work / name)) for name in (TOKENS, DOCUMENTS)},
    splits=_ranges(data, kept), empty=empty, official_words=recipe.official_words, origin=recipe.origin)
  with (work / INFO).open("w", encoding="utf-8") as file:
    _append(file, info.to_json())
  if folder.exists():
    shutil.rmtree(folder)
  work.rename(folder)
  (folder / _JOURNAL).unlink()
  report(
    f"{data.source} with tokenizer {data.tokenizer}: {len(kept):,} documents, "
    f"{sum(entry.tokens for entry in kept):,} tokens, {as_gigabytes(info.files[TOKENS][0])}, at {folder}")


def _ranges(data: DataConfig, kept: list[_Entry]) -> dict[str, tuple[int, int]]:
  """The documents [first, last) of each split, in the order of SPLITS."""
  ranges, first = {}, 0
  for split in SPLITS:
    last = first + sum(entry.split == split for entry in kept)
    if last == first:
      raise ValueError(f"{data.source} {split} holds no text; give it at least one document.")
    ranges[split] = (first, last)
    first = last
  return ranges


def _save_documents(path: Path, kept: list[_Entry], recipe: Recipe) -> None:
  arrays = {
    "offsets": np.cumsum([0, *(entry.tokens for entry in kept)], dtype=np.int64),
    "num_bytes": np.array([entry.num_bytes for entry in kept], np.int64)}
  if recipe.are_texts:
    arrays["num_words"] = np.array([entry.num_words for entry in kept], np.int64)
    arrays["titles"] = np.array([entry.title for entry in kept], np.str_)
  with path.open("wb") as file:
    np.savez(file, **arrays)
    file.flush()
    os.fsync(file.fileno())
