"""The names that the folders of memories offer to users of the library, found when they are asked for."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from lattice_jax.domains import did_you_mean
from lattice_jax.memories.registry import FOLDERS


def public_names(module: str) -> list[str]:
  """What `module` ("config", "layer" or "op") of all memories offers."""
  return sorted(_public(module))


def find_public(name: str, modules: Sequence[str]) -> Any:
  """The object of this name in one of these modules of a memory. Raises AttributeError where none offers it."""
  for module in modules:
    if name in _public(module):
      return _public(module)[name]
  known = [known for module in modules for known in _public(module)]
  raise AttributeError(f"lattice_jax offers no {name!r}.{did_you_mean(name, known)} dir() lists what there is.")


@functools.cache
def _public(module: str) -> dict[str, Any]:
  """Of an op the functions and classes in its `__all__`, else the classes that the module defines.

  Where memories give one name to different things, as to `empty_state`, nobody's is offered.
  """
  found: dict[str, list[Any]] = {}
  for folder in dict.fromkeys(FOLDERS.values()):
    home = importlib.import_module(f"lattice_jax.memories.{folder}.{module}")
    names = home.__all__ if module == "op" else [
      name for name, value in inspect.getmembers(home, inspect.isclass)
      if value.__module__ == home.__name__ and not name.startswith("_")]
    if module == "config":
      names = {*names, home.SECTION.config.__name__}
    for name in names:
      value = getattr(home, name)
      if callable(value) and value not in found.setdefault(name, []):
        found[name].append(value)
  return {name: values[0] for name, values in found.items() if len(values) == 1}

