"""A single value in a JSON or JSON Lines file, found by a path of names, numbers and conditions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def look_up(path: Path, steps: Sequence[Any], name: str = "") -> Any:
  """The value at the end of the steps: a name, a number, or a dict that picks the one entry of a list that has it.

  name: of the file in messages. Raises ValueError or LookupError where the file or a step is not there, or an entry is
  not the only one.
  """
  name = name or str(path)
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"{name} cannot be read ({error.strerror})") from error
  value = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
  for step in steps:
    if isinstance(step, dict):
      value = _only([one for one in value if step.items() <= {key: one.get(key) for key in step}.items()], step, name)
    else:
      value = value[step]
  return value


def _only(matches: list[Any], step: dict[str, Any], name: str) -> Any:
  if len(matches) != 1:
    raise ValueError(f"{len(matches)} entries of {name} have {step}; name one")
  return matches[0]
