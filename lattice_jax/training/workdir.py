"""The folder of a run: one process at a time, one model and data, and a record of how it was started."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import Config
from lattice_jax.config_checks import to_dict
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers.tokenizer import model_sha256
from lattice_jax.metrics import read_metric_lines
from lattice_jax.run_file import FILE, stored_config
from lattice_jax.runtime import git_commit
from lattice_jax.together import failing_together
from lattice_jax.types import Batch
from lattice_jax.writers import writing
from lattice_jax.writers.base import check_present

# Fields that say where data is read or how fast something is computed, not what; the fingerprint guards the data.
FREE_FIELDS = ("data.path", "data.workers", "model.impl", "model.remat", "model.xent_chunk", "model.vq.reduction")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Makes the folder and holds it for this run; the system releases it however the first process ends."""
  with contextlib.ExitStack() as held:
    with failing_together():
      if jax.process_index() == 0:
        held.enter_context(_lock(workdir))
    yield


def _lock(workdir: Path) -> contextlib.AbstractContextManager[Any]:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / "lock").open("a")
  except OSError as error:
    raise ValueError(f"--workdir={workdir} cannot be written to: {error.strerror}; choose another folder.") from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.close()
    raise ValueError(
      f"another process is training in --workdir={workdir}; stop it first, or choose another workdir.") from error
  return lock


def check_same_run(what: Path | str, run: dict[str, Any], config: Config, fingerprint: str) -> None:
  """Raises ValueError where what `run` describes, a folder or a checkpoint, is of another model or of other data."""
  changes = _differences(to_dict(stored_config(run, what)), to_dict(config))
  refused = [
    f"{path}: {old} → {new}" for path, (old, new) in changes.items()
    if path.startswith(("model.", "data.")) and path not in FREE_FIELDS]
  if refused:
    raise ValueError(
      f"{what} belongs to a run of another model or other data (stored → now):\n  " + "\n  ".join(refused) +
      "\nUse the stored values, or choose another --workdir (its parameters can be taken over with --init_from).")
  if run["data_fingerprint"] != fingerprint:
    raise ValueError(
      f"data.source={config.data.source} is not what {what} was trained on ({run['data_fingerprint']} → "
      f"{fingerprint}); restore it, or choose another --workdir.")


def describe_run(config: Config, source: Source, *, parameters: int, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The content of run.json; `config` is enough to build the model again."""
  return {
    "config": to_dict(config),
    "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
    "git_commit": git_commit(),
    "command": sys.argv,
    "data_fingerprint": source.fingerprint,
    "tokenizer_sha256": model_sha256(config.data),
    "unit": source.unit,
    "parameters": parameters,
    "mesh": dict(mesh.shape),
    "devices": [device.device_kind for device in jax.devices()[:1]] * jax.device_count(),
    "history": [],
  }


def with_history(
  run: dict[str, Any], earlier: dict[str, Any], step: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
  """(`run` with the history of the run it goes on with, what has changed: by field the old value and the new one).

  The history has an entry for every start at which something had changed, of the config or of the program, with the
  step at which it was.
  """
  changes = _differences(to_dict(stored_config(earlier, FILE)), run["config"])
  for name in ("versions", "git_commit"):
    if name in earlier:
      changes |= _differences(earlier[name], run[name], name)
  history = earlier["history"] if "history" in earlier else []
  if changes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history = [*history, {"step": step, "time": now, "changes": changes}]
  return run | {"history": history}, changes


def write_json(path: Path, content: Any) -> None:
  """Whole or not at all, by the first process."""
  if jax.process_index() != 0:
    return
  partial = path.with_suffix(".partial")
  with writing(path.parent):
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def check_run_file(workdir: Path) -> None:
  """Raises ValueError where run.json, which `write_json` wrote, is gone."""
  if jax.process_index() == 0:
    with writing(workdir):
      check_present(workdir / FILE)


def evaluated_steps(workdir: Path, split: str, up_to: int) -> set[int]:
  """Steps whose evaluation metrics.jsonl already holds; later lines are being removed by the first process."""
  records = read_metric_lines(workdir / "metrics.jsonl")
  return {
    record["step"] for record in records if "split" in record and record["split"] == split and record["step"] <= up_to}


def dump_update(
  folder: Path, *, step: int, state: Any, batch: Batch, metrics: dict[str, float], run: dict[str, Any]
) -> None:
  """Writes what replays one update: the folder is a workdir whose next update is that one, and batch.npz its tokens."""
  fields = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"batch_{jax.process_index()}.npz", **fields)
  write_json(folder / FILE, run)
  write_json(folder / "update.json", {name: str(value) for name, value in metrics.items()})
  checkpoints = Checkpoints(folder)
  if step not in checkpoints.steps():
    checkpoints.save(step, state, run)
  checkpoints.wait()
  checkpoints.close()


def _differences(stored: Any, wanted: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
  """(old, new) of every field that is not the same, by its path; None for one that is not there."""
  if not (isinstance(stored, dict) and isinstance(wanted, dict)):
    return {} if stored == wanted else {path: (stored, wanted)}
  found: dict[str, tuple[Any, Any]] = {}
  for name in [*stored, *(name for name in wanted if name not in stored)]:
    old, new = (values[name] if name in values else None for values in (stored, wanted))
    found |= _differences(old, new, f"{path}.{name}" if path else name)
  return found
