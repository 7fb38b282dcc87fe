"""Weights & Biases: one run per workdir, however often its training is interrupted and resumed.

Online if a key is configured, otherwise offline, unless WANDB_MODE decides. workdir/wandb.json holds the id of the run
and the last steps that were sent: an update that is computed again after a resume is not sent again. That file is
written before W&B receives anything, so a kill may cost W&B, unlike metrics.jsonl, the reports of the last second.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
import wandb.errors

from lattice_jax.files import Record, read_object, replace_file
from lattice_jax.processes import warn
from lattice_jax.shown import first_line
from lattice_jax.writers.base import RunInfo, Writer, check_present, series

_MODES = ("online", "offline", "disabled")
_ANSWER_TIMEOUT = 30  # seconds for the server to answer at the start, and to take the rest of the data at the end


class WandbWriter(Writer):
  """Reports and evaluations as rows; their horizontal axis is the number of updates."""

  def __init__(self, info: RunInfo):
    self._unit, self._path = info.unit, info.workdir / "wandb.json"
    self._sent = read_sent(self._path)
    self._save()
    self._run = _start(info, self._sent["id"])
    self._sent["rows"] = max(self._sent["rows"], self._run.step)
    self._run.define_metric("*", step_metric="step")

  def report(self, record: Record) -> None:
    self._send("train", record)

  def evaluation(self, record: Record) -> None:
    self._send(f"{record['split']} {record['protocol']}", record)

  def flush(self) -> None:
    for path in (self._path, Path(self._run.dir)):
      check_present(path)

  def preempted(self) -> None:
    # a sweep gives a run that is marked and ends with a status other than 0 to another agent, under the same id
    self._run.mark_preempting()

  def close(self, status: int = 0) -> None:
    self._run.finish(exit_code=status)
    wandb.teardown()  # waits until everything is on disk, which `finish` does not

  def _send(self, kind: str, record: Record) -> None:
    if kind in self._sent["steps"] and record["step"] <= self._sent["steps"][kind]:
      return
    row = self._sent["rows"]
    self._sent["rows"] += 1
    self._sent["steps"][kind] = record["step"]
    self._save()
    self._run.log({"step": record["step"]} | series(record, self._unit), step=row, commit=True)

  def _save(self) -> None:
    replace_file(self._path, json.dumps(self._sent) + "\n")


def read_sent(path: Path) -> dict[str, Any]:
  """The id of the workdir's run, how many rows it has, and the last step that was sent of each kind."""
  if path.exists():
    try:
      sent = read_object(path)
    except ValueError as error:
      raise ValueError(f"{str(error).partition('; ')[0]}; remove it to start a new W&B run.") from error
    if set(sent) != set(_SENT) or not all(is_kind(sent[name]) for name, is_kind in _SENT.items()):
      raise ValueError(f"{path} does not say what was sent to W&B; remove it to start a new W&B run.")
    return sent
  given = os.environ["WANDB_RUN_ID"] if "WANDB_RUN_ID" in os.environ else ""
  return {"id": given or secrets.token_hex(4), "rows": 0, "steps": {}}


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0


_SENT: dict[str, Callable[[Any], bool]] = {
  "id": lambda value: isinstance(value, str) and bool(value), "rows": _is_count,
  "steps": lambda value: isinstance(value, dict) and all(map(_is_count, value.values()))}


def _start(info: RunInfo, run_id: str) -> Any:
  config = info.description["config"]
  rest = {name: value for name, value in info.description.items() if name != "config"}

  # the clock and the id alone could give a process the same folder as the one before it
  number = 1 + len([*(info.workdir / "wandb").glob("*run-*-*")])

  def init(mode: str) -> Any:
    wandb.setup(wandb.Settings(silent=True))  # before W&B can print that it found a key
    return wandb.init(
      project=os.environ["WANDB_PROJECT"] if "WANDB_PROJECT" in os.environ else "lattice_jax", id=run_id,
      name=config["name"], config=config | {"run": rest}, dir=str(info.workdir), resume="allow", mode=mode,
      settings=wandb.Settings(
        silent=True, console="off", init_timeout=_ANSWER_TIMEOUT, finish_timeout=_ANSWER_TIMEOUT,
        x_transaction_log_flush_interval=1.0, x_sync_dir_suffix=str(number)))

  mode = _mode()
  try:
    return init(mode)
  except wandb.errors.Error as error:
    if mode != "online":
      raise ValueError(f"W&B does not start with WANDB_MODE={mode} ({first_line(error)}).") from error
    warn(f"W&B cannot be used online ({first_line(error)}); the run continues offline, and `wandb sync` of the folder "
         f"{info.workdir / 'wandb'} uploads it later.")
    wandb.teardown()  # otherwise the run that failed to start would hold the id
    return init("offline")


def _mode() -> str:
  if not os.environ.get("WANDB_MODE"):
    return "online" if _has_key() else "offline"
  mode = os.environ["WANDB_MODE"]
  if mode not in _MODES:
    raise ValueError(f"WANDB_MODE={mode} is not one of {', '.join(_MODES)}.")
  return mode


def _has_key() -> bool:
  if "WANDB_API_KEY" in os.environ or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
    return True
  server = urlsplit(wandb.setup().settings.base_url).hostname
  try:
    return netrc.netrc(os.environ["NETRC"] if "NETRC" in os.environ else None).authenticators(server) is not None
  except (OSError, netrc.NetrcParseError):
    return False
