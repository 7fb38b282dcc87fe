"""Runs the program of a Hopper kernel eagerly, on arrays that start as NaN: its arithmetic and indices, not its timing.

Blocks of the grid one after another, a pipeline's tiles too. What only exists on the GPU (layouts, barriers, the order
of copies) is compiled for an H100 by the compile suite.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu


class Ref:
  """A piece of memory, or a part of one."""

  def __init__(self, array: np.ndarray):
    self.array = array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def at(self) -> _Parts:
    return _Parts(self)

  def __getitem__(self, index: Any) -> jax.Array:
    return jnp.asarray(self.array[_numbers(index)])

  def __setitem__(self, index: Any, value: jax.Array) -> None:
    self.array[_numbers(index)] = value


class _Parts:
  def __init__(self, ref: Ref):
    self.ref = ref

  def __getitem__(self, index: Any) -> Ref:
    return Ref(self.ref.array[_numbers(index)])


@contextlib.contextmanager
def emulated() -> Iterator[None]:
  """Inside, `plgpu.kernel` runs at once."""
  place: dict[str, int] = {}

  def kernel(body, *, out_type, grid, grid_names, scratch_types, compiler_params):
    del compiler_params

    def run(*inputs):
      sources = [Ref(np.asarray(x)) for x in inputs]
      results = [_fresh(x.shape, x.dtype) for x in out_type]
      for index in itertools.product(*map(range, grid)):
        place.update(zip(grid_names, index, strict=True))
        scratch = [_fresh(x.shape, jnp.float32) if hasattr(x, "shape") else None for x in scratch_types]
        body(*sources, *results, *scratch)
      return tuple(jnp.asarray(result.array) for result in results)

    return run

  def nothing(*_):
    pass

  def copy(source, target, *_):
    target.array[...] = source.array

  replaced = {
    "kernel": kernel, "emit_pipeline": _pipeline, "load": lambda ref, index=(), **_: ref[index or ...],
    "store": lambda ref, value, **_: ref.__setitem__(..., value),
    "copy_gmem_to_smem": copy, "copy_smem_to_gmem": copy, "barrier_wait": nothing, "commit_smem": nothing,
    "wait_smem_to_gmem": nothing}
  with contextlib.ExitStack() as stack:
    for name, function in replaced.items():
      stack.enter_context(mock.patch.object(plgpu, name, function, create=True))  # `store` is new in JAX 0.12
    stack.enter_context(mock.patch.object(jax.lax, "axis_index", place.__getitem__))
    stack.enter_context(jax.disable_jit())
    yield


def _pipeline(body, *, grid, in_specs, out_specs, max_concurrent_steps, init_carry):
  del max_concurrent_steps

  def run(*refs):
    carry = init_carry
    for n in range(grid[0]):
      windows = [
        _window(ref, spec, n) for ref, spec in zip(refs, (*in_specs, *out_specs), strict=True)]
      results = [_fresh(window.shape, jnp.float32) for window in windows[len(in_specs):]]
      carry = body((n,), *(Ref(window.array.copy()) for window in windows[:len(in_specs)]), *results, carry)
      for window, result in zip(windows[len(in_specs):], results, strict=True):
        window.array[...] = result.array
    return carry

  return run


def _window(ref, spec, n):
  begins = [place * size for place, size in zip(spec.index_map(n), spec.block_shape, strict=True)]
  window = ref.array[tuple(slice(begin, begin + size) for begin, size in zip(begins, spec.block_shape, strict=True))]
  assert window.shape == tuple(spec.block_shape), "a tile reaches beyond its array"
  return Ref(window)


def _fresh(shape, dtype):
  return Ref(np.full(shape, np.nan, dtype))


def _numbers(index):
  if isinstance(index, tuple):
    return tuple(map(_numbers, index))
  return index if isinstance(index, slice) or index is Ellipsis else int(index)
