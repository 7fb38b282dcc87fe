"""What eval.py --task does: caches compared on answers to prompts, or on the losses of a text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.commands import cache_flags as flags
from lattice_jax.config import CacheConfig
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.caches import parse_caches, with_peers
from lattice_jax.evaluation.compare import compare, write_comparisons
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.origin import code_fingerprint, origin_key
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.evaluation.retrieval.plan import RetrievalPlan
from lattice_jax.evaluation.retrieval.run import Subject, run_plan
from lattice_jax.evaluation.retrieval.summary import FULL, write_summary


def run_task(model: LoadedModel, split: str, *, report: Callable[[str], None]) -> list[Path]:
  """Writes the tables of --task into a folder of its own; the same command goes on where an earlier one stopped.

  Raises:
    ValueError: a flag is out of range, or --cache names no cache.
  """
  texts = list(dict.fromkeys([FULL, *flags.CACHE.value]))
  caches, longest = parse_caches(model.config, texts), max(flags.LENGTHS.value)
  if model.context_len is not None and longest > model.context_len:
    raise ValueError(
      f"--lengths={longest} is more than the {model.context_len:,} tokens that {model.config.name} was made for.")
  source, tokenizer = model.read_split(split)
  if flags.TASK.value == "text":
    return _compare(model, source, caches, report)
  return _ask(model, source, tokenizer, caches, report)


def _compare(
  model: LoadedModel, source: Source, caches: dict[str, CacheConfig], report: Callable[[str], None]) -> list[Path]:
  """--task=text: a folder for each length."""
  compared = {length: with_peers(caches, flags.PEERS.value, length) for length in flags.LENGTHS.value}
  folder, _ = _folder(model, source, trials=flags.TRIALS.value, caches={
    str(length): {name: dataclasses.asdict(cache) for name, cache in these.items()}
    for length, these in compared.items()})
  paths = []
  for length, these in compared.items():
    rows_BT = _stretches(source.tokens, source.offsets, length)
    result = compare(
      model.config.model, model.variables, these, rows_BT, length // 2, marker=model.marker_for(these.values()),
      report=report)
    paths += write_comparisons(folder / str(length), result)
  return paths


def _ask(
  model: LoadedModel, source: Source, tokenizer: Tokenizer, caches: dict[str, CacheConfig],
  report: Callable[[str], None],
) -> list[Path]:
  """The other tasks: one folder holds all answers that the same model gave about the same text with the same seed."""
  plan = RetrievalPlan(
    task=flags.TASK.value, lengths=flags.LENGTHS.value, answers=flags.ANSWERS.value, depths=flags.DEPTHS.value,
    trials=flags.TRIALS.value, seed=flags.TASK_SEED.value, batch=flags.ROWS.value, examples=flags.EXAMPLES.value,
    caches=caches, peers=tuple(flags.PEERS.value))
  folder, key = _folder(model, source)
  if (old := model.workdir / plan.task / "answers.jsonl").exists():
    report(f"{old} does not say which model answered, so nothing of it is used; its folder may be removed")
  subject = Subject(
    model=model.config.model, variables=model.variables, tokenizer=tokenizer, text_ids=np.asarray(source.tokens),
    context_len=model.context_len, key=key, marker=model.marker_for(plan.caches_of(max(plan.lengths)).values()))
  answers = run_plan(plan, subject, folder, report=report)
  return write_summary(folder, plan.task, answers.lines())


def _folder(model: LoadedModel, source: Source, **facts: Any) -> tuple[Path, str]:
  """(where the results go, the key of everything that decides them); origin.json there spells it out."""
  name, origin = model.name_of(
    str(flags.TASK.value), task=flags.TASK.value, text=source.fingerprint, seed=flags.TASK_SEED.value,
    code=code_fingerprint(), **facts)
  write_text(model.workdir / name / "origin.json", json.dumps(origin, indent=1) + "\n")
  return model.workdir / name, origin_key(origin)


def _stretches(tokens: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
  """As many texts as --trials says, each a stretch of one document; the seed decides which."""
  fitting = [
    (start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    if stop - start >= length]
  if not fitting:
    raise ValueError(f"no document of the split has {length:,} tokens; use a smaller --lengths.")
  random = np.random.default_rng(flags.TASK_SEED.value)
  chosen = [fitting[index] for index in random.integers(len(fitting), size=flags.TRIALS.value)]
  starts = [int(random.integers(start, stop - length + 1)) for start, stop in chosen]
  return np.stack([np.asarray(tokens[start:start + length], np.int32) for start in starts])
