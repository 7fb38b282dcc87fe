"""TOVA's score (arXiv 2401.06104) in LagKV's frame: attention of the last query, averaged over all heads.

All heads therefore keep the same tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord, Records

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import WholeCache


def score(own: None, cache: WholeCache) -> jax.Array:
  import jax.numpy as jnp

  del own
  weight_BHGS = cache.attention_of_last(1)
  return jnp.broadcast_to(weight_BHGS.mean((1, 2))[:, None], cache.position_BHS.shape)


POLICY = PolicyRecord(doc="", chooses="all", score=score, records=lambda own: Records(queries=1))
