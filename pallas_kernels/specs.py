"""Calls of attention kernels that must compile: (name, function, arguments as shapes), of sizes of real layers.

Those for a Hopper GPU are gradients, whose programs hold the forward kernels too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.vq import choose_tile, nearest_code, vq_attention
from pallas_kernels.window import window_attention

KernelCase = tuple[str, Callable, tuple[jax.ShapeDtypeStruct, ...]]

TPU_CASES: list[KernelCase] = []
HOPPER_CASES: list[KernelCase] = []


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


def _window_args(batch, length, heads, kv_heads, key_dim, value_dim, dtype=jnp.bfloat16):
  return (
    _shape(batch, length, heads, key_dim, dtype=dtype), _shape(batch, length, kv_heads, key_dim, dtype=dtype),
    _shape(batch, length, kv_heads, value_dim, dtype=dtype), *(_shape(batch, length, dtype=jnp.int32),) * 2)


def _append_window() -> None:
  def add(name, *sizes, dtype=jnp.bfloat16, **options):
    function, args = functools.partial(window_attention, **options), _window_args(*sizes, dtype=dtype)
    append(f"window_{name}", function, *args)
    append(f"window_{name}_gradient", with_gradient(function, 3), *args)

  add("causal_d64", 1, 1024, 4, 4, 64, 64)
  add("512_sinks_grouped_d128", 1, 2048, 8, 2, 128, 128, window=512, sinks=4)
  add("1024_long_d128", 1, 16_384 + 77, 1, 1, 128, 128, window=1024)
  add("short_f32_d32_v48", 2, 33, 2, 2, 32, 48, dtype=jnp.float32, window=16)


def _append_hopper_window() -> None:
  def add(name, *sizes, **options):
    function = functools.partial(window_attention, backend="gpu", **options)
    HOPPER_CASES.append((f"window_{name}_gradient", with_gradient(function, 3), _window_args(*sizes)))

  add("causal_d64", 1, 1024, 4, 4, 64, 64)
  add("512_8x8192x16_d128", 8, 8192, 16, 16, 128, 128, window=512)
  add("512_sinks_grouped_d128", 1, 2048, 8, 2, 128, 128, window=512, sinks=4)
  add("512_many_sinks_d128_v64", 1, 2048, 4, 4, 128, 64, window=512, sinks=100)
  add("short_d40_v72", 2, 33, 2, 2, 40, 72, window=16)


def _append_vq() -> None:
  def add(name, batch, length, heads, kv_heads, key_dim, value_dim, *, codes=512, window=512, position_dim=None,
          dtype=jnp.bfloat16, cached=True, span=0, backend="tpu"):
    tile = choose_tile(length, dtype, position_dim or key_dim, value_dim, codes, window, span=span, backend=backend)
    num, slots = -(-length // tile), window + length
    caches = (
      _shape(num, batch, kv_heads, codes, value_dim, dtype=jnp.float32),
      _shape(num, batch, kv_heads, codes, dtype=jnp.float32), _shape(num, batch, dtype=jnp.int32))
    position_dim = position_dim or key_dim
    floats = (
      _shape(batch, length, heads, key_dim, dtype=dtype), _shape(batch, length, heads, position_dim, dtype=dtype),
      _shape(batch, slots, kv_heads, key_dim, dtype=dtype), _shape(batch, slots, kv_heads, value_dim, dtype=dtype),
      _shape(kv_heads, codes, key_dim, dtype=jnp.float32),
      _shape(kv_heads, window + 1, position_dim, dtype=jnp.float32), caches[0])
    ids = _shape(batch, length, dtype=jnp.int32), _shape(batch, slots, dtype=jnp.int32)

    def attend(qu, qw, k, v, rows, relative, mean, query_id, key_id, *rest):
      return vq_attention(
        qu, qw, k, v, rows, relative, query_id, key_id, (mean, *rest) if cached else None, tile=tile,
        span=span, backend=backend)

    args = (*floats, *ids, *caches[1:])
    gradient = f"vq_{name}_gradient", with_gradient(attend, len(floats))
    if backend == "gpu":
      HOPPER_CASES.append((*gradient, args))
      return
    append(f"vq_{name}", attend, *args)
    append(*gradient, *args)

  add("enwik8", 1, 2048, 1, 1, 128, 1536)
  add("enwik8_blocks", 1, 2048, 1, 1, 128, 1536, span=512)
  add("pg19_quarter", 2, 2048, 1, 1, 128, 1024)
  add("pg19_whole", 1, 4096, 1, 1, 128, 4096)  # more tokens than numbers in a value, else the values look like pairs
  add("grouped_d64_window_200", 2, 1000, 4, 2, 64, 64, codes=100, window=200)
  add("near_bias_f32", 1, 300, 2, 2, 64, 96, codes=300, window=128, position_dim=65, dtype=jnp.float32)
  add("no_cache", 1, 1024, 1, 1, 128, 256, cached=False)
  add("d128", 1, 2048, 4, 4, 128, 128, window=128, backend="gpu")
  add("grouped_d64_window_200", 2, 1000, 4, 2, 64, 64, codes=100, window=200, backend="gpu")


def _append_search() -> None:
  def add(name, batch, length, heads, codes, key_dim, *, dtype=jnp.bfloat16, backend="tpu"):
    case = (name, functools.partial(nearest_code, backend=backend), (
      _shape(batch, length, heads, key_dim, dtype=dtype), _shape(heads, codes, key_dim, dtype=jnp.float32)))
    (HOPPER_CASES if backend == "gpu" else TPU_CASES).append(case)

  add("nearest_code", 2, 2048, 1, 512, 128)
  add("nearest_code_4096", 1, 77, 4, 4096, 64)
  add("nearest_code", 8, 8192, 16, 512, 128, dtype=jnp.float32, backend="gpu")
  add("nearest_code_1000_d40", 1, 77, 4, 1000, 40, backend="gpu")


_append_window()
_append_hopper_window()
_append_vq()
_append_search()
