"""Prepared corpora: a flat file of tokens and the documents in it, made once by `scripts/prepare_data.py`.

A corpus is the folder `<data.path>/<data.source>/<tokenizer, with '_' for ':'>/` with three files:
  tokens.bin     the tokens of all documents, concatenated, little-endian
  documents.npz  offsets [documents + 1] into tokens.bin and num_bytes [documents]; for texts also num_words and titles
  corpus.json    `CorpusInfo`
A folder with this name is complete: `corpus_writer` builds it under another name and renames it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.archives import open_zip, read_array
from lattice_jax.data.progress import Report
from lattice_jax.data.published import IMAGENET64, prepare_command, sha256_once
from lattice_jax.data.source import SPLITS, Source, Texts, fingerprint
from lattice_jax.data.tokenizers.tokenizer import (
  ByteTokenizer,
  Tokenizer,
  folder_name,
  full_name,
  get_tokenizer,
  model_path,
  model_sha256,
)
from lattice_jax.shown import first_line

FORMAT = 1
TOKENS, DOCUMENTS, INFO = "tokens.bin", "documents.npz", "corpus.json"
# Only the size of larger token files is checked: reading them would delay every start by minutes.
_MAX_CHECKED_BYTES = 1 << 30


@dataclass(frozen=True)
class CorpusInfo:
  """The content of corpus.json.

  model_sha256: of the tokenizer's model; "" for bytes.
  dtype, shift: a token is a number of tokens.bin, of type dtype, plus shift.
  files: size and sha256 of the other two files.
  splits: the documents [first, last) of each.
  empty: how many documents without text were left out of each split.
  official_words: the published word counts, or None.
  origin: the records that the corpus was made from.
  """

  format: int
  source: str
  tokenizer: str
  model_sha256: str
  unit: str
  dtype: str
  shift: int
  files: dict[str, tuple[int, str]]
  splits: dict[str, tuple[int, int]]
  empty: dict[str, int]
  official_words: dict[str, int] | None
  origin: str

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

  @classmethod
  def from_json(cls, text: str) -> CorpusInfo:
    """Raises ValueError if `to_json` did not write this text."""
    try:
      fields = json.loads(text)
    except RecursionError as error:
      raise ValueError("it is nested too deeply") from error
    if not isinstance(fields, dict) or set(fields) != {field.name for field in dataclasses.fields(cls)}:
      raise ValueError("its fields are not those of a corpus")
    for name, is_right in _FIELDS.items():
      if not is_right(fields[name]):
        raise ValueError(f"its field {name} has a value that it cannot have")
    for name in ("files", "splits"):
      fields[name] = {key: tuple(pair) for key, pair in fields[name].items()}
    return cls(**fields)


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and len(value) < 1000  # some are quoted


def _maps(names: tuple[str, ...], is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, dict) and set(value) == set(names) and all(map(is_right, value.values()))


def _pair(is_first: Callable[[Any], bool], is_second: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and len(value) == 2 and is_first(value[0]) and is_second(value[1])


_FIELDS: dict[str, Callable[[Any], bool]] = {
  "format": _is_count, "source": _is_text, "tokenizer": _is_text, "model_sha256": _is_text, "origin": _is_text,
  "unit": lambda value: value in ("byte", "dim"),
  "dtype": lambda value: value in ("|u1", "<u2", "<u4"),
  "shift": lambda value: _is_count(value) and value <= ByteTokenizer.shift,
  "files": _maps((TOKENS, DOCUMENTS), _pair(_is_count, _is_text)),
  "splits": _maps(SPLITS, _pair(_is_count, _is_count)),
  "empty": _maps(SPLITS, _is_count),
  "official_words": lambda value: value is None or _maps(SPLITS, _is_count)(value),
}


@dataclass(frozen=True, eq=False)
class _Documents:
  """The arrays of documents.npz; only texts have num_words and titles."""

  offsets: np.ndarray
  num_bytes: np.ndarray
  num_words: np.ndarray | None
  titles: np.ndarray | None


class FlatTokens:
  """Tokens [start, stop) of a file, read on demand. Unpickling in another process opens the file again."""

  def __init__(self, path: Path, dtype: str, shift: int, start: int, stop: int):
    self._place = (path, dtype, shift, start, stop)
    self._shift = np.uint16(shift)
    self._tokens = np.asarray(np.memmap(path, dtype, mode="r"))[start:stop]

  def __len__(self) -> int:
    return len(self._tokens)

  def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
    tokens = self._tokens[index]
    return tokens.astype(np.uint16) + self._shift if self._shift else tokens

  def __reduce__(self):
    return FlatTokens, self._place


def corpus_folder(data: DataConfig) -> Path:
  return Path(data.path) / data.source / folder_name(full_name(data))


def corpus_command(data: DataConfig) -> str:
  """The command that makes the corpus."""
  command = prepare_command(data.path, data.source)
  return command if data.source == IMAGENET64.name else (
    f"{command} --tokenizer={data.tokenizer}"
    + (f" --insert={data.anchors.insert}" if data.anchors.insert != "none" else "")
    + (f" --copies={data.anchors.copies}" if data.anchors.copies > 1 else ""))


def read_corpus(data: DataConfig, split: str) -> Source:
  """One split of the prepared corpus that the config names.

  Raises ValueError if the corpus has not been prepared, is damaged, or was made with another tokenizer.
  """
  folder = corpus_folder(data)
  info = _read_info(data, folder)
  for name in (TOKENS, DOCUMENTS):
    _check_file(folder / name, *info.files[name], corpus_command(data))
  documents = _read_documents(folder, info, corpus_command(data))
  first, last = info.splits[split]
  offsets, num_bytes, texts = documents.offsets[first:last + 1], documents.num_bytes[first:last], None
  if documents.titles is not None:
    num_words = documents.num_words[first:last]
    total_words = info.official_words[split] if info.official_words else int(num_words.sum())
    texts = Texts(tuple(documents.titles[first:last].tolist()), num_bytes, num_words, total_words)
  tokens = FlatTokens(folder / TOKENS, info.dtype, info.shift, int(offsets[0]), int(offsets[-1]))
  _check_tokens(tokens, get_tokenizer(data), folder / TOKENS, corpus_command(data))
  return Source(
    tokens=tokens,
    offsets=offsets - offsets[0],
    num_bytes=int(num_bytes.sum()),
    name=data.source,
    split=split,
    fingerprint=fingerprint(data.source, split, full_name(data), *(sha256 for _, sha256 in info.files.values())),
    tokenizer=full_name(data),
    unit=info.unit,
    texts=texts,
  )


def _read_info(data: DataConfig, folder: Path) -> CorpusInfo:
  command = corpus_command(data)
  path = folder / INFO
  if not path.is_file():
    raise ValueError(
      f"{data.source} with data.tokenizer={data.tokenizer} is not at {folder}; run `{command}` (add --from PATH if you "
      "have the data already).")
  try:
    info = CorpusInfo.from_json(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise _damaged(path, f" ({first_line(error)})", command) from error
  found = (info.format, info.source, info.tokenizer)
  if found != (FORMAT, data.source, full_name(data)):
    raise ValueError(
      f"{path} describes {info.source} with tokenizer {info.tokenizer} in format {info.format}, not {data.source} with "
      f"{data.tokenizer} in format {FORMAT}; run `{command}` to make it again.")
  get_tokenizer(data)  # raises if its model is missing or damaged
  if info.model_sha256 != model_sha256(data):
    raise ValueError(
      f"the tokens in {folder} were not made with the model at {model_path(data)}; run `{command}` to make them "
      "again.")
  return info


def _check_file(path: Path, size: int, sha256: str, command: str) -> None:
  found = path.stat().st_size if path.is_file() else 0
  if found != size:
    raise _damaged(path, f": expected {size:,} bytes, found {found:,}", command)
  if size <= _MAX_CHECKED_BYTES and sha256_once(path) != sha256:
    raise _damaged(path, f": expected sha256 {sha256}, found {sha256_once(path)}", command)


def _damaged(path: Path, problem: str, command: str) -> ValueError:
  return ValueError(f"{path} is damaged{problem}; run `{command}` to make it again.")


def _read_documents(folder: Path, info: CorpusInfo, command: str) -> _Documents:
  """Raises ValueError if the arrays do not fit the tokens and splits."""
  path = folder / DOCUMENTS
  try:
    with open_zip(path, path) as archive:
      of_texts = ("num_words", "titles") if "titles.npy" in archive.namelist() else ()
      # they were saved uncompressed, so none can be larger than the file
      arrays = {
        name: read_array(archive, name, path, most_bytes=info.files[DOCUMENTS][0])
        for name in ("offsets", "num_bytes", *of_texts)}
  except ValueError as error:
    raise ValueError(f"{str(error).removesuffix('; fetch it again.')}; run `{command}` to make it again.") from error
  documents = _Documents(**({"num_words": None, "titles": None} | arrays))
  num_tokens = info.files[TOKENS][0] // np.dtype(info.dtype).itemsize
  problem = _contradiction(documents, num_tokens, info.splits)
  if problem:
    raise _damaged(path, f" ({problem})", command)
  return documents


def _contradiction(documents: _Documents, num_tokens: int, splits: dict[str, tuple[int, int]]) -> str | None:
  """The first contradiction between the documents and this number of tokens, or None."""
  offsets, counts = documents.offsets, [documents.num_bytes]
  counts += [] if documents.num_words is None else [documents.num_words]
  for array in (offsets, *counts):
    if array.ndim != 1 or array.dtype != np.int64:
      return f"it holds {array.dtype} {array.shape} instead of a list of int64"
  if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != num_tokens or (np.diff(offsets) <= 0).any():
    return f"its documents do not cover the {num_tokens:,} tokens one after another"
  num_documents = len(offsets) - 1
  if any(len(array) != num_documents or (array < 0).any() for array in counts):
    return "it does not have a count of bytes and words for every document"
  titles = documents.titles
  if titles is not None and (titles.shape != (num_documents,) or titles.dtype.kind != "U"):
    return "it does not have a title for every document"
  if any(not first < last <= num_documents for first, last in splits.values()):
    return f"it has {num_documents:,} documents, and the splits are {splits}"
  return None


def _check_tokens(tokens: FlatTokens, tokenizer: Tokenizer, path: Path, command: str) -> None:
  if len(tokens) > _MAX_CHECKED_BYTES:
    return
  largest = int(tokens[:].max())
  if largest >= tokenizer.vocab_size:
    raise _damaged(path, f": it holds token {largest:,}, and {tokenizer.name} has {tokenizer.vocab_size:,}", command)


def is_corpus_ready(data: DataConfig, report: Report) -> bool:
  """Whether `read_corpus` would work. Reports what is there and what is wrong with it."""
  folder = corpus_folder(data)
  if not folder.is_dir():
    return False
  try:
    num_tokens = sum(len(read_corpus(data, split).tokens) for split in SPLITS)
  except ValueError as error:
    report(f"{error} It will be replaced.")
    return False
  report(f"{data.source} with tokenizer {data.tokenizer}: {num_tokens:,} tokens, verified, already at {folder}")
  return True
