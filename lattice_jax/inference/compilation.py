"""What compiling ahead of time needs: arrays on a mesh, and their shapes as the key by which programs are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from lattice_jax.config import MeshConfig
from lattice_jax.sharding import make_mesh, replicated, unbox


def mesh_of(variables: Any) -> Mesh:
  """The mesh that the arrays lie on; if they lie on none, a mesh of this process's first device."""
  for leaf in jax.tree.leaves(variables):
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
      return leaf.sharding.mesh
  return make_mesh(MeshConfig(), jax.local_devices()[:1])


def place_variables(variables: Any, mesh: Mesh) -> Any:
  """Unboxes the leaves, and copies those that do not lie on `mesh` to every device of it."""
  def place(leaf: Any) -> jax.Array:
    is_on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
    return leaf if is_on_mesh else jax.device_put(leaf, replicated(mesh))

  return jax.tree.map(place, unbox(variables))


@dataclass(frozen=True)
class TreeSpec:
  """The structure of a tree of arrays, with their shapes, dtypes and shardings; hashable."""

  leaves: tuple[jax.ShapeDtypeStruct, ...]
  structure: Any

  @classmethod
  def of(cls, tree: Any) -> TreeSpec:
    leaves, structure = jax.tree.flatten(tree)
    return cls(tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves), structure)

  def tree(self) -> Any:
    return jax.tree.unflatten(self.structure, self.leaves)


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """The same ShapeDtypeStructs with their shardings; both trees have the same structure."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)
