"""Tokenizers: raw bytes to token ids and back."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import sentencepiece

from lattice_jax.config import DataConfig
from lattice_jax.data.own_texts import is_own_text, read_own_texts, texts_folder
from lattice_jax.data.published import SAMPLES, decode_text, prepare_command, read_sample, sample_files, sha256_once
from lattice_jax.data.tokenizers.train_bpe import SETTINGS, parse_name, train_bpe
from lattice_jax.formats.locate import find_pretrained

PRETRAINED = "pretrained:"  # before the name, folder or .gguf file of a model whose tokenizer is wanted


@runtime_checkable
class Tokenizer(Protocol):
  """The interface of a tokenizer.

  eos_id: the first input of every document and sequence. start_ids: read before a prompt.
  stop_ids: end a generated text. banned_ids: never generated.
  """

  name: str
  vocab_size: int
  pad_id: int
  eos_id: int
  start_ids: tuple[int, ...]
  stop_ids: tuple[int, ...]
  banned_ids: tuple[int, ...]

  def encode(self, raw: bytes) -> np.ndarray:
    """Token ids of the smallest unsigned type that holds the vocabulary; no eos is added."""

  def decode(self, ids: np.ndarray) -> bytes:
    """The raw bytes. Special ids give none, nor do ids without a token: a model may have more rows than tokens."""

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that asks a model to answer messages of {"role", "content"}."""


class OwnTokenizer:
  """What the tokenizers of models trained here share: the ids 0 pad, 1 eos and 2 unknown."""

  name: str
  vocab_size: int
  pad_id = 0
  eos_id = 1
  start_ids = (1,)
  stop_ids = ()
  banned_ids = (0, 1, 2)

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    del messages
    raise ValueError(f"a model with data.tokenizer={self.name} has no chat template; give a plain prompt.")

  def _known(self, ids: np.ndarray, first: int = 0) -> np.ndarray:
    """The ids of tokens from `first` on; others are left out."""
    ids = np.asarray(ids)
    return ids[(ids >= first) & (ids < self.vocab_size)]


class ByteTokenizer(OwnTokenizer):
  """One token a byte, after three special ids: 0 pad, 1 eos, 2 unknown; byte b is b + 3."""

  name = "bytes"
  vocab_size = 259
  shift = 3

  def encode(self, raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8) + np.uint16(self.shift)

  def decode(self, ids: np.ndarray) -> bytes:
    return (self._known(ids, self.shift) - self.shift).astype(np.uint8).tobytes()


class SymbolTokenizer(OwnTokenizer):
  """Numbers below N, for synthetic tasks; as text, numbers between white space. Number n has id n + 3."""

  shift = 3

  def __init__(self, num_symbols: int):
    self.name = f"symbols:{num_symbols}"
    self.num_symbols = num_symbols
    self.vocab_size = num_symbols + self.shift

  def encode(self, raw: bytes) -> np.ndarray:
    """Raises ValueError if the bytes are not numbers below N."""
    words = raw.split()
    wrong = [word for word in words if not word.isdigit() or int(word) >= self.num_symbols]
    if wrong:
      raise ValueError(
        f"{wrong[0].decode(errors='replace')!r} is not a number below {self.num_symbols}; data.tokenizer={self.name} "
        "reads numbers between white space.")
    return np.array([int(word) + self.shift for word in words], np.int32)

  def decode(self, ids: np.ndarray) -> bytes:
    return b"".join(b"%d " % symbol for symbol in (self._known(ids, self.shift) - self.shift).tolist())


class BPETokenizer(OwnTokenizer):
  """A sentencepiece model trained by `bpe.train_bpe`; ids 0 pad, 1 eos, 2 unknown."""

  def __init__(self, name: str, model: Path):
    self.name = name
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
      raise ValueError(f"{model} is not a sentencepiece model; remove it and train it again.") from error
    self.vocab_size = self._model.vocab_size()
    _, wanted = parse_name(name)
    if self.vocab_size != wanted:
      raise ValueError(
        f"{model} holds {self.vocab_size} tokens, not the {wanted} of data.tokenizer={name}; remove it and train it "
        "again.")
    self._newline = self._model.encode("\n")  # one token, or none if newlines are lost

  def encode(self, raw: bytes) -> np.ndarray:
    """Raises ValueError if the bytes are not UTF-8."""
    text = decode_text(raw, "the text", "convert it, or use data.tokenizer=bytes")
    # No token spans a newline. Encoding line by line is several times faster than a whole book and uses all cores.
    ids = []
    for line_ids in self._model.encode(text.split("\n")):
      ids += self._newline
      ids += line_ids
    return np.array(ids[len(self._newline):], np.uint16 if self.vocab_size <= 2**16 else np.uint32)

  def decode(self, ids: np.ndarray) -> bytes:
    return self._model.decode(self._known(ids).tolist()).encode("utf-8")


