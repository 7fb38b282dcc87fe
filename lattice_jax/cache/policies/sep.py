"""SepLLM's choice (arXiv 2412.12094) in LagKV's frame: separators stay, the newest first, then the newest others.

Which tokens are separators comes with the text, as their mark MARK_ANCHOR, so all heads keep the same tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord, Records

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


def score(own: None, partitions: Partitions) -> jax.Array:
  import jax.numpy as jnp

  from lattice_jax.types import MARK_ANCHOR

  del own
  is_separator_BHNL = (partitions.mark_BHNL[:, :, :-1] & MARK_ANCHOR) > 0
  lag = is_separator_BHNL.shape[-1]
  return (jnp.arange(lag) + lag * is_separator_BHNL).astype(jnp.float32)


POLICY = PolicyRecord(doc="", chooses="partition", score=score, records=lambda own: Records(marks=True))
