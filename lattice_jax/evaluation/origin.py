"""What made a result: each origin has a key, and every result's file or folder ends in the key of its own.

So no result replaces one that something else made, and what is resumed is what would be asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lattice_jax.data.source import fingerprint

# What asks, compresses and judges in a --task, beside the model. A changed comment is a change too: asking again costs
# time, and going on with what other code has answered costs the result.
_ASKING = (
  "cache", "evaluation/caches.py", "evaluation/compare.py", "evaluation/kept.py", "evaluation/recall/run.py",
  "evaluation/recall/tasks.py", "inference/session.py")
_MOST_READABLE = 100  # letters of a name before its key


def origin_key(origin: Mapping[str, Any]) -> str:
  """8 hex digits that depend on every fact of the origin."""
  return fingerprint(json.dumps(origin, sort_keys=True))[:8]


def keyed_name(parts: list[str], origin: Mapping[str, Any]) -> str:
  """A file or folder name: what tells results apart at a glance, and the key."""
  readable = "_".join("".join(c if c.isalnum() or c in ".=-_" else "-" for c in part) for part in parts)
  return f"{readable[:_MOST_READABLE]}_{origin_key(origin)}"


def code_fingerprint() -> str:
  """Of the source of everything that asks and judges."""
  root = Path(__file__).parents[1]
  paths = [path for name in _ASKING for path in (sorted((root / name).glob("*.py")) or [root / name])]
  return fingerprint(*(path.read_bytes() for path in paths))
