"""What every corpus becomes: one long array of tokens, cut into documents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SPLITS = ("train", "validation", "test")


class Document(NamedTuple):
  """A document before it is tokenized. raw: UTF-8 text, or the pixels of an image."""

  title: str
  raw: bytes


@runtime_checkable
class TokenArray(Protocol):
  """Token ids of a whole split: in memory, on disk, or made when they are read."""

  def __len__(self) -> int:
    """Tokens in all."""

  def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
    """Integers of the index's shape."""


@dataclass(frozen=True, eq=False)
class Texts:
  """What a corpus of whole texts knows beside its tokens, one entry a document.

  total_words: the denominator of word perplexity; the published count where there is one, else the sum of num_words,
    which counts words of the raw text between white space.
  """

  titles: tuple[str, ...]
  num_bytes: np.ndarray
  num_words: np.ndarray
  total_words: int


@dataclass(frozen=True, eq=False)
class Answers:
  """Of a task: the tokens that are asked for. Only they count, in the loss and in evaluation.

  weights: fp32, 1 at every answer and 0 elsewhere, at the places of the tokens.
  count: their sum.
  labels: name → whole numbers ≥ 1 at the places of the tokens, by which evaluation tells answers apart.
  """

  weights: TokenArray
  count: int
  labels: Mapping[str, TokenArray]


@dataclass(frozen=True, eq=False, repr=False)
class Source:
  """One split of a corpus.

  tokens: [N] ids. Document d is tokens[offsets[d]:offsets[d + 1]]; no document is empty. Books end with eos.
  num_bytes: raw bytes of the split, the denominator of bits per byte.
  unit: what such a byte is: "byte" of text, "dim" of an image, "answer" of a task that only asks for some tokens.
  tokenizer: its full name; a figure means little without it.
  fingerprint: two runs with the same one read the same tokens.
  texts: of books, else None.
  answers: of a task, else None: every token counts.
  """

  tokens: TokenArray
  offsets: np.ndarray
  num_bytes: int
  name: str
  split: str
  fingerprint: str
  tokenizer: str = "bytes"
  unit: str = "byte"
  texts: Texts | None = None
  answers: Answers | None = None

  @property
  def num_targets(self) -> int:
    """Tokens that count."""
    return self.answers.count if self.answers else len(self.tokens)

  @property
  def num_documents(self) -> int:
    return len(self.offsets) - 1

  def document_of(self, index: np.ndarray) -> np.ndarray:
    """The document that holds each token of a flat index."""
    return np.searchsorted(self.offsets, index, side="right") - 1

  def __repr__(self) -> str:
    return (
      f"Source({self.name} {self.split}: {len(self.tokens)} tokens, {self.num_documents} documents, "
      f"{self.num_bytes} bytes, {self.tokenizer}, {self.fingerprint})")


def fingerprint(*parts: str | bytes) -> str:
  """32 hex digits that depend on the parts and on where each ends."""
  digest = hashlib.sha256()
  for part in parts:
    raw = part.encode() if isinstance(part, str) else part
    digest.update(f"{len(raw)}\n".encode())
    digest.update(raw)
  return digest.hexdigest()[:32]
