"""Prepared corpora: a flat file of tokens with its documents, made once by `scripts/prepare_data.py`.

A corpus is the folder `<data.path>/<data.source>/<tokenizer, ':' as '_'>/` of three files:
  tokens.bin     the tokens of all documents, one after another, little-endian
  documents.npz  offsets [documents + 1] into them and num_bytes [documents]; of texts also num_words and titles
  corpus.json    `CorpusInfo`
A folder under this name is whole: `corpus_writer` makes it under another and renames it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.files import IMAGENET64, prepare_command, sha256_once
from lattice_jax.data.progress import Report
from lattice_jax.data.source import SPLITS, Source, Texts, fingerprint
from lattice_jax.data.tokenizers import folder_name, get_tokenizer, model_path, model_sha256

FORMAT = 1
TOKENS, DOCUMENTS, INFO = "tokens.bin", "documents.npz", "corpus.json"
# Larger token files are checked by their size alone: reading them would hold up every start by minutes.
_MAX_CHECKED_BYTES = 1 << 30


@dataclass(frozen=True)
class CorpusInfo:
  """What corpus.json says.

  model_sha256: of the tokenizer's model; "" for bytes.
  dtype, shift: tokens.bin holds dtype, to which shift is added.
  files: size and sha256 of the other two files.
  splits: the documents [first, last) of each.
  empty: documents of no text, which were left out.
  official_words: the published word counts, or None.
  origin: which records it was made from.
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
    fields = json.loads(text)
    for name in ("files", "splits"):
      fields[name] = {key: tuple(pair) for key, pair in fields[name].items()}
    return cls(**fields)


class FlatTokens:
  """Tokens [start, stop) of a file, read where they are asked for. A process that gets it opens the file anew."""

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
  return Path(data.path) / data.source / folder_name(data.tokenizer)


def corpus_command(data: DataConfig) -> str:
  """What a user types to make the corpus."""
  command = prepare_command(data.path, data.source)
  return command if data.source == IMAGENET64.name else f"{command} --tokenizer={data.tokenizer}"


def read_corpus(data: DataConfig, split: str) -> Source:
  """One split of the prepared corpus that the config names.

  Raises:
    ValueError: it has not been prepared, or what is there is damaged or was made by another tokenizer.
  """
  folder = corpus_folder(data)
  info = _read_info(data, folder)
  for name in (TOKENS, DOCUMENTS):
    _check_file(folder / name, *info.files[name], corpus_command(data))
  first, last = info.splits[split]
  with np.load(folder / DOCUMENTS, allow_pickle=False) as documents:
    offsets = documents["offsets"][first:last + 1]
    num_bytes = documents["num_bytes"][first:last]
    texts = None
    if "titles" in documents:
      num_words = documents["num_words"][first:last]
      total_words = info.official_words[split] if info.official_words else int(num_words.sum())
      texts = Texts(tuple(documents["titles"][first:last].tolist()), num_bytes, num_words, total_words)
  return Source(
    tokens=FlatTokens(folder / TOKENS, info.dtype, info.shift, int(offsets[0]), int(offsets[-1])),
    offsets=offsets - offsets[0],
    num_bytes=int(num_bytes.sum()),
    name=data.source,
    split=split,
    fingerprint=fingerprint(data.source, split, data.tokenizer, *(sha256 for _, sha256 in info.files.values())),
    tokenizer=data.tokenizer,
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
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); run `{command}` to make it again.") from error
  found = (info.format, info.source, info.tokenizer)
  if found != (FORMAT, data.source, data.tokenizer):
    raise ValueError(
      f"{path} describes {info.source} with tokenizer {info.tokenizer} in format {info.format}, not {data.source} with "
      f"{data.tokenizer} in format {FORMAT}; run `{command}` to make it again.")
  get_tokenizer(data)  # says so where its model is missing or damaged
  if info.model_sha256 != model_sha256(data):
    raise ValueError(
      f"the tokens in {folder} were made by another model than the one at {model_path(data)}; run `{command}` to make "
      "them again.")
  return info


def _check_file(path: Path, size: int, sha256: str, command: str) -> None:
  found = path.stat().st_size if path.is_file() else 0
  if found != size:
    raise ValueError(
      f"{path} is damaged: expected {size:,} bytes, found {found:,}; run `{command}` to make it again.")
  if size <= _MAX_CHECKED_BYTES and sha256_once(path) != sha256:
    raise ValueError(
      f"{path} is damaged: expected sha256 {sha256}, found {sha256_once(path)}; run `{command}` to make it again.")


def is_corpus_ready(data: DataConfig, report: Report) -> bool:
  """True where `read_corpus` would work. Says what is there, and what is wrong with it."""
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
