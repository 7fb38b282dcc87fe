"""Softmax attention that returns its log-sum-exp, so that partial results over different keys can be merged."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.attention.blockwise import attend_blockwise
from lattice_jax.ops.attention.kernel import attend_in_kernel, reasons_against
from lattice_jax.ops.attention.keys import Order
from lattice_jax.ops.attention.reference import MASKED, attend_reference
from lattice_jax.ops.documents import EMPTY, keep_only

__all__ = ["MASKED", "Order", "attend", "attend_itself", "merge"]


def attend(
  q: Float[Array, "B T Q K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H V"], query_order: Order,
  key_order: Order, *, window: int | Int[Array, ""] = 0, skip: int | Int[Array, ""] = 0, block: int = 256,
  impl: str = "auto",
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
  """Softmax attention over the keys each query may see, scaled by K^-1/2.

  Args:
    q: Q = H·G; query head h·G + g reads key/value head h (grouped-query attention).
    query_order, key_order: order and document of each token; a key is seen by queries of its document that are not
      earlier. Where they say EMPTY, q, k and v are replaced by zeros at the door.
    window: tokens a query sees, itself included; 0 = all. An array is 1 or more.
    skip: nearest tokens that it does not see, itself the first of them. Where this or `window` is an array, one program
      serves all values, and no kernel runs.
    block: tokens of a block of the XLA form; changes speed only.
    impl: see `lattice_jax.dispatch`.

  Returns:
    Output and log-sum-exp, float32. A query that sees nothing gets 0 and MASKED.
  """
  batch, length, num_queries, key_dim = q.shape
  kv_heads = k.shape[2]
  q = keep_only(query_order.id_BT != EMPTY, q)
  k, v = keep_only(key_order.id_BT != EMPTY, (k, v))
  is_static = isinstance(window, int) and isinstance(skip, int)
  chosen = choose_impl("attention", impl, **reasons_against(q, k, v, is_static=is_static))
  if chosen in ("pallas", "interpret"):
    return attend_in_kernel(q, k, v, query_order, key_order, window=window, skip=skip, interpret=chosen == "interpret")
  q_BTHGK = q.reshape(batch, length, kv_heads, num_queries // kv_heads, key_dim)
  if chosen == "reference":
    out, lse = attend_reference(q_BTHGK, k, v, query_order, key_order, window=window, skip=skip)
  else:
    out, lse = attend_blockwise(
      q_BTHGK, k, v, query_order, key_order, window=window, skip=skip, block=block)
  return out.reshape(batch, length, num_queries, v.shape[-1]), lse.reshape(batch, length, num_queries)


def attend_itself(
  q: Float[Array, "B T Q K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"], is_token: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
  """As `attend` where each token sees itself alone: its value, and its score as the log-sum-exp.

  Args:
    q, k, v: as of `attend`, of the same tokens.
    is_token: other places are replaced by zeros at the door, and get 0 and MASKED.
  """
  q, k, v = keep_only(is_token, (q, k, v))
  group = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  lse = jnp.einsum("BTQK,BTQK->BTQ", q, k, preferred_element_type=jnp.float32)
  is_token = is_token[..., None]
  return jnp.where(is_token[..., None], v.astype(jnp.float32), 0.0), jnp.where(is_token, lse, MASKED)


def merge(
  out_a: Float[Array, "*q V"], lse_a: Float[Array, "*q"], out_b: Float[Array, "*q V"], lse_b: Float[Array, "*q"],
) -> tuple[Float[Array, "*q V"], Float[Array, "*q"]]:
  """Attention over the union of two disjoint key sets from the attention over each; exact."""
  lse = jnp.logaddexp(lse_a, lse_b)
  return out_a * jnp.exp(lse_a - lse)[..., None] + out_b * jnp.exp(lse_b - lse)[..., None], lse
