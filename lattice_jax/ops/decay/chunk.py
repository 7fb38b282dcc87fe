"""A chunk of tokens in matrix products: what a decaying memory gives to every token, and what it is afterwards.

What is left of a token's write after another is a product of the decays between them, made as a product: a quotient of
cumulative products has no value where a decay is zero, and overflows long before. Pairs of tokens are taken by halves:
for two neighbouring blocks, the product from a token of the first to one of the second is cut at the border between
them, so that products from and to borders are enough, 2 K numbers a token for blocks of each size. A chunk whose length
is no power of two is filled up with tokens that do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.ops.products import inner, scaled
from lattice_jax.ops.triangular import filled_size


class CumulativeDecay(NamedTuple):
  """Shares that are left; the last axis is that of the decays, K or 1.

  before_BHCK: when a token reads, of the memory before the chunk. after_BHCK: at the end of the chunk, of what a token
  wrote. levels: the same of neighbouring blocks of 1, 2, 4 … tokens, each [B, H, pairs, tokens of a block, K]: when a
  token of the second block reads, of the memory before that block; at the end of the first, of what its token wrote.
  start: None where documents begin with an empty memory.
  """

  before_BHCK: jax.Array
  after_BHCK: jax.Array
  levels: tuple[tuple[jax.Array, jax.Array], ...]
  start: StartShare | None = None


class StartShare(NamedTuple):
  """The memory with which documents begin, and its share that is left when a token of one that began here reads."""

  memory_HKV: jax.Array
  since_BHCK: jax.Array


def cumulate(decay_BHCK: jax.Array, beginning: tuple[jax.Array, jax.Array] | None = None) -> CumulativeDecay:
  """Shares from the decays of the tokens of a chunk; a token decays the memory, then writes.

  beginning: first_BHCK, the decays of the first tokens of documents, which are zero in `decay` as those of all others
    are here, and the memory with which documents begin, [H, K, V].
  """
  size = decay_BHCK.shape[2]
  before = _fill(decay_BHCK, 1)
  after, levels, block = jnp.ones_like(before), [], 1
  while block < before.shape[2]:
    (first_before, second_before), (first_after, second_after) = _pairs(before, block), _pairs(after, block)
    levels.append((second_before, first_after))
    before = _join(first_before, first_before[..., -1:, :] * second_before)
    after = _join(first_after * second_before[..., -1:, :], second_after)
    block *= 2
  decay = CumulativeDecay(before[:, :, :size], after[:, :, :size], tuple(levels))
  if beginning is None:
    return decay
  first_BHCK, start_HKV = beginning
  # what is left of a start is what is left of a write of the first token's decay
  one_BHC1 = jnp.ones_like(first_BHCK[..., :1])
  return decay._replace(start=StartShare(start_HKV, mix(one_BHC1, one_BHC1, first_BHCK, decay)))


def pair_scores(q_BHCK: jax.Array, k_BHSK: jax.Array, decay: CumulativeDecay) -> jax.Array:
  """[B, H, C, S]: products of a token's query with what is left of the key of a token of the same chunk."""
  size = q_BHCK.shape[2]
  if decay.before_BHCK.shape[-1] == 1:
    score_BHCS = jnp.einsum("BHCK,BHSK->BHCS", q_BHCK, k_BHSK, precision="highest")
    between = _assemble(
      jnp.ones_like(_fill(decay.before_BHCK, 1)[..., 0]),
      (before * jnp.swapaxes(after, 3, 4) for before, after in decay.levels))
    return score_BHCS * between[:, :, :size, :size]
  q, k = _fill(q_BHCK, 0), _fill(k_BHSK, 0)

  def across(before: jax.Array, after: jax.Array) -> jax.Array:
    block = before.shape[3]
    q_BHPCK, k_BHPSK = _pairs(q, block)[1] * before, _pairs(k, block)[0] * after
    return jnp.einsum("BHPCK,BHPSK->BHPCS", q_BHPCK, k_BHPSK, precision="highest")

  return _assemble(inner(q, k), (across(*level) for level in decay.levels))[:, :, :size, :size]


