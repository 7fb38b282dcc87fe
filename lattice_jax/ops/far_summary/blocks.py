"""Moments of blocks of tokens, and the exact moments of merged blocks (Chan, Golub and LeVeque)."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Blocks:
  """Moments of the tokens of J consecutive parts of a document, float32; all zeros where there are none.

  count_BHJ: tokens. key_BHJK, value_BHJV: means. variance_BHJK: of each channel of the keys. cross_BHJKV: covariance of
  keys with values. The last two are None where the rule has none. seen_BH: int32, one more than the last position.
  """

  count_BHJ: jax.Array
  key_BHJK: jax.Array
  value_BHJV: jax.Array
  seen_BH: jax.Array
  variance_BHJK: jax.Array | None = None
  cross_BHJKV: jax.Array | None = None


@flax.struct.dataclass
class Tokens:
  """key_BHSK, value_BHSV: float32. is_added_BHS: the others count for nothing."""

  key_BHSK: jax.Array
  value_BHSV: jax.Array
  is_added_BHS: jax.Array


def regroup(
  parts: Blocks, part_target_BHP: jax.Array, tokens: Tokens, token_target_BHS: jax.Array, num_blocks: int,
) -> Blocks:
  """Moments of `num_blocks` new blocks, each of the parts and tokens whose target it is; `seen_BH` is that of `parts`.

  A token is a part of one token without variance. A block to which nothing is added stays as it is to the last bit.
  """
  target_BHM = jnp.concatenate([part_target_BHP, token_target_BHS], 2)
  count_BHM = jnp.concatenate([parts.count_BHJ, tokens.is_added_BHS.astype(jnp.float32)], 2)
  weight_BHMJ = jax.nn.one_hot(target_BHM, num_blocks) * count_BHM[..., None]
  count_BHJ = weight_BHMJ.sum(2)
  # not maximum(count, 1), which has half a gradient at 1
  share_BHMJ = weight_BHMJ / jnp.where(count_BHJ > 0, count_BHJ, 1)[:, :, None]
  group = _Group(target_BHM, share_BHMJ, part_target_BHP.shape[2])
  joined_BHMK = jnp.concatenate([parts.key_BHJK, tokens.key_BHSK], 2)
  joined_BHMV = jnp.concatenate([parts.value_BHJV, tokens.value_BHSV], 2)
  after = parts.replace(count_BHJ=count_BHJ, key_BHJK=group.mean(joined_BHMK), value_BHJV=group.mean(joined_BHMV))
  if parts.variance_BHJK is None:
    return after
  off_BHMK = joined_BHMK - group.at_members(after.key_BHJK)
  spread_BHMK = off_BHMK**2
  within_BHPK = spread_BHMK[:, :, :group.num_parts] + parts.variance_BHJK
  after = after.replace(
    variance_BHJK=group.mean(jnp.concatenate([within_BHPK, spread_BHMK[:, :, group.num_parts:]], 2)))
  if parts.cross_BHJKV is None:
    return after
  off_BHMV = joined_BHMV - group.at_members(after.value_BHJV)
  between_BHJKV = _sum("BHMJK,BHMV->BHJKV", group.share_BHMJ[..., None] * off_BHMK[:, :, :, None], off_BHMV)
  return after.replace(cross_BHJKV=group.mean_of_parts(parts.cross_BHJKV) + between_BHJKV)


@dataclass(frozen=True)
class _Group:
  """Which members, `num_parts` parts and then tokens, make up each new block, and with which shares.

  A mean starts at that of the block's first part, and every member adds its difference from there times its share. This
  is Welford's update, which loses nothing of small shares.
  """

  target_BHM: jax.Array
  share_BHMJ: jax.Array
  num_parts: int

  def mean(self, x_BHMK: jax.Array) -> jax.Array:
    """[B, H, J, K]."""
    start_BHJK = self._start(x_BHMK[:, :, :self.num_parts])
    return start_BHJK + _sum("BHMJ,BHMK->BHJK", self.share_BHMJ, x_BHMK - self.at_members(start_BHJK))

  def mean_of_parts(self, x_BHPKV: jax.Array) -> jax.Array:
    """The mean where it is zero of all tokens, [B, H, J, K, V]."""
    start_BHJKV = self._start(x_BHPKV)
    share_BHPJ, token_share_BHJ = self.share_BHMJ[:, :, :self.num_parts], self.share_BHMJ[:, :, self.num_parts:].sum(2)
    off_BHPKV = x_BHPKV - _take(start_BHJKV, self.target_BHM[:, :, :self.num_parts])
    change_BHJKV = _sum("BHPJ,BHPKV->BHJKV", share_BHPJ, off_BHPKV)
    return start_BHJKV + (change_BHJKV - token_share_BHJ[..., None, None] * start_BHJKV)

  def at_members(self, x_BHJK: jax.Array) -> jax.Array:
    """Of each member's block, [B, H, M, K]."""
    return _take(x_BHJK, self.target_BHM)

  def _start(self, x_BHPK: jax.Array) -> jax.Array:
    """Of the first part of each block that holds tokens; zero where there is none, so that one token stays as it is."""
    is_part_BHPJ = self.share_BHMJ[:, :, :self.num_parts] > 0
    first_BHJK = _take(x_BHPK, is_part_BHPJ.argmax(2))
    has_BHJ = is_part_BHPJ.any(2)
    return jnp.where(has_BHJ.reshape(*has_BHJ.shape, *(1,) * (x_BHPK.ndim - 3)), first_BHJK, 0)


def _take(x_BHJK: jax.Array, index_BHM: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BHJK, index_BHM.reshape(*index_BHM.shape, *(1,) * (x_BHJK.ndim - 3)), axis=2)


def _sum(subscripts: str, *arrays: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, *arrays, precision="highest")
