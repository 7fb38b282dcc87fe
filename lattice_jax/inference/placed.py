"""Arrays on a mesh, and their shapes as the key of a cache of compiled programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from lattice_jax.config import MeshConfig
from lattice_jax.sharding import make_mesh, replicated, unbox


def mesh_of(variables: Any) -> Mesh:
  """The mesh that the arrays lie on, or one of this process's first device where they lie on none."""
  for leaf in jax.tree.leaves(variables):
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
      return leaf.sharding.mesh
  return make_mesh(MeshConfig(), jax.local_devices()[:1])


def place_variables(variables: Any, mesh: Mesh) -> Any:
  """Leaves that lie on `mesh` as they are, others copied to every device; without the boxes of logical axes."""
  def place(leaf: Any) -> jax.Array:
    is_on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
    return leaf if is_on_mesh else jax.device_put(leaf, replicated(mesh))

  return jax.tree.map(place, unbox(variables))


@dataclass(frozen=True)
class Abstract:
  """The shapes, dtypes and shardings of a tree of arrays; hashable."""

  leaves: tuple[jax.ShapeDtypeStruct, ...]
  structure: Any

  @classmethod
  def of(cls, tree: Any) -> Abstract:
    leaves, structure = jax.tree.flatten(tree)
    return cls(tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves), structure)

  def tree(self) -> Any:
    return jax.tree.unflatten(self.structure, self.leaves)


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs that say where they lie; both trees alike."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)
