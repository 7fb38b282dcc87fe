"""Calls of the delta rule's kernels that must compile: (name, function, arguments as shapes), of sizes of real layers.

Those for a Hopper GPU are gradients, whose programs hold the forward kernels too.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import delta
from pallas_kernels.specs import with_gradient


def _shapes(batch, length, heads, key_dim, value_dim, decay_dim, dtype):
  def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)

  return (
    shape(batch, length, heads, key_dim, dtype=dtype), shape(batch, length, heads, key_dim, dtype=dtype),
    shape(batch, length, heads, value_dim, dtype=dtype), shape(batch, length, heads),
    shape(batch, length, heads, decay_dim), shape(batch, heads, key_dim, value_dim))


def _cases(backend, *sizes):
  for name, chunk_len, *size in sizes:
    function, shapes = functools.partial(delta.recurrence, chunk_len=chunk_len, backend=backend), _shapes(*size)
    if backend == "tpu":
      yield f"delta_{name}", function, shapes
    yield f"delta_{name}_gradient", with_gradient(function, len(shapes)), shapes


TPU_CASES = list(_cases(
  "tpu",
  ("gated_8_heads_d128", 0, 2, 1024, 8, 128, 128, 1, jnp.bfloat16),
  ("kimi_8_heads_d128", 0, 2, 1024, 8, 128, 128, 128, jnp.bfloat16),
  ("kimi_4_heads_k64_v64_f32", 0, 1, 1024, 4, 64, 64, 64, jnp.float32),
  ("gated_odd_k40_v93_chunk_32", 32, 3, 77, 5, 40, 93, 1, jnp.bfloat16),
  ("kimi_one_token_k37_v128", 0, 2, 1, 4, 37, 128, 37, jnp.bfloat16),
))
HOPPER_CASES = list(_cases(
  "gpu",
  ("gated_8x8192x16_d128", 0, 8, 8192, 16, 128, 128, 1, jnp.bfloat16),
  ("kimi_8x2048x16_d128_f32", 0, 8, 2048, 16, 128, 128, 128, jnp.float32),
  ("gated_4_heads_k64_v64", 0, 1, 1024, 4, 64, 64, 1, jnp.bfloat16),
  ("kimi_odd_k40_v93", 0, 3, 77, 5, 40, 93, 40, jnp.bfloat16),
))
