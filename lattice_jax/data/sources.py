"""Corpora as flat token arrays with document offsets."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.files import (
  ENWIK8,
  Original,
  check_original,
  prepare_command,
  prepared_path,
  read_sample,
  sha256_of_file,
)
from lattice_jax.data.hashing import hashed_integers
from lattice_jax.data.tokenizers import did_you_mean, get_tokenizer

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Source:
  """One split of a corpus.

  tokens: [N] ids. Document d is tokens[offsets[d]:offsets[d + 1]]; no document is empty.
  num_bytes: length of the raw split, the denominator of bits per byte.
  fingerprint: depends on name, split, tokenizer and raw bytes; two runs with the same one read the same data.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  num_bytes: int
  name: str
  split: str
  fingerprint: str

  @property
  def num_documents(self) -> int:
    return len(self.offsets) - 1

  def document_of(self, index: np.ndarray) -> np.ndarray:
    """The document that holds each token of a flat index."""
    return np.searchsorted(self.offsets, index, side="right") - 1

  def __repr__(self) -> str:
    return (
      f"Source({self.name} {self.split}: {len(self.tokens)} tokens, {self.num_documents} documents, "
      f"{self.num_bytes} bytes, {self.fingerprint})")


def load_source(data: DataConfig, split: str) -> Source:
  """The split of the corpus that the config names, tokenized.

  Raises:
    ValueError: unknown names, or data that are missing or not what the name promises.
  """
  if data.source not in SOURCES:
    raise ValueError(
      f"data.source={data.source!r} is not one of {', '.join(SOURCES)}.{did_you_mean(data.source, tuple(SOURCES))}")
  if split not in SPLITS:
    raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
  tokenizer = get_tokenizer(data)
  raw_documents = [raw for raw in SOURCES[data.source](data, split) if raw]
  documents = [tokenizer.encode(raw) for raw in raw_documents]
  return Source(
    tokens=documents[0] if len(documents) == 1 else np.concatenate(documents),
    offsets=np.cumsum([0, *map(len, documents)], dtype=np.int64),
    num_bytes=sum(map(len, raw_documents)),
    name=data.source,
    split=split,
    fingerprint=_fingerprint((data.source, split, tokenizer.name), raw_documents),
  )


def _fingerprint(names: tuple[str, ...], raw_documents: list[bytes]) -> str:
  digest = hashlib.sha256("\n".join(names).encode())
  for raw in raw_documents:
    digest.update(f"\n{len(raw)}\n".encode())
    digest.update(raw)
  return digest.hexdigest()[:32]


def byte_splits(size: int) -> dict[str, tuple[int, int]]:
  """90/5/5 % of a corpus by bytes, as (start, stop); on enwik8 the customary 90, 5 and 5 million."""
  train, validation = size * 90 // 100, size * 95 // 100
  return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}


def _enwiki_sample(data: DataConfig, split: str) -> list[bytes]:
  del data
  raw = read_sample("enwiki_sample/enwiki.xml.xz")
  start, stop = byte_splits(len(raw))[split]
  return [raw[start:stop]]


def _enwik8(data: DataConfig, split: str) -> list[bytes]:
  return [read_original_split(ENWIK8, data.path, split)]


def read_original_split(original: Original, root: str | Path, split: str) -> bytes:
  """One split of a prepared file, refused unless size and checksum are the published ones."""
  path = prepared_path(root, original)
  command = prepare_command(root, original.name)
  if not path.is_file():
    raise ValueError(f"{original.name} is not at {path}; run `{command}` (add --from FILE if you have it already).")
  size = path.stat().st_size
  try:
    check_original(original, size, _sha256_once(path, size, path.stat().st_mtime_ns), path)
  except ValueError as error:
    raise ValueError(f"{str(error)[:-1]}; run `{command}` to replace it.") from error
  start, stop = byte_splits(size)[split]
  with path.open("rb") as file:
    file.seek(start)
    return file.read(stop - start)


@functools.lru_cache(maxsize=8)
def _sha256_once(path: Path, size: int, modified_ns: int) -> str:
  del size, modified_ns  # part of the cache key: a file that changed is read again
  return sha256_of_file(path)


_SYNTHETIC_LENGTHS = (129, 1, 1000, 33, 7, 513, 2, 64, 1, 300, 1777, 63)
_SYNTHETIC_ROUNDS = {"train": 32, "validation": 4, "test": 4}


def _synthetic(data: DataConfig, split: str) -> list[bytes]:
  """Documents of awkward lengths, each a phrase of 3 to 18 letters over and over with every 20th letter wrong.

  A memory of the phrase is worth most of the bits; the splits share no phrase but by chance.
  """
  del data
  rounds = _SYNTHETIC_ROUNDS[split]
  return [
    _noisy_copies(length, SPLITS.index(split), round_, place)
    for round_ in range(rounds) for place, length in enumerate(_SYNTHETIC_LENGTHS)]


def _noisy_copies(length: int, *key: int) -> bytes:
  letters = (hashed_integers(18, *key, 0) % np.uint64(26)).astype(np.uint8)
  period = 3 + int(hashed_integers(1, *key, 1)[0] % np.uint64(16))
  clean = np.resize(letters[:period], length)
  draws = hashed_integers(length, *key, 2)
  wrong = (draws % np.uint64(26)).astype(np.uint8)
  is_wrong = draws >> np.uint64(32) < np.uint64(2**32 // 20)
  return (np.where(is_wrong, wrong, clean) + np.uint8(ord("a"))).tobytes()


SOURCES: dict[str, Callable[[DataConfig, str], list[bytes]]] = {
  "enwiki_sample": _enwiki_sample,
  "enwik8": _enwik8,
  "synthetic": _synthetic,
}
