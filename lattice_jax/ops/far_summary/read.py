"""Attention to a summary: to blocks with moments, to slots with weights, and to sums over features."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.far_summary.blocks import Blocks
from lattice_jax.ops.far_summary.compact import Slots, attend_slots


def read_blocks(
  q_BTQK: jax.Array, summary: Blocks, *, curvature: float = 1.0, most: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q] of attention to Gaussian blocks; to their means without a variance.

  curvature: share of half the variance of a block's scores that is added to them, cut to `most`.
  """
  u_BTHGK = by_head(q_BTQK, summary.count_BHJ.shape[1])
  score_BTHGJ = _sum("BTHGK,BHJK->BTHGJ", u_BTHGK, summary.key_BHJK)
  curve_BTHGJ = None
  if summary.variance_BHJK is not None:
    curve_BTHGJ = 0.5 * curvature * _sum("BTHGK,BHJK->BTHGJ", u_BTHGK**2, summary.variance_BHJK)
    score_BTHGJ += jnp.minimum(curve_BTHGJ, most)
  has_BHJ = summary.count_BHJ > 0
  score_BTHGJ += jnp.log(jnp.where(has_BHJ, summary.count_BHJ, 1))[:, None, :, None]
  score_BTHGJ = jnp.where(has_BHJ[:, None, :, None], score_BTHGJ, MASKED)
  lse_BTHG = jax.nn.logsumexp(score_BTHGJ, axis=-1)
  weight_BTHGJ = jnp.exp(score_BTHGJ - lse_BTHG[..., None])
  out_BTHGV = _sum("BTHGJ,BHJV->BTHGV", weight_BTHGJ, summary.value_BHJV)
  if summary.cross_BHJKV is not None:
    tilt_BTHGJ = weight_BTHGJ * _shortened(curve_BTHGJ, most)
    out_BTHGV += _sum("BTHGJK,BHJKV->BTHGV", tilt_BTHGJ[..., None] * u_BTHGK[..., None, :], summary.cross_BHJKV)
  return where_held(has_BHJ.any(2), out_BTHGV, lse_BTHG)


def read_slots(q_BTQK: jax.Array, slots: Slots) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q] of attention to weighted slots."""
  u_BHTGK = jnp.moveaxis(by_head(q_BTQK, slots.weight_BHM.shape[1]), 1, 2)
  batch, heads, length, group, key_dim = u_BHTGK.shape
  _, out_BHRV, lse_BHR = attend_slots(u_BHTGK.reshape(batch, heads, length * group, key_dim), slots)
  out_BTHGV, lse_BTHG = (
    jnp.moveaxis(x.reshape(batch, heads, length, group, *x.shape[3:]), 1, 2) for x in (out_BHRV, lse_BHR))
  return where_held((slots.weight_BHM > 0).any(2), out_BTHGV, lse_BTHG)


def read_features(
  feature_BTQR: jax.Array, value_BHRV: jax.Array, weight_BHR: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q] of attention by positive features.

  A query whose features are zeros, such as one that fills up a block, finds no token.
  """
  feature_BTHGR = by_head(feature_BTQR, weight_BHR.shape[1], scale=1.0)
  total_BTHG = _sum("BTHGR,BHR->BTHG", feature_BTHGR, weight_BHR)
  has_BTHG = total_BTHG > 0
  lse_BTHG = jnp.log(jnp.where(has_BTHG, total_BTHG, 1))
  # not divided by the total, whose square, in that gradient, may be less than the smallest float32
  share_BTHGR = feature_BTHGR * jnp.exp(-lse_BTHG)[..., None]
  return _where_found(has_BTHG, _sum("BTHGR,BHRV->BTHGV", share_BTHGR, value_BHRV), lse_BTHG)


def by_head(q_BTQK: jax.Array, heads: int, scale: float | None = None) -> jax.Array:
  """[B, T, H, G, K] in float32, times `scale`, by default K^-1/2.

  Raises ValueError if the heads cannot share the queries evenly.
  """
  batch, length, num_queries, key_dim = q_BTQK.shape
  scale = key_dim**-0.5 if scale is None else scale
  if num_queries % heads:
    raise ValueError(
      f"{num_queries} query heads cannot share the summaries of {heads} heads evenly; use a multiple of {heads}.")
  return q_BTQK.astype(jnp.float32).reshape(batch, length, heads, num_queries // heads, key_dim) * scale


def where_held(has_BH: jax.Array, out_BTHGV: jax.Array, lse_BTHG: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q], 0 and MASKED where a head has no token."""
  return _where_found(jnp.broadcast_to(has_BH[:, None, :, None], lse_BTHG.shape), out_BTHGV, lse_BTHG)


def _where_found(has_BTHG: jax.Array, out_BTHGV: jax.Array, lse_BTHG: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The same with 0 and MASKED where a query finds no token."""
  out_BTHGV = jnp.where(has_BTHG[..., None], out_BTHGV, 0)
  lse_BTHG = jnp.where(has_BTHG, lse_BTHG, MASKED)
  batch, length = lse_BTHG.shape[:2]
  return out_BTHGV.reshape(batch, length, -1, out_BTHGV.shape[-1]), lse_BTHG.reshape(batch, length, -1)


def _shortened(curve_BTHGJ: jax.Array, most: float) -> jax.Array:
  """By how much a query is shortened so that what is added to its scores is at most `most`; 1 for most queries."""
  is_cut = curve_BTHGJ > most
  return jnp.where(is_cut, math.sqrt(most) * jnp.where(is_cut, curve_BTHGJ, 1) ** -0.5, 1)


def _sum(subscripts: str, *arrays: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, *arrays, precision="highest")
