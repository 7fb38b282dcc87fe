"""What each policy thinks of a slot: the higher the score, the sooner it stays. Computed in float32, no gradient.

Scores of a partition depend on its own tokens and the next partition's alone; global ones on all that is cached. Those
named after other methods are their scores in this frame, where sinks, the last whole partition and what follows it
always stay (docs/cache_policies.md).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.config import CacheConfig
from lattice_jax.ops.attention.reference import MASKED


@flax.struct.dataclass
class Partitions:
  """N consecutive partitions of L slots; layer is the cache's place in the stack."""

  key_BHNLK: jax.Array
  value_BHNLV: jax.Array
  position_BHNL: jax.Array
  layer: jax.Array


@flax.struct.dataclass
class Everything:
  """A whole cache. is_used_BS: slots that hold a token. seen_B: tokens of the document so far."""

  key_BHSK: jax.Array
  position_BHS: jax.Array
  is_used_BS: jax.Array
  seen_B: jax.Array
  mass_BHS: jax.Array
  query_BWQK: jax.Array


def lag_score(config: CacheConfig, partitions: Partitions) -> jax.Array:
  """LagKV: spread over channels after scaling by the range of the next partition; [B, H, N-1, L]."""
  return _spread(config, partitions, lambda z_BHNLK: z_BHNLK[:, :, 1:])


def local_score(config: CacheConfig, partitions: Partitions) -> jax.Array:
  """As LagKV, with the partition's own range."""
  return _spread(config, partitions, lambda z_BHNLK: z_BHNLK[:, :, :-1])


def norm_score(config: CacheConfig, partitions: Partitions) -> jax.Array:
  """Knorm: short keys of a partition stay; they tend to receive much attention."""
  del config
  return -jnp.linalg.norm(partitions.key_BHNLK[:, :, :-1], axis=-1)


def difference_score(config: CacheConfig, partitions: Partitions) -> jax.Array:
  """KeyDiff: keys stay whose direction is far from the partition's mean direction."""
  del config
  key_BHNLK = partitions.key_BHNLK[:, :, :-1]
  unit_BHNLK = key_BHNLK / jnp.maximum(jnp.linalg.norm(key_BHNLK, axis=-1, keepdims=True), 1e-12)
  mean_BHN1K = unit_BHNLK.mean(axis=3, keepdims=True)
  length_BHN1 = jnp.maximum(jnp.linalg.norm(mean_BHN1K, axis=-1), 1e-12)
  return -(unit_BHNLK * mean_BHN1K).sum(-1) / length_BHN1


def random_score(config: CacheConfig, partitions: Partitions) -> jax.Array:
  """A hash of seed, layer, head and position: the same in any row and any order of arrival."""
  position_BHNL = partitions.position_BHNL[:, :, :-1].astype(jnp.uint32)
  head_H11 = jnp.arange(position_BHNL.shape[1], dtype=jnp.uint32)[:, None, None]
  mixed = jnp.uint32(config.seed)
  for part in (partitions.layer.astype(jnp.uint32), head_H11, position_BHNL):
    mixed = _mix(mixed ^ part)
  return (mixed >> 8).astype(jnp.float32)  # 24 bits are exact


def heavy_score(config: CacheConfig, everything: Everything) -> jax.Array:
  """H2O: attention received so far; [B, H, S]."""
  del config
  return everything.mass_BHS


def observed_score(config: CacheConfig, everything: Everything) -> jax.Array:
  """SnapKV: attention of the last queries, averaged over neighbouring slots."""
  weight_BHS = _attention_of_last(everything, config.observe).sum(2)
  half = config.pool // 2
  return jax.lax.reduce_window(
    weight_BHS, 0.0, jax.lax.add, (1, 1, config.pool), (1, 1, 1), ((0, 0), (0, 0), (half, half)))


def last_query_score(config: CacheConfig, everything: Everything) -> jax.Array:
  """TOVA: attention of the last query, averaged over all heads, which therefore keep the same tokens."""
  del config
  weight_BHGS = _attention_of_last(everything, 1)
  return jnp.broadcast_to(weight_BHGS.mean((1, 2))[:, None], everything.position_BHS.shape)


PARTITION_SCORES = {
  "lagkv": lag_score, "local": local_score, "knorm": norm_score, "keydiff": difference_score, "random": random_score}
GLOBAL_SCORES = {"h2o": heavy_score, "snapkv": observed_score, "tova": last_query_score}


def _spread(config: CacheConfig, partitions: Partitions, range_of) -> jax.Array:
  def share(z_BHNLK):
    lo_BHN1K, hi_BHN1K = (bound(range_of(z_BHNLK), axis=3, keepdims=True) for bound in (jnp.min, jnp.max))
    scaled_BHNLK = (z_BHNLK[:, :, :-1] - lo_BHN1K) / jnp.maximum(hi_BHN1K - lo_BHN1K, config.epsilon)
    return jax.nn.softmax(scaled_BHNLK.std(axis=-1, ddof=min(1, scaled_BHNLK.shape[-1] - 1)), axis=-1)

  return share(partitions.key_BHNLK) + config.value_weight * share(partitions.value_BHNLV)


def _attention_of_last(everything: Everything, num_queries: int) -> jax.Array:
  """Softmax weights summed over the last queries, [B, H, G, S]."""
  query_BWQK = everything.query_BWQK[:, -num_queries:].astype(jnp.float32)
  batch, count, _, key_dim = query_BWQK.shape
  heads = everything.key_BHSK.shape[1]
  query_BWHGK = query_BWQK.reshape(batch, count, heads, -1, key_dim)
  index_BW = everything.seen_B[:, None] - count + jnp.arange(count)
  score_BHGWS = jnp.einsum("BWHGK,BHSK->BHGWS", query_BWHGK, everything.key_BHSK) * key_dim**-0.5
  seen_BHWS = everything.is_used_BS[:, None, None] & (everything.position_BHS[:, :, None] <= index_BW[:, None, :, None])
  score_BHGWS = jnp.where(seen_BHWS[:, :, None], score_BHGWS, MASKED)
  weight_BHGWS = jnp.where(seen_BHWS[:, :, None], jax.nn.softmax(score_BHGWS, axis=-1), 0.0)
  return weight_BHGWS.sum(3)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32-bit numbers in which every bit depends on every other."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
