"""The report on a model with anchors: what is measured, in which order, and the files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.anchors.attention import measure_attention
from lattice_jax.inspect.anchors.caches import measure_caches
from lattice_jax.inspect.anchors.losses import measure_text
from lattice_jax.inspect.anchors.plots import draw_report
from lattice_jax.inspect.anchors.probes import measure_demonstrations, measure_recall
from lattice_jax.inspect.anchors.readers import Reader, is_trained, make_readers
from lattice_jax.inspect.anchors.report import format_report
from lattice_jax.inspect.anchors.texts import to_batch, window_rows, windows
from lattice_jax.inspect.machine import describe_machine
from lattice_jax.marks import Marker
from lattice_jax.runtime import git_commit

_SEGMENT_LEN = 10  # of the rule beside the model's own under which caches are measured: the paper's mean on English
_TEXTS = 2  # whose attention is averaged


@dataclass(frozen=True)
class Sizes:
  """windows, seq_len: of the text. chunk_len: of a call of the reduced cache. context, steps: tokens that the caches
  read, and decode steps. trials: prompts of a cell. rows: read in one call."""

  windows: int
  seq_len: int
  chunk_len: int
  context: int
  steps: int
  trials: int
  rows: int
  seed: int


def write_report(
  loaded: LoadedModel, after: LoadedModel | None, out: Path, sizes: Sizes, *, split: str, parts: Sequence[str],
  command: str, say: Callable[[str], None],
) -> list[Path]:
  """Measures the parts and writes report.json, README.md and pictures; returns the paths of the first two.

  Raises:
    ValueError: the model has no attention, or the split has no text of that length.
  """
  start, config, commit = time.perf_counter(), loaded.config, git_commit()
  readers = make_readers(loaded, after)
  say(", ".join(reader.name for reader in readers))
  measured = _measure(loaded, readers, sizes, split, parts, say)
  report = {"facts": {
    "model": config.name, "workdir": None if loaded.step is None else str(loaded.workdir), "step": loaded.step,
    "after": after.config.name if after else "", "is_trained": is_trained(loaded), "rule": config.data.anchors.rule,
    "max_segment": config.model.anchor.max_segment, "source": config.data.source, "split": split, "command": command,
    "git_commit": commit, "sizes": vars(sizes), "machine": describe_machine(), "seconds": time.perf_counter() - start,
    "versions": ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))}} | measured
  paths = [out / "report.json", out / "README.md"]
  write_text(paths[0], json.dumps(report) + "\n")
  write_text(paths[1], format_report(report, draw_report(report, out)))
  return paths


def _measure(
  loaded: LoadedModel, readers: list[Reader], sizes: Sizes, split: str, parts: Sequence[str],
  say: Callable[[str], None],
) -> dict[str, Any]:
  source, tokenizer = loaded.read_split(split)
  marker, rule, measured = loaded.marker, loaded.config.data.anchors.rule, {}
  full, masked = readers[-2:]  # the last pair is the one that was trained on, if there are two
  _check_lengths(loaded, sizes, parts)
  batch = to_batch(window_rows(windows(source, sizes.seq_len, sizes.windows)), tokenizer, marker)
  if "text" in parts:
    measured["text"] = measure_text(
      readers, batch, tokenizer, marker, chunk_len=sizes.chunk_len, rows=sizes.rows, report=say)
    measured["text"]["origin"] = f"evenly spread over {source.name}, {split}"
  if "cache" in parts:
    ids_T = windows(source, sizes.context, 1)[0]
    ids_T = np.append(tokenizer.eos_id, ids_T[:-1]).astype(np.int32)
    every = Marker(class_A=np.zeros(1, np.uint8), every=_SEGMENT_LEN)
    measured["cache"] = measure_caches(
      full, masked, ids_T, tokenizer, {rule: marker, f"every:{_SEGMENT_LEN}": every}, chunk_len=sizes.chunk_len,
      steps=sizes.steps, report=say) | {"room": len(ids_T)}
  many = {"trials": sizes.trials, "rows": sizes.rows, "seed": sizes.seed, "report": say}
  if "recall" in parts:
    measured["recall"] = measure_recall(readers, tokenizer, marker, **many)
  if "demonstrations" in parts:
    measured["demonstrations"] = measure_demonstrations(readers, tokenizer, **many)
  if "attention" in parts:
    first = jax.tree.map(lambda x: x[:_TEXTS] if np.ndim(x) else x, batch)
    measured["attention"] = measure_attention(masked, first, tokenizer) | {"reader": masked.name}
    say(f"attention of {len(measured['attention']['layers'])} layers")
  return measured


def _check_lengths(loaded: LoadedModel, sizes: Sizes, parts: Sequence[str]) -> None:
  """Raises ValueError for texts that are longer than the model was made for, or leave nothing to read."""
  for name, length in (("seq_len", sizes.seq_len), ("context", sizes.context)):
    if loaded.context_len is not None and length > loaded.context_len:
      raise ValueError(
        f"--{name}={length} is more than the {loaded.context_len:,} tokens that {loaded.config.name} was made for; use "
        f"a smaller --{name}.")
  if "cache" in parts and not 1 < sizes.steps < sizes.context:
    raise ValueError(
      f"--steps={sizes.steps} are the last of --context={sizes.context} tokens, of which one must be left to read "
      "before; use from 2 steps up, and fewer than --context.")
