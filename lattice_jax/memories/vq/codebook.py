"""How the codebook learns: moving averages of how often a code is used and of the keys that use it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.ops.documents import keep_only

COUNT_FLOOR = 0.01  # a code that is never used drifts to the origin once its moving count falls below this
_SPLIT_NOISE = 0.1  # of the row's length: how far a revived code starts from the one it is split off


def codebook(count: Float[Array, "H M"], total: Float[Array, "H M K"]) -> Float[Array, "H M K"]:
  """Codebook rows from the moving count and the moving sum of keys; no gradient."""
  return jax.lax.stop_gradient(total / jnp.maximum(count, COUNT_FLOOR)[..., None])


def code_statistics(
  k: Float[Array, "B T H K"], code: Int[Array, "B T H"], valid: Bool[Array, "B T"], codes: int,
) -> tuple[Float[Array, "H M"], Float[Array, "H M K"]]:
  """Number of valid keys of each code and their sum, over batch and time."""
  one_hot_BTHM = jax.nn.one_hot(code, codes, dtype=jnp.float32) * valid[..., None, None]
  k_BTHK = keep_only(valid, jax.lax.stop_gradient(k).astype(jnp.float32))
  return one_hot_BTHM.sum((0, 1)), jnp.einsum("BTHM,BTHK->HMK", one_hot_BTHM, k_BTHK, precision="highest")


def moving_average(
  old: Float[Array, "*shape"], new: Float[Array, "*shape"], rate: float
) -> Float[Array, "*shape"]:
  """rate·old + (1 − rate)·new; `new` is a sum over the whole global batch of an update."""
  return rate * old + (1 - rate) * new


def dead_codes(count: Float[Array, "H M"], below: float) -> Bool[Array, "H M"]:
  """Codes whose moving count is less than the share `below` of the average of their head."""
  return count < below * count.mean(-1, keepdims=True)


def revive(
  count: Float[Array, "H M"], total: Float[Array, "H M K"], below: float, rng: jax.Array
) -> tuple[Float[Array, "H M"], Float[Array, "H M K"]]:
  """Splits the most used codes: each gives half of itself, slightly moved, to a dead one (`dead_codes`).

  No sum changes but for the movement. Not part of the paper, which leaves dead codes dead. Where fewer codes live than
  are dead, the rest waits for the next call.
  """
  keys_H = jax.random.split(rng, count.shape[0])
  return jax.vmap(_revive_head)(count, total, dead_codes(count, below), keys_H)


def _revive_head(count_M: jax.Array, total_MK: jax.Array, is_dead_M: jax.Array, key: jax.Array):
  most_used_M = jnp.argsort(-count_M)
  rank_M = jnp.cumsum(is_dead_M) - 1
  is_revived_M = is_dead_M & (rank_M < (~is_dead_M).sum())
  donor_M = most_used_M[jnp.where(is_revived_M, rank_M, 0)]
  # Several codes may name donor 0 without being revived, hence the sum.
  is_donor_M = jnp.zeros_like(count_M).at[donor_M].add(is_revived_M) > 0
  half_M, half_MK = count_M / 2, total_MK / 2
  noise_MK = jax.random.normal(key, total_MK.shape) * total_MK.shape[-1] ** -0.5
  length_M1 = jnp.linalg.norm(half_MK[donor_M], axis=-1, keepdims=True)
  moved_MK = half_MK[donor_M] + _SPLIT_NOISE * length_M1 * noise_MK
  count_M = jnp.where(is_revived_M, half_M[donor_M], jnp.where(is_donor_M, half_M, count_M))
  total_MK = jnp.where(is_revived_M[:, None], moved_MK, jnp.where(is_donor_M[:, None], half_MK, total_MK))
  return count_M, total_MK
