"""Keys and values of past tokens, and policies that keep few of them.

A policy is data (`config.CacheConfig`, `make_policy`), a cache a pytree (`KVCache`). The decoder takes its policy from
`model.cache`; only blocks with the memory "attention" have such a cache. Positions are those of the document, so the
next token's position is the number of tokens read and never the cache's length.

Two ways to read a prompt under a policy that drops tokens:

* exact, the default: read it all with `uncompressed(model)`, in chunks of any length, then
  `state = compress(model, state, max_len)`, and decode with `model`. The first token is that of the full cache.
  One such state serves any number of policies when it was read with the records that they need.
* chunk by chunk, in bounded memory: `init_state(model, batch, max_len)` with `model.cache.call_len` set to the chunk's
  length; every call attends to what is there and then compresses.

`make_policy(model.cache).kept_length(n)` is the length that a row of n tokens has under either, `cache_bytes` what the
decoder's `init_state` allocates.
"""

from __future__ import annotations

from lattice_jax.cache.kv_cache import KVCache, cache_bytes, empty_cache
from lattice_jax.cache.policy import POLICIES, Policy, check_cache, make_policy

__all__ = ["POLICIES", "KVCache", "Policy", "cache_bytes", "check_cache", "empty_cache", "make_policy"]
