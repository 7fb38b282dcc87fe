"""Products of decays within a chunk by halves, as memories/gated_linear/README.md has them, and their adjoint.

A chunk is [C, D] in registers, C a power of two from 8 on, D one number a token or one a key channel. For neighbouring
blocks of 1, 2, 4 … tokens, `before` is what is left of a memory when a token reads that it had before the token's
block, and `after` what is left at the block's end of what the token wrote. All are products of decays, never above one:
no quotient, no logarithm, exact where a decay is zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.tiles import SUBLANES

Shares = tuple[jax.Array, jax.Array]  # before, after


def blocks(chunk: int) -> list[int]:
  """Sizes of the blocks that are joined in pairs: 1, 2, 4 … half the chunk."""
  return [1 << level for level in range(chunk.bit_length() - 1)]


def across(block: int, shape: tuple[int, int]) -> jax.Array:
  """bool: of two neighbouring blocks, is the token of a row in the second and that of a column in the first?

  Rows may be those of several chunks one after another.
  """
  chunk = shape[1]
  row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) & (chunk - 1)
  column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  # the highest bit in which two numbers differ is the size of the blocks that part them
  apart = row ^ column
  return (row > column) & (apart >= block) & (apart < 2 * block)


def join(before: jax.Array, after: jax.Array, block: int) -> Shares:
  """Shares of blocks of twice the size."""
  is_second = _is_second(before.shape, block)
  return (
    jnp.where(is_second, before * _spread(before, block, block - 1), before),
    jnp.where(is_second, after, after * _spread(before, block, 2 * block - 1)))


def join_adjoint(before: jax.Array, after: jax.Array, block: int, d_before: jax.Array, d_after: jax.Array) -> Shares:
  """Cotangents of what `join` was given from those of its results."""
  is_second = _is_second(before.shape, block)
  to_first_end = _gather(jnp.where(is_second, d_before * before, 0.0), block, block - 1)
  to_second_end = _gather(jnp.where(is_second, 0.0, d_after * after), block, 2 * block - 1)
  d_before = jnp.where(is_second, d_before * _spread(before, block, block - 1), d_before)
  d_after = jnp.where(is_second, d_after, d_after * _spread(before, block, 2 * block - 1))
  return d_before + to_first_end + to_second_end, d_after


def _is_second(shape, block):
  return jax.lax.broadcasted_iota(jnp.int32, shape, 0) & block != 0


def _by_pair(x_CD, block):
  """[groups, tokens, D], where a group is a pair of blocks, or as many pairs as fill a register's sublanes."""
  width = max(2 * block, SUBLANES)
  x_GWD = x_CD.reshape(x_CD.shape[0] // width, width, x_CD.shape[1])
  return x_GWD, jax.lax.broadcasted_iota(jnp.int32, x_GWD.shape, 1), range(0, width, 2 * block)


def _spread(x_CD, block, place):
  """In all tokens of a pair of blocks the number of its token `place`."""
  x_GWD, token_GWD, begins = _by_pair(x_CD, block)
  spread_GWD = jnp.broadcast_to(x_GWD[:, place:place + 1], x_GWD.shape)
  for begin in begins[1:]:
    spread_GWD = jnp.where(token_GWD >= begin, x_GWD[:, begin + place:begin + place + 1], spread_GWD)
  return spread_GWD.reshape(x_CD.shape)


def _gather(x_CD, block, place):
  """The transpose of `_spread`: sums over pairs of blocks, in their token `place`."""
  x_GWD, token_GWD, begins = _by_pair(x_CD, block)
  sum_GWD = jnp.zeros_like(x_GWD)
  for begin in begins:
    is_here = (token_GWD >= begin) & (token_GWD < begin + 2 * block)
    sum_G1D = jnp.sum(jnp.where(is_here, x_GWD, 0.0), 1, keepdims=True)
    sum_GWD = jnp.where(token_GWD == begin + place, sum_G1D, sum_GWD)
  return sum_GWD.reshape(x_CD.shape)
