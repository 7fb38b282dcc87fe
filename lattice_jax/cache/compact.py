"""Drops tokens: chooses the slots that stay and moves them together, in one branch a step for the stack of layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lattice_jax.cache.evict import evict
from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.online import decide, saved_tokens
from lattice_jax.cache.policies.views import Partitions, WholeCache
from lattice_jax.cache.policy import Policy
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import EMPTY


def compact(policy: Policy, stacks: Mapping[str, KVCache], call_len: int) -> dict[str, KVCache]:
  """Compresses partitions that fell due in a call of at most `call_len` tokens, and clears what ended documents left.

  Rows are independent, and shapes stay. While nothing is due in any row, nothing is computed. There is one branch, and
  its other side is the identity; in any other form XLA copies the stacks at every step.
  """
  stacks = dict(stacks)
  drops = policy.lag > 0 and _span(policy, stacks, call_len) >= 2 * policy.lag

  def is_due(stack):
    is_stale_LB = stack.filled_B > stack.length_B
    if not drops:
      return is_stale_LB.any()
    layer_L1 = jnp.arange(stack.length_B.shape[0])[:, None]
    return (is_stale_LB | (num_due(policy, stack, layer_L1) > 0)).any()

  def change(stack):
    # Layer by layer, so that what is computed on the way has the size of one. Fused into one loop the two would read
    # what they write, from a copy of the stack.
    num_layers = stack.length_B.shape[0]
    stack = jax.lax.fori_loop(0, num_layers, _clear, stack)
    return jax.lax.fori_loop(0, num_layers, functools.partial(_drop, policy, call_len), stack) if drops else stack

  def change_all(stacks):
    return {name: change(stack) for name, stack in stacks.items()}

  return jax.lax.cond(jnp.stack([is_due(stack) for stack in stacks.values()]).any(), change_all, dict, stacks)


def num_due(policy: Policy, cache: KVCache, layer: jax.Array) -> jax.Array:
  """How many partitions to compress now: those whose successor is complete, none in a layer that is skipped."""
  num_B = jnp.maximum(0, (cache.length_B - cache.base_B) // policy.lag - 1)
  return jnp.where(layer < policy.config.skip_layers, 0, num_B) if policy.config.skip_layers else num_B


def _span(policy: Policy, stacks: Mapping[str, KVCache], call_len: int) -> int:
  """How many slots behind the base can be in use: a tail that was not due, and the call's tokens."""
  return min(2 * policy.lag - 1 + call_len, *(stack.num_slots for stack in stacks.values()))


def _clear(layer: jax.Array, stack: KVCache) -> KVCache:
  """Blanks the slots beyond the length, in rows where an earlier document may have left something there."""
  length_B = stack.length_B[layer]
  is_clean_B = stack.filled_B[layer] <= length_B
  stays_BS = (jnp.arange(stack.num_slots) < length_B[:, None]) | is_clean_B[:, None]

  def put(x_L, x):
    return jax.lax.dynamic_update_index_in_dim(x_L, x, layer, 0)

  def clear(x_LBHS, blank=0):
    if not x_LBHS.shape[3]:
      return x_LBHS
    mask = stays_BS.reshape(stays_BS.shape[0], 1, -1, *(1,) * (x_LBHS.ndim - 4))
    here_BHS = jax.lax.dynamic_index_in_dim(x_LBHS, layer, keepdims=False)
    return put(x_LBHS, jnp.where(mask, here_BHS, jnp.asarray(blank, x_LBHS.dtype)))

  return stack.replace(
    key_BHSK=clear(stack.key_BHSK), value_BHSV=clear(stack.value_BHSV), position_BHS=clear(stack.position_BHS, EMPTY),
    mass_BHS=clear(stack.mass_BHS), mark_BHS=clear(stack.mark_BHS), filled_B=put(stack.filled_B, length_B))


