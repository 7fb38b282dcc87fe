"""The flags by which eval.py judges cache policies, and what they ask for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lattice_jax.config import CacheConfig
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers import Tokenizer
from lattice_jax.evaluation.caches import cache_overrides, parse_caches, with_peers
from lattice_jax.evaluation.command import Task
from lattice_jax.evaluation.compare import compare, write_comparisons
from lattice_jax.evaluation.origin import code_fingerprint, origin_key
from lattice_jax.evaluation.recall.grid import Grid
from lattice_jax.evaluation.recall.report import FULL, write_summary
from lattice_jax.evaluation.recall.run import Subject, run_grid
from lattice_jax.evaluation.recall.tasks import TASKS
from lattice_jax.evaluation.report import write_text

_CACHE = flags.DEFINE_multi_string(
  "cache", [], "What attention keeps, as in lagkv:lag=128,ratio=0.25; of a --task several, beside the full cache.")
_TASK = flags.DEFINE_enum(
  "task", None, [*TASKS, "text"],
  "Judge caches: passkey, needles, copy, pairs ask for what a prompt said; text goes on with a text.")
_PEERS = flags.DEFINE_list(
  "peers", [], "Policies that are judged too, by their scores in the frame of each --cache, keeping as many tokens.")
_LENGTHS = flags.DEFINE_list("lengths", ["1024"], "Of a --task: tokens of the prompts, or of the texts.")
_ANSWERS = flags.DEFINE_list("answers", ["7"], "Of a --task: digits, or words, to be said.")
_DEPTHS = flags.DEFINE_list("depths", ["0", "0.25", "0.5", "0.75", "1"], "Of a --task: where they are, 0 to 1.")
_TRIALS = flags.DEFINE_integer("trials", 10, "Of a --task: prompts of each kind, or texts.")
_EXAMPLES = flags.DEFINE_integer("examples", 5, "Of a --task: answers of each kind that the model writes itself.")
_ROWS = flags.DEFINE_integer("rows", 5, "Of a --task: prompts that are read together.")
_TASK_SEED = flags.DEFINE_integer("task_seed", 0, "Of what is asked, and where.")


def task_name() -> str:
  """The --task; "" where none is asked for."""
  return _TASK.value or ""


def overrides() -> list[str]:
  """What --cache changes of the config where no --task judges several of them."""
  if task_name():
    return []
  if len(_CACHE.value) > 1:
    raise ValueError("--cache was given several times; only a --task judges more than one cache.")
  return [override for text in _CACHE.value for override in cache_overrides(text)]


def judge(task: Task, split: str, *, report: Callable[[str], None]) -> list[Path]:
  """Does the --task and writes tables into a folder of its own; the same command goes on where it stopped.

  Raises:
    ValueError: a flag is out of range, or a cache is none.
  """
  texts = list(dict.fromkeys([FULL, *_CACHE.value]))
  caches, lengths = parse_caches(task.config, texts), _numbers("lengths", _LENGTHS.value, int)
  if _TRIALS.value < 1:
    raise ValueError(f"--trials={_TRIALS.value} must be at least 1.")
  longest = max(lengths)
  if task.context_len is not None and longest > task.context_len:
    raise ValueError(
      f"--lengths={longest} is more than the {task.context_len:,} tokens that {task.config.name} was made for.")
  source, tokenizer = task.read(split)
  return (_compare if _TASK.value == "text" else _ask)(task, source, tokenizer, caches, lengths, report)


def _compare(
  task: Task, source: Source, tokenizer: Tokenizer, caches: dict[str, CacheConfig], lengths: tuple[int, ...],
  report: Callable[[str], None],
) -> list[Path]:
  """--task=text: a folder for each length."""
  del tokenizer
  compared = {length: with_peers(caches, _PEERS.value, length) for length in lengths}
  folder, _ = _folder(task, source, trials=_TRIALS.value, caches={
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
    task=_TASK.value, lengths=lengths, answers=_numbers("answers", _ANSWERS.value, int),
    depths=_numbers("depths", _DEPTHS.value, float), trials=_TRIALS.value, seed=_TASK_SEED.value, batch=_ROWS.value,
    examples=_EXAMPLES.value, caches=caches, peers=tuple(_PEERS.value))
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
    str(_TASK.value), task=_TASK.value, text=source.fingerprint, seed=_TASK_SEED.value, code=code_fingerprint(),
    **facts)
  write_text(task.workdir / name / "origin.json", json.dumps(origin, indent=1) + "\n")
  return task.workdir / name, origin_key(origin)


def _stretches(tokens: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
  """As many texts as --trials, each a stretch of one document, from places that the seed decides."""
  fitting = [
    (start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    if stop - start >= length]
  if not fitting:
    raise ValueError(f"no document of the split has {length:,} tokens; use a smaller --lengths.")
  random = np.random.default_rng(_TASK_SEED.value)
  chosen = [fitting[index] for index in random.integers(len(fitting), size=_TRIALS.value)]
  starts = [int(random.integers(start, stop - length + 1)) for start, stop in chosen]
  return np.stack([np.asarray(tokens[start:start + length], np.int32) for start in starts])


def _numbers(name: str, texts: list[str], kind: type) -> tuple:
  if not texts:
    raise ValueError(f"--{name} is empty; give numbers with commas between them.")
  try:
    return tuple(kind(text) for text in texts)
  except ValueError as error:
    raise ValueError(f"--{name}={','.join(texts)} must be numbers with commas between them.") from error
