"""LagKV inside the open segment: long segments need not be held whole until their anchor comes.

What stays depends on the segment's keys and values alone and not on how they arrive; attention before a partition is
compressed sees more than after it. Training, where a call starts from an empty cache, sees whole segments.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax.numpy as jnp

from lattice_jax.cache.compact import compact
from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.memories.anchor.config import AnchorConfig

if TYPE_CHECKING:
  from lattice_jax.memories.anchor.state import AnchorCache


@functools.lru_cache(maxsize=64)
def open_policy(config: AnchorConfig) -> Policy:
  """Each segment is compressed as a document without sinks would be."""
  return make_policy(CacheConfig(
    policy="lagkv", sinks=0, lag=config.open_lag, keep=config.open_keep, call_len=config.open_call_len))


def open_slots(config: AnchorConfig, max_len: int) -> int:
  """Slots of the open segment in a cache for documents of at most `max_len` tokens."""
  most = min(max_len, config.max_segment)
  return open_policy(config).num_slots(most) if config.open_lag else most


def check_call(config: AnchorConfig, length: int) -> None:
  """Raises ValueError where a call is longer than the open segment has room for."""
  if config.open_call_len and length > config.open_call_len:
    raise ValueError(
      f"a call of {length} tokens is longer than model.anchor.open_call_len={config.open_call_len}, for which the open "
      f"segment has room; read the text in pieces of at most {config.open_call_len} tokens, or set open_call_len to "
      f"{length} or to 0.")


def compress_open(config: AnchorConfig, stacks: dict[str, AnchorCache], call_len: int) -> dict[str, AnchorCache]:
  """Compresses the partitions of open segments that fell due in a call of at most `call_len` tokens, in place."""
  if not config.open_lag:
    return stacks
  opened = compact(open_policy(config), {name: _as_cache(stack) for name, stack in stacks.items()}, call_len)
  return {
    name: stack.replace(
      open=stack.open.replace(
        key_BHSK=opened[name].key_BHSK, value_BHSV=opened[name].value_BHSV, position_BHS=opened[name].position_BHS),
      open_len_B=opened[name].length_B, open_base_B=opened[name].base_B)
    for name, stack in stacks.items()}


def _as_cache(stack: AnchorCache) -> KVCache:
  """The open segments as documents of token caches; their other slots are blank already."""
  region = stack.open
  slots_LBH = region.position_BHS.shape[:3]
  return KVCache(
    key_BHSK=region.key_BHSK, value_BHSV=region.value_BHSV, position_BHS=region.position_BHS,
    base_B=stack.open_base_B, length_B=stack.open_len_B, filled_B=stack.open_len_B, seen_B=stack.seen_B,
    document_B=stack.document_B, mass_BHS=jnp.zeros((*slots_LBH, 0), jnp.float32),
    query_BWQK=jnp.zeros((*slots_LBH[:2], 0, 1, 1), region.key_BHSK.dtype),
    mark_BHS=jnp.zeros((*slots_LBH, 0), jnp.int8))
