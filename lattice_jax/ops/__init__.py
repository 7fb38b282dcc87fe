"""Mathematics that several memories share.

To users of the library, `lattice_jax.ops.lattice` and so on are also the ops of memories: what their `op.py` offers.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def __dir__() -> list[str]:
  return importlib.import_module("lattice_jax.library.memories").public_names("op")


def __getattr__(name: str) -> Any:
  if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}"):  # modules are found by importing them
    raise AttributeError(f"lattice_jax.ops has no {name!r} yet.")
  value = importlib.import_module("lattice_jax.library.memories").find_public(name, ("op",))
  globals()[name] = value  # the next look-up need not come here
  return value
