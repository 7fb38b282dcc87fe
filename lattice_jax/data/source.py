"""A source: one long array of tokens, divided into documents. Every corpus becomes one."""

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
  """Token ids of a whole split: in memory, on disk, or computed when they are read."""

  def __len__(self) -> int:
    """The number of tokens."""

  def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
    """Integers with the shape of the index."""


@dataclass(frozen=True, eq=False)
class Texts:
  """What a corpus of whole texts knows about each document beside its tokens.

  num_words: words of the raw text between white space.
  total_words: the denominator of word perplexity: the published count if there is one, else the sum of num_words.
  """

  titles: tuple[str, ...]
  num_bytes: np.ndarray
  num_words: np.ndarray
  total_words: int


@dataclass(frozen=True, eq=False)
class Answers:
  """The tokens that a task asks for. Only they count, in the loss and in evaluation.

  weights: for every token, fp32: 1 for an answer and 0 for others.
  count: the number of answers.
  labels: name → for every token an integer ≥ 1; evaluation groups answers by it.
  """

  weights: TokenArray
  count: int
  labels: Mapping[str, TokenArray]


@dataclass(frozen=True, eq=False, repr=False)
class Source:
  """One split of a corpus.

  tokens: [N] ids. Document d is tokens[offsets[d]:offsets[d + 1]]; no document is empty. Books end with eos.
  num_bytes: raw bytes of the split, the denominator of bits per byte.
  unit: the name of such a byte: "byte" of text, "dim" of an image, "answer" of a task.
  tokenizer: its full name, without which a result means little.
  fingerprint: runs with equal fingerprints read the same tokens.
  texts: None unless these are whole texts, such as books.
  answers: None unless this is a task; then not every token counts.
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
    """The number of tokens that count."""
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
  """32 hex digits that depend on the parts and on the boundaries between them."""
  digest = hashlib.sha256()
  for part in parts:
    raw = part.encode() if isinstance(part, str) else part
    digest.update(f"{len(raw)}\n".encode())
    digest.update(raw)
  return digest.hexdigest()[:32]