def _drop(policy: Policy, call_len: int, layer: jax.Array, stack: KVCache) -> KVCache:
  """Compresses what is due in one layer. It touches only slots behind the base, unless all partitions compete."""
  base_B, length_B = stack.base_B[layer], stack.length_B[layer]
  due_B = num_due(policy, stack.replace(base_B=base_B, length_B=length_B), layer)
  start_B = jnp.zeros_like(base_B) if policy.is_global else base_B
  span = stack.num_slots if policy.is_global else _span(policy, {"": stack}, call_len)
  row_B1, slot_BR = jnp.arange(start_B.shape[0])[:, None], start_B[:, None] + jnp.arange(span)

  def read(x_LBHS):
    return jnp.moveaxis(x_LBHS.at[layer, row_B1, :, slot_BR].get(mode="clip"), 2, 1)

  region = stack.replace(
    key_BHSK=read(stack.key_BHSK), value_BHSV=read(stack.value_BHSV), position_BHS=read(stack.position_BHS),
    mass_BHS=read(stack.mass_BHS) if policy.records_mass else stack.mass_BHS[layer],
    mark_BHS=read(stack.mark_BHS) if policy.records_marks else stack.mark_BHS[layer],
    query_BWQK=stack.query_BWQK[layer], seen_B=stack.seen_B[layer], base_B=base_B, length_B=length_B - start_B)
  choose = _stays_of_all if policy.is_global else _stays_of_partitions
  stays_BHR, kept_B = choose(policy, layer, jax.lax.stop_gradient(region), due_B)
  if policy.fold is not None:
    leaves_BHR = _is_used(region) & ~stays_BHR
    stack = evict(policy, stack, layer, Evicted(
      key_BHSK=region.key_BHSK, value_BHSV=region.value_BHSV, position_BHS=region.position_BHS,
      leaves_BHS=leaves_BHR), jnp.zeros_like(due_B, bool))
  order_BHR = jnp.argsort(~stays_BHR, axis=-1, stable=True)
  dropped_B = due_B * policy.lag - kept_B
  left_B = region.length_B - dropped_B
  is_left_BR = jnp.arange(span) < left_B[:, None]
  # a row that is not due is not written
  target_BR = jnp.where(due_B[:, None] > 0, slot_BR, stack.num_slots)

  def move(x_LBHS, x_BHR, blank=0):
    index = order_BHR.reshape(*order_BHR.shape, *(1,) * (x_BHR.ndim - 3))
    mask = is_left_BR.reshape(is_left_BR.shape[0], 1, -1, *(1,) * (x_BHR.ndim - 3))
    moved = jnp.where(mask, jnp.take_along_axis(x_BHR, index, axis=2), jnp.asarray(blank, x_BHR.dtype))
    return x_LBHS.at[layer, row_B1, :, target_BR].set(jnp.moveaxis(moved, 1, 2), mode="drop")

  length_B = length_B - dropped_B
  return stack.replace(
    key_BHSK=move(stack.key_BHSK, region.key_BHSK), value_BHSV=move(stack.value_BHSV, region.value_BHSV),
    position_BHS=move(stack.position_BHS, region.position_BHS, EMPTY),
    mass_BHS=move(stack.mass_BHS, region.mass_BHS) if policy.records_mass else stack.mass_BHS,
    mark_BHS=move(stack.mark_BHS, region.mark_BHS) if policy.records_marks else stack.mark_BHS,
    base_B=stack.base_B.at[layer].set(base_B + kept_B), length_B=stack.length_B.at[layer].set(length_B),
    filled_B=stack.filled_B.at[layer].set(length_B))


def _stays_of_partitions(
  policy: Policy, layer: jax.Array, region: KVCache, due_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Bool [B, H, R], the best of each due partition and all that follows, and how many tokens of the due ones stay.

  `region` starts at the base; its `base_B` counts from the cache's start.
  """
  lag, span = policy.lag, region.num_slots
  num = span // lag

  def split(x_BHR):
    return x_BHR[:, :, :num * lag].reshape(*x_BHR.shape[:2], num, lag, *x_BHR.shape[3:])

  partitions = Partitions(
    key_BHNLK=split(region.key_BHSK.astype(jnp.float32)), value_BHNLV=split(region.value_BHSV.astype(jnp.float32)),
    position_BHNL=split(region.position_BHS), layer=layer,
    mark_BHNL=split(region.mark_BHS) if policy.records_marks else None, keep=policy.keep)
  rank_BHNL = _rank(policy.record.score(policy.config.own, partitions))
  is_due_BN = jnp.arange(num - 1) < due_B[:, None]
  keep_BN = policy.keep * is_due_BN
  if policy.is_online:
    num_compressed_B = (region.seen_B - region.length_B - policy.sinks) // lag
    keep_BN = decide(policy, partitions, rank_BHNL, is_due_BN, saved_tokens(policy, region.base_B, num_compressed_B))
  stays_BHNL = (rank_BHNL < keep_BN[:, None, :, None]) | ~is_due_BN[:, None, :, None]
  stays_BHR = stays_BHNL.reshape(*stays_BHNL.shape[:2], -1)
  stays_BHR = jnp.pad(stays_BHR, ((0, 0), (0, 0), (0, span - stays_BHR.shape[-1])), constant_values=True)
  return stays_BHR & _is_used(region), keep_BN.sum(1, dtype=jnp.int32)


def _stays_of_all(
  policy: Policy, layer: jax.Array, region: KVCache, due_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Bool [B, H, S], the best slots behind the sinks, as many as partitions would keep, and the last tokens; and by how
  many the slots before the last tokens grow.
  """
  del layer
  slot_S = jnp.arange(region.num_slots)
  end_B = region.base_B + due_B * policy.lag
  competes_BS = (slot_S >= policy.sinks) & (slot_S < end_B[:, None])
  score_BHS = policy.record.score(policy.config.own, WholeCache(
    key_BHSK=region.key_BHSK.astype(jnp.float32), position_BHS=region.position_BHS, is_used_BS=_is_used(region)[:, 0],
    seen_B=region.seen_B, mass_BHS=region.mass_BHS, query_BWQK=region.query_BWQK))
  rank_BHS = _rank(jnp.where(competes_BS[:, None], score_BHS, -jnp.inf))
  places_B = region.base_B - policy.sinks + due_B * policy.keep
  return ((rank_BHS < places_B[:, None, None]) | ~competes_BS[:, None]) & _is_used(region), due_B * policy.keep


def _rank(score: jax.Array) -> jax.Array:
  """Rank along the last axis, 0 for the highest score; of equal scores the first ranks higher."""
  return jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)


def _is_used(region: KVCache) -> jax.Array:
  return (jnp.arange(region.num_slots) < region.length_B[:, None])[:, None]
