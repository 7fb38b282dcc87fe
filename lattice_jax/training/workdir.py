"""The folder of a run: used by one process at a time, for one model and one set of data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.checkpoint_folder import FIELD, checkpoint_folder
from lattice_jax.config import Config
from lattice_jax.config_checks import to_dict
from lattice_jax.fields import leaves
from lattice_jax.files import lock_folder, replace_json
from lattice_jax.metrics import read_metric_lines
from lattice_jax.models.parameters import named_leaves
from lattice_jax.processes import propagate_failure
from lattice_jax.run_file import FILE, stored_config
from lattice_jax.types import Batch
from lattice_jax.writers import writing
from lattice_jax.writers.base import check_present


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Makes the folder and holds it for this run, by a lock of the first process."""
  with contextlib.ExitStack() as held:
    with propagate_failure():
      if jax.process_index() == 0:
        try:
          held.enter_context(lock_folder(workdir, (
            f"another process is training in --workdir={workdir}; stop it first, or choose another workdir.")))
        except OSError as error:
          raise ValueError(
            f"--workdir={workdir} cannot be written to: {error.strerror}; choose another folder.") from error
    yield


def check_same_run(what: Path | str, run: dict[str, Any], config: Config, fingerprint: str) -> None:
  """Raises ValueError if the run that a folder or checkpoint (`what`) describes has another model or other data."""
  changes = differences(to_dict(stored_config(run, what)), to_dict(config))
  free = {path for path, field, _ in leaves(config) if "free" in field.metadata}  # the fingerprint guards the data
  refused = [
    f"{path}: {old} → {new}" for path, (old, new) in changes.items()
    if path.startswith(("model.", "data.")) and path not in free]
  if refused:
    raise ValueError(
      f"{what} belongs to a run of another model or other data (stored → now):\n  " + "\n  ".join(refused) +
      "\nUse the stored values, or choose another --workdir (its parameters can be taken over with --init_from).")
  if run["data_fingerprint"] != fingerprint:
    raise ValueError(
      f"data.source={config.data.source} is not what {what} was trained on ({run['data_fingerprint']} → "
      f"{fingerprint}); restore it, or choose another --workdir.")


def write_json(path: Path, content: Any) -> None:
  """Replaces a file of the workdir in one step; only the first process writes."""
  if jax.process_index() == 0:
    with writing(path.parent):
      replace_json(path, content)


def check_run_file(workdir: Path) -> None:
  """Raises ValueError if run.json is no longer there."""
  if jax.process_index() == 0:
    with writing(workdir):
      check_present(workdir / FILE)


def evaluated_steps(workdir: Path, split: str, step: int) -> set[int]:
  """{step} if metrics.jsonl already holds the evaluation of this step, the newest of the run; else no steps.

  The first process reads it for all, and removes later lines meanwhile.
  """
  is_there = jax.process_index() == 0 and any(
    "split" in record and record["split"] == split and record["step"] == step
    for record in read_metric_lines(workdir / "metrics.jsonl"))
  if jax.process_count() > 1:
    is_there = bool(multihost_utils.broadcast_one_to_all(np.bool_(is_there)))
  return {step} if is_there else set()


def dump_update(
  folder: Path, *, step: int, state: Any, batch: Batch, metrics: dict[str, float], run: dict[str, Any]
) -> str:
  """Writes what is needed to replay one update: a workdir whose next update it is, with its tokens in batch_*.npz.

  Returns the flags that continue from there.
  """
  flags, place = f"--workdir={folder}", None
  if FIELD in run:
    place = f"{run[FIELD]}/{folder.name}"
    run, flags = run | {FIELD: place}, f"{flags} --checkpoints={place}"
  fields = {name: np.asarray(leaf) for name, leaf in named_leaves(batch, ".").items()}
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"batch_{jax.process_index()}.npz", **fields)
  write_json(folder / FILE, run)
  write_json(folder / "update.json", {name: str(value) for name, value in metrics.items()})
  checkpoints = Checkpoints(folder, folder=checkpoint_folder(folder, place))
  if step not in checkpoints.steps():
    checkpoints.save(step, state, run)
  checkpoints.wait()
  checkpoints.close()
  return flags


def differences(stored: Any, wanted: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
  """(old, new) of every field that differs, by its path; None stands for a missing field."""
  if not (isinstance(stored, dict) and isinstance(wanted, dict)):
    return {} if stored == wanted else {path: (stored, wanted)}
  found: dict[str, tuple[Any, Any]] = {}
  for name in [*stored, *(name for name in wanted if name not in stored)]:
    old, new = (values[name] if name in values else None for values in (stored, wanted))
    found |= differences(old, new, f"{path}.{name}" if path else name)
  return found
