"""The corpora that `data.source` can name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.corpus import read_corpus
from lattice_jax.data.own_texts import PREFIX, is_own_text, read_own_texts, texts_key
from lattice_jax.data.photos import IMAGE_TOKENS, CropTokens, read_photos, tiles
from lattice_jax.data.published import (
  ENWIK8,
  Original,
  check_original,
  prepare_command,
  prepared_path,
  read_sample,
  sample_files,
  sha256_once,
)
from lattice_jax.data.recall import recall_source
from lattice_jax.data.source import SPLITS, Document, Source, Texts, fingerprint
from lattice_jax.data.synthetic import synthetic_documents
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, get_tokenizer
from lattice_jax.domains import did_you_mean


@dataclass(frozen=True)
class Corpus:
  """How to get a corpus: `load` gives a tokenized split, `read_raw` its documents, None if they are too large."""

  load: Callable[[DataConfig, str], Source]
  read_raw: Callable[[DataConfig, str], list[Document]] | None


def load_source(data: DataConfig, split: str) -> Source:
  """The split of the corpus that the config names, tokenized.

  Raises ValueError if a name is unknown, or the data are missing or not the published ones.
  """
  corpus = _corpus(data, split)
  if data.anchors.insert != "none" and data.source in _WITHOUT_WORDS:
    raise ValueError(
      f"data.anchors.insert={data.anchors.insert} puts a token between words, and data.source={data.source} has none; "
      "use data.anchors.insert=none.")
  return corpus.load(data, split)


def read_raw(data: DataConfig, split: str) -> list[bytes]:
  """The raw documents of a split. Raises ValueError for a corpus that is too large for memory."""
  corpus = _corpus(data, split)
  if corpus.read_raw is None:
    raise ValueError(
      f"the raw {split} split of {data.source} is not kept in memory; ask for this on "
      f"{', '.join(name for name in SOURCES if SOURCES[name].read_raw)} only.")
  return [raw for _, raw in corpus.read_raw(data, split) if raw]


def _corpus(data: DataConfig, split: str) -> Corpus:
  name = _OWN_TEXTS if is_own_text(data.source) else data.source
  if name not in SOURCES:
    raise ValueError(
      f"data.source={data.source!r} is not one of {', '.join(SOURCES)}.{did_you_mean(data.source, tuple(SOURCES))}")
  if split not in SPLITS:
    raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
  return SOURCES[name]


def _tokenize(documents: list[Document], data: DataConfig, split: str, *, are_texts: bool) -> Source:
  """The source of the documents that are not empty, in memory; whole texts end with eos."""
  tokenizer = get_tokenizer(data)
  documents = [(title, raw) for title, raw in documents if raw]
  encoded = [tokenizer.encode(raw) for _, raw in documents]
  if are_texts:
    encoded = [np.append(ids, ids.dtype.type(tokenizer.eos_id)) for ids in encoded]
  num_bytes = np.array([len(raw) for _, raw in documents])
  tokens = encoded[0] if len(encoded) == 1 else np.concatenate(encoded)
  offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
  texts = None
  if are_texts:
    num_words = np.array([len(raw.decode("utf-8").split()) for _, raw in documents])
    texts = Texts(tuple(title for title, _ in documents), num_bytes, num_words, int(num_words.sum()))
  return Source(
    tokens=tokens, offsets=offsets, num_bytes=int(num_bytes.sum()), name=data.source, split=split,
    fingerprint=fingerprint(data.source, split, tokenizer.name, offsets.tobytes(), tokens.tobytes()),
    tokenizer=tokenizer.name, unit="byte", texts=texts)


def _in_memory(read: Callable[[DataConfig, str], list[Document]], *, are_texts: bool = False) -> Corpus:
  return Corpus(lambda data, split: _tokenize(read(data, split), data, split, are_texts=are_texts), read)


def _own_texts(data: DataConfig, split: str) -> Source:
  """The fingerprint depends on all splits, so it shows any change of the texts."""
  source = _tokenize(read_own_texts(data, split), data, split, are_texts=True)
  return dataclasses.replace(source, fingerprint=fingerprint(source.fingerprint, texts_key(data)))


def byte_splits(size: int) -> dict[str, tuple[int, int]]:
  """(start, stop) of 90, 5 and 5 % of the bytes; for enwik8 the customary 90, 5 and 5 million."""
  train, validation = size * 90 // 100, size * 95 // 100
  return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}


def _enwiki_sample(data: DataConfig, split: str) -> list[Document]:
  del data
  raw = read_sample("enwiki_sample/enwiki.xml.xz")
  start, stop = byte_splits(len(raw))[split]
  return [Document(split, raw[start:stop])]


def _books_sample(data: DataConfig, split: str) -> list[Document]:
  del data
  files = sample_files(f"books_sample/{split}")
  return [Document(Path(file).name.partition(".")[0], read_sample(file)) for file in files]


def _photos_sample(data: DataConfig, split: str) -> Source:
  """Every crop of the photographs for training, their tiles for evaluation."""
  _refuse_tokenizer(data)
  photos = read_photos(split)
  if split == "train":
    tokens = CropTokens(photos, ByteTokenizer.shift)
    content = tokens.fingerprint
  else:
    raw = np.concatenate([tiles(photo) for photo in photos]).tobytes()
    tokens, content = ByteTokenizer().encode(raw), raw
  return Source(
    tokens=tokens, offsets=np.arange(0, len(tokens) + 1, IMAGE_TOKENS, dtype=np.int64), num_bytes=len(tokens),
    name=data.source, split=split, fingerprint=fingerprint(data.source, split, content), unit="dim")


def _raw_photos(data: DataConfig, split: str) -> list[Document]:
  del data
  all_tiles = [tile for photo in read_photos(split) for tile in tiles(photo)]
  return [Document(str(number), tile.tobytes()) for number, tile in enumerate(all_tiles)]


def _imagenet64(data: DataConfig, split: str) -> Source:
  _refuse_tokenizer(data)
  return read_corpus(data, split)


def _refuse_tokenizer(data: DataConfig) -> None:
  if data.tokenizer != "bytes":
    raise ValueError(f"data.source={data.source} holds images; use data.tokenizer=bytes, not {data.tokenizer}.")


def _enwik8(data: DataConfig, split: str) -> list[Document]:
  return [Document(split, read_original_split(ENWIK8, data.path, split))]


def read_original_split(original: Original, root: str | Path, split: str) -> bytes:
  """One split of a prepared file. Raises ValueError if size or checksum is not the published one."""
  path = prepared_path(root, original)
  command = prepare_command(root, original.name)
  if not path.is_file():
    raise ValueError(f"{original.name} is not at {path}; run `{command}` (add --from FILE if you have it already).")
  size = path.stat().st_size
  try:
    check_original(original, size, sha256_once(path), path)
  except ValueError as error:
    raise ValueError(f"{str(error)[:-1]}; run `{command}` to replace it.") from error
  start, stop = byte_splits(size)[split]
  with path.open("rb") as file:
    file.seek(start)
    return file.read(stop - start)


_WITHOUT_WORDS = ("imagenet64", "photos_sample", "recall")
_OWN_TEXTS = f"{PREFIX}PATH"
SOURCES: dict[str, Corpus] = {
  "enwik8": _in_memory(_enwik8),
  "pg19": Corpus(read_corpus, None),
  "imagenet64": Corpus(_imagenet64, None),
  "enwiki_sample": _in_memory(_enwiki_sample),
  "books_sample": _in_memory(_books_sample, are_texts=True),
  "photos_sample": Corpus(_photos_sample, _raw_photos),
  _OWN_TEXTS: Corpus(_own_texts, read_own_texts),
  "recall": Corpus(recall_source, None),
  "synthetic": _in_memory(lambda data, split: [Document("", raw) for raw in synthetic_documents(split)]),
}
