"""Older tokens as a few slots, fitted span by span to the queries that came while the span left: attention matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.fields import check_fields, positive
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import keep_only
from lattice_jax.ops.far_summary.compact import Slots, compact
from lattice_jax.ops.far_summary.read import read_slots
from lattice_jax.ops.far_summary.spans import block_of, first_span


@flax.struct.dataclass
class Matched:
  """slots: of J blocks, one block after the other. open: the tokens of the span that is not complete, as they are.

  query_BHRGK: the newest queries on record. seen_BH: int32, one more than the last position.
  """

  slots: Slots
  open: Slots
  query_BHRGK: jax.Array
  seen_BH: jax.Array


@dataclass(frozen=True)
class Matching:
  """Each span that has left whole becomes a few slots that answer the latest queries as its tokens did.

  A fold (`lattice_jax.ops.attention.fold`) that needs `Evicted.query_BHSGK`. Tokens of a span that has not left whole
  are kept as they are. Where no block is free for a span, two older ones are fitted together into as many slots as one
  has. Nothing that is kept is differentiated; queries that read are.

  Raises:
    ValueError: a field lies outside its domain, or fields contradict one another.
  """

  group: int = positive(1, "query heads that share a key")
  blocks: int = positive(6, "consecutive parts of what is far, each with slots of its own")
  slots: int = positive(16, "slots of a block")
  span: int = positive(64, "tokens that are fitted at a time")
  stride: int = positive(4, "tokens of which one leaves its queries on record")
  ridge: float = positive(0.1, "how much fitted values are drawn towards those of their tokens")

  def __post_init__(self):
    check_fields(self, "Matching.")
    if self.span % self.stride:
      raise ValueError(
        f"Matching.stride={self.stride} does not divide Matching.span={self.span}, so that spans would be fitted to "
        "other numbers of queries; use a divisor.")
    if self.slots > self.span:
      raise ValueError(
        f"Matching.slots={self.slots} are more than the {self.span} tokens of Matching.span, which they stand for; use "
        f"at most {self.span}.")

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> Matched:
    """The summary of no tokens."""

    def empty(num: int) -> Slots:
      shape = batch, heads, num
      return Slots(jnp.zeros((*shape, key_dim)), jnp.zeros((*shape, value_dim)), jnp.zeros(shape))

    return Matched(
      slots=empty(self.blocks * self.slots), open=empty(self.span),
      query_BHRGK=jnp.zeros((batch, heads, self.span // self.stride, self.group, key_dim)),
      seen_BH=jnp.zeros((batch, heads), jnp.int32))

  def add(self, summary: Matched, evicted: Evicted) -> Matched:
    """The summary with the tokens that leave, in any order; `_fill` takes nothing from others, whatever stands there.

    Raises:
      ValueError: the cache hands over no queries, or those of another number of heads.
    """
    self._check(evicted)
    summary, left = jax.lax.stop_gradient((summary, evicted))
    seen_BH = jnp.maximum(summary.seen_BH, jnp.where(left.leaves_BHS, left.position_BHS + 1, 0).max(2, initial=0))
    last_BH = seen_BH // self.span

    def close(carry: tuple[Matched, jax.Array]) -> tuple[Matched, jax.Array]:
      before, span_BH = carry
      slots = self._close(before, span_BH)
      empty = jax.tree.map(jnp.zeros_like, before.open)
      after = self._fill(before.replace(slots=slots, open=empty), left, span_BH + 1)
      is_due_BH = span_BH < last_BH
      return _select(is_due_BH, after, before), span_BH + is_due_BH

    first_BH = summary.seen_BH // self.span
    filled = self._fill(self._add_late(summary, left, first_BH), left, first_BH)
    # most calls complete no span, and then nothing is fitted
    after, _ = jax.lax.while_loop(lambda carry: (carry[1] < last_BH).any(), close, (filled, first_BH))
    return after.replace(seen_BH=seen_BH)

  def merge(self, earlier: Matched, later: Matched) -> Matched:
    """The summary of both, which hold different tokens of one document; zeros change nothing.

    Blocks that become one are fitted to the queries on record, so that the result is exact, and merging associative,
    only where they have room for all slots.
    """
    seen_BH = jnp.maximum(earlier.seen_BH, later.seen_BH)
    spans_BH1 = (seen_BH // self.span)[..., None]
    parts, targets, opened = [], [], []
    for part in (earlier, later):
      own_BH1 = (part.seen_BH // self.span)[..., None]
      is_open_BH = own_BH1[..., 0] == spans_BH1[..., 0]
      opened.append(keep_only(is_open_BH, part.open))
      parts += [part.slots, keep_only(~is_open_BH, part.open)]
      open_target_BH1 = block_of(own_BH1, spans_BH1, self.blocks)
      targets += [self._targets(own_BH1, spans_BH1), jnp.repeat(open_target_BH1, self.span, axis=2)]
    queries = jnp.concatenate([earlier.query_BHRGK, later.query_BHRGK], 2)
    slots = self._refit(parts, targets, queries)
    has_later_BHR = (later.query_BHRGK != 0).any((3, 4))
    return Matched(
      slots=slots, open=jax.tree.map(jnp.add, *opened),
      query_BHRGK=jnp.where(has_later_BHR[..., None, None], later.query_BHRGK, earlier.query_BHRGK), seen_BH=seen_BH)

  def read(
    self, q: Float[Array, "B T Q K"], summary: Matched,
  ) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
    """Attention of every query to the slots and to the open span, in the form that `ops.attention.merge` takes.

    q: Q = H·G; query head h·G + g reads the summary of head h. A query that finds no token gets 0 and MASKED.
    """
    return read_slots(q, jax.tree.map(lambda *x: jnp.concatenate(x, 2), summary.slots, summary.open))

  def _check(self, evicted: Evicted) -> None:
    if evicted.query_BHSGK is None:
      raise ValueError(
        "attention matching fits slots to queries, and this cache hands over none with the tokens that leave; use "
        "Moments, or a cache that fills Evicted.query_BHSGK.")
    if evicted.query_BHSGK.shape[3] != self.group:
      raise ValueError(
        f"Matching.group={self.group} query heads share a key, and tokens leave with the queries of "
        f"{evicted.query_BHSGK.shape[3]}; use that number.")

  def _add_late(self, before: Matched, left: Evicted, span_BH: jax.Array) -> Matched:
    """With tokens of spans that are blocks already, each fitted into its block."""
    is_late_BHS = left.leaves_BHS & (left.position_BHS < span_BH[..., None] * self.span)
    span_BH1 = span_BH[..., None]

    def refit() -> Slots:
      tokens = Slots(*(x.astype(jnp.float32) for x in (left.key_BHSK, left.value_BHSV, is_late_BHS)))
      target_BHS = block_of(left.position_BHS // self.span, span_BH1, self.blocks)
      return self._refit([before.slots, tokens], [self._targets(span_BH1, span_BH1), target_BHS], before.query_BHRGK)

    return before.replace(slots=jax.lax.cond(is_late_BHS.any(), refit, lambda: before.slots))

  def _targets(self, num_BH1: jax.Array, later_num_BH1: jax.Array) -> jax.Array:
    """Where the block of each slot among so many spans has gone once there are more, [B, H, M]."""
    block_BHJ = block_of(first_span(jnp.arange(self.blocks), num_BH1, self.blocks), later_num_BH1, self.blocks)
    return jnp.repeat(block_BHJ, self.slots, axis=2)

  def _refit(self, parts: list[Slots], targets: list[jax.Array], query_BHRGK: jax.Array) -> Slots:
    """Every block from the slots whose target it is."""
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, 2), *parts)
    target_BHN = jnp.concatenate(targets, 2)

    def of_block(block: jax.Array) -> Slots:
      weight_BHN = jnp.where(target_BHN == block, joined.weight_BHM, 0)
      return self._compact(joined.replace(weight_BHM=weight_BHN), query_BHRGK)

    blocks = jax.lax.map(of_block, jnp.arange(self.blocks))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, *x.shape[4:]), blocks)

  def _fill(self, before: Matched, left: Evicted, span_BH: jax.Array) -> Matched:
    """With the tokens of that span in their places of the open one, and the queries that go on record."""
    if not left.leaves_BHS.shape[2]:
      return before
    position_BHS = jnp.where(left.leaves_BHS, left.position_BHS, -1)
    place_BHP = span_BH[..., None] * self.span + jnp.arange(self.span)
    is_here_BHSP = position_BHS[..., None] == place_BHP[:, :, None]
    source_BHP, has_BHP = is_here_BHSP.argmax(2), is_here_BHSP.any(2)
    found = Slots(*(_take(x, source_BHP).astype(jnp.float32) for x in (left.key_BHSK, left.value_BHSV)),
                  jnp.ones_like(before.open.weight_BHM))
    query_BHRGK = _take(left.query_BHSGK, source_BHP[..., ::self.stride]).astype(jnp.float32)
    return before.replace(
      open=_select(has_BHP, found, before.open),
      query_BHRGK=_select(has_BHP[..., ::self.stride], query_BHRGK, before.query_BHRGK))

  def _close(self, before: Matched, span_BH: jax.Array) -> Slots:
    """The slots once the open span, which has that number, has become a block too."""
    num_BH1 = span_BH[..., None]
    block_J = jnp.arange(self.blocks + 1)
    new = self._compact(before.open, before.query_BHRGK)
    blocks = jax.tree.map(
      lambda old, new: jnp.concatenate([self._by_block(old), new[:, :, None]], 2), before.slots, new)
    is_new_BHJ = block_J == jnp.minimum(num_BH1, self.blocks)
    blocks = _select(is_new_BHJ, jax.tree.map(lambda x: x[:, :, None], new), blocks)
    # of blocks and the new one, two neighbours become one unless a block was free
    target_BHJ = block_of(first_span(block_J[:-1], num_BH1, self.blocks), num_BH1 + 1, self.blocks)
    target_BHJ = jnp.concatenate([target_BHJ, block_of(num_BH1, num_BH1 + 1, self.blocks)], 2)
    joined_BH1 = (target_BHJ[..., 1:] == target_BHJ[..., :-1]).argmax(2, keepdims=True)
    pair = jax.tree.map(
      lambda x: jnp.concatenate([_take(x, joined_BH1)[:, :, 0], _take(x, joined_BH1 + 1)[:, :, 0]], 2), blocks)
    fitted = jax.tree.map(lambda x: x[:, :, None], self._compact(pair, before.query_BHRGK))
    is_full_BH1 = num_BH1 >= self.blocks
    source_BHJ = block_J[:-1] + (is_full_BH1 & (block_J[:-1] > joined_BH1))
    blocks = jax.tree.map(lambda x: _take(x, source_BHJ), blocks)
    blocks = _select(is_full_BH1 & (block_J[:-1] == joined_BH1), fitted, blocks)
    return jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:]), blocks)

  def _compact(self, slots: Slots, query_BHRGK: jax.Array) -> Slots:
    """As many slots as a block has, for the queries on record; a query of zeros is none."""
    q_BHRK = query_BHRGK.reshape(*query_BHRGK.shape[:2], -1, query_BHRGK.shape[-1])
    is_query_BHR = (q_BHRK != 0).any(-1)
    return compact(slots, q_BHRK * q_BHRK.shape[-1] ** -0.5, is_query_BHR, self.slots, ridge=self.ridge)

  def _by_block(self, x_BHM: jax.Array) -> jax.Array:
    return x_BHM.reshape(*x_BHM.shape[:2], self.blocks, self.slots, *x_BHM.shape[3:])


def _select(is_chosen: jax.Array, chosen: Any, other: Any) -> Any:
  """Trees of arrays whose first axes are those of the mask."""
  return jax.tree.map(
    lambda a, b: jnp.where(is_chosen.reshape(*is_chosen.shape, *(1,) * (b.ndim - is_chosen.ndim)), a, b), chosen, other)


def _take(x_BHM: jax.Array, index_BHN: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BHM, index_BHN.reshape(*index_BHN.shape, *(1,) * (x_BHM.ndim - 3)), axis=2)
