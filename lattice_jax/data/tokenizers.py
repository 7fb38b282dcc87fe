"""From raw bytes to token ids and back."""

from __future__ import annotations

import difflib
from typing import Protocol, runtime_checkable

import numpy as np

from lattice_jax.config import DataConfig

TOKENIZERS = ("bytes",)


@runtime_checkable
class Tokenizer(Protocol):
  """What the rest of the code asks of a tokenizer. `eos_id` is the first input of every document and sequence."""

  name: str
  vocab_size: int
  pad_id: int
  eos_id: int

  def encode(self, raw: bytes) -> np.ndarray:
    """Token ids of the smallest unsigned type that holds the vocabulary; no eos is added."""

  def decode(self, ids: np.ndarray) -> bytes:
    """The raw bytes; special ids give none."""


class ByteTokenizer:
  """One token a byte, after three special ids: 0 pad, 1 eos, 2 unknown; byte b is b + 3."""

  name = "bytes"
  vocab_size = 259
  pad_id = 0
  eos_id = 1
  _offset = 3

  def encode(self, raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8) + np.uint16(self._offset)

  def decode(self, ids: np.ndarray) -> bytes:
    ids = np.asarray(ids)
    return (ids[ids >= self._offset] - self._offset).astype(np.uint8).tobytes()


def get_tokenizer(data: DataConfig) -> Tokenizer:
  """The tokenizer that the config names."""
  if data.tokenizer == "bytes":
    return ByteTokenizer()
  raise ValueError(
    f"data.tokenizer={data.tokenizer!r} is not one of {', '.join(TOKENIZERS)}."
    f"{did_you_mean(data.tokenizer, TOKENIZERS)}")


def did_you_mean(given: str, allowed: tuple[str, ...]) -> str:
  """The end of an error message: the nearest allowed name, or nothing."""
  close = difflib.get_close_matches(given, allowed, n=1)
  return f" Did you mean {close[0]!r}?" if close else ""
