"""Configs as older versions stored them, in runs, checkpoints and saved states: their fields as they are now."""

from __future__ import annotations

import copy
from typing import Any

_FRAME = ("heads", "value_dim", "conv_width", "gated")
_BASELINES = {
  "gated_linear": (*_FRAME, "key_dim", "chunk_len", "gate_rank"),
  "delta": (*_FRAME, "key_dim", "chunk_len", "max_step"),
  "gated_slots": (*_FRAME, "key_dim", "chunk_len", "slots"),
  "ttt": (*_FRAME, "mini_batch", "inner_rate"),
}
_CACHES = {
  "full": ("records", "observe"), "window": ("window",), "lagkv": ("value_weight", "epsilon"),
  "local": ("value_weight", "epsilon"), "random": ("seed",), "snapkv": ("observe", "pool")}
# (path of before, path of now); a field that several sections have now goes to all of them
MOVED = (
  *((f"model.baseline.{field}", f"model.{section}.{field}")
    for section, fields in _BASELINES.items() for field in fields),
  *((f"model.cache.{field}", f"model.cache.{policy}.{field}")
    for policy, fields in _CACHES.items() for field in fields))


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
  """The same config with every field where it is now; one of today comes back as it is."""
  new, found = copy.deepcopy(config), []
  for before, now in MOVED:
    *sections, name = before.split(".")
    old = _find(config, sections)
    # a section may have the name that a field had
    if old is not None and name in old and not isinstance(old[name], dict):
      found.append((now, old[name]))
      _remove(new, before.split("."))
  for now, value in found:
    *sections, name = now.split(".")
    place: Any = new
    for section in sections:
      place = place.setdefault(section, {}) if isinstance(place, dict) else None
    if isinstance(place, dict):  # what else may stand in the place of a section is refused where configs are checked
      place[name] = value
  local = _find(new, ["model", "local"]) or {}
  if local.get("far") == "moments" and isinstance(local.get("summary"), dict):
    # moments added the whole quadratic term before its share could be chosen
    local["summary"].setdefault("curvature", 1.0)
  return new


def _find(config: dict[str, Any], sections: list[str]) -> dict[str, Any] | None:
  for section in sections:
    config = config[section] if isinstance(config, dict) and section in config else None
  return config if isinstance(config, dict) else None


def _remove(config: dict[str, Any], path: list[str]) -> None:
  """Takes away a field, and its section once that is empty."""
  if not isinstance(config, dict) or path[0] not in config:
    return
  if len(path) > 1:
    _remove(config[path[0]], path[1:])
  if len(path) == 1 or config[path[0]] == {}:
    del config[path[0]]
