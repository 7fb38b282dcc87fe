"""Attention of a call's tokens to one another: their own segment, and the anchors and protected tokens before it.

Each part is `ops.attention.attend` over other keys, whose order and documents say what is seen; the parts are disjoint
and merged exactly. Anchors are gathered to the front, so that key blocks without an anchor cost nothing: a call costs
its tokens times the length of a segment, and times the anchors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.places import ALL_LEVELS, Places, level
from lattice_jax.ops.attention import Order, attend, attend_itself, merge
from lattice_jax.ops.documents import EMPTY


def attend_call(
  config: AnchorConfig, q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, places: Places, *, levels: int,
  impl: str,
) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q], float32. levels: of anchors that a document may have."""
  if q_BTQK.shape[1] == 1:
    return attend_itself(q_BTQK, k_BTHK, v_BTHV, places.segment_BT != EMPTY)
  own = segment_order(places)
  read = attend(q_BTQK, k_BTHK, v_BTHV, own, own, window=config.max_segment, impl=impl)
  return attend_closed(config, q_BTQK, k_BTHK, v_BTHV, places, read, levels=levels, impl=impl)


def segment_order(places: Places) -> Order:
  """Every token in its own segment."""
  return _order(_times(places), places.segment_BT)


def attend_closed(
  config: AnchorConfig, q_BTQK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, places: Places,
  read: tuple[jax.Array, jax.Array], *, levels: int, impl: str, query_T: jax.Array | None = None,
  key_BS: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`read` merged with attention to what closed segments leave: the anchors and protected tokens among the keys.

  query_T, key_BS: places of queries and keys in the call, and EMPTY for none; None where they are all of its tokens.
  """
  of = _Tokens(query_T, key_BS)
  if config.protected:
    read = merge(*read, *_attend_protected(q_BTQK, k_BSHK, v_BSHV, places, of, impl))
  # BOS tokens are anchors like others where all are seen
  is_apart = config.keep_bos and (config.reach or config.fanout)
  if is_apart:
    read = merge(*read, *_attend_first(q_BTQK, k_BSHK, v_BSHV, places, of, impl))
  return _attend_anchors(config, q_BTQK, k_BSHK, v_BSHV, places, of, is_apart, levels, read, impl)


@dataclass(frozen=True)
class _Tokens:
  """Which of the call's tokens are queries and keys, as `attend_closed` is given them."""

  query_T: jax.Array | None
  key_BS: jax.Array | None

  def queries(self, order: Order) -> Order:
    return order if self.query_T is None else jax.tree.map(lambda x_BT: x_BT[:, self.query_T], order)

  def keys(self, x_BT: jax.Array, none: int = EMPTY) -> jax.Array:
    if self.key_BS is None:
      return x_BT
    return jnp.where(self.key_BS == EMPTY, none, _take(x_BT, jnp.maximum(self.key_BS, 0)))

  def key_order(self, order: Order) -> Order:
    return jax.tree.map(self.keys, order)


def _attend_anchors(config, q_BTQK, k_BSHK, v_BSHV, places, of, without_bos, levels, read, impl):
  """`read` merged with attention to the anchors of earlier segments, level by level."""
  is_key_BT = places.is_anchor_BT & ~places.is_bos_BT if without_bos else places.is_anchor_BT
  level_BT = jnp.minimum(level(config, places.number_BT), levels - 1)
  # each level's anchors lie together, in their order
  by_level_BS = jnp.argsort(of.keys(jnp.where(is_key_BT, level_BT, levels), levels), axis=1, stable=True)
  take = functools.partial(_take, index_BT=by_level_BS)
  k_BSHK, v_BSHV = take(k_BSHK), take(v_BSHV)
  running_BT = _count_before(places.is_anchor_BT)
  key_index_BS = take(of.keys(running_BT))

  def one_level(read, xs):
    n, group_BT = xs
    sees_BT = (places.below_BT > n) & (places.segment_BT != EMPTY)
    query = of.queries(_order(running_BT - 1, jnp.where(sees_BT, group_BT, EMPTY)))
    key = _order(key_index_BS, take(of.keys(jnp.where(is_key_BT & (level_BT == n), group_BT, EMPTY))))
    return merge(*read, *attend(q_BTQK, k_BSHK, v_BSHV, query, key, window=config.reach, impl=impl)), None

  if levels == 1:
    return one_level(read, (0, places.arriving.run_BT))[0]
  # a loop, so that there is one program for all levels; what one of them needs to go back is computed again
  xs = jnp.arange(levels), _groups(config, places, levels)
  return jax.lax.scan(jax.checkpoint(one_level), read, xs)[0]


def _groups(config: AnchorConfig, places: Places, levels: int) -> jax.Array:
  """[L, B, T]: a number for each group of a level's anchors that one of the next will stand for, growing along a row.

  It counts the documents and the anchors of higher levels before a token's segment; above the last level there is none.
  """
  size_L11 = config.fanout ** jnp.arange(1, levels)[:, None, None]
  is_higher_LBT = places.is_anchor_BT & ~places.is_bos_BT & (places.number_BT % size_L11 == 0)
  num_higher_LBT = jnp.cumsum(is_higher_LBT, axis=2, dtype=jnp.int32) - is_higher_LBT
  return places.arriving.run_BT + jnp.pad(num_higher_LBT, ((0, 1), (0, 0), (0, 0)))


def _attend_first(q_BTQK, k_BSHK, v_BSHV, places, of, impl):
  """Attention to the first token of the document, where it stays in sight beyond all bounds."""
  run_BT, time_BT = places.arriving.run_BT, _times(places)
  query = _order(time_BT, jnp.where(places.below_BT == ALL_LEVELS, run_BT, EMPTY))
  key = _order(time_BT, jnp.where(places.is_bos_BT, run_BT, EMPTY))
  return attend(q_BTQK, k_BSHK, v_BSHV, of.queries(query), of.key_order(key), skip=1, impl=impl)


def _attend_protected(q_BTQK, k_BSHK, v_BSHV, places, of, impl):
  """Attention to the protected tokens of earlier segments."""
  run_BT = places.arriving.run_BT
  query = _order(places.segment_BT - 1, jnp.where(places.below_BT == ALL_LEVELS, run_BT, EMPTY))
  key = _order(places.segment_BT, jnp.where(places.is_protected_BT, run_BT, EMPTY))
  return attend(q_BTQK, k_BSHK, v_BSHV, of.queries(query), of.key_order(key), impl=impl)


def _order(index_BT: jax.Array, id_BT: jax.Array) -> Order:
  return Order(index_BT=index_BT, id_BT=id_BT)


def _times(places: Places) -> jax.Array:
  shape = places.segment_BT.shape
  return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


def _count_before(is_BT: jax.Array) -> jax.Array:
  return jnp.cumsum(is_BT, axis=1, dtype=jnp.int32) - is_BT


def _take(x_BT: jax.Array, index_BT: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BT, index_BT.reshape(*index_BT.shape, *(1,) * (x_BT.ndim - 2)), axis=1)
