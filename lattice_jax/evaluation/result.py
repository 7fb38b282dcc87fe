"""The result of an evaluation, in the units in which figures are published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lattice_jax.data.source import Source
from lattice_jax.evaluation.answers import AnswerGroup, AnswerTotals
from lattice_jax.evaluation.position_buckets import PositionBucket, make_buckets
from lattice_jax.evaluation.totals import Totals


@dataclass(frozen=True)
class DocumentResult:
  """One text of the split. tokens: including the end of the text. words: of the raw text, separated by white space."""

  title: str
  tokens: int
  num_bytes: int
  bits_per_byte: float
  words: int
  word_perplexity: float | None


@dataclass(frozen=True)
class EvalResult:
  """One protocol on one split.

  unit: "byte" of text, "dim" of an image or "answer" of a task; despite its name, `bits_per_byte` is per this unit.
  bits_per_byte: total nats / ln 2 / raw bytes of the split (of the evaluated part if `max_batches` cut it).
  nll_per_token: nats.
  tokens: the evaluated targets, out of `split_tokens`; fewer if `max_batches` cut the split.
  words, word_perplexity: exp(nats of the split / words), if the split consists of whole texts. `words` is the published
    count if there is one, `raw_words` the count in the raw texts. The nats of a cut split are estimated as
    nll_per_token × split_tokens.
  documents: the texts, in order; of a cut split only those that were read to the end.
  accuracy, answers: of a task, whose only targets are its answers; otherwise None and empty. `answers` groups them by
    each of the source's labels.
  seconds, tokens_per_second: without compilation, which took compile_seconds (0 if the program was reused).
  metrics: the model's own metrics, such as codebook use, averaged over the split.
  """

  source: str
  tokenizer: str
  unit: str
  fingerprint: str
  split: str
  protocol: str
  seq_len: int
  chunk_len: int
  bits_per_byte: float
  nll_per_token: float
  tokens: int
  split_tokens: int
  words: int | None
  raw_words: int | None
  word_perplexity: float | None
  seconds: float
  compile_seconds: float
  tokens_per_second: float
  buckets: tuple[PositionBucket, ...]
  documents: tuple[DocumentResult, ...]
  accuracy: float | None
  answers: tuple[AnswerGroup, ...]
  metrics: dict[str, float]

  @property
  def is_whole(self) -> bool:
    """Whether every token of the split was evaluated."""
    return self.tokens == self.split_tokens


def make_result(
  source: Source, totals: Totals, answers: AnswerTotals | None, *, protocol: str, seq_len: int,
  chunk_len: int, metrics: dict[str, float], seconds: float, compile_seconds: float,
) -> EvalResult:
  """Computes the figures from the sums."""
  nats, tokens = totals.by_bucket.sum(axis=1).tolist()
  nll, split_tokens, texts = nats / tokens, source.num_targets, source.texts
  bytes_per_token = source.num_bytes / split_tokens
  return EvalResult(
    source=source.name, tokenizer=source.tokenizer, unit=source.unit, fingerprint=source.fingerprint,
    split=source.split, protocol=protocol, seq_len=seq_len, chunk_len=chunk_len,
    bits_per_byte=nll / math.log(2) / bytes_per_token, nll_per_token=nll, tokens=round(tokens),
    split_tokens=split_tokens, words=texts.total_words if texts else None,
    raw_words=int(texts.num_words.sum()) if texts else None,
    word_perplexity=word_perplexity(nll * split_tokens, texts.total_words) if texts else None,
    seconds=seconds, compile_seconds=compile_seconds, tokens_per_second=tokens / seconds,
    buckets=make_buckets(totals.starts, totals.end, *totals.by_bucket, bytes_per_token),
    documents=_document_results(source, *totals.by_document), accuracy=answers.accuracy if answers else None,
    answers=answers.groups() if answers else (), metrics=metrics)


def word_perplexity(nats: float, words: int) -> float | None:
  """exp(nats / words); None if there are no words or the value overflows."""
  try:
    return math.exp(nats / words) if words else None
  except OverflowError:
    return None


def _document_results(source: Source, nats: np.ndarray, tokens: np.ndarray) -> tuple[DocumentResult, ...]:
  """One result for each text whose tokens were all evaluated; none if the corpus does not consist of texts."""
  texts = source.texts
  if texts is None:
    return ()
  return tuple(
    DocumentResult(
      title=texts.titles[document], tokens=int(tokens[document]), num_bytes=int(texts.num_bytes[document]),
      bits_per_byte=float(nats[document] / np.log(2) / texts.num_bytes[document]), words=int(texts.num_words[document]),
      word_perplexity=word_perplexity(float(nats[document]), int(texts.num_words[document])))
    for document in np.flatnonzero(tokens == np.diff(source.offsets)).tolist())
