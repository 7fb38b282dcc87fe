"""How much attention each key received: column sums of the softmax, which the forward pass never holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import to_chunks

_QUERY_BLOCK = 128


def received_mass(
  q: jax.Array, lse: jax.Array, key_BHSK: jax.Array, query: Any, seen_fn: Callable[[Any], jax.Array],
) -> jax.Array:
  """Σ over queries and the heads that share a key of exp(q·k K^-1/2 − lse), fp32 [B, H, S]; not differentiated.

  Args:
    q: [B, T, H·G, K].
    lse: [B, T, H·G], of the whole attention of which these keys are a part.
    query: a tree of arrays [B, T, …] that says where the queries stand.
    seen_fn: a block of `query` → bool [B, H or 1, T, S], whether the key is seen.
  """
  q, lse, key_BHSK = jax.lax.stop_gradient((q, lse, key_BHSK))
  batch, heads, num_keys, key_dim = key_BHSK.shape
  block = min(_QUERY_BLOCK, q.shape[1])
  q_BTHGK = q.reshape(*q.shape[:2], heads, -1, key_dim) * jnp.asarray(key_dim**-0.5, q.dtype)
  lse_BTHG = lse.reshape(*q_BTHGK.shape[:-1])

  def add(total_BHS: jax.Array, xs: Any) -> tuple[jax.Array, None]:
    q_BCHGK, lse_BCHG, query_C, is_query_BC = xs
    score = jnp.einsum("BCHGK,BHSK->BHGCS", q_BCHGK, key_BHSK, preferred_element_type=jnp.float32)
    seen = (seen_fn(query_C) & is_query_BC[:, None, :, None])[:, :, None]
    weight = jnp.where(seen, jnp.exp(score - jnp.moveaxis(lse_BCHG, 1, 3)[..., None]), 0.0)
    return total_BHS + weight.sum((2, 3)), None

  is_query_BT = jnp.ones(q.shape[:2], bool)
  xs = to_chunks((q_BTHGK, lse_BTHG, query, is_query_BT), block)
  return jax.lax.scan(add, jnp.zeros((batch, heads, num_keys), jnp.float32), xs)[0]
