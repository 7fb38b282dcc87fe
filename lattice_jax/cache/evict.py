"""The one way out of a cache: what leaves is handed to the policy's fold."""

from __future__ import annotations

import jax

from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.policy import Policy
from lattice_jax.ops.attention.fold import Evicted, fold_in


def evict(policy: Policy, stack: KVCache, layer: jax.Array, evicted: Evicted, is_new_B: jax.Array) -> KVCache:
  """The stack with the summary of layer `layer` after those tokens; `is_new_B`: rows whose document began now."""
  summary = jax.tree.map(
    lambda x_L: jax.lax.dynamic_index_in_dim(x_L, layer, keepdims=False), stack.summary)
  summary = fold_in(policy.fold, summary, evicted, is_new_B)
  return stack.replace(summary=jax.tree.map(
    lambda x_L, x: jax.lax.dynamic_update_index_in_dim(x_L, x, layer, 0), stack.summary, summary))
