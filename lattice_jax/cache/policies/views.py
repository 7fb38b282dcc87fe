"""What a score sees of a cache, in float32. Scores of slots are compared with one another and carry no gradient.

All policies that compress choose in one frame: the sinks, the last whole partition and what follows it always stay.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Partitions:
  """N consecutive partitions of L slots, of which all but the last are scored.

  layer: its place in the stack. mark_BHNL: int8, as `types.Segment` has them, where the policy records them, else None.
  keep: tokens of a partition that stay, or where that is decided online those that stay on average at most.
  """

  key_BHNLK: jax.Array
  value_BHNLV: jax.Array
  position_BHNL: jax.Array
  layer: jax.Array
  mark_BHNL: jax.Array | None = None
  keep: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class WholeCache:
  """All slots of a layer. is_used_BS: which hold a token. seen_B: tokens of the document so far.

  mass_BHS, query_BWQK: as in `KVCache`, where the policy records them.
  """

  key_BHSK: jax.Array
  position_BHS: jax.Array
  is_used_BS: jax.Array
  seen_B: jax.Array
  mass_BHS: jax.Array
  query_BWQK: jax.Array

  def attention_of_last(self, num_queries: int) -> jax.Array:
    """Softmax weights summed over the last queries, [B, H, G, S] with the G heads that share a key."""
    query_BWQK = self.query_BWQK[:, -num_queries:].astype(jnp.float32)
    batch, count, _, key_dim = query_BWQK.shape
    heads = self.key_BHSK.shape[1]
    query_BWHGK = query_BWQK.reshape(batch, count, heads, -1, key_dim)
    index_BW = self.seen_B[:, None] - count + jnp.arange(count)
    score_BHGWS = jnp.einsum("BWHGK,BHSK->BHGWS", query_BWHGK, self.key_BHSK) * key_dim**-0.5
    seen_BHWS = self.is_used_BS[:, None, None] & (self.position_BHS[:, :, None] <= index_BW[:, None, :, None])
    score_BHGWS = jnp.where(seen_BHWS[:, :, None], score_BHGWS, -1e30)
    weight_BHGWS = jnp.where(seen_BHWS[:, :, None], jax.nn.softmax(score_BHGWS, axis=-1), 0.0)
    return weight_BHGWS.sum(3)
