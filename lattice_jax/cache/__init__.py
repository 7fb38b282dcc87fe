"""Keys and values of past tokens, and policies that keep few of them.

A policy is data (`config.CacheConfig`, `make_policy`), a cache a pytree (`KVCache`). The decoder takes its policy from
`model.cache`; only blocks with the memory "attention" have such a cache. Positions are those of the document, so the
next token's position is the number of tokens read and never the cache's length.

Two ways to read a prompt under a policy that drops tokens:

* exact, the default: read it all with `uncompressed(model)`, in chunks of any length, then
  `state = compress(model, state, max_len)`, and decode with `model`. The first token is that of the full cache. One
  such state serves any number of policies, when it was read with `uncompressed(model, caches)` of them all.
* chunk by chunk, in bounded memory: `init_state(model, batch, max_len)` with `model.cache.call_len` set to the chunk's
  length; every call attends to what is there and then compresses.

With `call_len` 0 a cache has room for `max_len` tokens whatever the policy drops (attention costs only what is kept);
with `call_len` 1 it is as small as decoding allows. `make_policy(model.cache).kept_length(n)` is the length that a row
of n tokens has after any call (at most, where `model.cache.budget` decides partition by partition: `online`),
`cache_bytes` what the decoder's `init_state` allocates, `models.saved_state` a state as a file.

A call of the decoder carries all layers' caches through its layers as one array, writes one slot a token in place, and
then compacts them in one branch (`compact`); jit it with the state donated. A layer alone does the same for itself.
"""

from __future__ import annotations

from lattice_jax.cache.convert import compress, uncompressed
from lattice_jax.cache.kv_cache import KVCache, cache_bytes, empty_cache
from lattice_jax.cache.policy import POLICIES, Policy, check_cache, make_policy

__all__ = [
  "POLICIES", "KVCache", "Policy", "cache_bytes", "check_cache", "compress", "empty_cache", "make_policy",
  "uncompressed"]