def get_tokenizer(data: DataConfig) -> Tokenizer:
  """The tokenizer that the config names, which inserts anchors where `data.anchors.insert` says.

  Raises ValueError if the name is unknown, or the model has not been trained.
  """
  if data.anchors.insert == "none":
    return _plain_tokenizer(data)
  # imported here because anchors are made from tokenizers
  from lattice_jax.data.anchors import with_anchors

  return with_anchors(_plain_tokenizer(data), data.anchors.insert, data.anchors.copies)


def full_name(data: DataConfig) -> str:
  """The name of the tokenizer and of what it inserts, under which a prepared corpus is kept."""
  anchors = data.anchors
  if anchors.insert == "none":
    return data.tokenizer
  return f"{data.tokenizer}+{anchors.insert}" + (f":{anchors.copies}" if anchors.copies > 1 else "")


def _plain_tokenizer(data: DataConfig) -> Tokenizer:
  if data.tokenizer == "bytes":
    return ByteTokenizer()
  if data.tokenizer.startswith(PRETRAINED):
    return _pretrained(data.tokenizer)
  if data.tokenizer.startswith("symbols:"):
    return _symbols(data.tokenizer)
  path = model_path(data)
  if not path.is_file() and is_own_text(data.source):
    _train_on_own_texts(data, path)
  if not path.is_file():
    raise ValueError(
      f"the model of data.tokenizer={data.tokenizer} is not at {path}; "
      f"run `{prepare_command(data.path, data.source)} --tokenizer={data.tokenizer}`.")
  return _load(data.tokenizer, path, path.stat().st_mtime_ns)


def _train_on_own_texts(data: DataConfig, path: Path) -> None:
  """Several processes may do this at once: each writes the same model to a file of its own and renames it."""
  texts = (raw.decode("utf-8") for _, raw in read_own_texts(data, "train"))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as apart:
      made = Path(apart) / path.name
      train_bpe(texts, data.tokenizer, made)
      made.replace(path)
  except OSError as error:
    raise ValueError(
      f"the tokenizer {data.tokenizer} cannot be written to {path} ({error.strerror}); give data.path a folder that "
      "can be written to, or use data.tokenizer=bytes.") from error


@functools.lru_cache(maxsize=4)
def _pretrained(name: str) -> Tokenizer:
  # imported here because no other run needs its libraries
  from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer

  return read_pretrained_tokenizer(name, find_pretrained(name.removeprefix(PRETRAINED)))


def _symbols(name: str) -> SymbolTokenizer:
  number = name.removeprefix("symbols:")
  if not number.isdigit() or int(number) < 2:
    raise ValueError(f"data.tokenizer={name!r} must name how many symbols there are, at least 2, as in 'symbols:256'.")
  return SymbolTokenizer(int(number))


def model_path(data: DataConfig) -> Path:
  """Where the trained model for a data set lies: with the shipped sample, or in the folder of prepared data."""
  parse_name(data.tokenizer)
  name = f"{folder_name(data.tokenizer)}.model"
  if is_own_text(data.source):
    return texts_folder(data) / name
  if f"{data.source}/{name}" in sample_files(data.source):
    read_sample(f"{data.source}/{name}")  # refuses a damaged one
    return SAMPLES / data.source / name
  return Path(data.path) / data.source / name


def model_sha256(data: DataConfig) -> str:
  """The checksum of the model trained for the data; "" for a tokenizer without one."""
  return sha256_once(model_path(data)) if data.tokenizer.partition(":")[0] in SETTINGS else ""


def folder_name(tokenizer: str) -> str:
  """The tokenizer's name as a file name."""
  return tokenizer.replace(":", "_")


@functools.lru_cache(maxsize=4)
def _load(name: str, path: Path, modified_ns: int) -> BPETokenizer:
  del modified_ns  # part of the cache key, so that a changed model is read again
  return BPETokenizer(name, path)

