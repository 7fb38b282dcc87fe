"""Attention of a text's queries when only sinks, a window, a summary and some picked tokens are left of it.

The text is read in calls of `CALL` tokens. Before a call is read, tokens leave the window so that it holds W tokens
with the call's; those that the picks do not keep are handed to the summary, with the queries of the call before. So a
summary is always read by queries that came after those to which it was fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.policies.lagkv import SpreadConfig, score
from lattice_jax.cache.policies.views import Partitions
from lattice_jax.inspect.local.arms import CALL, LAG, SINKS, Arm
from lattice_jax.ops.attention import Order, merge
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.attention.reference import attend_reference
from lattice_jax.ops.documents import from_chunks, to_chunks
from lattice_jax.ops.far_summary import FeatureMaps
from lattice_jax.ops.far_summary.compact import Slots
from lattice_jax.ops.far_summary.read import read_slots

EVERY = 4  # tokens of which one's output is compared
_BLOCK = 32  # of these, read at a time


@flax.struct.dataclass
class Inputs:
  """What layers gave to their attention, positions included, layers in the place of rows.

  layer_L: which layers; None where it is not known. far: the same with features as queries and keys, where a summary
  takes these; None for all others.
  """

  q_LTQK: jax.Array
  k_LTHK: jax.Array
  v_LTHV: jax.Array
  layer_L: np.ndarray | None = None
  far: Inputs | None = None


@flax.struct.dataclass
class Picks:
  """Tokens of each head that stay. position_LHP: −1 where none is. score_LHP: −inf there."""

  key_LHPK: jax.Array
  value_LHPV: jax.Array
  position_LHP: jax.Array
  score_LHP: jax.Array


@flax.struct.dataclass
class Compared:
  """Squared length per compared token, layer and query head, [N, L, Q].

  off: of the difference from full attention. off_alone: the same without the summary. whole: of full attention.
  is_kept: after each call, whether the token that was asked for is still there as it is, [N, L, H].
  """

  off: jax.Array
  off_alone: jax.Array
  whole: jax.Array
  is_kept: jax.Array


@jax.jit
def with_features(inputs: Inputs, maps: FeatureMaps) -> Inputs:
  """The inputs for a summary of features; maps: with the layers in front of every array."""

  def of_layer(maps: FeatureMaps, q_TQK: jax.Array, k_THK: jax.Array) -> tuple[jax.Array, jax.Array]:
    return maps.query(q_TQK[None])[0], maps.key(k_THK[None])[0]

  return inputs.replace(far=Inputs(*jax.vmap(of_layer)(maps, inputs.q_LTQK, inputs.k_LTHK), inputs.v_LTHV))


@jax.jit
def exact_outputs(inputs: Inputs) -> jax.Array:
  """Full attention of every `EVERY`-th token, [L, N, Q, V]."""
  layers, length = inputs.k_LTHK.shape[:2]
  keys = _order(jnp.arange(length), layers)
  asked = inputs.q_LTQK[:, EVERY - 1::EVERY], _order(jnp.arange(EVERY - 1, length, EVERY), layers)

  def one_block(x: tuple[jax.Array, Order]) -> jax.Array:
    return _attend(x[0], inputs.k_LTHK, inputs.v_LTHV, x[1], keys)[0]

  return from_chunks(jax.lax.map(one_block, to_chunks(asked, _BLOCK)), asked[0].shape[1])


def compare(arm: Arm, window: int, inputs: Inputs, exact_LNQV: jax.Array, asked: int = 0) -> Compared:
  """How far outputs are from those of full attention.

  asked: a token's position, of which is told whether it stays.
  """
  return jax.device_get(_compare(arm, window, inputs, exact_LNQV, jnp.asarray(asked)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(arm: Arm, window: int, inputs: Inputs, exact_LNQV: jax.Array, asked: jax.Array) -> Compared:
  layers, length, _, key_dim = inputs.q_LTQK.shape
  heads, value_dim = inputs.v_LTHV.shape[2:]
  score_LTH = jnp.moveaxis(spread_scores(inputs), 1, 2) if arm.picks else None
  summary = arm.rule.init_summary(layers, heads, key_dim, value_dim) if arm.rule is not None else None
  far = inputs if inputs.far is None else inputs.far

  def one_call(carry: tuple[Any, Picks], call: jax.Array) -> tuple[tuple[Any, Picks], Compared]:
    summary, picks = carry
    first = jnp.maximum(SINKS, (call + 1) * CALL - window)
    left = _leaving(far, jnp.maximum(SINKS, call * CALL - window), first, window)
    if arm.picks:
      start = jnp.maximum(first - CALL, 0)
      picks, left = _pick(picks, left, jnp.moveaxis(jax.lax.dynamic_slice_in_dim(score_LTH, start, CALL, 1), 1, 2))
    if arm.rule is not None:
      summary = arm.rule.add(summary, left)
    time_C = call * CALL + jnp.arange(EVERY - 1, CALL, EVERY)
    q_LCQK = inputs.q_LTQK[:, time_C]
    parts = [_near(inputs, q_LCQK, time_C, first, window)]
    if arm.picks:
      parts.append(read_slots(q_LCQK, Slots(
        picks.key_LHPK, picks.value_LHPV, (picks.position_LHP >= 0).astype(jnp.float32))))
    alone = functools.reduce(lambda a, b: merge(*a, *b), parts)
    out_LCQV = alone[0] if arm.rule is None else merge(
      *alone, *arm.rule.read(far.q_LTQK[:, time_C], summary))[0]
    per_call = CALL // EVERY
    want_LCQV = jax.lax.dynamic_slice_in_dim(exact_LNQV, call * per_call, per_call, 1)
    is_kept_LH = (picks.position_LHP == asked).any(-1) | (asked >= first) | (asked < SINKS)
    lengths = Compared(*(jnp.moveaxis((x**2).sum(-1), 1, 0) for x in (
      out_LCQV - want_LCQV, alone[0] - want_LCQV, want_LCQV)), is_kept_LH)
    return (summary, picks), lengths

  _, compared = jax.lax.scan(one_call, (summary, _no_picks(inputs, arm.picks)), jnp.arange(length // CALL))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), compared).replace(is_kept=compared.is_kept)


def positions(inputs: Inputs) -> np.ndarray:
  """Of the tokens that are compared, [N]."""
  return np.arange(EVERY - 1, inputs.q_LTQK.shape[1], EVERY)


def relative_errors(compared: Sequence[Compared], is_in_N: np.ndarray, *, alone: bool = False) -> np.ndarray:
  """√(Σ ‖o − ô‖² / Σ ‖o‖²) over the tokens of a range, of every query head of the layers of all parts, [L, Q].

  alone: of attention without the summary.
  """
  off_LQ, whole_LQ = (np.concatenate([np.asarray(x, np.float64)[is_in_N].sum(0) for x in parts]) for parts in (
    [part.off_alone if alone else part.off for part in compared], [part.whole for part in compared]))
  return np.sqrt(off_LQ / whole_LQ)


def spread_scores(inputs: Inputs) -> jax.Array:
  """LagKV's score of every token, [L, H, T]; 0 of the sinks, and of the last tokens, which no partition follows."""
  length = inputs.k_LTHK.shape[1]
  number = (length - SINKS) // LAG

  def cut(x_LTHK: jax.Array) -> jax.Array:
    x_LHTK = jnp.moveaxis(x_LTHK[:, SINKS:SINKS + number * LAG], 1, 2)
    return x_LHTK.reshape(*x_LHTK.shape[:2], number, LAG, -1)

  key_LHNCK = cut(inputs.k_LTHK)
  scores_LHNC = score(SpreadConfig(), Partitions(
    key_LHNCK, cut(inputs.v_LTHV), position_BHNL=jnp.zeros(key_LHNCK.shape[:4], jnp.int32), layer=jnp.zeros((), int)))
  flat_LHT = scores_LHNC.reshape(*scores_LHNC.shape[:2], -1)
  return jnp.pad(flat_LHT, ((0, 0), (0, 0), (SINKS, length - SINKS - flat_LHT.shape[2])))


