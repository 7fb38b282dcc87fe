"""H2O's score (arXiv 2306.14048) in LagKV's frame: tokens stay that have received the most attention so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord, Records

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import WholeCache


def score(own: None, cache: WholeCache) -> jax.Array:
  del own
  return cache.mass_BHS


POLICY = PolicyRecord(doc="", chooses="all", score=score, records=lambda own: Records(mass=True))
