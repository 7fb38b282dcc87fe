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
  (step, state), (expected_step, expected_state) = newest_state(workdir), newest_state(expected)
  if step != expected_step:
    found.append(f"{workdir} ends at step {step}, {expected} at step {expected_step}.")
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    other = dict(jax.tree_util.tree_leaves_with_path(expected_state))[path]
    if np.asarray(leaf).tobytes() != np.asarray(other).tobytes():
      found.append(f"{jax.tree_util.keystr(path)} differs after the last update.")
  return found
