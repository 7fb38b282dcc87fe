"""Values in JSON and JSON Lines files, found by a path of names, numbers and conditions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def look_up(path: Path, steps: Sequence[Any], name: str = "") -> Any:
  """The value at the end of the steps in a file; see `walk`.

  name: of the file in messages. Raises what `walk` does, and ValueError where the file cannot be read.
  """
  name = name or str(path)
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"{name} cannot be read ({error.strerror})") from error
  value = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
  return walk(value, steps, name)


def walk(value: Any, steps: Sequence[Any], name: str) -> Any:
  """What is at the end of the steps: each a name, a number, or {name: value, …} for the one entry of a list with these.

  A value that is a list stands for any one of its values. {all: {…}} is all such entries: what follows is then taken of
  each. name: of what is looked up, in messages.

  Raises:
    ValueError: not exactly one entry has the values of a step, or none where all are wanted.
    LookupError, TypeError: there is no such name or number.
  """
  if not steps:
    return value
  step, *rest = steps
  if isinstance(step, dict) and set(step) == {"all"}:
    matches = _matches(value, step["all"])
    if not matches:
      raise ValueError(f"no entry of {name} has {step['all']}")
    return [walk(one, rest, name) for one in matches]
  if isinstance(step, dict):
    matches = _matches(value, step)
    if len(matches) != 1:
      raise ValueError(f"{len(matches)} entries of {name} have {step}; name one")
    return walk(matches[0], rest, name)
  return walk(value[step], rest, name)


def _matches(entries: list[dict[str, Any]], step: dict[str, Any]) -> list[Any]:
  wanted = {key: value if isinstance(value, list) else [value] for key, value in step.items()}
  return [one for one in entries if all(key in one and one[key] in values for key, values in wanted.items())]
