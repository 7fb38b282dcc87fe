"""Compares two workdirs: whether every metric and every bit of the last state are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.files import Record
from lattice_jax.metrics import read_metric_lines
from lattice_jax.run_file import read_config
from lattice_jax.sharding import make_mesh
from lattice_jax.training.state import abstract_state


def timeless_lines(workdir: Path) -> list[Record]:
  """The lines of metrics.jsonl without the fields that depend on the clock."""
  return [
    {name: value for name, value in record.items() if name != "tokens_per_second" and not name.startswith("time_")}
    for record in read_metric_lines(workdir / "metrics.jsonl")]


def newest_state(workdir: Path) -> tuple[int, Any]:
  """(step, state) of the newest checkpoint, on the first device."""
  config = read_config(workdir)
  checkpoints = Checkpoints(workdir, keep_last=config.train.keep_last, keep_best=config.train.keep_best)
  found = checkpoints.restore_latest(abstract_state(config, make_mesh(config.mesh, jax.devices()[:1])))
  checkpoints.close()
  if found is None:
    raise ValueError(f"{workdir} holds no checkpoint.")
  return found


def line_faults(lines: list[Record], expected: list[Record], *, is_whole: bool) -> tuple[int, int, int]:
  """(lost, doubled, diverging) lines of a run beside those of an undisturbed one, both without what the clock tells.

  A line is known by its step, split and protocol. Unless the run `is_whole`, lines may be missing after its last one.
  """
  places = {_key(line): place for place, line in enumerate(expected)}
  found = [_key(line) for line in lines]
  due = len(expected) if is_whole else max((places[key] + 1 for key in found if key in places), default=0)
  lost = len({key for key, place in places.items() if place < due} - set(found))
  diverging = sum(key not in places or line != expected[places[key]] for key, line in zip(found, lines, strict=True))
  return lost, len(found) - len(set(found)), diverging


def _key(line: Record) -> tuple[Any, ...]:
  return tuple(line.get(name) for name in ("step", "split", "protocol"))


def different_leaves(workdir: Path, expected: Path) -> list[str]:
  """The arrays of the newest checkpoints that differ in a bit, or the step, if that differs."""
  (step, state), (expected_step, expected_state) = newest_state(workdir), newest_state(expected)
  if step != expected_step:
    return ["step"]
  pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected_state), strict=True)
  return [
    jax.tree_util.keystr(path) for (path, leaf), other in pairs
    if np.asarray(leaf).tobytes() != np.asarray(other).tobytes()]


def differences(workdir: Path, expected: Path) -> list[str]:
  """One sentence for each way in which two runs differ; none if they are the same."""
  found = []
  lines, expected_lines = timeless_lines(workdir), timeless_lines(expected)
  if len(lines) != len(expected_lines):
    found.append(f"{workdir} has {len(lines)} metric lines, {expected} has {len(expected_lines)}.")
  for line, expected_line in zip(lines, expected_lines, strict=False):
    if line != expected_line:
      found.append(f"a metric line of {workdir} is {line}, in {expected} it is {expected_line}.")
      break
  leaves = different_leaves(workdir, expected)
  return found + [f"{name} differs after the last update." for name in leaves]
