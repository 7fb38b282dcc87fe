"""LagKV's scores (arXiv 2504.04704) of tokens as they leave a window, by the partition that came after their own.

Behind the sinks a document is cut into partitions of C tokens. When the first token of a partition leaves a window of
2 C tokens or more, the window holds the whole partition and the next one: then all its tokens are scored, and the
scores are kept until the last of them has left. So they do not depend on where a text is cut into calls.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.policies.lagkv import SpreadConfig, score
from lattice_jax.cache.policies.views import Partitions
from lattice_jax.ops.documents import keep_only, pad_time

# (call's token [B, N], indices in its document [B, N, M]) → keys [B, N, M, H, K] and values of these tokens
Fetch = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class Scores:
  """score_BTH: of the token that leaves as each token of a call comes; 0 where none does.

  partition_BCH: of the partition whose tokens leave after the call; zeros before any has.
  """

  score_BTH: jax.Array
  partition_BCH: jax.Array


def score_leaving(
  fetch: Fetch, position_BT: jax.Array, leaves_BT: jax.Array, is_token_BT: jax.Array, before_BCH: jax.Array, *,
  sinks: int,
) -> Scores:
  """Scores of the tokens at those positions, which leave one after another.

  is_token_BT: tokens of the call, a prefix of each row. before_BCH: `partition_BCH` of the call before. No gradient.
  """
  lag, length = before_BCH.shape[1], position_BT.shape[1]
  before_BCH = jax.lax.stop_gradient(before_BCH)
  offset_BT = (position_BT - sinks) % lag
  # those at which a partition begins to leave are C tokens apart or more, also from one document to the next
  due_BNC = pad_time(leaves_BT & (offset_BT == 0), -length % lag).reshape(len(position_BT), -1, lag)
  due_BN, time_BN = due_BNC.any(-1), jnp.arange(due_BNC.shape[1]) * lag + due_BNC.argmax(-1)
  score_BNCH = jax.lax.cond(
    due_BN.any(), lambda: _score_partitions(fetch, position_BT, time_BN, due_BN, before_BCH),
    lambda: jnp.zeros((*due_BN.shape, *before_BCH.shape[1:]), before_BCH.dtype))
  begun_BT = jnp.arange(length) - offset_BT
  row_B1 = jnp.arange(len(position_BT))[:, None]
  own_BTH = score_BNCH[row_B1, jnp.maximum(begun_BT, 0) // lag, offset_BT]
  score_BTH = jnp.where((begun_BT < 0)[..., None], before_BCH[row_B1, offset_BT], own_BTH)
  last_B1 = is_token_BT.sum(1, keepdims=True) - 1
  begun_B1, leaves_B1 = (jnp.take_along_axis(x, jnp.maximum(last_B1, 0), 1) for x in (begun_BT, leaves_BT))
  new_BCH = score_BNCH[row_B1[:, 0], jnp.maximum(begun_B1[:, 0], 0) // lag]
  last_BCH = keep_only(leaves_B1[:, 0], jnp.where((begun_B1 < 0)[..., None], before_BCH, new_BCH))
  after_BCH = jnp.where((last_B1 < 0)[..., None], before_BCH, last_BCH)
  return Scores(keep_only(leaves_BT, score_BTH), after_BCH)


def _score_partitions(fetch, position_BT, time_BN, due_BN, before_BCH):
  """[B, N, C, H] of the partitions that begin to leave at those tokens; zeros where none does."""
  batch, num = due_BN.shape
  lag, heads = before_BCH.shape[1:]
  index_BNM = jnp.take_along_axis(position_BT, jnp.minimum(time_BN, position_BT.shape[1] - 1), 1)[..., None]
  found = jax.lax.stop_gradient(fetch(time_BN, index_BNM + jnp.arange(2 * lag)))

  def split(x_BNMHK: jax.Array) -> jax.Array:
    x_AMHK = keep_only(due_BN, x_BNMHK).astype(before_BCH.dtype).reshape(batch * num, 2, lag, *x_BNMHK.shape[3:])
    return jnp.moveaxis(x_AMHK, 3, 1)

  key_BHNLK, value_BHNLV = map(split, found)
  score_BHNL = score(SpreadConfig(), Partitions(
    key_BHNLK, value_BHNLV, position_BHNL=jnp.zeros(key_BHNLK.shape[:4], jnp.int32), layer=jnp.int32(0)))
  return keep_only(due_BN, jnp.moveaxis(score_BHNL[:, :, 0], 1, 2).reshape(batch, num, lag, heads))
