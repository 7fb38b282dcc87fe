"""Readers of what runs leave behind: workdirs, checkpoints, saved states, trials and logs of rollouts."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import to_dict
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.retrieval.plan import AnswerFile
from lattice_jax.evaluation.rollout import recorded
from lattice_jax.files import to_jsonl
from lattice_jax.inference.rollout.log import DecisionLog
from lattice_jax.memories.local.maps_file import FittedMaps, read_maps, write_maps
from lattice_jax.memories.local.profile import LocalProfile, read_profile, write_profile
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.content import content_digest
from lattice_jax.models.decoder import init_state
from lattice_jax.models.saved_state import load_state, save_state
from lattice_jax.run_file import FILE, read_config, read_run
from lattice_jax.sweep.trials import DONE, TrialRecord, read_records
from lattice_jax.training.workdir import check_same_run
from lattice_jax.writers.jsonl import JsonlWriter
from lattice_jax.writers.wandb import read_sent
from tests.fuzz.harness import Reader
from tests.training import tiny

_CONFIG = tiny.make_config()
_RUN = {
  "config": to_dict(_CONFIG), "data_fingerprint": "ab", "unit": "byte", "parameters": 7, "git_commit": None,
  "versions": {"jax": "0.1"}, "history": [], "tokenizer_sha256": ""}
_MODEL = ModelConfig(
  dim=8, layers=1, pattern=("vq",), vq=VQConfig(key_dim=4, value_dim=8, codes=4, block_len=4, heads=1))
_MAX_LEN = 8
_ANSWER = {
  "key": "k", "task": "passkey", "length": 8, "answer": 2, "depth": 0.5, "cache": "full", "seed": 0, "trials": [0],
  "right": [[True]], "nll": [[0.5]], "scored": [[True]], "kept": 3, "per_partition": 0, "needle_kept": [1.0],
  "cache_bytes": 4, "written": ["a"]}


def make_run(folder: Path) -> tuple[str, ...]:
  (folder / FILE).write_text(json.dumps(_RUN))
  lines = [{"step": step, "loss": 1.0 / step} for step in range(1, 4)]
  lines.append({"step": 3, "split": "validation", "protocol": "cold", "bits_per_byte": 1.0})
  (folder / "metrics.jsonl").write_text(to_jsonl(lines))
  return FILE, "metrics.jsonl"


def read_workdir(folder: Path) -> None:
  lines = (folder / "metrics.jsonl").read_bytes()
  with _silent():
    JsonlWriter(folder / "metrics.jsonl", start_step=2).close()
  (folder / "metrics.jsonl").write_bytes(lines)
  run = read_run(folder, "config", "data_fingerprint")
  read_config(folder)
  check_same_run(folder, run, _CONFIG, "ab")


@contextlib.contextmanager
def _silent() -> Any:
  """Without the lines about what is left out."""
  with contextlib.redirect_stderr(io.StringIO()):
    yield


def make_checkpoints(folder: Path) -> tuple[str, ...]:
  checkpoints = Checkpoints(folder, keep_last=2, keep_best=1)
  for step in (1, 2):
    checkpoints.save(step, {"weight": jnp.ones(3)}, _RUN, score=1.0)
  checkpoints.wait()
  checkpoints.close()
  return tuple(sorted(str(path.relative_to(folder)) for path in folder.glob("checkpoints/2/**/*") if path.is_file()))


def read_checkpoints(folder: Path) -> None:
  """The newest that can be read. The oldest is whole, so there always is one."""
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {"weight": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)}
  with _silent():
    checkpoints = Checkpoints(folder, keep_last=2, keep_best=1)
    try:
      step, state = checkpoints.restore_latest(abstract)
      checkpoints.run_of(step)
    finally:
      checkpoints.close()
  assert np.array_equal(state["weight"], np.ones(3)), "a damaged array was taken for a whole one"


@functools.cache
def _variables() -> Any:
  return {"params": {"weight": jnp.ones(3)}}


def make_state(folder: Path) -> tuple[str, ...]:
  state = init_state(_MODEL, 1, _MAX_LEN)
  save_state(folder / "state.safetensors", _MODEL, _variables(), state, _MAX_LEN)
  return ("state.safetensors",)


def read_saved_state(folder: Path) -> None:
  jax.block_until_ready(load_state(folder / "state.safetensors", _MODEL, _variables()))


def make_trial(folder: Path) -> tuple[str, ...]:
  (folder / "a").mkdir()
  TrialRecord(
    0, "a", {"config.train.seed": 1}, ["python", "train.py"], DONE, error=None, seconds=1.5).write(folder / "a")
  (folder / "sent.json").write_text(json.dumps({"id": "ab12", "rows": 3, "steps": {"update": 2}}))
  return "a/trial.json", "sent.json"


def read_trials(folder: Path) -> None:
  read_records(folder)
  read_sent(folder / "sent.json")


def make_rollout(folder: Path) -> tuple[str, ...]:
  log = DecisionLog(folder / "log.jsonl")
  for number in range(3):
    log.append({"kind": "unit", "number": number})
  log.close()
  (folder / "prompts.jsonl").write_text(to_jsonl([{"prompt": "the cat", "answer": " sat", "id": "a"}]))
  return "log.jsonl", "prompts.jsonl"


def read_rollout(folder: Path) -> None:
  with _silent():
    DecisionLog(folder / "log.jsonl").close()
  recorded._read_file(folder / "prompts.jsonl", ByteTokenizer(), 4)


def make_answers(folder: Path) -> tuple[str, ...]:
  (folder / "answers.jsonl").write_text(to_jsonl([_ANSWER]))
  return ("answers.jsonl",)


def read_answers(folder: Path) -> None:
  with _silent():
    AnswerFile(folder / "answers.jsonl", "k").lines()


def make_local(folder: Path) -> tuple[str, ...]:
  write_profile(folder / "profile.json", LocalProfile("tiny", 1, (2, 4), ((2, 4), (0, 2)), {"even": ((2, 2), (2, 2))}))
  facts = {"model": "tiny", "weights": "ab", "features": 2, "hidden": 3}
  write_maps(folder / "maps.safetensors", FittedMaps({"first": np.ones((1, 2), np.float32)}, facts))
  return "profile.json", "maps.safetensors"


def read_local(folder: Path) -> None:
  read_profile(folder / "profile.json")
  maps = read_maps(folder / "maps.safetensors")
  assert content_digest(dict(maps.arrays))


_RUNS = ("lattice_jax.run_file", "lattice_jax.stored_config", "lattice_jax.config_checks", "lattice_jax.files",
         "lattice_jax.metrics", "lattice_jax.fields", "lattice_jax.domains")
READERS = (
  Reader("run", make_run, read_workdir, _RUNS),
  Reader("checkpoint", make_checkpoints, read_checkpoints,
         ("lattice_jax.checkpoint", "orbax.checkpoint._src.handlers", "orbax.checkpoint._src.metadata")),
  Reader("state", make_state, read_saved_state, ("lattice_jax.models.saved_state", "lattice_jax.stored_config")),
  Reader("trial", make_trial, read_trials, ("lattice_jax.sweep.trials", "lattice_jax.writers.wandb")),
  Reader("rollout", make_rollout, read_rollout, ("lattice_jax.inference.rollout.log", "lattice_jax.evaluation")),
  Reader("answers", make_answers, read_answers, ("lattice_jax.evaluation.retrieval.plan", "lattice_jax.files")),
  Reader("local", make_local, read_local, ("lattice_jax.memories.local", "lattice_jax.formats")),
)
