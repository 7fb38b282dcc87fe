"""Profiles: the windows that calibration found for a model's heads, and those of baselines, as a JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lattice_jax.config import ModelConfig
from lattice_jax.files import replace_json
from lattice_jax.formats.json_file import parse_object
from lattice_jax.memories.local.config import LocalConfig, check, flat
from lattice_jax.shown import shown

FORMAT = "lattice_jax local profile 1"
_FIELDS = ("format", "model", "sinks", "rungs", "windows", "baselines")

Rows = tuple[tuple[int, ...], ...]  # the window of every key/value head, layer by layer; 0 = the whole document


@dataclass(frozen=True)
class LocalProfile:
  """model: whose windows they are, by any name. baselines: by name, windows of the same sinks to compare with."""

  model: str
  sinks: int
  rungs: tuple[int, ...]
  windows: Rows
  baselines: Mapping[str, Rows] = field(default_factory=dict)


def write_profile(path: Path, profile: LocalProfile) -> None:
  """Writes the file that `read_profile` reads. Raises ValueError if that would refuse it."""
  content = {"format": FORMAT, **dataclasses.asdict(profile)}
  _parse(content, str(path))
  replace_json(path, content)


def read_profile(path: Path) -> LocalProfile:
  """The profile in a file.

  Raises:
    ValueError: it is missing or damaged, or its windows are not on its ladder or not of one shape.
  """
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise ValueError(f"the profile {path} cannot be read ({error.strerror}); name the file of a profile.") from error
  return _parse(parse_object(raw, str(path)), str(path))


def with_profile(model: ModelConfig, profile: LocalProfile, baseline: str = "", *, source: str = "") -> ModelConfig:
  """The model with the windows of a profile, or of one of its baselines.

  source: of the profile, for messages.

  Raises:
    ValueError: there is no such baseline, or the model has other layers or heads.
  """
  what = source or f"the profile of {profile.model}"
  if baseline and baseline not in profile.baselines:
    known = ", ".join(profile.baselines) or "none"
    raise ValueError(f"{what} has no baseline {shown(baseline)}; it has {known}.")
  rows = profile.baselines[baseline] if baseline else profile.windows
  layers, heads = model.layers, model.attention.kv_heads
  if (len(rows), len(rows[0])) != (layers, heads):
    raise ValueError(
      f"{what} has windows of {len(rows)} layers with {len(rows[0])} key/value heads, and the model has {layers} with "
      f"{heads}; use a profile that was made for this model.")
  local = replace(
    model.local, sinks=profile.sinks, rungs=profile.rungs, windows=flat(rows), profile="")
  return replace(model, local=local)


def resolve(model: ModelConfig) -> ModelConfig:
  """The model with the windows that `model.local.profile`, FILE or FILE:BASELINE, names; as it is where it names none.

  Raises:
    ValueError: as `read_profile` and `with_profile`; or other fields of `model.local` contradict the profile.
  """
  name = model.local.profile
  if not name:
    return model
  file, _, baseline = (name, "", "") if Path(name).is_file() else name.partition(":")
  found = with_profile(model, read_profile(Path(file)), baseline, source=f"model.local.profile={name}")
  default = LocalConfig()
  for field_name in ("sinks", "rungs", "windows"):
    given, theirs = getattr(model.local, field_name), getattr(found.local, field_name)
    if given not in (getattr(default, field_name), theirs):
      raise ValueError(
        f"model.local.profile={name} has its own {field_name}, and model.local.{field_name}={shown(given)} is given "
        "as well; leave one of the two at its default.")
  return found


def _parse(content: Mapping[str, Any], source: str) -> LocalProfile:
  if content.get("format") != FORMAT:
    raise ValueError(
      f"{source} says format {shown(content.get('format'))}, and a profile of local attention says {shown(FORMAT)}; "
      "name the file of such a profile.")
  odd = [name for name in (*_FIELDS, *content) if (name in content) != (name in _FIELDS)]
  if odd:
    verb = "lacks the field" if odd[0] in _FIELDS else "has the unknown field"
    raise ValueError(f"{source} {verb} {shown(odd[0])}; a profile has {', '.join(_FIELDS)}.")
  if not isinstance(content["model"], str) or not isinstance(content["baselines"], Mapping):
    raise ValueError(f"{source}: model must be a text and baselines an object of windows by name; make it again.")
  windows = _rows(content["windows"], "windows", source)
  baselines = {
    name: _rows(rows, f"the baseline {shown(name)}", source) for name, rows in content["baselines"].items()}
  for name, rows in baselines.items():
    if (len(rows), len(rows[0])) != (len(windows), len(windows[0])):
      raise ValueError(f"{source}: the baseline {shown(name)} is of another shape than windows; make it again.")
  every = flat(windows) + flat(row for rows in baselines.values() for row in rows)
  sinks, rungs = content["sinks"], content["rungs"]
  try:
    local = LocalConfig(sinks=sinks, rungs=tuple(rungs) if isinstance(rungs, Sequence) else rungs, windows=every)
    check(local)
  except ValueError as error:
    raise ValueError(f"{source}: {str(error).replace('model.local.', '')}") from error
  return LocalProfile(content["model"], sinks, local.rungs, windows, baselines)


def _rows(rows: Any, what: str, source: str) -> Rows:
  is_table = isinstance(rows, Sequence) and rows and all(isinstance(row, Sequence) and row for row in rows)
  is_table = is_table and len({len(row) for row in rows}) == 1
  if not is_table or not all(type(window) is int for row in rows for window in row):
    raise ValueError(
      f"{source}: {what} must be a list of layers, each the list of its heads' windows in whole numbers, all of one "
      "length; make it again.")
  return tuple(tuple(row) for row in rows)
