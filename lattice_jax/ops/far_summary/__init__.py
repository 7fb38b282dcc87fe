"""Summaries of fixed size for tokens that have left a window: what is far, as a fold and as a branch of attention.

A rule is a frozen dataclass. It starts from zeros, takes every token once when it leaves, in calls of any size, and is
read like any other set of keys: output and log-sum-exp, which merge with those of the window.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.ops.attention import MASKED, merge
from lattice_jax.ops.attention.fold import Fold
from lattice_jax.ops.far_summary.features import FeatureMap, FeatureMaps, Features
from lattice_jax.ops.far_summary.matching import Matching
from lattice_jax.ops.far_summary.moments import Mean, Moments

__all__ = [
  "FarSummary", "FeatureMap", "FeatureMaps", "Features", "Matching", "Mean", "Moments", "join", "summary_bytes"]


@runtime_checkable
class FarSummary(Fold, Protocol):
  """A fold whose summaries can be merged and read. A summary of all zeros is that of no tokens."""

  def merge(self, earlier: Any, later: Any) -> Any:
    """The summary of both, which hold different tokens of one document."""

  def read(self, q: jax.Array, summary: Any) -> tuple[jax.Array, jax.Array]:
    """Output [B, T, Q, V] and log-sum-exp [B, T, Q], float32; 0 and `attention.MASKED` where nothing is far."""


def join(
  near_out: Float[Array, "*q V"], near_lse: Float[Array, "*q"], far_out: Float[Array, "*q V"],
  far_lse: Float[Array, "*q"], *, most_share: float = 1.0,
) -> tuple[Float[Array, "*q V"], Float[Array, "*q"]]:
  """Attention to what is near and to what is far, of which the far part has at most `most_share` of the weight.

  With 1 this is `attention.merge`. A bound keeps a summary that overestimates from hiding the window; it is no bound
  for queries that see nothing near.

  Raises:
    ValueError: most_share is not above 0 and at most 1.
  """
  if not 0 < most_share <= 1:
    raise ValueError(f"most_share={most_share} must be above 0 and at most 1, which is no bound.")
  if most_share < 1:
    most_lse = near_lse + math.log(most_share / (1 - most_share))
    far_lse = jnp.where(near_lse > MASKED / 2, jnp.minimum(far_lse, most_lse), far_lse)
  return merge(near_out, near_lse, far_out, far_lse)


def summary_bytes(rule: Fold, heads: int, key_dim: int, value_dim: int) -> int:
  """Bytes of the summary of one row and layer: of every array, whatever is in use."""
  summary = jax.eval_shape(lambda: rule.init_summary(1, heads, key_dim, value_dim))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(summary))
