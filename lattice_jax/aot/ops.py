"""Ops that are made of several calls of a kernel, as cases to compile: (name, function, arguments as shapes)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from lattice_jax.aot.cases import KernelCase
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.op import anchor_attention
from pallas_kernels.specs import with_gradient


def op_cases() -> Iterator[KernelCase]:
  """Anchor attention with its gradient; which kernels it calls depends on `dispatch.target_backend`."""
  for name, config in (("flat", AnchorConfig(max_segment=128)), ("fanout", AnchorConfig(max_segment=128, fanout=8))):
    yield f"anchor_{name}_grouped_d128_gradient", with_gradient(
      functools.partial(_attend, config), 3), _anchor_shapes(batch=1, length=2048, heads=8, kv_heads=2, width=128)


def _attend(config: AnchorConfig, q: jax.Array, k: jax.Array, v: jax.Array, marks: jax.Array) -> jax.Array:
  return anchor_attention(q, k, v, marks=marks, config=config, impl="pallas")[0]


def _anchor_shapes(
  *, batch: int, length: int, heads: int, kv_heads: int, width: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  tokens = [jax.ShapeDtypeStruct((batch, length, size, width), jnp.bfloat16) for size in (heads, kv_heads, kv_heads)]
  return *tokens, jax.ShapeDtypeStruct((batch, length), jnp.int8)