def mix(q_BHCK: jax.Array, k_BHCK: jax.Array, v_BHCM: jax.Array, decay: CumulativeDecay) -> jax.Array:
  """[B, H, C, M]: Σ over s ≤ c of (q_c · k_s) times what is left of v_s, whose channels decay, at token c."""
  size = q_BHCK.shape[2]
  q, k, v = _fill(q_BHCK, 0), _fill(k_BHCK, 0), _fill(v_BHCM, 0)
  total = scaled(v, inner(q, k))
  for before, after in decay.levels:
    block = before.shape[3]
    pair_BHPCS = jnp.einsum("BHPCK,BHPSK->BHPCS", _pairs(q, block)[1], _pairs(k, block)[0], precision="highest")
    left_BHPSM = _pairs(v, block)[0] * after
    first, second = _pairs(total, block)
    second += before * jnp.einsum("BHPCS,BHPSM->BHPCM", pair_BHPCS, left_BHPSM, precision="highest")
    total = _join(first, second)
  return total[:, :, :size]


def read_before(q_BHCK: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array) -> jax.Array:
  """[B, H, C, V]: what queries read of what is left of the memory before the chunk, or of a document's start in it."""
  out_BHCV = jnp.einsum("BHCK,BHKV->BHCV", q_BHCK * decay.before_BHCK, memory_BHKV, precision="highest")
  if decay.start is None:
    return out_BHCV
  q_BHCK = q_BHCK * decay.start.since_BHCK
  return out_BHCV + jnp.einsum("BHCK,HKV->BHCV", q_BHCK, decay.start.memory_HKV, precision="highest")


def read(
  q_BHCK: jax.Array, k_BHCK: jax.Array, v_BHCV: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array
) -> jax.Array:
  """Outputs [B, H, C, V]; every token reads after its own write."""
  score_BHCS = pair_scores(q_BHCK, k_BHCK, decay)
  return read_before(q_BHCK, decay, memory_BHKV) + jnp.einsum(
    "BHCS,BHSV->BHCV", score_BHCS, v_BHCV, precision="highest")


def write(k_BHCK: jax.Array, v_BHCV: jax.Array, decay: CumulativeDecay, memory_BHKV: jax.Array) -> jax.Array:
  """The memory after the chunk."""
  written_BHKV = jnp.einsum("BHCK,BHCV->BHKV", k_BHCK * decay.after_BHCK, v_BHCV, precision="highest")
  if decay.start is not None:
    written_BHKV += decay.start.since_BHCK[:, :, -1, :, None] * decay.start.memory_HKV
  return decay.before_BHCK[:, :, -1, :, None] * memory_BHKV + written_BHKV


def _fill(x_BHCK: jax.Array, neutral: float) -> jax.Array:
  missing = filled_size(x_BHCK.shape[2]) - x_BHCK.shape[2]
  return jnp.pad(x_BHCK, ((0, 0), (0, 0), (0, missing), (0, 0)), constant_values=neutral) if missing else x_BHCK


def _pairs(x_BHCK: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
  """The first and the second of every two blocks, each [B, H, P, block, K]."""
  batch, heads, _, width = x_BHCK.shape
  x_BHP2CK = x_BHCK.reshape(batch, heads, -1, 2, block, width)
  return x_BHP2CK[:, :, :, 0], x_BHP2CK[:, :, :, 1]


def _join(first_BHPCK: jax.Array, second_BHPCK: jax.Array) -> jax.Array:
  """Undoes `_pairs`."""
  batch, heads, _, _, width = first_BHPCK.shape
  return jnp.stack([first_BHPCK, second_BHPCK], 3).reshape(batch, heads, -1, width)


def _assemble(own: jax.Array, across: Iterable[jax.Array]) -> jax.Array:
  """[B, H, C, S], zero for s > c, from [B, H, C] of a token with itself and [B, H, P, block, block] of a token of the
  second of two blocks with one of the first, for blocks of 1, 2, 4 … tokens."""
  table = own[:, :, :, None, None]
  for lower_left in across:
    first, second = table[:, :, ::2], table[:, :, 1::2]
    upper = jnp.concatenate([first, jnp.zeros_like(first)], 4)
    table = jnp.concatenate([upper, jnp.concatenate([lower_left, second], 4)], 3)
  return table[:, :, 0]
