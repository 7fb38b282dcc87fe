"""Checkpoints of a workdir, by Orbax: written in the background, restored onto the devices of today."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lattice_jax.checkpoint_folder import FOLDER, checkpoint_folder, stored_folder, unreadable_folder
from lattice_jax.config import Config, DataConfig
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer, model_sha256
from lattice_jax.models.content import checksums
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.models.parameters import named_leaves
from lattice_jax.processes import could_not_talk, warn
from lattice_jax.run_file import check_run, read_config, read_run
from lattice_jax.save_failures import ObservedHandler
from lattice_jax.sharding import param_shardings, unbox
from lattice_jax.shown import first_line

_LOOK_SECONDS = 0.05
_FAILURES = (OSError, ValueError, RuntimeError)  # that Orbax and TensorStore raise when a save fails


class Checkpoints:
  """The checkpoints of one training run: the last `keep_last`, and the `keep_best` by bits per byte.

  A checkpoint is named by its step, the number of finished updates. Random keys are not stored, because they follow
  from the seed and the step. They lie in `folder`, or in that of the workdir.
  """

  def __init__(self, workdir: Path, *, folder: epath.Path | None = None, keep_last: int = 1, keep_best: int = 0):
    self._workdir = workdir
    self._folder = checkpoint_folder(workdir) if folder is None else folder
    self._saving: int | None = None  # the step of the latest save
    self._untold: int | None = None  # the same, until `newly_saved` has reported that it is on disk
    best = preservation_policy.BestN(
      get_metric_fn=lambda metrics: -_bits_per_byte(metrics), n=keep_best, keep_checkpoints_without_metrics=False)
    policies = [preservation_policy.LatestN(keep_last), *([best] if keep_best else [])]
    self._handler = ObservedHandler()
    # without `best_fn` Orbax would not write scores to disk, and a resumed run would not know its best checkpoint
    self._manager = _open_manager(self._folder, ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(policies), best_fn=best.get_metric_fn,
      cleanup_tmp_directories=True), self._handler)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, run: dict[str, Any], *, score: float | None = None) -> None:
    """Starts writing; returns once the arrays may be donated. `score` is the bits per byte at this step, if known."""
    metrics = None if score is None else {"bits_per_byte": score}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), run=ocp.args.JsonSave({"run": run, "checksums": checksums(state)}))
    self.wait()
    self._saving = self._untold = step
    self._report_failure(lambda: self._manager.save(step, args=args, metrics=metrics, force=True))

  def newly_saved(self) -> int | None:
    """The step of a save that has finished since the last call; raises ValueError if a save has failed."""
    self._report_failure(self._handler.raise_failure)
    self._report_failure(self._manager.check_for_errors)
    if self._untold is None or self._manager.is_saving_in_progress():
      return None
    step, self._untold = self._untold, None
    return step

  def wait(self) -> None:
    """Returns when everything is on disk; raises ValueError if a checkpoint no longer exists."""
    while jax.process_count() > 1 and self._manager.is_saving_in_progress():
      self._report_failure(self._handler.raise_failure)
      time.sleep(_LOOK_SECONDS)
    self._report_failure(self._manager.wait_until_finished)
    for step in self.steps():
      if not (self._folder / str(step)).is_dir():
        raise ValueError(
          f"the checkpoint {self._shown / str(step)} is gone: something else removed it during the "
          f"run; run the same command: it {self._resumes()}.")

  def close(self) -> None:
    """Waits for a save in progress; if it fails now, the checkpoints before it stay as they are."""
    with contextlib.suppress(*_FAILURES):
      self._manager.close()

  def restore_latest(self, abstract_state: Any) -> tuple[int, Any] | None:
    """(step, state) of the newest readable checkpoint, or None if there is no checkpoint at all.

    Newer checkpoints that cannot be read are set aside, with one line each. Raises ValueError if none can be read or
    the newest readable one belongs to another config.
    """
    step, state, unreadable = _newest_readable(self._manager, self._workdir, abstract_state)
    if step is None:
      return None
    for bad_step in unreadable:
      self._set_aside(bad_step)
    if unreadable:
      self._manager.reload()
    return step, state

  def run_of(self, step: int) -> dict[str, Any]:
    """The description of the run that wrote a checkpoint; call it after `restore_latest`."""
    run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]["run"]
    check_run(run, f"the checkpoint of step {step} in {self._workdir}", "config", "data_fingerprint")
    return run

  @property
  def _shown(self) -> PurePath:
    """The folder as the user knows it."""
    own = self._workdir / FOLDER
    return own if self._folder == checkpoint_folder(self._workdir) else self._folder

  def _set_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      target = unreadable_folder(self._folder) / str(step)
      while target.exists():
        target = target.with_name(target.name + "+")
      target.parent.mkdir(exist_ok=True)
      (self._folder / str(step)).rename(target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"set aside {step}")

  def _report_failure(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except _FAILURES as error:
      raise ValueError(
        f"the checkpoint of step {self._saving} could not be written under {self._shown} ({_reason(error)}); free "
        f"space or grant write permission, then run the same command: it {self._resumes()}.") from error

  def _resumes(self) -> str:
    # Orbax itself also counts checkpoints that failed
    kept = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
    return f"resumes from step {max(kept)}" if kept else "starts anew"


def load_for_eval(
  workdir: str | Path, step: int | None = None, *, mesh: Mesh | None = None
) -> tuple[Config, Any, Any, int]:
  """(config, params, buffers, step) of a run, from its newest readable checkpoint or that of `step`.

  Arrays are sharded over `mesh` by the run's rules; without a mesh they lie on one device.
  """
  workdir = Path(workdir)
  config = read_config(workdir)
  boxed = abstract_variables(config.model)
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda leaf: device, unbox(boxed))
  else:
    shardings = param_shardings(boxed, mesh, config.mesh)
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(boxed), shardings)
  check_tokenizer(workdir, config.data)
  found, variables = load_variables(workdir, abstract, step=step)
  return config, variables["params"], variables["buffers"], found


def check_tokenizer(workdir: Path, data: DataConfig) -> None:
  """Raises ValueError if the run was trained with another tokenizer model than the one that `data` names."""
  trained_with = read_run(workdir).get("tokenizer_sha256")  # older runs do not record it
  if not trained_with:
    return
  get_tokenizer(data)  # raises its own error if the model is missing or damaged
  if model_sha256(data) != trained_with:
    raise ValueError(
      f"the tokenizer {data.tokenizer} of data.source={data.source} is not the one that {workdir} was trained with: "
      "it was made from other texts, or its texts have changed; restore them, or train with data.tokenizer=bytes to "
      "read others.")


def load_variables(workdir: Path, abstract: Any, *, step: int | None = None) -> tuple[int, Any]:
  """(step, {params, buffers}) from a workdir's checkpoints, without the optimizer's state."""
  folder = stored_folder(workdir)
  if not folder.is_dir():
    raise ValueError(f"{workdir} holds no checkpoints; give the --workdir of a training run that has saved one.")
  manager = _open_manager(folder, ocp.CheckpointManagerOptions(read_only=True), ocp.StandardCheckpointHandler())
  if step is not None and step not in manager.all_steps():
    raise ValueError(f"{workdir} has no checkpoint of step {step}; it has {_listed(manager.all_steps())}.")
  found, variables, _ = _newest_readable(manager, workdir, abstract, only=step)
  manager.close()
  if found is None:
    raise ValueError(f"{workdir} holds no checkpoints; give the --workdir of a training run that has saved one.")
  return found, variables


def _open_manager(
  folder: epath.Path, options: ocp.CheckpointManagerOptions, state_handler: ocp.StandardCheckpointHandler
) -> ocp.CheckpointManager:
  registry, run_handler = ocp.handlers.DefaultCheckpointHandlerRegistry(), ocp.JsonCheckpointHandler()
  for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
    registry.add("state", args, state_handler)
  registry.add("state", ocp.args.PyTreeRestore, ocp.PyTreeCheckpointHandler())
  for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
    registry.add("run", args, run_handler)
  if folder.is_file():
    raise ValueError(f"{folder} is a file, so no checkpoints can lie there; move it away.")
  try:
    return ocp.CheckpointManager(folder, options=options, handler_registry=registry)
  except Exception as error:  # Orbax reads the metadata of every checkpoint, and any exception may come from that
    raise ValueError(
      f"{folder} cannot be used for checkpoints ({_reason(error)}); move what is damaged away.") from error


def _newest_readable(
  manager: ocp.CheckpointManager, workdir: Path, abstract: Any, *, only: int | None = None
) -> tuple[int | None, Any, list[int]]:
  """(step, tree, newer steps that cannot be read); the step is None if there is no checkpoint."""
  unreadable: dict[int, str] = {}
  for step in [only] if only is not None else sorted(manager.all_steps(), reverse=True):
    try:
      problem = _mismatch(manager, step, abstract)
      if problem is None:
        tree = _read(manager, step, abstract)
    # Orbax and TensorStore report damage by a dozen kinds of exceptions, KeyError and JSON errors among them.
    except Exception as error:
      if could_not_talk(error):
        raise  # a process has died, and the checkpoint is as it was
      unreadable[step] = first_line(error)
      continue
    if problem is not None:
      # only --init_from itself and evaluations read parameters alone
      way_out = "" if isinstance(abstract, dict) else (
        f", or start another workdir from its parameters with --init_from={workdir}")
      raise ValueError(
        f"the checkpoint of step {step} in {workdir} does not fit this config: {problem}; use the config it was made "
        f"with{way_out}.")
    for bad_step, reason in unreadable.items():
      warn(f"The checkpoint of step {bad_step} in {workdir} cannot be read ({reason}); going back to step {step}.")
    return step, tree, list(unreadable)
  if unreadable:
    raise ValueError(
      f"no checkpoint in {workdir} can be read (steps {_listed(unreadable)}; the newest: "
      f"{next(iter(unreadable.values()))}); nothing was changed: restore a copy, or start another workdir.")
  return None, None, []


def _read(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
  if isinstance(abstract, dict):
    args = ocp.args.PyTreeRestore(
      abstract, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
  else:
    args = ocp.args.StandardRestore(abstract)
  restored = manager.restore(step, args=ocp.args.Composite(state=args, run=ocp.args.JsonRestore()))
  if not {"run", "checksums"} <= set(restored["run"]):
    raise ValueError("it holds no checksums, or does not say which run it belongs to")
  stored_sums = restored["run"]["checksums"]
  for name, checksum in checksums(restored["state"]).items():
    if checksum != stored_sums[name]:
      raise ValueError(f"the checksum of {name} is wrong")
  return restored["state"]


def _mismatch(manager: ocp.CheckpointManager, step: int, abstract: Any) -> str | None:
  """The first array that the checkpoint lacks, holds in another shape or, if everything is restored, has in excess."""
  stored = manager.item_metadata(step)["state"].tree
  stored_shapes = {name: leaf.shape for name, leaf in named_leaves(stored).items()}
  for name, leaf in named_leaves(abstract).items():
    if name not in stored_shapes:
      return f"it has no array {name}"
    if tuple(stored_shapes[name]) != leaf.shape:
      return f"{name} has shape {tuple(stored_shapes.pop(name))} there and {leaf.shape} here"
    del stored_shapes[name]
  if stored_shapes and not isinstance(abstract, dict):
    return f"it also has the array {next(iter(stored_shapes))}"
  return None


def _bits_per_byte(metrics: Any) -> float:
  """Infinite if the file on disk has been damaged: such a checkpoint is never the best one."""
  value = metrics["bits_per_byte"] if isinstance(metrics, dict) and "bits_per_byte" in metrics else None
  return value if isinstance(value, int | float) and math.isfinite(value) else math.inf


def _reason(error: BaseException) -> str:
  """The operating system's description of the failure, if TensorStore's long message contains its number."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  number = int(code[1]) if code else getattr(error, "errno", None)
  return os.strerror(number) if number else first_line(error).rstrip(".")


def _listed(steps: Any) -> str:
  return ", ".join(str(step) for step in sorted(steps)) or "none"
