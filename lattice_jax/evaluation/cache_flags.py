"""What the flags ask for by which eval.py judges cache policies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.config import CacheConfig
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation import flags
from lattice_jax.evaluation.caches import cache_overrides, parse_caches, with_peers
from lattice_jax.evaluation.command import Task
from lattice_jax.evaluation.compare import compare, write_comparisons
from lattice_jax.evaluation.origin import code_fingerprint, origin_key
from lattice_jax.evaluation.recall.grid import Grid
from lattice_jax.evaluation.recall.report import FULL, write_summary
from lattice_jax.evaluation.recall.run import Subject, run_grid
from lattice_jax.evaluation.report import write_text


def overrides() -> list[str]:
  """What --cache changes of the config where no --task judges several of them."""
  if flags.TASK.value:
    return []
  if len(flags.CACHE.value) > 1:
    raise ValueError("--cache was given several times; only a --task judges more than one cache.")
  return [override for text in flags.CACHE.value for override in cache_overrides(text)]


def judge(task: Task, split: str, *, report: Callable[[str], None]) -> list[Path]:
  """Does the --task and writes tables into a folder of its own; the same command goes on where it stopped.

  Raises:
    ValueError: a flag is out of range, or a cache is none.
  """
  texts = list(dict.fromkeys([FULL, *flags.CACHE.value]))
  caches, lengths = parse_caches(task.config, texts), flags.LENGTHS.value
  longest = max(lengths)
  if task.context_len is not None and longest > task.context_len:
    raise ValueError(
      f"--lengths={longest} is more than the {task.context_len:,} tokens that {task.config.name} was made for.")
  source, tokenizer = task.read(split)
  return (_compare if flags.TASK.value == "text" else _ask)(task, source, tokenizer, caches, lengths, report)


def _compare(
  task: Task, source: Source, tokenizer: Tokenizer, caches: dict[str, CacheConfig], lengths: tuple[int, ...],
  report: Callable[[str], None],
) -> list[Path]:
  """--task=text: a folder for each length."""
  del tokenizer
  compared = {length: with_peers(caches, flags.PEERS.value, length) for length in lengths}
  folder, _ = _folder(task, source, trials=flags.TRIALS.value, caches={
    str(length): {name: dataclasses.asdict(cache) for name, cache in these.items()}
    for length, these in compared.items()})
  paths = []
  for length, these in compared.items():
    rows_BT = _stretches(source.tokens, source.offsets, length)
    result = compare(
      task.config.model, {"params": task.params, "buffers": task.buffers}, these, rows_BT, length // 2, report=report)
    paths += write_comparisons(folder / str(length), result)
  return paths


def _ask(
  task: Task, source: Source, tokenizer: Tokenizer, caches: dict[str, CacheConfig], lengths: tuple[int, ...],
  report: Callable[[str], None],
) -> list[Path]:
  """The other tasks: all that was ever asked of the same model about the same text with the same seed, in a folder."""
  grid = Grid(
    task=flags.TASK.value, lengths=lengths, answers=flags.ANSWERS.value,
    depths=flags.DEPTHS.value, trials=flags.TRIALS.value, seed=flags.TASK_SEED.value, batch=flags.ROWS.value,
    examples=flags.EXAMPLES.value, caches=caches, peers=tuple(flags.PEERS.value))
  folder, key = _folder(task, source)
  if (old := task.workdir / grid.task / "answers.jsonl").exists():
    report(f"{old} does not say which model answered, so nothing of it is used; its folder may be removed")
  subject = Subject(
    model=task.config.model, variables={"params": task.params, "buffers": task.buffers}, tokenizer=tokenizer,
    text_ids=np.asarray(source.tokens), context_len=task.context_len, key=key)
  answers = run_grid(grid, subject, folder, report=report)
  return write_summary(folder, grid.task, answers.lines())


def _folder(task: Task, source: Source, **facts: Any) -> tuple[Path, str]:
  """(where the --task's results go, the key of all that decides them), which origin.json there spells out."""
  name, origin = task.name_of(
    str(flags.TASK.value), task=flags.TASK.value, text=source.fingerprint, seed=flags.TASK_SEED.value,
    code=code_fingerprint(), **facts)
  write_text(task.workdir / name / "origin.json", json.dumps(origin, indent=1) + "\n")
  return task.workdir / name, origin_key(origin)


def _stretches(tokens: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
  """As many texts as --trials, each a stretch of one document, from places that the seed decides."""
  fitting = [
    (start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    if stop - start >= length]
  if not fitting:
    raise ValueError(f"no document of the split has {length:,} tokens; use a smaller --lengths.")
  random = np.random.default_rng(flags.TASK_SEED.value)
  chosen = [fitting[index] for index in random.integers(len(fitting), size=flags.TRIALS.value)]
  starts = [int(random.integers(start, stop - length + 1)) for start, stop in chosen]
  return np.stack([np.asarray(tokens[start:start + length], np.int32) for start in starts])
