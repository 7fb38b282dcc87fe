"""What the flags ask for by which eval.py judges cache policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lattice_jax.evaluation import flags
from lattice_jax.evaluation.caches import cache_overrides, parse_caches, with_peers
from lattice_jax.evaluation.command import Task
from lattice_jax.evaluation.compare import compare, write_comparisons
from lattice_jax.evaluation.recall.grid import Grid
from lattice_jax.evaluation.recall.report import FULL, write_summary
from lattice_jax.evaluation.recall.run import Subject, run_grid


def is_asked() -> bool:
  return flags.TASK.value is not None


def overrides() -> list[str]:
  """What --cache changes of the config where no --task judges several of them."""
  if is_asked():
    return []
  if len(flags.CACHE.value) > 1:
    raise ValueError("--cache was given several times; only a --task judges more than one cache.")
  if flags.PEERS.value:
    raise ValueError(
      f"--peers={','.join(flags.PEERS.value)} are judged beside a --cache by a --task; give one, such as --task=text.")
  return [override for text in flags.CACHE.value for override in cache_overrides(text)]


def judge(task: Task, split: str, *, report: Callable[[str], None]) -> list[Path]:
  """Does the --task and writes tables into its folder in the workdir; the same command goes on where it stopped.

  Raises:
    ValueError: a flag is out of range, or a cache is none.
  """
  texts = list(dict.fromkeys([FULL, *flags.CACHE.value]))
  caches = parse_caches(task.config, texts)
  lengths, folder = flags.LENGTHS.value, task.workdir / str(flags.TASK.value)
  longest = max(lengths)
  if task.context_len is not None and longest > task.context_len:
    raise ValueError(
      f"--lengths={longest} is more than the {task.context_len:,} tokens that {task.config.name} was made for.")
  source, tokenizer = task.read(split)
  variables = {"params": task.params, "buffers": task.buffers}
  if flags.TASK.value == "text":
    paths = []
    for length in lengths:
      rows_BT = _stretches(source.tokens, source.offsets, length)
      result = compare(
        task.config.model, variables, with_peers(caches, flags.PEERS.value, length), rows_BT, length // 2,
        report=report)
      paths += write_comparisons(folder / str(length), result)
    return paths
  grid = Grid(
    task=flags.TASK.value, lengths=lengths, answers=flags.ANSWERS.value,
    depths=flags.DEPTHS.value, trials=flags.TRIALS.value, seed=flags.TASK_SEED.value, batch=flags.ROWS.value,
    examples=flags.EXAMPLES.value, caches=caches, peers=tuple(flags.PEERS.value))
  subject = Subject(
    model=task.config.model, variables=variables, tokenizer=tokenizer, text_ids=np.asarray(source.tokens),
    context_len=task.context_len)
  answers = run_grid(grid, subject, folder, report=report)
  return write_summary(folder, grid.task, list(answers.answered.values()))


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
