"""Fewer slots that answer given queries as many do, in closed form: attention matching."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.documents import keep_only

_MOST = 7.0  # by how many powers of e a weight may grow or shrink in a fit
_STEPS = 2  # of projected gradient descent, after weights were clipped
_WEIGHT_RIDGE = 0.01  # beside the mean square of the attention that weights are fitted to
_LEAST_RIDGE = 1e-9  # decides where there is no query


@flax.struct.dataclass
class Slots:
  """Keys and values that count as often as their weight says; float32, all zeros in a slot that is not used.

  key_BHMK, value_BHMV. weight_BHM: e^β, where β is added to a slot's scores; 1 of a token.
  """

  key_BHMK: jax.Array
  value_BHMV: jax.Array
  weight_BHM: jax.Array


def attend_slots(q_BHRK: jax.Array, slots: Slots) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(weights [B, H, R, M], output [B, H, R, V], log-sum-exp [B, H, R]) of queries that are scaled already.

  Zeros and MASKED where no slot is used.
  """
  is_used_BHM = slots.weight_BHM > 0
  score_BHRM = _sum("BHRK,BHMK->BHRM", q_BHRK, slots.key_BHMK)
  score_BHRM += jnp.log(jnp.where(is_used_BHM, slots.weight_BHM, 1))[:, :, None]
  score_BHRM = jnp.where(is_used_BHM[:, :, None], score_BHRM, MASKED)
  lse_BHR = jax.nn.logsumexp(score_BHRM, axis=-1)
  weight_BHRM = jnp.where(is_used_BHM[:, :, None], jnp.exp(score_BHRM - lse_BHR[..., None]), 0)
  has_BH1 = is_used_BHM.any(-1, keepdims=True)
  out_BHRV = _sum("BHRM,BHMV->BHRV", weight_BHRM, slots.value_BHMV)
  return weight_BHRM, out_BHRV, jnp.where(has_BH1, lse_BHR, MASKED)


def compact(slots: Slots, q_BHRK: jax.Array, is_query_BHR: jax.Array, num: int, *, ridge: float) -> Slots:
  """`num` slots in the place of all: those with the highest attention, reweighted, with other values.

  Weights are the least squares for the sum of e^score of all slots, clipped to stay positive; values are those for the
  output, given these weights. Both are relative to what each query sees, and are drawn a little towards what stood
  there before. Slots that are no more than `num` stay as they are, to the last bit.

  Args:
    q_BHRK: reference queries, scaled already. is_query_BHR: the others count for nothing.
    ridge: how much values are drawn towards their old ones, beside the mean square of a slot's attention.
  """
  slots = keep_only(slots.weight_BHM > 0, slots)
  weight_BHRM, out_BHRV, _ = attend_slots(q_BHRK, slots)
  weight_BHRM, out_BHRV = (jnp.where(is_query_BHR[..., None], x, 0) for x in (weight_BHRM, out_BHRV))
  chosen_BHN = _highest(slots.weight_BHM > 0, (weight_BHRM**2).sum(2), num)
  kept = jax.tree.map(lambda x: _take(x, chosen_BHN), slots)
  own_BHRN = jnp.take_along_axis(weight_BHRM, chosen_BHN[:, :, None], 3)
  growth_BHN = _fit_growth(own_BHRN, is_query_BHR, slots.weight_BHM.sum(-1), kept.weight_BHM.sum(-1))
  share_BHRN = own_BHRN * growth_BHN[:, :, None]
  total_BHR1 = share_BHRN.sum(-1, keepdims=True)
  share_BHRN = share_BHRN / jnp.where(total_BHR1 > 0, total_BHR1, 1)
  missing_BHRV = out_BHRV - _sum("BHRN,BHNV->BHRV", share_BHRN, kept.value_BHMV)
  gram_BHNN = _gram(share_BHRN)
  change_BHNV = jnp.linalg.solve(
    gram_BHNN + _diagonal(ridge, gram_BHNN), _sum("BHRN,BHRV->BHNV", share_BHRN, missing_BHRV))
  fitted = kept.replace(
    value_BHMV=jnp.where(kept.weight_BHM[..., None] > 0, kept.value_BHMV + change_BHNV, 0),
    weight_BHM=kept.weight_BHM * growth_BHN)
  is_all_BH = (slots.weight_BHM > 0).sum(-1) <= num
  return jax.tree.map(
    lambda new, old: jnp.where(is_all_BH.reshape(*is_all_BH.shape, *(1,) * (old.ndim - 2)), old, new), fitted, kept)


def _fit_growth(
  own_BHRN: jax.Array, is_query_BHR: jax.Array, before_BH: jax.Array, kept_BH: jax.Array) -> jax.Array:
  """By what the weight of each kept slot is multiplied. own_BHRN: its attention among all slots.

  Without anything to fit, all grow alike and keep the sum of weights.
  """
  prior_BH1 = (before_BH / jnp.where(kept_BH > 0, kept_BH, 1))[..., None]
  gram_BHNN = _gram(own_BHRN)
  ridge_BHNN = _diagonal(_WEIGHT_RIDGE, gram_BHNN)
  target_BHN = _sum("BHRN,BHR->BHN", own_BHRN, is_query_BHR.astype(jnp.float32))
  target_BHN += ridge_BHNN.sum(-1) * prior_BH1
  matrix_BHNN = gram_BHNN + ridge_BHNN

  def clip(growth_BHN: jax.Array) -> jax.Array:
    return jnp.clip(growth_BHN, math.exp(-_MOST), math.exp(_MOST))

  growth_BHN = clip(jnp.linalg.solve(matrix_BHNN, target_BHN[..., None])[..., 0])
  # no eigenvalue of a matrix without negative entries is above its largest row sum
  step_BH1 = 1 / matrix_BHNN.sum(-1).max(-1, keepdims=True)
  for _ in range(_STEPS):
    growth_BHN = clip(growth_BHN - step_BH1 * (_sum("BHMN,BHN->BHM", matrix_BHNN, growth_BHN) - target_BHN))
  return growth_BHN


def _highest(is_used_BHM: jax.Array, score_BHM: jax.Array, num: int) -> jax.Array:
  """Indices of the used slots with the highest scores, in their order; unused ones come last, where some are needed."""
  count = score_BHM.shape[-1]
  chosen_BHN = jax.lax.top_k(jnp.where(is_used_BHM, score_BHM, -1), num)[1]
  is_used_BHN = jnp.take_along_axis(is_used_BHM, chosen_BHN, 2)
  return jnp.sort(jnp.where(is_used_BHN, chosen_BHN, chosen_BHN + count), axis=-1) % count


def _gram(x_BHRN: jax.Array) -> jax.Array:
  return _sum("BHRM,BHRN->BHMN", x_BHRN, x_BHRN)


def _diagonal(ridge: float, gram_BHNN: jax.Array) -> jax.Array:
  mean_BH11 = jnp.trace(gram_BHNN, axis1=-2, axis2=-1)[..., None, None] / gram_BHNN.shape[-1]
  return (ridge * mean_BH11 + _LEAST_RIDGE) * jnp.eye(gram_BHNN.shape[-1])


def _take(x_BHM: jax.Array, index_BHN: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BHM, index_BHN.reshape(*index_BHN.shape, *(1,) * (x_BHM.ndim - 3)), axis=2)


def _sum(subscripts: str, *arrays: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, *arrays, precision="highest")
