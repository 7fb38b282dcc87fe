"""Multi-query associative recall (Zoology, arXiv 2312.04927): pairs of key and value, then queries of the keys.

The first 2P places of a document of T symbols hold P pairs `key value key value …`. After them each key appears once
more, as a query, followed by its value, the answer; only answers count in the loss. Keys are the first half of the
symbols, values the second; in a document no key and no value belongs to two pairs. Places without a query hold random
values, which cannot be mistaken for keys.

Unlike in the paper's code, the answer follows its query in the text, as in all text, and becomes an input itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lattice_jax.config import DataConfig, RecallConfig
from lattice_jax.data.hashing import hashed_at
from lattice_jax.data.source import SPLITS, Answers, Source, fingerprint
from lattice_jax.data.tokenizers.tokenizer import SymbolTokenizer, get_tokenizer

# More training documents than any run reads, so that none is read twice. Every run evaluates on the same ones.
_DOCUMENTS = {"train": 2**22, "validation": 1024, "test": 1024}
_KEYS, _VALUES, _GAPS, _FILLERS = range(4)  # streams of random numbers


@dataclass(frozen=True)
class RecallDocuments:
  """Documents of `length` symbols that depend on the split and their number alone, generated when they are read.

  In turn a document has pairs, pairs/2, pairs/4, …, fewest_pairs pairs.
  """

  recall: RecallConfig
  num_symbols: int
  length: int
  split: str

  def __post_init__(self):
    recall = self.recall
    if recall.fewest_pairs > recall.pairs:
      raise ValueError(
        f"data.recall.fewest_pairs={recall.fewest_pairs} is more than data.recall.pairs={recall.pairs}; "
        f"use at most {recall.pairs}.")
    if 4 * recall.pairs > self.length:
      raise ValueError(
        f"data.recall.pairs={recall.pairs} and their queries need {4 * recall.pairs} tokens, more than "
        f"data.seq_len={self.length}; use at most {self.length // 4} pairs, or data.seq_len={4 * recall.pairs}.")
    if recall.pairs > self.num_keys:
      raise ValueError(
        f"data.recall.pairs={recall.pairs} is more than the {self.num_keys} keys of "
        f"data.tokenizer=symbols:{self.num_symbols}; use at most {self.num_keys} pairs, or symbols:{2 * recall.pairs}.")

  @property
  def num_keys(self) -> int:
    return self.num_symbols // 2

  @property
  def pair_counts(self) -> tuple[int, ...]:
    counts, pairs = [], self.recall.pairs
    while pairs >= self.recall.fewest_pairs:
      counts.append(pairs)
      pairs //= 2
    return tuple(counts)

  def symbols(self, number_N: np.ndarray) -> np.ndarray:
    """[N, T], the symbols of the documents with these numbers."""
    return _make(self, number_N.tobytes())[0]

  def distances(self, number_N: np.ndarray) -> np.ndarray:
    """[N, T], at every answer the distance in tokens from its key's pair to its query; 0 elsewhere."""
    return _make(self, number_N.tobytes())[1]

  def weights(self, number_N: np.ndarray) -> np.ndarray:
    """fp32 [N, T], 1 at every answer; in training those of a document sum to the mean number of pairs.

    So all training documents count equally, like the paper's batches, whose documents have equally many pairs. If all
    answers counted equally, documents of few pairs, from which many pairs are learned, would hardly count.
    """
    answer_NT = (self.distances(number_N) > 0).astype(np.float32)
    if self.split != "train":
      return answer_NT
    return answer_NT * np.float32(np.mean(self.pair_counts)) / self.pairs(number_N)

  def pairs(self, number_N: np.ndarray) -> np.ndarray:
    """[N, T], the number of pairs in the document."""
    return np.repeat(np.asarray(self.pair_counts)[number_N % len(self.pair_counts)][:, None], self.length, axis=1)

  def count_answers(self, num_documents: int) -> int:
    """The number of answers in the first documents, one for each pair."""
    rounds, rest = divmod(num_documents, len(self.pair_counts))
    return rounds * sum(self.pair_counts) + sum(self.pair_counts[:rest])


