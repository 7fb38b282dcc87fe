"""Compresses caches that hold every token of a prompt as a policy says, and gives them the room that decoding needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.cache.append import Arrivals, append
from lattice_jax.cache.compact import compact
from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.kv_cache import CacheView, KVCache, caches_of
from lattice_jax.cache.policies.full import FullConfig
from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.ops.documents import EMPTY


def uncompressed(model: ModelConfig, caches: Sequence[CacheConfig] = ()) -> ModelConfig:
  """The model with a cache that drops nothing and records what `caches`, or else its own policy, will need."""
  policies = [make_policy(cache) for cache in caches or (model.cache,)]
  wanted = {"mass": any(policy.records_mass for policy in policies),
            "queries": any(policy.num_queries for policy in policies),
            "marks": any(policy.records_marks for policy in policies)}
  observe = max(model.cache.full.observe, *(policy.num_queries for policy in policies))
  records = tuple(name for name, is_wanted in wanted.items() if is_wanted)
  return replace(model, cache=CacheConfig(policy="full", full=FullConfig(records=records, observe=observe)))


def compress(model: ModelConfig, state: Any, max_len: int) -> Any:
  """A decoder's state, filled under `uncompressed(model)`, as the policy of `model.cache` would have it.

  Caches get the slots that `init_state(model, batch, max_len)` gives them: few where `model.cache.call_len` is small
  (1 for decoding). Other memories stay as they are, and so does `state`, which further policies may take.

  Raises:
    ValueError: more tokens were read than max_len, or the policy needs records that were not made.
  """
  policy, caches = make_policy(model.cache), caches_of(state)
  for cache in caches.values():
    _check(policy, cache, max_len)
  return {**state, **compress_caches(policy, policy.num_slots(max_len), caches)}


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
  if policy.records_marks and not cache.mark_BHS.shape[-1]:
    raise ValueError(f"model.cache.policy={name!r} needs the marks of each token, which were not recorded; read the "
                     "prompt with cache.uncompressed(model).")


@functools.partial(jax.jit, static_argnums=(0, 1))
def compress_caches(policy: Policy, num_slots: int, caches: dict[str, KVCache]) -> dict[str, KVCache]:
  """Stacks of caches that hold every token, compressed as the policy says and with `num_slots` slots."""
  def convert(cache: KVCache) -> KVCache:
    cache = _with_records(policy, cache)
    if policy.window:
      return _as_ring(policy, cache, num_slots)
    if policy.lag:
      cache = cache.replace(base_B=jnp.full_like(cache.base_B, policy.sinks))
      cache = compact(policy, {"": cache}, call_len=cache.num_slots)[""]
    return _resize(cache, num_slots)

  return {name: convert(cache) for name, cache in caches.items()}


def _with_records(policy: Policy, cache: KVCache) -> KVCache:
  """The cache without records that the policy does not use, and with an empty summary if it has a fold."""
  first = cache.query_BWQK.shape[-3] - policy.num_queries
  cache = cache.replace(
    mass_BHS=cache.mass_BHS if policy.records_mass else cache.mass_BHS[..., :0],
    mark_BHS=cache.mark_BHS if policy.records_marks else cache.mark_BHS[..., :0],
    query_BWQK=cache.query_BWQK[..., first:, :, :])
  if policy.fold is None:
    return cache
  layers, batch, heads, _, key_dim = cache.key_BHSK.shape
  summary = policy.fold.init_summary(batch, heads, key_dim, cache.value_BHSV.shape[-1])
  return cache.replace(summary=jax.tree.map(lambda x: jnp.broadcast_to(x, (layers, *x.shape)), summary))


def _resize(cache: KVCache, num_slots: int) -> KVCache:
  """The same tokens in a stack with `num_slots` slots."""
  def resize(x_LBHS: jax.Array, blank: int = 0) -> jax.Array:
    if not x_LBHS.shape[3]:
      return x_LBHS
    more = max(0, num_slots - x_LBHS.shape[3])
    pad = ((0, 0), (0, 0), (0, 0), (0, more), *((0, 0),) * (x_LBHS.ndim - 4))
    return jnp.pad(x_LBHS[:, :, :, :num_slots], pad, constant_values=blank)

  return cache.replace(
    key_BHSK=resize(cache.key_BHSK), value_BHSV=resize(cache.value_BHSV),
    position_BHS=resize(cache.position_BHS, EMPTY), mass_BHS=resize(cache.mass_BHS),
    mark_BHS=resize(cache.mark_BHS))


def _as_ring(policy: Policy, cache: KVCache, num_slots: int) -> KVCache:
  """The sinks and the last tokens in the slots of the policy "window", as if all had arrived in one call."""
  def blank(x_LBHS: jax.Array, start: int = 0) -> jax.Array:
    return jnp.full((*x_LBHS.shape[:3], num_slots, *x_LBHS.shape[4:]), start, x_LBHS.dtype)

  def number(start: int) -> jax.Array:
    return jnp.full_like(cache.base_B, start)

  ring = cache.replace(
    key_BHSK=blank(cache.key_BHSK), value_BHSV=blank(cache.value_BHSV), position_BHS=blank(cache.position_BHS, EMPTY),
    base_B=number(policy.sinks), length_B=number(0), filled_B=number(0), seen_B=number(0), document_B=number(EMPTY))

  def fill(layer: jax.Array, ring: KVCache) -> KVCache:
    here = jax.tree.map(lambda leaf: leaf[layer], cache)
    index_BT = jnp.broadcast_to(jnp.arange(here.num_slots), (here.length_B.shape[0], here.num_slots))
    is_used_BT = index_BT < here.length_B[:, None]
    arriving = Arrivals(
      run_BT=jnp.where(is_used_BT, 0, EMPTY), index_BT=index_BT, is_last_BT=is_used_BT,
      is_new_B=jnp.zeros_like(here.length_B, bool), seen_B=here.seen_B, document_B=here.document_B)
    k_BTHK, v_BTHV = (jnp.moveaxis(x, 1, 2) for x in (here.key_BHSK, here.value_BHSV))
    return append(policy, CacheView(ring, layer), k_BTHK, v_BTHV, arriving).stack

  return jax.lax.fori_loop(0, cache.length_B.shape[0], fill, ring)
