"""The run-time type checker that `conftest.py` puts behind every annotation of lattice_jax."""

from __future__ import annotations

from collections.abc import Callable

import beartype

_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
  """Checks arguments and results, except of constructors: pytree nodes are rebuilt with specs, shapes and sentinels."""
  return function if function.__name__ == "__init__" else _check(function)
