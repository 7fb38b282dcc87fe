"""Keys and values of past tokens, and policies that keep few of them.

A policy is data (`config.CacheConfig`, `policy.make_policy`; each policy a file of `policies`), a cache a pytree
(`kv_cache.KVCache`). The decoder takes its policy from `model.cache`; only blocks with the memory "attention" have
such a cache. Positions are those of the document, so the next token's position is the number of tokens read and never
the cache's length.

Two ways to read a prompt under a policy that drops tokens:

* exact, the default: read it all with `convert.uncompressed(model)`, in chunks of any length, then
  `state = convert.compress(model, state, max_len)`, and decode with `model`. The first token is that of the full cache.
  One such state serves any number of policies, when it was read with `uncompressed(model, caches)` of them all.
* chunk by chunk, in bounded memory: `init_state(model, batch, max_len)` with `model.cache.call_len` set to the chunk's
  length; every call attends to what is there and then compresses.

With `call_len` 0 a cache has room for `max_len` tokens whatever the policy drops (attention costs only what is kept);
with `call_len` 1 it is as small as decoding allows. `make_policy(model.cache).length_after(n)` is the length that a row
of n tokens has after any call (at most, where `model.cache.budget` decides partition by partition: `online`),
`kv_cache.cache_bytes` what the decoder's `init_state` allocates, `models.saved_state` a state as a file.

A call of the decoder carries all layers' caches through its layers as one array, writes one slot a token in place, and
then compacts them in one branch (`compact`); jit it with the state donated. A layer alone does the same for itself.

What leaves a cache, overwritten in a window or dropped from a partition, passes through `evict`, which hands it to the
policy's fold (`ops.attention.fold`), a running summary in the cache's state. No policy has one yet.
"""
