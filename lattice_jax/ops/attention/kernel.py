"""Softmax attention by a Pallas kernel: when one runs, and the call."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.dispatch import target_backend
from lattice_jax.ops.attention.keys import Order
from lattice_jax.types import MEMORY_BOUNDARY
from pallas_kernels import flash_backends
from pallas_kernels import window as kernels


def reasons_against(q: jax.Array, k: jax.Array, v: jax.Array, *, is_static: bool = True) -> dict[str, str | None]:
  """The arguments of `choose_impl` that say where and when no kernel runs. is_static: whether windows are numbers."""
  if not is_static:
    return {"pallas_reason": "its kernel takes windows as numbers, not as data that differ from layer to layer"}
  sizes = {"dtype": jnp.result_type(q, k, v), "key_dim": q.shape[-1], "value_dim": v.shape[-1]}
  backend = target_backend()
  return {
    "pallas_reason": kernels.supports(heads=q.shape[2], kv_heads=k.shape[2], **sizes),
    "backend_reason": flash_backends.supports_backend(backend, **sizes),
    "auto_reason": flash_backends.prefers_xla(backend, q.shape[1])}


def attend_in_kernel(
  q_BTQK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, query_order: Order, key_order: Order, *,
  window: int, skip: int, interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """fp32 output [B, T, Q, V] and log-sum-exp [B, T, Q]. Where `key_order` is `query_order`, cost goes as the window.

  interpret: runs the TPU kernel anywhere.
  """
  keys = () if key_order is query_order else (key_order.index_BT, key_order.id_BT)
  return kernels.window_attention(
    q_BTQK, k_BSHK, v_BSHV, query_order.index_BT, query_order.id_BT, *keys, window=window, skip=skip,
    backend="tpu" if interpret else target_backend(), interpret=interpret, boundary_name=MEMORY_BOUNDARY)
