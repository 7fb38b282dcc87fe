"""From caches that hold every token of a prompt to the same under a policy, with the room that decoding needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.ops.documents import EMPTY


def uncompressed(model: ModelConfig, caches: Sequence[CacheConfig] = ()) -> ModelConfig:
  """The model with a cache that drops nothing and records what `caches`, or else its own policy, will ask for."""
  policies = [make_policy(cache) for cache in caches or (model.cache,)]
  wanted = {"mass": any(policy.records_mass for policy in policies),
            "queries": any(policy.num_queries for policy in policies)}
  observe = max(model.cache.observe, *(policy.num_queries for policy in policies))
  records = tuple(name for name, is_wanted in wanted.items() if is_wanted)
  return replace(model, cache=CacheConfig(policy="full", observe=observe, records=records))


def compress(model: ModelConfig, state: Any, max_len: int) -> Any:
  """A decoder's state, filled under `uncompressed(model)`, as the policy of `model.cache` would have it.

  Caches get the slots that `init_state(model, batch, max_len)` gives them: few where `model.cache.call_len` is small
  (1 for decoding). Other memories stay as they are, and so does `state`, which further policies may take.

  Raises:
    ValueError: more tokens were read than max_len, or the policy needs records that were not made.
  """
  policy = make_policy(model.cache)
  for cache in state.values():
    if isinstance(cache, KVCache):
      _check(policy, cache, max_len)
  return _compress(policy, policy.num_slots(max_len), state)


def _check(policy: Policy, cache: KVCache, max_len: int) -> None:
  num_read = int(cache.seen_B.max())
  if num_read > max_len:
    raise ValueError(
      f"the cache holds a document of {num_read} tokens, more than max_len={max_len}, which counts prompt and answer; "
      "give it room for both.")
  name = policy.config.policy
  if policy.records_mass and not cache.mass_BHS.shape[-1]:
    raise ValueError(f"model.cache.policy={name!r} needs the attention that each token received, which was not "
                     "recorded; read the prompt with cache.uncompressed(model).")
  if policy.num_queries > cache.query_BWQK.shape[-3]:
    raise ValueError(
      f"model.cache.policy={name!r} needs the last {policy.num_queries} queries, of which "
      f"{cache.query_BWQK.shape[-3]} were recorded; read the prompt with cache.uncompressed(model).")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compress(policy: Policy, num_slots: int, state: Any) -> Any:
  def convert(cache: Any) -> Any:
    if not isinstance(cache, KVCache):
      return cache
    cache = _with_records(policy, cache)
    if policy.window:
      return _as_ring(policy, cache, num_slots)
    if policy.lag:
      cache = cache.replace(base_B=jnp.full_like(cache.base_B, policy.sinks))
      cache = compact(policy, {"": cache}, call_len=cache.num_slots)[""]
    return _resize(cache, num_slots)

  return {name: convert(cache) for name, cache in state.items()}


def _with_records(policy: Policy, cache: KVCache) -> KVCache:
  """Without the records that the policy does not use."""
  first = cache.query_BWQK.shape[-3] - policy.num_queries
  return cache.replace(
    mass_BHS=cache.mass_BHS if policy.records_mass else cache.mass_BHS[..., :0],
    query_BWQK=cache.query_BWQK[..., first:, :, :])


def _resize(cache: KVCache, num_slots: int) -> KVCache:
  """The same tokens with other room, behind a stack's axes of layers, rows and heads."""
  def resize(x_LBHS: jax.Array, blank: int = 0) -> jax.Array:
    if not x_LBHS.shape[3]:
      return x_LBHS
    more = max(0, num_slots - x_LBHS.shape[3])
    pad = ((0, 0), (0, 0), (0, 0), (0, more), *((0, 0),) * (x_LBHS.ndim - 4))
    return jnp.pad(x_LBHS[:, :, :, :num_slots], pad, constant_values=blank)

  return cache.replace(
    key_BHSK=resize(cache.key_BHSK), value_BHSV=resize(cache.value_BHSV),
    position_BHS=resize(cache.position_BHS, EMPTY), mass_BHS=resize(cache.mass_BHS))


def _as_ring(policy: Policy, cache: KVCache, num_slots: int) -> KVCache:
  """Sinks and the last tokens, where the policy "window" keeps them."""
  slot_S, last_LB1 = jnp.arange(num_slots), cache.seen_B[..., None] - 1
  newest_LBS = last_LB1 - (last_LB1 - slot_S) % policy.window
  source_LBS = jnp.where(slot_S < policy.sinks, slot_S, newest_LBS)
  is_used_LBS = (source_LBS >= slot_S) & (source_LBS <= last_LB1)

  def take(x_LBHS: jax.Array, blank: int = 0) -> jax.Array:
    shape = (*source_LBS.shape[:2], 1, num_slots, *(1,) * (x_LBHS.ndim - 4))
    taken = jnp.take_along_axis(x_LBHS, jnp.clip(source_LBS, 0, x_LBHS.shape[3] - 1).reshape(shape), axis=3)
    return jnp.where(is_used_LBS.reshape(shape), taken, jnp.asarray(blank, x_LBHS.dtype))

  length_LB = jnp.minimum(cache.seen_B, num_slots)
  return cache.replace(
    key_BHSK=take(cache.key_BHSK), value_BHSV=take(cache.value_BHSV), position_BHS=take(cache.position_BHS, EMPTY),
    base_B=jnp.full_like(cache.base_B, policy.sinks), length_B=length_LB, filled_B=length_LB)
