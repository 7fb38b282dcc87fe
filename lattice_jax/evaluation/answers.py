"""Accuracy on the answers of a task: overall, and by each of the task's labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.data.loader import EvalBatch
from lattice_jax.data.source import Source


@dataclass(frozen=True)
class AnswerGroup:
  """Answers whose label lies in [2^n, 2^(n+1)); it ranges from `first` to `last` among them. nll: nats."""

  label: str
  first: int
  last: int
  answers: int
  accuracy: float
  nll_per_answer: float


class AnswerTotals:
  """Accumulates answers chunk by chunk. Every host adds the same answers, whichever rows it computed."""

  def __init__(self, source: Source, window: int):
    longest = int(np.diff(source.offsets).max())
    if window < longest:
      raise ValueError(
        f"windows of {window} tokens cut the documents of {source.name}, {longest} tokens long, between a fact and its "
        f"question; use windows of at least {longest}, or the carried protocol.")
    self._source = source
    # rows: answers, right ones, nats; columns: floor of log2 of the label
    self._sums = {name: np.zeros((3, 64)) for name in source.answers.labels}
    self._range = {name: (np.full(64, np.iinfo(np.int64).max), np.zeros(64, np.int64)) for name in self._sums}

  @property
  def accuracy(self) -> float:
    """The share of answers that are right."""
    answers, right, _ = next(iter(self._sums.values())).sum(axis=1)
    return float(right / answers)

  def add(self, nll_BT: np.ndarray, right_BT: np.ndarray, chunk: EvalBatch) -> None:
    """Ignores predictions where there is no answer."""
    is_answer_BT = chunk.documents_BT >= 0
    nats, right = nll_BT[is_answer_BT].astype(np.float64), right_BT[is_answer_BT]
    index = self._source.offsets[chunk.documents_BT[is_answer_BT]] + chunk.positions_BT[is_answer_BT]
    for name, values in self._source.answers.labels.items():
      value = values[index]
      column = np.floor(np.log2(value)).astype(np.int64)
      self._sums[name] += np.stack([np.bincount(column, weights, 64) for weights in (np.ones_like(nats), right, nats)])
      first, last = self._range[name]
      np.minimum.at(first, column, value)
      np.maximum.at(last, column, value)

  def groups(self) -> tuple[AnswerGroup, ...]:
    """The groups of each label, in increasing order of its values."""
    return tuple(
      AnswerGroup(
        label=name, first=int(self._range[name][0][column]), last=int(self._range[name][1][column]),
        answers=round(answers), accuracy=right / answers, nll_per_answer=nats / answers)
      for name, sums in self._sums.items() for column, (answers, right, nats) in enumerate(sums.T.tolist()) if answers)
