"""Answers to prompts under every reader: code words by distance, and tasks by number of demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.bootstrap import interval_of_mean, interval_of_ratio
from lattice_jax.inspect.anchors.prompts import (
  DISTANCES,
  LETTERS,
  SHOTS,
  TASKS,
  WORDS,
  demonstration_prompt,
  recall_prompt,
)
from lattice_jax.inspect.anchors.readers import Reader, score
from lattice_jax.inspect.anchors.texts import Row, spots, to_batch
from lattice_jax.marks import Marker


def measure_recall(
  readers: Sequence[Reader], tokenizer: Tokenizer, marker: Marker | None, *, trials: int, rows: int, seed: int,
  report: Callable[[str], None],
) -> list[dict[str, Any]]:
  """A record for each kind of code word, distance (0: never shown) and reader.

  segments: anchors between the two places, by the model's own rule, on average.
  """
  cells = [(kind, distance) for kind in (WORDS, LETTERS) for distance in (0, *DISTANCES)]
  prompts = {
    (kind, distance): [
      recall_prompt(tokenizer, kind, max(distance, 1), trial, seed, is_shown=distance > 0) for trial in range(trials)]
    for kind, distance in cells}
  return _answer(readers, prompts, ("kind", "distance"), tokenizer, marker, rows=rows, report=report)


def measure_demonstrations(
  readers: Sequence[Reader], tokenizer: Tokenizer, *, trials: int, rows: int, seed: int, report: Callable[[str], None],
) -> list[dict[str, Any]]:
  """A record for each task, number of demonstrations and reader; each demonstration is a segment."""
  prompts = {
    (task, shots): [demonstration_prompt(tokenizer, task, shots, trial, seed) for trial in range(trials)]
    for task in TASKS for shots in SHOTS}
  return _answer(readers, prompts, ("task", "shots"), tokenizer, None, rows=rows, report=report)


def _answer(
  readers: Sequence[Reader], prompts: dict[tuple[Any, ...], list[Row]], names: tuple[str, str], tokenizer: Tokenizer,
  marker: Marker | None, *, rows: int, report: Callable[[str], None],
) -> list[dict[str, Any]]:
  """Prompts of about equal length are read together, whatever their cell."""
  masked = next(reader for reader in readers if reader.is_masked)
  cells = sorted(prompts, key=lambda cell: max(len(row.ids) for row in prompts[cell]))
  records = []
  for reader in readers:
    for group in _groups(cells, prompts):
      listed = [row for cell in group for row in prompts[cell]]
      batch = to_batch(listed, tokenizer, marker)
      nll_BT, right_BT = score(reader, batch, rows=rows, has_answers=True)
      segment_BT, first = spots(masked.model, batch, marker).segment_BT, 0
      for cell in group:
        stop = first + len(prompts[cell])
        records.append(dict(zip(names, cell, strict=True)) | {"reader": reader.name} | _record(
          batch.weights_BT[first:stop] > 0, nll_BT[first:stop], right_BT[first:stop], segment_BT[first:stop]))
        first = stop
    report(f"{reader.name}: {sum(map(len, prompts.values()))} prompts by {names[1]}")
  order = {cell: index for index, cell in enumerate(prompts)}
  return sorted(records, key=lambda record: order[record[names[0]], record[names[1]]])


def _groups(cells: Sequence[tuple[Any, ...]], prompts: dict[tuple[Any, ...], list[Row]]) -> list[list[tuple[Any, ...]]]:
  """Cells whose batches have the same length."""
  groups: dict[int, list[tuple[Any, ...]]] = {}
  for cell in cells:
    groups.setdefault(-(-max(len(row.ids) for row in prompts[cell]) // 64), []).append(cell)
  return list(groups.values())


def _record(
  is_asked_BT: np.ndarray, nll_BT: np.ndarray, right_BT: np.ndarray, segment_BT: np.ndarray) -> dict[str, Any]:
  nll_B, size_B = np.where(is_asked_BT, nll_BT, 0).astype(np.float64).sum(1), is_asked_BT.sum(1)
  exact_B = (right_BT | ~is_asked_BT).all(1).astype(np.float64)
  first_B = is_asked_BT.argmax(1)
  return {
    "answers": len(size_B), "tokens": int(size_B.sum()), "nats_per_token": float(nll_B.sum() / size_B.sum()),
    "nats_interval": interval_of_ratio(nll_B, size_B), "exact": float(exact_B.mean()),
    "exact_interval": interval_of_mean(exact_B), "token_accuracy": float(right_BT[is_asked_BT].mean()),
    "segments": float(segment_BT[np.arange(len(first_B)), first_B].mean())}
