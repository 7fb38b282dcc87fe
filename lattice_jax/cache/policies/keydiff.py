"""KeyDiff's score (arXiv 2504.15364) in LagKV's frame: keys stay whose direction is far from their partition's mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


def score(own: None, partitions: Partitions) -> jax.Array:
  """Minus the cosine of each key with the mean direction."""
  import jax.numpy as jnp

  del own
  key_BHNLK = partitions.key_BHNLK[:, :, :-1]
  unit_BHNLK = key_BHNLK / jnp.maximum(jnp.linalg.norm(key_BHNLK, axis=-1, keepdims=True), 1e-12)
  mean_BHN1K = unit_BHNLK.mean(axis=3, keepdims=True)
  length_BHN1 = jnp.maximum(jnp.linalg.norm(mean_BHN1K, axis=-1), 1e-12)
  return -(unit_BHNLK * mean_BHN1K).sum(-1) / length_BHN1


POLICY = PolicyRecord(doc="", chooses="partition", score=score)
