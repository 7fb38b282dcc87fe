"""What is asked, how often and under which caches, and the file that takes the answers one by one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config import CacheConfig
from lattice_jax.evaluation.caches import with_peers
from lattice_jax.evaluation.recall.tasks import TASKS, Sizes
from lattice_jax.files import append_jsonl, read_jsonl


@dataclass(frozen=True)
class Grid:
  """Every length with every answer's size, depth and trial, under every cache.

  lengths: tokens of the prompts. answers: digits, or words. batch: trials that are read together. examples: trials of
  which the answer is written too, greedily; at most a batch.
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
    if self.task not in TASKS:
      raise ValueError(f"--task={self.task} is not known; there are {', '.join(TASKS)}.")
    if not (self.lengths and self.answers and self.depths and self.caches):
      raise ValueError("a task needs at least one length, one answer size, one depth and one cache.")
    for name, value in (("trials", self.trials), ("rows", self.batch), *(("answers", size) for size in self.answers)):
      if value < 1:
        raise ValueError(f"--{name}={value} must be at least 1.")
    if not all(0 <= depth <= 1 for depth in self.depths):
      raise ValueError(f"--depths={','.join(map(str, self.depths))} must lie between 0, the start, and 1, the end.")
    if not 0 <= self.examples <= self.batch:
      raise ValueError(
        f"--examples={self.examples} must be between 0 and the --rows={self.batch} that are read together; use "
        f"--examples={min(max(self.examples, 0), self.batch)}, or more rows.")

  def caches_of(self, length: int) -> dict[str, CacheConfig]:
    """Those of the grid and their peers at that length."""
    return with_peers(self.caches, self.peers, length)

  def batches(self) -> Iterator[tuple[int, ...]]:
    """The trials, as many at a time as are read together; the last are fewer."""
    for first in range(0, self.trials, self.batch):
      yield tuple(range(first, min(first + self.batch, self.trials)))

  def sizes_of(self, length: int) -> list[Sizes]:
    return [Sizes(length, answer, depth) for answer, depth in itertools.product(self.answers, self.depths)]


@dataclass(frozen=True)
class Answered:
  """Some trials of one cell: what the answers were like. A line of the file.

  key: of what made it (`evaluation/origin.py`).
  right, nll: of each trial, whether each token of the answer was the likeliest, and its nats, given those before it.
  judged: the tokens of the answer that say something, not the space before it. kept: slots in use after the prompt.
  needle_kept: share of the answer's tokens still in the cache, the mean of layers and heads. cache_bytes: of a row.
  per_partition: tokens that a head keeps of every partition; 0 where there is no such number. written: answers in the
    model's words.
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
  judged: list[list[bool]]
  kept: int
  per_partition: int
  needle_kept: list[float]
  cache_bytes: int
  written: list[str]

  @property
  def cell(self) -> tuple[Any, ...]:
    """What tells it from other lines of the same origin, but the trials."""
    return self.task, self.length, self.answer, self.depth, self.cache, self.seed

  def only(self, places: Sequence[int]) -> Answered:
    """The line of some of its trials."""
    def some(values: Sequence[Any]) -> list[Any]:
      return [values[place] for place in places if place < len(values)]

    return dataclasses.replace(
      self, trials=tuple(some(self.trials)), right=some(self.right), nll=some(self.nll), judged=some(self.judged),
      needle_kept=some(self.needle_kept), written=some(self.written))


class AnswerFile:
  """A file of `Answered`, a line each, in any order; what it holds needs not be asked again."""

  def __init__(self, path: Path, key: str):
    """Raises ValueError where it holds something else than answers of that key."""
    self.path = path
    self._lines: dict[tuple[Any, ...], list[Answered]] = {}
    for record in read_jsonl(path):
      try:
        line = Answered(**record | {"trials": tuple(record["trials"])})
      except (TypeError, KeyError) as error:
        raise ValueError(
          f"{path} holds lines that are no answers, or do not say what made them; move it away, or choose another "
          "--workdir.") from error
      if line.key != key:
        raise ValueError(
          f"{path} holds answers of another model, text or version (key {line.key}, not {key}); move it away.")
      self._lines.setdefault(line.cell, []).append(line)
    self._cut_half_a_line()

  def add(self, answered: Answered) -> None:
    append_jsonl(self.path, [dataclasses.asdict(answered)])
    self._lines.setdefault(answered.cell, []).append(answered)

  def has(self, grid: Grid, sizes: Sizes, cache: str, trials: tuple[int, ...]) -> bool:
    """Whether all the trials were answered, and as many examples written as the grid wants of them."""
    cell = grid.task, sizes.length, sizes.answer, sizes.depth, cache, grid.seed
    lines = self._lines[cell] if cell in self._lines else []
    wanted = min(grid.examples, len(trials)) if 0 in trials else 0
    return set(trials) <= {trial for line in lines for trial in line.trials} and wanted <= max(
      (len(line.written) for line in lines), default=0)

  def lines(self) -> list[Answered]:
    """Every trial of a cell once, as it was answered last, however many were read together each time."""
    result = []
    for lines in self._lines.values():
      last = {trial: number for number, line in enumerate(lines) for trial in line.trials}
      for number, line in enumerate(lines):
        places = [place for place, trial in enumerate(line.trials) if last[trial] == number]
        if places:
          result.append(line.only(places))
    return result

  def _cut_half_a_line(self) -> None:
    """Of a run that was killed while it wrote; the next line must not follow on it."""
    if self.path.exists():
      raw = self.path.read_bytes()
      whole = raw[:raw.rfind(b"\n") + 1]
      if len(whole) < len(raw):
        self.path.write_bytes(whole)
