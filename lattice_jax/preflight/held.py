"""Everything that the chips hold before an update: the training state, and the batch."""

from __future__ import annotations

from jax.sharding import AbstractMesh, Mesh

from lattice_jax.aot.train_step import abstract_batches
from lattice_jax.config import Config
from lattice_jax.models.parameters import named_leaves
from lattice_jax.training.holdings import Holding, holding, holdings


def everything_held(config: Config, mesh: Mesh | AbstractMesh) -> list[Holding]:
  """Every array of the state, and of the batches of one call."""
  batch = named_leaves({"batch": abstract_batches(config, mesh)})
  return holdings(config, mesh) + [holding(path, leaf, None, mesh) for path, leaf in batch.items()]
