"""The ops that are checked, in the forms in which they are trained and decoded."""

from __future__ import annotations

from collections.abc import Iterator

from lattice_jax.memories.cases import Case, Sizes
from lattice_jax.memories.registry import FOLDERS, find_memory


def make_cases(sizes: Sizes) -> Iterator[Case]:
  """Every memory's cases, once where memories share an op."""
  for make in dict.fromkeys(find_memory(name).cases for name in FOLDERS):
    yield from make(sizes)
