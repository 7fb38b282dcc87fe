"""Where the figures of a measurement stand in the files that it leaves behind.

A reader gives values by repetition (a seed, a prompt, a text), so that two rows can be compared repetition by
repetition. What has no repetitions has the single one "once".
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lattice_jax.files import read_jsonl
from lattice_jax.metrics import read_metric_lines
from lattice_jax.stored_value import look_up
from lattice_jax.sweep.trials import read_evaluation

Values = dict[str, float]
ONCE = "once"


class Reader(Protocol):
  """folders: of the measurement, by seed of its trainings, or ONCE. Raises ValueError where a figure is missing."""

  def read(self, folders: dict[str, Path]) -> Values: ...


@dataclass(frozen=True)
class Curve:
  """The last evaluation of each run, by the name of its curve, as in eval_validation_cold/bits_per_byte."""

  name: str

  def read(self, folders: dict[str, Path]) -> Values:
    return {seed: read_evaluation(folder, self.name)[0] for seed, folder in folders.items()}


@dataclass(frozen=True)
class StepTime:
  """Median seconds of a million tokens of training; comparable only between runs of one machine and load."""

  def read(self, folders: dict[str, Path]) -> Values:
    return {seed: 1e6 / median_speed(folder) for seed, folder in folders.items()}


@dataclass(frozen=True)
class Stored:
  """A number in a JSON or JSONL file: `steps` as in docs/figures; divided by that at `over`, times `factor`."""

  file: str
  steps: tuple[Any, ...]
  over: tuple[Any, ...] = ()
  factor: float = 1.0

  def read(self, folders: dict[str, Path]) -> Values:
    path = folders[ONCE] / self.file
    value = look_up(path, self.steps) / (look_up(path, self.over) if self.over else 1)
    return {ONCE: float(value) * self.factor}


@dataclass(frozen=True)
class PerText:
  """A list of numbers in a JSON file, one a text, less that at `minus`."""

  file: str
  steps: tuple[Any, ...]
  minus: tuple[Any, ...] = ()

  def read(self, folders: dict[str, Path]) -> Values:
    path = folders[ONCE] / self.file
    values = look_up(path, self.steps)
    less = look_up(path, self.minus) if self.minus else [0.0] * len(values)
    return {f"text {index}": one - other for index, (one, other) in enumerate(zip(values, less, strict=True))}


@dataclass(frozen=True)
class Answers:
  """Share of an answer's tokens that are right under one cache, in per cent, by prompt."""

  cache: str

  def read(self, folders: dict[str, Path]) -> Values:
    found: Values = {}
    for path in sorted(folders[ONCE].glob("*/answers.jsonl")):
      for line in read_jsonl(path):
        if line["cache"] != self.cache:
          continue
        for trial, right, scored in zip(line["trials"], line["right"], line["scored"], strict=True):
          counted = [is_right for is_right, counts in zip(right, scored, strict=True) if counts]
          found[f"{line['answer']} at {line['depth']:g}, {trial}"] = 100 * statistics.fmean(counted)
    if not found:
      raise ValueError(f"{folders[ONCE]} has no answers under {self.cache}.")
    return found


@dataclass(frozen=True)
class Lengths:
  """Bits per byte of one memory in windows of so many bytes, by seed, from lengths.jsonl."""

  name: str
  length: int

  def read(self, folders: dict[str, Path]) -> Values:
    lines = read_jsonl(folders[ONCE] / "lengths.jsonl")
    found = {
      line["seed"]: line["value"] for line in lines if line["name"] == self.name and line["length"] == self.length}
    if not found:
      raise ValueError(f"{folders[ONCE]}/lengths.jsonl has nothing of {self.name} in windows of {self.length}.")
    return found


def median_speed(folder: Path) -> float:
  """Tokens a second of a run's updates, the median. Raises ValueError where none was logged."""
  lines = read_metric_lines(folder / "metrics.jsonl")
  speeds = [line["tokens_per_second"] for line in lines if "split" not in line and "tokens_per_second" in line]
  if not (speeds := [speed for speed in speeds if math.isfinite(speed)]):
    raise ValueError(f"{folder}/metrics.jsonl has no tokens_per_second.")
  return statistics.median(speeds)
