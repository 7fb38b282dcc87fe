"""Origins: everything that decides a result. Each has a key, in which the name of the result's file or folder ends.

So results of different origins never overwrite one another, and a run resumes only work of its own origin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lattice_jax.data.source import fingerprint

# The code, besides the model, that asks, compresses and scores in a --task. Even a changed comment counts: asking again
# costs time, whereas mixing in answers of different code would invalidate the result.
_ASKING = (
  "cache", "evaluation/caches.py", "evaluation/compare.py", "evaluation/cache_contents.py",
  "evaluation/retrieval/run.py", "evaluation/retrieval/prompts.py", "inference/session.py")
_READABLE_LEN = 100  # characters of a name before its key, at most


def origin_key(origin: Mapping[str, Any]) -> str:
  """8 hex digits that depend on every fact of the origin."""
  return fingerprint(json.dumps(origin, sort_keys=True))[:8]


def keyed_name(parts: list[str], origin: Mapping[str, Any]) -> str:
  """The name of a file or folder: parts that tell results apart at a glance, and the key."""
  readable = "_".join("".join(c if c.isalnum() or c in ".=-_" else "-" for c in part) for part in parts)
  return f"{readable[:_READABLE_LEN]}_{origin_key(origin)}"


def code_fingerprint() -> str:
  """The fingerprint of the source code of everything that asks and scores."""
  root = Path(__file__).parents[1]
  paths = [path for name in _ASKING for path in (sorted((root / name).rglob("*.py")) or [root / name])]
  return fingerprint(*(path.read_bytes() for path in paths))