def _leaving(inputs: Inputs, before: jax.Array, first: jax.Array, window: int) -> Evicted:
  """Tokens [before, first), with the queries that came `window` tokens after each of them, less a call."""
  start = jnp.maximum(first - CALL, 0)
  position_C = start + jnp.arange(CALL)

  def take(x_LTHK: jax.Array, start: jax.Array) -> jax.Array:
    return jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x_LTHK, start, CALL, 1), 1, 2)

  key_LHCK, value_LHCV = take(inputs.k_LTHK, start), take(inputs.v_LTHV, start)
  query_LQCK = take(inputs.q_LTQK, start + window - CALL)
  layers, heads = key_LHCK.shape[:2]
  query_LHGCK = query_LQCK.reshape(layers, heads, -1, *query_LQCK.shape[2:])
  shape = key_LHCK.shape[:3]
  return Evicted(
    key_BHSK=key_LHCK, value_BHSV=value_LHCV, position_BHS=jnp.broadcast_to(position_C, shape),
    leaves_BHS=jnp.broadcast_to((position_C >= before) & (position_C < first), shape),
    query_BHSGK=jnp.moveaxis(query_LHGCK, 2, 3))


def _no_picks(inputs: Inputs, number: int) -> Picks:
  layers, _, heads, key_dim = inputs.k_LTHK.shape
  shape = layers, heads, number
  return Picks(
    jnp.zeros((*shape, key_dim)), jnp.zeros((*shape, inputs.v_LTHV.shape[-1])), jnp.full(shape, -1),
    jnp.full(shape, -jnp.inf))


