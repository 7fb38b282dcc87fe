"""Reading of run.json, the description of a run; `training/start.py` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lattice_jax.config import Config
from lattice_jax.config_checks import parse_config
from lattice_jax.stored_config import upgrade

FILE = "run.json"
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
  "config": (dict, "an object"), "data_fingerprint": (str, "a text"), "unit": (str, "a text"),
  "parameters": (int, "a whole number"), "git_commit": ((str, type(None)), "a text or null"),
  "versions": (dict, "an object"), "history": (list, "a list")}
_WAY_OUT = "restore it, or start another workdir"


def read_run(workdir: Path, *needed: str) -> dict[str, Any]:
  """The run.json of a workdir. Raises ValueError if it is missing, unreadable or lacks one of the fields `needed`."""
  path = workdir / FILE
  try:
    run = json.loads(path.read_bytes().decode())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ValueError(f"{path} is missing: {workdir} is not the workdir of a training run.") from error
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); {_WAY_OUT}.") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not readable JSON ({str(error)[:100]}); {_WAY_OUT}.") from error
  check_run(run, path, *needed)
  return run


def check_run(run: Any, what: Path | str, *needed: str) -> None:
  """Raises ValueError if the content of a file or checkpoint (`what`) does not describe a run, or lacks a field."""
  if not isinstance(run, dict):
    raise ValueError(f"{what} does not describe a run: it holds no JSON object; {_WAY_OUT}.")
  for name, (kind, words) in _KINDS.items():
    if name in run and not isinstance(run[name], kind):
      raise ValueError(f"{what} does not describe a run: {name!r} in it is not {words}; {_WAY_OUT}.")
    if name in needed and name not in run:
      raise ValueError(f"{what} does not describe a run: it has no {name!r}; {_WAY_OUT}.")


def stored_config(run: dict[str, Any], what: Path | str) -> Config:
  """The config in a description; fields that are younger than the run get their defaults."""
  try:
    return parse_config(upgrade(run["config"]))
  except ValueError as error:
    raise ValueError(f"{what} holds a config that does not fit this program: {error}") from error


def read_config(workdir: Path) -> Config:
  """The config a workdir was trained with."""
  return stored_config(read_run(workdir, "config"), workdir / FILE)
