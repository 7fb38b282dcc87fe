"""Language models whose long context lives in a small memory.

`import lattice_jax as lj` gives what docs/library.md shows: layers and their configs by the names that
lattice_jax/memories gives them, ops as `lj.ops.…`, and the functions below. All of it is imported when it is first
used, so that the import itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
  "CacheConfig": "lattice_jax.config",
  "Config": "lattice_jax.config",
  "LayerOutput": "lattice_jax.types",
  "ModelConfig": "lattice_jax.config",
  "RopeScalingConfig": "lattice_jax.ops.rotary_config",
  "Segment": "lattice_jax.types",
  "compress_kv": "lattice_jax.library.compress_kv",
  "evaluate": "lattice_jax.library.runs",
  "from_fla": "lattice_jax.library.fla",
  "generate": "lattice_jax.library.runs",
  "load_pretrained": "lattice_jax.library.runs",
  "load_run": "lattice_jax.library.runs",
  "train": "lattice_jax.library.runs",
  "unbox": "lattice_jax.sharding",
  "whole_segment": "lattice_jax.types",
}


def __dir__() -> list[str]:
  memories = importlib.import_module("lattice_jax.library.memories")
  return sorted([*_HOMES, "ops", *memories.public_names("config"), *memories.public_names("layer")])


def __getattr__(name: str) -> Any:
  if name == "__all__":
    return __dir__()
  if name == "ops":
    return importlib.import_module("lattice_jax.ops")
  if name in _HOMES:
    value = getattr(importlib.import_module(_HOMES[name]), name)
  elif name[0].isupper():
    value = importlib.import_module("lattice_jax.library.memories").find_public(name, ("config", "layer"))
  else:
    raise AttributeError(f"lattice_jax offers no {name!r}; dir() lists what there is.")
  globals()[name] = value  # the next look-up need not come here
  return value