def _pick(picks: Picks, left: Evicted, score_LHC: jax.Array) -> tuple[Picks, Evicted]:
  """The tokens with the highest scores of those that stayed and those that leave; and the others, which leave."""
  leaving = Picks(
    left.key_BHSK, left.value_BHSV, jnp.where(left.leaves_BHS, left.position_BHS, -1),
    jnp.where(left.leaves_BHS, score_LHC, -jnp.inf))
  joined = jax.tree.map(lambda *x: jnp.concatenate(x, 2), picks, leaving)
  order_LHS = jnp.argsort(-joined.score_LHP, axis=2)

  def at(index_LHS: jax.Array) -> Picks:
    return jax.tree.map(lambda x: jnp.take_along_axis(
      x, index_LHS.reshape(*index_LHS.shape, *(1,) * (x.ndim - 3)), axis=2), joined)

  number = picks.score_LHP.shape[2]
  kept, gone = at(order_LHS[:, :, :number]), at(order_LHS[:, :, number:])
  return kept, Evicted(gone.key_LHPK, gone.value_LHPV, gone.position_LHP, gone.position_LHP >= 0)


def _near(
  inputs: Inputs, q_LCQK: jax.Array, time_C: jax.Array, first: jax.Array, window: int,
) -> tuple[jax.Array, jax.Array]:
  """Attention to the sinks and to the window, which begins at `first`."""
  keys, values = (jnp.concatenate(
    [x[:, :SINKS], jax.lax.dynamic_slice_in_dim(x, first, window, 1)], 1) for x in (inputs.k_LTHK, inputs.v_LTHV))
  place_S = jnp.concatenate([jnp.arange(SINKS), first + jnp.arange(window)])
  return _attend(q_LCQK, keys, values, _order(time_C, len(q_LCQK)), _order(place_S, len(q_LCQK)))


def _order(index_T: jax.Array, layers: int) -> Order:
  index_LT = jnp.broadcast_to(index_T, (layers, len(index_T)))
  return Order(index_LT, jnp.zeros_like(index_LT))


def _attend(q_LCQK, k_LSHK, v_LSHV, queries: Order, keys: Order) -> tuple[jax.Array, jax.Array]:
  q_LCHGK = q_LCQK.reshape(*q_LCQK.shape[:2], k_LSHK.shape[2], -1, q_LCQK.shape[-1])
  out_LCHGV, lse_LCHG = attend_reference(q_LCHGK, k_LSHK, v_LSHV, queries, keys, window=0, skip=0)
  return out_LCHGV.reshape(*q_LCQK.shape[:3], -1), lse_LCHG.reshape(q_LCQK.shape[:3])
