"""SnapKV's score (arXiv 2404.14469) in LagKV's frame: attention of the last queries, summed over neighbouring slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord, Records
from lattice_jax.fields import positive

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import WholeCache


@dataclass(frozen=True)
class SnapKVConfig:
  """Who observes, and how widely."""

  observe: int = positive(32, "last queries, whose attention is the score")
  pool: int = positive(7, "neighbouring slots that share a score; odd")


def score(own: SnapKVConfig, cache: WholeCache) -> jax.Array:
  import jax

  weight_BHS = cache.attention_of_last(own.observe).sum(2)
  half = own.pool // 2
  return jax.lax.reduce_window(
    weight_BHS, 0.0, jax.lax.add, (1, 1, own.pool), (1, 1, 1), ((0, 0), (0, 0), (half, half)))


def check(own: SnapKVConfig) -> None:
  if own.pool % 2 == 0:
    raise ValueError(f"model.cache.snapkv.pool={own.pool} must be odd, so that a slot is in the middle; "
                     f"use {own.pool + 1}, or 1 for no pooling.")


POLICY = PolicyRecord(
  doc="the policy \"snapkv\"", chooses="all", score=score, section=SnapKVConfig, check=check,
  records=lambda own: Records(queries=own.observe))
