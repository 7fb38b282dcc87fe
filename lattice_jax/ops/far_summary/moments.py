"""Older tokens as a few virtual tokens: the running mean of a block, or its first two moments."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.fields import at_least, check_fields, positive, switch, within
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import keep_only
from lattice_jax.ops.far_summary.blocks import Blocks, Tokens, regroup
from lattice_jax.ops.far_summary.read import read_blocks
from lattice_jax.ops.far_summary.spans import block_of, first_span


@dataclass(frozen=True)
class Mean:
  """Each block of older tokens is one token, its mean key and mean value, that counts as often as it has tokens.

  A fold (`lattice_jax.ops.attention.fold`) of all zeros before its first token.

  Raises:
    ValueError: a field lies outside its domain.
  """

  blocks: int = positive(1, "consecutive parts of what is far, each with moments of its own")
  span: int = positive(64, "tokens of the shortest block")

  def __post_init__(self):
    check_fields(self, f"{type(self).__name__}.")

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> Blocks:
    """The summary of no tokens."""
    shape = batch, heads, self.blocks
    return Blocks(
      count_BHJ=jnp.zeros(shape), key_BHJK=jnp.zeros((*shape, key_dim)), value_BHJV=jnp.zeros((*shape, value_dim)),
      seen_BH=jnp.zeros(shape[:2], jnp.int32))

  def add(self, summary: Blocks, evicted: Evicted) -> Blocks:
    """The summary with the tokens that leave, in any order; what stands at others is replaced by zeros at the door."""
    leaves_BHS = evicted.leaves_BHS
    key_BHSK, value_BHSV, position_BHS = keep_only(
      leaves_BHS, (evicted.key_BHSK, evicted.value_BHSV, evicted.position_BHS))
    seen_BH = jnp.maximum(summary.seen_BH, jnp.where(leaves_BHS, position_BHS + 1, 0).max(2, initial=0))
    tokens = Tokens(key_BHSK.astype(jnp.float32), value_BHSV.astype(jnp.float32), leaves_BHS)
    token_target_BHS = block_of(position_BHS // self.span, self._spans(seen_BH)[..., None], self.blocks)
    return regroup(
      summary.replace(seen_BH=seen_BH), self._targets(summary.seen_BH, seen_BH), tokens, token_target_BHS, self.blocks)

  def merge(self, earlier: Blocks, later: Blocks) -> Blocks:
    """The summary of both, which hold different tokens of one document; associative, and zeros change nothing."""
    seen_BH = jnp.maximum(earlier.seen_BH, later.seen_BH)
    target_BHP = jnp.concatenate([self._targets(part.seen_BH, seen_BH) for part in (earlier, later)], 2)
    both = jax.tree.map(
      lambda a, b: jnp.concatenate([a, b], 2), earlier.replace(seen_BH=None), later.replace(seen_BH=None))
    none_BHS = jnp.zeros((*seen_BH.shape, 0))
    nothing = Tokens(*(jnp.zeros((*none_BHS.shape, x.shape[-1])) for x in (both.key_BHJK, both.value_BHJV)), none_BHS)
    return regroup(both.replace(seen_BH=seen_BH), target_BHP, nothing, none_BHS.astype(jnp.int32), self.blocks)

  def read(
    self, q: Float[Array, "B T Q K"], summary: Blocks,
  ) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
    """Attention of every query to the blocks, float32, in the form that `ops.attention.merge` takes.

    q: Q = H·G; query head h·G + g reads the summary of head h. A query that finds no token gets 0 and MASKED.
    """
    return read_blocks(q, summary)

  def _spans(self, seen_BH: jax.Array) -> jax.Array:
    return -(-seen_BH // self.span)

  def _targets(self, seen_BH: jax.Array, later_seen_BH: jax.Array) -> jax.Array:
    """Where each block after `seen_BH` positions has gone after `later_seen_BH`, [B, H, J]."""
    spans_BH1, later_spans_BH1 = self._spans(seen_BH)[..., None], self._spans(later_seen_BH)[..., None]
    return block_of(first_span(jnp.arange(self.blocks), spans_BH1, self.blocks), later_spans_BH1, self.blocks)


@dataclass(frozen=True)
class Moments(Mean):
  """Each block as if its keys and values were Gaussian: e^score and its product with values have closed forms then.

  Fields and errors as of `Mean`.
  """

  cross: bool = switch(True, "whether a query moves the value along the covariance of keys with values")
  curvature: float = within(0, 1, 1.0, "share of half the variance of a block's scores that is added to them")
  most: float = at_least(0, 4.0, "to which that is cut")

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> Blocks:
    """The summary of no tokens."""
    summary = super().init_summary(batch, heads, key_dim, value_dim)
    cross_BHJKV = jnp.zeros((*summary.key_BHJK.shape, value_dim)) if self.cross else None
    return summary.replace(variance_BHJK=jnp.zeros_like(summary.key_BHJK), cross_BHJKV=cross_BHJKV)

  def read(
    self, q: Float[Array, "B T Q K"], summary: Blocks,
  ) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
    """As `Mean.read`."""
    return read_blocks(q, summary, curvature=self.curvature, most=self.most)