@functools.lru_cache(maxsize=8)  # tokens, weights and labels of a batch are read one after another
def _make(documents: RecallDocuments, numbers: bytes) -> tuple[np.ndarray, np.ndarray]:
  """(symbols, distances) of the documents with these int64 numbers."""
  number_N = np.frombuffer(numbers, np.int64)
  symbol_NT = np.empty((len(number_N), documents.length), np.int64)
  distance_NT = np.empty_like(symbol_NT)
  for turn, pairs in enumerate(documents.pair_counts):
    part = number_N % len(documents.pair_counts) == turn
    symbol_NT[part], distance_NT[part] = _make_equal(documents, number_N[part], pairs)
  return symbol_NT, distance_NT


def _make_equal(documents: RecallDocuments, number_N: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray]:
  """(symbols, distances) of documents that all have this number of pairs."""
  num_keys, length = documents.num_keys, documents.length
  num_values = documents.num_symbols - num_keys
  room = (length - 2 * pairs) // 2

  def hashed(count: int, stream: int) -> np.ndarray:
    return hashed_at(number_N[:, None] * count + np.arange(count), SPLITS.index(documents.split), stream)

  key_NP = _draw(hashed(num_keys, _KEYS), pairs)
  value_NP = num_keys + _draw(hashed(num_values, _VALUES), pairs)
  preference = (documents.recall.power - 1) * np.log(np.arange(1, room + 1))
  query_NP = 2 * pairs + 2 * _draw(hashed(room, _GAPS), pairs, preference)

  symbol_NT = num_keys + (hashed(length, _FILLERS) % np.uint64(num_values)).astype(np.int64)
  symbol_NT[:, 0:2 * pairs:2], symbol_NT[:, 1:2 * pairs:2] = key_NP, value_NP
  np.put_along_axis(symbol_NT, query_NP, key_NP, axis=1)
  np.put_along_axis(symbol_NT, query_NP + 1, value_NP, axis=1)
  distance_NT = np.zeros_like(symbol_NT)
  np.put_along_axis(distance_NT, query_NP + 1, query_NP - 2 * np.arange(pairs), axis=1)
  return symbol_NT, distance_NT


def _draw(hash_NS: np.ndarray, count: int, preference_S: np.ndarray | float = 0.0) -> np.ndarray:
  """Draws `count` of S places without repetition, with odds exp(preference), which are equal by default."""
  uniform_NS = ((hash_NS >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
  arrival_NS = np.log(-np.log(uniform_NS)) - preference_S  # exponential clocks: the first to ring is drawn first
  return np.argsort(arrival_NS, axis=1, kind="stable")[:, :count]


class DocumentArray:
  """One number for every place of the concatenated documents, computed when it is read.

  make: numbers of documents [N] → [N, length]; `shift` is added to it.
  """

  def __init__(self, make: Callable[[np.ndarray], np.ndarray], num_documents: int, length: int, shift: int):
    self._make = make
    self._shift = shift
    self._length = length
    self._size = num_documents * length

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
    """The numbers at these places ≥ 0."""
    if isinstance(index, slice):
      index = np.arange(*index.indices(self._size))
    document, place = np.divmod(index, self._length)
    number_N, row = np.unique(document, return_inverse=True)
    return self._make(number_N)[row.reshape(document.shape), place] + self._shift


def recall_source(data: DataConfig, split: str) -> Source:
  """A split whose documents are as long as a training sequence.

  Raises ValueError if the tokenizer is not `symbols:N`, or the pairs do not fit into a document.
  """
  tokenizer = get_tokenizer(data)
  if not isinstance(tokenizer, SymbolTokenizer):
    raise ValueError(f"data.source=recall is made of symbols; use data.tokenizer=symbols:256, not {data.tokenizer}.")
  documents = RecallDocuments(data.recall, tokenizer.num_symbols, data.seq_len, split)
  count = _DOCUMENTS[split]

  def array(make: Callable[[np.ndarray], np.ndarray], shift: int = 0) -> DocumentArray:
    return DocumentArray(make, count, data.seq_len, shift)

  answers = Answers(
    weights=array(documents.weights), count=documents.count_answers(count),
    labels={"pairs": array(documents.pairs), "distance": array(documents.distances)})
  sample = documents.symbols(np.arange(2 * len(documents.pair_counts)))
  return Source(
    tokens=array(documents.symbols, tokenizer.shift), offsets=np.arange(count + 1, dtype=np.int64) * data.seq_len,
    num_bytes=answers.count, name=data.source, split=split,
    fingerprint=fingerprint(data.source, split, tokenizer.name, repr(data.recall), str(count), sample.tobytes()),
    tokenizer=tokenizer.name, unit="answer", answers=answers)
