"""Who holds what: each array of the training state, its part on a device, and what is not split evenly.

Needs shapes only, so that a mesh of machines that are not there will do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh

from lattice_jax.config import Config
from lattice_jax.models.parameters import named_leaves
from lattice_jax.sharding import Axes
from lattice_jax.training.state import abstract_state, state_axes

# What the letters in the names of a memory's fields stand for.
_LETTERS = {"B": "rows", "H": "heads"}


@dataclass(frozen=True)
class Whole:
  """An axis that lies whole on each device because its mesh axis does not divide it.

  name: of the axis. over: the mesh axis. more_bytes: what a device would save if it were split.
  """

  name: str
  size: int
  over: str
  more_bytes: int


@dataclass(frozen=True)
class Holding:
  """An array. spec: the mesh axis of each of its axes. device_bytes: of its part on one device, of which there are
  `copies` on the mesh.
  """

  path: str
  shape: tuple[int, ...]
  dtype: str
  spec: tuple[str | None, ...]
  device_bytes: int
  copies: int
  whole: tuple[Whole, ...] = ()


def holdings(config: Config, mesh: Mesh | AbstractMesh) -> list[Holding]:
  """Every array of the training state, in the order of its fields."""
  axes = named_leaves(state_axes(config, mesh))
  return [holding(path, leaf, axes[path], mesh) for path, leaf in named_leaves(abstract_state(config, mesh)).items()]


def holding(path: str, leaf: jax.ShapeDtypeStruct, axes: Axes | None, mesh: Mesh | AbstractMesh) -> Holding:
  """An array whose shape has a sharding; axes: None where nothing else was wanted."""
  spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
  split = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
  device_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize // split
  whole = []
  for number in axes.undivided(leaf.shape, mesh) if axes else ():
    name, over = axes.names[number], axes.wanted[number]
    more = device_bytes - device_bytes // mesh.shape[over]
    whole.append(Whole(_LETTERS[name] if name in _LETTERS else name, leaf.shape[number], over, more))
  return Holding(path, leaf.shape, leaf.dtype.name, spec, device_bytes, mesh.size // split, tuple(whole))


def sentences(held: Sequence[Holding], mesh: Mesh | AbstractMesh) -> list[str]:
  """One for each axis that is whole on every device because a mesh axis does not divide it, and what that costs."""
  groups: dict[tuple[str, int, str], list[tuple[str, int]]] = defaultdict(list)
  for array in held:
    for whole in array.whole:
      groups[whole.name, whole.size, whole.over].append((array.path, whole.more_bytes))
  return [_sentence(*axis, mesh.shape[axis[2]], arrays) for axis, arrays in groups.items()]


def _sentence(name: str, size: int, over: str, devices: int, arrays: list[tuple[str, int]]) -> str:
  first, more = arrays[0][0], len(arrays) - 1
  return (
    f"an axis of {size} {name} cannot be split over mesh.{over}={devices}: {first}"
    f"{f' and {more} more stay' if more else ' stays'} whole on each device, which costs it "
    f"{sum(cost for _, cost in arrays):,} bytes; multiples of {devices} are split")
