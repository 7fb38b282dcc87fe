"""The trials of a sweep: those of a grid are known in advance, those of a sampler depend on finished ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol, runtime_checkable

from lattice_jax.sweep.labels import grid_ids
from lattice_jax.sweep.sweep_file import Sweep
from lattice_jax.sweep.trials import Trial


@runtime_checkable
class Search(Protocol):
  """`total` trials. `trial` is called in order, `tell` when a metric is known and again after a restart."""

  total: int

  def trial(self, index: int) -> Trial: ...

  def tell(self, index: int, value: float) -> None: ...


class GridSearch:
  """The product of all values; the last parameter in the file changes fastest."""

  def __init__(self, sweep: Sweep):
    names = [parameter.name for parameter in sweep.parameters]
    settings = [
      dict(zip(names, values, strict=True))
      for values in itertools.product(*(parameter.choices() for parameter in sweep.parameters))]
    ids = grid_ids(sweep.parameters, settings)
    self._trials = [
      Trial(index, name, values) for index, (name, values) in enumerate(zip(ids, settings, strict=True))]
    self.total = min(len(self._trials), sweep.run_cap or len(self._trials))

  def trial(self, index: int) -> Trial:
    return self._trials[index]

  def tell(self, index: int, value: float) -> None:
    """Ignores the result: trials of a grid do not depend on each other."""


def make_search(sweep: Sweep, workdir: Path, seed: int) -> Search:
  """seed: of the sampler; a grid ignores it."""
  if sweep.method == "grid":
    return GridSearch(sweep)
  from lattice_jax.sweep.optuna_search import OptunaSearch  # imported here because a grid does not need Optuna

  return OptunaSearch(sweep, workdir, seed)
