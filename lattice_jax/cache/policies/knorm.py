"""Knorm's score (arXiv 2406.11430) in LagKV's frame: short keys stay, which tend to receive much attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


def score(own: None, partitions: Partitions) -> jax.Array:
  import jax.numpy as jnp

  del own
  return -jnp.linalg.norm(partitions.key_BHNLK[:, :, :-1], axis=-1)


POLICY = PolicyRecord(doc="", chooses="partition", score=score)
