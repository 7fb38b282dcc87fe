"""Summaries of what has left the windows, by the names that `model.local.far` takes."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.local.config import FAR
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.local import FarSummary


@flax.struct.dataclass
class Mean:
  """count_BH: tokens. key_BHK, value_BHV: their means. float32."""

  count_BH: jax.Array
  key_BHK: jax.Array
  value_BHV: jax.Array


@dataclass(frozen=True)
class RunningMean:
  """N tokens as one with their mean key and value, which weighs N times as much."""

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> Mean:
    rows = batch, heads
    return Mean(jnp.zeros(rows), jnp.zeros((*rows, key_dim)), jnp.zeros((*rows, value_dim)))

  def add(self, summary: Mean, evicted: Evicted) -> Mean:
    leaves_BHS1 = evicted.leaves_BHS[..., None]
    count_BH = summary.count_BH + evicted.leaves_BHS.sum(-1)
    share_BH1 = 1 / _or_one(count_BH)[..., None]

    def moved(mean_BHK: jax.Array, token_BHSK: jax.Array) -> jax.Array:
      apart_BHSK = token_BHSK.astype(jnp.float32) - mean_BHK[:, :, None]
      return mean_BHK + share_BH1 * jnp.where(leaves_BHS1, apart_BHSK, 0).sum(2)

    return Mean(count_BH, moved(summary.key_BHK, evicted.key_BHSK), moved(summary.value_BHV, evicted.value_BHSV))

  def read(self, q_BTQK: jax.Array, summary: Mean) -> tuple[jax.Array, jax.Array]:
    group = q_BTQK.shape[2] // summary.count_BH.shape[1]
    count_BQ, key_BQK, value_BQV = (jnp.repeat(x, group, axis=1) for x in vars(summary).values())
    u_BTQK = q_BTQK.astype(jnp.float32) * q_BTQK.shape[-1] ** -0.5
    score_BTQ = jnp.einsum("BTQK,BQK->BTQ", u_BTQK, key_BQK, precision="highest")
    is_any_B1Q = (count_BQ > 0)[:, None]
    lse_BTQ = jnp.where(is_any_B1Q, score_BTQ + jnp.log(_or_one(count_BQ))[:, None], -jnp.inf)
    return jnp.broadcast_to(value_BQV[:, None], (*score_BTQ.shape, value_BQV.shape[-1])), lse_BTQ


def _or_one(count_BH: jax.Array) -> jax.Array:
  """The count, whose gradient is its own also at 1; 1 where it is 0."""
  return jnp.where(count_BH > 0, count_BH, 1)


_FOLDS: dict[str, FarSummary | None] = dict(zip(FAR, (None, RunningMean()), strict=True))


def find_fold(name: str) -> FarSummary | None:
  """The summary that `model.local.far` names; None for "none"."""
  return _FOLDS[name]
