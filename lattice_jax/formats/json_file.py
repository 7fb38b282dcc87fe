"""JSON files of model folders: objects without repeated names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lattice_jax.shown import shown


class _RepeatedNameError(Exception):
  """An object contains a name twice."""


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises ValueError if it is missing or something else, or repeats a name, of which a parser would keep the last value.
  """
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); a folder of weights needs it.") from error
  return parse_object(raw, str(path))


def parse_object(raw: bytes, source: str) -> dict[str, Any]:
  """The object in JSON text; `source` names it in error messages."""
  try:
    content = json.loads(raw.decode("utf-8"), object_pairs_hook=_names_once)
  except _RepeatedNameError as error:
    raise ValueError(f"{source} says {error} twice, so one of the two is wrong; get it again.") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{source} is not JSON; get it again.") from error
  if not isinstance(content, dict):
    raise ValueError(f"{source} holds no JSON object; get it again.")
  return content


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  content = dict(pairs)
  if len(content) < len(pairs):
    seen: set[str] = set()
    raise _RepeatedNameError(next(shown(name) for name, _ in pairs if name in seen or seen.add(name)))
  return content
