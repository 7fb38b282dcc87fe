"""What a retrieval task asks, how often and under which caches, and the file that collects the answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config import CacheConfig
from lattice_jax.evaluation.caches import with_peers
from lattice_jax.evaluation.retrieval.prompts import PromptSizes
from lattice_jax.files import append_jsonl, read_jsonl


@dataclass(frozen=True)
class RetrievalPlan:
  """Every combination of prompt length, answer size, depth and trial, under every cache.

  lengths: tokens of a prompt. answers: digits, or words, of an answer. batch: trials that are read together. examples:
  trials for which the model also writes an answer of its own, greedily; at most a batch.
  """

  task: str
  lengths: tuple[int, ...]
  answers: tuple[int, ...]
  depths: tuple[float, ...]
  trials: int
  seed: int
  batch: int
  examples: int
  caches: dict[str, CacheConfig]
  peers: tuple[str, ...]

  def __post_init__(self) -> None:
    # the flags check each value by itself
    if self.examples > self.batch:
      raise ValueError(
        f"--examples={self.examples} must be between 0 and the --rows={self.batch} that are read together; use "
        f"--examples={self.batch}, or more rows.")

  def caches_of(self, length: int) -> dict[str, CacheConfig]:
    """The caches of the plan and their peers at that length."""
    return with_peers(self.caches, self.peers, length)

  def batches(self) -> Iterator[tuple[int, ...]]:
    """The trials in batches that are read together; the last batch may be smaller."""
    for first in range(0, self.trials, self.batch):
      yield tuple(range(first, min(first + self.batch, self.trials)))

  def sizes_of(self, length: int) -> list[PromptSizes]:
    return [PromptSizes(length, answer, depth) for answer, depth in itertools.product(self.answers, self.depths)]


@dataclass(frozen=True)
class AnswerRecord:
  """How some trials of one cell were answered: a line of the file.

  key: of the origin (`evaluation/origin.py`).
  right, nll: for each trial and token of the answer, whether it was the most likely one and its nats, given the correct
    tokens before it.
  scored: which tokens of the answer count; the space before it does not. kept: slots in use after the prompt.
  needle_kept: share of the answer's tokens still in the cache, averaged over layers and heads. cache_bytes: of a row.
  per_partition: tokens that a head keeps of every partition; 0 if the policy has no such number. written: answers that
    the model wrote itself.
  """

  key: str
  task: str
  length: int
  answer: int
  depth: float
  cache: str
  seed: int
  trials: tuple[int, ...]
  right: list[list[bool]]
  nll: list[list[float]]
  scored: list[list[bool]]
  kept: int
  per_partition: int
  needle_kept: list[float]
  cache_bytes: int
  written: list[str]

  @property
  def cell(self) -> tuple[Any, ...]:
    """What, besides the trials, tells this record from others of the same origin."""
    return self.task, self.length, self.answer, self.depth, self.cache, self.seed

  def only(self, places: Sequence[int]) -> AnswerRecord:
    """The record of some of its trials."""
    def some(values: Sequence[Any]) -> list[Any]:
      return [values[place] for place in places if place < len(values)]

    return dataclasses.replace(
      self, trials=tuple(some(self.trials)), right=some(self.right), nll=some(self.nll), scored=some(self.scored),
      needle_kept=some(self.needle_kept), written=some(self.written))


class AnswerFile:
  """A file with one `AnswerRecord` per line, in any order; what it holds need not be asked again."""

  def __init__(self, path: Path, key: str):
    """Raises ValueError if it holds anything but answers with that key."""
    self.path = path
    self._lines: dict[tuple[Any, ...], list[AnswerRecord]] = {}
    for record in read_jsonl(path):
      try:
        line = AnswerRecord(**record | {"trials": tuple(record["trials"])})
      except (TypeError, KeyError) as error:
        raise ValueError(
          f"{path} holds lines that are no answers, or do not name their origin; move it away, or choose another "
          "--workdir.") from error
      if line.key != key:
        raise ValueError(
          f"{path} holds answers of another model, text or version (key {line.key}, not {key}); move it away.")
      self._lines.setdefault(line.cell, []).append(line)
    self._cut_partial_line()

  def add(self, answered: AnswerRecord) -> None:
    append_jsonl(self.path, [dataclasses.asdict(answered)])
    self._lines.setdefault(answered.cell, []).append(answered)

  def has(self, plan: RetrievalPlan, sizes: PromptSizes, cache: str, trials: tuple[int, ...]) -> bool:
    """Whether all these trials were answered and as many examples written as the plan wants."""
    cell = plan.task, sizes.length, sizes.answer, sizes.depth, cache, plan.seed
    lines = self._lines[cell] if cell in self._lines else []
    wanted = min(plan.examples, len(trials)) if 0 in trials else 0
    return set(trials) <= {trial for line in lines for trial in line.trials} and wanted <= max(
      (len(line.written) for line in lines), default=0)

  def lines(self) -> list[AnswerRecord]:
    """Every trial of a cell once, with its latest answer, even if trials were batched differently before."""
    result = []
    for lines in self._lines.values():
      last = {trial: number for number, line in enumerate(lines) for trial in line.trials}
      for number, line in enumerate(lines):
        places = [place for place, trial in enumerate(line.trials) if last[trial] == number]
        if places:
          result.append(line.only(places))
    return result

  def _cut_partial_line(self) -> None:
    """Removes the partial last line of a run that was killed, so that the next line starts on its own."""
    if self.path.exists():
      raw = self.path.read_bytes()
      whole = raw[:raw.rfind(b"\n") + 1]
      if len(whole) < len(raw):
        self.path.write_bytes(whole)
