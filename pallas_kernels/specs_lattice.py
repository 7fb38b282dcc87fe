"""Calls of Lattice's kernels that must compile: (name, function, arguments as shapes), of sizes of real layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import lattice


def _shapes(batch, length, heads, slots, value_dim, dtype):
  def shape(*sizes, dtype=dtype):
    return jax.ShapeDtypeStruct(sizes, dtype)

  return (
    shape(batch, length, heads, slots), shape(batch, length, heads, slots), shape(batch, length, heads, value_dim),
    shape(batch, length, heads, dtype=jnp.float32), shape(batch, length, dtype=jnp.bool_),
    shape(heads, slots, value_dim, dtype=jnp.float32), shape(batch, heads, slots, value_dim, dtype=jnp.float32))


def _run(objective, backend, *args):
  return lattice.recurrence(*args, objective=objective, backend=backend)


def _gradient(objective, backend, q, k, v, rate, is_start, start, slots):
  out, pull = jax.vjp(
    lambda q, k, v, rate, start, slots: _run(objective, backend, q, k, v, rate, is_start, start, slots), q, k, v, rate,
    start, slots)
  return out, pull(jax.tree.map(jnp.ones_like, out))


def _cases(backend, *sizes):
  for name, objective, *size in sizes:
    yield f"lattice_{name}", functools.partial(_run, objective, backend), _shapes(*size)
    if size[1] > 1:
      yield f"lattice_{name}_gradient", functools.partial(_gradient, objective, backend), _shapes(*size)


TPU_CASES = list(_cases(
  "tpu",
  ("8x16_heads_m64_d64", "decoding", 8, 2048, 16, 64, 64, jnp.bfloat16),
  ("8_heads_m64_d64_f32", "encoding", 1, 1024, 8, 64, 64, jnp.float32),
  ("16_heads_m128_d128", "similarity", 1, 1024, 16, 128, 128, jnp.bfloat16),
  ("odd_m40_d96", "decoding", 3, 77, 5, 40, 96, jnp.bfloat16),
  ("step_m64_d64", "decoding", 8, 1, 16, 64, 64, jnp.bfloat16),
  ("step_m128_d128", "encoding", 1, 1, 12, 128, 128, jnp.bfloat16),
))
HOPPER_CASES = list(_cases(
  "gpu",
  ("8x16_heads_m64_d64", "decoding", 8, 8192, 16, 64, 64, jnp.bfloat16),
  ("8_heads_m64_d64_f32", "encoding", 1, 1024, 8, 64, 64, jnp.float32),
  ("16_heads_m64_d128", "similarity", 1, 1024, 16, 64, 128, jnp.bfloat16),
  ("odd_m40_d96", "decoding", 3, 77, 5, 40, 96, jnp.bfloat16),
  ("step_m64_d64", "decoding", 8, 1, 16, 64, 64, jnp.bfloat16),
))
