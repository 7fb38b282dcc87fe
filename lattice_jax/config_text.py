"""Configs from the command line: --config=FILE[:VARIANTS], and overrides of single fields."""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from lattice_jax.config import Config
from lattice_jax.config_checks import parse_config, to_dict
from lattice_jax.domains import Names, Numbers, Pairs, did_you_mean, literal, short
from lattice_jax.fields import find

_EXAMPLE = "--config=configs/quickstart.py"


def read_config(where: str, overrides: Sequence[str]) -> Config:
  """The checked config of FILE[:VARIANTS] with every "section.field=value" applied. Raises ValueError."""
  return _overridden(load_file(where).to_dict(), overrides)


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
  """The config with every "section.field=value" applied, and checked again.

  Raises ValueError if an override has another form, names no field, or makes a config that cannot run.
  """
  return _overridden(to_dict(config), overrides)


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> Config:
  for path, value in _parse(overrides):
    _set_field(raw, path, value)
  return parse_config(raw)


def _parse(overrides: Sequence[str]) -> list[tuple[str, Any]]:
  """(path, value) of each "section.field=value"; the value of a section is a dict. Raises ValueError."""
  result, lists = [], set()
  for override in overrides:
    path, equals, text = override.partition("=")
    if not (path and equals):
      raise ValueError(f"the override {override!r} must have the form section.field=value, as in model.vq.cache=False.")
    domain = find(Config, path)
    if isinstance(domain, (Names, Numbers, Pairs)):
      if path in lists:
        raise ValueError(f"{path} is given twice; write all of it at once, as in {path}=a,b.")
      lists.add(path)
    try:
      value = _parse_section(text) if domain is None else domain.parse(text)
    except ValueError as error:
      raise ValueError(f"{path}={short(text)} {error}") from error
    result.append((path, value))
  return result


def _parse_section(text: str) -> dict[str, Any]:
  problem = "must be a section of fields, as in {'codes': 128}."
  value = literal(text, problem)
  if not isinstance(value, dict):
    raise ValueError(problem)
  return value


def _set_field(raw: dict[str, Any], path: str, value: Any) -> None:
  """Sets a field, or in a section only the fields that `value` names."""
  *sections, name = path.split(".")
  for part in sections:
    raw = raw[part]
  if isinstance(value, dict) and isinstance(raw[name], dict):
    for inner, part in value.items():
      if inner in raw[name]:
        _set_field(raw[name], inner, part)
      else:
        raw[name][inner] = part  # parse_config refuses it with a suggestion
  else:
    raw[name] = value


def load_file(where: str) -> ml_collections.ConfigDict:
  """The result of get_config in FILE[:VARIANTS]. Raises ValueError, one sentence, if there is none."""
  name, _, variants = where.partition(":")
  path = Path(name)
  _check_file(name, path)
  try:
    spec = importlib.util.spec_from_file_location("lattice_jax_config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
      raise ValueError("has no function get_config(arg), as the files of configs/ have.")
    config = module.get_config(variants) if variants else module.get_config()
  except SyntaxError as error:
    raise ValueError(f"--config={name}: line {error.lineno} is not Python ({error.msg}).") from error
  except Exception as error:
    raise ValueError(f"--config={where}{_reason(error, path)}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f"--config={where}: get_config returns a {type(config).__name__}, and must return a config; begin with "
      "configs.common.default().")
  return config


def _check_file(name: str, path: Path) -> None:
  if path.is_dir():
    found = sorted(path.glob("*.py"))
    raise ValueError(f"--config={name} is a folder; name a file, such as {found[0] if found else _EXAMPLE}.")
  if not path.exists():
    near = did_you_mean(path.name, [
      other.name for other in path.parent.glob("*.py") if "def get_config" in other.read_text(errors="replace")])
    raise ValueError(f"--config={name}: there is no such file; configs/ holds them, as in {_EXAMPLE}.{near}")
  if path.suffix != ".py":
    raise ValueError(
      f"--config={name} is no Python file with a function get_config(arg), as in {_EXAMPLE}"
      + ("; scripts/sweep.py reads sweeps." if path.suffix in (".yaml", ".yml") else "."))


def _reason(error: Exception, path: Path) -> str:
  """Why a config file cannot be read: its own ValueError, or the line that raised another error."""
  text = " ".join(str(error).split())
  if isinstance(error, ValueError):
    return f" {text}" if text.startswith("has ") else f": {text}"
  lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
  place = f": line {lines[-1].lineno}, «{lines[-1].line}»," if lines else ":"
  # ml_collections suggests the right spelling, and the quoted line shows the section
  hint = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  if hint:
    return f"{place} has the unknown field {hint[2]!r}. Did you mean {hint[1]!r}?"
  return f"{place} raises {type(error).__name__}: {text[:200].rstrip('.')}."
