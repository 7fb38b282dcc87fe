"""LagKV (arXiv 2504.04704): tokens stay whose key and value spread over channels, in the next partition's scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord
from lattice_jax.fields import at_least, positive

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


@dataclass(frozen=True)
class SpreadConfig:
  """The score by spread over channels."""

  value_weight: float = at_least(0, 1.0, "of the values' score beside the keys'")
  epsilon: float = positive(1e-6, "least range of a channel")


def score(own: SpreadConfig, partitions: Partitions) -> jax.Array:
  """Channels are scaled by the range of the next partition."""
  return spread(own, partitions, lambda z_BHNLK: z_BHNLK[:, :, 1:])


def spread(own: SpreadConfig, partitions: Partitions, reference_fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Spread over channels, scaled by their range in `reference_fn` of the partitions; [B, H, N-1, L]."""
  import jax
  import jax.numpy as jnp

  def share(z_BHNLK):
    lo_BHN1K, hi_BHN1K = (bound(reference_fn(z_BHNLK), axis=3, keepdims=True) for bound in (jnp.min, jnp.max))
    scaled_BHNLK = (z_BHNLK[:, :, :-1] - lo_BHN1K) / jnp.maximum(hi_BHN1K - lo_BHN1K, own.epsilon)
    return jax.nn.softmax(scaled_BHNLK.std(axis=-1, ddof=min(1, scaled_BHNLK.shape[-1] - 1)), axis=-1)

  return share(partitions.key_BHNLK) + own.value_weight * share(partitions.value_BHNLV)


POLICY = PolicyRecord(doc="the policy \"lagkv\"", chooses="partition", score=score, section=SpreadConfig)
