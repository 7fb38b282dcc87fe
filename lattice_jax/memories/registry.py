"""The memories that `model.pattern` may name. Adding one adds a line here and a row to the law tests.

The table needs no JAX: a folder's `config.py` is read for the config, its `record.py` only where layers are built.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from lattice_jax.domains import did_you_mean
from lattice_jax.memories.section import Section

# memory → folder under lattice_jax/memories: config.py has its SECTION, record.py its place in MEMORIES
FOLDERS = {
  "attention": "softmax",
  "window": "softmax",
  "anchor": "anchor",
  "local": "local",
  "vq": "vq",
  "lattice": "lattice",
  "linear": "gated_linear",
  "scalar_decay": "gated_linear",
  "gla": "gated_linear",
  "deltanet": "delta",
  "gated_deltanet": "delta",
  "kimi_delta": "delta",
  "gated_slots": "gated_slots",
  "ttt_linear": "ttt",
  "gru": "gru",
  "online_vq": "online_vq",
}


def find_section(name: str) -> Section:
  """The part of the config that belongs to a memory. Raises ValueError where there is no memory of this name."""
  return _load(name, "config").SECTION


@functools.cache
def sections() -> tuple[Section, ...]:
  """The parts of the config that belong to memories; some share one."""
  return tuple({section.name: section for section in map(find_section, FOLDERS)}.values())


def find_memory(name: str) -> Any:
  """The record (`memory.Memory`) of a memory. Raises ValueError where there is none of this name."""
  return _load(name, "record").MEMORIES[name]


def _load(name: str, module: str) -> ModuleType:
  if name not in FOLDERS:
    raise ValueError(f"there is no memory {name!r}; there are {', '.join(FOLDERS)}.{did_you_mean(name, FOLDERS)}")
  return importlib.import_module(f"{__package__}.{FOLDERS[name]}.{module}")
