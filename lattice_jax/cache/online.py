"""How many tokens of a partition stay, decided when it is compressed: from what its dropped tokens would change.

That drift is estimated without attention. Of the L tokens of a partition, token t carries for one head the share

    e_t = ½ |k_t − k̄|² / Σ_s |k_s − k̄|²  +  ½ |v_t − v̄|² / Σ_s |v_s − v̄|²

of the deviation from the partition's mean key and mean value: a token at the mean is replaced by any others, one far
from it is not. D(k) is the sum of e_t over all but the k tokens that the policy scores highest; D(0) = 1, D(L) = 0. At
the limit τ a partition wants the fewest k ≥ 1 with D(k) ≤ τ in every head, and it gets

    k = min(want, keep + saved),    saved = Σ of keep − k over the document's partitions so far ≥ 0,

so that no prefix of a text keeps more than the fixed budget would, whose closed forms bound the room and the length.

drift: τ is `model.cache.drift`. Where no other budget is given keep = L, and the target is always met.
memory: τ = (1 − keep/L) · 2^(−saved/keep), an integral controller. With nothing saved the limit is what evenly spread
  deviation would leave of a fixed budget; every `keep` tokens that are saved halve it. It settles where partitions
  want `keep` on average: those whose deviation lies in few tokens give to those where it lies in many.

Rows and layers decide alone. The heads of a layer keep different tokens but equally many, as slots [0, length) of a row
are in use for all of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.cache.policies.views import Partitions
from lattice_jax.cache.policy import Policy


def saved_tokens(policy: Policy, base_B: jax.Array, num_compressed_B: jax.Array) -> jax.Array:
  """What earlier partitions left of the budget: the slots that they might have had, less those they have."""
  return policy.sinks + policy.keep * num_compressed_B - base_B


def decide(
  policy: Policy, partitions: Partitions, rank_BHNL: jax.Array, is_due_BN: jax.Array, saved_B: jax.Array,
) -> jax.Array:
  """Tokens kept of each partition that has a successor, [B, N-1] int32; 0 of one that is not due."""
  drift_BNL = drift_by_keep(partitions, rank_BHNL).max(axis=1)

  def one_partition(saved_B, partition):
    drift_BL, is_due_B = partition
    wanted_B = (drift_BL > _limit(policy, saved_B)[:, None]).sum(-1, dtype=jnp.int32)
    keep_B = jnp.clip(wanted_B, 1, policy.keep + saved_B)
    return saved_B + jnp.where(is_due_B, policy.keep - keep_B, 0), jnp.where(is_due_B, keep_B, 0)

  _, keep_NB = jax.lax.scan(one_partition, saved_B, (jnp.moveaxis(drift_BNL, 1, 0), is_due_BN.T))
  return keep_NB.T


def drift_by_keep(partitions: Partitions, rank_BHNL: jax.Array) -> jax.Array:
  """D(k) of every head and partition that has a successor, for k = 0 … L-1; [B, H, N-1, L]."""
  share_BHNL = (_share(partitions.key_BHNLK[:, :, :-1]) + _share(partitions.value_BHNLV[:, :, :-1])) / 2
  best_first_BHNL = jnp.take_along_axis(share_BHNL, jnp.argsort(rank_BHNL, axis=-1), axis=-1)
  return jax.lax.cumsum(best_first_BHNL, axis=3, reverse=True)


def _share(z_BHNLK: jax.Array) -> jax.Array:
  """Of equal tokens, none deviates."""
  deviation_BHNL = ((z_BHNLK - z_BHNLK.mean(axis=3, keepdims=True)) ** 2).sum(-1)
  total_BHN1 = deviation_BHNL.sum(-1, keepdims=True)
  return deviation_BHNL / jnp.where(total_BHN1 > 0, total_BHN1, 1.0)


def _limit(policy: Policy, saved_B: jax.Array) -> jax.Array:
  if policy.config.budget == "drift":
    return jnp.full(saved_B.shape, policy.config.drift)
  return (1 - policy.keep / policy.lag) * jnp.exp2(-saved_B / policy.keep)
