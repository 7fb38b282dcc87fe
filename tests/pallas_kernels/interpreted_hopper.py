"""Runs Hopper kernels in JAX's interpreter of Mosaic GPU: warpgroups as threads, barriers, copies, memory that begins
as NaN, and a look-out for races between warpgroups.

What that interpreter does not know is replaced: products on tensor cores by products of what their operands hold, and
layouts of registers by nothing. Those are compiled for an H100 by the compile suite.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races, reset_gpu_interpret_mode_state
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import flash_hopper, flash_hopper_kernels, hopper, search_hopper

PARAMS = InterpretGPUParams(detect_races=True)


@contextlib.contextmanager
def interpreted(rows: int) -> Iterator[None]:
  """Inside, kernels with `PARAMS` can be traced and run, in tiles of so many tokens; fails where warpgroups raced."""
  replaced = [
    *((module, "ROWS", rows) for module in (hopper, flash_hopper, flash_hopper_kernels, search_hopper)),
    (flash_hopper, "TILE", rows * flash_hopper_kernels.COMPUTING), (flash_hopper, "UNIT", rows),
    (hopper, "TRANSFORMS", ()),
    (hopper, "products", lambda *pairs: sum(_matrix(a) @ _matrix(b).T for a, b in pairs)),
    (hopper, "add_product", lambda total, a, b: total + _matrix(a) @ _matrix(b)),
    (plgpu, "load", lambda ref, index=..., **_: ref[index]), (plgpu, "layout_cast", lambda x, _: x),
    (thread_map, "_run_jaxpr", _compiled_once())]
  with contextlib.ExitStack() as stack:
    for module, name, value in replaced:
      stack.enter_context(mock.patch.object(module, name, value))
    try:
      yield
      assert not get_races().races_found
    finally:
      reset_gpu_interpret_mode_state()


def _matrix(x: Any) -> jax.Array:
  return (x if isinstance(x, jax.Array) else x[...]).astype(jnp.float32)


def _compiled_once() -> Callable[..., None]:
  """Instead of a function that compiles the program of a kernel anew for every warpgroup of every block."""
  lock, programs = threading.Lock(), {}

  def run(jaxpr, consts, *args):
    with lock:
      if jaxpr not in programs:
        programs[jaxpr] = jax.jit(lambda consts, *args: jax.core.eval_jaxpr(jaxpr, consts, *args)).lower(
          consts, *args).compile()
    jax.block_until_ready(programs[jaxpr](consts, *args))

  return run
