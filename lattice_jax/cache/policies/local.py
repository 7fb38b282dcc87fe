"""As LagKV, but a partition's channels are scaled by its own range."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.lagkv import SpreadConfig, spread
from lattice_jax.cache.policies.record import PolicyRecord

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


def score(own: SpreadConfig, partitions: Partitions) -> jax.Array:
  return spread(own, partitions, lambda z_BHNLK: z_BHNLK[:, :, :-1])


POLICY = PolicyRecord(doc="the policy \"local\"", chooses="partition", score=score, section=SpreadConfig)
