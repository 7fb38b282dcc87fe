"""A W&B sweep file, read and checked; `wandb sweep FILE` takes the same file online."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config import Config
from lattice_jax.domains import Text, did_you_mean
from lattice_jax.fields import find
from lattice_jax.sweep.parameters import Choice, Parameter, Value, parse_parameter
from lattice_jax.sweep.strict_yaml import read_yaml

METHODS = ("grid", "random", "bayes")
MAX_GRID = 100_000
_QUOTED = 200  # characters of each end of a long message
_KEYS = ("program", "method", "metric", "parameters", "command", "run_cap", "name", "description", "project", "entity")
_REFUSED = {
  "early_terminate": "trials are not cut short offline; remove it, or run the sweep online with `wandb sweep`"}
_MACROS = ("${env}", "${interpreter}", "${program}", "${args}")
_METRIC = re.compile(r"eval_[^/]+_[^/_]+/[a-z_]+")


@dataclass(frozen=True)
class Sweep:
  """A sweep. metric: the name of a curve in W&B, as in eval_validation_cold/bits_per_byte.

  run_cap: the largest number of trials; None, which only a grid may have, runs all of them.
  """

  path: Path
  title: str
  program: str
  method: str
  metric: str
  maximize: bool
  parameters: tuple[Parameter, ...]
  command: tuple[str, ...]
  run_cap: int | None

  def arguments(self, values: dict[str, Value]) -> list[str]:
    """The command of a trial, without --workdir; ${env} and ${interpreter} are not expanded."""
    expanded: list[str] = []
    for part in self.command:
      if part == "${args}":
        expanded += [f"--{name}={value}" for name, value in values.items()]
      elif part == "${program}":
        expanded.append(self.program)
      elif not part.startswith("--workdir="):
        expanded.append(part)
    return expanded


def read_sweep(path: Path) -> Sweep:
  """Raises ValueError, one sentence, if the file is not a sweep that can run offline."""
  try:
    raw = read_yaml(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); give a file such as configs/sweeps/NAME.yaml.") \
      from error
  except ValueError as error:
    raise ValueError(f"{path} is not readable YAML: {_shortened(' '.join(str(error).split())).rstrip('.')}.") from error
  try:
    return _parse(path, raw)
  except ValueError as error:
    raise ValueError(f"{path}: {_shortened(str(error))}") from error


def _shortened(text: str) -> str:
  """Shortens a sentence that quotes the file at length; its end, which says what to do, stays."""
  return text if len(text) <= 2 * _QUOTED else f"{text[:_QUOTED]} … {text[-_QUOTED:]}"


def _parse(path: Path, raw: Any) -> Sweep:
  if not isinstance(raw, dict):
    raise ValueError("it must hold program, method, metric and parameters.")
  for key in raw:
    if key in _REFUSED:
      raise ValueError(f"{key!r}: {_REFUSED[key]}.")
    if key not in _KEYS:
      raise ValueError(f"{key!r} is not one of {', '.join(_KEYS)}.{did_you_mean(str(key), _KEYS)}")
  for key in ("program", "method", "metric", "parameters"):
    if key not in raw:
      raise ValueError(f"{key!r} is missing.")
  if raw["method"] not in METHODS:
    raise ValueError(f"method={raw['method']!r} is not one of {', '.join(METHODS)}.")
  if not isinstance(raw["parameters"], dict) or not raw["parameters"]:
    raise ValueError("parameters must hold at least one name.")
  metric, maximize = _metric(raw["metric"])
  parameters = tuple(parse_parameter(str(name), entry) for name, entry in raw["parameters"].items())
  return Sweep(
    path=path, title=str(raw["name"] if "name" in raw else path.stem), program=str(raw["program"]),
    method=raw["method"], metric=metric, maximize=maximize, parameters=_checked(parameters, raw["method"]),
    command=_command(raw["command"]) if "command" in raw else _MACROS, run_cap=_run_cap(raw))


def _metric(raw: Any) -> tuple[str, bool]:
  if not isinstance(raw, dict) or "name" not in raw:
    raise ValueError("metric must hold a name and a goal, as in {name: eval_validation_cold/bits_per_byte, "
                     "goal: minimize}.")
  for key in raw:
    if key not in ("name", "goal"):
      raise ValueError(f"metric: {key!r} is not one of name, goal.")
  if not _METRIC.fullmatch(str(raw["name"])):
    raise ValueError(f"metric: {raw['name']!r} is not the name of an evaluation, as in "
                     "eval_validation_cold/bits_per_byte.")
  goal = raw["goal"] if "goal" in raw else "minimize"
  if goal not in ("minimize", "maximize"):
    raise ValueError(f"metric: goal={goal!r} is not one of minimize, maximize.")
  return raw["name"], goal == "maximize"


def _checked(parameters: tuple[Parameter, ...], method: str) -> tuple[Parameter, ...]:
  for parameter in parameters:
    _check_field(parameter)
    if method == "grid" and parameter.num_choices() is None:
      raise ValueError(f"parameter {parameter.name}: a grid cannot go through a continuous distribution; use values, "
                       "q_uniform, or method random.")
  if all(isinstance(parameter, Choice) and len(parameter.values) == 1 for parameter in parameters):
    raise ValueError("every parameter is a constant; give one of them several values.")
  count = math.prod(parameter.num_choices() or 1 for parameter in parameters)
  if method == "grid" and count > MAX_GRID:
    raise ValueError(f"the grid has {count:,} trials, and at most {MAX_GRID:,} can be gone through; use fewer values, "
                     "or method random with a run_cap.")
  return parameters


def _check_field(parameter: Parameter) -> None:
  """Refuses values outside the domain of a config field before any trial runs."""
  if not parameter.name.startswith("config."):
    return
  domain = find(Config, parameter.name.removeprefix("config."))
  for value in parameter.extremes():
    try:
      (Text() if domain is None else domain).parse(str(value))
    except ValueError as error:
      raise ValueError(f"parameter {parameter.name}: {value} {error}") from error


def _command(raw: Any) -> tuple[str, ...]:
  if not isinstance(raw, list) or not raw:
    raise ValueError(f"command={raw!r} must be a list, as in [{', '.join(_MACROS)}].")
  command = tuple(map(str, raw))
  for part in command:
    for macro in re.findall(r"\$\{[^}]*\}?", part):
      if macro not in _MACROS:
        raise ValueError(f"command: the macro {macro} is not one of {', '.join(_MACROS)}.")
      if part != macro:
        raise ValueError(f"command: {part!r} holds {macro} as a part, which W&B does not replace; a macro is an "
                         "argument of its own.")
  if "${args}" not in command:
    raise ValueError("command: ${args} is missing, so no parameter would reach the program.")
  return command


def _run_cap(raw: dict[str, Any]) -> int | None:
  if "run_cap" not in raw:
    if raw["method"] != "grid":
      raise ValueError(f"method {raw['method']} has no end of its own; say with run_cap how many trials it is to have.")
    return None
  cap = raw["run_cap"]
  if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
    raise ValueError(f"run_cap={cap!r} must be a positive whole number.")
  return cap

