"""Attention of a call's tokens to one another, each head within its window and to the document's first tokens.

The two parts are disjoint, so they are computed apart and merged exactly; both visit only the blocks of keys that some
query of a block sees, so a call of T tokens costs T·(W + S).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import Order, attend, attend_itself, merge
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.local.heads import ALL, HeadGroup, take_heads

_EVERYTHING = 2**30  # a window that no document fills
_BLOCK = 64  # of keys; on a CPU 256 takes twice the time at windows of 32 to 256, for most of it is not in them


def attend_band(
  q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, index_BT: jax.Array,
  groups: tuple[HeadGroup, ...], layer: jax.Array, *, sinks: int, impl: str,
) -> list[tuple[jax.Array, jax.Array]]:
  """Output [B, T, h·G, V] and log-sum-exp [B, T, h·G] of each group's heads, float32.

  run_BT: number of the token's document, EMPTY where it is invalid. index_BT: of the token in its document.
  """
  kv_heads = k_BTHK.shape[2]
  if q_BTQK.shape[1] == 1:
    own = attend_itself(q_BTQK, k_BTHK, v_BTHV, run_BT != EMPTY)
    return [tuple(take_heads(x, group, kv_heads) for x in own) for group in groups]
  return [
    _attend_group(
      *(take_heads(x, group, kv_heads) for x in (q_BTQK, k_BTHK, v_BTHV)), run_BT, index_BT,
      group.window(layer, _EVERYTHING), sinks, impl)
    for group in groups]


def _attend_group(q_BTQK, k_BTHK, v_BTHV, run_BT, index_BT, window, sinks, impl):
  length = q_BTQK.shape[1]
  if isinstance(window, int) and window >= length:
    window = ALL
  order = Order(index_BT=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), run_BT.shape), id_BT=run_BT)
  if isinstance(window, int) and window == ALL:
    return attend(q_BTQK, k_BTHK, v_BTHV, order, order, impl=impl)
  near = attend(q_BTQK, k_BTHK, v_BTHV, order, order, window=window, block=_BLOCK, impl=impl)
  if not sinks:
    return near
  sink = order.replace(id_BT=jnp.where(index_BT < sinks, run_BT, EMPTY))
  return merge(*near, *attend(q_BTQK, k_BTHK, v_BTHV, order, sink, skip=window, block=_BLOCK, impl=impl))
