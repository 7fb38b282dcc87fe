"""Calls that must compile for TPUs: (name, function, arguments as shapes). Sizes are those of real layers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.window import window_attention

Case = tuple[str, Callable, tuple[jax.ShapeDtypeStruct, ...]]

TPU_CASES: list[Case] = []


def append(name: str, function: Callable, *args: jax.ShapeDtypeStruct) -> None:
  """Adds a case; gradients are cases of their own, see `with_gradient`."""
  TPU_CASES.append((name, function, args))


def with_gradient(function: Callable, num_inputs: int) -> Callable:
  """The function that returns its results and the gradients of their sum for the first `num_inputs` arguments."""
  def run(*args):
    out, pull = jax.vjp(lambda *inputs: function(*inputs, *args[num_inputs:]), *args[:num_inputs])
    return out, pull(jax.tree.map(jnp.ones_like, out))

  return run


def _shape(*sizes: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(sizes, dtype)


def _append_window() -> None:
  def add(name, batch, length, heads, kv_heads, key_dim, value_dim, dtype=jnp.bfloat16, **options):
    function = functools.partial(window_attention, **options)
    args = (
      _shape(batch, length, heads, key_dim, dtype=dtype), _shape(batch, length, kv_heads, key_dim, dtype=dtype),
      _shape(batch, length, kv_heads, value_dim, dtype=dtype), *(_shape(batch, length, dtype=jnp.int32),) * 2)
    append(f"window_{name}", function, *args)
    append(f"window_{name}_gradient", with_gradient(function, 3), *args)

  add("causal_d64", 1, 1024, 4, 4, 64, 64)
  add("512_sinks_grouped_d128", 1, 2048, 8, 2, 128, 128, window=512, sinks=4)
  add("1024_long_d128", 1, 65_536 + 77, 1, 1, 128, 128, window=1024)
  add("short_f32_d32_v48", 2, 33, 2, 2, 32, 48, dtype=jnp.float32, window=16)


_append_window()
