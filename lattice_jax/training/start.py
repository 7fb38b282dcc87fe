"""What a run does before its first update: it opens the data, restores or creates the state, and announces itself."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.checkpoint_folder import FIELD
from lattice_jax.config import Config
from lattice_jax.config_checks import to_dict
from lattice_jax.data.anchors import make_marker
from lattice_jax.data.sources import Source, load_source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer, get_tokenizer, model_sha256
from lattice_jax.memories.memory import EXCHANGES
from lattice_jax.memories.registry import find_memory
from lattice_jax.models.parameters import count_parameters
from lattice_jax.models.state_size import state_bytes
from lattice_jax.processes import check_agreement, propagate_failure
from lattice_jax.run_file import FILE, read_run, stored_config
from lattice_jax.runtime import git_commit
from lattice_jax.sharding import tree_bytes
from lattice_jax.training.holdings import holdings, sentences
from lattice_jax.training.init_from import load_start
from lattice_jax.training.reporter import peak_flops
from lattice_jax.training.state import TrainState, abstract_state, carries_memory, create_state
from lattice_jax.training.workdir import check_same_run, differences, write_json
from lattice_jax.writers import RunInfo, Writers

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Data:
  """What a run reads: the split it trains on, the split it evaluates, and their tokenizer."""

  train: Source
  evaluation: Source
  tokenizer: Tokenizer


@dataclass(frozen=True)
class Start:
  """The state at the first update of this process, the step it is at, and where it comes from, in words."""

  state: TrainState
  step: int
  origin: str


def open_data(config: Config) -> Data:
  """Opens both splits; raises ValueError, in every process, if one cannot or if the processes do not see the same."""
  with propagate_failure():
    data = Data(
      load_source(config.data, "train"), load_source(config.data, config.eval.split), get_tokenizer(config.data))
    _check_vocabulary(config, data.tokenizer)
    make_marker(config.data.anchors, data.tokenizer)  # a rule that does not fit the tokenizer is refused here
  check_agreement({
    "the config": repr(config), "the data": data.train.fingerprint, "the evaluated data": data.evaluation.fingerprint,
    "the tokenizer": str(model_sha256(config.data))})
  return data


def read_earlier(config: Config, workdir: Path, data: Data, place: str | None) -> dict[str, Any] | None:
  """The run.json of the run that this one continues, if any; only the first process reads it.

  place: of the checkpoints, if that is not the workdir. Raises ValueError, in every process, if the run is of other
  data or another model, or keeps its checkpoints elsewhere.
  """
  with propagate_failure():
    if jax.process_index() > 0 or not (workdir / FILE).exists():
      return None
    earlier = read_run(workdir, "config", "data_fingerprint")
    check_same_run(workdir, earlier, config, data.train.fingerprint)
    stored = earlier[FIELD] if FIELD in earlier else None
    if stored != place:
      there, here = (f"--checkpoints={name}" if name else "no --checkpoints" for name in (stored, place))
      raise ValueError(
        f"the run of {workdir} was started with {there}, and now with {here}; give the same, or choose another "
        "--workdir.")
    return earlier


def restore(
  config: Config, workdir: Path, checkpoints: Checkpoints, data: Data, mesh: Mesh, init_from: str | Path | None
) -> Start:
  """The newest checkpoint; without one the state before the first update, with the parameters of `init_from`."""
  abstract = abstract_state(config, mesh)
  restored = checkpoints.restore_latest(abstract)
  if restored is None:
    variables, origin = load_start(config, init_from, abstract)
    return Start(create_state(config, mesh, variables), 0, origin)
  step, state = restored
  check_same_run(
    f"the checkpoint of step {step} in {workdir}", checkpoints.run_of(step), config, data.train.fingerprint)
  if step > config.train.steps:
    raise ValueError(
      f"{workdir} is at step {step}, beyond train.steps={config.train.steps}; "
      f"raise train.steps, or choose another --workdir.")
  return Start(state, step, f"resumed from the checkpoint of step {step}")


def announce(
  config: Config, workdir: Path, data: Data, start: Start, earlier: dict[str, Any] | None, mesh: Mesh,
  place: str | None
) -> tuple[dict[str, Any], Writers]:
  """Writes run.json, opens the writers and tells them what starts here; returns (the content of run.json, writers)."""
  description, changes = describe_run(config, data.train, count_parameters(start.state.params), mesh), {}
  if place is not None:
    description[FIELD] = place
  if earlier is not None:
    description, changes = add_history(description, earlier, start.step)
  with propagate_failure():
    write_json(workdir / FILE, description)
    writers = Writers(config.train.writers, RunInfo(workdir, start.step, description, data.train.unit))
  changed = [f"changed since the last start: {path}: {old} → {new}" for path, (old, new) in changes.items()]
  for line in [*_introduction(config, data, start, description["parameters"], mesh), *changed, *writers.hints()]:
    writers.note(line)
  return description, writers


def describe_run(config: Config, source: Source, parameters: int, mesh: Mesh) -> dict[str, Any]:
  """The content of run.json; its config is enough to build the model again."""
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


def add_history(
  run: dict[str, Any], earlier: dict[str, Any], step: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
  """(`run` with the history of the run it continues, what has changed since: (old, new) by the path of the field).

  The history has one entry, with its step, for every start at which the config or the program had changed.
  """
  changes = differences(to_dict(stored_config(earlier, FILE)), run["config"])
  for name in ("versions", "git_commit"):
    if name in earlier:
      changes |= differences(earlier[name], run[name], name)
  history = earlier["history"] if "history" in earlier else []
  if changes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history = [*history, {"step": step, "time": now, "changes": changes}]
  return run | {"history": history}, changes


def _check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
  """The model must have an embedding for every token."""
  if tokenizer.vocab_size > config.model.vocab:
    raise ValueError(
      f"model.vocab={config.model.vocab} is smaller than the {tokenizer.vocab_size} tokens of data.tokenizer="
      f"{config.data.tokenizer}; set model.vocab={tokenizer.vocab_size}.")


def _introduction(config: Config, data: Data, start: Start, parameters: int, mesh: Mesh) -> list[str]:
  """The sizes of the model, its mesh and its data."""
  peak = peak_flops()
  lines = [(
    f"{config.name}: {parameters:,} parameters ({tree_bytes(start.state.params) / 1e6:.1f} MB), optimizer "
    f"{tree_bytes(start.state.opt_state) / 1e6:.1f} MB, memory of a row and layer "
    f"{state_bytes(config.model, 0).text()} bytes, "
    f"{'carried between updates' if carries_memory(config) else 'empty at every update'}")]
  spare = config.model.vocab - data.tokenizer.vocab_size
  if spare:  # harmless, and wanted where a rounder number shards better
    lines.append(
      f"model.vocab={config.model.vocab} has {spare} more rows than data.tokenizer={config.data.tokenizer} has "
      "tokens; they are never the answer")
  lines.append(
    f"mesh {' × '.join(f'{axis} {size}' for axis, size in mesh.shape.items())} of {jax.devices()[0].device_kind}, "
    f"{jax.process_count()} process(es){f'; peak {peak / 1e12:.0f} TFLOP/s' if peak else ''}")
  lines += sentences(holdings(config, mesh), mesh)
  if mesh.shape["seq"] > 1:
    ways = {name: EXCHANGES[find_memory(name).exchange] for name in config.model.pattern}
    lines.append(f"devices that share a row exchange: {'; '.join(f'{name}: {way}' for name, way in ways.items())}")
  lines.append(
    f"data {data.train.name}: {len(data.train.tokens):,} tokens, {config.data.batch} rows × "
    f"{config.data.update_len} tokens an update; {start.origin}, step {start.step} of {config.train.steps}")
  return lines
