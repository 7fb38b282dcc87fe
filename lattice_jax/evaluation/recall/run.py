"""A grid of recall prompts: a trial's haystack is read once, each prompt from where it leaves it, for all caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.cache import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.kept import kept_map, needle_kept, row_bytes, slots_in_use, write_map
from lattice_jax.evaluation.reader import Reader, fork
from lattice_jax.evaluation.recall.grid import Answered, AnswerFile, Grid
from lattice_jax.evaluation.recall.tasks import TASKS, Haystack, RecallPrompt, Sizes
from lattice_jax.inference.programs import Progress

_CACHE_UNIT = 64  # of which the slots of the full cache are a multiple

Cells = dict[Sizes, list[str]]  # what is asked of some trials → the caches that have not answered yet


@dataclass(frozen=True, eq=False)
class Subject:
  """What is asked.

  text_ids: what haystacks are cut from. context_len: tokens that the model was made for, if known. key: of the origin
  that all answers in a folder have.
  """

  model: ModelConfig
  variables: Any
  tokenizer: Tokenizer
  text_ids: np.ndarray
  context_len: int | None
  key: str


def run_grid(grid: Grid, subject: Subject, folder: Path, *, report: Callable[[str], None]) -> AnswerFile:
  """Asks what `folder`/answers.jsonl does not hold yet, and adds it line by line; the same call goes on later.

  `report` is told of each cell of a batch that is done. What the first trial's first prompt keeps under each cache,
  head by head, goes to `folder`/kept.

  Raises:
    ValueError: a prompt and its answer are longer than the model's context, or the folder holds answers of another
      origin.
  """
  answers = AnswerFile(folder / "answers.jsonl", subject.key)
  for length in grid.lengths:
    caches = grid.caches_of(length)
    todo = {trials: cells for trials in grid.batches() if (cells := _missing(grid, answers, length, trials))}
    if not todo:
      continue
    prompts = {
      (sizes, trial): _prompt(grid, subject, sizes, trial)
      for trials, cells in todo.items() for sizes in cells for trial in trials}
    answer_len = max(len(prompt.answer) for prompt in prompts.values())
    if subject.context_len is not None and length + answer_len > subject.context_len:
      raise ValueError(
        f"prompts of {length:,} tokens with answers of {answer_len} are more than the {subject.context_len:,} that the "
        f"model was made for; use --lengths of at most {subject.context_len - answer_len:,}.")
    # answers come in one call, so caches that drop tokens need room for no more
    caches = {name: replace(cache, call_len=answer_len) for name, cache in caches.items()}
    reader = Reader(
      subject.model, subject.variables, list(caches.values()), batch=grid.batch,
      length=-(-(length + answer_len) // _CACHE_UNIT) * _CACHE_UNIT)
    for trials, cells in todo.items():
      for sizes, progress in _read(reader, list(cells), trials, prompts):
        rows = [prompts[sizes, trial] for trial in trials]
        for name in cells[sizes]:
          compressed = reader.under(caches[name], progress)
          if 0 in trials and sizes == grid.sizes_of(length)[0]:
            write_map(folder, name, length, kept_map(compressed, length))
          asked = _ask(reader, subject.tokenizer, caches[name], compressed, rows, grid.examples if 0 in trials else 0)
          answers.add(Answered(
            key=subject.key, task=grid.task, length=length, answer=sizes.answer, depth=sizes.depth, cache=name,
            seed=grid.seed, trials=trials, **asked))
        report(
          f"{grid.task}: {length:,} tokens, {sizes.answer} to say, depth {sizes.depth:g}, trials {trials[0]} to "
          f"{trials[-1]}, {len(cells[sizes])} caches")
  return answers


def _missing(grid: Grid, answers: AnswerFile, length: int, trials: tuple[int, ...]) -> Cells:
  names = grid.caches_of(length)
  cells = {
    sizes: [name for name in names if not answers.has(grid, sizes, name, trials)] for sizes in grid.sizes_of(length)}
  return {sizes: missing for sizes, missing in cells.items() if missing}


def _prompt(grid: Grid, subject: Subject, sizes: Sizes, trial: int) -> RecallPrompt:
  haystack = Haystack(subject.tokenizer, subject.text_ids, trial=trial, seed=grid.seed)
  return TASKS[grid.task](haystack, sizes)


def _read(
  reader: Reader, cells: Sequence[Sizes], trials: tuple[int, ...], prompts: dict[tuple[Sizes, int], RecallPrompt],
) -> Iterator[tuple[Sizes, Progress]]:
  """Every prompt, read under the full cache; the haystack before it is read once for all, in whole chunks."""
  shared = {sizes: min(prompts[sizes, trial].fork for trial in trials) for sizes in cells}
  base, read = reader.start(), 0
  for sizes in sorted(cells, key=lambda sizes: shared[sizes]):
    rows, place = [prompts[sizes, trial].tokens for trial in trials], shared[sizes]
    place -= (place - read) % reader.chunk_len
    if place > read:
      base, read = reader.read(base, [row[read:place] for row in rows]), place
    yield sizes, reader.read(fork(base), [row[read:] for row in rows])


def _ask(
  reader: Reader, tokenizer: Tokenizer, cache: CacheConfig, progress: Progress, rows: Sequence[RecallPrompt],
  examples: int,
) -> dict[str, Any]:
  """What one cache makes of the answers: the fields of `Answered`; `progress` is given away."""
  policy = make_policy(cache)
  padded = [np.pad(row.answer, (0, cache.call_len - len(row.answer))) for row in rows]
  nll_BG, right_BG = reader.answer(cache, progress, padded)
  asked = {
    "right": [right_BG[index, :len(row.answer)].tolist() for index, row in enumerate(rows)],
    "nll": [nll_BG[index, :len(row.answer)].astype(float).round(4).tolist() for index, row in enumerate(rows)],
    "judged": [[bool(tokenizer.decode(row.answer[n:n + 1]).strip()) for n in range(len(row.answer))] for row in rows],
    "kept": slots_in_use(progress), "per_partition": 0 if policy.is_online else policy.keep,
    "needle_kept": np.round(needle_kept(progress, [row.needle for row in rows]), 4).tolist(),
    "cache_bytes": row_bytes(progress), "written": []}
  if examples:
    ids_BT = reader.write(cache, progress, max(len(row.answer) for row in rows))
    asked["written"] = [tokenizer.decode(ids_T).decode(errors="replace") for ids_T in ids_BT[:min(examples, len(rows))]]
  return asked
