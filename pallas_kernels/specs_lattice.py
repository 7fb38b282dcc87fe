"""Calls of Lattice's kernels that must compile: (name, function, arguments as shapes), of sizes of real layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import lattice


def _shapes(state, batch, length, heads, slots, value_dim, dtype):
  def shape(*sizes, dtype=dtype):
    return jax.ShapeDtypeStruct(sizes, dtype)

  gate = shape(batch, length, heads, dtype=jnp.float32)
  return (
    shape(batch, length, heads, slots), shape(batch, length, heads, slots), shape(batch, length, heads, value_dim),
    gate, shape(batch, length, dtype=jnp.bool_), shape(heads, slots, value_dim, dtype=jnp.float32),
    shape(batch, heads, slots, value_dim, dtype=jnp.float32), *((gate,) if state == "returning" else ()))


def _run(objective, backend, q, k, v, rate, is_start, start, slots, rest=None):
  return lattice.recurrence(
    q, k, v, rate, is_start, start, slots, objective=objective, rest=rest, backend=backend)


def _gradient(objective, backend, q, k, v, rate, is_start, start, slots, rest=None):
  out, pull = jax.vjp(
    lambda q, k, v, rate, start, slots, rest: _run(objective, backend, q, k, v, rate, is_start, start, slots, rest),
    q, k, v, rate, start, slots, rest)
  return out, pull(jax.tree.map(jnp.ones_like, out))


def _cases(backend, *sizes):
  for name, objective, state, *size in sizes:
    yield f"lattice_{name}", functools.partial(_run, objective, backend), _shapes(state, *size)
    if size[1] > 1:
      yield f"lattice_{name}_gradient", functools.partial(_gradient, objective, backend), _shapes(state, *size)


TPU_CASES = list(_cases(
  "tpu",
  ("8x16_heads_m64_d64", "decoding", "retracted", 8, 2048, 16, 64, 64, jnp.bfloat16),
  ("8_heads_m64_d64_f32", "encoding", "retracted", 1, 1024, 8, 64, 64, jnp.float32),
  ("16_heads_m128_d128", "similarity", "retracted", 1, 1024, 16, 128, 128, jnp.bfloat16),
  ("4x16_heads_m128_d128", "decoding", "retracted", 4, 1024, 16, 128, 128, jnp.bfloat16),
  ("4_heads_m128_d128", "decoding", "retracted", 1, 1024, 4, 128, 128, jnp.bfloat16),
  ("8_heads_m256_d64", "decoding", "retracted", 1, 1024, 8, 256, 64, jnp.bfloat16),
  ("odd_m40_d96", "decoding", "retracted", 3, 77, 5, 40, 96, jnp.bfloat16),
  ("step_m64_d64", "decoding", "retracted", 8, 1, 16, 64, 64, jnp.bfloat16),
  ("step_m128_d128", "encoding", "retracted", 1, 1, 12, 128, 128, jnp.bfloat16),
  ("returning_8x16_heads_m64_d64", "decoding", "returning", 8, 2048, 16, 64, 64, jnp.bfloat16),
  ("returning_8_heads_m64_d64_f32", "encoding", "returning", 1, 1024, 8, 64, 64, jnp.float32),
  ("returning_16_heads_m128_d128", "similarity", "returning", 1, 1024, 16, 128, 128, jnp.bfloat16),
  ("returning_4x16_heads_m128_d128", "decoding", "returning", 4, 1024, 16, 128, 128, jnp.float32),
  ("returning_odd_m40_d96", "decoding", "returning", 3, 77, 5, 40, 96, jnp.bfloat16),
  ("returning_step_m64_d64", "decoding", "returning", 8, 1, 16, 64, 64, jnp.bfloat16),
  ("returning_step_m128_d128", "encoding", "returning", 1, 1, 12, 128, 128, jnp.bfloat16),
))
HOPPER_CASES = list(_cases(
  "gpu",
  ("8x16_heads_m64_d64", "decoding", "retracted", 8, 8192, 16, 64, 64, jnp.bfloat16),
  ("8_heads_m64_d64_f32", "encoding", "retracted", 1, 1024, 8, 64, 64, jnp.float32),
  ("16_heads_m64_d128", "similarity", "retracted", 1, 1024, 16, 64, 128, jnp.bfloat16),
  ("odd_m40_d96", "decoding", "retracted", 3, 77, 5, 40, 96, jnp.bfloat16),
  ("step_m64_d64", "decoding", "retracted", 8, 1, 16, 64, 64, jnp.bfloat16),
))
